//! A table's life, and what may come out of a step.

use super::cleaning::{Cleaning, Fate};
use super::entry::Leads;
use super::{Judge, Spot, Style, Unclean, Unlinked, Violation, require};
use stage2::{Class, Format, Geometry, Live, Table, span};
use std::collections::{BTreeMap, BTreeSet};
use types::{CpuId, CpuSet, Height, Pa, Range};

impl<F: Format> Judge<F> {
    pub(super) fn waiting(&mut self) -> impl Iterator<Item = &mut Unlinked> {
        self.unlinked.values_mut().chain([&mut self.end])
    }

    /// Those of them that `cpu` has unlinked, and the end of the tree.
    pub(super) fn waiting_of(&mut self, cpu: CpuId) -> impl Iterator<Item = &mut Unlinked> {
        let its = self.unlinked.values_mut().filter(move |table| table.cleaning.by == cpu);
        its.chain([&mut self.end])
    }

    /// Everything below a new link becomes reachable.
    pub(super) fn link(
        &mut self,
        live: Live,
        parent: (Pa, usize),
        range: Range,
        height: Height,
    ) -> Result<(), Violation> {
        self.mapped(live, height);
        let (Live::Table(link), Some(below)) = (live, height.below()) else { return Ok(()) };
        require!(self.words.contains_key(&link.pa), "a link to {:?}, which is no table", link.pa);
        require!(!self.linked.contains_key(&link.pa), "a second link to {:?}", link.pa);
        // Put back where it was, it is as if it had never been away; to be given back, it must be unlinked anew.
        let elsewhere = self.unlinked.remove(&link.pa).is_some_and(|gone| gone.span != Some(range));
        require!(!elsewhere, "a link to {:?}, which was unlinked", link.pa);
        let spot = Spot { ipa: range.start(), height: below, parent: Some(parent) };
        self.linked.insert(link.pa, spot);
        self.reach(link.pa, below)
    }

    /// All that is in a table, which is linked, becomes reachable.
    fn reach(&mut self, table: Pa, height: Height) -> Result<(), Violation> {
        let words: Vec<_> = self.words[&table].iter().map(|(index, raw)| (*index, *raw)).collect();
        for (index, raw) in words {
            let key = (table, index);
            self.lead(key, height, raw, Leads::There);
            self.own(key, height, raw, None);
            if let (Some(live), Some((range, height))) =
                (self.format.decode(raw, height).live(), self.place(key))
            {
                self.link(live, key, range, height)?;
            }
        }
        Ok(())
    }

    /// Begins with the tree at `root`, which is there: `words` has its entries by their addresses, absent ones left out. `taken`: tables
    /// of its that are linked nowhere, among others. Returns its tables and their bytes.
    pub(super) fn adopt(
        &mut self,
        root: Pa,
        words: &BTreeMap<Pa, u64>,
        taken: &[Pa],
    ) -> Result<Vec<(Pa, u64)>, Violation> {
        let top = self.geometry.top();
        let mut tables = Vec::new();
        self.gather(words, root, top, self.geometry.root_size().bytes(), &mut tables);
        for &table in taken.iter().filter(|table| !tables.iter().any(|(known, _)| known == *table)) {
            self.gather(words, table, Height::PAGE, Geometry::<F>::table_size().bytes(), &mut Vec::new());
        }
        self.reach(root, top)?;
        Ok(tables)
    }

    /// Takes the words of a table, and of those below it.
    fn gather(
        &mut self,
        words: &BTreeMap<Pa, u64>,
        table: Pa,
        height: Height,
        bytes: u64,
        tables: &mut Vec<(Pa, u64)>,
    ) {
        let its = words.range(table..table.wrapping_add(bytes));
        let its: BTreeMap<_, _> =
            its.map(|(at, raw)| (((at.get() - table.get()) / 8) as usize, *raw)).collect();
        tables.push((table, bytes));
        if let Some(below) = height.below() {
            for raw in its.values() {
                if let Some(Live::Table(link)) = self.format.decode(*raw, height).live() {
                    self.gather(words, link.pa, below, Geometry::<F>::table_size().bytes(), tables);
                }
            }
        }
        self.words.insert(table, its);
    }

