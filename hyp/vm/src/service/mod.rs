//! Calls on a machine's own memory: what the manifest grants, served over the public operations of `space`.
//!
//! Invariants:
//! - Every argument comes from an enemy: it is checked before anything is done, and no value of any makes more happen than
//!   its call says (`abi::calls`).
//! - A call is bounded: it does one step of a long operation and returns a cursor. The cursor is an argument like another:
//!   nothing is believed of it, and a call from any cursor is a call on the rest of its range.
//! - Nothing here is waited for but what `space` waits for. Its own locks are held for a few instructions, or only tried:
//!   who finds one taken is busy, and says so to the guest.
//! - What a machine holds (pins, transfers, a log, rights that it gave away) ends with it: [`Service::end`].
//!
//! Neighbours: `monitor` brings the [`Memory`], and has another CPU serve transfers; `abi` says what each call means.

mod asked;
mod bitmap;
mod churn;
mod dma;
mod handles;
mod layout;
mod log;
mod look;
mod memory;
mod page;
mod request;
mod sharing;
#[cfg(test)]
pub(crate) mod tests;

pub use asked::Asked;
pub use churn::Churn;
pub use dma::{Company, Left};
pub use memory::Memory;
pub use page::{PageAccess, on_page};
pub use sharing::{
    Ended, Ending, Found, Party, Wants, answer_find, end_for_good, is_sharing, share,
    window as borrowed_window,
};

use crate::call::CallRegs;
use crate::manifest::Granted;
use abi::{Status, calls};
use alloc::boxed::Box;
use alloc::vec::Vec;
use bitmap::Bitmap;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use dma::{Job, Transfers};
use handles::Handles;
use log::Log;
use page::ControlPage;
use request::{Answer, Arguments, Part};
use sharing::Loans;
use space::SpaceError;
use spin::mutex::SpinMutex;
use stage2::{Format, Invalidate, Section};
use types::{Access, Cpu, Range};

/// What serves one machine's calls.
#[derive(Debug)]
pub struct Service {
    /// The machine's memory.
    ram: Vec<Range>,
    granted: Granted,
    /// The functions that are offered besides, which the caller answers.
    besides: &'static [&'static [u32]],
    handles: SpinMutex<Handles>,
    transfers: Transfers,
    loans: Loans,
    log: SpinMutex<Log>,
    /// Where answers that are bitmaps are put together.
    bitmap: SpinMutex<Box<Bitmap>>,
    page: SpinMutex<ControlPage>,
    calls: AtomicU64,
}

/// What is to be done after a call, besides going on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum After {
    /// Nothing.
    Nothing,
    /// A transfer waits: another CPU is to [serve](Service::serve) it.
    Serve,
    /// The guest offers its CPU.
    Yield,
    /// The call is one to begin or to stop the trace, which is not this machine's alone: the caller answers it.
    Trace,
}

/// Tells whether a function is one of these calls, granted or not.
pub const fn is_call(function: u32) -> bool {
    abi::RANGE_64 <= function && function < calls::END
}

