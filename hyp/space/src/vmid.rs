//! The allocator of VMIDs: which tag a space's translations have in the TLBs, when there are more spaces than tags.
//!
//! A tag is a *generation* and a VMID. Within a generation no VMID is given out twice. When they run out, a new
//! generation begins (*rollover*): every CPU's TLB is emptied of all tags, and every space gets a new VMID when it next
//! runs. By an instruction that reaches all of them, at once; or, where CPUs are made to forget by interrupts, each by its
//! own CPU, before that runs anything again: until then nobody uses what is in it. Only what a CPU is using at that moment keeps its VMID over the rollover, for the same space, since that CPU
//! goes on filling its TLB under it.
//!
//! * A CPU is *using* a VMID from [`Vmids::activate`] to [`Vmids::deactivate`]: it runs the space.
//! * It is *borrowing* one from [`Vmids::borrow_for`] to [`Vmids::return_borrowed`]: it invalidates another space's
//!   translations, and loads that space's root and VMID for it. While it does, its table walker may fill the TLB under
//!   that VMID, so the VMID must not become another space's meanwhile.
//!
//! A VMID that an IOMMU's stream table names is *pinned*, from [`Vmids::pin`] to [`Vmids::unpin`]: it stays its space's own
//! over every rollover, whether a CPU uses it or not. There is a bounded number of pins.
//!
//! The invalidation of a space's translations reads the VMID only after the barrier that follows the entry writes; a
//! space that gets a new VMID does a full barrier before it runs. So of the two, one sees the other: either the new VMID
//! is invalidated, or its first walk sees the new entries.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, Mutex, full_barrier, met, mutant, o, window};
use types::{CpuId, MAX_CPUS, Vmid};

/// The CPUs that there is a place for. A model checker's threads are few, and its atomics large.
const SEATS: usize = if cfg!(loom) { 2 } else { MAX_CPUS };

/// The most VMIDs that are pinned at once.
pub const MAX_PINNED: usize = if cfg!(loom) { 1 } else { 32 };

/// No further VMID can be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoVmids;

/// How many bits this machine's VMIDs have (ID_AA64MMFR1_EL1.VMIDBits). The least of all CPUs counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmidBits {
    /// 255 spaces between rollovers.
    Eight,
    /// 65,535 spaces between rollovers.
    Sixteen,
}

/// Who empties the TLBs when a generation begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Emptied {
    /// Whoever begins it, all of them.
    AtOnce,
    /// Each CPU its own, before it runs anything under a VMID of that generation.
    EachByItsOwn,
}

/// A generation and a VMID in one word: `generation << 16 | VMID`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp(u64);

impl Stamp {
    /// Of a space that never ran. Of a CPU's slot: a rollover has been here.
    const NONE: Self = Self(0);
    /// Of a CPU's slot: it uses no VMID.
    const IDLE: Self = Self(1);
    const FIRST_GENERATION: u64 = 1;

    const fn new(generation: u64, vmid: u16) -> Self {
        Self(generation << 16 | vmid as u64)
    }

    const fn generation(self) -> u64 {
        self.0 >> 16
    }

    const fn vmid(self) -> Vmid {
        Vmid(self.0 as u16)
    }

    /// Tells whether this is a VMID at all.
    const fn is_some(self) -> bool {
        self.generation() >= Self::FIRST_GENERATION
    }
}

/// One space's tag: which VMID it has, and since when.
#[derive(Debug)]
pub struct Tag(AtomicU64);

impl Tag {
    /// Makes the tag of a space that has never run.
    pub fn new() -> Self {
        Self(AtomicU64::new(Stamp::NONE.0))
    }

    /// Returns a copy, under which a space that never runs again is invalidated for the last time when it is taken apart.
    pub fn last(&self) -> Self {
        Self(AtomicU64::new(self.load().0))
    }

    fn load(&self) -> Stamp {
        Stamp(self.0.load(Relaxed))
    }
}

impl Default for Tag {
    fn default() -> Self {
        Self::new()
    }
}

/// The VMIDs of the machine.
#[derive(Debug)]
pub struct Vmids {
    /// The greatest VMID.
    last: u16,
    emptied: Emptied,
    generation: AtomicU64,
    /// What each CPU runs under.
    active: [AtomicU64; SEATS],
    /// What each CPU invalidates under.
    borrowed: [AtomicU64; SEATS],
    slow: Mutex<Slow>,
}

