//! One CPU's turns: prepare, enter, answer, for ever.

use super::guest::Guest;
use super::lists::Lists;
use super::service::{self, Answered};
use super::{Hypervisor, Load};
use crate::options::Exercise;
use crate::report;
use aarch64::barrier::{dsb_sy, wfi};
use aarch64::cpu::Core;
use aarch64::gic::{IntId, interface};
use aarch64::guest::controls::Controls;
use aarch64::guest::exit::{Abort, Direction, Doing, Exit, IpaKnown, SysRegAccess, Transfer, Vector};
use aarch64::guest::inject::{self, Before, Exception, Walk, Write};
use aarch64::guest::{Context, El1, decode, el1, ich, switch};
use log::{debug, error, warn};
use space::Outcome;
use stage2::Quiescence;
use types::{Access, Cause, Cpu, FaultKind, Ipa, SysReg};
use vm::{
    CallOutcome, ExitReason, Intent, Mmio, MmioOp, MmioOutcome, Next, Start, SysAccess, SysOutcome, Timer,
    Vcpu, Why,
};

const ICC_SGI1R_EL1: SysReg = SysReg::new(3, 0, 12, 11, 5);
const ISAR1: SysReg = SysReg::new(3, 0, 0, 6, 1);
const ISAR2: SysReg = SysReg::new(3, 0, 0, 6, 2);

/// A CPU with its vCPU: all that its turns change.
pub(super) struct Turns<'a> {
    hypervisor: &'a Hypervisor,
    cpu: Core<'a>,
    controls: Controls,
    guest: &'a Guest,
    vcpu: &'a Vcpu,
    lists: Lists,
    context: Context,
    /// How many more lines this vCPU's misbehaviour may put into the log.
    lines_left: u32,
}

/// How many lines a vCPU's misbehaviour may put into the log: more would let a guest keep others from the console.
const MOST_LINES: u32 = 32;

impl<'a> Turns<'a> {
    /// Takes its vCPU onto this CPU.
    pub(super) fn new(
        hypervisor: &'a Hypervisor,
        cpu: Core<'a>,
        controls: Controls,
        guest: &'a Guest,
        vcpu: &'a Vcpu,
        lists: Lists,
    ) -> Self {
        Self {
            hypervisor,
            cpu,
            controls,
            guest,
            vcpu,
            lists,
            context: Context::default(),
            lines_left: MOST_LINES,
        }
    }

    /// Takes turns.
    pub(super) fn run(mut self) -> ! {
        let mut intent = Intent::Run;
        loop {
            match self.guest.vm.prepare(self.vcpu, &self.cpu, &mut self.lists, intent) {
                Next::Enter => {
                    let tlb = self.guest.tlb(self.hypervisor, &self.cpu);
                    tlb.enter();
                    // SAFETY: `start` put this vCPU's state into the CPU before the first entry, the tables are the
                    // guest's own space's, and this CPU runs no other vCPU.
                    let vector = unsafe { switch::enter(&mut self.context) };
                    tlb.leave();
                    self.guest.vm.left(self.vcpu);
                    intent = self.answer(vector);
                    if self.hypervisor.engine.is_asked(self.cpu.id()) {
                        self.hypervisor.engine.serve(self.hypervisor, &self.cpu);
                    }
                }
                Next::Idle if self.serves() => self.guest.vm.left(self.vcpu),
                Next::Idle => {
                    self.tidy();
                    dsb_sy(); // complete before the CPU sleeps, as before any WFI
                    wfi();
                    self.guest.vm.left(self.vcpu);
                    self.interrupt();
                }
                Next::Start(start) => {
                    self.start(start);
                    intent = Intent::Run;
                }
                Next::Ended(why) => self.ended(why),
            }
        }
    }

    /// Puts the vCPU's registers, all of them, in their reset state.
    fn start(&mut self, start: Start) {
        debug!("{}: vCPU {} starts at {:#x}", self.name(), self.vcpu.index(), start.entry);
        self.context = Context::start(start.entry, start.argument);
        // SAFETY: the identity names the tables of this guest's space, which live as long as the guest.
        unsafe { self.controls.install(&self.guest.identity(self.hypervisor, self.cpu.id(), self.vcpu)) };
        // SAFETY: this CPU runs no other vCPU, so that nothing in these registers is wanted.
        unsafe { El1::reset().load() };
        el1::reset_fp();
        el1::reset_keys(self.cpu.read_id(ISAR1), self.cpu.read_id(ISAR2));
        ich::reset();
        self.hypervisor.entered();
    }

    /// Puts a line about the vCPU into the log, unless there were many.
    fn complain(&mut self, about: core::fmt::Arguments<'_>) {
        let Some(left) = self.lines_left.checked_sub(1) else { return };
        self.lines_left = left;
        let last = if left == 0 { "; further lines about it are left out" } else { "" };
        warn!("{}: vCPU {} {about} (at {:#x}){last}", self.name(), self.vcpu.index(), self.context.pc);
    }

