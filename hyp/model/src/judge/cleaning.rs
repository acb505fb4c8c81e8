//! What an entry or a table still needs before no TLB can know it: the automaton at the level of instructions.
//!
//! ```text
//! changed ─(DSB of each writer)→ visible ─(stage-2 TLBI that counts)→ issued ─(DSB ISH there)→ stage 2 gone
//!         ─(VMALLE1IS, anywhere)→ issued ─(DSB ISH there)→ clean
//! ```
//!
//! Several CPUs may be at it at once, each at another point, and one may go on where another has ended: so there is a
//! set of such points, and the first that arrives cleans. An instruction that does not count is kept with the reason:
//! the story of an entry is what the judge's objections are made of.

use crate::{Op, Reach, Tlbi};
use stage2::Class;
use std::fmt;
use types::{CpuId, CpuSet, Height, Range, Vmid};

/// The most that is kept of a story.
const STORY: usize = 12;

/// How far one line of cleaning has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Point {
    /// Stage-2 entries are being invalidated by this CPU.
    Stage2(CpuId),
    /// Stage-2 entries are gone.
    Stage2Gone,
    /// Combined entries, too, are being invalidated by this CPU.
    Combined(CpuId),
}

/// Why an instruction does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doubt {
    /// It acts on the hypervisor's own translations.
    OtherRegime,
    OtherTag(Vmid),
    /// A writer has not had a DSB since its write.
    NotVisible(CpuSet),
    /// Part of what may be cached is outside it, and of what this CPU invalidated before.
    TooShort,
    /// It is for leaves of another height, or heights are mixed or pending.
    Hint(Height),
    /// It spares walk caches.
    LastLevel,
    /// Other CPUs may hold it.
    ThisCpuOnly,
    /// Stage-2 entries are not gone: a walk could combine one again.
    TooEarly,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Happened {
    Broken(CpuId),
    Weakened(CpuId),
    Visible,
    Counts(CpuId, Op),
    Ignored(CpuId, Op, Doubt),
    Waited(CpuId, Reach),
}

/// What invalidation is needed, and how far it is.
#[derive(Clone, Debug)]
pub(super) struct Cleaning {
    /// What has to go.
    pub(super) class: Class,
    /// The height of the leaf that TLBs may hold, where a hint would not be wrong.
    pub(super) hint: Option<Height>,
    /// Whose writes table walkers may not see yet.
    unseen: CpuSet,
    points: Vec<Point>,
    /// What was invalidated in pieces, and by whom.
    pieces: Vec<(CpuId, Range)>,
    /// In the style of interrupts: the CPUs in a guest that may hold it.
    pub(super) holders: CpuSet,
    /// The CPUs that may hold it, from when it is visible to walkers on, where that is known: others come later, and walk
    /// what is there then.
    known: Option<CpuSet>,
    /// Those that were in the middle of forgetting everything when it became visible to walkers.
    late: CpuSet,
    is_clean: bool,
    /// Who changed it last.
    pub(super) by: CpuId,
    story: Vec<Happened>,
}

impl Cleaning {
    /// Of something that was taken away, or weakened, by `cpu`.
    pub(super) fn new(class: Class, hint: Option<Height>, cpu: CpuId, broken: Fate) -> Self {
        let mut cleaning = Self {
            class,
            hint,
            unseen: CpuSet::EMPTY.with(cpu),
            points: Vec::new(),
            pieces: Vec::new(),
            holders: CpuSet::EMPTY,
            known: None,
            late: CpuSet::EMPTY,
            is_clean: false,
            by: cpu,
            story: Vec::new(),
        };
        cleaning.tell(broken.happened(cpu));
        cleaning
    }

    /// Of something that was not written: the end of a whole tree.
    pub(super) fn of_everything() -> Self {
        Self {
            class: Class::Tables,
            hint: None,
            unseen: CpuSet::EMPTY,
            points: Vec::new(),
            pieces: Vec::new(),
            holders: CpuSet::EMPTY,
            known: None,
            late: CpuSet::EMPTY,
            is_clean: false,
            by: CpuId::BOOT,
            story: Vec::new(),
        }
    }

    /// The same entry was changed once more: what was done so far does not count.
    pub(super) fn again(&mut self, class: Class, hint: Option<Height>, cpu: CpuId, broken: Fate) {
        self.class = self.class.max(class);
        // Where something was pending and is not any more, what had another size is gone.
        self.hint = hint;
        // It is one word: who sees the last write sees no earlier one.
        self.unseen = CpuSet::EMPTY.with(cpu);
        self.points.clear();
        self.pieces.clear();
        self.known = None;
        self.by = cpu;
        self.is_clean = false;
        self.tell(broken.happened(cpu));
    }

