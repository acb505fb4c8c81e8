//! Translation: the entry code has mapped the first 4 GiB at their own addresses, with all rights, on every CPU.

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// Tells whether this CPU's MMU is on: always.
pub const fn is_on() -> bool {
    true
}

/// What kind of memory a page is: the second stage decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Write-back cacheable, executable.
    Normal,
    /// Registers.
    Device,
}

/// How tests reach a guest-physical address below 4 GiB: each is mapped at its own.
#[derive(Clone, Copy, Debug)]
pub struct Window;

impl Window {
    /// Returns this CPU's window.
    pub const fn mine() -> Self {
        Self
    }

    /// Returns the virtual address of `address`.
    pub const fn at(self, address: u64, _: Memory) -> u64 {
        address
    }

    /// Returns the virtual addresses of both.
    pub const fn both(self, first: u64, second: u64, _: Memory) -> [u64; 2] {
        [first, second]
    }
}
