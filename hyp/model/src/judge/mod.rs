//! The judge: reads a list of [`Effect`]s and says which rule it breaks, if any.
//!
//! One automaton for each entry that the hardware can reach:
//!
//! ```text
//! Clean ──(valid word)──▶ Live ──(taken away)──▶ Broken ──(its Cleaning is complete)──▶ Clean
//!                          ▲├──(weakened)──▶ Weak ──(the same)──▶ Live
//!                          └┴──(exactly what was there is put back)── Broken
//! ```
//!
//! with the instructions between the two in [`cleaning`], and one for each table: taken → linked → unlinked →
//! (invalidated, and a grace period) → given back, in [`table`]; and one for each page of guests' memory: mapped → out of
//! reach → cleaned → given back, in [`memory`]. What may become what is in [`entry`]. The rules are
//! written from the manual and the protocol, not from the library: `Format::decode` is all that is shared.

mod cleaning;
mod entry;
mod exits;
mod machine;
mod memory;
mod table;
mod visits;

use crate::{Effect, Reach, Tlbi};
use cleaning::Cleaning;
use exits::Debts;
pub use machine::{Fleet, Objection};
use memory::Memory;
use stage2::{Bbm, Format, Geometry, span};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use types::{CpuId, CpuSet, Height, Ipa, Pa, Range, Vmid};

/// What the rules say against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! require {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(crate::judge::Violation(format!($($message)*)));
        }
    };
}
use require;

/// How CPUs are made to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Instructions that act on every CPU.
    Broadcast,
    /// Each CPU leaves the guest, and invalidates its own before it enters again (INVEPT).
    Interrupt,
    /// The same on AArch64, where table walks go on behind an exit until a DSB.
    InterruptArm,
}

/// An entry that TLBs may know better than the tables.
#[derive(Clone, Debug)]
struct Unclean {
    cleaning: Cleaning,
    /// What the entry was, where it is not valid any more; `None` where it is weaker than it was.
    broken: Option<u64>,
    /// What it owed before it was broken.
    before: Option<Box<Unclean>>,
}

/// Where a table hangs, or hung.
#[derive(Clone, Copy, Debug)]
struct Spot {
    ipa: Ipa,
    height: Height,
    parent: Option<(Pa, usize)>,
}

/// What an unlinked table waits for.
#[derive(Clone, Debug)]
struct Unlinked {
    at: Spot,
    span: Option<Range>,
    cleaning: Cleaning,
    graces: BTreeSet<usize>,
    is_quiescent: bool,
}

/// The state of one tree.
#[derive(Debug)]
pub struct Judge<F> {
    format: F,
    geometry: Geometry<F>,
    bbm: Bbm,
    style: Style,
    vmid: Vmid,
    words: BTreeMap<Pa, BTreeMap<usize, u64>>,
    linked: BTreeMap<Pa, Spot>,
    unlinked: BTreeMap<Pa, Unlinked>,
    unclean: BTreeMap<(Pa, usize), Unclean>,
    /// What entries were before they were frozen, clean by now or not.
    frozen: BTreeMap<(Pa, usize), u64>,
    /// What tables that are still linked may be given back by: the end of the whole tree.
    end: Unlinked,
    /// CPUs that made absent entries valid and have not had a DSB since.
    unpublished: CpuSet,
    /// The CPUs that ever entered, where that is known.
    entered: Option<CpuSet>,
    /// Whether those who know say who may hold anything, whenever that changes.
    is_told: bool,
    /// The CPUs in a guest of the space.
    inside: CpuSet,
    /// Of the interrupt styles: CPUs that may hold something, ones that must invalidate before they enter, and ones
    /// that may have table walks under way.
    holding: CpuSet,
    indebted: CpuSet,
    walking: CpuSet,
    /// CPUs with an invalidation of everything, not waited for.
    emptying: CpuSet,
    /// Where CPUs say when they run a guest: what those owe that were found outside.
    debts: Cell<Debts>,
    /// Reachable entries that somebody owns, and who made them so, where that is known.
    owned: BTreeMap<(Pa, usize), Option<CpuId>>,
    /// Leaves of tables that are or were linked: their heights, where they lead, and the entries.
    leaves: BTreeSet<(Height, Pa, (Pa, usize))>,
    /// The entry that was objected to last.
    blamed: Cell<Option<(Pa, usize)>>,
    memory: Memory,
}

