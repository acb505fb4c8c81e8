//! What the machine is, read from its device tree (Devicetree Specification 0.4; Linux' bindings for the devices).
//!
//! The tree comes from outside: a tree with anything missing or malformed gives an error, never a panic. Reading it
//! allocates nothing and takes no lock, so that it works before the MMU is on.
//!
//! Neighbours: [`crate::boot`] reads it first of all; `place` knows how nodes hang together.

mod console;
mod form;
mod hardware;
mod place;
#[cfg(test)]
pub(crate) mod tests;

pub use console::{ConsoleAt, SerialKind, find_console, find_second};
pub use form::Malformed;
pub use hardware::{
    CpuAt, EnableMethod, Entropy, GicAt, GicRest, Hardware, Initrd, Interrupts, MAX_BANKS, MAX_RESERVED,
    TreeError, find_psci, read,
};

use dtoolkit::fdt::Fdt;

/// Why there is no tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoTree {
    /// The loader's pointer does not point to one.
    Magic {
        /// The pointer.
        at: u64,
    },
    /// There is one, and it contradicts its own format.
    Malformed(Malformed),
}

impl core::fmt::Display for NoTree {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic { at } => {
                write!(f, "no device tree: the loader gave {at:#x} in x0, and none is there")
            }
            Self::Malformed(error) => write!(f, "the device tree is malformed: it has {error}"),
        }
    }
}

/// The first word of every tree.
const MAGIC: u32 = 0xd00d_feed;
/// More than any tree has.
const LARGEST: u32 = 16 << 20;

/// Finds the tree that the loader put at `at`.
///
/// # Safety
/// Memory at `at` may be read, and if it holds a tree's header, for as many bytes as that says, for ever and unchanged.
pub unsafe fn from_loader(at: u64) -> Result<Fdt<'static>, NoTree> {
    let start = core::ptr::with_exposed_provenance::<u8>(at as usize);
    if at == 0 || !at.is_multiple_of(8) {
        return Err(NoTree::Magic { at });
    }
    // SAFETY: the caller's promise; aligned, as just checked, which matters with the MMU off.
    let (magic, size) = unsafe { (start.cast::<u32>().read(), start.cast::<u32>().add(1).read()) };
    let size = u32::from_be(size);
    if u32::from_be(magic) != MAGIC || size > LARGEST {
        return Err(NoTree::Magic { at });
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { core::slice::from_raw_parts(start, size as usize) };
    parse(bytes).map_err(NoTree::Malformed)
}

/// Takes the tree that `bytes`, all of them, are.
pub(crate) fn parse(bytes: &[u8]) -> Result<Fdt<'_>, Malformed> {
    form::check(bytes)?;
    Ok(Fdt::new_unchecked(bytes))
}
