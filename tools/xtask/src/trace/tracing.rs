//! Taking a machine's trace while it runs: its RAM is a file that both sides have, or it comes by a second UART.

use crate::paths;
use crate::qemu::Machine;
use anyhow::{Context, Result, bail, ensure};
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tempfile::NamedTempFile;
use tracing_tool::{Drain, Kind, check};

/// The trace of a machine that runs, or is about to.
pub(crate) struct Tracing {
    way: Way,
    to: PathBuf,
}

/// How it comes.
enum Way {
    Memory {
        drain: Drain,
        _ram: Arc<NamedTempFile>,
    },
    /// The emulator writes what comes by a port into the file, which is that of a trace.
    Port {
        since: Instant,
    },
}

impl Tracing {
    /// Has the hypervisor of a machine that is about to start make a trace, and begins to take it into the file `to`.
    pub(crate) fn of(machine: &mut Machine, to: &Path) -> Result<Self> {
        Self::since(machine, to, "trace")
    }

    /// The same, from when a guest asks for it.
    pub(crate) fn later(machine: &mut Machine, to: &Path) -> Result<Self> {
        Self::since(machine, to, "trace-later")
    }

    fn since(machine: &mut Machine, to: &Path, word: &str) -> Result<Self> {
        let ram = machine.share_ram()?;
        let key = RandomState::new().hash_one(ram.path()); // a new one for each machine
        machine.append = format!("{} {word}={key:x}", machine.append).trim_start().to_owned();
        let drain = Drain::start(ram.path(), key, to)?;
        Ok(Self { way: Way::Memory { drain, _ram: ram }, to: to.to_owned() })
    }

    /// Has the hypervisor send its trace by a second UART, which the emulator connects to the file `to`.
    pub(crate) fn by_uart(machine: &mut Machine, to: &Path) -> Result<Self> {
        let file = path::absolute(to).with_context(|| format!("cannot name {}", to.display()))?;
        machine.extra.extend(["-serial".into(), format!("file:{}", file.display()).into()]);
        machine.append = format!("{} trace=uart", machine.append).trim_start().to_owned();
        Ok(Self { way: Way::Port { since: Instant::now() }, to: to.to_owned() })
    }

    /// Has a PC's hypervisor send its trace by the parallel port, which the emulator connects to the file `to`: what is to be on
    /// the hypervisor's command line.
    pub(crate) fn by_printer(to: &Path) -> (Self, &'static str) {
        (Self { way: Way::Port { since: Instant::now() }, to: to.to_owned() }, "trace=printer")
    }

    /// Takes what is left. The machine is off.
    pub(crate) fn finish(self) -> Result<()> {
        let to = paths::display(&self.to);
        match self.way {
            Way::Memory { drain, .. } => {
                let drained = drain.finish().context("the trace cannot be taken")?;
                eprintln!("{to}: {drained}");
            }
            Way::Port { since } => {
                let bytes = fs::metadata(&self.to).context("no trace has come")?.len();
                let seconds = since.elapsed().as_secs_f64();
                eprintln!(
                    "{to}: {bytes} bytes in {seconds:.1} s by a port, {:.0} a second",
                    bytes as f64 / seconds
                );
            }
        }
        Ok(())
    }
}

impl Tracing {
    /// Takes what is left, as [`Tracing::finish`] does, and checks the trace. Where no rule is broken, its file goes.
    pub(crate) fn judge(self) -> Result<String> {
        let to = self.to.clone();
        self.finish()?;
        let report = check::check(&to)?;
        let trace = paths::display(&to);
        ensure!(report.counts.of(Kind::Tlbi) > 0, "{trace} has no invalidation: it shows nothing");
        if let Some(broken) = report.broken {
            bail!("{trace}: record {} breaks a rule: {}", broken.record.number, broken.objection);
        }
        fs::remove_file(&to).with_context(|| format!("cannot remove {trace}"))?;
        Ok(format!("{} records of {} spaces, no rule is broken", report.counts.all(), report.spaces))
    }
}
