//! [`State`]: everything that the adversary knows: which tables there are, what every observer holds of them, which writes
//! and instructions are under way, and what was promised about pages and frames.

use super::abroad::Abroad;
use super::breach::Breach;
use super::cache::{Cache, Translation};
use super::errand::{Coverage, Errand};
use super::frame::Frames;
use super::holdings::Holdings;
use super::stress::{Oracles, Plan};
use super::trace::{Event, Trace};
use super::words::Words;
use crate::{Dice, Effect, Judge, Style, Tlbi};
use stage2::{
    Attrs, Bbm, Entry, Format, Geometry, IommuCapability, Leaf, Live, Marks, Rewrite, Table, TableSize,
    Upkeep, Why, span,
};
use std::collections::{BTreeMap, HashMap};
use types::{CpuId, Height, Ipa, Pa, Range, Vmid};

/// What went wrong, and what it is about.
#[derive(Debug)]
pub(super) struct Crime {
    pub(super) breach: Breach,
    pub(super) what: String,
    pub(super) range: Option<Range>,
    pub(super) table: Option<Pa>,
}

impl Crime {
    pub(super) fn at(breach: Breach, range: Range, what: String) -> Self {
        Self { breach, what, range: Some(range), table: None }
    }

    pub(super) fn of_table(breach: Breach, table: Pa, what: String) -> Self {
        Self { breach, what, range: None, table: Some(table) }
    }
}

/// A CPU or an IOMMU.
#[derive(Debug, Default)]
pub(super) struct Observer {
    pub(super) cache: Cache,
    /// The tag under which the space's tables are loaded; `None` where they are not.
    pub(super) tag: Option<Vmid>,
    /// It runs a guest of the space.
    pub(super) is_inside: bool,
    /// It has left the guest, and walks may still be under way.
    pub(super) is_finishing: bool,
    /// It has said that it is in a guest, or about to be.
    pub(super) in_guest: bool,
    /// It was asked to leave.
    pub(super) is_kicked: bool,
    /// How often it has left.
    pub(super) exits: u64,
    /// The generation of the space that its cache is of.
    pub(super) generation: u64,
    /// It is a device behind an IOMMU, and not a CPU.
    pub(super) is_device: bool,
}

/// A write that table walkers need not see yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unseen {
    pub(super) cpu: usize,
    pub(super) key: (Pa, usize),
    pub(super) old: u64,
    /// In which of its writer's sections it was made.
    pub(super) stay: u64,
    /// A bit for each CPU that has waited for that section: a barrier of such a one is a barrier behind this write, too.
    pub(super) outlasted_by: u64,
}

/// An invalidation that was issued and that nobody has waited for.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    pub(super) by: usize,
    pub(super) tlbi: Tlbi,
    /// Whom it has not reached.
    pub(super) left: Vec<usize>,
}

/// What was promised about a page.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Promise {
    /// Nobody can write it.
    pub(super) is_strict: bool,
    /// Operations under way that may give the right to write.
    pub(super) relaxing: u32,
    pub(super) relaxed_at: u64,
    /// Unmaps of it under way, and when the last one ended.
    pub(super) zapping: u32,
    pub(super) zapped_at: u64,
    /// It is mapped, and nobody has begun to unmap it; since when that is certain.
    pub(super) is_there: bool,
    pub(super) there_at: u64,
    /// And can be written, and nobody has begun to change that.
    pub(super) is_writable: bool,
    /// Operations under way that take the right to write, and when the last one ended.
    pub(super) restricting: u32,
    pub(super) restricted_at: u64,
}

/// A pinned frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pinned {
    pub(super) pa: Pa,
    /// The frame's generation when it was pinned.
    pub(super) generation: u64,
    pub(super) page: Ipa,
    /// Who lets it go.
    pub(super) by: usize,
    /// What it is known as, and whether the device writes.
    pub(super) number: u64,
    pub(super) writes: bool,
    pub(super) has_written: bool,
}

/// What an operation that reports dirty leaves has been told so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) frames: Vec<Pa>,
}

