//! Owed work: what a change to live entries leaves to be done, and the seam to the CPU that does it.
//!
//! ```text
//! Owed<C> ── issue ──▶ Ticket<C> ── wait ──▶ Quiesced<C>
//! ```
//!
//! The cargo `C` is what must not be used before the work is complete: slots that are still frozen, leaves that were
//! lost, an answer. It rides along and comes out of [`Quiesced`] only. Only this library makes an [`Owed`] with
//! cargo, only [`Owed::issue`] makes a ticket, and only [`Ticket::wait`] makes a [`Quiesced`]: so whoever holds one
//! knows that an implementation of [`Invalidate`] has done the work.

use core::ops::Deref;
use types::sync::mutant;
use types::{Height, Range};

/// What kind of invalidation is owed, weakest first; each includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// New entries where there was nothing: they must be visible to table walkers before the guest runs on.
    /// AArch64: DSB ISHST; an ISB too where the same CPU may return to the guest without an exception return.
    Publish,
    /// Rights were added, or a stricter copy may be cached: this CPU forgets the range. Other CPUs fault and do the
    /// same. AArch64: DSB, non-broadcast TLBI by IPA without level hint, DSB, then stage 1, DSB, ISB.
    Relax,
    /// Leaves were taken away or weakened: every CPU forgets the range. Links to tables may stay cached.
    /// AArch64: DSB, broadcast TLBI by IPA (the last-level form only with a hint), DSB, then stage 1, DSB, ISB.
    Leaves,
    /// Links to tables were taken away or replaced: every CPU forgets the range, and what its walk caches hold of it.
    /// AArch64: as before, never in the last-level form.
    Tables,
}

/// Where an invalidation applies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// A range of addresses, both ends multiples of the granule.
    Range {
        /// The addresses.
        range: Range,
        /// The height of the leaves, where every translation of the range that a TLB may hold and that was changed
        /// is a leaf of this height; `None` where heights are mixed, unknown or pending. An assertion: a wrong one
        /// means no invalidation.
        hint: Option<Height>,
    },
    /// Everything under the space's tag.
    Tag,
}

/// What has to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Work {
    /// What kind of invalidation.
    pub class: Class,
    /// Where.
    pub scope: Scope,
}

impl Work {
    /// Returns the least work that includes both. Ranges become the range around both.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let scope = match (self.scope, other.scope) {
            (Scope::Range { range: a, hint: ha }, Scope::Range { range: b, hint: hb }) => {
                let start = a.start().min(b.start());
                let end = a.end().max(b.end());
                match Range::new(start, end) {
                    Ok(range) => Scope::Range {
                        range,
                        hint: if ha == hb || mutant("hint-on-a-mixed-range") { ha } else { None },
                    },
                    Err(_) => Scope::Tag,
                }
            }
            _ => Scope::Tag,
        };
        Self { class: self.class.max(other.class), scope }
    }
}

/// The seam to the CPU: how one space's translations are invalidated. Arm broadcasts, then waits; x86 interrupts,
/// then waits. Two steps, so that several invalidations, or one and a grace period, can be under way together.
///
/// One value stands for one space and one kind of machine. The space's tag (VMID) is read in `begin`, after the
/// barrier that follows the entry writes, and never before (docs/memory-ordering.md).
pub trait Invalidate {
    /// An invalidation under way.
    type Pending;

    /// Makes all earlier entry writes of this CPU visible to table walkers, then starts `work`.
    fn begin(&self, work: Work) -> Self::Pending;

    /// As [`Invalidate::begin`], for tables that an IOMMU walks which [listens](crate::Hears::Broadcasts) to what CPUs
    /// broadcast: by instructions that reach it, also where no other CPU has ever entered the space.
    ///
    /// As it stands here it is for implementations of which every `begin` of [`Class::Leaves`] and up is such a broadcast.
    fn begin_broadcast(&self, work: Work) -> Self::Pending {
        self.begin(work)
    }

