//! The bits of an EPT entry (29.3.2 "EPT Translation Mechanism"), and of the words that are none: bits 2:0 clear, where
//! all other bits but 63 are software's.
//!
//! Not used, and kept clear: bit 10 (execution in user mode; only with mode-based execute control), bits 57, 58, 60 and
//! 61 (guest-paging verification, paging-write, supervisor shadow stack, sub-page writes; each only with its control),
//! and bit 63 (suppress #VE; only where violations become exceptions of the guest). Controls that give them a meaning
//! stay off; so hardware ignores them, or reads zero.

use tock_registers::register_bitfields;

register_bitfields! { u64,
    /// An entry that maps a page, a 2-MByte page or a 1-GByte page ("Format of an EPT Page-Table Entry that Maps a
    /// 4-KByte Page", and the same for an EPT PDE and an EPT PDPTE).
    pub(crate) LEAF [
        /// Reads are allowed.
        READ OFFSET(0) NUMBITS(1) [],
        /// Writes are allowed. Without READ: a misconfiguration (29.3.3.1).
        WRITE OFFSET(1) NUMBITS(1) [],
        /// Instruction fetches are allowed. Without READ: a misconfiguration, unless IA32_VMX_EPT_VPID_CAP[0] is set.
        EXEC OFFSET(2) NUMBITS(1) [],
        /// Memory type (29.3.7.2 "Memory Type Used for Translated Guest-Physical Addresses"); 2, 3 and 7 are
        /// misconfigurations.
        MEMTYPE OFFSET(3) NUMBITS(3) [
            Uncacheable = 0,
            WriteCombining = 1,
            WriteBack = 6
        ],
        /// 1: the type above is the type. 0: the guest's PAT has its say, as if the type above were an MTRR's.
        IGNORE_PAT OFFSET(6) NUMBITS(1) [],
        /// 1: this maps a page. Ignored in an EPT PTE, where we set it too: so it alone tells leaves from everything
        /// else that we store, at every height, present or veiled.
        LARGE OFFSET(7) NUMBITS(1) [],
        /// Accessed: hardware's, if EPTP[6] (29.3.5 "Accessed and Dirty Flags for EPT"); else ignored.
        ACCESSED OFFSET(8) NUMBITS(1) [],
        /// Dirty: as ACCESSED.
        DIRTY OFFSET(9) NUMBITS(1) [],
        /// Software's: somebody owns this entry and is changing it. Bits 56:52 are ignored in every present entry.
        HELD OFFSET(52) NUMBITS(1) [],
        /// Software's: the invalidation of the change that made this entry is still under way.
        PENDING OFFSET(53) NUMBITS(1) [],
        /// Software's: whose frame this is.
        OWNER OFFSET(54) NUMBITS(2) [],
        /// Of a veiled leaf only: the rights that it gives once it is young. Everything is ignored in an entry that is
        /// not present, these bits too.
        VEILED_RIGHTS OFFSET(56) NUMBITS(3) []
    ],

    /// An entry that references a table ("Format of an EPT PML4 Entry (PML4E) that References an EPT
    /// Page-Directory-Pointer Table", and the same for an EPT PML5E, PDPTE and PDE). Bits 7:3 are reserved.
    pub(crate) LINK [
        /// All rights: the leaf decides.
        RIGHTS OFFSET(0) NUMBITS(3) [ All = 0b111 ],
        /// Reserved, zero: bit 7 would make it a leaf.
        RESERVED OFFSET(3) NUMBITS(5) [],
        /// Accessed: hardware sets it in links too. Links are made with it, so that they do not change by themselves.
        ACCESSED OFFSET(8) NUMBITS(1) [],
        /// Software's: this is a link. One bit to test on the way down; ignored by hardware in every entry.
        LINK OFFSET(11) NUMBITS(1) [],
        /// Software's: as in a leaf.
        HELD OFFSET(52) NUMBITS(1) [],
        /// Software's: as in a leaf.
        PENDING OFFSET(53) NUMBITS(1) [],
        /// Software's: why there is a table here and not a block.
        WHY OFFSET(54) NUMBITS(3) []
    ],

    /// A word that is no entry: all zero is absent. Bits 7 and 11 are clear, as no leaf and no link has them.
    ///
    /// The address that such a word would have, bits 51:12, is at the very top of what there can be, whatever the
    /// payload: the data of a CPU that looks ahead through an entry that is not present is never that of a frame.
    pub(crate) VOID [
        /// 000: not present.
        RIGHTS OFFSET(0) NUMBITS(3) [],
        /// What it is instead.
        KIND OFFSET(3) NUMBITS(2) [
            Absent = 0,
            Frozen = 1,
            Note = 2,
            Dead = 3
        ],
        /// The low part of a note's payload, inverted.
        NOTE_LOW OFFSET(12) NUMBITS(21) [],
        /// The upper address bits, all ones.
        TOP OFFSET(33) NUMBITS(19) [],
        /// The rest of a note's payload, inverted.
        NOTE_HIGH OFFSET(52) NUMBITS(11) []
    ]
}
