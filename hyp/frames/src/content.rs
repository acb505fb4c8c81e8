//! The contents of guests' frames, through the direct map.
//!
//! A guest, another CPU or a device may write the same bytes at any time, so every access is a relaxed atomic one, of
//! one size: what comes out is then some mixture of what was written, and never undefined.

use crate::{FrameError, Frames, Kind, Order};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::{FRAME_SIZE, Pa};

/// Bytes in the unit that most of a copy is made in.
const WORD: usize = size_of::<u64>();

impl Frames {
    /// Copies `bytes` into guests' frames from `pa` on; any alignment. The caller makes them visible to instruction
    /// fetches and to observers with caches off ([`types::Cpu::publish`]).
    ///
    /// Errors: [`FrameError::NoRecord`], [`FrameError::NotGuest`]; bytes for the frames before have been written.
    pub fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), FrameError> {
        let mut rest = bytes;
        let mut at = pa;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(to_frame_end(at)));
            self.check(at)?;
            self.store(at, now);
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes out of guests' frames from `pa` on; any alignment.
    ///
    /// Errors: [`FrameError::NoRecord`], [`FrameError::NotGuest`]; bytes of the frames before have been read.
    pub fn read(&self, pa: Pa, bytes: &mut [u8]) -> Result<(), FrameError> {
        let mut rest = bytes;
        let mut at = pa;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min(to_frame_end(at)));
            self.check(at)?;
            self.fetch(at, now);
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// Copies the contents of the guest's block at `from` to the one at `to`. Whoever writes to it meanwhile, its writes are
    /// copied or not, in words.
    ///
    /// Errors: [`FrameError::NoRecord`], [`FrameError::NotGuest`]; the frames before have been copied.
    pub fn copy(&self, from: Pa, to: Pa, order: Order) -> Result<(), FrameError> {
        for frame in 0..order.frames() {
            let (from, to) = (from.wrapping_add(frame * FRAME_SIZE), to.wrapping_add(frame * FRAME_SIZE));
            self.check(from)?;
            self.check(to)?;
            let words = FRAME_SIZE as usize / WORD;
            // SAFETY: aligned and in guests' frames, which are mapped RAM that everybody else here accesses as atomic
            // words.
            let (from, to) = unsafe { (self.map().words(from, words), self.map().words(to, words)) };
            let (to, from) = (to.as_chunks::<ROUND>().0, from.as_chunks::<ROUND>().0); // a frame is whole rounds
            for (to, from) in to.iter().zip(from) {
                store_round(to, |n| from[n].load(Relaxed));
            }
        }
        Ok(())
    }

    fn check(&self, pa: Pa) -> Result<(), FrameError> {
        match self.record(pa)?.load().kind() {
            Kind::Guest => Ok(()),
            _ => Err(FrameError::NotGuest { pa }),
        }
    }

    /// Writes bytes that lie in one guest's frame.
    fn store(&self, pa: Pa, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(to_word(pa)));
        self.store_part(pa, head);
        let pa = pa.wrapping_add(head.len() as u64);
        let (body, tail) = rest.split_at(rest.len() / WORD * WORD);
        if !body.is_empty() {
            // SAFETY: aligned and in a guest's frame, which is mapped RAM that everybody else here accesses as atomic
            // words.
            store_words(unsafe { self.map().words(pa, body.len() / WORD) }, body);
        }
        self.store_part(pa.wrapping_add(body.len() as u64), tail);
    }

    /// Writes some bytes of one word in a guest's frame. What others write to the rest of the word stays.
    fn store_part(&self, pa: Pa, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (mut mask, mut value) = ([0; WORD], [0; WORD]);
        let skip = pa.get() as usize % WORD;
        mask[skip..skip + bytes.len()].fill(0xff);
        value[skip..skip + bytes.len()].copy_from_slice(bytes);
        let (mask, value) = (u64::from_ne_bytes(mask), u64::from_ne_bytes(value));
        // SAFETY: as in `store`.
        let word = unsafe { self.map().word(pa.align_down(WORD as u64)) };
        word.update(Relaxed, Relaxed, |old| old & !mask | value);
    }

    /// Reads bytes that lie in one guest's frame.
    fn fetch(&self, pa: Pa, bytes: &mut [u8]) {
        let (head, rest) = bytes.split_at_mut(bytes.len().min(to_word(pa)));
        self.fetch_part(pa, head);
        let pa = pa.wrapping_add(head.len() as u64);
        let (body, tail) = rest.split_at_mut(rest.len() / WORD * WORD);
        if !body.is_empty() {
            // SAFETY: as in `store`.
            let from = unsafe { self.map().words(pa, body.len() / WORD) };
            for (word, bytes) in from.iter().zip(body.as_chunks_mut::<WORD>().0) {
                *bytes = word.load(Relaxed).to_ne_bytes();
            }
        }
        self.fetch_part(pa.wrapping_add(body.len() as u64), tail);
    }

    /// Reads some bytes of one word in a guest's frame.
    fn fetch_part(&self, pa: Pa, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        // SAFETY: as in `store`.
        let word = unsafe { self.map().word(pa.align_down(WORD as u64)) };
        let skip = pa.get() as usize % WORD;
        bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes()[skip..skip + bytes.len()]);
    }
}

