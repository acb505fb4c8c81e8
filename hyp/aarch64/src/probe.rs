//! Whether something is where a device tree says: looked at in a way that survives the answer no.
//!
//! A read of nothing ends in an external abort, or gives all ones; which one is the bus's. Writes to memory that is not there may
//! be lost without a word. An abort that comes later than the instruction (a system error) is not caught.

use crate::barrier::dsb_sy;
use crate::cache::to_memory;
use crate::entry::probe;
use types::{Pa, PaRange};

/// Reads a device's register; `None` where nothing answers.
///
/// # Safety
/// A multiple of 4; with the MMU on, mapped as a device. If there is a register, reading it has no effect. This CPU is at EL2.
pub unsafe fn register(at: Pa) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe { probe(at.get()) }.filter(|&value| value != u32::MAX)
}

/// Why memory is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoMemory {
    /// Nothing answers.
    Silent(Pa),
    /// What is written there is not what is read: nothing is there, or what is elsewhere too.
    Forgets(Pa),
}

/// The most places of a bank that are looked at: the first word of each power of two, and the last.
const MOST: usize = 50;

/// Goes through the places at which `bank` is looked at: far enough apart that each address line matters.
fn places(bank: PaRange) -> impl Iterator<Item = Pa> {
    let powers = (12..48).map(|power| 1_u64 << power).take_while(move |&offset| offset < bank.len());
    let offsets = [0].into_iter().chain(powers).chain(bank.len().checked_sub(8));
    offsets.map(move |offset| bank.start().wrapping_add(offset).align_down(8))
}

/// Looks whether `bank` is memory: writes to places all over it where `is_free`, and reads them back when all are written, so
/// that two addresses of one cell are noticed. All is as before in the end. The MMU is off.
///
/// # Safety
/// Nobody else uses the memory that is free, and this CPU, which is at EL2, no cache for it.
#[inline(never)]
pub unsafe fn memory(bank: PaRange, is_free: impl Fn(Pa) -> bool) -> Result<(), NoMemory> {
    let mut before = [(Pa::new(0), 0); MOST];
    let mut looked = 0;
    let cell = |at: Pa| core::ptr::with_exposed_provenance_mut::<u64>(at.get() as usize);
    let pattern = |at: Pa| at.get() ^ 0xa5c3_0f69_96f0_3c5a;
    let mut found = Ok(());
    for (at, kept) in places(bank).filter(|&at| is_free(at)).zip(&mut before) {
        to_memory(at, 8); // what firmware left in a cache is not written over what is written here
        // SAFETY: of memory, if there is any, which the caller says is nobody's.
        if unsafe { probe(at.get()) }.is_none() {
            found = Err(NoMemory::Silent(at));
            break;
        }
        // SAFETY: as above; it has answered.
        *kept = (at, unsafe { cell(at).read_volatile() });
        looked += 1;
        // SAFETY: as above.
        unsafe { cell(at).write_volatile(pattern(at)) };
    }
    dsb_sy();
    let before = &before[..looked];
    for &(at, _) in before {
        // SAFETY: as above.
        if unsafe { cell(at).read_volatile() } != pattern(at) && found.is_ok() {
            found = Err(NoMemory::Forgets(at));
        }
    }
    // Backwards: where two were one, the first value is that of before.
    for &(at, value) in before.iter().rev() {
        // SAFETY: as above.
        unsafe { cell(at).write_volatile(value) };
    }
    dsb_sy();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect;
    use std::vec;
    use std::vec::Vec;

    fn bank(words: &mut [u64]) -> PaRange {
        let start = Pa::new(words.as_mut_ptr().expose_provenance() as u64);
        PaRange::with_len(start, 8 * words.len() as u64).expect("in memory")
    }

    #[test]
    fn memory_is_as_it_was_after_it_has_been_looked_at() {
        effect::reset();
        effect::script("ctr_el0", &[0x8444_c004]);
        let mut words = vec![0x77_u64; 3 * 4096];
        let bank = bank(&mut words);
        let busy = bank.start().wrapping_add(4096);
        // SAFETY: the test's own memory.
        assert_eq!(unsafe { memory(bank, |at| at != busy) }, Ok(()));
        assert!(words.iter().all(|&word| word == 0x77));
    }

    #[test]
    fn a_bank_is_looked_at_where_each_address_line_matters_and_at_its_end() {
        let bank = PaRange::with_len(Pa::new(0x8000_0000), 0x3000_0000).expect("in range");
        let all: Vec<u64> = places(bank).map(Pa::get).collect();
        assert_eq!(all.first(), Some(&0x8000_0000));
        assert_eq!(all.last(), Some(&0xaf_ff_ff_f8));
        assert!((12..30).all(|power| all.contains(&(0x8000_0000 + (1 << power)))));
        assert!(all.len() < MOST);
        let largest = PaRange::with_len(Pa::new(0), 1 << 47).expect("in range");
        assert!(places(largest).count() <= MOST);
    }
}
