//! Splits that draw on the reserve against whatever makes blocks, takes them away and splits them too, in every order of two
//! or three CPUs' steps.
//!
//! Entries are those of the tiny format's tables, and there are as many tables as the blocks need and no more. What is
//! found at rest: a page for each block, every other page free or a table in the tree; and nothing is left at the end.

use super::Reserve;
use crate::DirectMap;
use crate::interleaved::{Instant, check_up_to};
use loom::sync::Arc;
use loom::thread;
use model::{Cell, Cells, Tiny, range};
use stage2::{
    Attrs, Bbm, ChangeError, CollapseError, Entries, Entry, EntryEpoch, FreshTable, Geometry, IdleTable,
    MapError, Mapping, NoPages, Pages, Purpose, Quiescence, TablePa, TableSize, Tree, Why,
};
use std::sync::atomic::AtomicU64;
use types::sync::Mutex;
use types::{CpuId, Height, Ipa, Pa, Range};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 * PAGE;
const BLOCK_HEIGHT: Height = Height::new(1);
const LEVELS: [Bbm; 3] = [Bbm::Level0, Bbm::Level1, Bbm::Level2];

/// A few tables, and the reserve as [`Tables`](crate::Tables) has it: those need more atomics than a model has room for.
struct Memory {
    cells: Cells,
    reserve: Mutex<Reserve>,
    /// Where pages in reserve have their links.
    links: Box<[AtomicU64]>,
}

impl Memory {
    fn new(tables: usize) -> Self {
        let words = tables * PAGE as usize / size_of::<u64>();
        let links = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { cells: Cells::new(tables), reserve: Mutex::new(Reserve::new()), links }
    }

    /// The model's tables begin at the first page.
    fn map(&self) -> DirectMap {
        DirectMap::new(self.links.as_ptr().cast_mut().cast(), Pa::new(PAGE))
    }

    fn size() -> TableSize {
        TableSize::from_shift(12).expect("a page")
    }

    #[expect(clippy::disallowed_methods, reason = "it was taken for the reserve, and comes out of it")]
    fn free(&self, page: Pa) {
        self.cells.give_back(FreshTable::new(page, Self::size()).unused());
    }
}

impl Entries for Memory {
    type Slot<'a> = Cell<'a>;

    fn slot(&self, table: TablePa, index: usize) -> Cell<'_> {
        self.cells.slot(table, index)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is what implements `Pages`")]
impl Pages for Memory {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        if purpose != Purpose::Split {
            return self.cells.take(size, purpose);
        }
        let drawn = self.reserve.lock().draw(self.map());
        Ok(FreshTable::new(drawn.ok_or(NoPages)?, size))
    }

    fn give_back(&self, table: IdleTable) {
        let unwanted = match table.restores_reserve() {
            true => self.reserve.lock().restore(self.map(), table.pa()),
            false => Some(table.pa()),
        };
        if let Some(page) = unwanted {
            self.free(page);
        }
    }

    fn reserve(&self, tables: u64) -> Result<(), NoPages> {
        assert_eq!(tables, 1, "blocks are made one by one here");
        let page = self.cells.take(Self::size(), Purpose::Map)?.table().pa();
        let unwanted = self.reserve.lock().add(self.map(), page);
        if let Some(page) = unwanted {
            self.free(page);
        }
        Ok(())
    }

    fn release(&self, tables: u64) {
        self.reserve.lock().release(tables);
        loop {
            let surplus = self.reserve.lock().surplus(self.map());
            let Some(page) = surplus else { return };
            self.free(page);
        }
    }
}

impl Drop for Memory {
    /// At a space's end nothing is in reserve, and every table is back.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let reserve = self.reserve.lock();
            assert_eq!((reserve.here, reserve.due, self.cells.in_use()), (0, 0, 0));
        }
    }
}

struct World {
    tree: Tree<Tiny, Memory>,
    epoch: EntryEpoch,
}

impl World {
    /// Entries of heights up to `top`, and `blocks` blocks from address 0 on, in one table. Memory for the tables that are
    /// there when all blocks are split, and for `spare` more.
    fn new(bbm: Bbm, top: Height, blocks: u64, spare: usize) -> Arc<Self> {
        let geometry = Geometry::new(top, 13 + u32::from(top.get())).expect("two entries in each table");
        let tables = usize::from(top.get()) + blocks as usize + spare;
        let tree = Tree::new(Tiny, geometry, bbm, Memory::new(tables)).expect("room");
        let world = Self { tree, epoch: EntryEpoch::new() };
        for block in 0..blocks {
            world.map(0, block);
        }
        assert_eq!(world.at_rest(), blocks);
        Arc::new(world)
    }

