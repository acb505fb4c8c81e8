//! What a call answers in `X0`.

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// The answer of a call, a signed number: zero or more where it did what was asked, or a part of it; negative
        /// where it did not. Minus one and minus three are the calling convention's (DEN 0028, 7.1), the others ours.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(i64)]
        pub enum Status {
            $($(#[$doc])* $name = $value,)*
        }

        impl Status {
            /// Every answer.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the answer that a value of `X0` is; `None` for one that is none.
            pub const fn of(value: u64) -> Option<Self> {
                match value as i64 {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// All of it is done.
    Success = 0,
    /// A bounded part of it is done: call again with the same arguments and the cursor that came in `X1`.
    Continue = 1,
    /// There is no such function, or this machine is not granted it.
    NotSupported = -1,
    /// An argument is not aligned as it must be, not one of its values, or the range is empty or wraps.
    InvalidParameter = -3,
    /// Another CPU is changing the same thing. Nothing is lost: call again with the cursor that came in `X1`.
    Busy = -16,
    /// No memory is free for it, or for the tables that it takes.
    NoMemory = -17,
    /// The range is not all in one piece of this machine's memory.
    NotMemory = -18,
    /// The machine has not the right to that at this address: see `PROTECT`.
    Denied = -19,
    /// The memory at the cursor is pinned. Its pinner has been asked to let go: come back later.
    Pinned = -20,
    /// Nothing is mapped at the cursor.
    NotMapped = -21,
    /// What is mapped at the cursor has another size than this call works on.
    WrongSize = -22,
    /// What is mapped side by side at the cursor cannot become one block: its parts differ in rights, or some are missing.
    Uneven = -23,
    /// The parts of the block at the cursor lie scattered, and were not to be moved.
    Scattered = -24,
    /// A dirty log runs.
    Logging = -25,
    /// No dirty log runs, or its arming is not complete.
    NoLog = -26,
    /// All handles, or all places for transfers, or all ranges of rights are in use.
    NoRoom = -27,
    /// There is no such handle: never given out, or given back.
    NoHandle = -28,
    /// The self-check found at the cursor what must not be.
    Broken = -29,
    /// The memory is lent or borrowed already, or offered.
    Lent = -30,
    /// Something is mapped where it was to come to.
    Occupied = -31,
}

impl Status {
    /// Returns the value for `X0`.
    pub const fn value(self) -> u64 {
        self as i64 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_found_by_its_value() {
        for &status in Status::ALL {
            assert_eq!(Status::of(status.value()), Some(status));
        }
        assert_eq!(Status::of(2), None);
        assert_eq!(Status::of(Status::NotSupported.value()), Some(Status::NotSupported));
        assert_eq!(Status::NotSupported.value(), crate::NOT_SUPPORTED as u64);
    }
}
