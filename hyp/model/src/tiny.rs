//! [`Tiny`]: a format for tests. Two or three heights, two entries in a table, and the bits shuffled on purpose: rights are
//! denials, the address is reversed and inverted, the valid bit is in the middle. Code that peeks at bits fails here.

use stage2::{Attrs, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why};
use types::{Access, Height, Pa};

/// The tiny format. Its hardware keeps accessed and dirty flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tiny;

const DENY_READ: u64 = 1 << 0;
const DENY_WRITE: u64 = 1 << 2;
const DENY_EXEC: u64 = 1 << 4;
const VALID: u64 = 1 << 5;
const FROZEN: u64 = 1 << 1;
const DEAD: u64 = 1 << 3;
const NOTE: u64 = 1 << 7;
const FRAME: u64 = 0xffff_ffff << FRAME_SHIFT;
const FRAME_SHIFT: u32 = 8;
const MEMORY_SHIFT: u32 = 44;
const SHARE_SHIFT: u32 = 46;
const PENDING: u64 = 1 << 50;
const NO_TLB: u64 = 1 << 51;
const HELD: u64 = 1 << 52;
const OWNER_SHIFT: u32 = 54;
const WHY_SHIFT: u32 = 56;
const LINK: u64 = 1 << 61;
const OLD: u64 = 1 << 62;
const DIRTY: u64 = 1 << 63;

const fn flag(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

fn frame(pa: Pa) -> u64 {
    u64::from(!((pa.get() >> 12) as u32).reverse_bits()) << FRAME_SHIFT
}

fn address(raw: u64) -> Pa {
    Pa::new(u64::from((!((raw & FRAME) >> FRAME_SHIFT) as u32).reverse_bits()) << 12)
}

fn encode_leaf(leaf: Leaf) -> u64 {
    let Attrs { access, memory, share, marks, owner } = leaf.attrs;
    VALID
        | frame(leaf.pa)
        | flag(!access.contains(Access::READ), DENY_READ)
        | flag(!access.contains(Access::WRITE), DENY_WRITE)
        | flag(!access.contains(Access::EXEC), DENY_EXEC)
        | flag(!marks.contains(Marks::YOUNG), OLD)
        | flag(marks.contains(Marks::DIRTY) && access.contains(Access::WRITE), DIRTY)
        | flag(marks.contains(Marks::PENDING), PENDING)
        | flag(marks.contains(Marks::NO_TLB), NO_TLB)
        | (memory as u64) << MEMORY_SHIFT
        | (share as u64) << SHARE_SHIFT
        | (owner as u64) << OWNER_SHIFT
}

fn decode_leaf(raw: u64) -> Leaf {
    let mut access = Access::empty();
    access.set(Access::READ, raw & DENY_READ == 0);
    access.set(Access::WRITE, raw & DENY_WRITE == 0);
    access.set(Access::EXEC, raw & DENY_EXEC == 0);
    let mut marks = Marks::empty();
    marks.set(Marks::YOUNG, raw & OLD == 0);
    marks.set(Marks::DIRTY, raw & DIRTY != 0);
    marks.set(Marks::PENDING, raw & PENDING != 0);
    marks.set(Marks::NO_TLB, raw & NO_TLB != 0);
    let memory = match raw >> MEMORY_SHIFT & 3 {
        0 => Memory::Cached,
        1 => Memory::Uncached,
        _ => Memory::Device,
    };
    let share = match raw >> SHARE_SHIFT & 3 {
        0 => Share::Non,
        1 => Share::Inner,
        _ => Share::Outer,
    };
    let owner = Owner::from_number((raw >> OWNER_SHIFT & 3) as u8);
    Leaf { pa: address(raw), attrs: Attrs { access, memory, share, marks, owner } }
}

fn encode_live(live: Live) -> u64 {
    match live {
        Live::Leaf(leaf) => encode_leaf(leaf),
        Live::Table(table) => {
            VALID | LINK | frame(table.pa) | flag(table.pending, PENDING) | (table.why as u64) << WHY_SHIFT
        }
    }
}

impl Format for Tiny {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 1;
    const MAX_TOP: u8 = 2;
    const OUTPUT_BITS: u32 = 44;

    fn largest_leaf(self) -> Height {
        Height::new(1)
    }

    fn encode(self, entry: Entry, _: Height) -> u64 {
        match entry {
            Entry::Absent => 0,
            Entry::Leaf(leaf) => encode_leaf(leaf),
            Entry::Table(table) => encode_live(Live::Table(table)),
            Entry::Held(live) => encode_live(live) | HELD,
            Entry::Note(note) => NOTE | u64::from(note.payload()) << FRAME_SHIFT,
            Entry::Frozen => FROZEN,
            Entry::Dead => DEAD,
        }
    }

    fn decode(self, raw: u64, height: Height) -> Entry {
        if raw & VALID == 0 {
            return match raw {
                0 => Entry::Absent,
                DEAD => Entry::Dead,
                _ if raw & NOTE != 0 => Entry::Note(Note::new((raw >> FRAME_SHIFT) as u32)),
                _ => Entry::Frozen,
            };
        }
        let live = if raw & LINK == 0 {
            Live::Leaf(decode_leaf(raw))
        } else {
            let why = Why::from_number((raw >> WHY_SHIFT & 7) as u8);
            Live::Table(Table { pa: address(raw), pending: raw & PENDING != 0, why })
        };
        match live {
            Live::Leaf(_) if height > self.largest_leaf() => Entry::Frozen,
            Live::Table(_) if height == Height::PAGE => Entry::Frozen,
            _ if raw & HELD != 0 => Entry::Held(live),
            _ => live.into(),
        }
    }

    fn canonical(self, entry: Entry, _: Height) -> Entry {
        let leaf = |mut leaf: Leaf| {
            if !leaf.attrs.access.contains(Access::WRITE) {
                leaf.attrs.marks.remove(Marks::DIRTY);
            }
            leaf
        };
        match entry {
            Entry::Leaf(l) => Entry::Leaf(leaf(l)),
            Entry::Held(Live::Leaf(l)) => Entry::Held(Live::Leaf(leaf(l))),
            other => other,
        }
    }

    fn child(raw: u64) -> Option<Pa> {
        (raw & (VALID | LINK) == VALID | LINK).then(|| address(raw))
    }

    fn output(raw: u64, _: Height) -> Option<Pa> {
        (raw & (VALID | LINK) == VALID).then(|| address(raw))
    }

    fn with_output(raw: u64, _: Height, pa: Pa) -> u64 {
        raw & !FRAME | frame(pa)
    }

    fn settled(self, raw: u64, _: Height) -> u64 {
        if raw & (VALID | LINK) != VALID {
            return raw;
        }
        let dirty = if raw & DENY_WRITE == 0 { DIRTY } else { 0 };
        raw & !(OLD | dirty)
    }
}
