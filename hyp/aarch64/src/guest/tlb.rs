//! Stage-2 TLB maintenance: [`stage2::Invalidate`] in both styles (DDI 0487, D8.17).
//!
//! | style | other CPUs forget |
//! | --- | --- |
//! | [`Style::Broadcast`] | by an instruction of this CPU that reaches them all |
//! | [`Style::Interrupt`] | by one of their own, before they enter the guest again ([`stage2::Presence`]) |
//!
//! An invalidation by intermediate physical address removes stage-2 entries only; what a TLB holds of stages 1 and 2
//! combined is tagged by the guest's virtual address, which nobody here knows. So each is followed by an invalidation of
//! the VMID's stage-1 entries, with a barrier between: a walk between the two could otherwise combine a new stage-1
//! result with the stage-2 entry that is about to go.
//!
//! In both styles nobody else is troubled where no other CPU has ever entered the space, unless an IOMMU listens to
//! broadcasts.
//!
//! Two errata of CPUs change the sequence ([`Means::repeat`], [`Means::hold_walks`]).
//!
//! Neighbours: `stage2` says what is owed, and who is in a guest; the tag (VTTBR_EL2) comes from the space, read after the
//! barrier that follows the entry writes.

mod broadcast;

use super::tlbi::{
    alle1, alle1is, ipas2e1, read_vttbr, vale2is, vmalle1, vmalle1is, vmalls12e1, write_vttbr,
};
use super::walks;
use crate::barrier::{dsb_ish, dsb_ishst, dsb_nsh, isb};
#[cfg(doc)]
use crate::errata::Action;
use crate::sysreg::{CNTPCT_EL0, Readable};
use broadcast::MOST_BY_ADDRESS;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stage2::{Class, Interrupt, Invalidate, Presence, Request, Scope, Work};
use types::sync::{keeps, mutant};
use types::{Cpu, CpuId, Range};

/// How other CPUs are made to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Style {
    /// By instructions that act on every CPU.
    #[default]
    Broadcast,
    /// By having those leave that are in the guest. For comparison: it is the only way of machines that cannot broadcast.
    Interrupt,
}

/// What TLB maintenance instructions a CPU has, beyond those of Armv8.0. The least of all CPUs counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(align(8))] // it is copied at every exit: in one register
pub struct Means {
    /// Whether an operand may carry a level hint (FEAT_TTL).
    pub level_hint: Has,
    /// Whether there are instructions on ranges (FEAT_TLBIRANGE).
    pub ranges: Has,
    /// Whether addresses have 52 bits in 4 or 16 KiB granules (FEAT_LPA2 in use, VTCR_EL2.DS = 1). Not a means of the CPU:
    /// an operand by range then counts its base in units of 64 KiB, and a range begins at a multiple of that (DDI 0487,
    /// C5.5, "TLBI RIPAS2E1IS", BaseADDR).
    pub wide_addresses: Has,
    /// Whether a broadcast invalidation is complete only after another one and its barrier ([`Action::REPEAT_TLBI`]).
    pub repeat: Has,
    /// Whether stage-1 walks must be held off while another guest's tables are loaded ([`Action::HOLD_WALKS`]).
    pub hold_walks: Has,
}

/// Whether a CPU has something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Has {
    /// It has not.
    #[default]
    No,
    /// It has.
    Yes,
}

/// How many TLB maintenance operations of each kind were issued.
#[derive(Debug, Default)]
pub struct Issued {
    /// By address, broadcast.
    pub by_address: AtomicU64,
    /// By range, broadcast.
    pub by_range: AtomicU64,
    /// Of a whole VMID, broadcast.
    pub whole: AtomicU64,
    /// By address, on this CPU only.
    pub local: AtomicU64,
    /// Barriers without any, for entries that were absent before.
    pub publish: AtomicU64,
    /// Of a whole VMID on one CPU, where it came back to a guest that something was taken away from.
    pub returns: AtomicU64,
    /// Kicks to CPUs that were in a guest that something was taken away from.
    pub kicks: AtomicU64,
}

/// Where the tag of a space comes from.
pub trait Tag {
    /// Returns the value of VTTBR_EL2 (base and VMID) under which TLBs may hold translations of the space, and keeps the
    /// VMID from becoming another space's until [`Tag::give_back`]. `None` where no TLB holds any.
    fn borrow(&self) -> Option<u64>;

    /// Ends what [`Tag::borrow`] began, when this CPU has its own VTTBR_EL2 again.
    fn give_back(&self);
}

/// One space's invalidation, by one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Stage2<'a, T, C> {
    /// Where the tag comes from.
    pub tag: T,
    /// The CPU that runs this.
    pub cpu: &'a C,
    /// Who is in a guest of the space, and who ever was.
    pub presence: &'a Presence,
    /// How other CPUs are made to forget. The same for all of a space.
    pub style: Style,
    /// What this machine's CPUs can do.
    pub means: Means,
    /// Base-2 logarithm of the tables' granule: 12, 14 or 16.
    pub granule_shift: u32,
    /// Base-2 logarithm of the entries in a table: the granule's less 3.
    pub index_bits: u32,
    /// Counts what is issued.
    pub issued: &'a Issued,
}