    fn name(&self) -> &str {
        &self.guest.vm.config().name
    }

    fn ended(&mut self, why: Why) {
        service::end(self.guest, self.hypervisor, &self.cpu);
        match why {
            Why::Reset => {
                debug!("{} restarts", self.name());
                match self.guest.load(self.hypervisor, &self.cpu, Load::Again) {
                    Ok(start) => self.guest.vm.start(&self.cpu, start),
                    Err(error) => {
                        error!("no restart: {error}");
                        self.hypervisor.guest_is_off();
                    }
                }
            }
            Why::PowerOff => {
                log::info!("{} is off", self.name());
                self.hypervisor.guest_is_off();
            }
            Why::Failure => {
                error!("{} was stopped", self.name());
                self.hypervisor.guest_is_off();
            }
        }
    }

    fn count(&self, reason: ExitReason) {
        self.guest.vm.count(self.vcpu, reason);
    }

    fn answer(&mut self, vector: Vector) -> Intent {
        match vector {
            Vector::Sync => return self.synchronous(),
            Vector::Irq | Vector::Fiq => self.interrupt(),
            Vector::SError => {
                self.count(ExitReason::Other);
                error!(
                    "{}: vCPU {} met a system error, {:#x}",
                    self.name(),
                    self.vcpu.index(),
                    switch::syndrome().esr
                );
                self.guest.vm.stop(&self.cpu, Why::Failure);
            }
        }
        Intent::Run
    }

    fn synchronous(&mut self) -> Intent {
        let syndrome = switch::syndrome();
        match decode(syndrome) {
            Exit::Hvc => {
                self.count(ExitReason::Hvc);
                return self.call();
            }
            Exit::Smc => {
                self.count(ExitReason::Smc);
                self.context.skip();
                return self.call();
            }
            Exit::Wait => {
                self.count(ExitReason::Wait);
                self.context.skip();
                return Intent::Wait;
            }
            Exit::SysReg(access) => self.sysreg(access),
            Exit::Abort(abort) => self.abort(abort, syndrome.far),
            Exit::External { esr } => {
                self.count(ExitReason::Other);
                error!(
                    "{}: the machine aborted an access of vCPU {}, {esr:#x}",
                    self.name(),
                    self.vcpu.index()
                );
                self.guest.vm.stop(&self.cpu, Why::Failure);
            }
            Exit::Undefined { class } => {
                self.count(ExitReason::Other);
                debug!("{}: undefined instruction at {:#x}, class {class:#x}", self.name(), self.context.pc);
                self.inject(Exception::Undefined);
            }
        }
        Intent::Run
    }

    /// Serves transfers that this CPU was asked to, before it idles. Tells whether it did.
    fn serves(&self) -> bool {
        let engine = &self.hypervisor.engine;
        let asked = engine.is_asked(self.cpu.id());
        if asked {
            engine.serve(self.hypervisor, &self.cpu);
        }
        asked
    }

    fn call(&mut self) -> Intent {
        let regs = self.context.call_regs();
        if service::call(self.guest, self.hypervisor, &self.cpu, regs) == Answered::Yes {
            return Intent::Run;
        }
        match self.guest.vm.call(self.vcpu, &self.cpu, self.context.call_regs()) {
            CallOutcome::Resume => Intent::Run,
            CallOutcome::Wait => Intent::Wait,
        }
    }

    fn sysreg(&mut self, access: SysRegAccess) {
        let (what, sgi) = match access.direction {
            Direction::Read => (SysAccess::Read(access.reg), false),
            Direction::Write => {
                (SysAccess::Write(access.reg, self.context.reg(access.rt)), access.reg == ICC_SGI1R_EL1)
            }
        };
        self.count(if sgi { ExitReason::Sgi } else { ExitReason::SysReg });
        match self.guest.vm.sysreg(self.vcpu, &self.cpu, what) {
            SysOutcome::Read(value) => self.context.set_reg(access.rt, value),
            SysOutcome::Written => {}
            SysOutcome::Undefined => {
                self.complain(format_args!("used {}, which it has not", access.reg));
                self.inject(Exception::Undefined);
                return;
            }
        }
        self.context.skip();
    }

    fn inject(&mut self, exception: Exception) {
        inject::take(&mut self.context, Before::read(), exception).write();
    }

