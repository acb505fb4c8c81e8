//! Links the image as `image-x86.ld` of the monitor lays it out: a static PIE that relocates itself.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        // -z notext: the precompiled core has relocations in read-only sections, which are applied before the map
        // makes them read-only.
        for argument in
            ["-Timage-x86.ld", "-pie", "--no-dynamic-linker", "-znotext", "-znorelro", "--build-id=none"]
        {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
