//! What an entry can be, whatever the format that stores it.
//!
//! | state | hardware | software readers | writers |
//! | --- | --- | --- | --- |
//! | `Absent` | faults; **clean**: no TLB holds anything for it | hole | may claim it |
//! | `Leaf`, `Table` | translates | act on it | may change it by compare-exchange |
//! | `Note` | faults; clean | hole with data | may freeze it, or split it |
//! | `Frozen` | faults; TLBs may still hold what it was | hole, not to be relied on | its owner only |
//! | `Held` | translates, may set accessed and dirty flags | act on it | its owner only |
//! | `Dead` | unreachable | this table is unlinked: go to the root | nobody, ever |
//!
//! Neighbours: a [`Format`](crate::Format) turns these into bits and back; nobody else sees bits.

use types::{Access, Pa};

/// A decoded entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Entry {
    /// Nothing, and no TLB holds anything for it. The all-zero word in every format, so that a zeroed page is an
    /// empty table.
    Absent,
    /// A page or a block.
    Leaf(Leaf),
    /// A link to the table one height below.
    Table(Table),
    /// Nothing for the hardware; data of the space for software.
    Note(Note),
    /// Invalid to the hardware; somebody owns it and is changing it. Never taken for `Absent`.
    Frozen,
    /// Valid to the hardware and to readers; somebody owns it and is changing it.
    Held(Live),
    /// The table that holds this entry has been unlinked. Terminal.
    Dead,
}

/// The value of an entry that the hardware can use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Live {
    /// A page or a block.
    Leaf(Leaf),
    /// A link to a table.
    Table(Table),
}

impl From<Live> for Entry {
    fn from(live: Live) -> Self {
        match live {
            Live::Leaf(leaf) => Self::Leaf(leaf),
            Live::Table(table) => Self::Table(table),
        }
    }
}

impl Entry {
    /// Returns what the hardware can use of this entry, whether somebody owns it or not.
    pub const fn live(self) -> Option<Live> {
        match self {
            Self::Leaf(leaf) => Some(Live::Leaf(leaf)),
            Self::Table(table) => Some(Live::Table(table)),
            Self::Held(live) => Some(live),
            Self::Absent | Self::Note(_) | Self::Frozen | Self::Dead => None,
        }
    }

    /// Tells whether somebody else owns this entry, so that no one but the owner may change it.
    pub const fn is_owned(self) -> bool {
        matches!(self, Self::Frozen | Self::Held(_))
    }
}

/// A mapping of one page or block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leaf {
    /// The first output address; a multiple of the size that the entry's height maps.
    pub pa: Pa,
    /// What may be done there, and how.
    pub attrs: Attrs,
}

/// A link to a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Table {
    /// The table's address; a multiple of the granule.
    pub pa: Pa,
    /// Whether the invalidation of the change that made this link is still under way: then TLBs may hold the block
    /// that was here, and nothing on or below this entry may be invalidated with a level hint.
    pub pending: bool,
    /// Why there is a table here and not a block.
    pub why: Why,
}

/// Why a mapping is made of smaller entries than its size would allow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Why {
    /// Nobody asked for more: mapped piece by piece, or its addresses do not fit a block.
    #[default]
    Alignment = 0,
    /// Split so that writes are logged page by page.
    DirtyLog = 1,
    /// Split or kept small for a pin.
    Pin = 2,
    /// Parts belong to different owners.
    Owner = 3,
    /// Parts have different rights or types.
    Attributes = 4,
    /// No frame of block size was to be had.
    NoMemory = 5,
    /// A part was unmapped.
    Unmapped = 6,
}

impl Why {
    /// Returns the reason with number `n`; [`Why::Alignment`] for numbers that are none.
    pub const fn from_number(n: u8) -> Self {
        match n {
            1 => Self::DirtyLog,
            2 => Self::Pin,
            3 => Self::Owner,
            4 => Self::Attributes,
            5 => Self::NoMemory,
            6 => Self::Unmapped,
            _ => Self::Alignment,
        }
    }
}

