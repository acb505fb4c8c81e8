//! Machines that show what they count: announcing one, and finding one that runs.
//!
//! ```text
//! run --view, stress --view ─▶ a file in target/run that says where the RAM is ─▶ top, map
//! ```

use crate::paths;
use crate::qemu::Machine;
use anyhow::{Context, Result, bail};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::NamedTempFile;
use tracing_tool::view::View;

const PREFIX: &str = "view-";
const SUFFIX: &str = ".json";

/// How long a machine may take until it shows something.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a running machine's view is.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Announced {
    /// Who runs it.
    pub(crate) pid: i32,
    /// The file that is its RAM.
    pub(crate) ram: PathBuf,
    /// What the view is found by.
    pub(crate) key: u64,
}

/// A machine whose view is announced, for as long as this is there.
pub(crate) struct Shown {
    ram: Arc<NamedTempFile>,
    key: u64,
    _announcement: NamedTempFile,
}

impl Shown {
    /// Has the hypervisor of a machine that is about to start show what it counts, and tells where.
    pub(crate) fn of(machine: &mut Machine) -> Result<Self> {
        let ram = machine.share_ram()?;
        let key = RandomState::new().hash_one((ram.path(), PREFIX)); // a new one for each machine
        machine.append = format!("{} view={key:x}", machine.append).trim_start().to_owned();
        let dir = dir()?;
        let file = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(&dir);
        let mut file = file.with_context(|| format!("cannot make a file in {}", dir.display()))?;
        let announced = Announced { pid: Pid::this().as_raw(), ram: ram.path().to_owned(), key };
        serde_json::to_writer(&mut file, &announced).context("cannot announce the machine")?;
        Ok(Self { ram, key, _announcement: file })
    }

    /// Opens the view, also of a machine that is off.
    pub(crate) fn open(&self) -> Result<View> {
        View::open(self.ram.path(), self.key, Duration::ZERO)
    }
}

fn dir() -> Result<PathBuf> {
    let dir = paths::target().join("run");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Opens the view of the machine that was started last, of those that run.
pub(crate) fn open() -> Result<View> {
    let Some(found) = newest(&dir()?, |pid| kill(Pid::from_raw(pid), None).is_ok())? else {
        bail!("no machine runs that shows what it counts: start one with `cargo xtask run --view`");
    };
    View::open(&found.ram, found.key, PATIENCE)
}

/// Finds the machine that was announced last of those whose process is alive; the announcements of others go.
fn newest(dir: &Path, is_alive: impl Fn(i32) -> bool) -> Result<Option<Announced>> {
    let mut newest: Option<(SystemTime, Announced)> = None;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !(name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            continue;
        }
        // It may be gone by now, or not be written to the end.
        let (Ok(text), Ok(made)) = (fs::read(&path), path.metadata().and_then(|file| file.modified())) else {
            continue;
        };
        let Ok(announced) = serde_json::from_slice::<Announced>(&text) else { continue };
        if !is_alive(announced.pid) {
            let _ = fs::remove_file(&path); // another look may have been faster
        } else if newest.as_ref().is_none_or(|(before, _)| made >= *before) {
            newest = Some((made, announced));
        }
    }
    Ok(newest.map(|(_, announced)| announced))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_those_that_run_is_found_and_others_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let announce = |name: &str, pid, seconds| {
            let path = dir.path().join(name);
            let announced = Announced { pid, ram: "ram".into(), key: 3 };
            fs::write(&path, serde_json::to_vec(&announced).unwrap()).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        announce("view-a.json", 1, 10);
        announce("view-b.json", 2, 30);
        announce("view-c.json", 3, 20);
        announce("other.json", 4, 40);
        fs::write(dir.path().join("view-d.json"), "{").unwrap();
        let found = newest(dir.path(), |pid| pid != 2).unwrap().unwrap();
        assert_eq!(found.pid, 3);
        assert!(!dir.path().join("view-b.json").exists());
        assert!(newest(dir.path(), |_| false).unwrap().is_none());
    }
}
