//! What is printed when the last guest is off.

use super::Hypervisor;
use super::guest::Guest;
use crate::console;
use crate::options::style_name;
use crate::outlet;
use crate::scale::scale;
use aarch64::sysreg::{CNTPCT_EL0, Readable};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stage2::BLACKOUTS;
use types::{FRAME_SIZE, Height, Ticks};
use vm::ExitReason;

/// Prints the block of statistics.
pub(super) fn print(hypervisor: &Hypervisor) {
    let mut console = console::lock();
    console.fresh_line();
    // The console does not fail.
    let _ = write_all(hypervisor, &mut *console);
}

fn write_all(hypervisor: &Hypervisor, to: &mut impl Write) -> fmt::Result {
    writeln!(to, "[mz STATS]")?;
    let machine = hypervisor.machine;
    let micros = scale(hypervisor.time_to_entry(), 1_000_000, super::tick_hz());
    writeln!(to, "time to guest entry: {}.{:06} s", micros / 1_000_000, micros % 1_000_000)?;
    writeln!(to, "CPUs: {}, each with {}", machine.affinities.len(), machine.features)?;
    writeln!(to, "invalidation: {}", style_name(hypervisor.style))?;
    writeln!(to, "waiting for readers: {}", machine.options.wait.name())?;
    for guest in hypervisor.ledger.roster.iter() {
        let name = &guest.vm.config().name;
        let mut total = 0;
        for reason in ExitReason::ALL {
            let exits = guest.vm.exits(reason);
            total += exits;
            if exits != 0 {
                writeln!(to, "{name} exits {reason}: {exits}")?;
            }
        }
        writeln!(to, "{name} exits: {total}")?;
        let stats = guest.space.stats();
        writeln!(to, "{name} faults: {}", stats.faults)?;
        writeln!(to, "{name} faults mapped: {}", stats.mapped)?;
        writeln!(to, "{name} faults already mapped: {}", stats.already_mapped)?;
        writeln!(to, "{name} faults busy: {}", stats.busy)?;
        writeln!(to, "{name} faults outside: {}", stats.outside)?;
        let census = &stats.census;
        for (height, &leaves) in (0..).zip(&census.leaves) {
            if let Some(size) = size(Height::new(height)) {
                writeln!(to, "{name} mapped {size}: {leaves}")?;
            }
        }
        writeln!(to, "{name} BBM level: {}", guest.space.tree().bbm() as u8)?;
        writeln!(to, "{name} splits: {}", census.splits)?;
        writeln!(to, "{name} collapses: {}", census.collapses)?;
        writeln!(to, "{name} grace periods: {}", census.grace_periods)?;
        writeln!(to, "{name} TLB conflicts: {}", stats.conflicts)?;
        write_blackouts(name, &census.blackouts, to)?;
        writeln!(to, "{name} bytes of tables: {}", stats.table_bytes)?;
        writeln!(to, "{name} bytes in reserve for splits: {}", stats.reserve_bytes)?;
        if outlet::are_several() {
            write_frames(hypervisor, &guest, to)?;
        }
        if machine.options.churn.is_some() {
            let micros = since_first_entry(hypervisor);
            let structural = guest.churn.structural();
            writeln!(to, "{name} churn: {structural}")?;
            writeln!(to, "{name} churn each second: {}", scale(structural, 1_000_000, micros))?;
            for (kind, count) in guest.churn.counts() {
                writeln!(to, "{name} churn, {kind}: {count}")?;
            }
        }
        for (kind, counts) in guest.vm.device_counts() {
            let device = kind.name();
            writeln!(to, "{name} {device} requests: {}", counts.requests)?;
            writeln!(to, "{name} {device} requests served by another CPU: {}", counts.elsewhere)?;
            writeln!(to, "{name} {device} steps held up: {}", counts.held_up)?;
            writeln!(to, "{name} {device} stopped by its driver: {}", counts.broken)?;
        }
        let dropped = guest.vm.dropped_input();
        if dropped != 0 {
            writeln!(to, "{name} dropped input: {dropped}")?;
        }
    }
    let issued = &hypervisor.issued;
    let kinds: [(&str, &AtomicU64); 6] = [
        ("by address", &issued.by_address),
        ("by range", &issued.by_range),
        ("whole VMID", &issued.whole),
        ("this CPU only", &issued.local),
        ("on return to a guest", &issued.returns),
        ("none needed", &issued.publish),
    ];
    for (kind, count) in kinds {
        writeln!(to, "TLBI {kind}: {}", count.load(Relaxed))?;
    }
    writeln!(to, "kicks to invalidate: {}", issued.kicks.load(Relaxed))?;
    writeln!(to, "VMID rollovers: {}", hypervisor.vmids.rollovers())?;
    hypervisor.ledger.write(to)?;
    let frames = machine.frames.stats();
    writeln!(
        to,
        "frames: {} in all, {} free, {} guests', {} tables",
        frames.total, frames.free, frames.guest, frames.tables
    )?;
    writeln!(to, "[mz END]")
}

/// Writes how many frames are a guest's by their records, and how many by its tables. Nothing of it rests, and nothing is
/// pinned, where the two are the same.
#[inline(never)] // seldom
fn write_frames(hypervisor: &Hypervisor, guest: &Guest, to: &mut impl Write) -> fmt::Result {
    const STEP: u64 = 1 << 16;
    let (frames, owner, stats) = (&hypervisor.machine.frames, guest.space.owner(), guest.space.stats());
    let owned: u64 = (0..).map_while(|n| frames.owned_by(owner, n * STEP, STEP)).sum();
    let mapped: u64 = (0..)
        .zip(&stats.census.leaves)
        .map(|(height, leaves)| leaves * (stage2::span::<super::Format>(Height::new(height)) / FRAME_SIZE))
        .sum();
    let tables = (stats.table_bytes + stats.reserve_bytes) / FRAME_SIZE;
    let name = &guest.vm.config().name;
    writeln!(to, "{name} frames: {owned} by their records, {mapped} mapped, {tables} tables")
}

/// Writes for how long entries had no translation while they were broken and made anew.
fn write_blackouts(name: &str, classes: &[u64; BLACKOUTS], to: &mut impl Write) -> fmt::Result {
    writeln!(to, "{name} blackouts: {}", classes.iter().sum::<u64>())?;
    for (class, &count) in (0..).zip(classes).filter(|(_, count)| **count != 0) {
        let (below, longest) = (nanos(1 << class), class == BLACKOUTS - 1);
        let (micros, rest) = (below / 1000, below % 1000);
        let longer = if longest { " or longer" } else { "" };
        writeln!(to, "{name} blackouts below {micros}.{rest:03} us{longer}: {count}")?;
    }
    Ok(())
}

/// Returns the microseconds since the first guest was entered.
fn since_first_entry(hypervisor: &Hypervisor) -> u64 {
    let ticks = CNTPCT_EL0.get().saturating_sub(hypervisor.first_entry.load(Relaxed));
    scale(ticks, 1_000_000, super::tick_hz())
}

/// Returns a time in nanoseconds.
fn nanos(ticks: Ticks) -> u64 {
    scale(ticks, 1_000_000_000, super::tick_hz())
}

/// Returns what an entry of this height maps with 4 KiB pages; `None` where it cannot be a leaf.
const fn size(height: Height) -> Option<&'static str> {
    match height.get() {
        0 => Some("4K pages"),
        1 => Some("2M blocks"),
        2 => Some("1G blocks"),
        _ => None,
    }
}
