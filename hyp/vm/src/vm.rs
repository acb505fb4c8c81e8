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
//! An answer to an exit changes registers, and never more: that the vCPU or the machine is to stop, the next
//! [`Vm::prepare`] tells.
//!
//! Lock order: power, then a vCPU's private interrupts, then the shared interrupts. The serial port's lock is taken
//! first of all, and only interrupts' locks inside.

use crate::{
    call::{self, CallOutcome, CallRegs, SUCCESS},
    doorbell::{Parked, Requests},
    dtb::{self, Seed},
    error::{BadVm, Error},
    gic::{self, Gic, SgiGroups, TimerIntids},
    host::{Console, Line, ListRegisters, Ram, Timer},
    image::{self, Placement},
    manifest::VmConfig,
    map,
    pl011::{Effect, Pl011, Taken},
    power::{NotOff, Power, PowerStates, Start, Step, Why},
    psci,
    stats::ExitReason,
    sysreg::{self, SysAccess, SysOutcome},
    vcpu::{MAX_VCPUS, Vcpu, index_of},
};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::mutex::SpinMutex;
use types::{Cpu, Ipa};

/// A virtual machine.
pub struct Vm {
    config: VmConfig,
    placement: Placement,
    vcpus: Box<[Vcpu]>,
    gic: Gic,
    uart: SpinMutex<Pl011>,
    console: &'static dyn Console,
    power: SpinMutex<PowerStates>,
    id_bits: IdBits,
    dropped_input: AtomicU64,
}

/// What decides how a guest sees the CPU, besides the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdBits {
    /// Bits of an intermediate physical address: the most that the guest is told its physical addresses have.
    pub ipa_bits: u8,
}

/// What the vCPU's guest wants, as far as the exit told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// To go on.
    Run,
    /// To go on when an interrupt is pending for it.
    Wait,
}

/// What the CPU of a vCPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Enter the guest. The list registers are as they must be. A kick from here on ends the guest's run.
    Enter,
    /// Wait for a physical interrupt: the vCPU is off, or waits itself. A kick from here on is one.
    Idle,
    /// Put the vCPU's registers in their reset state, with this program counter and X0, EL1 with everything masked, the
    /// timers off and the virtual CPU interface in reset; then prepare again.
    Start(Start),
    /// The virtual machine has stopped: this was its last vCPU. Told once per stop, to one CPU. On a reset, load it
    /// again, and call [`Vm::start`]; otherwise, it is off.
    Ended(Why),
}

/// A data access of the guest's to what is not its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mmio {
    /// The address of its first byte.
    pub at: Ipa,
    /// The number of bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Which way.
    pub op: MmioOp,
}

/// A read, or a write and its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioOp {
    /// A load.
    Read,
    /// A store of the lowest bytes of this value.
    Write(u64),
}

/// What became of an [`Mmio`] access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioOutcome {
    /// The value read, zero-extended; the caller extends it as the instruction says.
    Read(u64),
    /// The write is done.
    Written,
    /// There is no such device: an external abort to the guest.
    Absent,
}

impl Vm {
    /// Makes a virtual machine that is off. Its memory is the caller's to make.
    pub fn new(
        config: VmConfig,
        id_bits: IdBits,
        timers: TimerIntids,
        console: &'static dyn Console,
    ) -> Result<Self, Error> {
        let placement = image::plan(&config).map_err(|fault| Error::vm(&config.name, fault))?;
        Ok(Self {
            placement,
            vcpus: gic::vcpus(config.vcpus().clamp(1, MAX_VCPUS)),
            config,
            gic: Gic::new(timers),
            uart: SpinMutex::new(Pl011::new()),
            console,
            power: SpinMutex::new(PowerStates::new()),
            id_bits,
            dropped_input: AtomicU64::new(0),
        })
    }

