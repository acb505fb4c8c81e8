//! A table's life, and what may come out of a step.

use super::cleaning::{Cleaning, Fate};
use super::{Judge, Spot, Style, Unlinked, Violation, require};
use stage2::{Class, Format, Live, Table};
use std::collections::BTreeSet;
use types::{CpuId, Height, Pa, Range};

impl<F: Format> Judge<F> {
    pub(super) fn waiting(&mut self) -> impl Iterator<Item = &mut Unlinked> {
        self.unlinked.values_mut().chain([&mut self.end])
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
        let words: Vec<_> = self.words[&link.pa].iter().map(|(index, raw)| (*index, *raw)).collect();
        for (index, raw) in words {
            let key = (link.pa, index);
            if let (Some(live), Some((range, height))) =
                (self.format.decode(raw, below).live(), self.place(key))
            {
                self.link(live, key, range, height)?;
            }
        }
        Ok(())
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

    /// A link that was taken away is put back: what was below it is as it was.
    pub(super) fn relink(&mut self, link: Table) {
        let Some(Unlinked { at, .. }) = self.unlinked.remove(&link.pa) else { return };
        if at.height == Height::PAGE {
            return;
        }
        let words: Vec<_> = self.words[&link.pa].values().copied().collect();
        for raw in words {
            if let Some(Live::Table(child)) = self.format.decode(raw, at.height).live() {
                self.relink(child);
            }
        }
    }

    pub(super) fn give_back(&mut self, table: Pa) -> Result<(), Violation> {
        let state = match self.unlinked.remove(&table) {
            Some(state) => Some(state),
            None => self.linked.remove(&table).map(|_| self.the_end()),
        };
        // Of a table that was never linked, nobody knows.
        if let Some(state) = state {
            require!(
                state.cleaning.is_clean(),
                "{table:?} given back before walk caches forgot it: {}",
                state.cleaning
            );
            require!(state.is_quiescent, "{table:?} given back before its grace period was over");
        }
        self.words.remove(&table);
        self.unclean.retain(|key, _| key.0 != table);
        Ok(())
    }

    /// What a table that is linked still may be given back by.
    pub(super) fn the_end(&self) -> Unlinked {
        let mut end = self.end.clone();
        if self.style != Style::Broadcast {
            // The tag is the root's address: whoever holds anything takes a later root there for this one.
            end.cleaning.held_by(self.holding);
        }
        end
    }

    pub(super) fn handed(&self, range: Range) -> Result<(), Violation> {
        for (&key, _) in self.unclean.iter().filter(|(_, unclean)| unclean.broken.is_some()) {
            if let Some((place, _)) = self.place(key) {
                require!(
                    !place.overlaps(range),
                    "{range:?} came out while TLBs may hold it: {}",
                    self.story(key)
                );
            }
        }
        for (table, state) in &self.unlinked {
            let overlaps = state.span.is_some_and(|span| span.overlaps(range));
            require!(
                !overlaps || state.cleaning.is_clean(),
                "{range:?} came out of {table:?} before its invalidation: {}",
                state.cleaning
            );
        }
        Ok(())
    }

    pub(super) fn step_end(&self) -> Result<(), Violation> {
        let mut owed = self.unclean.keys().filter(|key| self.linked.contains_key(&key.0));
        if let Some(&key) = owed.next() {
            let n = 1 + owed.count();
            return Err(Violation(format!("a step ends and owes {n} entries, {}", self.story(key))));
        }
        require!(
            self.unpublished.is_empty(),
            "a step ends, and new entries are not visible to table walkers: no DSB"
        );
        for (table, words) in &self.words {
            let Some(Spot { height, .. }) = self.linked.get(table) else { continue };
            for (index, raw) in words {
                let entry = self.format.decode(*raw, *height);
                require!(!entry.is_owned(), "a step ends and entry {index} of {table:?} is {entry:?}");
            }
        }
        Ok(())
    }
}
