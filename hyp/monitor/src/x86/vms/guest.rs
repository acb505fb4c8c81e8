//! A virtual machine with its memory, and how it is loaded.

mod offline;

use super::super::machine::{Entering, PerCpu};
use super::{Format, Hypervisor, primary, tracing};
use crate::ledger::{Began, Others, Standing};
use crate::outlet::Outlet;
use crate::ram::{Load, SpaceRam};
use crate::remains::Remains;
use crate::roster::Listed;
use crate::unfit::Unfit;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use frames::{FrameError, Order, Owner, Run, Usage};
use log::debug;
use space::{Region, Space, SpaceError, table_budget};
use spin::mutex::SpinMutex;
use stage2::{Bbm, Presence, Quiescence};
use types::{Cpu, Range};
use vm::error::{BadVm, Error};
use vm::image::{self, Placement};
use vm::service::{Company, Left, Memory, Service, borrowed_window};
use vm::{Granted, Power, PowerStates, Role, Step, VmConfig, Why, pvh};
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
    power: SpinMutex<PowerStates<Start>>,
    vcpus: Vec<Own>,
    /// Its place among the guests.
    pub(super) number: u16,
    /// The page of the local APIC, which a guest that has the machine gets once all its vCPUs have started.
    apic: Option<Region>,
    /// Whether it has it.
    open: AtomicBool,
    standing: Standing,
    exits: [AtomicU64; Reason::ALL.len()],
}

/// The frames of a vCPU.
pub(super) struct Own {
    /// Its VMCS.
    pub(super) vmcs: Run<'static>,
    /// Where the hardware lists written pages.
    pub(super) list: Option<Run<'static>>,
}

impl Listed for Guest {
    type Format = Format;

