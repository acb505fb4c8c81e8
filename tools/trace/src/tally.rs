//! What a trace says that a machine has done: the numbers of a [view](crate::view), as far as records tell them.
//!
//! For machines that have no memory which a tool can read, as a PC in Bochs. Records have no time, no exit's reason, and
//! nothing of frames but tables; and no flags that hardware has set. So what is not told is zero.

use crate::replay::Replay;
use crate::tables::{Format, Shape, Tables, each};
use crate::view::{EXITS, Look, Machine, Space, Vm, place};
use anyhow::Result;
use stage2::{Entry, Live};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use trace::{Kind, Op, Record};
use types::{FRAME_SIZE, Height, Pa};

/// The numbers after the records that were applied.
#[derive(Debug)]
pub struct Tally {
    replay: Replay,
    cpus: u64,
    records: u64,
    is_over: bool,
    numbers: [u64; Machine::COUNT],
    grace: u64,
    spaces: BTreeMap<u16, Of>,
    /// The owner of the tables that each CPU has loaded.
    loaded: HashMap<usize, u16>,
    /// The height of the entries in each table's frames that a link or a root leads to, and whose they are.
    tables: HashMap<u64, (Height, u16)>,
    /// What an entry was before it was frozen, by its address.
    frozen: HashMap<u64, Live>,
}

/// What is counted of a space.
#[derive(Clone, Debug)]
struct Of {
    shape: Shape,
    is_there: bool,
    cpus: BTreeSet<usize>,
    exits: u64,
    numbers: [u64; Space::COUNT],
}

impl Tally {
    /// Begins with a machine of so many CPUs.
    pub fn new(cpus: u64) -> Self {
        Self {
            replay: Replay::default(),
            cpus,
            records: 0,
            is_over: false,
            numbers: [0; Machine::COUNT],
            grace: 0,
            spaces: BTreeMap::new(),
            loaded: HashMap::new(),
            tables: HashMap::new(),
            frozen: HashMap::new(),
        }
    }

    /// Tells whether the machine was about to be off.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Applies the next record.
    ///
    /// # Errors
    /// It is of a space that cannot be.
    pub fn apply(&mut self, record: &Record) -> Result<()> {
        let Record { cpu, kind, operands: [a, b, c], .. } = *record;
        self.replay.apply(record)?;
        self.records += 1;
        match kind {
            Kind::Space | Kind::There => self.appears(b as u16, Pa::new(a)),
            Kind::SpaceGone => {
                if let Some(of) = self.spaces.get_mut(&(b as u16)) {
                    of.is_there = false;
                }
            }
            Kind::Take => self.count(c as u16, Space::TableBytes, |bytes| *bytes += b),
            Kind::GiveBack => {
                self.count(c as u16, Space::TableBytes, |bytes| *bytes = bytes.saturating_sub(b));
                for frame in a / FRAME_SIZE..(a + b).div_ceil(FRAME_SIZE) {
                    self.tables.remove(&frame);
                }
                self.frozen.retain(|at, _| !(a..a + b).contains(at));
            }
            Kind::Write => self.wrote(a, (b, c))?,
            Kind::Known => self.wrote(a, (0, b))?,
            Kind::Tlbi => self.invalidates(record),
            Kind::Vttbr => {
                let owner = self.owner(a);
                match owner {
                    Some(owner) => drop(self.loaded.insert(cpu.index(), owner)),
                    None => drop(self.loaded.remove(&cpu.index())),
                }
            }
            Kind::Runs | Kind::Enters => {
                let owner =
                    if kind == Kind::Runs { Some(a as u16) } else { self.loaded.get(&cpu.index()).copied() };
                if let Some(of) = owner.and_then(|owner| self.spaces.get_mut(&owner)) {
                    of.cpus.insert(cpu.index());
                }
            }
            Kind::Leaves => {
                let owner = self.loaded.get(&cpu.index());
                if let Some(of) = owner.and_then(|owner| self.spaces.get_mut(owner)) {
                    of.exits += 1;
                }
            }
            Kind::Grace => self.grace += 1,
            Kind::End => self.is_over = true,
            _ => {}
        }
        Ok(())
    }

