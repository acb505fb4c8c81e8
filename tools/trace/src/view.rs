//! What a running machine counts, and where its tables and frame records are: the tool's side of [`trace::view`].

use crate::ram::Ram;
use crate::tables::{Shape, Tables};
use crate::tally::Recorded;
use anyhow::{Context, Result, bail, ensure};
use frames::{Kind, Word};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{str, thread};
pub use trace::view::EXITS;
pub(crate) use trace::view::place;
use trace::view::{self as layout, header};
pub use trace::view::{Machine, Space};
use types::{FRAME_SIZE, Pa};

/// How often words that are being written are read again before that counts as a failure.
const TRIES: u32 = 1000;
const PAUSE: Duration = Duration::from_micros(200);

/// The RAM of a machine that shows what it counts.
#[derive(Debug)]
pub struct View {
    ram: Ram,
    /// Where the header is in the file.
    at: u64,
    /// The physical address of the file's first byte.
    base: u64,
}

/// What a machine has counted, at one moment.
#[derive(Clone, Debug)]
pub struct Look {
    /// The system counter then.
    pub ticks: u64,
    /// Its ticks in a second.
    pub hertz: u64,
    /// The machine's CPUs.
    pub cpus: u64,
    /// The machine's numbers, as [`Machine`] orders them.
    pub numbers: [u64; Machine::COUNT],
    /// Its banks of memory.
    pub banks: Vec<Bank>,
    /// Its virtual machines.
    pub vms: Vec<Vm>,
    /// Where this was not read from a machine but counted in its trace: what else that tells.
    pub recorded: Option<Recorded>,
}

/// Memory with its frames' records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bank {
    /// The first address.
    pub start: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Where the records are.
    pub records: u64,
}

/// A virtual machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// The number by which frames are its.
    pub owner: u16,
    /// Whether it is on.
    pub is_on: bool,
    /// How many vCPUs.
    pub vcpus: u64,
    /// What its tables look like.
    pub shape: Shape,
    /// Its memory: first address and bytes of each piece.
    pub memory: Vec<(u64, u64)>,
    /// Exits by reason, as [`EXITS`] orders them.
    pub exits: [u64; EXITS.len()],
    /// Leaves by height.
    pub leaves: [u64; place::HEIGHTS],
    /// Its space's numbers, as [`Space`] orders them.
    pub numbers: [u64; Space::COUNT],
    /// For how long entries were invalid: element *n* for less than 2ⁿ ticks.
    pub blackouts: [u64; place::CLASSES],
}

impl Look {
    /// Returns one of the machine's numbers.
    pub const fn number(&self, number: Machine) -> u64 {
        self.numbers[number as usize]
    }
}

impl Vm {
    /// Returns one of its space's numbers.
    pub const fn number(&self, number: Space) -> u64 {
        self.numbers[number as usize]
    }

    /// Returns its memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The records of a machine's frames, read at one time.
#[derive(Debug)]
pub struct Records(Vec<(Bank, Vec<u64>)>);

impl Records {
    /// Returns the word of the frame that an address is in.
    pub fn word(&self, pa: u64) -> Option<Word> {
        let (bank, words) =
            self.0.iter().find(|(bank, _)| (bank.start..bank.start + bank.bytes).contains(&pa))?;
        words.get(((pa - bank.start) / FRAME_SIZE) as usize).map(|word| Word::of(*word))
    }

    /// Counts the pins of frames of this owner's: of pages, and of blocks.
    pub fn pins(&self, owner: u16) -> u64 {
        let words = self.0.iter().flat_map(|(_, words)| words).map(|word| Word::of(*word));
        let its = words.filter(|word| word.kind() == Kind::Guest && word.owner().0 == owner);
        its.map(|word| word.pins() + word.block_pins()).sum()
    }
}

impl View {
    /// Opens the view of the machine whose RAM is in `ram`, waiting until it has begun.
    ///
    /// # Errors
    /// There is none in time, or it is of another version.
    pub fn open(ram: &Path, key: u64, within: Duration) -> Result<Self> {
        let ram = Ram::open(ram)?;
        let until = Instant::now() + within;
        let at = loop {
            if let Some(at) = ram.find([layout::MAGIC, key], layout::ALIGNMENT)?
                && ram.moving(at + 8 * header::SEQUENCE as u64)? != 0
            {
                break at;
            }
            ensure!(Instant::now() < until, "the machine does not show what it counts");
            thread::sleep(Duration::from_millis(20));
        };
        let words: [u64; header::WORDS] = ram.words(at)?;
        let version = words[header::VERSION];
        ensure!(
            version == layout::VERSION,
            "the machine's view has version {version}, not {}",
            layout::VERSION
        );
        let base = words[header::HERE].checked_sub(at).context("the view is not where it says")?;
        Ok(Self { ram, at, base })
    }

