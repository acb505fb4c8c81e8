//! Which CPUs are asked to serve: one word, a bit for each.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, o};
use types::{CpuId, CpuSet};

/// The CPUs that are asked to serve. Everybody may ask; a CPU takes its own.
#[derive(Debug)]
pub struct Asked(AtomicU64);

impl Default for Asked {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Asked {
    /// Asks `cpu`. The caller kicks it, where it is another one.
    pub fn ask(&self, cpu: CpuId) {
        // O193: what there is to be served, before the CPU is asked. Pairs with itself in `take`.
        self.0.fetch_or(CpuSet::EMPTY.with(cpu).bits(), o(193, Release));
    }

    /// Tells whether `cpu` is asked. The CPU itself looks, after every exit.
    #[inline]
    pub fn is_asked(&self, cpu: CpuId) -> bool {
        CpuSet::from_bits(self.0.load(Relaxed)).contains(cpu)
    }

    /// Takes what `cpu` was asked for so far. Tells whether it was. Before its look at what there is to be served.
    pub fn take(&self, cpu: CpuId) -> bool {
        let bit = CpuSet::EMPTY.with(cpu).bits();
        self.0.fetch_and(!bit, o(193, Acquire)) & bit != 0
    }
}

/// Every order of two CPUs' steps, with every value that a load may return: `RUSTFLAGS="--cfg loom"`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{
        sync::{Arc, atomic::AtomicUsize},
        thread,
    };

    #[test]
    fn who_is_asked_to_serve_finds_what_it_was_asked_for() {
        loom::model(|| {
            let (asked, work) = (Arc::new(Asked::default()), Arc::new(AtomicUsize::new(0)));
            let asker = {
                let (asked, work) = (asked.clone(), work.clone());
                thread::spawn(move || {
                    work.store(1, Relaxed);
                    asked.ask(CpuId::BOOT);
                })
            };
            if asked.take(CpuId::BOOT) {
                assert_eq!(work.load(Relaxed), 1, "what it was asked for");
            }
            asker.join().unwrap();
        });
    }
}
