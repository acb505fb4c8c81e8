//! The trace of this machine: its memory, and what only the monitor knows.
//!
//! It begins before the first space is made, or never: so whoever reads it has seen every table from its first entry on.

use super::{Format, Hypervisor};
use crate::Machine;
use crate::options::Way;
use aarch64::guest::tlb::Style;
use aarch64::local::Local;
use core::sync::atomic::AtomicU64;
use frames::Owner;
use log::{info, warn};
use space::Space;
use stage2::Bbm;
use trace::{Kind, ring};
use types::CpuId;
use vmsa::Features;

/// Starts the trace where the command line asks for it.
pub(super) fn start_if_asked(machine: &Machine) {
    let Some(key) = machine.options.trace else { return };
    let cpus = machine.affinities.len() as u64;
    let bytes = ring::bytes(cpus);
    let Ok(memory) = machine.frames.carve_out(bytes) else {
        warn!("no trace: no {} KiB of memory in one piece for it", bytes >> 10);
        return;
    };
    let start = memory.cast::<AtomicU64>();
    // SAFETY: mapped, ours for good, and shared with a tool outside of the program alone; zeroed here first. Aligned as
    // frames are. Atomics may be made of zeroes.
    let words = unsafe {
        start.write_bytes(0, memory.len() / size_of::<AtomicU64>());
        core::slice::from_raw_parts(start.as_ptr(), memory.len() / size_of::<AtomicU64>())
    };
    let style = u8::from(machine.options.invalidate == Style::Interrupt);
    let way = match machine.options.wait {
        Way::Epoch => 0,
        Way::Count => 1,
        Way::Rendezvous => 2,
        Way::Batched => 3,
    };
    trace::start(words, cpus, key, this_cpu, (style, way));
    info!(
        "trace: {} KiB for {cpus} CPUs at {:#x}; CPUs wait where nobody reads it",
        bytes >> 10,
        start.addr()
    );
}

fn this_cpu() -> CpuId {
    Local::this().cpu()
}

/// Returns what tables look like: shape and features, as [`Kind::Space`] has them.
pub(super) fn shape(hypervisor: &Hypervisor) -> (u64, u64) {
    let geometry = hypervisor.layout.geometry();
    let has = hypervisor.format.features();
    let features =
        u64::from(has.contains(Features::HARDWARE_DIRTY)) | u64::from(has.contains(Features::FWB)) << 1;
    (u64::from(geometry.ipa_bits()) << 16 | u64::from(geometry.top().get()) << 24, features)
}

/// Notes that a space is there.
pub(super) fn space_is_made(hypervisor: &Hypervisor, space: &Space<'static, Format>, bbm: Bbm) {
    if trace::is_on() {
        let (shape, features) = shape(hypervisor);
        let owner = u64::from(space.owner().0);
        trace::note(Kind::Space, bbm as u8, [space.root().get(), owner | shape, features]);
    }
}

/// Notes that a space is gone.
pub(super) fn space_is_gone(owner: Owner) {
    if trace::is_on() {
        trace::note(Kind::SpaceGone, 0, [0, owner.0.into(), 0]);
    }
}

/// Notes that this CPU runs no guest any more with the tables that it has loaded: from here on to the next load no walk of
/// them begins.
pub(super) fn leaves_tables() {
    if trace::is_on() {
        trace::note(Kind::Vttbr, 0, [0; 3]);
    }
}

/// Notes that this CPU runs a vCPU next.
pub(super) fn runs(owner: Owner, vcpu: usize) {
    if trace::is_on() {
        trace::note(Kind::Runs, 0, [owner.0.into(), vcpu as u64, 0]);
    }
}

/// Notes that nothing follows.
pub(super) fn end() {
    if trace::is_on() {
        trace::note(Kind::End, 0, [0; 3]);
    }
}
