//! What the CPUs have.

/// Returns the bits of a physical address that ID_AA64MMFR0_EL1.PARange = `pa_range` stands for (DDI 0487, D24.2);
/// the least there is where the value is reserved.
pub const fn pa_bits(pa_range: u64) -> u32 {
    match pa_range {
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        6 => 52,
        7 => 56,
        _ => 32,
    }
}
