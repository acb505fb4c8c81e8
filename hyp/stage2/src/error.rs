//! What can keep an operation from being done, said so that the caller knows what to do next.

use types::{Height, Ipa};

/// Why a mapping was not made. The call that returns this changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// Another CPU is changing this entry. Re-run the guest, which will fault again if it must; or leave the
    /// section, and try again.
    Busy {
        /// The first address not mapped.
        ipa: Ipa,
        /// The height of the entry.
        height: Height,
    },
    /// A mapping is already here. Where a fault wants it as it is, [`Owed::relax`](crate::Owed::relax) is owed.
    Occupied {
        /// The first address not mapped.
        ipa: Ipa,
        /// The height of the leaf.
        height: Height,
    },
    /// A note is here. Unmap it first, if that is right.
    Noted {
        /// The first address not mapped.
        ipa: Ipa,
        /// The height of the note.
        height: Height,
    },
    /// There is no page for a new table, or for what splitting a block would need, and none is on its way back. Nothing
    /// was changed.
    NoPages,
    /// The range or the physical address is not a multiple of the granule, or beyond what the tree or the format
    /// reaches. A bug of the caller, or bad input that it should have refused.
    Unmappable,
}

/// Why a change to existing mappings was not made. What was changed before the failing address is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeError {
    /// Another CPU keeps changing this entry. Pass a quiescent point, and go on from here.
    Busy {
        /// The address to go on from.
        ipa: Ipa,
        /// The height of the entry.
        height: Height,
    },
    /// An IOMMU is attached that could not stand this ([`Restraint`](crate::Restraint)): a block would have to be broken
    /// to be split, or moved; or leaves would become old or clean. Nothing was changed.
    DeviceWouldFault {
        /// An address in the entry.
        ipa: Ipa,
        /// The height of the entry.
        height: Height,
    },
    /// A note has to be split, and there is no page for the table, and none on its way back. Nothing was changed. (A
    /// block has its page in reserve, where [`Pages`](crate::Pages) keeps one.)
    NoPages {
        /// An address in the block.
        ipa: Ipa,
        /// The height of the block.
        height: Height,
    },
    /// The range is not a multiple of the granule, or beyond what the tree reaches.
    Unmappable,
}
