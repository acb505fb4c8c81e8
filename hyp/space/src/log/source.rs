//! Where a round of a dirty log looks: at every leaf, or where the hardware has listed writes.
//!
//! | source | the mark | a round looks at |
//! | --- | --- | --- |
//! | write protection | a leaf that gives the right to write | every leaf |
//! | hardware dirty flag | a dirty leaf | every leaf |
//! | hardware list (Intel's PML) | a dirty leaf | the parts of the range in which pages are listed |
//!
//! The first two are [`Leaves`]: which of them it is, the format knows. The third is [`Listed`] over a [`Pml`], which the
//! CPU crate implements.

use types::Ipa;

/// Where a round looks for written pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looks {
    /// At every leaf.
    Everywhere,
    /// At the leaves of pages that are listed, and their neighbours.
    WhereListed,
}

/// A source of a dirty log's answers. The same one serves a log from its start to its end.
pub trait DirtySource {
    /// Where to look.
    const LOOKS: Looks;

    /// Calls `listed` with an address in each page that the hardware has listed on any CPU before this was called. Waits
    /// for hardware only.
    fn drain(&self, listed: &mut dyn FnMut(Ipa));
}

/// The leaves themselves: by the right to write, or by the hardware's dirty flag, as the format has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leaves;

impl DirtySource for Leaves {
    const LOOKS: Looks = Looks::Everywhere;

    fn drain(&self, _: &mut dyn FnMut(Ipa)) {}
}

/// Lists of written pages that each CPU's hardware keeps: Intel's page-modification log (SDM 3C, 29.3.6). An entry is
/// added when a dirty flag goes from 0 to 1; a full list makes the guest exit.
///
/// A CPU whose list is full has [`Space::mark_written`](crate::Space::mark_written) note what is in it.
pub trait Pml {
    /// Takes out what is in the lists of *all* CPUs, and calls `listed` with each address. A CPU that is in a guest is
    /// interrupted and waited for, as for an invalidation: until it is or has been out of the guest, so that what its
    /// hardware was about to write is in memory (SDM 3C, 28.2.5).
    fn drain(&self, listed: &mut dyn FnMut(Ipa));
}

/// Dirty flags, with lists of those that were set.
#[derive(Clone, Copy, Debug)]
pub struct Listed<P>(pub P);

impl<P: Pml> DirtySource for Listed<P> {
    const LOOKS: Looks = Looks::WhereListed;

    fn drain(&self, listed: &mut dyn FnMut(Ipa)) {
        self.0.drain(listed);
    }
}
