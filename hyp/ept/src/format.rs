//! [`Ept`]: Intel's extended page tables as a [`Format`].
//!
//! Invariant: no word that is stored is a misconfiguration, and none that is not present names memory that there is.
//!
//! Rights. An entry cannot allow writes without reads, nor, without [`Features::EXECUTE_ONLY`], fetches without reads.
//! Such rights are lost: a right is never given that was not asked for. A leaf that is left with none is veiled.
//!
//! Accessed and dirty. With [`Features::ACCESSED_DIRTY`] hardware keeps both. Without, a writable leaf counts as dirty,
//! and a leaf that is not young is veiled: its first access is a violation, as on any machine that keeps no accessed
//! flag, and whoever handles it makes it young. Nobody else's entry but the accessed leaf's changes, and no flag is lost.
//!
//! Memory type. Cached memory ignores the guest's PAT, so that no alias of another type exists beside the hypervisor's own
//! write-back mapping: what [`Memory::Cached`] is with forced write-back on the other architecture. Uncached memory is
//! write-combining and device memory uncacheable, and there the PAT has its say: it can make the one stricter and the
//! other write-combining (frame buffers), but nothing cacheable (SDM 3A, "Effective Page-Level Memory Types").

use crate::entry::{LEAF, LINK, VOID};
use stage2::{
    Attrs, Bbm, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Rewrite, Share, Table, Why,
    by_the_book,
};
use types::sync::mutant;
use types::{Access, Height, Pa};

bitflags::bitflags! {
    /// What the machine has, as far as entries depend on it. Every CPU that runs the space has it.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Features: u8 {
        /// EPTP[6] is set: hardware keeps accessed and dirty flags.
        const ACCESSED_DIRTY = 1;
        /// An entry may allow fetches and nothing else.
        const EXECUTE_ONLY = 1 << 1;
        /// Height 1 has leaves.
        const LEAF_2M = 1 << 2;
        /// Height 2 has leaves too, if height 1 has.
        const LEAF_1G = 1 << 3;
    }
}

/// Extended page tables. One value serves walks of four and of five tables: the root's height says which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ept {
    features: Features,
}

/// Bits 51:12: the address. Blocks have zeroes in the low part of it.
pub(crate) const ADDRESS: u64 = (1 << 52) - (1 << 12);
/// Bits 2:0: with none of them, an entry is not present.
pub(crate) const RIGHTS: u64 = 0b111;
/// As [`LEAF::LARGE`] and [`LINK::LINK`], to test.
pub(crate) const LEAF_BIT: u64 = 1 << 7;
const LINK_BIT: u64 = 1 << 11;

/// Returns what the address bits of `raw` are inverted by: all of them where it is not present.
#[inline(always)]
fn inversion(raw: u64) -> u64 {
    if raw & RIGHTS == 0 && !mutant("ept-plain-veil") { ADDRESS } else { 0 }
}

/// Returns the bits of an address that are within what an entry at this height maps.
pub(crate) const fn offset(height: Height) -> u64 {
    (1 << stage2::shift::<Ept>(height)) - 1
}

fn encode_link(table: Table) -> u64 {
    let accessed = !mutant("ept-link-old");
    let fields = LINK::RIGHTS::All
        + LINK::ACCESSED.val(u64::from(accessed))
        + LINK::LINK::SET
        + LINK::PENDING.val(u64::from(table.pending))
        + LINK::WHY.val(table.why as u64);
    fields.value | table.pa.get() & ADDRESS
}

fn decode_link(raw: u64) -> Option<Table> {
    let is_link = LINK::RIGHTS::All.matches_all(raw) && LINK::RESERVED.read(raw) == 0;
    is_link.then(|| Table {
        pa: Pa::new(raw & ADDRESS),
        pending: LINK::PENDING.is_set(raw),
        why: Why::from_number(LINK::WHY.read(raw) as u8),
    })
}

/// Returns the payload as it is stored, or back.
fn inverted(payload: u32) -> u32 {
    if mutant("ept-plain-note") { payload } else { !payload }
}

fn encode_note(note: Note) -> u64 {
    let stored = u64::from(inverted(note.payload()));
    let fields = VOID::KIND::Note
        + VOID::NOTE_LOW.val(stored & VOID::NOTE_LOW.mask)
        + VOID::TOP.val(VOID::TOP.mask)
        + VOID::NOTE_HIGH.val(stored >> 21);
    fields.value
}

fn decode_note(raw: u64) -> Note {
    let stored = VOID::NOTE_LOW.read(raw) | VOID::NOTE_HIGH.read(raw) << 21;
    Note::new(inverted(stored as u32))
}

impl Ept {
    /// Makes the format for a machine with `features`.
    pub const fn new(features: Features) -> Self {
        Self { features }
    }

