//! What concurrent protocols are made of: atomics, numbered orderings, full barriers, and the laboratory that tests them.
//!
//! Every ordering stronger than `Relaxed` is written with its number in docs/memory-ordering.md: `load(o(8, Acquire))`,
//! `full_barrier(3)`. In what is shipped, the number is nothing and the ordering is what stands there. In a test build
//! (feature `lab`, refused for the bare-metal targets) one number can be weakened, one mutant of the protocol chosen,
//! and a scheduler called at each numbered step; all at run time, so that one build serves every such test:
//!
//! | variable | means |
//! | --- | --- |
//! | `MEZZANINE_WEAKEN=8` | every ordering with number 8 is `Relaxed`, every barrier with it is gone |
//! | `MEZZANINE_MUTANT=free-before-grace` | the library does this one thing wrong (docs/mutants.md) |
//!
//! Under `--cfg loom` the atomics are the model checker's.

#[cfg(loom)]
pub use checked::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};

#[cfg(loom)]
mod checked;

mod mutex;
pub use mutex::Mutex;

use core::sync::atomic::Ordering;
#[cfg(not(loom))]
use core::sync::atomic::fence;
#[cfg(loom)]
use loom::sync::atomic::fence;

#[cfg(all(feature = "lab", target_os = "none"))]
compile_error!("the feature `lab` is for tests on the host and never part of an image");

/// Whether this build has the laboratory in it. What is measured must not.
pub const LAB: bool = cfg!(feature = "lab");

#[cfg_attr(feature = "lab", allow(dead_code, reason = "there, the mutant is chosen at run time"))]
mod seed;
pub use seed::{SEEDED, SEEDS, Seed};

#[cfg(feature = "lab")]
mod lab;
#[cfg(feature = "lab")]
pub use lab::{Hook, Point, Witness, met_counts, set_hook, set_witness};

/// The ordering with number `n` in docs/memory-ordering.md.
#[cfg(not(feature = "lab"))]
#[inline(always)]
pub const fn o(_n: u16, ordering: Ordering) -> Ordering {
    ordering
}

/// The ordering with number `n` in docs/memory-ordering.md; `Relaxed` where that one is weakened.
#[cfg(feature = "lab")]
#[inline]
pub fn o(n: u16, ordering: Ordering) -> Ordering {
    lab::point(Point::Step);
    if lab::is_weakened(n) { Ordering::Relaxed } else { ordering }
}

/// Tells whether the barrier with number `n` stands: always, but in a test that weakens it, and where it is [seeded](SEEDED).
#[cfg(not(feature = "lab"))]
#[inline(always)]
pub const fn keeps(n: u16) -> bool {
    !seed::is_gone(n)
}

/// Tells whether the barrier with number `n` stands: always, but in a test that weakens it.
#[cfg(feature = "lab")]
#[inline]
pub fn keeps(n: u16) -> bool {
    lab::point(Point::Step);
    !lab::is_weakened(n)
}

/// The full barrier with number `n`: earlier stores before later loads, of whatever memory.
#[inline(always)]
pub fn full_barrier(n: u16) {
    if keeps(n) {
        fence(Ordering::SeqCst);
    }
}

/// The barrier with number `n` on memory that is shared with a guest, whose accesses the guest orders by barriers of its
/// own: `Acquire`, earlier loads before later accesses; `Release`, earlier accesses before later stores.
#[inline(always)]
pub fn guest_barrier(n: u16, ordering: Ordering) {
    if keeps(n) {
        fence(ordering);
    }
}

/// Tells whether the protocol is to be wrong in this one way: never, but in a test that expects to catch it, and where it
/// is [seeded](SEEDED).
#[cfg(not(feature = "lab"))]
#[inline(always)]
pub const fn mutant(name: &str) -> bool {
    seed::is_mutant(name)
}

/// Tells whether the protocol is to be wrong in this one way: never, but in a test that expects to catch it.
#[cfg(feature = "lab")]
#[inline]
pub fn mutant(name: &str) -> bool {
    lab::is_mutant(name)
}

/// Notes that a race of this name was really met. Nothing outside of tests.
#[cfg(not(feature = "lab"))]
#[inline(always)]
pub const fn met(_race: &'static str) {}

/// Notes that a race of this name was really met. Nothing outside of tests.
#[cfg(feature = "lab")]
pub fn met(race: &'static str) {
    lab::met(race);
}

/// Notes that what was just looked at is relied on from here on, and checked again later: a good moment for others to come
/// between. Nothing outside of tests.
#[cfg(not(feature = "lab"))]
#[inline(always)]
pub const fn window() {}

/// Notes that what was just looked at is relied on from here on, and checked again later: a good moment for others to come
/// between. Nothing outside of tests.
#[cfg(feature = "lab")]
#[inline]
pub fn window() {
    lab::point(Point::Window);
}

/// What is done to memory that hardware reads, too: for the witness of a test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// A word is about to be looked at.
    Looks,
    /// A word is about to be written, perhaps.
    Changes,
    /// It was looked at, and was this.
    Saw(u64),
    /// An exchange expected the first and found the second.
    Lost(u64, u64),
    /// It was the first, and is the second.
    Wrote(u64, u64),
    /// As many bytes of memory have found a user.
    Taken(u64),
    /// As many bytes of memory are nobody's from now on.
    Freed(u64),
    /// As many bytes of memory were cleaned and invalidated.
    Cleaned(u64),
}

/// Tells the witness what is done to the memory that this program sees at `address`. Nothing outside of tests.
#[cfg(not(feature = "lab"))]
#[inline(always)]
pub const fn touch(_address: usize, _touch: Touch) {}

/// Tells the witness what is done to the memory that this program sees at `address`. Nothing outside of tests.
#[cfg(feature = "lab")]
#[inline]
pub fn touch(address: usize, touch: Touch) {
    lab::touch(address, touch);
}

/// What [`spin_loop`] does, where somebody knows better than the compiler.
#[cfg(not(loom))]
static RELAX: spin::Once<fn()> = spin::Once::new();

/// Has [`spin_loop`] do `relax` from now on: what the CPU has for it. The first one counts.
#[cfg(not(loom))]
pub fn relax_by(relax: fn()) {
    RELAX.call_once(|| relax);
}

#[cfg(not(loom))]
#[cold]
#[inline(never)] // many loops wait, and none of them is in a hurry
fn relax() {
    match RELAX.get() {
        Some(relax) => relax(),
        None => core::hint::spin_loop(),
    }
}

/// Waits a moment inside a loop that waits for another CPU.
#[inline(always)]
pub fn spin_loop() {
    #[cfg(feature = "lab")]
    lab::point(Point::Spin);
    #[cfg(not(loom))]
    relax();
    #[cfg(loom)]
    loom::thread::yield_now();
}
