//! A virtual machine, whole: what the exit loop calls.
//!
//! Everything takes `&self` and may be called on any CPU at any time, except that one vCPU is run by one CPU at a time.
//! No call waits for another CPU but for the length of a short critical section.
//!
//! The loop of a CPU that runs `vcpu`:
//!
//! ```text
//! loop {
//!     match vm.prepare(vcpu, cpu, lrs, intent) {
//!         Next::Enter        => { enter the guest; vm.left(vcpu); vm.count(vcpu, reason); answer the exit }
//!         Next::Idle         => { wait for a physical interrupt (WFI with interrupts masked); vm.left(vcpu); take it }
//!         Next::Start(start) => reset the registers; the next round enters
//!         Next::Ended(why)   => restart it (load, vm.start), or report that it is off
//!     }
//! }
//! ```
//!
//! Where several vCPUs share a CPU ([`crate::sched`]), one that has nothing to do sleeps ([`Vm::sleep`]) instead of having
//! the CPU idle, and between two of them the CPU goes through [`Vm::stow`] of the one and [`Vm::unstow`] of the other.
//!
//! An answer to an exit changes registers, and never more: that the vCPU or the machine is to stop, the next
//! [`Vm::prepare`] tells.
//!
//! Lock order: power, then the serial port or a virtio device, then a vCPU's private interrupts, then the shared ones.

mod calls;
mod devices;
mod run;
#[cfg(test)]
mod tests;

pub use devices::{Mmio, MmioOp, MmioOutcome};
pub use run::{Fired, Intent, Next, Sleep};

use crate::{
    doorbell::Requests,
    dtb::{self, Seed},
    error::{BadVm, Error},
    gic::{self, Gic, GicModel, SgiGroups},
    host::{Console, Line, Ram, Timer},
    image::{self, Placement},
    manifest::{Granted, VmConfig},
    pl011::Pl011,
    power::{PowerStates, Start},
    service::Service,
    stats::ExitReason,
    sysreg::{self, SysAccess, SysOutcome},
    vcpu::{MAX_VCPUS, Vcpu},
    virtio::Devices,
};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::mutex::SpinMutex;
use types::Cpu;

/// A virtual machine.
pub struct Vm {
    config: VmConfig,
    placement: Placement,
    vcpus: Box<[Vcpu]>,
    gic: Gic,
    uart: SpinMutex<Pl011>,
    console: Box<dyn Console + Send>,
    power: SpinMutex<PowerStates>,
    id_bits: IdBits,
    dropped_input: AtomicU64,
    service: Option<Box<Service>>,
    devices: Option<Box<Devices>>,
}

/// What decides how a guest sees the CPU, besides the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdBits {
    /// Bits of an intermediate physical address: the most that the guest is told its physical addresses have.
    pub ipa_bits: u8,
}

impl Vm {
    /// Makes a virtual machine that is off. Its memory is the caller's to make.
    pub fn new(
        config: VmConfig,
        id_bits: IdBits,
        gic: GicModel,
        console: impl Console + Send + 'static,
    ) -> Result<Self, Error> {
        let placement = image::plan(&config).map_err(|fault| Error::vm(&config.name, fault))?;
        let service = match config.hypercalls {
            Granted::Nothing => None,
            granted => Some(Box::new(Service::new(config.memory(), granted, config.besides()))),
        };
        let devices =
            (!config.devices.is_empty()).then(|| Box::new(Devices::new(&config.devices, config.disk)));
        Ok(Self {
            service,
            devices,
            placement,
            vcpus: gic::vcpus(config.vcpus().clamp(1, MAX_VCPUS)),
            config,
            gic: Gic::new(gic),
            uart: SpinMutex::new(Pl011::new()),
            console: Box::new(console),
            power: SpinMutex::new(PowerStates::new()),
            id_bits,
            dropped_input: AtomicU64::new(0),
        })
    }

