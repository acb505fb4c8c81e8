//! A vCPU's turns on its CPU: prepare, enter, answer, until it is over.

use super::Hypervisor;
use super::guest::Guest;
use super::interrupt::{self, Taken};
use super::lists::Lists;
use super::making::Here;
use super::seats::{Registers, Seat};
use super::service::{self, Answered};
use crate::ram::Load;
use crate::{control, sharing};
use aarch64::barrier::relax;
use aarch64::cpu::Core;
use aarch64::guest::exit::{Abort, Direction, Doing, Exit, IpaKnown, SysRegAccess, Transfer, Vector};
use aarch64::guest::inject::{self, Before, Exception, Walk, Write};
use aarch64::guest::unwired::Interface;
use aarch64::guest::world::Extent;
use aarch64::guest::{Context, World, decode, el1, ich, switch};
use log::{debug, error, info, warn};
use space::{Outcome, SpaceError};
use stage2::Quiescence;
use types::{Access, Cause, Cpu, FaultKind, Ipa, SysReg, Ticks};
use vm::sched::Inbox;
use vm::service::Left;
use vm::{
    CallOutcome, ExitReason, Fired, Intent, Mmio, MmioOp, MmioOutcome, Next, Role, Sleep, Start, SysAccess,
    SysOutcome, Timer, Vcpu, Why,
};

const ICC_SGI1R_EL1: SysReg = SysReg::new(3, 0, 12, 11, 5);

/// Why a vCPU's turns are over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Over {
    /// It sleeps, until it is woken or a timer of its is due.
    Asleep {
        /// When that is.
        until: Option<Ticks>,
    },
    /// It waits for what another vCPU does.
    GaveWay,
    /// The hypervisor's timer has fired, and is off.
    Alarm,
    /// Somebody wants this CPU to look at another vCPU.
    Wanted,
    /// The CPU has more to serve, after a while.
    Serves,
}

/// A CPU with a vCPU whose registers are in it: all that its turns change.
pub(super) struct Turns<'s> {
    hypervisor: &'s Hypervisor,
    cpu: &'s Core<'s>,
    inbox: &'s Inbox,
    guest: &'s Guest,
    vcpu: &'s Vcpu,
    extent: &'s Extent,
    lists: &'s mut Lists,
    context: &'s mut Context,
    registers: &'s mut Registers,
    lines_left: &'s mut u32,
    /// What ends the turns before the next entry.
    over: Option<Over>,
}

impl<'s> Turns<'s> {
    /// Begins the turns of the vCPU at `seat`.
    pub(super) fn new(
        hypervisor: &'s Hypervisor,
        cpu: &'s Core<'s>,
        inbox: &'s Inbox,
        extent: &'s Extent,
        seat: &'s mut Seat,
        lists: &'s mut Lists,
    ) -> Option<Self> {
        let Seat { guest, vcpu, context, registers, lines_left, .. } = seat;
        let guest: &Guest = guest;
        let vcpu = guest.vm.vcpus().get(*vcpu)?;
        Some(Self {
            hypervisor,
            cpu,
            inbox,
            guest,
            vcpu,
            extent,
            lists,
            context,
            registers,
            lines_left,
            over: None,
        })
    }

    /// Takes turns, until they are over.
    pub(super) fn run(mut self) -> Over {
        let mut intent = Intent::Run;
        loop {
            match self.guest.vm.prepare(self.vcpu, self.cpu, self.lists, intent) {
                Next::Enter => {
                    if let Some(interface) = self.hypervisor.interface {
                        (interface.signal)();
                    }
                    let tlb = self.guest.tlb(self.hypervisor, self.cpu);
                    tlb.enter();
                    // SAFETY: this vCPU's state was put into the CPU before, by a start or by the shift, and the tables
                    // are the guest's own space's.
                    let vector = unsafe { switch::enter(self.context) };
                    tlb.leave();
                    self.guest.vm.left(self.vcpu);
                    intent = self.answer(vector);
                    if self.hypervisor.engine.is_asked(self.cpu.id())
                        && self.hypervisor.engine.serve(self.hypervisor, self.cpu) != Left::Nothing
                        && self.over.is_none()
                    {
                        self.over = Some(Over::Serves);
                    }
                }
                Next::Idle => {
                    self.tidy();
                    match self.guest.vm.sleep(self.vcpu) {
                        Sleep::Asleep => return Over::Asleep { until: self.due() },
                        Sleep::Off => {
                            el1::stop_timers();
                            return Over::Asleep { until: None };
                        }
                        Sleep::Wanted => intent = Intent::Run,
                    }
                }
                Next::Start(start) => {
                    self.start(start);
                    intent = Intent::Run;
                }
                Next::Ended(why) => self.ended(why),
            }
            if let Some(over) = self.over {
                return over;
            }
            // One that waits is put to sleep first.
            if intent == Intent::Run && !self.inbox.is_empty() {
                return Over::Wanted;
            }
        }
    }

