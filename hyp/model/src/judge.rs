//! The judge: reads a list of [`Effect`]s and says which rule it breaks, if any.
//!
//! One small automaton for each entry that the hardware can reach:
//!
//! ```text
//! Clean ──(valid word)──▶ Live ──(taken away)──▶ Broken ──(invalidation begun, then complete)──▶ Clean
//!                          └──(weakened)──▶ Weak ──(the same)──▶ Live
//! ```
//!
//! and one for each table: taken → linked → unlinked → (invalidated, and a grace period) → given back. The rules are
//! written from the manual and the protocol, not from the library: `Format::decode` is all that is shared.

use crate::Effect;
use stage2::{Bbm, Class, Entry, Format, Geometry, Leaf, Live, Marks, Scope, Table, Work, span};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use types::{Height, Ipa, Pa, Range};

/// What the rules say against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! require {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(Violation(format!($($message)*)));
        }
    };
}

/// What invalidation an entry still needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dirt {
    /// It was taken away or weakened.
    Fresh,
    /// The invalidation with this number covers it.
    Begun(usize),
}

/// An entry that TLBs may know better than the tables.
#[derive(Clone, Copy, Debug)]
struct Unclean {
    class: Class,
    /// The height of the leaf that TLBs may hold, where no level hint would be wrong otherwise.
    hint: Option<Height>,
    dirt: Dirt,
    /// The entry itself is not valid any more, as opposed to weaker than it was.
    is_broken: bool,
    /// What it was when it was taken away.
    was: Live,
}

/// Where a linked table hangs.
#[derive(Clone, Copy, Debug)]
struct Linked {
    ipa: Ipa,
    height: Height,
}

/// What an unlinked table waits for.
#[derive(Clone, Debug, Default)]
struct Unlinked {
    span: Option<Range>,
    begun: BTreeSet<usize>,
    is_invalidated: bool,
    graces: BTreeSet<usize>,
    is_quiescent: bool,
}

/// The state of one tree.
#[derive(Debug)]
pub struct Judge<F> {
    format: F,
    geometry: Geometry<F>,
    bbm: Bbm,
    words: BTreeMap<Pa, BTreeMap<usize, u64>>,
    linked: BTreeMap<Pa, Linked>,
    unlinked: BTreeMap<Pa, Unlinked>,
    unclean: BTreeMap<(Pa, usize), Unclean>,
    /// What tables that are still linked may be given back by: the end of the whole tree.
    end: Unlinked,
}

impl<F: Format> Judge<F> {
    /// Makes the judge of the tree with the root `root`.
    pub fn new(format: F, geometry: Geometry<F>, bbm: Bbm, root: Pa) -> Self {
        let mut linked = BTreeMap::new();
        linked.insert(root, Linked { ipa: Ipa::new(0), height: geometry.top() });
        let words = BTreeMap::from([(root, BTreeMap::new())]);
        Self {
            format,
            geometry,
            bbm,
            words,
            linked,
            unlinked: BTreeMap::new(),
            unclean: BTreeMap::new(),
            end: Unlinked::default(),
        }
    }

