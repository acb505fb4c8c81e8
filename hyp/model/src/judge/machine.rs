//! [`Fleet`]: the judges of all spaces of a machine, and the rules of what spaces share: tags, CPUs' registers, frames.
//!
//! | | |
//! | --- | --- |
//! | a tag becomes another space's | when no TLB holds anything under it, and no CPU has it loaded |
//! | a space gets another tag | when no TLB holds anything of it under the first one |
//! | a CPU runs another vCPU of a space | when it has forgotten what the one before has left of combined entries |
//! | a CPU loads tables | that are there |
//! | a frame is free | when no entry leads there, and no TLB holds one that did |
//!
//! The first three are those of CPUs that broadcast; [`visits`](super::visits) has what takes their place where CPUs are
//! interrupted.
//!
//! A CPU may hold something under a tag from when it loads it, and until an invalidation of all of the tag is complete that
//! was begun since; whoever loads it meanwhile may hold something again. Only the CPU that invalidates may have it loaded
//! for that: it runs no guest then, and no walk begins for tables of a regime that is not in use (DDI 0487, D8.2).
//!
//! Who comes to a machine that has run before ([`Fleet::of_a_running_machine`]) is told of each space that is there, entry by
//! entry, while others change them ([`Fleet::there`], [`Fleet::known`], [`Fleet::told`]). From the end of that on the space is
//! judged; what was under way then is not. Nothing is objected to of spaces that it was not told of.

use super::visits::Visits;
use super::{Judge, Violation};
use crate::{Effect, Reach, Tlbi};
use stage2::{Bbm, Format, Geometry, TableSize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use types::{CpuId, CpuSet, Pa, Vmid};

/// A rule that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Objection {
    /// What the rules say against it.
    pub violation: Violation,
    /// The space that it is about, by its owner's number.
    pub space: Option<u16>,
    /// The entry that it is about, by its address.
    pub entry: Option<Pa>,
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(space) = self.space {
            write!(f, "space {space}: ")?;
        }
        self.violation.fmt(f)
    }
}

/// A space of the machine.
#[derive(Debug)]
pub(super) struct Member<F> {
    pub(super) judge: Judge<F>,
    root: Pa,
    /// Which of all spaces that ever were.
    pub(super) serial: u64,
    tag: Option<Vmid>,
}

/// Whose a tag is.
#[derive(Clone, Copy, Debug)]
struct Tagged {
    serial: u64,
    owner: u16,
    /// The CPUs whose TLBs may hold something under it.
    holders: CpuSet,
}

/// An invalidation of whole tags that is not complete.
#[derive(Clone, Debug)]
pub(super) struct Flush {
    pub(super) by: CpuId,
    tlbi: Tlbi,
    /// Who has, or has come to have, a tag loaded since.
    loaded: BTreeSet<(CpuId, Vmid)>,
}

impl Flush {
    pub(super) fn is_of(&self, tag: Vmid) -> bool {
        self.tlbi.op.is_for_every_tag() || self.tlbi.vmid == tag
    }

    fn is_complete_by(&self, reach: Reach) -> bool {
        if self.tlbi.op.is_broadcast() { reach >= Reach::Ish } else { reach != Reach::Ishst }
    }
}

/// A space that was there before, of which not all is known yet.
#[derive(Debug)]
struct Newcomer<F> {
    root: Pa,
    format: F,
    geometry: Geometry<F>,
    bbm: Bbm,
    serial: u64,
    /// Who has loaded its tables meanwhile, and under which tags.
    loads: BTreeMap<Vmid, CpuSet>,
}

/// From when on what a machine does is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Since {
    Start,
    Later,
}

