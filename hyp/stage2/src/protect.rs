//! Protect: change the rights of what is mapped, in place.
//!
//! Invariant: when a call returns, no CPU can use a right that it took away.
//!
//! Rights, flags and software's bits may change in a live entry. What is taken away is invalidated everywhere before
//! the call returns; what is added, only here: other CPUs fault, find the entry sufficient, and forget their own
//! copy ([`Owed::relax`](crate::Owed::relax)).

use crate::edit::{Beyond, Edit, Owned};
use crate::{
    ChangeError, Entries, Entry, Format, Invalidate, Leaf, Marks, Owner, Pages, Quiesced, Restraint, Section,
    Tree, Why,
};
use types::sync::mutant;
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

/// No rights but these; a leaf that has fewer keeps them.
struct Restricted<'d, D> {
    access: Access,
    dirtied: &'d mut D,
}

impl<F: Format, D: FnMut(Ipa, Height)> Edit<F> for Restricted<'_, D> {
    const BEYOND: Beyond = Beyond::Split;
    const OWNED: Owned = Owned::Wait;

    fn edit(&self, format: F, leaf: Leaf, height: Height) -> Option<Leaf> {
        let access = leaf.attrs.access & self.access;
        let wanted = Leaf { attrs: leaf.attrs.with_access(access), ..leaf };
        (format.canonical(Entry::Leaf(wanted), height) != Entry::Leaf(leaf)).then_some(wanted)
    }

    fn before(&mut self, ipa: Ipa, height: Height, was: Leaf) {
        if was.attrs.marks.contains(Marks::DIRTY) && !self.access.contains(Access::WRITE) {
            (self.dirtied)(ipa, height);
        }
    }
}

/// At least these rights, and these flags, for leaves that are the space's own and not lent.
struct Restored {
    access: Access,
    marks: Marks,
}

impl<F: Format> Edit<F> for Restored {
    const BEYOND: Beyond = Beyond::Whole;
    const OWNED: Owned = Owned::Wait;

    fn edit(&self, format: F, leaf: Leaf, height: Height) -> Option<Leaf> {
        if leaf.attrs.owner != Owner::Space {
            return None;
        }
        let attrs = leaf.attrs.with_access(leaf.attrs.access | self.access).with(self.marks);
        let wanted = Leaf { attrs, ..leaf };
        (format.canonical(Entry::Leaf(wanted), height) != Entry::Leaf(leaf)).then_some(wanted)
    }

    fn before(&mut self, _: Ipa, _: Height, _: Leaf) {}
}

/// At least these rights, for leaves that are backed as a region of this owner, lent or not; and the flags that a device needs, for
/// all.
struct Readied {
    access: Access,
    owner: Owner,
    restraint: Restraint,
}

impl<F: Format> Edit<F> for Readied {
    const BEYOND: Beyond = Beyond::Split;
    const OWNED: Owned = Owned::Wait;

    fn edit(&self, format: F, leaf: Leaf, height: Height) -> Option<Leaf> {
        let owner = leaf.attrs.owner;
        let is_regions = if mutant("iommu-lent-leaves-as-they-were") {
            owner == self.owner
        } else {
            owner.is_backed_as(self.owner)
        };
        let added = if is_regions { self.access } else { Access::empty() };
        let attrs = self.restraint.dress(leaf.attrs.with_access(leaf.attrs.access | added));
        let wanted = Leaf { attrs, ..leaf };
        (format.canonical(Entry::Leaf(wanted), height) != Entry::Leaf(leaf)).then_some(wanted)
    }

    fn before(&mut self, _: Ipa, _: Height, _: Leaf) {}
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

    /// Takes every right but `access` from the leaves in `range`, or in its first part; a leaf that has fewer rights
    /// keeps them. The address that comes out, with the proof, is that up to which no CPU can use what was taken away.
    ///
    /// Unlike [`Self::protect`] it never adds a right. So several may run at once, in any order, and what is left is what
    /// all of them allow: whoever may have more gets it by a fault that looks at the latest decision
    /// ([`View::hold_leaf`](crate::View::hold_leaf)).
    ///
    /// `dirtied` and bounds as for [`Self::protect`].
    ///
    /// # Errors
    /// [`ChangeError`]; nothing from the address it names on was changed.
    pub fn restrict<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        access: Access,
        dirtied: &mut impl FnMut(Ipa, Height),
    ) -> Result<Quiesced<Ipa>, ChangeError> {
        let edit = &mut Restricted { access, dirtied };
        self.edit(section, cpu, range, Why::Attributes, edit).map(Quiesced::long_ago)
    }

    /// Adds the rights `access` and the flags `marks` to every leaf in `range`, or in its first part, that is the
    /// space's own and not lent. Returns the address up to which that is so. A block that reaches beyond the range is
    /// changed whole.
    ///
    /// The caller keeps the decision that the leaves may have these rights from changing until this returns.
    ///
    /// Bounded by [`STEP_ENTRIES`](crate::STEP_ENTRIES) entries and one invalidation, of this CPU alone.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing from the address it names on was changed.
    pub fn restore<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        access: Access,
        marks: Marks,
    ) -> Result<Ipa, ChangeError> {
        self.edit(section, cpu, range, Why::Attributes, &mut Restored { access, marks })
    }

    /// Gives every leaf in `range`, or in its first part, what devices need that translate through this tree: the flags of
    /// its [`Restraint`], and the rights `access` where the leaf is of `owner`, also while it is lent. The address that comes out,
    /// with the proof, is that up to which every CPU and IOMMU goes by that. A block that reaches beyond the range and lacks something is
    /// split.
    ///
    /// The caller keeps the decision that the leaves may have these rights from changing until this returns.
    ///
    /// Bounded by [`Bounds::PROTECT`](crate::Bounds::PROTECT).
    ///
    /// # Errors
    /// [`ChangeError`]; nothing from the address it names on was changed.
    pub fn ready<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        access: Access,
        owner: Owner,
    ) -> Result<Quiesced<Ipa>, ChangeError> {
        let edit = &mut Readied { access, owner, restraint: self.restraint() };
        self.edit(section, cpu, range, Why::Attributes, edit).map(Quiesced::long_ago)
    }
}
