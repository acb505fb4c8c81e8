//! [`Cpu`]: one CPU of the adversary, as the library sees it (how it invalidates) and as a guest's host (how it enters and
//! leaves).

use super::breach::Breach;
use super::machine::{Adversary, pass};
use super::walk::{Kind, Outcome};
use crate::{Effect, Instructions, Op, Reach, Sequence, Style, Tlbi};
use stage2::{Class, Format, Invalidate, Work};
use std::cell::RefCell;
use std::sync::Arc;
use types::sync::Point;
use types::{CpuId, Ipa, Vmid};

/// One way in which invalidation by interrupts can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lapse {
    /// Whoever asks others to leave their guest goes on before they have.
    NotWaited,
    /// Nothing is invalidated before a guest is entered again.
    NotInvalidated,
    /// A CPU says that it has left while its table walks are under way (AArch64).
    NoDsbAtExit,
}

impl Lapse {
    /// Every lapse.
    pub const ALL: [Self; 3] = [Self::NotWaited, Self::NotInvalidated, Self::NoDsbAtExit];
}

/// Where the tag of a space comes from, where it may change.
pub trait Tags: Sync {
    /// Returns the tag under which TLBs may hold translations of the space, and keeps it from becoming another space's
    /// until [`Tags::give_back`]. `None` where no TLB holds any.
    fn borrow(&self, cpu: CpuId) -> Option<Vmid>;

    /// Ends what [`Tags::borrow`] began.
    fn give_back(&self, cpu: CpuId);
}

/// One CPU.
pub(super) struct Cpu<'t, F: Format> {
    machine: Arc<Adversary<F>>,
    me: usize,
    style: Style,
    sequence: RefCell<Sequence>,
    lapse: Option<Lapse>,
    tags: Option<&'t dyn Tags>,
}

/// An invalidation under way: its number, and in the styles of interrupts who was asked to leave, after how many exits.
#[derive(Debug)]
pub struct Pending {
    id: usize,
    asked: Vec<(usize, u64)>,
}

impl<'t, F: Format> Cpu<'t, F> {
    pub(super) fn new(
        machine: Arc<Adversary<F>>,
        me: usize,
        sequence: Sequence,
        lapse: Option<Lapse>,
    ) -> Self {
        let style = machine.state().style;
        Self { machine, me, style, sequence: RefCell::new(sequence), lapse, tags: None }
    }

    /// The same, of a space whose tag comes from `tags`.
    pub(super) fn with_tags(self, tags: Option<&'t dyn Tags>) -> Self {
        Self { tags, ..self }
    }

    pub(super) fn id(&self) -> CpuId {
        CpuId::new(self.me).unwrap_or(CpuId::BOOT)
    }

    /// Carries out the instructions of an invalidation, under the tag that the space has when it comes to them: with the
    /// space's tables loaded, as they have to be.
    fn invalidate(&self, effects: Vec<Effect>) {
        let Some(tags) = self.tags else { return self.execute(effects) };
        for effect in effects {
            let Effect::Tlbi { cpu, tlbi } = effect else {
                self.execute(vec![effect]);
                continue;
            };
            let Some(vmid) = tags.borrow(cpu) else { continue };
            let before = self.loaded();
            if before != Some(vmid) {
                self.load(Some(vmid));
            }
            self.execute(vec![Effect::Tlbi { cpu, tlbi: Tlbi { vmid, ..tlbi } }]);
            if before != Some(vmid) {
                self.load(before);
            }
            tags.give_back(cpu);
        }
    }

    fn loaded(&self) -> Option<Vmid> {
        self.machine.state().observers[self.me].tag
    }

    /// Loads the space's tables under a tag, or others.
    pub(super) fn load(&self, tag: Option<Vmid>) {
        self.execute(vec![Effect::Dsb { cpu: self.id(), reach: Reach::Ish }]);
        self.machine.state().observers[self.me].tag = tag;
    }

    /// Empties the TLBs of all CPUs.
    pub(super) fn flush_all(&self) {
        let cpu = self.id();
        let tlbi = Tlbi { op: Op::Alle1is, vmid: Vmid(0), range: None, hint: None };
        self.execute(vec![
            Effect::Dsb { cpu, reach: Reach::Ishst },
            Effect::Tlbi { cpu, tlbi },
            Effect::Dsb { cpu, reach: Reach::Ish },
        ]);
    }

    /// Carries out instructions, one by one.
    fn execute(&self, effects: Vec<Effect>) {
        for effect in effects {
            pass(Point::Step);
            self.machine.check(|state, _| {
                match effect {
                    Effect::Dsb { reach, .. } => state.dsb(self.me, reach),
                    Effect::Tlbi { tlbi, .. } => state.tlbi(self.me, tlbi),
                    Effect::Invept { .. } => state.observers[self.me].cache.clear(),
                    _ => {}
                }
                let about = if let Effect::Tlbi { tlbi, .. } = effect { tlbi.range } else { None };
                state.effect(about, effect)
            });
        }
    }

