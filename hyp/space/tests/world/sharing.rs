//! The space's neighbour: pages are lent to it, taken back, given to it, and come from it, for a while or for good, while
//! everything else goes on.
//!
//! The neighbour has the same addresses as the space. The lower half of those in play is its own memory, in the upper half it
//! borrows. In some runs the space borrows, too, in its first block.

use super::errands::FOR_EVER;
use super::worker::Worker;
use super::{Hands, Memory, World};
use frames::Owner;
use model::{Actor, Breach, Dice, Errand, Field, Gives, Neighbour, Plan, Recorded};
use space::{Between, Region, ShareError, Side, Space, SpaceError};
use stage2::{Format, Geometry, Invalidate, Quiescence, Section, Work, span};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use types::{Access, CpuId, Height, Ipa, Range};

/// The neighbour's number, which is no space's.
const NUMBER: Owner = Owner(1000);
/// How often a step that finds others at work comes again.
const PATIENCE: u32 = 4;

/// A page that is lent, and where it is borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Loan {
    page: Range,
    at: Ipa,
}

/// What one of the two has lent to the other.
#[derive(Debug, Default)]
pub(super) struct Loans(Mutex<Vec<Loan>>);

impl Loans {
    fn all(&self) -> MutexGuard<'_, Vec<Loan>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses one. It stays: somebody else may end it, too.
    fn any(&self, dice: &mut Dice) -> Option<Loan> {
        let all = self.all();
        (!all.is_empty()).then(|| *dice.pick(&all))
    }

    /// One has ended. Returns whether it had ended before.
    fn end(&self, loan: Loan) -> bool {
        let mut all = self.all();
        let at = all.iter().position(|one| *one == loan);
        at.map(|n| all.swap_remove(n)).is_none()
    }
}

/// Returns where a space borrows in runs of this plan: where everybody likes to be, so that it meets whatever they do.
pub(super) fn borrows<F: Format>(field: &Field, plan: &Plan) -> Option<Range> {
    let is_wanted = match &field.few {
        Some(few) => few.contains(&Errand::Borrow),
        None => Dice::new(plan.seed ^ 3).one_in(4),
    };
    is_wanted.then(|| Range::block_around(field.range.start(), span::<F>(Height::new(1))))
}

/// The neighbour.
pub(super) struct Neighbourhood<'w, F: Format> {
    space: Space<'w, F>,
    own: Range,
    borrows: Range,
}

/// Whose pages go to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// The space's to the neighbour.
    There,
    /// The neighbour's to the space.
    Here,
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
        let (we, they) = (Side { space, tlb: &ours }, Side { space: &neighbour.space, tlb: &theirs });
        actor.begins(Errand::Return, self.field.range, Gives::Nothing);
        self.end_all(&self.borrowed, &Between { from: they, to: we }, &mut section, &hands, actor);
        actor.ends(Errand::Return, self.field.range, Gives::Nothing);
        let (we, they) = (Side { space, tlb: &ours }, Side { space: &neighbour.space, tlb: &theirs });
        self.end_all(&self.loans, &Between { from: we, to: they }, &mut section, &hands, actor);
        neighbour.space.destroy(&mut section, &hands, &theirs);
    }

    /// Ends all loans of one to the other, with nobody else at work.
    fn end_all<I: Invalidate, S: Section>(
        &self,
        loans: &Loans,
        between: &Between<'_, '_, F, I>,
        section: &mut S,
        hands: &Hands<'_>,
        actor: &Actor<'_, F>,
    ) {
        // Where a page was lent, discarded and lent once more, the second loan keeps the page from coming back by the first.
        let mut loans = VecDeque::from(std::mem::take(&mut *loans.all()));
        let mut vain = 0;
        while let Some(loan) = loans.pop_front() {
            if let Err(error) = between.take_back(section, hands, loan.page, loan.at) {
                vain += 1;
                if vain == FOR_EVER {
                    actor.accuse(
                        Breach::Stuck,
                        format!("{loan:?} does not come back: {error}; others: {loans:?}"),
                    );
                }
                loans.push_back(loan);
                section.pass();
            }
        }
    }
}

