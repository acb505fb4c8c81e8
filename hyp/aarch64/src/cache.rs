//! Caches: what must be done so that a guest sees what was written for it, and zeroing.
//!
//! A guest starts with its caches off and then goes past ours, to the point of coherency, unless the CPU forces its
//! accesses to be cacheable (FEAT_S2FWB). Instruction fetches see the point of unification (DDI 0487, D7.5).

use crate::barrier::{dsb_ish, dsb_sy, isb};
use crate::errata::Action;
use crate::features::{Features, Has};
use crate::sysreg::{CLIDR_EL1, CTR_EL0, DCZID_EL0, Readable};
use types::sync::keeps;
use types::{FRAME_SIZE, Pa};

/// How far memory that was written for a guest must be cleaned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clean {
    /// To the point of coherency: a guest may read it with its caches off.
    ToCoherency,
    /// To the point of unification, for instruction fetches only: data accesses are always cacheable.
    ToUnification,
    /// Not at all.
    Nowhere,
}

/// How instruction caches are invalidated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    /// Line by line.
    ByAddress,
    /// The whole of them: a line that a guest fetches by another address than ours may be elsewhere in the cache.
    All,
    /// Not at all: fetches see the point of unification (CTR_EL0.DIC).
    Coherent,
}

/// What a CPU's caches are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caches {
    /// Bytes of the smallest data cache line.
    data_line: u64,
    /// Bytes of the smallest instruction cache line.
    fetch_line: u64,
    /// For data and fetches.
    clean: Clean,
    /// For fetches.
    fetch: Fetch,
    /// Bytes that DC ZVA zeroes; `None` where it is prohibited.
    zero_block: Option<u64>,
    /// How a line is cleaned to the point of coherency.
    cleaning: Cleaning,
}

/// How a data cache line is cleaned to the point of coherency.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cleaning {
    /// By cleaning it.
    Alone,
    /// By cleaning and invalidating it, since a CPU does not clean well ([`Action::CLEAN_BY_INVALIDATE`]).
    AndInvalidate,
}

/// Beyond this many bytes the whole instruction cache is invalidated at once: more than any has.
const ALL_BEYOND: u64 = 256 << 10;

impl Caches {
    /// Reads what this CPU's caches are like. `common` is what every CPU has: guests' accesses are forced to be cacheable
    /// where that can be done on all of them.
    pub fn of_this_cpu(common: &Features) -> Self {
        let fwb = common.has.contains(Has::FWB);
        let invalidates = common.errata.actions().contains(Action::CLEAN_BY_INVALIDATE);
        Self {
            cleaning: if invalidates { Cleaning::AndInvalidate } else { Cleaning::Alone },
            ..Self::decode(CTR_EL0.get(), DCZID_EL0.get(), CLIDR_EL1.get(), fwb)
        }
    }

    /// Makes it of the registers' values.
    const fn decode(ctr: u64, dczid: u64, clidr: u64, fwb: bool) -> Self {
        let (idc, dic) = (ctr >> 28 & 1 != 0, ctr >> 29 & 1 != 0);
        let level_of_coherency = clidr >> 24 & 7;
        let clean = if fwb || level_of_coherency == 0 {
            if idc { Clean::Nowhere } else { Clean::ToUnification }
        } else {
            Clean::ToCoherency
        };
        // L1Ip = 0b11 is PIPT: only there does an address of ours reach the guest's line.
        let fetch = if dic {
            Fetch::Coherent
        } else if ctr >> 14 & 3 == 3 {
            Fetch::ByAddress
        } else {
            Fetch::All
        };
        Self {
            data_line: 4 << (ctr >> 16 & 0xf),
            fetch_line: 4 << (ctr & 0xf),
            clean,
            fetch,
            zero_block: if dczid >> 4 & 1 == 0 { Some(4 << (dczid & 0xf)) } else { None },
            cleaning: Cleaning::Alone,
        }
    }

    /// Cleans every line of `start..end` to the point of coherency.
    fn clean_lines(&self, start: u64, end: u64) {
        let what = match self.cleaning {
            Cleaning::Alone => Sweep::Clean,
            Cleaning::AndInvalidate => Sweep::CleanAndInvalidate,
        };
        sweep(start, end, self.data_line, what);
    }

    /// Tells whether a guest's accesses can go past the caches.
    pub fn guests_bypass(&self) -> bool {
        self.clean == Clean::ToCoherency
    }

