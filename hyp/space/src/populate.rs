//! Population ahead: memory behind a whole range before the guest asks for it, in bounded steps.

use crate::fault::{Memory, Prepared, There, Tried};
use crate::plan::{Plan, Source};
use crate::regions::Standing;
use crate::space::TableView;
use crate::{Space, SpaceError};
use frames::{FrameError, Run, Usage};
use stage2::{Format, Invalidate, Section, Why, span};
use types::sync::mutant;
use types::{Cpu, Height, Ipa, Range};

/// The most bytes that one step of a [`Populate`] zeroes, where pages are not larger.
pub const STEP_BYTES: u64 = 2 << 20;

/// How often in a row a step may find no page that is on its way back, or lose an entry to others, before that is an answer.
const PATIENCE: u32 = 8;

/// How far something got that takes several steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Progress {
    /// There is more to do.
    More,
    /// It is complete.
    Done,
}

/// A population under way: an address, and perhaps a run that is being zeroed. Dropping it leaves mapped what is
/// mapped, and gives the run back.
#[derive(Debug)]
pub struct Populate<'s, 'f, F: Format> {
    space: &'s Space<'f, F>,
    rest: Range,
    zeroing: Option<Zeroing<'f>>,
    /// There were no tables, or no reserve, for more than this at the start of the rest.
    largest: Option<Height>,
    /// How often the start of the rest could not be claimed.
    lost: u32,
}

/// A run on its way to be published at the start of the rest.
#[derive(Debug)]
struct Zeroing<'f> {
    run: Run<'f>,
    zeroed: u64,
    height: Height,
    why: Why,
    /// The region that it was planned by, perhaps some steps ago.
    standing: Standing,
}

