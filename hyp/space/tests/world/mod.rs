//! A space before the adversary: its guests run, and its CPUs do to it whatever can be done to a space, all at once.
//!
//! One run is a row of lives on one machine. In each a space comes into being, is worked on, and ends, while its frames are
//! perhaps pinned still; the next one gets the same memory. What is true of the memory is known to the adversary from what is
//! done to tables and frames; what operations promise is told to it here.
//!
//! Neighbours: `model`, the adversary; the soak and the tests, which say what is run.

mod device;
mod errands;
mod ram;
mod sharing;
mod worker;

use device::Device;
use frames::Owner;
use model::{Actor, Breach, Errand, Failure, Field, Gives, Ground, Held, Plan, Recorded, Report, Tags};
pub(crate) use ram::Caches;
use ram::{BASE, Hands, Ram};
use sharing::Loans;
use space::{LogCursor, Pin, Region, Space, Tag, VmidBits, Vmids};
use stage2::{Format, Geometry, Iommu, Quiescence, Section};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use types::{CpuId, FRAME_SIZE, Ipa, Pa, Range, Vmid};
use worker::Worker;

/// What is run besides what a [`Plan`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Bytes of RAM.
    pub(crate) ram: u64,
    /// How tags are had.
    pub(crate) tagging: Tagging,
    /// Whether memory may run out.
    pub(crate) memory: Memory,
    /// What guests' accesses do to what caches hold.
    pub(crate) caches: Caches,
}

/// How the space's tag comes about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tagging {
    /// It has one.
    Fixed,
    /// It shares few with many.
    Shared,
}

/// How much memory there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    /// Enough for everything at once.
    Enough,
    /// Less: operations may say so.
    #[allow(dead_code, reason = "for the soak")]
    Scarce,
}

/// A pin that has outlived its space, or will: what the adversary knows it as, and whose it was.
type LeftPin = (Pin, Vec<Held>, Owner);

/// What everybody has in common in one run.
pub(crate) struct World<F: Format> {
    ground: Ground<F>,
    ram: Arc<Ram>,
    field: Field,
    shape: Shape,
    operations: u64,
    vmids: Vmids,
    /// Pins that have outlived their space.
    left: Mutex<Vec<LeftPin>>,
    /// What is lent to the neighbour.
    loans: Loans,
    /// What is borrowed from it, and where, if anywhere.
    borrowed: Loans,
    borrows: Option<Range>,
}

/// The tag of a space that shares tags with others.
struct SharedTag<'s> {
    vmids: &'s Vmids,
    tag: &'s Tag,
}

impl Tags for SharedTag<'_> {
    fn borrow(&self, cpu: CpuId) -> Option<Vmid> {
        self.vmids.borrow_for(cpu, self.tag)
    }

    fn give_back(&self, cpu: CpuId) {
        self.vmids.return_borrowed(cpu);
    }
}

/// The tag of a space that ends: nobody takes it over meanwhile.
struct LastTag(Option<Vmid>);

impl Tags for LastTag {
    fn borrow(&self, _: CpuId) -> Option<Vmid> {
        self.0
    }

    fn give_back(&self, _: CpuId) {}
}

/// Runs `plan` on spaces of `format` and `geometry`.
pub(crate) fn stress<F: Format>(format: F, geometry: Geometry<F>, plan: &Plan, shape: Shape) -> Report {
    let ram = Arc::new(Ram::new(shape.ram, shape.caches));
    let field = Field::of(&geometry, plan, &worker::ERRANDS, &worker::RARE);
    let ground = Ground::new(format, geometry, plan, field.hot.clone(), ram.clone(), (BASE, ram.bytes()));
    let borrows = sharing::borrows::<F>(&field, plan);
    let world = World {
        ground,
        ram,
        field,
        shape,
        operations: plan.operations,
        vmids: Vmids::new(VmidBits::Eight),
        left: Mutex::default(),
        loans: Loans::default(),
        borrowed: Loans::default(),
        borrows,
    };
    let before = world.ram.machine.stats();
    let mut failure: Option<Failure> = None;
    for life in 0..plan.lives {
        world.live(format, geometry, plan, life);
        failure = world.ground.failure();
        if failure.is_some() {
            break;
        }
    }
    if failure.is_none() {
        world.ground.alone(None, |actor| {
            for (pin, held, _) in std::mem::take(&mut *world.left()) {
                for held in held {
                    actor.lets_go(held);
                }
                pin.release(&world.ram.machine);
            }
            world.ram.machine.drain_kept();
            let after = world.ram.machine.stats();
            if after != before {
                let what = format!("{after:?} is not {before:?}: not all has come back");
                actor.accuse(Breach::Leak, what);
            }
        });
        failure = world.ground.failure();
    }
    let coverage = world.ground.coverage();
    let operations = world.ground.operations();
    Report { failure, steps: world.ground.steps(), operations, coverage }
}

