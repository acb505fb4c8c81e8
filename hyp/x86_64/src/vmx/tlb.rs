//! Invalidation of EPT translations: [`stage2::Invalidate`] by interrupts (29.4.3).
//!
//! No instruction reaches the TLBs of other CPUs. Each CPU forgets for itself, by INVEPT, before it enters a guest of the
//! space again, and those that are in one are made to leave by a non-maskable interrupt ([`stage2::Presence`]).
//!
//! What is tagged by a VPID is tagged by the EPT pointer as well (29.4.1, combined mappings), and INVEPT takes it too: so
//! there is nothing else to do. An EPT violation removes on its own what this CPU holds for the address (29.4.3.1).
//!
//! Neighbours: `stage2` says what is owed, and who is in a guest.

use super::instructions::invept;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use ept::Invept;
use stage2::{Class, Interrupt, Invalidate, Presence, Request, Work};
use trace::Kind;
use types::sync::mutant;
use types::{Cpu, CpuId};

/// How much invalidation there was.
#[derive(Debug, Default)]
pub struct Issued {
    /// Changes that need none, since entries were absent before.
    pub publish: AtomicU64,
    /// INVEPTs for a change that concerns this CPU alone.
    pub local: AtomicU64,
    /// Changes that took something away.
    pub requests: AtomicU64,
    /// INVEPTs of CPUs that came back to a guest that something was taken away from.
    pub returns: AtomicU64,
    /// Interrupts to CPUs that were in a guest that something was taken away from.
    pub kicks: AtomicU64,
}

/// One space's invalidation, by one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Tlb<'a, C> {
    /// The space's EPT pointer.
    pub eptp: u64,
    /// The kind of INVEPT that every CPU has.
    pub kind: Invept,
    /// The CPU that runs this.
    pub cpu: &'a C,
    /// Who is in a guest of the space, and who ever was.
    pub presence: &'a Presence,
    /// Whether the CPUs list written pages, and hand on what is listed when they leave.
    pub lists: bool,
    /// Counts what is issued.
    pub issued: &'a Issued,
}

/// What [`Invalidate::complete`] has to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// Nothing.
    Nothing,
    /// Other CPUs that were in the guest.
    Exits(Request),
}

impl<C: Cpu> Tlb<'_, C> {
    /// Has this CPU forget what it holds of the space.
    fn invept(&self) {
        if !mutant("no-invept") {
            invept(self.kind as u64, self.eptp);
        }
    }

    /// Records where this CPU is.
    #[inline(always)]
    fn record(&self, kind: Kind) {
        if trace::is_on() {
            trace::note(kind, 0, [0; 3]);
        }
    }

    /// Says that this CPU is about to enter the guest: the last thing before it does.
    #[inline]
    pub fn enter(&self) {
        self.presence.enter(self.cpu.id(), self);
        self.record(Kind::Enters);
    }

    /// Says that this CPU has left the guest: the first thing after it has.
    #[inline]
    pub fn leave(&self) {
        self.presence.leave(self.cpu.id(), self);
    }

    /// Does what a non-maskable interrupt is for that came in the hypervisor, maybe between [`Tlb::enter`] and the guest.
    /// For its handler.
    pub fn interrupted(&self) {
        self.presence.interrupted(self.cpu.id(), self);
    }
}

impl<C: Cpu> Interrupt for Tlb<'_, C> {
    fn kick(&self, target: CpuId) {
        self.issued.kicks.fetch_add(1, Relaxed);
        if !mutant("no-kick") {
            self.cpu.kick(target);
        }
    }

    fn forget(&self) {
        self.issued.returns.fetch_add(1, Relaxed);
        self.invept();
    }

    /// Does nothing: an exit ends the guest's walks.
    fn settle(&self) {
        self.record(Kind::Leaves);
    }
}