    /// Returns the numbers; `millis` is what a clock says that goes while the trace is written.
    ///
    /// # Errors
    /// Tables cannot be read.
    pub fn look(&self, millis: u64) -> Result<Look> {
        const OTHER: usize = EXITS.len() - 1;
        let (mut numbers, mut vms) = (self.numbers, Vec::new());
        for (&owner, of) in &self.spaces {
            let (mut leaves, mut mapped) = ([0; place::HEIGHTS], 0);
            if of.is_there {
                each(&self.replay, &of.shape, (0, 1 << of.shape.ipa_bits), &mut |found| {
                    if matches!(found.entry.live(), Some(Live::Leaf(_))) {
                        leaves[usize::from(found.height.get()).min(place::HEIGHTS - 1)] += 1;
                        mapped += found.bytes();
                    }
                })?;
            }
            let mut exits = [0; EXITS.len()];
            exits[OTHER] = of.exits;
            numbers[Machine::Guests as usize] += mapped / FRAME_SIZE;
            numbers[Machine::Tables as usize] += of.numbers[Space::TableBytes as usize] / FRAME_SIZE;
            vms.push(Vm {
                name: format!("space {owner}"),
                owner,
                is_on: of.is_there,
                vcpus: of.cpus.len() as u64,
                shape: of.shape,
                memory: Vec::new(),
                exits,
                leaves,
                numbers: of.numbers,
                blackouts: [0; place::CLASSES],
            });
        }
        numbers[Machine::Frames as usize] =
            numbers[Machine::Guests as usize] + numbers[Machine::Tables as usize];
        let recorded = Some(Recorded { records: self.records, grace_periods: self.grace });
        Ok(Look { ticks: millis, hertz: 1000, cpus: self.cpus, numbers, banks: Vec::new(), vms, recorded })
    }

    fn appears(&mut self, owner: u16, root: Pa) {
        let Some(&shape) = self.replay.space(owner) else { return };
        let entries = 1_u64 << (shape.ipa_bits - stage2::shift::<crate::tables::Stage2>(shape.top));
        let frames = (entries * 8).div_ceil(FRAME_SIZE);
        let mut numbers = [0; Space::COUNT];
        numbers[Space::TableBytes as usize] = frames * FRAME_SIZE; // the root was taken before
        let of = Of { shape, is_there: true, cpus: BTreeSet::new(), exits: 0, numbers };
        self.spaces.insert(owner, of);
        let root = root.get() / FRAME_SIZE;
        (root..root + frames).for_each(|frame| {
            self.tables.insert(frame, (shape.top, owner));
        });
    }

    fn count(&mut self, owner: u16, number: Space, change: impl FnOnce(&mut u64)) {
        if let Some(of) = self.spaces.get_mut(&owner) {
            change(&mut of.numbers[number as usize]);
        }
    }

    /// An entry changes. Those of tables that no link leads to yet are the one's own who makes the table.
    fn wrote(&mut self, at: u64, (before, after): (u64, u64)) -> Result<()> {
        let Some(&(height, owner)) = self.tables.get(&(at / FRAME_SIZE)) else { return Ok(()) };
        let Some(format) = self.spaces.get(&owner).map(|of| of.shape.format) else { return Ok(()) };
        let was = format.decode(before, height).live().or_else(|| self.frozen.get(&at).copied());
        let entry = format.decode(after, height);
        let now = entry.live();
        self.leads(now, format, (height, owner))?;
        match (entry, was) {
            (Entry::Frozen, Some(was)) => drop(self.frozen.insert(at, was)),
            _ => drop(self.frozen.remove(&at)),
        }
        let number = match (was, now) {
            (Some(Live::Leaf(_)), Some(Live::Table(_))) => Space::Splits,
            (Some(Live::Table(_)), Some(Live::Leaf(_))) => Space::Collapses,
            (Some(Live::Leaf(was)), Some(Live::Leaf(now))) if was.pa != now.pa => Space::Moved,
            _ => return Ok(()),
        };
        self.count(owner, number, |count| *count += 1);
        Ok(())
    }

