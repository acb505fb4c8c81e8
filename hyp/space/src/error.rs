//! What can be wrong with a space.

use core::fmt;
use types::{Ipa, Range};

/// Why something could not be done with a space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceError {
    /// Two regions claim the same addresses.
    RegionsOverlap {
        /// The region that is there.
        there: Range,
        /// The region that was to be added.
        new: Range,
    },
    /// The space has [`MAX_REGIONS`](crate::MAX_REGIONS) regions.
    TooManyRegions,
    /// The region is empty, not a multiple of the granule, or beyond the addresses that the space translates.
    BadRegion {
        /// The addresses asked for.
        range: Range,
    },
    /// No region holds this address.
    NoRegion {
        /// The address.
        ipa: Ipa,
    },
    /// The region at this address is not made of this machine's RAM, so it has no contents to read or write.
    NotRam {
        /// The address.
        ipa: Ipa,
    },
    /// No frame is free for this address.
    OutOfMemory {
        /// The address.
        ipa: Ipa,
    },
    /// No page is free, or left in the space's budget, for a table on the way to this address.
    OutOfTables {
        /// The address.
        ipa: Ipa,
    },
    /// No dirty log runs, or another one than the cursor is of.
    NoLog,
    /// A dirty log runs.
    LogRuns,
    /// The space is dying: nothing begins any more.
    Dying,
    /// An IOMMU is attached that could not stand this: accesses of its devices would fail.
    DeviceWouldFault {
        /// The address.
        ipa: Ipa,
    },
    /// The space was not made with this IOMMU, or it is not attached.
    NoIommu,
    /// The IOMMU is attached already.
    Attached,
    /// As many spaces have an IOMMU attached as there can be: no further VMID can be kept for one.
    NoVmids,
    /// Another CPU is changing the space here. Pass a quiescent point and try again.
    Busy {
        /// The address.
        ipa: Ipa,
    },
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RegionsOverlap { there, new } => write!(f, "memory regions {new} and {there} overlap"),
            Self::TooManyRegions => write!(f, "more than {} memory regions", crate::MAX_REGIONS),
            Self::BadRegion { range } => {
                write!(
                    f,
                    "memory region {range} is empty, not aligned to pages, or out of the VM's address space"
                )
            }
            Self::NoRegion { ipa } => write!(f, "no memory region at {ipa}"),
            Self::NotRam { ipa } => write!(f, "the memory region at {ipa} is not RAM"),
            Self::OutOfMemory { ipa } => write!(f, "no memory left for {ipa}"),
            Self::OutOfTables { ipa } => write!(f, "no memory left for the tables of {ipa}"),
            Self::NoLog => write!(f, "no such dirty log runs"),
            Self::LogRuns => write!(f, "a dirty log runs"),
            Self::Dying => write!(f, "the VM's memory is going back"),
            Self::DeviceWouldFault { ipa } => {
                write!(f, "a device of the VM could not stand what was to be done at {ipa}")
            }
            Self::NoIommu => write!(f, "no such IOMMU is attached to the VM"),
            Self::Attached => write!(f, "the IOMMU is attached to the VM already"),
            Self::NoVmids => write!(f, "no VMID is left to be kept for an IOMMU"),
            Self::Busy { ipa } => write!(f, "the mapping at {ipa} is being changed"),
        }
    }
}

impl core::error::Error for SpaceError {}
