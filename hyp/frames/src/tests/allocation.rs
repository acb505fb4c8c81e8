use super::*;
use crate::{FrameError, Kind, Owner, Usage};
use proptest::prelude::*;
use std::thread;
use types::FRAME_SIZE;

const GUEST: Usage = Usage::Guest(Owner(1));

#[test]
fn a_run_is_aligned_to_its_size_and_in_ram() {
    let machine = Machine::new(&[range(RAM + 0x3000, 32 << 20)], &[]).unwrap();
    for n in 0..=12 {
        let run = machine.allocate(order(n), GUEST).unwrap();
        assert!(run.pa().is_aligned(run.order().bytes()));
        assert!(run.pa() >= Pa::new(RAM + 0x3000));
        assert!(bytes_of(&run).end() <= Pa::new(RAM + 0x3000 + (32 << 20)));
    }
}

#[test]
fn everything_can_be_allocated_once_and_is_free_again_afterwards() {
    let machine = small();
    let before = machine.stats();
    let mut runs = Vec::new();
    while let Ok(run) = machine.allocate(Order::FRAME, GUEST) {
        runs.push(run);
    }
    assert_eq!(runs.len() as u64, before.free);
    assert_eq!(machine.stats().free, 0);
    let wrong = machine.allocate(Order::FRAME, GUEST).err();
    let unpublished = before.free;
    assert_eq!(wrong, Some(FrameError::Exhausted { order: Order::FRAME, unpublished }));
    let mut starts: Vec<_> = runs.iter().map(Run::pa).collect();
    starts.sort();
    starts.dedup();
    assert_eq!(starts.len(), runs.len(), "a frame was handed out twice");
    drop(runs);
    assert_eq!(machine.stats(), before, "freed frames join again to the runs they were");
}

#[test]
fn a_gibibyte_comes_as_one_run_of_many_folios() {
    if cfg!(miri) {
        return; // the records alone are more than Miri can walk
    }
    let machine = Machine::with_ram(RAM, (1 << 30) + (4 << 20));
    let run = machine.allocate(Order::LARGEST, GUEST).unwrap();
    assert!(run.pa().is_aligned(1 << 30));
    let last = machine.record(run.pa().wrapping_add((1 << 30) - 1)).unwrap().load();
    assert_eq!((last.order(), last.refs(), last.kind()), (Order::FOLIO, 1, Kind::Guest));
    let pa = run.into_pa();
    machine.give_back(pa, Order::LARGEST).unwrap();
    assert_eq!(machine.stats().largest, Some(Order::LARGEST));
}

#[test]
fn reserved_memory_and_records_are_never_handed_out() {
    let reserved = [range(RAM + 0x1_0800, 0x5000), range(RAM + (1 << 20), 0x10), range(RAM - 0x1000, 0x1800)];
    let machine = Machine::new(&[range(RAM, 4 << 20)], &reserved).unwrap();
    let mut frames = 0;
    let mut runs = Vec::new();
    while let Ok(run) = machine.allocate(Order::FRAME, Usage::Monitor) {
        let bytes = bytes_of(&run);
        assert!(reserved.iter().all(|r| !r.outer_frames().overlaps(bytes)), "{bytes} is reserved");
        // SAFETY: the run is this test's alone.
        unsafe { machine.map().pointer(run.pa()).write_bytes(0xff, FRAME_SIZE as usize) };
        frames += 1;
        runs.push(run);
    }
    let records = (4 << 20) / FRAME_SIZE * 8 / FRAME_SIZE;
    assert_eq!(frames, (4 << 20) / FRAME_SIZE - 6 - 1 - 1 - records);
    drop(runs); // would find its records overwritten if one had been handed out
    assert_eq!(machine.stats().free, frames);
}

#[test]
fn memory_in_several_banks_is_used_and_the_hole_is_not() {
    let banks = [range(RAM + (64 << 20), 1 << 20), range(RAM, 1 << 20)];
    let machine = Machine::new(&banks, &[]).unwrap();
    assert_eq!(machine.stats().total, 512);
    let mut seen = [0; 2];
    let mut runs = Vec::new();
    while let Ok(run) = machine.allocate(Order::FRAME, GUEST) {
        let bank = banks.iter().position(|bank| bank.contains(run.pa())).expect("in a bank");
        seen[bank] += 1;
        runs.push(run);
    }
    assert!(seen.iter().all(|frames| *frames > 250), "{seen:?}");
    let hole = Pa::new(RAM + (32 << 20));
    assert_eq!(machine.record(hole).err(), Some(FrameError::NoRecord { pa: hole }));
}

