//! What a VM's addresses are made of, page by page: out of its tables, and of the records of its frames where they are known.

use anyhow::Result;
use stage2::{Entry, Live, Marks, Owner, Why};
use std::collections::{BTreeMap, BTreeSet};
use tracing_tool::tables::{Found, Shape, Tables, each};
use tracing_tool::view::Records;
use types::{Access, FRAME_SIZE, Height};

/// Bytes of a block: what one tile shows.
pub(super) const BLOCK: u64 = 2 << 20;
/// Pages of a block.
pub(super) const PAGES: usize = (BLOCK / FRAME_SIZE) as usize;

/// What maps a page, or does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) enum Kind {
    /// Nothing, and nothing ever has as far as can be seen.
    #[default]
    Nothing,
    /// Nothing any more.
    GivenBack,
    /// A block of 1 GiB.
    Giant,
    /// A block of 2 MiB.
    Block,
    /// A page, for this reason, by its number.
    Page(u8),
    /// An entry that somebody is changing.
    Changing,
}

/// A page's worth of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Cell {
    pub(super) kind: Kind,
    pub(super) is_dirty: bool,
    pub(super) is_read_only: bool,
    pub(super) is_pinned: bool,
    pub(super) is_shared: bool,
}

/// A VM's addresses, block by block, by the first address of each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Picture {
    pub(super) blocks: BTreeMap<u64, Box<[Cell; PAGES]>>,
}

/// Makes pictures of one VM one after the other, and remembers what was mapped.
#[derive(Debug, Default)]
pub(super) struct Painter {
    /// Pages that something has mapped.
    seen: BTreeSet<u64>,
}

impl Painter {
    /// Paints what `tables` say now of all that is mapped, and of `memory`, pieces by first address and bytes.
    pub(super) fn paint(
        &mut self,
        tables: &impl Tables,
        shape: &Shape,
        records: Option<&Records>,
        memory: &[(u64, u64)],
    ) -> Result<Picture> {
        let mut picture = Picture::default();
        for &(start, bytes) in memory {
            (start / BLOCK..(start + bytes).div_ceil(BLOCK)).for_each(|block| {
                picture.blocks.entry(block * BLOCK).or_insert_with(empty);
            });
        }
        let all = (0, 1 << shape.ipa_bits);
        each(tables, shape, all, &mut |found| {
            let (cell, pa) = cell(found);
            // A hole larger than a block says nothing about any one page, and may be all there is.
            if cell.kind == Kind::Nothing && found.height > Height::PAGE {
                self.hole(found, &mut picture);
                return;
            }
            for offset in (0..found.bytes()).step_by(FRAME_SIZE as usize) {
                let at = found.at + offset;
                let mut cell = cell;
                if let (Some(pa), Some(records)) = (pa, records) {
                    cell.is_pinned = is_pinned(records, pa, offset, found.height);
                }
                match cell.kind {
                    Kind::Nothing if self.seen.contains(&at) => cell.kind = Kind::GivenBack,
                    Kind::Nothing | Kind::GivenBack | Kind::Changing => {}
                    Kind::Giant | Kind::Block | Kind::Page(_) => {
                        self.seen.insert(at);
                    }
                }
                let known = picture.blocks.contains_key(&(at / BLOCK * BLOCK));
                if known || cell.kind != Kind::Nothing {
                    let block = picture.blocks.entry(at / BLOCK * BLOCK).or_insert_with(empty);
                    block[(at % BLOCK / FRAME_SIZE) as usize] = cell;
                }
            }
        })?;
        Ok(picture)
    }

    /// Marks what was mapped once in a hole.
    fn hole(&self, found: &Found, picture: &mut Picture) {
        for &at in self.seen.range(found.at..found.at + found.bytes()) {
            let block = picture.blocks.entry(at / BLOCK * BLOCK).or_insert_with(empty);
            block[(at % BLOCK / FRAME_SIZE) as usize].kind = Kind::GivenBack;
        }
    }
}

fn empty() -> Box<[Cell; PAGES]> {
    Box::new([Cell::default(); PAGES])
}

/// Returns what an entry makes of each of its pages, and the memory behind the first.
fn cell(found: &Found) -> (Cell, Option<u64>) {
    let of = |kind| (Cell { kind, ..Cell::default() }, None);
    let leaf = match found.entry {
        Entry::Leaf(leaf) | Entry::Held(Live::Leaf(leaf)) => leaf,
        Entry::Absent | Entry::Dead if found.why == Why::Unmapped => return of(Kind::GivenBack),
        Entry::Absent | Entry::Dead => return of(Kind::Nothing),
        Entry::Note(_) => return of(Kind::GivenBack),
        Entry::Frozen | Entry::Table(_) | Entry::Held(Live::Table(_)) => return of(Kind::Changing),
    };
    let kind = match (found.entry, found.height.get()) {
        (Entry::Held(_), _) => Kind::Changing,
        (_, 0) => Kind::Page(found.why as u8),
        (_, 1) => Kind::Block,
        _ => Kind::Giant,
    };
    let attrs = leaf.attrs;
    let cell = Cell {
        kind,
        is_dirty: attrs.marks.contains(Marks::DIRTY),
        is_read_only: !attrs.access.contains(Access::WRITE),
        is_pinned: false,
        is_shared: matches!(attrs.owner, Owner::Lent | Owner::Borrowed),
    };
    (cell, Some(leaf.pa.get()))
}

