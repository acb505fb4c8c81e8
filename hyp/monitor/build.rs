//! Lets a board's linker find `image.ld`.

fn main() {
    println!("cargo::rerun-if-changed=image.ld");
    println!("cargo::rustc-link-search={}", env!("CARGO_MANIFEST_DIR"));
}