    /// Notes the table that an entry leads to, and those below, which may have been linked before.
    fn leads(&mut self, entry: Option<Live>, format: Format, (height, owner): (Height, u16)) -> Result<()> {
        let (Some(Live::Table(table)), Some(lower)) = (entry, height.get().checked_sub(1)) else {
            return Ok(());
        };
        let below = Height::new(lower);
        if self.tables.insert(table.pa.get() / FRAME_SIZE, (below, owner)).is_none() && lower > 0 {
            for word in self.replay.table(table.pa, FRAME_SIZE as usize / 8)? {
                self.leads(format.decode(word, below).live(), format, (below, owner))?;
            }
        }
        Ok(())
    }

    fn invalidates(&mut self, record: &Record) {
        let [_, tables, _] = record.operands;
        let number = match Op::of(record.small) {
            Some(Op::Ipas2e1is | Op::Ipas2le1is) => Machine::ByAddress,
            Some(Op::Ripas2e1is | Op::Ripas2le1is) => Machine::ByRange,
            Some(Op::Vmalls12e1is | Op::Alle1is) => Machine::Whole,
            Some(Op::Vmalls12e1 | Op::Ipas2e1 | Op::Alle1 | Op::Invept) => Machine::Local,
            // What belongs to one of the others.
            Some(Op::Vmalle1 | Op::Vmalle1is) | None => return,
        };
        self.numbers[number as usize] += 1;
        if let Some(owner) = self.owner(tables) {
            self.count(owner, Space::Invalidations, |count| *count += 1);
        }
    }

    /// Returns whose the tables are that a CPU has loaded with `value`: VTTBR_EL2, or an EPT pointer.
    fn owner(&self, value: u64) -> Option<u16> {
        let root = value & ((1 << 48) - 1) & !(FRAME_SIZE - 1);
        let mut there = self.spaces.iter().filter(|(_, of)| of.is_there);
        there.find(|(_, of)| of.shape.root.get() & !(FRAME_SIZE - 1) == root).map(|(owner, _)| *owner)
    }
}

