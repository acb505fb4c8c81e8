//! [`Drain`]: takes records from a running machine's RAM, which its emulator maps from a file.
//!
//! The file is read and written as a file: what the machine stores is in the same pages. Each ring is read up to its head
//! and its tail moved; then records are merged. Numbers have no gaps, so the next record of all is the first of some ring,
//! or will be when that ring is read again.

use crate::Writer;
use crate::ram::{Ram, word};
use anyhow::{Result, bail, ensure};
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use trace::Kind;
use trace::record::{BYTES, VERSION, WORDS};
use trace::ring::{self, ALIGNMENT, header};

/// How long to wait where there was nothing.
const PAUSE: Duration = Duration::from_millis(1);
/// How many records are read at once.
const CHUNK: u64 = 1 << 13;

/// A thread that takes a machine's trace.
#[derive(Debug)]
pub struct Drain {
    thread: JoinHandle<Result<Drained>>,
    is_over: Arc<AtomicBool>,
}

/// What was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// How many records.
    pub records: u64,
    /// How often a CPU has waited for room.
    pub stalls: u64,
    /// How often it did so in the middle of an operation.
    pub stalls_within: u64,
    /// The time from the first record to the last, as it passed here.
    pub lasted: Duration,
}

impl Drained {
    fn count(&mut self, [first, ..]: [u64; WORDS]) {
        self.records += 1;
        if first as u8 == Kind::Stall as u8 {
            self.stalls += 1;
            self.stalls_within += first >> 8 & 1;
        }
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, stalls, stalls_within, lasted } = self;
        let seconds = lasted.as_secs_f64();
        let rate = if seconds > 0.0 { *records as f64 / seconds } else { 0.0 };
        write!(f, "{records} records in {seconds:.1} s, {rate:.0} a second; ")?;
        write!(f, "CPUs waited {stalls} times for room, {stalls_within} of them within an operation")
    }
}

impl Drain {
    /// Begins to take the trace of the machine whose RAM is in `ram`, into the file `to`.
    ///
    /// # Errors
    /// The RAM cannot be opened.
    pub fn start(ram: &Path, key: u64, to: &Path) -> Result<Self> {
        let ram = Ram::open_to_write(ram)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, to) = (Arc::clone(&is_over), to.to_owned());
        let thread = thread::spawn(move || drain(&ram, key, &to, &over));
        Ok(Self { thread, is_over })
    }

    /// Takes what is left of a machine that is off.
    ///
    /// # Errors
    /// What went wrong at any time since the start.
    pub fn finish(self) -> Result<Drained> {
        self.is_over.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that takes the trace has panicked"))?
    }
}

/// A CPU's ring.
struct Ring {
    line: u64,
    records: u64,
    tail: u64,
    queue: VecDeque<[u64; WORDS]>,
}

impl Ring {
    /// Reads what is new; tells whether anything was.
    fn read(&mut self, ram: &Ram, capacity: u64) -> Result<bool> {
        let head = ram.moving(self.line)?;
        ensure!(
            head >= self.tail && head - self.tail <= capacity,
            "a ring's head has moved from {} to {head}",
            self.tail
        );
        if head == self.tail {
            return Ok(false);
        }
        while self.tail < head {
            let place = self.tail % capacity;
            let count = (head - self.tail).min(capacity - place).min(CHUNK);
            let mut bytes = vec![0; count as usize * BYTES];
            ram.read(&mut bytes, self.records + place * BYTES as u64)?;
            self.queue.extend(bytes.chunks_exact(BYTES).map(|record| {
                let mut words = record.chunks_exact(8).map(word);
                std::array::from_fn(|_| words.next().unwrap_or(0))
            }));
            self.tail += count;
            ram.write(&self.tail.to_le_bytes(), self.line + ring::TAIL)?;
        }
        Ok(true)
    }
}

/// Looks for the rings.
fn find(ram: &Ram, key: u64) -> Result<Option<(u64, [u64; header::WORDS])>> {
    let found = ram.find([ring::MAGIC, key], ALIGNMENT)?;
    found.map(|start| Ok((start, ram.words(start)?))).transpose()
}

