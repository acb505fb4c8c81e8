//! Links the payloads as position-independent images whose first byte is their entry point.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=payload.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("payload.ld");
    let args = [
        format!("-T{}", script.display()),
        // The entry code relocates the image itself. Code compiled for a fixed address may keep pointers in read-only
        // sections: nothing protects those before they are relocated, hence `notext`.
        "-pie".into(),
        "--no-dynamic-linker".into(),
        "-znotext".into(),
        "-znorelro".into(),
        "-zmax-page-size=0x1000".into(),
    ];
    for arg in args {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