    /// Returns the features that entries are made for.
    pub const fn features(self) -> Features {
        self.features
    }

    /// Returns what can be given of the rights `access`; never one more.
    pub fn expressible(self, access: Access) -> Access {
        if access.contains(Access::READ) || mutant("ept-write-alone") {
            access
        } else if self.features.contains(Features::EXECUTE_ONLY) {
            access & Access::EXEC
        } else {
            Access::empty()
        }
    }

    fn canonical_attrs(self, attrs: Attrs) -> Attrs {
        let mut attrs = Attrs {
            access: self.expressible(attrs.access),
            share: Share::Inner,
            ..attrs.without(Marks::NO_TLB)
        };
        if !attrs.access.contains(Access::WRITE) {
            attrs.marks.remove(Marks::DIRTY);
        } else if !self.features.contains(Features::ACCESSED_DIRTY) {
            attrs.marks.insert(Marks::DIRTY);
        }
        attrs
    }

    /// Tells whether hardware must fault on a leaf with these attributes, which are canonical.
    fn veils(self, attrs: Attrs) -> bool {
        let is_old = !attrs.marks.contains(Marks::YOUNG);
        attrs.access.is_empty() || is_old && !self.features.contains(Features::ACCESSED_DIRTY)
    }

    fn encode_leaf(self, leaf: Leaf) -> u64 {
        let attrs = self.canonical_attrs(leaf.attrs);
        let memory = match attrs.memory {
            Memory::Cached => LEAF::MEMTYPE::WriteBack + LEAF::IGNORE_PAT::SET,
            Memory::Uncached => LEAF::MEMTYPE::WriteCombining + LEAF::IGNORE_PAT::CLEAR,
            Memory::Device => LEAF::MEMTYPE::Uncacheable + LEAF::IGNORE_PAT::CLEAR,
        };
        let common = memory
            + LEAF::LARGE::SET
            + LEAF::ACCESSED.val(u64::from(attrs.marks.contains(Marks::YOUNG)))
            + LEAF::DIRTY.val(u64::from(attrs.marks.contains(Marks::DIRTY)))
            + LEAF::PENDING.val(u64::from(attrs.marks.contains(Marks::PENDING)))
            + LEAF::OWNER.val(attrs.owner as u64);
        let rights = if self.veils(attrs) {
            LEAF::VEILED_RIGHTS.val(attrs.access.bits().into()).value
        } else {
            let can = |right| u64::from(attrs.access.contains(right));
            let rights = LEAF::READ.val(can(Access::READ))
                + LEAF::WRITE.val(can(Access::WRITE))
                + LEAF::EXEC.val(can(Access::EXEC));
            rights.value
        };
        Self::with_output(common.value | rights, Height::PAGE, leaf.pa)
    }

    fn decode_leaf(self, raw: u64, height: Height) -> Option<Leaf> {
        use LEAF::MEMTYPE::Value as Type;
        let memory = match (LEAF::MEMTYPE.read_as_enum::<Type>(raw)?, LEAF::IGNORE_PAT.is_set(raw)) {
            (Type::WriteBack, true) => Memory::Cached,
            (Type::WriteCombining, false) => Memory::Uncached,
            (Type::Uncacheable, false) => Memory::Device,
            _ => return None,
        };
        let mut access = Access::empty();
        if raw & RIGHTS == 0 {
            access = Access::from_bits_truncate(LEAF::VEILED_RIGHTS.read(raw) as u8);
        } else {
            access.set(Access::READ, LEAF::READ.is_set(raw));
            access.set(Access::WRITE, LEAF::WRITE.is_set(raw));
            access.set(Access::EXEC, LEAF::EXEC.is_set(raw));
        }
        let mut marks = Marks::empty();
        marks.set(Marks::YOUNG, LEAF::ACCESSED.is_set(raw));
        marks.set(Marks::DIRTY, LEAF::DIRTY.is_set(raw));
        marks.set(Marks::PENDING, LEAF::PENDING.is_set(raw));
        let owner = Owner::from_number(LEAF::OWNER.read(raw) as u8);
        let attrs = Attrs { access, memory, share: Share::Inner, marks, owner };
        // What we would not have stored is nobody's: a misconfiguration among it.
        let is_ours = self.canonical_attrs(attrs) == attrs && self.veils(attrs) == (raw & RIGHTS == 0);
        is_ours.then_some(Leaf { pa: Self::output(raw, height)?, attrs })
    }

    fn encode_live(self, live: Live) -> u64 {
        match live {
            Live::Leaf(leaf) => self.encode_leaf(leaf),
            Live::Table(table) => encode_link(table),
        }
    }

