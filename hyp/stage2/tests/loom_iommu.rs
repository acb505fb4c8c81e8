//! Letting an IOMMU in and out against logs and changes, in every order of two CPUs' steps, with every value that a load
//! may return: `RUSTFLAGS="--cfg loom" cargo test -p mezzanine-stage2 --test loom_iommu`.
#![cfg(loom)]

mod world;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use model::Tiny;
use stage2::{
    Bbm, ChangeError, Entries, Format as _, Harm, Invalidate, Quiescence, Restraint, Slot, Why, Work,
};
use types::{Height, Ipa};
use world::{BLOCK_HEIGHT, World, check, cpu};

/// Of an IOMMU that can do nothing.
const PLAIN: Restraint = Restraint { from: Harm::all(), bbm: Bbm::Level0 };

#[test]
fn of_a_log_and_an_iommu_that_begin_at_once_one_is_refused() {
    check(|| {
        let world = World::new(Bbm::Level0);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.tree.log_begins(Harm::CLEAN).is_ok())
        };
        let is_in = world.tree.restrain(PLAIN).is_ok();
        let is_logged = other.join().unwrap();
        assert!(!(is_in && is_logged), "each has missed the other");
        assert_eq!((world.tree.is_logging(), world.tree.restraint().is_shared()), (is_logged, is_in));
    });
}

/// A CPU whose invalidation finds an entry broken, which a device must not meet.
struct Watching {
    world: Arc<World>,
    is_on: Arc<AtomicBool>,
}

impl Invalidate for Watching {
    type Pending = ();

    fn begin(&self, _: Work) {
        let raw = self.world.tree.memory().slot(self.world.tree.root(), 0).load(Ordering::Acquire);
        if Tiny.decode(raw, BLOCK_HEIGHT).live().is_none() {
            assert!(!self.is_on.load(Ordering::Relaxed), "broken under a device");
        }
    }

    fn complete(&self, (): ()) {}
}

/// A splitter of a block that can only be broken, while `act` lets a device in or out.
fn against_a_split(is_on: bool, act: impl FnOnce(&World, &AtomicBool) + Copy + Send + Sync + 'static) {
    check(move || {
        let world = World::new(Bbm::Level0);
        world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
        let is_on = Arc::new(AtomicBool::new(is_on));
        if is_on.load(Ordering::Relaxed) {
            world.tree.restrain(PLAIN).expect("no log runs");
        }
        let splitter = {
            let watching = Watching { world: world.clone(), is_on: is_on.clone() };
            thread::spawn(move || {
                let section = watching.world.epoch.enter(cpu(1));
                let view = watching.world.tree.open(&section);
                let split = view.split(&watching, Ipa::new(0), Height::PAGE, Why::Pin);
                assert!(matches!(split, Ok(()) | Err(ChangeError::DeviceWouldFault { .. })), "{split:?}");
            })
        };
        act(&world, &is_on);
        splitter.join().unwrap();
    });
}

#[test]
fn no_entry_is_broken_when_an_iommu_is_let_in() {
    against_a_split(false, |world, is_on| {
        world.tree.restrain(PLAIN).expect("no log runs");
        let mut section = world.epoch.enter(cpu(0));
        if world.tree.outlast(&mut section).is_ok() {
            is_on.store(true, Ordering::Relaxed);
        }
    });
}

#[test]
fn what_is_allowed_again_is_done_when_the_iommu_is_off() {
    against_a_split(true, |world, is_on| {
        is_on.store(false, Ordering::Relaxed);
        world.tree.relent(Restraint::NONE);
    });
}