    /// Tells whether the machine's memory is gone, which it is when the machine is.
    pub fn is_gone(&self) -> bool {
        self.ram.is_gone()
    }

    /// Reads everything.
    ///
    /// # Errors
    /// It cannot be read, or is being written all the time.
    pub fn look(&self) -> Result<Look> {
        let sequence = || self.ram.moving(self.at + 8 * header::SEQUENCE as u64);
        for _ in 0..TRIES {
            let before = sequence()?;
            if before % 2 == 0 {
                let first: [u64; header::WORDS] = self.ram.words(self.at)?;
                let places = first[header::PLACES].min(1 << 16);
                let words = (places * layout::PLACE / 8) as usize;
                let places = self.ram.many(self.at + layout::PLACES, words)?;
                if sequence()? == before {
                    return read(&first, &places);
                }
            }
            thread::sleep(PAUSE);
        }
        bail!("what the machine counts is being written all the time")
    }

    /// Reads the records of all frames.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn records(&self, look: &Look) -> Result<Records> {
        let read = |bank: &Bank| {
            let at = bank.records.checked_sub(self.base).context("records outside of the memory")?;
            Ok((*bank, self.ram.many(at, (bank.bytes / FRAME_SIZE) as usize)?))
        };
        Ok(Records(look.banks.iter().map(read).collect::<Result<_>>()?))
    }
}

impl Tables for View {
    fn table(&self, at: Pa, count: usize) -> Result<Vec<u64>> {
        let at = at.get().checked_sub(self.base).context("it is outside of the memory")?;
        self.ram.many(at, count)
    }
}

fn read(first: &[u64; header::WORDS], places: &[u64]) -> Result<Look> {
    let banks = first[header::BANKS..].as_chunks().0.iter();
    let banks = banks.filter(|bank: &&[u64; 3]| bank[1] != 0);
    let vms = places.chunks_exact(layout::PLACE as usize / 8).filter(|place| place[place::OWNER] != 0);
    Ok(Look {
        ticks: first[header::TICKS],
        hertz: first[header::HERTZ].max(1),
        cpus: first[header::CPUS],
        numbers: part(first, header::NUMBERS),
        banks: banks.map(|&[start, bytes, records]| Bank { start, bytes, records }).collect(),
        vms: vms.map(read_vm).collect::<Result<_>>()?,
        recorded: None,
    })
}

fn read_vm(words: &[u64]) -> Result<Vm> {
    let name: Vec<u8> =
        part::<{ place::NAME_WORDS }>(words, place::NAME).iter().flat_map(|w| w.to_le_bytes()).collect();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let features = words[place::FEATURES];
    let root = Pa::new(words[place::ROOT]);
    let memory = words[place::MEMORY..][..2 * place::PIECES].as_chunks().0.iter();
    Ok(Vm {
        name: str::from_utf8(name).context("a VM's name")?.to_owned(),
        owner: words[place::OWNER] as u16,
        is_on: words[place::IS_ON] != 0,
        vcpus: words[place::VCPUS],
        shape: Shape::of(root, words[place::SHAPE], features, (features >> 8) as u8)?,
        memory: memory.filter(|piece: &&[u64; 2]| piece[1] != 0).map(|&[at, bytes]| (at, bytes)).collect(),
        exits: part(words, place::EXITS),
        leaves: part(words, place::LEAVES),
        numbers: part(words, place::NUMBERS),
        blackouts: part(words, place::BLACKOUTS),
    })
}