    /// Returns when the first of its timers is due that has not fired yet.
    fn due(&self) -> Option<Ticks> {
        let due = |timer| match self.guest.vm.has_fired(self.vcpu, timer) {
            Fired::No => self.lists.due(timer),
            Fired::Yes => None,
        };
        [Timer::Virtual, Timer::Physical].into_iter().filter_map(due).min()
    }

    /// Puts the vCPU's registers, all of them, in their reset state.
    fn start(&mut self, start: Start) {
        debug!("{}: vCPU {} starts at {:#x}", self.name(), self.vcpu.index(), start.entry);
        *self.context = Context::start(start.entry, start.argument);
        // SAFETY: what other vCPUs had in this CPU has been put away, and of this one nothing is wanted.
        unsafe { World::reset().load(self.extent) };
        ich::reset();
        *self.registers = Registers::Set;
        self.hypervisor.entered();
    }

    /// Puts a line about the vCPU into the log, unless there were many.
    fn complain(&mut self, about: core::fmt::Arguments<'_>) {
        let Some(left) = self.lines_left.checked_sub(1) else { return };
        *self.lines_left = left;
        let last = if left == 0 { "; further lines about it are left out" } else { "" };
        warn!("{}: vCPU {} {about} (at {:#x}){last}", self.name(), self.vcpu.index(), self.context.pc);
    }

    fn name(&self) -> &str {
        &self.guest.vm.config().name
    }

