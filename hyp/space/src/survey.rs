//! What a space looks like: stretches of addresses that are mapped alike, their sums, and lines to read.
//!
//! All three are looks: nothing is changed, waited for or promised. What others change meanwhile is seen as it is before or
//! after; what somebody owns counts as owned. A step ends at a bound, and the next goes on by address.
//!
//! Invariant: lines are written outside of any section, since a console is software that one waits for.

use crate::{Space, SpaceError};
use core::fmt;
use stage2::{Answer, Attrs, Entry, Format, HEIGHTS, Leaf, Live, Marks, Note, Section, WalkEnd, Why, span};
use types::{Access, Height, Ipa, Pa, Range};

/// The most lines that one step of a dump writes.
const LINES: usize = 16;

/// Addresses side by side that are mapped alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The addresses. A block that reaches beyond what was asked for is named whole.
    pub range: Range,
    /// The height of the entries.
    pub height: Height,
    /// What they are.
    pub what: What,
}

/// What entries of a stretch are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Memory side by side.
    Mapped {
        /// The memory of the first address.
        pa: Pa,
        /// Rights and the like; accessed and dirty flags are those of all.
        attrs: Attrs,
        /// Why the entries are not larger.
        why: Why,
    },
    /// A note.
    Note(Note),
    /// Somebody is changing them.
    Owned,
}

/// Sums over a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Leaves by height: pages first, then blocks.
    pub leaves: [u64; HEIGHTS],
    /// Pages by the reason for which they are not blocks: element *n* for the [`Why`] of number *n*.
    pub small: [u64; REASONS],
    /// Leaves that are young.
    pub young: u64,
    /// Leaves that are dirty.
    pub dirty: u64,
    /// Entries that hold a note.
    pub notes: u64,
    /// Entries that somebody was changing.
    pub owned: u64,
}

/// How many reasons there are.
pub const REASONS: usize = 7;

impl Survey {
    /// Returns how many pages are small for this reason.
    pub fn small_because(&self, why: Why) -> u64 {
        self.small[why as usize]
    }

    fn count(&mut self, stretch: &Stretch, entries: u64) {
        match stretch.what {
            What::Mapped { attrs, why, .. } => {
                self.leaves[usize::from(stretch.height.get())] += entries;
                if stretch.height == Height::PAGE {
                    self.small[why as usize] += entries;
                }
                self.young += if attrs.marks.contains(Marks::YOUNG) { entries } else { 0 };
                self.dirty += if attrs.marks.contains(Marks::DIRTY) { entries } else { 0 };
            }
            What::Note(_) => self.notes += entries,
            What::Owned => self.owned += entries,
        }
    }
}

impl Stretch {
    /// Returns this stretch and the one behind it as one; `None` where they are not alike.
    fn joined(self, next: Self) -> Option<Self> {
        let bytes = self.range.len();
        let is_next = self.range.end() == next.range.start() && self.height == next.height;
        let expected = match self.what {
            What::Mapped { pa, attrs, why } => What::Mapped { pa: pa.wrapping_add(bytes), attrs, why },
            other => other,
        };
        let range = Range::new(self.range.start(), next.range.end()).ok()?;
        (is_next && expected == next.what).then_some(Self { range, ..self })
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} height {}: ", self.range, self.height.get())?;
        match self.what {
            What::Mapped { pa, attrs, why } => {
                let flag = |on, c| if on { c } else { '-' };
                let (access, marks) = (attrs.access, attrs.marks);
                write!(
                    f,
                    "{pa} {}{}{} {}{} {:?} {:?}",
                    flag(access.contains(Access::READ), 'r'),
                    flag(access.contains(Access::WRITE), 'w'),
                    flag(access.contains(Access::EXEC), 'x'),
                    flag(marks.contains(Marks::YOUNG), 'y'),
                    flag(marks.contains(Marks::DIRTY), 'd'),
                    attrs.memory,
                    attrs.owner,
                )?;
                if self.height == Height::PAGE { write!(f, " small: {why:?}") } else { Ok(()) }
            }
            What::Note(note) => write!(f, "note {}", note.payload()),
            What::Owned => write!(f, "being changed"),
        }
    }
}

