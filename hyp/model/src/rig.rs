//! [`Rig`]: a tree on a recording machine, with both oracles beside it. Every operation is driven to its end step by
//! step; after each step the judge reads what was done, and after each operation the tree is compared with the list.

use crate::{Content, Flat, Judge, Machine, Style};
use stage2::{
    Attrs, Bbm, ChangeError, CollapseError, Format, Geometry, HEIGHTS, MapError, Mapping, Note, Quiescence,
    STEP_ENTRIES, Tree, Why,
};
use std::collections::BTreeSet;
use types::{Access, CpuId, Height, Ipa, Pa, Range};

/// A tree, and what is known about it.
#[derive(Debug)]
pub struct Rig<'m, F: Format> {
    machine: &'m Machine,
    /// The tree.
    pub tree: Tree<F, &'m Machine>,
    /// What it should translate.
    pub flat: Flat,
    judge: Judge<F>,
}

impl<'m, F: Format> Rig<'m, F> {
    /// Makes an empty tree on `machine`, which no other tree is on. Another CPU has looked at it, so that grace
    /// periods are needed.
    pub fn new(machine: &'m Machine, format: F, geometry: Geometry<F>, bbm: Bbm) -> Self {
        let tree = Tree::new(format, geometry, bbm, machine).expect("an arena has room for a root");
        let judge = Judge::new(format, geometry, bbm, tree.root().pa());
        let other = machine.enter(CpuId::new(1).expect("small"));
        let _ = tree.open(&other);
        drop(other);
        Self { machine, tree, flat: Flat::new(), judge }
    }

    /// The same, on CPUs that are made to forget in another style.
    #[must_use]
    pub fn in_style(self, style: Style) -> Self {
        Self { judge: self.judge.in_style(style), ..self }
    }

    /// The same, where no CPU has entered a guest of the space so far: then it is known who may hold what.
    #[must_use]
    pub fn entered_by_nobody(self) -> Self {
        Self { judge: self.judge.entered_by_nobody(), ..self }
    }

