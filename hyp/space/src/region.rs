//! What a range of a guest's addresses is for.

use stage2::{Attrs, Memory, Owner};
use types::{Access, Pa, Range};

/// A range of a space's addresses with one backing and one set of rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// The addresses; both ends multiples of the granule.
    pub range: Range,
    /// What the guest may do there.
    pub access: Access,
    /// What is behind them.
    pub backing: Backing,
}

/// What is behind a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Frames of the machine's RAM, zeroed, allocated when they are first needed, and the space's own.
    Ram,
    /// What other spaces lend ([`Between`](crate::Between)): nothing until then, and only with the rights of the loan.
    Borrowed,
    /// Physical memory or a device at a fixed place, the space's by the machine's configuration. It is never counted,
    /// pinned or given back.
    Fixed {
        /// Where the region's first address goes; a multiple of the granule.
        pa: Pa,
        /// What kind of memory it is.
        memory: Memory,
    },
}

impl Region {
    /// Makes a region of RAM with all rights.
    pub const fn ram(range: Range) -> Self {
        Self { range, access: Access::RWX, backing: Backing::Ram }
    }

    /// Makes a region for memory that other spaces lend, for reads and writes.
    pub const fn borrowed(range: Range) -> Self {
        Self { range, access: Access::RW, backing: Backing::Borrowed }
    }

    /// Makes a region that passes a device at `pa` through, for reads and writes.
    pub const fn device(range: Range, pa: Pa) -> Self {
        Self { range, access: Access::RW, backing: Backing::Fixed { pa, memory: Memory::Device } }
    }

    /// Returns the part of the region at `range`; `None` where that is empty or not part of it.
    pub(crate) fn part(&self, range: Range) -> Option<Self> {
        if range.is_empty() || !self.range.covers(range) {
            return None;
        }
        let offset = range.start().offset_from(self.range.start())?;
        let backing = match self.backing {
            Backing::Ram => Backing::Ram,
            Backing::Borrowed => Backing::Borrowed,
            Backing::Fixed { pa, memory } => Backing::Fixed { pa: pa.checked_add(offset)?, memory },
        };
        Some(Self { range, backing, ..*self })
    }

    /// Returns this region and the one behind it as one; `None` where they are not side by side and alike.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let range = Range::new(self.range.start(), next.range.end()).ok()?;
        let both = Self { range, ..*self };
        let is_next = self.range.end() == next.range.start();
        (is_next && both.part(self.range) == Some(*self) && both.part(next.range) == Some(*next))
            .then_some(both)
    }

    /// Returns the attributes of this region's leaves.
    #[inline(always)]
    pub const fn attrs(&self) -> Attrs {
        let attrs = match self.backing {
            Backing::Ram => Attrs::RAM,
            Backing::Borrowed => Attrs { owner: Owner::Borrowed, ..Attrs::RAM },
            // Not counted: nothing is given back when such a leaf is unmapped.
            Backing::Fixed { memory, .. } => Attrs { memory, owner: Owner::Fixed, ..Attrs::RAM },
        };
        attrs.with_access(self.access)
    }
}
