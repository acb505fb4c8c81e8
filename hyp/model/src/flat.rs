//! [`Flat`]: what a space translates, as a list. The oracle for every operation: no tables, no heights, no bits.

use stage2::{Answer, Attrs, Entries, Entry, Format, Marks, Memory, Owner, Pages, Share, View};
use types::{Access, Ipa, Pa, Range};

/// What a stretch of addresses is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Memory from `pa` on.
    Memory {
        /// Where the first address goes.
        pa: Pa,
        /// Rights.
        access: Access,
        /// Type.
        memory: Memory,
        /// Shareability.
        share: Share,
        /// Whose it is.
        owner: Owner,
    },
    /// A note of the space.
    Note(u32),
}

impl Content {
    /// Makes the content that `attrs` at `pa` describe. Flags are no part of it.
    pub fn memory(pa: Pa, attrs: Attrs) -> Self {
        let Attrs { access, memory, share, owner, marks: _ } = attrs;
        Self::Memory { pa, access, memory, share, owner }
    }

    fn after(self, bytes: u64) -> Self {
        match self {
            Self::Memory { pa, access, memory, share, owner } => {
                Self::Memory { pa: pa.wrapping_add(bytes), access, memory, share, owner }
            }
            note @ Self::Note(_) => note,
        }
    }
}

/// A stretch of addresses with one content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The addresses.
    pub range: Range,
    /// What they are.
    pub content: Content,
}

/// What a space translates: stretches in ascending order, apart or different.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flat {
    stretches: Vec<Stretch>,
}

impl Flat {
    /// Makes the list without stretches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the list.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Returns the content of `ipa`, with the address moved on to it.
    pub fn get(&self, ipa: Ipa) -> Option<Content> {
        let stretch = self.stretches.iter().find(|s| s.range.contains(ipa))?;
        Some(stretch.content.after(ipa.get() - stretch.range.start().get()))
    }

    /// Returns the first address in `range` that has a content.
    pub fn first_in(&self, range: Range) -> Option<Ipa> {
        self.stretches.iter().find_map(|s| s.range.intersection(range)).map(Range::start)
    }

    /// Gives `range` a content. It has none before.
    ///
    /// # Panics
    /// Where it has.
    pub fn insert(&mut self, range: Range, content: Content) {
        if range.is_empty() {
            return;
        }
        assert_eq!(self.first_in(range), None, "{range:?} is taken");
        self.stretches.push(Stretch { range, content });
        self.tidy();
    }

    /// Takes the contents of `range` away and returns them.
    pub fn remove(&mut self, range: Range) -> Self {
        let mut removed = Self::new();
        let mut left = Vec::new();
        for stretch in self.stretches.drain(..) {
            let Some(common) = stretch.range.intersection(range) else {
                left.push(stretch);
                continue;
            };
            let part = |start: Ipa, end: Ipa, to: &mut Vec<Stretch>| {
                if start < end {
                    let content = stretch.content.after(start.get() - stretch.range.start().get());
                    to.push(Stretch { range: Range::new(start, end).expect("start is below end"), content });
                }
            };
            part(stretch.range.start(), common.start(), &mut left);
            part(common.start(), common.end(), &mut removed.stretches);
            part(common.end(), stretch.range.end(), &mut left);
        }
        self.stretches = left;
        self.tidy();
        removed.tidy();
        removed
    }

    /// Gives the memory in `range` the rights `access`.
    pub fn protect(&mut self, range: Range, access: Access) {
        let mut changed = self.remove(range);
        for stretch in &mut changed.stretches {
            if let Content::Memory { access: old, .. } = &mut stretch.content {
                *old = access;
            }
        }
        self.stretches.append(&mut changed.stretches);
        self.tidy();
    }

    /// Reads what the tree behind `view` translates in `range`.
    ///
    /// # Panics
    /// Where an entry is frozen, held or dead: nobody may be working on the tree.
    pub fn of<F: Format, M: Entries + Pages, R>(view: &View<'_, F, M, R>, range: Range) -> Self {
        let format = view.tree().format();
        let mut flat = Self::new();
        let mut rest = range;
        loop {
            let walked = view.walk(rest, |visit| {
                let content = match visit.entry(format) {
                    Entry::Absent => return Answer::Continue,
                    Entry::Table(table) => {
                        assert!(!table.pending, "pending at rest");
                        return Answer::Descend;
                    }
                    Entry::Leaf(leaf) => {
                        let flags = leaf.attrs.marks;
                        assert!(!flags.intersects(Marks::PENDING | Marks::NO_TLB), "{flags:?} at rest");
                        Content::memory(leaf.pa, leaf.attrs)
                    }
                    Entry::Note(note) => Content::Note(note.payload()),
                    other => panic!("{other:?} at rest, at {:?}", visit.ipa()),
                };
                flat.stretches.push(Stretch { range: visit.range(), content });
                Answer::Continue
            });
            match Range::new(walked.next, range.end()) {
                Ok(left) if !left.is_empty() => rest = left,
                _ => break,
            }
        }
        flat.tidy();
        flat
    }

    /// Adds what was lost at one entry.
    pub fn add(&mut self, range: Range, entry: Entry) {
        let content = match entry {
            Entry::Leaf(leaf) => Content::memory(leaf.pa, leaf.attrs),
            Entry::Note(note) => Content::Note(note.payload()),
            other => panic!("{other:?} is neither leaf nor note"),
        };
        self.insert(range, content);
    }

    fn tidy(&mut self) {
        self.stretches.sort_by_key(|s| s.range.start());
        let mut tidy: Vec<Stretch> = Vec::with_capacity(self.stretches.len());
        for &next in &self.stretches {
            if let Some(last) = tidy.last_mut() {
                assert!(last.range.end() <= next.range.start(), "{last:?} overlaps {next:?}");
                if last.range.end() == next.range.start()
                    && last.content.after(last.range.len()) == next.content
                {
                    last.range = Range::new(last.range.start(), next.range.end()).expect("ascending");
                    continue;
                }
            }
            tidy.push(next);
        }
        self.stretches = tidy;
    }
}
