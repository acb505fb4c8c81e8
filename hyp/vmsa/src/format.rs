//! [`Vmsa`]: AArch64 stage 2 as a [`Format`].

use crate::descriptor::{LEAF, TABLE, VOID};
use crate::{Granule, Upper};
use core::marker::PhantomData;
use stage2::{Attrs, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why};
use types::{Access, Height, Pa};

bitflags::bitflags! {
    /// What the machine has, as far as descriptors depend on it. Every CPU that runs the space has it.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Features: u8 {
        /// HCR_EL2.FWB is set: stage 2 decides about cacheability (FEAT_S2FWB).
        const FWB = 1;
        /// VTCR_EL2.HD is set: hardware keeps the dirty state (FEAT_HAFDBS).
        const HARDWARE_DIRTY = 1 << 1;
    }
}

/// AArch64 stage-2 tables with granule `G` (DDI 0487, D8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vmsa<G> {
    features: Features,
    granule: PhantomData<G>,
}

impl<G: Granule> Vmsa<G> {
    /// Makes the format for a machine with `features`.
    pub const fn new(features: Features) -> Self {
        Self { features, granule: PhantomData }
    }

    /// Returns the features that descriptors are made for.
    pub const fn features(self) -> Features {
        self.features
    }

    /// The bits of a descriptor that hold address bits 47 (49 with DS) down to the granule.
    const ADDRESS: u64 = {
        let top = if matches!(G::UPPER, Upper::Ds) { 50 } else { 48 };
        (1 << top) - (1 << G::SHIFT)
    };

    /// Bit 1: set in links and pages, and in nothing else that is ever stored (a word with this bit and not bit 0 is
    /// nobody's).
    const LINK_OR_PAGE: u64 = 0b10;

    #[inline(always)]
    fn address(raw: u64) -> u64 {
        match G::UPPER {
            Upper::None => raw & Self::ADDRESS,
            Upper::Low => raw & Self::ADDRESS | (raw & 0xf000) << (48 - 12),
            Upper::Ds => raw & Self::ADDRESS | (raw & 0x300) << (50 - 8),
        }
    }

    #[inline(always)]
    fn address_bits(pa: Pa) -> u64 {
        let pa = pa.get();
        match G::UPPER {
            Upper::None => pa & Self::ADDRESS,
            Upper::Low => pa & Self::ADDRESS | pa >> (48 - 12) & 0xf000,
            Upper::Ds => pa & Self::ADDRESS | pa >> (50 - 8) & 0x300,
        }
    }

    #[inline(always)]
    fn encode_leaf(self, leaf: Leaf, height: Height) -> u64 {
        let attrs = leaf.attrs;
        let memory = match attrs.memory {
            Memory::Device => LEAF::MEMATTR::DeviceNgnre,
            Memory::Uncached => LEAF::MEMATTR::Uncached,
            Memory::Cached if self.features.contains(Features::FWB) => LEAF::MEMATTR::ForcedCached,
            Memory::Cached => LEAF::MEMATTR::Cached,
        };
        let share = match attrs.share {
            _ if matches!(G::UPPER, Upper::Ds) => LEAF::SH.val(0),
            Share::Non => LEAF::SH::Non,
            Share::Outer => LEAF::SH::Outer,
            Share::Inner => LEAF::SH::Inner,
        };
        let writable = attrs.access.contains(Access::WRITE);
        let (write, modifier) = if self.features.contains(Features::HARDWARE_DIRTY) {
            (writable && attrs.marks.contains(Marks::DIRTY), writable)
        } else {
            (writable, false)
        };
        let executable =
            if attrs.access.contains(Access::EXEC) { LEAF::XN::Executable } else { LEAF::XN::Never };
        let is_page = height == Height::PAGE;
        let fields = LEAF::VALID::SET
            + LEAF::PAGE.val(u64::from(is_page))
            + memory
            + LEAF::READ.val(u64::from(attrs.access.contains(Access::READ)))
            + LEAF::WRITE.val(u64::from(write))
            + LEAF::AF.val(u64::from(attrs.marks.contains(Marks::YOUNG)))
            + LEAF::NT.val(u64::from(attrs.marks.contains(Marks::NO_TLB) && !is_page))
            + LEAF::DBM.val(u64::from(modifier))
            + executable
            + LEAF::PENDING.val(u64::from(attrs.marks.contains(Marks::PENDING)))
            + LEAF::OWNER.val(attrs.owner as u64);
        fields.value | share.value | Self::address_bits(leaf.pa)
    }