    /// Returns what a leaf is when nobody has accessed it yet, with hardware that keeps no accessed flag: veiled.
    fn veil(raw: u64) -> u64 {
        if raw & RIGHTS == 0 {
            return raw;
        }
        let veiled = raw & !RIGHTS | LEAF::VEILED_RIGHTS.val(raw & RIGHTS).value;
        veiled ^ inversion(veiled)
    }
}

impl Format for Ept {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 9;
    const MAX_TOP: u8 = 4;
    const OUTPUT_BITS: u32 = 52;

    fn largest_leaf(self) -> Height {
        if !self.features.contains(Features::LEAF_2M) {
            Height::PAGE
        } else if !self.features.contains(Features::LEAF_1G) {
            Height::new(1)
        } else {
            Height::new(2)
        }
    }

    fn encode(self, entry: Entry, _: Height) -> u64 {
        match entry {
            Entry::Absent => 0,
            Entry::Leaf(leaf) => self.encode_leaf(leaf),
            Entry::Table(table) => encode_link(table),
            // The bit is the same in leaves and links.
            Entry::Held(live) => self.encode_live(live) | LEAF::HELD::SET.value,
            Entry::Note(note) => encode_note(note),
            Entry::Frozen => VOID::KIND::Frozen.value | ADDRESS,
            Entry::Dead => VOID::KIND::Dead.value | ADDRESS,
        }
    }

    fn decode(self, raw: u64, height: Height) -> Entry {
        let live = if raw & LEAF_BIT != 0 && raw & LINK_BIT == 0 && height <= self.largest_leaf() {
            self.decode_leaf(raw, height).map(Live::Leaf)
        } else if raw & LINK_BIT != 0 && height > Height::PAGE {
            decode_link(raw).map(Live::Table)
        } else {
            return match VOID::KIND.read_as_enum(raw) {
                _ if raw == 0 => Entry::Absent,
                _ if raw & (RIGHTS | LEAF_BIT | LINK_BIT) != 0 => Entry::Frozen,
                Some(VOID::KIND::Value::Dead) => Entry::Dead,
                Some(VOID::KIND::Value::Note) => Entry::Note(decode_note(raw)),
                _ => Entry::Frozen,
            };
        };
        match live {
            Some(live) if LEAF::HELD.is_set(raw) => Entry::Held(live),
            Some(live) => live.into(),
            None => Entry::Frozen,
        }
    }

    fn canonical(self, entry: Entry, _: Height) -> Entry {
        let leaf = |leaf: Leaf| Leaf { attrs: self.canonical_attrs(leaf.attrs), ..leaf };
        match entry {
            Entry::Leaf(l) => Entry::Leaf(leaf(l)),
            Entry::Held(Live::Leaf(l)) => Entry::Held(Live::Leaf(leaf(l))),
            other => other,
        }
    }

    #[inline(always)]
    fn child(raw: u64) -> Option<Pa> {
        if raw & LINK_BIT != 0 { Some(Pa::new(raw & ADDRESS)) } else { None }
    }

    #[inline(always)]
    fn output(raw: u64, height: Height) -> Option<Pa> {
        let address = (raw ^ inversion(raw)) & ADDRESS & !offset(height);
        if raw & LEAF_BIT != 0 { Some(Pa::new(address)) } else { None }
    }

    #[inline(always)]
    fn with_output(raw: u64, _: Height, pa: Pa) -> u64 {
        raw & !ADDRESS | (pa.get() ^ inversion(raw)) & ADDRESS
    }

    /// Hardware sets the accessed flag in links too, where they are without. Without hardware flags, being young is
    /// software's, and whoever makes a leaf young at a fault is no more in the way of others than hardware would be.
    fn settled(self, raw: u64, _: Height) -> u64 {
        if raw & LEAF_BIT == 0 {
            return if raw & LINK_BIT != 0 { raw & !LINK::ACCESSED::SET.value } else { raw };
        }
        if !self.features.contains(Features::ACCESSED_DIRTY) {
            return Self::veil(raw) & !LEAF::ACCESSED::SET.value;
        }
        let dirty = if LEAF::WRITE.is_set(raw) { LEAF::DIRTY::SET.value } else { 0 };
        raw & !(LEAF::ACCESSED::SET.value | dirty)
    }

    /// On every Intel CPU a leaf may become a table that maps the same, and a table a leaf, in one store: TLBs may then
    /// hold both, and either is right (29.4.3.3 "Guidelines for Use of the INVEPT Instruction"; SDM 3A, 4.10.2.3 "Details
    /// of TLB Use"). The level of the other architecture says nothing here. All else is as there: two addresses, or two
    /// memory types, at one time are wrong on any CPU.
    fn rewrite(self, from: Entry, to: Entry, height: Height, _: Bbm) -> Rewrite {
        let (from, to) = (self.canonical(from, height), self.canonical(to, height));
        by_the_book(from, to, Bbm::Level3)
    }
}
