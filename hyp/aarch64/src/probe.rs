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

/// The places of a bank that are looked at: its start, the powers of two from there, and its end.
const PLACES: u32 = 38;

/// Returns a place at which `bank` is looked at, if it has that: so far from the others that each address line matters.
fn place(bank: PaRange, number: u32) -> Option<Pa> {
    let offset = match number {
        0 => 0,
        1 => bank.len() - 8,
        number => 1 << (number + 10),
    };
    (offset < bank.len()).then(|| bank.start().wrapping_add(offset).align_down(8))
}

/// Looks whether `bank` is memory: writes to places all over it where `is_free`, and reads them back when all are written, so
/// that two addresses of one cell are noticed. Of memory, all is as before in the end. The MMU is off.
///
/// # Safety
/// Nobody else uses the memory that is free, and this CPU, which is at EL2, no cache for it.
#[inline(never)]
pub unsafe fn memory(bank: PaRange, is_free: impl Fn(Pa) -> bool) -> Result<(), NoMemory> {
    let mut before = [0; PLACES as usize];
    let mut looked = 0_u64;
    let cell = |at: Pa| core::ptr::with_exposed_provenance_mut::<u64>(at.get() as usize);
    let mut found = Ok(());
    for (number, before) in (0..).zip(&mut before) {
        let Some(at) = place(bank, number).filter(|&at| is_free(at)) else { continue };
        to_memory(at, 8); // what firmware left in a cache is not written over what is written here
        // SAFETY: of memory, if there is any, which the caller says is nobody's.
        if unsafe { probe(at.get()) }.is_none() {
            found = Err(NoMemory::Silent(at));
            break;
        }
        looked |= 1 << number;
        // SAFETY: as above; it has answered.
        unsafe {
            *before = cell(at).read_volatile();
            cell(at).write_volatile(!at.get());
        }
    }
    dsb_sy();
    for (number, before) in (0..).zip(before) {
        let Some(at) = place(bank, number).filter(|_| looked >> number & 1 != 0) else { continue };
        // SAFETY: as above.
        if unsafe { cell(at).read_volatile() } != !at.get() && found.is_ok() {
            found = Err(NoMemory::Forgets(at));
        }
        // SAFETY: as above.
        unsafe { cell(at).write_volatile(before) };
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
        let places = |bank| (0..PLACES).filter_map(|number| place(bank, number)).map(Pa::get).collect();
        let all: Vec<u64> = places(bank);
        assert!(all.starts_with(&[0x8000_0000, 0xafff_fff8]), "{all:x?}");
        assert!((12..30).all(|power| all.contains(&(0x8000_0000 + (1 << power)))));
        assert_eq!(all.len(), 2 + 18);
        let largest: Vec<u64> = places(PaRange::with_len(Pa::new(0), 1 << 47).expect("in range"));
        assert_eq!((largest.len(), largest.last()), (2 + 35, Some(&(1 << 46))));
    }
}
