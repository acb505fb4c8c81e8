//! Guests' memory, on machines where a guest can go past the caches: page by page, what the caches may have of it.
//!
//! ```text
//! ──(a leaf leads there)──▶ Mapped ──(out of reach, then cleaned and invalidated)──▶ Clean ──▶ given back
//!                             ▲                                                       │
//!                             └───────────────(a leaf leads there again)──────────────┘
//! ```
//!
//! Cleaned while somebody can still reach it, a page is as it was: what is written a moment later is not cleaned.

use super::{Judge, Violation, require};
use stage2::{Format, Live, span};
use std::collections::BTreeMap;
use types::{Height, Pa};

/// What the caches may have of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    /// Anything: a guest uses it, or has since it was cleaned.
    Mapped,
    /// Nothing that differs from memory.
    Clean,
}

/// The pages that leaves have led to since they were allocated. Empty where all accesses are forced into the caches.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    can_be_bypassed: bool,
    pages: BTreeMap<Pa, Page>,
}

impl Memory {
    pub(super) fn of_guests_past_caches() -> Self {
        Self { can_be_bypassed: true, pages: BTreeMap::new() }
    }
}

impl<F: Format> Judge<F> {
    /// An entry that the hardware can reach, or may again, leads somewhere.
    pub(super) fn mapped(&mut self, live: Live, height: Height) {
        let Live::Leaf(leaf) = live else { return };
        if self.memory.can_be_bypassed {
            self.memory.pages.extend(pages::<F>(leaf.pa, span::<F>(height)).map(|pa| (pa, Page::Mapped)));
        }
    }

    /// Memory was cleaned and invalidated.
    pub(super) fn cleaned(&mut self, pa: Pa, bytes: u64) {
        for page in pages::<F>(pa, bytes) {
            if self.memory.pages.contains_key(&page)
                && self.may_be_free(page, span::<F>(Height::PAGE)).is_ok()
            {
                self.memory.pages.insert(page, Page::Clean);
            }
        }
    }

    /// Memory was given back.
    pub(super) fn freed(&mut self, pa: Pa, bytes: u64) -> Result<(), Violation> {
        for page in pages::<F>(pa, bytes) {
            require!(
                self.memory.pages.remove(&page) != Some(Page::Mapped),
                "{page:?} given back, and caches and memory may differ: neither cleaned nor invalidated since it was out \
                 of guests' reach"
            );
        }
        Ok(())
    }
}

/// Goes through the pages of some memory.
fn pages<F: Format>(pa: Pa, bytes: u64) -> impl Iterator<Item = Pa> {
    (0..bytes).step_by(span::<F>(Height::PAGE) as usize).map(move |at| pa.wrapping_add(at))
}
