//! The hypervisor's side: numbers, and records into rings.

use crate::record::{FILE_MAGIC, Kind, Reach, Record, VERSION, WORDS};
use crate::ring::{self, CAPACITY, header};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Once;
use types::{CpuId, MAX_CPUS};

/// The records that there is room for when a CPU begins a step: more than any step of the library's makes.
pub const ROOM: u64 = 1 << 14;

/// Whether effects are recorded.
static ON: AtomicBool = AtomicBool::new(false);
static WRITER: Once<Writer> = Once::new();

/// After as many looks in vain a CPU says that it waits.
const LONG: u64 = 1 << 28;
/// What a CPU has recorded since its last barrier.
const SOMETHING: u64 = 0xff;
/// Where in such a word it stands how often recording had begun.
const BEGUN: u32 = 8;

/// Where records go.
#[derive(Clone, Copy, Debug)]
pub enum Sink {
    /// Into rings that lie in this memory, whose size is [`ring::bytes`], all zero, under this key.
    Rings(&'static [AtomicU64], u64),
    /// Out by this, a file of the trace as [`crate::record`] has it. It is called by one CPU at a time, and waits for room by
    /// itself.
    Line(fn([u64; WORDS])),
}

struct Writer {
    sink: Sink,
    this_cpu: fn() -> CpuId,
    /// Held around an effect and its number.
    lock: AtomicBool,
    next: AtomicU64,
    /// How many names were given.
    names: AtomicU64,
    /// How often recording has begun.
    begun: AtomicU64,
    /// The strongest barrier of each CPU that nothing was recorded after, or [`SOMETHING`]; and above [`BEGUN`] how often
    /// recording had begun then.
    waited: [AtomicU64; MAX_CPUS],
    /// Whether the CPU has recorded anything since it last rested.
    is_busy: [AtomicBool; MAX_CPUS],
}

/// Tells whether effects are recorded: a load and a branch, for those who record.
#[inline(always)]
pub fn is_on() -> bool {
    ON.load(Relaxed)
}

/// From when on a trace is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// From the start.
    Start,
    /// From when somebody asks for it ([`begin`]).
    Begin,
}

/// Starts the trace, once: records of `cpus` CPUs go to `sink`. `this_cpu` tells which CPU runs it. `first` is the small operand and the first operand of [`Kind::Start`].
///
/// # Panics
/// Where the memory is smaller.
pub fn start(sink: Sink, cpus: u64, this_cpu: fn() -> CpuId, (small, first): (u8, u64), since: Since) {
    if let Sink::Rings(memory, _) = sink {
        assert!(memory.len() as u64 * 8 >= ring::bytes(cpus), "a ring for every CPU");
    }
    let writer = WRITER.call_once(|| Writer::new(sink, cpus, this_cpu));
    writer.note(Kind::Start, small, [first, cpus, u64::from(since == Since::Begin)]);
    ON.store(since == Since::Start, Relaxed);
}

/// Tells whether there is something to record into.
pub fn has_sink() -> bool {
    WRITER.get().is_some()
}

/// Has everything be recorded from here on. Another CPU may go on without it until it next enters a read section: who tells
/// what the machine is like waits for a grace period first.
pub fn begin() {
    if let Some(writer) = WRITER.get() {
        writer.begun.fetch_add(1, Relaxed);
        writer.note(Kind::Begin, 0, [0; 3]);
        ON.store(true, Relaxed);
    }
}

/// Has nothing be recorded from here on, but for what others are in the middle of.
pub fn stop() {
    note(Kind::Stop, 0, [0; 3]);
    ON.store(false, Relaxed);
}

/// Records an effect. For what is waited for (a barrier), afterwards; for what others may wait for
/// (an invalidation, a load of tables, something given back), before.
#[cold]
#[inline(never)]
pub fn note(kind: Kind, small: u8, operands: [u64; 3]) {
    if let Some(writer) = WRITER.get() {
        writer.note(kind, small, operands);
    }
}