/// What the adversary knows.
#[derive(Debug)]
pub(super) struct State<F: Format> {
    pub(super) format: F,
    pub(super) geometry: Geometry<F>,
    pub(super) bbm: Bbm,
    pub(super) style: Style,
    /// What the device's IOMMU can do, where it is attached.
    pub(super) iommu: Option<IommuCapability>,
    pub(super) root: Option<Pa>,
    pub(super) tables: BTreeMap<Pa, TableSize>,
    /// Where a table that is or was linked hangs.
    spots: HashMap<Pa, (Ipa, Height)>,
    pub(super) observers: Vec<Observer>,
    pub(super) unseen: Vec<Unseen>,
    /// How many sections each CPU has opened, or has begun anew.
    stays: Vec<u64>,
    /// Grace periods under way: known as what, and which section each CPU had then.
    graces: Vec<(usize, Vec<u64>)>,
    pub(super) issued: Vec<Issued>,
    pub(super) generation: u64,
    pub(super) frames: Frames,
    pub(super) promises: BTreeMap<Ipa, Promise>,
    /// What each CPU is at.
    pub(super) errands: Vec<Option<(Errand, Range)>>,
    pub(super) reports: Vec<Report>,
    /// Who wrote each entry last.
    pub(super) writers: HashMap<(Pa, usize), (usize, Errand)>,
    pub(super) coverage: Coverage,
    /// In the styles of interrupts the judge knows one CPU at work only: who enters a guest between another's write and
    /// its request is asked to leave by that request.
    is_judged: bool,
    pub(super) judge: Option<Judge<F>>,
    pub(super) trace: Trace,
    pub(super) dice: Dice,
    /// Grows with everything that is done.
    pub(super) now: u64,
    /// Pages in play.
    pub(super) hot: Vec<Ipa>,
    pub(super) reserved: i64,
    /// The tree ends: everything comes out, wanted or not.
    pub(super) is_ending: bool,
    pub(super) pins: Vec<Pinned>,
    /// Somebody has just made an entry its own.
    pub(super) has_become_owner: bool,
    /// One in so many changes is made late.
    pub(super) lingers: u64,
    /// For at most so many steps of others it does so between a look and a check.
    pub(super) longest: u64,
    /// Operations that have begun.
    pub(super) operations: u64,
    /// What is known of a space that has frames of its own.
    pub(super) holdings: Option<Holdings>,
    /// Another space, with which it shares memory.
    pub(super) abroad: Option<Abroad>,
}

impl<F: Format> State<F> {
    /// Makes the state of a machine on which nothing has happened.
    pub(super) fn new(format: F, geometry: Geometry<F>, plan: &Plan, hot: Vec<Ipa>, frames: Frames) -> Self {
        let tag = Some(Judge::<F>::VMID);
        let mut observers: Vec<Observer> =
            (0..plan.cpus).map(|_| Observer { tag, ..Observer::default() }).collect();
        if plan.style == Style::Broadcast {
            observers.push(Observer { tag, is_device: true, ..Observer::default() });
        }
        Self {
            format,
            geometry,
            bbm: plan.bbm,
            style: plan.style,
            iommu: plan.iommu,
            root: None,
            tables: BTreeMap::new(),
            spots: HashMap::new(),
            observers,
            unseen: Vec::new(),
            stays: vec![0; plan.cpus],
            graces: Vec::new(),
            issued: Vec::new(),
            generation: 0,
            frames,
            promises: BTreeMap::new(),
            errands: vec![None; plan.cpus],
            reports: vec![Report::default(); plan.cpus],
            writers: HashMap::new(),
            coverage: Coverage::default(),
            is_judged: plan.oracles == Oracles::All && plan.style == Style::Broadcast,
            judge: None,
            trace: Trace::default(),
            dice: Dice::new(plan.seed ^ 1),
            now: 0,
            hot,
            reserved: 0,
            is_ending: false,
            pins: Vec::new(),
            has_become_owner: false,
            lingers: plan.lingers,
            longest: plan.longest,
            operations: 0,
            holdings: None,
            abroad: None,
        }
    }