impl<F: Format> World<F> {
    fn left(&self) -> std::sync::MutexGuard<'_, Vec<LeftPin>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the first CPU's hands.
    fn hands(&self) -> Hands<'_> {
        Hands { id: CpuId::BOOT, ram: &self.ram }
    }

    /// From a space's beginning to its end.
    fn live(&self, format: F, geometry: Geometry<F>, plan: &Plan, life: u64) {
        self.ground.guarded(|| {
            let owner = Owner(1 + life as u16);
            self.ram.belongs_to(owner);
            let neighbour = self.neighbour(format, geometry, plan);
            let space = Space::new(&self.ram.machine, owner, format, geometry, plan.bbm, 10_000);
            let device = plan.iommu.map(|capability| Device { ground: &self.ground, capability });
            let iommus: Vec<&dyn Iommu> = device.iter().map(|device| device as &dyn Iommu).collect();
            let space = space.expect("there is memory for a root").with_iommus(&self.vmids, &iommus);
            if plan.iommu.is_some() {
                self.ground.let_out();
            }
            self.ground.rooted(space.root(), &geometry);
            let sections = self.ground.sections();
            let from = self.borrows.map_or(self.field.range.start(), Range::end);
            let ram = rest_of(self.field.range, from).map(Region::ram);
            for region in ram.into_iter().chain(self.borrows.map(Region::borrowed)) {
                let added = space.add_region(&mut sections.enter(CpuId::BOOT), region);
                added.expect("there is no other region");
            }
            if self.ground.is_judged() {
                // The judge wants grace periods, also where nobody else has ever looked.
                let last = CpuId::new(types::MAX_CPUS - 1).unwrap_or(CpuId::BOOT);
                let _ = space.tree().open(&sections.enter(last));
            }
            {
                let tag = SharedTag { vmids: &self.vmids, tag: space.tag() };
                let tags: Option<&dyn Tags> = match self.shape.tagging {
                    Tagging::Fixed => None,
                    Tagging::Shared => Some(&tag),
                };
                if tags.is_some() {
                    self.ground.unload();
                }
                self.ground.together(tags, |actor| {
                    let seed = plan.seed ^ (life << 32 | (actor.id().index() as u64 + 1) << 8);
                    Worker::new(self, (&space, &neighbour), &sections, actor, seed).work();
                });
                self.ground.alone(tags, |actor| {
                    self.leave_neighbour(&space, neighbour, &sections, &actor);
                    self.rest(&space, &sections, &actor, plan);
                });
            }
            self.end(space, &sections);
        });
    }

    /// Nobody is at work: everything is compared with what is known.
    fn rest(&self, space: &Space<'_, F>, sections: &Recorded<F>, actor: &Actor<'_, F>, plan: &Plan) {
        let mut section = sections.enter(CpuId::BOOT);
        if !space.is_dying() {
            self.last_round(space, &mut section, actor);
            if plan.seed.is_multiple_of(2) && space.log_round(&section).is_some() {
                space.stop_log(&mut section).expect("it runs, and nobody else is at work");
            }
        }
        while space.drain(&mut section, &self.hands()) {
            section.pass();
        }
        let mapped = actor.rests(plan.cpus);
        let machine = &self.ram.machine;
        let left = self.frames_left();
        let mut frames = left.clone();
        for (page, pa) in mapped {
            let word = machine.record(pa).expect("a frame").load();
            if word.refs() != 1 || word.is_frozen() || (word.pins() > 0 && !left.contains(&pa)) {
                actor.accuse(Breach::FrameAstray, format!("{page:?} is at {pa:?}, whose word is {word:?}"));
            }
            frames.insert(pa);
        }
        let guest = machine.stats().guest;
        if guest != frames.len() as u64 {
            let what = format!("{guest} frames are guests', and {} are mapped or pinned", frames.len());
            actor.accuse(Breach::Leak, what);
        }
    }

    /// One last round of a log reports what nobody has reported yet.
    fn last_round<S: Section>(&self, space: &Space<'_, F>, section: &mut S, actor: &Actor<'_, F>) {
        let begun = actor.round_begins();
        actor.begins(Errand::Harvest, self.field.range, Gives::Nothing);
        let mut cursor: Option<LogCursor> = space.log_round(section);
        let ran = cursor.is_some();
        while let Some(at) = cursor {
            cursor = space
                .harvest_log(section, actor, &space::Leaves, at, &mut |range| actor.is_reported(range))
                .expect("nobody else is at work");
        }
        actor.ends(Errand::Harvest, self.field.range, Gives::Nothing);
        actor.round_ends(begun, ran.then_some(self.field.range));
    }

    /// The space ends: nobody runs it, and everybody may hold something under its tag.
    fn end(&self, space: Space<'_, F>, sections: &Recorded<F>) {
        let last = LastTag(match self.shape.tagging {
            Tagging::Fixed => Some(model::Judge::<F>::VMID),
            Tagging::Shared => self.vmids.borrow_for(CpuId::BOOT, space.tag()),
        });
        let mut space = Some(space);
        self.ground.alone(Some(&last), |actor| {
            actor.is_ending();
            let mut section = sections.enter(CpuId::BOOT);
            if let Some(space) = space.take() {
                space.destroy(&mut section, &self.hands(), &actor);
            }
            actor.has_ended();
            self.ram.machine.drain_kept();
            let stats = self.ram.machine.stats();
            let pinned = self.frames_left();
            if stats.tables != 0 || stats.guest != pinned.len() as u64 {
                let what = format!("{stats:?} after a space's end, and {} frames are pinned", pinned.len());
                actor.accuse(Breach::Leak, what);
            }
        });
        self.vmids.return_borrowed(CpuId::BOOT);
    }

    /// Returns the frames whose pins outlive something.
    fn frames_left(&self) -> BTreeSet<Pa> {
        let frames = |pin: &Pin| {
            let first = pin.pa();
            (0..pin.bytes()).step_by(FRAME_SIZE as usize).map(move |at| first.wrapping_add(at))
        };
        self.left().iter().flat_map(|(pin, ..)| frames(pin)).collect()
    }
}

/// The part of `range` from `from` on.
fn rest_of(range: Range, from: Ipa) -> Option<Range> {
    Range::new(from, range.end()).ok().filter(|rest| !rest.is_empty())
}
