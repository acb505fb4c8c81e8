//! What is to be collapsed: a table whose children are alike, and the way by which the hardware allows it.

use super::CollapseError;
use crate::geometry::span;
use crate::place::{Place, Spot, covered};
use crate::{
    Attrs, Bbm, Class, Entries, Entry, Format, Leaf, Marks, Owner, Pages, Rewrite, Scope, TablePa, View, Work,
};
use types::sync::mutant;
use types::{Access, Height, Ipa};

/// What the children of a block must have in common with the first.
#[derive(Clone, Copy)]
pub(super) enum Likeness {
    /// Addresses side by side.
    Contiguous,
    /// Attributes only: the contents are moved. Where the right to write is a mark that nobody asks for, some may have it and
    /// some not: it is theirs to get back.
    Attributes,
}

/// A table under collapse.
pub(super) struct Collapse {
    pub(super) ipa: Ipa,
    pub(super) link: Place,
    pub(super) raw_link: u64,
    pub(super) table: TablePa,
    pub(super) below: Height,
    pub(super) entries: usize,
    pub(super) first: Leaf,
    pub(super) likeness: Likeness,
    /// Rights in which the children may differ: the block has those that all of them have.
    pub(super) loose: Access,
    /// Read once: a change that begins at one level ends at it.
    pub(super) bbm: Bbm,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CollapseWay {
    Break,
    Hold,
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Looks whether there is a table to collapse. A look that says no is final; one that says yes decides nothing.
    pub(super) fn candidate(
        &self,
        ipa: Ipa,
        height: Height,
        likeness: Likeness,
        loose: Access,
    ) -> Result<Collapse, CollapseError> {
        let tree = self.tree;
        let Spot { place: link, raw, pending } = tree.find(ipa, height, |_| false);
        let busy = CollapseError::Busy { ipa };
        let Some(below) = height.below() else { return Err(CollapseError::Unmappable) };
        let table = match tree.format.decode(raw, link.height) {
            Entry::Table(table) if link.height == height && !table.pending && !pending => table,
            Entry::Absent | Entry::Note(_) | Entry::Leaf(_) => return Err(CollapseError::NoTable),
            _ => return Err(busy),
        };
        let table = TablePa::linked(table.pa);
        let entries = tree.geometry.entries(below);
        let at = |index| Place { table, index, height: below };
        let Entry::Leaf(first) = tree.format.decode(tree.read(at(0)), below) else {
            return Err(CollapseError::Uneven { ipa });
        };
        let bbm = tree.bbm();
        let collapse =
            Collapse { ipa, link, raw_link: raw, table, below, entries, first, likeness, loose, bbm };
        if let Likeness::Contiguous = likeness
            && !first.pa.is_aligned(span::<F>(height))
        {
            return Err(CollapseError::Uneven { ipa });
        }
        for index in 0..entries {
            collapse.check(tree.format, index, tree.read(at(index)))?;
        }
        Ok(collapse)
    }

    pub(super) fn collapse_way(&self, collapse: &Collapse) -> CollapseWay {
        let (format, height, bbm) = (self.tree.format, collapse.link.height, collapse.bbm);
        let mut block = collapse.first;
        if bbm == Bbm::Level1 {
            block.attrs = block.attrs.with(Marks::NO_TLB);
        }
        let link = format.decode(collapse.raw_link, height);
        let is_direct = format.rewrite(link, Entry::Leaf(block), height, bbm) < Rewrite::BreakBeforeMake;
        match collapse.likeness {
            Likeness::Attributes if is_direct && mutant("address-changed-live") => CollapseWay::Hold,
            Likeness::Contiguous if is_direct || mutant("live-size-change-at-level-0") => CollapseWay::Hold,
            _ => CollapseWay::Break,
        }
    }
}

impl Collapse {
    pub(super) const fn child(&self, index: usize) -> Place {
        Place { table: self.table, index, height: self.below }
    }

    /// What is owed: the children, the link, and what walk caches hold of it; no hint, since sizes are mixed.
    pub(super) fn work<F: Format>(&self) -> Work {
        let range = covered::<F>(self.ipa, self.link.height);
        Work { class: Class::Tables, scope: Scope::Range { range, hint: None } }
    }

    /// Tells whether `raw` is what child `index` must be. Accessed and dirty flags do not count.
    pub(super) fn check<F: Format>(&self, format: F, index: usize, raw: u64) -> Result<Leaf, CollapseError> {
        let ipa = self.ipa.wrapping_add(index as u64 * span::<F>(self.below));
        let leaf = match format.decode(raw, self.below) {
            Entry::Leaf(leaf) => leaf,
            Entry::Absent | Entry::Note(_) | Entry::Table(_) => return Err(CollapseError::Uneven { ipa }),
            Entry::Frozen | Entry::Held(_) | Entry::Dead => return Err(CollapseError::Busy { ipa }),
        };
        if leaf.attrs.marks.intersects(Marks::PENDING | Marks::NO_TLB) {
            return Err(CollapseError::Busy { ipa });
        }
        let flags = Marks::YOUNG | Marks::DIRTY;
        let pa = match self.likeness {
            Likeness::Contiguous => self.first.pa.wrapping_add(index as u64 * span::<F>(self.below)),
            Likeness::Attributes => leaf.pa,
        };
        let hard = |attrs: Attrs| attrs.without(flags).with_access(attrs.access | self.loose);
        let alike = leaf.pa == pa && hard(leaf.attrs) == hard(self.first.attrs);
        // A loan ends page by page. A word does not keep pages apart whose borrower has let go, and whose owner has not noticed.
        let is_shared =
            matches!(leaf.attrs.owner, Owner::Lent | Owner::Borrowed) && !mutant("lent-made-part-of-a-block");
        if alike && !is_shared || mutant("collapse-of-what-differs") {
            Ok(leaf)
        } else {
            Err(CollapseError::Uneven { ipa })
        }
    }
}
