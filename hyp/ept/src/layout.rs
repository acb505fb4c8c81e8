//! [`Layout`]: from what the CPUs have and the space needs, to the EPT pointer, the format and the shape of the tree
//! (SDM 3C, 25.6.11 "Extended-Page-Table Pointer (EPTP)").

use crate::{Capabilities, Ept, Features};
use stage2::{Format, Geometry, shift};
use tock_registers::register_bitfields;
use types::{Height, Pa};

register_bitfields! { u64,
    /// The EPT pointer. Bits 11:8 are reserved; bit 7 asks for supervisor shadow stacks.
    EPTP [
        /// The memory type of the tables.
        MEMTYPE OFFSET(0) NUMBITS(3) [
            WriteBack = 6
        ],
        /// The number of tables in a walk, minus one.
        WALK OFFSET(3) NUMBITS(3) [],
        /// Hardware keeps accessed and dirty flags.
        ACCESSED_DIRTY OFFSET(6) NUMBITS(1) [],
        /// The root's address, bits 51:12. TLBs know the space by it: no other tag.
        ROOT OFFSET(12) NUMBITS(40) []
    ]
}

/// Why there is no layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadLayout {
    /// The space's addresses have more bits than guest-physical addresses can have, or none.
    WrongWidth,
    /// A CPU lacks all of this. Where any of two or more would do, the least is named: [`Capabilities::WALK_4`] of the
    /// walks that are long enough, [`Capabilities::INVEPT_ALL`] of the kinds of invalidation.
    Missing(Capabilities),
}

/// The kind of INVEPT that invalidates one space, with its number (SDM 3C, INVEPT "Invalidate Translations Derived from
/// EPT").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Invept {
    /// What was derived from one EPT pointer.
    Single = 1,
    /// Everything.
    All = 2,
}

/// How a space is translated: the EPT pointer without its root, the format, and the shape of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    eptp: u64,
    format: Ept,
    geometry: Geometry<Ept>,
    invept: Invept,
}

/// Guest-physical addresses have no more bits than the widest physical ones.
const WIDEST: u32 = 52;

impl Layout {
    /// Chooses the layout for addresses of `ipa_bits` bits on CPUs that all have `capabilities`.
    ///
    /// The walk is the shorter one that reaches so far. It has a fixed length, and roots are never concatenated: so the
    /// tree reaches further than asked where two entries of the root do, 40 bits at least.
    ///
    /// # Errors
    /// [`BadLayout`], before anything depends on it.
    pub fn choose(ipa_bits: u32, capabilities: Capabilities) -> Result<Self, BadLayout> {
        if ipa_bits == 0 || ipa_bits > WIDEST {
            return Err(BadLayout::WrongWidth);
        }
        let walks = [(Capabilities::WALK_4, 4), (Capabilities::WALK_5, 5)];
        let reaching = walks.map(|(walk, tables)| (walk, tables, reach_bits(tables) >= ipa_bits));
        let walk = reaching.into_iter().find(|&(walk, _, reaches)| reaches && capabilities.contains(walk));
        let kinds = Capabilities::INVEPT_SINGLE | Capabilities::INVEPT_ALL;

        let mut missing = (Capabilities::WRITE_BACK | Capabilities::INVEPT) - capabilities;
        if walk.is_none() {
            missing |= if reach_bits(4) >= ipa_bits { Capabilities::WALK_4 } else { Capabilities::WALK_5 };
        }
        if !capabilities.intersects(kinds) {
            missing |= Capabilities::INVEPT_ALL;
        }
        let (Some((_, tables, _)), true) = (walk, missing.is_empty()) else {
            return Err(BadLayout::Missing(missing));
        };
        let top = Height::new(tables - 1);
        let geometry = Geometry::new(top, ipa_bits.max(shift::<Ept>(top) + 1));
        let geometry = geometry.map_err(|_| BadLayout::WrongWidth)?;
        let format = Ept::new(features(capabilities));
        let flags = format.features().contains(Features::ACCESSED_DIRTY);
        let eptp = EPTP::MEMTYPE::WriteBack
            + EPTP::WALK.val(u64::from(tables - 1))
            + EPTP::ACCESSED_DIRTY.val(u64::from(flags));
        let single = capabilities.contains(Capabilities::INVEPT_SINGLE);
        let invept = if single { Invept::Single } else { Invept::All };
        Ok(Self { eptp: eptp.value, format, geometry, invept })
    }

    /// Returns the format of the entries.
    pub const fn format(&self) -> Ept {
        self.format
    }

    /// Returns the shape of the tree.
    pub const fn geometry(&self) -> Geometry<Ept> {
        self.geometry
    }

    /// Returns the kind of INVEPT to use.
    pub const fn invept(&self) -> Invept {
        self.invept
    }

    /// Returns the EPT pointer for the tree with this root: what the VMCS and the INVEPT descriptor hold.
    pub fn eptp(&self, root: Pa) -> u64 {
        self.eptp | EPTP::ROOT.val(root.get() >> 12).value
    }
}

/// Returns the number of address bits that a walk of so many tables translates.
const fn reach_bits(tables: u8) -> u32 {
    Ept::GRANULE_SHIFT + tables as u32 * Ept::INDEX_BITS
}

fn features(capabilities: Capabilities) -> Features {
    let pairs = [
        (Capabilities::ACCESSED_DIRTY, Features::ACCESSED_DIRTY),
        (Capabilities::EXECUTE_ONLY, Features::EXECUTE_ONLY),
        (Capabilities::LEAF_2M, Features::LEAF_2M),
        (Capabilities::LEAF_1G, Features::LEAF_1G),
    ];
    pairs.into_iter().filter(|(has, _)| capabilities.contains(*has)).map(|(_, feature)| feature).collect()
}
