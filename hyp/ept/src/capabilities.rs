//! [`Capabilities`]: what a CPU's EPT can do, as it says itself.

bitflags::bitflags! {
    /// What of IA32_VMX_EPT_VPID_CAP (MSR 0x48c, SDM 3D, A.10 "VPID and EPT Capabilities") tables depend on, each flag
    /// at its own bit. What all CPUs of a machine have is the intersection.
    ///
    /// Taking a flag away makes a [`Layout`](crate::Layout) without it: `capabilities - Capabilities::ACCESSED_DIRTY`.
    /// A CPU on which a guest can change the size of a page under instruction fetches and so stop the machine
    /// (IA32_ARCH_CAPABILITIES.IF_PSCHANGE_MC_NO clear) must not have executable blocks: take `LEAF_2M` away.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Capabilities: u64 {
        /// An entry may allow fetches and nothing else.
        const EXECUTE_ONLY = 1;
        /// Walks of four tables: addresses of up to 48 bits.
        const WALK_4 = 1 << 6;
        /// Walks of five tables: addresses of up to 57 bits.
        const WALK_5 = 1 << 7;
        /// Tables may be write-back memory.
        const WRITE_BACK = 1 << 14;
        /// An EPT PDE may map a 2-MByte page.
        const LEAF_2M = 1 << 16;
        /// An EPT PDPTE may map a 1-GByte page.
        const LEAF_1G = 1 << 17;
        /// There is INVEPT.
        const INVEPT = 1 << 20;
        /// There are accessed and dirty flags, and EPTP[6] switches them on.
        const ACCESSED_DIRTY = 1 << 21;
        /// INVEPT can invalidate a single context.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT can invalidate all contexts.
        const INVEPT_ALL = 1 << 26;
    }
}

impl Capabilities {
    /// Reads the capabilities out of the value of IA32_VMX_EPT_VPID_CAP.
    pub const fn from_msr(raw: u64) -> Self {
        Self::from_bits_truncate(raw)
    }
}
