//! Stage-1 translation: an identity map of memory and the devices that the runtime uses, and for each CPU a window
//! through which tests reach any other address.
//!
//! 4 KiB granule, 48-bit virtual addresses, TTBR0 only. What is not mapped is a translation fault, and so a bug of the
//! payload's. Virtual addresses from 2⁴⁷ are the tests': see [`Window`] and [`Walk`].

use crate::cpu::{self, MAX_CPUS};
use crate::region::Region;
use crate::{machine, read_sysreg, start, write_sysreg};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Bytes in a page.
pub const PAGE: u64 = 4096;
const ENTRIES: usize = 512;
const TABLES: usize = 40;

/// One translation table.
#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

/// The tables: the root, and what [`add_table`] gives out after it.
static POOL: [Table; TABLES] = [const { Table([const { AtomicU64::new(0) }; ENTRIES]) }; TABLES];
static USED: AtomicUsize = AtomicUsize::new(1);

/// What every CPU's translation registers hold: MAIR_EL1, TCR_EL1, TTBR0_EL1, SCTLR_EL1. Read by the entry code with
/// its MMU off.
#[repr(C, align(64))]
struct Translation([AtomicU64; 4]);

#[unsafe(export_name = "translation")]
static TRANSLATION: Translation = Translation([const { AtomicU64::new(0) }; 4]);

/// What kind of memory a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Write-back cacheable, executable.
    Normal,
    /// Device-nGnRnE, not executable.
    Device,
}

const MAIR: u64 = 0xff << 8; // attribute 0: Device-nGnRnE; 1: Normal, write-back, allocating
const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const ACCESS_FLAG: u64 = 1 << 10;

impl Memory {
    const fn bits(self) -> u64 {
        match self {
            Self::Normal => 1 << 2 | 0b11 << 8 | ACCESS_FLAG,
            Self::Device => ACCESS_FLAG | 1 << 53 | 1 << 54,
        }
    }
}

/// SCTLR_EL1: the bits that are RES1 in Armv8.0 (EIS and EOS, nTWI, nTWE and SPAN among them), alignment of SP checked.
const SCTLR_OFF: u64 = 0x30d0_0800 | 1 << 18 | 1 << 16 | 1 << 3;
const SCTLR_M: u64 = 1;
const SCTLR_C: u64 = 1 << 2;
const SCTLR_I: u64 = 1 << 12;

/// Where the tests' virtual addresses begin.
const TEST_BASE: u64 = 1 << 47;

/// Returns the base-2 logarithm of the size that an entry of this level maps.
const fn shift(level: u32) -> u32 {
    39 - 9 * level
}

const fn slot(va: u64, level: u32) -> usize {
    (va >> shift(level)) as usize % ENTRIES
}

fn add_table() -> &'static Table {
    let index = USED.fetch_add(1, Relaxed);
    assert!(index < TABLES, "no more translation tables");
    &POOL[index]
}

fn table_at(address: u64) -> &'static Table {
    let offset = address - &raw const POOL as u64;
    &POOL[(offset / PAGE) as usize]
}

/// Returns the table of `level` on the way to `va`, and makes what is missing.
fn table_for(va: u64, level: u32) -> &'static Table {
    let mut table = &POOL[0];
    for l in 0..level {
        let entry = &table.0[slot(va, l)];
        if entry.load(Relaxed) == 0 {
            entry.store(add_table() as *const Table as u64 | TABLE_OR_PAGE | VALID, Relaxed);
        }
        table = table_at(entry.load(Relaxed) & 0xffff_ffff_f000);
    }
    table
}

fn map_same(region: Region, memory: Memory) {
    let mut at = region.start;
    while at < region.end {
        let level = (1..3)
            .find(|&l| at.trailing_zeros() >= shift(l) && at + (1 << shift(l)) <= region.end)
            .unwrap_or(3);
        let kind = if level == 3 { TABLE_OR_PAGE | VALID } else { VALID };
        table_for(at, level).0[slot(at, level)].store(at | memory.bits() | kind, Relaxed);
        at += 1 << shift(level);
    }
}

/// Builds the tables and turns the MMU and caches of the boot CPU on.
pub(crate) fn init() {
    let machine = machine::get();
    for &ram in machine.ram.iter() {
        map_same(ram.widen(PAGE), Memory::Normal);
    }
    for device in [machine.gicd, machine.gic.region(), machine.uart].into_iter().chain(machine.virtio()) {
        map_same(device.widen(1 << shift(2)), Memory::Device);
    }
    for cpu in 0..machine.cpus.len() {
        table_for(Window { cpu }.base(), 3);
    }
    let ips = read_sysreg!("id_aa64mmfr0_el1").min(5) & 7;
    let ips = if read_sysreg!("id_aa64mmfr0_el1") & 0xf > 5 { 5 } else { ips };
    // T0SZ, walks cacheable and inner shareable, no walks by TTBR1.
    let tcr = 16 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 16 << 16 | 1 << 23 | 0b10 << 30 | ips << 32;
    let on = SCTLR_OFF | SCTLR_M | SCTLR_C | SCTLR_I;
    for (register, value) in TRANSLATION.0.iter().zip([MAIR, tcr, &raw const POOL as u64, on]) {
        register.store(value, Relaxed);
    }
    // Whoever loaded the image may have left clean lines of it in the caches, older than what was written since.
    let image = start::image();
    cpu::clean_invalidate(image.start, image.end);
    // SAFETY: the tables map what is in use where it is in use. Nothing changes but that accesses become cacheable.
    unsafe {
        asm!(
            "msr mair_el1, {mair}",
            "msr tcr_el1, {tcr}",
            "msr ttbr0_el1, {ttbr}",
            "isb",
            "tlbi vmalle1",
            "ic iallu",
            "dsb nsh",
            "isb",
            "msr sctlr_el1, {sctlr}",
            "isb",
            mair = in(reg) MAIR,
            tcr = in(reg) tcr,
            ttbr = in(reg) &raw const POOL,
            sctlr = in(reg) on,
            options(nostack),
        );
    }
}

