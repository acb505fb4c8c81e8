//! A guest with virtio devices. Promises: they do what the specification says; what is written to the disk is read again;
//! and a driver that does what it must not ends its own queue, and no more.
//!
//! `chains=` in the boot arguments says how many malformed chains there are, `rounds=` how often the disk is read.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "the entry symbol is not mangled")]

mod queue;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::rng::Rng;
use guest_tests::{NotPassed, Verdict, check, fail, guest_tests, machine, same, say, skip};
use queue::{Answer, Descriptor, Driver, SIZE};

guest_tests! {
    "virtio":
    random_bytes_come_and_are_not_all_alike,
    the_disk_reads_as_the_bundle_has_it_and_then_as_it_is_written,
    malformed_chains_end_their_queue_and_no_more,
    the_disk_and_memory_keep_their_contents,
}

const ENTROPY: u32 = 4;
const BLOCK: u32 = 2;
/// The bytes of the disk that this payload is given.
const DISK: u64 = 1 << 20;
/// The bytes of one request.
const REQUEST: u64 = 32 << 10;

/// Returns the word at a place of the disk, as the bundle has it.
const fn word_of_disk(place: u64) -> u64 {
    (place / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn number(name: &str, default: u64) -> u64 {
    machine::get().argument(name).and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn take(bytes: u64) -> Result<Ram, NotPassed> {
    ram::take(bytes, PAGE).ok_or_else(|| NotPassed::differs("bytes of memory left", 0, bytes, 0))
}

/// Finds a device; skips the test where there is none.
fn device(id: u32) -> Result<Driver, NotPassed> {
    let Some(driver) = Driver::find(id)? else { skip!("this machine has no such device") };
    Ok(driver)
}

fn random_bytes_come_and_are_not_all_alike() -> Verdict {
    let mut driver = device(ENTROPY)?;
    let buffer = take(2 * PAGE)?;
    let start = buffer.region().start + 8;
    same!(
        "bytes written",
        start,
        6000,
        u64::from(driver.send(&[(start, 1000, 2), (start + 1000, 5000, 2)])?)
    );
    let words = &buffer.words()[1..751];
    for (n, word) in words.iter().enumerate() {
        let value = word.load(Relaxed);
        check!(words[..n].iter().all(|other| other.load(Relaxed) != value), "{value:#x} came twice");
    }
    same!("the word before", start - 8, 0, buffer.words()[0].load(Relaxed));
    same!("the word behind", start + 6000, 0, buffer.words()[751].load(Relaxed));
    Ok(())
}

/// A disk, with memory for one request.
struct Disk {
    driver: Driver,
    /// The header and the status, in a page, and then the data.
    memory: Ram,
}

impl Disk {
    fn find() -> Result<Self, NotPassed> {
        let driver = device(BLOCK)?;
        Ok(Self { driver, memory: take(PAGE + REQUEST)? })
    }

    fn data(&self) -> &'static [AtomicU64] {
        &self.memory.words()[(PAGE / 8) as usize..]
    }

    /// Makes a request of [`REQUEST`] bytes at `place`.
    fn request(&mut self, write: bool, place: u64) -> Verdict {
        let start = self.memory.region().start;
        let words = self.memory.words();
        words[0].store(u64::from(write), Relaxed);
        words[1].store(place / 512, Relaxed);
        words[2].store(0xff, Relaxed);
        let flags = if write { 0 } else { 2 };
        let data = REQUEST as u32;
        let written = self.driver.send(&[(start, 16, 0), (start + PAGE, data, flags), (start + 16, 1, 2)])?;
        same!("the status of a request at", place, 0, words[2].load(Relaxed) & 0xff);
        same!("bytes written", place, if write { 1 } else { REQUEST + 1 }, u64::from(written));
        Ok(())
    }

    fn check(&mut self, place: u64, expected: impl Fn(u64) -> u64) -> Verdict {
        self.data().iter().for_each(|word| word.store(0, Relaxed));
        self.request(false, place)?;
        for (n, word) in (0..).zip(self.data()) {
            let place = place + 8 * n;
            same!("a word of the disk at", place, expected(place), word.load(Relaxed));
        }
        Ok(())
    }
}

fn the_disk_reads_as_the_bundle_has_it_and_then_as_it_is_written() -> Verdict {
    let mut disk = Disk::find()?;
    for place in (0..DISK).step_by(REQUEST as usize) {
        disk.check(place, word_of_disk)?;
    }
    let written = |place: u64| !word_of_disk(place);
    let place = 5 * REQUEST;
    for (n, word) in (0..).zip(disk.data()) {
        word.store(written(place + 8 * n), Relaxed);
    }
    disk.request(true, place)?;
    disk.check(place, written)?;
    disk.check(place - REQUEST, word_of_disk)?;
    disk.check(place + REQUEST, word_of_disk)?;
    // As it was, for whoever comes next.
    for (n, word) in (0..).zip(disk.data()) {
        word.store(word_of_disk(place + 8 * n), Relaxed);
    }
    disk.request(true, place)?;
    disk.check(place, word_of_disk)
}

/// Lays out a chain that is nearly right, and often is not; returns its head and how wrong the index is.
fn lay_out(driver: &Driver, rng: &mut Rng, memory: Ram) -> (u16, u16) {
    let region = memory.region();
    let anywhere = |rng: &mut Rng| match rng.below(12) {
        0 => rng.next_u64(),
        1 => machine::get().ram_end() - rng.below(600),
        2 => machine::get().gicd.start + rng.below(64),
        _ => region.start + 64 + rng.below(region.size() - 64),
    };
    let length = 1 + rng.below(5) as u16;
    let first = rng.below(u64::from(SIZE)) as u16;
    for n in 0..length {
        let last = n + 1 == length;
        let flags = match rng.below(20) {
            0 => rng.below(8) as u16,
            1 => rng.next_u64() as u16,
            _ => (2 * u16::from(n != 0)) | u16::from(!last),
        };
        let bytes = match (rng.below(20), n) {
            (0, _) => 0,
            (1, _) => u32::MAX,
            (2, _) => rng.below(1 << 20) as u32,
            (_, 0) => 16,
            _ if last => 1,
            _ => 512,
        };
        let next = match rng.below(20) {
            0 => rng.next_u64() as u16,
            1 => (first + rng.below(u64::from(n) + 1) as u16) % SIZE, // a loop, unless this one is the last
            _ => (first + n + 1) % SIZE,
        };
        let at = if n == 0 { region.start } else { anywhere(rng) };
        // What it may write is this test's own memory: whoever lets the device write elsewhere has told it to.
        let outside = at < region.start || at.saturating_add(u64::from(bytes)) > region.end;
        let is_ram = machine::get().is_ram(at) || machine::get().is_ram(at.saturating_add(u64::from(bytes)));
        let flags = if outside && is_ram { flags & !2 } else { flags };
        driver.describe((first + n) % SIZE, Descriptor { at, bytes, flags, next });
    }
    let words = memory.words();
    words[0].store(rng.below(10), Relaxed);
    words[1].store(rng.below(DISK / 512 + 2), Relaxed);
    let head = if rng.below(40) == 0 { rng.next_u64() as u16 } else { first };
    let more = if rng.below(60) == 0 { rng.next_u64() as u16 } else { 0 };
    (head, more)
}

fn malformed_chains_end_their_queue_and_no_more() -> Verdict {
    let chains = number("chains", 500);
    if chains == 0 {
        skip!("the boot arguments ask for no chains");
    }
    let mut driver = device(BLOCK)?;
    let witness = take(16 * PAGE)?;
    let words = || (1..).zip(witness.words());
    words().for_each(|(n, word)| word.store(word_of_disk(8 * n), Relaxed));
    let memory = take(4 * PAGE)?;
    let mut rng = Rng::of_run(40);
    let (mut used, mut stopped) = (0, 0);
    for chain in 0..chains {
        let (head, more) = lay_out(&driver, &mut rng, memory);
        driver.make_available(head, more);
        match driver.wait() {
            Answer::Used(..) => used += 1,
            Answer::Stopped => {
                stopped += 1;
                driver.set_up()?;
            }
            Answer::Silence => fail!("chain {chain} has no answer"),
        }
        if more != 0 {
            driver.set_up()?; // the device may go on with what it was told there is
        }
    }
    say!("  {used} chains were used, {stopped} have stopped the device");
    check!(used > 0 && stopped > 0, "there are none of one kind");
    for (n, word) in words() {
        same!("what no chain was about, word", n, word_of_disk(8 * n), word.load(Relaxed));
    }
    // The device works for whoever asks as it must.
    driver.set_up()?;
    let mut disk = Disk { driver, memory: take(PAGE + REQUEST)? };
    disk.request(false, 0)
}

fn the_disk_and_memory_keep_their_contents() -> Verdict {
    let rounds = number("rounds", 0);
    if rounds == 0 {
        skip!("the boot arguments ask for no rounds");
    }
    let mut disk = Disk::find()?;
    let memory = take(1 << 20)?;
    let words = || (1..).zip(memory.words());
    for round in 0..rounds {
        words().for_each(|(n, word)| word.store(word_of_disk(8 * n) ^ round, Relaxed));
        for place in (0..DISK).step_by(REQUEST as usize) {
            disk.check(place, word_of_disk)?;
        }
        for (n, word) in words() {
            same!("a word of memory", n, word_of_disk(8 * n) ^ round, word.load(Relaxed));
        }
    }
    Ok(())
}
