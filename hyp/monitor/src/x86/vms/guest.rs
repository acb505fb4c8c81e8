//! A virtual machine with its memory, and how it is loaded.

use super::super::machine::{Entering, PerCpu};
use super::{Format, Hypervisor, primary, tracing};
use crate::outlet::Outlet;
use crate::ram::SpaceRam;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use frames::Owner;
use log::debug;
use space::{Region, Space, SpaceError, table_budget};
use spin::mutex::SpinMutex;
use stage2::{Bbm, Presence, Quiescence};
use types::{Cpu, Height, Range};
use vm::image::{self, Placement};
use vm::service::{Company, Left, Memory, Service};
use vm::{Granted, Largest, Populate, RamError, Role, VmConfig, pvh};
use x86_64::apic::Mode;
use x86_64::cpu::Core;
use x86_64::vmx::tlb::Tlb;
use x86_64::vmx::vmcs::Start;

/// A section of the way of waiting that is in use.
type Section<'q> = <crate::waiting::Waiting<super::Kicks> as Quiescence>::Section<'q>;
/// A guest's memory, as a CPU of this machine reaches it.
pub(super) type GuestMemory<'m, 'q> =
    Memory<'m, 'static, Format, Section<'q>, Core<'static>, Tlb<'m, Core<'static>>>;

/// What exits are counted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// Kicks.
    Kick,
    /// Faults of the second stage.
    Fault,
    /// Calls.
    Call,
    /// Ports.
    Port,
    /// CPUID.
    Cpuid,
    /// Model-specific registers.
    Msr,
    /// HLT.
    Wait,
    /// Its timer.
    Timer,
    /// All others.
    Other,
}

impl Reason {
    /// All of them, with their names.
    pub(super) const ALL: [(Self, &'static str); 9] = [
        (Self::Kick, "kick"),
        (Self::Fault, "fault"),
        (Self::Call, "call"),
        (Self::Port, "port"),
        (Self::Cpuid, "CPUID"),
        (Self::Msr, "MSR"),
        (Self::Wait, "wait"),
        (Self::Timer, "timer"),
        (Self::Other, "other"),
    ];
}

/// A virtual machine with its memory.
pub(super) struct Guest {
    config: VmConfig,
    placement: Placement,
    pub(super) space: Box<Space<'static, Format>>,
    /// Which CPUs are in it.
    presence: Box<Presence>,
    /// Whether its CPUs list the pages that it writes.
    pub(super) lists: bool,
    /// How many they have listed.
    pub(super) listed: AtomicU64,
    pub(super) service: Option<Box<Service>>,
    pub(super) outlet: Outlet,
    /// How each vCPU is to start, until its CPU takes that.
    starts: Vec<SpinMutex<Option<Start>>>,
    /// Which vCPUs have been started, a bit each.
    started: AtomicU64,
    /// Its place among the guests.
    pub(super) number: u16,
    /// The page of the local APIC, which a guest that has the machine gets once all its vCPUs have started.
    apic: Option<Region>,
    /// Whether it has it.
    open: AtomicBool,
    off: AtomicBool,
    exits: [AtomicU64; Reason::ALL.len()],
}

/// Why a guest cannot be made or loaded.
#[derive(Debug)]
pub(super) enum Unfit {
    /// The manifest asks for what cannot be.
    Vm { name: String, fault: vm::error::BadVm },
    /// Its memory cannot be had.
    Space { name: String, error: SpaceError },
    /// What it starts with has no room: its command line is too long.
    Start { name: String },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm { name, fault } => write!(f, "virtual machine \"{name}\": {fault}"),
            Self::Space { name, error } => write!(f, "virtual machine \"{name}\": {error}"),
            Self::Start { name } => write!(f, "virtual machine \"{name}\": its command line is too long"),
        }
    }
}