/// Data of the space in an entry that maps nothing: a device's index, ballooned out, an owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Note(u64);

impl Note {
    /// The number of payload bits that every format can store.
    pub const BITS: u32 = 32;

    /// Makes a note.
    pub const fn new(payload: u32) -> Self {
        Self(payload as u64)
    }

    /// Returns the payload.
    pub const fn payload(self) -> u32 {
        self.0 as u32
    }
}

/// What may be done through a leaf, and how.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attrs {
    /// The rights that the leaf gives. `WRITE` also where the hardware has yet to set its dirty flag.
    pub access: Access,
    /// The memory type that stage 2 imposes.
    pub memory: Memory,
    /// Who sees writes in order. Formats without this notion always say [`Share::Inner`].
    pub share: Share,
    /// Flags: accessed, dirty, pending, no-TLB.
    pub marks: Marks,
    /// Whether the frame is the space's own.
    pub owner: Owner,
}

impl Attrs {
    /// Ordinary guest memory: all rights, write-back cacheable, inner shareable; young, and dirty, so that no
    /// hardware flag update is owed to it.
    pub const RAM: Self = Self {
        access: Access::RWX,
        memory: Memory::Cached,
        share: Share::Inner,
        marks: Marks::YOUNG.union(Marks::DIRTY),
        owner: Owner::Space,
    };

    /// A passed-through device: reads and writes, device memory; young and dirty.
    pub const DEVICE: Self = Self { access: Access::RW, memory: Memory::Device, ..Self::RAM };

    /// Returns these attributes with other rights.
    pub const fn with_access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// Returns these attributes with the marks in `marks` set too.
    pub const fn with(self, marks: Marks) -> Self {
        Self { marks: self.marks.union(marks), ..self }
    }

    /// Returns these attributes without the marks in `marks`.
    pub const fn without(self, marks: Marks) -> Self {
        Self { marks: self.marks.difference(marks), ..self }
    }
}

/// The memory type that stage 2 imposes on a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Memory {
    /// Normal, write-back cacheable.
    Cached,
    /// Normal, not cacheable.
    Uncached,
    /// Device; on AArch64 nGnRE: no gathering, no reordering, early write acknowledgement. On x86 uncacheable.
    Device,
}

/// The shareability of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Share {
    /// This CPU only.
    Non,
    /// All CPUs of the machine: what guest memory has.
    Inner,
    /// Further observers too.
    Outer,
}

bitflags::bitflags! {
    /// Flags of a leaf.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Marks: u8 {
        /// Accessed. Set by hardware where it can; without it, the first access faults.
        const YOUNG = 1;
        /// Written. Set by hardware where it can; where it cannot, a leaf that gives `WRITE` always counts as dirty.
        const DIRTY = 1 << 1;
        /// The invalidation of the structural change that made this leaf is still under way: no level hint on it.
        const PENDING = 1 << 2;
        /// Not to be cached in TLBs while its size is changed (FEAT_BBM level 1, "nT"). Blocks only.
        const NO_TLB = 1 << 3;
    }
}

/// Whose frame a leaf maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Owner {
    /// The space's own.
    #[default]
    Space = 0,
    /// The space's own, and lent to another.
    Lent = 1,
    /// Borrowed from another space: it counts as a reference to the frame, and goes when the loan ends.
    Borrowed = 2,
    /// Nobody's to count: a device, or memory at a place that the machine's configuration gives.
    Fixed = 3,
}

impl Owner {
    /// Returns the state with number `n`; [`Owner::Fixed`], which promises nothing, for numbers that are none.
    pub const fn from_number(n: u8) -> Self {
        match n {
            0 => Self::Space,
            1 => Self::Lent,
            2 => Self::Borrowed,
            _ => Self::Fixed,
        }
    }

    /// Tells whether a leaf of this state is backed by what `region`, which says the same of a whole region, is made of. What
    /// is lent is the space's own still, with all rights of its region.
    pub fn is_backed_as(self, region: Self) -> bool {
        self == region || self == Self::Lent && region == Self::Space
    }
}
