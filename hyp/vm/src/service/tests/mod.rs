//! Calls on a machine's memory, on the host: RAM in a buffer, real descriptors.

mod answers;
mod arguments;
mod churn;
mod layout;
mod logs;
mod pages;
mod random;
mod sharing;
mod transfers;

use super::{After, Company, Left, Memory, Service};
use crate::call::CallRegs;
use crate::manifest::Granted;
use abi::{Status, calls};
use core::cell::RefCell;
use frames::fake::Machine;
use frames::{Frames, Owner};
use space::{Region, Space};
use stage2::{Bbm, EntryEpoch, Geometry, Invalidate, Quiescence, Section, Stay, Work};
use std::collections::BTreeSet;
use types::{Access, Cause, Cpu, CpuId, Fault, FaultKind, Height, Ipa, Pa, Range, StandIn};
use vmsa::{Controls, Features, Granule4K, Layout, Vmsa};

pub(crate) type Format = Vmsa<Granule4K>;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const PAGE: u64 = 4096;
/// Where the guest's RAM is, and how much.
const RAM: u64 = 0x4000_0000;
const SIZE: u64 = 4 * BLOCK;
/// Some more RAM, which does not touch the other.
const MORE: u64 = 0x8000_0000;

/// A CPU that writes its zeroes into the machine's buffer.
pub(crate) struct FakeCpu<'f>(usize, &'f Frames);

impl StandIn for FakeCpu<'_> {
    fn number(&self) -> usize {
        self.0
    }

    fn kicks(&self, _: CpuId) {
        panic!("a service kicks nobody");
    }

    fn zeroes(&self, pa: Pa, bytes: u64) {
        let zeroes = vec![0; bytes as usize];
        self.1.write(pa, &zeroes).expect("what is zeroed is a guest's frame");
    }
}

/// Invalidation that is always complete.
pub(crate) struct Complete;

impl Invalidate for Complete {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {}
}

/// A machine's memory, its service, and a guest that is on CPU 0.
pub(crate) struct Rig<'f> {
    machine: &'f Machine,
    space: Space<'f, Format>,
    service: Service,
    epoch: &'f EntryEpoch,
}

