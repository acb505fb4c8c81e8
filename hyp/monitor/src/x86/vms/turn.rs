//! A vCPU on its CPU: enter, answer, and again.
//!
//! ```text
//! start? off? ─▶ enter ─▶ exit ─┬─ a violation ─▶ space.fault: memory comes, or it is outside ─▶ an exception
//!                               ├─ a call, CPUID, an MSR, a port ─▶ answered
//!                               └─ a kick, its timer ─▶ looks again
//! ```
//!
//! A kick is a non-maskable interrupt. In the guest it ends the run. In the hypervisor its handler takes it: where this CPU
//! is about to enter, it forgets there what was taken away, and has the guest leave at once.

mod apic;
mod bugs;
mod calls;
mod moves;
mod offline;
mod page;
mod port;
mod power;
mod registers;

pub(super) use port::bitmaps as port_bitmaps;

use super::super::machine::{Entering, PerCpu, write_word};
use super::guest::{Guest, Reason};
use super::msr;
use super::{Hypervisor, tracing, write_bytes};
use crate::report;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;
use frames::Run;
use log::{debug, error, warn};
use space::{Outcome, SpaceError};
use stage2::Quiescence;
use types::{Cpu, CpuId, FRAME_SIZE, Fault, Range};
use vm::apic::LocalApic;
use vm::{Role, Why};
use x86_64::instr::{let_nmis_in, rdtsc, take_nmi};
use x86_64::vmx::exit::Exit;
use x86_64::vmx::vmcs::{Event, Has, Leave, Setup, Start, Vmcs};

/// How many lines about one vCPU go to the log.
const LINES: u32 = 20;

/// One vCPU, with all that its turns need.
pub(super) struct Turn {
    hypervisor: &'static Hypervisor,
    this: &'static PerCpu,
    guest: Arc<Guest>,
    /// Its number.
    vcpu: usize,
    vmcs: Vmcs,
    /// In a place of its own: the handler of kicks uses it.
    tlb: Box<Entering>,
    /// What of the machine its guest has.
    has: Has,
    /// Whether it has been started.
    runs: Runs,
    /// Its local APIC, where it has not the machine's.
    apic: LocalApic,
    /// Whether the last entry had it leave for a time, or for an interrupt.
    is_timed: bool,
    lines_left: u32,
}

/// What a vCPU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Runs {
    /// Nothing yet.
    Not,
    /// It runs.
    On,
    /// It waits for a start-up interrupt of the machine's.
    Awaits,
    /// It waits for an interrupt: of its timer, since nothing else could come.
    Halted,
}

impl Turn {
    /// Makes the vCPU on the CPU that runs this.
    pub(super) fn new(
        hypervisor: &'static Hypervisor,
        this: &'static PerCpu,
        guest: Arc<Guest>,
        vcpu: usize,
    ) -> Self {
        // SAFETY: this has the guest, and the handler forgets it before this lets go of it.
        let tlb = Box::new(unsafe { guest.entering(hypervisor, this) });
        tracing::loads_tables(tlb.eptp);
        let entering: *const Entering = &*tlb;
        // SAFETY: likewise; it is in its box until then.
        this.enters(unsafe { &*entering });
        let has = match guest.config().role {
            Role::Primary => Has::Machine,
            _ => Has::Nothing,
        };
        let Some(own) = guest.own(vcpu) else { panic!("a vCPU {vcpu} that there is not has come in") };
        let capabilities = hypervisor.machine.capabilities;
        let setup = Setup {
            capabilities,
            eptp: guest.eptp(hypervisor),
            // Each vCPU has its own, from 1 on.
            vpid: 1 + guest.number * vm::MAX_VCPUS as u16 + vcpu as u16,
            has,
            msr_bitmap: hypervisor.bitmaps.registers(has),
            list: own.list.as_ref().map(Run::pa),
            port_bitmaps: hypervisor.bitmaps.ports,
        };
        let region = own.vmcs.pa();
        // SAFETY: the frames are this vCPU's, the first zeroed but for its revision; the tables are this guest's.
        let vmcs = unsafe {
            write_bytes(region, &[0; msr::BITMAP]);
            write_word(region, capabilities.revision);
            Vmcs::new(region, &setup, this.selectors)
        };
        let vmcs = vmcs.unwrap_or_else(|fail| panic!("the CPU refuses a VMCS: {fail:?}"));
        Self {
            hypervisor,
            this,
            guest,
            vcpu,
            vmcs,
            tlb,
            has,
            runs: Runs::Not,
            apic: LocalApic::default(),
            is_timed: false,
            lines_left: LINES,
        }
    }

