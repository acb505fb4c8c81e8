//! The other CPUs: started by firmware, one slot each.

use crate::layout::Layout;
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::provoke;
use crate::tree::{CpuAt, EnableMethod, GicRest, Hardware, Interrupts};
use crate::vms;
use aarch64::barrier::{dsb_ish, dsb_ishst, sev, wfe};
use aarch64::features::Features;
use aarch64::gic::{GicError, GicV2, IntId, Private, Redistributors, interface};
use aarch64::local::{Local, SlotAt};
use aarch64::pen;
use aarch64::psci::Psci;
use aarch64::sysreg::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, MPIDR_EL1, Readable, Writeable};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use log::{debug, error};
use spin::Once;
use types::sync::keeps;
use types::{CpuId, MAX_CPUS, PaRange, Ticks};

/// The affinity fields of MPIDR_EL1.
pub(crate) const AFFINITY: u64 = 0xff_00ff_ffff;

/// How far a CPU has come. What it has made is behind [`FEATURES`], which orders itself.
static STATES: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(OFF) }; MAX_CPUS];
const OFF: u8 = 0;
const STARTING: u8 = 1;
const ARRIVED: u8 = 2;
/// It did not arrive in time. Should it come later, it parks.
const GIVEN_UP: u8 = 3;

/// What each CPU sets up by itself, the same on all.
pub(crate) struct Setup {
    gic: Gic,
    enabled: [IntId; 5],
}

/// Where each CPU finds its own part of the GIC.
enum Gic {
    V2(GicV2),
    V3(Vec<PaRange>),
}

static SETUP: Once<Setup> = Once::new();