/// All spaces of a machine, on CPUs that broadcast, or are made to leave their guests by interrupts.
#[derive(Debug)]
pub struct Fleet<F> {
    pub(super) since: Since,
    /// Where CPUs are interrupted: what each may hold.
    pub(super) visits: Option<Visits>,
    pub(super) spaces: BTreeMap<u16, Member<F>>,
    newcomers: BTreeMap<u16, Newcomer<F>>,
    /// Entries of tables of which no space is judged, as they are, where that is known.
    words: BTreeMap<Pa, u64>,
    /// How many spaces there ever were.
    count: u64,
    /// Every table: its bytes, and its space.
    tables: BTreeMap<Pa, (u64, u16)>,
    roots: BTreeMap<Pa, u16>,
    /// Roots of spaces that are gone.
    gone: BTreeSet<Pa>,
    tags: BTreeMap<Vmid, Tagged>,
    /// The tag that each CPU has loaded, and of which space.
    pub(super) loaded: BTreeMap<CpuId, (Vmid, u64)>,
    flushes: Vec<Flush>,
    /// The vCPU that has left combined entries in a CPU's TLB.
    left: BTreeMap<(CpuId, Vmid), (u64, u64)>,
}

impl<F> Default for Fleet<F> {
    fn default() -> Self {
        Self {
            since: Since::Start,
            visits: None,
            spaces: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            words: BTreeMap::new(),
            count: 0,
            tables: BTreeMap::new(),
            roots: BTreeMap::new(),
            gone: BTreeSet::new(),
            tags: BTreeMap::new(),
            loaded: BTreeMap::new(),
            flushes: Vec::new(),
            left: BTreeMap::new(),
        }
    }
}

pub(super) type Judged = Result<(), Objection>;

/// A rule of the whole machine's is broken.
pub(super) fn object(space: Option<u16>, what: String) -> Objection {
    Objection { violation: Violation(what), space, entry: None }
}

impl<F: Format> Fleet<F> {
    /// Makes a machine that has just started, without spaces.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a machine that has run before, of whose spaces nothing is known yet.
    pub fn of_a_running_machine() -> Self {
        Self { since: Since::Later, ..Self::default() }
    }

    /// The same, of CPUs that leave their guests to forget, each by itself.
    #[must_use]
    pub fn by_interrupts(self) -> Self {
        Self { visits: Some(Visits::default()), ..self }
    }

    /// Returns how many spaces there are, and how many there ever were.
    pub fn spaces(&self) -> (usize, u64) {
        (self.spaces.len(), self.count)
    }

    /// A space is there, whose root is empty.
    ///
    /// # Errors
    /// Its owner has one.
    pub fn made(&mut self, owner: u16, root: Pa, format: F, geometry: Geometry<F>, bbm: Bbm) -> Judged {
        self.count += 1;
        let judge = self.judge(format, geometry, bbm, root);
        self.newcomers.remove(&owner);
        self.roots.insert(root, owner);
        self.gone.remove(&root);
        let member = Member { judge, root, serial: self.count, tag: None };
        match self.spaces.insert(owner, member) {
            None => Ok(()),
            Some(_) => Err(object(Some(owner), "a second space of one owner".into())),
        }
    }

    /// A space is gone.
    ///
    /// # Errors
    /// There is none, or a table of its is still there.
    pub fn ended(&mut self, owner: u16) -> Judged {
        let Some(member) = self.spaces.remove(&owner) else {
            if self.since == Since::Start {
                return Err(object(Some(owner), "the end of a space that is not there".into()));
            }
            if let Some(newcomer) = self.newcomers.remove(&owner) {
                self.roots.remove(&newcomer.root);
            }
            self.tables.retain(|_, (_, of)| *of != owner);
            return Ok(());
        };
        self.roots.remove(&member.root);
        self.gone.insert(member.root);
        match self.tables.iter().find(|(_, (_, of))| *of == owner) {
            None => Ok(()),
            Some((table, _)) => {
                Err(object(Some(owner), format!("it is gone, and its table {table:?} is not")))
            }
        }
    }

    /// A table was taken.
    ///
    /// # Errors
    /// It is one already.
    pub fn taken(&mut self, owner: u16, table: Pa, bytes: u64) -> Judged {
        let size = TableSize::from_shift(bytes.trailing_zeros()).unwrap_or(Geometry::<F>::table_size());
        match self.spaces.get_mut(&owner) {
            Some(member) => step(owner, member, Effect::Take { table, size }, &mut self.visits)?,
            None => self.forget_words(table, bytes),
        }
        match self.tables.insert(table, (bytes, owner)) {
            None => Ok(()),
            Some((_, of)) => {
                Err(object(Some(owner), format!("{table:?} was taken, and is a table of space {of}")))
            }
        }
    }

