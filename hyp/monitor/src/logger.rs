//! The backend of the `log` crate: lines of the form `[mz     0.012345 c0 info] text` on the console.

use crate::{arch, console};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use log::{Level, LevelFilter, Log, Metadata, Record};
use types::Ticks;

/// The system counter when the image was entered.
static STARTED: AtomicU64 = AtomicU64::new(0);

struct Console;

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            crate::report::stop_if_reported();
            let mut console = console::lock();
            console.fresh_line();
            // Writing to the console does not fail.
            let _ = writeln!(
                console,
                "[mz {} c{} {}] {}",
                SinceStart(ticks_since_start()),
                arch::this_cpu().index(),
                name(record.level()),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

const fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// Starts logging at `level`, on a clock that was 0 at `started`. To be called with the MMU on.
pub(crate) fn start(started: Ticks, level: LevelFilter) {
    STARTED.store(started, Relaxed);
    // Fails only where there already is a logger, which is then this one.
    let _ = log::set_logger(&Console);
    log::set_max_level(level);
}

/// Returns the ticks since the image was entered.
pub(crate) fn ticks_since_start() -> Ticks {
    arch::ticks().wrapping_sub(STARTED.load(Relaxed))
}

/// Prints ticks as seconds, with microseconds.
pub(crate) struct SinceStart(pub(crate) Ticks);

impl fmt::Display for SinceStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Firmware that leaves the frequency out gets ticks for microseconds, not a division by zero.
        let hz = match arch::tick_hz() {
            0 => 1_000_000,
            hz => hz,
        };
        let (seconds, rest) = (self.0 / hz, self.0 % hz);
        write!(f, "{seconds:5}.{:06}", rest * 1_000_000 / hz)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aarch64::effect;
    use std::format;

    #[test]
    fn time_is_printed_in_seconds_to_the_microsecond() {
        effect::reset();
        effect::script("cntfrq_el0", &[62_500_000]);
        assert_eq!(format!("{}", SinceStart(771_562)), "    0.012344");
        assert_eq!(format!("{}", SinceStart(62_500_000 * 12_345)), "12345.000000");
    }

    #[test]
    fn a_machine_without_a_frequency_still_logs() {
        effect::reset();
        effect::script("cntfrq_el0", &[0]);
        assert_eq!(format!("{}", SinceStart(1_500_000)), "    1.500000");
    }
}
