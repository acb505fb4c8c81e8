//! A space to measure in: a tree over the pool, readers waited for by entry and exit, and no TLB.

use crate::pool;
use frames::Tables;
use stage2::{
    Answer, Attrs, Bbm, EntryEpoch, Format as _, Geometry, Invalidate, Mapping, Quiescence, Run, Slot, Stay,
    Tree, Visit, Visitor, Why, Work,
};
use std::mem::ManuallyDrop;
use types::{Cpu, CpuId, Height, Ipa, Pa, Range, SysReg, Ticks};
use vmsa::{Features, Granule4K, Vmsa};

/// AArch64 stage 2 with 4 KiB pages.
pub type Format = Vmsa<Granule4K>;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Bytes in a block of height 1.
pub const BLOCK: u64 = 2 << 20;
/// Bytes in the space that most rows are about.
pub const GIB: u64 = 1 << 30;
/// Pages in it.
pub const PAGES: u64 = GIB / PAGE;
/// The height of a block of 2 MiB.
pub const ONE_UP: Height = Height::new(1);

/// Returns where the spaces that are measured begin: an address of which the compiler knows nothing, since it would look
/// up once what is the same for all addresses of a known gibibyte.
pub fn origin() -> u64 {
    std::hint::black_box(3 << 40 | 5 << 30)
}

/// A CPU that takes memory for zeroed.
pub struct NoZeroing(pub CpuId);

impl Cpu for NoZeroing {
    fn id(&self) -> CpuId {
        self.0
    }

    fn kick(&self, _: CpuId) {}

    fn now(&self) -> Ticks {
        0
    }

    fn tick_hz(&self) -> u64 {
        1
    }

    fn read_id(&self, _: SysReg) -> u64 {
        0
    }

    fn guests_bypass_caches(&self) -> bool {
        false
    }

    fn publish(&self, _: Pa, _: u64) {}

    fn zero(&self, _: Pa, _: u64) {}

    fn clean(&self, _: Pa, _: u64) {}

    fn clean_and_invalidate(&self, _: Pa, _: u64) {}
}

/// A machine that has nothing to invalidate: what it costs to say so is what is measured.
#[derive(Clone, Copy)]
pub struct NoTlb;

impl Invalidate for NoTlb {
    type Pending = ();

    #[inline(always)]
    fn begin(&self, _: Work) {}

    #[inline(always)]
    fn complete(&self, (): ()) {}
}

/// A space.
pub struct Scene {
    /// How its readers are waited for.
    pub epoch: EntryEpoch,
    /// Its tables.
    pub tree: ManuallyDrop<Tree<Format, Tables<'static>>>,
}

/// Returns the shape of every space here: four heights, 48 bits, as the peer has it.
pub fn geometry() -> Geometry<Format> {
    Geometry::new(Height::new(3), 48).expect("four heights take 48 bits")
}

/// Returns the number of a CPU.
pub fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("there are few threads")
}

/// Returns `ipa..ipa + bytes`.
pub fn range(ipa: u64, bytes: u64) -> Range {
    Range::with_len(Ipa::new(ipa), bytes).expect("addresses here do not wrap")
}

/// Returns what maps `ipa..ipa + bytes` to `pa` with leaves of at most `largest`.
pub fn mapping(ipa: u64, pa: u64, bytes: u64, largest: Height) -> Mapping {
    let range = range(ipa, bytes);
    Mapping { range, pa: Pa::new(pa), attrs: Attrs::RAM, largest, why: Why::Alignment }
}

impl Scene {
    /// Makes an empty space of which a split is a break, as it is on every CPU.
    pub fn new() -> Self {
        Self::with_bbm(Bbm::Level0)
    }

    /// Makes an empty space on CPUs of level `bbm`.
    pub fn with_bbm(bbm: Bbm) -> Self {
        let tree = Tree::new(Format::new(Features::empty()), geometry(), bbm, pool::tables());
        Self { epoch: EntryEpoch::new(), tree: ManuallyDrop::new(tree.expect("the pool has a page")) }
    }

    /// Has CPU `n` enter the hypervisor.
    pub fn section(&self, n: usize) -> Stay<'_> {
        self.epoch.enter(cpu(n))
    }

    /// Maps as CPU 0.
    ///
    /// # Panics
    /// Where something is mapped there.
    pub fn map(&self, mapping: Mapping) {
        let section = self.epoch.enter(CpuId::BOOT);
        let view = self.tree.open(&section);
        let mut rest = Some(mapping);
        while let Some(mapping) = rest {
            rest = mapping.rest(view.map(&NoTlb, &mapping).expect("nothing is mapped there"));
        }
    }

    /// Unmaps as CPU `n`.
    ///
    /// # Panics
    /// Where an entry is busy for long.
    pub fn unmap(&self, n: usize, range: Range) {
        let mut section = self.epoch.enter(cpu(n));
        let mut rest = Some(range);
        while let Some(range) = rest {
            let next = self.tree.unmap(&mut section, &NoTlb, range, &mut |_| {});
            let next = next.expect("nobody else works here");
            rest = Range::new(next, range.end()).ok().filter(|rest| !rest.is_empty());
        }
    }

    /// Splits the block at `ipa` into pages, as CPU `n`.
    ///
    /// # Panics
    /// Where the pool has no page for the table.
    pub fn split(&self, n: usize, ipa: u64) {
        let section = self.epoch.enter(cpu(n));
        let view = self.tree.open(&section);
        view.split(&NoTlb, Ipa::new(ipa), Height::PAGE, Why::DirtyLog).expect("the pool has pages");
    }

    /// Makes the pages at `ipa` one block, as CPU `n`.
    ///
    /// # Panics
    /// Where they are no block.
    pub fn collapse(&self, n: usize, ipa: u64) {
        let mut section = self.epoch.enter(cpu(n));
        self.tree.collapse(&mut section, &NoTlb, Ipa::new(ipa), ONE_UP).expect("the pages are side by side");
    }

    /// Adds up the output addresses of all pages in `range`, by the walker.
    pub fn sum_by_walk(&self, range: Range) -> u64 {
        let section = self.epoch.enter(CpuId::BOOT);
        let view = self.tree.open(&section);
        let mut sum = Sum(0);
        let mut rest = Some(range);
        while let Some(range) = rest {
            let next = view.walk_with(range, &mut sum).next;
            rest = Range::new(next, range.end()).ok().filter(|rest| !rest.is_empty());
        }
        sum.0
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and nobody sees it again.
        let tree = unsafe { ManuallyDrop::take(&mut self.tree) };
        let mut section = self.epoch.enter(CpuId::BOOT);
        let mut remains = tree.destroy(&mut section, &NoTlb);
        while !remains.sweep(CpuId::BOOT, &mut |_| {}) {}
    }
}

/// A visitor that adds up output addresses.
struct Sum(u64);

impl Visitor<Format> for Sum {
    #[inline(always)]
    fn visit(&mut self, visit: &Visit<Format>) -> Answer {
        if visit.height() > Height::PAGE {
            return Answer::Descend;
        }
        self.0 = self.0.wrapping_add(visit.pa().map_or(0, Pa::get));
        Answer::Continue
    }

    #[inline(always)]
    fn run<T: Slot, S: Fn(usize) -> T>(&mut self, run: &mut Run<Format, T, S>) -> Answer {
        let mut sum = self.0;
        run.rest(|visit| sum = sum.wrapping_add(visit.pa().map_or(0, Pa::get)));
        self.0 = sum;
        Answer::Continue
    }
}

/// Returns the number of bytes that a table has.
pub const TABLE_BYTES: u64 = 1 << Format::GRANULE_SHIFT;