    /// Tells whether a CPU lingers over a change this time.
    pub(super) fn lingers(&mut self) -> bool {
        self.dice.one_in(self.lingers)
    }

    /// Returns the word of an entry, as it is in memory.
    pub(super) fn word(&self, words: &dyn Words, (table, index): (Pa, usize)) -> u64 {
        words.load(table, index)
    }

    /// Returns what an entry translates, where its table is or was linked.
    pub(super) fn place(&self, (table, index): (Pa, usize)) -> Option<(Range, Height)> {
        let (base, height) = *self.spots.get(&table)?;
        let start = base.wrapping_add(index as u64 * span::<F>(height));
        Some((Range::block_around(start, span::<F>(height)), height))
    }

    pub(super) fn note(&mut self, about: Option<Range>, event: Event) {
        self.now += 1;
        self.trace.push(self.now, about, event);
    }

    /// Something was done: it is kept, and judged.
    pub(super) fn effect(&mut self, about: Option<Range>, effect: Effect) -> Result<(), Crime> {
        self.note(about, Event::Effect(effect));
        let Some(judge) = &mut self.judge else { return Ok(()) };
        let about = about.or_else(|| judge.owed().filter(|_| effect == Effect::StepEnd));
        judge.step(effect).map_err(|violation| {
            let table = match effect {
                Effect::Write { table, .. } | Effect::GiveBack { table } => Some(table),
                _ => judge.blamed().map(|(table, _)| table),
            };
            let range = about.or_else(|| judge.blamed_range());
            Crime { breach: Breach::Judged, what: violation.to_string(), range, table }
        })
    }

    /// A CPU opens a section, or passes from one to the next.
    pub(super) fn stays_anew(&mut self, cpu: usize) {
        if let Some(stays) = self.stays.get_mut(cpu) {
            *stays += 1;
        }
    }

    /// A grace period begins, known as `id`.
    pub(super) fn grace_begins(&mut self, id: usize) -> Result<(), Crime> {
        self.graces.push((id, self.stays.clone()));
        self.effect(None, Effect::Grace { id })
    }

    /// It is over for `cpu`, which from now on is behind all that was written in the sections that were open when it began,
    /// and before.
    pub(super) fn grace_over(&mut self, cpu: usize, id: usize) -> Result<(), Crime> {
        if let Some(n) = self.graces.iter().position(|grace| grace.0 == id) {
            let (_, then) = self.graces.swap_remove(n);
            for write in &mut self.unseen {
                if then.get(write.cpu).is_some_and(|last| write.stay <= *last) {
                    write.outlasted_by |= 1 << cpu;
                }
            }
        }
        self.effect(None, Effect::GraceOver { id })
    }

    /// A table was taken.
    pub(super) fn taken(&mut self, table: Pa, size: TableSize) -> Result<(), Crime> {
        self.tables.insert(table, size);
        self.effect(None, Effect::Take { table, size })
    }

    /// The root of the tree is known.
    pub(super) fn rooted(&mut self, root: Pa) {
        self.root = Some(root);
        self.is_ending = false;
        for promise in self.promises.values_mut() {
            (promise.is_there, promise.is_writable) = (false, false);
        }
        self.spots.clear();
        self.spots.insert(root, (Ipa::new(0), self.geometry.top()));
        let judge = || Judge::new(self.format, self.geometry, self.bbm, root).with_guests_past_caches();
        self.judge = self.is_judged.then(judge);
    }

    /// A table is given back: nobody may be able to come there any more.
    pub(super) fn given_back(&mut self, pa: Pa, size: TableSize) -> Result<(), Crime> {
        for (who, observer) in self.observers.iter().enumerate().filter(|(who, _)| self.counts(*who)) {
            if let Some(link) = observer.cache.links.iter().find(|link| link.table == pa) {
                let what = format!(
                    "{pa:?} is given back, and a walk cache of {who} leads there for {:?}",
                    link.range
                );
                return Err(Crime {
                    range: Some(link.range),
                    ..Crime::of_table(Breach::WalkedFreed, pa, what)
                });
            }
        }
        if self.tables.remove(&pa) != Some(size) {
            return Err(Crime::of_table(Breach::Leak, pa, format!("{pa:?} is given back twice")));
        }
        self.spots.remove(&pa);
        self.writers.retain(|key, _| key.0 != pa);
        self.unseen.retain(|write| write.key.0 != pa);
        self.effect(None, Effect::GiveBack { table: pa })
    }

