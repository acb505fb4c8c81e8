//! What each call may answer. The manual (`docs/hypercalls.md`) is checked against this, and so are the answers that tests of
//! the hypervisor get, on the host and from inside a guest.

use crate::{Status, calls, control, share};
use Status::{
    Broken, Busy, Continue, Denied, InvalidParameter, Lent, Logging, NoHandle, NoLog, NoMemory, NoRoom,
    NotMapped, NotMemory, NotSupported, Occupied, Pinned, Scattered, Success, Uneven, WrongSize,
};

/// A call, and what it answers where it is granted.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub function: u32,
    /// Its name.
    pub name: &'static str,
    /// Every status that it may answer with.
    pub answers: &'static [Status],
}

macro_rules! calls {
    ($($module:ident { $($name:ident: $($status:ident)*;)* })*) => {
        /// Every call.
        pub const CALLS: &[Call] = &[
            $($(Call {
                function: $module::$name,
                name: stringify!($name),
                answers: &[$($status),*],
            },)*)*
        ];
    };
}

calls! {
    calls {
        FEATURES: Success NotSupported;
        STATISTICS: Success InvalidParameter;
        SURVEY: Success Continue InvalidParameter NotMemory Busy;
        SELF_CHECK: Success Continue InvalidParameter NotMemory Busy Broken;
        YIELD: Success;
        BALLOON_OUT: Success Continue InvalidParameter NotMemory Busy;
        BALLOON_IN: Success Continue InvalidParameter NotMemory Busy NoMemory;
        PROTECT: Success Continue InvalidParameter NotMemory Busy NoRoom;
        SPLIT: Success Continue InvalidParameter NotMemory Busy;
        COLLAPSE: Success Continue InvalidParameter NotMemory Busy NoMemory Denied Pinned NotMapped Uneven Scattered Logging;
        MOVE: Success Continue InvalidParameter NotMemory Busy NoMemory Denied Pinned WrongSize;
        LOG_START: Success Continue InvalidParameter NotMemory Busy NoMemory Logging;
        LOG_HARVEST: Success Continue InvalidParameter NotMemory Busy NoMemory Denied NoLog;
        LOG_STOP: Success Continue Busy Logging NoLog;
        AGE_HARVEST: Success Continue InvalidParameter NotMemory Busy NoMemory Denied;
        PIN: Success InvalidParameter NotMemory Busy NoMemory Denied NoRoom;
        UNPIN: Success InvalidParameter NoHandle;
        DMA_COPY: Success InvalidParameter NotMemory NoRoom;
        DMA_FILL: Success InvalidParameter NotMemory NoRoom;
        DMA_CHECKSUM: Success InvalidParameter NotMemory NoRoom;
        DMA_POLL: Success Continue Busy NoMemory Denied NoHandle Broken;
        TRACE_START: Success Continue InvalidParameter Busy NoMemory;
        TRACE_STOP: Success Busy NoMemory;
    }
    control {
        CREATE: Success InvalidParameter NoMemory NoRoom;
        START: Success InvalidParameter Busy NoMemory;
        STOP: Success InvalidParameter Busy;
        RESET: Success InvalidParameter Busy;
        DESTROY: Success Continue InvalidParameter Busy Broken;
        STATE: Success InvalidParameter;
    }
    share {
        NUMBER: Success;
        LEND: Success InvalidParameter NotMemory NoRoom Lent;
        GIVE: Success InvalidParameter NotMemory NoRoom Lent;
        FIND: Success NoHandle;
        ACCEPT: Success Continue InvalidParameter NotMemory Busy NoMemory Denied Pinned NotMapped NoHandle Lent Occupied;
        TAKE_BACK: Success Continue Busy NoHandle;
        RETURN: Success Continue Busy NoHandle;
    }
}

/// Tells whether a call may answer with a status. One that is not granted, or that there is not, answers `NotSupported`.
pub fn may(function: u32, status: Status) -> bool {
    let call = CALLS.iter().find(|call| call.function == function);
    status == NotSupported || call.is_some_and(|call| call.answers.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_in_the_table_once() {
        let all = [&calls::OFFERED[..], &calls::OF_THE_TRACE, &control::ALL, &share::ALL];
        let mut functions: [u32; 64] = [0; 64];
        let mut count = 0;
        for &function in all.into_iter().flatten() {
            assert!(!functions[..count].contains(&function), "{function:#x} is in two lists");
            functions[count] = function;
            count += 1;
            let calls = CALLS.iter().filter(|call| call.function == function);
            assert_eq!(calls.count(), 1, "{function:#x}");
        }
        assert_eq!(CALLS.len(), count);
    }

    #[test]
    fn every_answer_is_some_calls_and_stands_once_in_a_call() {
        for &status in Status::ALL {
            assert!(CALLS.iter().any(|call| call.answers.contains(&status)), "{status:?}");
        }
        for call in CALLS {
            for (n, status) in call.answers.iter().enumerate() {
                assert!(!call.answers[..n].contains(status), "{} {status:?}", call.name);
            }
        }
    }

    #[test]
    fn what_there_is_not_is_not_supported() {
        assert!(may(crate::RANGE_64, NotSupported) && !may(crate::RANGE_64, Success));
        assert!(may(calls::PIN, Denied) && !may(calls::PIN, Pinned));
    }
}
