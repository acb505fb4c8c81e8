//! Changes of size at each break-before-make level, on Arm and on Intel: whatever the way, the same list of abstract states.
//!
//! The abstract state of a block is what anybody but its owner may rely on: it is whole, or in parts, or somebody is
//! changing it. What the hardware sees meanwhile is replayed from the list of writes: the old translation, or the new one,
//! which say the same; and nothing at all only where a break is the rule.

mod common;

use common::{BLOCK, GIB, PAGE, geometry, mapping, pages};
use ept::Ept;
use model::{Arena, Effect, Machine, Rig, range};
use stage2::{
    Bbm, ChangeError, Entry, EntryEpoch, Format, Geometry, Invalidate, Marks, Quiescence, Tree, Why, Work,
    shift,
};
use std::cell::Cell;
use std::collections::BTreeMap;
use types::{CpuId, Height, Ipa, Pa};
use vmsa::{Features, Vmsa};

const HEIGHT: Height = Height::new(1);
const LEVELS: [Bbm; 4] = [Bbm::Level0, Bbm::Level1, Bbm::Level2, Bbm::Level3];

/// What anybody but the owner may rely on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Nothing,
    Whole,
    Changing,
    Parts,
}

/// What the hardware has seen of one page on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Sights {
    /// It saw nothing.
    gaps: usize,
    /// It saw another page.
    strays: usize,
}

/// The memory of the tables, as the writes have left it.
struct Replay<F> {
    format: F,
    geometry: Geometry<F>,
    root: Pa,
    words: BTreeMap<(Pa, usize), u64>,
}

impl<F: Format> Replay<F> {
    fn word(&self, table: Pa, ipa: Ipa, height: Height) -> u64 {
        self.words.get(&(table, self.geometry.index(ipa, height))).copied().unwrap_or(0)
    }

    /// Follows valid links down to `height`, or to where there is none.
    fn find(&self, ipa: Ipa, down_to: Height) -> (u64, Height) {
        let (mut table, mut height) = (self.root, self.geometry.top());
        loop {
            let raw = self.word(table, ipa, height);
            match (F::child(raw), height.below()) {
                (Some(child), Some(below)) if height > down_to => (table, height) = (child, below),
                _ => return (raw, height),
            }
        }
    }

    /// Where the hardware's walk for `ipa` ends.
    fn translate(&self, ipa: Ipa) -> Option<Pa> {
        let (raw, height) = self.find(ipa, Height::PAGE);
        Some(F::output(raw, height)?.wrapping_add(ipa.get() & ((1 << shift::<F>(height)) - 1)))
    }

    fn state(&self, ipa: Ipa) -> State {
        let (raw, height) = self.find(ipa, HEIGHT);
        match self.format.decode(raw, height) {
            Entry::Absent => State::Nothing,
            Entry::Leaf(leaf) if !leaf.attrs.marks.intersects(Marks::NO_TLB | Marks::PENDING) => State::Whole,
            Entry::Table(table) if height == HEIGHT && !table.pending => State::Parts,
            _ => State::Changing,
        }
    }

    /// Does the writes, and returns each state of the block that they led to, and what the hardware saw of some pages.
    fn play(&mut self, effects: &[Effect], at: Ipa) -> (Vec<State>, Sights) {
        let (mut states, mut sights) = (vec![self.state(at)], Sights::default());
        let samples = [0, 1, 2, 255, 256, 511].map(|n| at.wrapping_add(n * PAGE + 5));
        let right = samples.map(|ipa| self.translate(ipa));
        for effect in effects {
            let Effect::Write { table, index, new, .. } = *effect else { continue };
            self.words.insert((table, index), new);
            let state = self.state(at);
            if states.last() != Some(&state) {
                states.push(state);
            }
            for (ipa, right) in samples.into_iter().zip(right) {
                let seen = self.translate(ipa);
                sights.gaps += usize::from(seen.is_none());
                sights.strays += usize::from(seen.is_some() && seen != right);
            }
        }
        (states, sights)
    }
}