    fn decode_leaf(self, raw: u64, height: Height) -> Option<Leaf> {
        use LEAF::MEMATTR::Value as MemAttr;
        let memory = match LEAF::MEMATTR.read_as_enum::<MemAttr>(raw)? {
            MemAttr::DeviceNgnre => Memory::Device,
            MemAttr::Uncached => Memory::Uncached,
            MemAttr::ForcedCached if self.features.contains(Features::FWB) => Memory::Cached,
            MemAttr::Cached if !self.features.contains(Features::FWB) => Memory::Cached,
            MemAttr::ForcedCached | MemAttr::Cached => return None,
        };
        let share = match LEAF::SH.read(raw) {
            _ if matches!(G::UPPER, Upper::Ds) => Share::Inner,
            0b00 => Share::Non,
            0b10 => Share::Outer,
            0b11 => Share::Inner,
            _ => return None,
        };
        let dirty = LEAF::WRITE.is_set(raw);
        let mut access = Access::empty();
        access.set(Access::READ, LEAF::READ.is_set(raw));
        access.set(Access::WRITE, dirty || LEAF::DBM.is_set(raw));
        access.set(Access::EXEC, LEAF::XN::Executable.matches_all(raw));
        let mut marks = Marks::empty();
        marks.set(Marks::YOUNG, LEAF::AF.is_set(raw));
        marks.set(Marks::DIRTY, dirty);
        marks.set(Marks::PENDING, LEAF::PENDING.is_set(raw));
        marks.set(Marks::NO_TLB, height != Height::PAGE && LEAF::NT.is_set(raw));
        let owner = Owner::from_number(LEAF::OWNER.read(raw) as u8);
        let pa = Self::output(raw, height)?;
        Some(Leaf { pa, attrs: Attrs { access, memory, share, marks, owner } })
    }

    #[inline(always)]
    fn encode_table(table: Table) -> u64 {
        let fields = TABLE::KIND::Table
            + TABLE::WHY.val(table.why as u64)
            + TABLE::PENDING.val(u64::from(table.pending));
        fields.value | Self::address_bits(table.pa)
    }

    fn decode_table(raw: u64) -> Table {
        Table {
            pa: Pa::new(Self::address(raw)),
            pending: TABLE::PENDING.is_set(raw),
            why: Why::from_number(TABLE::WHY.read(raw) as u8),
        }
    }
}

impl<G: Granule> Format for Vmsa<G> {
    const GRANULE_SHIFT: u32 = G::SHIFT;
    const INDEX_BITS: u32 = G::SHIFT - 3;
    const MAX_TOP: u8 = G::MAX_TOP;
    const OUTPUT_BITS: u32 = if matches!(G::UPPER, Upper::None) { 48 } else { 52 };

    fn largest_leaf(self) -> Height {
        Height::new(G::LARGEST_LEAF)
    }

    fn encode(self, entry: Entry, height: Height) -> u64 {
        self.encode_here(entry, height)
    }

    #[inline(always)]
    fn encode_here(self, entry: Entry, height: Height) -> u64 {
        match entry {
            Entry::Absent => 0,
            Entry::Leaf(leaf) => self.encode_leaf(leaf, height),
            Entry::Table(table) => Self::encode_table(table),
            // The bit is the same in both kinds of descriptor.
            Entry::Held(live) => self.encode(live.into(), height) | LEAF::HELD::SET.value,
            Entry::Note(note) => (VOID::KIND::Note + VOID::NOTE.val(u64::from(!note.payload()))).value,
            Entry::Frozen => VOID::KIND::Frozen.value,
            Entry::Dead => VOID::KIND::Dead.value,
        }
    }

    fn decode(self, raw: u64, height: Height) -> Entry {
        if !LEAF::VALID.is_set(raw) {
            return match raw {
                0 => Entry::Absent,
                _ if raw == VOID::KIND::Dead.value => Entry::Dead,
                _ if VOID::KIND::Note.matches_all(raw) => {
                    Entry::Note(Note::new(!(VOID::NOTE.read(raw) as u32)))
                }
                _ => Entry::Frozen,
            };
        }
        let live = if Self::output(raw, height).is_some() && height <= self.largest_leaf() {
            self.decode_leaf(raw, height).map(Live::Leaf)
        } else if height != Height::PAGE && LEAF::PAGE.is_set(raw) {
            Some(Live::Table(Self::decode_table(raw)))
        } else {
            None
        };
        match live {
            Some(live) if LEAF::HELD.is_set(raw) => Entry::Held(live),
            Some(live) => live.into(),
            None => Entry::Frozen,
        }
    }

