//! [`Machine`]: table memory, CPU and read sections that record what is done with them, for the [judge](crate::judge).
//!
//! For one host thread. A fake that records does not ignore: every write, barrier, invalidation, grace period, take
//! and give-back is in the list, in order. Invalidation is recorded as instructions: those of a
//! [`Sequence`], or of a CPU crate.

use crate::{Arena, Effect, Instructions, Sequence};
use stage2::{
    Entries, EntryEpoch, FreshTable, IdleTable, Invalidate, NoPages, Pages, Purpose, Quiescence, Section,
    Slot, Snapshot, Stay, TablePa, TableSize, Work,
};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use types::{CpuId, CpuSet, Ipa, Pa, Range};

/// Memory, CPU and read sections of one host thread.
#[derive(Debug)]
pub struct Machine {
    arena: Arena,
    epoch: EntryEpoch,
    log: RefCell<Log>,
    hardware: Cell<Option<Hardware>>,
    /// Tables in reserve for splits. Who has drawn one and gives it back has it below zero for a moment at most.
    reserved: Cell<i64>,
    /// How many tables came into reserve, or were let go of out of it.
    reserve_moved: Cell<u64>,
    instructions: RefCell<Box<dyn Instructions>>,
    /// How many more tables may be taken or reserved.
    requests: Cell<u64>,
    /// The entries that were looked at or written since the last count.
    touched: RefCell<HashSet<(Pa, usize)>>,
}

/// What the hardware does to an entry by itself: given the word, returns it with more flags set.
pub type Hardware = fn(u64) -> u64;

#[derive(Debug, Default)]
struct Log {
    effects: Vec<Effect>,
    next: usize,
}

/// The CPU that a [`Machine`] records as.
const CPU: CpuId = CpuId::BOOT;

impl Machine {
    /// Makes a machine with `bytes` bytes of table memory.
    pub fn new(bytes: u64) -> Self {
        Self {
            arena: Arena::new(bytes),
            epoch: EntryEpoch::new(),
            log: RefCell::default(),
            hardware: Cell::new(None),
            reserved: Cell::new(0),
            reserve_moved: Cell::new(0),
            instructions: RefCell::new(Box::new(Sequence::RIGHT)),
            requests: Cell::new(u64::MAX),
            touched: RefCell::default(),
        }
    }

    /// Has the hardware act on an entry just before each compare-exchange of it, where a race would be lost.
    pub fn set_hardware(&self, hardware: Hardware) {
        self.hardware.set(Some(hardware));
    }

    /// Sets the instructions that invalidation is made of.
    pub fn set_instructions(&self, instructions: impl Instructions + 'static) {
        self.instructions.replace(Box::new(instructions));
    }

    /// Returns the table memory.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Returns the number of tables that are in reserve for splits.
    pub fn reserved(&self) -> i64 {
        self.reserved.get()
    }

    /// Grants `n` more requests for memory, for a table or for a reserve, and refuses after that.
    pub fn allow_requests(&self, n: u64) {
        self.requests.set(n);
    }

    fn grant(&self) -> Result<(), NoPages> {
        let left = self.requests.get();
        let one_less = if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        self.requests.set(one_less.ok_or(NoPages)?);
        Ok(())
    }

    /// Returns how many tables were set aside for splits, or let go of again, since the last call.
    pub fn reserve_moved(&self) -> u64 {
        self.reserve_moved.take()
    }

    /// Returns how many entries were looked at or written since the last call, each counted once.
    pub fn touched(&self) -> usize {
        std::mem::take(&mut *self.touched.borrow_mut()).len()
    }

    /// Notes that a lost leaf or note came out.
    pub fn handed(&self, range: Range) {
        self.push(Effect::Handed { range });
    }

    /// Notes that a step of an operation ended.
    pub fn step_end(&self) {
        self.push(Effect::StepEnd);
    }

    /// Takes the list of what was done since the last call.
    pub fn drain(&self) -> Vec<Effect> {
        std::mem::take(&mut self.log.borrow_mut().effects)
    }

    fn push(&self, effect: Effect) {
        self.log.borrow_mut().effects.push(effect);
    }

    fn next_id(&self) -> usize {
        let mut log = self.log.borrow_mut();
        log.next += 1;
        log.next
    }
}

/// An entry that records its writes.
#[derive(Clone, Copy, Debug)]
pub struct Watched<'a> {
    machine: &'a Machine,
    table: TablePa,
    index: usize,
}

