//! A fault: find what belongs at the address, prepare it, and publish it if it is still wanted.
//!
//! Invariants:
//! - Frames are zeroed, and the zeroes visible to whoever may see the frame, before the entry that leads to them is.
//! - An entry is published only while the region it was planned by stands, as seen after the entry was frozen.
//! - A fault that loses a race changes nothing and keeps nothing but a zeroed run for this CPU's next fault.
//! - A leaf that is too strict gets more rights, or is made young, only while it is owned, lies in the region, and the region
//!   stands. With the right to write comes the dirty mark: while a log runs, the leaf is the mark.
//! - Having no memory is an error only while there is still nothing at the address: another CPU may just have put there
//!   what this one has no memory for.

use crate::plan::{Plan, Source};
use crate::regions::Standing;
use crate::space::TableView;
use crate::tally::Event;
use crate::{Backing, Space, SpaceError};
use frames::{FrameError, Order, Run, Usage};
use stage2::{
    Attrs, ChangeError, Entry, Format, Found, Invalidate, Live, MapError, Marks, Note, Owed, Section, Why,
    span,
};
use types::sync::mutant;
use types::{Access, Cause, Cpu, CpuId, Fault, FaultKind, Height, Ipa, Pa, Range};

/// The largest leaf that a fault makes, in bytes, where pages are smaller: it bounds what is zeroed while a guest waits.
const LARGEST_ON_FAULT: u64 = Order::FOLIO.bytes();

/// How often a fault looks again after it has lost a race, before it lets the guest try.
const PATIENCE: u32 = 4;

/// What came of a fault, and so what the caller does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Memory is behind the address now: run the guest again.
    Mapped,
    /// The memory that is behind the address gives the right now, and did not before: run the guest again.
    Allowed,
    /// Memory that gives the right was there already, and this CPU has forgotten what it had cached: run the guest
    /// again.
    AlreadyMapped,
    /// Another CPU is changing the entry: run the guest again, which will fault again if it must.
    Busy,
    /// The address is in no region: an emulated device, or an external abort.
    Outside,
    /// The address is in a region that does not give the right: an external abort.
    Denied,
    /// The address holds this note, and no memory.
    Noted(Note),
}

/// Memory for one leaf, ready to be published.
#[derive(Debug)]
pub(crate) struct Prepared<'f> {
    pub(crate) height: Height,
    pub(crate) why: Why,
    pub(crate) memory: Memory<'f>,
}

/// What a leaf is to map.
#[derive(Debug)]
pub(crate) enum Memory<'f> {
    /// Frames of our own.
    Run(Run<'f>),
    /// A fixed place.
    Fixed(Pa),
}

