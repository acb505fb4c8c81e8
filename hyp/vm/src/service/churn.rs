//! Changes to a machine's memory that nobody has asked for: blocks are split, collapsed and gathered, pages moved, writes
//! logged and ages harvested, at random places and as fast as the caller calls. The guest sees nothing of it but time.
//!
//! It is for tests: whoever judges contents (a guest's checksums, for one) judges these changes, too.
//!
//! Any number of CPUs may take turns at once. The dirty log is one CPU's at a time, and while it runs there is no other
//! change, since then no block is made and no page moved.

use super::Memory;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use space::{Collapsed, Granularity, LogCursor, Made, MoveError, Scattered, SpaceError};
use spin::mutex::SpinMutex;
use stage2::{Entry, Format, Invalidate, Live, Section, Why, span};
use types::{Cpu, FRAME_SIZE, Height, Ipa, Range};

/// The height of blocks of 2 MiB.
const BLOCK: Height = Height::PAGE.above();
/// How many pages one turn moves.
const MOVES: u64 = 8;
/// How many blocks are looked at for one that is mapped.
const SEEN: u64 = 64;
/// The blocks that a log is about.
const LOGGED: u64 = 4;
/// A log begins once in so many turns.
const LOG_EVERY: u64 = 512;
/// The ages of a block's pages are harvested once in so many turns.
const AGE_EVERY: u64 = 16;
/// The rounds of harvests of a log.
const ROUNDS: u32 = 3;

/// What has been done to one machine's memory.
#[derive(Debug, Default)]
pub struct Churn {
    turns: AtomicU64,
    log: SpinMutex<Log>,
    counts: [AtomicU64; KINDS.len()],
}

/// A kind of change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Split,
    Collapsed,
    Gathered,
    Moved,
    Protected,
    Harvested,
}

/// The kinds of change, and what statistics call them.
const KINDS: [(Kind, &str); 6] = [
    (Kind::Split, "blocks split"),
    (Kind::Collapsed, "blocks collapsed in place"),
    (Kind::Gathered, "blocks gathered"),
    (Kind::Moved, "pages moved"),
    (Kind::Protected, "steps of write-protecting for a log"),
    (Kind::Harvested, "harvests of writes and of ages"),
];

/// The log that a churn keeps.
#[derive(Debug, Default)]
enum Log {
    #[default]
    None,
    Arming(Range, LogCursor),
    Runs {
        range: Range,
        rounds: u32,
        cursor: Option<LogCursor>,
    },
    Recovering(Range),
}

