//! Single frames that each CPU has at hand, so that faults on pages do not meet at the lock of the free lists.
//!
//! A CPU's stock is a run side by side: the next frame, and how many are left, in one word. Only that CPU takes from it
//! and fills it; anybody may empty it back onto the free lists, as an allocation does that would fail otherwise.
//!
//! Beside it stands the CPU's part of the count of runs that are in somebody's hands: allocated for a guest and not yet
//! published, or on their way back to the free lists. Invariant: a frame that is on no list, in no stock and in no table
//! is counted, from before it leaves the one until after it is in the other. What comes onto a list or into a stock does so
//! with the free lists locked. So whoever has them locked and finds nothing free, nothing in any stock and nothing
//! counted, in this order, has missed nothing.

use crate::Order;
use crate::bank::Frame;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use types::sync::{AtomicU64, mutant, o};
use types::{CpuId, MAX_CPUS};

/// The order of the least that is a full stock, 128 KiB, and of the most, 512 KiB.
const FULL: (u32, u32) = (5, 7);
/// As many full stocks there are, at least, of what is free, where they are larger than the least.
const SHARE: u64 = 256;

/// Returns the order of the run that fills a stock where `free` frames are on the lists. To fill one is to wait for whoever
/// has the lists, and for their cache lines: seldom, as long as there is plenty.
pub(crate) const fn full_stock(free: u64) -> Order {
    let share = match (free / SHARE).checked_ilog2() {
        Some(share) if share > FULL.0 => share,
        _ => FULL.0,
    };
    match Order::new(if share < FULL.1 { share } else { FULL.1 } as u8) {
        Some(order) => order,
        None => Order::FRAME,
    }
}

/// One CPU's stock and its part of the count. On lines of its own (two, since CPUs fetch neighbours).
#[repr(align(128))]
struct Stock {
    /// The number of the next frame, over [`LEFT`] bits of how many are left; 0 for none.
    run: AtomicU64,
    /// Runs in somebody's hands that were taken by this CPU. Wraps: only the sum means anything.
    in_hand: AtomicU64,
    /// Frames that were ever taken out of the stock, for statistics.
    taken: AtomicU64,
}

impl Stock {
    fn new() -> Self {
        Self { run: AtomicU64::new(0), in_hand: AtomicU64::new(0), taken: AtomicU64::new(0) }
    }
}

// The store of all frames is moved into place over the boot CPU's stack, which has 128 KiB.
const _: () = assert!(size_of::<Stocks>() <= 8 << 10);

/// The CPUs that there is a stock for. A model checker's threads have small stacks and few CPUs.
const CPUS: usize = if cfg!(loom) { 2 } else { MAX_CPUS };

/// The stocks of all CPUs.
pub(crate) struct Stocks([Stock; CPUS]);

/// Bits that say how many frames are left.
const LEFT: u32 = 8;

#[inline(always)]
const fn pack(first: Frame, left: u64) -> u64 {
    if left == 0 { 0 } else { first.0 << LEFT | left }
}

#[inline(always)]
fn unpack(word: u64) -> Option<(Frame, u64)> {
    let left = word & ((1 << LEFT) - 1);
    (left > 0).then_some((Frame(word >> LEFT), left))
}

impl Stocks {
    pub(crate) fn new() -> Self {
        Self(core::array::from_fn(|_| Stock::new()))
    }

    /// Tells whether any CPU has frames at hand.
    pub(crate) fn any(&self) -> bool {
        self.0.iter().any(|stock| stock.run.load(o(27, Acquire)) != 0) // O27
    }

    /// Tells whether there is something in `cpu`'s stock. Called by that CPU.
    #[inline(always)]
    pub(crate) fn has(&self, cpu: CpuId) -> bool {
        self.0[cpu.index()].run.load(Relaxed) != 0
    }

    /// Takes a frame out of `cpu`'s stock, and counts it as in hand. Called by that CPU.
    #[inline(always)]
    pub(crate) fn take(&self, cpu: CpuId) -> Option<Frame> {
        let stock = &self.0[cpu.index()];
        let word = stock.run.load(Relaxed); // only this CPU fills it; the exchange tells whether somebody emptied it
        let (first, left) = unpack(word)?;
        self.pick_up(cpu);
        // O27: counted before it is out of the stock: whoever empties the stock later finds the count. Pairs with itself.
        let rest = pack(Frame(first.0 + 1), left - 1);
        if mutant("stock-taken-by-a-store") {
            stock.run.store(rest, Relaxed);
            return Some(first);
        }
        match stock.run.compare_exchange(word, rest, o(27, AcqRel), Relaxed) {
            Ok(_) => {
                stock.taken.fetch_add(1, Relaxed);
                Some(first)
            }
            Err(_) => {
                self.put_down(cpu);
                None
            }
        }
    }

    /// Fills `cpu`'s stock, which is empty, with `left` frames from `first` on. Called by that CPU, with the lists locked.
    pub(crate) fn fill(&self, cpu: CpuId, first: Frame, left: u64) {
        self.0[cpu.index()].run.store(pack(first, left), o(27, Release)); // O27
    }

    /// Takes all that is in `cpu`'s stock, in `by`'s hand from before until [`Stocks::put_down`] is called.
    pub(crate) fn empty(&self, by: CpuId, cpu: CpuId) -> Option<(Frame, u64)> {
        let stock = &self.0[cpu.index()];
        if stock.run.load(o(27, Acquire)) == 0 {
            return None; // O27
        }
        self.pick_up(by);
        let run = unpack(stock.run.swap(0, o(27, AcqRel))); // O27
        if run.is_none() {
            self.put_down(by);
        }
        run
    }

    /// Counts one more run as in hand, on behalf of `cpu`.
    #[inline(always)]
    pub(crate) fn pick_up(&self, cpu: CpuId) {
        self.0[cpu.index()].in_hand.fetch_add(1, Relaxed);
    }

    /// Counts one less, which `cpu` had picked up: the run is in a table, or the entry frozen for it; or on a list.
    #[inline(always)]
    pub(crate) fn put_down(&self, cpu: CpuId) {
        // O25: the frames can be found where they are now before they no longer count. Pairs with O24.
        self.0[cpu.index()].in_hand.fetch_sub(1, o(25, Release));
    }

    /// Returns how many runs are in hand.
    pub(crate) fn in_hand(&self) -> u64 {
        // O24: who finds nothing in hand finds what was published, or at least frozen for it. Pairs with O25.
        self.0.iter().map(|stock| stock.in_hand.load(o(24, Acquire))).fold(0, u64::wrapping_add)
    }

    /// Returns how many frames were ever taken out of stocks.
    pub(crate) fn taken(&self) -> u64 {
        self.0.iter().map(|stock| stock.taken.load(Relaxed)).sum()
    }
}

#[cfg(all(test, loom))]
mod interleaved;
