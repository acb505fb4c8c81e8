//! Building virtual machines, and running them.
//!
//! The boot CPU reads the bundle, makes every guest, and gives each vCPU its place at the CPU that it belongs to; a controller
//! makes further ones. Each CPU runs the vCPU that has come to it until the end of its guest, and then waits for another. A
//! vCPU has a CPU to itself meanwhile: what of its state the CPU keeps (floating point, the MSRs of system calls) is reset
//! where the next one starts.
//!
//! Neighbours: `space` is what is behind a guest's addresses, `vm` reads the bundle and serves the calls, `x86_64` enters
//! and leaves.

mod cpuid;
mod desk;
mod guest;
mod linear;
mod making;
mod msr;
mod primary;
mod statistics;
mod tracing;
mod turn;

use super::machine::{Machine, PerCpu};
use crate::ledger::Ledger;
use crate::ram::Load;
use crate::servers::Servers;
use crate::{control, fatal, noted, outlet, report, waiting};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use desk::Desk;
use ept::{Ept, Layout};
use frames::{Order, Usage};
use guest::Guest;
use making::Here;
use spin::Once;
use stage2::Kick;
use turn::Turn;
use types::{Cpu, CpuId, Ipa, Pa, Ticks};
use vm::service::Left;
use vm::{Granted, Role};
use x86_64::apic::{Apic, Mode};
use x86_64::instr::{rdtsc, wait_for_change};
use x86_64::pic::mask_all;
use x86_64::vmx::tlb::Issued;
use x86_64::vmx::vmcs::Has;

/// The format of every guest's tables.
type Format = Ept;

/// The most steps of transfers that a CPU does before it looks after its guest again.
const STEPS: u32 = 32;

/// The widest guest addresses: enough for any manifest.
pub(super) const IPA_BITS: u32 = 40;

