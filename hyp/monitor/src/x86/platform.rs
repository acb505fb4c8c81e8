//! What a board may say about itself that firmware does not.

/// A PC, or what emulates one. Make one known with [`x86_board!`](crate::x86_board).
pub trait Platform: Sync {
    /// Returns the board's name, for the log.
    fn name(&self) -> &'static str;

    /// Returns the writes to ports that turn the machine off; none where that is impossible.
    fn power_off(&self) -> &'static [PortWrite] {
        &[]
    }
}

/// Bytes to write to a port, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortWrite {
    /// The port.
    pub port: u16,
    /// The bytes.
    pub bytes: &'static [u8],
}

/// Makes `$board`, a constant expression whose type implements [`Platform`], the board of this image.
///
/// On the host, where a board's crate is only checked, it makes a `main` that says so.
#[macro_export]
macro_rules! x86_board {
    ($board:expr) => {
        #[cfg(target_os = "none")]
        const _: () = {
            /// Found by the monitor by its name.
            // SAFETY: the name is the monitor's, and an image has one board.
            #[allow(unsafe_code, reason = "the monitor finds the board by a symbol")]
            #[unsafe(no_mangle)]
            static MZ_PLATFORM: &dyn $crate::x86::Platform = &$board;
        };
        #[cfg(not(target_os = "none"))]
        fn main() {
            let board: &dyn $crate::x86::Platform = &$board;
            println!("{}: built for the host; an image is made by `cargo xtask image`", board.name());
        }
    };
}

#[cfg(pc)]
unsafe extern "Rust" {
    safe static MZ_PLATFORM: &'static dyn Platform;
}

/// Returns the board of this image.
#[cfg(pc)]
pub(crate) fn board() -> &'static dyn Platform {
    MZ_PLATFORM
}

/// Returns a board that has nothing.
#[cfg(not(pc))]
pub(crate) fn board() -> &'static dyn Platform {
    struct Host;
    impl Platform for Host {
        fn name(&self) -> &'static str {
            "host"
        }
    }
    &Host
}
