//! VTCR_EL2 and VTTBR_EL2 as data: from what the CPU has and the space needs, to register values and the shape of
//! the tree (DDI 0487, D24.2 for the registers, D8.2 for the rules that tie start level and address size).

use crate::{Granule, Upper, Vmsa};
use core::marker::PhantomData;
use stage2::Geometry;
use tock_registers::register_bitfields;
use types::{Height, Pa, Vmid};

register_bitfields! { u64,
    /// Virtualization translation control.
    pub(crate) VTCR [
        /// 64 minus the number of address bits.
        T0SZ OFFSET(0) NUMBITS(6) [],
        /// The start level, in a code that depends on the granule.
        SL0 OFFSET(6) NUMBITS(2) [],
        /// Inner cacheability of table walks.
        IRGN0 OFFSET(8) NUMBITS(2) [ WriteBack = 0b01 ],
        /// Outer cacheability of table walks.
        ORGN0 OFFSET(10) NUMBITS(2) [ WriteBack = 0b01 ],
        /// Shareability of table walks; with DS, of everything mapped.
        SH0 OFFSET(12) NUMBITS(2) [ Inner = 0b11 ],
        /// Granule.
        TG0 OFFSET(14) NUMBITS(2) [],
        /// Output address size, coded as ID_AA64MMFR0_EL1.PARange.
        PS OFFSET(16) NUMBITS(3) [],
        /// VMIDs have 16 bits.
        VS OFFSET(19) NUMBITS(1) [],
        /// Hardware sets the access flag.
        HA OFFSET(21) NUMBITS(1) [],
        /// Hardware keeps the dirty state; needs HA.
        HD OFFSET(22) NUMBITS(1) [],
        /// Reserved, one.
        RES1 OFFSET(31) NUMBITS(1) [],
        /// 52-bit addresses with 4K and 16K granules.
        DS OFFSET(32) NUMBITS(1) [],
        /// With DS and 4K: the upper bit of the start level's code.
        SL2 OFFSET(33) NUMBITS(1) []
    ],

    /// Virtualization translation table base.
    VTTBR [
        /// Entries may be shared between CPUs.
        CNP OFFSET(0) NUMBITS(1) [],
        /// The root's address, bits 47:1. With 52-bit addresses, bits 51:48 stand in bits 5:2.
        BADDR OFFSET(1) NUMBITS(47) [],
        /// The space's tag.
        VMID OFFSET(48) NUMBITS(16) []
    ]
}

bitflags::bitflags! {
    /// What VTCR_EL2 switches on.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Controls: u8 {
        /// Hardware sets the access flag (ID_AA64MMFR1_EL1.HAFDBS ≥ 1).
        const HARDWARE_YOUNG = 1;
        /// Hardware keeps the dirty state (ID_AA64MMFR1_EL1.HAFDBS ≥ 2). Includes the access flag.
        const HARDWARE_DIRTY = 1 << 1;
        /// VMIDs have 16 bits (ID_AA64MMFR1_EL1.VMIDBits = 2).
        const VMID16 = 1 << 2;
    }
}

/// Why there is no layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadLayout {
    /// The PARange field holds a code that is not defined.
    UnknownPaRange,
    /// The space's addresses have more bits than the CPU's physical ones, or than the granule can walk.
    TooWide,
    /// The space's addresses have too few bits for the lowest start level that leaves a block size.
    TooNarrow,
}

/// How a space is translated: the value of VTCR_EL2, and the shape of the tree that goes with it.
#[derive(Clone, Copy, Debug)]
pub struct Layout<G> {
    vtcr: u64,
    geometry: Geometry<Vmsa<G>>,
    granule: PhantomData<G>,
}

/// Returns the number of physical address bits that a PARange code stands for (ID_AA64MMFR0_EL1.PARange).
pub const fn pa_bits(pa_range: u8) -> Option<u32> {
    match pa_range {
        0 => Some(32),
        1 => Some(36),
        2 => Some(40),
        3 => Some(42),
        4 => Some(44),
        5 => Some(48),
        6 => Some(52),
        7 => Some(56),
        _ => None,
    }
}

