//! The space itself: regions, tables, counters, tag.

use crate::iommu::Iommus;
use crate::log::Log;
use crate::regions::{Regions, Standing};
use crate::tally::Tally;
use crate::{Region, SpaceError, Stats, Tag};
use frames::{Frames, Order, Owner, Tables};
use stage2::{Bbm, Format, Geometry, Section, Tree, View, span};
use types::sync::AtomicBool;
use types::{Height, Ipa, Pa, Range};

/// A CPU's view of a space's tables, while it is in a read section.
pub(crate) type TableView<'v, 'f, F, R> = View<'v, F, Tables<'f>, R>;

/// One VM's memory.
///
/// Shared by all CPUs that run the VM or serve it. Every operation takes `&self`, the caller's read section, and what
/// it needs of the CPU it runs on: `cpu` zeroes and publishes memory, `tlb` invalidates this space's translations.
#[derive(Debug)]
pub struct Space<'f, F: Format> {
    pub(crate) frames: &'f Frames,
    pub(crate) owner: Owner,
    pub(crate) tree: Tree<F, Tables<'f>>,
    /// The largest leaf that memory is put behind addresses with.
    pub(crate) largest: Height,
    pub(crate) regions: Regions,
    pub(crate) log: Log,
    pub(crate) iommus: Iommus<'f>,
    /// Set once, when the space begins to die.
    pub(crate) dead: AtomicBool,
    pub(crate) tally: Tally,
    pub(crate) tag: Tag,
}

impl<'f, F: Format> Space<'f, F> {
    /// Makes a space without regions, whose addresses and root have the shape `geometry`. `owner` marks its frames and
    /// is different for each space. `bbm` is what the weakest of all CPUs and IOMMUs can do. `tables` is the most
    /// frames of 4 KiB that its tables may take, the root included: [`table_budget`] says what suffices.
    ///
    /// # Errors
    /// [`SpaceError::OutOfTables`] where there is no memory for the root.
    pub fn new(
        frames: &'f Frames,
        owner: Owner,
        format: F,
        geometry: Geometry<F>,
        bbm: Bbm,
        tables: u32,
    ) -> Result<Self, SpaceError> {
        let size = Geometry::<F>::table_size().bytes();
        let page = Order::of_bytes(size).ok_or(SpaceError::BadRegion { range: geometry.reach() })?;
        let tables = Tables::new(frames, owner, page, tables);
        let tree = Tree::new(format, geometry, bbm, tables)
            .map_err(|_| SpaceError::OutOfTables { ipa: geometry.reach().start() })?;
        Ok(Self {
            frames,
            owner,
            largest: tree.largest_leaf(),
            tree,
            regions: Regions::new(),
            log: Log::new(),
            iommus: Iommus::none(),
            dead: AtomicBool::new(false),
            tally: Tally::new(),
            tag: Tag::new(),
        })
    }

    /// Has memory be put behind addresses, on fault and ahead, with leaves of `largest` at most. A
    /// [collapse](Space::collapse) that somebody asks for still makes larger ones.
    pub fn limit_leaves(&mut self, largest: Height) {
        self.largest = largest.min(self.tree.largest_leaf());
    }

    /// Returns the address of the root table, for the register that starts a walk. It stays the same for as long as
    /// the space lives.
    pub const fn root(&self) -> Pa {
        self.tree.root().pa()
    }