    /// Takes turns, until the guest's end.
    pub(super) fn run(mut self) {
        let mut looked = None;
        loop {
            let seen = self.hypervisor.bell(self.this);
            self.hypervisor.serve_if_asked(self.this);
            if looked.replace(seen) != Some(seen) {
                self.look_at_power();
                if self.guest.is_leaving() {
                    return; // it was off before
                }
            }
            if self.runs == Runs::Halted && self.apic.is_due(rdtsc()) && self.vmcs.takes_interrupts() {
                self.runs = Runs::On;
            }
            if !matches!(self.runs, Runs::On | Runs::Awaits) {
                match self.apic.deadline().filter(|_| self.runs == Runs::Halted) {
                    Some(deadline) => self.hypervisor.sleep_until(self.this, seen, deadline),
                    None => self.hypervisor.sleep_unless_asked(self.this, seen),
                }
                continue;
            }
            // One that waits for a start-up interrupt takes no kick, and uses no translation: it is not inside.
            let is_inside = self.runs == Runs::On;
            if is_inside {
                self.look_at_time();
            } else {
                self.this.line().deafen();
            }
            self.this.commit();
            if self.hypervisor.bell(self.this) != seen {
                // Somebody wants something: look first.
                self.this.retract();
                self.this.line().listen();
                continue;
            }
            if is_inside {
                self.deliver();
                self.tlb.enter();
            }
            // SAFETY: this VMCS is the only one that is ever current here, and the tables are the guest's own.
            let exit = unsafe { self.vmcs.enter() };
            if is_inside {
                self.hand_on_list(); // before it says that it is outside: who waits for that asks for what was written
                self.tlb.leave();
            }
            self.this.retract();
            if !is_inside {
                let_nmis_in();
                self.this.line().listen();
            }
            match exit {
                Ok(exit) => self.answer(exit),
                Err(refused) => self.refused(refused),
            }
        }
    }

    /// Marks what the hardware has listed since the guest was entered. Waits for nobody.
    fn hand_on_list(&self) {
        let mut section = None;
        self.vmcs.take_listed(|ipa| {
            self.guest.listed.fetch_add(1, Relaxed);
            let section = section.get_or_insert_with(|| self.hypervisor.waiting.enter(self.this.core.id()));
            self.guest.space.mark_written(section, Range::block_around(ipa, FRAME_SIZE));
        });
    }

    /// Has the guest that has the machine take an interrupt which nobody here has sent: now, or as soon as it takes one.
    fn deliver(&mut self) {
        if !self.this.take_owed() {
            return;
        }
        if self.has == Has::Nothing {
            self.complain(format_args!("is not told of an NMI of the machine's, which is nobody's"));
        } else if !self.vmcs.deliver_nmi() {
            self.this.owe();
        }
    }

    /// Has the guest take its timer's interrupt where that is due, now or as soon as it takes any; and has it leave when it will
    /// be.
    fn look_at_time(&mut self) {
        let now = rdtsc();
        let is_due = self.apic.is_due(now);
        let left = self.apic.deadline().map(|deadline| deadline.saturating_sub(now));
        if !is_due && left.is_none() && !self.is_timed {
            return;
        }
        let takes = is_due && self.vmcs.takes_interrupts();
        if takes {
            self.vmcs.inject(Event::Interrupt(self.apic.take()));
        }
        self.vmcs.leave_for_interrupts(if is_due && !takes { Leave::Then } else { Leave::Never });
        self.vmcs.leave_after(&self.hypervisor.machine.capabilities, left);
        self.is_timed = left.is_some() || is_due && !takes;
    }

    /// Tells whether its local APIC and timer are the hypervisor's.
    fn has_timer(&self) -> bool {
        self.has == Has::Nothing && self.hypervisor.machine.capabilities.has_timer()
    }

    fn name(&self) -> &str {
        &self.guest.config().name
    }

    /// Puts a line about the vCPU into the log, unless there were many.
    fn complain(&mut self, about: core::fmt::Arguments<'_>) {
        let Some(left) = self.lines_left.checked_sub(1) else { return };
        self.lines_left = left;
        let last = if left == 0 { "; further lines about it are left out" } else { "" };
        warn!("{}: vCPU {} {about} (at {:#x}){last}", self.name(), self.vcpu, self.vmcs.rip());
    }

    fn count(&self, reason: Reason) {
        self.guest.count(reason);
    }

    /// Stops the machine because of what this vCPU did.
    fn fail(&mut self, about: core::fmt::Arguments<'_>) {
        error!("{}: vCPU {} {about} (at {:#x}): stopped", self.name(), self.vcpu, self.vmcs.rip());
        self.guest.stop(self.hypervisor, self.this, Why::Failure);
    }

    /// Resets the machine because of what this vCPU did, which has it.
    fn reset(&self, why: &str) -> ! {
        error!("{}: vCPU {} {why}: the machine is reset", self.name(), self.vcpu);
        report::reset()
    }

