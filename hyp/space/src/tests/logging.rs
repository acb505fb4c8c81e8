//! The dirty log, step by step.

use super::guest::Hardware;
use super::*;
use crate::{DirtySource, Granularity, Leaves, Listed, LogCursor, log_budget};
use stage2::{Section, Why};
use std::sync::Arc;
use types::CpuSet;

const ALL: u64 = 4 * MIB;

fn all() -> Range {
    range(GUEST, ALL)
}

fn with_guest(
    features: Features,
    test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>, Arc<Hardware>),
) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_of(&machine, features, 1000);
    add_ram(&space, &mut stay, GUEST, ALL);
    test(&machine, &space, &mut stay, Arc::new(Hardware::default()));
}

fn start<D: DirtySource>(
    space: &Space<'_, Format>,
    stay: &mut Stay<'_>,
    hardware: &Hardware,
    source: &D,
    granularity: Granularity,
) {
    let mut cursor = Some(space.start_log(stay, source, all(), granularity).unwrap());
    while let Some(at) = cursor {
        cursor = space.arm_log(stay, hardware, at).unwrap();
    }
}

/// Returns the pages that a round reports, as numbers.
fn round<D: DirtySource>(
    space: &Space<'_, Format>,
    stay: &mut Stay<'_>,
    hardware: &Hardware,
    source: &D,
) -> Vec<u64> {
    let mut pages = Vec::new();
    let mut cursor = space.log_round(stay);
    while let Some(at) = cursor {
        cursor = space
            .harvest_log(stay, hardware, source, at, &mut |range| {
                let page = |ipa: Ipa| (ipa.get() - GUEST) / PAGE;
                pages.extend(page(range.start())..page(range.end()));
            })
            .unwrap();
    }
    pages
}

fn store(machine: &Machine, space: &Space<'_, Format>, stay: &mut Stay<'_>, hardware: &Hardware, page: u64) {
    hardware.store(space, stay, &FakeCpu::new(0, machine), GUEST + page * PAGE, |_| {});
}

#[test]
fn a_round_reports_exactly_the_pages_written_since_the_last() {
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        with_guest(features, |machine, space, stay, hardware| {
            for page in [0, 7, 600] {
                store(machine, space, stay, &hardware, page);
            }
            start(space, stay, &hardware, &Leaves, Granularity::Pages);
            assert_eq!(round(space, stay, &hardware, &Leaves), [0; 0], "what was before is not asked for");
            for page in [3, 4, 5, 1023, 600, 3] {
                store(machine, space, stay, &hardware, page);
            }
            assert_eq!(round(space, stay, &hardware, &Leaves), [3, 4, 5, 600, 1023]);
            assert_eq!(round(space, stay, &hardware, &Leaves), [0; 0]);
            store(machine, space, stay, &hardware, 4);
            assert_eq!(round(space, stay, &hardware, &Leaves), [4]);
        });
    }
}

#[test]
fn a_log_of_what_is_mapped_reports_blocks_whole() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 0);
        start(space, stay, &hardware, &Leaves, Granularity::AsMapped);
        store(machine, space, stay, &hardware, 9);
        assert_eq!(round(space, stay, &hardware, &Leaves), (0..512).collect::<Vec<_>>());
        assert_eq!(leaves(space), [0, 1, 0]);
    });
}

#[test]
fn what_the_hardware_lists_on_any_cpu_is_reported() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        let source = Listed(hardware.clone());
        store(machine, space, stay, &hardware, 0);
        start(space, stay, &hardware, &source, Granularity::AsMapped);
        assert_eq!(leaves(space), [512, 0, 0], "a list needs pages");
        assert_eq!(round(space, stay, &hardware, &source), [0; 0], "nothing was written since");
        store(machine, space, stay, &hardware, 5);
        store(machine, space, stay, &hardware, 700);
        assert_eq!(round(space, stay, &hardware, &source), [5, 700]);
        assert_eq!(round(space, stay, &hardware, &source), [0; 0], "their flags were cleared");
        store(machine, space, stay, &hardware, 5);
        assert_eq!(round(space, stay, &hardware, &source), [5], "and are listed anew");
    });
}

