//! [`Worker`]: what one CPU does all day: it runs its guest, and between two runs one operation on the tree.

use super::breach::Breach;
use super::cpu::Cpu;
use super::errand::Errand;
use super::machine::{Adversary, pass};
use super::memory::Memory;
use super::promise::Gives;
use super::section::Recorded;
use super::stress::Field;
use super::walk::Kind;
use crate::Dice;
use stage2::{Attrs, ChangeError, CollapseError, Entry, Format, Mapping, Marks, Quiescence, Tree, Why, span};
use std::sync::Arc;
use types::sync::Point;
use types::{Access, Height, Ipa, Pa, Range};

/// How often an operation that finds an entry busy comes again.
const PATIENCE: u32 = 3;

/// One CPU at work.
pub(super) struct Worker<'w, F: Format> {
    pub(super) machine: &'w Arc<Adversary<F>>,
    pub(super) tree: &'w Tree<F, Memory<F>>,
    pub(super) sections: &'w Recorded<F>,
    pub(super) cpu: Cpu<'w, F>,
    pub(super) me: usize,
    field: &'w Field,
    dice: Dice,
    /// What this one likes to do: errands, as often as they are in the list.
    likes: Vec<Errand>,
}

pub(super) const ERRANDS: [Errand; 12] = [
    Errand::Fault,
    Errand::Allow,
    Errand::Zap,
    Errand::Protect,
    Errand::Split,
    Errand::Collapse,
    Errand::Gather,
    Errand::Move,
    Errand::Harvest,
    Errand::Age,
    Errand::Prune,
    Errand::Pin,
];

impl<'w, F: Format> Worker<'w, F> {
    pub(super) fn new(
        machine: &'w Arc<Adversary<F>>,
        tree: &'w Tree<F, Memory<F>>,
        sections: &'w Recorded<F>,
        cpu: Cpu<'w, F>,
        field: &'w Field,
        seed: u64,
    ) -> Self {
        let mut dice = Dice::new(seed);
        let mut likes = vec![Errand::Fault; if field.is_focused { 1 } else { 4 }];
        match &field.few {
            Some(few) => likes.extend(few.iter().flat_map(|errand| [*errand; 3])),
            None => {
                for errand in ERRANDS {
                    likes.extend(std::iter::repeat_n(errand, *dice.pick(&[1, 1, 2, 5])));
                }
            }
        }
        let me = cpu.id().index();
        Self { machine, tree, sections, cpu, me, field, dice, likes }
    }

    /// Works.
    pub(super) fn work(&mut self, operations: u64) {
        for _ in 0..operations {
            let moments = self.dice.roll(if self.field.is_focused { 3 } else { 6 });
            match self.cpu.run_guest(moments) {
                Some((ipa, kind)) if self.dice.one_in(2) => self.resolve(ipa, kind),
                _ => self.one_errand(),
            }
        }
        self.let_go_of_pins(0);
    }

    pub(super) fn page(&self, ipa: Ipa) -> Range {
        Range::block_around(ipa, span::<F>(Height::PAGE))
    }

    pub(super) fn block(&self, ipa: Ipa) -> Range {
        Range::block_around(ipa, span::<F>(Height::new(1)))
    }

    fn hot(&mut self) -> Ipa {
        *self.dice.pick(&self.field.hot)
    }

    /// Returns some pages, or a block, or everything.
    fn some(&mut self) -> Range {
        let at = self.hot();
        match self.dice.roll(8) {
            0 => self.field.range,
            1 | 2 => self.block(at),
            3 => {
                let len = span::<F>(Height::PAGE) * (1 + self.dice.roll(3));
                let end = at.wrapping_add(len).min(self.field.range.end());
                Range::new(at, end).unwrap_or_else(|_| self.page(at))
            }
            _ => self.page(at),
        }
    }

