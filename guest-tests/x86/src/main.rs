//! The payload that runs inside a VM on x86-64, and tests what the hypervisor promises there.
//!
//! Lines: `PASS name`, `FAIL name: what`; at the end `N passed, N failed`. Then the machine is turned off. Two vCPUs: the
//! first runs the tests, the second writes without end to a page that the first names.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "a payload is the whole of what runs on its machine")]

#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod promises;

#[cfg(not(target_os = "none"))]
fn main() {
    println!("built for the host; it runs in a VM: `cargo xtask test --only pc`");
}
