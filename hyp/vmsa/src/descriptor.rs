//! The bits of a stage-2 descriptor (DDI 0487, D8.3 "Translation table descriptor formats"), and of the words that
//! are none: bit 0 clear, where the other bits are software's.

use tock_registers::register_bitfields;

register_bitfields! { u64,
    /// A block or page descriptor of stage 2 (D8.3.2).
    pub(crate) LEAF [
        /// 1: valid. Clear, the hardware ignores all other bits.
        VALID OFFSET(0) NUMBITS(1) [],
        /// 1: a page, at level 3. 0: a block, above.
        PAGE OFFSET(1) NUMBITS(1) [],
        /// Memory attributes; what they mean depends on HCR_EL2.FWB (D8.6.6, and D8.6.7 "Stage 2 memory type and
        /// Cacheability attributes when FEAT_S2FWB is enabled").
        MEMATTR OFFSET(2) NUMBITS(4) [
            /// Device-nGnRE, with FWB and without.
            DeviceNgnre = 0b0001,
            /// Normal non-cacheable: without FWB outer and inner, stage 1 may be stricter; with FWB whatever stage 1
            /// says.
            Uncached = 0b0101,
            /// With FWB: Normal write-back, whatever stage 1 says.
            ForcedCached = 0b0110,
            /// Without FWB: Normal, outer and inner write-back cacheable; stage 1 may be stricter.
            Cached = 0b1111
        ],
        /// S2AP[0]: reads are allowed (D8.4.2 "Stage 2 data accesses permissions").
        READ OFFSET(6) NUMBITS(1) [],
        /// S2AP[1]: writes are allowed. With DBM set and VTCR_EL2.HD, clear means writable-clean, and hardware sets
        /// it at the first write (D8.5.2 "Hardware management of the dirty state").
        WRITE OFFSET(7) NUMBITS(1) [],
        /// Shareability. With VTCR_EL2.DS these are address bits, and VTCR_EL2.SH0 decides.
        SH OFFSET(8) NUMBITS(2) [
            Non = 0b00,
            Outer = 0b10,
            Inner = 0b11
        ],
        /// Access flag. Clear, the first access faults, or with VTCR_EL2.HA hardware sets it (D8.5.1).
        AF OFFSET(10) NUMBITS(1) [],
        /// nT: not to be cached so that a change of size needs no break (FEAT_BBM level 1, blocks only, D8.17.2).
        NT OFFSET(16) NUMBITS(1) [],
        /// Dirty bit modifier: hardware may set WRITE (FEAT_HAFDBS; reserved and zero without it).
        DBM OFFSET(51) NUMBITS(1) [],
        /// Execute-never. 00: executable. 10: not, at EL1 and EL0. The other two are FEAT_XNX's and tell EL1 from EL0;
        /// without it bit 53 is zero. We use the two that mean the same either way (D8.4.3).
        XN OFFSET(53) NUMBITS(2) [
            Executable = 0b00,
            Never = 0b10
        ],
        /// Software's: somebody owns this entry and is changing it. Bits 58:55 are reserved for software (D8.3.2).
        HELD OFFSET(55) NUMBITS(1) [],
        /// Software's: the invalidation of the change that made this entry is still under way.
        PENDING OFFSET(56) NUMBITS(1) [],
        /// Software's: whose frame this is.
        OWNER OFFSET(57) NUMBITS(2) []
    ],

    /// A table descriptor of stage 2 (D8.3.1). Bits 58:51 and 7:2 are ignored by hardware in every layout; stage 2
    /// has no hierarchical attributes.
    pub(crate) TABLE [
        /// 11: a valid table descriptor, above level 3.
        KIND OFFSET(0) NUMBITS(2) [
            Table = 0b11
        ],
        /// Software's: why there is a table here and not a block.
        WHY OFFSET(2) NUMBITS(3) [],
        /// Software's: as in a leaf.
        HELD OFFSET(55) NUMBITS(1) [],
        /// Software's: as in a leaf.
        PENDING OFFSET(56) NUMBITS(1) []
    ],

    /// A word that is no descriptor: all zero is absent. Bit 1 is clear too, so that it alone tells links and pages
    /// from everything else that we store: one test instead of two on the way down.
    pub(crate) VOID [
        /// 00: invalid.
        VALID OFFSET(0) NUMBITS(2) [],
        /// What it is instead.
        KIND OFFSET(2) NUMBITS(2) [
            Absent = 0b00,
            Frozen = 0b01,
            Note = 0b10,
            Dead = 0b11
        ],
        /// A note's payload, inverted, so that small payloads name no memory.
        NOTE OFFSET(32) NUMBITS(32) []
    ]
}