#[test]
fn a_full_list_that_its_own_cpu_took_out_is_reported() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        let source = Listed(hardware.clone());
        store(machine, space, stay, &hardware, 5);
        start(space, stay, &hardware, &source, Granularity::Pages);
        round(space, stay, &hardware, &source);
        store(machine, space, stay, &hardware, 5);
        crate::Pml::drain(&hardware, &mut |ipa| {
            space.mark_written(stay, Range::block_around(ipa, PAGE));
        });
        assert_eq!(round(space, stay, &hardware, &source), [5]);
    });
}

#[test]
fn a_page_that_leaves_is_reported_though_its_leaf_is_gone() {
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        with_guest(features, |machine, space, stay, hardware| {
            store(machine, space, stay, &hardware, 0);
            start(space, stay, &hardware, &Leaves, Granularity::Pages);
            round(space, stay, &hardware, &Leaves);
            store(machine, space, stay, &hardware, 2);
            let gone = range(GUEST + 2 * PAGE, 2 * PAGE);
            assert_eq!(space.discard(stay, &plain(space), &*hardware, gone), Ok(gone.end()));
            assert_eq!(round(space, stay, &hardware, &Leaves), [2, 3]);
            assert_eq!(round(space, stay, &hardware, &Leaves), [0; 0]);
            // A table with all its pages.
            assert_eq!(
                space.discard(stay, &plain(space), &*hardware, range(GUEST, BLOCK)),
                Ok(Ipa::new(GUEST + BLOCK))
            );
            assert_eq!(round(space, stay, &hardware, &Leaves), (0..512).collect::<Vec<_>>());
        });
    }
}

#[test]
fn a_page_is_marked_before_anybody_can_see_it_gone() {
    with_guest(Features::empty(), |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 0);
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        round(space, stay, &hardware, &Leaves);
        let page = range(GUEST + 8 * PAGE, PAGE);
        let mut told = 0;
        let tree = space.tree();
        let mut told_of = |leaving: Range| {
            told += 1;
            assert_eq!(leaving, page);
            let other = EntryEpoch::new();
            let found = tree.open(&other.enter(cpu_id(3))).translate(page.start());
            assert_eq!(found.entry(tree.format()), stage2::Entry::Frozen, "not absent yet");
        };
        let unmapped = tree.unmap_told(stay, &*hardware, page, u64::MAX, &mut told_of, &mut |_| {});
        assert_eq!((unmapped, told), (Ok(page.end()), 1));
    });
}

#[test]
fn a_page_with_a_write_pin_is_in_every_round_and_after_the_pin_in_one_more() {
    use frames::{Hold, Order};
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        with_guest(features, |machine, space, stay, hardware| {
            store(machine, space, stay, &hardware, 0);
            start(space, stay, &hardware, &Leaves, Granularity::Pages);
            round(space, stay, &hardware, &Leaves);
            let (pa, _) = translate(space, stay, GUEST + 6 * PAGE).unwrap();
            machine.pin(pa, Order::FRAME, Hold::Write).unwrap();
            let (read_only, _) = translate(space, stay, GUEST + 7 * PAGE).unwrap();
            machine.pin(read_only, Order::FRAME, Hold::Read).unwrap();
            for _ in 0..3 {
                assert_eq!(round(space, stay, &hardware, &Leaves), [6]);
            }
            space.mark_written(stay, range(GUEST + 6 * PAGE, PAGE));
            machine.unpin(pa, Order::FRAME, Hold::Write).unwrap();
            assert_eq!(round(space, stay, &hardware, &Leaves), [6]);
            assert_eq!(round(space, stay, &hardware, &Leaves), [0; 0]);
        });
    }
}

#[test]
fn a_block_with_a_write_pin_is_in_every_round_whatever_the_source() {
    use frames::{Hold, Order};
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        let source = Listed(hardware.clone());
        store(machine, space, stay, &hardware, 0);
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        machine.pin(pa, Order::FOLIO, Hold::Write).unwrap();
        start(space, stay, &hardware, &source, Granularity::Pages);
        for _ in 0..2 {
            assert_eq!(round(space, stay, &hardware, &source), (0..512).collect::<Vec<_>>());
        }
        machine.unpin(pa, Order::FOLIO, Hold::Write).unwrap();
        assert_eq!(round(space, stay, &hardware, &source), [0; 0]);
    });
}

