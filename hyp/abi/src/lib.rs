//! Hypercall numbers and layouts, shared with guests.
//!
//! Calls follow the SMC Calling Convention (Arm DEN 0028), by HVC or by SMC alike: the function id in `W0`, arguments
//! from `X1` on, results from `X0` on. They lie in the vendor-specific hypervisor service range (owning entity 6).
//! A guest finds out where it runs by [`UID`]; what it may call then, by [`REVISION`] and [`calls::FEATURES`].
//!
//! [`control`] has the calls by which one machine runs others, [`share`] those by which machines share memory, [`calls`] those
//! on a guest's own memory, [`Status`] their answers, [`answers`] which call may answer what, [`page`] the registers through
//! which user space makes them, and [`Checksum`] what the engine computes.
//!
//! Neighbours: `vm` answers these calls; guest payloads make them.
#![no_std]
#![forbid(unsafe_code)]

pub mod answers;
pub mod calls;
mod checksum;
pub mod control;
pub mod page;
pub mod share;
mod status;

pub use checksum::Checksum;
pub use status::Status;

/// The first fast call of the vendor-specific hypervisor range, 32-bit convention (DEN 0028, 6).
pub const RANGE_32: u32 = 0x8600_0000;
/// The first fast call of the vendor-specific hypervisor range, 64-bit convention.
pub const RANGE_64: u32 = 0xc600_0000;

/// General service query: call UID. Returns [`UUID`] in `W0` to `W3`, see [`uuid_words`] (DEN 0028, 6.2).
pub const UID: u32 = 0x8600_ff01;
/// General service query: revision. Returns [`REVISION_MAJOR`] in `W0` and [`REVISION_MINOR`] in `W1`
/// (DEN 0028, 6.2).
pub const REVISION: u32 = 0x8600_ff03;

/// What tells this hypervisor from others: d3eb2f28-7f0c-4c3e-a1f9-6d657a7a616e, in the order in which it is written.
pub const UUID: [u8; 16] =
    [0xd3, 0xeb, 0x2f, 0x28, 0x7f, 0x0c, 0x4c, 0x3e, 0xa1, 0xf9, 0x6d, 0x65, 0x7a, 0x7a, 0x61, 0x6e];

/// Changes when a call changes its meaning: a guest must not go on with a number it does not know.
pub const REVISION_MAJOR: u32 = 0;
/// Changes when calls are added.
pub const REVISION_MINOR: u32 = 4;

/// SMCCC's "this function does not exist", in `W0` or `X0`.
pub const NOT_SUPPORTED: i64 = -1;

/// Returns a UUID as the call UID query returns it: bytes 0 to 3 in the first word, and so on, the lowest-numbered byte
/// in the least significant bits (DEN 0028, 6.2 "UUID").
pub const fn uuid_words(uuid: &[u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    let mut i = 0;
    while i < 4 {
        words[i] = u32::from_le_bytes([uuid[4 * i], uuid[4 * i + 1], uuid[4 * i + 2], uuid[4 * i + 3]]);
        i += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_is_no_answer_for_an_unknown_function() {
        // DEN 0028: a UUID whose first word is the "unknown function" value must not be chosen.
        assert_ne!(uuid_words(&UUID)[0], NOT_SUPPORTED as u32);
    }

    #[test]
    fn uuid_bytes_lie_in_words_lowest_first() {
        assert_eq!(uuid_words(&UUID), [0x282f_ebd3, 0x3e4c_0c7f, 0x656d_f9a1, 0x6e61_7a7a]);
    }

    #[test]
    fn calls_lie_in_the_vendor_hypervisor_range() {
        for id in [UID, REVISION] {
            assert_eq!(id >> 24 & 0x3f, 6);
            assert_eq!(id >> 31, 1);
        }
    }
}
