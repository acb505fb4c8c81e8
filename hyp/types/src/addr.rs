//! Addresses and address-space tags.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Makes an address of the number of bytes from zero.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// Returns the address as a number of bytes from zero.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Returns the address `bytes` further on, or `None` where that is beyond 2⁶⁴.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Returns the address `bytes` further on, wrapping at 2⁶⁴: for sums that the caller has bounded.
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// Rounds down to a multiple of `size`, a power of two.
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// Rounds up to a multiple of `size`, a power of two; `None` where that is beyond 2⁶⁴.
            pub const fn align_up(self, size: u64) -> Option<Self> {
                match self.0.checked_add(size - 1) {
                    Some(sum) => Some(Self(sum & !(size - 1))),
                    None => None,
                }
            }

            /// Tells whether this is a multiple of `size`, a power of two.
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// Returns the bytes from `base` up to this address; `None` where `base` is above it.
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An intermediate physical address: what a guest takes for a physical one, and stage 2 translates.
    /// On x86-64 this is the guest-physical address.
    Ipa, "ipa"
}

address! {
    /// A physical address of the machine.
    Pa, "pa"
}

/// The tag under which TLBs keep one space's translations (DDI 0487, D8.16 "VMID").
///
/// 8 or 16 bits wide as the CPU has it; 0 is never given to a space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vmid(pub u16);