/// Tells whether the page at `offset` in a leaf that begins at `pa` is pinned, by itself or with its block.
fn is_pinned(records: &Records, pa: u64, offset: u64, height: Height) -> bool {
    let of_page = records.word(pa + offset).is_some_and(|word| word.pins() > 0);
    let first = if height == Height::PAGE { pa } else { (pa + offset) / BLOCK * BLOCK };
    of_page || records.word(first).is_some_and(|word| word.block_pins() > 0)
}

impl Picture {
    /// Goes through all pages.
    pub(super) fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.blocks.values().flat_map(|block| block.iter())
    }

    /// Counts the pages of which something holds.
    pub(super) fn count(&self, holds: impl Fn(&Cell) -> bool) -> usize {
        self.cells().filter(|cell| holds(cell)).count()
    }

    /// Adds the blocks that `other` has and this has not, with nothing in them.
    pub(super) fn extend(&mut self, other: &Self) {
        for at in other.blocks.keys() {
            self.blocks.entry(*at).or_insert_with(empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage2::{Attrs, Leaf, Table};
    use tracing_tool::replay::Replay;
    use tracing_tool::tables::Format;
    use types::{CpuId, Pa};

    const SHAPE: u64 = 3 | 40 << 16 | 2 << 24;

    struct Machine {
        replay: Replay,
        format: Format,
    }

    impl Machine {
        fn new() -> Self {
            let format = Shape::of(Pa::new(0), SHAPE, 0, 2).unwrap().format;
            let mut this = Self { replay: Replay::default(), format };
            this.apply(tracing_tool::Kind::Space, [0x10_0000, SHAPE, 0]);
            this
        }

        fn apply(&mut self, kind: tracing_tool::Kind, operands: [u64; 3]) {
            let record = tracing_tool::Record { number: 0, cpu: CpuId::BOOT, kind, small: 2, operands };
            self.replay.apply(&record).unwrap();
        }

        fn write(&mut self, at: u64, entry: Entry, height: u8) {
            let raw = self.format.encode(entry, Height::new(height));
            self.apply(tracing_tool::Kind::Write, [at, 0, raw]);
        }

        fn paint(&self, painter: &mut Painter) -> Picture {
            painter
                .paint(&self.replay, self.replay.space(3).unwrap(), None, &[(0x4000_0000, 6 << 20)])
                .unwrap()
        }
    }

    fn leaf(pa: u64, attrs: Attrs) -> Entry {
        Entry::Leaf(Leaf { pa: Pa::new(pa), attrs })
    }

    fn link(pa: u64, why: Why) -> Entry {
        Entry::Table(Table { pa: Pa::new(pa), pending: false, why })
    }

    #[test]
    fn pages_have_reasons_and_marks_and_holes_are_told_apart() {
        let mut machine = Machine::new();
        machine.write(0x10_0008, link(0x20_0000, Why::Alignment), 2);
        machine.write(0x20_0000, leaf(0x6000_0000, Attrs::RAM), 1);
        machine.write(0x20_0008, link(0x30_0000, Why::DirtyLog), 1);
        machine.write(0x30_0000, leaf(0x7000_0000, Attrs::RAM.with_access(Access::READ)), 0);
        machine.write(0x30_0008, Entry::Frozen, 0);
        let lent = Attrs { owner: Owner::Lent, ..Attrs::RAM };
        machine.write(0x30_0010, leaf(0x7000_2000, lent), 0);
        let mut painter = Painter::default();
        let picture = machine.paint(&mut painter);
        assert_eq!(
            picture.blocks.keys().copied().collect::<Vec<_>>(),
            [0x4000_0000, 0x4020_0000, 0x4040_0000]
        );
        assert_eq!(picture.count(|cell| cell.kind == Kind::Block && cell.is_dirty), 512);
        let pages = &picture.blocks[&0x4020_0000];
        assert_eq!((pages[0].kind, pages[0].is_read_only), (Kind::Page(Why::DirtyLog as u8), true));
        assert_eq!(pages[1].kind, Kind::Changing);
        assert!(pages[2].is_shared && !pages[0].is_shared);
        assert_eq!(pages[3].kind, Kind::Nothing);
        // A page and a block go.
        machine.write(0x30_0000, Entry::Absent, 0);
        machine.write(0x20_0000, Entry::Absent, 1);
        let picture = machine.paint(&mut painter);
        assert_eq!(picture.count(|cell| cell.kind == Kind::GivenBack), 513);
        // To somebody who looks only now, only the reason of a table says that anything was there.
        assert_eq!(machine.paint(&mut Painter::default()).count(|cell| cell.kind == Kind::GivenBack), 0);
        machine.write(0x20_0008, link(0x30_0000, Why::Unmapped), 1);
        assert_eq!(machine.paint(&mut Painter::default()).count(|cell| cell.kind == Kind::GivenBack), 510);
    }
}