    /// A guest has faulted.
    fn resolve(&mut self, ipa: Ipa, kind: Kind) {
        let found = {
            let section = self.sections.enter(self.cpu.id());
            self.tree.open(&section).translate(ipa).entry(self.tree.format())
        };
        match found {
            Entry::Leaf(_) => self.allow(ipa, if kind == Kind::Store { Access::RW } else { Access::READ }),
            _ => self.fault(self.page(ipa), Height::PAGE),
        }
    }

    fn one_errand(&mut self) {
        let at = self.hot();
        match *self.dice.pick(&self.likes) {
            Errand::Fault if self.dice.one_in(3) => {
                // Blocks where somebody splits them; else more often pages side by side.
                let pages = if self.likes.contains(&Errand::Split) { 4 } else { 2 };
                let largest = if self.dice.one_in(pages) { Height::PAGE } else { Height::new(1) };
                self.fault(self.block(at), largest);
            }
            Errand::Fault => self.fault(self.page(at), Height::PAGE),
            Errand::Allow => self.allow(at, Access::RW),
            Errand::Zap => {
                let range = self.some();
                self.zap(range);
            }
            Errand::Protect => self.protect(),
            Errand::Split => self.split(at),
            Errand::Collapse => self.collapse(at),
            Errand::Gather => self.gather(at),
            Errand::Move => self.move_leaf(at),
            Errand::Harvest => self.harvest(),
            Errand::Age => self.age(),
            Errand::Prune => self.prune(),
            Errand::Pin => self.pin(at),
            // A tree alone has none of these.
            Errand::Log
            | Errand::Recover
            | Errand::Region
            | Errand::Admit
            | Errand::Roll
            | Errand::Attach
            | Errand::Lend
            | Errand::TakeBack
            | Errand::Give
            | Errand::Receive
            | Errand::Borrow
            | Errand::Return
            | Errand::End => {}
        }
    }

    /// Begins an errand; returns when.
    pub(super) fn begins(&self, errand: Errand, range: Range, gives: Gives) -> u64 {
        let mut since = 0;
        self.machine.check(|state, _| {
            since = state.begins(self.me, errand, range, gives);
            Ok(())
        });
        since
    }

    pub(super) fn ends(&self, errand: Errand, range: Range, gives: Gives) {
        self.machine.check(|state, _| {
            state.ends(self.me, errand, range, gives);
            Ok(())
        });
    }

    /// Maps `range` to frames that are free, in leaves of at most `largest`.
    fn fault(&mut self, range: Range, largest: Height) {
        let likely = self.dice.one_in(4);
        let access = if self.dice.one_in(6) { Access::RX } else { Access::RWX };
        let mut marks = Marks::YOUNG;
        marks.set(Marks::DIRTY, self.dice.one_in(2));
        let attrs = Attrs { access, marks, ..Attrs::RAM };
        let Some((pa, generations)) = self.take_frames(range, likely) else { return };
        let since = self.begins(Errand::Fault, range, Gives::Write);
        let given = if access.contains(Access::WRITE) { Gives::Write } else { Gives::Nothing };
        let mapping = Mapping { range, pa, attrs, largest, why: Why::Alignment };
        let by_claim = self.dice.one_in(3) && range == self.page(range.start());
        let next = if by_claim { self.map_by_claim(&mapping) } else { self.map(&mapping) };
        self.machine.check(|state, _| {
            if let Ok(done) = Range::new(range.start(), next) {
                state.certain(done, pa, &generations, since, given);
            }
            let done = next.get() - range.start().get();
            let freed = state.frames.free(pa.wrapping_add(done), next, range.len() - done);
            freed.map_err(|(breach, what)| super::state::Crime::at(breach, range, what))
        });
        self.ends(Errand::Fault, range, Gives::Write);
    }

    /// Maps in one go. Returns up to where.
    fn map(&self, mapping: &Mapping) -> Ipa {
        let section = self.sections.enter(self.cpu.id());
        self.tree.open(&section).map(&self.cpu, mapping).unwrap_or(mapping.range.start())
    }