impl<F: Format> Judge<F> {
    /// The tag of the space that is judged, where nothing else is said.
    pub const VMID: Vmid = Vmid(1);

    /// Makes the judge of the tree with the root `root`, on CPUs that broadcast.
    pub fn new(format: F, geometry: Geometry<F>, bbm: Bbm, root: Pa) -> Self {
        let at = Spot { ipa: Ipa::new(0), height: geometry.top(), parent: None };
        Self {
            format,
            geometry,
            bbm,
            style: Style::Broadcast,
            vmid: Self::VMID,
            words: BTreeMap::from([(root, BTreeMap::new())]),
            linked: BTreeMap::from([(root, at)]),
            unlinked: BTreeMap::new(),
            unclean: BTreeMap::new(),
            frozen: BTreeMap::new(),
            end: Self::no_end(at),
            unpublished: CpuSet::EMPTY,
            entered: None,
            is_told: false,
            inside: CpuSet::EMPTY,
            holding: CpuSet::EMPTY,
            indebted: CpuSet::EMPTY,
            walking: CpuSet::EMPTY,
            emptying: CpuSet::EMPTY,
            debts: Cell::default(),
            owned: BTreeMap::new(),
            leaves: BTreeSet::new(),
            blamed: Cell::new(None),
            memory: Memory::default(),
        }
    }

    /// Of a tree whose end has not begun.
    fn no_end(at: Spot) -> Unlinked {
        Unlinked {
            at,
            span: None,
            cleaning: Cleaning::of_everything(),
            graces: BTreeSet::new(),
            is_quiescent: false,
        }
    }

    /// Says which CPUs' TLBs may hold anything of the space from now on, and under which tag: for who keeps track of the
    /// tags of a whole machine.
    pub(crate) fn hold(&mut self, tag: Option<Vmid>, holders: CpuSet) {
        if let Some(tag) = tag {
            self.vmid = tag;
        }
        self.entered = Some(holders);
        self.is_told = true;
        if holders.is_empty() {
            self.each_cleaning(|cleaning, _| cleaning.forgotten());
        } else {
            self.end.cleaning = Cleaning::of_everything();
        }
    }

    /// Returns the entry that was objected to last, by its table and index.
    pub fn blamed(&self) -> Option<(Pa, usize)> {
        self.blamed.get()
    }

    /// The same, in another style of invalidation.
    #[must_use]
    pub fn in_style(self, style: Style) -> Self {
        Self { style, ..self }
    }

    /// The same, of a space with the tag `vmid`.
    #[must_use]
    pub fn with_tag(self, vmid: Vmid) -> Self {
        Self { vmid, ..self }
    }

    /// The same, on a machine whose guests can go past the caches: no CPU forces their accesses to be cacheable (on AArch64
    /// FEAT_S2FWB does).
    #[must_use]
    pub fn with_guests_past_caches(self) -> Self {
        Self { memory: Memory::of_guests_past_caches(), ..self }
    }

    /// The same, where no CPU has entered a guest of the space so far: then it is known who may hold what.
    #[must_use]
    pub fn entered_by_nobody(self) -> Self {
        Self { entered: Some(CpuSet::EMPTY), ..self }
    }

    /// From now on a CPU takes part that can do no more than `bbm`.
    pub fn lower(&mut self, bbm: Bbm) {
        self.bbm = self.bbm.min(bbm);
    }