impl Watched<'_> {
    fn wrote(self, old: u64, new: u64) {
        self.machine.push(Effect::Write { cpu: CPU, table: self.table.pa(), index: self.index, old, new });
    }
}

impl Slot for Watched<'_> {
    fn load(self, order: Ordering) -> u64 {
        self.machine.arena.slot(self.table, self.index).load(order)
    }

    fn store(self, raw: u64, _: Ordering) {
        let old = self.machine.arena.slot(self.table, self.index).swap(raw, Ordering::AcqRel);
        self.wrote(old, raw);
    }

    fn swap(self, raw: u64, order: Ordering) -> u64 {
        let old = self.machine.arena.slot(self.table, self.index).swap(raw, order);
        self.wrote(old, raw);
        old
    }

    fn compare_exchange(self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        let slot = self.machine.arena.slot(self.table, self.index);
        if let Some(hardware) = self.machine.hardware.get() {
            slot.store(hardware(slot.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
        slot.compare_exchange(old, new, success, failure).inspect(|&old| self.wrote(old, new))
    }
}

impl Entries for Machine {
    type Slot<'a> = Watched<'a>;

    fn slot(&self, table: TablePa, index: usize) -> Watched<'_> {
        assert!(self.arena.is_taken(table.pa()), "looks into {table:?}, which was given back");
        self.touched.borrow_mut().insert((table.pa(), index));
        Watched { machine: self, table, index }
    }
}

impl Pages for Machine {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        self.grant()?;
        let table = self.arena.take(size, purpose)?;
        self.push(Effect::Take { table: table.table().pa(), size });
        if purpose == Purpose::Split {
            self.reserved.update(|n| n - 1);
        }
        Ok(table)
    }

    fn give_back(&self, table: IdleTable) {
        self.push(Effect::GiveBack { table: table.pa() });
        self.reserved.update(|n| n + i64::from(table.restores_reserve()));
        self.arena.give_back(table);
    }

    fn reserve(&self, tables: u64) -> Result<(), NoPages> {
        self.grant()?;
        self.reserved.update(|n| n + tables as i64);
        self.reserve_moved.update(|n| n + tables);
        Ok(())
    }

    fn release(&self, tables: u64) {
        self.reserve_moved.update(|n| n + tables);
        self.reserved.update(|n| n - tables as i64);
    }
}

impl Invalidate for Machine {
    type Pending = usize;

    fn begin(&self, work: Work) -> usize {
        let id = self.next_id();
        self.push(Effect::Begin { work, id });
        let effects = self.instructions.borrow_mut().begin(CPU, work, id);
        self.log.borrow_mut().effects.extend(effects);
        id
    }

    fn complete(&self, id: usize) {
        let effects = self.instructions.borrow_mut().complete(CPU, id);
        self.log.borrow_mut().effects.extend(effects);
        self.push(Effect::Complete { id });
    }
}

impl Quiescence for Machine {
    type Section<'q> = WatchedStay<'q>;

    fn enter(&self, cpu: CpuId) -> WatchedStay<'_> {
        WatchedStay { machine: self, stay: self.epoch.enter(cpu) }
    }
}

/// A section that records its grace periods.
#[derive(Debug)]
pub struct WatchedStay<'q> {
    machine: &'q Machine,
    stay: Stay<'q>,
}

impl<'q> Section for WatchedStay<'q> {
    type Reading<'s>
        = <Stay<'q> as Section>::Reading<'s>
    where
        Self: 's;
    type Period = (usize, Snapshot);

    fn cpu(&self) -> CpuId {
        self.stay.cpu()
    }

    fn read(&self) -> Self::Reading<'_> {
        self.stay.read()
    }

    fn period(&self, readers: CpuSet) -> (usize, Snapshot) {
        let id = self.machine.next_id();
        self.machine.push(Effect::Grace { id });
        (id, self.stay.period(readers))
    }

    fn wait(&mut self, (id, period): (usize, Snapshot)) {
        self.stay.wait(period);
        self.machine.push(Effect::GraceOver { id });
    }

    fn pass(&mut self) {
        self.stay.pass();
    }
}

/// Returns the addresses of `bytes` bytes from `start`.
///
/// # Panics
/// Where that wraps.
pub fn range(start: u64, bytes: u64) -> Range {
    Range::with_len(Ipa::new(start), bytes).expect("a range of a test does not wrap")
}
