//! Whole machines, driven as the exit loop drives them.

mod threads;

use super::*;
use crate::{
    call::{CallOutcome, CallRegs},
    doorbell::Requests,
    host::Line,
    image::tests::{FakeRam, arm64_image, config},
    manifest::Format,
    map,
    power::Why,
    testing::{FakeCpu, FakeInterface, GIC},
};
use proptest::prelude::*;
use std::sync::Mutex;
use types::{CpuId, Ipa, SysReg};

struct Lines(Mutex<Vec<u8>>);

impl Console for Lines {
    fn put(&self, byte: u8) {
        self.0.lock().unwrap().push(byte);
    }
}

fn vm(vcpus: usize) -> (Vm, &'static Lines) {
    let mut config = config(Format::Image, arm64_image(0, 0x10_0000, 4096), Some(100), 64 << 20);
    config.cpus = (0..vcpus).filter_map(CpuId::new).collect();
    let console: &'static Lines = Box::leak(Box::new(Lines(Mutex::default())));
    (Vm::new(config, IdBits { ipa_bits: 40 }, GIC, console).unwrap(), console)
}

const SEED: Seed = Seed { rng: [1; 32], kaslr: 2 };
const START: Start = Start { entry: 0x4000_0000, argument: 0x4020_0000 };

/// A CPU, its virtual interface, and the vCPU it runs.
struct Place<'a> {
    vm: &'a Vm,
    vcpu: &'a Vcpu,
    cpu: FakeCpu,
    lists: FakeInterface,
}

impl<'a> Place<'a> {
    fn all(vm: &'a Vm) -> Vec<Self> {
        let place = |vcpu: &'a Vcpu| Place {
            vm,
            vcpu,
            cpu: FakeCpu::new(vcpu.index()),
            lists: FakeInterface::new(4),
        };
        vm.vcpus().iter().map(place).collect()
    }

    fn prepare(&mut self) -> Next {
        self.vm.prepare(self.vcpu, &self.cpu, &mut self.lists, Intent::Run)
    }

    fn call(&self, regs: [u64; 4]) -> (CallOutcome, [u64; 4]) {
        let mut all: CallRegs = [0x77; 18];
        all[..4].copy_from_slice(&regs);
        let outcome = self.vm.call(self.vcpu, &self.cpu, &mut all);
        assert!(all[4..].iter().all(|&reg| reg == 0x77), "only results change");
        (outcome, [all[0], all[1], all[2], all[3]])
    }

    fn x0(&self, regs: [u64; 4]) -> u64 {
        let (outcome, out) = self.call(regs);
        assert_eq!((outcome, &out[1..]), (CallOutcome::Resume, &regs[1..]));
        out[0]
    }

    fn read(&mut self, at: u64, bytes: u8) -> MmioOutcome {
        let access = Mmio { at: Ipa::new(at), bytes, op: MmioOp::Read };
        self.vm.mmio(self.vcpu, &self.cpu, &mut self.lists, access)
    }

    fn write(&mut self, at: u64, bytes: u8, value: u64) -> MmioOutcome {
        let access = Mmio { at: Ipa::new(at), bytes, op: MmioOp::Write(value) };
        self.vm.mmio(self.vcpu, &self.cpu, &mut self.lists, access)
    }
}

fn running(vm: &Vm) -> Vec<Place<'_>> {
    let mut places = Place::all(vm);
    vm.start(&places[0].cpu, START);
    assert_eq!(places[0].prepare(), Next::Start(START));
    assert_eq!(places[0].prepare(), Next::Enter);
    places
}

const NOT_SUPPORTED: u64 = u64::MAX;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;

