//! One CPU's vCPUs in shifts: pick one, bring it onto the CPU, let it take its turns, for ever.
//!
//! What another vCPU has left in the CPU stays there until a third is to run: a vCPU that sleeps and wakes alone costs no
//! switch. [`Shifts::loaded`] says whose registers are in the CPU; its timers can fire there, whatever it does.

use super::Hypervisor;
use super::guest::Guest;
use super::interrupt::{self, Taken};
use super::lists::Lists;
use super::seats::{Desk, Registers, Seat};
use super::turn::{Over, Turns};
use super::view;
use aarch64::barrier::{dsb_sy, wfi};
use aarch64::cpu::Core;
use aarch64::features::Features;
use aarch64::guest::controls::{self, Controls, Waits};
use aarch64::guest::el1;
use aarch64::guest::tlb::before_tables_change;
use aarch64::guest::world::Extent;
use aarch64::sysreg::{CNTHP_CTL_EL2, CNTHP_CVAL_EL2, Writeable};
use alloc::boxed::Box;
use stage2::Quiescence;
use types::{Cpu, CpuId, Ticks};
use vm::Vcpu;
use vm::sched::{MAX_SEATS, Queue, SeatId};
use vm::service::Left;

/// Slices in a second: ten milliseconds each, some hundred times what a switch costs.
const SLICES: u64 = 100;
/// How often in a second what is counted is shown, where a tool looks.
const SHOWS: u64 = 20;

/// How often in a second a CPU looks at what it has to serve, at most, and has its own vCPU run meanwhile.
const SERVICES: u64 = 4000;

/// A CPU and its vCPUs.
pub(super) struct Shifts<'a> {
    hypervisor: &'a Hypervisor,
    cpu: Core<'a>,
    controls: Controls,
    extent: Extent,
    lists: Lists,
    desk: &'a Desk,
    queue: Queue,
    seats: [Option<Box<Seat>>; MAX_SEATS],
    /// Whose registers are in the CPU.
    loaded: Option<SeatId>,
    /// Whether the waits of the loaded one trap.
    waits: Waits,
    /// What the hypervisor's timer is set to; `None` where it is off.
    alarm: Option<Ticks>,
    /// When what is counted is to be shown again, where this CPU does that.
    shows_next: Ticks,
    /// When the CPU looks next which changes of guests' memory are due; `None` where there are none.
    look: Option<Ticks>,
}

impl<'a> Shifts<'a> {
    /// Begins with nobody.
    pub(super) fn new(
        hypervisor: &'a Hypervisor,
        cpu: Core<'a>,
        controls: Controls,
        lists: Lists,
        desk: &'a Desk,
    ) -> Self {
        Self {
            hypervisor,
            cpu,
            controls,
            extent: Extent::of_this_cpu(),
            lists,
            desk,
            queue: Queue::new(cpu.tick_hz() / SLICES),
            seats: [const { None }; MAX_SEATS],
            loaded: None,
            waits: Waits::Here,
            alarm: None,
            shows_next: 0,
            look: None,
        }
    }

    /// Runs the CPU's vCPUs.
    pub(super) fn run(mut self) -> ! {
        loop {
            self.attend();
            if self.look.is_none_or(|look| look <= self.cpu.now()) {
                self.look = self.hypervisor.pace.keep(self.hypervisor, &self.cpu);
            }
            let picked = self.queue.pick(self.cpu.now());
            self.set_alarm();
            match picked {
                Some(id) => self.stay(id),
                None => self.idle(),
            }
        }
    }

    /// Looks at the seats that others want this CPU to look at.
    fn attend(&mut self) {
        if self.desk.inbox.is_empty() {
            return;
        }
        for id in self.desk.inbox.take().iter() {
            if self.seats[id.index()].is_none()
                && let Some(seat) = self.desk.show_in(id)
            {
                // Before its first walk: a CPU that can do less than those before it lowers the level.
                let bbm = Features::of_this_cpu().bbm;
                seat.guest.space.admit(&mut self.hypervisor.waiting.enter(self.cpu.id()), bbm);
                self.seats[id.index()] = Some(seat);
                self.queue.join(id);
            }
            if self.seats[id.index()].as_ref().is_some_and(|seat| seat.guest.is_leaving()) {
                self.dismiss(id);
            } else {
                self.queue.wake(id);
            }
        }
    }

    /// Lets go of the vCPU at seat `id` for good: nothing of its guest is left on this CPU but what a TLB may hold.
    fn dismiss(&mut self, id: SeatId) {
        if self.loaded == Some(id) {
            if let Some((guest, vcpu)) = on(&self.seats, id) {
                guest.vm.stow(vcpu, &self.cpu, &mut self.lists);
            }
            el1::stop_timers();
            before_tables_change();
            controls::vacate(self.hypervisor.nowhere());
            self.hypervisor.vmids.deactivate(self.cpu.id());
            self.loaded = None;
        }
        self.queue.leave(id);
        self.seats[id.index()] = None;
        self.desk.free(id);
    }

