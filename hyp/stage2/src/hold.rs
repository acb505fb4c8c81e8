//! Hold: own a leaf that the hardware goes on using, look once more whether it may be given more rights, and give them.
//!
//! For faults on a leaf that is too strict: a write to a page that a dirty log has write-protected. As with a
//! [claim](crate::Claim), the decision was made before the entry was owned; so it is looked at again afterwards. Whoever
//! takes rights away walks the tables after it has said so: of the two, one sees the other.
//!
//! And for whoever decides by the frame's word whose the leaf is: it goes on being used meanwhile.

use crate::place::{Place, covered};
use crate::{Attrs, ChangeError, Entries, Entry, Format, Invalidate, Leaf, Live, Marks, Owner, Pages, View};
use types::sync::{full_barrier, met, mutant};
use types::{Access, Height, Ipa, Range};

/// A live leaf that is ours to change. Dropping it lets it be as it was.
///
/// Its owner waits for nothing but hardware until it has let go.
#[must_use = "the leaf is owned until this is dropped"]
#[derive(Debug)]
pub struct HeldLeaf<'c, 'v, F: Format, M: Entries + Pages, R> {
    view: &'c View<'v, F, M, R>,
    ipa: Ipa,
    place: Place,
    leaf: Leaf,
    /// The entry as it is now, but for flags that the hardware sets.
    held: u64,
    /// The attributes that it gets when this is let go.
    next: Attrs,
}

impl<'v, F: Format, M: Entries + Pages, R> View<'v, F, M, R> {
    /// Holds the leaf that maps `ipa`, whatever its height. Ends with a full barrier: whatever the caller reads next is
    /// read after everybody can see the leaf owned.
    ///
    /// # Errors
    /// [`ChangeError::Busy`] where no leaf is there, or somebody else is changing it: look again.
    /// [`ChangeError::Unmappable`] beyond the tree's reach. Nothing was changed then.
    pub fn hold_leaf(&self, ipa: Ipa) -> Result<HeldLeaf<'_, 'v, F, M, R>, ChangeError> {
        let tree = self.tree;
        if !tree.geometry.reach().contains(ipa) {
            return Err(ChangeError::Unmappable);
        }
        let spot = tree.find(ipa, Height::PAGE, |_| false);
        let (place, height) = (spot.place, spot.place.height);
        let busy = ChangeError::Busy { ipa, height };
        let hold = |raw: u64| match tree.format.decode(raw, height) {
            Entry::Leaf(leaf) => tree.format.encode(Entry::Held(Live::Leaf(leaf)), height),
            _ => raw,
        };
        let Entry::Leaf(leaf) = tree.format.decode(spot.raw, height) else { return Err(busy) };
        if leaf.attrs.marks.intersects(Marks::PENDING | Marks::NO_TLB) {
            return Err(busy);
        }
        let Ok(was) = tree.replace(self.cpu, place, spot.raw, hold) else {
            met("hold lost to another writer");
            return Err(busy);
        };
        // O30: the leaf is owned before we look whether it may have more rights. Pairs with O31, in `space`.
        full_barrier(30);
        let Entry::Leaf(leaf) = tree.format.decode(was, height) else { return Err(busy) };
        Ok(HeldLeaf { view: self, ipa, place, leaf, held: hold(was), next: leaf.attrs })
    }
}

impl<F: Format, M: Entries + Pages, R> HeldLeaf<'_, '_, F, M, R> {
    /// Returns the leaf as it was when it was taken hold of.
    pub const fn leaf(&self) -> Leaf {
        self.leaf
    }

    /// Returns the leaf's height.
    pub const fn height(&self) -> Height {
        self.place.height
    }

    /// Returns the addresses that the leaf translates.
    pub fn range(&self) -> Range {
        covered::<F>(self.ipa, self.place.height)
    }

    /// Lets go of the leaf with the rights in `access` added, and has this CPU forget the stricter copy, or everybody where
    /// an IOMMU is attached. With the right
    /// to write comes the dirty flag: the write that asked for it is about to be made.
    pub fn allow<I: Invalidate>(mut self, cpu: &I, access: Access) {
        self.next.access |= access;
        if access.contains(Access::WRITE) && !mutant("write-allowed-and-not-marked") {
            self.next.marks |= Marks::DIRTY;
        }
        self.next.marks |= Marks::YOUNG;
        let tree = self.view.tree;
        let restraint = tree.restraint();
        self.next = restraint.dress(self.next);
        let owed = tree.owed_for_more(self.range());
        // A CPU that holds the stricter copy faults, and asks again. For an IOMMU, who finds the right given must not say so
        // before it has forgotten that copy: so this is in flight, as what takes rights away is.
        let flight = (restraint.is_shared() && !mutant("allowed-and-not-counted")).then(|| tree.depart());
        drop(self);
        owed.discharge(cpu).into_inner();
        drop(flight);
    }
}

impl<F: Format, M: Entries + Pages, R> HeldLeaf<'_, '_, F, M, R> {
    /// Lets go of the leaf as `owner`'s. Only software reads whose it is, so that nothing is owed; whoever pins by this
    /// entry, and looks again, finds it changed.
    pub fn pass_to(mut self, owner: Owner) {
        self.next.owner = owner;
    }
}

impl<F: Format, M: Entries + Pages, R> Drop for HeldLeaf<'_, '_, F, M, R> {
    fn drop(&mut self) {
        let (tree, place) = (self.view.tree, self.place);
        let next = self.next;
        tree.relinquish(self.view.cpu, place, self.held, |live| match live {
            Live::Leaf(leaf) => {
                // What the hardware has set meanwhile stays set.
                let marks = next.marks | (leaf.attrs.marks & (Marks::YOUNG | Marks::DIRTY));
                Live::Leaf(Leaf { attrs: Attrs { marks, ..next }, ..leaf })
            }
            link @ Live::Table(_) => link,
        });
    }
}
