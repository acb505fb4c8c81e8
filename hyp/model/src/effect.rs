//! [`Effect`]: something that was done, in order: entry writes, barriers, invalidations, kicks, tables and frames that
//! come and go. A fake that records does not ignore: whatever can make a list of effects wrong is in the list.
//!
//! Written by [`Machine`](crate::Machine), by the adversary, and by tests; read by the [judge](crate::judge).

use stage2::{TableSize, Work};
use types::{CpuId, Height, Pa, Range, Vmid};

/// Something that was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A table was taken.
    Take {
        /// Where.
        table: Pa,
        /// How large.
        size: TableSize,
    },
    /// A table was given back.
    GiveBack {
        /// Where.
        table: Pa,
    },
    /// An entry was written.
    Write {
        /// By whom.
        cpu: CpuId,
        /// The table.
        table: Pa,
        /// The index in it.
        index: usize,
        /// What it was.
        old: u64,
        /// What it is.
        new: u64,
    },
    /// What follows up to [`Effect::Complete`] is for this work. A note for the reader: nothing is judged by it.
    Begin {
        /// What is invalidated.
        work: Work,
        /// Which invalidation.
        id: usize,
    },
    /// The instructions of an invalidation are done. A note for the reader.
    Complete {
        /// Which invalidation.
        id: usize,
    },
    /// A data synchronisation barrier.
    Dsb {
        /// On which CPU.
        cpu: CpuId,
        /// For whom, and for what.
        reach: Reach,
    },
    /// An instruction synchronisation barrier.
    Isb {
        /// On which CPU.
        cpu: CpuId,
    },
    /// An AArch64 TLB invalidation.
    Tlbi {
        /// On which CPU.
        cpu: CpuId,
        /// What it says.
        tlbi: Tlbi,
    },
    /// An x86 invalidation of what this CPU holds of the space, or of every space.
    Invept {
        /// On which CPU.
        cpu: CpuId,
    },
    /// A CPU was asked to leave its guest.
    Kick {
        /// By whom.
        from: CpuId,
        /// Which.
        to: CpuId,
    },
    /// A CPU entered a guest of the space.
    Entered {
        /// Which.
        cpu: CpuId,
    },
    /// A CPU left a guest of the space, and said so.
    Left {
        /// Which.
        cpu: CpuId,
    },
    /// A CPU's TLB maintenance is for another tag from now on.
    VmidSwitch {
        /// Which.
        cpu: CpuId,
        /// The tag.
        vmid: Vmid,
    },
    /// A grace period was started.
    Grace {
        /// Which grace period.
        id: usize,
    },
    /// A grace period is over.
    GraceOver {
        /// Which grace period.
        id: usize,
    },
    /// A lost leaf or note came out.
    Handed {
        /// The addresses that it was for.
        range: Range,
    },
    /// Guests' memory was cleaned and invalidated to the point of coherency.
    Dc {
        /// Where.
        pa: Pa,
        /// How many bytes.
        bytes: u64,
    },
    /// A step of an operation ended: nothing may be frozen or owed.
    StepEnd,
    /// A CPU's step ended, while others may be in the middle of theirs: nothing of its own may be frozen or owed.
    Rests {
        /// Which.
        cpu: CpuId,
    },
    /// What a CPU has unlinked so far may be freed when an epoch has passed, which is a grace period of this number.
    Deferred {
        /// Which CPU.
        cpu: CpuId,
        /// Which grace period.
        id: usize,
    },
    /// What a CPU has unlinked so far needs no grace period: nobody else has ever looked at the tree. It is believed.
    Unread {
        /// Which CPU.
        cpu: CpuId,
    },
    /// Frames are free to be used anew.
    Freed {
        /// The first one's address.
        pa: Pa,
        /// How many bytes.
        bytes: u64,
    },
}

/// For whom a DSB waits, and for what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    /// This CPU: all accesses and maintenance.
    Nsh,
    /// The inner shareable domain: stores only, and no maintenance.
    Ishst,
    /// The inner shareable domain: all accesses and maintenance.
    Ish,
    /// The whole system.
    Sy,
}

/// A TLB invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tlbi {
    /// Which instruction.
    pub op: Op,
    /// The tag that it acts on.
    pub vmid: Vmid,
    /// The addresses; `None` for the instructions that take none.
    pub range: Option<Range>,
    /// The level hint, as a height.
    pub hint: Option<Height>,
}

/// TLB maintenance instructions (DDI 0487, C5.5), those on ranges with those on addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Stage-2 entries by address, on this CPU.
    Ipas2e1,
    /// Stage-2 entries by address or range, everywhere.
    Ipas2e1is,
    /// The last level only, on this CPU.
    Ipas2le1,
    /// The last level only, everywhere.
    Ipas2le1is,
    /// What is tagged by a guest's virtual address, combined entries with it, on this CPU.
    Vmalle1,
    /// The same, everywhere.
    Vmalle1is,
    /// Both stages, on this CPU.
    Vmalls12e1,
    /// Both stages, everywhere.
    Vmalls12e1is,
    /// Both stages of every tag, on this CPU.
    Alle1,
    /// Both stages of every tag, everywhere.
    Alle1is,
    /// The hypervisor's own addresses: nothing of any guest.
    Vae2is,
    /// The hypervisor's own addresses: nothing of any guest.
    Alle2is,
}

impl Op {
    /// Tells whether other CPUs take part.
    pub const fn is_broadcast(self) -> bool {
        !matches!(self, Self::Ipas2e1 | Self::Ipas2le1 | Self::Vmalle1 | Self::Vmalls12e1 | Self::Alle1)
    }

    /// Tells whether stage-2 entries go.
    pub const fn takes_stage2(self) -> bool {
        self.takes_everything()
            || matches!(self, Self::Ipas2e1 | Self::Ipas2e1is | Self::Ipas2le1 | Self::Ipas2le1is)
    }

    /// Tells whether entries that combine both stages go.
    pub const fn takes_combined(self) -> bool {
        self.takes_everything() || matches!(self, Self::Vmalle1 | Self::Vmalle1is)
    }

    /// Tells whether everything under the tag goes.
    pub const fn takes_everything(self) -> bool {
        matches!(self, Self::Vmalls12e1 | Self::Vmalls12e1is | Self::Alle1 | Self::Alle1is)
    }

    /// Tells whether what walk caches hold stays.
    pub const fn is_last_level(self) -> bool {
        matches!(self, Self::Ipas2le1 | Self::Ipas2le1is)
    }

    /// Tells whether every tag is meant.
    pub const fn is_for_every_tag(self) -> bool {
        matches!(self, Self::Alle1 | Self::Alle1is)
    }
}