fn drain(ram: &Ram, key: u64, to: &Path, is_over: &AtomicBool) -> Result<Drained> {
    let (start, found) = loop {
        // Looked at first: what was there when it was over is seen.
        let over = is_over.load(Relaxed);
        if let Some(found) = find(ram, key)? {
            break found;
        }
        if over {
            bail!("the machine has made no trace");
        }
        thread::sleep(5 * PAUSE);
    };
    ensure!(found[header::VERSION] == VERSION, "the machine's trace has version {}", found[header::VERSION]);
    let (cpus, capacity) = (found[header::CPUS], found[header::CAPACITY]);
    ensure!(
        capacity == ring::CAPACITY && start + ring::bytes(cpus) <= ram.len()?,
        "the rings have no sensible size"
    );
    let ring = |cpu| Ring {
        line: start + ring::line(cpu),
        records: start + ring::ring(cpu),
        tail: 0,
        queue: VecDeque::new(),
    };
    let mut rings: Vec<_> = (0..cpus).map(ring).collect();
    let mut writer = Writer::create(to, cpus)?;
    let mut drained = Drained::default();
    let (mut began, mut at) = (None, Instant::now());
    loop {
        let over = is_over.load(Relaxed);
        let mut is_new = false;
        for ring in &mut rings {
            is_new |= ring.read(ram, capacity)?;
        }
        merge(&mut rings, &mut drained, &mut writer)?;
        if is_new {
            at = Instant::now();
            began = began.or(Some(at));
        } else {
            if over {
                break;
            }
            thread::sleep(PAUSE);
        }
    }
    let left: usize = rings.iter().map(|ring| ring.queue.len()).sum();
    ensure!(left == 0, "record {} is missing, and {left} later ones are there", drained.records);
    writer.finish()?;
    Ok(Drained { lasted: began.map_or(Duration::ZERO, |began| at - began), ..drained })
}

/// Writes records for as long as the next one is there.
fn merge(rings: &mut [Ring], drained: &mut Drained, writer: &mut Writer) -> Result<()> {
    const NUMBER: u32 = 24;
    loop {
        let mut moved = false;
        for ring in &mut *rings {
            while let Some(words) = ring.queue.front() {
                let number = words[0] >> NUMBER;
                let next = drained.records;
                ensure!(number >= next, "record {number} comes after {next}");
                if number != next {
                    break;
                }
                writer.words(*words)?;
                drained.count(*words);
                ring.queue.pop_front();
                moved = true;
            }
        }
        if !moved {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::File;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use trace::{Kind, Record};
    use types::CpuId;

    const START: u64 = ALIGNMENT;
    const KEY: u64 = 0x1234;

    /// What the machine does, on a file.
    struct Machine {
        ram: fs::File,
        heads: [u64; 2],
        number: u64,
    }

    impl Machine {
        fn new(path: &Path) -> Self {
            let ram =
                fs::OpenOptions::new().read(true).write(true).create_new(true).open(path).expect("room");
            ram.set_len(START + ring::bytes(2).next_multiple_of(ALIGNMENT)).expect("room");
            Self { ram, heads: [0; 2], number: 0 }
        }

        fn write(&self, at: u64, words: &[u64]) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.ram.write_all_at(&bytes, at).expect("room");
        }

        fn begin(&self) {
            // What was left by another machine comes first.
            self.write(0, &[ring::MAGIC, KEY + 1, VERSION, 1, ring::CAPACITY]);
            self.write(START, &[ring::MAGIC, KEY, VERSION, 2, ring::CAPACITY]);
        }

        fn put(&mut self, cpu: usize) {
            let head = self.heads[cpu];
            let operands = [head, 0, 0];
            let cpu_id = CpuId::new(cpu).expect("few");
            let record = Record { number: self.number, cpu: cpu_id, kind: Kind::Freed, small: 0, operands };
            let place = ring::ring(cpu as u64) + head % ring::CAPACITY * BYTES as u64;
            self.write(START + place, &record.words());
            self.heads[cpu] += 1;
            self.write(START + ring::line(cpu as u64), &[self.heads[cpu]]);
            self.number += 1;
        }
    }

    #[test]
    fn records_of_all_rings_come_out_in_order() {
        let dir = tempfile::tempdir().expect("room");
        let (ram, to) = (dir.path().join("ram"), dir.path().join("trace"));
        let mut machine = Machine::new(&ram);
        let drain = Drain::start(&ram, KEY, &to).expect("it is there");
        machine.begin();
        for n in 0..5000_usize {
            machine.put(n * n % 3 % 2);
        }
        let drained = drain.finish().expect("no gap");
        assert_eq!((drained.records, drained.stalls), (5000, 0));
        let mut file = File::open(&to).expect("a trace");
        let mut count = 0;
        while let Some(record) = file.read().expect("whole") {
            assert_eq!(record.number, count);
            count += 1;
        }
        assert_eq!(count, 5000);
    }

    #[test]
    fn a_machine_without_a_trace_and_a_lost_record_are_errors() {
        let dir = tempfile::tempdir().expect("room");
        let (ram, to) = (dir.path().join("ram"), dir.path().join("trace"));
        let mut machine = Machine::new(&ram);
        let drain = Drain::start(&ram, KEY, &to).expect("it is there");
        assert!(drain.finish().unwrap_err().to_string().contains("no trace"));
        machine.begin();
        machine.put(0);
        machine.number += 1;
        machine.put(1);
        let drain = Drain::start(&ram, KEY, &to).expect("it is there");
        assert!(drain.finish().unwrap_err().to_string().contains("record 1 is missing"));
    }
}
