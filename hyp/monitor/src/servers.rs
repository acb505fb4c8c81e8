//! The CPUs that serve what guests ask for and do not wait for: transfers, and devices.
//!
//! Each is asked by a bit and a kick, and serves when it has left its guest or is about to idle.
//!
//! Neighbours: the exit loops, which join, look and serve.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::{CpuId, CpuSet};
use vm::service::{Asked, Company};

/// The CPUs that serve.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    /// Those that do.
    servers: AtomicU64,
    /// Those that were asked to.
    asked: Asked,
    /// How often somebody was asked.
    times: AtomicU64,
}

impl Servers {
    /// Notes that `cpu`, which runs this, serves from now on.
    pub(crate) fn join(&self, cpu: CpuId) {
        self.servers.fetch_or(CpuSet::EMPTY.with(cpu).bits(), Relaxed);
    }

    /// Tells whether `cpu` is the only one that serves, and which others do.
    pub(crate) fn company(&self, cpu: CpuId) -> (Company, CpuSet) {
        let others = CpuSet::from_bits(self.servers.load(Relaxed)).without(cpu);
        (if others.is_empty() { Company::Alone } else { Company::Others }, others)
    }

    /// Asks a CPU to serve: another one than `me`, which runs this, where there is one, in turn. That one is to be woken.
    pub(crate) fn ask(&self, me: CpuId, wake: impl FnOnce(CpuId)) {
        let (_, others) = self.company(me);
        let number = self.times.fetch_add(1, Relaxed) % u64::from(others.len().max(1));
        let target = others.iter().nth(number as usize).unwrap_or(me);
        self.asked.ask(target);
        if target != me {
            wake(target);
        }
    }

    /// Has `me`, which runs this, be asked by itself: it has left something.
    pub(crate) fn ask_self(&self, me: CpuId) {
        self.asked.ask(me);
    }

    /// Tells whether `cpu` was asked to serve.
    #[inline]
    pub(crate) fn is_asked(&self, cpu: CpuId) -> bool {
        self.asked.is_asked(cpu)
    }

    /// Takes what `me` was asked for so far, before it looks for what there is.
    pub(crate) fn take(&self, me: CpuId) {
        self.asked.take(me);
    }
}
