//! Starting, entering, stopping: what a CPU does next for its vCPU.

use super::Vm;
use crate::{
    doorbell::{Parked, Requests},
    host::{ListRegisters, Timer},
    pl011::Pl011,
    power::{Start, Step, Why},
    sched::Home,
    vcpu::Vcpu,
};
use types::Cpu;

/// What the vCPU's guest wants, as far as the exit told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// To go on.
    Run,
    /// To go on when an interrupt is pending for it.
    Wait,
}

/// What the CPU of a vCPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Enter the guest. The list registers are as they must be. A kick from here on ends the guest's run.
    Enter,
    /// Wait for a physical interrupt: the vCPU is off, or waits itself. A kick from here on is one.
    Idle,
    /// Put the vCPU's registers in their reset state, with this program counter and X0, EL1 with everything masked, the
    /// timers off and the virtual CPU interface in reset; then prepare again.
    Start(Start),
    /// The virtual machine has stopped: this was its last vCPU. Told once per stop, to one CPU. On a reset, load it
    /// again, and call [`Vm::start`]; otherwise, it is off.
    Ended(Why),
}

/// What became of a vCPU that was to sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sleep {
    /// It sleeps: who wants something of it posts to its home's inbox. A timer that is on and has not fired is to wake it.
    Asleep,
    /// It is off. Its registers and its timers mean nothing any more; who turns it on posts to its home's inbox.
    Off,
    /// Somebody wants something of it already: prepare again.
    Wanted,
}

/// Whether a timer has fired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fired {
    /// It has: the interrupt controller knows.
    Yes,
    /// It has not: if it is on, its time is to come.
    No,
}

impl Vm {
    /// Says where `vcpu` is scheduled, before it first runs. Only the first call counts.
    pub fn settle(&self, vcpu: &Vcpu, home: Home) {
        vcpu.bell.settle(home);
    }

    /// Tells whether `timer` of `vcpu`, which is on this CPU, has fired, and the guest has not ended that yet.
    pub fn has_fired(&self, vcpu: &Vcpu, timer: Timer) -> Fired {
        self.gic.has_fired(vcpu, timer)
    }

    /// Has the CPU that `vcpu` belongs to look at its seat, whatever the vCPU does.
    pub fn nudge(&self, vcpu: &Vcpu, cpu: &impl Cpu) {
        vcpu.bell.nudge(cpu);
    }

    /// Puts `vcpu` to sleep, after [`Next::Idle`] and on the CPU that it belongs to: nobody waits for it there any more.
    /// Its timers are the caller's to watch.
    pub fn sleep(&self, vcpu: &Vcpu) -> Sleep {
        match vcpu.bell.sleep() {
            Requests::NONE if vcpu.bell.is_parked() => Sleep::Off,
            Requests::NONE => Sleep::Asleep,
            _ => Sleep::Wanted,
        }
    }

    /// Takes what is in the list registers of `vcpu`, which has left its guest, since another vCPU is to have this CPU.
    /// What is pending or active stays so. The caller saves the registers, and turns the timers off, after this.
    pub fn stow(&self, vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters) {
        self.gic.stow(&self.vcpus, vcpu, cpu, lrs);
    }

    /// Undoes [`Vm::stow`], on the CPU that is to run `vcpu`. The caller loads the registers, timers too, after this.
    pub fn unstow(&self, vcpu: &Vcpu, lrs: &mut impl ListRegisters) {
        self.gic.unstow(vcpu, lrs);
    }

    /// Turns the machine on: devices in reset, vCPU 0 about to start. Does nothing where it is not off.
    ///
    /// The machine must be loaded. vCPU 0's CPU is kicked, if it is idle for it.
    pub fn start(&self, cpu: &impl Cpu, start: Start) {
        {
            let mut power = self.power.lock();
            if !power.is_off() {
                return;
            }
            // Nobody runs, and nobody can be turned on before this lock is free.
            if let Some(devices) = &self.devices {
                devices.reset(&|_, _| {});
            }
            self.gic.reset(&self.vcpus);
            *self.uart.lock() = Pl011::new();
            power.start(start);
        }
        self.vcpus[0].bell.ring(cpu, Requests::POWER);
    }

    /// Stops the machine, from any CPU: every vCPU leaves its guest and goes off. Returns at once; the CPU that turns off
    /// the last one is told by [`Next::Ended`]. Does nothing where it stops already, or is off.
    pub fn stop(&self, cpu: &impl Cpu, why: Why) {
        if self.power.lock().stop(why) {
            for vcpu in &self.vcpus {
                vcpu.bell.ring(cpu, Requests::POWER);
            }
        }
    }

    /// Finds out what `vcpu`'s CPU does next, and brings its list registers up to date. Before every entry.
    ///
    /// After [`Next::Enter`] and [`Next::Idle`], call [`Vm::left`] when the guest or the wait has ended.
    #[inline]
    pub fn prepare(&self, vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters, intent: Intent) -> Next {
        let requests = vcpu.bell.arrive(cpu.id());
        if requests == Requests::NONE && intent == Intent::Run {
            return Next::Enter;
        }
        self.prepare_slowly(vcpu, cpu, lrs, intent)
    }

    /// Does what was asked, until nothing is. Out of line, for [`Self::prepare`] to stay short.
    #[inline(never)]
    fn prepare_slowly(
        &self,
        vcpu: &Vcpu,
        cpu: &impl Cpu,
        lrs: &mut impl ListRegisters,
        intent: Intent,
    ) -> Next {
        loop {
            let requests = vcpu.bell.take();
            if requests.has(Requests::POWER)
                && let Some(next) = self.step(vcpu, cpu, lrs)
            {
                vcpu.bell.leave();
                return next;
            }
            if vcpu.bell.is_parked() {
                if vcpu.bell.arrive(cpu.id()) == Requests::PARKED {
                    return Next::Idle;
                }
                continue;
            }
            if requests.has(Requests::INTERRUPTS) {
                self.gic.refresh(&self.vcpus, vcpu, cpu, lrs);
            }
            if vcpu.bell.arrive(cpu.id()) == Requests::NONE {
                return match intent {
                    Intent::Wait if !self.gic.has_pending(vcpu, lrs) => Next::Idle,
                    _ => Next::Enter,
                };
            }
        }
    }

    /// Carries out what is to be done about the power of `vcpu`, which is on this CPU.
    fn step(&self, vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters) -> Option<Next> {
        let mut power = self.power.lock();
        let ended = match power.step(vcpu.index()) {
            Step::None => return None,
            Step::Start(start) => {
                vcpu.bell.park(Parked::No);
                vcpu.bell.note(Requests::INTERRUPTS);
                return Some(Next::Start(start));
            }
            Step::Off => None,
            Step::Last(why) => Some(Next::Ended(why)),
        };
        vcpu.bell.park(Parked::Yes);
        self.gic.withdraw(&self.vcpus, vcpu, cpu, lrs);
        ended
    }
}