/// Exchanges a word of a table, and records that.
#[cold]
#[inline(never)]
pub fn swap(word: &AtomicU64, new: u64, order: Ordering) -> u64 {
    let Some(writer) = WRITER.get() else { return word.swap(new, order) };
    let cpu = (writer.this_cpu)();
    writer.wait_for(cpu, 1, Within::Operation);
    let held = writer.lock();
    let old = word.swap(new, order);
    writer.put(cpu, Kind::Write, 0, [address(word), old, new]);
    drop(held);
    old
}

/// Compares and exchanges a word of a table, and records that where it succeeds.
///
/// # Errors
/// What the word is, where that is not `old`.
#[cold]
#[inline(never)]
pub fn exchange(
    word: &AtomicU64,
    old: u64,
    new: u64,
    success: Ordering,
    failure: Ordering,
) -> Result<u64, u64> {
    let Some(writer) = WRITER.get() else { return word.compare_exchange(old, new, success, failure) };
    let cpu = (writer.this_cpu)();
    writer.wait_for(cpu, 1, Within::Operation);
    let held = writer.lock();
    let result = word.compare_exchange(old, new, success, failure);
    if result.is_ok() {
        writer.put(cpu, Kind::Write, 0, [address(word), old, new]);
    }
    drop(held);
    result
}

/// Returns a number that nothing else is called by, from one on.
#[cold]
pub fn new_name() -> u64 {
    WRITER.get().map_or(0, |writer| writer.names.fetch_add(1, Relaxed) + 1)
}

/// Waits until the CPU's ring has room for a step. The caller owns nothing.
#[inline(always)]
pub fn make_room() {
    if is_on() {
        wait_for_room();
    }
}

#[cold]
#[inline(never)]
fn wait_for_room() {
    if let Some(writer) = WRITER.get() {
        writer.wait_for((writer.this_cpu)(), ROOM, Within::Nothing);
    }
}

/// Records that this CPU owns and owes nothing, where it has recorded anything since it last did.
#[inline(always)]
pub fn rests() {
    if is_on() {
        note_rest();
    }
}

#[cold]
#[inline(never)]
fn note_rest() {
    if let Some(writer) = WRITER.get()
        && writer.is_busy[(writer.this_cpu)().index()].load(Relaxed)
    {
        writer.note(Kind::Rests, 0, [0; 3]);
    }
}

/// What a CPU is in the middle of that waits for room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Nothing,
    Operation,
}

fn address(word: &AtomicU64) -> u64 {
    core::ptr::from_ref(word).addr() as u64
}

impl Writer {
    fn new(sink: Sink, cpus: u64, this_cpu: fn() -> CpuId) -> Self {
        match sink {
            Sink::Rings(memory, key) => {
                memory[header::KEY].store(key, Relaxed);
                memory[header::VERSION].store(VERSION, Relaxed);
                memory[header::CPUS].store(cpus, Relaxed);
                memory[header::CAPACITY].store(CAPACITY, Relaxed);
                memory[header::MAGIC].store(ring::MAGIC, Release); // the tool looks at the rest when it sees this
            }
            Sink::Line(send) => send([FILE_MAGIC, VERSION, cpus, 0]),
        }
        Self {
            sink,
            this_cpu,
            lock: AtomicBool::new(false),
            next: AtomicU64::new(0),
            names: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            waited: [const { AtomicU64::new(SOMETHING) }; MAX_CPUS],
            is_busy: [const { AtomicBool::new(false) }; MAX_CPUS],
        }
    }

    fn note(&self, kind: Kind, small: u8, operands: [u64; 3]) {
        let cpu = (self.this_cpu)();
        let waited = &self.waited[cpu.index()];
        let now = self.begun.load(Relaxed) << BEGUN;
        if kind == Kind::Dsb {
            let before = waited.load(Relaxed) ^ now;
            if before < SOMETHING && includes(before as u8, small) {
                return;
            }
        }
        self.wait_for(cpu, 1, Within::Operation);
        let held = self.lock();
        self.put(cpu, kind, small, operands);
        drop(held);
        if kind == Kind::Dsb {
            waited.store(now | u64::from(small), Relaxed);
        }
    }

