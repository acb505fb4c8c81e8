//! First touches: every way to reach a page that the hypervisor may not have given yet.

use crate::together::{BLOCK, blocks};
use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;
use guest_tests::access::{ACCESSES, Effect};
use guest_tests::guard::attempt;
use guest_tests::mmu::{self, PAGE, Walk};
use guest_tests::ram::{self, Ram};
use guest_tests::{Verdict, check, cpu, fail, read_sysreg, same, skip, write_sysreg};

/// Takes one untouched block after another; pages, where blocks have become few.
fn next() -> Option<Ram> {
    ram::take(BLOCK, BLOCK).or_else(|| ram::take(PAGE, PAGE))
}

pub(crate) fn any_access_can_be_the_first_touch() -> Verdict {
    for access in ACCESSES.iter().filter(|a| a.is_here() && a.effect != Effect::Fetch) {
        let Some(ram) = next() else { skip!("too little memory") };
        let address = ram.region().start + 0x340;
        // SAFETY: memory that was taken for this.
        if let Err(caught) = unsafe { access.perform(address) } {
            fail!("`{}` of fresh {address:#x}: {caught:?}", access.name);
        }
        // All but what the access wrote is still zero.
        let end = 0x340 + access.size;
        for (i, word) in ram.page(0).iter().enumerate() {
            let offset = i as u64 * 8;
            if access.effect == Effect::Read || offset + 8 <= 0x340 || offset >= end {
                same!(access.name, word.as_ptr() as u64, 0, word.load(Relaxed));
            }
        }
    }
    Ok(())
}

pub(crate) fn misaligned_writes_can_touch_two_blocks_first() -> Verdict {
    let ram = blocks(8)?;
    for boundary in (1..ram.region().size() / BLOCK).map(|i| ram.region().start + i * BLOCK).step_by(2) {
        let value = 0x1122_3344_5566_7788_u64 ^ boundary;
        let address = boundary - 3;
        // SAFETY: memory that was taken for this.
        unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
        let words = &ram.words()[((boundary - 8 - ram.region().start) / 8) as usize..][..2];
        same!("low part of a misaligned write", boundary - 8, value << 40, words[0].load(Relaxed));
        same!("high part of a misaligned write", boundary, value >> 24, words[1].load(Relaxed));
    }
    Ok(())
}

/// Status of a stage-1 translation fault, at level 0.
const TRANSLATION: u64 = 0x04;

pub(crate) fn a_walk_can_be_the_first_touch() -> Verdict {
    let reads = |effect| ACCESSES.iter().filter(move |a| a.is_here() && a.effect == effect);
    for access in reads(Effect::Read).chain(reads(Effect::Write)).chain(reads(Effect::Fetch)).take(40) {
        for level in 1..=3 {
            let Some(ram) = ram::take(PAGE, PAGE) else { skip!("too little memory") };
            let table = ram.region().start;
            let walk = Walk::through(level, table);
            // SAFETY: the table is all zeroes, so the address does not translate.
            let result = unsafe { access.perform(walk.va()) };
            walk.end();
            match result {
                Ok(_) => fail!(
                    "`{}` through an empty table at {table:#x}: expected a fault, found none",
                    access.name
                ),
                Err(caught) => {
                    same!("status of the fault", table, TRANSLATION + u64::from(level), caught.status());
                    check!(
                        (walk.va()..walk.va() + access.size).contains(&caught.far),
                        "`{}`: expected far {:#x}, found {caught:?}",
                        access.name,
                        walk.va()
                    );
                }
            }
        }
    }
    Ok(())
}

/// Bits of a page descriptor: valid, and a page.
const PAGE_ENTRY: u64 = 0b11;
const ACCESS_FLAG: u64 = 1 << 10;
const NORMAL: u64 = 1 << 2 | 0b11 << 8;

/// The CPU's own walk writes to a table: a second-stage write that no instruction makes.
pub(crate) fn hardware_sets_access_flags_in_fresh_tables() -> Verdict {
    if read_sysreg!("id_aa64mmfr1_el1") & 0xf == 0 {
        skip!("this CPU does not set access flags");
    }
    let (Some(table), Some(data)) = (next(), next()) else { skip!("too little memory") };
    let walk = Walk::through(3, table.region().start);
    let entry = &table.page(0)[(walk.va() / PAGE % 512) as usize];
    entry.store(data.region().start | NORMAL | PAGE_ENTRY, Relaxed);
    let tcr = read_sysreg!("tcr_el1");
    // SAFETY: TCR_EL1.HA: access flags that are clear are set instead of a fault.
    unsafe { write_sysreg!("tcr_el1", tcr | 1 << 39) };
    mmu::flush();
    // SAFETY: reads a page that was taken for this.
    let result = unsafe { ACCESSES[3].perform(walk.va()) };
    // SAFETY: as it was.
    unsafe { write_sysreg!("tcr_el1", tcr) };
    walk.end();
    check!(result.is_ok(), "a page whose access flag is clear: {result:?}");
    same!("a page's entry", entry.as_ptr() as u64, ACCESS_FLAG, entry.load(Relaxed) & ACCESS_FLAG);
    Ok(())
}

pub(crate) fn a_fetch_can_be_the_first_touch() -> Verdict {
    for access in ACCESSES.iter().filter(|a| a.effect == Effect::Fetch).cycle().take(8) {
        let Some(ram) = next() else { skip!("too little memory") };
        let address = ram.region().start + 0x80;
        cpu::invalidate_code(address, address + 4);
        // SAFETY: zero is an undefined instruction.
        match unsafe { access.perform(address) } {
            Ok(_) => fail!("a jump to fresh {address:#x}: expected an undefined instruction, found none"),
            Err(caught) => {
                check!(
                    caught.is_undefined(),
                    "a jump to fresh {address:#x}: expected it undefined, found {caught:?}"
                );
                same!("where the undefined instruction was", address, address, caught.elr);
            }
        }
        // SAFETY: nothing is left of it.
        let again = unsafe { attempt(|| ram.page(0)[16].load(Relaxed)) };
        same!("a fresh page", address, 0, again.unwrap_or(u64::MAX));
    }
    Ok(())
}
