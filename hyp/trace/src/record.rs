//! [`Record`]: one effect, in four words.
//!
//! | word | bits | |
//! | --- | --- | --- |
//! | 0 | 7:0 | what it is, [`Kind`] |
//! | 0 | 15:8 | a small operand |
//! | 0 | 23:16 | the CPU |
//! | 0 | 63:24 | its number: the place in the order of all |
//! | 1 to 3 | | operands, see [`Kind`] |
//!
//! A file of the trace is [`FILE_MAGIC`], the [`VERSION`], the number of CPUs, a word that is zero, and then records in
//! the order of their numbers, from zero on. All words are little-endian.

use types::CpuId;

/// The words of a record.
pub const WORDS: usize = 4;
/// The bytes of a record.
pub const BYTES: usize = WORDS * 8;
/// The first word of a file: "mzntrace", the first letter in the lowest byte.
pub const FILE_MAGIC: u64 = u64::from_le_bytes(*b"mzntrace");
/// Changes with the format.
pub const VERSION: u64 = 3;
/// The bits of a number: enough for a year of records.
const NUMBER_BITS: u32 = 40;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $code,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns what has this code.
            pub const fn of(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// What was done. `s` is the small operand, `a` to `c` are words 1 to 3; what is not named is zero.
    Kind {
        /// The trace begins. `s`: 1 where CPUs are made to forget by interrupts, 0 where by broadcast; 2 more on x86-64. `a`: the way of
        /// waiting for readers, in its order on the command line; `b`: how many CPUs; `c`: 1 where nothing is recorded
        /// before the first [`Kind::Begin`].
        Start = 1,
        /// A space is there: its root was taken and is empty. `s`: the break-before-make level; `a`: the root; `b`: the
        /// owner's number in bits 15:0, the address bits in 23:16, the height of the root's entries in 31:24; `c`: the
        /// format's features, 1 for a hardware dirty flag, 2 for FWB.
        Space = 2,
        /// A space is gone, with its root. `b`: the owner.
        SpaceGone = 3,
        /// A table was taken. `a`: where; `b`: bytes; `c`: the owner.
        Take = 4,
        /// A table is about to be given back. As [`Kind::Take`].
        GiveBack = 5,
        /// An entry was written. `a`: its address; `b`: what it was; `c`: what it is.
        Write = 6,
        /// A data synchronisation barrier is complete. `s`: [`Reach`]. Left out where the CPU has recorded nothing since its
        /// last one that was as strong.
        Dsb = 7,
        /// A TLB invalidation is about to be issued. `s`: [`Op`]; `a`: the operand; `b`: VTTBR_EL2 then.
        Tlbi = 8,
        /// VTTBR_EL2 is about to be written; on x86-64 the EPT pointer. `a`: what; zero where it is known only that no guest runs any more with what it
        /// names.
        Vttbr = 9,
        /// A CPU is about to run a vCPU whose tables are loaded, and has forgotten what it had to. `a`: the owner's number;
        /// `b`: which vCPU.
        Runs = 10,
        /// Frames are about to be free. `a`: where; `b`: bytes.
        Freed = 11,
        /// A grace period is about to begin. `a`: its name; `s`: 1 where it is an epoch of the batched way.
        Grace = 12,
        /// A grace period is over. As [`Kind::Grace`].
        GraceOver = 13,
        /// What this CPU has unlinked needs no grace period: nobody else has ever looked at that tree.
        Unread = 14,
        /// The CPU owns nothing and owes nothing: a step of its has ended.
        Rests = 15,
        /// The CPU has waited for room in its ring. `s`: 1 where that was in the middle of an operation; `a`: how often it
        /// looked in vain.
        Stall = 16,
        /// The machine is about to be off: nothing is missing at the end.
        End = 17,
        /// From here on everything is recorded, of a machine that has run before.
        Begin = 18,
        /// From here on nothing is recorded, up to the next [`Kind::Begin`]. What still comes was under way.
        Stop = 19,
        /// A space was made before the [`Kind::Begin`]. As [`Kind::Space`].
        There = 20,
        /// An entry of such a space. `a`: its address; `b`: what it was at some time since the [`Kind::Begin`], not zero.
        Known = 21,
        /// No more is to be told of such a space. `a`: what VTTBR_EL2 is where TLBs may hold something of it, 0 where none
        /// does; `b`: the owner; `c`: the CPUs that may, a bit for each.
        Told = 22,
        /// Where CPUs are made to forget by interrupts: the CPU is about to run a guest of the space whose tables it has loaded, and
        /// has forgotten what it had to.
        Enters = 23,
        /// Likewise: it has left the guest, its table walks are over, and it is about to say so.
        Leaves = 24,
    }
}

