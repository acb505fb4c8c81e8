//! What is printed when the last guest is off.

use super::Hypervisor;
use super::guest::Reason;
use crate::console;
use crate::scale::scale;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

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
    let micros = scale(hypervisor.time_to_entry(), 1_000_000, machine.tick_hz);
    writeln!(to, "time to guest entry: {}.{:06} s", micros / 1_000_000, micros % 1_000_000)?;
    writeln!(to, "CPUs: {}", machine.lines.len())?;
    writeln!(to, "waiting for readers: {}", machine.options.wait.name())?;
    for guest in hypervisor.ledger.roster.iter() {
        let name = &guest.config().name;
        let mut total = 0;
        for (reason, called) in Reason::ALL {
            let exits = guest.exits(reason);
            total += exits;
            if exits != 0 {
                writeln!(to, "{name} exits {called}: {exits}")?;
            }
        }
        writeln!(to, "{name} exits: {total}")?;
        let stats = guest.space.stats();
        writeln!(to, "{name} faults: {}", stats.faults)?;
        writeln!(to, "{name} faults mapped: {}", stats.mapped)?;
        writeln!(to, "{name} faults outside: {}", stats.outside)?;
        for (size, &leaves) in ["4K", "2M", "1G"].iter().zip(&stats.census.leaves) {
            writeln!(to, "{name} mapped {size}: {leaves}")?;
        }
        writeln!(to, "{name} splits: {}", stats.census.splits)?;
        writeln!(to, "{name} collapses: {}", stats.census.collapses)?;
        writeln!(to, "{name} grace periods: {}", stats.census.grace_periods)?;
        if guest.lists {
            writeln!(to, "{name} pages listed as written: {}", guest.listed.load(Relaxed))?;
        }
        writeln!(to, "{name} bytes of tables: {}", stats.table_bytes)?;
    }
    let issued = &hypervisor.issued;
    for (kind, count) in [
        ("INVEPT this CPU only", &issued.local),
        ("INVEPT on return to a guest", &issued.returns),
        ("invalidations", &issued.requests),
        ("invalidations not needed", &issued.publish),
        ("kicks to invalidate", &issued.kicks),
    ] {
        writeln!(to, "{kind}: {}", count.load(Relaxed))?;
    }
    hypervisor.ledger.write(to)?;
    writeln!(to, "[mz END]")
}