/// Splits a block and makes one of it again; returns what each of the two looked like.
fn there_and_back<F: Format>(format: F, geometry: Geometry<F>, bbm: Bbm) -> [(Vec<State>, Sights); 2] {
    let machine = Machine::new(4 << 20);
    let mut rig = Rig::new(&machine, format, geometry, bbm);
    machine.drain();
    let root = rig.tree.root().pa();
    let mut replay = Replay { format, geometry, root, words: BTreeMap::new() };
    let at = Ipa::new(GIB);
    let section = machine.enter(CpuId::BOOT);
    rig.tree.open(&section).map(&machine, &mapping(range(GIB, BLOCK))).expect("free");
    drop(section);
    replay.play(&machine.drain(), at);
    let section = machine.enter(CpuId::BOOT);
    rig.tree.open(&section).split(&machine, at, Height::PAGE, Why::Pin).expect("memory");
    drop(section);
    let split = replay.play(&machine.drain(), at);
    let mut section = machine.enter(CpuId::BOOT);
    rig.tree.collapse(&mut section, &machine, at, HEIGHT).expect("even");
    drop(section);
    let collapse = replay.play(&machine.drain(), at);
    let attrs = mapping(range(GIB, BLOCK)).attrs;
    rig.flat.insert(range(GIB, BLOCK), model::Content::memory(mapping(range(GIB, BLOCK)).pa, attrs));
    [split, collapse]
}

/// The same for every machine: the way is nobody's business but the owner's.
fn judge([split, collapse]: &[(Vec<State>, Sights); 2], bbm: Bbm, what: &str) {
    assert_eq!(split.0, [State::Whole, State::Changing, State::Parts], "{what}");
    assert_eq!(collapse.0, [State::Parts, State::Changing, State::Whole], "{what}");
    for (_, sights) in [split, collapse] {
        assert_eq!(sights.strays, 0, "{what}: another translation was seen");
        assert_eq!(sights.gaps > 0, bbm == Bbm::Level0, "{what}: {} gaps", sights.gaps);
    }
}

#[test]
fn a_split_and_a_collapse_go_through_the_same_states_at_every_level() {
    for bbm in LEVELS {
        for features in [Features::empty(), Features::all()] {
            let went = there_and_back(Vmsa::new(features), geometry(), bbm);
            judge(&went, bbm, &format!("{features:?} at {bbm:?}"));
        }
    }
    let intel = Geometry::new(Height::new(3), 48).expect("possible");
    for features in [ept::Features::all(), ept::Features::all().difference(ept::Features::ACCESSED_DIRTY)] {
        judge(&there_and_back(Ept::new(features), intel, Bbm::Level3), Bbm::Level3, &format!("{features:?}"));
    }
}

/// A CPU in the middle of whose first invalidation another one acts.
struct Meanwhile<A>(Cell<Option<A>>);

impl<A: FnOnce()> Invalidate for Meanwhile<A> {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}

/// A CPU whose invalidation is instant.
fn instant() -> Meanwhile<fn()> {
    Meanwhile(Cell::new(None))
}

#[test]
fn a_change_that_a_downgrade_meets_ends_as_it_began_and_the_next_one_breaks() {
    for bbm in [Bbm::Level1, Bbm::Level2, Bbm::Level3] {
        let arena = Arena::new(1 << 20);
        let tree = Tree::new(Vmsa::<vmsa::Granule4K>::new(Features::empty()), geometry(), bbm, &arena)
            .expect("room");
        // Each CPU on its own: on one thread nobody's section can end inside another's wait.
        let epochs: [EntryEpoch; 2] = core::array::from_fn(|_| EntryEpoch::new());
        let cpu = |n: usize| epochs[n].enter(CpuId::new(n).expect("few"));
        let mut a = cpu(0);
        let at = Ipa::new(GIB);
        let sees = |ipa| tree.open(&cpu(1)).translate(ipa).pa(ipa).is_some();
        tree.open(&a).map(&instant(), &pages(range(GIB, BLOCK))).expect("free");
        let lowered = Cell::new(None);
        let during = Meanwhile(Cell::new(Some(|| {
            assert!(sees(at), "{bbm:?}: it is changed live");
            lowered.set(Some(tree.lower_bbm(&mut cpu(1), Bbm::Level0)));
            assert!(sees(at), "{bbm:?}: and goes on as it began");
        })));
        tree.collapse(&mut a, &during, at, HEIGHT).expect("even");
        let busy = matches!(lowered.take(), Some(Err(ChangeError::Busy { .. })));
        assert!(busy, "{bbm:?}: nobody is let in while it is under way");
        assert_eq!(tree.bbm(), Bbm::Level0);
        assert_eq!(tree.lower_bbm(&mut cpu(1), Bbm::Level0), Ok(()), "{bbm:?}: and now it is over");
        let after = Meanwhile(Cell::new(Some(|| assert!(!sees(at), "{bbm:?}: broken first"))));
        tree.open(&a).split(&after, at, Height::PAGE, Why::Pin).expect("memory");
        assert!(after.0.take().is_none(), "it was looked at");
    }
}
