//! Harvest: which leaves were written since the last harvest, and from now on again.
//!
//! The leaf is the mark. Where the hardware keeps a dirty flag, a leaf is dirty if it is set; elsewhere a leaf that gives
//! the right to write counts as dirty, and cleaning takes the right away, so that the next write faults and gives it
//! back. The two are one operation here: what a format cannot express without the dirty flag, it expresses without the
//! right to write.
//!
//! Invariants:
//! - A leaf is reported *before* it is clean. So whoever finds it clean finds it reported, too.
//! - When a call returns, a write to what it has cleaned sets the mark again: no TLB lets one through unseen.
//! - Entries that others own are waited for: what they become is looked at.
//!
//! A log of written pages that the hardware keeps (Intel's PML) says where to look: harvest those pages' ranges.

use crate::edit::{Beyond, Edit, Owned};
use crate::{ChangeError, Entries, Entry, Format, Harm, Invalidate, Leaf, Marks, Pages, Section, Tree, Why};
use types::{Access, Height, Ipa, Range};

/// No longer written.
struct Clean<'d, D> {
    dirtied: &'d mut D,
}

/// Returns the leaf as it is when it is not dirty; `None` where it is not.
fn cleaned<F: Format>(format: F, leaf: Leaf, height: Height) -> Option<Leaf> {
    if !leaf.attrs.marks.contains(Marks::DIRTY) {
        return None;
    }
    let clean = Leaf { attrs: leaf.attrs.without(Marks::DIRTY), ..leaf };
    match format.canonical(Entry::Leaf(clean), height) {
        Entry::Leaf(kept) if kept.attrs.marks.contains(Marks::DIRTY) => {
            let access = leaf.attrs.access.difference(Access::WRITE);
            Some(Leaf { attrs: clean.attrs.with_access(access), ..leaf })
        }
        _ => Some(clean),
    }
}

impl<F: Format, D: FnMut(Ipa, Height)> Edit<F> for Clean<'_, D> {
    const BEYOND: Beyond = Beyond::Whole;
    const OWNED: Owned = Owned::Wait;
    const HARM: Harm = Harm::CLEAN;

    fn edit(&self, format: F, leaf: Leaf, height: Height) -> Option<Leaf> {
        cleaned(format, leaf, height)
    }

    fn before(&mut self, ipa: Ipa, height: Height, was: Leaf) {
        if was.attrs.marks.contains(Marks::DIRTY) {
            (self.dirtied)(ipa, height);
        }
    }
}

/// No longer accessed.
struct Old<'y, Y> {
    young: &'y mut Y,
}

impl<F: Format, Y: FnMut(Ipa, Height)> Edit<F> for Old<'_, Y> {
    const BEYOND: Beyond = Beyond::Whole;
    const OWNED: Owned = Owned::Skip;
    const HARM: Harm = Harm::AGE;

    fn edit(&self, _: F, leaf: Leaf, _: Height) -> Option<Leaf> {
        let attrs = leaf.attrs.without(Marks::YOUNG);
        leaf.attrs.marks.contains(Marks::YOUNG).then_some(Leaf { attrs, ..leaf })
    }

    fn before(&mut self, ipa: Ipa, height: Height, was: Leaf) {
        if was.attrs.marks.contains(Marks::YOUNG) {
            (self.young)(ipa, height);
        }
    }
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Cleans every dirty leaf in `range`, or in its first part, and returns the address up to which every write from
    /// now on will be seen by the next harvest. Go on from there with a further call until it is the end.
    ///
    /// `dirtied` is told of each leaf before it is cleaned: address, height. What it was told is an answer only when
    /// this returns. It may be told of one twice. A block that reaches beyond the range is reported and cleaned whole.
    ///
    /// Bounded by [`Bounds::HARVEST`](crate::Bounds::HARVEST).
    ///
    /// # Errors
    /// [`ChangeError`]; nothing from the address it names on was cleaned. [`ChangeError::DeviceWouldFault`] where an IOMMU
    /// is attached that faults on a write to a clean leaf.
    pub fn harvest<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        dirtied: &mut impl FnMut(Ipa, Height),
    ) -> Result<Ipa, ChangeError> {
        self.edit(section, cpu, range, Why::DirtyLog, &mut Clean { dirtied })
    }

    /// Makes every young leaf in `range`, or in its first part, old, and returns the address up to which that was
    /// looked at. `young` is told of each: address, height. Leaves that others are changing are passed over: this
    /// promises nothing about any one page.
    ///
    /// Where the hardware does not set the accessed flag, the next access faults: [`View::hold_leaf`](crate::View::hold_leaf)
    /// makes the leaf young again.
    ///
    /// Bounded by [`Bounds::HARVEST`](crate::Bounds::HARVEST).
    ///
    /// # Errors
    /// [`ChangeError::Unmappable`]; [`ChangeError::Busy`] where an entry kept changing; [`ChangeError::DeviceWouldFault`]
    /// where an IOMMU is attached that faults on an old leaf.
    pub fn age<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        young: &mut impl FnMut(Ipa, Height),
    ) -> Result<Ipa, ChangeError> {
        self.edit(section, cpu, range, Why::DirtyLog, &mut Old { young })
    }
}