    /// Returns the tables' tree: to walk, dump, or count.
    pub const fn tree(&self) -> &Tree<F, Tables<'f>> {
        &self.tree
    }

    /// Returns the machine's memory, which the space's frames are of.
    pub const fn frames(&self) -> &'f Frames {
        self.frames
    }

    /// Returns whose frames the space's are.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Returns the place of the tag that TLBs keep this space's translations under.
    pub const fn tag(&self) -> &Tag {
        &self.tag
    }

    /// Returns what the space is made of, and what happened in it so far.
    pub fn stats(&self) -> Stats {
        self.tally.stats(self.tree.census(), self.tree.memory())
    }

    /// Lowers the break-before-make level to what a CPU can do that is about to take part: before it walks these tables for
    /// the first time. On return nothing is under way that it would not bear. The level never rises. Passes quiescent
    /// points. (An IOMMU is [attached](Space::attach).)
    pub fn admit<S: Section>(&self, section: &mut S, newcomer: Bbm) {
        // Busy: changes of size were under way for long; they are bounded steps, and new ones begin at the lower level.
        while self.tree.lower_bbm(section, newcomer).is_err() {
            section.pass();
        }
    }

    /// Adds a region. Waits for a grace period. Nothing is mapped by this.
    ///
    /// # Errors
    /// [`SpaceError::RegionsOverlap`], which names both; [`SpaceError::TooManyRegions`]; [`SpaceError::BadRegion`];
    /// [`SpaceError::Busy`] where another CPU is changing the regions.
    pub fn add_region<S: Section>(&self, section: &mut S, region: Region) -> Result<(), SpaceError> {
        let range = region.range;
        let granule = span::<F>(Height::PAGE);
        let reach = self.tree.geometry().reach();
        let aligned_backing = match region.backing {
            crate::Backing::Ram | crate::Backing::Borrowed => true,
            crate::Backing::Fixed { pa, .. } => {
                let end = pa.checked_add(range.len());
                pa.is_aligned(granule) && end.is_some_and(|end| end.get() <= 1 << F::OUTPUT_BITS)
            }
        };
        if range.is_empty() || !range.is_aligned(granule) || !reach.covers(range) || !aligned_backing {
            return Err(SpaceError::BadRegion { range });
        }
        self.regions.add(section, region)
    }

    /// Removes the region that starts at `start`: from the return on, nothing is mapped there any more that was not
    /// mapped before. What was, is the caller's to [discard](Space::discard). Waits for a grace period.
    ///
    /// # Errors
    /// [`SpaceError::NoRegion`]; [`SpaceError::Busy`] where another CPU is changing the regions.
    pub fn remove_region<S: Section>(&self, section: &mut S, start: Ipa) -> Result<Region, SpaceError> {
        self.regions.remove(section, start)
    }

    /// Returns the region that holds `ipa`.
    pub fn region<S: Section>(&self, section: &S, ipa: Ipa) -> Option<Region> {
        let _reading = section.read();
        self.regions.find(ipa).map(|found| found.region)
    }

    /// Calls `visit` for each region, lowest first.
    pub fn each_region<S: Section>(&self, section: &S, visit: impl FnMut(Region)) {
        let _reading = section.read();
        self.regions.iter().for_each(visit);
    }

    /// Finds the region that holds `ipa`, for somebody who has opened a view.
    #[inline(always)]
    pub(crate) fn standing<R>(&self, _: &TableView<'_, 'f, F, R>, ipa: Ipa) -> Result<Standing, SpaceError> {
        self.check_alive()?;
        self.regions.find(ipa).ok_or(SpaceError::NoRegion { ipa })
    }
}

/// Tables that a collapse has beside those that count: the new block's reserve while the old table is still there, and
/// the page that keeps what the table held.
const COLLAPSING: u64 = 2;

/// Returns the frames of 4 KiB that the tables of a space can need at most when `regions` are all mapped, the root and the
/// reserve for splits included: where a block is, what it would be split into is in reserve, so the sum is that of mapping
/// all of it with pages; and what one collapse needs meanwhile.
pub fn table_budget<F: Format>(geometry: &Geometry<F>, regions: &[Range]) -> u32 {
    let frames = |bytes: u64| bytes / types::FRAME_SIZE;
    let mut sum = frames(geometry.root_size().bytes());
    sum += COLLAPSING * frames(Geometry::<F>::table_size().bytes());
    let mut height = geometry.top();
    while let Some(below) = height.below() {
        // Two regions can share a table; counting it for each errs to the safe side.
        let tables: u64 = regions.iter().map(|range| entries_touched::<F>(*range, height)).sum();
        sum += tables * frames(Geometry::<F>::table_size().bytes());
        height = below;
    }
    sum.min(u64::from(u32::MAX)) as u32
}

/// Returns how many entries of `height` it takes to cover `range`.
fn entries_touched<F: Format>(range: Range, height: Height) -> u64 {
    let span = span::<F>(height);
    if range.is_empty() { 0 } else { (range.end().get() - 1) / span - range.start().get() / span + 1 }
}