impl<F: Format> Worker<'_, F> {
    /// Lends a page to the neighbour.
    pub(super) fn lend(&mut self, ipa: Ipa) {
        let page = self.page(ipa);
        let at = self.place(self.neighbour.borrows);
        let access = *self.dice.pick(&[Access::READ, Access::RW, Access::RW]);
        self.begins(Errand::Lend, page);
        let lent = self
            .between(Way::There, |between, section, hands| between.lend(section, hands, page, at, access));
        match lent {
            Ok(()) => {
                self.actor.count("lent");
                self.world.loans.all().push(Loan { page, at });
            }
            Err(error) => self.bear_share(error),
        }
        self.ends(Errand::Lend, page);
    }

    /// Takes a page back that is lent; or has the neighbour let go of it by itself first.
    pub(super) fn take_back(&mut self) {
        let Some(loan) = self.world.loans.any(&mut self.dice) else { return };
        self.begins(Errand::TakeBack, loan.page);
        if self.dice.one_in(4) {
            self.neighbour_drops(self.page(loan.at));
        }
        self.end_loan(Way::There, &self.world.loans, loan);
        self.ends(Errand::TakeBack, loan.page);
    }

    /// Has the neighbour lend a page to the space.
    pub(super) fn borrow(&mut self, ipa: Ipa) {
        let Some(borrows) = self.world.borrows else { return };
        let at = if borrows.contains(ipa) { ipa } else { self.place(borrows) };
        let (page, from) = (self.page(at), self.place(self.neighbour.own));
        let loan = Loan { page: self.page(from), at: page.start() };
        let access = *self.dice.pick(&[Access::READ, Access::RW, Access::RW]);
        if self.dice.one_in(2) {
            self.neighbour_has(loan.page);
        }
        self.begins(Errand::Borrow, page);
        match self.between(Way::Here, |between, section, hands| {
            between.lend(section, hands, loan.page, loan.at, access)
        }) {
            Ok(()) => {
                self.actor.count("borrowed");
                self.world.borrowed.all().push(loan);
            }
            Err(error) => self.bear_share(error),
        }
        self.ends(Errand::Borrow, page);
    }

    /// Has the neighbour take a page back; or lets go of it first, or has the neighbour give up its own.
    pub(super) fn give_back(&mut self) {
        let Some(loan) = self.world.borrowed.any(&mut self.dice) else { return };
        let page = self.page(loan.at);
        match self.dice.roll(6) {
            0 => self.zap(page),
            1 => self.neighbour_drops(loan.page),
            _ => {}
        }
        self.begins(Errand::Return, page);
        self.end_loan(Way::Here, &self.world.borrowed, loan);
        self.ends(Errand::Return, page);
    }

    /// Ends a loan, if that comes about soon.
    fn end_loan(&self, way: Way, loans: &Loans, loan: Loan) {
        for _ in 0..PATIENCE {
            let ended = self.between(way, |between, section, hands| {
                between.take_back(section, hands, loan.page, loan.at)
            });
            match ended {
                Ok(()) if loans.end(loan) => return self.actor.count("two CPUs ended one loan"),
                Ok(()) => return self.actor.count("a loan has ended"),
                Err(error) => self.bear_share(error),
            }
        }
    }

    /// Gives a page to the neighbour.
    pub(super) fn give(&mut self, ipa: Ipa) {
        let page = self.page(ipa);
        let at = self.place(self.neighbour.own);
        self.begins(Errand::Give, page);
        if self.dice.one_in(2) {
            self.neighbour_drops(self.page(at));
        }
        match self.between(Way::There, |between, section, hands| between.give(section, hands, page, at)) {
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
        self.neighbour_has(self.page(from));
        match self.between(Way::Here, |between, section, hands| {
            between.give(section, hands, self.page(from), page.start())
        }) {
            Ok(()) => self.actor.count("received"),
            Err(error) => self.bear_share(error),
        }
        self.ends(Errand::Receive, page);
    }

    /// Does one step that brings pages from the one to the other, or back.
    fn between<R>(
        &self,
        way: Way,
        step: impl FnOnce(
            &Between<'_, '_, F, Tlb<'_, '_, F>>,
            &mut <Recorded<F> as Quiescence>::Section<'_>,
            &Hands<'_>,
        ) -> R,
    ) -> R {
        let (ours, theirs) = (Tlb::Space(&self.actor), Tlb::Neighbour(self.world.ground.neighbour()));
        let we = Side { space: self.space, tlb: &ours };
        let they = Side { space: &self.neighbour.space, tlb: &theirs };
        let between = match way {
            Way::There => Between { from: we, to: they },
            Way::Here => Between { from: they, to: we },
        };
        let mut section = self.sections.enter(self.actor.id());
        step(&between, &mut section, &self.hands)
    }

    /// The neighbour has memory behind a page of its own.
    fn neighbour_has(&mut self, page: Range) {
        let tlb = Tlb::Neighbour(self.world.ground.neighbour());
        let fresh = {
            let mut section = self.sections.enter(self.actor.id());
            self.neighbour.space.populate(&mut section, &self.hands, &tlb, page)
        };
        if let Err(error) = fresh {
            self.bear(error);
        }
        for _ in 0..self.dice.roll(4) {
            self.actor.step();
        }
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