#[test]
fn each_call_is_answered_as_in_the_table() {
    let (vm, _) = vm(2);
    let places = running(&vm);
    for (name, regs, x0) in [
        ("SMCCC_VERSION", [0x8000_0000, 1, 2, 3], 0x1_0001),
        ("SMCCC_ARCH_FEATURES of itself", [0x8000_0001, 0x8000_0001, 2, 3], 0),
        ("SMCCC_ARCH_FEATURES of SOC_ID", [0x8000_0001, 0x8000_0002, 2, 3], NOT_SUPPORTED),
        ("SMCCC_ARCH_FEATURES of WORKAROUND_1", [0x8000_0001, 0x8000_8000, 2, 3], NOT_SUPPORTED),
        ("SMCCC_ARCH_WORKAROUND_1", [0x8000_8000, 1, 2, 3], NOT_SUPPORTED),
        ("SMCCC_ARCH_SOC_ID", [0x8000_0002, 0, 2, 3], NOT_SUPPORTED),
        ("PSCI_VERSION", [0x8400_0000, 1, 2, 3], 0x1_0001),
        ("PSCI_FEATURES of CPU_SUSPEND", [0x8400_000a, 0xc400_0001, 2, 3], 0),
        ("PSCI_FEATURES of SMCCC_VERSION", [0x8400_000a, 0x8000_0000, 2, 3], 0),
        ("PSCI_FEATURES of SYSTEM_SUSPEND", [0x8400_000a, 0xc400_000e, 2, 3], NOT_SUPPORTED),
        ("MIGRATE_INFO_TYPE", [0x8400_0006, 1, 2, 3], 2),
        ("MIGRATE", [0xc400_0005, 1, 2, 3], NOT_SUPPORTED),
        ("CPU_SUSPEND with reserved bits", [0xc400_0001, 1 << 31, 2, 3], INVALID_PARAMETERS),
        ("SYSTEM_RESET2, architectural, unknown", [0xc400_0012, 1, 2, 3], INVALID_PARAMETERS),
        ("SYSTEM_RESET2, vendor", [0xc400_0012, 1 << 31, 2, 3], NOT_SUPPORTED),
        ("CPU_ON of no vCPU", [CPU_ON, 2, 0x4000_0000, 3], INVALID_PARAMETERS),
        ("CPU_ON of itself", [CPU_ON, 0, 0x4000_0000, 3], -4_i64 as u64),
        ("CPU_ON outside memory", [CPU_ON, 1, 0x1000, 3], -9_i64 as u64),
        ("AFFINITY_INFO of itself", [AFFINITY_INFO, 0, 0, 3], 0),
        ("AFFINITY_INFO of another", [AFFINITY_INFO, 1, 0, 3], 1),
        ("AFFINITY_INFO of no vCPU", [AFFINITY_INFO, 2, 0, 3], INVALID_PARAMETERS),
        ("AFFINITY_INFO of a cluster", [AFFINITY_INFO, 0, 1, 3], INVALID_PARAMETERS),
        ("AFFINITY_INFO, 32-bit: upper halves do not count", [0x8400_0004, 5 << 32 | 1, 5 << 32, 3], 1),
        ("PSCI, unknown", [0xc400_001f, 1, 2, 3], NOT_SUPPORTED),
        ("secure service, not PSCI", [0x8400_0050, 1, 2, 3], NOT_SUPPORTED),
        ("yielding call", [0, 1, 2, 3], NOT_SUPPORTED),
        ("vendor hypervisor, unknown", [0xc600_0000, 1, 2, 3], NOT_SUPPORTED),
        ("junk above the function id does not count", [5 << 32 | 0x8000_0000, 1, 2, 3], 0x1_0001),
    ] {
        assert_eq!(places[0].x0(regs), x0, "{name}");
    }
    let (_, uid) = places[0].call([0x8600_ff01, 1, 2, 3]);
    assert_eq!(uid, abi::uuid_words(&abi::UUID).map(u64::from));
    let (_, revision) = places[0].call([0x8600_ff03, 1, 2, 3]);
    assert_eq!(revision[..2], [u64::from(abi::REVISION_MAJOR), u64::from(abi::REVISION_MINOR)]);
    for state in [0, 0x1_0000, 0x0300_0001] {
        let (outcome, regs) = places[0].call([0xc400_0001, state, 0x4000_0000, 3]);
        assert_eq!((outcome, regs[0]), (CallOutcome::Wait, 0), "CPU_SUSPEND {state:#x}");
    }
    assert!(!vm.is_off());
}

