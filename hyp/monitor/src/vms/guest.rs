//! A virtual machine with its memory, and how it is loaded.

use super::exercise::Exercise;
use super::{Format, Hypervisor, tracing};
use crate::Machine;
use crate::ledger::{Began, Others, Standing};
use crate::outlet::Outlet;
use crate::ram::{Load, SpaceRam};
use crate::remains::Remains;
use crate::roster::Listed;
use crate::unfit::Unfit;
use aarch64::cpu::Core;
use aarch64::guest::controls::Identity;
use aarch64::guest::tlb::{Stage2, Tag, before_tables_change, forget_sibling};
use aarch64::sysreg::{MIDR_EL1, Readable};
use alloc::boxed::Box;
use alloc::vec::Vec;
use frames::Owner;
use log::debug;
use space::{Region, Space, SpaceError, table_budget};
use stage2::{Format as _, Presence, Quiescence};
use types::{Cpu, CpuId, CpuSet, Pa, Range};
use vm::sched::{Left, Siblings};
use vm::service::{Churn, borrowed_window};
use vm::{GicModel, GicVersion, Granted, IdBits, Start, TimerIntids, Vcpu, Vm, VmConfig};

/// A virtual machine with its memory.
pub(super) struct Guest {
    pub(super) vm: Vm,
    pub(super) space: Box<Space<'static, Format>>,
    /// Which CPUs are in it.
    presence: Box<Presence>,
    pub(super) exercise: Exercise,
    pub(super) churn: Churn,
    siblings: Siblings,
    /// Its place in the roster.
    pub(super) number: u16,
    standing: Standing,
}

// A guest is moved into its box over the stack of the boot CPU, more than once where nothing is optimised away.
const _: () = assert!(size_of::<Guest>() <= aarch64::local::STACK_SIZE / 5);

/// What TLBs know a guest's translations by.
pub(super) struct Tagged<'h> {
    hypervisor: &'h Hypervisor,
    tag: &'h space::Tag,
    root: Pa,
    cpu: CpuId,
}

impl Tag for Tagged<'_> {
    fn borrow(&self) -> Option<u64> {
        let vmid = self.hypervisor.vmids.borrow_for(self.cpu, self.tag)?;
        Some(self.hypervisor.layout.vttbr(self.root, vmid))
    }

    fn give_back(&self) {
        self.hypervisor.vmids.return_borrowed(self.cpu);
    }
}

impl Listed for Guest {
    type Format = Format;

    fn config(&self) -> &VmConfig {
        self.vm.config()
    }
}

impl Guest {
    /// Makes the guest that `config` describes, in place `number` of the roster, off and without contents. `cpu` is the one
    /// that runs this.
    #[inline(never)] // needs much of the stack, seldom
    pub(super) fn new(
        hypervisor: &Hypervisor,
        cpu: CpuId,
        number: u16,
        config: VmConfig,
    ) -> Result<Self, Unfit> {
        let machine = hypervisor.machine;
        let memory: Vec<Range> = config.memory().collect();
        let borrows = (config.hypercalls != Granted::Nothing).then(borrowed_window);
        let interface = machine.guest_interface.map(|at| guest_interface(at.start()));
        let regions: Vec<Range> =
            memory.iter().copied().chain(borrows).chain(interface.map(|region| region.range)).collect();
        let geometry = hypervisor.layout.geometry();
        let unfit = |error| Unfit::space(&config.name, error);
        let mut space = space(hypervisor, Owner(number + 1), &regions).map_err(unfit)?;
        space.limit_leaves(config.largest.height());
        let mut section = hypervisor.waiting.enter(cpu);
        let memory = memory.into_iter().map(Region::ram);
        for region in memory.chain(borrows.map(Region::borrowed)).chain(interface) {
            space.add_region(&mut section, region).map_err(unfit)?;
        }
        drop(section);
        let timers = TimerIntids {
            virtual_timer: machine.interrupts.virtual_timer.get(),
            physical_timer: machine.interrupts.physical_timer.get(),
        };
        let gic = GicModel { version: gic_version(machine), timers };
        let id_bits = IdBits { ipa_bits: geometry.ipa_bits() as u8 };
        let outlet = Outlet::new(number, &config.name);
        let vm = Vm::new(config, id_bits, gic, outlet)?;
        Ok(Self {
            vm,
            space,
            presence: presence(),
            exercise: Exercise::default(),
            churn: Churn::default(),
            siblings: Siblings::new(),
            number,
            standing: Standing::new(),
        })
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

    /// Has the CPUs that the guest's vCPUs belong to let go of them, each by itself. The guest is off, and stays so.
    pub(super) fn dismiss(&self, core: &Core<'_>) {
        self.standing.dismiss();
        for vcpu in self.vm.vcpus() {
            self.vm.nudge(vcpu, core);
        }
    }

    /// Tells whether its vCPUs are to give up their seats.
    pub(super) fn is_leaving(&self) -> bool {
        self.standing.is_leaving()
    }

    /// Takes the guest apart, which is the caller's alone: no vCPU of it has a seat. What it had is in no TLB any more.
    #[inline(never)] // likewise
    pub(super) fn take_apart(self, hypervisor: &Hypervisor, core: &Core<'_>) -> Remains<Format> {
        self.finish(hypervisor);
        let Self { vm, space, presence, .. } = self;
        let (owner, tag) = (space.owner(), space.tag().last());
        let tlb = tlb(hypervisor, core, &tag, space.root(), &presence);
        let space = (*space).start_destroy(&mut hypervisor.waiting.enter(core.id()), &tlb);
        let memory = vm.config().frames_bytes();
        Remains::new(space, owner, memory)
    }

    /// Returns how this guest's translations are invalidated by `cpu`, which is the one that runs this.
    #[inline]
    pub(super) fn tlb<'h, 'm>(
        &'h self,
        hypervisor: &'h Hypervisor,
        cpu: &'h Core<'m>,
    ) -> Stage2<'h, Tagged<'h>, Core<'m>> {
        tlb(hypervisor, cpu, self.space.tag(), self.space.root(), &self.presence)
    }

