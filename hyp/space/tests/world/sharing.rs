//! The space's neighbour: pages are lent to it, taken back, given to it, and come from it, while everything else goes on.
//!
//! The neighbour has the same addresses as the space. The lower half of those in play is its own memory, in the upper half it
//! borrows.

use super::errands::FOR_EVER;
use super::worker::Worker;
use super::{Hands, Memory, World};
use frames::Owner;
use model::{Actor, Breach, Errand, Neighbour, Plan, Recorded};
use space::{Between, Region, ShareError, Side, Space, SpaceError};
use stage2::{Format, Geometry, Invalidate, Quiescence, Section, Work, span};
use std::collections::VecDeque;
use types::{Access, CpuId, Height, Ipa, Range};

/// The neighbour's number, which is no space's.
const NUMBER: Owner = Owner(1000);
/// How often a step that finds others at work comes again.
const PATIENCE: u32 = 4;

/// A page that is lent, and where it is borrowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loan {
    page: Range,
    at: Ipa,
}

/// The neighbour.
pub(super) struct Neighbourhood<'w, F: Format> {
    space: Space<'w, F>,
    own: Range,
    borrows: Range,
}

/// How translations of one of the two are invalidated.
pub(super) enum Tlb<'a, 'g, F: Format> {
    Space(&'a Actor<'g, F>),
    Neighbour(Neighbour<'g, F>),
}

/// An invalidation of one of the two.
pub(super) enum Pending<S, N> {
    Space(S),
    Neighbour(N),
}

impl<'g, F: Format> Invalidate for Tlb<'_, 'g, F> {
    type Pending = Pending<<Actor<'g, F> as Invalidate>::Pending, <Neighbour<'g, F> as Invalidate>::Pending>;

    fn begin(&self, work: Work) -> Self::Pending {
        match self {
            Self::Space(actor) => Pending::Space(actor.begin(work)),
            Self::Neighbour(neighbour) => Pending::Neighbour(neighbour.begin(work)),
        }
    }

    fn complete(&self, pending: Self::Pending) {
        match (self, pending) {
            (Self::Space(actor), Pending::Space(pending)) => actor.complete(pending),
            (Self::Neighbour(neighbour), Pending::Neighbour(pending)) => neighbour.complete(pending),
            _ => unreachable!("each completes what it has begun"),
        }
    }
}

impl<F: Format> World<F> {
    /// Brings the neighbour into being.
    pub(super) fn neighbour(&self, format: F, geometry: Geometry<F>, plan: &Plan) -> Neighbourhood<'_, F> {
        self.ram.has_neighbour(NUMBER);
        let space = Space::new(&self.ram.machine, NUMBER, format, geometry, plan.bbm, 10_000);
        let space = space.expect("there is memory for a root");
        let (start, half) = (self.field.range.start(), self.field.range.len() / 2);
        let range = |n| Range::with_len(start.wrapping_add(n * half), half).expect("a half of them");
        let (own, borrows) = (range(0), range(1));
        let sections = self.ground.sections();
        let mut section = sections.enter(CpuId::BOOT);
        for region in [Region::ram(own), Region::borrowed(borrows)] {
            space.add_region(&mut section, region).expect("there is no other region");
        }
        self.ground.neighbour_rooted(space.root(), &geometry);
        Neighbourhood { space, own, borrows }
    }

    /// Takes back all that is lent, and ends the neighbour.
    pub(super) fn leave_neighbour(
        &self,
        space: &Space<'_, F>,
        neighbour: Neighbourhood<'_, F>,
        sections: &Recorded<F>,
        actor: &Actor<'_, F>,
    ) {
        let hands = Hands { id: actor.id(), ram: &self.ram };
        let ours = Tlb::Space(actor);
        let theirs = Tlb::Neighbour(self.ground.neighbour());
        let mut section = sections.enter(CpuId::BOOT);
        {
            let from = Side { space, tlb: &ours };
            let between = Between { from, to: Side { space: &neighbour.space, tlb: &theirs } };
            // Where a page was lent, discarded and lent once more, the second loan keeps the page from coming back by the first.
            let mut loans = VecDeque::from(std::mem::take(&mut *self.loans()));
            let mut vain = 0;
            while let Some(loan) = loans.pop_front() {
                if let Err(error) = between.take_back(&mut section, &hands, loan.page, loan.at) {
                    vain += 1;
                    if vain == FOR_EVER {
                        let what = format!("{loan:?} does not come back: {error}; others: {loans:?}");
                        actor.accuse(Breach::Stuck, what);
                    }
                    loans.push_back(loan);
                    section.pass();
                }
            }
        }
        neighbour.space.destroy(&mut section, &hands, &theirs);
    }
}