#[test]
fn what_a_loader_writes_is_reported() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 0);
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        round(space, stay, &hardware, &Leaves);
        let cpu = FakeCpu::new(0, machine);
        space.copy_in(stay, &cpu, &*hardware, Ipa::new(GUEST + 3 * PAGE + 4000), &[1; 200]).unwrap();
        assert_eq!(round(space, stay, &hardware, &Leaves), [3, 4]);
        space.copy_out(stay, &cpu, &*hardware, Ipa::new(GUEST), &mut [0; 200]).unwrap();
        assert_eq!(round(space, stay, &hardware, &Leaves), [0; 0]);
    });
}

#[test]
fn rights_that_are_taken_away_take_no_mark_along() {
    with_guest(Features::empty(), |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 0);
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        round(space, stay, &hardware, &Leaves);
        store(machine, space, stay, &hardware, 3);
        let _ = space.protect(stay, &*hardware, range(GUEST, 8 * PAGE), Access::READ).unwrap();
        assert_eq!(round(space, stay, &hardware, &Leaves), [3]);
    });
}

#[test]
fn while_a_log_runs_no_other_begins_and_nothing_is_collapsed() {
    with_guest(Features::empty(), |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 0);
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        let again = space.start_log(stay, &Leaves, all(), Granularity::Pages);
        assert_eq!(again, Err(SpaceError::LogRuns));
        assert_eq!(space.recover(stay, &*hardware, all()), Err(SpaceError::LogRuns));
        let wrong = space.tree().collapse(stay, &*hardware, Ipa::new(GUEST), Height::new(1));
        assert_eq!(wrong, Err(stage2::CollapseError::Logging));
        let old = space.log_round(stay).unwrap();
        space.stop_log(stay).unwrap();
        assert_eq!(space.stop_log(stay), Err(SpaceError::NoLog));
        assert_eq!(space.log_round(stay), None);
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        let wrong = space.harvest_log(stay, &*hardware, &Leaves, old, &mut |_| {});
        assert_eq!(wrong, Err(SpaceError::NoLog), "a cursor of another log");
    });
}

#[test]
fn when_a_log_is_over_what_it_split_becomes_blocks_again() {
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        with_guest(features, |machine, space, stay, hardware| {
            store(machine, space, stay, &hardware, 0);
            store(machine, space, stay, &hardware, 512);
            start(space, stay, &hardware, &Leaves, Granularity::Pages);
            store(machine, space, stay, &hardware, 7);
            space.stop_log(stay).unwrap();
            assert_eq!(leaves(space), [1024, 0, 0]);
            let mut made = 0;
            let mut rest = all();
            while !rest.is_empty() {
                let step = space.recover(stay, &*hardware, rest).unwrap();
                made += u32::from(step.made_block == crate::Made::Block);
                rest = Range::new(step.next, rest.end()).unwrap();
            }
            assert_eq!((made, leaves(space)), (2, [0, 2, 0]));
            hardware.try_store(space, GUEST + 9, |_| {}).expect("with all its rights");
        });
    }
}

#[test]
fn what_was_not_split_by_a_log_or_is_uneven_by_now_stays_as_it_is() {
    with_guest(Features::empty(), |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 0);
        store(machine, space, stay, &hardware, 512);
        let view = space.tree().open(&*stay);
        view.split(&*hardware, Ipa::new(GUEST), Height::PAGE, Why::Pin).unwrap();
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        space.stop_log(stay).unwrap();
        space.discard(stay, &plain(space), &*hardware, range(GUEST + BLOCK, PAGE)).unwrap();
        let mut rest = all();
        while !rest.is_empty() {
            rest = Range::new(space.recover(stay, &*hardware, rest).unwrap().next, rest.end()).unwrap();
        }
        assert_eq!(leaves(space), [1023, 0, 0]);
    });
}

#[test]
fn a_log_that_finds_no_memory_leaves_everything_as_it_was() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let root = (geometry().root_size().bytes() / PAGE) as u32;
    // 4 GiB: 32 sheets of bits and one above them.
    let large = range(0, 4 << 30);
    let wanted = log_budget::<Format>(large);
    assert_eq!(wanted, 33);
    for tables in root..root + wanted {
        let space = space_with_tables(&machine, tables);
        add_ram(&space, &mut stay, GUEST, PAGE);
        let before = (machine.stats(), space.stats());
        let wrong = space.start_log(&mut stay, &Leaves, large, Granularity::Pages);
        assert_eq!(wrong, Err(SpaceError::OutOfTables { ipa: Ipa::new(0) }));
        assert_eq!((machine.stats(), space.stats()), before);
        assert!(space.log_round(&stay).is_none() && !space.tree().is_logging());
        destroy(space, &mut stay, &Recorder::default());
    }
    let space = space_with_tables(&machine, root + wanted);
    let log = space.start_log(&mut stay, &Leaves, large, Granularity::Pages);
    assert_eq!(log.map(LogCursor::next), Ok(Ipa::new(0)));
    space.mark_written(&stay, range((4 << 30) - PAGE, PAGE));
    space.stop_log(&mut stay).unwrap();
    assert_eq!(space.stats().table_bytes, u64::from(root) * PAGE, "all of it has gone back");
    space.start_log(&mut stay, &Leaves, large, Granularity::Pages).unwrap();
    destroy(space, &mut stay, &Recorder::default());
    stay.pass();
    machine.drain_kept();
    assert_eq!(machine.stats().guest, 0);
}

