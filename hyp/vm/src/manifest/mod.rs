//! The manifest: what the bundle says of each virtual machine.
//!
//! [`configure`] goes from the archive to checked configurations, or to the one sentence that says what is wrong.
//! `read` knows TOML and the manifest's keys; `check` knows the machine.

mod check;
mod read;
#[cfg(test)]
mod tests;

pub use crate::bundle::File;

use crate::{
    bundle::{BadBundle, Bundle},
    error::{BadManifest, Error},
    gic::GicVersion,
    map,
};
use alloc::{string::String, vec::Vec};
use types::{CpuId, FRAME_SIZE, Height, Ipa, Range};

/// The manifest's name in the bundle.
pub const MANIFEST: &str = "manifest.toml";
/// Where the main memory of a guest begins that has the machine: firmware has what is below.
const PRIMARY_START: Ipa = Ipa::new(1 << 20);
/// The most bytes that a manifest may have. Beyond that it is something else.
const MOST_BYTES: usize = 64 << 10;

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
    /// Whose instructions it has.
    pub isa: Isa,
    /// The initial file system, where it has one.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub cmdline: String,
    /// When frames are put behind its memory.
    pub populate: Populate,
    /// The largest mapping that its memory is put behind addresses with.
    pub largest: Largest,
    /// Which calls on its own memory it may make.
    pub hypercalls: Granted,
    /// What it is to the others.
    pub role: Role,
    /// Whether it makes machines of templates, runs and ends them (`abi::control`).
    pub is_controller: bool,
    /// Its virtio devices, in the order of their slots; none twice.
    pub devices: Vec<DeviceKind>,
    /// What is on its disk at every start, where it has a block device.
    pub disk: Option<File>,
    /// The physical CPU that each vCPU belongs to, in the order of the vCPUs' numbers. Several may belong to one.
    pub cpus: Vec<CpuId>,
}

impl VmConfig {
    /// Returns the number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.cpus.len()
    }

    /// Returns main memory. Of a guest that has the machine: the machine's, from 1 MiB on.
    pub fn main_memory(&self) -> Range {
        let (start, end) = match self.role {
            Role::Primary => (PRIMARY_START, Ipa::new(self.memory)),
            Role::Guest | Role::Template => (map::RAM, map::RAM.wrapping_add(self.memory)),
        };
        Range::new(start, end).unwrap_or(Range::block_around(start, 1))
    }

    /// Returns all memory, main memory first.
    pub fn memory(&self) -> impl Iterator<Item = Range> {
        core::iter::once(self.main_memory()).chain(self.regions.iter().copied())
    }

    /// Returns the calls that it has besides those on its memory, where it is granted these. Who has the machine neither lends nor
    /// gives: devices reach its memory by DMA, at the machine's own addresses.
    pub const fn besides(&self) -> &'static [&'static [u32]] {
        match (self.role, self.is_controller) {
            (Role::Primary, false) => &[],
            (Role::Primary, true) => &[&abi::control::ALL],
            (Role::Guest | Role::Template, false) => &[&abi::share::ALL],
            (Role::Guest | Role::Template, true) => &[&abi::share::ALL, &abi::control::ALL],
        }
    }

    /// Returns where its control page is, where it is granted the calls.
    pub fn control_page(&self) -> Option<Range> {
        let start = match self.role {
            Role::Primary => map::CONTROL_OF_PRIMARY,
            Role::Guest | Role::Template => map::CONTROL,
        };
        let is_there = self.hypercalls != Granted::Nothing;
        is_there.then(|| Range::block_around(start, map::CONTROL_SIZE))
    }

    /// Returns the bytes of frames that it may come to have: its memory, and as much again as its disk has, since all of
    /// that may be written.
    pub fn frames_bytes(&self) -> u64 {
        let disk = self.disk.map_or(0, |disk| disk.bytes.len() as u64).next_multiple_of(FRAME_SIZE);
        self.memory().map(Range::len).sum::<u64>() + disk
    }
}

/// A virtio device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A console.
    Console,
    /// A disk.
    Block,
    /// Random numbers.
    Entropy,
}

impl DeviceKind {
    /// Every kind, by the name that the manifest gives it.
    const NAMES: [(&'static str, Self); 3] =
        [("console", Self::Console), ("block", Self::Block), ("entropy", Self::Entropy)];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(found, _)| *found == name).map(|(_, kind)| *kind)
    }
}

/// An instruction set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// AArch64.
    Aarch64,
    /// x86-64; kernels are entered in 32-bit protected mode.
    X86,
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
    /// Linux for x86-64: a `bzImage`.
    Linux,
}

/// When frames are put behind a machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Populate {
    /// When the guest first touches it.
    Fault,
    /// Before the guest starts.
    Ahead,
}

/// The largest mapping that a machine's memory is put behind addresses with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Largest {
    /// A page of 4 KiB.
    Page,
    /// A block of 2 MiB.
    Block2M,
    /// A block of 1 GiB: whatever fits.
    Block1G,
}

impl Largest {
    /// Returns the height of the entries that map as much.
    pub const fn height(self) -> Height {
        match self {
            Self::Page => Height::PAGE,
            Self::Block2M => Height::new(1),
            Self::Block1G => Height::new(2),
        }
    }
}

/// Which of the calls on its own memory ([`crate::service`]) a machine may make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granted {
    /// None: there are no such functions, and no control page.
    Nothing,
    /// Those that leave its memory as it is ([`abi::calls::LOOKS`]): all that a machine has which has the hardware.
    Looks,
    /// All on its own memory.
    All,
    /// These, and those that begin and stop the machine's trace.
    Trace,
}

/// What a machine is to the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Nothing: it starts when the hypervisor does.
    Guest,
    /// It is what a controller makes machines of, and does not run itself.
    Template,
    /// It has the machine: its devices, its interrupts, and its memory from address 0 on. x86-64 only, and one at most.
    Primary,
}

/// What the machine has for its guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of memory that may be given to guests, all in all.
    pub free: u64,
    /// The number of CPUs.
    pub cpus: usize,
    /// Bits of an intermediate physical address.
    pub ipa_bits: u8,
    /// Which interrupt controller guests get.
    pub gic: GicVersion,
    /// The CPUs' instruction set.
    pub isa: Isa,
}

/// Reads a bundle and checks every virtual machine in it against what this machine has.
pub fn configure(bundle: Option<&'static [u8]>, limits: &Limits) -> Result<Vec<VmConfig>, Error> {
    let bundle = Bundle::new(bundle.ok_or(BadBundle::Absent)?)?;
    let manifest = bundle.find(MANIFEST).ok_or(BadManifest::Absent)?;
    if manifest.bytes.len() > MOST_BYTES {
        return Err(BadManifest::TooLong { bytes: manifest.bytes.len() }.into());
    }
    let text = core::str::from_utf8(manifest.bytes)
        .map_err(|error| BadManifest::NotText { at: error.valid_up_to() })?;
    check::check(read::read(text)?, &bundle, limits)
}