impl<'f, F: Format> Space<'f, F> {
    /// Puts memory behind all of `range`, which regions must hold, in the largest blocks that regions and free memory
    /// allow: at most 1 GiB. What is mapped already stays. Passes a quiescent point after each step.
    ///
    /// # Errors
    /// [`SpaceError::NoRegion`], [`SpaceError::OutOfMemory`], [`SpaceError::OutOfTables`]: what comes before the
    /// address is mapped. [`SpaceError::Busy`] where another CPU is changing something there.
    pub fn populate<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        range: Range,
    ) -> Result<(), SpaceError> {
        let mut populate = self.start_populate(range);
        let mut busy = 0;
        loop {
            match populate.step(section, cpu, tlb) {
                Ok(Progress::Done) => return Ok(()),
                Ok(Progress::More) => section.pass(),
                Err(SpaceError::OutOfTables { .. }) if self.prune_all(section, tlb)? => {}
                // It may be for memory that rests, and nobody else may come for that.
                Err(SpaceError::Busy { .. }) if busy < PATIENCE => {
                    busy += 1;
                    section.pass();
                    self.drain(section, cpu);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts to put memory behind all of `range`. Does nothing until it is stepped.
    pub const fn start_populate(&self, range: Range) -> Populate<'_, 'f, F> {
        Populate { space: self, rest: range, zeroing: None, largest: None, lost: 0 }
    }
}

impl<'f, F: Format> Populate<'_, 'f, F> {
    /// Returns what is left to do.
    pub const fn rest(&self) -> Range {
        self.rest
    }

    /// Does one step: allocates a run, zeroes at most [`STEP_BYTES`] of it or a page, publishes it when all is zeroed.
    ///
    /// # Errors
    /// Those of [`Space::populate`]. A later step tries again.
    pub fn step<S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        section: &S,
        cpu: &C,
        tlb: &I,
    ) -> Result<Progress, SpaceError> {
        let ipa = self.rest.start();
        if self.rest.is_empty() {
            return Ok(Progress::Done);
        }
        let view = self.space.tree.open(section);
        let standing = self.space.standing(&view, ipa)?;
        match self.space.look(&view, ipa) {
            There::Leaf { range, .. } => self.go_on_from(range.end()),
            There::Note(_) => self.go_on_from(ipa.wrapping_add(span::<F>(Height::PAGE))),
            There::Owned => return Err(SpaceError::Busy { ipa }),
            There::Nothing(highest) => self.fill(&view, cpu, tlb, &standing, highest)?,
        }
        Ok(if self.rest.is_empty() { Progress::Done } else { Progress::More })
    }

    fn fill<C: Cpu, I: Invalidate, R>(
        &mut self,
        view: &TableView<'_, 'f, F, R>,
        cpu: &C,
        tlb: &I,
        standing: &Standing,
        highest: Height,
    ) -> Result<(), SpaceError> {
        let ipa = self.rest.start();
        let prepared = match self.zeroing.take() {
            // Another region may be here by now: then the run is given back, and one planned for it.
            Some(zeroing)
                if zeroing.height <= highest && self.space.regions.stands(ipa, zeroing.standing.mark()) =>
            {
                self.zero_some(cpu, zeroing)
            }
            _ => self.begin(cpu, standing, highest)?,
        };
        let Some(prepared) = prepared else {
            return Ok(());
        };
        let height = prepared.height;
        let end = Range::block_around(ipa, span::<F>(height)).end();
        match self.space.try_publish(view, tlb, standing, ipa, prepared) {
            Tried::Mapped => self.go_on_from(end),
            // The next step looks again. What is on its way back may be waiting for us: then whoever asked has to leave.
            Tried::Lost(_) => {
                self.lost += 1;
                if self.lost > PATIENCE && !mutant("populates-for-ever") {
                    self.lost = 0;
                    return Err(SpaceError::Busy { ipa });
                }
            }
            Tried::NoTables(memory) => {
                // It goes back first: it is no run that somebody else is about to publish.
                let _ours = mutant("own-run-counted-as-in-hand").then_some(memory);
                if height > Height::PAGE {
                    self.largest = height.below(); // what was to be the block will do for tables, too
                    return Ok(());
                }
                let passing = self.space.is_coming_back() || self.space.frames.unpublished() > 0;
                if let There::Nothing(_) = self.space.look(view, ipa) {
                    return Err(match passing {
                        true => SpaceError::Busy { ipa },
                        false => SpaceError::OutOfTables { ipa },
                    });
                }
            }
        }
        Ok(())
    }

    /// Allocates the largest run that fits and is free, and zeroes its first part.
    fn begin<C: Cpu>(
        &mut self,
        cpu: &C,
        standing: &Standing,
        highest: Height,
    ) -> Result<Option<Prepared<'f>>, SpaceError> {
        let ipa = self.rest.start();
        let largest = self.space.largest;
        let bad = SpaceError::BadRegion { range: self.rest };
        let plan = |highest| Plan::new(&standing.region, self.rest, ipa, highest).ok_or(bad);
        let mut plan: Plan<F> = match plan(highest.min(largest))? {
            whole if whole.height > Height::PAGE && self.space.wants_pages(ipa, whole.height) => {
                plan(Height::PAGE)?.because(Why::DirtyLog)
            }
            whole => whole,
        };
        while let Some(most) = self.largest
            && plan.height > most
        {
            plan = plan.smaller().ok_or(bad)?;
            self.space.count_smaller(cpu.id(), plan.why);
        }
        loop {
            let order = match plan.source {
                Source::Frames(order) => order,
                Source::Fixed(pa) => {
                    let memory = Memory::Fixed(pa);
                    return Ok(Some(Prepared { height: plan.height, why: plan.why, memory }));
                }
            };
            let unpublished = match self.space.frames.allocate(order, Usage::Guest(self.space.owner)) {
                Ok(run) => {
                    let (height, why) = (plan.height, plan.why);
                    let zeroing = Zeroing { run, zeroed: 0, height, why, standing: *standing };
                    return Ok(self.zero_some(cpu, zeroing));
                }
                Err(FrameError::Exhausted { unpublished, .. }) => unpublished,
                Err(_) => 0,
            };
            let error = match unpublished == 0 && !self.space.is_coming_back() {
                true => SpaceError::OutOfMemory { ipa },
                false => SpaceError::Busy { ipa },
            };
            plan = plan.smaller().ok_or(error)?;
            self.space.count_smaller(cpu.id(), plan.why);
        }
    }

    /// Zeroes a step's worth. Returns the run when all of it is zeroed.
    fn zero_some<C: Cpu>(&mut self, cpu: &C, mut zeroing: Zeroing<'f>) -> Option<Prepared<'f>> {
        let bytes = zeroing.run.order().bytes();
        let now = (bytes - zeroing.zeroed).min(STEP_BYTES.max(span::<F>(Height::PAGE)));
        cpu.zero(zeroing.run.pa().wrapping_add(zeroing.zeroed), now);
        zeroing.zeroed += now;
        if zeroing.zeroed < bytes {
            self.zeroing = Some(zeroing);
            return None;
        }
        Some(Prepared { height: zeroing.height, why: zeroing.why, memory: Memory::Run(zeroing.run) })
    }

    fn go_on_from(&mut self, next: Ipa) {
        let next = next.min(self.rest.end());
        self.rest = Range::new(next, self.rest.end()).unwrap_or(self.rest);
        self.zeroing = None;
        self.largest = None;
        self.lost = 0;
    }
}
