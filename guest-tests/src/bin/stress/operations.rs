//! What one vCPU does, at random.

use crate::ground::{BLOCK, Ground, PAGES};
use crate::tally::{Operation, count, count_done};
use abi::calls::{self, granularity, rights};
use abi::{Checksum, Status};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::guard::attempt;
use guest_tests::mmu::PAGE;
use guest_tests::region::Region;
use guest_tests::rng::Rng;
use guest_tests::service::{Answer, call};
use guest_tests::{NotPassed, Verdict, check, exception, fail, same, smp};

/// Accesses between two other operations.
const ACCESSES: u64 = 48;
/// The most pins that a vCPU keeps.
const PINS: usize = 4;
/// How often a call is made again that others keep busy. Beyond that it was tried, and is left.
const TRIES: u32 = 64;
/// How often a poll finds a transfer under way, or no room for one, before that counts as a failure.
const PATIENCE: u32 = 10_000_000;
/// The most bytes of a transfer here.
const TRANSFER: u64 = 64 << 10;

/// One vCPU's choices, and what it holds.
pub(crate) struct Vcpu<'g> {
    ground: &'g Ground,
    this: usize,
    rng: Rng,
    /// Handles, and the page that each is of.
    pins: [Option<(u64, Region)>; PINS],
}

impl<'g> Vcpu<'g> {
    pub(crate) const fn new(ground: &'g Ground, this: usize, rng: Rng) -> Self {
        Self { ground, this, rng, pins: [None; PINS] }
    }

    /// Does one thing, between accesses to memory.
    pub(crate) fn step(&mut self) -> Verdict {
        for _ in 0..ACCESSES {
            let page = self.rng.below(self.ground.shared.pages());
            match self.rng.below(4) {
                0 => self.ground.check(self.this, page)?,
                _ => self.ground.write(self.this, page)?,
            }
        }
        count_done(Operation::Access, ACCESSES);
        let (kept, loose) = (self.ground.kept(), self.ground.loose());
        let block = self.block();
        match self.rng.below(40) {
            0..5 => self.on_range(Operation::Split, calls::SPLIT, block, 0),
            5..9 => self.on_range(Operation::Collapse, calls::COLLAPSE, block, 0),
            9..14 => self.on_range(Operation::Gather, calls::COLLAPSE, block, 1),
            14..18 => {
                let some = self.some_of(kept);
                self.on_range(Operation::Move, calls::MOVE, some, 0)
            }
            18..22 => {
                let some = self.some_of(loose);
                self.on_range(Operation::Out, calls::BALLOON_OUT, some, 0)
            }
            22 | 23 => {
                let some = self.some_of(loose);
                self.on_range(Operation::In, calls::BALLOON_IN, some, 0)
            }
            24..27 => self.protect(),
            27..30 => self.pin(),
            30 | 31 => self.copy(),
            32 => self.fill(),
            33 | 34 => self.log(),
            35 => self.age(),
            36 => self.on_range(Operation::Survey, calls::SURVEY, block, 0),
            37 => self.on_range(Operation::SelfCheck, calls::SELF_CHECK, block, 0),
            38 => {
                count(Operation::Yield, call(calls::YIELD, &[])?.status);
                Ok(())
            }
            _ => {
                let first = self.rng.below(kept.size() / PAGE - 64);
                count_done(Operation::Access, 64);
                (first..first + 64).try_for_each(|page| self.ground.check(self.this, page))
            }
        }
    }

    /// Gives back what it holds.
    pub(crate) fn rest(&mut self) -> Verdict {
        (0..PINS).try_for_each(|place| self.unpin(place))
    }

    /// Chooses a block of any of the memory.
    fn block(&mut self) -> Region {
        let shared = self.ground.shared.region();
        match self.rng.below(shared.size() / BLOCK + 2) {
            0 => self.ground.own.region(),
            1 => self.ground.target.region(),
            number => Region::new(shared.start + (number - 2) * BLOCK, BLOCK),
        }
    }