/// What [`Invalidate::complete`] has to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// Nothing: the barrier was all.
    Nothing,
    /// Operations on this CPU that left combined entries alone.
    Local,
    /// Operations on this CPU that removed combined entries, too.
    LocalEverything,
    /// Broadcast operations that left combined entries alone.
    Stage2,
    /// Broadcast operations that removed combined entries, too.
    Everything,
    /// Other CPUs that were in the guest.
    Exits(Request),
}

/// Records where this CPU is.
#[inline(always)]
fn record(kind: trace::Kind) {
    if trace::is_on() {
        note(kind);
    }
}

#[cold]
#[inline(never)] // called from each way in and out
fn note(kind: trace::Kind) {
    trace::note(kind, 0, [0; 3]);
}

impl Style {
    /// Empties TLBs of every guest's translations, when VMIDs have begun anew, and waits until that is complete: those of all
    /// CPUs; or, where no instruction is to reach others, that of the CPU that calls this.
    pub fn empty_tlbs(self) {
        match self {
            Self::Broadcast => flush_all(),
            Self::Interrupt => {
                alle1();
                if keeps(72) {
                    dsb_nsh(); // O72, for this CPU
                }
                isb();
            }
        }
    }
}

fn flush_all() {
    if keeps(70) {
        dsb_ishst(); // O70
    }
    alle1is();
    if keeps(72) {
        dsb_ish(); // O72
    }
    isb();
}

/// Has whatever this CPU has just said of a space ([`Presence::note_entry`]) seen by all, and ends the table walks that
/// it began for a guest, before another VTTBR_EL2 is loaded.
pub fn before_tables_change() {
    if keeps(118) {
        dsb_ish(); // O118
    }
}

/// Makes this CPU forget what one vCPU of the loaded VMID has left in its TLB, before another vCPU of the same virtual
/// machine runs here: to their guest they are two CPUs, and an ASID may mean one thing on the one and another on the other
/// (DDI 0487, D8.16: entries that are not common, TTBR.CnP = 0, are a CPU's own).
pub fn forget_sibling() {
    vmalle1();
    if keeps(161) {
        dsb_nsh(); // O161: nothing of the sibling's is left when the guest runs
    }
    isb();
}

impl<T: Tag, C: Cpu> Stage2<'_, T, C> {
    /// Says that this CPU is about to enter the guest, whose tables are loaded: the last thing before it does.
    #[inline(always)]
    pub fn enter(&self) {
        if self.style == Style::Interrupt {
            self.presence.enter(self.cpu.id(), self);
            record(trace::Kind::Enters);
        }
    }

    /// Says that this CPU has left the guest: the first thing after it has.
    #[inline(always)]
    pub fn leave(&self) {
        if self.style == Style::Interrupt {
            self.presence.leave(self.cpu.id(), self);
        }
    }

    /// Does `work` under the space's VMID, which TLB maintenance takes from VTTBR_EL2; `None` without doing it where no
    /// TLB holds anything under that.
    fn tagged<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let wanted = self.tag.borrow()?;
        if mutant("vmid-read-before-dsb") {
            dsb_ishst();
        }
        let before = read_vttbr();
        let result = if before == wanted {
            work()
        } else {
            // With these tables loaded this CPU may come to hold translations of them.
            self.presence.note_entry(self.cpu.id());
            before_tables_change();
            if self.style == Style::Interrupt {
                // Of before the VMIDs began anew there may be something here under this one.
                self.style.empty_tlbs();
            }
            let held = (self.means.hold_walks == Has::Yes).then(walks::hold);
            write_vttbr(wanted);
            isb(); // the operations that follow use the new VMID
            let result = work();
            write_vttbr(before); // whole: base and VMID together
            isb();
            held.inspect(walks::Held::release);
            result
        };
        self.tag.give_back();
        Some(result)
    }

    /// Has the accesses complete that the barrier after a broadcast may have left behind, where CPUs have such an erratum: any
    /// further invalidation and its barrier do, so it is one of an address that EL2 never maps.
    fn repeat(&self) {
        if self.means.repeat == Has::Yes {
            vale2is(0);
            if keeps(203) {
                dsb_ish(); // O203: no access is left behind before anything is reused
            }
        }
    }

    /// Tells whether the space's tables are loaded here; `None` where no TLB holds anything of it.
    fn is_loaded(&self) -> Option<bool> {
        let wanted = self.tag.borrow()?;
        let loaded = read_vttbr() == wanted;
        self.tag.give_back();
        Some(loaded)
    }

    /// Makes this CPU forget `range`, and tells whether combined entries are gone as well.
    fn local(&self, range: Range) -> Pending {
        self.issued.local.fetch_add(1, Relaxed);
        let step = 1 << self.granule_shift;
        if range.len() > MOST_BY_ADDRESS << self.granule_shift {
            vmalls12e1();
            return Pending::LocalEverything;
        }
        let mut at = range.start().align_down(step);
        while at < range.end() {
            ipas2e1(at.get() >> 12);
            at = at.wrapping_add(step); // at most 32 steps from an address below `end`
        }
        Pending::Local
    }

    /// Makes every CPU forget, by instructions; this one alone where no other can hold anything. The tables are loaded.
    fn by_instruction(&self, class: Class, scope: Scope) -> Pending {
        let others = self.presence.others(self.cpu.id());
        let alone = others.is_empty() || mutant("local-where-others-entered");
        match scope {
            Scope::Range { range, .. } if alone => self.local(range),
            Scope::Tag if alone => {
                self.issued.local.fetch_add(1, Relaxed);
                vmalls12e1();
                Pending::LocalEverything
            }
            _ => self.broadcast(class, scope),
        }
    }

    /// Counts a publication. The exception return synchronises this CPU's context; other CPUs fault once more at worst.
    #[inline(always)]
    fn published(&self) {
        self.issued.publish.fetch_add(1, Relaxed);
    }

    /// Makes this CPU forget `range` of a space that it runs, or all of one that it runs later.
    fn relax(&self, range: Range) -> Pending {
        match (self.style, self.is_loaded()) {
            (_, None) => Pending::Nothing,
            (Style::Interrupt, Some(false)) => {
                self.presence.forget_at_entry(self.cpu.id());
                Pending::Nothing
            }
            _ => self.tagged(|| self.local(range)).unwrap_or(Pending::Nothing),
        }
    }
}