#[test]
fn a_vcpu_is_turned_on_and_off() {
    let (vm, _) = vm(2);
    let mut places = running(&vm);
    assert_eq!(places[1].prepare(), Next::Idle);
    let start = Start { entry: 0x4008_0000, argument: 0x1234 };
    assert_eq!(places[0].x0([CPU_ON, 1, start.entry, start.argument]), 0);
    assert_eq!(places[0].cpu.take_kicks(), [1], "its CPU is idle");
    assert_eq!(places[0].x0([CPU_ON, 1, start.entry, 0]), -5_i64 as u64, "ON_PENDING");
    assert_eq!(places[0].x0([AFFINITY_INFO, 1, 0, 0]), 2);
    vm.left(&vm.vcpus()[1]);
    assert_eq!(places[1].prepare(), Next::Start(start));
    assert_eq!(places[1].prepare(), Next::Enter);
    assert_eq!(places[0].x0([AFFINITY_INFO, 1, 0, 0]), 0);
    assert_eq!(places[0].x0([CPU_ON, 1, start.entry, 0]), -4_i64 as u64, "ALREADY_ON");

    places[1].call([CPU_OFF, 0, 0, 0]);
    assert_eq!(places[1].prepare(), Next::Idle);
    assert_eq!(places[0].x0([AFFINITY_INFO, 1, 0, 0]), 1);
    assert_eq!(places[0].x0([CPU_ON, 1, start.entry, 9]), 0);
    assert_eq!(places[1].prepare(), Next::Start(Start { argument: 9, ..start }));
}

#[test]
fn the_last_vcpu_that_goes_off_turns_the_machine_off() {
    let (vm, _) = vm(2);
    let mut places = running(&vm);
    places[0].call([CPU_OFF, 0, 0, 0]);
    assert_eq!(places[0].prepare(), Next::Ended(Why::PowerOff));
    assert!(vm.is_off());
    assert_eq!((places[0].prepare(), places[1].prepare()), (Next::Idle, Next::Idle));
}

#[test]
fn a_stop_is_told_to_one_cpu_when_all_have_left() {
    let (vm, _) = vm(3);
    let mut places = running(&vm);
    assert_eq!(places[0].x0([CPU_ON, 1, 0x4000_0000, 0]), 0);
    assert_eq!(places[0].x0([CPU_ON, 2, 0x4000_0000, 0]), 0);
    assert!(matches!(places[1].prepare(), Next::Start(_)));
    assert_eq!(places[1].prepare(), Next::Enter);
    places[0].cpu.take_kicks();
    // vCPU 2 has not started yet, and does not any more.
    places[0].x0([SYSTEM_RESET, 1, 2, 3]);
    assert_eq!(places[0].cpu.take_kicks(), [1]);
    places[1].call([SYSTEM_OFF, 0, 0, 0]); // the first stop counts
    assert_eq!(places[0].prepare(), Next::Idle);
    assert_eq!(places[2].prepare(), Next::Idle);
    assert_eq!(places[1].x0([CPU_ON, 2, 0x4000_0000, 3]), -4_i64 as u64, "nobody is turned on any more");
    assert_eq!(places[1].prepare(), Next::Ended(Why::Reset));

    let ram = FakeRam::default();
    let start = vm.load(&ram, &SEED).unwrap();
    vm.start(&places[1].cpu, start);
    assert_eq!(places[1].cpu.take_kicks(), [0], "its CPU is idle");
    assert_eq!(places[0].prepare(), Next::Start(start));
    assert_eq!((places[0].prepare(), places[1].prepare()), (Next::Enter, Next::Idle));
}

#[test]
fn a_reset_puts_devices_in_reset() {
    let (vm, _) = vm(1);
    let mut places = running(&vm);
    let uart = map::UART.get();
    places[0].write(uart + 0x38, 4, 0x10);
    places[0].write(map::GICD.get(), 4, 3);
    places[0].write(map::GICR.get() + 0x1_0100, 4, 0xffff);
    vm.input(&places[0].cpu, b'x');
    places[0].call([SYSTEM_RESET, 0, 0, 0]);
    assert_eq!(places[0].prepare(), Next::Ended(Why::Reset));
    vm.start(&places[0].cpu, START);
    assert_eq!(places[0].prepare(), Next::Start(START));
    for (at, value) in
        [(uart + 0x38, 0), (uart + 0x18, 0x90), (map::GICD.get(), 0x50), (map::GICR.get() + 0x1_0100, 0)]
    {
        assert_eq!(places[0].read(at, 4), MmioOutcome::Read(value), "{at:#x}");
    }
}

