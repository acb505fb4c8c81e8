//! The calls by which one machine makes, runs and ends others: 64-bit fast calls of the vendor-specific hypervisor range.
//!
//! The machine that the manifest makes `controller` has them. Arguments and results are as in [`crate::calls`]: `X0` is a
//! [`Status`](crate::Status) afterwards, `X1` a result, zero where none is named. `NotSupported` where the caller is no
//! controller.
//!
//! A machine is made of a *template*, which is a machine in the manifest that does not start by itself; it has a *handle*
//! from then on, which is never another's. `InvalidParameter` where a handle is nobody's (any more).
//!
//! ```text
//! CREATE ──▶ off ──START──▶ on ──STOP, or by itself──▶ off ──DESTROY, until Success──▶ (nobody)
//! ```

use crate::RANGE_64;

/// Makes a machine of template number `X1`, counted from 0 in the manifest's order. It is off.
///
/// `X1`: its handle. `InvalidParameter`: there is no such template; `NoMemory`: its memory would not fit beside that of
/// the other machines; `NoRoom`: there are as many machines, or as many vCPUs on a CPU, as there can be.
pub const CREATE: u32 = RANGE_64 | 0x60;

/// Loads machine `X1`, which is off, and turns it on. `Busy`: it is not off, or its end has begun; `NoMemory`: it could not be
/// loaded.
pub const START: u32 = RANGE_64 | 0x61;

/// Turns machine `X1` off, wherever it is. It is off when [`STATE`] says so. Does nothing where it is off. `Busy`: its end has
/// begun.
pub const STOP: u32 = RANGE_64 | 0x62;

/// Restarts machine `X1`, as its own reset does. Does nothing where it is off. `Busy`: its end has begun.
pub const RESET: u32 = RANGE_64 | 0x63;

/// Ends machine `X1`: does a bounded step of it. `Continue`: call again; `Busy`: another CPU does a step, or the machine's
/// vCPUs are on their way out: call again; `Success`: it is gone, and all that it had has come back; `Broken`: it is
/// gone, and some of what it had has not come back, which is a bug of the hypervisor's.
///
/// A machine that is on is turned off first.
pub const DESTROY: u32 = RANGE_64 | 0x64;

/// Tells the state of machine `X1`. `X1`: see [`state`].
pub const STATE: u32 = RANGE_64 | 0x65;

/// Every function, where the machine is controller.
pub const ALL: [u32; 6] = [CREATE, START, STOP, RESET, DESTROY, STATE];

/// What a machine does.
pub mod state {
    /// It is off, or stopped by itself.
    pub const OFF: u64 = 0;
    /// It is on.
    pub const ON: u64 = 1;
    /// Its end has begun.
    pub const ENDING: u64 = 2;
}