    /// Waits until the work is complete: on every CPU that `work` concerns, no access uses an old translation any
    /// more, and none will. Waits for hardware only, never for software that may be waiting for us.
    fn complete(&self, pending: Self::Pending);

    /// Makes all earlier entry writes of this CPU visible to table walkers: all that entries owe which were absent before.
    /// Ends where `begin` and `complete` of such [work](Class::Publish) on `range` do.
    #[inline(always)]
    fn publish(&self, range: Range) {
        let work = Work { class: Class::Publish, scope: Scope::Range { range, hint: None } };
        self.complete(self.begin(work));
    }

    /// Reads a clock that never goes back, for the statistics of how long entries stay invalid. In ticks of any one
    /// length; without a clock always 0.
    fn ticks(&self) -> u64 {
        0
    }

    /// Tells whether every CPU's hardware lists the pages whose dirty flags it sets (Intel's PML). Then each hands on what is in
    /// its list before it says that it has left a guest.
    fn lists_writes(&self) -> bool {
        false
    }

    /// Waits until what was in the list of any CPU has been handed on: has those that are in a guest leave it once. Called
    /// outside of any reading.
    fn hand_on_lists(&self) {}
}

impl<T: Invalidate + ?Sized> Invalidate for &T {
    type Pending = T::Pending;

    fn begin(&self, work: Work) -> Self::Pending {
        T::begin(self, work)
    }

    fn begin_broadcast(&self, work: Work) -> Self::Pending {
        T::begin_broadcast(self, work)
    }

    fn complete(&self, pending: Self::Pending) {
        T::complete(self, pending);
    }

    #[inline(always)]
    fn publish(&self, range: Range) {
        T::publish(self, range);
    }

    fn ticks(&self) -> u64 {
        T::ticks(self)
    }

    fn lists_writes(&self) -> bool {
        T::lists_writes(self)
    }

    fn hand_on_lists(&self) {
        T::hand_on_lists(self);
    }
}

/// Work that a change to live entries owes, with what must not be used before it is done.
#[must_use = "TLBs may hold what the tables no longer say"]
#[derive(Debug)]
pub struct Owed<C = ()> {
    work: Work,
    cargo: C,
}

impl Owed {
    /// Owes this CPU's forgetting of `range`: for a fault that finds the entry sufficient, since another CPU has
    /// added the right meanwhile and this one still holds the stricter copy.
    pub const fn relax(range: Range) -> Self {
        Self { work: Work { class: Class::Relax, scope: Scope::Range { range, hint: None } }, cargo: () }
    }

    /// Owes that table walkers see what was written last in `range`, by this CPU or by whom it has waited for: before somebody
    /// walks there who does not come again where he meets what was there before.
    pub const fn publication(range: Range) -> Self {
        Self { work: Work { class: Class::Publish, scope: Scope::Range { range, hint: None } }, cargo: () }
    }

    /// Owes everything under the space's tag: before the tag or the root is used anew, or the space dies.
    pub const fn everything() -> Self {
        Self { work: Work { class: Class::Tables, scope: Scope::Tag }, cargo: () }
    }
}

impl<C> Owed<C> {
    pub(crate) const fn new(work: Work, cargo: C) -> Self {
        Self { work, cargo }
    }

    /// Returns what has to be done.
    pub const fn work(&self) -> Work {
        self.work
    }

    /// Joins two debts into one, for a batch with one invalidation.
    pub fn merge<D>(self, other: Owed<D>) -> Owed<(C, D)> {
        Owed { work: self.work.merge(other.work), cargo: (self.cargo, other.cargo) }
    }

    /// Starts the work.
    pub fn issue<I: Invalidate>(self, cpu: &I) -> Ticket<'_, C, I> {
        Ticket { cpu, pending: cpu.begin(self.work), cargo: self.cargo }
    }

    /// Starts the work and waits for it.
    #[inline(always)]
    pub fn discharge<I: Invalidate>(self, cpu: &I) -> Quiesced<C> {
        self.issue(cpu).wait()
    }
}