/// What the slow path changes.
#[derive(Debug)]
struct Slow {
    /// The next VMID of this generation; beyond `last` when they have run out.
    next: u32,
    /// What was in use at the last rollover, each with the stamp that its space has now.
    reserved: [Stamp; 2 * SEATS],
    pinned: [Pinned; MAX_PINNED],
}

/// A VMID that stays its space's own over rollovers.
#[derive(Clone, Copy, Debug)]
struct Pinned {
    /// The stamp that its space has now; [`Stamp::NONE`] where nothing is pinned here.
    stamp: Stamp,
    /// How often it is pinned. At zero it is kept still until this generation has passed over it.
    pins: u32,
}

impl Pinned {
    const NOBODY: Self = Self { stamp: Stamp::NONE, pins: 0 };
}

impl Vmids {
    /// Makes the allocator of a machine with VMIDs of that many bits.
    pub fn new(bits: VmidBits) -> Self {
        Self::up_to(match bits {
            VmidBits::Eight => u16::from(u8::MAX),
            VmidBits::Sixteen => u16::MAX,
        })
    }

    fn up_to(last: u16) -> Self {
        Self {
            last,
            emptied: Emptied::AtOnce,
            generation: AtomicU64::new(Stamp::FIRST_GENERATION),
            active: core::array::from_fn(|_| AtomicU64::new(Stamp::IDLE.0)),
            borrowed: core::array::from_fn(|_| AtomicU64::new(Stamp::IDLE.0)),
            slow: Mutex::new(Slow {
                next: 1,
                reserved: [Stamp::NONE; 2 * SEATS],
                pinned: [Pinned::NOBODY; MAX_PINNED],
            }),
        }
    }

    /// The same, for CPUs that no instruction of another one reaches: `flush` is then called by each, after a rollover, and
    /// empties the TLB of the CPU that calls it.
    #[must_use]
    pub fn emptied_by_each(self) -> Self {
        Self { emptied: Emptied::EachByItsOwn, ..self }
    }

    /// Returns how often a new generation has begun.
    pub fn rollovers(&self) -> u64 {
        self.generation.load(Relaxed) - Stamp::FIRST_GENERATION
    }

    /// Returns the VMID under which the space of `tag` is to run on `cpu` now, and notes that it does. Called by that
    /// CPU, before each time it loads the space's root.
    ///
    /// `flush` empties all CPUs' TLBs of all guests' translations, and waits until that is complete (AArch64:
    /// `DSB ISHST; TLBI ALLE1IS; DSB ISH; ISB`). It is called at a rollover, with a lock held: it waits for hardware only.
    /// Where [each CPU empties its own](Vmids::emptied_by_each), it is called by every CPU once after a rollover (AArch64:
    /// `TLBI ALLE1; DSB NSH; ISB`).
    pub fn activate(&self, cpu: CpuId, tag: &Tag, flush: impl FnOnce()) -> Vmid {
        let stamp = tag.load();
        let active = &self.active[cpu.index()];
        if stamp.generation() == self.generation.load(Relaxed) {
            let was = active.load(Relaxed);
            // A rollover takes what is here and leaves nothing: then this fails, and the slow path finds out. Where it
            // comes later, it takes this stamp.
            if was != Stamp::NONE.0 && active.compare_exchange(was, stamp.0, Relaxed, Relaxed).is_ok() {
                return stamp.vmid();
            }
        }
        self.activate_slowly(cpu, tag, flush)
    }

    fn activate_slowly(&self, cpu: CpuId, tag: &Tag, flush: impl FnOnce()) -> Vmid {
        let mut slow = self.slow.lock();
        let mut flush = Some(flush);
        let mut empty = |who| {
            if let Some(flush) = flush.take_if(|_| who == self.emptied) {
                flush();
            }
        };
        let stamp = self.current(&mut slow, tag, || empty(Emptied::AtOnce));
        let active = &self.active[cpu.index()];
        // A rollover, our own or another's, has been here since this CPU ran anything.
        if Stamp(active.load(Relaxed)) == Stamp::NONE && !mutant("own-tlb-not-emptied") {
            empty(Emptied::EachByItsOwn);
        }
        active.store(stamp.0, Relaxed);
        // O51: the VMID can be seen before the first walk under it. Pairs with the barrier between entry writes and the
        // look at the tag in an invalidation.
        full_barrier(51);
        stamp.vmid()
    }

