//! A virtual machine with its memory, and how it is loaded.

use super::exercise::Exercise;
use super::{Format, Hypervisor, Load};
use aarch64::cpu::Core;
use aarch64::guest::controls::Identity;
use aarch64::guest::tlb::{Stage2, Tag, before_tables_change, flush_all, forget_sibling};
use aarch64::sysreg::{MIDR_EL1, Readable};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use frames::Owner;
use log::debug;
use space::{Region, Space, SpaceError, table_budget};
use stage2::{Format as _, Presence, Quiescence, Section};
use types::{Cpu, CpuId, Ipa, Range};
use vm::sched::{Left, Siblings};
use vm::{Error, IdBits, Populate, Ram, RamError, Start, TimerIntids, Vcpu, Vm, VmConfig};

/// A virtual machine with its memory.
pub(super) struct Guest {
    pub(super) vm: Vm,
    pub(super) space: Box<Space<'static, Format>>,
    /// Which CPUs are in it.
    presence: Box<Presence>,
    pub(super) exercise: Exercise,
    siblings: Siblings,
}

// A guest is moved into its box over the stack of the boot CPU, more than once where nothing is optimised away.
const _: () = assert!(size_of::<Guest>() <= aarch64::local::STACK_SIZE / 5);

/// What TLBs know a guest's translations by.
pub(super) struct Tagged<'h> {
    hypervisor: &'h Hypervisor,
    guest: &'h Guest,
    cpu: CpuId,
}

impl Tag for Tagged<'_> {
    fn borrow(&self) -> Option<u64> {
        let vmid = self.hypervisor.vmids.borrow_for(self.cpu, self.guest.space.tag())?;
        Some(self.hypervisor.layout.vttbr(self.guest.space.root(), vmid))
    }

    fn give_back(&self) {
        self.hypervisor.vmids.return_borrowed(self.cpu);
    }
}

/// Why a guest cannot be made or loaded.
#[derive(Debug)]
pub(super) enum Unfit {
    /// The manifest asks for what cannot be.
    Config(Error),
    /// Its memory cannot be had.
    Space {
        /// The guest's name.
        name: String,
        /// What is wrong.
        error: SpaceError,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Space { name, error } => write!(f, "virtual machine \"{name}\": {error}"),
        }
    }
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Config(error)
    }
}

impl Guest {
    /// Makes the guest that `config` describes, the `number`th, off and without contents.
    pub(super) fn new(hypervisor: &Hypervisor, number: u16, config: VmConfig) -> Result<Self, Unfit> {
        let machine = hypervisor.machine;
        let regions: Vec<Range> = config.memory().collect();
        let geometry = hypervisor.layout.geometry();
        let unfit = |error| Unfit::Space { name: config.name.clone(), error };
        let space = space(hypervisor, Owner(number + 1), &regions).map_err(unfit)?;
        let mut section = hypervisor.waiting.enter(CpuId::BOOT);
        for &range in &regions {
            space.add_region(&mut section, Region::ram(range)).map_err(unfit)?;
        }
        drop(section);
        let timers = TimerIntids {
            virtual_timer: machine.interrupts.virtual_timer.get(),
            physical_timer: machine.interrupts.physical_timer.get(),
        };
        let id_bits = IdBits { ipa_bits: geometry.ipa_bits() as u8 };
        let vm = Vm::new(config, id_bits, timers, &super::OUTPUT)?;
        let siblings = Siblings::new();
        Ok(Self { vm, space, presence: presence(), exercise: Exercise::default(), siblings })
    }