impl Service {
    /// Makes the service of a machine with this memory. The machine has the functions in `besides`, too: the caller answers
    /// them, and they are offered here.
    pub fn new(
        ram: impl Iterator<Item = Range>,
        granted: Granted,
        besides: &'static [&'static [u32]],
    ) -> Self {
        Self {
            ram: ram.collect(),
            granted,
            besides,
            handles: SpinMutex::new(Handles::new()),
            transfers: Transfers::new(),
            loans: Loans::default(),
            log: SpinMutex::new(Log::None),
            bitmap: SpinMutex::new(Box::default()),
            page: SpinMutex::new(ControlPage::default()),
            calls: AtomicU64::new(0),
        }
    }

    /// Answers a call for which [`is_call`] holds. `memory` is the machine's, on the CPU that runs this.
    #[inline(never)] // needs much of the stack, seldom
    pub fn call<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        regs: &mut CallRegs,
    ) -> After {
        self.calls.fetch_add(1, Relaxed);
        let arguments = Arguments::of(regs);
        let mut after = After::Nothing;
        let answer = match regs[0] as u32 {
            function if self.granted == Granted::Looks && !calls::LOOKS.contains(&function) => {
                Answer::from(Status::NotSupported)
            }
            calls::FEATURES => self.features(arguments),
            calls::STATISTICS => self.statistics(memory, arguments),
            calls::SURVEY => self.on_range(arguments, |part| memory.survey(part)),
            calls::SELF_CHECK => self.on_range(arguments, |part| memory.check(part)),
            calls::YIELD => {
                memory.space.drain(memory.section, memory.cpu);
                after = After::Yield;
                Answer::SUCCESS
            }
            calls::BALLOON_OUT => self.on_range(arguments, |part| memory.discard(part)),
            calls::BALLOON_IN => self.on_range(arguments, |part| memory.populate(part)),
            calls::PROTECT => self.on_range(arguments, |part| memory.protect(part, arguments.rights()?)),
            calls::SPLIT => self.on_range(arguments, |part| memory.split(part)),
            calls::COLLAPSE => self.on_range(arguments, |part| memory.collapse(part, arguments.scattered()?)),
            calls::MOVE => self.on_range(arguments, |part| memory.move_leaves(part)),
            calls::LOG_START => self.start_log(memory, arguments),
            calls::LOG_HARVEST => self.harvest_log(memory, arguments),
            calls::LOG_STOP => self.stop_log(memory),
            calls::AGE_HARVEST => {
                self.on_range(arguments, |part| self.harvest_age(memory, part, arguments.x(3)))
            }
            calls::PIN => self.on_range(arguments, |part| self.pin(memory, part, arguments.hold(3)?)),
            calls::UNPIN => self.unpin(memory, arguments),
            calls::DMA_COPY => self.submit(memory.cpu, arguments, Job::Copy, &mut after),
            calls::DMA_FILL => self.submit(memory.cpu, arguments, Job::Fill, &mut after),
            calls::DMA_CHECKSUM => self.submit(memory.cpu, arguments, Job::Checksum, &mut after),
            calls::DMA_POLL => self.poll(arguments, &mut after),
            calls::TRACE_START | calls::TRACE_STOP if self.granted == Granted::Trace => return After::Trace,
            _ => Answer::from(Status::NotSupported),
        };
        answer.write(regs);
        after
    }

    /// Ends whatever the machine holds, when its guest has stopped: it starts with all rights, no pins, no transfers and
    /// no log. Passes quiescent points, and waits for CPUs that are serving a transfer.
    pub fn end<F: Format, S: Section, C: Cpu, I: Invalidate>(&self, memory: &mut Memory<'_, '_, F, S, C, I>) {
        self.transfers.abandon(memory);
        self.unpin_all(memory);
        *self.page.lock() = ControlPage::default();
        // The guest has stopped, so that nobody else holds the lock of its log.
        if let Some(mut log) = self.log.try_lock() {
            *log = Log::None;
        }
        while let Err(SpaceError::Busy { .. }) = memory.space.stop_log(memory.section) {
            memory.section.pass();
        }
        for &range in &self.ram {
            // Giving rights takes no table.
            while let Err(SpaceError::Busy { .. }) =
                memory.space.protect(memory.section, memory.tlb, range, Access::RWX)
            {
                memory.section.pass();
            }
        }
    }

    /// Checks the range that a call is on, and has `serve` do a step of it.
    fn on_range(&self, arguments: Arguments, serve: impl FnOnce(Part) -> Result<Answer, Status>) -> Answer {
        let answer = arguments.part(&self.ram).and_then(serve);
        answer.unwrap_or_else(|status| arguments.refused(status))
    }

    /// Answers whether a function is offered.
    fn features(&self, arguments: Arguments) -> Answer {
        let revision = u64::from(abi::REVISION_MAJOR) << 16 | u64::from(abi::REVISION_MINOR);
        let asked = u32::try_from(arguments.x(1)).ok();
        let own: &[u32] = if self.granted == Granted::Looks { &calls::LOOKS } else { &calls::OFFERED };
        let is_offered = |function: &u32| {
            own.contains(function)
                || self.besides.iter().any(|functions| functions.contains(function))
                || (self.granted == Granted::Trace && calls::OF_THE_TRACE.contains(function))
        };
        match asked.filter(is_offered) {
            Some(_) => Answer::SUCCESS.with(1, revision),
            None => Answer::from(Status::NotSupported),
        }
    }
}
