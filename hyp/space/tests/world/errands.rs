//! The errands of a CPU at work on a space: each says when it begins and ends, and what it has reached.

use super::rest_of;
use super::worker::{PINS, Worker};
use frames::{Hold, Order, Usage};
use model::{Breach, Errand, Gives, Held, Kind};
use space::{
    Collapsed, Contents, Granularity, IommuId, Leaves, LogCursor, MoveError, Outcome, Pin, PinError, Pins,
    Scattered, SpaceError, Tag,
};
use stage2::{Bbm, ChangeError, Entry, Format, Marks, Quiescence, Section, Why, span};
use types::{Access, Cause, Fault, FaultKind, Height, Ipa, Range};

/// How often an operation that finds an entry busy comes again.
const PATIENCE: u32 = 4;
/// How often something comes again that must come about.
pub(super) const FOR_EVER: u32 = 10_000;
/// How many steps a pin lasts, at most, that is not kept.
const BRIEFLY: u64 = 60;
/// Spaces that come between two runs of the one that matters.
const OTHERS: u32 = 90;

impl<F: Format> Worker<'_, F> {
    /// Resolves a fault of the guest.
    pub(super) fn fault(&mut self, ipa: Ipa, kind: Kind) {
        let page = self.page(ipa);
        let access = if kind == Kind::Store { Access::WRITE } else { Access::READ };
        self.begins(Errand::Fault, page);
        let result = {
            let section = self.sections.enter(self.actor.id());
            let found = self.space.tree().open(&section).translate(ipa).entry(self.space.tree().format());
            let kind = match found {
                Entry::Leaf(leaf) if !leaf.attrs.marks.contains(Marks::YOUNG) => FaultKind::AccessFlag,
                Entry::Leaf(_) => FaultKind::Permission,
                _ => FaultKind::Translation,
            };
            let fault = Fault { ipa, access, kind, cause: Cause::Data, height: Height::PAGE };
            self.space.fault(&section, &self.hands, &self.actor, &fault)
        };
        match result {
            Ok(Outcome::Outside) => self.actor.count("a fault met a removed region"),
            Ok(Outcome::Mapped | Outcome::Allowed | Outcome::AlreadyMapped) => self.actor.is_certain(page),
            Ok(Outcome::Busy | Outcome::Denied | Outcome::Noted(_)) => {}
            Err(error) => self.bear(error),
        }
        self.ends(Errand::Fault, page);
    }

    /// Puts memory behind a block ahead of its faults.
    pub(super) fn populate(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        self.begins(Errand::Fault, block);
        {
            let mut section = self.sections.enter(self.actor.id());
            if let Err(error) = self.space.populate(&mut section, &self.hands, &self.actor, block) {
                self.bear(error);
            }
        }
        self.ends(Errand::Fault, block);
    }

    /// Drives an operation of several steps over `range`: `step` does one and says how far it got.
    fn steps<S: Section>(
        &self,
        section: &mut S,
        range: Range,
        mut step: impl FnMut(&mut S, Range) -> Result<Ipa, SpaceError>,
        mut done: impl FnMut(Range),
    ) {
        let (mut at, mut busy) = (range.start(), 0);
        while let Some(rest) = rest_of(range, at) {
            match step(section, rest) {
                Ok(next) => {
                    if let Ok(part) = Range::new(at, next.min(range.end())) {
                        done(part);
                    }
                    busy += u32::from(next == at);
                    at = next;
                }
                Err(SpaceError::Busy { ipa }) => {
                    busy += 1;
                    // What it was busy at is tried again, and what is before is not done.
                    if ipa > at && range.contains(ipa) {
                        at = ipa;
                    }
                }
                Err(error) => return self.bear(error),
            }
            if busy == PATIENCE {
                return;
            }
            section.pass();
        }
    }

    /// Gives memory back.
    pub(super) fn zap(&mut self, range: Range) {
        let since = self.begins(Errand::Zap, range);
        let mut section = self.sections.enter(self.actor.id());
        self.steps(
            &mut section,
            range,
            |section, rest| self.space.discard(section, &self.hands, &self.actor, rest),
            |part| self.actor.is_gone(part, since),
        );
        drop(section);
        self.ends(Errand::Zap, range);
    }

    /// Takes the right to write from a range, or gives all rights.
    pub(super) fn protect(&mut self) {
        let range = self.some();
        let strict = self.dice.one_in(2);
        let (access, gives) = if strict { (Access::RX, Gives::Nothing) } else { (Access::RWX, Gives::Write) };
        let since = self.actor.begins(Errand::Protect, range, gives);
        let mut section = self.sections.enter(self.actor.id());
        let mut protect = self.space.start_protect(range, access);
        let mut at = range.start();
        for _ in 0..PATIENCE * 4 {
            match protect.step(&mut section, &self.actor) {
                Ok(done) => {
                    if let Some(part) = Range::new(at, *done).ok().filter(|_| strict) {
                        self.actor.is_strict(part, since);
                    }
                    at = *done;
                }
                Err(SpaceError::Busy { .. } | SpaceError::NoRegion { .. }) => {}
                Err(error) => {
                    self.bear(error);
                    break;
                }
            }
            if at >= range.end() {
                break;
            }
            section.pass();
        }
        drop(section);
        self.actor.ends(Errand::Protect, range, gives);
    }

    pub(super) fn split(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        self.begins(Errand::Split, block);
        {
            let section = self.sections.enter(self.actor.id());
            let view = self.space.tree().open(&section);
            match view.split(&self.actor, ipa, Height::PAGE, Why::Pin) {
                Ok(()) | Err(ChangeError::Busy { .. }) => {}
                Err(ChangeError::DeviceWouldFault { .. }) if self.space.is_shared() => {
                    self.actor.count("refused for a device");
                }
                Err(other) => self.actor.accuse(Breach::Leak, format!("{other:?} with a reserve")),
            }
        }
        self.ends(Errand::Split, block);
    }

    pub(super) fn collapse(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        self.begins(Errand::Collapse, block);
        let result = {
            let mut section = self.sections.enter(self.actor.id());
            let height = Height::new(1);
            self.space.collapse(
                &mut section,
                &self.hands,
                &self.actor,
                block.start(),
                height,
                Scattered::Gather,
            )
        };
        match result {
            Ok(Collapsed::InPlace) => self.actor.count("collapsed in place"),
            Ok(Collapsed::Moved) => self.actor.count("collapsed into another block"),
            Err(MoveError::Pinned { .. }) => self.actor.count("collapse refused by a pin"),
            Err(MoveError::Logging) => self.actor.count("collapse refused by a log"),
            Err(_) => {}
        }
        self.ends(Errand::Collapse, block);
    }

    pub(super) fn move_leaf(&mut self, ipa: Ipa) {
        let block = self.block(ipa);
        self.begins(Errand::Move, block);
        {
            let section = self.sections.enter(self.actor.id());
            let height = self.space.tree().open(&section).translate(ipa).height();
            let order = Order::of_bytes(span::<F>(height));
            let usage = Usage::Guest(self.space.owner());
            if let Some(Ok(run)) = order.map(|order| self.hands.ram.machine.allocate(order, usage)) {
                match self.space.move_leaf(&section, &self.hands, &self.actor, ipa, run) {
                    Ok(()) => self.actor.count("moved"),
                    Err(MoveError::Pinned { .. }) => self.actor.count("move refused by a pin"),
                    Err(_) => {}
                }
            }
        }
        self.ends(Errand::Move, block);
    }

    /// A round of the dirty log, if one runs: whatever it reports is known.
    pub(super) fn harvest(&mut self) {
        let all = self.world.field.range;
        self.begins(Errand::Harvest, all);
        {
            let mut section = self.sections.enter(self.actor.id());
            let (mut cursor, mut busy) = (self.space.log_round(&section), 0);
            while let Some(at) = cursor.filter(|_| busy < PATIENCE) {
                let begun = self.actor.round_begins();
                let result = self.space.harvest_log(&mut section, &self.actor, &Leaves, at, &mut |range| {
                    self.actor.is_reported(range);
                    self.actor.step();
                });
                let done = match result {
                    Ok(next) => {
                        cursor = next;
                        let to = next.map_or(all.end(), LogCursor::next);
                        Range::new(at.next(), to).ok()
                    }
                    Err(SpaceError::Busy { .. }) => {
                        busy += 1;
                        None
                    }
                    Err(error) => {
                        self.bear(error);
                        busy = PATIENCE;
                        None
                    }
                };
                self.actor.round_ends(begun, done);
                section.pass();
            }
        }
        self.ends(Errand::Harvest, all);
    }

    /// Begins a log of everything, or ends the one that runs.
    pub(super) fn log(&mut self) {
        let all = self.world.field.range;
        self.begins(Errand::Log, all);
        let granularity =
            *self.dice.pick(&[Granularity::AsMapped, Granularity::Pages, Granularity::PagesOnWrite]);
        {
            let mut section = self.sections.enter(self.actor.id());
            if self.space.log_round(&section).is_some() {
                if self.dice.one_in(3) {
                    self.actor.log_changes();
                    let _ = self.space.stop_log(&mut section);
                }
            } else {
                let change = self.actor.log_changes();
                let log = self.space.start_log(&mut section, &Leaves, all, granularity);
                let mut cursor = log.map_err(|error| self.bear(error)).ok();
                let begun = cursor.is_some();
                let mut busy = 0;
                while let Some(at) = cursor.filter(|_| busy < PATIENCE * 4) {
                    match self.space.arm_log(&mut section, &self.actor, at) {
                        Ok(next) => cursor = next,
                        Err(SpaceError::Busy { .. }) => busy += 1,
                        Err(error) => {
                            self.bear(error);
                            busy = u32::MAX;
                        }
                    }
                    section.pass();
                }
                if begun && cursor.is_none() {
                    self.actor.is_armed(change);
                    self.actor.count("a log was armed");
                }
            }
        }
        self.ends(Errand::Log, all);
    }

    pub(super) fn recover(&mut self) {
        let all = self.world.field.range;
        self.begins(Errand::Recover, all);
        let mut section = self.sections.enter(self.actor.id());
        self.steps(
            &mut section,
            all,
            |section, rest| Ok(self.space.recover(section, &self.actor, rest)?.next),
            |_| {},
        );
        drop(section);
        self.ends(Errand::Recover, all);
    }

    pub(super) fn age(&mut self) {
        let range = self.some();
        self.begins(Errand::Age, range);
        let mut section = self.sections.enter(self.actor.id());
        self.steps(
            &mut section,
            range,
            |section, rest| self.space.age(section, &self.actor, rest, &mut |_, _| {}),
            |_| {},
        );
        drop(section);
        self.ends(Errand::Age, range);
    }

    pub(super) fn prune(&mut self) {
        let range = self.world.field.range;
        if self.dice.one_in(2) {
            // So that there is something empty.
            self.zap(range);
        }
        self.begins(Errand::Prune, range);
        {
            let mut section = self.sections.enter(self.actor.id());
            let mut at = range.start();
            while let Some(rest) = rest_of(range, at) {
                match self.space.tree().prune(&mut section, &self.actor, rest) {
                    Ok(next) if next > at => at = next,
                    _ => break,
                }
            }
            self.space.drain(&mut section, &self.hands);
        }
        self.ends(Errand::Prune, range);
    }

    /// Pins a page or a block for a device.
    pub(super) fn pin(&mut self, ipa: Ipa) {
        self.let_go_of_pins(PINS - 1);
        let blocks = if self.world.field.is_focused { 2 } else { 3 };
        let range = if self.dice.one_in(blocks) { self.block(ipa) } else { self.page(ipa) };
        let (hold, kind) =
            if self.dice.one_in(3) { (Hold::Read, Kind::Load) } else { (Hold::Write, Kind::Store) };
        self.begins(Errand::Pin, range);
        let mut slots = [const { None }; 4];
        let mut pins = Pins::new(&mut slots);
        {
            let mut section = self.sections.enter(self.actor.id());
            if self.dice.one_in(2) {
                self.space.pin_fast(&section, range, hold, &mut pins);
            } else {
                let (hands, actor) = (&self.hands, &self.actor);
                match self.space.pin(&mut section, hands, actor, range, hold, &mut pins) {
                    Err(PinError::Busy { .. }) => self.actor.count("pin gave up"),
                    Err(PinError::NoMemory { ipa }) => self.bear(SpaceError::OutOfMemory { ipa }),
                    _ => {}
                }
            }
            while let Some(pin) = pins.pop() {
                let page = span::<F>(Height::PAGE);
                let held = (0..pin.bytes()).step_by(page as usize).map(|at| {
                    self.actor.has_pinned(pin.pa().wrapping_add(at), pin.ipa().wrapping_add(at), kind)
                });
                let held = held.collect();
                self.actor.count(if pin.bytes() > page { "pinned a block" } else { "pinned" });
                self.pins.push((pin, held));
            }
        }
        self.ends(Errand::Pin, range);
        if self.keeps == 0 {
            // Long enough for others to come to it.
            (0..self.dice.roll(BRIEFLY)).for_each(|_| self.actor.step());
        }
        self.let_go_of_pins(self.keeps);
    }

    /// Gives a pin back: as written, where the device has written.
    pub(super) fn unpin(&mut self, pin: Pin, held: Vec<Held>) {
        let range = pin.range();
        self.begins(Errand::Pin, range);
        let mut written = false;
        for held in held {
            written |= self.actor.lets_go(held);
        }
        let contents = if written || self.dice.one_in(4) { Contents::Written } else { Contents::Unchanged };
        if pin.is_wanted(&self.hands.ram.machine) {
            self.actor.count("a pinner was asked, and let go");
        }
        let section = self.sections.enter(self.actor.id());
        if let Err(pin) = self.space.unpin(&section, pin, contents) {
            self.actor.accuse(Breach::FrameAstray, format!("{pin:?} is not the space's"));
        }
        drop(section);
        self.ends(Errand::Pin, range);
    }

    /// Gives back a pin of a space that has ended.
    pub(super) fn let_go_of_what_is_left(&mut self) {
        if !self.dice.one_in(16) {
            return;
        }
        let left = {
            let mut left = self.world.left();
            let owner = self.space.owner();
            // Those of this space are its own business until it has ended.
            let old = left.iter().position(|(_, _, of)| *of != owner);
            old.map(|n| left.remove(n))
        };
        if let Some((pin, held, _)) = left {
            for held in held {
                self.actor.lets_go(held);
            }
            pin.release(&self.hands.ram.machine);
            self.actor.count("a pin outlived its space");
        }
    }

    /// Gives its pins back, or leaves some to outlive the space.
    pub(super) fn leave_pins(&mut self) {
        for (pin, held) in std::mem::take(&mut self.pins) {
            if self.dice.one_in(2) {
                self.world.left().push((pin, held, self.space.owner()));
            } else {
                self.unpin(pin, held);
            }
        }
    }

    /// Removes a region, gives its memory back, and adds it again.
    pub(super) fn region(&mut self, ipa: Ipa) {
        let mut section = self.sections.enter(self.actor.id());
        let Some(there) = self.space.region(&section, ipa) else { return };
        self.begins(Errand::Region, there.range);
        let removed = self.space.remove_region(&mut section, there.range.start()).ok();
        if let Some(region) = removed {
            self.actor.is_outside(region.range);
            self.actor.count("a region was removed");
        }
        drop(section);
        self.ends(Errand::Region, there.range);
        let Some(region) = removed else { return };
        if self.dice.one_in(2) {
            self.zap(region.range);
        }
        let mut section = self.sections.enter(self.actor.id());
        self.actor.begins(Errand::Region, region.range, Gives::Write);
        self.actor.is_inside(region.range);
        for _ in 0..FOR_EVER {
            match self.space.add_region(&mut section, region) {
                Err(SpaceError::Busy { .. }) => {}
                Ok(()) => break,
                Err(error) => {
                    self.actor.accuse(Breach::FrameAstray, format!("{region:?} is not added: {error}"));
                }
            }
            section.pass();
            types::sync::spin_loop();
        }
        drop(section);
        self.actor.ends(Errand::Region, region.range, Gives::Write);
    }

    /// Lets a CPU in that can do less.
    pub(super) fn admit(&mut self) {
        let all = self.world.field.range;
        self.begins(Errand::Admit, all);
        let newcomer = Bbm::from_number(self.dice.roll(4) as u8);
        let mut section = self.sections.enter(self.actor.id());
        self.space.admit(&mut section, newcomer);
        drop(section);
        self.actor.is_lowered(newcomer);
        self.ends(Errand::Admit, all);
    }

    /// Lets the device's IOMMU in, if there is one, or out again.
    pub(super) fn attach(&mut self) {
        const DEVICE: IommuId = IommuId::new(0).expect("it is the first");
        let all = self.world.field.range;
        self.begins(Errand::Attach, all);
        let mut section = self.sections.enter(self.actor.id());
        let (space, actor) = (self.space, &self.actor);
        let done = if space.is_shared() && self.dice.one_in(2) {
            space.detach(DEVICE).map(|()| "an IOMMU was let out")
        } else {
            space.attach(&mut section, actor, DEVICE, || actor.flush_all()).map(|()| "an IOMMU was let in")
        };
        drop(section);
        match done {
            Ok(what) => self.actor.count(what),
            Err(error) => self.bear(error),
        }
        self.ends(Errand::Attach, all);
    }

    /// Runs other spaces, until their tags run out sooner or later.
    pub(super) fn roll(&mut self) {
        if self.world.shape.tagging == super::Tagging::Fixed {
            return;
        }
        self.stop_running();
        let all = self.world.field.range;
        self.begins(Errand::Roll, all);
        let (vmids, actor) = (&self.world.vmids, &self.actor);
        let before = vmids.rollovers();
        for n in 0..OTHERS {
            let tag = Tag::new();
            let vmid = vmids.activate(actor.id(), &tag, || actor.flush_all());
            if n + 4 > OTHERS || vmids.rollovers() != before {
                (0..3).for_each(|_| actor.run_other(vmid));
            }
            vmids.deactivate(actor.id());
            if vmids.rollovers() != before {
                actor.count("tags began anew");
                break;
            }
        }
        self.ends(Errand::Roll, all);
    }

    /// Ends the space, as far as that is done while others use it.
    pub(super) fn condemn(&mut self) {
        if self.world.operations < 8 || !self.dice.one_in(4) {
            return;
        }
        let all = self.world.field.range;
        self.begins(Errand::End, all);
        let mut section = self.sections.enter(self.actor.id());
        self.space.condemn(&mut section);
        drop(section);
        self.actor.count("a space was condemned");
        self.ends(Errand::End, all);
    }
}
