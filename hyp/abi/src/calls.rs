//! The calls on a machine's own memory: 64-bit fast calls of the vendor-specific hypervisor range.
//!
//! A machine has them where the manifest grants them. A function's number is in `W0`, arguments are in `X1` to `X6`; what
//! is not named is ignored. `X0` is a [`Status`](crate::Status) afterwards, `X1` to `X5` are results, zero where not
//! named, and all other registers are kept. Where the status is `NotSupported`, `X0` alone is changed. Every status that a
//! call may answer with is in [`answers`](crate::answers); below are those that want a word.
//!
//! Addresses are guest-physical, lengths in bytes; both are multiples of 4,096 unless said otherwise.
//!
//! # Calls on a range
//! `X1` the first address, `X2` the length, `X4` the cursor: zero at first. The whole range is in one piece of the
//! machine's memory (`NotMemory`), not empty, and the cursor is less than its length (`InvalidParameter`). Such a call
//! does a bounded part of its work. `X1` is afterwards how many bytes of the range are done, from its start: with
//! `Continue`, and after an error that may pass, it is the cursor to go on from. What is done stays done.
//!
//! Any range call may end with `Busy`, where another CPU is changing the same addresses.

use crate::RANGE_64;

/// Tells whether a function is offered. `X1`: its number.
///
/// Status `Success`, or `NotSupported`. `X1`: the revision, the major number in bits 31:16, the minor one in bits 15:0.
pub const FEATURES: u32 = RANGE_64 | 0x01;

/// Returns a number. `X1`: which, see [`statistic`].
///
/// Status `Success`; `InvalidParameter` where there is no such number. `X1`: the value.
pub const STATISTICS: u32 = RANGE_64 | 0x02;

/// Counts what a range is mapped with. On a range.
///
/// Of the part that this call has looked at, from the cursor that was passed on, `X2`: pages of 4 KiB that are mapped
/// singly, `X3`: blocks of 2 MiB, `X4`: blocks of 1 GiB, `X5`: in bits 31:0 how many of all these were used since they
/// were last found so, in bits 63:32 how many were written. A look only: nothing is waited for.
pub const SURVEY: u32 = RANGE_64 | 0x03;

/// Compares the tables of a range with the records of the frames that they lead to. On a range.
///
/// `Broken`: at the cursor is a mapping of a frame that is not this machine's. That is a bug of the hypervisor's.
pub const SELF_CHECK: u32 = RANGE_64 | 0x04;

/// Lets other vCPUs that wait for this CPU go first, and gives back memory that rests since it was unmapped. Status
/// `Success`. From the control page it does the second only.
pub const YIELD: u32 = RANGE_64 | 0x05;

/// Gives memory back: what the range held is gone. On a range.
///
/// An address that is touched afterwards comes with memory anew, zeroed. What is pinned stays with its pinner until it
/// lets go, under no address. Of a block that the range covers in part, what is outside stays.
pub const BALLOON_OUT: u32 = RANGE_64 | 0x10;

/// Puts memory behind all of a range, zeroed, where there is none. On a range.
///
/// `NoMemory`: none is left.
pub const BALLOON_IN: u32 = RANGE_64 | 0x11;

/// Gives a range the rights in `X3`, see [`rights`]. On a range.
///
/// From the return on, no CPU has other rights to what is done of the range. Who goes beyond gets an external abort. The
/// rights concern the machine's CPUs and its transfers; a machine that starts again has all rights.
///
/// `InvalidParameter`: not one of the combinations that [`rights`] names. `NoRoom`: the memory would fall into more than
/// 64 pieces of different rights.
pub const PROTECT: u32 = RANGE_64 | 0x12;

/// Splits every block in a range into pages of 4 KiB. On a range; what is not mapped is passed over.
///
/// `X2`: how many blocks this call has split. The memory for the tables was set aside when the blocks were made.
pub const SPLIT: u32 = RANGE_64 | 0x13;

/// Makes blocks of 2 MiB of pages. On a range, of which first address, length and cursor are multiples of 2 MiB.
///
/// `X3`: 0 to leave memory where it is, 1 to bring what lies scattered together. One block a call. `X2`: 1 where the block
/// before the cursor was made in place, 2 where its memory was moved, 0 where it was a block before.
///
/// `NotMapped`, `Uneven`, `Scattered`, `Pinned`, `Denied` (part of it is lent), `Logging`, `NoMemory`: of the block at the
/// cursor. Go on behind it, or come back.
pub const COLLAPSE: u32 = RANGE_64 | 0x14;

/// Moves what a range holds to other frames: each page or block of 2 MiB to one of its size. On a range; what is not
/// mapped is passed over, and of a leaf that the range covers in part all is moved.
///
/// `X2`: how many leaves this call has moved.
///
/// `Pinned`, `Denied` (it is lent), `WrongSize` (a block of 1 GiB), `NoMemory`: of the leaf at the cursor. Go on behind it, or
/// come back.
pub const MOVE: u32 = RANGE_64 | 0x15;