    fn answer(&mut self, exit: Exit) {
        let reason = match exit {
            Exit::Nmi | Exit::Window => Reason::Kick,
            Exit::Violation(_) => Reason::Fault,
            Exit::Vmcall => Reason::Call,
            Exit::Io(_) => Reason::Port,
            Exit::Cpuid => Reason::Cpuid,
            Exit::Rdmsr | Exit::Wrmsr => Reason::Msr,
            Exit::Hlt => Reason::Wait,
            Exit::Timer | Exit::InterruptWindow => Reason::Timer,
            _ => Reason::Other,
        };
        self.count(reason);
        match exit {
            Exit::Nmi => {
                take_nmi();
                report::stop_if_reported();
            }
            Exit::Window => {
                self.vmcs.stay();
                report::stop_if_reported();
            }
            Exit::Violation(fault) => self.violation(&fault),
            Exit::Vmcall => self.call(),
            Exit::Io(io) => self.port(io),
            Exit::Cpuid => self.cpuid(),
            Exit::Rdmsr => self.rdmsr(),
            Exit::Wrmsr => self.wrmsr(),
            Exit::Xsetbv => self.xsetbv(),
            Exit::Write { register, from } => self.write_control(register, from),
            Exit::CacheFlush if self.has == Has::Machine => self.flush_caches(),
            Exit::CacheFlush => self.vmcs.skip(), // guests' memory is coherent
            Exit::Hlt if self.has == Has::Machine => self.halted(),
            Exit::Hlt => {
                self.vmcs.skip();
                self.runs = Runs::Halted;
            }
            Exit::ListFull => {}                      // it has been emptied
            Exit::Timer | Exit::InterruptWindow => {} // the time is looked at before each entry
            Exit::Undefined => self.vmcs.inject(Event::Undefined),
            Exit::OtherControl => self.vmcs.inject(Event::GeneralProtection),
            Exit::Interrupt => {
                self.this.apic.end_of_interrupt();
                self.complain(format_args!("was left for an interrupt of the machine's, which is nobody's"));
            }
            // What a bare machine does then.
            Exit::TripleFault if self.has == Has::Machine => self.reset("met a triple fault"),
            Exit::TripleFault => self.fail(format_args!("met a triple fault")),
            // The machine's: they are the guest's that has it.
            // The boot CPU starts anew at firmware's first instruction (9.4.3), which a guest cannot.
            Exit::Init if self.has == Has::Machine && self.this.core.id() == CpuId::BOOT => {
                self.reset("got an INIT")
            }
            Exit::Init if self.has == Has::Machine => self.start(Start::WaitForStartUp),
            Exit::StartUp(page) if self.has == Has::Machine => self.start(Start::Page(page)),
            Exit::Init | Exit::StartUp(_) => {}
            Exit::Misconfiguration(ipa) => self.misconfigured(ipa),
            Exit::Unexpected(reason) => self.fail(format_args!("left for the unexpected reason {reason}")),
        }
    }

    /// Answers a fault of the second stage.
    fn violation(&mut self, fault: &Fault) {
        let section = self.hypervisor.waiting.enter_here(self.this.core.id());
        let outcome = self.guest.space.fault(&section, &self.this.core, &*self.tlb, fault);
        section.leave_here();
        match outcome {
            Ok(Outcome::Mapped | Outcome::Allowed | Outcome::AlreadyMapped) => {}
            // It may be for memory that rests: a guest that comes again for it may be the only one who ever does.
            Ok(Outcome::Busy) => self.tidy(),
            Ok(Outcome::Outside) if self.reach_apic(fault) || self.reach_page(fault) => {}
            Ok(Outcome::Outside | Outcome::Denied | Outcome::Noted(_)) => {
                debug!("{}: vCPU {} reached for {}", self.name(), self.vcpu, fault.ipa);
                self.vmcs.inject(Event::GeneralProtection);
            }
            // The guest faults again, and finds one.
            Err(SpaceError::OutOfTables { .. }) if self.prune() => {}
            Err(error) => self.fail(format_args!("cannot go on: {error}")),
        }
    }

    /// Gives back what rests since an unlink.
    fn tidy(&self) {
        if self.guest.space.tree().is_draining() {
            let mut section = self.hypervisor.waiting.enter(self.this.core.id());
            let _ = self.guest.space.drain(&mut section, &self.this.core); // what still rests is for the next one who idles
        }
    }

    /// Gives back tables in which nothing is mapped any more. Tells whether there were any.
    fn prune(&self) -> bool {
        let mut section = self.hypervisor.waiting.enter(self.this.core.id());
        self.guest.space.prune_all(&mut section, &*self.tlb).unwrap_or(false)
    }
}

impl Drop for Turn {
    /// The CPU forgets all of it that is not in a TLB, before the guest may go.
    fn drop(&mut self) {
        self.this.leaves();
        self.vmcs.end();
        tracing::leaves_tables();
    }
}