    /// Software looks at an entry: it may, while the table is there.
    pub(super) fn looks(&mut self, cpu: usize, key: (Pa, usize)) -> Result<(), Crime> {
        if self.is_there(key.0) {
            // What another CPU has seen, everybody sees.
            self.unseen.retain(|write| write.key != key || write.cpu == cpu);
            return Ok(());
        }
        let what = format!("CPU {cpu} looks into {:?}, which was given back", key.0);
        Err(Crime::of_table(Breach::LookedIntoFreed, key.0, what))
    }

    /// Tells whether `table`, or the root that it is part of, is there.
    pub(super) fn is_there(&self, table: Pa) -> bool {
        self.tables.contains_key(&table)
    }

    /// Software has written an entry.
    pub(super) fn wrote(
        &mut self,
        words: &dyn Words,
        cpu: usize,
        key: (Pa, usize),
        old: u64,
        new: u64,
    ) -> Result<(), Crime> {
        let place = self.place(key);
        if self.style != Style::Interrupt && place.is_some() {
            let stay = self.stays.get(cpu).copied().unwrap_or(0);
            self.unseen.push(Unseen { cpu, key, old, stay, outlasted_by: 0 });
        }
        if let Some((errand, _)) = self.errands[cpu] {
            self.writers.insert(key, (cpu, errand));
        }
        if let Some((range, height)) = place {
            self.has_become_owner = self.format.decode(new, height).is_owned();
            self.hangs(words, new, range.start(), height);
            self.changes(words, cpu, key.0, (range, height), old, new)?;
        }
        let (table, index) = key;
        let cpu = CpuId::new(cpu).unwrap_or(CpuId::BOOT);
        self.effect(place.map(|(range, _)| range), Effect::Write { cpu, table, index, old, new })
    }

    /// Notes where tables below a link hang.
    fn hangs(&mut self, words: &dyn Words, raw: u64, base: Ipa, height: Height) {
        let (Some(child), Some(below)) = (F::child(raw), height.below()) else { return };
        if height == Height::PAGE || self.spots.insert(child, (base, below)) == Some((base, below)) {
            return;
        }
        if below > Height::PAGE {
            for index in 0..self.geometry.entries(below) {
                let raw = self.word(words, (child, index));
                self.hangs(words, raw, base.wrapping_add(index as u64 * span::<F>(below)), below);
            }
        }
    }

    /// Returns what the tables say about `ipa` now: the entry, and its height.
    pub(super) fn peek(&self, words: &dyn Words, ipa: Ipa) -> Option<(u64, Height)> {
        let (mut table, mut height) = (self.root?, self.geometry.top());
        loop {
            let raw = self.word(words, (table, self.geometry.index(ipa, height)));
            match (F::child(raw), height.below()) {
                (Some(child), Some(below)) if self.is_there(child) => (table, height) = (child, below),
                _ => return Some((raw, height)),
            }
        }
    }

    /// Tells whether table walkers see what the tables say about `ipa` now, and nothing older.
    pub(super) fn is_visible(&self, words: &dyn Words, ipa: Ipa) -> bool {
        let Some(mut table) = self.root else { return false };
        let mut height = self.geometry.top();
        loop {
            let key = (table, self.geometry.index(ipa, height));
            if self.unseen.iter().any(|write| write.key == key) {
                return false;
            }
            match (F::child(self.word(words, key)), height.below()) {
                (Some(child), Some(below)) if self.is_there(child) => (table, height) = (child, below),
                _ => return true,
            }
        }
    }