fn part<const N: usize>(words: &[u64], first: usize) -> [u64; N] {
    std::array::from_fn(|n| words.get(first + n).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::Relaxed;

    const KEY: u64 = 0x77;
    const BASE: u64 = 0x4000_0000;

    /// Writes a machine's RAM with what the hypervisor's side puts there.
    fn machine(write: impl FnOnce(&layout::View)) -> tempfile::NamedTempFile {
        let at = layout::ALIGNMENT;
        let words: Vec<AtomicU64> = (0..layout::bytes(2) / 8).map(|_| AtomicU64::new(0)).collect();
        let words: &'static [AtomicU64] = Box::leak(words.into_boxed_slice());
        let view = layout::View::new(words, BASE + at, KEY, 2);
        view.write(write);
        let file = tempfile::NamedTempFile::new().expect("room");
        file.as_file().set_len(2 * layout::ALIGNMENT).expect("room");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
        file.as_file().write_all_at(&bytes, at).expect("room");
        file
    }

    fn put_all(view: &layout::View) {
        view.put(header::TICKS, &[5000, 1000, 4]);
        view.put(header::NUMBERS + Machine::Kicks as usize, &[9]);
        view.put(header::BANKS, &[BASE, 0x2000, BASE + 0x100]);
        view.put_at(1, place::OWNER, &[2, 1, 3, BASE + 0x1000, 40 << 16 | 2 << 24, 1 | 2 << 8]);
        view.put_at(1, place::NAME, &layout::name_words("vm1"));
        view.put_at(1, place::EXITS, &[7]);
        view.put_at(1, place::LEAVES, &[10, 20]);
        view.put_at(1, place::NUMBERS + Space::Splits as usize, &[8]);
        view.put_at(1, place::BLACKOUTS + 3, &[6]);
        view.put_at(1, place::MEMORY, &[BASE, 0x60_0000]);
    }

    fn open(file: &tempfile::NamedTempFile) -> Result<View> {
        View::open(file.path(), KEY, Duration::ZERO)
    }

    #[test]
    fn what_the_hypervisor_has_put_there_is_read() {
        let file = machine(put_all);
        let look = open(&file).expect("a view").look().expect("whole");
        assert_eq!((look.ticks, look.hertz, look.cpus, look.number(Machine::Kicks)), (5000, 1000, 4, 9));
        let [vm] = look.vms.as_slice() else { panic!("one VM") };
        assert_eq!((vm.name.as_str(), vm.owner, vm.is_on, vm.vcpus), ("vm1", 2, true, 3));
        assert_eq!((vm.exits[0], vm.leaves[1], vm.number(Space::Splits), vm.blackouts[3]), (7, 20, 8, 6));
        assert_eq!((vm.bytes(), vm.shape.root.get(), vm.shape.bbm as u8), (0x60_0000, BASE + 0x1000, 2));
    }

    #[test]
    fn records_are_found_where_the_machine_says() {
        let file = machine(put_all);
        // One reference, two pins, a guest's frame of owner 2 (see `frames`).
        let word: u64 = 1 | 2 << 8 | 3 << 44 | 2 << 47;
        file.as_file().write_all_at(&word.to_le_bytes(), 0x108).expect("room");
        let view = open(&file).expect("a view");
        let records = view.records(&view.look().expect("whole")).expect("records");
        assert_eq!((records.pins(2), records.pins(1)), (2, 0));
        let word = records.word(BASE + 0x1fff).expect("a record");
        assert_eq!((word.refs(), word.pins(), word.owner().0), (1, 2, 2));
        assert!(records.word(BASE + 0x2000).is_none());
    }

    #[test]
    fn a_machine_that_ends_is_noticed() {
        let file = machine(put_all);
        let view = open(&file).expect("a view");
        assert!(!view.is_gone());
        drop(file);
        assert!(view.is_gone());
    }

    #[test]
    fn what_is_no_view_is_refused() {
        let nothing = tempfile::NamedTempFile::new().expect("room");
        assert!(open(&nothing).is_err());
        let file = machine(put_all);
        fs::OpenOptions::new()
            .write(true)
            .open(file.path())
            .expect("there")
            .write_all_at(&[9], layout::ALIGNMENT + 16)
            .expect("room");
        assert!(open(&file).unwrap_err().to_string().contains("version 9"));
        let other = View::open(file.path(), KEY + 1, Duration::ZERO);
        assert!(other.unwrap_err().to_string().contains("does not show"));
    }
}