    pub(super) fn is_clean(&self) -> bool {
        self.is_clean
    }

    fn tell(&mut self, happened: Happened) {
        if self.story.len() == STORY {
            self.story.remove(1);
        }
        self.story.push(happened);
    }

    /// A TLB invalidation was issued. `span`: what may be cached; `None` for all of the tag. `entered`: the CPUs that may
    /// hold anything of the space now, where that is known.
    pub(super) fn issued(
        &mut self,
        cpu: CpuId,
        tlbi: &Tlbi,
        ours: Vmid,
        span: Option<Range>,
        entered: Option<CpuSet>,
    ) {
        let alone = self.alone(cpu, entered);
        if let Some(doubt) = self.doubt(cpu, tlbi, ours, span, alone) {
            self.tell(Happened::Ignored(cpu, tlbi.op, doubt));
            return;
        }
        let point = if tlbi.op.takes_combined() { Point::Combined(cpu) } else { Point::Stage2(cpu) };
        if !self.points.contains(&point) {
            self.points.push(point);
        }
        self.tell(Happened::Counts(cpu, tlbi.op));
    }

    fn doubt(
        &mut self,
        cpu: CpuId,
        tlbi: &Tlbi,
        ours: Vmid,
        span: Option<Range>,
        alone: Alone,
    ) -> Option<Doubt> {
        let op = tlbi.op;
        if !op.takes_stage2() && !op.takes_combined() {
            return Some(Doubt::OtherRegime);
        }
        if tlbi.vmid != ours && !op.is_for_every_tag() {
            return Some(Doubt::OtherTag(tlbi.vmid));
        }
        if !op.is_broadcast() && alone == Alone::No {
            return Some(Doubt::ThisCpuOnly);
        }
        if !op.takes_stage2() {
            let gone = self.points.contains(&Point::Stage2Gone);
            return (!gone).then_some(Doubt::TooEarly);
        }
        if !self.unseen.is_empty() {
            return Some(Doubt::NotVisible(self.unseen));
        }
        if op.takes_everything() {
            return None;
        }
        let (Some(range), Some(span)) = (tlbi.range, span) else { return Some(Doubt::TooShort) };
        if !range.overlaps(span) {
            return Some(Doubt::TooShort);
        }
        if let Some(hint) = tlbi.hint.filter(|_| self.hint != tlbi.hint) {
            return Some(Doubt::Hint(hint));
        }
        // Without a hint the last-level form removes leaves of any height, and nothing else.
        if op.is_last_level() && self.class == Class::Tables {
            return Some(Doubt::LastLevel);
        }
        // One address of a leaf removes the leaf; of what is mixed, every address is needed.
        if self.hint.is_none() && !self.piece(cpu, range, span) {
            return Some(Doubt::TooShort);
        }
        None
    }

    /// Adds a piece, and tells whether the pieces that `cpu` has invalidated cover `span`.
    fn piece(&mut self, cpu: CpuId, range: Range, span: Range) -> bool {
        if range.covers(span) {
            return true;
        }
        self.pieces.push((cpu, range));
        let mut mine: Vec<Range> = self.pieces.iter().filter(|(by, _)| *by == cpu).map(|(_, r)| *r).collect();
        mine.sort_by_key(|range| range.start());
        let mut at = span.start();
        for piece in mine {
            if piece.start() <= at {
                at = at.max(piece.end());
            }
        }
        at >= span.end()
    }

    /// Tells whether no other CPU than `cpu` can hold it.
    fn alone(&self, cpu: CpuId, entered: Option<CpuSet>) -> Alone {
        match self.known.or(entered) {
            Some(holders) if holders.without(cpu).is_empty() => Alone::Yes,
            _ => Alone::No,
        }
    }

    /// Every TLB is empty of the space, and no CPU can walk its tables: what is visible is all that a later one finds.
    pub(super) fn forgotten(&mut self) {
        self.is_clean |= self.unseen.is_empty();
    }

