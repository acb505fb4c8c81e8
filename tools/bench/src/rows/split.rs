//! Split: 512 blocks of 2 MiB into pages, without the cost of a TLB.

use crate::comparison::{Comparison, Contender, Row, Target, time};
use crate::pool;
use crate::scene::{BLOCK, GIB, NoTlb, ONE_UP, PAGE, Scene, mapping, range};
use frames::{Order, Owner, Usage};
use stage2::{Bbm, Why};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::Duration;
use types::{Height, Ipa};

const BLOCKS: u64 = GIB / BLOCK;
const ENTRIES: u64 = BLOCK / PAGE;

/// By break, and directly, as the CPUs allow.
pub fn comparisons() -> Vec<Comparison> {
    let contenders = vec![
        splitting("split/break", Bbm::Level0),
        Contender::new("split/stores", BLOCKS, || stores(|_| {})),
        splitting("split/direct", Bbm::Level2),
        Contender::new("split/stores, published", BLOCKS, || {
            stores(|parent| {
                parent.swap(1, AcqRel);
            })
        }),
    ];
    vec![Comparison::new(contenders, |ns| {
        vec![
            Row::ns("split a 2M block, by break / 512 stores", ns[0], ns[1], Target::AtMost(1.5)),
            Row::ns("split a 2M block, directly / 512 stores", ns[2], ns[1], Target::AtMost(1.5)),
            Row::ns("split a 2M block, by break / 512 stores and an exchange", ns[0], ns[3], Target::None),
        ]
    })]
}

/// Writes a page for each block, and has something done to the block's own word each time.
fn stores(publish: impl Fn(&AtomicU64)) -> Duration {
    let take = || pool::frames().allocate(Order::FRAME, Usage::Table(Owner(3))).expect("the pool has pages");
    let runs: Vec<_> = (0..BLOCKS).map(|_| take()).collect();
    let parents: Vec<AtomicU64> = (0..BLOCKS).map(AtomicU64::new).collect();
    time(|| {
        for (run, parent) in runs.iter().zip(&parents) {
            let page = pool::frames().map().pointer(run.pa()).cast::<AtomicU64>();
            for entry in 0..ENTRIES {
                // SAFETY: within a page that is ours.
                unsafe { &*page.add(entry as usize) }.store(entry << 12 | 1, Relaxed);
            }
            publish(parent);
        }
    })
}

fn splitting(name: &'static str, bbm: Bbm) -> Contender {
    let scene = Scene::with_bbm(bbm);
    Contender::new(name, BLOCKS, move || {
        scene.map(mapping(0, 0, GIB, ONE_UP));
        let section = scene.section(0);
        let view = scene.tree.open(&section);
        let took = time(|| {
            for block in 0..BLOCKS {
                let split = view.split(&NoTlb, Ipa::new(block * BLOCK), Height::PAGE, Why::DirtyLog);
                split.expect("the pool has pages");
            }
        });
        drop(section);
        scene.unmap(0, range(0, GIB));
        took
    })
}