#[test]
fn a_machine_that_fails_says_so() {
    let (vm, _) = vm(1);
    let mut places = running(&vm);
    vm.stop(&places[0].cpu, Why::Failure);
    vm.stop(&places[0].cpu, Why::Reset);
    assert_eq!(places[0].prepare(), Next::Ended(Why::Failure));
    vm.stop(&places[0].cpu, Why::Reset);
    assert_eq!(places[0].prepare(), Next::Idle, "what is off is not stopped");
}

#[test]
fn input_becomes_an_interrupt_and_reading_ends_it() {
    let (vm, console) = vm(1);
    let mut places = running(&vm);
    let (gicd, uart) = (map::GICD.get(), map::UART.get());
    for (at, value) in [(gicd, 2), (gicd + 0x84, 2), (gicd + 0x104, 2), (uart + 0x38, 0x50)] {
        assert_eq!(places[0].write(at, 4, value), MmioOutcome::Written);
    }
    assert_eq!(places[0].prepare(), Next::Enter);
    let other = FakeCpu::new(5);
    vm.input(&other, b'q');
    assert_eq!(other.take_kicks(), [0], "the vCPU is in its guest");
    assert_eq!(places[0].prepare(), Next::Enter);
    assert_eq!(places[0].lists.acknowledge(), Some(map::UART_INTID));
    assert_eq!(places[0].read(uart, 4), MmioOutcome::Read(u64::from(b'q')));
    assert_eq!(places[0].prepare(), Next::Enter);
    places[0].lists.end(map::UART_INTID);
    vm.maintenance(places[0].vcpu);
    assert_eq!(places[0].prepare(), Next::Enter);
    assert_eq!(places[0].lists.acknowledge(), None);
    for byte in *b"ok\n" {
        places[0].write(uart, 1, u64::from(byte));
    }
    assert_eq!(*console.0.lock().unwrap(), b"ok\n");
}

#[test]
fn a_waiting_vcpu_is_idle_until_something_is_pending() {
    let (vm, _) = vm(1);
    let mut places = running(&vm);
    let sgi = map::GICR.get() + 0x1_0000;
    for (at, value) in [(map::GICD.get(), 2), (sgi + 0x80, 0xffff_ffff), (sgi + 0x100, 0xffff_ffff)] {
        places[0].write(at, 4, value);
    }
    let wait = |p: &mut Place<'_>| p.vm.prepare(p.vcpu, &p.cpu, &mut p.lists, Intent::Wait);
    assert_eq!(wait(&mut places[0]), Next::Idle);
    vm.left(places[0].vcpu);
    places[0].lists.lines[0] = Line::High;
    places[0].lists.physical_active[0] = true;
    vm.timer_fired(places[0].vcpu, Timer::Virtual);
    assert_eq!(wait(&mut places[0]), Next::Enter);
    assert_eq!(wait(&mut places[0]), Next::Enter, "it is still pending");
    assert_eq!(places[0].lists.acknowledge(), Some(27));
    assert_eq!(wait(&mut places[0]), Next::Idle);
}

#[test]
fn an_entry_with_nothing_new_takes_the_short_way() {
    let (vm, _) = vm(1);
    let mut places = running(&vm);
    vm.left(places[0].vcpu);
    let touched = places[0].lists.touched;
    assert_eq!(places[0].prepare(), Next::Enter);
    assert_eq!(places[0].lists.touched, touched);
    assert!(!places[0].vcpu.bell.take().has(Requests::INTERRUPTS));
}

