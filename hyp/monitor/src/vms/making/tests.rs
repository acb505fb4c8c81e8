//! A controller's calls on a whole hypervisor, whose machine is the host: its bundle is read, its guests are made in memory of
//! the host's, and the test does what their CPUs would do.

use super::super::seats::Seat;
use super::*;
use crate::control::{call, find};
use crate::roster::Handle;
use crate::{Described, Machine};
use aarch64::effect;
use aarch64::features::Features;
use aarch64::gic::{Distributor, GicV2};
use aarch64::mmu::Map;
use abi::{Status, control};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use frames::{DirectMap, Frames, Order, Owner, Run, Usage};
use spin::Mutex;
use std::collections::BTreeMap;
use types::{FRAME_SIZE, Pa, PaRange};
use vm::{CallRegs, Intent, Line, ListRegisters, Next, Sleep, Timer};

const RAM: u64 = 0x8000_0000;
/// The CPUs' numbers.
const CPUS: [u64; 2] = [0, 1];

/// A controller, which is told apart by its role alone, and what it may make.
const MANIFEST: &str = r#"
version = 1
[[vm]]
name = "control"
vcpus = 1
memory = "2M"
kernel = "kernel.flat"
role = "controller"
[[vm]]
name = "small"
vcpus = 2
memory = "2M"
kernel = "kernel.flat"
role = "template"
[[vm]]
name = "large"
vcpus = 1
memory = "32M"
kernel = "kernel.flat"
role = "template"
[[vm]]
name = "crowd"
vcpus = 62
memory = "2M"
kernel = "kernel.flat"
role = "template"
"#;
const SMALL: u64 = 0;
const LARGE: u64 = 1;
const CROWD: u64 = 2;

/// An archive of these files.
fn bundle(files: &[(&str, &[u8])]) -> &'static [u8] {
    let mut archive = Vec::new();
    for (name, bytes) in files.iter().copied().chain([("TRAILER!!!", &[][..])]) {
        let mut fields = [0; 13];
        (fields[1], fields[4], fields[6], fields[11]) = (0o100_644, 1, bytes.len(), name.len() + 1);
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive.leak()
}

/// What CPUs of Armv8.0 say of themselves, with 40 bits of addresses.
fn features() -> Features {
    Features::decode(|register| if register == aarch64::id::MMFR0 { 2 } else { 0 })
}

fn machine(bytes: u64) -> &'static Machine {
    let size = bytes as usize;
    let layout = core::alloc::Layout::from_size_align(size, FRAME_SIZE as usize).expect("a size");
    // SAFETY: the layout is not empty.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    assert!(!memory.is_null());
    let bank = PaRange::new(Pa::new(RAM), Pa::new(RAM + bytes)).expect("in order");
    // SAFETY: the buffer is of the bank's size, nobody else has it, and it is never given back.
    let frames = unsafe { Frames::init(DirectMap::new(memory, Pa::new(RAM)), &[bank], &[]) };
    let gic = GicV2 { distributor: Pa::new(0), interface: Pa::new(0), control: Pa::new(0) };
    Box::leak(Box::new(Machine {
        platform: Box::leak(Box::new(Described { name: "host", last_resort_console: None, interface: None })),
        options: Default::default(),
        psci: None,
        affinities: CPUS.to_vec(),
        features: features(),
        // SAFETY: this is not the target.
        map: Mutex::new(unsafe { Map::new(2) }),
        gic: Mutex::new(Distributor::of_v2(gic)),
        guest_interface: None,
        interrupts: Default::default(),
        console_interrupt: None,
        second: None,
        memory: Vec::from([bank]),
        frames: frames.expect("memory enough"),
        bundle: Some(bundle(&[("manifest.toml", MANIFEST.as_bytes()), ("kernel.flat", &[0x14; 64])])),
        entropy: [7; 32],
        started: 1,
    }))
}

/// The host's part of a CPU's interrupt controller: nothing is pending.
struct Quiet;

impl ListRegisters for Quiet {
    fn count(&self) -> usize {
        4
    }
    fn read(&self, _: usize) -> u64 {
        0
    }
    fn write(&mut self, _: usize, _: u64) {}
    fn control(&mut self, _: u64) {}
    fn line(&self, _: Timer) -> Line {
        Line::Low
    }
    fn deactivate(&mut self, _: Timer) {}
    fn activate(&mut self, _: Timer) {}
}