/// What a look at a trace tells beside a view's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// Records.
    pub records: u64,
    /// Grace periods, of all spaces.
    pub grace_periods: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage2::{Attrs, Leaf, Table, Why};
    use types::CpuId;

    const SHAPE: u64 = 3 | 39 << 16 | 2 << 24;
    const FEATURES: u64 = 0b1111;

    struct Story {
        tally: Tally,
        shape: Shape,
        number: u64,
    }

    impl Story {
        fn of_pc() -> Self {
            let shape = Shape::of_pc(Pa::new(0x10_0000), SHAPE, FEATURES, 3).expect("a shape");
            let mut story = Self { tally: Tally::new(2), shape, number: 0 };
            story.add(Kind::Start, 3, [0, 2, 0]);
            story.add(Kind::Take, 0, [0x10_0000, 0x1000, 3]);
            story.add(Kind::Space, 3, [0x10_0000, SHAPE, FEATURES]);
            story
        }

        fn add(&mut self, kind: Kind, small: u8, operands: [u64; 3]) {
            let cpu = CpuId::new((self.number % 2) as usize).expect("few");
            let record = Record { number: self.number, cpu, kind, small, operands };
            self.tally.apply(&record).expect("a possible space");
            self.number += 1;
        }

        fn write(&mut self, at: u64, before: Entry, after: Entry, height: u8) {
            let raw = |entry| self.shape.format.encode(entry, Height::new(height));
            let (before, after) = (raw(before), raw(after));
            self.add(Kind::Write, 0, [at, before, after]);
        }
    }

    fn leaf(pa: u64) -> Entry {
        Entry::Leaf(Leaf { pa: Pa::new(pa), attrs: Attrs::RAM })
    }

    fn link(pa: u64) -> Entry {
        Entry::Table(Table { pa: Pa::new(pa), pending: false, why: Why::Alignment })
    }

    #[test]
    fn sizes_moves_and_exits_are_counted() {
        let mut story = Story::of_pc();
        story.add(Kind::Take, 0, [0x20_0000, 0x1000, 3]);
        // What is below may be linked before what leads there.
        story.write(0x20_0000, Entry::Absent, leaf(0x60_0000), 1);
        story.write(0x10_0008, Entry::Absent, link(0x20_0000), 2);
        story.write(0x20_0008, Entry::Absent, leaf(0x80_0000), 1);
        // A table is filled before a link leads to it: its entries are nothing that has happened to anybody.
        story.add(Kind::Take, 0, [0x30_0000, 0x1000, 3]);
        for page in 0..512 {
            story.write(0x30_0000 + 8 * page, Entry::Absent, leaf(0x60_0000 + (page << 12)), 0);
        }
        story.write(0x20_0000, leaf(0x60_0000), link(0x30_0000), 1);
        // A page goes elsewhere, by break and make.
        story.write(0x30_0008, leaf(0x60_1000), Entry::Frozen, 0);
        story.write(0x30_0008, Entry::Frozen, leaf(0xa0_0000), 0);
        // Another is weakened, and is no other page for that.
        let weaker =
            Entry::Leaf(Leaf { pa: Pa::new(0x60_2000), attrs: Attrs::RAM.with_access(types::Access::READ) });
        story.write(0x30_0010, leaf(0x60_2000), weaker, 0);
        let look = story.tally.look(5000).expect("tables");
        let vm = &look.vms[0];
        assert_eq!((vm.leaves[..3].to_vec(), vm.number(Space::TableBytes)), (vec![512, 1, 0], 0x3000));
        let happened = [Space::Splits, Space::Collapses, Space::Moved].map(|number| vm.number(number));
        assert_eq!(happened, [1, 0, 1]);
        assert_eq!(look.number(Machine::Guests), 1024);
        assert_eq!((look.ticks / look.hertz, look.recorded.map(|r| r.records)), (5, Some(story.number)));
        // And all is one block again, elsewhere.
        story.write(0x20_0000, link(0x30_0000), Entry::Frozen, 1);
        story.write(0x20_0000, Entry::Frozen, leaf(0xc0_0000), 1);
        story.add(Kind::GiveBack, 0, [0x30_0000, 0x1000, 3]);
        let vm = &story.tally.look(0).expect("tables").vms[0];
        assert_eq!((vm.leaves[..2].to_vec(), vm.number(Space::Collapses)), (vec![0, 2], 1));
        assert_eq!(vm.number(Space::TableBytes), 0x2000);
    }

    #[test]
    fn tables_are_known_that_were_linked_from_below() {
        let mut story = Story::of_pc();
        for table in [0x20_0000, 0x30_0000] {
            story.add(Kind::Take, 0, [table, 0x1000, 3]);
        }
        story.write(0x30_0000, Entry::Absent, leaf(0x60_0000), 0);
        story.write(0x20_0000, Entry::Absent, link(0x30_0000), 1);
        story.write(0x10_0000, Entry::Absent, link(0x20_0000), 2);
        story.write(0x30_0000, leaf(0x60_0000), leaf(0x70_0000), 0);
        story.write(0x20_0000, link(0x30_0000), leaf(0x80_0000), 1);
        let vm = &story.tally.look(0).expect("tables").vms[0];
        assert_eq!((vm.number(Space::Moved), vm.number(Space::Collapses)), (1, 1));
    }

    #[test]
    fn invalidations_and_exits_belong_to_whose_tables_are_loaded() {
        let mut story = Story::of_pc();
        let eptp = 0x10_0000 | 0x5e;
        for _ in 0..2 {
            story.add(Kind::Vttbr, 0, [eptp, 0, 0]);
        }
        for kind in [Kind::Enters, Kind::Enters, Kind::Leaves, Kind::Leaves, Kind::Enters] {
            story.add(kind, 0, [0; 3]);
        }
        story.add(Kind::Tlbi, Op::Invept as u8, [1, eptp, 0]);
        story.add(Kind::Tlbi, Op::Invept as u8, [1, 0x77_0000, 0]);
        story.add(Kind::Grace, 0, [1, 0, 0]);
        assert!(!story.tally.is_over());
        story.add(Kind::End, 0, [0; 3]);
        assert!(story.tally.is_over());
        let look = story.tally.look(0).expect("tables");
        let vm = &look.vms[0];
        assert_eq!((vm.vcpus, vm.exits.iter().sum::<u64>(), vm.number(Space::Invalidations)), (2, 2, 1));
        assert_eq!((look.number(Machine::Local), look.recorded.map(|r| r.grace_periods)), (2, Some(1)));
        story.add(Kind::SpaceGone, 0, [0, 3, 0]);
        let vm = &story.tally.look(0).expect("tables").vms[0];
        assert_eq!((vm.is_on, vm.leaves[0]), (false, 0));
    }
}
