//! Protect: change the rights of what is mapped, in place.
//!
//! Invariant: when a call returns, no CPU can use a right that it took away.
//!
//! Rights, flags and software's bits may change in a live entry. What is taken away is invalidated everywhere before
//! the call returns; what is added, only here: other CPUs fault, find the entry sufficient, and forget their own
//! copy ([`Owed::relax`](crate::Owed::relax)).

use crate::edit::{Beyond, Edit, Owned};
use crate::{ChangeError, Entries, Entry, Format, Invalidate, Leaf, Marks, Pages, Section, Tree, Why};
use types::{Access, Height, Ipa, Range};

/// Exactly these rights.
struct Rights<'d, D> {
    access: Access,
    dirtied: &'d mut D,
}

impl<F: Format, D: FnMut(Ipa, Height)> Edit<F> for Rights<'_, D> {
    const BEYOND: Beyond = Beyond::Split;
    const OWNED: Owned = Owned::Wait;

    fn edit(&self, format: F, leaf: Leaf, height: Height) -> Option<Leaf> {
        let wanted = Leaf { attrs: leaf.attrs.with_access(self.access), ..leaf };
        // What the format makes of the rights: it may not be able to give exactly these.
        (format.canonical(Entry::Leaf(wanted), height) != Entry::Leaf(leaf)).then_some(wanted)
    }

    fn before(&mut self, ipa: Ipa, height: Height, was: Leaf) {
        if was.attrs.marks.contains(Marks::DIRTY) && !self.access.contains(Access::WRITE) {
            (self.dirtied)(ipa, height);
        }
    }
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Gives every leaf in `range`, or in its first part, exactly the rights `access`; holes stay holes. Returns the
    /// address up to which that is so, and no CPU can use a right taken away. Go on from there with a further call
    /// until it is the end.
    ///
    /// `dirtied` is told of each dirty leaf that is about to lose the right to write, since its dirty flag goes with
    /// it: address, height. It may be told of one twice.
    ///
    /// Bounded by [`Bounds::PROTECT`](crate::Bounds::PROTECT).
    ///
    /// # Errors
    /// [`ChangeError`]; nothing from the address it names on was changed.
    pub fn protect<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        access: Access,
        dirtied: &mut impl FnMut(Ipa, Height),
    ) -> Result<Ipa, ChangeError> {
        self.edit(section, cpu, range, Why::Attributes, &mut Rights { access, dirtied })
    }
}
