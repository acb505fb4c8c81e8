//! The plan: what to put behind an address, decided from its region alone.

use crate::{Backing, Region};
use core::marker::PhantomData;
use frames::Order;
use stage2::{Format, Why, span};
use types::{Height, Ipa, Pa, Range};

/// What to put behind an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<F> {
    /// The height of the leaf.
    pub(crate) height: Height,
    /// What the leaf is to map.
    pub(crate) source: Source,
    /// Why it is not larger.
    pub(crate) why: Why,
    format: PhantomData<F>,
}

/// Where a leaf's memory comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// A run of frames of this order, zeroed.
    Frames(Order),
    /// A fixed place.
    Fixed(Pa),
}

impl<F: Format> Plan<F> {
    /// Plans the largest leaf for `ipa` that is at most `highest`, inside of `region` and of `within`, and congruent
    /// with what backs it. `None` where not even a page is.
    pub(crate) fn new(region: &Region, within: Range, ipa: Ipa, highest: Height) -> Option<Self> {
        let mut height = highest;
        loop {
            let block = Range::block_around(ipa, span::<F>(height));
            if region.range.covers(block)
                && within.covers(block)
                && let Some(source) = Self::source(region, block)
            {
                return Some(Self { height, source, why: Why::Alignment, format: PhantomData });
            }
            height = height.below()?;
        }
    }

    /// The same plan, small for another reason.
    pub(crate) fn because(self, why: Why) -> Self {
        Self { why, ..self }
    }

    /// Plans something smaller, since there is no memory for this.
    pub(crate) fn smaller(self) -> Option<Self> {
        let height = self.height.below()?;
        let source = match self.source {
            Source::Frames(_) => Source::Frames(Order::of_bytes(span::<F>(height))?),
            fixed @ Source::Fixed(_) => fixed,
        };
        Some(Self { height, source, why: Why::NoMemory, ..self })
    }

    fn source(region: &Region, block: Range) -> Option<Source> {
        match region.backing {
            Backing::Ram => Order::of_bytes(block.len()).map(Source::Frames),
            Backing::Borrowed => None,
            Backing::Fixed { pa, .. } => {
                let pa = pa.checked_add(block.start().offset_from(region.range.start())?)?;
                pa.is_aligned(block.len()).then_some(Source::Fixed(pa))
            }
        }
    }
}
