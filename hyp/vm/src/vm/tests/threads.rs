//! Machines whose vCPUs run at once, each on a thread. A lost kick leaves a thread waiting, and the test says so.

use super::{CPU_OFF, CPU_ON, Lines, START, SYSTEM_OFF, SYSTEM_RESET};
use crate::{
    call::CallRegs,
    host::ListRegisters,
    image::tests::{arm64_image, config},
    manifest::Format,
    map,
    power::Why,
    sysreg::ICC_SGI1R_EL1,
    testing::{FakeInterface, GIC},
    vm::*,
};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};
use types::{CpuId, Ipa, StandIn};

/// So many looks at a kick that does not come mean that it was lost.
const PATIENCE: usize = 20_000_000;

/// A CPU that is a thread: a kick is a flag that stays up until it is looked at, as a pending interrupt does.
struct ThreadCpu<'a> {
    id: CpuId,
    pending: &'a [AtomicBool],
}

impl StandIn for ThreadCpu<'_> {
    fn number(&self) -> usize {
        self.id.index()
    }

    fn kicks(&self, target: CpuId) {
        self.pending[target.index()].store(true, SeqCst);
    }
}

/// What a thread is in a test: a CPU with one vCPU.
struct Runner<'a> {
    vm: &'a Vm,
    vcpu: &'a Vcpu,
    cpu: ThreadCpu<'a>,
    lists: FakeInterface,
}

impl Runner<'_> {
    /// Waits for a kick, as a guest that does nothing or a CPU that idles.
    fn wait(&self, done: &AtomicBool) {
        for _ in 0..PATIENCE {
            if self.cpu.pending[self.cpu.id.index()].swap(false, SeqCst) || done.load(SeqCst) {
                return;
            }
            thread::yield_now();
        }
        panic!("no kick for vCPU {}", self.vcpu.index());
    }

    fn write(&mut self, at: u64, value: u64) {
        let access = Mmio { at: Ipa::new(at), bytes: 4, op: MmioOp::Write(value) };
        assert_eq!(self.vm.mmio(self.vcpu, &self.cpu, &mut self.lists, access), MmioOutcome::Written);
    }

    fn send(&self, target: usize) {
        let sgi = SysAccess::Write(ICC_SGI1R_EL1, 1 << target);
        assert_eq!(self.vm.sysreg(self.vcpu, &self.cpu, sgi), SysOutcome::Written);
    }

    fn call(&self, regs: [u64; 3]) -> u64 {
        let mut all: CallRegs = [0; 18];
        all[..3].copy_from_slice(&regs);
        self.vm.call(self.vcpu, &self.cpu, &mut all);
        all[0]
    }

    /// Makes this vCPU's SGIs and the distributor work.
    fn set_up(&mut self) {
        let sgi = map::GICR.get() + map::GICR_SIZE * self.vcpu.index() as u64 + 0x1_0000;
        for (at, value) in [(map::GICD.get(), 2), (sgi + 0x80, 0xffff), (sgi + 0x100, 0xffff)] {
            self.write(at, value);
        }
    }
}