impl<G: Granule> Layout<G> {
    /// Chooses the layout for addresses of `ipa_bits` bits on a machine whose weakest CPU has PARange code `pa_range`.
    ///
    /// The walk is the shortest that the address size allows, with up to 16 tables side by side at the root
    /// (D8.2.11): also the only choice where the CPU's physical addresses are too small for a higher start level.
    /// `low` is the least height that the root may have: height 1 keeps blocks of one size possible, height 2 of two
    /// sizes, where the address size reaches that far.
    ///
    /// # Errors
    /// [`BadLayout`], before anything depends on it.
    pub fn choose(ipa_bits: u32, low: Height, pa_range: u8, controls: Controls) -> Result<Self, BadLayout> {
        let widest = if matches!(G::UPPER, Upper::None) { 48 } else { 52 };
        let pa_bits = pa_bits(pa_range).ok_or(BadLayout::UnknownPaRange)?;
        if ipa_bits > pa_bits.min(widest) {
            return Err(BadLayout::TooWide);
        }
        let index_bits = G::SHIFT - 3;
        // The root takes up to four bits more than a table: levels for the rest, at least two of them (or as `low`
        // has it), and no root of a single entry.
        let mut top = ipa_bits.saturating_sub(G::SHIFT + 4).div_ceil(index_bits).saturating_sub(1) as u8;
        while top < low.get().max(1) && ipa_bits > G::SHIFT + index_bits * (u32::from(top) + 1) {
            top += 1;
        }
        if top == 0 {
            return Err(BadLayout::TooNarrow);
        }
        if top > G::MAX_TOP {
            return Err(BadLayout::TooWide);
        }
        let geometry = Geometry::new(Height::new(top), ipa_bits).map_err(|_| BadLayout::TooNarrow)?;
        Ok(Self {
            vtcr: Self::vtcr_for(&geometry, pa_range.min(Self::MAX_PS), controls),
            geometry,
            granule: PhantomData,
        })
    }

    /// The greatest output size that the descriptors have room for.
    const MAX_PS: u8 = if matches!(G::UPPER, Upper::None) { 5 } else { 6 };

    fn vtcr_for(geometry: &Geometry<Vmsa<G>>, ps: u8, controls: Controls) -> u64 {
        let (sl0, sl2) = Self::start_level(geometry.top());
        let dirty = controls.contains(Controls::HARDWARE_DIRTY);
        let young = dirty || controls.contains(Controls::HARDWARE_YOUNG);
        (VTCR::T0SZ.val(u64::from(64 - geometry.ipa_bits()))
            + VTCR::SL0.val(sl0)
            + VTCR::SL2.val(sl2)
            + VTCR::IRGN0::WriteBack
            + VTCR::ORGN0::WriteBack
            + VTCR::SH0::Inner
            + VTCR::TG0.val(G::TG0)
            + VTCR::PS.val(u64::from(ps))
            + VTCR::VS.val(u64::from(controls.contains(Controls::VMID16)))
            + VTCR::HA.val(u64::from(young))
            + VTCR::HD.val(u64::from(dirty))
            + VTCR::DS.val(u64::from(matches!(G::UPPER, Upper::Ds)))
            + VTCR::RES1::SET)
            .value
    }

    /// Returns SL0 and SL2 for a root of entries of height `top` (DDI 0487, VTCR_EL2.SL0, SL2).
    /// 4K counts its codes from level 2, the others from level 3; level −1 is SL2 with SL0 = 0.
    fn start_level(top: Height) -> (u64, u64) {
        let top = u64::from(top.get());
        match (G::SHIFT, top) {
            (12, 4) => (0b00, 1),
            (12, _) => (top - 1, 0),
            _ => (top, 0),
        }
    }

    /// Returns the value for VTCR_EL2.
    pub const fn vtcr(&self) -> u64 {
        self.vtcr
    }

    /// Returns the shape of the tree.
    pub const fn geometry(&self) -> Geometry<Vmsa<G>> {
        self.geometry
    }

    /// Returns the value for VTTBR_EL2: root and tag in one, since writing one after the other would walk one
    /// space's tables under another's tag. CnP is clear: CPUs may be given different roots for a tag over time.
    pub fn vttbr(&self, root: Pa, vmid: Vmid) -> u64 {
        let low = root.get() & ((1 << 48) - 1);
        let high = root.get() >> 48 & 0xf;
        (VTTBR::VMID.val(u64::from(vmid.0)) + VTTBR::BADDR.val(low >> 1 | high << 1)).value
    }
}
