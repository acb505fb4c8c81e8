//! Memory that comes, changes and goes.

use super::{cost, now};
use abi::calls::{self, rights, statistic};
use core::sync::atomic::Ordering::Relaxed;
use guest_tests::cell::BootCell;
use guest_tests::machine::Host;
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::region::Region;
use guest_tests::service::{self, complete, leaves, statistic};
use guest_tests::{NotPassed, Text, Verdict, machine, read_sysreg, same, say, skip};

const BLOCK: u64 = 2 << 20;
const PAGES: u64 = BLOCK / PAGE;
const GIB: u64 = 1 << 30;

/// Executes instructions on each part of a region, whose size is a multiple of 32 parts.
macro_rules! every {
    ($region:expr, $step:expr, $($instruction:literal),+) => {
        core::arch::asm!(
            "2:",
            ".rept 32",
            $($instruction,)+
            "add {at}, {at}, {step}",
            ".endr",
            "cmp {at}, {end}",
            "b.lo 2b",
            at = inout(reg) $region.start => _,
            end = in(reg) $region.end,
            step = in(reg) $step,
            options(nostack),
        )
    };
}

fn take(bytes: u64) -> Result<Ram, NotPassed> {
    ram::take(bytes, BLOCK).ok_or_else(|| NotPassed::Skipped(Text::new(format_args!("too little memory"))))
}

/// Writes to the first word of each page but the first in each block.
fn write_all_but_first(ram: Ram) -> u64 {
    let start = now();
    for block in ram.words().chunks_exact((BLOCK / 8) as usize) {
        for page in block.chunks_exact((PAGE / 8) as usize).skip(1) {
            page[0].store(1, Relaxed);
        }
    }
    now() - start
}

/// First writes where the tables have pages: one page of each block stays, and so does its table.
pub(crate) fn first_write_to_a_page_among_pages() -> Verdict {
    const BLOCKS: u64 = 8;
    let ram = take(BLOCKS * BLOCK)?;
    if machine::get().host == Host::Hypervisor {
        service::granted()?;
        complete(calls::BALLOON_IN, ram.region(), 0)?;
        complete(calls::SPLIT, ram.region(), 0)?;
        for block in 0..BLOCKS {
            let start = ram.region().start + block * BLOCK + PAGE;
            complete(calls::BALLOON_OUT, Region::new(start, BLOCK - PAGE), 0)?;
        }
    }
    let ticks = write_all_but_first(ram);
    cost("first-write-page", ticks, BLOCKS * (PAGES - 1));
    if machine::get().host == Host::Hypervisor {
        let [pages, _] = leaves(ram.region())?;
        same!("pages behind first writes", ram.region().start, ram.pages(), pages);
    }
    Ok(())
}

/// First writes, page by page, to memory that comes in blocks of 2 MiB.
pub(crate) fn first_write_to_a_page_in_blocks() -> Verdict {
    const BLOCKS: u64 = 32;
    let ram = take(BLOCKS * BLOCK)?;
    let start = now();
    for page in ram.words().chunks_exact((PAGE / 8) as usize) {
        page[0].store(1, Relaxed);
    }
    cost("first-write-block", now() - start, BLOCKS * PAGES);
    if machine::get().host == Host::Hypervisor && service::granted().is_ok() {
        let [_, blocks] = leaves(ram.region())?;
        same!("blocks behind first writes", ram.region().start, BLOCKS, blocks);
    }
    Ok(())
}

/// What a page of a block cannot come without, on a CPU that may read past its caches: its lines zeroed, and cleaned.
pub(crate) fn zero_and_clean_by_line() -> Verdict {
    const BLOCKS: u64 = 8;
    let ram = take(BLOCKS * BLOCK)?;
    for page in ram.words().chunks_exact((PAGE / 8) as usize) {
        page[0].store(1, Relaxed);
    }
    let zeroed = 4u64 << (read_sysreg!("dczid_el0") & 0xf);
    let line = 4u64 << (read_sysreg!("ctr_el0") >> 16 & 0xf);
    let start = now();
    // SAFETY: the test's own memory, and nobody looks at its words meanwhile.
    unsafe {
        if zeroed == line {
            every!(ram.region(), line, "dc zva, {at}", "dc cvac, {at}");
        } else {
            every!(ram.region(), zeroed, "dc zva, {at}");
            every!(ram.region(), line, "dc cvac, {at}");
        }
    }
    cost("zero-and-clean", now() - start, BLOCKS * PAGES);
    same!("a word of a page that was zeroed", ram.region().start, 0, ram.words()[0].load(Relaxed));
    Ok(())
}

/// The invalidations so far that every CPU, or this one, has made for the machine's tables.
fn invalidations() -> Result<u64, NotPassed> {
    statistic(statistic::INVALIDATIONS)
}

fn change(name: &str, region: Region, entries: u64, function: u32, parameter: u64) -> Verdict {
    let before = invalidations()?;
    let start = now();
    complete(function, region, parameter)?;
    let ticks = now() - start;
    cost(name, ticks, entries);
    say!("COUNT {name}-tlbi {}", invalidations()? - before);
    Ok(())
}

fn gib() -> Result<Region, NotPassed> {
    if machine::get().host == Host::Bare {
        skip!("nobody is below");
    }
    service::granted()?;
    static GIB_OF_RAM: BootCell<Option<Ram>> = BootCell::new();
    match GIB_OF_RAM.get_or_make(|| ram::take(GIB, BLOCK)) {
        Some(ram) => Ok(ram.region()),
        None => skip!("too little memory"),
    }
}

pub(crate) fn protect_and_unmap_1_gib_of_pages() -> Verdict {
    let region = gib()?;
    complete(calls::BALLOON_IN, region, 0)?;
    complete(calls::SPLIT, region, 0)?;
    change("protect-pages", region, GIB / PAGE, calls::PROTECT, rights::READ)?;
    change("unmap-pages", region, GIB / PAGE, calls::BALLOON_OUT, 0)?;
    complete(calls::PROTECT, region, rights::READ | rights::WRITE | rights::EXEC)?;
    Ok(())
}

pub(crate) fn protect_and_unmap_1_gib_of_blocks() -> Verdict {
    let region = gib()?;
    complete(calls::BALLOON_IN, region, 0)?;
    change("protect-blocks", region, GIB / BLOCK, calls::PROTECT, rights::READ)?;
    change("unmap-blocks", region, GIB / BLOCK, calls::BALLOON_OUT, 0)?;
    complete(calls::PROTECT, region, rights::READ | rights::WRITE | rights::EXEC)?;
    Ok(())
}
