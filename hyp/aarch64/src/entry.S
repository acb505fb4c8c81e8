// The image's header, the way in, and the vectors.
//
// Everything here is position-independent: the image is linked at 0 and runs where the loader put it. Until the
// relocations are applied no absolute address may be used, and until the MMU is on every access is to Device memory:
// aligned, and no exclusives.

// The arm64 boot protocol's header (Linux, Documentation/arch/arm64/booting.rst).
.section .text.header, "ax"
.global mz_image
mz_image:
    b   mz_entry
    .long 0
    .quad 0                     // text_offset: wherever the loader likes
    .quad __image_size          // from here to the end of .bss
    .quad 0xa                   // little-endian, 4 KiB granule, anywhere in memory
    .quad 0
    .quad 0
    .quad 0
    .ascii "ARM\x64"
    .long 0

// x0: the device tree blob. MMU and data cache off, image clean to the point of coherency.
.section .text.entry, "ax"
mz_entry:
    msr     daifset, #0xf
    mov     x19, x0
    mrs     x21, CurrentEL
    lsr     x21, x21, #2
    mov     x20, xzr
    cmp     x21, #2
    b.ne    1f
    mrs     x20, cntpct_el0     // when we started
1:
    // No cache may hold a line of the image that could be written back over what is stored now with the cache off.
    adrp    x0, mz_image
    adrp    x1, __image_end
    bl      mz_clean_invalidate

    // Relocate: add where the image is to each word that holds an address. The table (RELR, generic ABI) has an even
    // entry for a word's offset, and behind it odd ones: bits 1 to 63 are for the 63 words that follow the last one.
    // Once only, since what is added to is in place.
    adrp    x0, mz_image
    adrp    x1, __relr_start
    add     x1, x1, #:lo12:__relr_start
    adrp    x2, __relr_end
    add     x2, x2, #:lo12:__relr_end
2:  cmp     x1, x2
    b.hs    3f
    ldr     x3, [x1], #8
    tbnz    x3, #0, 6f
    add     x4, x0, x3
    ldr     x5, [x4]
    add     x5, x5, x0
    str     x5, [x4], #8
    b       2b
6:  mov     x5, x4
7:  lsr     x3, x3, #1
    cbz     x3, 9f
    tbz     x3, #0, 8f
    ldr     x6, [x5]
    add     x6, x6, x0
    str     x6, [x5]
8:  add     x5, x5, #8
    b       7b
9:  add     x4, x4, #(63 * 8)
    b       2b

3:  adrp    x1, __bss_start
    adrp    x2, __image_end
4:  stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    4b

    msr     spsel, #1
    adrp    x0, {boot_slot}
    add     x0, x0, #:lo12:{boot_slot}
    bl      mz_take_slot
    cmp     x21, #2
    b.ne    5f
    bl      mz_el2_reset
    // What was stored so far, and what is on the stack, must be found in memory, not under a stale line of the cache,
    // once caches are on: mz_enable_mmu sees to that.
    mov     x0, x19
    mov     x1, x20
    bl      mz_boot
    b       mz_park
5:  mov     x0, x19
    mov     x1, x21
    bl      mz_wrong_level
    b       mz_park

// Where PSCI starts another CPU: MMU and caches off, x0 as given to CPU_ON: the CPU's slot, clean to the point of
// coherency as far as it is read here.
.global mz_secondary_entry
mz_secondary_entry:
    msr     daifset, #0xf
    msr     spsel, #1
    mov     x19, x0
    mrs     x21, CurrentEL
    cmp     x21, #(2 << 2)
    b.ne    mz_park             // the boot CPU says which CPU did not arrive
    bl      mz_el2_reset
    adrp    x1, {mmu}
    add     x1, x1, #:lo12:{mmu}
    bl      mz_mmu_on
    mov     x0, x19
    bl      mz_take_slot
    mov     x0, x19
    bl      mz_secondary
    b       mz_park

// Where a spin-table sends another CPU: MMU and caches off. It waits for its slot.
.global mz_pen_entry
mz_pen_entry:
    msr     daifset, #0xf
    mrs     x1, mpidr_el1
    ldr     x2, =0xff00ffffff   // the affinities
    and     x1, x1, x2
    orr     x1, x1, #(1 << 63)
    adrp    x3, {gate}
    add     x3, x3, #:lo12:{gate}
10: ldr     x2, [x3]
    cmp     x2, x1
    b.eq    11f
    wfe
    b       10b
