// Firmware for QEMU's sbsa-ref, which has none: every CPU starts here, at EL3, from the first byte of flash.
//
// CPU 0 hands the machine over at EL2, with the device tree in RAM, since flash is the secure side's alone. The others poll
// their release addresses (a spin-table), still at EL3, and go to EL2 when they are called. What stays is PSCI's
// SYSTEM_OFF and SYSTEM_RESET, by the embedded controller that only the secure side has.

.set GICD, 0x40060000
.set GICR, 0x40080000
.set CONTROLLER, 0x50000000
.set RELEASE, 0x100001f0000     // a doubleword for each CPU
.set IMAGE, 0x10000200000
.set FLASH_TREE, 0x10000        // the device tree in flash
.set TREE, 0x10000100000        // and in RAM
.set TREE_SIZE, 0x10000

.section .text.el3, "ax"
.global _start
_start:
    msr     daifset, #0xf
    // SCR_EL3: NS; RES1; HCE; RW; no trap of pointer authentication (APK, API), fine-grained traps (FGTEn), HCRX (HXEn).
    ldr     x0, =(1 | 3 << 4 | 1 << 8 | 1 << 10 | 3 << 16 | 1 << 27 | 1 << 38)
    msr     scr_el3, x0
    msr     cptr_el3, xzr
    adr     x0, vectors
    msr     vbar_el3, x0
    mov     x0, #0xf            // ICC_SRE_EL3: SRE, DFB, DIB, Enable
    msr     S3_6_C12_C12_5, x0
    isb
    mov     x0, #1              // ICC_IGRPEN1_EL3.EnableGrp1NS
    msr     S3_6_C12_C12_7, x0
    ldr     x0, =0x30c50830     // SCTLR_EL2: RES1, all off
    msr     sctlr_el2, x0
    isb

    // This CPU's redistributor: awake, its interrupts in group 1. They lie in the order of the affinities here.
    mrs     x9, mpidr_el1
    and     x9, x9, #0xff
    ldr     x1, =GICR
    add     x1, x1, x9, lsl #17
    ldr     w2, [x1, #0x14]
    and     w2, w2, #~2         // GICR_WAKER.ProcessorSleep
    str     w2, [x1, #0x14]
1:  ldr     w2, [x1, #0x14]
    tbnz    w2, #2, 1b          // ChildrenAsleep
    add     x1, x1, #0x10, lsl #12
    mov     w2, #-1
    str     w2, [x1, #0x80]     // GICR_IGROUPR0
    ldr     x10, =RELEASE
    cbnz    x9, 4f

    // CPU 0: affinity routing on both sides, all shared interrupts in group 1.
    ldr     x1, =GICD
    mov     w3, #0x30           // GICD_CTLR: ARE_S, ARE_NS
    str     w3, [x1]
    add     x4, x1, #0x84       // GICD_IGROUPR1 on
    mov     x5, #31
2:  str     w2, [x4], #4
    subs    x5, x5, #1
    b.ne    2b
    mov     w3, #0x32           // and EnableGrp1NS
    str     w3, [x1]
    ldr     x1, =FLASH_TREE
    ldr     x3, =TREE
    add     x4, x3, #(TREE_SIZE >> 12), lsl #12
3:  ldp     x5, x6, [x1], #16
    stp     x5, x6, [x3], #16
    cmp     x3, x4
    b.lo    3b
    ldr     x0, =TREE
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    ldr     x4, =IMAGE

    // x0 to x3: for who is at x4, at EL2 with everything masked.
enter:
    msr     elr_el3, x4
    mov     x4, #0x3c9
    msr     spsr_el3, x4
    isb
    eret

    // Another CPU: until somebody writes where it is to go. It may come here after that was written, and clears nothing:
    // memory is zero when the machine is turned on, and a reset has cleared the addresses.
4:  ldr     x4, [x10, x9, lsl #3]
    cbnz    x4, 6f
    wfe
    b       4b
6:  mov     x0, xzr
    b       enter

.balign 2048
vectors:
.balign 128
    b       .
.org vectors + 0x400            // synchronous, from a lower level in AArch64: an SMC
    b       call                // who calls expects X0 to X3 to change (SMCCC)
.org vectors + 0x800

call:
    mov     x3, x0
    ldr     x2, =CONTROLLER
    mov     w1, #1
    ldr     w0, =0x84000008     // SYSTEM_OFF
    cmp     w3, w0
    b.eq    7f
    mov     w1, #2
    ldr     w0, =0x84000009     // SYSTEM_RESET
    cmp     w3, w0
    b.eq    9f
    mov     x0, #-1             // NOT_SUPPORTED
    ldr     w1, =0x84000000     // PSCI_VERSION
    cmp     w3, w1
    b.ne    8f
    ldr     x0, =0x10001
8:  eret
9:  ldr     x3, =RELEASE
    stp     xzr, xzr, [x3]
    stp     xzr, xzr, [x3, #16]
    dsb     sy
7:  str     w1, [x2]
    b       .
