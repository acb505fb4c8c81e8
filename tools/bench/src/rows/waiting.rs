//! The ways of waiting for readers, side by side: what a stay in the hypervisor costs, what a use of the tables costs in
//! it, and what a writer pays for each table that it frees.

use crate::comparison::{Comparison, Contender, Row, Target, time};
use crate::scene::cpu;
use stage2::{Batched, EntryEpoch, IpiRendezvous, Quiescence, ReaderCount, Section};
use std::hint::black_box;
use std::sync::atomic::Ordering::{Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use types::{CpuId, CpuSet};

const TIMES: u64 = 1 << 18;
/// A batch that fills a page with addresses of tables, but for the page's own head.
const BATCH: u64 = 510;
/// How many CPUs a writer has to ask, itself among them.
const CPUS: u32 = 8;

/// Every way; one line for each.
pub fn comparisons() -> Vec<Comparison> {
    vec![
        entry(),
        write_side("EntryEpoch", EntryEpoch::new),
        write_side("ReaderCount", ReaderCount::new),
        // Nobody is walking, so nobody is kicked: what a kick costs is the machine's.
        write_side("IpiRendezvous", || IpiRendezvous::new(|_: CpuId| ())),
        write_side("Batched", Batched::new),
    ]
}

/// What a stay costs, against the least that announces one.
fn entry() -> Comparison {
    let epoch = EntryEpoch::new();
    let seat = AtomicU64::new(0);
    let contenders = vec![
        Contender::new("waiting/entry and exit", TIMES, move || {
            time(|| {
                for _ in 0..TIMES {
                    drop(black_box(&epoch).enter(cpu(0)));
                }
            })
        }),
        Contender::new("waiting/store and fence", TIMES, move || {
            time(|| {
                for n in 0..TIMES {
                    black_box(&seat).store(n, Release);
                    fence(SeqCst);
                }
            })
        }),
    ];
    Comparison::new(contenders, |ns| {
        vec![Row::ns("EntryEpoch, entry and exit / store + full fence", ns[0], ns[1], Target::AtMost(1.2))]
    })
}

/// What reading costs inside a stay, and what a grace period with nobody inside costs a writer for each table.
fn write_side<Q: Quiescence + 'static>(way: &'static str, make: fn() -> Q) -> Comparison {
    let (stays, reads) = (make(), make());
    let contenders = vec![
        Contender::new("waiting/stay", TIMES, move || {
            time(|| {
                for _ in 0..TIMES {
                    drop(black_box(&stays).enter(cpu(0)));
                }
            })
        }),
        Contender::new("waiting/use in a stay", TIMES, move || {
            let section = reads.enter(cpu(0));
            time(|| {
                for _ in 0..TIMES {
                    black_box(black_box(&section).read());
                }
            })
        }),
        freeing(make, 1),
        freeing(make, BATCH),
    ];
    Comparison::new(contenders, move |ns| {
        let row = |what: &str, ns| Row::alone(format!("{way}, {what}"), ns, "ns", Target::None);
        vec![
            row("entry and exit", ns[0]),
            row("a use of the tables in a stay, loop included", ns[1]),
            row("write side, each table, batch of 1", ns[2]),
            row("write side, each table, batch of 510", ns[3]),
        ]
    })
}

/// One grace period, or one epoch to rest for, for each `batch` tables.
fn freeing<Q: Quiescence + 'static>(make: fn() -> Q, batch: u64) -> Contender {
    let waiting = make();
    let readers = (0..CPUS as usize).fold(CpuSet::EMPTY, |set, n| set.with(cpu(n)));
    let periods = TIMES / 64;
    Contender::new("waiting/grace period", periods * batch, move || {
        let mut section = waiting.enter(cpu(0));
        time(|| {
            for _ in 0..periods {
                match section.defer() {
                    Some(epoch) => assert!(section.has_passed(epoch), "nobody is inside"),
                    None => {
                        let period = section.period(black_box(readers));
                        section.wait(period);
                    }
                }
            }
        })
    })
}
