//! What can be wrong with a bundle, its manifest, or a virtual machine in it: one clear sentence each.

use crate::{bundle::BadBundle, host::RamError, image::BadImage};
use alloc::string::String;
use core::fmt;
use types::Range;

/// Why the virtual machines of a bundle cannot be made, or one cannot be loaded.
///
/// These come up before any guest runs, and are for the person who made the bundle, so they carry the names that are
/// written there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// The archive is no bundle.
    Bundle(BadBundle),
    /// The manifest as a whole is not what it must be.
    Manifest(BadManifest),
    /// One virtual machine is not what it must be.
    Vm {
        /// Its name.
        vm: String,
        /// What is wrong.
        fault: BadVm,
    },
}

/// What is wrong with a manifest as a text. Lines count from 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadManifest {
    /// The bundle has no `manifest.toml`.
    Absent,
    /// It is longer than a manifest may be.
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// It is no UTF-8.
    NotText {
        /// The offset of the first bad byte.
        at: usize,
    },
    /// Its arrays, tables or dotted keys are nested deeper than any manifest needs.
    TooDeep {
        /// The line.
        line: usize,
    },
    /// It is no TOML.
    Syntax {
        /// The line.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that no manifest has.
    UnknownKey {
        /// The key.
        key: String,
        /// The table it is in.
        table: &'static str,
        /// Its line.
        line: usize,
    },
    /// A key that must be there is not.
    MissingKey {
        /// The key.
        key: &'static str,
        /// The table it should be in.
        table: &'static str,
        /// The line of the table.
        line: usize,
    },
    /// A value of the wrong type.
    WrongType {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
        /// The value's line.
        line: usize,
    },
    /// A number that is out of every range.
    BadNumber {
        /// The key.
        key: &'static str,
        /// The value's line.
        line: usize,
    },
    /// A version that this hypervisor does not read.
    Version {
        /// What it says.
        found: u64,
    },
    /// It lists no machine.
    NoVms,
    /// Two machines have one name.
    TwoOfOneName {
        /// The name.
        name: String,
    },
    /// A machine's name is empty or has a character that would spoil the log.
    BadName {
        /// The name.
        name: String,
    },
}

/// What is wrong with one virtual machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadVm {
    /// A size that does not read as one.
    BadSize {
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
    },
    /// Memory that is not a multiple of 2 MiB, or none.
    Unaligned {
        /// The key.
        key: &'static str,
        /// What it says, in bytes.
        value: u64,
    },
    /// More memory than there is.
    TooLarge {
        /// Bytes it wants.
        wanted: u64,
        /// Bytes that are left for it.
        free: u64,
    },
    /// Memory beyond the guest's addresses.
    BeyondSpace {
        /// The memory.
        range: Range,
        /// Bits of an address.
        bits: u8,
    },
    /// Memory where something else is.
    Overlap {
        /// The memory.
        range: Range,
        /// What it overlaps: another region, or a device.
        with: &'static str,
        /// Where that is.
        other: Range,
    },
    /// A number of vCPUs that no machine has.
    VcpuCount {
        /// What it says.
        vcpus: u64,
        /// How many a VM may have here.
        most: usize,
    },
    /// `cpus` has not one entry per vCPU.
    PlacementCount {
        /// Its entries.
        cpus: usize,
        /// The vCPUs.
        vcpus: usize,
    },
    /// A CPU that the machine has not.
    NoSuchCpu {
        /// What it says.
        cpu: u64,
        /// The number of CPUs.
        cpus: usize,
    },
    /// A CPU that as many vCPUs belong to as can.
    CpuFull {
        /// The CPU.
        cpu: u64,
    },
    /// A word that is none of those that can be chosen.
    BadChoice {
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        choices: &'static str,
    },
    /// A key that means nothing on this architecture, or for a guest of this role.
    NotHere {
        /// The key.
        key: &'static str,
        /// Where it means nothing.
        place: &'static str,
    },
    /// Two keys that say what cannot be at once.
    Contradiction {
        /// One, with what it says.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// One device twice.
    TwoDevices {
        /// Which.
        device: &'static str,
    },
    /// A block device without a disk's contents, or the contents without the device.
    DiskAlone {
        /// What the manifest says.
        there: &'static str,
        /// What it does not say.
        missing: &'static str,
    },
    /// A file that is no disk: not of whole sectors, or too large.
    BadDisk {
        /// The file.
        name: &'static str,
        /// Its bytes.
        bytes: usize,
    },
    /// A file that is not in the bundle.
    NoFile {
        /// The key that names it.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// A kernel that cannot be loaded.
    Kernel {
        /// The file.
        name: &'static str,
        /// Why not.
        fault: BadImage,
    },
    /// No room for a part of what is to be loaded.
    NoRoom {
        /// Which part.
        part: &'static str,
        /// Its bytes.
        bytes: u64,
        /// The machine's main memory, in bytes.
        memory: u64,
    },
    /// What its kernel is told could not be made: a device tree, or start information.
    Start,
    /// Its memory could not be written.
    Ram(RamError),
}

impl Error {
    /// Makes the error of one machine.
    pub fn vm(name: &str, fault: BadVm) -> Self {
        Self::Vm { vm: name.into(), fault }
    }
}

impl From<BadBundle> for Error {
    fn from(error: BadBundle) -> Self {
        Self::Bundle(error)
    }
}

impl From<BadManifest> for Error {
    fn from(error: BadManifest) -> Self {
        Self::Manifest(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(error) => error.fmt(f),
            Self::Manifest(error) => error.fmt(f),
            Self::Vm { vm, fault } => write!(f, "VM {vm:?}: {fault}"),
        }
    }
}

impl fmt::Display for BadManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the bundle has no manifest.toml"),
            Self::TooLong { bytes } => write!(f, "manifest.toml is too long: {bytes} bytes"),
            Self::NotText { at } => write!(f, "manifest.toml is not UTF-8 text: the byte at offset {at}"),
            Self::TooDeep { line } => write!(f, "manifest.toml, line {line}: nested too deep"),
            Self::Syntax { line, message } => write!(f, "manifest.toml, line {line}: {message}"),
            Self::UnknownKey { key, table, line } => {
                write!(f, "manifest.toml, line {line}: unknown key {key:?} in {table}")
            }
            Self::MissingKey { key, table, line } => {
                write!(f, "manifest.toml, line {line}: {table} has no {key:?}")
            }
            Self::WrongType { key, expected, line } => {
                write!(f, "manifest.toml, line {line}: {key:?} must be {expected}")
            }
            Self::BadNumber { key, line } => {
                write!(f, "manifest.toml, line {line}: {key:?} is not a number from 0 to 2^64 - 1")
            }
            Self::Version { found } => {
                write!(f, "manifest.toml is of version {found}; this hypervisor reads version 1")
            }
            Self::NoVms => f.write_str("manifest.toml lists no VM: it needs at least one [[vm]]"),
            Self::TwoOfOneName { name } => write!(f, "manifest.toml lists two VMs called {name:?}"),
            Self::BadName { name } => {
                write!(
                    f,
                    "manifest.toml: {name:?} is no name for a VM (printable ASCII without spaces, up to 32)"
                )
            }
        }
    }
}

