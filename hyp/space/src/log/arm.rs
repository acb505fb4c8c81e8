//! Arming a dirty log: blocks are split where pages are wanted, and every mark is taken away.
//!
//! Invariant: when the cursor has reached the end, a write to any page of the range sets a mark. What was published
//! while the arming went on is marked from the start. A step that is late, when its log has ended and another one runs, takes
//! no mark of that one without reporting it there.

use super::{LogCursor, Running};
use crate::{Space, SpaceError};
use stage2::{Answer, ChangeError, Entry, Format, Invalidate, Live, Section, WalkEnd, Why, span};
use types::{Height, Ipa, Range};

/// The most blocks that one step of arming splits.
const SPLITS: usize = 16;

/// How often a step looks again at an entry that somebody owns.
const PATIENCE: u32 = 16;

impl<F: Format> Space<'_, F> {
    /// Arms the log that `cursor` is of: one step. Returns where to go on; `None` when every write to the range from now
    /// on is in the answer of a later round.
    ///
    /// A step that is repeated forgets what was written in its part since it was done.
    ///
    /// Bounded by 131,072 entries, a table for each of 16 blocks, and 49 invalidations.
    ///
    /// # Errors
    /// [`SpaceError::NoLog`]; [`SpaceError::Busy`]: pass a quiescent point, and go on with the same cursor;
    /// [`SpaceError::OutOfTables`] and [`SpaceError::DeviceWouldFault`] where a block cannot be split: stop the log, or go on without memory being short.
    pub fn arm_log<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        cursor: LogCursor,
    ) -> Result<Option<LogCursor>, SpaceError> {
        self.alive(section)?;
        let tlb = &self.everyone(tlb);
        let running = self.running(section, cursor)?;
        let rest = rest(&running, cursor)?;
        let split = if running.splits_ahead() { self.split_blocks(section, tlb, rest)? } else { rest.end() };
        let split = Range::new(rest.start(), split).map_err(|_| SpaceError::NoLog)?;
        let next = if split.is_empty() {
            split.end()
        } else {
            // What was written before is not asked for, but where this log has ended meanwhile, and the next one runs.
            self.tree
                .harvest(section, tlb, split, &mut |ipa, height| {
                    let leaf = Range::block_around(ipa, span::<F>(height));
                    self.log.mark_for_another::<F, _>(self.tree.memory(), cursor, leaf);
                })
                .map_err(|error| at(error, rest))?
        };
        Ok((next < running.range.end()).then_some(LogCursor { next, ..cursor }))
    }

    /// Splits the first blocks of `range`. Returns up to where there are none.
    fn split_blocks<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
    ) -> Result<Ipa, SpaceError> {
        let format = self.tree.format();
        let mut next = range.start();
        let (mut splits, mut tries) = (0, 0);
        while let Some(rest) = Range::new(next, range.end()).ok().filter(|rest| !rest.is_empty()) {
            let view = self.tree.open(&*section);
            let walked = view.walk_shared(rest, &mut |visit| match visit.entry(format) {
                Entry::Table(_) | Entry::Held(Live::Table(_)) => Answer::Descend,
                Entry::Leaf(_) if visit.height() > Height::PAGE => Answer::Split,
                Entry::Held(_) | Entry::Frozen if visit.height() > Height::PAGE => Answer::Stop,
                Entry::Dead => Answer::Again,
                _ => Answer::Continue,
            });
            next = walked.next;
            match walked.end {
                WalkEnd::Done | WalkEnd::Bound => return Ok(next),
                WalkEnd::Split(_) if splits == SPLITS => return Ok(next),
                WalkEnd::Split(_) => {
                    splits += 1;
                    view.split(tlb, next, Height::PAGE, Why::DirtyLog).map_err(|error| at(error, rest))?;
                }
                WalkEnd::Stopped(_) | WalkEnd::Busy(_) => {
                    tries += 1;
                    if tries == PATIENCE {
                        return Err(SpaceError::Busy { ipa: next });
                    }
                    drop(view);
                    section.pass();
                    types::sync::spin_loop();
                }
            }
        }
        Ok(next)
    }

    /// Returns the log that `cursor` is of.
    pub(super) fn running<S: Section>(&self, section: &S, cursor: LogCursor) -> Result<Running, SpaceError> {
        let _reading = section.read();
        self.log.of(cursor)
    }
}

/// Returns what is left of a log's range. Cursors of a log are in its range, up to the end.
pub(super) fn rest(running: &Running, cursor: LogCursor) -> Result<Range, SpaceError> {
    Range::new(cursor.next.max(running.range.start()), running.range.end()).map_err(|_| SpaceError::NoLog)
}

/// Says what a change that did not come about means for the space.
pub(crate) fn at(error: ChangeError, range: Range) -> SpaceError {
    match error {
        ChangeError::Busy { ipa, .. } => SpaceError::Busy { ipa },
        ChangeError::NoPages { ipa, .. } => SpaceError::OutOfTables { ipa },
        ChangeError::DeviceWouldFault { ipa, .. } => SpaceError::DeviceWouldFault { ipa },
        ChangeError::Unmappable => SpaceError::BadRegion { range },
    }
}
