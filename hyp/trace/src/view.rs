//! The view: what a running machine counts, and where its tables and frame records are, for a tool that looks.
//!
//! ```text
//! 0x0000   header: magic, key, version, sequence; the machine's numbers; its banks of memory
//! 0x1000   a place of 1 KiB for each VM
//! ```
//!
//! One piece of RAM, whose start is a multiple of [`ALIGNMENT`], found by magic and key as the [rings](crate::ring) are. The
//! hypervisor writes all of it anew now and then, and the tool only reads: the sequence is odd meanwhile, and what was read
//! between two looks at the same even one belongs together. A place whose owner is zero is nobody's.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU64, fence};

/// The first word: "mznzview".
pub const MAGIC: u64 = u64::from_le_bytes(*b"mznzview");
/// Changes with the layout.
pub const VERSION: u64 = 1;
/// What the start is a multiple of.
pub const ALIGNMENT: u64 = 256 << 10;
/// Where the places are.
pub const PLACES: u64 = 0x1000;
/// Bytes of a place.
pub const PLACE: u64 = 1 << 10;
/// The most banks of memory.
pub const BANKS: usize = 16;

/// The header's words, by number.
pub mod header {
    /// [`MAGIC`](super::MAGIC), written last of all at the start.
    pub const MAGIC: usize = 0;
    /// The key.
    pub const KEY: usize = 1;
    /// The [version](super::VERSION).
    pub const VERSION: usize = 2;
    /// Odd while the rest is being written; zero until it was for the first time.
    pub const SEQUENCE: usize = 3;
    /// The physical address of the header.
    pub const HERE: usize = 4;
    /// The system counter, and its ticks in a second.
    pub const TICKS: usize = 5;
    /// See [`TICKS`].
    pub const HERTZ: usize = 6;
    /// How many CPUs.
    pub const CPUS: usize = 7;
    /// How many places.
    pub const PLACES: usize = 8;
    /// The [numbers](super::Machine) of the machine.
    pub const NUMBERS: usize = 16;
    /// Banks of memory: for each its start, its bytes, and where its frames' records are. No bytes: none.
    pub const BANKS: usize = 64;
    /// How many words there are.
    pub const WORDS: usize = BANKS + 3 * super::BANKS;
}

/// A place's words, by number.
pub mod place {
    /// The number by which frames and spaces are this VM's.
    pub const OWNER: usize = 0;
    /// 1 where it is on.
    pub const IS_ON: usize = 1;
    /// How many vCPUs.
    pub const VCPUS: usize = 2;
    /// The root of its tables.
    pub const ROOT: usize = 3;
    /// Its tables' shape, as in [`Kind::Space`](crate::Kind::Space): `b`, without the owner.
    pub const SHAPE: usize = 4;
    /// Their format's features in bits 7:0, as there: `c`; the break-before-make level in bits 15:8.
    pub const FEATURES: usize = 5;
    /// The name, in bytes; zeroes follow.
    pub const NAME: usize = 8;
    /// Words of the name.
    pub const NAME_WORDS: usize = 8;
    /// Exits by reason: see [`EXITS`](super::EXITS).
    pub const EXITS: usize = 16;
    /// Leaves by height.
    pub const LEAVES: usize = 32;
    /// How many heights.
    pub const HEIGHTS: usize = 6;
    /// The [numbers](super::Space) of its space.
    pub const NUMBERS: usize = 40;
    /// For how long entries were invalid: element *n* for less than 2ⁿ ticks, the last for everything longer.
    pub const BLACKOUTS: usize = 64;
    /// How many classes.
    pub const CLASSES: usize = 24;
    /// Its memory: for each piece its start and its bytes. No bytes: none.
    pub const MEMORY: usize = 88;
    /// The most pieces.
    pub const PIECES: usize = 4;
    /// How many words there are.
    pub const WORDS: usize = MEMORY + 2 * PIECES;
}

const _: () = assert!(header::WORDS as u64 * 8 <= PLACES && place::WORDS as u64 * 8 <= PLACE);

/// Reasons for exits, in the order of their counts.
pub const EXITS: [&str; 15] = [
    "hvc",
    "smc",
    "sysreg",
    "sgi",
    "device",
    "data-fault",
    "fetch-fault",
    "outside",
    "wait",
    "timer",
    "maintenance",
    "kick",
    "slice",
    "interrupt",
    "other",
];

macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name {
            $(#[doc = $text] $variant,)*
        }

        impl $name {
            /// All of them, in the order in which they stand.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Returns what it is called.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

numbers! {
    /// The machine's numbers.
    Machine {
        ByAddress = "TLBI by address",
        ByRange = "TLBI by range",
        Whole = "TLBI whole VMID",
        Local = "TLBI this CPU only",
        Returns = "TLBI on return to a guest",
        Publish = "TLBI none needed",
        Kicks = "kicks to invalidate",
        Rollovers = "VMID rollovers",
        Frames = "frames in all",
        Free = "frames free",
        Guests = "frames with guests' contents",
        Tables = "frames of tables",
    }
}

numbers! {
    /// A space's numbers.
    Space {
        Faults = "faults",
        Mapped = "faults mapped",
        Allowed = "faults allowed",
        AlreadyMapped = "faults already mapped",
        Busy = "faults busy",
        Outside = "faults outside",
        Denied = "faults denied",
        Failed = "faults without memory",
        Moved = "moved",
        Splits = "splits",
        Collapses = "collapses",
        Pruned = "tables pruned",
        Invalidations = "invalidations",
        GracePeriods = "grace periods",
        LostRaces = "races lost",
        Conflicts = "TLB conflicts",
        TableBytes = "bytes of tables",
        ReserveBytes = "bytes in reserve for splits",
    }
}

const _: () = assert!(header::NUMBERS + Machine::COUNT <= header::BANKS);
const _: () = assert!(place::NUMBERS + Space::COUNT <= place::BLACKOUTS);
const _: () = assert!(place::EXITS + EXITS.len() <= place::LEAVES);

/// Returns the bytes of all, for `places` VMs.
pub const fn bytes(places: u64) -> u64 {
    PLACES + places * PLACE
}

/// The hypervisor's side.
#[derive(Debug)]
pub struct View {
    memory: &'static [AtomicU64],
    is_written: AtomicBool,
}

impl View {
    /// Begins the view of a machine in `memory`, which is at `here`, all zero, and as large as [`bytes`] says for its `places`.
    pub fn new(memory: &'static [AtomicU64], here: u64, key: u64, places: u64) -> Self {
        let this = Self { memory, is_written: AtomicBool::new(false) };
        this.put(header::KEY, &[key, VERSION]);
        this.put(header::HERE, &[here]);
        this.put(header::PLACES, &[places]);
        if let Some(magic) = memory.first() {
            magic.store(MAGIC, Release); // all else is there when it is
        }
        this
    }

    /// Has `write` put everything anew, unless another CPU is at it.
    pub fn write(&self, write: impl FnOnce(&Self)) {
        let Some(sequence) = self.memory.get(header::SEQUENCE) else { return };
        if self.is_written.swap(true, Acquire) {
            return;
        }
        let before = sequence.load(Relaxed);
        sequence.store(before + 1, Relaxed);
        fence(Release); // odd is seen before anything that follows
        write(self);
        sequence.store(before + 2, Release);
        self.is_written.store(false, Release);
    }

    /// Puts words from the number `first` of the header on.
    pub fn put(&self, first: usize, words: &[u64]) {
        for (to, word) in self.memory.iter().skip(first).zip(words) {
            to.store(*word, Relaxed);
        }
    }

    /// Puts words from the number `first` of a place on.
    pub fn put_at(&self, number: usize, first: usize, words: &[u64]) {
        self.put(((PLACES + number as u64 * PLACE) / 8) as usize + first, words);
    }
}

/// Returns the words of a name, which is cut where it is too long.
pub fn name_words(name: &str) -> [u64; place::NAME_WORDS] {
    let mut words = [0; place::NAME_WORDS];
    for (n, byte) in name.bytes().take(place::NAME_WORDS * 8).enumerate() {
        words[n / 8] |= u64::from(byte) << (n % 8 * 8);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    fn view(places: u64) -> View {
        let memory: Vec<AtomicU64> = (0..bytes(places) / 8).map(|_| AtomicU64::new(0)).collect();
        View::new(Box::leak(memory.into_boxed_slice()), 0x4000_0000, 7, places)
    }

    #[test]
    fn the_sequence_is_odd_while_words_are_put() {
        let view = view(2);
        let sequence = || view.memory[header::SEQUENCE].load(Relaxed);
        assert_eq!((sequence(), view.memory[header::MAGIC].load(Relaxed)), (0, MAGIC));
        view.write(|view| {
            assert_eq!(sequence(), 1);
            view.put_at(1, place::OWNER, &[5]);
            view.write(|_| panic!("one at a time"));
        });
        assert_eq!(sequence(), 2);
        assert_eq!(view.memory[((PLACES + PLACE) / 8) as usize].load(Relaxed), 5);
    }

    #[test]
    fn a_name_is_its_bytes() {
        let words = name_words("linux");
        assert_eq!(words[0].to_le_bytes(), *b"linux\0\0\0");
        assert_eq!(name_words(&"x".repeat(100))[7].to_le_bytes(), *b"xxxxxxxx");
    }
}
