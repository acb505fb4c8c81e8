//! How far above the pages an entry is.

use core::fmt;

/// The height of an entry or a table, counted from the leaf: an entry of height 0 maps a page.
///
/// Arm counts levels from the root and Intel from the leaf, and on Arm the root's level varies with the size of the
/// space; counting from the leaf gives one number to one block size on both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Height(u8);

impl Height {
    /// The height of page entries.
    pub const PAGE: Self = Self(0);

    /// Makes a height; 0 is the page.
    pub const fn new(height: u8) -> Self {
        Self(height)
    }

    /// Returns the height as a number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns the height of the entries in the table that an entry of this height links to; `None` at the page.
    pub const fn below(self) -> Option<Self> {
        match self.0 {
            0 => None,
            h => Some(Self(h - 1)),
        }
    }

    /// Returns the height of the entry that links to the table this height's entries are in.
    pub const fn above(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Debug for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
