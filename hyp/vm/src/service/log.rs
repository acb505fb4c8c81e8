//! The dirty log, and aging: which pages were written, which were used.
//!
//! ```text
//! None ──LOG_START──▶ Arming ──LOG_START…──▶ Runs ──LOG_STOP──▶ Recovering ──LOG_STOP…──▶ None
//! ```
//!
//! The lock is tried, never waited for: who holds it may wait for a grace period.

use super::bitmap::PAGES;
use super::request::{Answer, Arguments, Part, of_space};
use super::{Memory, Service};
use abi::Status;
use space::{Granularity, LogCursor, Made, SpaceError};
use stage2::{Format, Invalidate, Section, span};
use types::{Cpu, FRAME_SIZE, Ipa, Range};

/// The most blocks that one call of LOG_STOP makes.
const RECOVERIES: u64 = 8;

/// A machine's dirty log.
#[derive(Debug)]
pub(super) enum Log {
    /// There is none.
    None,
    /// Its marks are being taken away.
    Arming {
        /// What it is about.
        range: Range,
        /// How finely.
        granularity: Granularity,
        /// Up to where it is armed.
        cursor: LogCursor,
    },
    /// It runs.
    Runs {
        /// What it is about.
        range: Range,
        /// Where the round goes on that is under way.
        round: Option<LogCursor>,
    },
    /// It has ended, and blocks are made again.
    Recovering {
        /// What it was about, from where it goes on.
        rest: Range,
    },
}

impl Service {
    /// Begins a log, or goes on with its arming.
    pub(super) fn start_log<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        arguments: Arguments,
    ) -> Answer {
        self.on_range(arguments, |part| {
            let granularity = arguments.granularity()?;
            let mut log = self.log.try_lock().ok_or(Status::Busy)?;
            let cursor = match &*log {
                Log::Arming { range, granularity: before, cursor } => {
                    if (*range, *before) != (part.whole, granularity) {
                        return Err(Status::Logging);
                    }
                    *cursor
                }
                Log::Runs { .. } => return Err(Status::Logging),
                Log::None | Log::Recovering { .. } => {
                    memory.start_log(part.whole, granularity).map_err(of_space)?
                }
            };
            let (range, here) = (part.whole, Part { rest: part.whole, ..part });
            *log = Log::Arming { range, granularity, cursor };
            match memory.space.arm_log(memory.section, memory.tlb, cursor) {
                Ok(None) => {
                    *log = Log::Runs { range, round: None };
                    Ok(here.done(range.end()))
                }
                Ok(Some(cursor)) => {
                    *log = Log::Arming { range, granularity, cursor };
                    Ok(here.at(Status::Continue, cursor.next()))
                }
                Err(error) => Ok(here.at(of_space(error), cursor.next())),
            }
        })
    }

    /// Does a step of a round.
    pub(super) fn harvest_log<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        arguments: Arguments,
    ) -> Answer {
        let answer = self.harvest_step(memory, arguments);
        answer.unwrap_or_else(|status| arguments.refused(status))
    }

    fn harvest_step<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        arguments: Arguments,
    ) -> Result<Answer, Status> {
        let mut log = self.log.try_lock().ok_or(Status::Busy)?;
        let Log::Runs { range, round } = &mut *log else { return Err(Status::NoLog) };
        let offset = |ipa: Ipa| ipa.get() - range.start().get();
        let from = match (arguments.x(4), *round) {
            (0, _) => memory.space.log_round(&*memory.section).ok_or(Status::NoLog)?,
            (cursor, Some(from)) if offset(from.next()) == cursor => from,
            _ => return Err(Status::InvalidParameter),
        };
        let (space, end) = (memory.space, range.end());
        let (counted, next) = self.answer_bitmap(memory, arguments.x(1), from.next(), |memory, bitmap| {
            let mut written = |range| bitmap.set(range);
            let next = memory.harvest_log(from, &mut written);
            let next = next.map_err(of_space)?;
            // The log answers by words of its own: what has no bit here is for another answer.
            bitmap.outside().for_each(|range| space.mark_written(&*memory.section, range));
            Ok((next.map_or(end, LogCursor::next), next))
        })?;
        *round = next;
        let status = if next.is_some() { Status::Continue } else { Status::Success };
        let done = offset(next.map_or(end, LogCursor::next));
        Ok(Answer::from(status)
            .with(1, done)
            .with(2, counted.base.get())
            .with(3, counted.pages)
            .with(4, counted.set))
    }

    /// Ends the log, or goes on making blocks of what it has split.
    pub(super) fn stop_log<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
    ) -> Answer {
        let Some(mut log) = self.log.try_lock() else { return Answer::from(Status::Busy) };
        let mut rest = match &*log {
            Log::None => return Answer::from(Status::NoLog),
            Log::Recovering { rest } => *rest,
            Log::Arming { range, .. } | Log::Runs { range, .. } => {
                let range = *range;
                if let Err(error) = memory.space.stop_log(memory.section) {
                    return Answer::from(of_space(error));
                }
                *log = Log::Recovering { rest: range };
                range
            }
        };
        let (mut made, mut status) = (0, Status::Continue);
        for _ in 0..RECOVERIES {
            match memory.space.recover(memory.section, memory.tlb, rest) {
                Ok(recovered) => {
                    made += u64::from(recovered.made_block == Made::Block);
                    rest = Range::new(recovered.next, rest.end()).unwrap_or(rest);
                }
                Err(SpaceError::Busy { .. }) => break,
                Err(error) => {
                    *log = Log::None;
                    return Answer::from(of_space(error));
                }
            }
            memory.section.pass();
            if rest.is_empty() {
                status = Status::Success;
                break;
            }
        }
        *log = if status == Status::Success { Log::None } else { Log::Recovering { rest } };
        Answer::from(status).with(2, made)
    }

    /// Says what was used.
    pub(super) fn harvest_age<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        part: Part,
        buffer: u64,
    ) -> Result<Answer, Status> {
        let base = part.rest.start();
        let end =
            base.checked_add(PAGES * FRAME_SIZE).map_or(part.rest.end(), |end| end.min(part.rest.end()));
        let first = Range::new(base, end).map_err(|_| Status::InvalidParameter)?;
        let (counted, next) = self.answer_bitmap(memory, buffer, base, |memory, bitmap| {
            let mut young = |ipa, height| bitmap.set(Range::block_around(ipa, span::<F>(height)));
            let next = memory.age(first, &mut young).map_err(of_space)?;
            Ok((next.min(end), next.min(end)))
        })?;
        Ok(part.done(next).with(2, counted.base.get()).with(3, counted.pages).with(4, counted.set))
    }
}