    /// Returns how this guest's translations are invalidated by `cpu`, which is the one that runs this.
    #[inline]
    pub(super) fn tlb<'h, 'm>(
        &'h self,
        hypervisor: &'h Hypervisor,
        cpu: &'h Core<'m>,
    ) -> Stage2<'h, Tagged<'h>, Core<'m>> {
        Stage2 {
            tag: Tagged { hypervisor, guest: self, cpu: cpu.id() },
            cpu,
            presence: &self.presence,
            style: hypervisor.style,
            means: hypervisor.means,
            granule_shift: Format::GRANULE_SHIFT,
            index_bits: Format::INDEX_BITS,
            issued: &hypervisor.issued,
        }
    }

    /// Makes `cpu`, which is the one that runs this, `vcpu`'s.
    pub(super) fn identity(&self, hypervisor: &Hypervisor, cpu: CpuId, vcpu: &Vcpu) -> Identity {
        /// MPIDR_EL1's bit 31 is RES1.
        const RES1: u64 = 1 << 31;
        let vmid = hypervisor.vmids.activate(cpu, self.space.tag(), flush_all);
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
    }

    /// Puts kernel, device tree and initial file system into the memory of a guest that is off, and says where it
    /// starts. Where it had contents, they are discarded first.
    #[inline(never)] // needs much of the stack, seldom
    pub(super) fn load(&self, hypervisor: &Hypervisor, core: &Core<'_>, load: Load) -> Result<Start, Unfit> {
        let config = self.vm.config();
        let tlb = self.tlb(hypervisor, core);
        let unfit = |error| Unfit::Space { name: config.name.clone(), error };
        let mut section = hypervisor.waiting.enter(core.id());
        if load == Load::Again {
            self.space.reset(&mut section, &tlb).map_err(unfit)?;
            while self.space.drain(&mut section) {
                section.pass(); // nobody runs this guest, so whoever looks at its tables will soon have done
            }
        }
        if config.populate == Populate::Ahead {
            for range in config.memory() {
                self.space.populate(&mut section, core, &tlb, range).map_err(unfit)?;
            }
        }
        drop(section);
        let start = self.vm.load(&GuestRam { guest: self, hypervisor, core }, &hypervisor.seed())?;
        debug!("{}: starts at {:#x}, device tree at {:#x}", config.name, start.entry, start.argument);
        Ok(start)
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
    let (format, geometry) = (hypervisor.format, hypervisor.layout.geometry());
    let bbm = machine.features.bbm.min(machine.options.bbm);
    let budget = table_budget::<Format>(&geometry, regions);
    Ok(Box::new(Space::new(&machine.frames, owner, format, geometry, bbm, budget)?))
}

#[inline(never)] // likewise
fn presence() -> Box<Presence> {
    Box::default()
}

/// The memory of a guest that is being loaded.
struct GuestRam<'a> {
    guest: &'a Guest,
    hypervisor: &'a Hypervisor,
    core: &'a Core<'a>,
}

impl GuestRam<'_> {
    fn told(error: SpaceError) -> RamError {
        match error {
            SpaceError::OutOfMemory { ipa } | SpaceError::OutOfTables { ipa } => {
                RamError::NoFrames { at: ipa }
            }
            SpaceError::Busy { ipa } => RamError::Busy { at: ipa },
            SpaceError::DeviceWouldFault { ipa } => RamError::NotRam { at: ipa },
            SpaceError::NoRegion { ipa } | SpaceError::NotRam { ipa } => RamError::NotRam { at: ipa },
            SpaceError::BadRegion { range } | SpaceError::RegionsOverlap { new: range, .. } => {
                RamError::NotRam { at: range.start() }
            }
            SpaceError::TooManyRegions
            | SpaceError::NoLog
            | SpaceError::LogRuns
            | SpaceError::NoIommu
            | SpaceError::Attached
            | SpaceError::NoVmids
            | SpaceError::Dying => RamError::NotRam { at: Ipa::new(0) },
        }
    }
}

impl Ram for GuestRam<'_> {
    fn write(&self, at: Ipa, bytes: &[u8]) -> Result<(), RamError> {
        let tlb = self.guest.tlb(self.hypervisor, self.core);
        let mut section = self.hypervisor.waiting.enter(self.core.id());
        self.guest.space.copy_in(&mut section, self.core, &tlb, at, bytes).map_err(Self::told)
    }

    fn zero(&self, range: Range) -> Result<(), RamError> {
        let tlb = self.guest.tlb(self.hypervisor, self.core);
        let mut section = self.hypervisor.waiting.enter(self.core.id());
        self.guest.space.zero(&mut section, self.core, &tlb, range.start(), range.len()).map_err(Self::told)
    }
}
