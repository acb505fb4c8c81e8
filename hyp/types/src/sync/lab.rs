//! The laboratory: what is weakened or wrong in this run, who schedules, and which races were met.

extern crate std;

use super::Touch;
use core::cell::Cell;
use std::collections::BTreeMap;
use std::string::String;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Where a scheduler is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// Before a numbered ordering or barrier.
    Step,
    /// Between a look and the check that it still stands: others may come between.
    Window,
    /// In a loop that waits for another CPU: another one must run.
    Spin,
}

/// A scheduler that lets other threads run, or not.
pub type Hook = fn(Point);

/// Who is told what is done to memory that hardware reads, too.
pub type Witness = fn(usize, Touch);

std::thread_local! {
    static HOOK: Cell<Option<Hook>> = const { Cell::new(None) };
    static WITNESS: Cell<Option<Witness>> = const { Cell::new(None) };
}

/// Has `hook` called at each point that this thread passes from now on.
pub fn set_hook(hook: Option<Hook>) {
    HOOK.set(hook);
}

/// Has `witness` told what this thread does to memory from now on.
pub fn set_witness(witness: Option<Witness>) {
    WITNESS.set(witness);
}

#[inline]
pub(super) fn touch(address: usize, touch: Touch) {
    if let Some(witness) = WITNESS.get() {
        witness(address, touch);
    }
}

#[inline]
pub(super) fn point(point: Point) {
    if let Some(hook) = HOOK.get() {
        hook(point);
    }
}

pub(super) fn is_weakened(n: u16) -> bool {
    static WEAKENED: OnceLock<Option<u16>> = OnceLock::new();
    let weakened = WEAKENED.get_or_init(|| {
        let number = std::env::var("MEZZANINE_WEAKEN").ok()?;
        Some(number.parse().expect("MEZZANINE_WEAKEN is the number of an ordering"))
    });
    *weakened == Some(n)
}

pub(super) fn is_mutant(name: &str) -> bool {
    static MUTANT: OnceLock<Option<String>> = OnceLock::new();
    MUTANT.get_or_init(|| std::env::var("MEZZANINE_MUTANT").ok()).as_deref() == Some(name)
}

static MET: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

pub(super) fn met(race: &'static str) {
    *MET.lock().unwrap_or_else(PoisonError::into_inner).entry(race).or_insert(0) += 1;
}

/// Returns how often each race was met in this process.
pub fn met_counts() -> BTreeMap<&'static str, u64> {
    MET.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
