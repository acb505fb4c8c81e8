//! [`Mtrrs`]: which type of memory the machine has at an address, as its memory-type range registers say (SDM 3A, 12.11
//! "Memory Type Range Registers (MTRRs)").
//!
//! A guest's accesses go by the type in the EPT leaf alone, and never by these registers (29.3.7.2). So who gives a guest the
//! machine's own addresses looks here first, and puts what it finds into the leaf.

use core::ops::Range;
use tock_registers::register_bitfields;

register_bitfields! { u64,
    /// IA32_MTRRCAP.
    CAP [
        /// How many variable ranges there are.
        VARIABLE OFFSET(0) NUMBITS(8) [],
        /// There are fixed ranges.
        FIXED OFFSET(8) NUMBITS(1) []
    ],

    /// IA32_MTRR_DEF_TYPE (12.11.2.1).
    DEFAULT [
        /// The type of what is in no range.
        TYPE OFFSET(0) NUMBITS(8) [],
        /// Fixed ranges are on, where all are.
        FIXED OFFSET(10) NUMBITS(1) [],
        /// All are on. Where not, all memory is uncacheable.
        ON OFFSET(11) NUMBITS(1) []
    ],

    /// IA32_MTRR_PHYSBASEn; bits from 12 on are the address (12.11.2.3).
    BASE [
        TYPE OFFSET(0) NUMBITS(8) []
    ],

    /// IA32_MTRR_PHYSMASKn; bits from 12 on are those of an address that must be the base's.
    MASK [
        VALID OFFSET(11) NUMBITS(1) []
    ]
}

/// The most variable ranges: their registers, two each, are from 0x200 on, and the fixed ranges' from 0x250.
pub const MAX_VARIABLE: usize = (0x250 - 0x200) / 2;

/// The registers of fixed ranges, of eight ranges each.
pub const FIXED: usize = 11;

/// Where fixed ranges end: 1 MiB.
const FIXED_END: u64 = 1 << 20;

/// The bytes in a page, which no range is smaller than.
const PAGE: u64 = 1 << 12;

/// A type of memory, with its number in MTRRs and in EPT leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Type {
    /// UC: every access goes to memory, in order.
    Uncacheable = 0,
    /// WC: not cached; writes are gathered.
    WriteCombining = 1,
    /// WT: reads are cached, and writes go to memory too.
    WriteThrough = 4,
    /// WP: reads are cached, and writes go to memory alone.
    WriteProtected = 5,
    /// WB: cached.
    WriteBack = 6,
}

impl Type {
    /// Reads a number. One that is reserved, which no register takes, is the strictest type.
    const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => Self::Uncacheable,
        }
    }

    /// Returns the type where two variable ranges overlap (12.11.4.1). What the manual leaves open is uncacheable.
    const fn over(self, other: Self) -> Self {
        use Type::{Uncacheable, WriteBack, WriteThrough};
        match (self, other) {
            _ if self as u8 == other as u8 => self,
            (WriteThrough, WriteBack) | (WriteBack, WriteThrough) => WriteThrough,
            _ => Uncacheable,
        }
    }
}

impl core::fmt::Display for Type {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            Self::Uncacheable => "uncacheable",
            Self::WriteCombining => "write-combining",
            Self::WriteThrough => "write-through",
            Self::WriteProtected => "write-protected",
            Self::WriteBack => "write-back",
        })
    }
}

/// The registers of one CPU, as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mtrrs {
    /// IA32_MTRRCAP.
    pub cap: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub default: u64,
    /// The fixed ranges' registers in the order of their addresses; not looked at where there are none.
    pub fixed: [u64; FIXED],
    /// Base and mask of each variable range. Those beyond what there are are not looked at.
    pub variable: [(u64, u64); MAX_VARIABLE],
    /// How wide a physical address is, in bits (CPUID.80000008H:EAX).
    pub width: u8,
}

impl Mtrrs {
    /// Returns how many variable ranges there are.
    pub fn count(&self) -> usize {
        (CAP::VARIABLE.read(self.cap) as usize).min(MAX_VARIABLE)
    }

    /// Tells whether there are fixed ranges.
    pub fn has_fixed(&self) -> bool {
        CAP::FIXED.is_set(self.cap)
    }