    fn config(&self) -> &VmConfig {
        &self.config
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
        let placement = image::plan(&config).map_err(|fault| Error::vm(&config.name, fault))?;
        let memory: Vec<Range> = config.memory().collect();
        let unfit = |error| Unfit::space(&config.name, error);
        let regions: Vec<Region> = match config.role {
            Role::Primary => primary::regions(hypervisor.machine, &config),
            _ => {
                let borrows = (config.hypercalls != Granted::Nothing).then(borrowed_window);
                let ram = memory.iter().copied().map(Region::ram);
                ram.chain(borrows.map(Region::borrowed)).collect()
            }
        };
        let apic = match (config.role, this.apic.mode()) {
            (Role::Primary, Mode::Memory(base)) if config.vcpus() > 1 => Some(primary::apic_page(base)),
            _ => None,
        };
        let ranges: Vec<Range> = regions.iter().map(|region| region.range).collect();
        let mut space = space(hypervisor, Owner(number + 1), &ranges).map_err(unfit)?;
        space.limit_leaves(config.largest.height());
        let mut section = hypervisor.waiting.enter(this.core.id());
        let withheld = apic.map(|page| page.range);
        for region in regions.iter().flat_map(|region| primary::without(*region, withheld)) {
            space.add_region(&mut section, region).map_err(unfit)?;
        }
        drop(section);
        let lists = config.role != Role::Primary && hypervisor.machine.capabilities.has_pml();
        let own = || -> Result<Own, FrameError> {
            let frame = || hypervisor.machine.frames.allocate(Order::FRAME, Usage::Monitor);
            Ok(Own { vmcs: frame()?, list: lists.then(frame).transpose()? })
        };
        let vcpus = config.cpus.iter().map(|_| own()).collect::<Result<_, _>>();
        let vcpus =
            vcpus.map_err(|_| unfit(SpaceError::OutOfMemory { ipa: config.main_memory().start() }))?;
        let service = match config.hypercalls {
            Granted::Nothing => None,
            granted => Some(Box::new(Service::new(memory.into_iter(), granted, config.besides()))),
        };
        let outlet = Outlet::new(number, &config.name);
        Ok(Self {
            placement,
            space,
            presence: Box::default(),
            lists,
            listed: AtomicU64::new(0),
            service,
            outlet,
            power: SpinMutex::default(),
            vcpus,
            number,
            open: AtomicBool::new(apic.is_none()),
            apic,
            standing: Standing::new(),
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

    /// As [`Guest::tlb`], for a CPU that runs a vCPU of it.
    ///
    /// # Safety
    /// The guest stays for as long as what is returned is used.
    pub(super) unsafe fn entering(&self, hypervisor: &'static Hypervisor, this: &'static PerCpu) -> Entering {
        let presence: *const Presence = &*self.presence;
        // SAFETY: the caller's promise.
        let presence = unsafe { &*presence };
        Entering { presence, cpu: &this.core, issued: &hypervisor.issued, ..self.tlb(hypervisor, &this.core) }
    }

    /// Counts the guest among those that are on, before it is loaded and started.
    pub(super) fn begin(&self, hypervisor: &Hypervisor) -> Began {
        self.standing.begin(&hypervisor.ledger)
    }

    /// Notes that the guest is off for good, or until it is started anew. The last one turns off the machine.
    pub(super) fn finish(&self, hypervisor: &Hypervisor) {
        if self.standing.finish(&hypervisor.ledger) == Others::None {
            hypervisor.all_are_off();
        }
    }

    /// Tells whether it is on.
    pub(super) fn is_on(&self) -> bool {
        self.standing.is_on()
    }

    /// Condemns its space, and has the CPUs that its vCPUs belong to let go of them, each by itself. It is off, and stays so.
    pub(super) fn dismiss(&self, hypervisor: &Hypervisor, this: &PerCpu) {
        self.space.condemn(&mut hypervisor.waiting.enter(this.core.id()));
        self.standing.dismiss();
        self.ring_all(hypervisor, this);
    }

    /// Tells whether its vCPUs are to give up their CPUs.
    pub(super) fn is_leaving(&self) -> bool {
        self.standing.is_leaving()
    }

    /// Takes the guest apart, which is the caller's alone: no CPU has a vCPU of it. What it had is in no TLB any more.
    #[inline(never)] // likewise
    pub(super) fn take_apart(self, hypervisor: &Hypervisor, this: &PerCpu) -> Remains<Format> {
        self.finish(hypervisor);
        let memory = self.config.frames_bytes();
        let Self { space, presence, lists, .. } = self;
        let (owner, eptp) = (space.owner(), hypervisor.layout.eptp(space.root()));
        let (cpu, issued) = (&this.core, &hypervisor.issued);
        let tlb = Tlb { eptp, kind: hypervisor.layout.invept(), cpu, presence: &presence, lists, issued };
        let space = (*space).start_destroy(&mut hypervisor.waiting.enter(this.core.id()), &tlb);
        Remains::new(space, owner, memory)
    }

    /// Returns the frames of a vCPU.
    pub(super) fn own(&self, vcpu: usize) -> Option<&Own> {
        self.vcpus.get(vcpu)
    }

    /// Puts kernel, start information and initial file system into the memory of a guest that is off, and says how its first
    /// vCPU starts. Where it had contents, they are discarded first.
    #[inline(never)] // likewise
    pub(super) fn load(&self, hypervisor: &Hypervisor, this: &PerCpu, load: Load) -> Result<Start, Unfit> {
        let config = &self.config;
        let of_vm = |fault| Error::vm(&config.name, fault);
        let entry = self.placement.entry.get() as u32;
        if config.role == Role::Primary {
            let esi = primary::load(hypervisor.machine, config, &self.placement);
            return Ok(Start::Flat { entry, ebx: 0, esi: esi.ok_or_else(|| of_vm(BadVm::Start))? });
        }
        let tlb = self.tlb(hypervisor, &this.core);
        let ram = SpaceRam { space: &self.space, waiting: &hypervisor.waiting, cpu: &this.core, tlb: &tlb };
        ram.prepare(config, load).map_err(|error| Unfit::space(&config.name, error))?;
        let start = pvh::start_information(config, &self.placement).ok_or_else(|| of_vm(BadVm::Start))?;
        let initrd = config.initrd.map_or(&[][..], |file| file.bytes);
        image::load(&self.placement, initrd, &start, &ram).map_err(|error| of_vm(BadVm::Ram(error)))?;
        // Main memory and what is in it are below 4 GiB: the image's checks have found it inside the memory.
        Ok(Start::Flat { entry, ebx: self.placement.dtb.start().get() as u32, esi: 0 })
    }

    /// Turns the machine on, with its first vCPU. It is loaded. Does nothing where it is not off.
    pub(super) fn turn_on(&self, hypervisor: &Hypervisor, this: &PerCpu, start: Start) {
        let is_new = self.power.lock().start(start);
        if let Some(cpu) = self.config.cpus.first().filter(|_| is_new) {
            hypervisor.ring(this, *cpu);
        }
    }

    /// Has a vCPU start that has not. Tells whether it will.
    pub(super) fn turn_on_vcpu(
        &self,
        hypervisor: &Hypervisor,
        this: &PerCpu,
        vcpu: usize,
        start: Start,
    ) -> bool {
        let Some(cpu) = self.config.cpus.get(vcpu) else { return false };
        let is_new = self.power.lock().turn_on(vcpu, start).is_ok();
        if is_new {
            hypervisor.ring(this, *cpu);
        }
        is_new
    }

    /// Stops the machine: every vCPU leaves it and goes off. Returns at once. Does nothing where it stops already, or is off.
    pub(super) fn stop(&self, hypervisor: &Hypervisor, this: &PerCpu, why: Why) {
        if self.power.lock().stop(why) {
            self.ring_all(hypervisor, this);
        }
    }

    fn ring_all(&self, hypervisor: &Hypervisor, this: &PerCpu) {
        self.config.cpus.iter().for_each(|cpu| hypervisor.ring(this, *cpu));
    }

    /// Tells a vCPU's own CPU what to do next about its power.
    pub(super) fn step(&self, vcpu: usize) -> Step<Start> {
        self.power.lock().step(vcpu)
    }

    /// Tells whether a vCPU has been started.
    pub(super) fn is_started(&self, vcpu: usize) -> bool {
        self.power.lock().of(vcpu) != Power::Off
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
