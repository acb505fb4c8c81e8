//! `target/guest/USED.txt`: what the guest images were made from, one line each: name, version, SHA-256.

use crate::paths;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn file() -> PathBuf {
    paths::guest().join("USED.txt")
}

/// Returns the whole record, empty if there is none yet.
pub(crate) fn read() -> Result<String> {
    match fs::read_to_string(file()) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).context("cannot read USED.txt"),
    }
}

/// Returns the line that starts with `name`.
pub(crate) fn line(name: &str) -> Result<Option<String>> {
    Ok(read()?.lines().find(|line| starts_with(line, name)).map(str::to_owned))
}

/// Records that `name` is `version` and has the contents of `path`.
pub(crate) fn record(name: &str, version: &str, path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = format!("{name} {version} sha256:{}", sha256(&bytes));
    fs::write(file(), replaced(&read()?, name, &line)).context("cannot write USED.txt")?;
    Ok(line)
}

/// Removes the lines whose names begin with `prefix`.
pub(crate) fn forget(prefix: &str) -> Result<()> {
    let kept = without(&read()?, prefix);
    fs::write(file(), kept).context("cannot write USED.txt")
}

/// Returns the SHA-256 of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // writing to a String cannot fail
        hex
    })
}

fn starts_with(line: &str, name: &str) -> bool {
    line.split_whitespace().next() == Some(name)
}

fn without(text: &str, prefix: &str) -> String {
    text.lines().filter(|line| !line.starts_with(prefix)).map(|line| format!("{line}\n")).collect()
}

fn replaced(text: &str, name: &str, line: &str) -> String {
    let mut lines: Vec<&str> = text.lines().filter(|old| !starts_with(old, name)).collect();
    lines.push(line);
    lines.sort_unstable();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recording_a_name_again_replaces_its_line_and_no_other() {
        let text = replaced("", "busybox", "busybox 1 sha256:aa");
        let text = replaced(&text, "Image", "Image 6.12 sha256:bb");
        let text = replaced(&text, "busybox", "busybox 2 sha256:cc");
        assert_eq!(text, "Image 6.12 sha256:bb\nbusybox 2 sha256:cc\n");
    }

    #[test]
    fn an_older_kernel_is_forgotten_by_the_beginning_of_its_name() {
        let text = "Image 6.1 sha256:bb\nlinux-image-6.1 6.1 sha256:cc\n";
        assert_eq!(without(text, "linux-image-"), "Image 6.1 sha256:bb\n");
    }

    #[test]
    fn the_checksum_of_nothing_is_the_published_one() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
