//! Fetching an instruction of a guest's: through its own tables, out of memory that is its own.

use super::super::machine::Machine;
use x86_64::decode::LONGEST;

/// How a guest translates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paging {
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
}

const PAGE: u64 = 4096;
/// What is read at a time.
const WORD: u64 = 8;

/// Translates an address (SDM 3A, 5.5): without paging, and by the four levels of 64-bit mode. `None` by any other way, and
/// where nothing is mapped.
fn translate(linear: u64, paging: Paging, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<u64> {
    const PG: u64 = 1 << 31;
    const LA57: u64 = 1 << 12;
    const LMA: u64 = 1 << 10;
    const PRESENT: u64 = 1;
    const LARGE: u64 = 1 << 7;
    const ADDRESS: u64 = (1 << 52) - PAGE;
    if paging.cr0 & PG == 0 {
        return Some(linear & 0xffff_ffff);
    }
    if paging.efer & LMA == 0 || paging.cr4 & LA57 != 0 {
        return None;
    }
    let mut table = paging.cr3 & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let entry = read(table + (linear >> shift & 511) * 8).filter(|entry| entry & PRESENT != 0)?;
        if shift == 12 || shift < 39 && entry & LARGE != 0 {
            let within = (1 << shift) - 1;
            return Some(entry & ADDRESS & !within | linear & within);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Fetches as many bytes of the instruction at `linear` as there are, up to the longest one. `read` reads an aligned word of the
/// guest's memory.
pub(super) fn fetch(
    linear: u64,
    paging: Paging,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> ([u8; LONGEST], usize) {
    let (mut bytes, mut count) = ([0; LONGEST], 0);
    let mut page = None;
    while count < LONGEST {
        let at = linear.wrapping_add(count as u64);
        if page.is_none() || at.is_multiple_of(PAGE) {
            page = translate(at, paging, read).map(|at| at - at % PAGE);
        }
        let within = (at % WORD) as usize;
        let Some(word) = page.and_then(|page| read(page + at % PAGE - at % WORD)) else { break };
        for byte in word.to_le_bytes().into_iter().skip(within).take(LONGEST - count) {
            bytes[count] = byte;
            count += 1;
        }
    }
    (bytes, count)
}

/// Reads a word of the memory of the guest that has the machine, which ends at `end`; `None` where that is not above 1 MiB, or
/// not RAM.
pub(super) fn word(machine: &Machine, end: u64, at: u64) -> Option<u64> {
    let is_its = at.is_multiple_of(WORD)
        && at.checked_add(WORD)? <= end
        && machine.memory.iter().any(|bank| bank.start().get() <= at && at + WORD <= bank.end().get());
    let from = core::ptr::with_exposed_provenance::<u64>(at as usize);
    // SAFETY: RAM that the map has, and the guest's, which may write it at any time: any value will do.
    is_its.then(|| unsafe { from.read_volatile() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Paging = Paging { cr0: 1 << 31, cr3: 0x1000, cr4: 0x20, efer: 1 << 10 };

    /// Tables at 0x1000, 0x2000 and 0x3000: a block of 2 MiB at 0x20_0000 for the first address, a page at 0x5000 for the one
    /// before the second block.
    fn memory(at: u64) -> Option<u64> {
        Some(match at {
            0x1000 => 0x2003,
            0x2000 => 0x3003,
            0x3000 => 0x20_0083,
            0x3008 => 0x4003,
            0x4ff8 => 0x5003,
            0x5ff8 => 0xaa99_8877_6655_4433,
            0x20_0000 => 0x1122_3344_5566_7788,
            0x20_0008 => 0,
            _ => return None,
        })
    }

    #[test]
    fn an_address_goes_through_the_guest_s_tables() {
        let translate = |linear, paging| translate(linear, paging, &mut memory);
        assert_eq!(translate(0x1234, WIDE), Some(0x20_1234));
        assert_eq!(translate(0x3f_fff8, WIDE), Some(0x5ff8));
        assert_eq!(translate(0x40_0000, WIDE), None);
        assert_eq!(translate(0x1_0000_1234, Paging { cr0: 0, ..WIDE }), Some(0x1234));
        assert_eq!(translate(0x1234, Paging { efer: 0, ..WIDE }), None);
    }

    #[test]
    fn an_instruction_ends_where_nothing_is() {
        assert_eq!(
            fetch(0x3f_fffd, WIDE, &mut memory),
            ([0x88, 0x99, 0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 3)
        );
        let (bytes, count) = fetch(1, WIDE, &mut memory);
        assert_eq!((bytes[..8].to_vec(), count), (vec![0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0], 15));
    }

    #[test]
    fn an_instruction_goes_on_in_the_page_that_follows() {
        // Behind the page at 0x5000 the guest has the one at 0x9000.
        let mut memory = |at| match at {
            0x3010 => Some(0x6003),
            0x6000 => Some(0x9003),
            0x9000 => Some(0x0102_0304_0506_0708),
            0x9008 => Some(0),
            _ => memory(at),
        };
        let (bytes, count) = fetch(0x3f_fffe, WIDE, &mut memory);
        assert_eq!((count, bytes), (15, [0x99, 0xaa, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0]));
    }
}
