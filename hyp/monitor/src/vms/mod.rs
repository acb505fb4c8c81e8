//! Building virtual machines, and running them.
//!
//! The boot CPU reads the bundle and makes every guest, and gives each vCPU a seat at the CPU that it belongs to. Then each
//! CPU runs its vCPUs in shifts, for ever.
//!
//! ```text
//! shift:  pick a vCPU ─▶ bring it onto the CPU ─▶ turns: prepare, enter, answer … until it sleeps, its slice is over, or
//!                                                 somebody wants the CPU to look at another one
//! ```
//!
//! Neighbours: `vm` says what a guest sees and which vCPU is to run, `space` what is behind its addresses, `aarch64` enters and leaves it.

mod churn;
mod exercise;
mod guest;
mod input;
mod interrupt;
mod lists;
mod making;
mod seats;
mod service;
mod shift;
mod statistics;
mod tracing;
mod turn;
mod view;

use crate::ledger::Ledger;
use crate::percpu::PerCpu;
use crate::ram::Load;
use crate::roster::MOST_GUESTS;
use crate::{Machine, control, fatal, noted, outlet, platform, report, secondary, waiting};
use aarch64::barrier::{dsb_sy, relax, wfi};
use aarch64::cpu::Core;
use aarch64::errata::Action;
use aarch64::features::{Features, HardwareUpdates, Has};
use aarch64::gic::{IntId, interface};
use aarch64::guest::controls::{self, Controls, Ids};
use aarch64::guest::tlb::{Has as Having, Issued, Means, Style};
use aarch64::guest::unwired::Interface;
use aarch64::sysreg::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use churn::Pace;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use frames::Owner;
use guest::{Guest, Tagged};
use input::{Input, Switch};
use lists::{Lists, Timers};
use log::{info, warn};
use making::Here;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use seats::{Desk, Seat};
use service::Engine;
use shift::Shifts;
use space::{Space, VmidBits, Vmids};
use spin::Once;
use spin::mutex::SpinMutex;
use stage2::Kick;
use tracing::Teller;
use types::sync::relax_by;
use types::{Cpu, CpuId, Height, Ticks, Vmid};
use vm::{Isa, Limits, Role, Seed};
use vmsa::{Granule4K, Layout, Vmsa};

/// The format of every guest's tables.
type Format = Vmsa<Granule4K>;

/// All guests, and what they share.
struct Hypervisor {
    machine: &'static Machine,
    ledger: Ledger<Guest>,
    /// Tables that map nothing, for CPUs whose guest has gone.
    nowhere: Option<Box<Space<'static, Format>>>,
    /// Where each CPU's vCPUs come in, by the CPU's number.
    desks: Vec<Desk>,
    waiting: Box<waiting::Waiting<Kicks>>,
    style: Style,
    format: Format,
    means: Means,
    /// Guests' CPU interface by software, where no CPU hears of a virtual interrupt.
    interface: Option<&'static Interface>,
    /// Whether the address of a translation fault is found by the guest's stage 1, for some CPU's sake ([`Action`]).
    translates_again: bool,
    layout: Layout<Granule4K>,
    vmids: Vmids,
    issued: Issued,
    /// Where a tool looks; `None` where none was announced.
    view: Option<trace::view::View>,
    input: Input,
    engine: Engine,
    teller: Teller,
    pace: Pace,
    /// The system counter at the first entry to a guest; 0 before.
    first_entry: AtomicU64,
    random: SpinMutex<ChaCha20Rng>,
}

static HYPERVISOR: Once<Box<Hypervisor>> = Once::new();

/// Interrupts CPUs of this machine.
struct Kicks(&'static Machine);

impl Kick for Kicks {
    fn kick(&self, target: CpuId) {
        if let Some(&mpidr) = self.0.affinities.get(target.index()) {
            interface::send(IntId::KICK, mpidr);
        }
    }
}

/// Runs this CPU's part of the virtual machines. Called on every CPU, once the machine is complete.
pub fn run(machine: &'static Machine, cpu: CpuId) -> ! {
    let Some(this) = PerCpu::this() else { fatal!("CPU {} has no state of its own", cpu.index()) };
    let hypervisor: &'static Hypervisor = if cpu == CpuId::BOOT {
        let hypervisor = HYPERVISOR.call_once(|| Hypervisor::new(machine, &this.core));
        machine.cpus().filter(|other| *other != cpu).for_each(|other| this.core.kick(other));
        hypervisor
    } else {
        wait_for_boot_cpu()
    };
    let timers = Timers {
        virtual_timer: machine.interrupts.virtual_timer,
        physical_timer: machine.interrupts.physical_timer,
    };
    let (Some(private), Some(desk)) = (secondary::private_interrupts(), hypervisor.desks.get(cpu.index()))
    else {
        fatal!("CPU {} has no redistributor", cpu.index())
    };
    hypervisor.engine.join(hypervisor, &this.core);
    if hypervisor.interface.is_some_and(|interface| !(interface.begin)()) {
        fatal!("this CPU's virtual interface has not five bits of preemption, and its interrupt no line");
    }
    let lists = Lists::new(timers, private);
    Shifts::new(hypervisor, this.core, controls(&machine.features), lists, desk).run()
}