    /// Puts kernel, initial file system and a new device tree into memory, before the first [`Vm::start`] and after each
    /// [`crate::Why::Reset`]; returns how vCPU 0 starts. Nothing of the machine may run.
    pub fn load(&self, ram: &(impl Ram + ?Sized), seed: &Seed) -> Result<Start, Error> {
        let fault = |fault| Error::vm(&self.config.name, fault);
        let dtb = dtb::build(&self.config, self.gic.version(), &self.placement, seed)
            .map_err(|_| fault(BadVm::Start))?;
        if dtb.len() as u64 > self.placement.dtb.len() {
            return Err(fault(BadVm::Start));
        }
        let initrd = self.config.initrd.map_or(&[][..], |file| file.bytes);
        image::load(&self.placement, initrd, &dtb, ram).map_err(|error| fault(BadVm::Ram(error)))?;
        Ok(Start { entry: self.placement.entry.get(), argument: self.placement.dtb.start().get() })
    }

    /// Returns where the machine's parts are.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Returns what the manifest says of this machine.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Returns what serves its calls on its own memory; `None` where the manifest grants it none.
    #[inline]
    pub fn service(&self) -> Option<&Service> {
        self.service.as_deref()
    }

    /// Returns the vCPUs, in the order of their numbers.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Tells whether the machine is off: never started, or [`Next::Ended`] was told.
    pub fn is_off(&self) -> bool {
        self.power.lock().is_off()
    }

    /// Says that the guest of `vcpu`, or the wait for it, has ended. After every exit, first of all.
    #[inline]
    pub fn left(&self, vcpu: &Vcpu) {
        vcpu.bell.leave();
    }

    /// Counts an exit of `vcpu`, on the CPU that runs it.
    #[inline]
    pub fn count(&self, vcpu: &Vcpu, reason: ExitReason) {
        vcpu.counters.count(reason);
    }

    /// Returns how many exits there were for `reason`, over all vCPUs.
    pub fn exits(&self, reason: ExitReason) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.counters.get(reason)).sum()
    }

    /// Returns how many bytes of console input found the serial port full.
    pub fn dropped_input(&self) -> u64 {
        self.dropped_input.load(Relaxed)
    }

    /// Notes that a timer of `vcpu`'s fired on the CPU that runs it: acknowledged and its priority dropped, but not
    /// deactivated (EOImode = 1), since the guest's own end of interrupt does that.
    pub fn timer_fired(&self, vcpu: &Vcpu, timer: Timer) {
        self.gic.timer_fired(vcpu, timer);
    }

    /// Sets the line of a private peripheral interrupt of `vcpu`'s, INTID 16 to 31, other than a timer's. On any CPU.
    pub fn set_ppi(&self, vcpu: &Vcpu, cpu: &impl Cpu, intid: u32, line: Line) {
        self.gic.set_ppi(vcpu, cpu, intid, line);
    }

    /// Sets the line of a shared peripheral interrupt, INTID 32 on. On any CPU.
    pub fn set_spi(&self, cpu: &impl Cpu, intid: u32, line: Line) {
        self.gic.set_spi(&self.vcpus, cpu, intid, line);
    }

    /// Notes that the maintenance interrupt was taken on the CPU that runs `vcpu`.
    pub fn maintenance(&self, vcpu: &Vcpu) {
        vcpu.bell.note(Requests::INTERRUPTS);
    }

    /// Carries out a trapped access of `vcpu`'s to a system register, on the CPU that runs it.
    pub fn sysreg(&self, vcpu: &Vcpu, cpu: &impl Cpu, access: SysAccess) -> SysOutcome {
        if let SysAccess::Write(reg, value) = access {
            let groups = match reg {
                sysreg::ICC_SGI1R_EL1 => Some(SgiGroups::Both),
                sysreg::ICC_ASGI1R_EL1 | sysreg::ICC_SGI0R_EL1 => Some(SgiGroups::Zero),
                _ => None,
            };
            if let Some(groups) = groups {
                self.gic.send_sgi(&self.vcpus, vcpu, cpu, value, groups);
                return SysOutcome::Written;
            }
        }
        sysreg::access(access, self.id_bits, |reg| cpu.read_id(reg))
    }
}

impl core::fmt::Debug for Vm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vm").field("config", &self.config).field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}