    /// Judges what was done next.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn judge(&mut self, effects: &[Effect]) -> Result<(), Violation> {
        for (n, &effect) in effects.iter().enumerate() {
            self.step(effect)
                .map_err(|Violation(what)| Violation(format!("effect {n}, {effect:x?}: {what}")))?;
        }
        Ok(())
    }

    fn step(&mut self, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Take { table, .. } => {
                self.words.insert(table, BTreeMap::new());
                Ok(())
            }
            Effect::GiveBack { table } => self.give_back(table),
            Effect::Write { table, index, old, new } => self.write(table, index, old, new),
            Effect::Begin { work, id } => {
                self.begin(work, id);
                Ok(())
            }
            Effect::Complete { id } => {
                self.complete(id);
                Ok(())
            }
            Effect::Grace { id } => {
                self.waiting().for_each(|table| {
                    table.graces.insert(id);
                });
                Ok(())
            }
            Effect::GraceOver { id } => {
                self.waiting().for_each(|table| table.is_quiescent |= table.graces.contains(&id));
                Ok(())
            }
            Effect::Handed { range } => self.handed(range),
            Effect::StepEnd => self.step_end(),
        }
    }

    fn waiting(&mut self) -> impl Iterator<Item = &mut Unlinked> {
        self.unlinked.values_mut().chain([&mut self.end])
    }

    fn place(&self, table: Pa, index: usize) -> Option<(Range, Height)> {
        let Linked { ipa, height } = *self.linked.get(&table)?;
        let start = ipa.wrapping_add(index as u64 * span::<F>(height));
        Some((Range::block_around(start, span::<F>(height)), height))
    }

    fn write(&mut self, table: Pa, index: usize, old: u64, new: u64) -> Result<(), Violation> {
        let known = self.words.get(&table).and_then(|words| words.get(&index)).copied().unwrap_or(0);
        self.words.entry(table).or_default().insert(index, new);
        let Some((range, height)) = self.place(table, index) else { return Ok(()) };
        let settled = |raw| self.format.settled(raw, height);
        require!(settled(known) == settled(old), "the entry was {known:#x}, and nobody wrote {old:#x}");
        let (from, to) = (self.format.decode(old, height), self.format.decode(new, height));
        let key = (table, index);
        match (from.live(), to.live()) {
            (None, None) => self.require_clean(key, to),
            (None, Some(live)) => {
                if !self.put_back(key, live, height) {
                    self.require_clean(key, to)?;
                }
                self.link(live, range, height)
            }
            (Some(live), None) => {
                require!(
                    to == Entry::Frozen,
                    "{to:?} stored over a live entry: it must be frozen until it is clean"
                );
                let class = if let Live::Table(_) = live { Class::Tables } else { Class::Leaves };
                self.soil(key, live, height, class, true);
                if let Live::Table(link) = live {
                    self.unlink(link, range);
                }
                Ok(())
            }
            (Some(from), Some(to)) => self.rewrite(key, from, to, range, height),
        }
    }

    /// Putting back exactly what was taken away owes nothing: a TLB that held it would hold the truth.
    fn put_back(&mut self, key: (Pa, usize), live: Live, height: Height) -> bool {
        let settled = |live: Live| self.format.settled(self.format.encode(live.into(), height), height);
        let same = self.unclean.get(&key).is_some_and(|u| u.is_broken && settled(u.was) == settled(live));
        if same {
            self.unclean.remove(&key);
            if let Live::Table(link) = live {
                self.unlinked.remove(&link.pa);
            }
        }
        same
    }

    /// An entry that was taken away may become something else only when it is clean.
    fn require_clean(&self, key: (Pa, usize), to: Entry) -> Result<(), Violation> {
        if to == Entry::Frozen {
            return Ok(());
        }
        let unclean = self.unclean.get(&key).filter(|unclean| unclean.is_broken);
        require!(unclean.is_none(), "{to:?} stored before the invalidation was complete: {unclean:?}");
        Ok(())
    }

    fn soil(&mut self, key: (Pa, usize), was: Live, height: Height, class: Class, is_broken: bool) {
        let pending = match was {
            Live::Leaf(leaf) => leaf.attrs.marks.contains(Marks::PENDING),
            Live::Table(_) => true,
        };
        let hint = (!pending && class == Class::Leaves).then_some(height);
        let mut unclean = Unclean { class, hint, dirt: Dirt::Fresh, is_broken, was };
        if let Some(before) = self.unclean.get(&key) {
            unclean.class = unclean.class.max(before.class);
            unclean.hint = if before.hint == hint { hint } else { None };
        }
        self.unclean.insert(key, unclean);
    }

    fn rewrite(
        &mut self,
        key: (Pa, usize),
        from: Live,
        to: Live,
        range: Range,
        height: Height,
    ) -> Result<(), Violation> {
        match (from, to) {
            (Live::Leaf(from), Live::Leaf(to)) => {
                require!(from.pa == to.pa, "the address of a live leaf changed");
                let (old, new) = (from.attrs, to.attrs);
                require!(old.memory == new.memory, "the type of a live leaf changed");
                require!(old.share == new.share, "the shareability of a live leaf changed");
                let flipped = old.marks ^ new.marks;
                require!(
                    !flipped.contains(Marks::NO_TLB) || self.bbm >= Bbm::Level1,
                    "nT changed on CPUs that do not have it"
                );
                let taken = !new.access.contains(old.access)
                    || (old.marks - new.marks).intersects(Marks::YOUNG | Marks::DIRTY)
                    || flipped.contains(Marks::NO_TLB);
                if taken {
                    self.soil(key, Live::Leaf(from), height, Class::Leaves, false);
                }
                Ok(())
            }
            (Live::Table(from), Live::Table(to)) => {
                require!(from.pa == to.pa, "a live link was turned to another table");
                let still_unclean = self.unclean.contains_key(&key);
                require!(
                    to.pending || !still_unclean,
                    "pending was cleared before the invalidation was complete"
                );
                Ok(())
            }
            (Live::Leaf(block), Live::Table(link)) => self.split(key, block, link, range, height),
            (Live::Table(link), Live::Leaf(block)) => self.collapse(key, link, block, range, height),
        }
    }

    fn split(
        &mut self,
        key: (Pa, usize),
        block: Leaf,
        link: Table,
        range: Range,
        height: Height,
    ) -> Result<(), Violation> {
        let was_unclean = self.unclean.get(&key).copied();
        match self.bbm {
            Bbm::Level0 => {
                return Err(Violation("a live block became a table: it must be broken first".into()));
            }
            Bbm::Level1 => {
                require!(block.attrs.marks.contains(Marks::NO_TLB), "a live block became a table without nT");
                require!(
                    was_unclean.is_none(),
                    "a block with nT became a table before nT had reached the TLBs"
                );
            }
            Bbm::Level2 | Bbm::Level3 => {}
        }
        require!(link.pending, "a block became a table without the pending bit");
        self.soil(key, Live::Leaf(block), height, Class::Leaves, false);
        self.link(Live::Table(link), range, height)?;
        self.require_same(block, link, height)
    }

    fn collapse(
        &mut self,
        key: (Pa, usize),
        link: Table,
        block: Leaf,
        range: Range,
        height: Height,
    ) -> Result<(), Violation> {
        let marks = block.attrs.marks;
        match self.bbm {
            Bbm::Level0 => {
                return Err(Violation("a live table became a block: it must be broken first".into()));
            }
            Bbm::Level1 => require!(marks.contains(Marks::NO_TLB), "a live table became a block without nT"),
            Bbm::Level2 | Bbm::Level3 => {}
        }
        require!(marks.contains(Marks::PENDING | Marks::YOUNG), "a table became a block that is not pending");
        let below = height.below().ok_or_else(|| Violation("a page was a table".into()))?;
        let flags = Marks::YOUNG | Marks::DIRTY | Marks::NO_TLB | Marks::PENDING;
        for index in 0..self.geometry.entries(below) {
            let raw = self.words[&link.pa].get(&index).copied().unwrap_or(0);
            let pa = block.pa.wrapping_add(index as u64 * span::<F>(below));
            let Entry::Held(Live::Leaf(child)) = self.format.decode(raw, below) else {
                return Err(Violation(format!("child {index} is nobody's when its table becomes a block")));
            };
            require!(child.pa == pa, "child {index} maps something else than its block");
            require!(
                child.attrs.without(flags) == block.attrs.without(flags),
                "child {index} maps otherwise"
            );
        }
        if block.attrs.access.contains(types::Access::WRITE) {
            require!(marks.contains(Marks::DIRTY), "a child's dirty flag may be lost");
        }
        self.soil(key, Live::Table(link), height, Class::Tables, false);
        self.unlink(link, range);
        Ok(())
    }

    /// A table that replaces a block maps the same.
    fn require_same(&self, block: Leaf, link: Table, height: Height) -> Result<(), Violation> {
        let below = height.below().ok_or_else(|| Violation("a page became a table".into()))?;
        let words = self.words.get(&link.pa);
        for index in 0..self.geometry.entries(below) {
            let raw = words.and_then(|words| words.get(&index)).copied().unwrap_or(0);
            let pa = block.pa.wrapping_add(index as u64 * span::<F>(below));
            let attrs = block.attrs.without(Marks::NO_TLB.union(Marks::PENDING));
            let want = self.format.canonical(Entry::Leaf(Leaf { pa, attrs }), below);
            let is = self.format.decode(raw, below);
            require!(is == want, "child {index} is {is:?} and should be {want:?}");
        }
        Ok(())
    }

    /// Everything below a new link becomes reachable.
    fn link(&mut self, live: Live, range: Range, height: Height) -> Result<(), Violation> {
        let (Live::Table(link), Some(below)) = (live, height.below()) else { return Ok(()) };
        require!(self.words.contains_key(&link.pa), "a link to {:?}, which is no table", link.pa);
        require!(!self.linked.contains_key(&link.pa), "a second link to {:?}", link.pa);
        self.unlinked.remove(&link.pa); // put back: to be given back, it must be unlinked anew
        self.linked.insert(link.pa, Linked { ipa: range.start(), height: below });
        let words: Vec<_> = self.words[&link.pa].iter().map(|(index, raw)| (*index, *raw)).collect();
        for (index, raw) in words {
            if let (Some(live), Some((range, height))) =
                (self.format.decode(raw, below).live(), self.place(link.pa, index))
            {
                self.link(live, range, height)?;
            }
        }
        Ok(())
    }

    /// Everything below a link that was taken away waits for invalidation and grace period.
    fn unlink(&mut self, link: Table, span: Range) {
        let Some(Linked { height, .. }) = self.linked.remove(&link.pa) else { return };
        self.unlinked.insert(link.pa, Unlinked { span: Some(span), ..Unlinked::default() });
        self.unclean.retain(|(table, _), _| *table != link.pa);
        let Some(_) = height.below() else { return };
        let words: Vec<_> = self.words[&link.pa].values().copied().collect();
        for raw in words {
            if let Some(Live::Table(child)) = self.format.decode(raw, height).live() {
                self.unlink(child, span);
            }
        }
    }

    fn begin(&mut self, work: Work, id: usize) {
        let covers = |range: Range| match work.scope {
            Scope::Tag => true,
            Scope::Range { range: scope, .. } => scope.covers(range),
        };
        let hint = match work.scope {
            Scope::Range { hint, .. } => hint,
            Scope::Tag => None,
        };
        let keys: Vec<_> = self.unclean.keys().copied().collect();
        for key in keys {
            let Some((range, _)) = self.place(key.0, key.1) else { continue };
            if let Some(unclean) = self.unclean.get_mut(&key)
                && work.class >= unclean.class
                && covers(range)
                && (hint.is_none() || hint == unclean.hint)
            {
                unclean.dirt = Dirt::Begun(id);
            }
        }
        for table in self.unlinked.values_mut() {
            if work.class == Class::Tables && hint.is_none() && table.span.is_some_and(covers) {
                table.begun.insert(id);
            }
        }
        if work.class == Class::Tables && work.scope == Scope::Tag {
            self.end.begun.insert(id);
        }
    }

    fn complete(&mut self, id: usize) {
        self.unclean.retain(|_, unclean| unclean.dirt != Dirt::Begun(id));
        self.waiting().for_each(|table| table.is_invalidated |= table.begun.contains(&id));
    }

    fn give_back(&mut self, table: Pa) -> Result<(), Violation> {
        let state = match self.unlinked.remove(&table) {
            Some(state) => Some(state),
            None => self.linked.remove(&table).map(|_| self.end.clone()),
        };
        // Of a table that was never linked, nobody knows.
        if let Some(state) = state {
            require!(state.is_invalidated, "{table:?} given back before walk caches forgot it");
            require!(state.is_quiescent, "{table:?} given back before its grace period was over");
        }
        self.words.remove(&table);
        Ok(())
    }

    fn handed(&self, range: Range) -> Result<(), Violation> {
        for (&(table, index), unclean) in &self.unclean {
            if let Some((place, _)) = self.place(table, index) {
                require!(
                    !(unclean.is_broken && place.overlaps(range)),
                    "{range:?} came out while TLBs may hold it: {unclean:?}"
                );
            }
        }
        for (table, state) in &self.unlinked {
            let overlaps = state.span.is_some_and(|span| span.overlaps(range));
            require!(
                !overlaps || state.is_invalidated,
                "{range:?} came out of {table:?} before its invalidation"
            );
        }
        Ok(())
    }

    fn step_end(&self) -> Result<(), Violation> {
        if let Some((&(table, index), unclean)) = self.unclean.first_key_value() {
            let n = self.unclean.len();
            return Err(Violation(format!(
                "a step ends and owes {n} entries, entry {index} of {table:?}: {unclean:?}"
            )));
        }
        for (table, words) in &self.words {
            let Some(Linked { height, .. }) = self.linked.get(table) else { continue };
            for (index, raw) in words {
                let entry = self.format.decode(*raw, *height);
                require!(!entry.is_owned(), "a step ends and entry {index} of {table:?} is {entry:?}");
            }
        }
        Ok(())
    }
}