    /// Makes `bytes` bytes at `pa`, written through the direct map, visible to instruction fetches of any CPU, and to
    /// guests whatever their caches' state.
    pub fn publish(&self, pa: Pa, bytes: u64) {
        let (start, end) = (pa.get(), pa.get().saturating_add(bytes));
        if start == end {
            return;
        }
        match self.clean {
            Clean::ToCoherency => self.clean_lines(start, end),
            Clean::ToUnification => lines(start, end, self.data_line, clean_to_unification),
            Clean::Nowhere => {}
        }
        if keeps(64) {
            dsb_ish(); // O64: the data is there before an instruction cache may fetch it
        }
        match self.fetch {
            Fetch::Coherent => {}
            Fetch::ByAddress if bytes <= ALL_BEYOND => lines(start, end, self.fetch_line, invalidate_fetch),
            Fetch::ByAddress | Fetch::All => invalidate_all_fetch(),
        }
        if keeps(65) {
            dsb_ish(); // O65: done on every CPU, before anybody is told of the code
            isb();
        }
    }

    /// Makes `bytes` bytes at `pa`, written through the direct map, visible to guests whatever their caches' state.
    pub fn clean(&self, pa: Pa, bytes: u64) {
        if self.clean == Clean::ToCoherency {
            self.clean_lines(pa.get(), pa.get().saturating_add(bytes));
            if keeps(98) {
                dsb_ish(); // O98: clean before a descriptor leads there
            }
        }
    }

    /// Makes what guests wrote to `bytes` bytes at `pa`, whatever their caches' state, what the direct map reads. Where a
    /// guest's accesses are always cacheable there is nothing to do. Nobody else reaches the memory meanwhile.
    pub fn clean_and_invalidate(&self, pa: Pa, bytes: u64) {
        if self.clean == Clean::ToCoherency {
            let end = pa.get().saturating_add(bytes);
            sweep(pa.get(), end, self.data_line, Sweep::CleanAndInvalidate);
            if keeps(99) {
                dsb_ish(); // O99: no stale line is left before the first read
            }
        }
    }

    /// Zeroes `bytes` bytes at `pa`, both multiples of the frame size, and makes the zeroes visible to guests whatever
    /// their caches' state.
    ///
    /// # Safety
    /// The memory is RAM in the direct map, and nobody else accesses it meanwhile.
    pub unsafe fn zero(&self, pa: Pa, bytes: u64) {
        let (start, end) = (pa.get(), pa.get().saturating_add(bytes));
        debug_assert!(start.is_multiple_of(FRAME_SIZE) && bytes.is_multiple_of(FRAME_SIZE));
        let clean = self.clean == Clean::ToCoherency;
        match self.zero_block {
            // One pass, three instructions a line: a line is cleaned while it is at hand.
            Some(block) if clean && block == self.data_line && self.cleaning == Cleaning::Alone => {
                sweep(start, end, block, Sweep::ZeroAndClean);
            }
            Some(block) => {
                sweep(start, end, block, Sweep::Zero);
                if clean {
                    self.clean_lines(start, end);
                }
            }
            None => {
                // SAFETY: the caller's promise.
                unsafe { store_zeroes(start, end) };
                if clean {
                    self.clean_lines(start, end);
                }
            }
        }
        if keeps(66) {
            dsb_ish(); // O66: clean before the frame is published
        }
    }
}

/// Cleans and invalidates the data cache over `bytes` bytes at `pa` to the point of coherency, for a CPU that reads them with
/// its caches off. On return they are in memory.
pub(crate) fn to_memory(pa: Pa, bytes: u64) {
    let line = 4 << (CTR_EL0.get() >> 16 & 0xf);
    sweep(pa.get(), pa.get().saturating_add(bytes), line, Sweep::CleanAndInvalidate);
    if keeps(201) {
        dsb_sy(); // O201: in memory before the CPU is told to look
    }
}

/// Applies `operation` to every line that `start..end` touches.
fn lines(start: u64, end: u64, line: u64, operation: impl Fn(u64)) {
    let mut at = start & !(line - 1);
    while at < end {
        operation(at);
        at += line;
    }
}

macro_rules! by_address {
    ($name:ident, $asm:literal, $effect:expr) => {
        #[inline(always)]
        fn $name(address: u64) {
            #[cfg(target_os = "none")]
            // SAFETY: moves data between caches and memory, and changes none of it.
            unsafe {
                core::arch::asm!(concat!($asm, ", {}"), in(reg) address, options(nostack, preserves_flags));
            }
            #[cfg(not(target_os = "none"))]
            crate::effect::record($effect(address));
        }
    };
}

#[cfg(not(target_os = "none"))]
use crate::effect::Effect;
by_address!(clean_to_unification, "dc cvau", |at| Effect::Dc("cvau", at));
by_address!(invalidate_fetch, "ic ivau", |at| Effect::Ic("ivau", Some(at)));