    /// Sets the hypervisor's timer to when the queue is to be asked again.
    fn set_alarm(&mut self) {
        let serves = self.hypervisor.engine.is_asked(self.cpu.id());
        let service = serves.then(|| self.cpu.now() + self.cpu.tick_hz() / SERVICES);
        let mut alarm = [self.queue.alarm(), service, self.look].into_iter().flatten().min();
        if self.hypervisor.view.is_some() && self.cpu.id() == CpuId::BOOT {
            alarm = Some(self.show(alarm));
        }
        if self.alarm != alarm {
            self.alarm = alarm;
            match alarm {
                Some(at) => {
                    CNTHP_CVAL_EL2.set(at);
                    CNTHP_CTL_EL2.set(1);
                }
                None => CNTHP_CTL_EL2.set(0),
            }
        }
    }

    /// Puts what is counted where a tool looks, where it is time. Returns when it is next, or `alarm`, which may be before.
    #[cold]
    #[inline(never)]
    fn show(&mut self, alarm: Option<Ticks>) -> Ticks {
        let now = self.cpu.now();
        if now >= self.shows_next {
            view::write(self.hypervisor);
            self.shows_next = now + self.cpu.tick_hz() / SHOWS;
        }
        alarm.map_or(self.shows_next, |alarm| alarm.min(self.shows_next))
    }

    /// Serves transfers that this CPU was asked to; where there is none, waits for a physical interrupt.
    fn idle(&mut self) {
        let engine = &self.hypervisor.engine;
        if engine.is_asked(self.cpu.id()) && engine.serve(self.hypervisor, &self.cpu) != Left::Nothing {
            return;
        }
        dsb_sy(); // complete before the CPU sleeps, as before any WFI
        wfi();
        let loaded = self.loaded.and_then(|id| on(&self.seats, id));
        match interrupt::take(self.hypervisor, &self.cpu, loaded) {
            Taken::Alarm => self.alarm = None,
            Taken::Timer | Taken::Maintenance => {
                if let Some(id) = self.loaded {
                    self.queue.wake(id);
                }
            }
            Taken::Nothing | Taken::Kick | Taken::Device => {}
        }
    }

    /// Has the vCPU at seat `id` take its turns until there is something else for this CPU.
    fn stay(&mut self, id: SeatId) {
        self.bring(id);
        let Some(seat) = self.seats[id.index()].as_deref_mut() else { return };
        let Self { hypervisor, cpu, desk, extent, lists, .. } = self;
        let Some(turns) = Turns::new(hypervisor, cpu, &desk.inbox, extent, seat, lists) else { return };
        let over = turns.run();
        let now = self.cpu.now();
        match over {
            Over::Asleep { until } => self.queue.sleep(now, until),
            Over::GaveWay => self.queue.give_way(now),
            Over::Alarm => self.alarm = None,
            Over::Wanted | Over::Serves => {}
        }
    }

    /// Puts the vCPU at seat `id` onto this CPU, and the one that was there off it.
    fn bring(&mut self, id: SeatId) {
        let waits = if self.queue.taken().len() > 1 { Waits::Elsewhere } else { Waits::Here };
        if self.loaded != Some(id) {
            self.put_away();
            self.load(id);
        } else if self.waits == waits {
            return;
        }
        self.controls.waits(waits);
        self.waits = waits;
    }

    /// Takes the registers of the vCPU that is loaded out of this CPU.
    fn put_away(&mut self) {
        let Some(seat) = self.loaded.take().and_then(|id| self.seats[id.index()].as_deref_mut()) else {
            return;
        };
        if let Some(vcpu) = seat.guest.vm.vcpus().get(seat.vcpu) {
            seat.guest.vm.stow(vcpu, &self.cpu, &mut self.lists);
        }
        if seat.registers == Registers::Set {
            seat.world.save(&self.extent);
        }
    }

    /// Puts the registers of the vCPU at seat `id` into this CPU, in which no other's are that are wanted.
    fn load(&mut self, id: SeatId) {
        let Some((guest, vcpu)) = on(&self.seats, id) else { return };
        // SAFETY: the identity names the tables of this guest's space, which live as long as the guest; the seat keeps it.
        unsafe { self.controls.install(&guest.identity(self.hypervisor, self.cpu.id(), vcpu)) };
        guest.note_vcpu(self.cpu.id(), vcpu);
        guest.vm.unstow(vcpu, &mut self.lists);
        if let Some(seat) = self.seats[id.index()].as_deref()
            && seat.registers == Registers::Set
        {
            // SAFETY: what was in the CPU has been put away, and this vCPU is the next to run.
            unsafe { seat.world.load(&self.extent) };
        }
        self.loaded = Some(id);
    }
}

/// Returns the vCPU at a seat, with its guest.
fn on(seats: &[Option<Box<Seat>>; MAX_SEATS], id: SeatId) -> Option<(&Guest, &Vcpu)> {
    let seat = seats[id.index()].as_deref()?;
    Some((&seat.guest, seat.vcpu()?))
}
