//! The model checker's atomics, so that it tries a write of one CPU before *each* earlier look of another.
//!
//! The checker reorders two accesses where it finds that they could come the other way round. It remembers one access for
//! each atomic, the last one. Where a CPU looks and then exchanges, its own look is that last one, and the looks of others
//! before it are forgotten: orders are left out in which it comes first. So each atomic has a mark beside it for each
//! CPU: a look stores to the CPU's own, and a write, first, to everybody else's. These stores order nothing.

use core::hash::{Hash, Hasher};
use core::sync::atomic::Ordering;
use core::sync::atomic::Ordering::Relaxed;
use loom::sync::atomic as checker;

/// The threads of a model that have a mark each; those beyond share the last.
const THREADS: usize = 3;

#[derive(Debug)]
struct Looks([checker::AtomicBool; THREADS]);

impl Looks {
    fn new() -> Self {
        Self(core::array::from_fn(|_| checker::AtomicBool::new(false)))
    }

    fn look(&self) {
        self.0[me()].store(true, Relaxed);
    }

    fn write(&self) {
        let me = me();
        for (thread, look) in self.0.iter().enumerate() {
            if thread != me || thread == THREADS - 1 {
                look.store(true, Relaxed);
            }
        }
    }
}

/// Returns which thread of the model calls.
fn me() -> usize {
    /// Keeps the last number that is hashed, which is the thread's.
    struct Last(usize);

    impl Hasher for Last {
        fn finish(&self) -> u64 {
            self.0 as u64
        }

        fn write(&mut self, _: &[u8]) {}

        fn write_usize(&mut self, number: usize) {
            self.0 = number;
        }
    }

    let mut last = Last(0);
    loom::thread::current().id().hash(&mut last);
    last.0.min(THREADS - 1)
}

macro_rules! atomics {
    ($($name:ident $value:ty;)*) => {$(
        /// The atomic of this name, under the model checker.
        #[derive(Debug)]
        pub struct $name(checker::$name, Looks);

        impl $name {
            /// Makes it.
            pub fn new(value: $value) -> Self {
                Self(checker::$name::new(value), Looks::new())
            }

            /// Reads it.
            pub fn load(&self, order: Ordering) -> $value {
                self.1.look();
                self.0.load(order)
            }

            /// Writes it.
            pub fn store(&self, value: $value, order: Ordering) {
                self.1.write();
                self.0.store(value, order);
            }

            /// Exchanges it.
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.1.write();
                self.0.swap(value, order)
            }

            /// Exchanges it where it is `old`.
            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.1.write();
                self.0.compare_exchange(old, new, success, failure)
            }

            /// Exchanges it where it is `old`, and perhaps not even there.
            pub fn compare_exchange_weak(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.1.write();
                self.0.compare_exchange_weak(old, new, success, failure)
            }

            atomics!(@ $value: fetch_and fetch_or);
        }
    )*};
    (@ $value:ty: $($change:ident)*) => {$(
        /// Changes it, and returns what it was.
        pub fn $change(&self, value: $value, order: Ordering) -> $value {
            self.1.write();
            self.0.$change(value, order)
        }
    )*};
}

macro_rules! numbers {
    ($($name:ident $value:ty;)*) => {
        atomics! { $($name $value;)* }
        $(impl $name {
            atomics!(@ $value: fetch_add fetch_sub fetch_max fetch_min);
        })*
    };
}

atomics! { AtomicBool bool; }
numbers! { AtomicU8 u8; AtomicU32 u32; AtomicU64 u64; AtomicUsize usize; }
