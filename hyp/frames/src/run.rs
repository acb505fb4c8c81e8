//! Frames that somebody holds and nobody else can find.

use crate::{Frames, Kind, Order};
use core::mem;
use types::{CpuId, Pa};

/// A run of frames just allocated: naturally aligned, contiguous, of folios of at most 2 MiB, and its holder's alone.
///
/// Dropping it gives it back. Once it is published in a table, [`Run::into_pa`] turns it into an address, and the
/// mapping holds the frames' reference from then on.
#[derive(Debug)]
#[must_use = "dropping a run gives it back at once"]
pub struct Run<'f> {
    frames: &'f Frames,
    pa: Pa,
    order: Order,
    kind: Kind,
    /// On whose behalf it counts as in hand.
    by: CpuId,
}

impl<'f> Run<'f> {
    #[inline(always)]
    pub(crate) const fn new(frames: &'f Frames, pa: Pa, order: Order, kind: Kind, by: CpuId) -> Self {
        Self { frames, pa, order, kind, by }
    }

    pub(crate) const fn by(&self) -> CpuId {
        self.by
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the address of the first frame, a multiple of the run's size.
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// Returns the order of the whole run.
    pub const fn order(&self) -> Order {
        self.order
    }

    /// Lets the frames go to whoever keeps the address: a mapping, or a list. Whoever publishes a guest's run has
    /// frozen the entry by now, so that a CPU which finds no memory, and nobody about to publish any, finds the entry.
    #[inline(always)]
    pub fn into_pa(self) -> Pa {
        let pa = self.pa;
        self.frames.published(self.kind, self.by);
        mem::forget(self);
        pa
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.frames.free_unpublished(self);
    }
}