fn invalidate_all_fetch() {
    #[cfg(target_os = "none")]
    // SAFETY: instruction caches hold copies only.
    unsafe {
        core::arch::asm!("ic ialluis", options(nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    crate::effect::record(Effect::Ic("ialluis", None));
}

/// What [`sweep`] does to each block, or line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sweep {
    Zero,
    ZeroAndClean,
    Clean,
    CleanAndInvalidate,
}

/// Sweeps over every block that `start..end` touches. 32 blocks a turn as long as there are as many: the loop itself then
/// costs a sixteenth of an instruction a block, of which an operand without an offset makes an addition the last.
#[cfg(target_os = "none")]
fn sweep(start: u64, end: u64, block: u64, what: Sweep) {
    macro_rules! turns {
        ($($instruction:literal),+) => {
            // SAFETY: the caller of `zero` owns the memory, which is whole blocks; cleaning changes nothing in memory. No block
            // is touched but those that some of `start..end` is in.
            unsafe {
                core::arch::asm!(
                    "sub {last}, {end}, {turn}",
                    "cmp {at}, {last}",
                    "b.gt 3f",
                    "2:",
                    ".rept 32",
                    $($instruction,)+
                    "add {at}, {at}, {block}",
                    ".endr",
                    "cmp {at}, {last}",
                    "b.le 2b",
                    "3:",
                    "cmp {at}, {end}",
                    "b.hs 4f",
                    $($instruction,)+
                    "add {at}, {at}, {block}",
                    "b 3b",
                    "4:",
                    at = inout(reg) start & !(block - 1) => _,
                    last = out(reg) _,
                    turn = in(reg) block * 32,
                    end = in(reg) end,
                    block = in(reg) block,
                    options(nostack),
                );
            }
        };
    }
    if start >= end {
        return;
    }
    match what {
        Sweep::Zero => turns!("dc zva, {at}"),
        Sweep::ZeroAndClean => turns!("dc zva, {at}", "dc cvac, {at}"),
        Sweep::Clean => turns!("dc cvac, {at}"),
        Sweep::CleanAndInvalidate => turns!("dc civac, {at}"),
    }
}

#[cfg(not(target_os = "none"))]
fn sweep(start: u64, end: u64, block: u64, what: Sweep) {
    let operations: &[&str] = match what {
        Sweep::Zero => &["zva"],
        Sweep::ZeroAndClean => &["zva", "cvac"],
        Sweep::Clean => &["cvac"],
        Sweep::CleanAndInvalidate => &["civac"],
    };
    lines(start, end, block, |at| {
        operations.iter().for_each(|operation| crate::effect::record(Effect::Dc(operation, at)));
    });
}

/// Zeroes `start..end` by stores, 64 bytes a turn.
///
/// # Safety
/// As [`Caches::zero`].
unsafe fn store_zeroes(start: u64, end: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise; the length is a multiple of 64.
    unsafe {
        core::arch::asm!(
            "cmp {at}, {end}",
            "b.hs 3f",
            "2:",
            "stp xzr, xzr, [{at}]",
            "stp xzr, xzr, [{at}, #16]",
            "stp xzr, xzr, [{at}, #32]",
            "stp xzr, xzr, [{at}, #48]",
            "add {at}, {at}, #64",
            "cmp {at}, {end}",
            "b.lo 2b",
            "3:",
            at = inout(reg) start => _,
            end = in(reg) end,
            options(nostack),
        );
    }
    #[cfg(not(target_os = "none"))]
    lines(start, end, 64, |at| crate::effect::record(Effect::Dc("stores", at)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect;
    use std::vec::Vec;

    // As QEMU 10 has them.
    const CTR_A72: u64 = 0x8444_c004;
    const CTR_A53: u64 = 0x8444_8004;
    const FWB: bool = true;
    const NO_FWB: bool = false;
    const LOC_3: u64 = 3 << 24;

    fn effects(act: impl FnOnce()) -> Vec<Effect> {
        effect::reset();
        act();
        effect::take()
    }

    #[test]
    fn without_fwb_a_frame_is_zeroed_and_cleaned_line_by_line() {
        let caches = Caches::decode(CTR_A72, 4, LOC_3, NO_FWB);
        // SAFETY: the fake touches no memory.
        let done = effects(|| unsafe { caches.zero(Pa::new(0x5000), 0x2000) });
        let (last, operations) = done.split_last().expect("something is done");
        assert_eq!(*last, Effect::Dsb("ish"));
        let expected: Vec<_> = (0x5000..0x7000)
            .step_by(64)
            .flat_map(|at| [Effect::Dc("zva", at), Effect::Dc("cvac", at)])
            .collect();
        assert_eq!(operations, expected);
    }

    #[test]
    fn a_cpu_that_cleans_badly_cleans_and_invalidates() {
        let plain = Caches::decode(CTR_A53, 4, LOC_3, NO_FWB);
        let caches = Caches { cleaning: Cleaning::AndInvalidate, ..plain };
        let lines = |name| (0x5000..0x6000).step_by(64).map(move |at| Effect::Dc(name, at));
        let dsb = || [Effect::Dsb("ish")];
        assert_eq!(
            effects(|| caches.clean(Pa::new(0x5000), 0x1000)),
            lines("civac").chain(dsb()).collect::<Vec<_>>()
        );
        // SAFETY: the fake touches no memory.
        let zeroed = effects(|| unsafe { caches.zero(Pa::new(0x5000), 0x1000) });
        assert_eq!(zeroed, lines("zva").chain(lines("civac")).chain(dsb()).collect::<Vec<_>>());
        assert_eq!(effects(|| caches.publish(Pa::new(0x1000), 64))[0], Effect::Dc("civac", 0x1000));
    }

    #[test]
    fn with_fwb_a_frame_is_not_cleaned() {
        let caches = Caches::decode(CTR_A72, 7, LOC_3, FWB);
        // SAFETY: the fake touches no memory.
        let done = effects(|| unsafe { caches.zero(Pa::new(0x5000), 0x1000) });
        let zeroed = (0x5000..0x6000).step_by(512).map(|at| Effect::Dc("zva", at));
        assert_eq!(done, zeroed.chain([Effect::Dsb("ish")]).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_moved_is_cleaned_and_invalidated_where_it_was_and_cleaned_where_it_is() {
        let caches = Caches::decode(CTR_A72, 4, LOC_3, NO_FWB);
        let lines = |name| (0x5000..0x6000).step_by(64).map(move |at| Effect::Dc(name, at));
        let then_dsb = |name| lines(name).chain([Effect::Dsb("ish")]).collect::<Vec<_>>();
        assert_eq!(effects(|| caches.clean_and_invalidate(Pa::new(0x5000), 0x1000)), then_dsb("civac"));
        assert_eq!(effects(|| caches.clean(Pa::new(0x5000), 0x1000)), then_dsb("cvac"));
    }

    #[test]
    fn with_fwb_what_is_moved_needs_nothing() {
        let caches = Caches::decode(CTR_A72, 7, LOC_3, FWB);
        assert_eq!(effects(|| caches.clean_and_invalidate(Pa::new(0x5000), 0x1000)), []);
        assert_eq!(effects(|| caches.clean(Pa::new(0x5000), 0x1000)), []);
    }

    #[test]
    fn where_zva_is_prohibited_stores_do_it() {
        let caches = Caches::decode(CTR_A72, 4 | 1 << 4, LOC_3, FWB);
        // SAFETY: the fake touches no memory.
        let done = effects(|| unsafe { caches.zero(Pa::new(0x5000), 0x1000) });
        assert_eq!(done.len(), 65);
        assert_eq!(done.first(), Some(&Effect::Dc("stores", 0x5000)));
    }

    #[test]
    fn code_is_cleaned_before_it_is_invalidated() {
        let caches = Caches::decode(CTR_A72, 4, LOC_3, NO_FWB);
        assert_eq!(
            effects(|| caches.publish(Pa::new(0x103f), 2)),
            [
                Effect::Dc("cvac", 0x1000),
                Effect::Dc("cvac", 0x1040),
                Effect::Dsb("ish"),
                Effect::Ic("ivau", Some(0x1000)),
                Effect::Ic("ivau", Some(0x1040)),
                Effect::Dsb("ish"),
                Effect::Isb,
            ]
        );
        assert_eq!(effects(|| caches.publish(Pa::new(0x1000), 0)), []);
    }

    #[test]
    fn an_aliasing_instruction_cache_is_invalidated_whole() {
        let caches = Caches::decode(CTR_A53, 4, LOC_3, FWB);
        assert_eq!(
            effects(|| caches.publish(Pa::new(0x1000), 64)),
            [
                Effect::Dc("cvau", 0x1000),
                Effect::Dsb("ish"),
                Effect::Ic("ialluis", None),
                Effect::Dsb("ish"),
                Effect::Isb
            ]
        );
    }

    #[test]
    fn a_cpu_with_everything_coherent_needs_barriers_only() {
        let caches = Caches::decode(CTR_A72 | 3 << 28, 4, LOC_3, FWB);
        let done = effects(|| caches.publish(Pa::new(0x1000), 0x1000));
        assert_eq!(done, [Effect::Dsb("ish"), Effect::Dsb("ish"), Effect::Isb]);
    }
}