impl Churn {
    /// Changes something in `ram`, which is the machine's memory and not empty. Returns how many mappings were split,
    /// collapsed, gathered or moved: at most 8.
    #[inline(never)] // needs much of the stack, seldom
    pub fn turn<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        ram: Range,
    ) -> u64 {
        let turn = self.turns.fetch_add(1, Relaxed);
        let dice = scatter(turn);
        let bytes = span::<F>(BLOCK);
        let block = ram.start().wrapping_add(dice % (ram.len() / bytes).max(1) * bytes);
        let Some(mut log) = self.log.try_lock() else { return 0 };
        if turn % LOG_EVERY == LOG_EVERY - 1 || !matches!(*log, Log::None) {
            self.log_step(memory, &mut log, block, ram);
            return 0;
        }
        drop(log);
        if turn.is_multiple_of(AGE_EVERY) {
            let range = Range::block_around(block, bytes);
            if memory.age(range, &mut |_, _| {}).is_ok() {
                self.count(Kind::Harvested, 1);
            }
            return 0;
        }
        let found = {
            let view = memory.space.tree().open(&*memory.section);
            let blocks = (ram.len() / bytes).max(1);
            (0..SEEN)
                .map(|n| ram.start().wrapping_add((dice % blocks + n) % blocks * bytes))
                .map(|block| (block, view.translate(block)))
                .find(|(block, found)| found.height() == Height::PAGE || found.pa(*block).is_some())
        };
        let Some((block, found)) = found else { return 0 }; // nothing is mapped there
        let is_leaf =
            matches!(found.entry(memory.space.tree().format()), Entry::Leaf(_) | Entry::Held(Live::Leaf(_)));
        match found.height() {
            height if height >= BLOCK && is_leaf => self.split(memory, block),
            height if height >= BLOCK => 0, // somebody is at it
            _ => match dice >> 32 & 7 {
                0 | 3 => self.move_pages(memory, block, dice >> 40),
                1 | 2 => self.collapse(memory, block, Scattered::Gather),
                _ => self.collapse(memory, block, Scattered::Leave),
            },
        }
    }

    /// Returns how much of each kind was done, and what it is called.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.iter().zip(&self.counts).map(|((_, name), count)| (*name, count.load(Relaxed)))
    }

    /// Returns how many mappings were split, collapsed, gathered or moved.
    pub fn structural(&self) -> u64 {
        self.counts[..=Kind::Moved as usize].iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Ends the log, if there is one, when the guest has stopped. Passes quiescent points.
    pub fn end<F: Format, S: Section, C: Cpu, I: Invalidate>(&self, memory: &mut Memory<'_, '_, F, S, C, I>) {
        loop {
            if let Some(mut log) = self.log.try_lock() {
                if matches!(*log, Log::Arming(..) | Log::Runs { .. }) {
                    while let Err(SpaceError::Busy { .. }) = memory.space.stop_log(memory.section) {
                        memory.section.pass();
                    }
                }
                *log = Log::None;
                return;
            }
            memory.section.pass();
        }
    }

    fn count(&self, kind: Kind, times: u64) -> u64 {
        self.counts[kind as usize].fetch_add(times, Relaxed);
        times
    }

    fn split<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        block: Ipa,
    ) -> u64 {
        let view = memory.space.tree().open(&*memory.section);
        let split = view.split(&memory.space.everyone(memory.tlb), block, Height::PAGE, Why::Alignment);
        self.count(Kind::Split, u64::from(split.is_ok()))
    }

    fn collapse<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        block: Ipa,
        scattered: Scattered,
    ) -> u64 {
        match memory.space.collapse(memory.section, memory.cpu, memory.tlb, block, BLOCK, scattered) {
            Ok(Collapsed::InPlace) => self.count(Kind::Collapsed, 1),
            Ok(Collapsed::Moved) => self.count(Kind::Gathered, 1),
            Err(_) => 0, // not all of it is mapped, or pinned, or somebody is at it
        }
    }

    fn move_pages<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        block: Ipa,
        dice: u64,
    ) -> u64 {
        let pages = span::<F>(BLOCK) / FRAME_SIZE;
        let moved = (0..MOVES).filter(|n| {
            let ipa = block.wrapping_add(scatter(dice + n) % pages * FRAME_SIZE);
            memory.move_page(ipa).is_ok()
        });
        let moved = moved.count() as u64;
        self.count(Kind::Moved, moved)
    }

    /// Does a step of a log.
    fn log_step<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        log: &mut Log,
        block: Ipa,
        ram: Range,
    ) {
        let (space, tlb) = (memory.space, memory.tlb);
        *log = match core::mem::take(log) {
            Log::None => {
                let end = block.wrapping_add(LOGGED * span::<F>(BLOCK)).min(ram.end());
                let Ok(range) = Range::new(block, end) else { return };
                // Where the guest keeps a log of its own, there is none.
                match memory.start_log(range, Granularity::Pages) {
                    Ok(cursor) => Log::Arming(range, cursor),
                    Err(_) => Log::None,
                }
            }
            Log::Arming(range, cursor) => match space.arm_log(memory.section, tlb, cursor) {
                Ok(next) => {
                    self.count(Kind::Protected, 1);
                    next.map_or(Log::Runs { range, rounds: ROUNDS, cursor: None }, |next| {
                        Log::Arming(range, next)
                    })
                }
                Err(SpaceError::Busy { .. }) => Log::Arming(range, cursor),
                Err(_) => self.stop(memory, range),
            },
            Log::Runs { range, rounds: 0, .. } => self.stop(memory, range),
            Log::Runs { range, rounds, cursor } => {
                match cursor.or_else(|| space.log_round(&*memory.section)) {
                    None => Log::None,
                    Some(cursor) => match memory.harvest_log(cursor, &mut |_| {}) {
                        Ok(next) => {
                            self.count(Kind::Harvested, 1);
                            Log::Runs { range, rounds: rounds - u32::from(next.is_none()), cursor: next }
                        }
                        Err(SpaceError::Busy { .. }) => Log::Runs { range, rounds, cursor: Some(cursor) },
                        Err(_) => self.stop(memory, range),
                    },
                }
            }
            Log::Recovering(rest) => match space.recover(memory.section, tlb, rest) {
                Ok(recovered) => {
                    self.count(Kind::Collapsed, u64::from(recovered.made_block == Made::Block));
                    match Range::new(recovered.next, rest.end()) {
                        Ok(rest) if !rest.is_empty() => Log::Recovering(rest),
                        _ => Log::None,
                    }
                }
                Err(SpaceError::Busy { .. }) => Log::Recovering(rest),
                Err(_) => Log::None,
            },
        };
    }

    fn stop<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        range: Range,
    ) -> Log {
        match memory.space.stop_log(memory.section) {
            Err(SpaceError::Busy { .. }) => Log::Runs { range, rounds: 0, cursor: None },
            Ok(()) | Err(_) => Log::Recovering(range),
        }
    }
}

impl<F: Format, S: Section, C: Cpu, I: Invalidate> Memory<'_, '_, F, S, C, I> {
    /// Moves the page at an address, if one is mapped there.
    fn move_page(&mut self, ipa: Ipa) -> Result<(), MoveError> {
        let found = self.space.tree().open(&*self.section).translate(ipa);
        if found.height() != Height::PAGE || found.pa(ipa).is_none() {
            return Err(MoveError::NotMapped { ipa });
        }
        let usage = frames::Usage::Guest(self.space.owner());
        let run = self.space.frames().allocate_on(self.cpu.id(), frames::Order::FRAME, usage);
        let run = run.map_err(|_| MoveError::NoMemory)?;
        self.space.move_leaf(&*self.section, self.cpu, self.tlb, ipa, run)
    }
}

/// Makes a number that looks random of one that counts (SplitMix64).
const fn scatter(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