/// Sleeps until the boot CPU has made and loaded the guests, and kicks this CPU.
///
/// The kick may come before the sleep: it stays pending, and ends it.
fn wait_for_boot_cpu() -> &'static Hypervisor {
    loop {
        if let Some(hypervisor) = HYPERVISOR.get() {
            return hypervisor;
        }
        dsb_sy(); // complete before the CPU sleeps, as before any WFI
        wfi();
        interrupt::take_early();
    }
}

/// Decides this CPU's trap controls.
fn controls(common: &Features) -> Controls {
    let mut ids = Ids::read();
    if !common.has.contains(Has::FWB) {
        // Descriptors mean one thing on all CPUs.
        ids.mmfr2 &= !(0xf << 40);
    }
    controls::decide(ids)
}

/// The widest guest addresses: enough for any manifest, and few enough for a walk of three levels.
const IPA_BITS: u32 = 40;

impl Hypervisor {
    /// Reads the bundle, and makes and loads every guest in it. What is wrong with the bundle ends the machine.
    ///
    /// Never inlined: what it needs of the stack is free again when guests run.
    #[inline(never)]
    fn new(machine: &'static Machine, core: &Core<'static>) -> Box<Self> {
        relax_by(relax);
        tracing::start_if_asked(machine);
        let view = view::start_if_asked(machine);
        let features = &machine.features;
        let ipa_bits = IPA_BITS.min(features.pa_bits());
        let layout =
            Layout::<Granule4K>::choose(ipa_bits, Height::new(2), features.pa_range, vtcr_controls(features))
                .unwrap_or_else(|error| {
                    fatal!("this CPU cannot translate {ipa_bits} bits of guest addresses: {error:?}")
                });
        let limits = Limits {
            free: for_guests(machine),
            cpus: machine.affinities.len(),
            ipa_bits: ipa_bits as u8,
            gic: guest::gic_version(machine),
            isa: Isa::Aarch64,
        };
        let configs = vm::configure(machine.bundle, &limits).unwrap_or_else(|error| fatal!("{error}"));
        let mut hypervisor = Box::new(Self {
            machine,
            ledger: Ledger::new(limits.free),
            nowhere: None,
            desks: machine.cpus().map(Desk::new).collect(),
            waiting: waiting::of(machine.options.wait, Kicks(machine)),
            style: machine.options.invalidate,
            format: Vmsa::new(format_features(features)),
            means: means(features),
            interface: platform::board().interface(),
            translates_again: features.errata.actions().contains(Action::TRANSLATE_AGAIN),
            layout,
            vmids: vmids(features, machine.options.invalidate),
            issued: Issued::default(),
            view,
            input: Input::new(),
            engine: Engine::default(),
            teller: Teller::new(),
            pace: Pace::new(),
            first_entry: AtomicU64::new(0),
            random: SpinMutex::new(ChaCha20Rng::from_seed(machine.entropy)),
        });
        let owner = Owner(MOST_GUESTS + 1);
        hypervisor.nowhere = guest::space(&hypervisor, owner, &[]).ok();
        if configs.len() > 1 {
            outlet::expect_several();
            info!("each line begins with its VM's name; Ctrl-] gives the input to the next VM");
        }
        for config in configs {
            if config.role == Role::Template {
                hypervisor.ledger.templates.push(config);
                continue;
            }
            control::add(&Here(&hypervisor, core), config);
        }
        let guests: Vec<_> = hypervisor.ledger.roster.iter().collect();
        for guest in &guests {
            guest.begin(&hypervisor);
        }
        for guest in guests {
            match guest.load(&hypervisor, core, Load::First) {
                Ok(start) => guest.vm.start(core, start),
                Err(error) => fatal!("{error}"),
            }
            if !hypervisor.seat(&guest, core) {
                fatal!("{}: no seat is left for its vCPUs", guest.vm.config().name);
            }
        }
        hypervisor
    }

    /// Returns what names tables that map nothing, under the VMID that is nobody's.
    fn nowhere(&self) -> u64 {
        self.nowhere.as_ref().map_or(0, |space| self.layout.vttbr(space.root(), Vmid(0)))
    }

    /// Notes that a guest is about to be entered.
    fn entered(&self) {
        let _ = self.first_entry.compare_exchange(0, CNTPCT_EL0.get(), Relaxed, Relaxed);
    }

    /// Returns the ticks from the hypervisor's start to the first guest's entry.
    fn time_to_entry(&self) -> Ticks {
        self.first_entry.load(Relaxed).saturating_sub(self.machine.started)
    }

