//! Lets a board's linker find `image.ld` and `image-x86.ld`, and says of which architecture the image is: `cfg(pc)` where it
//! is a PC's. On the host neither has an image, and both are compiled.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=image.ld");
    println!("cargo::rerun-if-changed=image-x86.ld");
    println!("cargo::rustc-link-search={}", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-check-cfg=cfg(pc)");
    let is = |name, value| var(name).as_deref() == Ok(value);
    if is("CARGO_CFG_TARGET_OS", "none") && is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        println!("cargo::rustc-cfg=pc");
    }
}
