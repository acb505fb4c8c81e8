//! The buddy allocator's free lists.
//!
//! One list per order. A free run's links are in its first frame, and its first frame's record says `Free` and the
//! order; all its other records say `Inside`. So a run's neighbour can be taken out of the middle of its list without
//! a search, and taking and giving cost at most one step per order. The pool is behind the lock of
//! [`Frames`](crate::Frames).

use crate::bank::{Frame, Memory};
use crate::{Kind, Order, PaRange, Word};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const ORDERS: usize = Order::LARGEST.get() as usize + 1;

/// A link that leads nowhere. No frame has this number.
const NOWHERE: u64 = u64::MAX;

/// The links of a free run, in its first frame. The pool's lock orders all accesses.
struct Links<'a> {
    next: &'a AtomicU64,
    prev: &'a AtomicU64,
}

impl<'a> Links<'a> {
    fn of(memory: &'a Memory, frame: Frame) -> Self {
        let (next, prev) = (frame.pa(), frame.pa().wrapping_add(8));
        // SAFETY: a free frame is in a bank, so it is mapped, and nobody but the pool accesses it.
        unsafe { Self { next: memory.map().word(next), prev: memory.map().word(prev) } }
    }
}

/// The free lists and what they count.
pub(crate) struct Pool {
    heads: [u64; ORDERS],
    /// Frames on the lists.
    pub(crate) free: u64,
    /// Frames in use, by [`Kind`].
    pub(crate) used: [u64; 8],
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self { heads: [NOWHERE; ORDERS], free: 0, used: [0; 8] }
    }

    /// Takes a run off the lists, the smallest that will do, and puts back what is too much of it. Its words say
    /// `Inside` afterwards.
    pub(crate) fn take(&mut self, memory: &Memory, order: Order) -> Option<Frame> {
        let wanted = order.get();
        let found = (wanted..ORDERS as u8).find(|o| self.heads[usize::from(*o)] != NOWHERE)?;
        let run = Frame(self.heads[usize::from(found)]);
        self.unlink(memory, run, found);
        for half in (wanted..found).rev() {
            self.link(memory, Frame(run.0 + (1 << half)), half);
        }
        self.free -= order.frames();
        Some(run)
    }

    /// Puts a run on the lists, joined with its free neighbours. All its words say `Inside`.
    pub(crate) fn put(&mut self, memory: &Memory, run: Frame, order: Order) {
        self.free += order.frames();
        let (mut run, mut order) = (run, order);
        while let Some(above) = Order::new(order.get() + 1) {
            let buddy = Frame(run.0 ^ order.frames());
            // Joined banks never touch, so a neighbour that has a record is in the same bank.
            let free = memory.record(buddy).is_some_and(|record| record.load() == Word::free(order));
            if !free {
                break;
            }
            self.unlink(memory, buddy, order.get());
            run = Frame(run.0.min(buddy.0));
            order = above;
        }
        self.link(memory, run, order.get());
    }

    /// Puts all frames of `range`, whole frames, on the lists, in the largest runs that alignment allows.
    pub(crate) fn put_range(&mut self, memory: &Memory, range: PaRange) {
        let (mut frame, end) = (Frame::of(range.start()).0, Frame::of(range.end()).0);
        while frame < end {
            let aligned = frame.trailing_zeros().min(Order::LARGEST.get().into());
            let fits = (end - frame).ilog2();
            let order = Order::new(aligned.min(fits) as u8).unwrap_or(Order::FRAME);
            self.put(memory, Frame(frame), order);
            frame += order.frames();
        }
    }

    /// Counts frames of one kind in or out of use. Wraps: what was taken out of stocks is counted elsewhere.
    pub(crate) fn count(&mut self, kind: Kind, frames: u64) {
        self.used[kind as usize] = self.used[kind as usize].wrapping_add(frames);
    }

    /// The opposite of [`Pool::count`].
    pub(crate) fn uncount(&mut self, kind: Kind, frames: u64) {
        self.used[kind as usize] = self.used[kind as usize].wrapping_sub(frames);
    }

    /// Returns the largest order that can be taken now.
    pub(crate) fn largest(&self) -> Option<Order> {
        (0..ORDERS as u8).rev().find(|o| self.heads[usize::from(*o)] != NOWHERE).and_then(Order::new)
    }

    fn link(&mut self, memory: &Memory, run: Frame, order: u8) {
        let head = &mut self.heads[usize::from(order)];
        let links = Links::of(memory, run);
        links.next.store(*head, Relaxed);
        links.prev.store(NOWHERE, Relaxed);
        if *head != NOWHERE {
            Links::of(memory, Frame(*head)).prev.store(run.0, Relaxed);
        }
        *head = run.0;
        mark(memory, run, Order::new(order).map_or(Word::INSIDE, Word::free));
    }

    fn unlink(&mut self, memory: &Memory, run: Frame, order: u8) {
        let links = Links::of(memory, run);
        let (next, prev) = (links.next.load(Relaxed), links.prev.load(Relaxed));
        match prev {
            NOWHERE => self.heads[usize::from(order)] = next,
            before => Links::of(memory, Frame(before)).next.store(next, Relaxed),
        }
        if next != NOWHERE {
            Links::of(memory, Frame(next)).prev.store(prev, Relaxed);
        }
        mark(memory, run, Word::INSIDE);
    }
}

fn mark(memory: &Memory, frame: Frame, word: Word) {
    if let Some(record) = memory.record(frame) {
        record.store(word);
    }
}