    /// Returns the stamp of a space in this generation, a new one where it has none.
    fn current(&self, slow: &mut Slow, tag: &Tag, flush: impl FnOnce()) -> Stamp {
        let stamp = tag.load();
        if stamp.generation() == self.generation.load(Relaxed) {
            return stamp;
        }
        let stamp = self.renew(slow, stamp, flush);
        // Relaxed: a rollover sends every CPU through this lock before it runs anything, so who sees the VMID has the
        // rollover behind it that made it free.
        tag.0.store(stamp.0, Relaxed);
        stamp
    }

    /// Gives the space of `tag` a VMID that it keeps until [`Vmids::unpin`], over every rollover, and returns it. Each pin is
    /// given back by itself. `flush` as for [`Vmids::activate`]; where each CPU empties its own TLB, it is not called.
    ///
    /// # Errors
    /// [`NoVmids`] where [`MAX_PINNED`] VMIDs are pinned, or a quarter of all that there are.
    pub fn pin(&self, tag: &Tag, flush: impl FnOnce()) -> Result<Vmid, NoVmids> {
        let mut slow = self.slow.lock();
        let stamp = tag.load();
        let at = |slow: &Slow, stamp: Stamp| {
            slow.pinned.iter().position(|pinned| pinned.stamp == stamp && stamp.is_some())
        };
        let most = usize::from(self.last / 4);
        let next = slow.next;
        let is_free = |pinned: &Pinned| pinned.pins == 0 && u32::from(pinned.stamp.vmid().0) < next;
        let free = slow.pinned.iter().take(most).position(is_free);
        let place = at(&slow, stamp).or(free).ok_or(NoVmids)?;
        let stamp = self.current(&mut slow, tag, || match self.emptied {
            Emptied::AtOnce => flush(),
            Emptied::EachByItsOwn => {}
        });
        // A rollover may have kept it under another stamp, and given up places.
        let place = at(&slow, stamp).unwrap_or(place);
        let pinned = &mut slow.pinned[place];
        *pinned = Pinned { stamp, pins: pinned.pins + 1 };
        full_barrier(51); // O51, for the IOMMU's walks
        Ok(stamp.vmid())
    }

    /// Gives back a pin of the VMID of `tag`: the IOMMU that walked under it is off, and holds nothing under it.
    pub fn unpin(&self, tag: &Tag) {
        let mut slow = self.slow.lock();
        // A space with an old stamp that is no longer pinned would count as one that no TLB holds anything of. This one may
        // have been borrowed since the rollover.
        if tag.load().generation() != self.generation.load(Relaxed)
            && let Some(kept) = self.keep(&mut slow, tag.load())
        {
            tag.0.store(kept.0, Relaxed); // the VMID is the same
        }
        let stamp = tag.load();
        if let Some(pinned) = slow.pinned.iter_mut().find(|pinned| pinned.stamp == stamp) {
            pinned.pins = pinned.pins.saturating_sub(1);
        }
    }

    /// Notes that `cpu` runs no space any more, so that no VMID is kept for it over a rollover.
    pub fn deactivate(&self, cpu: CpuId) {
        let active = &self.active[cpu.index()];
        let was = active.load(Relaxed);
        if was != Stamp::NONE.0 {
            // A rollover in between leaves nothing here, and that must stay: it sends this CPU to the slow path.
            let _ = active.compare_exchange(was, Stamp::IDLE.0, Relaxed, Relaxed);
        }
    }

    /// Returns the VMID under which TLBs may hold translations of the space of `tag`, and keeps it from becoming
    /// another's until `cpu` returns it. `None` where no TLB can hold any that somebody will use: the space has not run
    /// since the last rollover, or never. Called by that CPU, after the barrier that follows its entry writes.
    pub fn borrow_for(&self, cpu: CpuId, tag: &Tag) -> Option<Vmid> {
        let stamp = tag.load();
        if !stamp.is_some() {
            return None;
        }
        let borrowed = &self.borrowed[cpu.index()];
        window();
        borrowed.store(stamp.0, Relaxed);
        // O52: what we borrow can be seen before we look whether it is of this generation. Pairs with O53.
        full_barrier(52);
        window();
        if stamp.generation() == self.generation.load(Relaxed) {
            return Some(stamp.vmid());
        }
        met("an invalidation met a rollover");
        let slow = self.slow.lock();
        let stamp = tag.load();
        let current = stamp.generation() == self.generation.load(Relaxed);
        if current || slow.keeps(stamp) {
            borrowed.store(stamp.0, Relaxed);
            Some(stamp.vmid())
        } else {
            borrowed.store(Stamp::IDLE.0, Relaxed);
            None
        }
    }