/// What one try came to.
pub(crate) enum Tried<'f> {
    /// Published.
    Mapped,
    /// Not published: the entry is no longer absent, or the region not what it was. The memory comes back.
    Lost(Memory<'f>),
    /// Not published: no page for a table, and still nothing there.
    NoTables(Memory<'f>),
}

/// Why there is no memory for a leaf.
#[derive(Clone, Copy, Debug)]
struct Failure {
    /// How many runs were allocated for guests and not yet published when we found none.
    unpublished: u64,
    /// What to say if that is final.
    error: SpaceError,
}

/// What is at an address.
pub(crate) enum There {
    /// Nothing, at this height and below.
    Nothing(Height),
    /// A leaf that covers this range, with these attributes.
    Leaf { range: Range, attrs: Attrs },
    /// A note.
    Note(Note),
    /// Somebody is changing it.
    Owned,
}

impl<'f, F: Format> Space<'f, F> {
    /// Resolves a fault that a guest of this space has taken on the CPU that calls. Waits for no software; takes at
    /// most one run of frames, of 2 MiB or a page, and zeroes it.
    ///
    /// The caller leaves its read section, or passes a quiescent point, before the guest runs again.
    ///
    /// # Errors
    /// [`SpaceError::OutOfMemory`] and [`SpaceError::OutOfTables`]: the guest cannot go on unless somebody gives
    /// memory back.
    pub fn fault<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &S,
        cpu: &C,
        tlb: &I,
        fault: &Fault,
    ) -> Result<Outcome, SpaceError> {
        // The short path would be a look before the one that decides.
        if !mutant("gone-without-a-second-look") && self.first_touch(section, cpu, tlb, fault) {
            self.tally.count(cpu.id(), Event::Fault);
            self.tally.count(cpu.id(), Event::Mapped);
            return Ok(Outcome::Mapped);
        }
        let outcome = self.resolve(section, cpu, tlb, fault);
        let event = match outcome {
            Ok(Outcome::Mapped) => Event::Mapped,
            Ok(Outcome::Allowed) => Event::Allowed,
            Ok(Outcome::AlreadyMapped) => Event::There,
            Ok(Outcome::Busy) => Event::Busy,
            Ok(Outcome::Outside) => Event::Outside,
            Ok(Outcome::Denied | Outcome::Noted(_)) => Event::Denied,
            Err(_) => Event::Failed,
        };
        self.tally.count(section.cpu(), Event::Fault);
        self.tally.count(section.cpu(), event);
        outcome
    }

    /// Puts a page of RAM behind an absent entry of a table that is there, the most frequent of all faults: by the steps of
    /// [`Self::resolve`], with one walk. Tells whether it did; for whatever else there is, that one looks again.
    #[inline(always)]
    fn first_touch<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &S,
        cpu: &C,
        tlb: &I,
        fault: &Fault,
    ) -> bool {
        if fault.kind != FaultKind::Translation || span::<F>(Height::PAGE) != Order::FRAME.bytes() {
            return false;
        }
        let (view, ipa) = (self.tree.open(section), fault.ipa);
        let sight = view.sight(ipa);
        if !sight.is_absent_page() {
            return false;
        }
        if self.check_alive().is_err() {
            return false;
        }
        let Some((access, found)) = self.regions.find_ram(ipa) else { return false };
        if !access.contains(wanted(fault)) || self.frames.keeps(cpu.id()) {
            return false;
        }
        let Some(run) = self.frames.take_frame(cpu.id(), self.owner) else { return false };
        cpu.zero(run.pa(), Order::FRAME.bytes());
        let Some(claim) = self.regions.claim_page(&view, found, ipa, &sight) else {
            self.frames.keep(cpu.id(), run);
            return false;
        };
        self.log.mark_unlisted::<F, _>(self.tree.memory(), claim.range());
        claim.publish_here(&self.everyone(tlb), run.into_pa(), Attrs::RAM.with_access(access));
        true
    }

    #[inline(never)]
    pub(crate) fn resolve<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &S,
        cpu: &C,
        tlb: &I,
        fault: &Fault,
    ) -> Result<Outcome, SpaceError> {
        let tlb = &self.everyone(tlb);
        let reach = self.tree.geometry().reach();
        match fault.kind {
            FaultKind::TlbConflict => {
                // Two translations for one address, while its size is changed without a break: forget both.
                self.tally.count(section.cpu(), Event::Conflict);
                Owed::relax(reach).discharge(tlb).into_inner();
                return Ok(Outcome::AlreadyMapped);
            }
            FaultKind::AddressSize => return Ok(Outcome::Outside),
            FaultKind::Translation | FaultKind::Permission | FaultKind::AccessFlag => {}
        }
        let view = self.tree.open(section);
        let standing = match self.standing(&view, fault.ipa) {
            Ok(standing) => standing,
            Err(SpaceError::Dying) => return Err(SpaceError::Dying),
            Err(_) => return Ok(Outcome::Outside),
        };
        let wanted = wanted(fault);
        if !standing.region.access.contains(wanted) {
            return Ok(Outcome::Denied);
        }
        let mut has_failed = false;
        for _ in 0..PATIENCE {
            let highest = match self.look(&view, fault.ipa) {
                There::Leaf { range, attrs } => {
                    if fault.kind == FaultKind::Translation && is_changing_size(attrs) {
                        return Ok(Outcome::Busy);
                    }
                    let is_young = attrs.marks.contains(Marks::YOUNG) || fault.kind != FaultKind::AccessFlag;
                    if attrs.access.contains(wanted) && is_young {
                        self.tree.owed_for_more(range).discharge(tlb).into_inner();
                        return Ok(Outcome::AlreadyMapped);
                    }
                    if !is_regions(attrs, &standing) {
                        return Ok(Outcome::Denied);
                    }
                    return self.allow(&view, tlb, &standing, fault.ipa, wanted);
                }
                There::Note(note) => return Ok(Outcome::Noted(note)),
                There::Owned => return Ok(Outcome::Busy),
                There::Nothing(_) if standing.region.backing == Backing::Borrowed => {
                    return Ok(Outcome::Denied);
                }
                There::Nothing(highest) => highest,
            };
            match self.map_one(&view, cpu, tlb, &standing, fault.ipa, highest) {
                Ok(true) => return Ok(Outcome::Mapped),
                Ok(false) => {}
                // What was on its way back when we failed may be back since we looked: once more.
                Err(_) if !has_failed && !mutant("gone-without-a-second-look") => has_failed = true,
                Err(error) => return Err(error),
            }
            if !self.regions.stands(fault.ipa, standing.mark()) {
                return Ok(Outcome::Busy);
            }
        }
        Ok(Outcome::Busy)
    }

    /// Gives the leaf at `ipa` the right that is wanted, which the region gives, and makes it young. While a log of pages
    /// runs, a block that is to be written is split first, with the table that it has in reserve; and so is a block that
    /// is not all in the region: it was mapped, or made, when what is beside the region had the same rights.
    #[inline(never)]
    fn allow<I: Invalidate, R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        tlb: &I,
        standing: &Standing,
        ipa: Ipa,
        wanted: Access,
    ) -> Result<Outcome, SpaceError> {
        let is_write = wanted.contains(Access::WRITE);
        let running = self.log.running().filter(|running| running.range.contains(ipa));
        let page = Range::block_around(ipa, span::<F>(Height::PAGE));
        let There::Leaf { range, .. } = self.look(view, ipa) else { return Ok(Outcome::Busy) };
        let is_its_own = |leaf: Range| {
            standing.region.range.covers(leaf) || mutant("right-of-a-region-for-its-neighbours")
        };
        if is_write && running.is_some_and(|running| running.wants_pages(page)) && range != page {
            match view.split(tlb, ipa, Height::PAGE, Why::DirtyLog) {
                Ok(()) => self.tally.count(view.cpu(), Event::Split),
                // Without a table, or where a device could not stand it, the block is logged as a whole: the guest
                // goes on.
                Err(ChangeError::NoPages { .. } | ChangeError::DeviceWouldFault { .. }) => {}
                Err(_) => return Ok(Outcome::Busy),
            }
        } else if !is_its_own(range) {
            let region = &standing.region;
            let its_own = Plan::<F>::new(region, region.range, ipa, self.tree.largest_leaf());
            let largest = its_own.map_or(Height::PAGE, |plan| plan.height);
            match view.split(tlb, ipa, largest, Why::Attributes) {
                Ok(()) => self.tally.count(view.cpu(), Event::Split),
                Err(ChangeError::NoPages { .. }) => return Err(SpaceError::OutOfTables { ipa }),
                // The device has this block as it is, and its neighbours must not get the right.
                Err(ChangeError::DeviceWouldFault { .. }) => return Ok(Outcome::Denied),
                Err(_) => return Ok(Outcome::Busy),
            }
        }
        let Ok(Some(held)) = self.regions.hold(view, standing, ipa) else { return Ok(Outcome::Busy) };
        if !is_its_own(held.range()) {
            return Ok(Outcome::Busy); // a block again; dropping it lets it go as it was
        }
        let attrs = held.leaf().attrs;
        if !is_regions(attrs, standing) {
            return Ok(Outcome::Denied);
        }
        let region_gives = match standing.region.backing {
            // The loan has given all that it gives: this one is only made young.
            Backing::Borrowed if !mutant("loan-with-its-regions-rights") => {
                if !attrs.access.contains(wanted) {
                    return Ok(Outcome::Denied);
                }
                Access::empty()
            }
            _ => standing.region.access,
        };
        // What it has is not given anew: the right to write comes with the dirty mark, and a read is no reason for one.
        let mut added = region_gives - attrs.access;
        if !is_write && running.is_some() {
            added -= Access::WRITE;
        }
        if added.contains(Access::WRITE) {
            self.log.mark_unlisted::<F, _>(self.tree.memory(), held.range());
        }
        held.allow(tlb, added);
        Ok(Outcome::Allowed)
    }

    /// Prepares and publishes one leaf for `ipa`, where an entry of height `highest` is absent. Returns whether it did:
    /// it does not where it has lost a race.
    pub(crate) fn map_one<C: Cpu, I: Invalidate, R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        cpu: &C,
        tlb: &I,
        standing: &Standing,
        ipa: Ipa,
        highest: Height,
    ) -> Result<bool, SpaceError> {
        let mut plan = self.plan(standing, ipa, highest.min(largest_on_fault::<F>()).min(self.largest))?;
        loop {
            let failure = match self.prepare(cpu, &plan) {
                Ok(prepared) => match self.try_publish(view, tlb, standing, ipa, prepared) {
                    Tried::Mapped => return Ok(true),
                    Tried::Lost(Memory::Run(run)) => {
                        self.frames.keep(cpu.id(), run);
                        return Ok(false);
                    }
                    Tried::Lost(Memory::Fixed(_)) => return Ok(false),
                    // With a smaller leaf, what is left of the run will do for the tables.
                    Tried::NoTables(memory) => {
                        drop(memory);
                        let unpublished = self.frames.unpublished();
                        Failure { unpublished, error: SpaceError::OutOfTables { ipa } }
                    }
                },
                Err(unpublished) => Failure { unpublished, error: SpaceError::OutOfMemory { ipa } },
            };
            match plan.smaller() {
                Some(smaller) => plan = smaller,
                None => return self.is_final(view, ipa, failure),
            }
            self.count_smaller(cpu.id(), plan.why);
        }
    }

    /// Plans the largest leaf for `ipa` that is at most `highest`: a page, where a log of pages runs.
    fn plan(&self, standing: &Standing, ipa: Ipa, highest: Height) -> Result<Plan<F>, SpaceError> {
        let bad = SpaceError::BadRegion { range: standing.region.range };
        let plan = Plan::new(&standing.region, self.tree.geometry().reach(), ipa, highest).ok_or(bad)?;
        if plan.height == Height::PAGE || !self.wants_pages(ipa, plan.height) {
            return Ok(plan);
        }
        let page = Plan::new(&standing.region, self.tree.geometry().reach(), ipa, Height::PAGE).ok_or(bad)?;
        Ok(page.because(Why::DirtyLog))
    }

    /// Tells whether a log runs for which the leaf of `height` that maps `ipa` must be of pages. Asked after the region
    /// was found: a log that begins later gives the region a new version.
    pub(crate) fn wants_pages(&self, ipa: Ipa, height: Height) -> bool {
        let block = Range::block_around(ipa, span::<F>(height));
        self.log.running().is_some_and(|running| running.wants_pages(block))
    }

    /// Decides what it means that there is no memory: an error, or nothing but a lost race. Somebody who has memory for
    /// this address, or for another and will give it back, was about to publish when we failed; or has published. Or memory
    /// is on its way back: what an unmap has taken out of the tables, or what rests since.
    fn is_final<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        ipa: Ipa,
        failure: Failure,
    ) -> Result<bool, SpaceError> {
        match self.look(view, ipa) {
            There::Nothing(_) if failure.unpublished == 0 && !self.is_coming_back() => Err(failure.error),
            _ if mutant("gone-without-a-second-look") => Err(failure.error),
            _ => Ok(false),
        }
    }

    /// Tells whether frames or tables are on their way back, so that having none is not final.
    pub(crate) fn is_coming_back(&self) -> bool {
        self.tree.is_retiring() && !mutant("gone-while-it-comes-back")
    }

    pub(crate) fn count_smaller(&self, cpu: CpuId, why: Why) {
        if why == Why::NoMemory {
            self.tally.count(cpu, Event::Smaller);
        }
    }

    /// Gets the memory for a plan, zeroed. Where there is none of that size, says how many runs were unpublished then.
    fn prepare<C: Cpu>(&self, cpu: &C, plan: &Plan<F>) -> Result<Prepared<'f>, u64> {
        let memory = match plan.source {
            Source::Fixed(pa) => Memory::Fixed(pa),
            Source::Frames(order) => Memory::Run(self.zeroed_run(cpu, order)?),
        };
        Ok(Prepared { height: plan.height, why: plan.why, memory })
    }

    fn zeroed_run<C: Cpu>(&self, cpu: &C, order: Order) -> Result<Run<'f>, u64> {
        let usage = Usage::Guest(self.owner);
        if let Some(run) = self.frames.take_kept(cpu.id(), order, usage) {
            self.tally.count(cpu.id(), Event::Kept);
            return Ok(run);
        }
        let run = self.frames.allocate_on(cpu.id(), order, usage).map_err(|error| match error {
            FrameError::Exhausted { unpublished, .. } => unpublished,
            _ => 0,
        })?;
        cpu.zero(run.pa(), order.bytes());
        Ok(run)
    }

    /// Freezes the entry, looks whether the region still stands, and publishes.
    pub(crate) fn try_publish<I: Invalidate, R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        tlb: &I,
        standing: &Standing,
        ipa: Ipa,
        prepared: Prepared<'f>,
    ) -> Tried<'f> {
        let claim = match self.regions.claim(view, standing, ipa, prepared.height, prepared.why) {
            Ok(Some(claim)) => claim,
            Err(MapError::NoPages) => return Tried::NoTables(prepared.memory),
            Ok(None) | Err(_) => return Tried::Lost(prepared.memory),
        };
        // It is published dirty: a harvest reports it.
        self.log.mark_unlisted::<F, _>(self.tree.memory(), claim.range());
        let attrs = standing.region.attrs();
        match prepared.memory {
            Memory::Run(run) => claim.publish(tlb, run.into_pa(), attrs),
            Memory::Fixed(pa) => claim.publish(tlb, pa, attrs),
        }
        Tried::Mapped
    }

    /// Looks at what is at an address.
    pub(crate) fn look<R>(&self, view: &TableView<'_, 'f, F, R>, ipa: Ipa) -> There {
        self.read(view.translate(ipa), ipa)
    }

    /// Reads what was found at an address.
    pub(crate) fn read(&self, found: Found<F>, ipa: Ipa) -> There {
        let range = Range::block_around(ipa, span::<F>(found.height()));
        match found.entry(self.tree.format()) {
            Entry::Absent => There::Nothing(found.height()),
            Entry::Leaf(leaf) | Entry::Held(Live::Leaf(leaf)) => There::Leaf { range, attrs: leaf.attrs },
            Entry::Note(note) => There::Note(note),
            Entry::Table(_) | Entry::Frozen | Entry::Held(Live::Table(_)) | Entry::Dead => There::Owned,
        }
    }
}