/// What each CPU has; the CPU writes it before it says that it has arrived.
static FEATURES: [Once<Features>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// What the CPUs that have arrived wait for.
static MACHINE: Once<&'static Machine> = Once::new();

/// Whether those that wait are to turn themselves off instead.
static LEAVE: AtomicBool = AtomicBool::new(false);

/// Says what each CPU is to set up, and sets up the boot CPU.
pub(crate) fn set_up_boot_cpu(hardware: &Hardware<'_>) -> Result<(), GicError> {
    let Interrupts { maintenance, physical_timer, virtual_timer, hypervisor_timer } = hardware.interrupts;
    SETUP.call_once(|| Setup {
        gic: match &hardware.gic.rest {
            GicRest::V3(regions) => Gic::V3(regions.to_vec()),
            GicRest::V2 { interface, control, .. } => Gic::V2(GicV2 {
                distributor: hardware.gic.distributor.start(),
                interface: interface.start(),
                control: control.start(),
            }),
        },
        enabled: [IntId::KICK, maintenance, physical_timer, virtual_timer, hypervisor_timer],
    });
    set_up_this_cpu()
}

/// Returns the private interrupts of the CPU that runs this.
pub(crate) fn private_interrupts() -> Option<Private> {
    match &SETUP.get()?.gic {
        Gic::V2(gic) => Some(Private::of_v2(*gic)),
        Gic::V3(regions) => {
            // SAFETY: the device tree's regions, which are mapped; each CPU touches its own part.
            let redistributors = unsafe { Redistributors::new(regions) };
            redistributors.of_this_cpu(MPIDR_EL1.get() & AFFINITY)
        }
    }
}

/// Sets up this CPU's part of the GIC, and says what the CPU has.
fn set_up_this_cpu() -> Result<(), GicError> {
    let setup = SETUP.wait();
    let mpidr = MPIDR_EL1.get() & AFFINITY;
    CNTHP_CTL_EL2.set(0); // unknown at reset, and its interrupt comes on
    match &setup.gic {
        Gic::V2(gic) => gic.init_this_cpu(mpidr, &setup.enabled),
        Gic::V3(regions) => {
            // SAFETY: the device tree's regions, which are mapped; each CPU touches its own part.
            let redistributors = unsafe { Redistributors::new(regions) };
            redistributors.init_this_cpu(mpidr, &setup.enabled)?;
            interface::init()?;
        }
    }
    crate::arch::gic_is_on();
    FEATURES[Local::this().cpu().index()].call_once(Features::of_this_cpu);
    Ok(())
}

/// Starts the CPUs with affinities `others`, and waits until all have arrived, or [`PATIENCE`] seconds have passed since
/// the last one did. Returns the affinities
/// of those that arrived, which are the CPUs 1 and up, and what all of them and the boot CPU have.
pub(crate) fn start(psci: Option<Psci>, others: &[CpuAt], layout: &Layout) -> (Vec<u64>, Features) {
    let entry = entry_address();
    let mut waiting = Vec::new();
    for (index, &CpuAt { mpidr, enable }) in others.iter().enumerate() {
        // Numbers have no gaps: a CPU that firmware does not start leaves its number to the next.
        let Some(cpu) = CpuId::new(waiting.len() + 1) else { break };
        let slot = SlotAt::at(layout.slots.start().get() + SlotAt::SIZE * index as u64);
        // SAFETY: the layout gave this CPU a slot of its own, and the map has it.
        unsafe { slot.prepare(cpu) };
        STATES[cpu.index()].store(STARTING, Relaxed);
        if keeps(60) {
            dsb_ish(); // O60: the slot is written before the CPU that reads it starts
        }
        match (enable, psci) {
            (EnableMethod::Psci, Some(psci)) => match psci.cpu_on(mpidr, entry, slot.address()) {
                Ok(()) => waiting.push((cpu, mpidr, None)),
                Err(error) => error!("CPU {mpidr:#x} not started: PSCI says: {error}"),
            },
            (EnableMethod::SpinTable(_), _) => {
                pen::let_out(mpidr, slot);
                let since = CNTPCT_EL0.get();
                waiting.push((cpu, mpidr, Some(since)));
                // One after the other: the pen has one gate.
                comes(cpu, since);
            }
            _ => error!("CPU {mpidr:#x} not started: nothing is known that starts it"),
        }
    }
    let mut features = *FEATURES[0].wait();
    let mut arrived = Vec::new();
    for (cpu, mpidr, since) in waiting {
        if arrived.len() + 1 < cpu.index() {
            error!("CPU {mpidr:#x} is left out, because one before it is missing");
        } else if has_arrived(cpu, since.unwrap_or_else(|| CNTPCT_EL0.get())) {
            arrived.push(mpidr);
            features = features.common(*FEATURES[cpu.index()].wait());
        } else {
            error!("CPU {mpidr:#x} was started and did not arrive within {PATIENCE} seconds");
        }
    }
    (arrived, features)
}

/// Has the CPUs with affinities `arrived`, which wait, turn themselves off: they can be started again. Returns one that is on
/// still [`PATIENCE`] seconds later, if one is.
pub(crate) fn turn_off(psci: Psci, arrived: &[u64]) -> Result<(), u64> {
    LEAVE.store(true, Relaxed);
    wake_others();
    let since = CNTPCT_EL0.get();
    for &mpidr in arrived {
        while !psci.is_off(mpidr) {
            if CNTPCT_EL0.get().wrapping_sub(since) >= patience() {
                return Err(mpidr);
            }
        }
        debug!("CPU {mpidr:#x} is off");
    }
    LEAVE.store(false, Relaxed); // before they are started, as their slots are written
    Ok(())
}

/// Seconds that a CPU has to arrive, or to go.
const PATIENCE: u64 = 5;

/// Has the CPUs that a spin-table starts come into the pen, where they wait for their slots. With the MMU off: the table may be
/// where nothing is mapped.
pub(crate) fn gather(others: &[CpuAt]) {
    for cpu in others {
        if let EnableMethod::SpinTable(at) = cpu.enable {
            // SAFETY: the device tree says that the CPU polls this address, and the MMU is off.
            unsafe { pen::gather(at) };
        }
    }
}

/// Waits until `cpu` has arrived, until [`PATIENCE`] seconds after `since` at most; if not, it is given up.
fn has_arrived(cpu: CpuId, since: Ticks) -> bool {
    comes(cpu, since);
    STATES[cpu.index()].compare_exchange(STARTING, GIVEN_UP, Relaxed, Relaxed).is_err()
}

/// Waits until `cpu` has arrived, until [`PATIENCE`] seconds after `since` at most.
fn comes(cpu: CpuId, since: Ticks) {
    let patience = patience();
    let state = &STATES[cpu.index()];
    while state.load(Relaxed) == STARTING && CNTPCT_EL0.get().wrapping_sub(since) < patience {
        core::hint::spin_loop();
    }
}

/// Returns [`PATIENCE`] in ticks.
fn patience() -> Ticks {
    PATIENCE * (CNTFRQ_EL0.get() & 0xffff_ffff)
}

/// Lets the CPUs that have arrived go on.
pub(crate) fn release(machine: &'static Machine) {
    MACHINE.call_once(|| machine);
    wake_others();
}

/// Wakes the CPUs that wait for something that this one has just stored.
fn wake_others() {
    if keeps(61) {
        dsb_ishst(); // O61: who wakes sees it
    }
    sev();
}

#[cfg(target_os = "none")]
fn entry_address() -> u64 {
    aarch64::entry::mz_secondary_entry as *const () as u64
}

#[cfg(not(target_os = "none"))]
fn entry_address() -> u64 {
    0
}

/// Runs a CPU that has arrived.
#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the entry code calls it"))]
fn run() -> ! {
    let cpu = Local::this().cpu();
    let mpidr = MPIDR_EL1.get() & AFFINITY;
    if let Err(error) = set_up_this_cpu() {
        error!("CPU {mpidr:#x}: {error}");
        crate::report::park();
    }
    if STATES[cpu.index()].compare_exchange(STARTING, ARRIVED, Relaxed, Relaxed).is_err() {
        crate::report::park();
    }
    debug!("CPU {mpidr:#x} is up");
    let machine = loop {
        if let Some(machine) = MACHINE.get() {
            break *machine;
        }
        if LEAVE.load(Relaxed) {
            crate::arch::turn_off_this_cpu();
            crate::report::park();
        }
        wfe();
    };
    if cpu.index() >= machine.affinities.len() {
        crate::report::park(); // left out, because one before it did not arrive
    }
    PerCpu::install(machine, cpu);
    provoke::if_asked(machine.options.provoke, machine.affinities.len(), cpu);
    vms::run(machine, cpu)
}

#[cfg(target_os = "none")]
mod target {
    /// Where the entry code goes with a CPU that PSCI has started: at EL2, on its own stack, with the MMU on.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_secondary() -> ! {
        super::run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aarch64::effect::{self, Effect};
    use aarch64::psci::Conduit;
    use arrayvec::ArrayVec;
    use std::vec;
    use types::Pa;

    #[test]
    fn what_was_stored_is_seen_before_the_event_that_tells_of_it() {
        effect::reset();
        wake_others();
        assert_eq!(effect::take(), [Effect::Dsb("ishst"), Effect::Sev]);
    }

    #[test]
    fn cpus_are_off_when_firmware_says_so_and_one_that_stays_on_is_named() {
        effect::reset();
        let psci = Psci::new(Conduit::Smc);
        effect::script("cntfrq_el0", &[1]);
        effect::script("cntpct_el0", &[7]);
        effect::answer(1);
        effect::answer(1);
        assert_eq!(turn_off(psci, &[0x101, 0x102]), Ok(()));
        let asked = |mpidr| Effect::Call("smc", 0xc400_0004, [mpidr, 0, 0]);
        assert_eq!(effect::take(), [Effect::Dsb("ishst"), Effect::Sev, asked(0x101), asked(0x102)]);
        effect::script("cntpct_el0", &[7, 7 + PATIENCE - 1, 7 + PATIENCE]);
        effect::answer(0);
        effect::answer(2);
        assert_eq!(turn_off(psci, &[0x101]), Err(0x101));
        assert_eq!(effect::take(), [Effect::Dsb("ishst"), Effect::Sev, asked(0x101), asked(0x101)]);
    }

    #[test]
    fn a_cpu_s_slot_is_written_before_it_is_started_and_one_that_firmware_refuses_is_left_out() {
        effect::reset();
        FEATURES[0].call_once(|| Features::decode(|_| 0));
        let memory = vec![0_u8; 3 * SlotAt::SIZE as usize].leak();
        let start = Pa::new(memory.as_ptr().expose_provenance() as u64).align_up(4096).expect("in memory");
        let slots = PaRange::with_len(start, 2 * SlotAt::SIZE).expect("in memory");
        let layout = Layout { taken: ArrayVec::new(), slots, heap: PaRange::EMPTY };
        effect::answer(-2_i64 as u64);
        effect::answer(-4_i64 as u64);
        let (arrived, _) = super::start(
            Some(Psci::new(Conduit::Smc)),
            &[0x101, 0x102].map(|mpidr| CpuAt { mpidr, enable: EnableMethod::Psci }),
            &layout,
        );
        assert!(arrived.is_empty());
        let second = start.get() + SlotAt::SIZE;
        assert_eq!(
            effect::take(),
            [
                Effect::Dsb("ish"),
                Effect::Call("smc", 0xc400_0003, [0x101, 0, start.get()]),
                Effect::Dsb("ish"),
                Effect::Call("smc", 0xc400_0003, [0x102, 0, second]),
            ]
        );
    }
}
