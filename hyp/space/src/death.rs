//! Death: the order in which a space goes back, so that nobody who found something in it in time comes too late with it.
//!
//! 1. **Mark** the space dead. From now on every step that begins finds it so, since it looks after entering its section.
//! 2. **Full barrier, grace period**: whoever has not seen it is out of its section then, with its pin or without.
//! 3. The caller takes its vCPUs out for good, and detaches and syncs its IOMMUs.
//! 4. **One invalidation** of the whole tag on every CPU, and **one grace period** (`stage2::Tree::destroy`).
//! 5. An exclusive walk **gives back**: frames, tables, the root; and last the tag, by the caller.
//!
//! Entries are not taken apart one by one: they are intact until the walk. So a walker that has read a leaf before (1)
//! could pin its frame at any time, were it not that the frame goes back only after the walker's section: until then its
//! reference is there, and a pin that it takes in time keeps the frame, as any pin does.

use crate::{Space, SpaceError};
use core::sync::atomic::Ordering::Relaxed;
use stage2::{Format, Section};
use types::CpuSet;
use types::sync::mutant;

impl<F: Format> Space<'_, F> {
    /// Marks the space dead, and waits until nobody uses its tables who began to before. Every operation but this, and
    /// [`Space::destroy`], that begins from then on ends with [`SpaceError::Dying`]; one that has several steps may end its
    /// next one as if nothing were, which is harmless: whoever destroys the space owns it, so that none is under way.
    ///
    /// For whoever shares the space with other CPUs. Waits for a grace period, owning nothing.
    pub fn condemn<S: Section>(&self, section: &mut S) {
        // Relaxed: a section begins with a full barrier, and so does the period.
        self.dead.store(true, Relaxed);
        if !mutant("dying-space-frees-with-entries-intact") {
            let period = section.period(CpuSet::from_bits(u64::MAX));
            section.wait(period);
        }
    }

    /// Tells whether the space is dying.
    pub fn is_dying(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// Fails where the space is dying. The caller is in a read section, and stays in it for as long as it acts by this.
    pub(crate) fn check_alive(&self) -> Result<(), SpaceError> {
        let dies = self.dead.load(Relaxed) && !mutant("step-on-a-dying-space");
        if dies { Err(SpaceError::Dying) } else { Ok(()) }
    }

    /// As [`Self::check_alive`], for an operation that passes quiescent points: it looks once when it begins.
    pub(crate) fn alive<S: Section>(&self, section: &S) -> Result<(), SpaceError> {
        let _reading = section.read();
        self.check_alive()
    }
}
