// Entered at EL2, MMU off, by the first word for blocks of 2 MiB or by the second for pages of 4 KiB, where QEMU's boot stub
// would be at EL1. That stub then runs at EL1: it loads the device tree's address and jumps to the kernel.

.set STUB, 0x40000000           // QEMU's boot stub, at the start of RAM
.set RAM_GIB, 1                 // the GiB in which RAM starts
.set RAM_GIBS, 8                // so many from there on are mapped by the size that was asked for
.set LEAF, 0x7fc                // AF; inner shareable; reads and writes; write-back. Below it are the type's two bits
.set TABLES, 1 << 20            // offset of level 1 (two tables in a row) from the first byte
.set LEVEL2, 2 * 4096           // further offsets, from there
.set LEVEL3, LEVEL2 + RAM_GIBS * 4096
.set CPUS, 1 << 16              // offset of the CPUs' records
.set CPU, 32                    // bytes for each CPU: where it is to start, with what, and two registers

.section .head, "ax"
.global _start
_start:
    b       1f
    mov     x28, #1             // pages
    b       2f
1:  mov     x28, #0             // blocks
2:  msr     daifset, #0xf
    adr     x20, _start
    add     x20, x20, #TABLES
    add     x21, x20, #LEVEL2
    mov     x22, #LEVEL3
    add     x22, x20, x22

    // Level 1: a block for each GiB, but for RAM.
    mov     x0, #0
    mov     x1, #(LEAF | 1)
    mov     x2, #(1 << 30)