    /// Waits until `room` records have room in the ring of `cpu`, which runs this.
    fn wait_for(&self, cpu: CpuId, room: u64, within: Within) {
        let Sink::Rings(memory, _) = self.sink else { return };
        let line = ring::line(cpu.index() as u64);
        let head = at(memory, line).load(Relaxed);
        let full = || head + room > at(memory, line + ring::TAIL).load(Acquire) + CAPACITY;
        let mut looks = 0_u64;
        while full() {
            looks += 1;
            if looks == LONG {
                log::warn!("trace: CPU {} waits until somebody reads what it has recorded", cpu.index());
            }
            core::hint::spin_loop();
        }
        if looks > 0 {
            let held = self.lock();
            self.put(cpu, Kind::Stall, (within == Within::Operation).into(), [looks, 0, 0]);
            drop(held);
            // The record has taken of the room; there is more than that once the tool reads on.
            self.wait_for(cpu, room, within);
        }
    }

    fn lock(&self) -> Held<'_> {
        while self.lock.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            core::hint::spin_loop();
        }
        Held(self)
    }

    /// Puts a record into the ring of `cpu`, which runs this, holds the lock, and has room.
    fn put(&self, cpu: CpuId, kind: Kind, small: u8, operands: [u64; 3]) {
        let number = self.next.load(Relaxed);
        self.next.store(number + 1, Relaxed);
        let words = Record { number, cpu, kind, small, operands }.words();
        match self.sink {
            Sink::Rings(memory, _) => put_in(memory, cpu, words),
            Sink::Line(send) => send(words),
        }
        self.waited[cpu.index()].store(SOMETHING, Relaxed);
        self.is_busy[cpu.index()].store(kind != Kind::Rests, Relaxed);
    }
}

/// Puts a record into the ring of `cpu`, which runs this.
fn put_in(memory: &[AtomicU64], cpu: CpuId, words: [u64; WORDS]) {
    let line = ring::line(cpu.index() as u64);
    let head = at(memory, line).load(Relaxed);
    let place = ring::ring(cpu.index() as u64) + head % CAPACITY * (WORDS as u64 * 8);
    for (n, word) in words.into_iter().enumerate() {
        at(memory, place + 8 * n as u64).store(word, Relaxed);
    }
    at(memory, line).store(head + 1, Release); // the record is there when the tool sees that there is one
}

fn at(memory: &[AtomicU64], byte: u64) -> &AtomicU64 {
    &memory[(byte / 8) as usize]
}

/// Tells whether a barrier of the code `one` does all that one of the code `other` does.
fn includes(one: u8, other: u8) -> bool {
    match (Reach::of(one), Reach::of(other)) {
        (Some(one), Some(other)) if one == other => true,
        (Some(Reach::Sy), Some(_)) => true,
        (Some(Reach::Ish), Some(other)) => other != Reach::Sy,
        _ => false,
    }
}