impl<C: Cpu> Invalidate for Tlb<'_, C> {
    type Pending = Pending;

    /// Entry writes are visible to table walkers in program order (SDM 3A, 10.2.2): no barrier is needed before what
    /// follows, and what takes away has one of its own.
    fn begin(&self, work: Work) -> Pending {
        match work.class {
            Class::Publish => {
                self.issued.publish.fetch_add(1, Relaxed);
                Pending::Nothing
            }
            Class::Relax => {
                self.issued.local.fetch_add(1, Relaxed);
                self.invept();
                Pending::Nothing
            }
            Class::Leaves | Class::Tables => {
                self.issued.requests.fetch_add(1, Relaxed);
                Pending::Exits(self.presence.request(self.cpu.id(), self))
            }
        }
    }

    fn complete(&self, pending: Pending) {
        if let Pending::Exits(request) = pending
            && !mutant("no-kick")
        {
            self.presence.wait(request);
        }
    }

    fn ticks(&self) -> u64 {
        self.cpu.now()
    }

    fn lists_writes(&self) -> bool {
        self.lists
    }

    fn hand_on_lists(&self) {
        self.presence.wait(self.presence.request(self.cpu.id(), self));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic::{Apic, Mode};
    use crate::cpu::Core;
    use crate::effect::{self, Effect};
    use crate::line::Line;
    use stage2::Owed;
    use std::boxed::Box;
    use types::{Ipa, Range};

    const EPTP: u64 = 0x1234_505e;

    fn core(index: usize) -> Core<'static> {
        let lines = Box::leak(Box::new([0, 4, 8].map(Line::new)));
        Core::of_this_cpu(CpuId::new(index).expect("small"), Apic::new(Mode::X2), lines, 1)
    }

    fn tlb<'a>(cpu: &'a Core<'static>, presence: &'a Presence, issued: &'a Issued) -> Tlb<'a, Core<'static>> {
        Tlb { eptp: EPTP, kind: Invept::Single, cpu, presence, lists: true, issued }
    }

    fn nmi(apic: u64) -> Effect {
        Effect::Wrmsr(0x830, apic << 32 | 0x4400)
    }

    const INVEPT: Effect = Effect::Invept(1, EPTP);

    #[test]
    fn who_is_in_the_guest_is_kicked_and_forgets_before_it_comes_back() {
        effect::reset();
        let (presence, issued) = (Presence::new(), Issued::default());
        let (zero, one, two) = (core(0), core(1), core(2));
        let (mine, theirs, third) =
            (tlb(&zero, &presence, &issued), tlb(&one, &presence, &issued), tlb(&two, &presence, &issued));
        theirs.enter();
        assert_eq!(effect::take(), [INVEPT], "who enters first has forgotten whoever had the root before");
        third.enter();
        third.leave();
        effect::take();

        let pending = mine.begin(Owed::everything().work());
        assert_eq!(effect::take(), [Effect::Fence, nmi(4)], "one is inside, two is outside");
        theirs.leave();
        mine.complete(pending);
        assert_eq!(effect::take(), []);
        theirs.enter();
        third.enter();
        assert_eq!(effect::take(), [INVEPT, INVEPT], "each forgets on its way in");
        theirs.leave();
        theirs.enter();
        assert_eq!(effect::take(), [], "and not again where nothing was taken away");
    }

    #[test]
    fn a_kick_on_the_way_in_is_taken_by_its_handler() {
        effect::reset();
        let (presence, issued) = (Presence::new(), Issued::default());
        let (zero, one) = (core(0), core(1));
        let (mine, theirs) = (tlb(&zero, &presence, &issued), tlb(&one, &presence, &issued));
        theirs.enter();
        let pending = mine.begin(Owed::everything().work());
        effect::take();
        theirs.interrupted();
        assert_eq!(effect::take(), [INVEPT]);
        mine.complete(pending); // it is still inside, and has forgotten
        theirs.leave();
        theirs.interrupted();
        assert_eq!(effect::take(), [], "outside there is nothing to do");
    }

    #[test]
    fn who_is_in_the_guest_hands_its_list_on_by_leaving() {
        effect::reset();
        let (presence, issued) = (Presence::new(), Issued::default());
        let (zero, one) = (core(0), core(1));
        let (mine, theirs) = (tlb(&zero, &presence, &issued), tlb(&one, &presence, &issued));
        assert!(mine.lists_writes());
        theirs.enter();
        theirs.leave();
        effect::take();
        mine.hand_on_lists();
        assert_eq!(effect::take(), [], "nobody is inside");
    }

    #[test]
    fn rights_that_are_added_concern_this_cpu_alone() {
        effect::reset();
        let (presence, issued) = (Presence::new(), Issued::default());
        let zero = core(0);
        let range = Range::new(Ipa::new(0), Ipa::new(0x1000)).expect("in order");
        let work = Owed::relax(range).work();
        let mine = tlb(&zero, &presence, &issued);
        assert_eq!(mine.begin(work), Pending::Nothing);
        assert_eq!(effect::take(), [INVEPT]);
    }
}
