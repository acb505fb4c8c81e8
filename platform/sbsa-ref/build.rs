//! Compiles `board.toml` in, and links the firmware at the start of flash.

fn main() {
    board_file::generate();
    println!("cargo::rerun-if-changed=el3.S");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        for argument in
            ["--image-base=0", "-Ttext=0", "--no-dynamic-linker", "--build-id=none", "-e_start", "-n"]
        {
            println!("cargo::rustc-link-arg-bin=sbsa-ref-el3={argument}");
        }
    }
}