codes! {
    /// For whom a barrier waits, and for what.
    Reach {
        /// `DSB NSH`.
        Nsh = 0,
        /// `DSB ISHST`.
        Ishst = 1,
        /// `DSB ISH`.
        Ish = 2,
        /// `DSB SY`.
        Sy = 3,
    }
}

codes! {
    /// TLB maintenance instructions.
    Op {
        /// `VMALLE1`.
        Vmalle1 = 0,
        /// `VMALLE1IS`.
        Vmalle1is = 1,
        /// `VMALLS12E1`.
        Vmalls12e1 = 2,
        /// `VMALLS12E1IS`.
        Vmalls12e1is = 3,
        /// `ALLE1IS`.
        Alle1is = 4,
        /// `IPAS2E1`, with an operand, as the four that follow.
        Ipas2e1 = 5,
        /// `IPAS2E1IS`.
        Ipas2e1is = 6,
        /// `IPAS2LE1IS`.
        Ipas2le1is = 7,
        /// `RIPAS2E1IS`.
        Ripas2e1is = 8,
        /// `RIPAS2LE1IS`.
        Ripas2le1is = 9,
        /// `ALLE1`.
        Alle1 = 10,
        /// INVEPT, with its type as the operand, and the EPT pointer instead of VTTBR_EL2.
        Invept = 11,
    }
}

/// One effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its place in the order of all.
    pub number: u64,
    /// By which CPU.
    pub cpu: CpuId,
    /// What it is.
    pub kind: Kind,
    /// The small operand.
    pub small: u8,
    /// Words 1 to 3.
    pub operands: [u64; 3],
}

/// Words that are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRecord(pub [u64; WORDS]);

impl Record {
    /// Returns its words.
    pub const fn words(&self) -> [u64; WORDS] {
        let first = self.kind as u64
            | (self.small as u64) << 8
            | (self.cpu.index() as u64) << 16
            | (self.number & ((1 << NUMBER_BITS) - 1)) << 24;
        let [a, b, c] = self.operands;
        [first, a, b, c]
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`NoRecord`] where the words are none.
    pub const fn of(words: [u64; WORDS]) -> Result<Self, NoRecord> {
        let [first, a, b, c] = words;
        match (Kind::of(first as u8), CpuId::new((first >> 16) as u8 as usize)) {
            (Some(kind), Some(cpu)) => {
                Ok(Self { number: first >> 24, cpu, kind, small: (first >> 8) as u8, operands: [a, b, c] })
            }
            _ => Err(NoRecord(words)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_its_words_say() {
        for (n, &kind) in Kind::ALL.iter().enumerate() {
            let cpu = CpuId::new(n).expect("few");
            let record = Record {
                number: (1 << NUMBER_BITS) - 1 - n as u64,
                cpu,
                kind,
                small: 7,
                operands: [1, 2, 3],
            };
            assert_eq!(Record::of(record.words()), Ok(record));
        }
        let words = [0x12_0403_0506, 1, 2, 3];
        let record = Record::of(words).expect("a write");
        assert_eq!(
            (record.kind, record.small, record.cpu.index(), record.number),
            (Kind::Write, 5, 3, 0x1204)
        );
    }

    #[test]
    fn other_words_are_no_record() {
        for words in [[0; 4], [0xff, 0, 0, 0], [0x40_0001, 0, 0, 0]] {
            assert_eq!(Record::of(words), Err(NoRecord(words)));
        }
    }
}