    /// Notes that `cpu` has its own root and VMID loaded again.
    pub fn return_borrowed(&self, cpu: CpuId) {
        // O54: we are done with the VMID before a rollover can see that. Pairs with O53's loads.
        self.borrowed[cpu.index()].store(Stamp::IDLE.0, o(54, Release));
    }

    /// Gives a space whose stamp is old a new one.
    fn renew(&self, slow: &mut Slow, old: Stamp, flush: impl FnOnce()) -> Stamp {
        if let Some(kept) = self.keep(slow, old) {
            return kept;
        }
        if let Some(vmid) = self.next_free(slow) {
            return Stamp::new(self.generation.load(Relaxed), vmid);
        }
        self.roll_over(slow);
        if !mutant("rollover-without-flush") {
            flush();
        }
        // This rollover may have found the old stamp in use.
        self.keep(slow, old).unwrap_or_else(|| {
            let vmid = self.next_free(slow).unwrap_or(self.last); // fewer are reserved than there are
            Stamp::new(self.generation.load(Relaxed), vmid)
        })
    }

    /// Keeps the VMID of a stamp that was in use over the last rollover, and so is its space's own still.
    fn keep(&self, slow: &mut Slow, old: Stamp) -> Option<Stamp> {
        if !old.is_some() || !slow.keeps(old) {
            return None;
        }
        let kept = Stamp::new(self.generation.load(Relaxed), old.vmid().0);
        for reserved in slow.reserved.iter_mut().filter(|reserved| **reserved == old) {
            *reserved = kept;
        }
        for pinned in slow.pinned.iter_mut().filter(|pinned| pinned.stamp == old) {
            pinned.stamp = kept;
        }
        // Who borrows it is to be found under the new stamp at the next rollover. Who is just about to will find its
        // own out of date, and come to this lock.
        for borrowed in &self.borrowed {
            let _ = borrowed.compare_exchange(old.0, kept.0, Relaxed, Relaxed);
        }
        Some(kept)
    }

    fn next_free(&self, slow: &mut Slow) -> Option<u16> {
        while let Ok(vmid) = u16::try_from(slow.next) {
            if vmid > self.last {
                return None;
            }
            slow.next += 1;
            let taken = |stamp: Stamp| stamp.is_some() && stamp.vmid().0 == vmid;
            if !slow.kept().any(taken) {
                return Some(vmid);
            }
        }
        None
    }

    /// Begins a generation: what CPUs are using is reserved, all other VMIDs are free once the TLBs are empty.
    fn roll_over(&self, slow: &mut Slow) {
        let generation = self.generation.load(Relaxed) + 1;
        self.generation.store(generation, Relaxed);
        // O53: the new generation can be seen before we look who is borrowing. Pairs with O52.
        full_barrier(53);
        let (running, borrowing) = slow.reserved.split_at_mut(SEATS);
        for (reserved, active) in running.iter_mut().zip(&self.active) {
            match Stamp(active.swap(Stamp::NONE.0, Relaxed)) {
                Stamp::NONE => {} // not activated since the last rollover: runs what was reserved then
                _ if mutant("running-not-reserved") => *reserved = Stamp::NONE,
                stamp => {
                    if stamp.is_some() {
                        met("a rollover met a VM that runs");
                    }
                    *reserved = stamp;
                }
            }
        }
        for (reserved, borrowed) in borrowing.iter_mut().zip(&self.borrowed) {
            let stamp = Stamp(borrowed.load(o(53, Acquire)));
            if stamp.is_some() {
                met("a rollover met a tag that is borrowed");
            }
            *reserved = if mutant("borrowed-not-reserved") { Stamp::NONE } else { stamp };
        }
        for pinned in slow.pinned.iter_mut().filter(|pinned| pinned.pins == 0) {
            *pinned = Pinned::NOBODY;
        }
        slow.next = 1;
    }
}

impl Slow {
    /// Goes through the stamps whose VMIDs go to no other space in this generation.
    fn kept(&self) -> impl Iterator<Item = Stamp> {
        let pinned = self.pinned.iter().map(|pinned| pinned.stamp);
        let pinned = pinned.filter(|_| !mutant("iommu-vmid-rolled"));
        self.reserved.iter().copied().chain(pinned)
    }

    /// Tells whether this stamp of an earlier generation is its space's still.
    fn keeps(&self, stamp: Stamp) -> bool {
        self.kept().any(|kept| kept == stamp)
    }
}

#[cfg(all(test, loom))]
mod interleaved;
#[cfg(all(test, not(loom)))]
mod tests;