/// Tells whether a leaf is of what backs its region.
#[inline(always)]
fn is_regions(attrs: Attrs, standing: &Standing) -> bool {
    attrs.owner.is_backed_as(standing.region.attrs().owner)
}

/// Tells whether a leaf is one that TLBs are not to cache, since somebody changes its size: some CPUs fault on such a leaf
/// although it is valid (DDI 0487, D8.17.2, level 1).
fn is_changing_size(attrs: Attrs) -> bool {
    attrs.marks.contains(Marks::NO_TLB) && !mutant("nt-fault-taken-for-a-stale-entry")
}

/// Returns the rights that a fault asks for. A walk of the guest's own tables that was not permitted counts as a write:
/// where the guest's hardware keeps its accessed and dirty flags, it may have been one, and a syndrome need not say so.
#[inline(always)]
fn wanted(fault: &Fault) -> Access {
    let is_walk = fault.cause == Cause::Stage1Walk && fault.kind == FaultKind::Permission;
    if is_walk && !mutant("stage1-walk-not-a-write") { fault.access | Access::WRITE } else { fault.access }
}

/// Returns the height of the largest leaf that a fault makes.
fn largest_on_fault<F: Format>() -> Height {
    let mut height = Height::PAGE;
    while height.get() < F::MAX_TOP && span::<F>(height.above()) <= LARGEST_ON_FAULT {
        height = height.above();
    }
    height
}