/// Interrupts CPUs of this machine.
struct Kicks(&'static Machine, Apic);

impl Kick for Kicks {
    fn kick(&self, target: CpuId) {
        if let Some(line) = self.0.lines.get(target.index()) {
            line.ring(self.1);
        }
    }
}

/// All guests, and what they share.
struct Hypervisor {
    machine: &'static Machine,
    ledger: Ledger<Guest>,
    bitmaps: Bitmaps,
    /// The place of each CPU's vCPU, by the CPU's number.
    desks: Vec<Desk>,
    waiting: Box<waiting::Waiting<Kicks>>,
    layout: Layout,
    issued: Issued,
    /// Who serves guests' transfers.
    servers: Servers,
    /// What a CPU that has nothing to do watches, by its number.
    bells: Vec<AtomicU32>,
    /// The time-stamp counter at the first entry to a guest; 0 before.
    first_entry: AtomicU64,
}

/// What makes registers and ports of guests exits, a bit each. Of all vCPUs of a kind.
struct Bitmaps {
    /// Registers of a guest that has the machine, and of one that has nothing.
    registers: [Pa; 2],
    /// Ports of a guest that has the machine.
    ports: [Pa; 2],
}

impl Bitmaps {
    fn new(machine: &Machine) -> Self {
        let frame = || {
            let run = machine.frames.allocate(Order::FRAME, Usage::Monitor);
            run.map_or_else(|error| fatal!("no memory for guests: {error}"), frames::Run::into_pa)
        };
        let filled = |bytes: &[u8; msr::BITMAP]| {
            let at = frame();
            // SAFETY: the frame is ours.
            unsafe { write_bytes(at, bytes) };
            at
        };
        Self {
            registers: [Has::Machine, Has::Nothing].map(|has| filled(&msr::bitmap(has))),
            ports: turn::port_bitmaps().each_ref().map(filled),
        }
    }

    fn registers(&self, has: Has) -> Pa {
        let [machine, nothing] = self.registers;
        match has {
            Has::Machine => machine,
            Has::Nothing => nothing,
        }
    }
}

/// Writes a frame.
///
/// # Safety
/// The frame is mapped and the caller's.
unsafe fn write_bytes(frame: Pa, bytes: &[u8; msr::BITMAP]) {
    let to = core::ptr::with_exposed_provenance_mut::<u8>(frame.get() as usize);
    // SAFETY: the caller's promise.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

static HYPERVISOR: Once<Box<Hypervisor>> = Once::new();

/// Runs this CPU's part of the virtual machines. Called on every CPU, once the machine is complete.
pub(super) fn run(this: &'static PerCpu) -> ! {
    let hypervisor: &'static Hypervisor = if this.core.id() == CpuId::BOOT {
        HYPERVISOR.call_once(|| Hypervisor::new(this))
    } else {
        HYPERVISOR.wait()
    };
    hypervisor.servers.join(this.core.id());
    hypervisor.serve_for_ever(this)
}

impl Hypervisor {
    /// Reads the bundle, and makes and loads every guest in it. What is wrong with the bundle ends the machine.
    #[inline(never)]
    fn new(this: &'static PerCpu) -> Box<Self> {
        let machine = this.machine;
        let layout = Layout::choose(IPA_BITS, machine.capabilities.ept)
            .unwrap_or_else(|error| fatal!("this CPU cannot translate guest addresses: {error:?}"));
        let configs = &machine.guests;
        tracing::start_if_asked(machine); // from the first entry of the first table on
        let mut hypervisor = Box::new(Self {
            machine,
            ledger: Ledger::new(for_guests(machine)),
            bitmaps: Bitmaps::new(machine),
            desks: machine.cpus().map(|_| Desk::new()).collect(),
            waiting: waiting::of(machine.options.wait, Kicks(machine, this.apic)),
            layout,
            issued: Issued::default(),
            servers: Servers::default(),
            bells: machine.cpus().map(|_| AtomicU32::new(0)).collect(),
            first_entry: AtomicU64::new(0),
        });
        if configs.len() > 1 {
            outlet::expect_several();
        }
        for config in configs {
            if config.hypercalls == Granted::Trace {
                fatal!("virtual machine \"{}\": this architecture has no trace by calls", config.name);
            }
            if let (Role::Primary, Mode::Memory(base)) = (config.role, this.apic.mode())
                && config.control_page().is_some_and(|page| page.contains(Ipa::new(base)))
            {
                fatal!(
                    "virtual machine \"{}\": the local APIC is where its control page is to be",
                    config.name
                );
            }
            match config.role {
                Role::Template => hypervisor.ledger.templates.push(config.clone()),
                Role::Guest | Role::Primary => {
                    control::add(&Here(&hypervisor, this), config.clone());
                }
            }
        }
        if configs.iter().all(|config| config.role != Role::Primary) {
            // SAFETY: no guest has the machine's devices, and the hypervisor takes no interrupts.
            unsafe { mask_all() };
        }
        let guests: Vec<_> = hypervisor.ledger.roster.iter().collect();
        for guest in &guests {
            guest.begin(&hypervisor);
        }
        for guest in guests {
            match guest.load(&hypervisor, this, Load::First) {
                Ok(start) => guest.turn_on(&hypervisor, this, start),
                Err(error) => fatal!("{error}"),
            }
            if !hypervisor.seat(&guest, this) {
                fatal!(
                    "virtual machine \"{}\": a CPU of its vCPUs is another vCPU's already",
                    guest.config().name
                );
            }
        }
        hypervisor
    }

    /// Has a CPU look at what it has to do, whether it runs its guest or has nothing to do.
    fn ring(&self, this: &PerCpu, cpu: CpuId) {
        if let Some(bell) = self.bells.get(cpu.index()) {
            bell.fetch_add(1, Release); // who sees it sees what it is about
        }
        if cpu != this.core.id() {
            this.core.kick(cpu);
        }
    }

    /// Waits until this CPU's bell rings again after it was `seen`, unless there is something left to be served.
    fn sleep_unless_asked(&self, this: &PerCpu, seen: u32) {
        report::stop_if_reported();
        if self.servers.is_asked(this.core.id()) {
            return;
        }
        if let Some(bell) = self.bells.get(this.core.id().index()) {
            wait_for_change(bell, seen);
        }
    }

    /// Waits until `deadline`, or for what [`Hypervisor::sleep_unless_asked`] waits for.
    fn sleep_until(&self, this: &PerCpu, seen: u32, deadline: Ticks) {
        report::stop_if_reported();
        let is_called = || self.bell(this) != seen || self.servers.is_asked(this.core.id());
        while !is_called() && rdtsc() < deadline {
            core::hint::spin_loop();
        }
    }

    fn bell(&self, this: &PerCpu) -> u32 {
        self.bells.get(this.core.id().index()).map_or(0, |bell| bell.load(Acquire))
    }

    /// Runs the vCPU that comes to this CPU, until its guest's end, and then the next; serves others where there is none.
    fn serve_for_ever(&'static self, this: &'static PerCpu) -> ! {
        loop {
            let seen = self.bell(this);
            let desk = self.desk(this.core.id());
            if let Some((guest, vcpu)) = desk.and_then(Desk::show_in) {
                Turn::new(self, this, alloc::sync::Arc::clone(&guest), vcpu).run();
                // The place first: who finds the guest gone may make another one.
                desk.into_iter().for_each(Desk::free);
                drop(guest);
                continue;
            }
            self.serve_if_asked(this);
            self.sleep_unless_asked(this, seen);
        }
    }

    /// Serves transfers of any guest's on this CPU, for a while, where it was asked to. What it leaves it comes back for after
    /// the next exit.
    fn serve_if_asked(&self, this: &PerCpu) {
        let me = this.core.id();
        if !self.servers.is_asked(me) {
            return;
        }
        self.servers.take(me);
        let (company, _) = self.servers.company(me);
        let mut left = Left::Nothing;
        for _ in 0..STEPS {
            let steps = self.ledger.roster.iter().map(|guest| guest.serve(self, this, company));
            left = steps.fold(Left::Nothing, |left, of_this| match (left, of_this) {
                (Left::Some, _) | (_, Left::Some) => Left::Some,
                (Left::Later, _) | (_, Left::Later) => Left::Later,
                (Left::Nothing, Left::Nothing) => Left::Nothing,
            });
            if left != Left::Some {
                break;
            }
        }
        if left != Left::Nothing {
            self.servers.ask_self(me);
        }
    }

    /// Asks a CPU to serve what a guest has asked for.
    fn ask_to_serve(&self, this: &PerCpu) {
        self.servers.ask(this.core.id(), |cpu| self.ring(this, cpu));
    }

    /// Notes that a guest is about to be entered.
    fn entered(&self) {
        let _ = self.first_entry.compare_exchange(0, rdtsc(), Relaxed, Relaxed);
    }

    /// Returns the ticks from the hypervisor's start to the first guest's entry.
    fn time_to_entry(&self) -> Ticks {
        self.first_entry.load(Relaxed).saturating_sub(self.machine.started)
    }

    /// Turns off the machine: the last guest is off.
    fn all_are_off(&self) {
        noted::end();
        statistics::print(self);
        report::end(self.machine.options.end);
    }
}

/// Returns the bytes that guests may have in all: what is free, less what tables of pages for all of it would take.
fn for_guests(machine: &Machine) -> u64 {
    let free = machine.frames.stats().free * types::FRAME_SIZE;
    free - free / 256
}