/// A hypervisor, and what its CPUs have.
struct Rig {
    hypervisor: Box<Hypervisor>,
    cores: Vec<Core<'static>>,
    seats: BTreeMap<(usize, usize), Box<Seat>>,
}

impl Rig {
    fn new(bytes: u64) -> Self {
        effect::reset();
        let registers = [
            ("cntfrq_el0", 62_500_000),
            ("cntpct_el0", 1000),
            ("ctr_el0", 0x8444_c004),
            ("dczid_el0", 4),
            ("clidr_el1", 0xa20_0023),
        ];
        for (register, value) in registers {
            effect::script(register, &[value]);
        }
        let machine = machine(bytes);
        let core = |cpu| Core::of_this_cpu(cpu, &CPUS, &machine.features);
        let cores: Vec<_> = machine.cpus().map(core).collect();
        let hypervisor = Hypervisor::new(machine, &cores[0]);
        let mut rig = Self { hypervisor, cores, seats: BTreeMap::new() };
        rig.cpus_run();
        rig
    }

    /// The hypervisor on the boot CPU.
    fn here(&self) -> Here<'_, 'static> {
        Here(&self.hypervisor, &self.cores[0])
    }

    /// Makes a call of the controller's, on the boot CPU.
    fn call(&self, function: u32, argument: u64) -> (Status, u64) {
        let controller = self.hypervisor.ledger.roster.iter().next().expect("it is here");
        let mut regs: CallRegs = [0; 18];
        (regs[0], regs[1]) = (function.into(), argument);
        assert!(call(&*controller, &self.here(), &mut regs));
        let status = Status::of(regs[0]).expect("a status");
        assert!(abi::answers::may(function, status), "{function:#x}: {status:?}");
        (status, regs[1])
    }

