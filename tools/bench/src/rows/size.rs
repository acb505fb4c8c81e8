//! Size: what a translation costs in larger spaces, and how much of the memory the tables and the frame records are.

use crate::chase::{Chase, Random};
use crate::comparison::{Comparison, Contender, Row, Target, time_again};
use crate::scene::{BLOCK, GIB, ONE_UP, PAGE, Scene, mapping, origin};
use frames::Record;
use std::hint::black_box;
use std::rc::Rc;
use types::{Height, Ipa, Pa};

const TIMES: u64 = 1 << 18;
/// How much greater the greatest of the ratios to the bare chase may be than the least.
const FLAT: f64 = 1.15;

/// A space of one size.
#[derive(Clone, Copy)]
struct Size {
    name: &'static str,
    ours: &'static str,
    bare: &'static str,
    /// Base-2 logarithm of the number of blocks of 2 MiB that are mapped, page by page.
    blocks: u32,
    /// Base-2 logarithm of the distance between two of them, in blocks.
    apart: u32,
}

/// The largest is sparse: every fourth block is mapped.
const SIZES: [Size; 3] = [
    Size { name: "1 GiB", ours: "size/1 GiB/ours", bare: "size/1 GiB/chase", blocks: 9, apart: 0 },
    Size { name: "64 GiB", ours: "size/64 GiB/ours", bare: "size/64 GiB/chase", blocks: 15, apart: 0 },
    Size { name: "1 TiB, sparse", ours: "size/1 TiB/ours", bare: "size/1 TiB/chase", blocks: 17, apart: 2 },
];

impl Size {
    fn scene(self) -> Scene {
        let scene = Scene::new();
        for block in 0..1 << self.blocks {
            let at = (block << self.apart) * BLOCK;
            scene.map(mapping(origin() + at, at, BLOCK, Height::PAGE));
        }
        scene
    }

    /// Returns how far from the first a mapped page at random is.
    #[inline(always)]
    fn offset(self, random: &mut Random) -> u64 {
        let page = random.next(self.blocks + 9);
        (page >> 9 << self.apart) * BLOCK + (page & 511) * PAGE
    }

    /// Adds up what `translate` says for addresses at random.
    #[inline(always)]
    fn scatter(self, translate: impl Fn(u64) -> u64) -> u64 {
        let (origin, mut random) = (origin(), Random::new(4));
        let mut sum = 0u64;
        for _ in 0..TIMES {
            sum = sum.wrapping_add(translate(origin + self.offset(&mut random)));
        }
        sum
    }

    fn contenders(self) -> [Contender; 2] {
        let scene = Rc::new(self.scene());
        // SAFETY: the scene lives in both contenders and stays as it is.
        let chase = unsafe { Chase::through(&scene) };
        let kept = Rc::clone(&scene);
        let ours = move || {
            let section = scene.section(0);
            let view = scene.tree.open(&section);
            time_again(|| {
                self.scatter(|at| {
                    let ipa = Ipa::new(at);
                    view.translate(ipa).pa(ipa).map_or(0, Pa::get)
                })
            })
        };
        let bare = move || {
            black_box(&kept);
            time_again(|| self.scatter(|at| chase.page(at)))
        };
        [Contender::new(self.ours, TIMES, ours), Contender::new(self.bare, TIMES, bare)]
    }
}

/// Time first, then memory.
pub fn comparisons() -> Vec<Comparison> {
    vec![time_by_size(), memory()]
}

fn time_by_size() -> Comparison {
    let contenders = SIZES.into_iter().flat_map(Size::contenders).collect();
    Comparison::in_slices(contenders, |ns| {
        let ratios: Vec<f64> = ns.chunks(2).map(|pair| pair[0] / pair[1]).collect();
        let name = |size: &Size| format!("translate in {} / bare chase", size.name);
        let mut rows: Vec<Row> = SIZES
            .iter()
            .zip(ns.chunks(2))
            .map(|(size, ns)| Row::ns(name(size), ns[0], ns[1], Target::None))
            .collect();
        let greatest = ratios.iter().copied().fold(0.0, f64::max);
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        rows.push(Row::scaling("that ratio, greatest / least", greatest, least, Target::AtMost(FLAT)));
        rows
    })
}

/// Of 64 GiB, mapped with pages and with blocks, in per cent of it.
fn memory() -> Comparison {
    Comparison::new(Vec::new(), |_| {
        let ram = 64 * GIB;
        let per_cent = |bytes: u64| bytes as f64 * 100.0 / ram as f64;
        let records = ram / PAGE * size_of::<Record>() as u64;
        let tables = |largest| {
            let scene = Scene::new();
            scene.map(mapping(0, 0, ram, largest));
            scene.tree.memory().bytes()
        };
        let reserve = ram / BLOCK * crate::scene::TABLE_BYTES;
        let row = |name: &str, bytes, target| Row::alone(name, per_cent(bytes), "%", target);
        vec![
            row("tables and frame records of RAM, 4K", tables(Height::PAGE) + records, Target::AtMost(0.40)),
            row("tables and frame records of RAM, 2M", tables(ONE_UP) + records, Target::AtMost(0.25)),
            row("split reserve beside it, 2M", reserve, Target::None),
        ]
    })
}
