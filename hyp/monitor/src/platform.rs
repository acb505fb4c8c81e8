//! What a board may say about itself that its device tree does not.

use crate::tree::SerialKind;
use aarch64::guest::unwired::Interface;
use aarch64::psci::Psci;
use types::Pa;

/// A board. Everything has a default that is true for a machine whose device tree is complete and whose firmware has
/// PSCI; a board overrides what is not true for it.
///
/// Make one known with [`board!`](crate::board).
pub trait Platform: Sync {
    /// Returns the board's name, for the log.
    fn name(&self) -> &'static str;

    /// Returns where a serial port is, set up by firmware, and of what kind, for messages that there is no usable device tree.
    ///
    /// Called on the boot CPU, with the MMU off and before anything else of the hypervisor runs: may touch nothing.
    fn last_resort_console(&self) -> Option<(SerialKind, Pa)> {
        None
    }

    /// Returns guests' CPU interface by software, where the GICv3's virtual interrupt reaches no CPU. Interrupts are slow there.
    ///
    /// Called on any CPU, before guests run: may touch nothing.
    fn interface(&self) -> Option<&'static Interface> {
        None
    }

    /// Turns the machine off; returns where that is impossible.
    ///
    /// Called on any CPU, once, at the end: with the MMU on or off, and after a bug. May touch the firmware and the
    /// board's own devices, may not allocate, log or take a lock. `psci` is the firmware, where the tree names one.
    fn power_off(&self, psci: Option<Psci>) {
        if let Some(psci) = psci {
            psci.system_off();
        }
    }

    /// Resets the machine; returns where that is impossible. Called as [`Platform::power_off`] is, but never after a
    /// bug.
    fn reset(&self, psci: Option<Psci>) {
        if let Some(psci) = psci {
            psci.system_reset();
        }
    }
}

/// A board that its device tree describes, but for what `board.toml` says.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// The board's name.
    pub name: &'static str,
    /// Where a serial port is, set up by firmware.
    pub last_resort_console: Option<(SerialKind, u64)>,
    /// Guests' CPU interface, where the GICv3's virtual interrupt reaches no CPU.
    pub interface: Option<&'static Interface>,
}

impl Platform for Described {
    fn name(&self) -> &'static str {
        self.name
    }

    fn last_resort_console(&self) -> Option<(SerialKind, Pa)> {
        self.last_resort_console.map(|(kind, at)| (kind, Pa::new(at)))
    }

    fn interface(&self) -> Option<&'static Interface> {
        self.interface
    }
}

/// Makes what the `board.toml` beside the crate's manifest describes the board of this image: all that a board is whose
/// device tree is complete. Its build script is `fn main() { board_file::generate() }`.
#[macro_export]
macro_rules! board_from_file {
    () => {
        $crate::board!(include!(concat!(env!("OUT_DIR"), "/board.rs")));
    };
}

/// Makes `$board`, a constant expression whose type implements [`Platform`], the board of this image.
///
/// On the host, where a board's crate is only checked, it makes a `main` that says so.
#[macro_export]
macro_rules! board {
    ($board:expr) => {
        #[cfg(target_os = "none")]
        const _: () = {
            /// Found by the monitor by its name.
            // SAFETY: the name is the monitor's, and an image has one board.
            #[allow(unsafe_code, reason = "the monitor finds the board by a symbol")]
            #[unsafe(no_mangle)]
            static MZ_PLATFORM: &dyn $crate::Platform = &$board;
        };
        #[cfg(not(target_os = "none"))]
        fn main() {
            let board: &dyn $crate::Platform = &$board;
            println!("{}: built for the host; an image is made by `cargo xtask image`", board.name());
        }
    };
}

#[cfg(target_os = "none")]
unsafe extern "Rust" {
    safe static MZ_PLATFORM: &'static dyn Platform;
}

/// Returns the board of this image.
#[cfg(target_os = "none")]
pub(crate) fn board() -> &'static dyn Platform {
    MZ_PLATFORM
}

/// Returns a board that has nothing.
#[cfg(not(target_os = "none"))]
pub(crate) fn board() -> &'static dyn Platform {
    struct Host;
    impl Platform for Host {
        fn name(&self) -> &'static str {
            "host"
        }
    }
    &Host
}
