//! Packages of the guest's architecture, through an apt state of our own.
//!
//! The system's lists, cache and architectures stay as they are: every folder that apt writes to is redirected below
//! `target/guest/apt/`, so this works without root and on a host of any architecture.

use super::Arch;
use crate::{paths, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Debian's own mirror.
pub(crate) const MIRROR: &str = "http://deb.debian.org/debian";

const SUITES: [&str; 2] = ["bookworm", "bookworm-backports"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's arm64 archive as seen from here. Lists are fetched once, at the first question.
pub(super) struct Debian {
    mirror: String,
    arch: Arch,
    fetched: bool,
}

/// A package that was downloaded and unpacked.
pub(super) struct Unpacked {
    /// The package's version.
    pub(super) version: String,
    /// The `.deb` itself.
    pub(super) deb: PathBuf,
    /// The folder that its files lie in.
    pub(super) root: PathBuf,
}

impl Debian {
    /// Makes a view of the arm64 archive at `mirror`; nothing is fetched yet.
    pub(super) fn new(mirror: &str) -> Self {
        Self::of(mirror, Arch::Arm64)
    }

    /// As [`Debian::new`], of an architecture.
    pub(super) fn of(mirror: &str, arch: Arch) -> Self {
        Self { mirror: mirror.to_owned(), arch, fetched: false }
    }

    /// Returns the names of packages that match a regular expression.
    pub(super) fn names(&mut self, pattern: &str) -> Result<Vec<String>> {
        self.update()?;
        let out = shell::output(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(out.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Downloads a package and unpacks it into a folder of its name, whose old contents go.
    pub(super) fn unpack(&mut self, package: &str, folder: &str) -> Result<Unpacked> {
        let (version, deb) = self.download(package)?;
        let root = empty(folder)?;
        shell::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
        Ok(Unpacked { version, deb, root })
    }

    /// Downloads a package and unpacks those of its files that match `pattern` into a folder, whose old contents go, without
    /// the first `depth` folders of their names. Returns the package's version, and the package.
    pub(super) fn extract(
        &mut self,
        package: &str,
        folder: &str,
        pattern: &str,
        depth: usize,
    ) -> Result<(String, PathBuf)> {
        let (version, deb) = self.download(package)?;
        let root = empty(folder)?;
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let mut whole = Command::new("dpkg-deb");
        whole.arg("--fsys-tarfile").arg(&deb).stdout(Stdio::piped());
        let mut whole = whole.spawn().context("cannot start dpkg-deb")?;
        let archive = whole.stdout.take().context("dpkg-deb has no output")?;
        let mut tar = Command::new("tar");
        tar.arg("-x").arg("-C").arg(&root).arg(format!("--strip-components={depth}"));
        let result = shell::run(tar.args(["--wildcards", pattern]).stdin(archive));
        let status = whole.wait().context("waiting for dpkg-deb")?;
        result?;
        anyhow::ensure!(status.success(), "dpkg-deb could not read {} ({status})", deb.display());
        Ok((version, deb))
    }

    /// Downloads a package. Returns its version and where it is, until the next one is downloaded.
    fn download(&mut self, package: &str) -> Result<(String, PathBuf)> {
        self.update()?;
        let debs = self.state().join("debs");
        fs::remove_dir_all(&debs).or_else(ignore_missing).context("cannot empty the download folder")?;
        fs::create_dir_all(&debs).context("cannot make the download folder")?;
        shell::run(self.apt("apt-get").args(["download", package]).current_dir(&debs))?;
        let deb = match fs::read_dir(&debs)?.next() {
            Some(entry) => entry?.path(),
            None => bail!("apt-get download {package} left no file"),
        };
        let version = shell::output(Command::new("dpkg-deb").arg("-f").arg(&deb).arg("Version"))?;
        Ok((version.trim().to_owned(), deb))
    }

    fn state(&self) -> PathBuf {
        let name = format!("apt{}", self.arch.suffix());
        paths::clean(&paths::guest()).join(name)
    }

    /// Starts an apt command line in our own state.
    fn apt(&self, program: &str) -> Command {
        let state = self.state();
        let state = state.display();
        let mut command = Command::new(program);
        // A person sees apt's progress; a log does not need it.
        if program == "apt-get" && !stdout().is_terminal() {
            command.arg("-qq");
        }
        for option in [
            format!("APT::Architecture={}", self.arch.debian()),
            format!("APT::Architectures={}", self.arch.debian()),
            "APT::Sandbox::User=root".to_owned(), // the `_apt` user may not see our folders
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::Etc::sourcelist={state}/sources.list"),
            format!("Dir::State={state}"),
            format!("Dir::State::lists={state}/lists"),
            format!("Dir::State::status={state}/status"),
            format!("Dir::Cache={state}/cache"),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn update(&mut self) -> Result<()> {
        if self.fetched {
            return Ok(());
        }
        if shell::which("apt-get").is_none() || shell::which("dpkg-deb").is_none() {
            bail!(
                "the guest's packages come through apt-get and dpkg-deb, which this system lacks; \
                 put an arm64 `Image` and an `initrd.cpio.gz` into {} yourself",
                paths::guest().display()
            );
        }
        let state = self.state();
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(dir)).context("cannot make apt's folders")?;
        }
        fs::write(state.join("status"), "").context("cannot write apt's status")?;
        let source = |suite| format!("deb [signed-by={KEYRING}] {} {suite} main\n", self.mirror);
        fs::write(state.join("sources.list"), SUITES.map(source).concat())
            .context("cannot write apt's sources")?;
        shell::run(self.apt("apt-get").arg("update"))?;
        self.fetched = true;
        Ok(())
    }
}

/// Removes what is in a folder below the guest images, and returns where it is.
fn empty(folder: &str) -> Result<PathBuf> {
    let root = paths::guest().join(folder);
    fs::remove_dir_all(&root).or_else(ignore_missing).with_context(|| format!("cannot empty {folder}"))?;
    Ok(root)
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}