impl<T: Tag, C: Cpu> Interrupt for Stage2<'_, T, C> {
    fn kick(&self, target: CpuId) {
        self.issued.kicks.fetch_add(1, Relaxed);
        self.cpu.kick(target);
    }

    fn forget(&self) {
        self.issued.returns.fetch_add(1, Relaxed);
        vmalls12e1();
        if keeps(119) {
            dsb_nsh(); // O119: nothing of before is left when this is told, and when the guest runs
        }
        isb();
    }

    fn settle(&self) {
        if keeps(120) {
            dsb_nsh(); // O120: accesses and table walks of the guest that we have left are over
        }
        record(trace::Kind::Leaves);
    }
}

impl<T: Tag, C: Cpu> Invalidate for Stage2<'_, T, C> {
    type Pending = Pending;

    fn begin(&self, work: Work) -> Pending {
        // O70: our entry writes are visible to every table walker before the tag is read and anything is invalidated.
        // Pairs with O51.
        if keeps(70) && (!mutant("vmid-read-before-dsb") || work.class == Class::Publish) {
            dsb_ishst();
        }
        match (work.class, work.scope) {
            (Class::Publish, _) => {
                self.published();
                Pending::Nothing
            }
            (Class::Relax, Scope::Range { range, .. }) => self.relax(range),
            (class, scope) => match self.style {
                Style::Broadcast => {
                    self.tagged(|| self.by_instruction(class, scope)).unwrap_or(Pending::Nothing)
                }
                Style::Interrupt => Pending::Exits(self.presence.request(self.cpu.id(), self)),
            },
        }
    }

    fn begin_broadcast(&self, work: Work) -> Pending {
        if work.class < Class::Leaves {
            return self.begin(work);
        }
        if keeps(70) {
            dsb_ishst(); // O70
        }
        // In the style of interrupts, too: what reaches the IOMMU reaches every CPU.
        self.tagged(|| self.broadcast(work.class, work.scope)).unwrap_or(Pending::Nothing)
    }

    #[inline(always)]
    fn publish(&self, _: Range) {
        if keeps(70) {
            dsb_ishst(); // O70
        }
        self.published();
    }

    fn complete(&self, pending: Pending) {
        match pending {
            Pending::Nothing => {}
            Pending::Local => {
                if keeps(71) {
                    dsb_nsh(); // O71, for this CPU
                }
                let _ = self.tagged(vmalle1);
                if keeps(72) {
                    dsb_nsh(); // O72, for this CPU
                }
                isb();
            }
            Pending::LocalEverything => {
                if keeps(72) {
                    dsb_nsh(); // O72, for this CPU
                }
                isb();
            }
            Pending::Stage2 => {
                if keeps(71) && !mutant("missing-middle-dsb") {
                    dsb_ish(); // O71: stage-2 entries are gone everywhere before the combined ones go
                }
                // None: a rollover has emptied all TLBs meanwhile.
                let _ = self.tagged(vmalle1is);
                if keeps(72) {
                    dsb_ish(); // O72: complete everywhere before anything is reused
                }
                self.repeat();
                isb();
            }
            Pending::Everything => {
                if keeps(72) {
                    dsb_ish(); // O72
                }
                self.repeat();
                isb();
            }
            Pending::Exits(request) => self.presence.wait(request),
        }
    }

    fn ticks(&self) -> u64 {
        CNTPCT_EL0.get()
    }
}

#[cfg(test)]
mod judged;
#[cfg(test)]
mod tests;