/// Writes `from`, as many whole words as `to` has.
///
/// Loading a kernel is one long run through here, and the target takes unaligned words apart into bytes: so source
/// words are read as such where they are aligned, and as halves where they are aligned to 4, as files in a bundle are.
fn store_words(to: &[AtomicU64], from: &[u8]) {
    // SAFETY: any eight bytes are a u64.
    let (before, whole, _) = unsafe { from.align_to::<u64>() };
    if before.is_empty() {
        return store_made(to, whole.as_chunks::<1>().0, |[word]| word);
    }
    // SAFETY: any four bytes are a u32.
    let (before, halves, _) = unsafe { from.align_to::<u32>() };
    if before.is_empty() {
        return store_made(to, halves.as_chunks::<2>().0, joined);
    }
    store_made(to, from.as_chunks::<WORD>().0, u64::from_ne_bytes);
}

/// Words to a round of a copy's loop: a cache line of 64 bytes.
const ROUND: usize = 8;

/// Writes the words that `value` gives. All are had before the first is written, so that a source and a target that meet in
/// one set of a cache or TLB put each other out once a round and not once a word.
///
/// Written out, since loops over a round stay loops where the compiler saves bytes, with the round in memory between them.
#[inline(always)]
fn store_round(to: &[AtomicU64; ROUND], value: impl Fn(usize) -> u64) {
    let (a, b, c, d) = (value(0), value(1), value(2), value(3));
    let (e, f, g, h) = (value(4), value(5), value(6), value(7));
    to[0].store(a, Relaxed);
    to[1].store(b, Relaxed);
    to[2].store(c, Relaxed);
    to[3].store(d, Relaxed);
    to[4].store(e, Relaxed);
    to[5].store(f, Relaxed);
    to[6].store(g, Relaxed);
    to[7].store(h, Relaxed);
}

/// Writes the words that `make` makes.
#[inline(always)]
fn store_made<T: Copy>(to: &[AtomicU64], from: &[T], make: impl Fn(T) -> u64) {
    let (to_rounds, to_rest) = to.as_chunks::<ROUND>();
    let (from_rounds, from_rest) = from.as_chunks::<ROUND>();
    for (to, from) in to_rounds.iter().zip(from_rounds) {
        store_round(to, |n| make(from[n]));
    }
    for (word, parts) in to_rest.iter().zip(from_rest) {
        word.store(make(*parts), Relaxed);
    }
}

/// Makes the word that has these halves in memory order.
fn joined([first, second]: [u32; 2]) -> u64 {
    if cfg!(target_endian = "little") {
        u64::from(second) << 32 | u64::from(first)
    } else {
        u64::from(first) << 32 | u64::from(second)
    }
}

/// Bytes from `pa` to the end of its frame; at least 1.
fn to_frame_end(pa: Pa) -> usize {
    (FRAME_SIZE - (pa.get() & (FRAME_SIZE - 1))) as usize
}

/// Bytes from `pa` to the next word.
fn to_word(pa: Pa) -> usize {
    (pa.get().wrapping_neg() & (WORD as u64 - 1)) as usize
}

#[cfg(test)]
mod tests {
    use crate::fake::Machine;
    use crate::{FrameError, Order, Owner, Usage};
    use types::Pa;

    #[test]
    fn bytes_come_back_at_every_alignment_and_length() {
        let machine = Machine::with_ram(0x4000_0000, 1 << 20);
        let run = machine.allocate(Order::new(1).unwrap(), Usage::Guest(Owner(1))).unwrap();
        let source: Vec<u8> = (1..=120).collect();
        let frame_end = run.pa().get() + 0x1000;
        let lengths = if cfg!(miri) { vec![0, 1, 23, 90] } else { (0..100).collect() };
        for start in frame_end - 17..frame_end + 9 {
            for (skip, len) in (0..9).flat_map(|skip| lengths.iter().map(move |len| (skip, *len))) {
                let bytes = &source[skip..skip + len];
                machine.write(Pa::new(start - 1), &[0xaa; 128]).unwrap();
                machine.write(Pa::new(start), bytes).unwrap();
                let mut back = vec![0; len + 2];
                machine.read(Pa::new(start - 1), &mut back).unwrap();
                assert_eq!((back[0], back[len + 1]), (0xaa, 0xaa), "neighbours at {start:#x}+{len}");
                assert_eq!(&back[1..=len], bytes, "contents at {start:#x}+{len}, source off by {skip}");
            }
        }
    }

    #[test]
    fn only_guests_frames_can_be_written() {
        let machine = Machine::with_ram(0x4000_0000, 1 << 20);
        let table = machine.allocate(Order::FRAME, Usage::Table(Owner(1))).unwrap();
        let wrong = machine.write(table.pa(), &[1]);
        assert_eq!(wrong, Err(FrameError::NotGuest { pa: table.pa() }));
        let nowhere = Pa::new(0x1000);
        assert_eq!(machine.read(nowhere, &mut [0]), Err(FrameError::NoRecord { pa: nowhere }));
        let guest = machine.allocate(Order::FRAME, Usage::Guest(Owner(1))).unwrap();
        let end = guest.pa().wrapping_add(0xfff);
        assert!(machine.write(end, &[1, 2]).is_err(), "the second byte is in a frame that is not a guest's");
    }
}