    fn map(&self, n: usize, block: u64) {
        let mapping = Mapping {
            range: range(block * BLOCK, BLOCK),
            pa: Pa::new(0x8000 + block * BLOCK),
            attrs: Attrs::RAM,
            largest: BLOCK_HEIGHT,
            why: Why::Alignment,
        };
        loop {
            match self.tree.open(&self.epoch.enter(cpu(n))).map(&Instant, &mapping) {
                Ok(_) => return,
                Err(MapError::Busy { .. }) => thread::yield_now(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn unmap(&self, n: usize, range: Range) {
        let mut section = self.epoch.enter(cpu(n));
        let mut at = range.start();
        while let Ok(rest) = Range::new(at, range.end())
            && !rest.is_empty()
        {
            match self.tree.unmap(&mut section, &Instant, rest, &mut |_| {}) {
                Ok(next) => at = next,
                Err(ChangeError::Busy { .. }) => thread::yield_now(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Splits `block`: its page is due, so that memory never runs out.
    fn split(&self, n: usize, block: u64) -> bool {
        let section = self.epoch.enter(cpu(n));
        let split = self.tree.open(&section).split(&Instant, Ipa::new(block * BLOCK), Height::PAGE, Why::Pin);
        assert!(matches!(split, Ok(()) | Err(ChangeError::Busy { .. })), "{split:?}");
        split.is_ok()
    }

    fn collapse(&self, n: usize, block: u64) -> bool {
        let mut section = self.epoch.enter(cpu(n));
        let made = self.tree.collapse(&mut section, &Instant, Ipa::new(block * BLOCK), BLOCK_HEIGHT);
        assert!(!matches!(made, Err(CollapseError::NoPages { .. })), "{made:?}");
        made.is_ok()
    }

    /// Returns the number of blocks. With no operation under way there is a page in reserve for each of them; no page is lost,
    /// and none is in two places.
    fn at_rest(&self) -> u64 {
        let memory = self.tree.memory();
        let reserve = memory.reserve.lock();
        let census = self.tree.census();
        let blocks = census.leaves[1];
        assert_eq!((reserve.here, reserve.due), (blocks, blocks as i64));
        assert_eq!(memory.cells.in_use() as u64, 1 + census.tables + reserve.here, "root, tables, reserve");
        blocks
    }

    /// Splits what is left of `blocks` blocks, for which nobody is in the way any more, and ends the space.
    fn end(this: Arc<Self>, blocks: u64) {
        let is_block = |block| {
            let found = this.tree.open(&this.epoch.enter(cpu(0))).translate(Ipa::new(block * BLOCK));
            found.height() == BLOCK_HEIGHT && matches!(found.entry(Tiny), Entry::Leaf(_))
        };
        let left: Vec<u64> = (0..blocks).filter(|&block| is_block(block)).collect();
        assert_eq!(this.at_rest(), left.len() as u64);
        for block in left {
            assert!(this.split(0, block), "nobody else is there");
        }
        assert_eq!(this.at_rest(), 0);
        let Ok(Self { tree, epoch }) = Arc::try_unwrap(this) else { panic!("another CPU is there still") };
        let mut section = epoch.enter(cpu(0));
        let mut remains = tree.destroy(&mut section, &Instant);
        while !remains.sweep(cpu(0), &mut |_| {}) {}
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

/// Splits `block` on another CPU.
fn splitter(world: &Arc<World>, n: usize, block: u64) -> thread::JoinHandle<bool> {
    let world = world.clone();
    thread::spawn(move || world.split(n, block))
}

/// The one CPU cannot tell the block that it has drawn for from the one that comes in its place.
#[test]
fn a_block_that_is_made_anew_under_a_splitter_has_one_page() {
    for bbm in LEVELS {
        check_up_to(2, move || {
            let world = World::new(bbm, BLOCK_HEIGHT, 1, 1);
            let other = splitter(&world, 1, 0);
            world.unmap(0, range(0, BLOCK));
            world.map(0, 0);
            let split = other.join().unwrap();
            assert!(world.at_rest() <= 1, "{split}");
            World::end(world, 1);
        });
    }
}

/// Two draw for one block, one of them the neighbour's page, and the neighbour goes and comes meanwhile.
#[test]
fn a_block_that_goes_and_comes_while_its_page_is_drawn_for_another_has_one_page() {
    check_up_to(2, || {
        let world = World::new(Bbm::Level2, BLOCK_HEIGHT, 2, 1);
        let others = [1, 2].map(|n| splitter(&world, n, 0));
        world.unmap(0, range(BLOCK, BLOCK));
        world.map(0, 1);
        let split = others.map(|other| other.join().unwrap());
        assert_eq!((split.contains(&true), world.at_rest()), (true, 1));
        World::end(world, 2);
    });
}

#[test]
fn who_splits_the_neighbour_of_a_block_that_two_split_has_its_page_or_comes_again() {
    check_up_to(2, || {
        let world = World::new(Bbm::Level2, BLOCK_HEIGHT, 2, 0);
        let others = [1, 2].map(|n| splitter(&world, n, 0));
        let mine = world.split(0, 1);
        let split = others.map(|other| other.join().unwrap());
        assert!(split.contains(&true));
        assert_eq!(world.at_rest(), u64::from(!mine));
        World::end(world, 2);
    });
}

#[test]
fn a_block_that_is_collapsed_under_a_splitter_has_one_page() {
    check_up_to(2, || {
        let world = World::new(Bbm::Level2, BLOCK_HEIGHT, 2, 1);
        let other = splitter(&world, 1, 0);
        let made = world.split(0, 0) && world.collapse(0, 0);
        let split = other.join().unwrap();
        assert!((1..=2).contains(&world.at_rest()), "{made} {split}");
        World::end(world, 2);
    });
}

/// Who has drawn is waited for before what its block had in reserve goes with the table.
#[test]
fn a_subtree_that_goes_under_two_splitters_takes_its_pages_along() {
    check_up_to(1, || {
        let world = World::new(Bbm::Level2, BLOCK_HEIGHT.above(), 2, 0);
        let others = [1, 2].map(|n| splitter(&world, n, 0));
        world.unmap(0, range(0, 2 * BLOCK));
        let split = others.map(|other| other.join().unwrap());
        assert_eq!(world.at_rest(), 0, "{split:?}");
        World::end(world, 2);
    });
}
