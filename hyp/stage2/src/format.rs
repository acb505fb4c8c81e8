//! The seam to an architecture's bits: what a format has to say about its entries.

use crate::{Entry, Leaf, Live, Marks, Owner};
use core::fmt::Debug;
use types::{Access, Height, Pa};

/// A page-table format. The value carries what is only known at run time (does the CPU have FWB, does it set dirty
/// flags, …) and is small and `Copy`; what is known at build time is a constant.
///
/// Laws, which the format suite of `model` checks for every implementation:
/// - `decode(encode(e, h), h) == canonical(e, h)`, and `canonical` is idempotent;
/// - `decode(0, h) == Entry::Absent`;
/// - `decode` is total, and never takes a word that no `encode` makes for `Absent`;
/// - `child`, `output`, `with_output`, `next_output`, `is_pending` and `gives` agree with `decode` and `encode`;
/// - no encoding without a valid bit holds a usable address.
pub trait Format: Copy + Debug + Send + Sync + 'static {
    /// Base-2 logarithm of the page size, and of a table's size but for a concatenated root.
    const GRANULE_SHIFT: u32;
    /// Base-2 logarithm of the number of entries in a table.
    const INDEX_BITS: u32;
    /// The greatest height that an entry of a root table can have.
    const MAX_TOP: u8;
    /// The number of bits that an output address has at most.
    const OUTPUT_BITS: u32;

    /// Returns the greatest height at which this configuration allows leaves; all heights below allow them too.
    fn largest_leaf(self) -> Height;

    /// Returns the word for `entry` at `height`.
    ///
    /// `entry` must be possible there: a leaf not above [`Self::largest_leaf`], a table not at the page; addresses
    /// aligned and within the output size. The core asks for nothing else. Table links are made with the accessed
    /// flag set where the format has one there.
    fn encode(self, entry: Entry, height: Height) -> u64;

    /// As [`Self::encode`], made part of the caller's code: for where it counts, and most of `entry` is a constant.
    #[inline(always)]
    fn encode_here(self, entry: Entry, height: Height) -> u64 {
        self.encode(entry, height)
    }

    /// Returns the entry that `raw` stands for at `height`.
    fn decode(self, raw: u64, height: Height) -> Entry;

    /// Returns the entry that comes back when `entry` is stored: what the configuration cannot express is set to what
    /// it means there (without a hardware dirty flag, a writable leaf counts as dirty).
    fn canonical(self, entry: Entry, height: Height) -> Entry;

    /// Returns the address of the table that `raw` links to, at a height above the page; `None` where it is no link.
    /// The hot half of `decode`: a few instructions, and no configuration.
    fn child(raw: u64) -> Option<Pa>;

    /// Returns the first output address of the leaf `raw` at `height`; `None` where it is no leaf.
    /// The hot half of `decode`: a few instructions, and no configuration.
    fn output(raw: u64, height: Height) -> Option<Pa>;

    /// Returns the leaf `raw` of `height` with the output address `pa`, which is aligned as the height asks.
    fn with_output(raw: u64, height: Height, pa: Pa) -> u64;

    /// Returns the leaf `raw` of `height` with the output address that comes next, which is within the output size.
    /// The inner loop of every fill: to be replaced where that is an addition.
    #[inline(always)]
    fn next_output(raw: u64, height: Height) -> u64 {
        let next = |pa: Pa| pa.wrapping_add(crate::span::<Self>(height));
        Self::output(raw, height).map_or(raw, |pa| Self::with_output(raw, height, next(pa)))
    }

    /// Tells whether the live entry `raw` of `height` is marked as pending; no other entry is. As for `child`: asked of
    /// every link on the way to an entry that is to be changed.
    #[inline(always)]
    fn is_pending(self, raw: u64, height: Height) -> bool {
        match self.decode(raw, height).live() {
            Some(Live::Table(table)) => table.pending,
            Some(Live::Leaf(leaf)) => leaf.attrs.marks.contains(Marks::PENDING),
            None => false,
        }
    }

    /// Tells whether `raw` is a leaf of `height` that nobody owns, of the space's own memory, that gives all of `access`.
    /// The hot half of `decode` for whoever pins.
    #[inline(always)]
    fn gives(self, raw: u64, height: Height, access: Access) -> bool {
        match self.decode(raw, height) {
            Entry::Leaf(leaf) => leaf.attrs.owner == Owner::Space && leaf.attrs.access.contains(access),
            _ => false,
        }
    }

    /// Returns `raw` with the flags cleared that hardware may set by itself in it. Two words of one height that agree
    /// in this differ in accessed and dirty flags only.
    fn settled(self, raw: u64, height: Height) -> u64;

    /// Tells how the live entry `from` may become `to` at `height`, on CPUs of which the weakest has level `bbm`.
    ///
    /// The rule of the Arm manual unless the format has one of its own (DDI 0487, D8.17.1): address, memory type and
    /// shareability always break; so does size, below level 2; rights, flags and software's bits never do, and what
    /// takes something away is to be invalidated. Where `from` is not live, anything may be stored in place.
    #[inline(always)]
    fn rewrite(self, from: Entry, to: Entry, height: Height, bbm: Bbm) -> Rewrite {
        let _ = height;
        by_the_book(from, to, bbm)
    }
}