impl<F: Format> Worker<'_, F> {
    /// Lends a page to the neighbour.
    pub(super) fn lend(&mut self, ipa: Ipa) {
        let page = self.page(ipa);
        let at = self.place(self.neighbour.borrows);
        let access = *self.dice.pick(&[Access::READ, Access::RW, Access::RW]);
        self.begins(Errand::Lend, page);
        let lent = self.between_us(|between, section, hands| between.lend(section, hands, page, at, access));
        match lent {
            Ok(()) => {
                self.actor.count("lent");
                self.world.loans().push(Loan { page, at });
            }
            Err(error) => self.bear_share(error),
        }
        self.ends(Errand::Lend, page);
    }

    /// Takes a page back that is lent; or has the neighbour let go of it by itself first.
    pub(super) fn take_back(&mut self) {
        let loan = {
            let mut loans = self.world.loans();
            if loans.is_empty() {
                return;
            }
            let n = self.dice.roll(loans.len() as u64) as usize;
            loans.swap_remove(n)
        };
        let Loan { page, at } = loan;
        self.begins(Errand::TakeBack, page);
        if self.dice.one_in(4) {
            self.neighbour_drops(self.page(at));
        }
        let mut is_back = false;
        for _ in 0..PATIENCE {
            match self.between_us(|between, section, hands| between.take_back(section, hands, page, at)) {
                Ok(()) => {
                    self.actor.count("taken back");
                    is_back = true;
                    break;
                }
                Err(error) => self.bear_share(error),
            }
        }
        if !is_back {
            self.world.loans().push(loan);
        }
        self.ends(Errand::TakeBack, page);
    }

    /// Gives a page to the neighbour.
    pub(super) fn give(&mut self, ipa: Ipa) {
        let page = self.page(ipa);
        let at = self.place(self.neighbour.own);
        self.begins(Errand::Give, page);
        if self.dice.one_in(2) {
            self.neighbour_drops(self.page(at));
        }
        match self.between_us(|between, section, hands| between.give(section, hands, page, at)) {
            Ok(()) => self.actor.count("given"),
            Err(error) => self.bear_share(error),
        }
        self.ends(Errand::Give, page);
    }

    /// Has the neighbour give a page to the space.
    pub(super) fn receive(&mut self, ipa: Ipa) {
        if self.dice.one_in(2) {
            self.zap(self.page(ipa));
        }
        let page = self.page(ipa);
        let from = self.place(self.neighbour.own);
        self.begins(Errand::Receive, page);
        let (ours, theirs) = (Tlb::Space(&self.actor), Tlb::Neighbour(self.world.ground.neighbour()));
        let result = {
            let mut section = self.sections.enter(self.actor.id());
            let fresh = self.neighbour.space.populate(&mut section, &self.hands, &theirs, self.page(from));
            if let Err(error) = fresh {
                self.bear(error);
            }
            for _ in 0..self.dice.roll(4) {
                self.actor.step();
            }
            let from_side = Side { space: &self.neighbour.space, tlb: &theirs };
            let between = Between { from: from_side, to: Side { space: self.space, tlb: &ours } };
            between.give(&section, &self.hands, self.page(from), page.start())
        };
        match result {
            Ok(()) => self.actor.count("received"),
            Err(error) => self.bear_share(error),
        }
        self.ends(Errand::Receive, page);
    }

    /// Does one step that brings pages from the space to the neighbour, or back.
    fn between_us<R>(
        &self,
        step: impl FnOnce(
            &Between<'_, '_, F, Tlb<'_, '_, F>>,
            &mut <Recorded<F> as Quiescence>::Section<'_>,
            &Hands<'_>,
        ) -> R,
    ) -> R {
        let (ours, theirs) = (Tlb::Space(&self.actor), Tlb::Neighbour(self.world.ground.neighbour()));
        let from = Side { space: self.space, tlb: &ours };
        let between = Between { from, to: Side { space: &self.neighbour.space, tlb: &theirs } };
        let mut section = self.sections.enter(self.actor.id());
        step(&between, &mut section, &self.hands)
    }

    /// The neighbour gives memory back, its own or borrowed.
    fn neighbour_drops(&self, range: Range) {
        let tlb = Tlb::Neighbour(self.world.ground.neighbour());
        let mut section = self.sections.enter(self.actor.id());
        for _ in 0..PATIENCE {
            match self.neighbour.space.discard(&mut section, &self.hands, &tlb, range) {
                Ok(_) => break,
                Err(SpaceError::Busy { .. }) => section.pass(),
                Err(error) => return self.bear(error),
            }
        }
    }

    fn place(&mut self, range: Range) -> Ipa {
        let page = span::<F>(Height::PAGE);
        let few = (range.len() / page).min(4);
        range.start().wrapping_add(self.dice.roll(few) * page)
    }

    /// Looks at an error that a step between the two has come to.
    fn bear_share(&self, error: ShareError) {
        match error {
            ShareError::OutOfTables { .. } if self.world.shape.memory == Memory::Enough => {
                self.actor.accuse(Breach::Leak, format!("{error:?} with memory at hand"));
            }
            ShareError::DeviceWouldFault { .. } => self.actor.count("refused for a device"),
            ShareError::Pinned { .. } => self.actor.count("a pin kept a page from another space"),
            ShareError::Dying => self.actor.count("a step met a dying space"),
            _ => {}
        }
    }
}
