//! What a board's build script makes of its description: the constants that are compiled in.

use crate::{Description, FILE, SerialKind, read};
use std::env;
use std::fs;
use std::path::PathBuf;

/// The file of constants, in the folder of what the build script makes.
const CONSTANTS: &str = "board.rs";

/// How an arm64 image is linked: as `image.ld` of the monitor lays it out, a static PIE that relocates itself. The
/// precompiled core has relocations in read-only sections (-znotext), which are applied before the map makes them read-only.
const LINKED: [&str; 7] = [
    "-Timage.ld",
    "-pie",
    "--no-dynamic-linker",
    "-znotext",
    "-znorelro",
    "--build-id=none",
    "--pack-dyn-relocs=relr",
];

/// Does what every board's build script has to: has the linker use the hypervisor's script, and writes the constants
/// that `monitor::board_from_file!` takes. Ends the build, with the reason, where the description is wrong.
pub fn generate() {
    println!("cargo::rerun-if-changed={FILE}");
    println!("cargo::rerun-if-changed=build.rs");
    let cfg = |name| env::var(name).unwrap_or_default();
    if (cfg("CARGO_CFG_TARGET_OS"), cfg("CARGO_CFG_TARGET_ARCH")) == ("none".into(), "aarch64".into()) {
        for argument in LINKED {
            println!("cargo::rustc-link-arg-bin={}={argument}", cfg("CARGO_PKG_NAME"));
        }
    }
    let folder = |name| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let description = read(&folder("CARGO_MANIFEST_DIR")).unwrap_or_else(|wrong| fail(&wrong));
    let name = env::var("CARGO_PKG_NAME").unwrap_or_default();
    if let Err(error) = fs::write(folder("OUT_DIR").join(CONSTANTS), constants(&name, &description)) {
        fail(&error);
    }
}

fn fail(why: &dyn std::fmt::Display) -> ! {
    println!("cargo::error={}", why.to_string().trim_end().replace('\n', " "));
    std::process::exit(1)
}

/// Writes the expression that is the board.
fn constants(name: &str, board: &Description) -> String {
    let console = match board.hardware.last_resort_console {
        Some(at) => {
            let kind = match board.hardware.last_resort_kind {
                SerialKind::Pl011 => "Pl011",
                SerialKind::Imx => "Imx",
                SerialKind::Cadence => "Cadence",
            };
            format!("Some((::monitor::SerialKind::{kind}, {at:#x}))")
        }
        None => "None".to_owned(),
    };
    let interface =
        if board.hardware.virtual_interrupt_line { "None" } else { "Some(&::monitor::INTERFACE)" };
    format!(
        "::monitor::Described {{ name: {name:?}, last_resort_console: {console}, interface: {interface} }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_is_compiled_in() {
        let text =
            "description = \"b\"\ntier = 1\nchecked = \"\"\n[hardware]\nlast-resort-console = 0x900_0000\n";
        let board: Description = toml::from_str(text).unwrap();
        let made = constants("b", &board);
        assert_eq!(
            made,
            "::monitor::Described { name: \"b\", last_resort_console: \
                          Some((::monitor::SerialKind::Pl011, 0x9000000)), interface: None }\n"
        );
    }
}