/// How a live entry may be changed, strictest last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rewrite {
    /// Store it; stale copies do no harm. Where rights were added, the CPU that faulted may still hold the stricter
    /// copy and owes a local invalidation.
    InPlace,
    /// Store it; TLBs may hold the old value until the invalidation is complete.
    InPlaceThenInvalidate,
    /// Store an invalid entry, invalidate, and only then store the new one (DDI 0487, D8.17.1 "Using
    /// break-before-make when updating translation table entries").
    BreakBeforeMake,
}

/// What the weakest of all CPUs and IOMMUs can do when the size of a live mapping changes
/// (DDI 0487, D8.17.2 "Support levels for changing block size", ID_AA64MMFR2_EL1.BBM).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Bbm {
    /// Break-before-make for every change of size.
    Level0 = 0,
    /// A block may be marked not to be cached (nT), invalidated, and then changed without a break.
    Level1 = 1,
    /// The size may be changed directly; a TLB-conflict abort is possible until the invalidation is complete.
    Level2 = 2,
    /// As level 2, and no conflict aborts.
    Level3 = 3,
}

impl Bbm {
    /// Returns the level with number `n`; [`Bbm::Level0`], the weakest, for numbers that are none.
    pub const fn from_number(n: u8) -> Self {
        match n {
            1 => Self::Level1,
            2 => Self::Level2,
            3 => Self::Level3,
            _ => Self::Level0,
        }
    }
}

/// Tells how the live entry `from` may become `to` by the rule of the Arm manual, which is [`Format::rewrite`]'s unless
/// the format has its own. For formats whose own rule differs in part.
#[inline]
pub fn by_the_book(from: Entry, to: Entry, bbm: Bbm) -> Rewrite {
    let Some(from) = from.live() else { return Rewrite::InPlace };
    // The break itself: allowed at any time, and what follows it waits for the invalidation.
    let Some(to) = to.live() else { return Rewrite::InPlaceThenInvalidate };
    match (from, to) {
        (Live::Leaf(from), Live::Leaf(to)) => leaf_to_leaf(from, to, bbm),
        (Live::Table(from), Live::Table(to)) if from.pa == to.pa => Rewrite::InPlace,
        (Live::Table(_), Live::Table(_)) => Rewrite::BreakBeforeMake,
        (Live::Leaf(block), Live::Table(_)) | (Live::Table(_), Live::Leaf(block)) => match bbm {
            Bbm::Level0 => Rewrite::BreakBeforeMake,
            Bbm::Level1 if !block.attrs.marks.contains(Marks::NO_TLB) => Rewrite::BreakBeforeMake,
            Bbm::Level1 | Bbm::Level2 | Bbm::Level3 => Rewrite::InPlaceThenInvalidate,
        },
    }
}

#[inline(never)]
fn leaf_to_leaf(from: Leaf, to: Leaf, bbm: Bbm) -> Rewrite {
    let (old, new) = (from.attrs, to.attrs);
    let no_tlb_changes = (old.marks ^ new.marks).contains(Marks::NO_TLB);
    if from.pa != to.pa
        || old.memory != new.memory
        || old.share != new.share
        || (no_tlb_changes && bbm == Bbm::Level0)
    {
        return Rewrite::BreakBeforeMake;
    }
    let flags_taken = (old.marks - new.marks).intersects(Marks::YOUNG | Marks::DIRTY);
    if !new.access.contains(old.access) || flags_taken || no_tlb_changes {
        Rewrite::InPlaceThenInvalidate
    } else {
        Rewrite::InPlace
    }
}
