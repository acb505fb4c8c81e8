//! The calls by which machines lend and give each other memory: 64-bit fast calls of the vendor-specific hypervisor range.
//!
//! A machine has them where the manifest grants it the calls of [`crate::calls`], and arguments and results are as there.
//!
//! One machine *offers* a range of its memory to another one, which changes nothing. The other *accepts* the offer, at
//! addresses that it chooses, or does not: nothing comes to a machine that did not ask for it. What is lent is taken back by its
//! owner, or returned, at any time. What is given is the receiver's.
//!
//! Machines know each other by *numbers*: that of the manifest's *n*th machine that is no template, counted from 0, is
//! 0x1_0000 + *n*; that of one made of a template is its handle ([`crate::control`]). A number is never another machine's later.
//!
//! ```text
//! LEND ──▶ offered ──ACCEPT, until Success──▶ lent ──TAKE_BACK or RETURN, until Success──▶ (none)
//! GIVE ──▶ offered ──ACCEPT, until Success──▶ (none: the receiver's)
//! ```
//!
//! A machine that stops or starts again has first taken back what it lent, returned what it borrowed, and withdrawn its offers.

use crate::RANGE_64;

/// Tells a machine its own number. `X1`: the number.
pub const NUMBER: u32 = RANGE_64 | 0x70;

/// Offers to lend a range. `X1`: the first address, `X2`: the length, `X3`: 1 for the other to read, 3 to read and to write,
/// see [`rights`](crate::calls::rights); `X4`: the number of the machine that may accept.
///
/// `X1`: the offer, a number of this machine's that is never another offer's later. There are [`OFFERS`] at a time.
/// `NotMemory`; `InvalidParameter`: also where the range is longer than [`WINDOW_BYTES`], or the other is this machine;
/// `Lent`: part of the range is lent or offered; `NoRoom`.
///
/// Once accepted, page by page, both machines have the memory. The owner's rights stay what they are. Until it comes back it is
/// not pinned, moved, given or lent again, and each round of the owner's dirty log reports it. What the owner balloons out of
/// it stays the other's until it is taken back, and is free then.
pub const LEND: u32 = RANGE_64 | 0x71;

/// Offers to give a range away. As [`LEND`], without `X3` and of any length.
///
/// What is accepted is gone from the giver, which finds zeroed memory there when it touches it again.
pub const GIVE: u32 = RANGE_64 | 0x72;

/// Looks for an offer to this machine. `X1`: the cursor, 0 at first.
///
/// `X1`: the cursor for the next one, `X2`: the number of the machine that offers, `X3`: the offer, `X4`: its length,
/// `X5`: the rights that it lends, or 0 for a gift. `NoHandle`: there is no further one.
pub const FIND: u32 = RANGE_64 | 0x73;

/// Accepts an offer, or the next part of it. `X1`: the number of the machine that offers, `X2`: the offer, `X3`: the address
/// that it is to come to, of whole pages, the same in each call.
///
/// What is lent comes into the window at [`WINDOW`]; what is given, into the machine's own memory, where nothing is mapped
/// (`BALLOON_OUT`). `X1`: how many bytes have come. With `Continue`, and after an error that may pass, call again.
///
/// `NoHandle`: no such offer to this machine, or it is ending; `NotMemory`: of the address; `Occupied`: something is there;
/// `InvalidParameter`: not of whole pages, or not the address at which it began; `Busy`; `NoMemory`: none for a table. Of the
/// owner's next page: `NotMapped`; `Pinned`; `Denied`: the owner has not the rights itself; `Lent`: a loan of it could not be
/// ended, which is a bug of the hypervisor's.
pub const ACCEPT: u32 = RANGE_64 | 0x74;

/// Takes back what was lent, a part of it, or withdraws an offer. `X1`: the offer.
///
/// `X1`: how many bytes are still lent. With `Continue` and `Busy`, call again. From `Success` on the memory is this machine's
/// alone: no CPU can use it by the other's addresses. What was given stays given. `NoHandle`: there is no such offer.
pub const TAKE_BACK: u32 = RANGE_64 | 0x75;

/// Returns what was borrowed, a part of it, or turns an offer down. `X1`: the number of the machine that offers, `X2`: the offer.
///
/// As [`TAKE_BACK`].
pub const RETURN: u32 = RANGE_64 | 0x76;

/// The number behind the last of these.
pub const END: u32 = RANGE_64 | 0x77;

/// How many offers and loans a machine may have under way.
pub const OFFERS: usize = 8;
/// The address of the window in which a machine finds what others lend it.
pub const WINDOW: u64 = 0x1000_0000;
/// Bytes of the window.
pub const WINDOW_BYTES: u64 = 16 << 20;
/// The most bytes that one call brings from one machine to the other.
pub const STEP_BYTES: u64 = 64 << 10;

/// Every function, where the calls are granted.
pub const ALL: [u32; 7] = [NUMBER, LEND, GIVE, FIND, ACCEPT, TAKE_BACK, RETURN];
