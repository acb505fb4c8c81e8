//! Looks: numbers, sums, and whether the tables agree with the records of the frames.

use super::request::{Answer, Arguments, Part};
use super::{Memory, Service};
use abi::Status;
use abi::calls::statistic;
use core::sync::atomic::Ordering::Relaxed;
use frames::Kind;
use space::{Stretch, Survey, What};
use stage2::{Format, Invalidate, Owner, Section};
use types::{Cpu, FRAME_SIZE, Ipa, Pa, Range};

/// The most bytes that one self-check looks at: 16,384 records.
const CHECK_STEP: u64 = 64 << 20;
/// How often a mapping is looked at that does not agree with its record: it may have just changed.
const PATIENCE: u32 = 16;

impl Service {
    /// Answers a number.
    pub(super) fn statistics<F: Format, S, C, I>(
        &self,
        memory: &Memory<'_, '_, F, S, C, I>,
        arguments: Arguments,
    ) -> Answer {
        let stats = memory.space.stats();
        let leaves = |height: usize| stats.census.leaves.get(height).copied().unwrap_or(0);
        let value = match arguments.x(1) {
            statistic::FAULTS => stats.faults,
            statistic::PAGES => leaves(0),
            statistic::BLOCKS_2M => leaves(1),
            statistic::BLOCKS_1G => leaves(2),
            statistic::SPLITS => stats.census.splits,
            statistic::COLLAPSES => stats.census.collapses,
            statistic::MOVED => stats.moved,
            statistic::TABLE_BYTES => stats.table_bytes,
            statistic::ASKED => stats.asked,
            statistic::HANDLES => self.handles.lock().in_use(),
            statistic::CALLS => self.calls.load(Relaxed),
            statistic::TRANSFERS => self.transfers.completed(),
            statistic::INVALIDATIONS => stats.census.invalidations,
            statistic::SERVED_ELSEWHERE => self.transfers.served_elsewhere(),
            _ => return Answer::from(Status::InvalidParameter),
        };
        Answer::SUCCESS.with(1, value)
    }
}

impl<F: Format, S: Section, C: Cpu, I: Invalidate> Memory<'_, '_, F, S, C, I> {
    /// Counts leaves.
    pub(super) fn survey(&mut self, part: Part) -> Result<Answer, Status> {
        let mut survey = Survey::default();
        let answer = match self.space.survey(&*self.section, part.rest, &mut survey) {
            Ok(next) => part.done(next),
            Err(error) => part.failed(error),
        };
        let low = |count: u64| count.min(u64::from(u32::MAX));
        let [pages, blocks, large, ..] = survey.leaves;
        let flags = low(survey.young) | low(survey.dirty) << 32;
        Ok(answer.with(2, pages).with(3, blocks).with(4, large).with(5, flags))
    }

    /// Compares mappings with the records of their frames.
    pub(super) fn check(&mut self, part: Part) -> Result<Answer, Status> {
        let first = part.first(CHECK_STEP);
        let (next, suspect) = match self.look_over(first) {
            Ok(looked) => looked,
            Err(answer) => return Ok(part.failed(answer)),
        };
        let Some(suspect) = suspect else { return Ok(part.done(next)) };
        for _ in 0..PATIENCE {
            self.section.pass();
            let again = self.look_over(Range::block_around(suspect, FRAME_SIZE));
            if !matches!(again, Ok((_, Some(_)))) {
                return Ok(part.done(suspect)); // it was changing; go on from there
            }
        }
        Ok(part.at(Status::Broken, suspect))
    }

    /// Looks at a range once. Returns up to where, and the first address that does not agree.
    fn look_over(&mut self, range: Range) -> Result<(Ipa, Option<Ipa>), space::SpaceError> {
        let space = self.space;
        let mut suspect = None;
        let next = space.snapshot(&*self.section, range, |stretch| {
            if suspect.is_none() {
                suspect = wrong(&stretch, range, |pa| is_owned(space.frames(), space.owner(), pa));
            }
        })?;
        Ok((next, suspect))
    }
}

/// Returns the first address in both ranges whose frame is not as it must be.
fn wrong(stretch: &Stretch, range: Range, is_right: impl Fn(Pa) -> bool) -> Option<Ipa> {
    let What::Mapped { pa, attrs, .. } = stretch.what else { return None };
    if attrs.owner == Owner::Borrowed {
        return None;
    }
    let both = stretch.range.intersection(range)?;
    let into = both.start().get() - stretch.range.start().get();
    (0..both.len() / FRAME_SIZE)
        .map(|n| n * FRAME_SIZE)
        .find(|&offset| !is_right(pa.wrapping_add(into + offset)))
        .map(|offset| both.start().wrapping_add(offset))
}

/// Tells whether a frame is a guest's, this owner's, and referred to.
fn is_owned(frames: &frames::Frames, owner: frames::Owner, pa: Pa) -> bool {
    frames.record(pa).is_ok_and(|record| {
        let word = record.load();
        word.kind() == Kind::Guest && word.owner() == owner && word.refs() > 0
    })
}