#[test]
fn what_is_carved_out_has_the_size_asked_for_and_not_the_next_power_of_two() {
    let machine = small();
    let free = machine.stats().free;
    let heap = machine.carve_out(0x5001).unwrap();
    assert_eq!(heap.len(), 0x6000);
    let stats = machine.stats();
    assert_eq!((stats.free, stats.monitor), (free - 6, 6));
    // SAFETY: the memory is the caller's for good.
    unsafe { heap.cast::<u8>().write_bytes(0xff, heap.len()) };
    let wrong = machine.carve_out(64 << 20).err();
    assert_eq!(wrong, Some(FrameError::Exhausted { order: order(14), unpublished: 0 }));
}

#[test]
fn reclaimed_memory_is_free_and_other_memory_is_left_alone() {
    let bundle = range(RAM + (1 << 20), 0x8000);
    let machine = Machine::new(&[range(RAM, 4 << 20)], &[bundle]).unwrap();
    let before = machine.stats();
    // SAFETY: nobody uses the bundle; the range is longer to see that the rest is not touched.
    unsafe { machine.reclaim(range(RAM + (1 << 20) + 1, 0x10_0000)) };
    let after = machine.stats();
    assert_eq!((after.free, after.reserved), (before.free + 7, before.reserved - 7));
}

#[test]
fn a_run_counts_as_unpublished_until_it_is_in_a_table_or_back() {
    let machine = small();
    let (one, two) =
        (machine.allocate(Order::FRAME, GUEST).unwrap(), machine.allocate(order(3), GUEST).unwrap());
    let _table = machine.allocate(Order::FRAME, Usage::Table(Owner(1))).unwrap();
    assert_eq!(machine.unpublished(), 2);
    let pa = one.into_pa();
    assert_eq!(machine.unpublished(), 1);
    drop(two);
    assert_eq!(machine.unpublished(), 0);
    machine.give_back(pa, Order::FRAME).unwrap();
    assert_eq!(machine.unpublished(), 0);
}

#[test]
fn what_a_cpu_keeps_is_its_own_until_memory_runs_out() {
    let machine = small();
    let before = machine.stats();
    let cpu = |n| types::CpuId::new(n).unwrap();
    let run = machine.allocate(order(3), GUEST).unwrap();
    let pa = run.pa();
    machine.keep(cpu(1), run);
    assert_eq!((machine.stats().kept, machine.stats().guest, machine.unpublished()), (8, 0, 0));
    assert!(machine.take_kept(cpu(0), order(3), GUEST).is_none());
    assert!(machine.take_kept(cpu(1), order(2), GUEST).is_none());
    let run = machine.take_kept(cpu(1), order(3), Usage::Guest(Owner(9))).unwrap();
    let word = machine.record(pa.wrapping_add(0x7000)).unwrap().load();
    assert_eq!((run.pa(), word.owner(), word.refs(), machine.unpublished()), (pa, Owner(9), 1, 1));
    machine.keep(cpu(1), run);
    machine.keep(cpu(1), machine.allocate(Order::FRAME, GUEST).unwrap());
    assert_eq!(machine.stats().kept, 1, "what was kept before is free");
    let mut all = Vec::new();
    while let Ok(run) = machine.allocate(Order::FRAME, GUEST) {
        all.push(run);
    }
    assert_eq!((all.len() as u64, machine.stats().kept), (before.free, 0));
    drop(all);
    assert_eq!(machine.stats(), before);
}

#[test]
fn several_cpus_never_hold_the_same_frame() {
    let machine = small();
    let before = machine.stats();
    let rounds = if cfg!(miri) { 20 } else { 5000 };
    thread::scope(|s| {
        for cpu in 0..4u64 {
            let machine = &machine;
            s.spawn(move || {
                let mut held = Vec::new();
                let mut seed = cpu + 1;
                for round in 0..rounds {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    if held.len() > 8 || seed >> 60 < 6 {
                        let index = (seed >> 33) as usize % held.len().max(1);
                        if index < held.len() {
                            check_mark(machine, &held.swap_remove(index));
                        }
                    } else if let Ok(run) = machine.allocate(order((seed >> 40) as u8 % 4), GUEST) {
                        let mark = cpu << 32 | round;
                        machine.write(run.pa(), &mark.to_ne_bytes()).unwrap();
                        machine
                            .write(run.pa().wrapping_add(run.order().bytes() - 8), &mark.to_ne_bytes())
                            .unwrap();
                        held.push((run, mark));
                    }
                }
                held.iter().for_each(|mine| check_mark(machine, mine));
            });
        }
    });
    assert_eq!(machine.stats(), before);
}

