//! The view of this machine: what is counted, and where tables and frame records are, in RAM that a tool reads along.
//!
//! The boot CPU puts all of it there some times a second (`shift`), and whoever is the last to turn off does once more.
//! Without the word on the command line nothing is set aside, and nobody is interrupted for it.

use super::guest::Guest;
use super::{Hypervisor, tracing};
use crate::Machine;
use crate::roster::MOST_GUESTS;
use aarch64::sysreg::{CNTPCT_EL0, Readable};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use log::{info, warn};
use trace::view::{self, BANKS, View, header, place};
use vm::ExitReason;

const _: () = assert!(ExitReason::ALL.len() == view::EXITS.len());
const _: () = assert!(stage2::HEIGHTS == place::HEIGHTS && stage2::BLACKOUTS == place::CLASSES);
const _: () = assert!(frames::MAX_BANKS == BANKS);

/// Begins the view where the command line asks for it.
pub(super) fn start_if_asked(machine: &Machine) -> Option<View> {
    let key = machine.options.view?;
    let places = u64::from(MOST_GUESTS);
    let bytes = view::bytes(places);
    let Ok(memory) = machine.frames.carve_out(bytes) else {
        warn!("no view: no {} KiB of memory in one piece for it", bytes >> 10);
        return None;
    };
    let start = memory.cast::<AtomicU64>();
    let count = memory.len() / size_of::<AtomicU64>();
    // SAFETY: mapped, ours for good, and shared with a tool outside of the program alone; zeroed here first. Aligned as
    // frames are. Atomics may be made of zeroes.
    let words = unsafe {
        start.write_bytes(0, count);
        core::slice::from_raw_parts(start.as_ptr(), count)
    };
    let here = machine.frames.map().pa(start.as_ptr().cast());
    info!("view: {} KiB at {:#x}", bytes >> 10, here.get());
    Some(View::new(words, here.get(), key, places))
}

/// Puts everything there anew.
#[inline(never)] // seldom
pub(super) fn write(hypervisor: &Hypervisor) {
    if let Some(view) = &hypervisor.view {
        view.write(|view| write_all(hypervisor, view));
    }
}

fn write_all(hypervisor: &Hypervisor, view: &View) {
    let machine = hypervisor.machine;
    view.put(header::TICKS, &[CNTPCT_EL0.get(), super::tick_hz(), machine.affinities.len() as u64]);
    let (issued, frames) = (&hypervisor.issued, machine.frames.stats());
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    let numbers: [u64; view::Machine::COUNT] = [
        count(&issued.by_address),
        count(&issued.by_range),
        count(&issued.whole),
        count(&issued.local),
        count(&issued.returns),
        count(&issued.publish),
        count(&issued.kicks),
        hypervisor.vmids.rollovers(),
        frames.total,
        frames.free,
        frames.guest,
        frames.tables,
    ];
    view.put(header::NUMBERS, &numbers);
    for (n, (memory, records)) in machine.frames.banks().enumerate() {
        view.put(header::BANKS + 3 * n, &[memory.start().get(), memory.len(), records.get()]);
    }
    // Who is not here any more has left a place behind.
    (0..MOST_GUESTS).for_each(|number| view.put_at(number.into(), place::OWNER, &[0]));
    for guest in hypervisor.ledger.roster.iter() {
        write_guest(hypervisor, &guest, view);
    }
}

fn write_guest(hypervisor: &Hypervisor, guest: &Guest, view: &View) {
    let put = |first, words: &[u64]| view.put_at(guest.number.into(), first, words);
    let (space, config) = (&guest.space, guest.vm.config());
    let (shape, features) = tracing::shape(hypervisor);
    let first: [u64; 6] = [
        space.owner().0.into(),
        guest.is_on().into(),
        config.vcpus() as u64,
        space.root().get(),
        shape,
        features | (space.tree().bbm() as u64) << 8,
    ];
    put(place::OWNER, &first);
    put(place::NAME, &view::name_words(&config.name));
    put(place::EXITS, &ExitReason::ALL.map(|reason| guest.vm.exits(reason)));
    let stats = space.stats();
    let census = &stats.census;
    put(place::LEAVES, &census.leaves);
    let numbers: [u64; view::Space::COUNT] = [
        stats.faults,
        stats.mapped,
        stats.allowed,
        stats.already_mapped,
        stats.busy,
        stats.outside,
        stats.denied,
        stats.failed,
        stats.moved,
        census.splits,
        census.collapses,
        census.pruned,
        census.invalidations,
        census.grace_periods,
        census.lost_races,
        stats.conflicts,
        stats.table_bytes,
        stats.reserve_bytes,
    ];
    put(place::NUMBERS, &numbers);
    put(place::BLACKOUTS, &census.blackouts);
    let mut pieces = [0; 2 * place::PIECES];
    for (piece, range) in pieces.as_chunks_mut().0.iter_mut().zip(config.memory()) {
        *piece = [range.start().get(), range.len()];
    }
    put(place::MEMORY, &pieces);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tool_knows_the_reasons_by_their_names() {
        assert_eq!(ExitReason::ALL.map(ExitReason::name), view::EXITS);
    }
}