    fn makes(&self, template: u64) -> u64 {
        match self.call(control::CREATE, template) {
            (Status::Success, handle) => handle,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self, handle: u64) -> u64 {
        let (status, state) = self.call(control::STATE, handle);
        assert_eq!(status, Status::Success);
        state
    }

    /// Each CPU lets in and out whom it is to, and has its vCPUs take a turn each.
    fn cpus_run(&mut self) {
        for (number, (core, desk)) in self.cores.iter().zip(&self.hypervisor.desks).enumerate() {
            for id in desk.inbox.take().iter() {
                if let Some(seat) = desk.show_in(id) {
                    self.seats.insert((number, id.index()), seat);
                }
                if self.seats.get(&(number, id.index())).is_some_and(|seat| seat.guest.is_leaving()) {
                    self.seats.remove(&(number, id.index()));
                    desk.free(id);
                }
            }
            for (_, seat) in self.seats.iter().filter(|((cpu, _), _)| *cpu == number) {
                let Some(vcpu) = seat.vcpu() else { continue };
                loop {
                    match seat.guest.vm.prepare(vcpu, core, &mut Quiet, Intent::Run) {
                        Next::Start(_) => {}
                        Next::Ended(Why::Reset) => {
                            let load = seat.guest.load(&self.hypervisor, core, Load::Again);
                            seat.guest.vm.start(core, load.expect("as before"));
                        }
                        Next::Ended(_) => seat.guest.finish(&self.hypervisor),
                        Next::Enter => {
                            seat.guest.vm.left(vcpu);
                            break;
                        }
                        Next::Idle => {
                            seat.guest.vm.left(vcpu);
                            if seat.guest.vm.sleep(vcpu) != Sleep::Wanted {
                                break;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Ends a machine, step by step, and returns each step's answer but for the last, and the last.
    fn ends(&mut self, handle: u64) -> (Vec<Status>, Status) {
        let mut answers = Vec::new();
        for _ in 0..10_000 {
            match self.call(control::DESTROY, handle).0 {
                status @ (Status::Continue | Status::Busy) => answers.push(status),
                last => return (answers, last),
            }
            self.cpus_run();
        }
        panic!("it has no end: {:?}", &answers[answers.len() - 8..]);
    }
}

#[test]
fn a_machine_is_made_runs_and_ends_and_its_handle_is_nobodys() {
    let mut rig = Rig::new(64 << 20);
    let before = rig.hypervisor.machine.frames.stats().guest;
    let handle = rig.makes(SMALL);
    assert_eq!(rig.state(handle), control::state::OFF);
    assert_eq!(rig.call(control::START, handle), (Status::Success, 0));
    assert_eq!(rig.state(handle), control::state::ON);
    rig.cpus_run();
    assert_eq!(rig.call(control::RESET, handle).0, Status::Success);
    rig.cpus_run();
    assert_eq!(rig.state(handle), control::state::ON, "it has begun anew");
    assert_eq!(rig.call(control::STOP, handle).0, Status::Success);
    assert_eq!(rig.state(handle), control::state::ON, "its CPUs have not heard of it");
    rig.cpus_run();
    assert_eq!(rig.state(handle), control::state::OFF);
    let (answers, last) = rig.ends(handle);
    assert_eq!(last, Status::Success, "{answers:?}");
    assert_eq!(rig.hypervisor.machine.frames.stats().guest, before, "every frame is back");
    for function in [control::START, control::STOP, control::RESET, control::DESTROY, control::STATE] {
        assert_eq!(rig.call(function, handle).0, Status::InvalidParameter, "{function:#x}");
    }
    assert_ne!(rig.makes(SMALL), handle);
}

#[test]
fn who_is_no_controller_has_no_such_calls_and_a_controller_no_others() {
    let rig = Rig::new(64 << 20);
    let handle = Handle(rig.makes(SMALL));
    let guest = find(&rig.here(), handle).expect("it is here");
    let mut regs: CallRegs = [0; 18];
    regs[0] = control::CREATE.into();
    assert!(!call(&*guest, &rig.here(), &mut regs));
    regs[0] = u64::from(control::STATE) + 1;
    let controller = rig.hypervisor.ledger.roster.iter().next().expect("it is here");
    assert!(!call(&*controller, &rig.here(), &mut regs));
}

#[test]
fn numbers_that_name_nothing_are_invalid() {
    let rig = Rig::new(64 << 20);
    for template in [3, 1 << 32, u64::MAX] {
        assert_eq!(rig.call(control::CREATE, template), (Status::InvalidParameter, 0));
    }
    let own = rig.hypervisor.ledger.roster.iter().next().expect("it is here");
    let own = rig.hypervisor.ledger.roster.handle_of(own.number).0; // of no template
    for function in [control::START, control::STOP, control::RESET, control::DESTROY, control::STATE] {
        for handle in [0, 5, own, u64::MAX] {
            assert_eq!(
                rig.call(function, handle),
                (Status::InvalidParameter, 0),
                "{function:#x} {handle:#x}"
            );
        }
    }
}

#[test]
fn memory_that_is_promised_to_others_is_not_promised_again() {
    let mut rig = Rig::new(64 << 20);
    let spare = rig.hypervisor.ledger.spare.load(Relaxed);
    let first = rig.makes(LARGE);
    assert_eq!(rig.call(control::CREATE, LARGE), (Status::NoMemory, 0));
    let (_, last) = rig.ends(first);
    assert_eq!((last, rig.hypervisor.ledger.spare.load(Relaxed)), (Status::Success, spare));
    rig.makes(LARGE);
}

#[test]
fn a_cpu_has_so_many_seats_and_who_finds_none_leaves_nothing_behind() {
    let mut rig = Rig::new(64 << 20);
    let first = rig.makes(CROWD);
    let second = rig.makes(CROWD);
    let (spare, guests) =
        (rig.hypervisor.ledger.spare.load(Relaxed), rig.hypervisor.machine.frames.stats().guest);
    assert_eq!(rig.call(control::CREATE, CROWD), (Status::NoRoom, 0), "64 seats for each CPU");
    assert_eq!(rig.hypervisor.ledger.spare.load(Relaxed), spare);
    assert_eq!(rig.hypervisor.machine.frames.stats().guest, guests);
    for handle in [first, second] {
        assert_eq!(rig.ends(handle).1, Status::Success);
    }
    rig.makes(CROWD);
}

#[test]
fn a_roster_has_so_many_places() {
    let rig = Rig::new(64 << 20);
    let taken = core::iter::from_fn(|| rig.hypervisor.ledger.roster.claim()).count();
    assert!(taken > 100);
    assert_eq!(rig.call(control::CREATE, SMALL), (Status::NoRoom, 0));
}

#[test]
fn who_is_on_is_not_started_and_who_is_off_is_stopped_for_nothing() {
    let mut rig = Rig::new(64 << 20);
    let handle = rig.makes(SMALL);
    for function in [control::STOP, control::RESET] {
        assert_eq!(rig.call(function, handle).0, Status::Success);
        rig.cpus_run();
        assert_eq!(rig.state(handle), control::state::OFF);
    }
    assert_eq!(rig.call(control::START, handle).0, Status::Success);
    assert_eq!(rig.call(control::START, handle).0, Status::Busy);
    rig.cpus_run();
    assert_eq!(rig.call(control::START, handle).0, Status::Busy);
}

#[test]
fn a_machine_that_cannot_be_loaded_stays_off() {
    let mut rig = Rig::new(64 << 20);
    let handle = rig.makes(SMALL);
    // Somebody has all memory that is free, whatever was promised.
    let frames = &rig.hypervisor.machine.frames;
    let usage = Usage::Guest(Owner(99));
    let taken: Vec<Pa> =
        core::iter::from_fn(|| frames.allocate(Order::FRAME, usage).ok()).map(Run::into_pa).collect();
    assert_eq!(rig.call(control::START, handle).0, Status::NoMemory);
    assert_eq!(rig.state(handle), control::state::OFF);
    for pa in taken {
        frames.give_back(pa, Order::FRAME).expect("it was taken");
    }
    assert_eq!(rig.call(control::START, handle).0, Status::Success);
    rig.cpus_run();
    assert_eq!(rig.ends(handle).1, Status::Success);
}

#[test]
fn the_end_of_a_machine_that_is_on_waits_for_its_cpus_and_holds_others_off() {
    let mut rig = Rig::new(64 << 20);
    let handle = rig.makes(SMALL);
    assert_eq!(rig.call(control::START, handle).0, Status::Success);
    rig.cpus_run();
    assert_eq!(rig.call(control::DESTROY, handle).0, Status::Busy, "it is turned off first");
    assert_eq!(rig.call(control::DESTROY, handle).0, Status::Busy, "its CPUs have not heard of it");
    rig.cpus_run();
    assert_eq!(rig.call(control::DESTROY, handle).0, Status::Continue);
    assert_eq!(rig.state(handle), control::state::ENDING);
    assert_eq!(rig.call(control::DESTROY, handle).0, Status::Busy, "its vCPUs have seats");
    for function in [control::START, control::STOP, control::RESET] {
        assert_eq!(rig.call(function, handle).0, Status::Busy, "{function:#x}");
    }
    rig.cpus_run();
    // Somebody else does a step.
    let (number, life) = rig.hypervisor.ledger.roster.take(Handle(handle)).expect("it is there");
    assert_eq!(rig.call(control::DESTROY, handle).0, Status::Busy);
    assert_eq!(rig.state(handle), control::state::ENDING);
    rig.hypervisor.ledger.roster.settle(number, life);
    let (answers, last) = rig.ends(handle);
    assert!(answers.iter().all(|status| *status == Status::Continue), "{answers:?}");
    assert_eq!(last, Status::Success);
}

#[test]
fn a_frame_that_has_not_come_back_is_said_to_be_missing() {
    let mut rig = Rig::new(64 << 20);
    let handle = rig.makes(SMALL);
    let owner = find(&rig.here(), Handle(handle)).expect("it is here").space.owner();
    let run = rig.hypervisor.machine.frames.allocate(Order::FRAME, Usage::Guest(owner)).expect("it is free");
    let lost = run.into_pa();
    assert_eq!(rig.ends(handle).1, Status::Broken);
    assert_eq!(rig.hypervisor.ledger.leaked.load(Relaxed), 1);
    assert_eq!(rig.call(control::STATE, handle).0, Status::InvalidParameter, "it is gone all the same");
    rig.hypervisor.machine.frames.give_back(lost, Order::FRAME).expect("it was taken");
}