3:  str     x1, [x20, x0, lsl #3]
    add     x1, x1, x2
    add     x0, x0, #1
    cmp     x0, #1024
    b.lo    3b
    mov     x0, #RAM_GIB
    orr     x1, x21, #3
4:  str     x1, [x20, x0, lsl #3]
    add     x1, x1, #4096
    add     x0, x0, #1
    cmp     x0, #(RAM_GIB + RAM_GIBS)
    b.lo    4b

    // Level 2: blocks, or tables of pages.
    mov     x1, #(RAM_GIB << 30)
    add     x1, x1, #(LEAF | 1)
    mov     x2, #(1 << 21)
    cbz     x28, 5f
    orr     x1, x22, #3
    mov     x2, #4096
5:  mov     x0, #0
6:  str     x1, [x21, x0, lsl #3]
    add     x1, x1, x2
    add     x0, x0, #1
    cmp     x0, #(RAM_GIBS * 512)
    b.lo    6b

    // Level 3.
    cbz     x28, 8f
    mov     x1, #(RAM_GIB << 30)
    add     x1, x1, #LEAF
    add     x1, x1, #3
    mov     x2, #(RAM_GIBS * 512 * 512)
    mov     x0, #0
7:  str     x1, [x22, x0, lsl #3]
    add     x1, x1, #4096
    add     x0, x0, #1
    cmp     x0, x2
    b.lo    7b

8:  dsb     sy
    bl      controls
    ldr     x0, =STUB
    msr     elr_el2, x0
    mov     x0, #0
    eret

// Where a CPU arrives that the kernel has started: x0 is its record.
secondary:
    mov     x19, x0
    bl      controls
    ldp     x1, x0, [x19]       // entry point, context
    msr     elr_el2, x1
    eret

// Makes EL1 what it is on a machine without EL2, but for the translation.
controls:
    adr     x0, vectors
    msr     vbar_el2, x0
    adr     x20, _start
    add     x1, x20, #TABLES
    msr     vttbr_el2, x1       // VMID 0
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf        // PARange is VTCR_EL2.PS
    mov     x2, #5
    cmp     x1, x2
    csel    x1, x1, x2, lo
    lsl     x1, x1, #16
    ldr     x2, =(24 | 1 << 6 | 1 << 31)    // T0SZ: 40 bits; SL0: from level 1 on; RES1. Walks are non-cacheable, as are our stores
    orr     x1, x1, x2
    msr     vtcr_el2, x1

    ldr     x0, =(1 | 1 << 19 | 1 << 31)    // HCR_EL2: VM, TSC, RW
    mrs     x1, id_aa64isar1_el1
    mrs     x2, S3_0_C0_C6_2    // ID_AA64ISAR2_EL1
    and     x1, x1, #0xff0      // APA, API
    and     x2, x2, #0xf000     // APA3
    orr     x1, x1, x2
    cbz     x1, 1f
    orr     x0, x0, #(3 << 40)  // APK, API
1:  msr     hcr_el2, x0

    mov     x0, #3              // EL1PCTEN, EL1PCEN
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    and     x0, x0, #0xff
    mov     x1, #CPU
    madd    x0, x0, x1, x20
    add     x0, x0, #CPUS
    mov     sp, x0              // this CPU's record
    msr     hstr_el2, xzr

    // Vectors and matrices are the kernel's, in all of their length.
    mov     x1, #0x33ff         // CPTR_EL2: RES1, TZ, TSM
    mrs     x2, id_aa64pfr0_el1
    mrs     x3, id_aa64pfr1_el1
    and     x2, x2, #(0xf << 32)    // SVE
    and     x3, x3, #(0xf << 24)    // SME
    cbz     x2, 2f
    bic     x1, x1, #(1 << 8)   // TZ
2:  cbz     x3, 3f
    bic     x1, x1, #(1 << 12)  // TSM
3:  msr     cptr_el2, x1
    isb
    mov     x0, #0xf
    cbz     x2, 4f
    msr     S3_4_C1_C2_0, x0    // ZCR_EL2
4:  cbz     x3, 5f
    orr     x0, x0, #(3 << 30)  // FA64, EZT0
    msr     S3_4_C1_C2_6, x0    // SMCR_EL2
5:
    // What these registers have to let through.
    mrs     x0, id_aa64mmfr1_el1
    ubfx    x0, x0, #40, #4     // HCX
    cbz     x0, 6f
    mov     x0, #(1 << 11)      // MSCEn
    msr     S3_4_C1_C2_2, x0    // HCRX_EL2
6:  mrs     x0, id_aa64mmfr0_el1
    ubfx    x0, x0, #56, #4     // FGT
    cbz     x0, 7f
    mov     x0, #(3 << 54)      // nTPIDR2_EL0, nSMPRI_EL1
    msr     S3_4_C1_C1_4, x0    // HFGRTR_EL2
    msr     S3_4_C1_C1_5, x0    // HFGWTR_EL2
7:
    mov     x1, #0              // MDCR_EL2
    mrs     x0, id_aa64dfr0_el1
    ubfx    x0, x0, #8, #4      // PMUVer
    cbz     x0, 8f
    mrs     x1, pmcr_el0
    ubfx    x1, x1, #11, #5     // HPMN: all counters
8:  msr     mdcr_el2, x1

    mrs     x0, id_aa64pfr0_el1
    ubfx    x0, x0, #24, #4     // GIC: a CPU interface of registers
    cbz     x0, 9f
    mov     x0, #0xf            // Enable, DIB, DFB, SRE
    msr     S3_4_C12_C9_5, x0   // ICC_SRE_EL2
    isb
    msr     S3_4_C12_C11_0, xzr // ICH_HCR_EL2
9:  ldr     x0, =0x30d00800     // RES1, all off
    msr     sctlr_el1, x0
    mov     x0, #0x3c5          // EL1h, interrupts masked
    msr     spsr_el2, x0
    isb
    tlbi    alle1
    dsb     nsh
    isb
    ret

// A call to the firmware. A CPU that it turns on would arrive at EL2: it gets our entry point, and a record with the
// kernel's.
call:
    stp     x10, x11, [sp, #16]
    mrs     x10, esr_el2
    lsr     x10, x10, #26
    cmp     x10, #0x17
    b.ne    unknown
    ldr     w10, =0xc4000003    // CPU_ON
    cmp     w0, w10
    b.ne    1f
    and     x10, x1, #0xff
    mov     x11, #CPU
    mul     x10, x10, x11
    adr     x11, _start
    add     x11, x11, #CPUS
    add     x10, x10, x11
    stp     x2, x3, [x10]
    mov     x3, x10
    adr     x2, secondary
1:  smc     #0
    mrs     x10, elr_el2
    add     x10, x10, #4
    msr     elr_el2, x10
    ldp     x10, x11, [sp, #16]
    eret

// What is not foreseen ends the run.
unknown:
    ldr     w0, =0x84000008     // SYSTEM_OFF
    smc     #0
    b       .

.balign 2048
vectors:
    .rept 8
    b       unknown
    .balign 128
    .endr
    b       call
    .balign 128
    .rept 7
    b       unknown
    .balign 128
    .endr
