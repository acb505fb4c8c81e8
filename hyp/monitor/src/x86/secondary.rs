//! The other CPUs: started by interrupts, one after the other, one slot each; and VMX operation, which each begins itself.

use super::layout::Layout;
use super::machine::{Machine, PerCpu, write_word};
use super::vms;
use crate::{fatal, provoke, report};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
use ept::mtrr::Mtrrs;
use log::{debug, error, warn};
use spin::Once;
use types::{CpuId, MAX_CPUS};
use x86_64::apic::Apic;
use x86_64::entry::{Handover, hand_over};
use x86_64::instr::{Controls, rdtsc};
use x86_64::local::{Local, Selectors, SlotAt};
use x86_64::mtrr;
use x86_64::vmx::capability::{Capabilities, allow_vmxon};
use x86_64::vmx::vmxon;

/// How far a CPU has come. What it has made is behind [`CAPABILITIES`], which orders itself.
static STATES: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(OFF) }; MAX_CPUS];
const OFF: u8 = 0;
const STARTING: u8 = 1;
const ARRIVED: u8 = 2;
/// It did not arrive in time. Should it come later, it parks.
const GIVEN_UP: u8 = 3;

/// What each CPU can do; the CPU writes it before it says that it has arrived.
static CAPABILITIES: [Once<Capabilities>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// The boot CPU's types of memory, which the others' should be.
static TYPES: Once<Option<Mtrrs>> = Once::new();

/// What the CPUs that have arrived wait for.
static MACHINE: Once<&'static Machine> = Once::new();

/// Reads this CPU's types of memory and says where they are not the boot CPU's, which go first. Returns the boot CPU's, by
/// which all goes.
pub(crate) fn compare_types() -> Option<&'static Mtrrs> {
    let own = mtrr::of_this_cpu();
    let first = TYPES.call_once(|| own.clone());
    let difference = match (first, &own) {
        (Some(first), Some(own)) => first.first_difference(own).map(|register| (register, "is another")),
        (None, None) => None,
        _ => Some((mtrr::CAPABILITIES, "is not on every CPU")),
    };
    if let Some((register, how)) = difference {
        warn!(
            "CPU {}: MSR {register:#x}, of the types of memory, {how}: all goes by the boot CPU's",
            Local::this().cpu().index()
        );
    }
    first.as_ref()
}

/// Checks what this CPU can do and brings it into VMX operation; ends the machine where that is impossible.
fn begin_vmx() {
    let local = Local::this();
    let cpu = local.cpu();
    let capabilities = Capabilities::of_this_cpu()
        .unwrap_or_else(|missing| fatal!("CPU {} cannot run guests; it lacks: {missing}", cpu.index()));
    let region = local.vmxon_region();
    // SAFETY: nothing is missing; the region is this CPU's own.
    let result = unsafe {
        write_word(region, capabilities.revision);
        allow_vmxon();
        vmxon(region)
    };
    if let Err(fail) = result {
        fatal!("CPU {} refuses VMXON: {fail:?}", cpu.index());
    }
    CAPABILITIES[cpu.index()].call_once(|| capabilities);
}

/// Brings this CPU into VMX operation, and starts the others; `apic_ids` has this one's first. Returns the APIC's numbers
/// of those that arrived, in the order of their numbers, and what all of them can do.
pub(crate) fn start(apic: Apic, apic_ids: &[u32], layout: &Layout, tick_hz: u64) -> (Vec<u32>, Capabilities) {
    begin_vmx();
    let mut capabilities = *CAPABILITIES[0].wait();
    let mut arrived = Vec::new();
    for (index, &apic_id) in apic_ids.iter().enumerate() {
        if index == 0 {
            arrived.push(apic_id);
            continue;
        }
        // Numbers have no gaps: a CPU that does not arrive leaves its number to the next, but never its slot.
        let Some(cpu) = CpuId::new(arrived.len()) else { break };
        let slot = SlotAt::at(layout.slots.start().get() + SlotAt::SIZE * (index as u64 - 1));
        STATES[cpu.index()].store(STARTING, Relaxed);
        let trampoline = layout.trampoline.start().get();
        // SAFETY: the layout gave this CPU a slot of its own, and the map has it; no other CPU is in the trampoline, for
        // each has arrived or never will.
        unsafe {
            slot.prepare(cpu);
            hand_over(trampoline, Handover::new(Controls::of_this_cpu(), slot.address()));
        }
        apic.send_init(apic_id);
        wait(tick_hz / 100);
        apic.send_start_up(apic_id, (trampoline >> 12) as u8);
        if !has_arrived(cpu, tick_hz / 1000) {
            apic.send_start_up(apic_id, (trampoline >> 12) as u8); // SDM 3A, 10.4.4.1: once more
        }
        if has_arrived(cpu, PATIENCE * tick_hz) {
            arrived.push(apic_id);
            capabilities = capabilities.common(*CAPABILITIES[cpu.index()].wait());
        } else {
            STATES[cpu.index()].store(GIVEN_UP, Relaxed);
            error!(
                "the CPU with APIC number {apic_id} was started and did not arrive within {PATIENCE} seconds"
            );
            break; // it may still be in the trampoline
        }
    }
    (arrived, capabilities)
}

/// Seconds that a CPU has to arrive.
const PATIENCE: u64 = 5;

fn wait(ticks: u64) {
    let since = rdtsc();
    while rdtsc().wrapping_sub(since) < ticks {
        core::hint::spin_loop();
    }
}

/// Waits until `cpu` has arrived, for so many ticks at most.
fn has_arrived(cpu: CpuId, ticks: u64) -> bool {
    let since = rdtsc();
    let arrived = || STATES[cpu.index()].load(Relaxed) == ARRIVED;
    while !arrived() && rdtsc().wrapping_sub(since) < ticks {
        core::hint::spin_loop();
    }
    arrived()
}

/// Lets the CPUs that have arrived go on.
pub(crate) fn release(machine: &'static Machine) {
    MACHINE.call_once(|| machine);
}

/// Runs a CPU that has arrived.
#[cfg_attr(not(pc), allow(dead_code, reason = "the entry code calls it"))]
fn run(selectors: Selectors) -> ! {
    let cpu = Local::this().cpu();
    let Ok(apic) = Apic::of_this_cpu() else { fatal!("CPU {}: its local APIC is off", cpu.index()) };
    begin_vmx();
    if STATES[cpu.index()].compare_exchange(STARTING, ARRIVED, Relaxed, Relaxed).is_err() {
        report::park();
    }
    debug!("the CPU with APIC number {} is up", apic.id());
    compare_types();
    let machine = MACHINE.wait();
    let this = PerCpu::install(machine, cpu, apic, selectors);
    provoke::if_asked(machine.options.provoke, machine.lines.len(), cpu);
    vms::run(this)
}

#[cfg(pc)]
mod target {
    use x86_64::local::SlotAt;
    use x86_64::vmx::capability::prepare_control_registers;

    /// Where the trampoline goes with a CPU that has been started: on its own stack, on the hypervisor's map.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_secondary(slot: u64) -> ! {
        // SAFETY: first of all on this CPU, whose slot this is: prepared by who has started it.
        let selectors = unsafe {
            let selectors = SlotAt::at(slot).take();
            prepare_control_registers();
            selectors
        };
        super::run(selectors)
    }
}