    /// Maps a page as a fault does that looks again whether it may, and may not always. Returns up to where.
    fn map_by_claim(&mut self, mapping: &Mapping) -> Ipa {
        let start = mapping.range.start();
        let section = self.sections.enter(self.cpu.id());
        let view = self.tree.open(&section);
        let Ok(claim) = view.claim(start, Height::PAGE, mapping.why) else { return start };
        pass(Point::Step);
        if self.dice.one_in(3) {
            return start;
        }
        claim.publish(&self.cpu, mapping.pa, mapping.attrs);
        mapping.range.end()
    }

    /// Takes free frames for `range`: beside a neighbour's, unless by lot elsewhere.
    fn take_frames(&mut self, range: Range, elsewhere: bool) -> Option<(Pa, Vec<u64>)> {
        let mut taken = None;
        let block = self.block(range.start());
        self.machine.check(|state, arena| {
            let mut neighbours =
                state.hot.iter().filter(|ipa| block.contains(**ipa) && !range.contains(**ipa));
            let beside = neighbours.find_map(|ipa| state.mapped(arena, *ipa).map(|(_, pa)| (*ipa, pa)));
            let pa = match beside.filter(|_| !elsewhere) {
                Some((of, neighbour)) => state.frames.take_beside(neighbour, of, range, state.now),
                None => None,
            };
            let pa = match pa {
                Some(pa) => Some(pa),
                None => state.frames.take(range, state.now, &mut state.dice),
            };
            taken = pa.map(|pa| (pa, state.generations(pa, range.len())));
            Ok(())
        });
        taken
    }

    fn allow(&mut self, ipa: Ipa, access: Access) {
        let block = self.block(ipa);
        let since = self.begins(Errand::Allow, block, Gives::Write);
        {
            let section = self.sections.enter(self.cpu.id());
            let view = self.tree.open(&section);
            if let Ok(held) = view.hold_leaf(ipa) {
                pass(Point::Step);
                held.allow(&self.cpu, access);
                if access.contains(Access::WRITE) {
                    self.machine.state().allowed(self.page(ipa), since);
                }
            }
        }
        self.ends(Errand::Allow, block, Gives::Write);
    }

    /// Drives a bounded operation over `range`. `step` does a part and says how far it got; `done` is told of that.
    fn steps(
        &mut self,
        range: Range,
        mut step: impl FnMut(
            &Self,
            &mut <Recorded<F> as Quiescence>::Section<'w>,
            Range,
        ) -> Result<Ipa, ChangeError>,
        mut done: impl FnMut(&Self, Range),
    ) {
        let (mut at, mut busy) = (range.start(), 0);
        while at < range.end() && busy < PATIENCE {
            let Ok(rest) = Range::new(at, range.end()) else { return };
            let result = {
                let mut section = self.sections.enter(self.cpu.id());
                step(self, &mut section, rest)
            };
            match result {
                Ok(next) => {
                    if let Ok(part) = Range::new(at, next.min(range.end())) {
                        done(self, part);
                    }
                    busy += u32::from(next == at);
                    at = next;
                }
                Err(ChangeError::Busy { ipa, .. }) => {
                    busy += 1;
                    at = at.max(ipa);
                }
                Err(ChangeError::DeviceWouldFault { .. }) if self.machine.state().iommu.is_some() => {
                    self.machine.state().coverage.count("refused for a device");
                    return;
                }
                Err(other) => self.cpu.accuse(Breach::Leak, format!("{other:?} with memory at hand")),
            }
            self.machine.state().reports[self.me].frames.clear();
        }
    }

    fn zap(&mut self, range: Range) {
        let since = self.begins(Errand::Zap, range, Gives::Nothing);
        self.steps(
            range,
            |this, section, rest| {
                this.tree.unmap(section, &this.cpu, rest, &mut |lost| {
                    this.machine.check(|state, _| state.out(lost.ipa(), lost.height(), lost.entry()));
                })
            },
            |this, part| this.machine.check(|state, arena| state.zapped(arena, part, since)),
        );
        self.ends(Errand::Zap, range, Gives::Nothing);
    }