    /// Makes the random bytes of one start of one guest.
    fn seed(&self) -> Seed {
        let mut random = self.random.lock();
        let mut rng = [0; 32];
        random.fill_bytes(&mut rng);
        Seed { rng, kaslr: random.next_u64() }
    }

    /// Turns off the machine: the last guest is off.
    fn all_are_off(&self) {
        statistics::print(self);
        view::write(self);
        noted::end();
        report::end(self.machine.options.end);
    }

    /// Gives each vCPU of `guest` a seat at the CPU that it belongs to, and has that CPU look. Tells whether there were
    /// seats for all; where not, none is taken.
    fn seat(&self, guest: &Arc<Guest>, core: &Core<'_>) -> bool {
        let cpus = &guest.vm.config().cpus;
        let mut seats = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            let desk = self.desks.get(cpu.index());
            let Some((desk, id)) = desk.and_then(|desk| Some((desk, desk.reserve()?))) else {
                for (desk, id) in seats {
                    Desk::free(desk, id);
                }
                return false;
            };
            seats.push((desk, id));
        }
        for (vcpu, (desk, id)) in seats.into_iter().enumerate() {
            desk.admit(id, Seat::new(Arc::clone(guest), vcpu), core);
        }
        true
    }

    /// Returns the guest that console input goes to: the one that was chosen, or the first that is on where that is off.
    fn listener(&self) -> Option<Arc<Guest>> {
        let mut on = self.ledger.roster.iter().filter(|guest| guest.is_on());
        let first = on.next()?;
        let chosen = outlet::listener();
        if first.number == chosen {
            return Some(first);
        }
        let found = on.find(|guest| guest.number == chosen).unwrap_or(first);
        outlet::give_input(found.number);
        Some(found)
    }

    /// Gives the input to the next guest that is on.
    fn next_listener(&self) {
        let chosen = outlet::listener();
        let on = || self.ledger.roster.iter().filter(|guest| guest.is_on());
        if let Some(next) = on().find(|guest| guest.number > chosen).or_else(|| on().next()) {
            outlet::give_input(next.number);
            info!("the input goes to {}", next.vm.config().name);
        }
    }

    /// Notes that `guest` has read from its serial port.
    #[inline]
    fn has_read(&self, guest: &Guest, core: &Core<'_>) {
        if self.input.is_waiting() && outlet::listener() == guest.number {
            self.input.go_on(guest, &self.engine, core);
        }
    }

    /// Takes an interrupt that is no vCPU's.
    fn machine_interrupt(&self, core: &Core<'_>, id: IntId) {
        if Some(id) == self.machine.console_interrupt {
            if self.input.receive(self.listener().as_deref(), &self.engine, core) == Switch::Next {
                self.next_listener();
            }
        } else {
            warn!("interrupt {id} on CPU {} is nobody's", core.id().index());
        }
    }
}

/// Returns the ticks that the system counter makes in a second.
fn tick_hz() -> u64 {
    CNTFRQ_EL0.get()
}

/// Returns the bytes that guests may have in all: what is free, less what tables of pages for all of it would take.
fn for_guests(machine: &Machine) -> u64 {
    let free = machine.frames.stats().free * types::FRAME_SIZE;
    free - free / 256
}

fn format_features(features: &Features) -> vmsa::Features {
    let mut format = vmsa::Features::empty();
    format.set(vmsa::Features::FWB, features.has.contains(Has::FWB));
    format.set(vmsa::Features::HARDWARE_DIRTY, features.updates == HardwareUpdates::Dirty);
    format
}

fn vtcr_controls(features: &Features) -> vmsa::Controls {
    let mut controls = vmsa::Controls::empty();
    controls.set(vmsa::Controls::HARDWARE_YOUNG, features.updates >= HardwareUpdates::AccessFlag);
    controls.set(vmsa::Controls::HARDWARE_DIRTY, features.updates == HardwareUpdates::Dirty);
    controls.set(vmsa::Controls::VMID16, features.vmid_bits == 16);
    controls
}

fn vmids(features: &Features, style: Style) -> Vmids {
    let vmids = Vmids::new(if features.vmid_bits == 16 { VmidBits::Sixteen } else { VmidBits::Eight });
    match style {
        Style::Broadcast => vmids,
        Style::Interrupt => vmids.emptied_by_each(),
    }
}

fn means(features: &Features) -> Means {
    let having = |has| if features.has.contains(has) { Having::Yes } else { Having::No };
    // The guests' tables are of the format without LPA2.
    let wide_addresses = Having::No;
    let actions = features.errata.actions();
    let doing = |action| if actions.contains(action) { Having::Yes } else { Having::No };
    Means {
        level_hint: having(Has::TTL),
        ranges: having(Has::RANGE_TLBI),
        wide_addresses,
        repeat: doing(Action::REPEAT_TLBI),
        hold_walks: doing(Action::HOLD_WALKS),
    }
}