    /// Judges what was done next.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn judge(&mut self, effects: &[Effect]) -> Result<(), Violation> {
        for (n, &effect) in effects.iter().enumerate() {
            self.step(effect)
                .map_err(|Violation(what)| Violation(format!("effect {n}, {effect:x?}: {what}")))?;
        }
        Ok(())
    }

    /// Judges one thing that was done.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn step(&mut self, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Take { table, .. } => {
                self.words.insert(table, BTreeMap::new());
            }
            Effect::GiveBack { table } => return self.give_back(table),
            Effect::Write { cpu, table, index, old, new } => {
                return self.write(cpu, (table, index), old, new);
            }
            Effect::Dsb { cpu, reach } => self.dsb(cpu, reach),
            Effect::Tlbi { cpu, tlbi } => self.tlbi(cpu, &tlbi),
            Effect::Invept { cpu } => self.emptied(cpu),
            Effect::Entered { cpu } => return self.enter(cpu),
            Effect::Left { cpu } => return self.leave(cpu),
            Effect::Grace { id } => self.waiting().for_each(|table| {
                table.graces.insert(id);
            }),
            Effect::GraceOver { id } => {
                self.waiting().for_each(|table| table.is_quiescent |= table.graces.contains(&id));
            }
            Effect::Deferred { cpu, id } => self.waiting_of(cpu).for_each(|table| {
                table.graces.insert(id);
            }),
            Effect::Unread { cpu } => {
                let unwaited = self.waiting_of(cpu).filter(|table| table.graces.is_empty());
                unwaited.for_each(|table| table.is_quiescent = true);
            }
            Effect::Handed { range } => return self.handed(range),
            Effect::Dc { pa, bytes } => self.cleaned(pa, bytes),
            Effect::Freed { pa, bytes } => {
                self.may_be_free(pa, bytes)?;
                return self.freed(pa, bytes);
            }
            Effect::StepEnd => return self.step_end(None),
            Effect::Rests { cpu } => {
                self.step_end(Some(cpu))?;
                self.forget_settled(cpu);
            }
            // Each TLB invalidation says its tag; the others are for the reader.
            Effect::VmidSwitch { .. }
            | Effect::Isb { .. }
            | Effect::Kick { .. }
            | Effect::Begin { .. }
            | Effect::Complete { .. } => {}
        }
        Ok(())
    }

    fn dsb(&mut self, cpu: CpuId, reach: Reach) {
        let entered = self.entered;
        if reach >= Reach::Ishst {
            self.unpublished = self.unpublished.without(cpu);
        }
        if reach != Reach::Ishst {
            self.walking = self.walking.without(cpu);
            if self.emptying.contains(cpu) && !self.says_exits() {
                self.emptying = self.emptying.without(cpu);
                self.emptied(cpu);
            }
        }
        let emptying = self.emptying;
        self.each_cleaning(|cleaning, _| cleaning.waited(cpu, reach, entered, emptying));
    }

    fn tlbi(&mut self, cpu: CpuId, tlbi: &Tlbi) {
        let (entered, ours) = (self.entered, self.vmid);
        match self.style {
            Style::Broadcast => {
                self.each_cleaning(|cleaning, span| cleaning.issued(cpu, tlbi, ours, span, entered));
            }
            Style::InterruptArm
                if tlbi.op.takes_everything() && (tlbi.vmid == ours || tlbi.op.is_for_every_tag()) =>
            {
                self.emptying = self.emptying.with(cpu);
            }
            Style::Interrupt | Style::InterruptArm => {}
        }
    }

    /// Acts on everything that waits for an invalidation, with what may be cached of it; forgets what is clean.
    fn each_cleaning(&mut self, mut act: impl FnMut(&mut Cleaning, Option<Range>)) {
        let mut unclean = std::mem::take(&mut self.unclean);
        unclean.retain(|key, unclean| {
            let Some((range, _)) = self.place(*key) else { return false };
            act(&mut unclean.cleaning, Some(range));
            if let Some(before) = &mut unclean.before {
                act(&mut before.cleaning, Some(range));
            }
            !unclean.cleaning.is_clean()
        });
        self.unclean = unclean;
        for table in self.waiting() {
            act(&mut table.cleaning, table.span);
        }
    }

    /// This CPU holds nothing of what was so far.
    fn emptied(&mut self, cpu: CpuId) {
        self.indebted = self.indebted.without(cpu);
        self.holding = self.holding.without(cpu);
        if self.inside.contains(cpu) {
            self.holding = self.holding.with(cpu);
        }
        self.each_cleaning(|cleaning, _| {
            if cleaning.holders.contains(cpu) {
                cleaning.let_go(cpu);
            }
        });
    }

    fn enter(&mut self, cpu: CpuId) -> Result<(), Violation> {
        if let Some(entered) = &mut self.entered {
            *entered = entered.with(cpu);
        }
        self.inside = self.inside.with(cpu);
        self.holding = self.holding.with(cpu);
        self.walking = self.walking.with(cpu);
        require!(
            !self.indebted.contains(cpu),
            "CPU {} enters a guest with translations that were taken away while it was outside",
            cpu.index()
        );
        Ok(())
    }

    fn leave(&mut self, cpu: CpuId) -> Result<(), Violation> {
        self.inside = self.inside.without(cpu);
        require!(
            self.style != Style::InterruptArm || !self.walking.contains(cpu),
            "CPU {} says that it is outside with table walks under way: no DSB",
            cpu.index()
        );
        let mut owes = false;
        if self.style != Style::Broadcast {
            self.each_cleaning(|cleaning, _| {
                if cleaning.holders.contains(cpu) {
                    owes = true;
                    cleaning.let_go(cpu);
                }
            });
        }
        if owes {
            self.indebted = self.indebted.with(cpu);
        }
        Ok(())
    }

    /// Notes, in the interrupt styles, who may hold what has just been taken away.
    fn held(&mut self, cleaning: &mut Cleaning) {
        if self.style == Style::Broadcast || self.says_exits() {
            return;
        }
        cleaning.held_by(self.inside);
        for cpu in self.holding.iter().filter(|cpu| !self.inside.contains(*cpu)) {
            self.indebted = self.indebted.with(cpu);
        }
    }

    /// Returns what an entry of a table that is or was linked translates, and its height.
    fn place(&self, (table, index): (Pa, usize)) -> Option<(Range, Height)> {
        let Spot { ipa, height, .. } =
            *self.linked.get(&table).or_else(|| self.unlinked.get(&table).map(|table| &table.at))?;
        let start = ipa.wrapping_add(index as u64 * span::<F>(height));
        Some((Range::block_around(start, span::<F>(height)), height))
    }

    /// Returns the addresses of the first entry that a step may not end with, if there is one: for the story of a run.
    #[cfg(not(loom))]
    pub(crate) fn owed(&self) -> Option<Range> {
        let key = self.unclean.keys().find(|key| self.linked.contains_key(&key.0))?;
        self.place(*key).map(|(range, _)| range)
    }

    /// Returns the addresses of the entry that was objected to last, where that is known.
    #[cfg(not(loom))]
    pub(crate) fn blamed_range(&self) -> Option<Range> {
        self.place(self.blamed.get()?).map(|(range, _)| range)
    }

    /// Names an entry, and tells its story.
    fn story(&self, key: (Pa, usize)) -> String {
        self.blamed.set(Some(key));
        let place = self.place(key).map(|(range, height)| format!(" ({range:x?}, height {})", height.get()));
        let owed = self.unclean.get(&key).map_or_else(String::new, |unclean| unclean.cleaning.to_string());
        format!("entry {} of {:x?}{}: {owed}", key.1, key.0, place.unwrap_or_default())
    }
}
