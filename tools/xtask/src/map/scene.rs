//! A picture as rectangles and lines of text, in colours by number: what SVG, PNG and GIF are made of.
//!
//! A tile for each block of 2 MiB, 32 pages wide; what is mapped by pages is drawn as pages, a block in one piece. What is
//! dirty is dark; a dot is a pin, a frame a page that is lent or borrowed.

use super::picture::{BLOCK, Cell, Kind, PAGES, Picture};

/// The colours, by number: red, green, blue.
pub(super) const PALETTE: [[u8; 3]; 25] = [
    [255, 255, 255], // background
    [40, 42, 50],    // text, pins
    [230, 232, 237], // nothing
    [205, 194, 228], // given back
    [0, 0, 0],       // being changed
    [120, 140, 200], // 1 GiB: clean, dirty
    [30, 50, 120],
    [150, 192, 238], // 2 MiB
    [52, 112, 190],
    [176, 220, 190], // pages: piece by piece
    [58, 150, 96],
    [252, 216, 158], // dirty log
    [236, 142, 30],
    [246, 178, 178], // pin
    [208, 62, 62],
    [232, 184, 232], // owner
    [172, 70, 172],
    [246, 238, 156], // attributes
    [206, 176, 20],
    [214, 196, 180], // no memory
    [130, 96, 70],
    [176, 226, 232], // a part was unmapped
    [36, 148, 166],
    [210, 210, 210], // other
    [120, 120, 120],
];
const BACKGROUND: u8 = 0;
const TEXT: u8 = 1;

/// Reasons for pages, by their numbers.
const REASONS: [&str; 7] = [
    "piece by piece",
    "dirty log",
    "pin",
    "parts have owners",
    "parts differ",
    "no block free",
    "part given back",
];

/// A filled rectangle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Area {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) color: u8,
}

/// A line of text; `y` is its upper edge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Words {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) text: String,
    pub(super) color: u8,
}

/// All there is to draw, in order; texts last.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) areas: Vec<Area>,
    pub(super) texts: Vec<Words>,
}

/// Pages side by side in a tile.
const ACROSS: u32 = 32;
const DOWN: u32 = PAGES as u32 / ACROSS;
/// Height of a line of text.
const LINE: u32 = 16;
/// Width of a letter.
pub(super) const LETTER: u32 = 7;
const MARGIN: u32 = 12;
/// Width of an entry of the legend.
const ENTRY: u32 = 252;

impl Scene {
    /// Lays a picture out.
    pub(super) fn of(picture: &Picture, title: &str) -> Self {
        let tiles = picture.blocks.len() as u32;
        let (page, columns) = match tiles {
            0..=16 => (8, 4),
            17..=64 => (4, 8),
            65..=300 => (2, 15),
            _ => (1, 28),
        };
        let label = if page >= 4 { LINE } else { 0 };
        let gap = page.max(2) + 1;
        let (across, down) = (ACROSS * page + gap, DOWN * page + gap + label);
        let top = MARGIN + LINE + 6;
        let rows = tiles.div_ceil(columns);
        let width = 2 * MARGIN + columns.min(tiles.max(1)) * across;
        let mut scene = Self { width: width.max(2 * MARGIN + 4 * ENTRY), ..Self::default() };
        scene.text(MARGIN, MARGIN, title);
        for (number, (at, cells)) in (0..).zip(&picture.blocks) {
            let x = MARGIN + number % columns * across;
            let mut y = top + number / columns * down;
            if label > 0 {
                scene.text(x, y, &format!("{at:#x}"));
                y += label;
            }
            scene.tile(x, y, page, cells);
        }
        let bottom = scene.legend(picture, top + rows * down + MARGIN);
        scene.height = bottom + MARGIN;
        scene
    }

    fn area(&mut self, x: u32, y: u32, (width, height): (u32, u32), color: u8) {
        self.areas.push(Area { x, y, width, height, color });
    }

    fn text(&mut self, x: u32, y: u32, text: &str) {
        self.texts.push(Words { x, y, text: text.to_owned(), color: TEXT });
    }

    fn tile(&mut self, x: u32, y: u32, page: u32, cells: &[Cell; PAGES]) {
        // What is under a tile shows between its pages. Most tiles are of one piece.
        let is_one = !is_paged(&cells[0]) && cells.iter().all(|cell| color(cell) == color(&cells[0]));
        if is_one {
            self.area(x, y, (ACROSS * page, DOWN * page), color(&cells[0]));
        }
        for (row, line) in (0..).zip(cells.chunks(ACROSS as usize)).filter(|_| !is_one) {
            let mut first = 0;
            for run in line.chunk_by(|a, b| color(a) == color(b) && is_paged(a) == is_paged(b)) {
                let len = run.len() as u32;
                let place = (x + first * page, y + row * page);
                if is_paged(&run[0]) && page >= 4 {
                    (0..len).for_each(|n| {
                        self.area(place.0 + n * page, place.1, (page - 1, page - 1), color(&run[0]));
                    });
                } else {
                    self.area(place.0, place.1, (len * page, page), color(&run[0]));
                }
                first += len;
            }
        }
        for (n, cell) in (0..).zip(cells) {
            let (x, y) = (x + n % ACROSS * page, y + n / ACROSS * page);
            if cell.is_shared && page >= 4 {
                self.area(x + 1, y + 1, (page - 3, page - 3), BACKGROUND);
            }
            if cell.is_pinned {
                let size = page.div_ceil(2);
                let inset = (page - 1).saturating_sub(size) / 2;
                self.area(x + inset, y + inset, (size, size), TEXT);
            }
        }
    }

