//! This CPU's memory-type range registers; what they mean, [`ept::mtrr`] knows.

use crate::instr::rdmsr;
use ept::mtrr::{FIXED, FIXED_NUMBERS, MAX_VARIABLE, Mtrrs};
use raw_cpuid::{CpuId, FeatureInfo};
use x86::msr;

/// The register that says which there are.
pub const CAPABILITIES: u32 = msr::IA32_MTRRCAP;

/// Reads them; `None` where the CPU has none.
pub fn of_this_cpu() -> Option<Mtrrs> {
    let cpuid = CpuId::new();
    cpuid.get_feature_info().filter(FeatureInfo::has_mtrr)?;
    // Wider addresses than this are told where there are any.
    const WIDTH: u8 = 36;
    let width = cpuid.get_processor_capacity_feature_info();
    Some(read(width.map_or(WIDTH, |info| info.physical_address_bits())))
}

fn read(width: u8) -> Mtrrs {
    let mut mtrrs = Mtrrs {
        cap: rdmsr(CAPABILITIES),
        default: rdmsr(msr::IA32_MTRR_DEF_TYPE),
        fixed: [0; FIXED],
        variable: [(0, 0); MAX_VARIABLE],
        width,
    };
    if mtrrs.has_fixed() {
        mtrrs.fixed = FIXED_NUMBERS.map(rdmsr);
    }
    let count = mtrrs.count();
    let numbers = (msr::IA32_MTRR_PHYSBASE0..).step_by(2);
    for (slot, number) in mtrrs.variable.iter_mut().take(count).zip(numbers) {
        *slot = (rdmsr(number), rdmsr(number + 1));
    }
    mtrrs
}

/// Goes through the numbers of all that there can be and that may be written.
pub fn all() -> impl Iterator<Item = u32> {
    let variable = msr::IA32_MTRR_PHYSBASE0..msr::IA32_MTRR_PHYSBASE0 + 2 * MAX_VARIABLE as u32;
    variable.chain(FIXED_NUMBERS).chain([msr::IA32_MTRR_DEF_TYPE])
}

/// Tells whether a register is one of [`all`], and this CPU has it.
pub fn is_one(register: u32) -> bool {
    let cap = || rdmsr(CAPABILITIES);
    match register {
        msr::IA32_MTRR_DEF_TYPE => true,
        msr::IA32_MTRR_PHYSBASE0..msr::IA32_MTRR_FIX64K_00000 => {
            u64::from(register - msr::IA32_MTRR_PHYSBASE0) / 2 < cap() & 0xff
        }
        _ => FIXED_NUMBERS.contains(&register) && cap() >> 8 & 1 == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect;
    use ept::mtrr::Type;

    #[test]
    fn only_registers_that_there_are_are_read() {
        effect::reset();
        // Two variable ranges, no fixed ones: reading any other register would panic.
        for (register, value) in [
            (0xfe, 2),
            (0x2ff, 1 << 11),
            (0x200, 6),
            (0x201, 0xf_f800_0800),
            (0x202, 0x10_0000_0001),
            (0x203, 0x800),
        ] {
            effect::script(register, value);
        }
        let mtrrs = read(36);
        assert_eq!(mtrrs.variable[..2], [(6, 0xf_f800_0800), (0x10_0000_0001, 0x800)]);
        assert_eq!(mtrrs.at(0x7ff_ffff), Type::Uncacheable, "the second is over all");
        for (number, place) in FIXED_NUMBERS.into_iter().zip(1..) {
            effect::script(number, place);
        }
        effect::script(0xfe, 0x102);
        assert_eq!(read(36).fixed[10], 11);
    }

    #[test]
    fn they_are_told_from_their_neighbours_and_from_those_that_are_not_there() {
        effect::reset();
        effect::script(0xfe, 0x108);
        for register in [0x200, 0x201, 0x20f, 0x250, 0x258, 0x26f, 0x2ff] {
            assert!(is_one(register), "{register:#x}");
        }
        for register in [0x1ff, 0x210, 0x24f, 0x251, 0x260, 0x277, 0xfe, 0x2fe] {
            assert!(!is_one(register), "{register:#x}");
        }
        effect::script(0xfe, 0x10a);
        assert!(is_one(0x213) && !is_one(0x214));
        effect::script(0xfe, 0xa);
        assert!(is_one(0x213) && !is_one(0x250));
    }
}
