//! What the manifest says of each virtual machine.

use alloc::{string::String, vec::Vec};
use types::{CpuId, Range};

/// One virtual machine, as the manifest describes it: checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmConfig {
    /// Its name, in the log and the statistics.
    pub name: String,
    /// Bytes of main memory, from [`crate::map::RAM`] on; a multiple of [`crate::map::RAM_UNIT`].
    pub memory: u64,
    /// Further memory; bounds are multiples of [`crate::map::RAM_UNIT`]. Ascending, without overlaps.
    pub regions: Vec<Range>,
    /// The kernel.
    pub kernel: File,
    /// What the kernel is.
    pub format: Format,
    /// The initial file system, where it has one.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub cmdline: String,
    /// When frames are put behind its memory.
    pub populate: Populate,
    /// The physical CPU of each vCPU, in the order of the vCPUs' numbers. As many as there are vCPUs, none twice.
    pub cpus: Vec<CpuId>,
}

impl VmConfig {
    /// Returns the number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.cpus.len()
    }
}

/// A file of the bundle.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Its name there.
    pub name: &'static str,
    /// What is in it.
    pub bytes: &'static [u8],
}

impl core::fmt::Debug for File {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

/// What a kernel is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// An arm64 `Image`.
    Image,
    /// An ELF file.
    Elf,
    /// A flat binary.
    Flat,
}

/// When frames are put behind a machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Populate {
    /// When the guest first touches it.
    Fault,
    /// Before the guest starts.
    Ahead,
}