    /// Everything below a link that was taken away waits for invalidation and grace period.
    pub(super) fn unlink(&mut self, link: Table, span: Range, cpu: CpuId) {
        let Some(at) = self.linked.remove(&link.pa) else { return };
        let mut cleaning = Cleaning::new(Class::Tables, None, cpu, Fate::Broken);
        self.held(&mut cleaning);
        let unlinked =
            Unlinked { at, span: Some(span), cleaning, graces: BTreeSet::new(), is_quiescent: false };
        self.unlinked.insert(link.pa, unlinked);
        if at.height == Height::PAGE {
            return;
        }
        let words: Vec<_> = self.words[&link.pa].values().copied().collect();
        for raw in words {
            if let Some(Live::Table(child)) = self.format.decode(raw, at.height).live() {
                self.unlink(child, span, cpu);
            }
        }
    }

    /// A link that was taken away is put back in the table `above`: what was below it is as it was. Where that table was
    /// unlinked meanwhile, it goes with it, and waits for what that waits for.
    pub(super) fn relink(&mut self, link: Table, above: Pa) {
        let Some(Unlinked { at, .. }) = self.unlinked.remove(&link.pa) else { return };
        if let Some(above) = self.unlinked.get(&above) {
            self.unlinked.insert(link.pa, Unlinked { at, ..above.clone() });
        }
        if at.height == Height::PAGE {
            return;
        }
        let words: Vec<_> = self.words[&link.pa].values().copied().collect();
        for raw in words {
            if let Some(Live::Table(child)) = self.format.decode(raw, at.height).live() {
                self.relink(child, link.pa);
            }
        }
    }

    pub(super) fn give_back(&mut self, table: Pa) -> Result<(), Violation> {
        let at =
            self.linked.get(&table).or_else(|| self.unlinked.get(&table).map(|state| &state.at)).copied();
        let state = match self.unlinked.remove(&table) {
            Some(state) => Some(state),
            None => self.linked.remove(&table).map(|_| self.the_end()),
        };
        // Of a table that was never linked, nobody knows.
        if let Some(state) = state {
            require!(
                self.is_settled(&state.cleaning),
                "{table:?} given back before walk caches forgot it: {}",
                state.cleaning
            );
            require!(state.is_quiescent, "{table:?} given back before its grace period was over");
        }
        let words = self.words.remove(&table).unwrap_or_default();
        if let Some(Spot { height, .. }) = at {
            words.into_iter().for_each(|(index, raw)| self.lead((table, index), height, raw, Leads::Nowhere));
        }
        self.unclean.retain(|key, _| key.0 != table);
        self.owned.retain(|key, _| key.0 != table);
        self.frozen.retain(|key, _| key.0 != table);
        Ok(())
    }

    /// What a table that is linked still may be given back by.
    fn the_end(&self) -> Unlinked {
        let mut end = self.end.clone();
        if self.is_told {
            // Whoever has walked these tables since the invalidation holds something again.
            end.cleaning = Cleaning::of_everything();
        }
        if self.entered.is_some_and(CpuSet::is_empty) {
            // Nobody holds anything of it, or ever did.
            end.cleaning.forgotten();
        }
        if self.says_exits() {
            end.cleaning.known_to(self.entered);
        } else if self.style != Style::Broadcast {
            // The tag is the root's address: whoever holds anything takes a later root there for this one.
            end.cleaning.held_by(self.holding);
        }
        end
    }

    pub(super) fn handed(&self, range: Range) -> Result<(), Violation> {
        for (&key, unclean) in self.unclean.iter().filter(|(_, unclean)| unclean.broken.is_some()) {
            if let Some((place, _)) = self.place(key) {
                require!(
                    !place.overlaps(range) || self.is_nowhere(key, unclean),
                    "{range:?} came out while TLBs may hold it: {}",
                    self.story(key)
                );
            }
        }
        for (table, state) in &self.unlinked {
            let overlaps = state.span.is_some_and(|span| span.overlaps(range));
            require!(
                !overlaps || self.is_settled(&state.cleaning),
                "{range:?} came out of {table:?} before its invalidation: {}",
                state.cleaning
            );
        }
        Ok(())
    }