/// Work under way, with whoever has begun it: it is waited for on that CPU and for that space, and on no other.
#[must_use = "the invalidation is not complete before it is waited for"]
#[derive(Debug)]
pub struct Ticket<'i, C, I: Invalidate> {
    cpu: &'i I,
    pending: I::Pending,
    cargo: C,
}

impl<C, I: Invalidate> Ticket<'_, C, I> {
    /// Waits until the work is complete.
    pub fn wait(self) -> Quiesced<C> {
        self.cpu.complete(self.pending);
        Quiesced(self.cargo)
    }
}

/// What came out of a change, with proof that the invalidation it owed is complete.
#[derive(Debug)]
pub struct Quiesced<C>(C);

impl<C> Quiesced<C> {
    /// Returns the cargo and gives up the proof.
    pub fn into_inner(self) -> C {
        self.0
    }

    /// For what an invalidation and a grace period freed some steps ago.
    pub(crate) fn long_ago(cargo: C) -> Self {
        Self(cargo)
    }

    /// For parts of a cargo that has come out: the proof holds for each part.
    pub(crate) fn part<D>(&self, cargo: D) -> Quiesced<D> {
        Quiesced(cargo)
    }
}

impl<C> Deref for Quiesced<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use types::Ipa;

    fn range(start: u64, end: u64) -> Range {
        Range::new(Ipa::new(start), Ipa::new(end)).expect("start is below end")
    }

    fn leaves(start: u64, end: u64, hint: Option<Height>) -> Work {
        Work { class: Class::Leaves, scope: Scope::Range { range: range(start, end), hint } }
    }

    #[test]
    fn merging_takes_the_stronger_class_and_the_range_around_both() {
        let tables = Work { class: Class::Tables, ..leaves(0x20_0000, 0x40_0000, None) };
        let merged = leaves(0x1000, 0x2000, Some(Height::PAGE)).merge(tables);
        assert_eq!(merged.class, Class::Tables);
        assert_eq!(merged.scope, Scope::Range { range: range(0x1000, 0x40_0000), hint: None });
    }

    #[test]
    fn a_hint_survives_only_where_both_have_it() {
        let page = Some(Height::PAGE);
        let Scope::Range { hint, .. } = leaves(0, 0x1000, page).merge(leaves(0x1000, 0x2000, page)).scope
        else {
            panic!("two ranges make a range");
        };
        assert_eq!(hint, page);
        let block = Some(Height::new(1));
        let Scope::Range { hint, .. } =
            leaves(0, 0x1000, page).merge(leaves(0x20_0000, 0x40_0000, block)).scope
        else {
            panic!("two ranges make a range");
        };
        assert_eq!(hint, None);
    }

    #[test]
    fn the_whole_tag_swallows_every_range() {
        assert_eq!(Owed::everything().work().merge(leaves(0, 0x1000, None)).scope, Scope::Tag);
    }

    #[derive(Default)]
    struct Log(RefCell<Vec<&'static str>>);

    impl Invalidate for Log {
        type Pending = ();

        fn begin(&self, _: Work) {
            self.0.borrow_mut().push("begin");
        }

        fn complete(&self, (): ()) {
            self.0.borrow_mut().push("complete");
        }
    }

    #[test]
    fn cargo_comes_out_after_the_work_is_complete() {
        let cpu = Log::default();
        let ticket = Owed::new(leaves(0, 0x1000, None), 7).issue(&cpu);
        assert_eq!(*cpu.0.borrow(), ["begin"]);
        let done = ticket.wait();
        assert_eq!((*cpu.0.borrow()).as_slice(), ["begin", "complete"]);
        assert_eq!(done.into_inner(), 7);
    }
}