    /// Chooses some pages of a region: often one, sometimes all.
    fn some_of(&mut self, region: Region) -> Region {
        let all = region.size() / PAGE;
        let count = match self.rng.below(8) {
            0 => all,
            1..4 => 1 + self.rng.below(64),
            _ => 1,
        };
        Ground::pages(region, self.rng.below(all - count + 1), count)
    }

    /// Makes a call and counts how it went.
    fn make(&self, operation: Operation, function: u32, arguments: &[u64]) -> Result<Answer, NotPassed> {
        let answer = call(function, arguments)?;
        check!(
            count(operation, answer.status),
            "{operation:?} by vCPU {} with {arguments:x?}: {:?}",
            self.this,
            answer.status
        );
        Ok(answer)
    }

    /// Makes a call on a range to its end, or until others have kept it from that for long. What it cannot do where it is, it
    /// goes around.
    fn on_range(&mut self, operation: Operation, function: u32, region: Region, parameter: u64) -> Verdict {
        let mut cursor = 0;
        for _ in 0..TRIES {
            let answer = self.make(operation, function, &[region.start, region.size(), parameter, cursor])?;
            let done = answer.x[0];
            check!(
                done >= cursor && done <= region.size(),
                "{operation:?}: a cursor from {cursor:#x} to {done:#x}"
            );
            cursor = done;
            match answer.status {
                Status::Continue | Status::Busy => {}
                Status::NoMemory if !may_lack_memory(operation) => fail!("{operation:?}: no memory"),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// As [`Vcpu::on_range`], but to its end.
    fn whole(&mut self, operation: Operation, function: u32, region: Region, parameter: u64) -> Verdict {
        let mut cursor = 0;
        for _ in 0..PATIENCE {
            let answer = self.make(operation, function, &[region.start, region.size(), parameter, cursor])?;
            cursor = answer.x[0];
            match answer.status {
                Status::Success => return Ok(()),
                Status::Continue | Status::Busy => {}
                other => fail!("{operation:?} of {:#x}: {other:?}", region.start),
            }
            if smp::failed() {
                return Err(NotPassed::Alone);
            }
        }
        fail!("{operation:?} of {:#x}: busy for ever", region.start)
    }

    /// Takes the right to write from some of its own pages, tries to write, and gives the right back. Others change the
    /// mapping of the block meanwhile, never its rights.
    fn protect(&mut self) -> Verdict {
        let own = Ground::part(self.ground.own, self.this);
        let some = self.some_of(own);
        let page = some.start + self.rng.below(some.size() / PAGE) * PAGE;
        let word = &Ground::words(self.ground.own, page, PAGE)[self.rng.below(512) as usize];
        let before = word.load(Relaxed);
        self.whole(Operation::Protect, calls::PROTECT, some, rights::READ | rights::EXEC)?;
        // SAFETY: a store to an atomic of our own; where an exception ends it, nothing is half done.
        let written = unsafe { attempt(|| word.store(!before, Relaxed)) };
        match written {
            Err(caught) if caught.class() == exception::class::DATA_ABORT => {}
            other => {
                fail!("a write to {page:#x}, which is read-only: expected a data abort, found {other:?}")
            }
        }
        count_done(Operation::Forbidden, 1);
        same!("what was read-only", word.as_ptr() as u64, before, word.load(Relaxed));
        self.whole(Operation::Protect, calls::PROTECT, some, rights::READ | rights::WRITE | rights::EXEC)?;
        let value = self.rng.next_u64();
        word.store(value, Relaxed);
        same!("what may be written again", word.as_ptr() as u64, value, word.load(Relaxed));
        Ok(())
    }

    /// Pins a page, or gives one back; what is pinned is not moved.
    fn pin(&mut self) -> Verdict {
        let place = self.rng.below(PINS as u64) as usize;
        let Some((_, page)) = self.pins[place] else {
            let region = self.ground.shared.region();
            let page = Ground::pages(region, self.rng.below(self.ground.shared.pages()), 1);
            let write = self.rng.below(2);
            let answer = self.make(Operation::Pin, calls::PIN, &[page.start, PAGE, write, 0])?;
            if answer.status == Status::Success {
                self.pins[place] = Some((answer.x[1], page));
            }
            return Ok(());
        };
        if self.ground.kept().contains(page.start) {
            let arguments = [page.start, PAGE, 0, 0];
            let moved = self.make(Operation::PinnedMove, calls::MOVE, &arguments)?.status;
            check!(
                matches!(moved, Status::Pinned | Status::Busy | Status::NoMemory),
                "a move of {:#x}, which is pinned: {moved:?}",
                page.start
            );
        }
        self.unpin(place)
    }

    fn unpin(&mut self, place: usize) -> Verdict {
        let Some((handle, page)) = self.pins[place].take() else { return Ok(()) };
        let has_written = self.rng.below(2);
        let answer = self.make(Operation::Unpin, calls::UNPIN, &[handle, has_written])?;
        check!(answer.status == Status::Success, "unpin of {:#x}: {:?}", page.start, answer.status);
        Ok(())
    }

    /// Has the engine make a transfer, and waits for its end. Returns its value; `None` where it was kept from its memory.
    fn transfer(
        &mut self,
        operation: Operation,
        function: u32,
        arguments: [u64; 3],
    ) -> Result<Option<u64>, NotPassed> {
        let mut ticket = None;
        for _ in 0..PATIENCE {
            let answer = match ticket {
                None => call(function, &arguments)?,
                Some(ticket) => call(calls::DMA_POLL, &[ticket])?,
            };
            match (ticket, answer.status) {
                (None, Status::Success) => ticket = Some(answer.x[0]),
                (None, Status::NoRoom) | (Some(_), Status::Continue) => {}
                (Some(_), Status::Success | Status::Busy) => {
                    count(operation, answer.status);
                    return Ok((answer.status == Status::Success).then_some(answer.x[0]));
                }
                (_, other) => fail!("{operation:?} with {arguments:x?}: {other:?}"),
            }
            if smp::failed() {
                return Err(NotPassed::Alone);
            }
        }
        fail!("{operation:?} with {arguments:x?} never ends")
    }

    /// Chooses where a transfer writes, in this vCPU's part, and how many bytes.
    fn target(&mut self) -> (u64, u64) {
        let part = Ground::part(self.ground.target, self.this);
        let bytes = 8 + 8 * self.rng.below(TRANSFER / 8);
        (part.start + 8 * self.rng.below((part.size() - bytes) / 8), bytes)
    }

    /// Copies some of what is kept, and finds this vCPU's words in the copy: nobody else has written them meanwhile.
    fn copy(&mut self) -> Verdict {
        let (to, bytes) = self.target();
        let kept = self.ground.kept();
        let from = kept.start + 8 * self.rng.below((kept.size() - bytes) / 8);
        if self.transfer(Operation::Copy, calls::DMA_COPY, [to, from, bytes])?.is_none() {
            return Ok(());
        }
        let mine = |n: &usize| (from / 8 + *n as u64) % 8 == self.this as u64;
        let (copied, original) =
            (Ground::words(self.ground.target, to, bytes), Ground::words(self.ground.shared, from, bytes));
        for n in (0..copied.len()).filter(mine) {
            let word = &original[n];
            same!("a copy of this word", word.as_ptr() as u64, word.load(Relaxed), copied[n].load(Relaxed));
        }
        Ok(())
    }

    /// Fills some of its own memory, and has the engine sum it up.
    fn fill(&mut self) -> Verdict {
        let (to, bytes) = self.target();
        let value = self.rng.next_u64();
        if self.transfer(Operation::Fill, calls::DMA_FILL, [to, value, bytes])?.is_none() {
            return Ok(());
        }
        let words = Ground::words(self.ground.target, to, bytes);
        if let Some(word) = words.iter().find(|word| word.load(Relaxed) != value) {
            same!("what was filled", word.as_ptr() as u64, value, word.load(Relaxed));
        }
        let expected = words.iter().fold(Checksum::NOTHING, |sum, _| sum.with(value)).get();
        if let Some(found) = self.transfer(Operation::Checksum, calls::DMA_CHECKSUM, [0, to, bytes])? {
            same!("the engine's checksum", to, expected, found);
        }
        Ok(())
    }

    /// Has what is kept logged, writes, and finds each page that it has written in the round that follows. One vCPU keeps the
    /// machine's log, which all write.
    fn log(&mut self) -> Verdict {
        if self.this != 0 {
            return Ok(());
        }
        let kept = self.ground.kept();
        let granularity = self.rng.below(granularity::PAGES_ON_WRITE + 1);
        loop {
            let arguments = [kept.start, kept.size(), granularity, 0];
            match self.make(Operation::LogStart, calls::LOG_START, &arguments)?.status {
                Status::Success => break,
                Status::NoMemory => return self.end_log(),
                Status::Continue | Status::Busy => {}
                other => fail!("the start of a log: {other:?}"),
            }
        }
        for _ in 0..2 {
            let written: [u64; 16] = core::array::from_fn(|_| self.rng.below(kept.size() / PAGE));
            written.iter().try_for_each(|&page| self.ground.write(self.this, page))?;
            self.round(&written)?;
        }
        self.end_log()
    }

    /// Does a round of the log, in which these pages must be: in any of its parts, since a part may know of pages behind it.
    fn round(&mut self, written: &[u64; 16]) -> Verdict {
        let kept = self.ground.kept();
        let bitmap = self.bitmap();
        let (mut cursor, mut is_told) = (0, [false; 16]);
        for _ in 0..PATIENCE {
            let answer =
                self.make(Operation::LogHarvest, calls::LOG_HARVEST, &[bitmap.start, 0, 0, cursor])?;
            let [next, base, pages, ..] = answer.x;
            match answer.status {
                Status::Busy => continue,
                Status::Success | Status::Continue => {}
                other => fail!("a round of the log at {cursor:#x}: {other:?}"),
            }
            let bits = Ground::words(self.ground.bitmaps, bitmap.start, bitmap.size());
            let first = (base - kept.start) / PAGE;
            for (page, is_told) in written.iter().zip(&mut is_told) {
                if let Some(bit) = page.checked_sub(first).filter(|bit| *bit < pages) {
                    *is_told |= bits[(bit / 64) as usize].load(Relaxed) >> (bit % 64) & 1 != 0;
                }
            }
            cursor = next;
            if answer.status == Status::Success {
                let missing = written.iter().zip(is_told).find(|(_, is_told)| !is_told);
                let Some((page, _)) = missing else { return Ok(()) };
                fail!(
                    "{:#x} was written, and the round of the log does not say so",
                    kept.start + page * PAGE
                );
            }
        }
        fail!("a round of the log never ends")
    }

    fn end_log(&mut self) -> Verdict {
        loop {
            match self.make(Operation::LogStop, calls::LOG_STOP, &[])?.status {
                Status::Success | Status::NoLog => return Ok(()),
                Status::Continue | Status::Busy => {}
                other => fail!("the end of a log: {other:?}"),
            }
        }
    }

    fn age(&mut self) -> Verdict {
        let (block, bitmap) = (self.block(), self.bitmap());
        self.on_range(Operation::Age, calls::AGE_HARVEST, block, bitmap.start)
    }

    fn bitmap(&self) -> Region {
        Ground::part(self.ground.bitmaps, self.this)
    }
}

/// Tells whether an operation may find no memory: what is moved to takes more than the machine has been promised.
const fn may_lack_memory(operation: Operation) -> bool {
    matches!(operation, Operation::Gather | Operation::Move | Operation::Collapse)
}

const _: () = assert!(PAGES == 512 && size_of::<AtomicU64>() == 8);
