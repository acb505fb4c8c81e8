//! [`Presence`]: which CPUs are in a guest of one space, and invalidation by having them leave it.
//!
//! Where no instruction reaches the TLBs of other CPUs, each CPU forgets for itself: before it enters the guest again.
//! A change waits only for those that are in the guest at that moment, and only until they have left it once.
//!
//! Invariant: a CPU that is in the guest has either forgotten what was taken away, or has been seen inside and kicked
//! by whoever took it away, and that one still waits.
//!
//! ```text
//! entry                               change
//!   visits: odd                         entries written, visible to table walkers
//!   full barrier ─────── O110 ┐         generation + 1
//!   generation moved? forget  └─ O113 ─ full barrier
//!   guest runs                          for each CPU that ever entered: visits odd? note it, kick
//!   walks end (DSB NSH)
//!   visits: even ─────── O111 ── O112 ─ until they are even, or it has forgotten: translations are gone
//! ```
//!
//! * `visits` is odd from before the look at the generation, so one of the two sees the other: the change finds the CPU
//!   inside, or the CPU finds the new generation.
//! * Who waits, waits for an exit and for nothing that comes after it: no lock, no handler, no answer. A CPU says that
//!   it is outside first of all. So two CPUs that both wait have both left, and neither waits for the other.
//! * A kick that comes between the look and the guest's first instruction is not lost. Where interrupts are masked, it
//!   stays pending and ends the guest's run at once. Where it cannot be masked (NMI), its handler calls
//!   [`Presence::interrupted`]: the CPU forgets there and then, and says so.
//! * A CPU that is parked, idle or off is outside.
//! * Who enters for the first time forgets first. So a tag or a root that was another space's needs no more than that.
//!
//! Two facts, never one flag: who has ever *entered* the space may hold translations ([`Presence::others`]); who has ever
//! *opened* its tables may be looking at them (the tree's own list). A CPU that serves a guest's devices does the second
//! and never the first.
//!
//! Neighbours: the CPU crates, whose [`Invalidate`](crate::Invalidate) rests on it; the exit loop, which says who enters
//! and leaves.

use crate::quiescence::{Line, SEATS};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, full_barrier, mutant, o, spin_loop};
use types::{CpuId, CpuSet};

/// What the CPU that runs this can do.
pub trait Interrupt {
    /// Has `target` leave its guest soon. A kick that finds it on the way in is not lost: it ends the guest's run at
    /// once, or `target` calls [`Presence::interrupted`]. Returns at once.
    fn kick(&self, target: CpuId);

    /// Makes this CPU forget everything that it holds of the space, walk caches too, and waits until that is done.
    /// AArch64: `TLBI VMALLS12E1; DSB NSH; ISB`, with the space's VTTBR_EL2 loaded. x86: INVEPT, single context.
    fn forget(&self);

    /// Waits until the table walks that this CPU began for the guest that it has just left are over. AArch64: `DSB
    /// NSH`. x86: nothing, an exit does it.
    fn settle(&self);
}

/// One CPU's visits to the guest. Only that CPU writes.
#[derive(Debug)]
struct Seat {
    /// Odd from before the entry to after the exit; each entry and each exit adds one.
    visits: AtomicU64,
    /// The generation up to which this CPU has forgotten what it held.
    clean: AtomicU64,
}

/// Who is in a guest of one space, and who ever was.
#[derive(Debug)]
pub struct Presence {
    seats: [Line<Seat>; SEATS],
    /// How often something was taken away, plus one.
    generation: AtomicU64,
    /// The CPUs that ever entered. Bits are only ever set.
    entered: AtomicU64,
}

/// A change that waits for CPUs to leave the guest once.
#[must_use = "other CPUs may use what was taken away until this has been waited for"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    generation: u64,
    inside: CpuSet,
}

impl Request {
    /// Returns the CPUs that were found inside, and were kicked.
    pub const fn kicked(&self) -> CpuSet {
        self.inside
    }
}

impl Presence {
    /// Makes it, with nobody inside and nobody who ever was.
    pub fn new() -> Self {
        let seat = |_| Line(Seat { visits: AtomicU64::new(0), clean: AtomicU64::new(0) });
        Self { seats: core::array::from_fn(seat), generation: AtomicU64::new(1), entered: AtomicU64::new(0) }
    }

    fn seat(&self, cpu: CpuId) -> &Seat {
        &self.seats[cpu.index()].0
    }

    /// Notes that `me`, which is the CPU that runs this, may hold translations of the space from now on: before it
    /// enters a guest of it for the first time, or loads its tables for a moment. AArch64 has a DSB follow before the
    /// tables are loaded.
    pub fn note_entry(&self, me: CpuId) {
        let bit = CpuSet::EMPTY.with(me).bits();
        if self.entered.load(Relaxed) & bit == 0 && !mutant("entry-not-noted") {
            self.entered.fetch_or(bit, Relaxed);
            // O117: known as one that enters before its first walk. Pairs with O116.
            full_barrier(117);
        }
    }

