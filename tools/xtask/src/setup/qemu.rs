//! QEMU for AArch64, 10 or later: older ones lack `neoverse-v1`/`-n2` features that the boots rely on.

use super::Found;
use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The program that every machine is run with.
pub(crate) const PROGRAM: &str = "qemu-system-aarch64";

/// The oldest major version that will do.
const OLDEST: u32 = 10;

const BACKPORTS: &str = "deb http://deb.debian.org/debian bookworm-backports main";
const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/bookworm-backports.list";

/// Looks for a QEMU in `PATH` that is new enough.
pub(super) fn find() -> Result<Found> {
    let Some(path) = shell::which(PROGRAM) else {
        return Ok(Found::Missing(format!("{PROGRAM} is not in PATH: installing it")));
    };
    let banner = shell::output(Command::new(&path).arg("--version"))?;
    let first = banner.lines().next().unwrap_or_default();
    match major(first) {
        Some(version) if version >= OLDEST => Ok(Found::Ready(format!("{first} in {}", path.display()))),
        Some(_) => Ok(Found::Missing(format!("{first} is older than {OLDEST}: installing a newer one"))),
        None => bail!("{} --version printed {first:?}", path.display()),
    }
}

/// Returns QEMU's name and version.
pub(crate) fn version() -> Result<String> {
    let banner = shell::output(Command::new(PROGRAM).arg("--version"))?;
    Ok(banner.lines().next().unwrap_or_default().replace(" emulator version", ""))
}

/// Installs Debian's package: from backports on Debian 12, whose own is version 7.
pub(super) fn install() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let bookworm = release.lines().any(|line| line == "VERSION_CODENAME=bookworm");
    let mut commands = Vec::new();
    if bookworm && !has_backports()? {
        commands.push(format!("echo '{BACKPORTS}' > {BACKPORTS_LIST}"));
    }
    commands.push("apt-get update".to_owned());
    let from = if bookworm { "-t bookworm-backports " } else { "" };
    commands.push(format!("apt-get install -y --no-install-recommends {from}qemu-system-arm"));
    as_root(&commands.join(" && "), &format!("{PROGRAM} {OLDEST} or later"))?;
    match find()? {
        Found::Ready(what) => Ok(what),
        Found::Missing(_) => {
            bail!("this system's QEMU is still too old; put {PROGRAM} {OLDEST} or later in PATH")
        }
    }
}

/// Tells whether apt already reads bookworm-backports.
fn has_backports() -> Result<bool> {
    let dir = Path::new("/etc/apt/sources.list.d");
    let mut files = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension().is_some_and(|e| e == "list" || e == "sources"));
    Ok(files.iter().filter_map(|file| fs::read_to_string(file).ok()).any(|text| names_backports(&text)))
}

fn names_backports(sources: &str) -> bool {
    let live = sources.lines().filter(|line| !line.trim_start().starts_with('#'));
    live.flat_map(str::split_whitespace).any(|word| word == "bookworm-backports")
}

/// Runs a line of shell that has apt-get install something, as root, or prints it where that is not possible. Where there is no
/// apt-get, `what` is for the user to install.
pub(super) fn as_root(script: &str, what: &str) -> Result<()> {
    if shell::which("apt-get").is_none() {
        bail!("there is no apt-get here; install {what} with your system's own tool");
    }
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("sh")
    } else if can_sudo() {
        let mut command = Command::new("sudo");
        command.arg("sh");
        command
    } else {
        bail!("this needs root. Run:\n    su -c {}", shell::quote(script));
    };
    shell::run(command.env("DEBIAN_FRONTEND", "noninteractive").args(["-ec", script]))
}

/// Tells whether sudo would work: without a password, or by asking for one on the terminal.
fn can_sudo() -> bool {
    use std::io::IsTerminal;
    let silent = || Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|o| o.status.success());
    shell::which("sudo").is_some() && (silent() || std::io::stdin().is_terminal())
}

/// Reads the major version from QEMU's first line.
fn major(banner: &str) -> Option<u32> {
    banner.strip_prefix("QEMU emulator version ")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_qemus_banner() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)"), Some(10));
        assert_eq!(major("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u15)"), Some(7));
        assert_eq!(major("qemu: command not found"), None);
    }

    #[test]
    fn a_commented_backports_line_does_not_count() {
        assert!(names_backports("deb http://deb.debian.org/debian bookworm-backports main\n"));
        assert!(names_backports("Types: deb\nSuites: bookworm bookworm-backports\n"));
        assert!(!names_backports("# deb http://deb.debian.org/debian bookworm-backports main\n"));
        assert!(!names_backports("deb http://deb.debian.org/debian bookworm main\n"));
    }
}