    fn abort(&mut self, abort: Abort, far: u64) {
        let mut fault = abort.fault;
        if abort.ipa_known == IpaKnown::No {
            // Nobody holds the guest's own tables still: where they say nothing any more, it runs again and faults as
            // they say then.
            let Some(page) = self.stage1(far) else { return };
            fault.ipa = Ipa::new(page | fault.ipa.get());
        }
        // Devices first: they are below memory, and the most frequent.
        if fault.ipa < vm::map::RAM
            && fault.kind != FaultKind::TlbConflict // of which no address is promised
            && let Some(transfer) = abort.transfer
            && self.device(fault.ipa, transfer)
        {
            return;
        }
        self.count(match fault.cause {
            Cause::Fetch => ExitReason::FetchFault,
            Cause::Data | Cause::Stage1Walk | Cause::Maintenance => ExitReason::DataFault,
        });
        let section = self.hypervisor.waiting.enter(self.cpu.id());
        let tlb = self.guest.tlb(self.hypervisor, &self.cpu);
        let outcome = self.guest.space.fault(&section, &self.cpu, &tlb, &fault);
        drop(section);
        match outcome {
            Ok(Outcome::Mapped | Outcome::Allowed | Outcome::AlreadyMapped) => {}
            // It may be for memory that rests: a guest that comes again for it may be the only one who ever does.
            Ok(Outcome::Busy) => self.tidy(),
            Ok(Outcome::Outside | Outcome::Denied | Outcome::Noted(_)) => self.outside(abort, fault.ipa, far),
            Err(error) => {
                error!("{}: vCPU {} cannot go on: {error}", self.name(), self.vcpu.index());
                self.guest.vm.stop(&self.cpu, Why::Failure);
            }
        }
    }

    /// Translates a guest's virtual address by its own stage 1. The walk goes through the guest's second stage: while it
    /// lasts, this CPU is in the guest.
    fn stage1(&self, far: u64) -> Option<u64> {
        let tlb = self.guest.tlb(self.hypervisor, &self.cpu);
        tlb.enter();
        let page = switch::stage1(far, &self.context);
        tlb.leave();
        page
    }

    /// Gives back what rests since an unlink: before this CPU has nothing to do, and when a fault has found no memory.
    fn tidy(&self) {
        if self.guest.space.tree().is_draining() {
            let mut section = self.hypervisor.waiting.enter(self.cpu.id());
            let _ = self.guest.space.drain(&mut section); // what still rests is for the next one who idles
        }
    }

    /// Carries out an access to a device; tells whether there is one.
    fn device(&mut self, at: Ipa, transfer: Transfer) -> bool {
        let op = match transfer.direction {
            Direction::Read => MmioOp::Read,
            Direction::Write => MmioOp::Write(transfer.stored(self.context.reg(transfer.rt))),
        };
        let access = Mmio { at, bytes: transfer.bytes, op };
        let paged = service::page(self.guest, self.hypervisor, &self.cpu, access);
        let outcome = match paged {
            Some(outcome) => outcome,
            None => self.guest.vm.mmio(self.vcpu, &self.cpu, &mut self.lists, access),
        };
        match outcome {
            MmioOutcome::Read(value) => {
                self.context.set_reg(transfer.rt, transfer.loaded(value));
                if at == vm::map::UART {
                    self.hypervisor.has_read(self.guest, &self.cpu); // the data register is at offset 0
                }
            }
            MmioOutcome::Written => {}
            MmioOutcome::Absent => return false,
        }
        self.count(ExitReason::Device);
        self.context.skip();
        true
    }

    /// Answers an access to what is not this guest's.
    fn outside(&mut self, abort: Abort, ipa: Ipa, far: u64) {
        self.count(ExitReason::Outside);
        debug!("{}: vCPU {} reached for {ipa}", self.name(), self.vcpu.index());
        let walk = match abort.fault.cause {
            // Which level of stage 1 was being read is not told; the last is the most frequent.
            Cause::Stage1Walk => Walk::Level(3),
            Cause::Data | Cause::Fetch | Cause::Maintenance => Walk::No,
        };
        self.inject(match abort.doing {
            Doing::Fetch => Exception::FetchAbort { far, walk },
            Doing::Data => {
                let write = if abort.fault.access.contains(Access::WRITE) { Write::Yes } else { Write::No };
                Exception::DataAbort { far, walk, length: abort.length, write }
            }
        });
    }

    /// Takes the physical interrupt that is pending, if any.
    fn interrupt(&mut self) {
        let Some(id) = interface::acknowledge() else {
            self.count(ExitReason::Interrupt); // it went away meanwhile
            return;
        };
        interface::drop_priority(id);
        let interrupts = &self.hypervisor.machine.interrupts;
        let vm = &self.guest.vm;
        let reason = if id == IntId::KICK {
            interface::deactivate(id);
            report::stop_if_reported();
            ExitReason::Kick
        } else if id == interrupts.virtual_timer {
            if self.hypervisor.machine.options.exercise == Exercise::Resize {
                self.guest.exercise.resize(self.guest, self.hypervisor, &self.cpu);
            }
            vm.timer_fired(self.vcpu, Timer::Virtual); // the guest deactivates it
            ExitReason::Timer
        } else if id == interrupts.physical_timer {
            vm.timer_fired(self.vcpu, Timer::Physical);
            ExitReason::Timer
        } else if id == interrupts.maintenance {
            vm.maintenance(self.vcpu);
            interface::deactivate(id);
            ExitReason::Maintenance
        } else {
            self.hypervisor.machine_interrupt(&self.cpu, id);
            interface::deactivate(id);
            ExitReason::Interrupt
        };
        self.count(reason);
    }
}