    /// What was in this memory is nothing any more.
    fn forget_words(&mut self, table: Pa, bytes: u64) {
        let mut after = self.words.split_off(&table);
        self.words.append(&mut after.split_off(&table.wrapping_add(bytes)));
    }

    /// A table of `bytes` is about to be given back.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn given_back(&mut self, table: Pa, bytes: u64) -> Judged {
        let Some((_, owner)) = self.tables.remove(&table) else {
            self.forget_words(table, bytes);
            return match self.since {
                Since::Start => Err(object(None, format!("{table:?} given back, which is no table"))),
                Since::Later => Ok(()),
            };
        };
        let Some(member) = self.spaces.get_mut(&owner) else {
            self.forget_words(table, bytes);
            return Ok(());
        };
        let serial = member.serial;
        step(owner, member, Effect::GiveBack { table }, &mut self.visits)?;
        match self.loaded.iter().find(|(_, (_, of))| *of == serial && table == member.root) {
            None => Ok(()),
            Some((cpu, _)) => {
                let what =
                    format!("its root {table:?} is given back while CPU {} has it loaded", cpu.index());
                Err(object(Some(owner), what))
            }
        }
    }

    /// An entry was written, at `address`.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn wrote(&mut self, cpu: CpuId, address: Pa, old: u64, new: u64) -> Judged {
        let found = self.tables.range(..=address).next_back();
        let inside = found.filter(|(table, (bytes, _))| address.get() - table.get() < *bytes);
        let Some((&table, &(_, owner))) = inside else {
            self.words.insert(address, new);
            return match self.since {
                Since::Start => {
                    Err(object(None, format!("an entry at {address:?} was written, and there is no table")))
                }
                Since::Later => Ok(()),
            };
        };
        let Some(member) = self.spaces.get_mut(&owner) else {
            self.words.insert(address, new);
            return Ok(());
        };
        let index = ((address.get() - table.get()) / 8) as usize;
        step(owner, member, Effect::Write { cpu, table, index, old, new }, &mut self.visits)
    }

    /// A barrier is complete.
    ///
    /// # Errors
    /// None: for the caller's convenience.
    pub fn waited(&mut self, cpu: CpuId, reach: Reach) -> Judged {
        self.all(Effect::Dsb { cpu, reach })?;
        if let Some(visits) = &mut self.visits {
            visits.waited(cpu, reach);
        }
        let complete: Vec<Flush> =
            self.flushes.extract_if(.., |flush| flush.by == cpu && flush.is_complete_by(reach)).collect();
        complete.iter().for_each(|flush| self.flushed(flush));
        Ok(())
    }

    /// An invalidation is about to be issued.
    ///
    /// # Errors
    /// None: for the caller's convenience.
    pub fn invalidates(&mut self, cpu: CpuId, tlbi: Tlbi) -> Judged {
        if tlbi.op.takes_everything() || tlbi.op.takes_combined() {
            let loaded = self.loaded.iter().filter(|(by, _)| **by != cpu).map(|(by, (tag, _))| (*by, *tag));
            let loaded = loaded.collect();
            self.flushes.push(Flush { by: cpu, tlbi, loaded });
        }
        if self.visits.is_some() {
            self.begins_to_forget(cpu, &tlbi);
            return Ok(());
        }
        self.all(Effect::Tlbi { cpu, tlbi })
    }

    fn flushed(&mut self, flush: &Flush) {
        let mut loaded = flush.loaded.clone();
        if let Some((tag, _)) = self.loaded.get(&flush.by) {
            loaded.insert((flush.by, *tag));
        }
        let reaches = |cpu: CpuId| flush.tlbi.op.is_broadcast() || cpu == flush.by;
        // The CPU that invalidates runs nobody meanwhile.
        self.left.retain(|&(cpu, tag), _| {
            let stays = cpu != flush.by && loaded.contains(&(cpu, tag));
            !flush.is_of(tag) || !reaches(cpu) || stays
        });
        if !flush.tlbi.op.takes_everything() {
            return;
        }
        if self.visits.is_some() {
            return self.has_forgotten(flush);
        }
        for (&tag, tagged) in self.tags.iter_mut().filter(|(tag, _)| flush.is_of(**tag)) {
            let stays = |cpu: &CpuId| !reaches(*cpu) || loaded.contains(&(*cpu, tag));
            tagged.holders = tagged.holders.iter().filter(stays).fold(CpuSet::EMPTY, CpuSet::with);
            if let Some(member) = self.spaces.get_mut(&tagged.owner)
                && member.serial == tagged.serial
                && member.tag == Some(tag)
            {
                member.judge.hold(None, tagged.holders);
            }
        }
    }

    /// A CPU is about to load the tables of `root`, under `tag`.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn loads(&mut self, cpu: CpuId, tag: Vmid, root: Pa) -> Judged {
        self.loaded.remove(&cpu);
        self.loads_elsewhere(cpu)?;
        let Some(&owner) = self.roots.get(&root) else {
            if self.gone.contains(&root) {
                let what = format!("CPU {} loads the root {root:?} of a space that is gone", cpu.index());
                return Err(object(None, what));
            }
            return Ok(()); // what the register was at reset
        };
        if let Some(newcomer) = self.newcomers.get_mut(&owner) {
            let holders = newcomer.loads.entry(tag).or_insert(CpuSet::EMPTY);
            *holders = holders.with(cpu);
            self.loaded.insert(cpu, (tag, newcomer.serial));
            return Ok(());
        }
        if self.visits.is_some() {
            self.loads_here(cpu, tag, owner);
            return Ok(());
        }
        let Some(member) = self.spaces.get_mut(&owner) else { return Ok(()) };
        if let Some(before) = self.tags.get(&tag)
            && before.serial != member.serial
            && !before.holders.is_empty()
        {
            let what = format!(
                "CPU {} loads it under VMID {}, under which {} may hold translations of space {}",
                cpu.index(),
                tag.0,
                names(before.holders),
                before.owner
            );
            return Err(object(Some(owner), what));
        }
        if let Some(other) = member.tag.filter(|other| *other != tag)
            && let Some(before) = self.tags.get(&other)
            && before.serial == member.serial
            && !before.holders.is_empty()
        {
            let what = format!(
                "CPU {} loads it under VMID {}, while {} may hold translations of it under VMID {}",
                cpu.index(),
                tag.0,
                names(before.holders),
                other.0
            );
            return Err(object(Some(owner), what));
        }
        let fresh = Tagged { serial: member.serial, owner, holders: CpuSet::EMPTY };
        let tagged = self.tags.entry(tag).or_insert(fresh);
        if tagged.serial != member.serial {
            *tagged = fresh;
        }
        tagged.holders = tagged.holders.with(cpu);
        member.tag = Some(tag);
        member.judge.hold(Some(tag), tagged.holders);
        self.loaded.insert(cpu, (tag, member.serial));
        for flush in self.flushes.iter_mut().filter(|flush| flush.by != cpu) {
            flush.loaded.insert((cpu, tag));
        }
        Ok(())
    }

    /// A CPU is about to run a vCPU of a space.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn runs(&mut self, cpu: CpuId, owner: u16, vcpu: u64) -> Judged {
        let serial = self.spaces.get(&owner).map(|member| member.serial);
        let Some(&(tag, _)) = self.loaded.get(&cpu).filter(|(_, of)| Some(*of) == serial) else {
            // What was loaded before, or which space that was, may not be known.
            if self.since == Since::Later && (serial.is_none() || !self.loaded.contains_key(&cpu)) {
                return Ok(());
            }
            let what = format!("CPU {} runs vCPU {vcpu}, and other tables are loaded", cpu.index());
            return Err(object(Some(owner), what));
        };
        let serial = serial.unwrap_or(0);
        match self.left.insert((cpu, tag), (serial, vcpu)) {
            Some((of, before)) if of == serial && before != vcpu => {
                let what = format!(
                    "CPU {} runs vCPU {vcpu}, and may hold what vCPU {before} has left under VMID {}",
                    cpu.index(),
                    tag.0
                );
                Err(object(Some(owner), what))
            }
            _ => Ok(()),
        }
    }

    /// A space was there before, and is told of from now on. As [`Fleet::made`].
    pub fn there(&mut self, owner: u16, root: Pa, format: F, geometry: Geometry<F>, bbm: Bbm) {
        if self.spaces.contains_key(&owner) {
            return; // made since: all of it is known
        }
        self.count += 1;
        let newcomer = Newcomer { root, format, geometry, bbm, serial: self.count, loads: BTreeMap::new() };
        self.roots.insert(root, owner);
        self.gone.remove(&root);
        self.newcomers.insert(owner, newcomer);
    }

    /// An entry was `word` at some time since all that is done is known: it is so still, unless it was written since.
    pub fn known(&mut self, address: Pa, word: u64) {
        let table = self.tables.range(..=address).next_back();
        let inside = table.filter(|(table, (bytes, _))| address.get() - table.get() < *bytes);
        if !inside.is_some_and(|(_, (_, owner))| self.spaces.contains_key(owner)) {
            self.words.entry(address).or_insert(word);
        }
    }

    /// Of the space of `owner` no more is told: it is judged from here on. TLBs of `holders` may hold something of it under
    /// `tag`; nobody does where there is none.
    ///
    /// # Errors
    /// Its tables are no tree.
    pub fn told(&mut self, owner: u16, tag: Option<Vmid>, holders: CpuSet) -> Judged {
        let Some(newcomer) = self.newcomers.remove(&owner) else { return Ok(()) };
        let Newcomer { root, format, geometry, bbm, serial, loads } = newcomer;
        let mut judge = self.judge(format, geometry, bbm, root);
        let taken: Vec<Pa> =
            self.tables.iter().filter(|(_, (_, of))| *of == owner).map(|(table, _)| *table).collect();
        let adopted = judge.adopt(root, &self.words, &taken);
        let tables = adopted.map_err(|violation| Objection { violation, space: Some(owner), entry: None })?;
        for (table, bytes) in tables {
            self.tables.insert(table, (bytes, owner));
        }
        let its: Vec<_> =
            self.tables.iter().filter(|(_, (_, of))| *of == owner).map(|(t, (b, _))| (*t, *b)).collect();
        its.into_iter().for_each(|(table, bytes)| self.forget_words(table, bytes));
        let mut member = Member { judge, root, serial, tag };
        if let Some(tag) = tag {
            let meanwhile = loads.get(&tag).copied().unwrap_or(CpuSet::EMPTY);
            let holders = CpuSet::from_bits(holders.bits() | meanwhile.bits());
            match &mut self.visits {
                Some(visits) => holders.iter().for_each(|cpu| visits.hold(cpu, tag, serial)),
                None => {
                    self.tags.insert(tag, Tagged { serial, owner, holders });
                }
            }
            member.judge.hold(Some(tag), holders);
        }
        self.spaces.insert(owner, member);
        Ok(())
    }

    /// Something else was done, on every space.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn all(&mut self, effect: Effect) -> Judged {
        for (&owner, member) in &mut self.spaces {
            step(owner, member, effect, &mut self.visits)?;
        }
        Ok(())
    }

    fn judge(&self, format: F, geometry: Geometry<F>, bbm: Bbm, root: Pa) -> Judge<F> {
        let judge = Judge::new(format, geometry, bbm, root).entered_by_nobody();
        if self.visits.is_some() { judge.with_exits() } else { judge }
    }
}

fn step<F: Format>(
    owner: u16,
    member: &mut Member<F>,
    effect: Effect,
    visits: &mut Option<Visits>,
) -> Judged {
    let judged = member.judge.step(effect);
    if let Some(visits) = visits {
        visits.owe(member.serial, member.judge.take_debts());
    }
    judged.map_err(|violation| {
        let entry = member.judge.blamed().map(|(table, index)| table.wrapping_add(8 * index as u64));
        Objection { violation, space: Some(owner), entry }
    })
}

fn names(cpus: CpuSet) -> String {
    cpus.iter().map(|cpu| format!("CPU {}", cpu.index())).collect::<Vec<_>>().join(", ")
}