struct Held<'w>(&'w Writer);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::cell::Cell;
    use std::thread;
    use std::vec::Vec;

    std::thread_local! {
        static CPU: Cell<CpuId> = const { Cell::new(CpuId::BOOT) };
    }

    fn writer(cpus: u64) -> Writer {
        let words = (ring::bytes(cpus) / 8) as usize;
        let memory: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
        Writer::new(Sink::Rings(Box::leak(memory.into_boxed_slice()), 5), cpus, || CPU.get())
    }

    fn at(writer: &Writer, byte: u64) -> &AtomicU64 {
        let Sink::Rings(memory, _) = writer.sink else { panic!("it has rings") };
        super::at(memory, byte)
    }

    #[test]
    fn what_goes_out_by_a_line_is_a_file_of_the_trace() {
        static SENT: std::sync::Mutex<Vec<[u64; WORDS]>> = std::sync::Mutex::new(Vec::new());
        let writer = Writer::new(Sink::Line(|words| SENT.lock().unwrap().push(words)), 2, || CPU.get());
        writer.wait_for(CpuId::BOOT, u64::MAX, Within::Nothing); // there is always room
        writer.note(Kind::Freed, 0, [1, 2, 3]);
        writer.note(Kind::End, 0, [0; 3]);
        let sent = SENT.lock().unwrap();
        assert_eq!(sent[0], [FILE_MAGIC, VERSION, 2, 0]);
        let records: Vec<_> = sent[1..].iter().map(|words| Record::of(*words).expect("a record")).collect();
        assert!(records.iter().map(|record| record.number).eq(0..2));
        assert_eq!((records[0].kind, records[0].operands), (Kind::Freed, [1, 2, 3]));
    }

    /// Takes what is in the ring of CPU number `cpu`.
    fn take(writer: &Writer, cpu: u64) -> Vec<Record> {
        let (head, tail) = (at(writer, ring::line(cpu)), at(writer, ring::line(cpu) + ring::TAIL));
        let (from, to) = (tail.load(Relaxed), head.load(Acquire));
        let records = (from..to).map(|count| {
            let place = ring::ring(cpu) + count % CAPACITY * 32;
            let words = core::array::from_fn(|n| at(writer, place + 8 * n as u64).load(Relaxed));
            Record::of(words).expect("what was put there is a record")
        });
        let records = records.collect();
        tail.store(to, Release);
        records
    }

    #[test]
    fn numbers_are_the_order_of_all_and_none_is_missing() {
        let writer: &'static Writer = Box::leak(Box::new(writer(3)));
        let threads = (0..3).map(|cpu| {
            thread::spawn(move || {
                CPU.set(CpuId::new(cpu).expect("few"));
                for n in 0..1000 {
                    writer.note(Kind::Freed, 0, [n, 0, 0]);
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().expect("it does not panic"));
        let mut all = Vec::new();
        for cpu in 0..3 {
            let records = take(writer, cpu);
            assert!(records.is_sorted_by_key(|record| record.number));
            assert!(records.iter().map(|record| record.operands[0]).eq(0..1000));
            all.extend(records);
        }
        all.sort_by_key(|record| record.number);
        assert!(all.iter().map(|record| record.number).eq(0..3000));
    }

    #[test]
    fn a_full_ring_stalls_and_says_so_and_nothing_is_lost() {
        let writer: &'static Writer = Box::leak(Box::new(writer(1)));
        let more = CAPACITY + 10;
        let thread = thread::spawn(move || {
            (0..more).for_each(|n| {
                writer.note(Kind::Freed, 0, [n, 0, 0]);
            });
        });
        let mut records = Vec::new();
        while at(writer, ring::line(0)).load(Relaxed) < CAPACITY {
            thread::yield_now();
        }
        // It can go no further now. It may not have looked yet.
        for _ in 0..100 {
            thread::yield_now();
        }
        while !thread.is_finished() {
            records.extend(take(writer, 0));
        }
        records.extend(take(writer, 0));
        let kept = records.iter().filter(|record| record.kind == Kind::Freed);
        assert!(kept.map(|record| record.operands[0]).eq(0..more));
        assert!(records.iter().map(|record| record.number).eq(0..records.len() as u64));
        let stalls = records.iter().filter(|record| record.kind == Kind::Stall);
        assert!(stalls.clone().all(|record| record.small == 1));
        assert_eq!(records.len() as u64, more + stalls.count() as u64);
    }

    #[test]
    fn a_barrier_is_left_out_only_behind_one_as_strong() {
        let writer = writer(1);
        let dsb = |reach: Reach| writer.note(Kind::Dsb, reach as u8, [0; 3]);
        dsb(Reach::Ish);
        dsb(Reach::Nsh);
        dsb(Reach::Ishst);
        assert_eq!(take(&writer, 0).len(), 1);
        dsb(Reach::Sy);
        assert_eq!(take(&writer, 0).len(), 1);
        writer.note(Kind::Freed, 0, [0; 3]);
        dsb(Reach::Ishst);
        dsb(Reach::Ish);
        dsb(Reach::Ish);
        assert_eq!(take(&writer, 0).len(), 3);
        // What has been recorded in between, nobody knows.
        writer.begun.fetch_add(1, Relaxed);
        dsb(Reach::Ish);
        dsb(Reach::Ish);
        assert_eq!(take(&writer, 0).len(), 1);
    }
}
