//! What was done, and how it went.

use abi::Status;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::say;

macro_rules! operations {
    ($($operation:ident = $name:literal),* $(,)?) => {
        /// What a vCPU does.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Operation {
            $($operation),*
        }

        const NAMES: &[&str] = &[$($name),*];
    };
}

operations! {
    Access = "access", Split = "split", Collapse = "collapse", Gather = "gather", Move = "move", Out = "balloon-out",
    In = "balloon-in", Protect = "protect", Forbidden = "forbidden-write", Pin = "pin", Unpin = "unpin",
    PinnedMove = "move-of-pinned", Copy = "dma-copy", Fill = "dma-fill", Checksum = "dma-checksum", LogStart = "log-start",
    LogHarvest = "log-harvest", LogStop = "log-stop", Age = "age", Survey = "survey", SelfCheck = "self-check", Yield = "yield",
}

/// The statuses that are told apart, and what they are called.
const STATUSES: [(Status, &str); 13] = [
    (Status::Success, "done"),
    (Status::Continue, "part"),
    (Status::Busy, "busy"),
    (Status::Pinned, "pinned"),
    (Status::Logging, "logging"),
    (Status::NotMapped, "not-mapped"),
    (Status::Uneven, "uneven"),
    (Status::Scattered, "scattered"),
    (Status::WrongSize, "wrong-size"),
    (Status::NoMemory, "no-memory"),
    (Status::NoRoom, "no-room"),
    (Status::NoLog, "no-log"),
    (Status::Denied, "denied"),
];

static COUNTS: [[AtomicU64; STATUSES.len()]; NAMES.len()] =
    [const { [const { AtomicU64::new(0) }; STATUSES.len()] }; NAMES.len()];

/// Counts one. Tells whether such an operation may go so at all.
pub(crate) fn count(operation: Operation, status: Status) -> bool {
    let Some(place) = STATUSES.iter().position(|(known, _)| *known == status) else { return false };
    COUNTS[operation as usize][place].fetch_add(1, Relaxed);
    true
}

/// Counts some that went well.
pub(crate) fn count_done(operation: Operation, number: u64) {
    COUNTS[operation as usize][0].fetch_add(number, Relaxed);
}

/// Says all counts.
pub(crate) fn print() {
    for (counts, name) in COUNTS.iter().zip(NAMES) {
        for (count, (_, status)) in counts.iter().zip(STATUSES) {
            let count = count.load(Relaxed);
            if count > 0 {
                say!("DID {name} {status} {count}");
            }
        }
    }
}