    /// Returns the machine.
    pub const fn machine(&self) -> &'m Machine {
        self.machine
    }

    fn step(&mut self) {
        self.machine.step_end();
        let effects = self.machine.drain();
        self.judge.judge(&effects).unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// Compares the tree with the list, and the counters with the tree.
    pub fn compare(&mut self) {
        self.step();
        let section = self.machine.enter(CpuId::BOOT);
        let view = self.tree.open(&section);
        let reach = self.tree.geometry().reach();
        assert_eq!(Flat::of(&view, reach), self.flat);
        for stretch in self.flat.stretches() {
            let Content::Memory { pa, .. } = stretch.content else { continue };
            let last = stretch.range.len() - 1;
            for at in [0, last / 2, last] {
                let ipa = stretch.range.start().wrapping_add(at);
                assert_eq!(view.translate(ipa).pa(ipa), Some(pa.wrapping_add(at)), "{ipa:?}");
            }
        }
        let (leaves, tables) = count(&self.tree, &view, reach);
        let census = self.tree.census();
        assert_eq!((census.leaves, census.tables), (leaves, tables), "the counters agree with the tree");
        assert_eq!(self.machine.arena().in_use() as u64, tables + 1, "no table is leaked");
        let reserve: u64 = (0..)
            .zip(leaves)
            .map(|(h, n)| if n == 0 { 0 } else { n * Geometry::<F>::split_tables(Height::new(h)) })
            .sum();
        assert_eq!(self.machine.reserved(), reserve as i64, "every block has its reserve, and nobody else");
    }

    /// Maps as much of `mapping` as can be, and says why it ended, if early.
    pub fn map(&mut self, mapping: &Mapping) -> Result<(), MapError> {
        let mut rest = *mapping;
        loop {
            let section = self.machine.enter(CpuId::BOOT);
            let result = self.tree.open(&section).map(self.machine, &rest);
            drop(section);
            self.step();
            let taken = self.flat.first_in(rest.range);
            match result {
                Ok(next) => {
                    assert!(next > rest.range.start() || rest.range.is_empty(), "a step gets on");
                    assert!(next <= taken.unwrap_or(rest.range.end()), "mapped over something");
                    let done = Range::new(rest.range.start(), next).expect("ascending");
                    self.flat.insert(done, Content::memory(rest.pa, self.seen(mapping.attrs)));
                    match rest.rest(next) {
                        Some(left) => rest = left,
                        None => return Ok(()),
                    }
                }
                Err(error) => {
                    if let MapError::Occupied { ipa, .. } | MapError::Noted { ipa, .. } = error {
                        assert_eq!((Some(ipa), ipa), (taken, rest.range.start()), "{error:?}");
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The attributes as the tree gives them back.
    fn seen(&self, attrs: Attrs) -> Attrs {
        let leaf = stage2::Leaf { pa: Pa::new(0), attrs };
        match self.tree.format().canonical(stage2::Entry::Leaf(leaf), Height::PAGE) {
            stage2::Entry::Leaf(leaf) => leaf.attrs,
            _ => attrs,
        }
    }

    /// Puts a note on as much of `range` as can be.
    pub fn annotate(&mut self, range: Range, payload: u32) -> Result<(), MapError> {
        let mut at = range.start();
        while at < range.end() {
            let rest = Range::new(at, range.end()).expect("ascending");
            let section = self.machine.enter(CpuId::BOOT);
            let result = self.tree.open(&section).annotate(rest, Note::new(payload));
            drop(section);
            self.step();
            let next = result?;
            self.flat.insert(Range::new(at, next).expect("ascending"), Content::Note(payload));
            at = next;
        }
        Ok(())
    }

    /// Unmaps `range`, and checks that exactly what was there comes out.
    pub fn unmap(&mut self, range: Range) -> Result<(), ChangeError> {
        let mut lost = Flat::new();
        let (end, result) = self.steps(range, |machine, tree, section, rest| {
            tree.unmap(section, machine, rest, &mut |entry| {
                let covered = Range::block_around(entry.ipa(), stage2::span::<F>(entry.height()));
                machine.handed(covered);
                lost.add(covered, entry.entry());
            })
        });
        let done = Range::new(range.start(), end).expect("ascending");
        assert_eq!(lost, self.flat.remove(done), "what comes out is what was there");
        result
    }

    /// Gives what is mapped in `range` the rights `access`.
    pub fn protect(&mut self, range: Range, access: Access) -> Result<(), ChangeError> {
        let (end, result) = self.steps(range, |machine, tree, section, rest| {
            tree.protect(section, machine, rest, access, &mut |_, _| {})
        });
        let given = self.seen(Attrs::RAM.with_access(access)).access;
        self.flat.protect(Range::new(range.start(), end).expect("ascending"), given);
        result
    }

    /// Gives back empty tables.
    pub fn prune(&mut self, range: Range) {
        let (_, result) =
            self.steps(range, |machine, tree, section, rest| tree.prune(section, machine, rest));
        result.expect("prune leaves alone what it cannot have");
    }

    /// Splits what maps `ipa` down to `height`.
    pub fn split(&mut self, ipa: Ipa, height: Height) -> Result<(), ChangeError> {
        let section = self.machine.enter(CpuId::BOOT);
        let result = self.tree.open(&section).split(self.machine, ipa, height, Why::DirtyLog);
        drop(section);
        self.step();
        result
    }

    /// Collapses the table around `ipa` to a block of `height`.
    pub fn collapse(&mut self, ipa: Ipa, height: Height) -> Result<(), CollapseError> {
        let mut section = self.machine.enter(CpuId::BOOT);
        let result = self.tree.collapse(&mut section, self.machine, ipa, height);
        drop(section);
        self.step();
        result
    }

    /// Cleans what is dirty in `range`. Returns it: first address and height of each leaf.
    pub fn harvest(&mut self, range: Range) -> Vec<(Ipa, Height)> {
        let mut dirty = Vec::new();
        let (_, result) = self.steps(range, |machine, tree, section, rest| {
            tree.harvest(section, machine, rest, &mut |ipa, height| dirty.push((ipa, height)))
        });
        result.expect("nobody else is at work");
        self.seen_clean(&dirty);
        dirty
    }

    /// Lets the guest write again to leaves that were cleaned: each has the right to write afterwards, and is dirty.
    pub fn write_again(&mut self, cleaned: &[(Ipa, Height)]) {
        for &(ipa, height) in cleaned {
            let section = self.machine.enter(CpuId::BOOT);
            let view = self.tree.open(&section);
            let held = view.hold_leaf(ipa).expect("nobody else is at work");
            assert_eq!(held.height(), height, "{ipa:?}");
            held.allow(self.machine, Access::WRITE);
            let found = view.translate(ipa).entry(self.tree.format());
            let stage2::Entry::Leaf(leaf) = found else { panic!("{found:?} where a leaf was held") };
            assert!(leaf.attrs.marks.contains(stage2::Marks::DIRTY), "a write to {ipa:?} went unseen");
            drop(section);
            self.step();
            self.flat.protect(Range::block_around(ipa, stage2::span::<F>(height)), leaf.attrs.access);
        }
    }

    /// Has the leaf that maps `ipa`, if any, map the memory `by` bytes behind what it maps, with the same attributes.
    pub fn relocate(&mut self, ipa: Ipa, by: u64) {
        let section = self.machine.enter(CpuId::BOOT);
        let view = self.tree.open(&section);
        let found = view.translate(ipa);
        if let stage2::Entry::Leaf(leaf) = found.entry(self.tree.format()) {
            let taken = view.take_leaf(self.machine, ipa, found.height()).expect("nobody else is at work");
            // Far away, and back again: within every format's output size.
            let pa = Pa::new(leaf.pa.get() ^ by);
            let (range, attrs) = (taken.range(), taken.leaf().attrs);
            taken.publish(self.machine, pa, attrs);
            self.flat.remove(range);
            self.flat.insert(range, Content::memory(pa, attrs));
        }
        drop(section);
        self.step();
    }

    /// Where there is no hardware dirty flag, what was cleaned cannot be written.
    fn seen_clean(&mut self, dirty: &[(Ipa, Height)]) {
        let format = self.tree.format();
        for &(ipa, height) in dirty {
            let range = Range::block_around(ipa, stage2::span::<F>(height));
            let section = self.machine.enter(CpuId::BOOT);
            let found = self.tree.open(&section).translate(ipa).entry(format);
            if let stage2::Entry::Leaf(leaf) = found {
                assert!(!leaf.attrs.marks.contains(stage2::Marks::DIRTY), "{ipa:?} is dirty still");
                self.flat.protect(range, leaf.attrs.access);
            }
        }
    }

    /// Makes what is young in `range` old. Returns it: first address and height of each leaf.
    pub fn age(&mut self, range: Range) -> Vec<(Ipa, Height)> {
        let mut young = Vec::new();
        let (_, result) = self.steps(range, |machine, tree, section, rest| {
            tree.age(section, machine, rest, &mut |ipa, height| young.push((ipa, height)))
        });
        result.expect("nobody else is at work");
        young
    }

    /// Drives an operation to its end, or to an error. Returns up to where it is done.
    fn steps(
        &mut self,
        range: Range,
        mut step: impl FnMut(
            &'m Machine,
            &Tree<F, &'m Machine>,
            &mut <Machine as Quiescence>::Section<'m>,
            Range,
        ) -> Result<Ipa, ChangeError>,
    ) -> (Ipa, Result<(), ChangeError>) {
        let mut at = range.start();
        let mut steps = 0;
        while at < range.end() {
            let rest = Range::new(at, range.end()).expect("ascending");
            let mut section = self.machine.enter(CpuId::BOOT);
            let result = step(self.machine, &self.tree, &mut section, rest);
            drop(section);
            self.step();
            match result {
                Ok(next) => at = next,
                Err(error @ (ChangeError::Busy { ipa, .. } | ChangeError::NoPages { ipa, .. })) => {
                    assert!(ipa >= at);
                    return (ipa, Err(error));
                }
                Err(error) => return (at, Err(error)),
            }
            steps += 1;
            assert!(steps < 1 << 20, "an operation that never ends");
        }
        (at, Ok(()))
    }

    /// Ends the tree and checks that everything comes back.
    pub fn destroy(mut self) {
        let mut section = self.machine.enter(CpuId::BOOT);
        let mut remains = self.tree.destroy(&mut section, self.machine);
        let mut lost = Flat::new();
        let mut done = false;
        while !done {
            done = remains.sweep(CpuId::BOOT, &mut |entry| {
                let covered = Range::block_around(entry.ipa(), stage2::span::<F>(entry.height()));
                lost.add(covered, entry.entry());
            });
        }
        assert_eq!(lost, self.flat, "what comes out is what was there");
        let effects = self.machine.drain();
        self.judge.judge(&effects).unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(self.machine.arena().in_use(), 0, "no table is leaked");
        let census = remains.census();
        assert_eq!((census.leaves, census.tables), ([0; HEIGHTS], 0));
        assert_eq!(self.machine.reserved(), 0, "no reserve is leaked");
    }
}

/// Counts leaves by height, and tables without the root.
fn count<F: Format, M, R>(
    tree: &Tree<F, M>,
    view: &stage2::View<'_, F, M, R>,
    range: Range,
) -> ([u64; HEIGHTS], u64)
where
    M: stage2::Entries + stage2::Pages,
{
    let mut leaves = [0; HEIGHTS];
    // Links are seen again where a walk is resumed below them.
    let mut tables = BTreeSet::new();
    let mut at = range.start();
    while at < range.end() {
        let rest = Range::new(at, range.end()).expect("ascending");
        let mut visits = 0;
        let walked = view.walk(rest, |visit| {
            visits += 1;
            match visit.entry(tree.format()) {
                stage2::Entry::Leaf(_) => leaves[usize::from(visit.height().get())] += 1,
                stage2::Entry::Table(table) => {
                    tables.insert(table.pa);
                    return stage2::Answer::Descend;
                }
                _ => {}
            }
            stage2::Answer::Continue
        });
        assert!(visits <= STEP_ENTRIES + (2 << F::INDEX_BITS), "a step is bounded: {visits}");
        at = walked.next;
    }
    (leaves, tables.len() as u64)
}