/// Runs a test, and looks whether it leaks.
pub(crate) fn with_rig(test: impl FnOnce(&Rig<'_>)) {
    with_rig_of(32 * MIB, SIZE, 200, test);
}

/// As [`with_rig`], on a host with `bytes` of memory, a guest with `ram` bytes, and with so many tables.
fn with_rig_of(bytes: u64, ram: u64, tables: u32, test: impl FnOnce(&Rig<'_>)) {
    let machine = Machine::with_ram(0x1_0000_0000, bytes);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let layout = Layout::<Granule4K>::choose(36, Height::new(2), 5, Controls::empty());
    let geometry: Geometry<Format> = layout.expect("36 bits fit").geometry();
    let format = Format::new(Features::HARDWARE_DIRTY);
    let space =
        Space::new(&machine, Owner(1), format, geometry, Bbm::Level0, tables).expect("there is memory");
    let ram = [range(RAM, ram), range(MORE, BLOCK)];
    for range in ram {
        space.add_region(&mut epoch.enter(CpuId::BOOT), Region::ram(range)).unwrap();
    }
    let rig = Rig {
        machine: &machine,
        space,
        service: Service::new(ram.into_iter(), Granted::All, &[]),
        epoch: &epoch,
    };
    test(&rig);
    rig.with_memory(0, |memory| rig.service.end(memory));
    let Rig { space, .. } = rig;
    let mut stay = epoch.enter(CpuId::BOOT);
    while space.drain(&mut stay, &FakeCpu(0, &machine)) {
        stay.pass();
    }
    space.destroy(&mut stay, &FakeCpu(0, &machine), &Complete);
    machine.drain_kept();
    assert_eq!(machine.stats(), before, "nothing has leaked");
}

thread_local! {
    /// What calls have answered in this test.
    static ANSWERED: RefCell<BTreeSet<(u32, Status)>> = const { RefCell::new(BTreeSet::new()) };
}

/// Checks that a call may answer so, and notes that it did.
fn note(function: u32, status: u64) {
    let status = Status::of(status).expect("a status");
    assert!(abi::answers::may(function, status), "{function:#x}: {status:?}");
    ANSWERED.with_borrow_mut(|answered| answered.insert((function, status)));
}

fn range(start: u64, bytes: u64) -> Range {
    Range::with_len(Ipa::new(start), bytes).unwrap()
}

impl Rig<'_> {
    pub(crate) fn with_memory<R>(
        &self,
        cpu: usize,
        run: impl FnOnce(&mut Memory<'_, '_, Format, Stay<'_>, FakeCpu<'_>, Complete>) -> R,
    ) -> R {
        let cpu = FakeCpu(cpu, self.machine);
        let mut section = self.epoch.enter(cpu.id());
        run(&mut Memory { space: &self.space, section: &mut section, cpu: &cpu, tlb: &Complete })
    }

    /// Makes a call on CPU 0. Returns the status, `X1` to `X5`, and what is to be done.
    fn call_raw(&self, function: u32, arguments: &[u64]) -> (u64, [u64; 5], After) {
        let mut regs: CallRegs = [0x77; 18];
        regs[0] = u64::from(function) | 0xdead << 32; // the upper half does not count
        regs[1..=arguments.len()].copy_from_slice(arguments);
        let before = regs;
        let after = self.with_memory(0, |memory| self.service.call(memory, &mut regs));
        assert_eq!(before[6..], regs[6..], "only results change");
        note(function, regs[0]);
        (regs[0], regs[1..6].try_into().unwrap(), after)
    }

    fn call(&self, function: u32, arguments: &[u64]) -> (Status, [u64; 5]) {
        let (status, results, _) = self.call_raw(function, arguments);
        (Status::of(status).expect("a status"), results)
    }

    /// Makes a call on a range until it is complete.
    fn whole(&self, function: u32, start: u64, bytes: u64, parameter: u64) -> [u64; 5] {
        let mut cursor = 0;
        loop {
            let (status, results) = self.call(function, &[start, bytes, parameter, cursor]);
            match status {
                Status::Success => return results,
                Status::Continue => assert!(results[0] > cursor && results[0] < bytes),
                other => panic!("{function:#x} at {cursor:#x}: {other:?}"),
            }
            cursor = results[0];
        }
    }

    /// The guest writes a word, if it may.
    fn try_store(&self, ipa: u64, word: u64) -> Result<(), space::Outcome> {
        self.with_memory(0, |memory| {
            for kind in [FaultKind::Translation, FaultKind::Permission] {
                let (ipa, cause, height) = (Ipa::new(ipa), Cause::Data, Height::PAGE);
                let fault = Fault { ipa, access: Access::WRITE, kind, cause, height };
                match self.space.fault(&*memory.section, memory.cpu, memory.tlb, &fault).unwrap() {
                    space::Outcome::Mapped | space::Outcome::Allowed | space::Outcome::AlreadyMapped => {}
                    other => return Err(other),
                }
            }
            let bytes = word.to_le_bytes();
            let at = Ipa::new(ipa);
            self.space.copy_in(memory.section, memory.cpu, memory.tlb, at, &bytes).unwrap();
            Ok(())
        })
    }

    pub(crate) fn store(&self, ipa: u64, word: u64) {
        self.try_store(ipa, word).expect("it may write");
    }

    pub(crate) fn load(&self, ipa: u64) -> u64 {
        self.with_memory(0, |memory| {
            let mut bytes = [0; 8];
            let at = Ipa::new(ipa);
            self.space.copy_out(memory.section, memory.cpu, memory.tlb, at, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        })
    }

    /// Begins a log of all writes, by pages.
    pub(crate) fn log_all(&self) {
        let start = || self.call(calls::LOG_START, &[RAM, SIZE, calls::granularity::PAGES, 0]).0;
        while start() == Status::Continue {}
    }

    /// Returns how many pages were written since, by a round of the log.
    pub(crate) fn written(&self) -> u64 {
        let (status, [.., set, _]) = self.call(calls::LOG_HARVEST, &[MORE, 0, 0, 0]);
        assert_eq!(status, Status::Success);
        set
    }

    /// Takes the right to write to the page at an address.
    pub(crate) fn read_only(&self, ipa: u64) {
        self.whole(calls::PROTECT, ipa, PAGE, calls::rights::READ);
    }

    /// Returns what is known of the frame behind an address.
    pub(crate) fn record(&self, ipa: u64) -> frames::Word {
        self.machine.record(self.pa(ipa).expect("it is mapped")).unwrap().load()
    }

    /// Returns where an address is.
    fn pa(&self, ipa: u64) -> Option<Pa> {
        let ipa = Ipa::new(ipa);
        self.with_memory(0, |memory| self.space.tree().open(&*memory.section).translate(ipa).pa(ipa))
    }

    /// Returns how many pages and blocks a range is mapped with.
    fn leaves(&self, start: u64, bytes: u64) -> [u64; 2] {
        let results = self.whole(calls::SURVEY, start, bytes, 0);
        [results[1], results[2]]
    }

    /// Lets a CPU serve until there is nothing left for it.
    fn serve(&self, cpu: usize, company: Company) -> usize {
        let mut steps = 0;
        while self.with_memory(cpu, |memory| self.service.serve(memory, company)) != Left::Nothing {
            steps += 1;
        }
        steps
    }
}
