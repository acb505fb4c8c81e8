//! [`Arena`]: table memory on the host.

use stage2::{Entries, FreshTable, IdleTable, NoPages, Pages, Purpose, TablePa, TableSize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use types::Pa;

/// Where the arena pretends to be: not at zero, so that an address that lost its base shows.
const BASE: u64 = 0x40_0000_0000;
/// What given-back tables are filled with: a word that decodes to nothing useful in any format.
const POISON: u64 = 0xdead_beef_dead_beee;

/// The words of a piece of the memory.
const PIECE: usize = 512;

/// A fixed amount of table memory in atomics. Frames of any table size; given-back ones are poisoned and come again zeroed.
/// Counts what is in use, and can be told to run out.
#[derive(Debug)]
pub struct Arena {
    /// The memory in pieces, each made when it is first asked for: most tests use a few of many, and an interpreter makes
    /// every word at its own cost.
    pieces: Box<[OnceLock<Box<[AtomicU64; PIECE]>>]>,
    bytes: u64,
    state: Mutex<State>,
    left: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes handed out from the start so far.
    top: u64,
    /// Given back, by size.
    free: BTreeMap<TableSize, Vec<Pa>>,
    in_use: BTreeMap<Pa, TableSize>,
}

impl Arena {
    /// Makes an arena of `bytes` bytes.
    ///
    /// # Panics
    /// Where that is no multiple of 8.
    pub fn new(bytes: u64) -> Self {
        assert!(bytes.is_multiple_of(8), "the arena is made of 8-byte words");
        let pieces = (0..(bytes / 8).div_ceil(PIECE as u64)).map(|_| OnceLock::new()).collect();
        Self { pieces, bytes, state: Mutex::default(), left: AtomicUsize::new(usize::MAX) }
    }

    /// Lets `n` more tables be taken, and refuses after that.
    pub fn allow(&self, n: usize) {
        self.left.store(n, Ordering::SeqCst);
    }

    /// Returns the number of tables taken and not given back.
    pub fn in_use(&self) -> usize {
        self.state().in_use.len()
    }

    /// Tells whether the table at `pa` is taken.
    pub fn is_taken(&self, pa: Pa) -> bool {
        self.state().in_use.contains_key(&pa)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline(always)]
    fn word(&self, pa: Pa, index: usize) -> &AtomicU64 {
        let word = (pa.get().wrapping_sub(BASE) / 8) as usize + index;
        let piece = self.pieces[word / PIECE].get_or_init(|| Box::new([const { AtomicU64::new(0) }; PIECE]));
        &piece[word % PIECE]
    }

    fn fill(&self, pa: Pa, size: TableSize, content: u64) {
        for index in 0..(size.bytes() / 8) as usize {
            self.word(pa, index).store(content, Ordering::Relaxed);
        }
    }
}

impl Entries for Arena {
    type Slot<'a> = &'a AtomicU64;

    #[inline(always)]
    fn slot(&self, table: TablePa, index: usize) -> &AtomicU64 {
        self.word(table.pa(), index)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is what implements `Pages`")]
impl Pages for Arena {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        let one_less = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(1) };
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).map_err(|_| NoPages)?;
        let mut state = self.state();
        let pa = if let Some(pa) = state.free.get_mut(&size).and_then(Vec::pop) {
            pa
        } else {
            let start = state.top.next_multiple_of(size.bytes());
            if start + size.bytes() > self.bytes {
                return Err(NoPages);
            }
            state.top = start + size.bytes();
            Pa::new(BASE + start)
        };
        state.in_use.insert(pa, size);
        drop(state);
        // A table for a split may hold anything.
        let content = if purpose == Purpose::Split { POISON } else { 0 };
        self.fill(pa, size, content);
        Ok(FreshTable::new(pa, size))
    }

    fn give_back(&self, table: IdleTable) {
        self.fill(table.pa(), table.size(), POISON);
        let mut state = self.state();
        let size = state.in_use.remove(&table.pa());
        assert_eq!(size, Some(table.size()), "given back what was not taken: {table:?}");
        state.free.entry(table.size()).or_default().push(table.pa());
    }
}