#[test]
fn a_log_of_nothing_or_beyond_the_space_is_refused() {
    with_guest(Features::empty(), |_, space, stay, _| {
        for bad in [range(GUEST, 0), range(GUEST + 1, PAGE), range((1 << 36) - PAGE, 2 * PAGE)] {
            let wrong = space.start_log(stay, &Leaves, bad, Granularity::Pages);
            assert_eq!(wrong, Err(SpaceError::BadRegion { range: bad }));
        }
    });
}

#[test]
fn a_round_goes_on_where_it_was_and_loses_nothing_to_an_owned_entry() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        for source in 0..2 {
            store(machine, space, stay, &hardware, 0);
            let listed = Listed(hardware.clone());
            match source {
                0 => start(space, stay, &hardware, &Leaves, Granularity::Pages),
                _ => start(space, stay, &hardware, &listed, Granularity::Pages),
            }
            store(machine, space, stay, &hardware, 5);
            let harvest = |stay: &mut Stay<'_>, cursor| {
                let mut pages = Vec::new();
                let written = &mut |range: Range| pages.push((range.start().get() - GUEST) / PAGE);
                let done = match source {
                    0 => space.harvest_log(stay, &*hardware, &Leaves, cursor, written),
                    _ => space.harvest_log(stay, &*hardware, &listed, cursor, written),
                };
                (done, pages)
            };
            let cursor = space.log_round(stay).unwrap();
            let other = EntryEpoch::new();
            let elsewhere = other.enter(cpu_id(1));
            let view = space.tree().open(&elsewhere);
            let taken = view.take_leaf(&*hardware, Ipa::new(GUEST + 9 * PAGE), Height::PAGE).unwrap();
            let (mut cursor, mut reported) = (cursor, Vec::new());
            let busy = loop {
                let (done, pages) = harvest(stay, cursor);
                reported.extend(pages);
                match done {
                    Ok(next) => cursor = next.expect("there is no way round an owned entry"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(busy, SpaceError::Busy { .. }), "{busy:?}");
            drop(taken);
            let (done, pages) = harvest(stay, cursor);
            reported.extend(pages);
            assert!(done.is_ok() && reported.contains(&5), "{done:?} {reported:?}");
            space.stop_log(stay).unwrap();
        }
    });
}

/// A mark from before the log's start must not be there in the next one, and a stop waits for who is marking.
#[test]
fn a_stop_outlasts_every_section_that_saw_the_log_run() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    let mut stay = epoch.enter(cpu_id(0));
    add_ram(&space, &mut stay, GUEST, BLOCK);
    space.start_log(&mut stay, &Leaves, range(GUEST, BLOCK), Granularity::Pages).unwrap();
    drop(stay);
    let (inside, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let stay = epoch.enter(cpu_id(1));
            let _reading = stay.read();
            assert!(space.log.running().is_some());
            inside.store(true, SeqCst);
            for _ in 0..2000 {
                std::thread::yield_now();
            }
            assert!(!stopped.load(SeqCst), "the bitmap went away under who marks in it");
        });
        while !inside.load(SeqCst) {
            std::thread::yield_now();
        }
        space.stop_log(&mut epoch.enter(cpu_id(0))).unwrap();
        stopped.store(true, SeqCst);
    });
}

