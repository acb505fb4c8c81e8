//! [`Worker`]: one CPU at work on a space, which runs the space's guest between its errands.

use super::sharing::Neighbourhood;
use super::{Hands, Tagging, World};
use model::{Actor, Breach, Dice, Errand, Gives, Held, Kind, Recorded};
use space::{Pin, Space, SpaceError};
use stage2::{Format, span};
use types::{Height, Ipa, Range, Vmid};

/// What can be done to a space.
pub(crate) const ERRANDS: [Errand; 25] = [
    Errand::Fault,
    Errand::Allow,
    Errand::Zap,
    Errand::Protect,
    Errand::Split,
    Errand::Collapse,
    Errand::Move,
    Errand::Harvest,
    Errand::Harvest,
    Errand::Age,
    Errand::Prune,
    Errand::Pin,
    Errand::Pin,
    Errand::Log,
    Errand::Recover,
    Errand::Region,
    Errand::Admit,
    Errand::Roll,
    Errand::Attach,
    Errand::Lend,
    Errand::TakeBack,
    Errand::Give,
    Errand::Receive,
    Errand::Borrow,
    Errand::Return,
];

/// Who would seldom meet otherwise.
pub(crate) const RARE: [&[Errand]; 27] = [
    &[Errand::Pin, Errand::Move],
    &[Errand::Pin, Errand::Collapse],
    &[Errand::Pin, Errand::Zap],
    &[Errand::Pin, Errand::Split, Errand::Collapse],
    &[Errand::Pin, Errand::Move, Errand::Collapse],
    &[Errand::Log, Errand::Harvest, Errand::Pin],
    &[Errand::Log, Errand::Harvest, Errand::Zap],
    &[Errand::Log, Errand::Harvest, Errand::Move],
    &[Errand::Log, Errand::Recover, Errand::Zap],
    &[Errand::Log, Errand::Collapse],
    &[Errand::Region, Errand::Protect],
    &[Errand::Protect, Errand::Collapse, Errand::Allow],
    &[Errand::Collapse, Errand::Zap],
    &[Errand::Collapse, Errand::Move],
    &[Errand::Zap, Errand::Move],
    &[Errand::Age, Errand::Zap],
    &[Errand::Prune, Errand::Zap],
    &[Errand::Roll, Errand::Zap],
    &[Errand::Admit, Errand::Split, Errand::Collapse],
    &[Errand::Allow, Errand::End],
    &[Errand::Lend, Errand::TakeBack, Errand::Pin],
    &[Errand::Lend, Errand::TakeBack, Errand::Zap, Errand::Move],
    &[Errand::Lend, Errand::TakeBack, Errand::Log, Errand::Harvest],
    &[Errand::Give, Errand::Receive, Errand::Pin],
    &[Errand::Give, Errand::Receive, Errand::Collapse, Errand::Region],
    &[Errand::Borrow, Errand::Return, Errand::Zap, Errand::Protect],
    &[Errand::Borrow, Errand::Return, Errand::Pin, Errand::Region],
];

/// The most pins that one CPU has at a time.
pub(super) const PINS: usize = 2;

/// One CPU at work.
pub(super) struct Worker<'w, F: Format> {
    pub(super) world: &'w World<F>,
    pub(super) space: &'w Space<'w, F>,
    /// With whom it shares memory.
    pub(super) neighbour: &'w Neighbourhood<'w, F>,
    pub(super) sections: &'w Recorded<F>,
    pub(super) actor: Actor<'w, F>,
    pub(super) hands: Hands<'w>,
    pub(super) dice: Dice,
    likes: Vec<Errand>,
    /// What it has pinned, the oldest first.
    pub(super) pins: Vec<(Pin, Vec<Held>)>,
    /// How many of them it keeps: who keeps none is in nobody's way when the next one comes.
    pub(super) keeps: usize,
    /// The tag under which it has the space's tables loaded.
    loaded: Option<Vmid>,
}

impl<'w, F: Format> Worker<'w, F> {
    pub(super) fn new(
        world: &'w World<F>,
        (space, neighbour): (&'w Space<'w, F>, &'w Neighbourhood<'w, F>),
        sections: &'w Recorded<F>,
        actor: Actor<'w, F>,
        seed: u64,
    ) -> Self {
        let mut dice = Dice::new(seed);
        let mut likes = vec![Errand::Fault; if world.field.is_focused { 1 } else { 4 }];
        match &world.field.few {
            Some(few) => likes.extend(few.iter().flat_map(|errand| [*errand; 4])),
            None => {
                for errand in ERRANDS {
                    likes.extend(std::iter::repeat_n(errand, *dice.pick(&[1, 1, 2, 5])));
                }
            }
        }
        if dice.one_in(8) {
            likes.push(Errand::End);
        }
        let hands = Hands { id: actor.id(), ram: &world.ram };
        let keeps = if world.field.is_focused { *dice.pick(&[0, PINS]) } else { PINS };
        let (pins, loaded) = (Vec::new(), None);
        Self { world, space, neighbour, sections, actor, hands, dice, likes, pins, keeps, loaded }
    }