    /// Returns the leaf that the tables have for `ipa` now, and the frame behind it.
    pub(super) fn mapped(&self, words: &dyn Words, ipa: Ipa) -> Option<(Leaf, Pa)> {
        let (raw, height) = self.peek(words, ipa)?;
        match self.format.decode(raw, height).live()? {
            Live::Leaf(leaf) => Some((leaf, leaf.pa.wrapping_add(ipa.get() & (span::<F>(height) - 1)))),
            Live::Table(_) => None,
        }
    }

    /// Tells whether `who` sets a flag by itself: a device's IOMMU may do less than CPUs do.
    pub(super) fn sets(&self, who: usize, mark: Marks) -> bool {
        let needed = if mark == Marks::YOUNG { Upkeep::Accessed } else { Upkeep::AccessedAndDirty };
        let is_able = |iommu: IommuCapability| iommu.upkeep >= needed;
        self.hardware_sets(mark) && (!self.observers[who].is_device || self.iommu.is_none_or(is_able))
    }

    /// Tells which flags the hardware sets by itself.
    fn hardware_sets(&self, mark: Marks) -> bool {
        let word = |attrs| {
            let leaf = Entry::Leaf(Leaf { pa: Pa::new(0), attrs });
            self.format.encode(leaf, Height::PAGE)
        };
        let (with, without) = (word(Attrs::RAM), word(Attrs::RAM.without(mark)));
        with != without
            && self.format.settled(with, Height::PAGE) == self.format.settled(without, Height::PAGE)
    }

    /// Checks that nobody can use the memory of a leaf that comes out.
    pub(super) fn out_of_reach(&self, pa: Pa, bytes: u64, range: Range) -> Result<(), Crime> {
        for (who, observer) in self.observers.iter().enumerate().filter(|(who, _)| self.counts(*who)) {
            for held in observer.cache.translations() {
                let Some(at) = F::output(held.raw, held.height) else { continue };
                if at.get() < pa.get() + bytes && pa.get() < at.get() + span::<F>(held.height) {
                    let what = format!("{pa:?} came out of {range:?}, and {who} holds {held}");
                    return Err(Crime::at(Breach::OutTooEarly, range, what));
                }
            }
        }
        Ok(())
    }

    /// Returns the level at which everybody who walks the tables stands a change of size. Where the format has sizes changed
    /// in place at any level, every CPU stands that, whatever level it is let in with.
    fn level(&self) -> Bbm {
        let block = Entry::Leaf(Leaf { pa: Pa::new(0), attrs: Attrs::RAM });
        let link = Entry::Table(Table { pa: Pa::new(0), pending: true, why: Why::Alignment });
        if self.format.rewrite(block, link, Height::new(1), Bbm::Level0) < Rewrite::BreakBeforeMake {
            return Bbm::Level3;
        }
        let devices = self.observers.iter().filter(|observer| observer.is_device && observer.tag.is_some());
        devices.filter_map(|_| self.iommu).map(|iommu| iommu.bbm).fold(self.bbm, Bbm::min)
    }

    /// Checks that a leaf that is cached now agrees with what others hold for the same addresses.
    pub(super) fn agrees(&mut self, who: usize, leaf: Translation) -> Result<(), Crime> {
        let mut conflict = false;
        for (other, observer) in self.observers.iter().enumerate().filter(|(other, _)| self.counts(*other)) {
            for held in observer.cache.translations().filter(|held| held.tag == leaf.tag) {
                let Some(both) = held.range.intersection(leaf.range) else { continue };
                if both.is_empty() {
                    continue;
                }
                let output = |one: &Translation| {
                    F::output(one.raw, one.height)
                        .map(|pa| pa.wrapping_add(both.start().get() - one.range.start().get()))
                };
                let sizes_differ = held.height != leaf.height;
                let may_differ = self.level() >= Bbm::Level2;
                if output(held) == output(&leaf) && (!sizes_differ || may_differ) {
                    conflict |= sizes_differ && other == who;
                    continue;
                }
                let what = format!("{who} caches {leaf} while {other} holds {held}");
                return Err(Crime::at(Breach::TwoTranslations, both, what));
            }
        }
        if conflict {
            self.coverage.count("two sizes in one TLB");
        }
        Ok(())
    }
}