/// Another CPU has marked a dirty page and is about to clean its leaf when a whole round passes by, and reports the page; the
/// guest writes again; and only then the other cleans, what it has marked being taken.
#[test]
fn a_round_leaves_the_mark_of_who_is_cleaning_still() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 3);
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        store(machine, space, stay, &hardware, 3);
        let page = range(GUEST + 3 * PAGE, PAGE);
        let epoch = EntryEpoch::new();
        let mut passes = 0;
        space
            .tree()
            .harvest(stay, &*hardware, page, &mut |_, _| {
                let mut other = epoch.enter(cpu_id(1));
                space.mark_written(&other, page);
                passes += 1;
                if passes == 1 {
                    assert_eq!(round(space, &mut other, &hardware, &Leaves), [3]);
                    store(machine, space, &mut other, &hardware, 3);
                }
            })
            .unwrap();
        assert_eq!(passes, 1, "the leaf is to the bit what it was");
        assert_eq!(round(space, stay, &hardware, &Leaves), [3], "what was written after the round");
        assert_eq!(round(space, stay, &hardware, &Leaves), [0; 0]);
    });
}

/// A stay, with what others do at its first quiescent point.
struct Interrupted<'s, 'e> {
    stay: Stay<'e>,
    others: Option<Box<dyn FnOnce() + 's>>,
}

impl<'e> Section for Interrupted<'_, 'e> {
    type Reading<'s>
        = <Stay<'e> as Section>::Reading<'s>
    where
        Self: 's;
    type Period = <Stay<'e> as Section>::Period;

    fn cpu(&self) -> CpuId {
        self.stay.cpu()
    }

    fn read(&self) -> Self::Reading<'_> {
        self.stay.read()
    }

    fn period(&self, readers: CpuSet) -> Self::Period {
        self.stay.period(readers)
    }

    fn wait(&mut self, period: Self::Period) {
        self.stay.wait(period);
    }

    fn pass(&mut self) {
        self.stay.pass();
        if let Some(others) = self.others.take() {
            others();
        }
    }
}

/// A step that arms a log waits for an entry; meanwhile its log ends, another one begins and is armed, and the guest writes. What
/// the step cleans then is in the other log's round.
#[test]
fn a_late_step_of_arming_takes_no_mark_of_the_next_log() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 12);
        let cursor = space.start_log(stay, &Leaves, all(), Granularity::Pages).unwrap();
        let epoch = EntryEpoch::new();
        let elsewhere = epoch.enter(cpu_id(1));
        space
            .tree()
            .open(&elsewhere)
            .split(&*hardware, Ipa::new(GUEST), Height::PAGE, Why::DirtyLog)
            .unwrap();
        let view = space.tree().open(&elsewhere);
        let taken = view.take_leaf(&*hardware, Ipa::new(GUEST + 9 * PAGE), Height::PAGE).unwrap();
        let others = EntryEpoch::new();
        let next_log = || {
            drop(taken);
            let mut other = others.enter(cpu_id(2));
            space.stop_log(&mut other).unwrap();
            start(space, &mut other, &hardware, &Leaves, Granularity::Pages);
            store(machine, space, &mut other, &hardware, 12);
        };
        let late = EntryEpoch::new();
        let mut late = Interrupted { stay: late.enter(cpu_id(3)), others: Some(Box::new(next_log)) };
        let mut step = Ok(Some(cursor));
        while let Ok(Some(at)) = step {
            step = space.arm_log(&mut late, &*hardware, at);
        }
        assert!(matches!(step, Ok(None) | Err(SpaceError::NoLog)), "{step:?}");
        assert!(late.others.is_none(), "nobody was waited for");
        assert_eq!(round(space, stay, &hardware, &Leaves), [12]);
        assert_eq!(round(space, stay, &hardware, &Leaves), [0; 0]);
    });
}

/// A collapse looks whether a log runs, and copies ahead; one that begins between the two loses nothing to it.
#[test]
fn what_a_copy_ahead_takes_the_mark_of_is_reported() {
    with_guest(Features::HARDWARE_DIRTY, |machine, space, stay, hardware| {
        store(machine, space, stay, &hardware, 0);
        start(space, stay, &hardware, &Leaves, Granularity::Pages);
        store(machine, space, stay, &hardware, 4);
        let to = machine.allocate(frames::Order::FOLIO, frames::Usage::Guest(Owner(1))).unwrap();
        let block = range(GUEST, BLOCK);
        let copied = space.copy_ahead(stay, &FakeCpu::new(0, machine), &Recorder::default(), block, to.pa());
        assert!(copied.is_ok());
        assert_eq!(round(space, stay, &hardware, &Leaves), [4]);
    });
}
