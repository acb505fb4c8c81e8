//! Links the payload as a position-independent image that relocates itself.

fn main() {
    println!("cargo::rerun-if-changed=payload.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("payload.ld");
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    for argument in ["-pie", "--no-dynamic-linker", "-znotext", "-znorelro", "-zmax-page-size=0x1000"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