/// Begins a dirty log of a range. On a range; a machine has one log at a time.
///
/// `X3`: see [`granularity`]. When the status is `Success`, a write to any page of the range from then on, by a CPU or by
/// a transfer, is in the answer of a later round. Until then call again with the same arguments. The cursor says how far
/// it is, and is ignored as an argument.
///
/// `Logging`: another one runs. `NoMemory`: none for the log.
pub const LOG_START: u32 = RANGE_64 | 0x20;

/// Does a part of a round of the dirty log: which pages were written since the last round.
///
/// `X1`: the address of a buffer of [`BITMAP_BYTES`], a multiple of 4,096, in the machine's memory. `X4`: the cursor; with
/// zero a round begins. The buffer counts as written.
///
/// `X1`: the cursor, in bytes from the start of the log's range. `X2`: the address of the first page that the bitmap is
/// about, `X3`: how many pages; `X4`: how many of them were written. Bit *n* % 64 of word *n* / 64 is for page *n*. Pages
/// that were not written may be among them; one that was is never missing, where every answer is heeded. The bitmap may
/// know more than the cursor: that pages behind it were written. The next call looks at them all the same.
///
/// With any error nothing is lost: what would have been answered is answered by the next call.
/// `NoLog`; `InvalidParameter`: the cursor is not the last one; `NotMemory`, `Denied`, `NoMemory`: of the buffer.
pub const LOG_HARVEST: u32 = RANGE_64 | 0x21;

/// Ends the dirty log, and makes blocks again of what it has split. Call again while the status is `Continue`.
///
/// `X2`: how many blocks this call has made. `NoLog`; `Logging`: the hypervisor has begun a log of its own (`churn=`), and what
/// is left stays in pages.
pub const LOG_STOP: u32 = RANGE_64 | 0x22;

/// Says which pages of a range were used since the last time, and makes them count as not used. On a range.
///
/// `X3`: the address of a buffer of [`BITMAP_BYTES`], as for [`LOG_HARVEST`]. `X2`: the address of the first page that the
/// bitmap is about, `X3`: how many pages; `X4`: how many of them were used. A block is used as a whole. It promises
/// nothing about any one page: what is being changed is passed over.
///
/// `InvalidParameter`, `NotMemory`, `Denied`, `NoMemory`: of the buffer, too.
pub const AGE_HARVEST: u32 = RANGE_64 | 0x23;

/// Pins the first part of a range: as much as one handle can hold, which is a page or a block of 2 MiB. On a range.
///
/// `X3`: 0 to read, 1 to write. While pinned, the memory stays where it is, with its contents. `X1`: how many bytes are
/// pinned; `X2`: the handle. There are [`HANDLES`] of them. A machine that starts again has none.
///
/// `NoRoom`: all handles are in use. `Denied`: the machine may not do that here, or the memory is lent. `NoMemory`: nothing is
/// there, and no memory for it.
pub const PIN: u32 = RANGE_64 | 0x30;

/// Gives a handle back. `X1`: the handle; `X2`: 1 where the memory was written through it, and counts as dirty; or 0.
///
/// `NoHandle`; `InvalidParameter`: of `X2`.
pub const UNPIN: u32 = RANGE_64 | 0x31;

/// Copies memory by the software engine. `X1`: to, `X2`: from, `X3`: bytes. Multiples of 8; at most [`DMA_MOST`] bytes;
/// the two do not overlap.
///
/// Each transfer has both of its ranges pinned from before its first access until after its last. It respects the
/// machine's rights. `X1`: the ticket for [`DMA_POLL`]. Of [`TRANSFERS`] transfers at a time each may see what another
/// writes.
///
/// `InvalidParameter`: also where the two overlap. `NotMemory`: one is not all in one piece of memory. `NoRoom`: so many are
/// under way, or have ended and were not asked for.
pub const DMA_COPY: u32 = RANGE_64 | 0x40;

/// Fills memory with a 64-bit word by the software engine. `X1`: to, `X2`: the word, `X3`: bytes. As [`DMA_COPY`].
pub const DMA_FILL: u32 = RANGE_64 | 0x41;

/// Computes a [`Checksum`](crate::Checksum) by the software engine. `X2`: from, `X3`: bytes. As [`DMA_COPY`].
pub const DMA_CHECKSUM: u32 = RANGE_64 | 0x42;

/// Asks how a transfer is. `X1`: its ticket.
///
/// `Continue`: under way; `X1` is the ticket. `Success`: complete; `X1` is the checksum, or how many bytes were written.
/// `Denied`, `NoMemory`, `Busy` (others kept changing the memory): it has ended, since its memory could not be pinned, and has
/// touched none; `Broken`: it has ended where a pinned frame was not the machine's, which is a bug of the hypervisor's; what it
/// has written stays. With all these the ticket is given back. `NoHandle`: there is no such transfer.
pub const DMA_POLL: u32 = RANGE_64 | 0x43;

/// Begins to record what is done to tables and TLBs, of all machines. `X1`: a cursor, 0 at first.
///
/// It begins with the first call; each call tells the trace some of what is there by then, which machines' tables hold. With
/// `Continue`, `X1` is the cursor to pass next. `Success`: all is told, or it was before.
///
/// Offered to machines that are granted it. `Busy`: another machine has begun and not told all; passing 0 takes it over from
/// one that has ended. `InvalidParameter`: no such cursor. `NoMemory`: the hypervisor's command line has set no memory aside
/// for a trace.
pub const TRACE_START: u32 = RANGE_64 | 0x50;

