//! Payloads that run inside a VM.
fn main() {}
