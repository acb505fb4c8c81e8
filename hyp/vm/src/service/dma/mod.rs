//! The software engine: transfers on a machine's memory, served by another CPU than the one that asked, where there is
//! one.
//!
//! Invariants:
//! - All of a transfer's memory is pinned before its first access, and until after its last. What it has written is marked
//!   before its pin goes.
//! - A transfer waits for nobody who could wait for it: who moves memory finds it pinned, asks, and comes back later; and a
//!   transfer ends after a bounded number of steps, each bounded.
//! - Whoever serves has the transfer's lock for a step. It is only tried: a transfer that is being served needs nobody else.
//!
//! That a transfer waits is told by a hint and a kick, for which no order is promised: a poll tells it again.

mod transfer;

pub(super) use transfer::Job;

use super::request::{Answer, Arguments, is_in, range};
use super::{After, Memory, Service};
use abi::Status;
use abi::calls::{DMA_MOST, TRANSFERS};
use core::array;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::mutex::SpinMutex;
use stage2::{Format, Invalidate, Section};
use transfer::{Found, Pace, Request, Transfer};
use types::{Cpu, Range};

/// Addresses and lengths of transfers are multiples of this many bytes.
const WORD: u64 = 8;

/// The transfers of one machine.
#[derive(Debug)]
pub(super) struct Transfers {
    places: [SpinMutex<Transfer>; TRANSFERS],
    completed: AtomicU64,
    elsewhere: AtomicU64,
}

/// Whether a CPU that serves transfers is the only one that does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Company {
    /// There is no other: it serves those that its own guest asked for, too.
    Alone,
    /// There are others.
    Others,
}

/// What a CPU that has served finds left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Nothing that it could do.
    Nothing,
    /// Perhaps some more steps.
    Some,
    /// Something that others hold up: it comes back after a while.
    Later,
}

impl Transfers {
    pub(super) fn new() -> Self {
        Self {
            places: array::from_fn(|_| SpinMutex::new(Transfer::new())),
            completed: AtomicU64::new(0),
            elsewhere: AtomicU64::new(0),
        }
    }

    pub(super) fn completed(&self) -> u64 {
        self.completed.load(Relaxed)
    }

    pub(super) fn served_elsewhere(&self) -> u64 {
        self.elsewhere.load(Relaxed)
    }

    /// Ends all transfers, and waits for those that are being served. Passes quiescent points.
    pub(super) fn abandon<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
    ) {
        for place in &self.places {
            loop {
                if let Some(mut transfer) = place.try_lock() {
                    transfer.abandon(memory);
                    break;
                }
                memory.section.pass();
            }
        }
    }
}

impl Service {
    /// Notes a transfer, for others to serve.
    pub(super) fn submit<C: Cpu>(
        &self,
        cpu: &C,
        arguments: Arguments,
        job: Job,
        after: &mut After,
    ) -> Answer {
        match self.check(arguments, job).and_then(|request| self.place(cpu, request)) {
            Ok(ticket) => {
                *after = After::Serve;
                Answer::SUCCESS.with(1, ticket)
            }
            Err(status) => Answer::from(status),
        }
    }

    fn check(&self, arguments: Arguments, job: Job) -> Result<Request, Status> {
        let bytes = arguments.x(3);
        if bytes > DMA_MOST {
            return Err(Status::InvalidParameter);
        }
        let checked = |start| -> Result<Range, Status> {
            let range = range(start, bytes, WORD)?;
            is_in(&self.ram, range)?;
            Ok(range)
        };
        let (to, from, word) = match job {
            Job::Copy => (Some(checked(arguments.x(1))?), Some(checked(arguments.x(2))?), 0),
            Job::Fill => (Some(checked(arguments.x(1))?), None, arguments.x(2)),
            Job::Checksum => (None, Some(checked(arguments.x(2))?), 0),
        };
        if let (Some(to), Some(from)) = (to, from)
            && to.overlaps(from)
        {
            return Err(Status::InvalidParameter);
        }
        Ok(Request { job, to, from, word, bytes })
    }

    fn place<C: Cpu>(&self, cpu: &C, request: Request) -> Result<u64, Status> {
        for (index, place) in self.places() {
            if let Some(mut transfer) = place.try_lock()
                && let Some(times) = transfer.begin(request, cpu.id())
            {
                return Ok(times * TRANSFERS as u64 + index as u64);
            }
        }
        Err(Status::NoRoom)
    }

    fn places(&self) -> impl Iterator<Item = (usize, &SpinMutex<Transfer>)> {
        self.transfers.places.iter().enumerate()
    }

    /// Tells how a transfer is.
    pub(super) fn poll(&self, arguments: Arguments, after: &mut After) -> Answer {
        let ticket = arguments.x(1);
        let (index, times) = (ticket % TRANSFERS as u64, ticket / TRANSFERS as u64);
        let Some((_, place)) = self.places().nth(index as usize) else {
            return Answer::from(Status::NoHandle);
        };
        // Somebody serves it: then it is under way, whoever's it is.
        let found = place.try_lock().map_or(Found::UnderWay, |mut transfer| transfer.ask(times));
        match found {
            Found::UnderWay => {
                *after = After::Serve;
                Answer::from(Status::Continue).with(1, ticket)
            }
            Found::Ended(status, value) => Answer::from(status).with(1, value),
            Found::Nothing => Answer::from(Status::NoHandle),
        }
    }

    /// Does a step of a transfer that this CPU may serve. For a CPU that left its guest, or idles.
    #[inline(never)] // needs much of the stack, seldom
    pub fn serve<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        company: Company,
    ) -> Left {
        let mut left = Left::Nothing;
        for place in &self.transfers.places {
            let Some(mut transfer) = place.try_lock() else { continue };
            let own = transfer.asker() == Some(memory.cpu.id());
            if !transfer.is_under_way() || (own && company == Company::Others) {
                continue;
            }
            let pace = transfer.step(memory);
            if !transfer.is_under_way() {
                self.transfers.completed.fetch_add(1, Relaxed);
                self.transfers.elsewhere.fetch_add(u64::from(!own), Relaxed);
            }
            match pace {
                Pace::On => return Left::Some,
                Pace::HeldUp => left = Left::Later, // others may not be
            }
        }
        left
    }
}
