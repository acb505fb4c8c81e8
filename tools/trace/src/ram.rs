//! [`Ram`]: a machine's RAM, which its emulator maps from a file.
//!
//! The file is read and written as a file: what the machine stores is in the same pages.

use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// A machine's RAM.
#[derive(Debug)]
pub(crate) struct Ram(fs::File);

impl Ram {
    /// Opens it to look only.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path);
        Ok(Self(file.with_context(|| format!("cannot open a machine's memory, {}", path.display()))?))
    }

    /// Opens it.
    pub(crate) fn open_to_write(path: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path);
        Ok(Self(file.with_context(|| format!("cannot open a machine's memory, {}", path.display()))?))
    }

    /// Reads what is at `at`, an offset from its start, as all that follow.
    pub(crate) fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.0.read_exact_at(bytes, at).context("cannot read the machine's memory")
    }

    /// Writes.
    pub(crate) fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.0.write_all_at(bytes, at).context("cannot write the machine's memory")
    }

    /// Reads some words.
    pub(crate) fn words<const N: usize>(&self, at: u64) -> Result<[u64; N]> {
        let mut bytes = vec![0; N * 8];
        self.read(&mut bytes, at)?;
        let mut words = bytes.chunks_exact(8).map(word);
        Ok(std::array::from_fn(|_| words.next().unwrap_or(0)))
    }

    /// Reads `count` words.
    pub(crate) fn many(&self, at: u64, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        self.read(&mut bytes, at)?;
        Ok(bytes.chunks_exact(8).map(word).collect())
    }

    /// Reads a word that is being written: until it is the same twice.
    pub(crate) fn moving(&self, at: u64) -> Result<u64> {
        loop {
            let [first] = self.words(at)?;
            let [second] = self.words(at)?;
            if first == second {
                return Ok(first);
            }
        }
    }

    /// Returns its size.
    pub(crate) fn len(&self) -> Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// Tells whether nobody can find it any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.metadata().is_ok_and(|file| file.nlink() == 0)
    }

    /// Looks for two words at a multiple of `alignment`.
    pub(crate) fn find(&self, wanted: [u64; 2], alignment: u64) -> Result<Option<u64>> {
        for start in (0..self.len()?).step_by(alignment as usize) {
            if self.words(start)? == wanted {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }
}

pub(crate) fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
