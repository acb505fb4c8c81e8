//! The control page: the calls' registers in the machine's address space, for who cannot execute HVC.
//!
//! One register file for the whole machine. Write the function and the arguments, then anything to [`GO`]; when that write
//! is complete, the results are there. Whoever shares the page takes turns.
//!
//! Every register has eight bytes and is read and written with accesses of eight bytes, or of four to either half. Other
//! accesses read zero and write nothing.

/// Where the page is, in the machine's addresses.
pub const BASE: u64 = 0x0910_0000;
/// Where it is for a machine that has all of a PC: the last page of the megabyte in which devices' writes are interrupts (SDM
/// 3A, 12.11.1). No device has registers there, and a CPU none but its local APIC's, which are in the first page.
pub const BASE_OF_PRIMARY: u64 = 0xfeef_f000;
/// Bytes of the page.
pub const SIZE: u64 = 0x1000;

/// Read only: [`MAGIC`].
pub const ID: u64 = 0x00;
/// Read only: the revision of the calls, the major number in bits 31:16, the minor one in bits 15:0.
pub const REVISION: u64 = 0x08;
/// The function's number, as in `W0`.
pub const FUNCTION: u64 = 0x10;
/// The first of [`ARGUMENTS`] arguments, as in `X1` on.
pub const ARGUMENT: u64 = 0x18;
/// Write only: makes the call. Reads zero.
pub const GO: u64 = 0x48;
/// Read only: the status of the last call, as in `X0`; zero before the first.
pub const STATUS: u64 = 0x50;
/// Read only: the first of [`RESULTS`] results of the last call, as in `X1` on.
pub const RESULT: u64 = 0x58;

/// How many arguments a call has.
pub const ARGUMENTS: usize = 6;
/// How many results a call has, besides its status.
pub const RESULTS: usize = 5;

/// What [`ID`] reads: "mezzanin", the first letter in the lowest byte.
pub const MAGIC: u64 = u64::from_le_bytes(*b"mezzanin");