impl Guest {
    /// Makes the guest that `config` describes, in place `number`, without contents.
    #[inline(never)] // needs much of the stack, seldom
    pub(super) fn new(
        hypervisor: &Hypervisor,
        this: &PerCpu,
        number: u16,
        config: VmConfig,
    ) -> Result<Self, Unfit> {
        let name = || config.name.clone();
        let placement = image::plan(&config).map_err(|fault| Unfit::Vm { name: name(), fault })?;
        let memory: Vec<Range> = config.memory().collect();
        let unfit = |error| Unfit::Space { name: name(), error };
        let regions: Vec<Region> = match config.role {
            Role::Primary => primary::regions(hypervisor.machine, config.memory),
            _ => memory.iter().copied().map(Region::ram).collect(),
        };
        let apic = match (config.role, this.apic.mode()) {
            (Role::Primary, Mode::Memory(base)) if config.vcpus() > 1 => Some(primary::apic_page(base)),
            _ => None,
        };
        let ranges: Vec<Range> = regions.iter().map(|region| region.range).collect();
        let mut space = space(hypervisor, Owner(number + 1), &ranges).map_err(unfit)?;
        space.limit_leaves(match config.largest {
            Largest::Page => Height::PAGE,
            Largest::Block2M => Height::new(1),
            Largest::Block1G => Height::new(2),
        });
        let mut section = hypervisor.waiting.enter(this.core.id());
        let withheld = apic.map(|page| page.range);
        for region in regions.iter().flat_map(|region| primary::without(*region, withheld)) {
            space.add_region(&mut section, region).map_err(unfit)?;
        }
        drop(section);
        let service = match config.hypercalls {
            Granted::Nothing => None,
            granted => Some(Box::new(Service::new(memory.into_iter(), granted, &[]))),
        };
        let outlet = Outlet::new(number, &config.name);
        Ok(Self {
            placement,
            space,
            presence: Box::default(),
            lists: config.role != Role::Primary && hypervisor.machine.capabilities.has_pml(),
            listed: AtomicU64::new(0),
            service,
            outlet,
            starts: config.cpus.iter().map(|_| SpinMutex::new(None)).collect(),
            started: AtomicU64::new(1),
            number,
            open: AtomicBool::new(apic.is_none()),
            apic,
            off: AtomicBool::new(false),
            exits: Default::default(),
            config,
        })
    }

    /// Returns what the manifest says of it.
    pub(super) const fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Returns the EPT pointer of its tables.
    pub(super) fn eptp(&self, hypervisor: &Hypervisor) -> u64 {
        hypervisor.layout.eptp(self.space.root())
    }