#[test]
fn what_is_no_device_is_absent() {
    let (vm, _) = vm(2);
    let mut places = running(&vm);
    for at in [
        0,
        0x07ff_ffff,
        0x0801_0000,            // the GICv2 CPU interface
        0x0808_0000,            // the ITS
        0x080a_0000 + 0x4_0000, // a third redistributor
        0x0900_1000,
        0x0901_0000, // the clock
        0x0910_0000, // the hypercall page
        0x0a00_0000, // virtio
        0x4000_0000,
        0x1_0000_0000,
        u64::MAX,
    ] {
        assert_eq!(places[0].read(at, 4), MmioOutcome::Absent, "{at:#x}");
        assert_eq!(places[0].write(at, 4, 0), MmioOutcome::Absent, "{at:#x}");
    }
}

#[test]
fn system_registers_reach_the_interrupt_controller_and_the_cpu() {
    let (vm, _) = vm(2);
    let mut places = running(&vm);
    let mmfr0 = SysReg::new(3, 0, 0, 7, 0);
    places[0].cpu.ids.insert(mmfr0, 0x1126);
    let read = vm.sysreg(places[0].vcpu, &places[0].cpu, SysAccess::Read(mmfr0));
    assert_eq!(read, SysOutcome::Read(0x122), "40 bits of physical address, no SNSMem");
    assert_eq!(places[1].prepare(), Next::Idle);
    let sgi = SysAccess::Write(SysReg::new(3, 0, 12, 11, 5), 2);
    assert_eq!(vm.sysreg(places[0].vcpu, &places[0].cpu, sgi), SysOutcome::Written);
    assert_eq!(places[0].cpu.take_kicks(), [1]);
    assert_eq!(places[1].prepare(), Next::Idle, "it is off: the SGI stays pending");
}

#[test]
fn exits_are_summed_over_vcpus() {
    let (vm, _) = vm(2);
    for vcpu in vm.vcpus() {
        vm.count(vcpu, ExitReason::Hvc);
        vm.count(vcpu, ExitReason::Kick);
    }
    vm.count(&vm.vcpus()[0], ExitReason::Kick);
    let counts: Vec<_> = ExitReason::ALL.iter().map(|&r| vm.exits(r)).filter(|&n| n != 0).collect();
    assert_eq!(counts, [2, 3]);
}

#[test]
fn loading_twice_gives_the_same_machine() {
    let (vm, _) = vm(1);
    let (first, second) = (FakeRam::default(), FakeRam::default());
    let start = vm.load(&first, &SEED).unwrap();
    assert_eq!(vm.load(&second, &SEED).unwrap(), start);
    let dtb = Ipa::new(start.argument);
    assert_eq!(first.read(dtb, 4), [0xd0, 0x0d, 0xfe, 0xed]);
    assert_eq!(first.read(dtb, 4096), second.read(dtb, 4096));
    assert_eq!(first.read(Ipa::new(start.entry), 4096), second.read(Ipa::new(start.entry), 4096));
}

proptest! {
    #[test]
    fn no_call_makes_it_panic(regs in prop::array::uniform4(any::<u64>()), function in 0_u32..0x40, range: u8) {
        let (vm, _) = vm(2);
        let mut places = running(&vm);
        places[0].call(regs);
        let ranges = [0x8000_0000, 0x8400_0000, 0xc400_0000, 0x8600_ff00, 0xc600_0000_u32];
        let id = ranges[usize::from(range) % ranges.len()] | function;
        places[0].call([u64::from(id), regs[1], regs[2], regs[3]]);
        for place in &mut places {
            place.prepare();
        }
    }

    #[test]
    fn no_access_makes_it_panic(at in 0x0800_0000_u64..0x0a01_0000, size in 0_u32..4, value: u64) {
        let (vm, _) = vm(2);
        let mut places = running(&vm);
        places[0].read(at, 1 << size);
        places[0].write(at, 1 << size, value);
        places[0].prepare();
    }

    #[test]
    fn no_register_makes_it_panic(reg in prop::array::uniform5(any::<u8>()), value: u64) {
        let (vm, _) = vm(2);
        let places = running(&vm);
        let reg = SysReg::new(reg[0], reg[1], reg[2], reg[3], reg[4]);
        vm.sysreg(places[0].vcpu, &places[0].cpu, SysAccess::Read(reg));
        vm.sysreg(places[0].vcpu, &places[0].cpu, SysAccess::Write(reg, value));
    }
}
