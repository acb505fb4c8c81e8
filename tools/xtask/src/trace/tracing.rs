//! Taking a machine's trace while it runs: its RAM is a file that both sides have.

use crate::paths;
use crate::qemu::Machine;
use anyhow::{Context, Result, bail, ensure};
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;
use tracing_tool::{Drain, Drained, Kind, check};

/// The trace of a machine that runs, or is about to.
pub(crate) struct Tracing {
    drain: Drain,
    _ram: Arc<NamedTempFile>,
    to: PathBuf,
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
        Ok(Self { drain, _ram: ram, to: to.to_owned() })
    }

    /// Takes what is left. The machine is off.
    pub(crate) fn finish(self) -> Result<Drained> {
        let drained = self.drain.finish().context("the trace cannot be taken")?;
        eprintln!("{}: {drained}", paths::display(&self.to));
        Ok(drained)
    }
}

impl Tracing {
    /// Takes what is left, as [`Tracing::finish`] does, and checks the trace. Where no rule is broken, its file goes.
    pub(crate) fn judge(self) -> Result<()> {
        let to = self.to.clone();
        self.finish()?;
        let report = check::check(&to)?;
        let trace = paths::display(&to);
        ensure!(report.counts.of(Kind::Tlbi) > 0, "{trace} has no invalidation: it shows nothing");
        if let Some(broken) = report.broken {
            bail!("{trace}: record {} breaks a rule: {}", broken.record.number, broken.objection);
        }
        fs::remove_file(&to).with_context(|| format!("cannot remove {trace}"))
    }
}
