//! Where the rings lie: one piece of RAM, whose start is a multiple of [`ALIGNMENT`].
//!
//! ```text
//! 0x0000   header: magic, key, version, CPUs, records in a ring
//! 0x1000   a line of 128 bytes for each CPU: its head, which the hypervisor moves; 64 bytes on its tail, which the tool moves
//! 0x4000   the rings, one after the other
//! ```
//!
//! Head and tail count records since the start and never wrap; a record lies at its count modulo the ring's size. The
//! tool finds the header by magic and key. The key is on the hypervisor's command line, so that what a guest, or an
//! earlier machine, has left in memory is not taken for one.

use crate::record;

/// What the start is a multiple of.
pub const ALIGNMENT: u64 = 2 << 20;
/// The header's words, by number.
pub mod header {
    /// [`MAGIC`](super::MAGIC), written last.
    pub const MAGIC: usize = 0;
    /// The key.
    pub const KEY: usize = 1;
    /// The [version](crate::record::VERSION).
    pub const VERSION: usize = 2;
    /// How many CPUs have a ring.
    pub const CPUS: usize = 3;
    /// How many records a ring holds.
    pub const CAPACITY: usize = 4;
    /// How many words there are.
    pub const WORDS: usize = 5;
}
/// The first word of the header.
pub const MAGIC: u64 = u64::from_le_bytes(*b"mznrings");
/// Where the lines are.
pub const LINES: u64 = 0x1000;
/// Bytes of a line.
pub const LINE: u64 = 128;
/// Where in a line the tail is.
pub const TAIL: u64 = 64;
/// Where the rings are.
pub const RINGS: u64 = 0x4000;
/// How many records a ring holds: 2 MiB.
pub const CAPACITY: u64 = 1 << 16;

const _: () = assert!(LINES + LINE * types::MAX_CPUS as u64 <= RINGS);

/// Returns the bytes of all, for `cpus` CPUs.
pub const fn bytes(cpus: u64) -> u64 {
    ring(cpus)
}

/// Returns where the ring of CPU number `cpu` is.
pub const fn ring(cpu: u64) -> u64 {
    RINGS + cpu * CAPACITY * record::BYTES as u64
}

/// Returns where the line of CPU number `cpu` is.
pub const fn line(cpu: u64) -> u64 {
    LINES + cpu * LINE
}