impl fmt::Display for BadVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadSize { key, value } => {
                write!(f, "{key} = {value:?} is no size: use a number with K, M or G, like \"512M\"")
            }
            Self::Unaligned { key, value } => {
                write!(f, "{key} = {value:#x} is not a multiple of 2 MiB, or zero")
            }
            Self::TooLarge { wanted, free } => {
                write!(f, "it wants {} MiB of memory, and {} MiB are free", wanted >> 20, free >> 20)
            }
            Self::BeyondSpace { range, bits } => {
                write!(f, "memory at {range} is beyond its {bits}-bit addresses")
            }
            Self::Overlap { range, with, other } => {
                write!(f, "memory at {range} overlaps {with} at {other}")
            }
            Self::VcpuCount { vcpus, most } => write!(f, "vcpus = {vcpus}: a VM has 1 to {most}"),
            Self::PlacementCount { cpus, vcpus } => {
                write!(f, "cpus places {cpus} vCPUs, and it has {vcpus}")
            }
            Self::NoSuchCpu { cpu, cpus } => {
                write!(f, "cpus names CPU {cpu}, and this machine has CPUs 0 to {}", cpus.saturating_sub(1))
            }
            Self::CpuFull { cpu } => {
                write!(f, "CPU {cpu} runs {} vCPUs already, and can run no more", crate::sched::MAX_SEATS)
            }
            Self::BadChoice { key, value, choices } => {
                write!(f, "{key} = {value:?}: it must be one of {choices}")
            }
            Self::Contradiction { one, other } => write!(f, "{one} and {other} contradict each other"),
            Self::NotHere { key, place } => write!(f, "{key} means nothing {place}"),
            Self::TwoDevices { device } => write!(f, "devices lists {device:?} twice"),
            Self::DiskAlone { there, missing } => write!(f, "{there} needs {missing}, too"),
            Self::BadDisk { name, bytes } => {
                write!(f, "disk {name:?} has {bytes} bytes: it must be of 512-byte sectors, up to 512 MiB")
            }
            Self::NoFile { key, name } => write!(f, "{key} = {name:?} is not in the bundle"),
            Self::Kernel { name, fault } => write!(f, "kernel {name:?} {fault}"),
            Self::NoRoom { part, bytes, memory } => {
                write!(f, "no room for its {part} ({bytes} bytes) in {} MiB of main memory", memory >> 20)
            }
            Self::Start => f.write_str(
                "what its kernel is told cannot be made: the command line is too long or has a zero byte",
            ),
            Self::Ram(error) => write!(f, "it cannot be loaded: {error}"),
        }
    }
}