impl<F: Format> Space<'_, F> {
    /// Calls `visit` with each stretch of the first part of `range`, lowest first; holes are left out. Returns where to
    /// go on. A stretch may be cut in two where a step ends.
    ///
    /// Bounded by 65,536 entries. `visit` waits for nothing.
    ///
    /// # Errors
    /// [`SpaceError::Busy`] where an entry kept changing; [`SpaceError::Dying`].
    pub fn snapshot<S: Section>(
        &self,
        section: &S,
        range: Range,
        mut visit: impl FnMut(Stretch),
    ) -> Result<Ipa, SpaceError> {
        self.stretches(section, range, |stretch| {
            visit(stretch);
            Answer::Continue
        })
    }

    /// Adds what is in the first part of `range` to `survey`. Returns where to go on. Bounds and errors as for
    /// [`Space::snapshot`].
    ///
    /// # Errors
    /// Those of [`Space::snapshot`].
    pub fn survey<S: Section>(
        &self,
        section: &S,
        range: Range,
        survey: &mut Survey,
    ) -> Result<Ipa, SpaceError> {
        self.snapshot(section, range, |stretch| {
            survey.count(&stretch, stretch.range.len() / span::<F>(stretch.height));
        })
    }

    /// Writes a line to `out` for each stretch of the first part of `range`. Returns where to go on.
    ///
    /// Bounded by 65,536 entries and 16 lines, which are written after a quiescent point and outside of any section.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn dump<S: Section>(
        &self,
        section: &mut S,
        range: Range,
        out: &mut dyn fmt::Write,
    ) -> Result<Ipa, DumpError> {
        let mut lines = [None; LINES];
        let mut len = 0;
        let mut cut = None;
        let next = self.stretches(&*section, range, |stretch| match lines.get_mut(len) {
            Some(line) => {
                *line = Some(stretch);
                len += 1;
                Answer::Continue
            }
            None => {
                cut.get_or_insert(stretch.range.start());
                Answer::Stop
            }
        })?;
        section.pass();
        for line in lines.iter().flatten() {
            writeln!(out, "{line}").map_err(|_| DumpError::Output)?;
        }
        Ok(cut.map_or(next, |cut| cut.max(range.start())))
    }

    /// Walks, and joins what is alike. Ends where `visit` says `Stop`, some entries later.
    fn stretches<S: Section>(
        &self,
        section: &S,
        range: Range,
        mut visit: impl FnMut(Stretch) -> Answer,
    ) -> Result<Ipa, SpaceError> {
        let format = self.tree.format();
        let view = self.tree.open(section);
        self.check_alive()?;
        let mut open: Option<Stretch> = None;
        // Why the entries below the lowest link are small; up to where it translates.
        let mut below = (Ipa::new(0), Why::Alignment);
        let walked = view.walk_shared(range, &mut |entry| {
            let mapped = |leaf: Leaf| {
                let why = if entry.range().end() <= below.0 { below.1 } else { Why::Alignment };
                What::Mapped { pa: leaf.pa, attrs: leaf.attrs, why }
            };
            let what = match entry.entry(format) {
                Entry::Table(table) | Entry::Held(Live::Table(table)) => {
                    below = (entry.range().end(), table.why);
                    return Answer::Descend;
                }
                Entry::Leaf(leaf) | Entry::Held(Live::Leaf(leaf)) => mapped(leaf),
                Entry::Note(note) => What::Note(note),
                Entry::Frozen => What::Owned,
                Entry::Absent => return Answer::Continue,
                Entry::Dead => return Answer::Again,
            };
            let next = Stretch { range: entry.range(), height: entry.height(), what };
            let before = match open {
                None => None,
                Some(before) => match before.joined(next) {
                    Some(both) => {
                        open = Some(both);
                        return Answer::Continue;
                    }
                    None => Some(before),
                },
            };
            open = Some(next);
            before.map_or(Answer::Continue, &mut visit)
        });
        drop(view);
        if let Some(last) = open {
            visit(last);
        }
        if let WalkEnd::Busy(_) = walked.end {
            return Err(SpaceError::Busy { ipa: walked.next });
        }
        Ok(walked.next.min(range.end()))
    }
}

/// Why a dump ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DumpError {
    /// The space could not be looked at.
    Space(SpaceError),
    /// What the lines went to refused them.
    Output,
}

impl From<SpaceError> for DumpError {
    fn from(error: SpaceError) -> Self {
        Self::Space(error)
    }
}
