//! What a guest's write to CR0 makes of its long mode.

/// IA32_EFER: long mode is wanted, and is active.
pub(super) const LME: u64 = 1 << 8;
pub(super) const LMA: u64 = 1 << 10;

/// How a guest translates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paging {
    pub(super) cr0: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    /// It is in 64-bit code.
    pub(super) is_wide: bool,
}

impl Paging {
    /// Returns IA32_EFER as it is after a write of `value` to CR0; `None` where the CPU refuses that (SDM 2B, "MOV — Move
    /// to/from Control Registers"; 3A, 11.8.5 "Initializing IA-32e Mode"), or where it would read page-directory pointers
    /// of a 32-bit guest, which this does not.
    pub(super) const fn with_cr0(self, value: u64) -> Option<u64> {
        const PE: u64 = 1;
        const NW: u64 = 1 << 29;
        const CD: u64 = 1 << 30;
        const PG: u64 = 1 << 31;
        const PAE: u64 = 1 << 5;
        const PCIDE: u64 = 1 << 17;
        if value >> 32 != 0 || value & PG != 0 && value & PE == 0 || value & NW != 0 && value & CD == 0 {
            return None;
        }
        let (was, is) = (self.cr0 & PG != 0, value & PG != 0);
        match (was, is) {
            (false, true) if self.efer & LME != 0 => {
                if self.cr4 & PAE == 0 || self.is_wide {
                    None
                } else {
                    Some(self.efer | LMA)
                }
            }
            (false, true) if self.cr4 & PAE != 0 => None,
            (true, false) => {
                if self.is_wide || self.cr4 & PCIDE != 0 {
                    None
                } else {
                    Some(self.efer & !LMA)
                }
            }
            _ => Some(self.efer),
        }
    }
}