    fn ended(&mut self, why: Why) {
        service::end(self.guest, self.hypervisor, self.cpu);
        sharing::end(self.guest, &Here(self.hypervisor, self.cpu));
        match why {
            Why::Reset => {
                debug!("{} restarts", self.name());
                match self.guest.load(self.hypervisor, self.cpu, Load::Again) {
                    Ok(start) => self.guest.vm.start(self.cpu, start),
                    Err(error) => {
                        error!("no restart: {error}");
                        self.guest.finish(self.hypervisor);
                    }
                }
            }
            Why::PowerOff => {
                match self.guest.vm.config().role {
                    Role::Template => debug!("{} is off", self.name()),
                    Role::Guest | Role::Primary => info!("{} is off", self.name()),
                }
                self.guest.finish(self.hypervisor);
            }
            Why::Failure => {
                error!("{} was stopped", self.name());
                self.guest.finish(self.hypervisor);
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
                self.guest.vm.stop(self.cpu, Why::Failure);
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
            Exit::GiveWay => {
                self.count(ExitReason::Wait);
                self.context.skip();
                self.over = Some(Over::GaveWay);
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
                self.guest.vm.stop(self.cpu, Why::Failure);
            }
            Exit::Undefined { class } => {
                self.count(ExitReason::Other);
                debug!("{}: undefined instruction at {:#x}, class {class:#x}", self.name(), self.context.pc);
                self.inject(Exception::Undefined);
            }
        }
        Intent::Run
    }

    fn call(&mut self) -> Intent {
        let regs = self.context.call_regs();
        match service::call(self.guest, self.hypervisor, self.cpu, regs) {
            Answered::Yes => return Intent::Run,
            Answered::GivesWay => {
                self.over = Some(Over::GaveWay);
                return Intent::Run;
            }
            Answered::No => {}
        }
        let here = Here(self.hypervisor, self.cpu);
        if sharing::call(self.guest, &here, self.context.call_regs())
            || control::call(self.guest, &here, self.context.call_regs())
        {
            return Intent::Run;
        }
        match self.guest.vm.call(self.vcpu, self.cpu, self.context.call_regs()) {
            CallOutcome::Resume => Intent::Run,
            CallOutcome::Wait => Intent::Wait,
        }
    }

    fn sysreg(&mut self, access: SysRegAccess) {
        if let Some(interface) = self.hypervisor.interface
            && self.interface(interface, access)
        {
            return;
        }
        let (what, sgi) = match access.direction {
            Direction::Read => (SysAccess::Read(access.reg), false),
            Direction::Write => {
                (SysAccess::Write(access.reg, self.context.reg(access.rt)), access.reg == ICC_SGI1R_EL1)
            }
        };
        self.count(if sgi { ExitReason::Sgi } else { ExitReason::SysReg });
        match self.guest.vm.sysreg(self.vcpu, self.cpu, what) {
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

    /// Does an access to the CPU interface that traps since its interrupt has no line. Tells whether it was one.
    #[cold]
    fn interface(&mut self, interface: &Interface, access: SysRegAccess) -> bool {
        let written = match access.direction {
            Direction::Read => 0,
            Direction::Write => self.context.reg(access.rt),
        };
        let Some(read) = (interface.access)(access.reg, access.direction, written) else { return false };
        if access.direction == Direction::Read {
            self.context.set_reg(access.rt, read);
        }
        self.count(ExitReason::SysReg);
        self.context.skip();
        true
    }

    fn inject(&mut self, exception: Exception) {
        inject::take(self.context, Before::read(), exception).write();
    }

    fn abort(&mut self, abort: Abort, far: u64) {
        let mut fault = abort.fault;
        let doubtful = fault.kind == FaultKind::Translation
            && fault.cause != Cause::Stage1Walk
            && self.hypervisor.translates_again;
        if abort.ipa_known == IpaKnown::No || doubtful {
            // Nobody holds the guest's own tables still: where they say nothing any more, it runs again and faults as
            // they say then.
            let Some(page) = self.stage1(far) else { return };
            fault.ipa = Ipa::new(page | fault.ipa.get() & 0xfff);
        }
        // Devices first: they are below memory, and the most frequent.
        if fault.ipa < vm::map::RAM
            && fault.kind != FaultKind::TlbConflict // of which no address is promised
            && let Some(transfer) = abort.transfer()
            && self.device(fault.ipa, transfer)
        {
            return;
        }
        self.count(match fault.cause {
            Cause::Fetch => ExitReason::FetchFault,
            Cause::Data | Cause::Stage1Walk | Cause::Maintenance => ExitReason::DataFault,
        });
        let section = self.hypervisor.waiting.enter_here(self.cpu.id());
        let tlb = self.guest.tlb(self.hypervisor, self.cpu);
        let outcome = self.guest.space.fault(&section, self.cpu, &tlb, &fault);
        section.leave_here();
        match outcome {
            Ok(Outcome::Mapped | Outcome::Allowed | Outcome::AlreadyMapped) => {}
            // It may be for memory that rests: a guest that comes again for it may be the only one who ever does.
            Ok(Outcome::Busy) => {
                relax();
                self.tidy();
            }
            Ok(Outcome::Outside | Outcome::Denied | Outcome::Noted(_)) => self.outside(abort, fault.ipa, far),
            // The guest faults again, and finds one.
            Err(SpaceError::OutOfTables { .. }) if self.prune() => {}
            Err(error) => {
                error!("{}: vCPU {} cannot go on: {error}", self.name(), self.vcpu.index());
                self.guest.vm.stop(self.cpu, Why::Failure);
            }
        }
    }

    /// Translates a guest's virtual address by its own stage 1. The walk goes through the guest's second stage: while it
    /// lasts, this CPU is in the guest.
    fn stage1(&self, far: u64) -> Option<u64> {
        let tlb = self.guest.tlb(self.hypervisor, self.cpu);
        tlb.enter();
        let page = switch::stage1(far, self.context);
        tlb.leave();
        page
    }

    /// Gives back what rests since an unlink: before this CPU has nothing to do, and when a fault has found no memory.
    fn tidy(&self) {
        if self.guest.space.tree().is_draining() {
            let mut section = self.hypervisor.waiting.enter(self.cpu.id());
            let _ = self.guest.space.drain(&mut section, self.cpu); // what still rests is for the next one who idles
        }
    }

    /// Gives back tables in which nothing is mapped any more. Tells whether there were any.
    fn prune(&self) -> bool {
        let tlb = self.guest.tlb(self.hypervisor, self.cpu);
        let mut section = self.hypervisor.waiting.enter(self.cpu.id());
        self.guest.space.prune_all(&mut section, &tlb).unwrap_or(false)
    }

    /// Carries out an access to a device; tells whether there is one.
    fn device(&mut self, at: Ipa, transfer: Transfer) -> bool {
        let op = match transfer.direction {
            Direction::Read => MmioOp::Read,
            Direction::Write => MmioOp::Write(transfer.stored(self.context.reg(transfer.rt))),
        };
        let access = Mmio { at, bytes: transfer.bytes, op };
        let paged = service::page(self.guest, self.hypervisor, self.cpu, access);
        let outcome = match paged {
            Some(outcome) => outcome,
            None => self.guest.vm.mmio(self.vcpu, self.cpu, self.lists, access),
        };
        match outcome {
            MmioOutcome::Read(value) => {
                self.context.set_reg(transfer.rt, transfer.loaded(value));
                if at == vm::map::UART {
                    self.hypervisor.has_read(self.guest, self.cpu); // the data register is at offset 0
                }
            }
            MmioOutcome::Written => {}
            MmioOutcome::Notified => self.hypervisor.engine.ask(self.cpu),
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
        let taken = interrupt::take(self.hypervisor, self.cpu, Some((self.guest, self.vcpu)));
        self.count(taken.reason());
        if taken == Taken::Alarm {
            self.over = Some(Over::Alarm);
        }
    }
}