    /// Returns the CPUs whose TLBs may hold its translations.
    pub(super) fn has_entered(&self) -> CpuSet {
        self.presence.entered()
    }

    /// Makes `cpu`, which is the one that runs this, `vcpu`'s.
    pub(super) fn identity(&self, hypervisor: &Hypervisor, cpu: CpuId, vcpu: &Vcpu) -> Identity {
        /// MPIDR_EL1's bit 31 is RES1.
        const RES1: u64 = 1 << 31;
        tracing::leaves_tables();
        let vmid = hypervisor.vmids.activate(cpu, self.space.tag(), || hypervisor.style.empty_tlbs());
        self.presence.note_entry(cpu);
        before_tables_change();
        Identity {
            vmpidr: RES1 | vcpu.affinity(),
            vpidr: MIDR_EL1.get(),
            vtcr: hypervisor.layout.vtcr(),
            vttbr: hypervisor.layout.vttbr(self.space.root(), vmid),
        }
    }

    /// Notes that `cpu`, which is the one that runs this and has the guest's tables loaded, runs `vcpu` next; where it was
    /// another one of this guest that ran here last, this CPU forgets what that one left in its TLB.
    pub(super) fn note_vcpu(&self, cpu: CpuId, vcpu: &Vcpu) {
        match self.siblings.arrive(cpu, vcpu.index()) {
            Left::Own => {}
            Left::Others => forget_sibling(),
        }
        tracing::runs(self.space.owner(), vcpu.index());
    }

    /// Puts kernel, device tree and initial file system into the memory of a guest that is off, and says where it
    /// starts. Where it had contents, they are discarded first.
    #[inline(never)] // needs much of the stack, seldom
    pub(super) fn load(&self, hypervisor: &Hypervisor, core: &Core<'_>, load: Load) -> Result<Start, Unfit> {
        let config = self.vm.config();
        let tlb = self.tlb(hypervisor, core);
        let ram = SpaceRam { space: &self.space, waiting: &hypervisor.waiting, cpu: core, tlb: &tlb };
        ram.prepare(config, load).map_err(|error| Unfit::space(&config.name, error))?;
        let start = self.vm.load(&ram, &hypervisor.seed())?;
        debug!("{}: starts at {:#x}, device tree at {:#x}", config.name, start.entry, start.argument);
        Ok(start)
    }
}

/// Returns which interrupt controller guests get: what the machine has.
pub(super) fn gic_version(machine: &Machine) -> GicVersion {
    if machine.guest_interface.is_some() { GicVersion::V2 } else { GicVersion::V3 }
}

/// Gives a guest the virtual CPU interface of a GICv2 at `pa` as its CPU interface.
fn guest_interface(pa: Pa) -> Region {
    let end = vm::map::GICC.wrapping_add(vm::map::GICC_SIZE);
    let range = Range::new(vm::map::GICC, end).unwrap_or(Range::block_around(vm::map::GICC, 0x1000));
    Region::device(range, pa)
}

/// Makes a space without regions, and with tables enough for `regions`.
#[inline(never)] // made on the stack, of which it needs much
pub(super) fn space(
    hypervisor: &Hypervisor,
    owner: Owner,
    regions: &[Range],
) -> Result<Box<Space<'static, Format>>, SpaceError> {
    let machine = hypervisor.machine;
    let (format, geometry) = (hypervisor.format, hypervisor.layout.geometry());
    let bbm = machine.features.bbm.min(machine.options.bbm);
    let budget = table_budget::<Format>(&geometry, regions);
    let space = Box::new(Space::new(&machine.frames, owner, format, geometry, bbm, budget)?);
    tracing::space_is_made(hypervisor, &space);
    Ok(space)
}

/// Returns how the translations of a space are invalidated by `cpu`, which is the one that runs this.
#[inline]
fn tlb<'h, 'm>(
    hypervisor: &'h Hypervisor,
    cpu: &'h Core<'m>,
    tag: &'h space::Tag,
    root: Pa,
    presence: &'h Presence,
) -> Stage2<'h, Tagged<'h>, Core<'m>> {
    Stage2 {
        tag: Tagged { hypervisor, tag, root, cpu: cpu.id() },
        cpu,
        presence,
        style: hypervisor.style,
        means: hypervisor.means,
        granule_shift: Format::GRANULE_SHIFT,
        index_bits: Format::INDEX_BITS,
        issued: &hypervisor.issued,
    }
}

#[inline(never)] // likewise
fn presence() -> Box<Presence> {
    Box::default()
}