11: dmb     sy                  // O202: the slot is read after it is this CPU's turn
    ldr     x0, [x3, #8]
    b       mz_secondary_entry

// Waits for ever.
.global mz_park
mz_park:
    msr     daifset, #0xf
6:  wfe
    b       6b

// x0: a CPU slot. Makes it this CPU's: TPIDR_EL2, the stack pointer, and the end of the frame chain.
// Preserves x0.
mz_take_slot:
    mov     x29, xzr
    add     x1, x0, #{stack_end_hi}, lsl #12
    mov     sp, x1
    add     x1, x0, #{emergency_end_hi}, lsl #12
    str     x1, [x0, #{emergency}]
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    7f
    msr     tpidr_el2, x0
7:  ret

// Puts the registers that decide how EL2 itself runs into a known state: E2H = 0 (where the CPU lets us: FEAT_E2H0),
// MMU and caches off, our vectors.
mz_el2_reset:
    ldr     x1, ={hcr}
    msr     hcr_el2, x1
    isb
    ldr     x1, ={sctlr_off}
    msr     sctlr_el2, x1
    adrp    x1, mz_vectors
    add     x1, x1, #:lo12:mz_vectors
    msr     vbar_el2, x1
    isb
    ret

// x1: MAIR, TCR, TTBR0, SCTLR. Turns the MMU and the caches on. The caller's tables map what runs at its own address.
.global mz_mmu_on
mz_mmu_on:
    ldp     x2, x3, [x1]
    msr     mair_el2, x2
    msr     tcr_el2, x3
    ldp     x2, x3, [x1, #16]
    msr     ttbr0_el2, x2
    dsb     sy                  // O67: stores to the tables are done before walks may read them
    tlbi    alle2
    ic      iallu
    dsb     nsh                 // O68: nothing that firmware left in TLBs and instruction caches is used
    isb                         // after this, and the registers above are in effect
    msr     sctlr_el2, x3
    isb
    ret

// x0: start, x1: end. Cleans and invalidates the data cache to the point of coherency.
// Clobbers x0, x2, x3.
.global mz_clean_invalidate
mz_clean_invalidate:
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4     // DminLine: log2 of words in the smallest line
    mov     x3, #4
    lsl     x2, x3, x2
    sub     x3, x2, #1
    bic     x0, x0, x3
8:  dc      civac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    8b
    dsb     sy                  // O69: in memory before what follows, which goes past the caches
    ret

// x0: an address, a multiple of 4. Reads the word there: x0 is what was read, and x1 is 0; where the access is aborted, x1
// is 1 (mz_probed, below).
.global mz_probe
mz_probe:
    mov     x1, #1
mz_probing:
    ldr     w0, [x0]
    mov     x1, xzr             // not done after an abort
    ret

// The vectors. An exception from EL2 itself is always a bug, unless mz_probe has asked for it: interrupts are masked here,
// and nothing else that the hypervisor does faults. CNTVOFF_EL2, which only guests have a use for, frees the first register, so that the report
// gets every register as it was, whatever the stack pointer is worth.
.macro mz_bug vector
.balign 128
    msr     cntvoff_el2, x0
    mrs     x0, tpidr_el2
    stp     x1, x2, [x0, #{scratch}]
    mov     x1, #\vector
    b       mz_report
.endm
.macro mz_lower target
.balign 128
    b       \target
.endm

.section .text.vectors, "ax"
.balign 2048
.global mz_vectors
mz_vectors:
    mz_bug  0                   // from EL2 with SP_EL0: synchronous, IRQ, FIQ, SError
    mz_bug  1
    mz_bug  2
    mz_bug  3
.balign 128                     // from EL2 with SP_EL2: synchronous
    msr     cntvoff_el2, x0
    mrs     x0, tpidr_el2
    stp     x1, x2, [x0, #{scratch}]
    mrs     x1, elr_el2
    adr     x2, mz_probing
    cmp     x1, x2              // SPSR_EL2 has the flags
    b.eq    mz_probed
    mov     x1, #4
    b       mz_report
    mz_bug  5
    mz_bug  6
    mz_bug  7
    mz_lower mz_guest_sync      // from a guest in AArch64
    mz_lower mz_guest_irq
    mz_lower mz_guest_fiq
    mz_lower mz_guest_serror
    mz_bug  12                  // from a guest whose EL1 is AArch32: there is none (HCR_EL2.RW)
    mz_bug  13
    mz_bug  14
    mz_bug  15

// x0: this CPU's slot, x1: ELR_EL2; the slot's scratch: x1, x2. Goes on behind what says that something was there.
mz_probed:
    add     x1, x1, #8
    msr     elr_el2, x1
    ldp     x1, x2, [x0, #{scratch}]
    eret

// x0: this CPU's slot, x1: the vector; CNTVOFF_EL2: x0; the slot's scratch: x1, x2.
mz_report:
    mov     x2, sp
    str     x2, [x0, #{scratch} + 16]
    ldr     x2, [x0, #{emergency}]
    mov     sp, x2
    sub     sp, sp, #{frame}
    stp     x3, x4, [sp, #24]
    stp     x5, x6, [sp, #40]
    stp     x7, x8, [sp, #56]
    stp     x9, x10, [sp, #72]
    stp     x11, x12, [sp, #88]
    stp     x13, x14, [sp, #104]
    stp     x15, x16, [sp, #120]
    stp     x17, x18, [sp, #136]
    stp     x19, x20, [sp, #152]
    stp     x21, x22, [sp, #168]
    stp     x23, x24, [sp, #184]
    stp     x25, x26, [sp, #200]
    stp     x27, x28, [sp, #216]
    stp     x29, x30, [sp, #232]
    mrs     x3, cntvoff_el2
    str     x3, [sp]
    ldp     x3, x4, [x0, #{scratch}]
    stp     x3, x4, [sp, #8]
    ldr     x3, [x0, #{scratch} + 16]
    mrs     x4, elr_el2
    stp     x3, x4, [sp, #248]
    mrs     x3, spsr_el2
    mrs     x4, esr_el2
    stp     x3, x4, [sp, #264]
    mrs     x3, far_el2
    mrs     x4, hpfar_el2
    stp     x3, x4, [sp, #280]
    str     x1, [sp, #296]
    mov     x29, xzr
    mov     x0, sp
    bl      mz_exception
    b       mz_park
