//! Operations on real trees while other CPUs enter and leave the guest, with invalidation by interrupts: the judge reads
//! what was written, who was kicked, who left, who forgot and who entered, in order.

use model::{Effect, Instructions, Machine, Reach, Rig, Style, Tiny, range};
use stage2::{Attrs, Bbm, Class, Geometry, Interrupt, Mapping, Presence, Request, Why, Work};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use types::{Access, CpuId, CpuSet, Height, Ipa, Pa};

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 2 * PAGE;
const GUESTS: u64 = 3;

fn cpu(n: u64) -> CpuId {
    CpuId::new(n as usize).expect("few")
}

/// CPUs that enter and leave as the dice say; CPU 0 is the one that works on the tables.
#[derive(Debug)]
struct Crowd {
    style: Style,
    presence: Presence,
    inside: Cell<CpuSet>,
    dice: Cell<u64>,
    effects: RefCell<Vec<Effect>>,
    requests: BTreeMap<usize, Request>,
}

/// Whether CPUs enter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comers {
    None,
    Welcome,
}

/// One of them.
struct Core<'c>(&'c Crowd, CpuId);

impl Interrupt for Core<'_> {
    fn kick(&self, target: CpuId) {
        self.0.did(Effect::Kick { from: self.1, to: target });
    }

    fn forget(&self) {
        self.0.did(Effect::Invept { cpu: self.1 });
    }

    fn settle(&self) {
        if self.0.style == Style::InterruptArm {
            self.0.did(Effect::Dsb { cpu: self.1, reach: Reach::Nsh });
        }
    }
}

impl Crowd {
    fn new(style: Style, seed: u64) -> Self {
        Self {
            style,
            presence: Presence::new(),
            inside: Cell::new(CpuSet::EMPTY),
            dice: Cell::new(seed | 1),
            effects: RefCell::default(),
            requests: BTreeMap::new(),
        }
    }

    fn did(&self, effect: Effect) {
        self.effects.borrow_mut().push(effect);
    }

    fn roll(&self, n: u64) -> u64 {
        let mut x = self.dice.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.dice.set(x);
        x % n
    }

    fn enter(&self, cpu: CpuId) {
        self.presence.enter(cpu, &Core(self, cpu));
        self.did(Effect::Entered { cpu });
        self.inside.set(self.inside.get().with(cpu));
    }

    fn leave(&self, cpu: CpuId) {
        self.presence.leave(cpu, &Core(self, cpu));
        self.did(Effect::Left { cpu });
        self.inside.set(self.inside.get().without(cpu));
    }

    /// Some CPUs leave, and some enter.
    fn mingle(&self, comers: Comers) {
        for _ in 0..self.roll(4) {
            let cpu = cpu(1 + self.roll(GUESTS));
            if self.inside.get().contains(cpu) {
                self.leave(cpu);
            } else if comers == Comers::Welcome {
                self.enter(cpu);
            }
        }
    }
}

impl Instructions for Crowd {
    fn begin(&mut self, cpu: CpuId, work: Work, id: usize) -> Vec<Effect> {
        // Who comes between the write and the request is kicked out again. The judge does not let it come; the model
        // checker does.
        self.mingle(Comers::None);
        self.did(Effect::Dsb { cpu, reach: Reach::Ishst });
        if work.class > Class::Relax {
            let request = self.presence.request(cpu, &Core(self, cpu));
            assert_eq!(request.kicked(), self.inside.get(), "whoever is inside, and nobody else");
            self.requests.insert(id, request);
        }
        self.mingle(Comers::Welcome);
        self.effects.take()
    }

    fn complete(&mut self, _: CpuId, id: usize) -> Vec<Effect> {
        self.mingle(Comers::Welcome);
        if let Some(request) = self.requests.remove(&id) {
            // The kick gets through to those that have not left by themselves.
            request.kicked().iter().filter(|cpu| self.inside.get().contains(*cpu)).for_each(|cpu| {
                self.leave(cpu);
            });
            self.presence.wait(request);
        }
        self.mingle(Comers::Welcome);
        self.effects.take()
    }
}

fn exercise(style: Style, bbm: Bbm, seed: u64) {
    let machine = Machine::new(1 << 20);
    machine.set_instructions(Crowd::new(style, seed));
    let geometry = Geometry::new(Height::new(2), 15).expect("four blocks");
    let mut rig = Rig::new(&machine, Tiny, geometry, bbm).in_style(style);
    let all = range(0, 4 * BLOCK);
    let (pa, largest) = (Pa::new(0x10_0000), Height::new(1));
    for _ in 0..4 {
        rig.map(&Mapping { range: all, pa, attrs: Attrs::RAM, largest, why: Why::Alignment }).expect("free");
        rig.split(all.start(), Height::PAGE).expect("room");
        rig.protect(range(0, PAGE), Access::READ).expect("mapped");
        rig.unmap(range(0, PAGE)).expect("mapped");
        rig.unmap(range(BLOCK, BLOCK)).expect("mapped");
        rig.split(Ipa::new(2 * BLOCK), Height::PAGE).expect("room");
        rig.harvest(all);
        rig.collapse(Ipa::new(2 * BLOCK), Height::new(1)).expect("side by side");
        rig.unmap(all).expect("mapped");
        rig.prune(all);
    }
}

#[test]
fn every_translation_is_gone_from_every_cpu_when_a_change_is_complete() {
    for seed in 1..200 {
        for style in [Style::Interrupt, Style::InterruptArm] {
            for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2, Bbm::Level3] {
                exercise(style, bbm, seed);
            }
        }
    }
}

#[test]
fn who_was_never_in_the_guest_is_not_kicked_and_not_waited_for() {
    let crowd = Crowd::new(Style::Interrupt, 1);
    let request = crowd.presence.request(cpu(0), &Core(&crowd, cpu(0)));
    assert!(request.kicked().is_empty());
    crowd.presence.wait(request);
    assert!(crowd.presence.others(cpu(0)).is_empty());
    crowd.enter(cpu(2));
    assert_eq!(crowd.presence.others(cpu(0)), CpuSet::EMPTY.with(cpu(2)));
    assert!(crowd.presence.others(cpu(2)).is_empty(), "it knows of itself");
    crowd.leave(cpu(2));
    assert!(crowd.presence.request(cpu(0), &Core(&crowd, cpu(0))).kicked().is_empty(), "it is outside");
}

#[test]
fn who_comes_back_forgets_once_for_all_that_was_taken_away_and_again_when_told_to() {
    let crowd = Crowd::new(Style::Interrupt, 1);
    let invalidations = |crowd: &Crowd| {
        let done = crowd.effects.take();
        done.iter().filter(|effect| matches!(effect, Effect::Invept { .. })).count()
    };
    let visit = |crowd: &Crowd| {
        crowd.enter(cpu(1));
        crowd.leave(cpu(1));
        invalidations(crowd)
    };
    assert_eq!(visit(&crowd), 1, "a tag may have been another's");
    assert_eq!(visit(&crowd), 0);
    for _ in 0..3 {
        let request = crowd.presence.request(cpu(0), &Core(&crowd, cpu(0)));
        crowd.presence.wait(request);
    }
    assert_eq!((visit(&crowd), visit(&crowd)), (1, 0));
    crowd.presence.forget_at_entry(cpu(1));
    assert_eq!((visit(&crowd), visit(&crowd)), (1, 0));
}