    /// Returns how its translations are invalidated by the CPU that runs this.
    pub(super) fn tlb<'a>(
        &'a self,
        hypervisor: &'a Hypervisor,
        core: &'a Core<'static>,
    ) -> Tlb<'a, Core<'static>> {
        Tlb {
            eptp: self.eptp(hypervisor),
            kind: hypervisor.layout.invept(),
            cpu: core,
            presence: &self.presence,
            lists: self.lists,
            issued: &hypervisor.issued,
        }
    }

    /// As [`Guest::tlb`], for a CPU that runs it for ever.
    pub(super) fn entering(
        &'static self,
        hypervisor: &'static Hypervisor,
        this: &'static PerCpu,
    ) -> Entering {
        self.tlb(hypervisor, &this.core)
    }

    /// Puts kernel, start information and initial file system into its memory, and says how its first vCPU starts.
    #[inline(never)] // likewise
    pub(super) fn load(&self, hypervisor: &Hypervisor, this: &PerCpu) -> Result<(), Unfit> {
        let name = || self.config.name.clone();
        if self.config.role == Role::Primary {
            let esi = primary::load(hypervisor.machine, &self.config, &self.placement)
                .ok_or_else(|| Unfit::Start { name: name() })?;
            let entry = self.placement.entry.get() as u32;
            self.start(0, Start::Flat { entry, ebx: 0, esi });
            return Ok(());
        }
        let tlb = self.tlb(hypervisor, &this.core);
        if self.config.populate == Populate::Ahead {
            let mut section = hypervisor.waiting.enter(this.core.id());
            for range in self.config.memory() {
                let populated = self.space.populate(&mut section, &this.core, &tlb, range);
                populated.map_err(|error| Unfit::Space { name: name(), error })?;
            }
        }
        let ram = SpaceRam { space: &self.space, waiting: &hypervisor.waiting, cpu: &this.core, tlb: &tlb };
        let start = pvh::start_information(&self.config, &self.placement);
        let start = start.ok_or_else(|| Unfit::Start { name: name() })?;
        let initrd = self.config.initrd.map_or(&[][..], |file| file.bytes);
        let ram_fault = |error: RamError| Unfit::Vm { name: name(), fault: vm::error::BadVm::Ram(error) };
        image::load(&self.placement, initrd, &start, &ram).map_err(ram_fault)?;
        // Main memory and what is in it are below 4 GiB: the image's checks have found it inside the memory.
        let entry = self.placement.entry.get() as u32;
        let ebx = self.placement.dtb.start().get() as u32;
        self.start(0, Start::Flat { entry, ebx, esi: 0 });
        Ok(())
    }

    /// Says how a vCPU is to start. Its CPU is to be rung for.
    pub(super) fn start(&self, vcpu: usize, start: Start) {
        if let Some(slot) = self.starts.get(vcpu) {
            *slot.lock() = Some(start);
        }
    }

    /// Claims the right to start a vCPU. Tells whether nobody had.
    pub(super) fn claim_start(&self, vcpu: usize) -> bool {
        let bit = 1_u64.checked_shl(vcpu as u32).unwrap_or(0);
        bit != 0 && self.started.fetch_or(bit, Relaxed) & bit == 0
    }

    /// Takes how a vCPU is to start, if it is to.
    pub(super) fn take_start(&self, vcpu: usize) -> Option<Start> {
        self.starts.get(vcpu)?.lock().take()
    }

    /// Tells whether somebody has claimed to start a vCPU.
    pub(super) fn is_started(&self, vcpu: usize) -> bool {
        let bit = 1_u64.checked_shl(vcpu as u32).unwrap_or(0);
        self.started.load(Relaxed) & bit != 0
    }

    /// Tells whether all vCPUs have been started.
    pub(super) fn all_started(&self) -> bool {
        (0..self.config.vcpus()).all(|vcpu| self.is_started(vcpu))
    }

    /// Returns the page of the APIC while the guest does not have it.
    pub(super) fn withheld(&self) -> Option<Region> {
        self.apic.filter(|_| !self.open.load(Relaxed))
    }

    /// Gives the guest the page of the APIC.
    pub(super) fn open(&self, section: &mut Section<'_>) {
        if let Some(page) = self.withheld()
            && !self.open.swap(true, Relaxed)
            && let Err(error) = self.space.add_region(section, page)
        {
            // Busy: another CPU changes the regions; whoever comes next to the page tries again.
            debug!("{}: the APIC is not given yet: {error}", self.config.name);
            self.open.store(false, Relaxed);
        }
    }

    /// Tells whether it is off.
    pub(super) fn is_off(&self) -> bool {
        self.off.load(Relaxed)
    }

    /// Stops it for good: its vCPUs are not entered again once their CPUs have left them.
    pub(super) fn stop(&self, hypervisor: &Hypervisor, this: &PerCpu) {
        if self.off.swap(true, Relaxed) {
            return;
        }
        for cpu in &self.config.cpus {
            hypervisor.ring(this, *cpu);
        }
        if let Some(service) = &self.service {
            self.with_memory(hypervisor, this, |memory| service.end(memory));
        }
        hypervisor.guest_is_off();
    }

    /// Runs `act` with its memory on the CPU that runs this, in a section.
    pub(super) fn with_memory<R>(
        &self,
        hypervisor: &Hypervisor,
        this: &PerCpu,
        act: impl FnOnce(&mut GuestMemory<'_, '_>) -> R,
    ) -> R {
        let tlb = self.tlb(hypervisor, &this.core);
        let mut section = hypervisor.waiting.enter(this.core.id());
        act(&mut Memory { space: &self.space, section: &mut section, cpu: &this.core, tlb: &tlb })
    }

    /// Does a step of its transfers. Tells what is left of them.
    pub(super) fn serve(&self, hypervisor: &Hypervisor, this: &PerCpu, company: Company) -> Left {
        self.service.as_ref().map_or(Left::Nothing, |service| {
            self.with_memory(hypervisor, this, |memory| service.serve(memory, company))
        })
    }

    /// Counts an exit.
    pub(super) fn count(&self, reason: Reason) {
        self.exits[reason as usize].fetch_add(1, Relaxed);
    }

    /// Returns how many exits of one kind there were.
    pub(super) fn exits(&self, reason: Reason) -> u64 {
        self.exits[reason as usize].load(Relaxed)
    }
}

/// Makes a space without regions, and with tables enough for `regions`.
#[inline(never)] // made on the stack, of which it needs much
fn space(
    hypervisor: &Hypervisor,
    owner: Owner,
    regions: &[Range],
) -> Result<Box<Space<'static, Format>>, SpaceError> {
    let machine = hypervisor.machine;
    let (format, geometry) = (hypervisor.layout.format(), hypervisor.layout.geometry());
    let budget = table_budget::<Format>(&geometry, regions);
    // The format knows that sizes may change in place; the level is the other architecture's.
    let bbm = Bbm::Level3.min(machine.options.bbm);
    let space = Box::new(Space::new(&machine.frames, owner, format, geometry, bbm, budget)?);
    tracing::space_is_made(hypervisor, &space);
    Ok(space)
}
