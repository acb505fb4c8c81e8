//! `board.toml`: what a board is, where its device tree does not say it, and how it is started in an emulator.
//!
//! Two read it: the build script of the board's crate, for what is compiled in ([`generate`]), and `cargo xtask`, for the rest.
//! A key that is not here is an error in both.
#![forbid(unsafe_code)]

mod generate;

pub use generate::generate;

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The file's name, in the board's folder.
pub const FILE: &str = "board.toml";

/// A board.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Description {
    /// What it is, in one line.
    pub description: String,
    /// What is promised of it: docs/porting.md says what each tier means.
    pub tier: Tier,
    /// When it was last seen to boot a guest, and on what: a date, and the emulator's version or the board's revision.
    pub checked: String,
    /// What has no place in its device tree.
    #[serde(default)]
    pub hardware: Hardware,
    /// How QEMU starts it, where it does.
    pub emulator: Option<Emulator>,
    /// That it is a PC, x86-64, and how Bochs starts it.
    pub pc: Option<Pc>,
}

/// What is promised of a board.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "u8")]
pub enum Tier {
    /// Every change is tested on it.
    One,
    /// Every change is built for it, and it is tested by hand.
    Two,
    /// It has worked once.
    Three,
}

impl TryFrom<u8> for Tier {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            3 => Ok(Self::Three),
            other => Err(format!("tier = {other}: it must be one of 1, 2, 3")),
        }
    }
}

impl Tier {
    /// Returns its number.
    pub const fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// What a device tree does not say, or cannot say when there is none.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Hardware {
    /// The physical address of a serial port that firmware has set up, for the message that there is no usable device tree.
    pub last_resort_console: Option<u64>,
    /// What kind of port that is.
    pub last_resort_kind: SerialKind,
    /// Whether the GICv3's virtual interrupt reaches the CPUs.
    pub virtual_interrupt_line: bool,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            last_resort_console: None,
            last_resort_kind: SerialKind::default(),
            virtual_interrupt_line: true,
        }
    }
}

/// A kind of serial port that there is a driver for.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SerialKind {
    /// Arm's PL011.
    #[default]
    Pl011,
    /// NXP's i.MX UART.
    Imx,
    /// Cadence's UART.
    Cadence,
}

/// How QEMU starts it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Emulator {
    /// QEMU's name of the machine.
    pub machine: String,
    /// Options of the machine that have a kernel entered at EL2.
    #[serde(default)]
    pub el2: String,
    /// Options of the machine that have a kernel entered at EL1, as on a machine without a hypervisor; absent where it has none.
    pub el1: Option<String>,
    /// Other machines that the same image is for, each by a name and its options instead of `el2`.
    #[serde(default)]
    pub variants: BTreeMap<String, String>,
    /// Whether the machine can be turned off by software.
    #[serde(default = "yes")]
    pub power_off: bool,
    /// The device tree, where QEMU makes none: a file of Debian's arm64 kernel package, below its folder of device trees.
    pub device_tree: Option<String>,
    /// The CPU model where none is asked for; absent where the machine has one model only.
    pub cpu: Option<String>,
    /// The fewest CPUs that the machine has.
    #[serde(default = "one")]
    pub least_cpus: u32,
    /// The most CPUs that the machine has; absent where it has as many as anybody wants.
    pub most_cpus: Option<u32>,
    /// The machine's RAM, as QEMU's `-m` has it, where it cannot be chosen.
    pub memory: Option<String>,
    /// Further arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Flash with firmware of the board's own, where QEMU brings none and enters no kernel by itself.
    pub flash: Option<Flash>,
}

/// What is in flash, and where the rest is put into RAM.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flash {
    /// The firmware: a binary of the board's crate, linked at 0, which is the first byte of flash.
    pub firmware: String,
    /// The source of the device tree, in the board's folder.
    pub device_tree: String,
    /// Where the firmware expects the device tree: an offset in flash.
    pub tree_at: u64,
    /// The size of flash in bytes.
    pub size: u64,
    /// The physical address of the image, a multiple of 2 MiB, where the firmware enters it.
    pub image_at: u64,
    /// The physical address of the bundle.
    pub bundle_at: u64,
}

const fn yes() -> bool {
    true
}

/// How Bochs starts a PC.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pc {
    /// The CPU model where none is asked for, as Bochs names it.
    pub cpu: String,
}

const fn one() -> u32 {
    1
}

/// Why there is no description.
#[derive(Debug)]
pub enum Wrong {
    /// The file cannot be read.
    Read(PathBuf, std::io::Error),
    /// It is no board's description.
    Parse(PathBuf, toml::de::Error),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::Parse(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for Wrong {}

/// Reads the description of the board in `folder`.
///
/// # Errors
/// [`Wrong`], which names the file.
pub fn read(folder: &Path) -> Result<Description, Wrong> {
    let path = folder.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return Err(Wrong::Read(path, error)),
    };
    toml::from_str(&text).map_err(|error| Wrong::Parse(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "description = \"a board\"\ntier = 3\nchecked = \"never\"\n";

    fn parse(text: &str) -> Result<Description, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let board = parse(LEAST).unwrap();
        assert_eq!((board.tier.number(), board.hardware, board.emulator), (3, Hardware::default(), None));
        let board = parse(&format!("{LEAST}[emulator]\nmachine = \"virt\"\n")).unwrap();
        let emulator = board.emulator.unwrap();
        assert_eq!((emulator.least_cpus, emulator.most_cpus, emulator.el1), (1, None, None));
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, names) in [
            ("tier = 1".to_owned(), "description"),
            (LEAST.replace('3', "4"), "tier = 4: it must be one of 1, 2, 3"),
            (format!("{LEAST}uart = 5"), "uart"),
            (format!("{LEAST}[hardware]\nlast-resort-console = \"here\""), "last-resort-console"),
            (format!("{LEAST}[emulator]\n"), "machine"),
            (format!("{LEAST}[pc]\n"), "cpu"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(names), "{names}: {error}");
        }
    }
}