fn check_mark(machine: &Machine, (run, mark): &(Run<'_>, u64)) {
    for at in [run.pa(), run.pa().wrapping_add(run.order().bytes() - 8)] {
        let mut now = [0; 8];
        machine.read(at, &mut now).unwrap();
        assert_eq!(u64::from_ne_bytes(now), *mark, "somebody else wrote our run at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 64 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_of_calls_runs_are_disjoint_and_all_comes_back(
        calls in prop::collection::vec((0u8..11, any::<prop::sample::Index>()), 1..if cfg!(miri) { 20 } else { 400 }),
    ) {
        let machine = Machine::new(&[range(RAM + 0x7000, 5 << 20)], &[range(RAM + 0x123000, 0x4000)]).unwrap();
        let before = machine.stats();
        let mut held: Vec<Run<'_>> = Vec::new();
        for (n, which) in calls {
            match machine.allocate(order(n % 11), GUEST) {
                Ok(run) if n < 10 => {
                    prop_assert!(held.iter().all(|other| !bytes_of(other).overlaps(bytes_of(&run))));
                    held.push(run);
                }
                _ if held.is_empty() => {}
                _ => drop(held.swap_remove(which.index(held.len()))),
            }
            let out: u64 = held.iter().map(|run| run.order().frames()).sum();
            prop_assert_eq!(machine.stats().free, before.free - out);
        }
        drop(held);
        prop_assert_eq!(machine.stats(), before);
    }
}

#[test]
fn a_stock_is_taken_from_by_its_cpu_and_emptied_by_whoever_finds_nothing_else() {
    let machine = small();
    let before = machine.stats();
    let other = types::CpuId::new(3).unwrap();
    let first = machine.allocate_on(other, Order::FRAME, GUEST).unwrap();
    let second = machine.allocate_on(other, Order::FRAME, GUEST).unwrap();
    assert_eq!(second.pa(), first.pa().wrapping_add(FRAME_SIZE), "side by side");
    let stats = machine.stats();
    assert_eq!((stats.guest, stats.kept), (before.guest + 2, before.kept + 30));
    assert_eq!(machine.unpublished(), 2);
    // All the rest, the stock's too, comes to whoever asks.
    let mut runs = vec![first, second];
    while let Ok(run) = machine.allocate(Order::FRAME, GUEST) {
        runs.push(run);
    }
    assert_eq!(runs.len() as u64, before.free);
    let stats = machine.stats();
    assert_eq!((stats.free, stats.kept, stats.guest), (0, 0, before.free));
    drop(runs);
    machine.drain_kept();
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_stock_is_larger_where_memory_is_plenty_and_all_of_it_comes_back() {
    let frames = |mib: u64| mib << 20 >> types::FRAME_SHIFT;
    // 256 of the stocks that are filled, or at least 32 frames.
    for (mib, stock) in [(1, 32), (32, 32), (63, 32), (64, 64), (127, 64), (128, 128), (64 << 10, 128)] {
        assert_eq!(crate::stock::full_stock(frames(mib)).frames(), stock, "{mib} MiB");
    }
    assert_eq!(crate::stock::full_stock(0).frames(), 32);
    let machine = Machine::new(&[range(RAM, 136 << 20)], &[]).unwrap();
    let before = machine.stats();
    let first = machine.allocate_on(types::CpuId::BOOT, Order::FRAME, GUEST).unwrap();
    assert_eq!(machine.stats().kept, before.kept + 127);
    drop(first);
    assert!(machine.drain_kept());
    assert_eq!(machine.stats(), before);
}

#[test]
fn cpus_that_empty_each_others_stocks_lose_no_frame_and_share_none() {
    let machine = small();
    let before = machine.stats();
    let rounds = if cfg!(miri) { 4 } else { 200 };
    thread::scope(|s| {
        for n in 0..4 {
            let machine = &machine;
            s.spawn(move || {
                let cpu = types::CpuId::new(n).unwrap();
                for round in 0..rounds {
                    let runs: Vec<_> =
                        (0..40).filter_map(|_| machine.allocate_on(cpu, Order::FRAME, GUEST).ok()).collect();
                    for run in &runs {
                        machine.write(run.pa(), &[n as u8; 16]).unwrap();
                    }
                    if round % 4 == n {
                        machine.drain_kept();
                    }
                    for run in &runs {
                        let mut bytes = [0; 16];
                        machine.read(run.pa(), &mut bytes).unwrap();
                        assert_eq!(bytes, [n as u8; 16], "another CPU has the same frame");
                    }
                }
            });
        }
    });
    machine.drain_kept();
    assert_eq!((machine.stats(), machine.unpublished()), (before, 0));
}
