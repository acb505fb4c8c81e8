//! A trace in a file: written once, in order, and read from the start to the end.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use trace::record::{BYTES, FILE_MAGIC, Record, VERSION, WORDS};

/// Reads a trace.
#[derive(Debug)]
pub struct File {
    from: BufReader<fs::File>,
    cpus: u64,
    next: u64,
    /// The next record's bytes that are there, and how many.
    part: ([u8; BYTES], usize),
}

/// Writes a trace.
#[derive(Debug)]
pub struct Writer {
    to: BufWriter<fs::File>,
}

fn words(bytes: [u8; BYTES]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

impl File {
    /// Opens a trace.
    ///
    /// # Errors
    /// It cannot be read, or is none, or of another version.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut from = BufReader::with_capacity(1 << 20, file);
        let mut first = [0; BYTES];
        from.read_exact(&mut first).with_context(|| format!("{} is no trace", path.display()))?;
        let [magic, version, cpus, _] = words(first);
        ensure!(magic == FILE_MAGIC, "{} is no trace", path.display());
        ensure!(version == VERSION, "{} has version {version} of the format, not {VERSION}", path.display());
        Ok(Self { from, cpus, next: 0, part: ([0; BYTES], 0) })
    }

    /// Returns how many CPUs the machine had.
    pub const fn cpus(&self) -> u64 {
        self.cpus
    }

    /// Reads the next record; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read, is cut off within a record, or is none; or a record is missing.
    pub fn read(&mut self) -> Result<Option<Record>> {
        let record = self.read_so_far()?;
        ensure!(record.is_some() || self.part.1 == 0, "the trace is cut off within record {}", self.next);
        Ok(record)
    }

    /// Reads the next record of a trace that is still being written; `None` where it is not there yet.
    ///
    /// # Errors
    /// As [`File::read`], but for a cut.
    pub fn read_so_far(&mut self) -> Result<Option<Record>> {
        let (bytes, have) = &mut self.part;
        while *have < BYTES {
            match self.from.read(&mut bytes[*have..]) {
                Ok(0) => return Ok(None),
                Ok(more) => *have += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read the trace"),
            }
        }
        *have = 0;
        let record = Record::of(words(*bytes));
        let record = record.map_err(|no| anyhow::anyhow!("record {} is none: {:x?}", self.next, no.0))?;
        ensure!(record.number == self.next, "record {} is missing: {} follows", self.next, record.number);
        self.next += 1;
        Ok(Some(record))
    }
}

impl Writer {
    /// Makes the file of a machine with `cpus` CPUs.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path, cpus: u64) -> Result<Self> {
        let file = fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut writer = Self { to: BufWriter::with_capacity(1 << 20, file) };
        writer.words([FILE_MAGIC, VERSION, cpus, 0])?;
        Ok(writer)
    }

    /// Writes a record's words.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn words(&mut self, words: [u64; WORDS]) -> Result<()> {
        for word in words {
            self.to.write_all(&word.to_le_bytes()).context("cannot write the trace")?;
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.to.flush().context("cannot write the trace")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trace::Kind;
    use types::CpuId;

    fn record(number: u64) -> Record {
        Record { number, cpu: CpuId::BOOT, kind: Kind::Freed, small: 0, operands: [number, 2, 3] }
    }

    fn written(numbers: &[u64]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("room");
        let path = dir.path().join("trace");
        let mut writer = Writer::create(&path, 2).expect("room");
        numbers.iter().for_each(|&n| writer.words(record(n).words()).expect("room"));
        writer.finish().expect("room");
        (dir, path)
    }

    #[test]
    fn what_was_written_is_read() {
        let (_dir, path) = written(&[0, 1]);
        let mut file = File::open(&path).expect("a trace");
        assert_eq!(file.cpus(), 2);
        assert_eq!(file.read().expect("whole"), Some(record(0)));
        assert_eq!(file.read().expect("whole"), Some(record(1)));
        assert_eq!(file.read().expect("whole"), None);
    }

    #[test]
    fn a_record_that_is_being_written_is_read_when_it_is_whole() {
        let (_dir, path) = written(&[0, 1]);
        let bytes = fs::read(&path).expect("there");
        fs::write(&path, &bytes[..2 * BYTES + 5]).expect("room");
        let mut file = File::open(&path).expect("a trace");
        assert_eq!(file.read_so_far().expect("whole"), Some(record(0)));
        assert_eq!(file.read_so_far().expect("so far"), None);
        let mut rest = fs::OpenOptions::new().append(true).open(&path).expect("there");
        rest.write_all(&bytes[2 * BYTES + 5..]).expect("room");
        assert_eq!(file.read_so_far().expect("whole"), Some(record(1)));
        assert_eq!(file.read().expect("the end"), None);
    }

    #[test]
    fn a_gap_and_a_cut_are_errors() {
        let (_dir, path) = written(&[0, 2]);
        let mut file = File::open(&path).expect("a trace");
        file.read().expect("the first");
        assert!(file.read().unwrap_err().to_string().contains("record 1 is missing"));
        let bytes = fs::read(&path).expect("there");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("room");
        let mut file = File::open(&path).expect("a trace");
        file.read().expect("the first");
        assert!(file.read().unwrap_err().to_string().contains("cut off"));
        fs::write(&path, b"something else, longer than a record").expect("room");
        assert!(File::open(&path).unwrap_err().to_string().contains("is no trace"));
    }
}