/// Stops recording; `Success` also where nothing is recorded. `Busy`: a CPU is at a step of [`TRACE_START`]. `NoMemory`: as there.
pub const TRACE_STOP: u32 = RANGE_64 | 0x51;

/// The first number of the range behind those of calls on memory; [`control`](crate::control) has some of what follows.
pub const END: u32 = RANGE_64 | 0x60;

/// Those that are offered to a machine whose memory its devices reach where it is, with nothing between: they leave it there.
pub const LOOKS: [u32; 5] = [FEATURES, STATISTICS, SURVEY, SELF_CHECK, YIELD];

/// Every function that is offered where the calls are granted.
pub const OFFERED: [u32; 21] = [
    FEATURES,
    STATISTICS,
    SURVEY,
    SELF_CHECK,
    YIELD,
    BALLOON_OUT,
    BALLOON_IN,
    PROTECT,
    SPLIT,
    COLLAPSE,
    MOVE,
    LOG_START,
    LOG_HARVEST,
    LOG_STOP,
    AGE_HARVEST,
    PIN,
    UNPIN,
    DMA_COPY,
    DMA_FILL,
    DMA_CHECKSUM,
    DMA_POLL,
];

/// Every function that is offered besides where the trace is granted.
pub const OF_THE_TRACE: [u32; 2] = [TRACE_START, TRACE_STOP];

/// The calls on a range: what the manual says once of their arguments holds for all of these.
pub const ON_RANGES: [u32; 11] = [
    SURVEY,
    SELF_CHECK,
    BALLOON_OUT,
    BALLOON_IN,
    PROTECT,
    SPLIT,
    COLLAPSE,
    MOVE,
    LOG_START,
    AGE_HARVEST,
    PIN,
];

/// Bytes of the buffer that a bitmap is answered in: a bit for each of 65,536 pages.
pub const BITMAP_BYTES: u64 = 8192;
/// How many handles of pins a machine has.
pub const HANDLES: usize = 256;
/// The most bytes of one transfer.
pub const DMA_MOST: u64 = 256 << 10;
/// How many transfers a machine may have under way.
pub const TRANSFERS: usize = 8;

/// Rights for [`PROTECT`]: `READ`, and any of the others.
pub mod rights {
    /// Data reads.
    pub const READ: u64 = 1;
    /// Data writes.
    pub const WRITE: u64 = 1 << 1;
    /// Instruction fetches.
    pub const EXEC: u64 = 1 << 2;
}

/// How finely a dirty log tells writes apart.
pub mod granularity {
    /// By whatever is mapped: a write to a block counts for all of it.
    pub const AS_MAPPED: u64 = 0;
    /// By pages: blocks are split before the log begins.
    pub const PAGES: u64 = 1;
    /// By pages: a block is split when it is first written, where the hardware keeps no dirty flag.
    pub const PAGES_ON_WRITE: u64 = 2;
}

/// The numbers of [`STATISTICS`].
pub mod statistic {
    /// Faults of the second stage so far.
    pub const FAULTS: u64 = 0;
    /// Pages of 4 KiB that are mapped singly.
    pub const PAGES: u64 = 1;
    /// Blocks of 2 MiB that are mapped.
    pub const BLOCKS_2M: u64 = 2;
    /// Blocks of 1 GiB that are mapped.
    pub const BLOCKS_1G: u64 = 3;
    /// Blocks that were split so far.
    pub const SPLITS: u64 = 4;
    /// Blocks that were made of smaller mappings so far.
    pub const COLLAPSES: u64 = 5;
    /// Leaves that were moved to other memory so far.
    pub const MOVED: u64 = 6;
    /// Bytes in tables.
    pub const TABLE_BYTES: u64 = 7;
    /// How often the pinner of something was asked to let go.
    pub const ASKED: u64 = 8;
    /// Handles of pins that are in use.
    pub const HANDLES: u64 = 9;
    /// Calls so far.
    pub const CALLS: u64 = 10;
    /// Transfers that were completed.
    pub const TRANSFERS: u64 = 11;
    /// Transfers that another CPU has served than the one that asked.
    pub const SERVED_ELSEWHERE: u64 = 12;
    /// Invalidations of translations so far: what each takes of instructions depends on its range.
    pub const INVALIDATIONS: u64 = 13;
    /// How many numbers there are.
    pub const COUNT: u64 = 14;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_a_64_bit_fast_call_of_our_range_and_has_its_own_number() {
        for (n, &call) in OFFERED.iter().enumerate() {
            assert!((RANGE_64..END).contains(&call));
            assert!(!OFFERED[..n].contains(&call));
        }
        assert!(LOOKS.iter().all(|call| OFFERED.contains(call)));
        for call in OF_THE_TRACE {
            assert!((RANGE_64..END).contains(&call) && !OFFERED.contains(&call));
        }
    }
}
