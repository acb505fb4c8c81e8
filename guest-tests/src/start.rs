//! The first instructions: of the boot CPU, and of the CPUs that it starts.

use crate::cpu::MAX_CPUS;
use crate::{console, machine, mmu, report, smp};
use core::arch::global_asm;

/// Bytes of stack for each CPU.
pub const STACK_SIZE: u64 = 16 * 1024;

global_asm!(
    ".section .head, \"ax\"",
    ".global _start",
    "_start:",
    // The arm64 Image header (Linux, Documentation/arch/arm64/booting.rst). Its first word is executed.
    "b      9f",
    "nop",
    ".quad  0",          // text_offset
    ".quad  image_size", // image_size, bss and stacks included
    ".quad  0xa",        // flags: little-endian, 4 KiB pages, anywhere in memory
    ".quad  0, 0, 0",
    ".ascii \"ARM\\x64\"",
    ".word  0",
    "9:",
    "mov    x19, x0", // the device tree
    "mrs    x20, sctlr_el1",
    "mrs    x21, CurrentEL",
    "mrs    x22, daif",
    // Only the CPU with affinity 0 boots; should others come here too, they wait for nothing.
    "mrs    x1, mpidr_el1",
    "mov    x2, #0xffffff",
    "movk   x2, #0xff, lsl #32",
    "tst    x1, x2",
    "b.eq   2f",
    "1: wfe",
    "b      1b",
    // Relocate: the image is linked at 0, so that every relocation is `base + addend`.
    "2: adrp x23, _start",
    "adrp   x1, relocations_start",
    "add    x1, x1, :lo12:relocations_start",
    "adrp   x2, relocations_end",
    "add    x2, x2, :lo12:relocations_end",
    "3: cmp x1, x2",
    "b.hs   4f",
    "ldp    x3, x4, [x1], #16", // offset, type
    "ldr    x5, [x1], #8",      // addend
    "cmp    w4, #1027",         // R_AARCH64_RELATIVE
    "b.ne   3b",
    "add    x5, x5, x23",
    "str    x5, [x23, x3]",
    "b      3b",
    // Zero the bss.
    "4: adrp x1, bss_start",
    "add    x1, x1, :lo12:bss_start",
    "adrp   x2, bss_end",
    "add    x2, x2, :lo12:bss_end",
    "5: cmp x1, x2",
    "b.hs   6f",
    "stp    xzr, xzr, [x1], #16",
    "b      5b",
    "6: msr tpidr_el1, xzr",
    "adrp   x1, stacks",
    "add    x1, x1, :lo12:stacks",
    "add    x1, x1, #{stack_size}",
    "mov    sp, x1",
    "cmp    x21, #4", // EL1: the registers below are ours to write
    "b.ne   7f",
    "adrp   x1, vectors",
    "add    x1, x1, :lo12:vectors",
    "msr    vbar_el1, x1",
    "mov    x1, #(3 << 20)", // CPACR_EL1.FPEN: floating-point registers may be used
    "msr    cpacr_el1, x1",
    "isb",
    "msr    daifclr, #4", // SErrors come when they come
    "7: mov x0, x19",
    "mov    x1, x20",
    "mov    x2, x21",
    "mov    x3, x22",
    "mov    x29, xzr",
    "mov    x30, xzr",
    "b      boot",

    // Where CPU_ON makes a CPU begin. The low byte of x0 is the CPU's number.
    ".section .text.secondary_start, \"ax\"",
    ".global secondary_start",
    "secondary_start:",
    "mrs    x20, sctlr_el1",
    "mrs    x21, CurrentEL",
    "mrs    x22, daif",
    "adrp   x1, vectors",
    "add    x1, x1, :lo12:vectors",
    "msr    vbar_el1, x1",
    "mov    x1, #(3 << 20)",
    "msr    cpacr_el1, x1",
    "and    x1, x0, #0xff",
    "msr    tpidr_el1, x1",
    "add    x1, x1, #1",
    "mov    x2, #{stack_size}",
    "mul    x1, x1, x2",
    "adrp   x2, stacks",
    "add    x2, x2, :lo12:stacks",
    "add    sp, x2, x1",
    "adrp   x3, translation",
    "add    x3, x3, :lo12:translation",
    "ldp    x4, x5, [x3]",
    "ldp    x6, x7, [x3, #16]",
    "msr    mair_el1, x4",
    "msr    tcr_el1, x5",
    "msr    ttbr0_el1, x6",
    "isb",
    "tlbi   vmalle1",
    "dsb    nsh",
    "isb",
    "msr    sctlr_el1, x7",
    "isb",
    "msr    daifclr, #4",
    "mov    x1, x20",
    "mov    x2, x21",
    "mov    x3, x22",
    "mov    x29, xzr",
    "mov    x30, xzr",
    "b      secondary",

    ".section .stacks, \"aw\", @nobits",
    "stacks:",
    ".zero  {stack_size} * {cpus}",
    stack_size = const STACK_SIZE,
    cpus = const MAX_CPUS,
);

unsafe extern "C" {
    #[link_name = "_start"]
    static IMAGE_START: u8;
    #[link_name = "constant_end"]
    static CONSTANT_END: u8;
    #[link_name = "image_end"]
    static IMAGE_END: u8;
    /// The entry point for CPU_ON.
    #[link_name = "secondary_start"]
    pub(crate) static SECONDARY_START: u8;
}

/// Returns the memory that the payload itself fills, bss and stacks included.
pub fn image() -> crate::region::Region {
    crate::region::Region { start: &raw const IMAGE_START as u64, end: &raw const IMAGE_END as u64 }
}

/// Returns the part of the image that never changes: code and read-only data.
pub fn constant() -> crate::region::Region {
    crate::region::Region { start: &raw const IMAGE_START as u64, end: &raw const CONSTANT_END as u64 }
}

/// The state in which a CPU began.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// `x0`: the device tree's address, or what CPU_ON was given.
    pub x0: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// CurrentEL.
    pub el: u64,
    /// DAIF.
    pub daif: u64,
}

#[unsafe(no_mangle)]
extern "C" fn boot(x0: u64, sctlr: u64, el: u64, daif: u64) -> ! {
    let entry = Entry { x0, sctlr, el, daif };
    assert!(el >> 2 == 1, "entered at EL{}, needs EL1", el >> 2);
    // SAFETY: the boot protocol says that `x0` is the address of a device tree, which nobody else uses; `Fdt` checks
    // the magic number and all the sizes in it. Only this CPU runs.
    unsafe { machine::init(entry) };
    console::set_base(machine::get().uart.start);
    mmu::init();
    report::run_all()
}

#[unsafe(no_mangle)]
extern "C" fn secondary(x0: u64, sctlr: u64, el: u64, daif: u64) -> ! {
    smp::start_work(Entry { x0, sctlr, el, daif })
}