    fn protect(&mut self) {
        let range = self.some();
        let strict = self.dice.one_in(2);
        let (access, gives) = if strict { (Access::RX, Gives::Nothing) } else { (Access::RWX, Gives::Write) };
        let since = self.begins(Errand::Protect, range, gives);
        self.steps(
            range,
            |this, section, rest| {
                this.tree.protect(section, &this.cpu, rest, access, &mut |ipa, height| this.told(ipa, height))
            },
            |this, part| {
                this.machine.check(|state, arena| {
                    if strict {
                        state.promise_strict(part, since);
                    } else {
                        state.allowed(part, since);
                    }
                    state.answered(arena, this.me, part, since)
                });
            },
        );
        self.ends(Errand::Protect, range, gives);
    }

    fn told(&self, ipa: Ipa, height: Height) {
        pass(Point::Step);
        self.machine.check(|state, _| {
            state.told(self.me, ipa, height);
            Ok(())
        });
    }

    fn harvest(&mut self) {
        let range = self.some();
        let since = self.begins(Errand::Harvest, range, Gives::Nothing);
        self.steps(
            range,
            |this, section, rest| {
                this.tree.harvest(section, &this.cpu, rest, &mut |ipa, height| this.told(ipa, height))
            },
            |this, part| {
                this.machine.check(|state, arena| state.answered(arena, this.me, part, since));
            },
        );
        self.ends(Errand::Harvest, range, Gives::Nothing);
    }

    fn age(&mut self) {
        let range = self.some();
        self.begins(Errand::Age, range, Gives::Nothing);
        self.steps(
            range,
            |this, section, rest| this.tree.age(section, &this.cpu, rest, &mut |_, _| {}),
            |_, _| {},
        );
        self.ends(Errand::Age, range, Gives::Nothing);
    }

    fn prune(&mut self) {
        let range = if self.dice.one_in(2) { self.field.range } else { self.some() };
        if self.dice.one_in(2) {
            // So that there is something empty.
            self.zap(range);
        }
        self.begins(Errand::Prune, range, Gives::Nothing);
        self.steps(range, |this, section, rest| this.tree.prune(section, &this.cpu, rest), |_, _| {});
        {
            let mut section = self.sections.enter(self.cpu.id());
            self.tree.drain(&mut section, &mut |lost| {
                self.machine.check(|state, _| state.out(lost.ipa(), lost.height(), lost.entry()));
            });
        }
        self.ends(Errand::Prune, range, Gives::Nothing);
    }

    fn split(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        self.begins(Errand::Split, block, Gives::Nothing);
        {
            let section = self.sections.enter(self.cpu.id());
            match self.tree.open(&section).split(&self.cpu, ipa, Height::PAGE, Why::Pin) {
                Ok(()) | Err(ChangeError::Busy { .. }) => {}
                Err(ChangeError::DeviceWouldFault { .. }) if self.machine.state().iommu.is_some() => {
                    self.machine.state().coverage.count("refused for a device");
                }
                Err(other) => self.cpu.accuse(Breach::Leak, format!("{other:?} with a reserve")),
            }
        }
        self.ends(Errand::Split, block, Gives::Nothing);
    }

    fn collapse(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        self.begins(Errand::Collapse, block, Gives::Nothing);
        let result = {
            let mut section = self.sections.enter(self.cpu.id());
            self.tree.collapse(&mut section, &self.cpu, ipa, Height::new(1))
        };
        self.came_of(result, "collapsed in place");
        self.ends(Errand::Collapse, block, Gives::Nothing);
    }

    pub(super) fn came_of(&self, result: Result<(), CollapseError>, done: &'static str) {
        match result {
            Ok(()) => self.machine.state().coverage.count(done),
            Err(CollapseError::NoPages | CollapseError::Unmappable) => {
                self.cpu.accuse(Breach::Leak, format!("{result:?} with memory at hand"));
            }
            Err(_) => {}
        }
    }
}
