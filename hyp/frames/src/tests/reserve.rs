use super::*;
use crate::{Owner, Tables, Usage};
use stage2::{NoPages, Pages, Purpose, TableSize};

/// All of the machine's memory, taken.
fn take_all(machine: &Machine) -> Vec<Run<'_>> {
    core::iter::from_fn(|| machine.allocate(Order::FRAME, Usage::Monitor).ok()).collect()
}

fn page() -> TableSize {
    TableSize::from_shift(12).expect("a page")
}

#[test]
fn a_split_draws_on_the_reserve_when_budget_and_memory_are_used_up() {
    let machine = small();
    let before = machine.stats();
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 3);
    tables.reserve(2).unwrap();
    let map = tables.take(page(), Purpose::Map).unwrap();
    assert_eq!(tables.take(page(), Purpose::Map).err(), Some(NoPages), "what is in reserve counts");
    assert_eq!(tables.reserve(1), Err(NoPages));
    assert_eq!((tables.bytes(), tables.reserve_bytes()), (1 << 12, 2 << 12));
    let all = take_all(&machine);
    let splits = [(); 2].map(|()| tables.take(page(), Purpose::Split).unwrap());
    assert_eq!((tables.bytes(), tables.reserve_bytes()), (3 << 12, 0));
    drop(all);
    assert_eq!(tables.take(page(), Purpose::Split).err(), Some(NoPages), "nobody has set aside a third");
    splits.into_iter().chain([map]).for_each(|table| tables.give_back(table.unused()));
    assert_eq!((tables.bytes(), machine.stats()), (0, before));
}

#[test]
fn a_reservation_that_memory_refuses_sets_nothing_aside() {
    let machine = small();
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 1000);
    let mut all = take_all(&machine);
    all.truncate(all.len() - 2);
    let before = machine.stats();
    assert_eq!(tables.reserve(3), Err(NoPages));
    assert_eq!((tables.bytes(), tables.reserve_bytes(), machine.stats()), (0, 0, before));
    tables.reserve(2).unwrap();
    tables.release(2);
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_reservation_larger_than_the_budget_sets_nothing_aside() {
    let machine = small();
    let before = machine.stats();
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 5);
    assert_eq!(tables.reserve(513), Err(NoPages));
    assert_eq!((tables.bytes(), tables.reserve_bytes(), machine.stats()), (0, 0, before));
}

#[test]
fn tables_of_every_granule_have_a_reserve_of_their_size() {
    let machine = small();
    let before = machine.stats();
    for n in [2, 4] {
        let tables = Tables::new(&machine, Owner(1), order(n), 1 << n);
        tables.reserve(1).unwrap();
        let size = TableSize::from_shift(12 + u32::from(n)).unwrap();
        let drawn = tables.take(size, Purpose::Split).unwrap();
        assert!(drawn.table().pa().is_aligned(size.bytes()));
        tables.give_back(drawn.unused());
        assert_eq!((tables.bytes(), machine.stats()), (0, before));
    }
}

/// A CPU draws a block's page. The block goes, another comes in its place, and that is what the CPU splits: it cannot tell them
/// apart.
#[test]
fn a_block_made_while_the_page_of_one_that_has_gone_is_drawn_has_no_page_too_many() {
    let machine = small();
    let before = machine.stats();
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 3);
    for blocks in 1..=2 {
        tables.reserve(blocks).unwrap();
        let drawn = tables.take(page(), Purpose::Split).unwrap();
        tables.release(blocks);
        assert_eq!((tables.bytes(), tables.reserve_bytes()), (1 << 12, 0));
        tables.reserve(blocks).unwrap();
        assert_eq!(tables.reserve_bytes(), (blocks - 1) << 12, "what is drawn is one of theirs");
        tables.release(blocks - 1);
        assert_eq!((tables.bytes(), tables.reserve_bytes()), (1 << 12, 0));
        tables.give_back(drawn.unused());
        assert_eq!(
            (tables.bytes(), machine.stats()),
            (0, before),
            "nothing is left for a block that there is not"
        );
    }
}

/// A page may be drawn by two CPUs that split one block, while another block goes: whatever the order, in the end there
/// are as many pages as blocks.
#[test]
fn splitters_on_every_cpu_leave_a_page_for_each_block() {
    use stage2::{Bbm, Entry, EntryEpoch, Geometry, Invalidate, Mapping, Quiescence, Tree, Why, Work};
    use types::{CpuId, Height, Ipa, Range};
    use vmsa::{Controls, Features, Granule4K, Layout, Vmsa};

    struct Instant;
    impl Invalidate for Instant {
        type Pending = ();
        fn begin(&self, _: Work) {}
        fn complete(&self, (): ()) {}
    }
    type Format = Vmsa<Granule4K>;
    const BLOCK: u64 = 2 << 20;
    const BLOCKS: u64 = 4;

    let machine = Machine::with_ram(RAM, 4 << 20);
    let before = machine.stats();
    let layout = Layout::<Granule4K>::choose(32, Height::new(1), 5, Controls::empty()).expect("32 bits");
    let geometry: Geometry<Format> = layout.geometry();
    // Root, a table, and a page for each block: a splitter that took more than its own would fail.
    let limit = (geometry.root_size().bytes() >> 12) as u32 + u32::from(geometry.top().get()) - 1 + 4;
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, limit);
    let tree = Tree::new(Format::new(Features::empty()), geometry, Bbm::Level2, tables).expect("room");
    let epoch = EntryEpoch::new();
    let cpu = |n| CpuId::new(n).expect("few");
    let all = Range::with_len(Ipa::new(0), BLOCKS * BLOCK).expect("low");
    for round in 0..if cfg!(miri) { 1 } else { 100 } {
        let mapping = Mapping {
            range: all,
            pa: Pa::new(0x8000_0000),
            attrs: stage2::Attrs::DEVICE,
            largest: Height::new(1),
            why: Why::Alignment,
        };
        let mut at = all.start();
        while at < all.end() {
            let range = Range::new(at, all.end()).expect("ascending");
            at = tree.open(&epoch.enter(cpu(0))).map(&Instant, &Mapping { range, ..mapping }).unwrap();
        }
        std::thread::scope(|s| {
            for n in 0..3 {
                let (tree, epoch) = (&tree, &epoch);
                s.spawn(move || {
                    for block in 0..BLOCKS {
                        let ipa = Ipa::new(block * BLOCK);
                        loop {
                            let section = epoch.enter(cpu(n));
                            match tree.open(&section).split(&Instant, ipa, Height::PAGE, Why::Pin) {
                                Ok(()) => break,
                                Err(stage2::ChangeError::Busy { .. }) => {}
                                Err(error) => panic!("{error:?} in round {round}"),
                            }
                        }
                        let found = tree.open(&epoch.enter(cpu(n))).translate(ipa);
                        assert!(matches!(found.entry(tree.format()), Entry::Leaf(_)));
                    }
                });
            }
        });
        assert_eq!((tree.census().leaves[0], tree.memory().reserve_bytes()), (BLOCKS * 512, 0));
        let mut at = all.start();
        while at < all.end() {
            let rest = Range::new(at, all.end()).expect("ascending");
            at = tree.unmap(&mut epoch.enter(cpu(0)), &Instant, rest, &mut |_| {}).unwrap();
        }
        tree.prune(&mut epoch.enter(cpu(0)), &Instant, all).unwrap();
    }
    let mut section = epoch.enter(cpu(0));
    let mut remains = tree.destroy(&mut section, &Instant);
    while !remains.sweep(cpu(0), &mut |_| {}) {}
    drop(remains);
    assert_eq!(machine.stats(), before);
}
