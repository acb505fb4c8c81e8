//! One VM's memory: regions, faults, population, VMIDs.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