    /// Frames that are free lie behind no entry that is valid, or that a TLB may know.
    pub(super) fn may_be_free(&self, pa: Pa, bytes: u64) -> Result<(), Violation> {
        let end = pa.wrapping_add(bytes);
        let mut height = Height::PAGE;
        loop {
            let first = Pa::new((pa.get() + 1).saturating_sub(span::<F>(height)));
            let over = (height, first, (Pa::new(0), 0))..(height, end, (Pa::new(0), 0));
            for &(_, _, key) in self.leaves.range(over) {
                self.require_unreachable(key, pa)?;
            }
            if height == self.geometry.top() {
                break;
            }
            height = Height::new(height.get() + 1);
        }
        for (&key, unclean) in &self.unclean {
            let (Some(raw), Some((_, height))) = (unclean.broken, self.place(key)) else { continue };
            if let Some(Live::Leaf(leaf)) = self.format.decode(raw, height).live() {
                let apart = leaf.pa >= end || leaf.pa.wrapping_add(span::<F>(height)) <= pa;
                require!(
                    apart || self.is_nowhere(key, unclean),
                    "{pa:?} is free while TLBs may hold it: {}",
                    self.story(key)
                );
            }
        }
        Ok(())
    }

    /// Tells whether a table was unlinked, and no TLB and no walk cache holds anything that came through it any more: then
    /// nobody walks it again, and whatever its entries become, they owe nothing.
    pub(super) fn is_forgotten(&self, table: Pa) -> bool {
        self.unlinked.get(&table).is_some_and(|table| table.cleaning.is_clean())
    }

    /// Tells whether no TLB holds what an entry was, or what came through its table.
    fn is_nowhere(&self, key: (Pa, usize), unclean: &Unclean) -> bool {
        let table = self.unlinked.get(&key.0).map(|table| &table.cleaning);
        table.is_some_and(|cleaning| self.is_settled(cleaning)) || self.is_settled(&unclean.cleaning)
    }

    /// What an entry leads to may be free.
    fn require_unreachable(&self, key: (Pa, usize), pa: Pa) -> Result<(), Violation> {
        let (is_clean, why) = match self.unlinked.get(&key.0) {
            Some(table) => (self.is_settled(&table.cleaning), table.cleaning.to_string()),
            None => {
                let end = self.the_end();
                (
                    end.is_quiescent && self.is_settled(&end.cleaning),
                    "the end of its tree has not come".to_owned(),
                )
            }
        };
        require!(is_clean, "{pa:?} is free, and an entry leads there: {}{why}", self.story(key));
        Ok(())
    }

    /// A step of an operation ended, on `cpu`, or on the only one that there is.
    pub(super) fn step_end(&self, cpu: Option<CpuId>) -> Result<(), Violation> {
        let is_its = |unclean: &Unclean| {
            let before = unclean.before.as_deref().map(|before| &before.cleaning);
            let mut debts = [Some(&unclean.cleaning), before].into_iter().flatten();
            debts.any(|debt| cpu.is_none_or(|cpu| debt.by == cpu) && !self.is_settled(debt))
        };
        let is_linked = |key: &(Pa, usize)| self.linked.contains_key(&key.0);
        let mut owed = self.unclean.iter().filter(|(key, unclean)| is_linked(key) && is_its(unclean));
        if let Some((&key, _)) = owed.next() {
            let n = 1 + owed.count();
            return Err(Violation(format!("a step ends and owes {n} entries, {}", self.story(key))));
        }
        require!(
            cpu.map_or(self.unpublished.is_empty(), |cpu| !self.unpublished.contains(cpu)),
            "a step ends, and new entries are not visible to table walkers: no DSB"
        );
        for (key, by) in self.owned.iter().filter(|(key, _)| is_linked(key)) {
            let (table, index) = key;
            let raw = self.words.get(table).and_then(|words| words.get(index)).copied().unwrap_or(0);
            let entry = self.place(*key).map(|(_, height)| self.format.decode(raw, height));
            self.blamed.set(Some(*key));
            require!(cpu.is_some() && *by != cpu, "a step ends and entry {index} of {table:?} is {entry:?}");
        }
        Ok(())
    }
}