    /// Returns the type at an address.
    pub fn at(&self, address: u64) -> Type {
        if !DEFAULT::ON.is_set(self.default) {
            return Type::Uncacheable;
        }
        if address < FIXED_END && self.has_fixed() && DEFAULT::FIXED.is_set(self.default) {
            return self.fixed_at(address).0;
        }
        let ranges = self.variables().filter(|range| range.contains(address)).map(|range| range.what);
        ranges.reduce(Type::over).unwrap_or(Type::from_number(DEFAULT::TYPE.read(self.default)))
    }

    /// Goes through the addresses of a range: parts of one type each, as large as can be, in order.
    pub fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Type)> + use<'_> {
        let mut at = range.start;
        core::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let (start, what) = (at, self.at(at));
            while at < range.end && self.at(at) == what {
                at = self.unchanged_until(at).min(range.end);
            }
            Some((start..at, what))
        })
    }

    /// Returns the first of the registers, by number, that another CPU has otherwise; `None` where the two are alike.
    pub fn first_difference(&self, other: &Self) -> Option<u32> {
        let is_not = |(_, (one, other)): &(u32, (u64, u64))| one != other;
        let mut common = [(0xfe, (self.cap, other.cap)), (0x2ff, (self.default, other.default))].into_iter();
        let count = self.count().max(other.count());
        let variable = (0x200..).step_by(2).zip(self.variable.iter().zip(&other.variable)).take(count);
        let mut variable = variable
            .flat_map(|(number, (one, other))| [(number, (one.0, other.0)), (number + 1, (one.1, other.1))]);
        let fixed = self.fixed.iter().copied().zip(other.fixed);
        let mut fixed = FIXED_NUMBERS.into_iter().zip(fixed).filter(|_| self.has_fixed());
        let first = common.find(is_not).or_else(|| variable.find(is_not)).or_else(|| fixed.find(is_not));
        first.map(|(number, _)| number)
    }

    /// Returns an address above `address` up to which the type is the same; not the first where it changes, always.
    fn unchanged_until(&self, address: u64) -> u64 {
        let fixed = if address < FIXED_END { self.fixed_at(address).1 } else { u64::MAX };
        self.variables().map(|range| range.next_change(address)).fold(fixed, u64::min)
    }

    /// Returns the type of the fixed range around an address below 1 MiB, and where it ends.
    fn fixed_at(&self, address: u64) -> (Type, u64) {
        // Eight ranges of 64 KiB, sixteen of 16, sixty-four of 4.
        let (first, base, bytes) = match address {
            0..0x8_0000 => (0, 0, 1 << 16),
            0x8_0000..0xc_0000 => (8, 0x8_0000, 1 << 14),
            _ => (24, 0xc_0000, 1 << 12),
        };
        let place = first + ((address - base) / bytes) as usize;
        let number = self.fixed.get(place / 8).map_or(0, |register| register.to_le_bytes()[place % 8]);
        (Type::from_number(number.into()), (address / bytes + 1) * bytes)
    }

    fn variables(&self) -> impl Iterator<Item = Variable> + use<'_> {
        let addresses = 1_u64.checked_shl(self.width.into()).unwrap_or(0).wrapping_sub(PAGE);
        let on = self.variable.iter().take(self.count());
        on.filter(|(_, mask)| MASK::VALID.is_set(*mask)).map(move |(base, mask)| {
            let mask = mask & addresses;
            let is_one_piece = mask.wrapping_add(mask & mask.wrapping_neg()) & addresses == 0;
            Variable {
                base: base & mask,
                mask,
                is_one_piece,
                what: Type::from_number(BASE::TYPE.read(*base)),
            }
        })
    }
}

/// The numbers of the fixed ranges' registers.
pub const FIXED_NUMBERS: [u32; FIXED] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// A variable range that is on.
#[derive(Clone, Copy)]
struct Variable {
    base: u64,
    mask: u64,
    /// Whether its addresses follow one another: the mask has every bit from its lowest on.
    is_one_piece: bool,
    what: Type,
}

impl Variable {
    const fn contains(self, address: u64) -> bool {
        address & self.mask == self.base
    }

    /// Returns an address above `address` up to which all are in the range, or none.
    fn next_change(self, address: u64) -> u64 {
        if self.mask == 0 {
            return u64::MAX; // all addresses are in it
        }
        // In steps of the lowest bit that counts nothing changes within one. A range in one piece has only two changes.
        let step = self.mask & self.mask.wrapping_neg();
        let next = (address & !(step - 1)).saturating_add(step);
        match address {
            _ if !self.is_one_piece || self.contains(address) => next,
            _ if address < self.base => self.base,
            _ => u64::MAX,
        }
    }
}