    /// Says what colours mean that are there, and how often each is; returns where it ends.
    fn legend(&mut self, picture: &Picture, y: u32) -> u32 {
        let mut entries: Vec<(Cell, String, usize)> = Vec::new();
        let mut add = |cell: Cell, text: &str| {
            let count = picture.count(|other| {
                other.kind == cell.kind && other.is_dirty == cell.is_dirty
                    || cell.is_pinned && other.is_pinned
                    || cell.is_shared && other.is_shared
            });
            if count > 0 {
                entries.push((cell, text.to_owned(), count));
            }
        };
        let of = |kind, is_dirty| Cell { kind, is_dirty, ..Cell::default() };
        add(of(Kind::Nothing, false), "not mapped");
        add(of(Kind::GivenBack, false), "given back");
        add(of(Kind::Changing, false), "being changed");
        for is_dirty in [false, true] {
            let clean = if is_dirty { "" } else { ", clean" };
            add(of(Kind::Giant, is_dirty), &format!("1 GiB{clean}"));
            add(of(Kind::Block, is_dirty), &format!("2 MiB{clean}"));
            for (why, reason) in (0..).zip(REASONS) {
                add(of(Kind::Page(why), is_dirty), &format!("4 KiB: {reason}{clean}"));
            }
        }
        let none = Cell::default();
        let marked =
            |is_pinned, is_shared| Cell { kind: Kind::Block, is_dirty: true, is_pinned, is_shared, ..none };
        let pinned = picture.count(|cell| cell.is_pinned);
        let shared = picture.count(|cell| cell.is_shared);
        for (count, cell, text) in
            [(pinned, marked(true, false), "pinned"), (shared, marked(false, true), "lent or borrowed")]
        {
            if count > 0 {
                entries.push((cell, text.to_owned(), count));
            }
        }
        let columns = ((self.width - 2 * MARGIN) / ENTRY).max(1);
        let mut bottom = y;
        for (n, (cell, text, count)) in (0..).zip(&entries) {
            let (x, y) = (MARGIN + n % columns * ENTRY, y + n / columns * LINE);
            self.area(x, y + 2, (10, 10), color(cell));
            if cell.is_pinned {
                self.area(x + 3, y + 5, (4, 4), TEXT);
            }
            if cell.is_shared {
                self.area(x + 2, y + 4, (6, 6), BACKGROUND);
            }
            self.text(x + 16, y, &format!("{text} {count}"));
            bottom = y + LINE;
        }
        bottom
    }
}

/// Tells whether a cell is drawn as a page of its own.
const fn is_paged(cell: &Cell) -> bool {
    matches!(cell.kind, Kind::Page(_) | Kind::Changing | Kind::GivenBack)
}

/// Returns the colour of a cell.
fn color(cell: &Cell) -> u8 {
    let (clean, is_two) = match cell.kind {
        Kind::Nothing => (2, false),
        Kind::GivenBack => (3, false),
        Kind::Changing => (4, false),
        Kind::Giant => (5, true),
        Kind::Block => (7, true),
        Kind::Page(why) => (9 + 2 * why.min(7), true),
    };
    clean + u8::from(is_two && cell.is_dirty)
}

/// Says what a picture shows, in a line.
pub(super) fn title(name: &str, picture: &Picture, when: &str) -> String {
    let blocks = picture.count(|cell| cell.kind == Kind::Block) / PAGES;
    let pages = picture.count(|cell| matches!(cell.kind, Kind::Page(_)));
    let memory = (picture.blocks.len() as u64 * BLOCK) >> 20;
    format!("{name}: {memory} MiB of addresses, {blocks} blocks of 2 MiB, {pages} pages of 4 KiB; {when}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(blocks: u64) -> Picture {
        let mut picture = Picture::default();
        for n in 0..blocks {
            let kind = if n % 2 == 0 { Kind::Block } else { Kind::Page(1) };
            let cell = Cell { kind, is_dirty: true, ..Cell::default() };
            picture.blocks.insert(0x4000_0000 + n * BLOCK, Box::new([cell; PAGES]));
        }
        picture
    }

    #[test]
    fn everything_lies_inside_whatever_the_size() {
        for blocks in [0, 1, 12, 40, 128, 600] {
            let mut picture = picture(blocks);
            if let Some(cells) = picture.blocks.get_mut(&0x4000_0000) {
                cells[511].is_pinned = true;
                cells[510].is_shared = true;
            }
            let scene = Scene::of(&picture, "it");
            for area in &scene.areas {
                assert!(
                    area.x + area.width <= scene.width && area.y + area.height <= scene.height,
                    "{area:?}"
                );
            }
            assert!(scene.texts.iter().all(|text| text.y + LINE <= scene.height));
        }
    }

    #[test]
    fn each_kind_has_a_colour_of_its_own() {
        let mut kinds = vec![Kind::Nothing, Kind::GivenBack, Kind::Changing, Kind::Giant, Kind::Block];
        kinds.extend((0..7).map(Kind::Page));
        let colors = kinds.iter().flat_map(|&kind| {
            [false, true].map(|is_dirty| (color(&Cell { kind, is_dirty, ..Cell::default() }), kind))
        });
        let mut by_color = std::collections::BTreeMap::new();
        for (color, kind) in colors {
            assert!(usize::from(color) < PALETTE.len());
            assert_eq!(*by_color.entry(color).or_insert(kind), kind);
        }
    }

    #[test]
    fn the_legend_counts_pages() {
        let scene = Scene::of(&picture(3), "it");
        let texts: Vec<_> = scene.texts.iter().map(|text| text.text.as_str()).collect();
        assert!(texts.contains(&"2 MiB 1024") && texts.contains(&"4 KiB: dirty log 512"), "{texts:?}");
        assert!(title("vm", &picture(3), "now").contains("6 MiB of addresses, 2 blocks of 2 MiB, 512 pages"));
    }
}