    /// Puts kernel, initial file system and a new device tree into memory, before the first [`Vm::start`] and after each
    /// [`Why::Reset`]; returns how vCPU 0 starts. Nothing of the machine may run.
    pub fn load(&self, ram: &(impl Ram + ?Sized), seed: &Seed) -> Result<Start, Error> {
        let fault = |fault| Error::vm(&self.config.name, fault);
        let dtb = dtb::build(&self.config, &self.placement, seed).map_err(|_| fault(BadVm::DeviceTree))?;
        if dtb.len() as u64 > self.placement.dtb.len() {
            return Err(fault(BadVm::DeviceTree));
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

    /// Returns the vCPUs, in the order of their numbers.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Tells whether the machine is off: never started, or [`Next::Ended`] was told.
    pub fn is_off(&self) -> bool {
        self.power.lock().is_off()
    }

    /// Turns the machine on: devices in reset, vCPU 0 about to start. Does nothing where it is not off.
    ///
    /// The machine must be loaded. vCPU 0's CPU is kicked, if it is idle for it.
    pub fn start(&self, cpu: &impl Cpu, start: Start) {
        {
            let mut power = self.power.lock();
            if !power.is_off() {
                return;
            }
            // Nobody runs, and nobody can be turned on before this lock is free.
            self.gic.reset(&self.vcpus);
            *self.uart.lock() = Pl011::new();
            power.start(start);
        }
        self.vcpus[0].bell.ring(cpu, Requests::POWER);
    }

    /// Stops the machine, from any CPU: every vCPU leaves its guest and goes off. Returns at once; the CPU that turns off
    /// the last one is told by [`Next::Ended`]. Does nothing where it stops already, or is off.
    pub fn stop(&self, cpu: &impl Cpu, why: Why) {
        if self.power.lock().stop(why) {
            for vcpu in &self.vcpus {
                vcpu.bell.ring(cpu, Requests::POWER);
            }
        }
    }

    /// Finds out what `vcpu`'s CPU does next, and brings its list registers up to date. Before every entry.
    ///
    /// After [`Next::Enter`] and [`Next::Idle`], call [`Vm::left`] when the guest or the wait has ended.
    #[inline]
    pub fn prepare(&self, vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters, intent: Intent) -> Next {
        let requests = vcpu.bell.arrive(cpu.id());
        if requests == Requests::NONE && intent == Intent::Run {
            return Next::Enter;
        }
        self.prepare_slowly(vcpu, cpu, lrs, intent)
    }

    fn prepare_slowly(
        &self,
        vcpu: &Vcpu,
        cpu: &impl Cpu,
        lrs: &mut impl ListRegisters,
        intent: Intent,
    ) -> Next {
        loop {
            let requests = vcpu.bell.take();
            if requests.has(Requests::POWER)
                && let Some(next) = self.step(vcpu, cpu, lrs)
            {
                vcpu.bell.leave();
                return next;
            }
            if vcpu.bell.is_parked() {
                if vcpu.bell.arrive(cpu.id()) == Requests::PARKED {
                    return Next::Idle;
                }
                continue;
            }
            if requests.has(Requests::INTERRUPTS) {
                self.gic.refresh(&self.vcpus, vcpu, cpu, lrs);
            }
            if vcpu.bell.arrive(cpu.id()) == Requests::NONE {
                return match intent {
                    Intent::Wait if !self.gic.has_pending(vcpu, lrs) => Next::Idle,
                    _ => Next::Enter,
                };
            }
        }
    }

    /// Carries out what is to be done about the power of `vcpu`, which is on this CPU.
    fn step(&self, vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters) -> Option<Next> {
        let mut power = self.power.lock();
        let ended = match power.step(vcpu.index()) {
            Step::None => return None,
            Step::Start(start) => {
                vcpu.bell.park(Parked::No);
                vcpu.bell.note(Requests::INTERRUPTS);
                return Some(Next::Start(start));
            }
            Step::Off => None,
            Step::Last(why) => Some(Next::Ended(why)),
        };
        vcpu.bell.park(Parked::Yes);
        self.gic.withdraw(&self.vcpus, vcpu, cpu, lrs);
        ended
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

    /// Carries out an access of `vcpu`'s to a device, on the CPU that runs it.
    pub fn mmio(
        &self,
        vcpu: &Vcpu,
        cpu: &impl Cpu,
        lrs: &mut impl ListRegisters,
        access: Mmio,
    ) -> MmioOutcome {
        let at = access.at.get();
        if let Some(offset) = offset_in(at, map::GICD, map::GICD_SIZE) {
            let offset = offset as u32;
            return match access.op {
                MmioOp::Read => {
                    let (value, told) =
                        self.gic.read_distributor(&self.vcpus, vcpu, offset, access.bytes, lrs);
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Read(value)
                }
                MmioOp::Write(value) => {
                    let told = self.gic.write_distributor(&self.vcpus, offset, access.bytes, value);
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Written
                }
            };
        }
        if let Some(offset) = offset_in(at, map::UART, map::UART_SIZE) {
            return self.uart(cpu, offset as u32, access);
        }
        if let Some(offset) = offset_in(at, map::GICR, map::GICR_SIZE * self.vcpus.len() as u64) {
            return match access.op {
                MmioOp::Read => {
                    let (value, told) =
                        self.gic.read_redistributor(&self.vcpus, vcpu, offset, access.bytes, lrs);
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Read(value)
                }
                MmioOp::Write(value) => {
                    let told = self.gic.write_redistributor(&self.vcpus, offset, access.bytes, value);
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Written
                }
            };
        }
        MmioOutcome::Absent
    }

    fn uart(&self, cpu: &impl Cpu, offset: u32, access: Mmio) -> MmioOutcome {
        let mut uart = self.uart.lock();
        let before = uart.line();
        let outcome = match access.op {
            MmioOp::Read => {
                let bits = 8 * u32::from(access.bytes.min(4));
                MmioOutcome::Read(u64::from(uart.read(offset)) & ((1 << bits) - 1))
            }
            MmioOp::Write(value) => {
                if let Effect::Send(byte) = uart.write(offset, value as u32) {
                    self.console.put(byte);
                }
                MmioOutcome::Written
            }
        };
        self.uart_line(cpu, before, uart.line());
        outcome
    }

    /// Hands a change of the serial port's line on, with its lock held so that changes stay in order.
    fn uart_line(&self, cpu: &impl Cpu, before: Line, after: Line) {
        if before != after {
            self.gic.set_spi(&self.vcpus, cpu, map::UART_INTID, after);
        }
    }

    /// Gives the serial port a byte of input. On any CPU.
    pub fn input(&self, cpu: &impl Cpu, byte: u8) -> Taken {
        let mut uart = self.uart.lock();
        let before = uart.line();
        let taken = uart.take(byte);
        if taken == Taken::Dropped {
            self.dropped_input.fetch_add(1, Relaxed);
        }
        self.uart_line(cpu, before, uart.line());
        taken
    }

    /// Notes that a timer of `vcpu`'s fired on the CPU that runs it: acknowledged and its priority dropped, but not
    /// deactivated (EOImode = 1), since the guest's own end of interrupt does that.
    pub fn timer_fired(&self, vcpu: &Vcpu, timer: Timer) {
        self.gic.timer_fired(vcpu, timer);
    }

    /// Notes that the maintenance interrupt was taken on the CPU that runs `vcpu`.
    pub fn maintenance(&self, vcpu: &Vcpu) {
        vcpu.bell.note(Requests::INTERRUPTS);
    }

    /// Answers a call by HVC or SMC of `vcpu`'s, on the CPU that runs it.
    pub fn call(&self, vcpu: &Vcpu, cpu: &impl Cpu, regs: &mut CallRegs) -> CallOutcome {
        if let Some(outcome) = call::answer(regs) {
            return outcome;
        }
        let answer = match psci::decode(regs) {
            psci::Request::Answer(value) => value,
            psci::Request::Suspend => {
                regs[0] = SUCCESS;
                return CallOutcome::Wait;
            }
            psci::Request::CpuOff => {
                self.power.lock().leave(vcpu.index());
                vcpu.bell.note(Requests::POWER);
                SUCCESS
            }
            psci::Request::CpuOn { target, entry, context } => {
                self.turn_on(cpu, target, Start { entry, argument: context })
            }
            psci::Request::AffinityInfo { target, level } => self.affinity_info(target, level),
            psci::Request::SystemOff => {
                self.stop(cpu, Why::PowerOff);
                SUCCESS
            }
            psci::Request::SystemReset => {
                self.stop(cpu, Why::Reset);
                SUCCESS
            }
        };
        regs[0] = answer;
        CallOutcome::Resume
    }

    fn turn_on(&self, cpu: &impl Cpu, target: u64, start: Start) -> u64 {
        let Some(vcpu) = index_of(target).and_then(|index| self.vcpus.get(index)) else {
            return psci::Error::InvalidParameters.value();
        };
        if !self.config.memory().any(|ram| ram.contains(Ipa::new(start.entry))) {
            return psci::Error::InvalidAddress.value();
        }
        let turned = self.power.lock().turn_on(vcpu.index(), start);
        match turned {
            Ok(()) => {
                vcpu.bell.ring(cpu, Requests::POWER);
                SUCCESS
            }
            Err(NotOff::On) => psci::Error::AlreadyOn.value(),
            Err(NotOff::Pending) => psci::Error::OnPending.value(),
        }
    }

    fn affinity_info(&self, target: u64, level: u64) -> u64 {
        // Levels above the CPU's own are optional from PSCI 1.0 on (DEN 0022, 5.7).
        let Some(index) = index_of(target).filter(|&i| level == 0 && i < self.vcpus.len()) else {
            return psci::Error::InvalidParameters.value();
        };
        match self.power.lock().of(index) {
            Power::On | Power::Leaving => 0,
            Power::Off => 1,
            Power::OnPending(_) => 2,
        }
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

/// Returns the offset of `at` in the `size` bytes from `base` on, if it is there.
#[inline]
fn offset_in(at: u64, base: Ipa, size: u64) -> Option<u64> {
    let offset = at.wrapping_sub(base.get());
    (offset < size).then_some(offset)
}

impl core::fmt::Debug for Vm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vm").field("config", &self.config).field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}
