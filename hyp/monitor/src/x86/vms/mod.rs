//! Building virtual machines, and running them.
//!
//! The boot CPU reads the bundle and makes every guest; then each CPU runs the vCPU that belongs to it, for ever. A vCPU has
//! a CPU to itself: what of its state the CPU keeps (floating point, the MSRs of system calls) is never somebody else's.
//!
//! Neighbours: `space` is what is behind a guest's addresses, `vm` reads the bundle and serves the calls, `x86_64` enters
//! and leaves.

mod cpuid;
mod guest;
mod linear;
mod msr;
mod primary;
mod statistics;
mod tracing;
mod turn;

use super::machine::{Machine, PerCpu};
use crate::servers::Servers;
use crate::{fatal, noted, outlet, report, waiting};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use ept::{Ept, Layout};
use guest::Guest;
use log::info;
use spin::Once;
use stage2::Kick;
use turn::Turn;
use types::{Cpu, CpuId, Range, Ticks};
use vm::service::Left;
use vm::{Granted, Role};
use x86_64::apic::Apic;
use x86_64::instr::{rdtsc, wait_for_change};
use x86_64::pic::mask_all;
use x86_64::vmx::tlb::Issued;

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
    guests: Vec<&'static Guest>,
    waiting: Box<waiting::Waiting<Kicks>>,
    layout: Layout,
    issued: Issued,
    /// Who serves guests' transfers.
    servers: Servers,
    /// What a CPU that has nothing to do watches, by its number.
    bells: Vec<AtomicU32>,
    /// Guests that are on.
    on: AtomicUsize,
    /// The time-stamp counter at the first entry to a guest; 0 before.
    first_entry: AtomicU64,
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
    match hypervisor.seat(this.core.id()) {
        Some((guest, vcpu)) => Turn::new(hypervisor, this, guest, vcpu).run(),
        None => hypervisor.idle(this),
    }
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
            guests: Vec::new(),
            waiting: waiting::of(machine.options.wait, Kicks(machine, this.apic)),
            layout,
            issued: Issued::default(),
            servers: Servers::default(),
            bells: machine.cpus().map(|_| AtomicU32::new(0)).collect(),
            on: AtomicUsize::new(0),
            first_entry: AtomicU64::new(0),
        });
        if configs.len() > 1 {
            outlet::expect_several();
        }
        for config in configs {
            let config = config.clone();
            let name = config.name.clone();
            if !matches!(config.role, Role::Guest | Role::Primary) {
                fatal!("virtual machine \"{name}\": this architecture has no controllers and no templates");
            }
            if config.hypercalls == Granted::Trace {
                fatal!("virtual machine \"{name}\": this architecture has no trace");
            }
            for (vcpu, cpu) in config.cpus.iter().enumerate() {
                let taken = config.cpus[..vcpu].contains(cpu) || hypervisor.seat(*cpu).is_some();
                if taken {
                    fatal!("virtual machine \"{name}\": CPU {} is another vCPU's already", cpu.index());
                }
            }
            let bytes = config.memory().map(Range::len).sum::<u64>();
            let vcpus = config.vcpus();
            let number = hypervisor.guests.len() as u16;
            let guest =
                Guest::new(&hypervisor, this, number, config).unwrap_or_else(|error| fatal!("{error}"));
            hypervisor.guests.push(Box::leak(Box::new(guest)));
            info!("{name}: {vcpus} vCPUs, {} MiB", bytes >> 20);
        }
        if configs.iter().all(|config| config.role != Role::Primary) {
            // SAFETY: no guest has the machine's devices, and the hypervisor takes no interrupts.
            unsafe { mask_all() };
        }
        hypervisor.on.store(hypervisor.guests.len(), Relaxed);
        for guest in &hypervisor.guests {
            guest.load(&hypervisor, this).unwrap_or_else(|error| fatal!("{error}"));
        }
        hypervisor
    }

    /// Returns whose vCPU belongs to a CPU.
    fn seat(&self, cpu: CpuId) -> Option<(&'static Guest, usize)> {
        self.guests.iter().find_map(|guest| {
            let vcpu = guest.config().cpus.iter().position(|other| *other == cpu)?;
            Some((*guest, vcpu))
        })
    }

    /// Has a CPU look at what it has to do, whether it runs its guest or has nothing to do.
    fn ring(&self, this: &PerCpu, cpu: CpuId) {
        if let Some(bell) = self.bells.get(cpu.index()) {
            bell.fetch_add(1, Relaxed);
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
        self.bells.get(this.core.id().index()).map_or(0, |bell| bell.load(Relaxed))
    }

    /// Has nothing to do, for ever.
    fn idle(&self, this: &PerCpu) -> ! {
        loop {
            let seen = self.bell(this);
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
            let steps = self.guests.iter().map(|guest| guest.serve(self, this, company));
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

    /// Notes that a guest is off for good. The last one turns off the machine.
    fn guest_is_off(&self) {
        if self.on.fetch_sub(1, Relaxed) == 1 {
            noted::end();
            statistics::print(self);
            report::end(self.machine.options.end);
        }
    }
}
