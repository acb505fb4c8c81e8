//! The style of interrupts, where CPUs say when they run a guest and when they do not: for who keeps track of a whole
//! machine's CPUs and tags ([`Fleet`](super::Fleet)).
//!
//! ```text
//! changed ─(DSB of each writer)→ visible ─(each CPU that may hold it has forgotten, or runs no guest)→ may be relied on
//! ```
//!
//! Who relies on it while a CPU is outside that may hold it says by that: *this CPU forgets before it runs the guest again*.
//! Only then is that so. Before that the CPU may come and go as it likes, with what it holds: who has changed the entry may
//! not have asked anybody yet. So a cleaning is not clean as soon as all are outside, but settled where somebody needs it to be,
//! and the CPUs that were outside are in debt from then on.

use super::cleaning::Cleaning;
use super::{Judge, Style};
use stage2::Format;
use types::{CpuId, CpuSet, Pa};

/// What CPUs outside have to do before they run a guest again, since somebody relies on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Debts {
    /// Those that have to forget.
    pub(crate) all: CpuSet,
    /// Those of them that were in the middle of forgetting when the change became visible: that does not count.
    pub(crate) anew: CpuSet,
}

/// How much of what it holds of a space a CPU has forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Forgot {
    /// All of it.
    All,
    /// What it held under one tag, and it holds something under another.
    Part,
}

impl Default for Debts {
    fn default() -> Self {
        Self { all: CpuSet::EMPTY, anew: CpuSet::EMPTY }
    }
}

impl<F: Format> Judge<F> {
    /// The same, on CPUs that are made to leave by interrupts and say so.
    pub(crate) fn with_exits(self) -> Self {
        Self { style: Style::InterruptArm, is_told: true, ..self }
    }

    /// Tells whether CPUs say when they run a guest.
    pub(super) fn says_exits(&self) -> bool {
        self.is_told && self.style != Style::Broadcast
    }

    /// A CPU runs a guest of the space.
    pub(crate) fn comes(&mut self, cpu: CpuId) {
        self.inside = self.inside.with(cpu);
    }

    /// It does not any more.
    pub(crate) fn goes(&mut self, cpu: CpuId) {
        self.inside = self.inside.without(cpu);
    }

    /// A CPU begins to forget all that it holds of the space.
    pub(crate) fn forgets(&mut self, cpu: CpuId) {
        self.emptying = self.emptying.with(cpu);
    }

    /// It has.
    pub(crate) fn forgot(&mut self, cpu: CpuId, what: Forgot) {
        self.emptying = self.emptying.without(cpu);
        if what == Forgot::All {
            self.each_cleaning(|cleaning, _| cleaning.forgotten_by(cpu));
        }
    }

    /// Takes what CPUs have come to owe.
    pub(crate) fn take_debts(&self) -> Debts {
        self.debts.take()
    }

    /// Tells whether no CPU can use what an entry was, and none will: for who relies on that.
    pub(super) fn is_settled(&self, cleaning: &Cleaning) -> bool {
        if cleaning.is_clean() || !self.says_exits() {
            return cleaning.is_clean();
        }
        let Some((holders, late)) = cleaning.outside_alone(self.inside) else { return false };
        let Debts { all, anew } = self.debts.get();
        let with = |set: CpuSet, more: u64| CpuSet::from_bits(set.bits() | more);
        let anew = with(anew, late.bits() & holders.bits());
        self.debts.set(Debts { all: with(all, holders.bits()), anew });
        true
    }

    /// Tells whether an entry owes nothing, and forgets what it owed where that is settled.
    pub(super) fn has_settled(&mut self, key: (Pa, usize)) -> bool {
        let settled = self.unclean.get(&key).is_none_or(|unclean| self.is_settled(&unclean.cleaning));
        if settled {
            self.unclean.remove(&key);
        }
        settled
    }

    /// Forgets what a CPU's step has settled: [`Judge::step_end`] found nothing that it owes.
    pub(super) fn forget_settled(&mut self, cpu: CpuId) {
        if self.says_exits() {
            let linked = &self.linked;
            self.unclean.retain(|key, unclean| unclean.cleaning.by != cpu || !linked.contains_key(&key.0));
        }
    }
}