    /// Asks every CPU that is in a guest to leave it.
    fn ask(&self, work: Work) -> Vec<(usize, u64)> {
        let mut asked = Vec::new();
        match work.class {
            Class::Publish => {}
            Class::Relax => self.forget_everything(),
            Class::Leaves | Class::Tables => self.machine.check(|state, _| {
                state.generation += 1;
                for who in 0..state.observers.len() {
                    let observer = &mut state.observers[who];
                    if who != self.me && observer.in_guest {
                        observer.is_kicked = true;
                        asked.push((who, observer.exits));
                        let to = CpuId::new(who).unwrap_or(CpuId::BOOT);
                        state.effect(None, Effect::Kick { from: self.id(), to })?;
                    }
                }
                Ok(())
            }),
        }
        asked
    }

    fn forget_everything(&self) {
        match self.style {
            Style::InterruptArm => {
                let tlbi =
                    Tlbi { op: Op::Vmalls12e1, vmid: crate::Judge::<F>::VMID, range: None, hint: None };
                let (cpu, reach) = (self.id(), Reach::Nsh);
                self.execute(vec![Effect::Tlbi { cpu, tlbi }, Effect::Dsb { cpu, reach }]);
            }
            _ => self.execute(vec![Effect::Invept { cpu: self.id() }]),
        }
    }

    /// Enters a guest.
    pub(super) fn enter(&self) {
        self.machine.check(|state, _| {
            state.observers[self.me].in_guest = true;
            Ok(())
        });
        loop {
            pass(Point::Step);
            let mut stale = None;
            self.machine.check(|state, _| {
                let generation = state.generation;
                let observer = &mut state.observers[self.me];
                let is_stale = observer.generation != generation && state.style != Style::Broadcast;
                if is_stale && self.lapse != Some(Lapse::NotInvalidated) {
                    stale = Some(generation);
                    return Ok(());
                }
                // Between the look and the entry nothing gets lost: who is interrupted here looks again.
                observer.generation = generation;
                observer.is_inside = true;
                let cpu = self.id();
                state.effect(None, Effect::Entered { cpu })
            });
            let Some(generation) = stale else { return };
            self.forget_everything();
            self.machine.state().observers[self.me].generation = generation;
        }
    }

    /// Leaves the guest.
    pub(super) fn leave(&self) {
        self.machine.check(|state, _| {
            let observer = &mut state.observers[self.me];
            observer.is_inside = false;
            observer.is_finishing = self.style == Style::InterruptArm;
            Ok(())
        });
        if self.style == Style::InterruptArm && self.lapse != Some(Lapse::NoDsbAtExit) {
            self.execute(vec![Effect::Dsb { cpu: self.id(), reach: Reach::Nsh }]);
        }
        pass(Point::Step);
        self.machine.check(|state, _| {
            let observer = &mut state.observers[self.me];
            observer.in_guest = false;
            observer.is_kicked = false;
            observer.exits += 1;
            state.effect(None, Effect::Left { cpu: self.id() })
        });
    }

    /// Runs the guest for at most `moments` accesses, until it faults or is asked to leave. Returns the fault.
    pub(super) fn run_guest(&self, moments: u64) -> Option<(Ipa, Kind)> {
        self.enter();
        let mut fault = None;
        for _ in 0..moments {
            pass(Point::Step);
            let mut is_kicked = false;
            self.machine.check(|state, arena| {
                is_kicked = state.observers[self.me].is_kicked;
                if is_kicked {
                    return Ok(());
                }
                let ipa = state.hot_address();
                let kind = if state.dice.one_in(2) { Kind::Store } else { Kind::Load };
                if state.access(arena, self.me, ipa, kind)? == Outcome::Faulted {
                    fault = Some((ipa, kind));
                }
                Ok(())
            });
            if is_kicked || fault.is_some() {
                break;
            }
        }
        self.leave();
        fault
    }

    /// Says that something is wrong.
    pub(super) fn accuse(&self, breach: Breach, what: String) {
        self.machine.fail(breach, what, Vec::new());
    }
}

impl<F: Format> Invalidate for Cpu<'_, F> {
    type Pending = Pending;

    fn begin(&self, work: Work) -> Pending {
        let mut id = 0;
        self.machine.check(|state, _| {
            id = state.now as usize;
            let stage2::Scope::Range { range, .. } = work.scope else {
                return state.effect(None, Effect::Begin { work, id });
            };
            state.effect(Some(range), Effect::Begin { work, id })
        });
        if self.style == Style::Broadcast {
            let effects = self.sequence.borrow_mut().begin(self.id(), work, id);
            self.invalidate(effects);
            return Pending { id, asked: Vec::new() };
        }
        let cpu = self.id();
        self.execute(vec![Effect::Dsb { cpu, reach: Reach::Ishst }]);
        Pending { id, asked: self.ask(work) }
    }

    fn complete(&self, pending: Pending) {
        if self.style == Style::Broadcast {
            let effects = self.sequence.borrow_mut().complete(self.id(), pending.id);
            self.invalidate(effects);
        }
        for (who, exits) in pending.asked {
            while self.lapse != Some(Lapse::NotWaited) && {
                let state = self.machine.state();
                state.observers[who].exits == exits && state.observers[who].in_guest
            } {
                pass(Point::Spin);
            }
        }
        let id = pending.id;
        self.machine.check(|state, _| state.effect(None, Effect::Complete { id }));
    }
}
