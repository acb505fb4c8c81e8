//! A run that is kept against who takes it and who takes all there is, in every order of two CPUs' steps, with every value
//! that a load may return.

use super::Kept;
use crate::Order;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use types::{CpuId, Pa};

const KEEPER: CpuId = CpuId::BOOT;
const RUN: (Pa, Order) = (Pa::new(0x8000), Order::FRAME);

/// The slots, and the memory of the run.
struct World {
    kept: Kept,
    memory: UnsafeCell<u64>,
}

#[test]
fn a_run_that_was_kept_is_taken_once_and_with_its_zeroes() {
    loom::model(|| {
        let world = Arc::new(World { kept: Kept::new(), memory: UnsafeCell::new(7) });
        let drain = {
            let world = world.clone();
            thread::spawn(move || {
                let drained = world.kept.empty(KEEPER).is_some();
                if drained {
                    world.memory.with_mut(|_| ()); // the checker sees a use that nothing orders after the zeroing
                }
                drained
            })
        };
        world.memory.with_mut(|_| ());
        assert_eq!(world.kept.put(KEEPER, RUN.0, RUN.1), None);
        let taken = world.kept.look(KEEPER).is_some_and(|run| world.kept.take(KEEPER, run));
        let drained = drain.join().unwrap();
        assert!(!(taken && drained), "one of the two has it");
    });
}