    /// Returns the CPUs but for `me` that may hold translations of the space. Called after entry writes: a CPU that is
    /// not among them enters later and walks the new entries.
    pub fn others(&self, me: CpuId) -> CpuSet {
        // O116: our entry writes are before the look at who ever entered. Pairs with O117.
        full_barrier(116);
        CpuSet::from_bits(self.entered.load(Relaxed)).without(me)
    }

    /// Returns the CPUs that ever were about to hold translations of the space, to say so: who relies on it asks for
    /// [`Presence::others`].
    pub fn entered(&self) -> CpuSet {
        CpuSet::from_bits(self.entered.load(Relaxed))
    }

    /// Says that `me` is about to enter the guest, and has it forget what was taken away since it was there last. The
    /// guest's tables are loaded. Nothing but the entry follows: no lock, no wait.
    pub fn enter(&self, me: CpuId, cpu: &impl Interrupt) {
        self.note_entry(me);
        let seat = self.seat(me);
        let too_early = mutant("generation-read-before-in-guest");
        if too_early {
            self.catch_up(me, cpu);
        }
        seat.visits.store(seat.visits.load(Relaxed) + 1, Relaxed); // only this CPU writes it
        // O110: inside before we look at the generation. Pairs with O113.
        full_barrier(110);
        if !too_early {
            self.catch_up(me, cpu);
        }
    }

    /// Has `me` forget what was taken away, if anything was.
    fn catch_up(&self, me: CpuId, cpu: &impl Interrupt) {
        // O114: the new entries are there before our walks that follow. Pairs with itself in `request`.
        let generation = self.generation.load(o(114, Acquire));
        let seat = self.seat(me);
        if seat.clean.load(Relaxed) < generation {
            cpu.forget();
            // O115: forgotten before it is said. Pairs with itself in `has_forgotten`. The greater of the two, since the handler
            // of a kick may have come in between and forgotten more.
            seat.clean.fetch_max(generation, o(115, Release));
        }
    }

    /// Says that `me` has left the guest. First of all after an exit: whoever waits, waits for this.
    pub fn leave(&self, me: CpuId, cpu: &impl Interrupt) {
        if mutant("in-guest-cleared-late") {
            return;
        }
        if !mutant("no-dsb-before-outside") {
            cpu.settle();
        }
        let seat = self.seat(me);
        // O111: whatever the guest did under old translations is done. Pairs with O112. Only this CPU writes it.
        seat.visits.store(seat.visits.load(Relaxed) + 1, o(111, Release));
    }

    /// Has `me` forget what was taken away, where a kick could not be masked and may have come between
    /// [`Presence::enter`] and the guest. Called by the handler, which touches nothing else; elsewhere it does nothing.
    pub fn interrupted(&self, me: CpuId, cpu: &impl Interrupt) {
        let inside = self.seat(me).visits.load(Relaxed) & 1 == 1;
        if inside && !mutant("kick-lost-in-gap") {
            self.catch_up(me, cpu);
        }
    }

    /// Has `me` forget everything of the space before it enters the next time, where that cannot be done here and now
    /// since other tables are loaded. Nobody else is asked to.
    pub fn forget_at_entry(&self, me: CpuId) {
        self.seat(me).clean.store(0, Relaxed);
    }

    /// Asks every other CPU that is in the guest to leave it once, and every CPU to forget before it enters again. Called
    /// by `me`, which is outside, after its entry writes are visible to table walkers.
    pub fn request(&self, me: CpuId, cpu: &impl Interrupt) -> Request {
        // O114: our entry writes are before the generation that tells of them. Pairs with itself in `catch_up`.
        let generation = self.generation.fetch_add(1, o(114, Release)) + 1;
        // O113: the new generation is there before we look who is inside. Pairs with O110.
        full_barrier(113);
        let mut request = Request { generation, inside: CpuSet::EMPTY };
        let others = CpuSet::from_bits(self.entered.load(Relaxed)).without(me);
        for other in others.iter().take_while(|cpu| cpu.index() < SEATS) {
            if self.is_inside(other) {
                request.inside = request.inside.with(other);
                cpu.kick(other);
            }
        }
        request
    }

    /// Waits until each CPU that was found inside is outside, or has been: then it has forgotten on the way back in.
    pub fn wait(&self, request: Request) {
        for cpu in request.inside.iter() {
            while (self.is_inside(cpu) || mutant("wait-for-handler")) && !self.has_forgotten(cpu, request) {
                spin_loop();
            }
        }
    }

    fn is_inside(&self, cpu: CpuId) -> bool {
        // O112: whatever the guest did under old translations is done before we go on. Pairs with O111.
        self.seat(cpu).visits.load(o(112, Acquire)) & 1 == 1
    }

    fn has_forgotten(&self, cpu: CpuId, request: Request) -> bool {
        // O115: it has forgotten before we go on. Pairs with itself in `catch_up`.
        self.seat(cpu).clean.load(o(115, Acquire)) >= request.generation
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self::new()
    }
}
