//! How memory is mapped: given back and taken, rights, sizes, places.

use super::Memory;
use super::request::{Answer, Part, of_move};
use abi::Status;
use frames::{Order, Usage};
use space::{Collapsed, MoveError, Progress, Scattered, SpaceError};
use stage2::{ChangeError, Entry, Format, Invalidate, Live, Section, Why, span};
use types::{Access, Cpu, Height, Ipa, Range};

/// The height of blocks of 2 MiB.
const BLOCK: Height = Height::PAGE.above();

/// The most bytes that one call changes the rights of: a walk of 16,384 pages.
const PROTECT_STEP: u64 = 64 << 20;
/// The most blocks that one call splits.
const SPLITS: u64 = 16;
/// The most addresses that one call looks at, for blocks to split or leaves to move.
const LOOKS: u32 = 512;
/// The most bytes that one call moves, but for the last leaf: as many as in the largest leaf.
const MOVE_STEP: u64 = space::MOVE_STEP_BYTES;
/// The most pages that one call moves: each costs an invalidation.
const MOVES: u64 = 64;

impl<F: Format, S: Section, C: Cpu, I: Invalidate> Memory<'_, '_, F, S, C, I> {
    /// Gives memory back.
    pub(super) fn discard(&mut self, part: Part) -> Result<Answer, Status> {
        let answer = match self.space.discard(self.section, self.cpu, self.tlb, part.rest) {
            Ok(next) => part.done(next),
            Err(error) => part.failed(error),
        };
        // What had to wait for readers goes back soon, not when this CPU idles.
        self.space.drain(self.section, self.cpu);
        Ok(answer)
    }

    /// Puts memory behind a range.
    pub(super) fn populate(&mut self, part: Part) -> Result<Answer, Status> {
        // A run is planned within what is asked for, so no larger one is begun than this call completes.
        let first = part.first(space::STEP_BYTES);
        let mut populate = self.space.start_populate(first);
        loop {
            match populate.step(&*self.section, self.cpu, self.tlb) {
                Ok(Progress::Done) => return Ok(part.done(first.end())),
                Ok(Progress::More) => {}
                Err(SpaceError::Busy { .. }) => {
                    let busy = part.at(Status::Busy, populate.rest().start());
                    drop(populate);
                    // It may be for memory that rests, and nobody else may come for that.
                    self.space.drain(self.section, self.cpu);
                    return Ok(busy);
                }
                Err(error) => return Ok(part.failed(error)),
            }
        }
    }

    /// Changes rights, a piece of the range at a time: each is a change of its own.
    pub(super) fn protect(&mut self, part: Part, access: Access) -> Result<Answer, Status> {
        let first = part.first(PROTECT_STEP);
        Ok(match self.space.protect(self.section, self.tlb, first, access) {
            Ok(done) => part.done(*done),
            Err(SpaceError::Busy { .. }) => part.at(Status::Busy, part.rest.start()),
            Err(error) => part.failed(error),
        })
    }

    /// Splits blocks.
    pub(super) fn split(&mut self, part: Part) -> Result<Answer, Status> {
        let format = self.space.tree().format();
        let mut splits = 0;
        let mut at = part.rest.start();
        for _ in 0..LOOKS {
            if at >= part.rest.end() || splits == SPLITS {
                break;
            }
            let view = self.space.tree().open(&*self.section);
            let found = view.translate(at);
            let height = found.height();
            let split = match found.entry(format) {
                Entry::Leaf(_) | Entry::Held(Live::Leaf(_)) if height > Height::PAGE => {
                    splits += 1;
                    view.split(&self.space.everyone(self.tlb), at, Height::PAGE, Why::Alignment)
                }
                Entry::Frozen | Entry::Dead if height > Height::PAGE => {
                    Err(ChangeError::Busy { ipa: at, height })
                }
                _ => Ok(()),
            };
            let status = match split {
                Ok(()) => None,
                Err(ChangeError::Busy { .. }) => Some(Status::Busy),
                Err(ChangeError::NoPages { .. }) => Some(Status::NoMemory),
                Err(ChangeError::DeviceWouldFault { .. }) => Some(Status::Denied),
                Err(ChangeError::Unmappable) => Some(Status::NotMemory),
            };
            if let Some(status) = status {
                return Ok(part.at(status, at).with(2, splits));
            }
            // Below a table of pages there is nothing to split.
            at = Range::block_around(at, span::<F>(BLOCK)).end();
        }
        Ok(part.done(at).with(2, splits))
    }

    /// Makes a block.
    pub(super) fn collapse(&mut self, part: Part, scattered: Scattered) -> Result<Answer, Status> {
        let bytes = span::<F>(BLOCK);
        if !part.whole.is_aligned(bytes) || !part.rest.is_aligned(bytes) {
            return Err(Status::InvalidParameter);
        }
        let at = part.rest.start();
        let behind = at.wrapping_add(bytes);
        let format = self.space.tree().format();
        let found = self.space.tree().open(&*self.section).translate(at);
        if found.height() >= BLOCK && matches!(found.entry(format), Entry::Leaf(_)) {
            return Ok(part.done(behind));
        }
        Ok(match self.space.collapse(self.section, self.cpu, self.tlb, at, BLOCK, scattered) {
            Ok(Collapsed::InPlace) => part.done(behind).with(2, 1),
            Ok(Collapsed::Moved) => part.done(behind).with(2, 2),
            // Another CPU has just made it: called again, it finds that.
            Err(MoveError::WrongSize { .. }) => part.at(Status::Busy, at),
            Err(error) => part.at(of_move(error), at),
        })
    }

    /// Moves what leaves hold.
    pub(super) fn move_leaves(&mut self, part: Part) -> Result<Answer, Status> {
        let (mut moves, mut bytes) = (0, 0);
        let mut at = part.rest.start();
        for _ in 0..LOOKS {
            if at >= part.rest.end() || moves == MOVES || bytes >= MOVE_STEP {
                break;
            }
            let found = self.space.tree().open(&*self.section).translate(at);
            let size = span::<F>(found.height());
            if found.pa(at).is_some() {
                if let Err(status) = self.move_leaf(at, size) {
                    return Ok(part.at(status, at).with(2, moves));
                }
                moves += 1;
                bytes += size;
            } else if matches!(found.entry(self.space.tree().format()), Entry::Frozen | Entry::Dead) {
                return Ok(part.at(Status::Busy, at).with(2, moves));
            }
            at = Range::block_around(at, size).end();
        }
        Ok(part.done(at).with(2, moves))
    }

    fn move_leaf(&mut self, ipa: Ipa, size: u64) -> Result<(), Status> {
        let order = Order::of_bytes(size).filter(|_| size <= MOVE_STEP).ok_or(Status::WrongSize)?;
        let usage = Usage::Guest(self.space.owner());
        let frames = self.space.frames();
        let run = frames.allocate_on(self.cpu.id(), order, usage).map_err(|_| Status::NoMemory)?;
        // Another size by now, or gone: somebody else has changed it. Called again, it finds that.
        let moved = self.space.move_leaf(&*self.section, self.cpu, self.tlb, ipa, run);
        moved.map_err(|error| match error {
            MoveError::WrongSize { .. } | MoveError::NotMapped { .. } => Status::Busy,
            error => of_move(error),
        })
    }
}