    /// A barrier was passed. `entered` as for [`Cleaning::issued`]; `emptying` are in the middle of forgetting everything.
    pub(super) fn waited(&mut self, cpu: CpuId, reach: Reach, entered: Option<CpuSet>, emptying: CpuSet) {
        if self.is_clean {
            return;
        }
        if reach >= Reach::Ishst && self.unseen.contains(cpu) {
            self.unseen = self.unseen.without(cpu);
            if self.unseen.is_empty() {
                self.tell(Happened::Visible);
                (self.known, self.late) = (entered, emptying);
                if entered.is_some_and(CpuSet::is_empty) {
                    self.is_clean = true;
                    return;
                }
            }
        }
        let alone = self.alone(cpu, entered);
        let waits_for_maintenance = reach >= Reach::Ish || (reach == Reach::Nsh && alone == Alone::Yes);
        if !waits_for_maintenance {
            return;
        }
        let mut moved = false;
        for point in &mut self.points {
            match *point {
                Point::Stage2(by) if by == cpu => (*point, moved) = (Point::Stage2Gone, true),
                Point::Combined(by) if by == cpu => (self.is_clean, moved) = (true, true),
                _ => {}
            }
        }
        if moved {
            self.tell(Happened::Waited(cpu, reach));
        }
    }

    /// In the style of interrupts: `cpu` holds nothing of before any more, or cannot use it.
    pub(super) fn let_go(&mut self, cpu: CpuId) {
        self.holders = self.holders.without(cpu);
        if self.holders.is_empty() {
            self.is_clean = true;
        }
    }

    /// Where CPUs say when they run a guest: the CPUs that may hold it, where it is visible to walkers and none of them is
    /// `inside`; and those that had begun to forget before it was.
    pub(super) fn outside_alone(&self, inside: CpuSet) -> Option<(CpuSet, CpuSet)> {
        let known = self.known.filter(|_| self.unseen.is_empty())?;
        (known.bits() & inside.bits() == 0).then_some((known, self.late))
    }

    /// Likewise: `cpu` has forgotten what it held when it began to.
    pub(super) fn forgotten_by(&mut self, cpu: CpuId) {
        if self.late.contains(cpu) {
            self.late = self.late.without(cpu);
        } else if let Some(known) = self.known.as_mut().filter(|_| self.unseen.is_empty()) {
            *known = known.without(cpu);
            self.is_clean |= known.is_empty();
        }
    }

    /// Likewise, of a whole tree: who may hold it.
    pub(super) fn known_to(&mut self, holders: Option<CpuSet>) {
        self.known = holders;
    }

    /// In the style of interrupts: who may hold it. Nobody: clean at once.
    pub(super) fn held_by(&mut self, holders: CpuSet) {
        self.holders = CpuSet::from_bits(self.holders.bits() | holders.bits());
        self.is_clean = self.holders.is_empty();
    }
}

/// Whether no other CPU can hold anything of the space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Alone {
    Yes,
    No,
}

/// What was done to an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It is not valid any more.
    Broken,
    /// It is valid, and weaker or of another shape than TLBs may know it.
    Weakened,
}

impl Fate {
    fn happened(self, cpu: CpuId) -> Happened {
        match self {
            Self::Broken => Happened::Broken(cpu),
            Self::Weakened => Happened::Weakened(cpu),
        }
    }
}

fn name(cpu: CpuId) -> String {
    format!("CPU {}", cpu.index())
}

fn names(cpus: CpuSet) -> String {
    cpus.iter().map(name).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherRegime => f.write_str("it acts on EL2's own translations"),
            Self::OtherTag(vmid) => write!(f, "its VMID is {}", vmid.0),
            Self::NotVisible(cpus) => write!(f, "no DSB by {} since the write", names(*cpus)),
            Self::TooShort => f.write_str("its range does not cover the entry"),
            Self::Hint(height) => write!(f, "its level hint is for height {}", height.get()),
            Self::LastLevel => f.write_str("the last-level form leaves walk caches alone"),
            Self::ThisCpuOnly => f.write_str("other CPUs may hold the entry"),
            Self::TooEarly => f.write_str("stage-2 entries may be there still: no DSB between"),
        }
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(cpu) => write!(f, "broken by {}", name(*cpu)),
            Self::Weakened(cpu) => write!(f, "weakened by {}", name(*cpu)),
            Self::Visible => f.write_str("visible to walkers"),
            Self::Counts(cpu, op) => write!(f, "{op:?} on {}", name(*cpu)),
            Self::Ignored(cpu, op, doubt) => {
                write!(f, "{op:?} on {} does not count: {doubt}", name(*cpu))
            }
            Self::Waited(cpu, reach) => write!(f, "DSB {reach:?} on {}", name(*cpu)),
        }
    }
}

impl fmt::Display for Cleaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owes {:?}", self.class)?;
        for happened in &self.story {
            write!(f, "; {happened}")?;
        }
        if !self.unseen.is_empty() {
            write!(f, "; no DSB by {} yet", names(self.unseen))?;
        }
        if !self.holders.is_empty() {
            write!(f, "; {} in a guest with it", names(self.holders))?;
        }
        Ok(())
    }
}