/// Tells whether this CPU's MMU is on.
pub fn is_on() -> bool {
    read_sysreg!("sctlr_el1") & SCTLR_M != 0
}

/// Runs `f` on this CPU with MMU and caches off. The other CPUs must be off.
pub fn without<R: Copy>(f: impl FnOnce() -> R) -> R {
    let image = start::image();
    let on = read_sysreg!("sctlr_el1");
    cpu::clean_invalidate(image.start, image.end);
    // SAFETY: all code, data and stack lie where they lay, since the map is one to one, and memory has what the caches
    // had.
    unsafe { write_sysreg!("sctlr_el1", SCTLR_OFF) };
    let result = f();
    cpu::clean_invalidate(image.start, image.end); // drops lines that were fetched on speculation
    // SAFETY: back to what was before.
    unsafe { write_sysreg!("sctlr_el1", on) };
    result
}

/// Makes all CPUs forget all stage-1 translations.
pub fn flush() {
    // SAFETY: the tables say the same as before, or what their owner has just changed.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Virtual pages of one CPU's that it points at any guest-physical address.
///
/// A window can reach memory that Rust objects are in; what is done through it is up to who does it.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    cpu: usize,
}

impl Window {
    /// Returns this CPU's window.
    pub fn mine() -> Self {
        Self { cpu: cpu::index() }
    }

    fn base(self) -> u64 {
        TEST_BASE + (self.cpu as u64) * (1 << shift(2))
    }

    /// Points two pages in a row at the pages around `first` and `second`, and returns the virtual address of `first`.
    ///
    /// What the window pointed at before is gone.
    pub fn pair(self, first: u64, second: u64, memory: Memory) -> u64 {
        let table = table_for(self.base(), 3);
        for (i, address) in [first, second].into_iter().enumerate() {
            table.0[i].store(0, Relaxed);
            self.flush_page(i);
            let page = address & 0xffff_ffff_f000;
            table.0[i].store(page | memory.bits() | TABLE_OR_PAGE | VALID, Relaxed);
        }
        cpu::dsb_isb();
        self.base() + first % PAGE
    }

    /// As [`Window::pair`], and returns the virtual addresses of both.
    pub fn both(self, first: u64, second: u64, memory: Memory) -> [u64; 2] {
        let va = self.pair(first, second, memory);
        [va, va - first % PAGE + PAGE + second % PAGE]
    }

    /// Points the window at `address` and the page after it.
    pub fn at(self, address: u64, memory: Memory) -> u64 {
        self.pair(address, (address & !(PAGE - 1)).wrapping_add(PAGE), memory)
    }

    fn flush_page(self, page: usize) {
        let operand = (self.base() >> 12) + page as u64;
        // SAFETY: the page is unmapped and the window's own.
        unsafe {
            asm!("dsb ishst", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) operand, options(nostack, preserves_flags));
        }
    }
}

/// A virtual address of one CPU's whose walk goes through a table at a guest-physical address of the test's choice.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    level: u32,
    va: u64,
}

impl Walk {
    /// Makes the walk read its table of `level` (1 to 3), and none deeper, at `table`: on this CPU.
    ///
    /// # Panics
    /// For other levels.
    pub fn through(level: u32, table: u64) -> Self {
        assert!((1..=3).contains(&level), "a table of level 1 to 3");
        let cpu = cpu::index() as u64;
        // A slot of its own for each CPU and level, beside the windows.
        let va = match level {
            1 => TEST_BASE + (1 + cpu) * (1 << shift(0)),
            2 => TEST_BASE + (1 + cpu) * (1 << shift(1)),
            _ => TEST_BASE + (MAX_CPUS as u64 + cpu) * (1 << shift(2)),
        };
        let walk = Self { level, va: va + 0x5040 };
        walk.set((table & 0xffff_ffff_f000) | TABLE_OR_PAGE | VALID);
        walk
    }

    /// Returns the virtual address: a multiple of 64, in the sixth page that the table maps.
    pub const fn va(self) -> u64 {
        self.va
    }

    /// Takes the table out of the walk again.
    pub fn end(self) {
        self.set(0);
    }

    fn set(self, value: u64) {
        let entry = &table_for(self.va, self.level - 1).0[slot(self.va, self.level - 1)];
        entry.store(0, Relaxed);
        flush();
        entry.store(value, Relaxed);
        cpu::dsb_isb();
    }
}