    /// Works, until it has done enough or the space dies.
    pub(super) fn work(&mut self) {
        for _ in 0..self.world.operations {
            if self.space.is_dying() {
                self.actor.count("the space died under its CPUs");
                break;
            }
            self.let_go_of_what_is_left();
            if self.dice.one_in(if self.world.field.is_focused { 2 } else { 4 }) {
                let kept = if self.dice.one_in(2) { 0 } else { self.pins.len().saturating_sub(1) };
                self.let_go_of_pins(kept);
            }
            let moments = self.dice.roll(if self.world.field.is_focused { 3 } else { 6 });
            match self.run_guest(moments) {
                Some((ipa, kind)) if !self.dice.one_in(3) => self.fault(ipa, kind),
                _ => self.one_errand(),
            }
        }
        self.stop_running();
        self.leave_pins();
    }

    /// Runs the guest, under the tag that the space has.
    fn run_guest(&mut self, moments: u64) -> Option<(Ipa, Kind)> {
        if self.world.shape.tagging == Tagging::Shared {
            let (vmids, actor) = (&self.world.vmids, &self.actor);
            let vmid = vmids.activate(actor.id(), self.space.tag(), || actor.flush_all());
            if self.loaded != Some(vmid) {
                actor.load(Some(vmid));
                self.loaded = Some(vmid);
            }
        }
        let fault = self.actor.run_guest(moments);
        if self.dice.one_in(4) {
            self.stop_running();
        }
        fault
    }

    /// Has the space's tables loaded no more.
    pub(super) fn stop_running(&mut self) {
        if self.world.shape.tagging == Tagging::Shared {
            if self.loaded.take().is_some() {
                self.actor.load(None);
            }
            self.world.vmids.deactivate(self.actor.id());
        }
    }

    fn one_errand(&mut self) {
        let at = self.hot();
        match *self.dice.pick(&self.likes) {
            Errand::Fault if self.dice.one_in(3) => self.populate(at),
            Errand::Fault => self.fault(at, Kind::Load),
            Errand::Allow => self.fault(at, Kind::Store),
            Errand::Zap => {
                let range = self.some();
                self.zap(range);
            }
            Errand::Protect => self.protect(),
            Errand::Split => self.split(at),
            Errand::Collapse | Errand::Gather => self.collapse(at),
            Errand::Move => self.move_leaf(at),
            Errand::Harvest => self.harvest(),
            Errand::Age => self.age(),
            Errand::Prune => self.prune(),
            Errand::Pin => self.pin(at),
            Errand::Log => self.log(),
            Errand::Recover => self.recover(),
            Errand::Region => self.region(at),
            Errand::Admit => self.admit(),
            Errand::Roll => self.roll(),
            Errand::Attach => self.attach(),
            Errand::Lend => self.lend(at),
            Errand::TakeBack => self.take_back(),
            Errand::Give => self.give(at),
            Errand::Receive => self.receive(at),
            Errand::Borrow => self.borrow(at),
            Errand::Return => self.give_back(),
            Errand::End => self.condemn(),
        }
    }

    /// Returns a page that everybody likes: most often one that somebody else is at.
    fn hot(&mut self) -> Ipa {
        let hot = &self.world.field.hot;
        let others = self.actor.others();
        if !others.is_empty() && self.dice.one_in(2) {
            let (_, range) = *self.dice.pick(&others);
            let inside: Vec<Ipa> = hot.iter().filter(|ipa| range.contains(**ipa)).copied().collect();
            if !inside.is_empty() {
                return *self.dice.pick(&inside);
            }
        }
        *self.dice.pick(hot)
    }

    pub(super) fn page(&self, ipa: Ipa) -> Range {
        Range::block_around(ipa, span::<F>(Height::PAGE))
    }

    pub(super) fn block(&self, ipa: Ipa) -> Range {
        Range::block_around(ipa, span::<F>(Height::new(1)))
    }

    /// Returns a page, a block, or everything; in a run about one race blocks as often as pages: what has gone whole comes back
    /// as a block.
    pub(super) fn some(&mut self) -> Range {
        let at = self.hot();
        let blocks = if self.world.field.is_focused { 4 } else { 2 };
        match self.dice.roll(8) {
            0 => self.world.field.range,
            n if n <= blocks => self.block(at),
            _ => self.page(at),
        }
    }

    /// Looks at an error that an operation on a space has come to: running out of memory is one, where there is enough.
    pub(super) fn bear(&self, error: SpaceError) {
        let is_short = matches!(error, SpaceError::OutOfMemory { .. } | SpaceError::OutOfTables { .. });
        if is_short && self.world.shape.memory == super::Memory::Enough {
            self.actor.accuse(Breach::Leak, format!("{error:?} with memory at hand"));
        }
        if matches!(error, SpaceError::DeviceWouldFault { .. }) {
            self.actor.count("refused for a device");
        }
        if error == SpaceError::Dying {
            self.actor.count("a step met a dying space");
        }
    }

    /// Begins an errand that gives nobody the right to write.
    pub(super) fn begins(&self, errand: Errand, range: Range) -> u64 {
        self.actor.begins(errand, range, Gives::Nothing)
    }

    pub(super) fn ends(&self, errand: Errand, range: Range) {
        self.actor.ends(errand, range, Gives::Nothing);
    }

    /// Lets go of its own pins, the oldest first, until it has `most` left.
    pub(super) fn let_go_of_pins(&mut self, most: usize) {
        while self.pins.len() > most {
            let (pin, held) = self.pins.remove(0);
            self.unpin(pin, held);
        }
    }
}
