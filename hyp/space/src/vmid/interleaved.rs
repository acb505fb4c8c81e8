//! Every order of two CPUs' steps, with every value that a load may return: `RUSTFLAGS="--cfg loom"`.
//!
//! What the TLBs hold is one cell for each VMID: whose entries are under it. Cells are read and written by exchanges, so
//! that everybody finds what is there and no ordering comes of it.

use super::*;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst, fence};
use loom::thread;

/// Enough for all that can be reserved, and for one space more.
const LAST: u16 = 3;
const SPACES: usize = 4;

struct Machine {
    vmids: Vmids,
    tags: [Tag; SPACES],
    /// The space whose entries TLBs hold under each VMID, plus 1; 0 where they hold none.
    holds: [AtomicUsize; LAST as usize + 1],
    /// Written by a rollover when the TLBs are empty: whoever runs under a VMID that it made free has that behind it.
    emptied: UnsafeCell<()>,
    /// Written by the invalidation under a borrowed VMID: whoever gets that VMID has it behind it.
    borrowing: UnsafeCell<()>,
    /// An entry of space 0's tables: 0, and then 1.
    entry: AtomicUsize,
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

impl Machine {
    fn new() -> Arc<Self> {
        let tags = core::array::from_fn(|_| Tag::new());
        let holds = core::array::from_fn(|_| AtomicUsize::new(0));
        Arc::new(Self {
            vmids: Vmids::up_to(LAST),
            tags,
            holds,
            emptied: UnsafeCell::new(()),
            borrowing: UnsafeCell::new(()),
            entry: AtomicUsize::new(0),
        })
    }

    fn flush(&self) {
        for cell in &self.holds {
            cell.swap(0, Relaxed);
        }
        self.emptied.with_mut(|_| ());
    }

    /// A walk fills a TLB, as one may at any time while the VMID is loaded.
    fn fill(&self, vmid: Vmid, space: usize) {
        let held = self.holds[usize::from(vmid.0)].swap(space + 1, Relaxed);
        assert!(held == 0 || held == space + 1, "entries of spaces {} and {space} under {vmid:?}", held - 1);
    }

    fn activate(&self, n: usize, space: usize) -> Vmid {
        let vmid = self.vmids.activate(cpu(n), &self.tags[space], || self.flush());
        self.fill(vmid, space);
        vmid
    }

    /// Runs a space, whose walks fill the TLB from first to last.
    fn run(&self, n: usize, space: usize) {
        let vmid = self.activate(n, space);
        self.fill(vmid, space);
        self.vmids.deactivate(cpu(n));
    }

    /// Invalidates the translations of a space that nobody runs meanwhile.
    fn invalidate(&self, n: usize, space: usize) {
        let vmid = self.vmids.borrow_for(cpu(n), &self.tags[space]);
        for (other, cell) in (0..).zip(&self.holds) {
            let missed = vmid != Some(Vmid(other)) && cell.fetch_add(0, Relaxed) == space + 1;
            assert!(!missed, "entries of space {space} under {other} are missed under {vmid:?}");
        }
        if let Some(vmid) = vmid {
            self.fill(vmid, space);
            self.borrowing.with_mut(|_| ());
            self.fill(vmid, space);
            self.vmids.return_borrowed(cpu(n));
        }
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_space_that_runs_over_a_rollover_shares_its_vmid_with_nobody() {
    check(|| {
        let machine = Machine::new();
        machine.run(1, 1);
        let other = {
            let machine = machine.clone();
            thread::spawn(move || machine.run(1, 0))
        };
        // The third VMID, and then a rollover.
        machine.run(0, 2);
        machine.run(0, 3);
        other.join().expect("it did not panic");
    });
}

#[test]
fn two_cpus_that_run_out_of_vmids_at_once_begin_one_generation_after_the_other() {
    check(|| {
        let machine = Machine::new();
        for space in 0..usize::from(LAST) {
            machine.run(0, space);
        }
        let other = {
            let machine = machine.clone();
            // Its VMID is of the old generation, and somebody else may just have got it in the new one.
            thread::spawn(move || machine.run(1, 0))
        };
        machine.run(0, 3);
        other.join().expect("it did not panic");
    });
}

#[test]
fn who_gets_a_vmid_from_another_cpu_has_the_rollover_behind_it() {
    check(|| {
        let machine = Machine::new();
        for space in 0..usize::from(LAST) {
            machine.run(0, space);
        }
        let run = |machine: &Machine, n: usize| {
            machine.activate(n, 3);
            machine.emptied.with(|_| ());
        };
        let other = {
            let machine = machine.clone();
            thread::spawn(move || run(&machine, 1))
        };
        run(&machine, 0);
        other.join().expect("it did not panic");
    });
}

#[test]
fn a_vmid_that_is_borrowed_over_a_rollover_goes_to_nobody_else() {
    check(|| {
        let machine = Machine::new();
        for space in 0..usize::from(LAST) {
            machine.run(0, space);
        }
        let other = {
            let machine = machine.clone();
            thread::spawn(move || machine.invalidate(1, 0))
        };
        if machine.activate(0, 3) == Vmid(1) {
            machine.borrowing.with(|_| ()); // it was space 0's, and is not any more
        }
        other.join().expect("it did not panic");
    });
}

#[test]
fn a_space_that_gets_a_vmid_is_invalidated_or_walks_the_new_entries() {
    check(|| {
        let machine = Machine::new();
        let writer = {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.entry.store(1, Relaxed);
                fence(SeqCst); // the DSB of an invalidation
                let vmid = machine.vmids.borrow_for(cpu(1), &machine.tags[0]);
                if vmid.is_some() {
                    machine.vmids.return_borrowed(cpu(1));
                }
                vmid
            })
        };
        machine.activate(0, 0);
        let walked = machine.entry.load(Relaxed);
        let invalidated = writer.join().expect("it did not panic");
        assert!(walked == 1 || invalidated.is_some(), "an old entry, and nobody invalidates it");
    });
}
