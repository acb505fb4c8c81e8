//! The count of what is in hand against whoever looks for a frame, in every order of two CPUs' steps, with every value that
//! a load may return.

use super::Stocks;
use crate::bank::Frame;
use core::sync::atomic::Ordering::Relaxed;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread;
use types::CpuId;

const TAKER: CpuId = CpuId::BOOT;

/// A stock with one frame in it, and the entry that the frame will be in.
struct World {
    stocks: Stocks,
    is_published: AtomicBool,
}

fn world() -> Arc<World> {
    let world = World { stocks: Stocks::new(), is_published: AtomicBool::new(false) };
    world.stocks.fill(TAKER, Frame(5), 1);
    Arc::new(world)
}

#[test]
fn a_frame_is_in_its_stock_or_in_hand_or_where_it_was_published() {
    loom::model(|| {
        let world = world();
        let taker = {
            let world = world.clone();
            thread::spawn(move || {
                world.stocks.take(TAKER).expect("nobody else takes it");
                world.is_published.store(true, Relaxed);
                world.stocks.put_down(TAKER);
            })
        };
        // In this order, with the free lists locked and empty.
        // A glance first, as an allocation takes one: without it the checker takes the look for the last and tries few orders.
        let _ = (world.stocks.any(), world.stocks.in_hand(), world.is_published.load(Relaxed));
        let missed = !world.stocks.any() && world.stocks.in_hand() == 0 && !world.is_published.load(Relaxed);
        assert!(!missed, "a frame is nowhere");
        taker.join().unwrap();
    });
}

#[test]
fn a_stock_that_one_cpu_empties_while_another_takes_gives_each_frame_once() {
    loom::model(|| {
        let world = world();
        let taker = {
            let world = world.clone();
            thread::spawn(move || world.stocks.take(TAKER).is_some())
        };
        let emptied = world.stocks.empty(CpuId::new(1).expect("few"), TAKER).is_some();
        let taken = taker.join().unwrap();
        assert!(taken != emptied, "one of the two has it");
        assert_eq!(world.stocks.in_hand(), 1);
    });
}
