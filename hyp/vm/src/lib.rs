//! Virtual machines: bundles, manifests, vCPUs, PSCI, and the virtual devices.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
