//! The errands that are about frames: contents that are moved, one leaf or a block at a time, and pins that are in the way.

use super::errand::Errand;
use super::machine::{Adversary, pass};
use super::promise::Gives;
use super::state::Pinned;
use super::work::Worker;
use stage2::{Children, Entries, Format, Leaf, MOVE_BYTES, Mover, Quiescence, span};
use std::sync::Arc;
use types::sync::Point;
use types::{Height, Ipa, Pa, Range};

/// The most pins that one CPU has at a time.
const PINS: usize = 2;

impl<F: Format> Worker<'_, F> {
    pub(super) fn gather(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        if block.len() > MOVE_BYTES {
            return self.move_leaf(ipa);
        }
        self.begins(Errand::Gather, block, Gives::Nothing);
        let result = {
            let mut section = self.sections.enter(self.cpu.id());
            let mut mover = Gatherer { machine: self.machine, block };
            self.tree.collapse_into(&mut section, &self.cpu, ipa, Height::new(1), &mut mover, &mut |lost| {
                let bytes = span::<F>(lost.height());
                self.machine.check(|state, _| {
                    let Some(pa) = lost.pa() else { return Ok(()) };
                    // The mover has given it up already, but for others' use.
                    if let Some(frame) = state.frames.get_mut(pa) {
                        frame.is_orphan = false;
                    }
                    state.out_of_reach(pa, bytes, Range::block_around(lost.ipa(), bytes))
                });
            })
        };
        self.came_of(result, "collapsed into another block");
        self.ends(Errand::Gather, block, Gives::Nothing);
    }

    pub(super) fn move_leaf(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        self.begins(Errand::Move, block, Gives::Nothing);
        {
            let section = self.sections.enter(self.cpu.id());
            let view = self.tree.open(&section);
            let height = view.translate(ipa).height();
            if let Ok(taken) = view.take_leaf(&self.cpu, ipa, height) {
                let (range, leaf) = (taken.range(), taken.leaf());
                let mut to = None;
                self.machine.check(|state, _| {
                    let pages: Vec<u64> =
                        (0..range.len()).step_by(span::<F>(Height::PAGE) as usize).collect();
                    let pinned = |at: &u64| {
                        state.frames.get(leaf.pa.wrapping_add(*at)).is_some_and(|frame| frame.pins > 0)
                    };
                    if pages.iter().any(pinned) {
                        state.coverage.count("move lost to pin");
                        return Ok(());
                    }
                    to = state.frames.take(range, state.now, &mut state.dice);
                    let Some(to) = to else { return Ok(()) };
                    for at in pages {
                        let (page, from) = (range.start().wrapping_add(at), leaf.pa.wrapping_add(at));
                        state.move_contents(page, from, to.wrapping_add(at), leaf.attrs.marks)?;
                    }
                    state.coverage.count("moved");
                    Ok(())
                });
                pass(Point::Step);
                if let Some(to) = to {
                    taken.publish(&self.cpu, to, leaf.attrs);
                }
            }
        }
        self.ends(Errand::Move, block, Gives::Nothing);
    }

    /// Pins the page at `ipa` for a device: the frame first, and then a second look at the tables.
    pub(super) fn pin(&mut self, ipa: Ipa) {
        self.let_go_of_pins(PINS - 1);
        let page = self.page(ipa);
        self.begins(Errand::Pin, page, Gives::Nothing);
        {
            let section = self.sections.enter(self.cpu.id());
            let view = self.tree.open(&section);
            let sight = view.sight(page.start());
            if let Some(pa) = sight.found().pa(page.start()) {
                let mut pinned = false;
                self.machine.check(|state, _| {
                    if let Some(frame) = state.frames.get_mut(pa).filter(|frame| frame.home.is_some()) {
                        frame.pins += 1;
                        let generation = frame.generation;
                        let (page, by, number) = (page.start(), self.me, state.now);
                        let (writes, has_written) = (true, false);
                        let pin = Pinned { pa, generation, page, by, number, writes, has_written };
                        state.pins.push(pin);
                        pinned = true;
                    }
                    Ok(())
                });
                pass(Point::Step);
                if pinned && !view.stands(&sight) {
                    self.machine.state().coverage.count("pin lost to a writer");
                    self.unpin(pa);
                } else if pinned {
                    self.machine.check(|state, _| state.is_pinned_here(pa, page));
                    self.machine.state().coverage.count("pinned");
                }
            }
        }
        self.ends(Errand::Pin, page, Gives::Nothing);
    }

    /// Lets go of its own pins, the oldest first, until it has `most` left.
    pub(super) fn let_go_of_pins(&self, most: usize) {
        loop {
            let mine: Vec<Pa> = {
                let state = self.machine.state();
                state.pins.iter().filter(|pin| pin.by == self.me).map(|pin| pin.pa).collect()
            };
            if mine.len() <= most {
                return;
            }
            self.unpin(mine[0]);
        }
    }

    fn unpin(&self, pa: Pa) {
        self.machine.check(|state, _| {
            if let Some(n) = state.pins.iter().position(|pin| pin.pa == pa && pin.by == self.me) {
                state.pins.remove(n);
                if let Some(frame) = state.frames.get_mut(pa) {
                    frame.pins -= 1;
                    frame.is_orphan &= frame.pins > 0;
                }
            }
            Ok(())
        });
    }
}

/// Brings what is in a block's pages together in frames side by side.
struct Gatherer<'w, F: Format> {
    machine: &'w Arc<Adversary<F>>,
    block: Range,
}

impl<F: Format> Mover<F> for Gatherer<'_, F> {
    fn move_in<M: Entries>(&mut self, children: &Children<'_, F, M>) -> Option<Pa> {
        let children: Vec<(Ipa, Leaf)> = children.iter().collect();
        let mut to = None;
        self.machine.check(|state, _| {
            let pinned = |pa: Pa| state.frames.get(pa).is_some_and(|frame| frame.pins > 0);
            if children.iter().any(|(_, leaf)| pinned(leaf.pa)) {
                state.coverage.count("move lost to pin");
                return Ok(());
            }
            to = state.frames.take(self.block, state.now, &mut state.dice);
            let Some(to) = to else { return Ok(()) };
            for (ipa, leaf) in &children {
                let new = to.wrapping_add(ipa.get() - self.block.start().get());
                state.move_contents(*ipa, leaf.pa, new, leaf.attrs.marks)?;
                if let Some(frame) = state.frames.get_mut(leaf.pa) {
                    frame.is_orphan = true;
                }
            }
            Ok(())
        });
        pass(Point::Step);
        to
    }
}