    fn canonical(self, entry: Entry, height: Height) -> Entry {
        let leaf = |mut leaf: Leaf| {
            let attrs = &mut leaf.attrs;
            if !attrs.access.contains(Access::WRITE) {
                attrs.marks.remove(Marks::DIRTY);
            } else if !self.features.contains(Features::HARDWARE_DIRTY) {
                attrs.marks.insert(Marks::DIRTY);
            }
            if height == Height::PAGE {
                attrs.marks.remove(Marks::NO_TLB);
            }
            if matches!(G::UPPER, Upper::Ds) {
                attrs.share = Share::Inner;
            }
            leaf
        };
        match entry {
            Entry::Leaf(l) => Entry::Leaf(leaf(l)),
            Entry::Held(Live::Leaf(l)) => Entry::Held(Live::Leaf(leaf(l))),
            other => other,
        }
    }

    #[inline(always)]
    fn child(raw: u64) -> Option<Pa> {
        if raw & Self::LINK_OR_PAGE != 0 { Some(Pa::new(Self::address(raw))) } else { None }
    }

    #[inline(always)]
    fn output(raw: u64, height: Height) -> Option<Pa> {
        let is_leaf = if height == Height::PAGE { raw & Self::LINK_OR_PAGE != 0 } else { raw & 0b11 == 0b01 };
        // Below a block's address there are attributes (nT), and with 64K, upper address bits.
        let offset = (1 << stage2::shift::<Self>(height)) - 1;
        if is_leaf { Some(Pa::new(Self::address(raw) & !offset)) } else { None }
    }

    #[inline(always)]
    fn with_output(raw: u64, height: Height, pa: Pa) -> u64 {
        let offset = (1 << stage2::shift::<Self>(height)) - 1;
        let upper = match G::UPPER {
            Upper::None => 0,
            Upper::Low => 0xf000,
            Upper::Ds => 0x300,
        };
        raw & !(Self::ADDRESS & !offset | upper) | Self::address_bits(pa)
    }

    #[inline(always)]
    fn next_output(raw: u64, height: Height) -> u64 {
        // Of the address bits that a sum can carry into, all stand in place below bit 48.
        let step = 1 << stage2::shift::<Self>(height);
        match G::UPPER {
            Upper::None => raw.wrapping_add(step),
            Upper::Low | Upper::Ds => {
                let next = |pa: Pa| pa.wrapping_add(step);
                Self::output(raw, height).map_or(raw, |pa| Self::with_output(raw, height, next(pa)))
            }
        }
    }

    #[inline(always)]
    fn is_pending(self, raw: u64, _: Height) -> bool {
        // The bit is the same in both kinds of descriptor.
        let pending = (LEAF::VALID::SET + LEAF::PENDING::SET).value;
        raw & pending == pending
    }

    #[inline(always)]
    fn gives(self, raw: u64, height: Height, access: Access) -> bool {
        let is_ours = raw & (LEAF::HELD::SET.value | LEAF::OWNER.val(0b11).value) == 0;
        let readable = raw & LEAF::READ::SET.value != 0;
        let writable = raw & (LEAF::WRITE::SET.value | LEAF::DBM::SET.value) != 0;
        let executable = raw & (LEAF::XN.mask << LEAF::XN.shift) == LEAF::XN::Executable.value;
        is_ours
            && (readable || !access.contains(Access::READ))
            && (writable || !access.contains(Access::WRITE))
            && (executable || !access.contains(Access::EXEC))
            && Self::output(raw, height).is_some()
    }

    #[inline(always)]
    fn settled(self, raw: u64, height: Height) -> u64 {
        if Self::output(raw, height).is_none() {
            return raw;
        }
        let dirty = if self.features.contains(Features::HARDWARE_DIRTY) && LEAF::DBM.is_set(raw) {
            LEAF::WRITE::SET.value
        } else {
            0
        };
        raw & !(LEAF::AF::SET.value | dirty)
    }
}