/// Runs `work` on a thread per vCPU.
fn on_threads(vcpus: usize, work: impl Fn(Runner<'_>) + Sync) {
    let mut config = config(Format::Image, arm64_image(0, 0x10_0000, 4096), None, 64 << 20);
    config.cpus = (0..vcpus).filter_map(CpuId::new).collect();
    let console: &'static Lines = Box::leak(Box::new(Lines(Mutex::default())));
    let vm = Vm::new(config, IdBits { ipa_bits: 40 }, GIC, console).unwrap();
    let pending: Vec<_> = (0..vcpus).map(|_| AtomicBool::new(false)).collect();
    vm.start(&ThreadCpu { id: CpuId::BOOT, pending: &pending }, START);
    thread::scope(|scope| {
        for vcpu in vm.vcpus() {
            let id = CpuId::new(vcpu.index()).unwrap();
            let (vm, pending, work) = (&vm, &pending[..], &work);
            let cpu = ThreadCpu { id, pending };
            scope.spawn(move || work(Runner { vm, vcpu, cpu, lists: FakeInterface::new(4) }));
        }
    });
}

/// A token goes round by SGIs: whoever gets one sends one to the next, and each is waited for in the guest.
#[test]
fn no_sgi_is_lost_on_its_way_round() {
    const VCPUS: usize = 3;
    const ROUNDS: usize = 10_000;
    let received = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    on_threads(VCPUS, |mut r| {
        let me = r.vcpu.index();
        while !done.load(SeqCst) {
            match r.vm.prepare(r.vcpu, &r.cpu, &mut r.lists, Intent::Run) {
                Next::Start(_) => {
                    r.set_up();
                    if me + 1 < VCPUS {
                        assert_eq!(r.call([CPU_ON, me as u64 + 1, START.entry]), 0);
                    } else {
                        r.send(0);
                    }
                    continue;
                }
                Next::Enter => {}
                Next::Idle => {
                    r.wait(&done);
                    r.vm.left(r.vcpu);
                    continue;
                }
                Next::Ended(why) => panic!("{why:?}"),
            }
            match r.lists.acknowledge() {
                Some(intid) => {
                    r.lists.end(intid);
                    r.vm.left(r.vcpu);
                    if received.fetch_add(1, SeqCst) + 1 == ROUNDS {
                        done.store(true, SeqCst);
                    }
                    r.send((me + 1) % VCPUS);
                }
                None => {
                    r.wait(&done);
                    r.vm.left(r.vcpu);
                }
            }
        }
    });
    assert!(received.load(SeqCst) >= ROUNDS);
}

/// Every vCPU resets the machine again and again, in the middle of everything: each time all leave, one is told, and the
/// machine starts again; at the end it is turned off.
#[test]
fn a_reset_in_the_middle_of_anything_is_told_to_one_cpu() {
    const VCPUS: usize = 3;
    const RESETS: usize = 2_000;
    let (resets, inside) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    on_threads(VCPUS, |mut r| {
        let me = r.vcpu.index();
        let mut steps = 0_usize;
        while !done.load(SeqCst) {
            match r.vm.prepare(r.vcpu, &r.cpu, &mut r.lists, Intent::Run) {
                Next::Start(_) => {
                    assert_eq!(r.lists.held(), [], "nothing is left of the time before");
                    r.set_up();
                    if me == 0 {
                        for other in 1..VCPUS as u64 {
                            r.call([CPU_ON, other, START.entry]);
                        }
                    }
                }
                Next::Idle => {
                    r.wait(&done);
                    r.vm.left(r.vcpu);
                }
                Next::Ended(why) => {
                    assert_eq!(inside.load(SeqCst), 0, "all have left");
                    let count = resets.fetch_add(1, SeqCst) + 1;
                    if why == Why::PowerOff || count == RESETS {
                        assert!(r.vm.is_off());
                        done.store(true, SeqCst);
                    } else {
                        r.vm.start(&r.cpu, START);
                    }
                }
                Next::Enter => {
                    inside.fetch_add(1, SeqCst);
                    if let Some(intid) = r.lists.acknowledge_if_on() {
                        r.lists.end(intid);
                    }
                    inside.fetch_sub(1, SeqCst);
                    r.vm.left(r.vcpu);
                    steps += 1;
                    match (steps + me) % 16 {
                        0 => drop(r.call([SYSTEM_RESET, 0, 0])),
                        3 if me != 0 => drop(r.call([CPU_OFF, 0, 0])),
                        5 => drop(r.call([CPU_ON, (me as u64 + 1) % VCPUS as u64, START.entry])),
                        _ => r.send((me + steps) % VCPUS),
                    }
                }
            }
        }
    });
    assert!(resets.load(SeqCst) >= RESETS);
}

/// A machine that one vCPU turns off goes off, though the others wait in their guests.
#[test]
fn waiting_guests_are_made_to_leave() {
    const VCPUS: usize = 4;
    let (waiting, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    on_threads(VCPUS, |mut r| {
        let me = r.vcpu.index();
        while !done.load(SeqCst) {
            match r.vm.prepare(r.vcpu, &r.cpu, &mut r.lists, Intent::Run) {
                Next::Start(_) if me + 1 < VCPUS => {
                    r.call([CPU_ON, me as u64 + 1, START.entry]);
                }
                Next::Start(_) => {}
                Next::Enter if me == 0 => {
                    r.vm.left(r.vcpu);
                    if waiting.load(SeqCst) == VCPUS - 1 {
                        r.call([SYSTEM_OFF, 0, 0]);
                    }
                    thread::yield_now();
                }
                Next::Enter => {
                    waiting.fetch_add(1, SeqCst);
                    r.wait(&done);
                    r.vm.left(r.vcpu);
                    waiting.fetch_sub(1, SeqCst);
                }
                Next::Idle => {
                    r.wait(&done);
                    r.vm.left(r.vcpu);
                }
                Next::Ended(why) => {
                    assert_eq!(why, Why::PowerOff);
                    ended.fetch_add(1, SeqCst);
                    done.store(true, SeqCst);
                }
            }
        }
        assert_eq!(r.lists.count(), 4);
    });
    assert_eq!(ended.load(SeqCst), 1);
}
