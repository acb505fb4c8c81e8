//! The model-specific registers of guests.
//!
//! What is a vCPU's own state, and the CPU's only while it runs, it reads and writes itself. Every other access is an
//! exit, and almost every one of those an exception.

use x86::msr;
use x86_64::instr::rdmsr;
use x86_64::mtrr;
use x86_64::vmx::vmcs::Has;

/// Bytes of a bitmap: low and high registers that are read, then the same that are written (25.6.9).
pub(super) const BITMAP: usize = 4096;

/// Registers that are a vCPU's own: what the VMCS keeps, and what system calls of 64-bit programs need.
const OWN: [u32; 12] = [
    msr::IA32_EFER,
    msr::IA32_PAT,
    msr::IA32_FS_BASE,
    msr::IA32_GS_BASE,
    msr::IA32_KERNEL_GSBASE,
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
];

/// Registers that not even a guest has that has the machine: those of VMX.
const HIDDEN: core::ops::RangeInclusive<u32> = msr::IA32_VMX_BASIC..=msr::IA32_VMX_FMFUNC;

/// Returns the bitmap of a guest. One that has the machine reaches every register but VMX's, and writes all but those that
/// say whether there is VMX, where the APIC is (the hypervisor sends its kicks by that), and which types memory has: these are
/// in its tables, and the hypervisor's own memory is write-back.
pub(super) fn bitmap(has: Has) -> [u8; BITMAP] {
    let place = |register: u32| match register {
        0xc000_0000.. => (1024 + (register - 0xc000_0000) as usize / 8, register % 8),
        _ => (register as usize / 8, register % 8),
    };
    let (reads, writes) = (0, 2048);
    match has {
        Has::Nothing => {
            let mut bits = [0xff; BITMAP];
            for (byte, bit) in OWN.map(place) {
                bits[reads + byte] &= !(1 << bit);
                bits[writes + byte] &= !(1 << bit);
            }
            bits
        }
        Has::Machine => {
            let mut bits = [0; BITMAP];
            let mut close = |half: usize, register| {
                let (byte, bit) = place(register);
                bits[half + byte] |= 1 << bit;
            };
            for register in HIDDEN.chain([msr::IA32_FEATURE_CONTROL]) {
                close(reads, register);
                close(writes, register);
            }
            close(writes, msr::IA32_APIC_BASE);
            mtrr::all().for_each(|register| close(writes, register));
            bits
        }
    }
}

/// Tells whether a write by a guest that has the machine leaves a register as it is, and is no fault: one of what it has
/// already, and any to the types of memory, which firmware has set and the hypervisor has looked at. Linux turns those off and
/// on again on each CPU that it starts.
pub(super) fn stays(register: u32, value: u64) -> bool {
    match register {
        msr::IA32_APIC_BASE => rdmsr(register) == value,
        _ => mtrr::is_one(register),
    }
}

/// The x2APIC's command register, by which a guest starts its other vCPUs.
pub(super) const ICR: u32 = msr::IA32_X2APIC_ICR;

/// What reading a register gives that is not the vCPU's own; `None` where there is no such register.
pub(super) fn read(register: u32, vcpu: usize) -> Option<u64> {
    /// The APIC is on, in x2APIC mode; this is the first vCPU.
    const APIC: u64 = 0xfee0_0c00;
    const FIRST: u64 = 1 << 8;
    match register {
        msr::IA32_APIC_BASE => Some(APIC | if vcpu == 0 { FIRST } else { 0 }),
        msr::IA32_X2APIC_APICID => Some(vcpu as u64),
        _ => None,
    }
}

/// What a command to other vCPUs asks for (12.6.1), of those that are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// To wait for a start-up.
    Init,
    /// To start at a page.
    StartUp(u8),
}

/// Reads a command to one vCPU, which is named by its number; `None` where it is another one.
pub(super) fn command(value: u64) -> Option<(usize, Command)> {
    const SHORTHAND: u64 = 0b11 << 18;
    const LOGICAL: u64 = 1 << 11;
    if value & (SHORTHAND | LOGICAL) != 0 {
        return None;
    }
    let command = match value >> 8 & 7 {
        0b101 => Command::Init,
        0b110 => Command::StartUp(value as u8),
        _ => return None,
    };
    Some(((value >> 32) as usize, command))
}

/// Tells whether a CPU whose XCR0 may have the bits of `supported` takes `value` (SDM 1, 13.3).
pub(super) fn is_xcr0(value: u64, supported: u64) -> bool {
    const X87: u64 = 1;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const BOUNDS: u64 = 0b11 << 3;
    const AVX512: u64 = 0b111 << 5;
    const TILES: u64 = 0b11 << 17;
    let all_or_none = |bits: u64| value & bits == 0 || value & bits == bits;
    let needs = |bits: u64, others: u64| value & bits == 0 || value & others == others;
    value & !supported == 0
        && value & X87 != 0
        && needs(AVX, SSE)
        && needs(AVX512, AVX)
        && [BOUNDS, AVX512, TILES].into_iter().all(all_or_none)
}

/// Returns the bits that XCR0 may have on this CPU.
pub(super) fn xcr0_supported() -> u64 {
    const LEAF: u32 = 0xd;
    let answer = core::arch::x86_64::__cpuid_count(LEAF, 0);
    u64::from(answer.edx) << 32 | u64::from(answer.eax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_s_own_registers_are_no_exits_and_all_others_are() {
        let bits = bitmap(Has::Nothing);
        let exits = |base: usize, number: usize| bits[base + number / 8] & 1 << (number % 8) != 0;
        for half in [0, 2048] {
            assert!(!exits(half + 1024, 0x80) && !exits(half + 1024, 0x102)); // EFER, KERNEL_GS_BASE
            assert!(!exits(half, 0x277)); // PAT
            assert!(exits(half, 0x3a) && exits(half, 0x480) && exits(half, 0x830) && exits(half, 0x1b));
        }
        let open: u32 = bits.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(open as usize, 2 * OWN.len());
    }

    #[test]
    fn who_has_the_machine_has_every_register_but_those_of_vmx() {
        let bits = bitmap(Has::Machine);
        let exits = |base: usize, number: usize| bits[base + number / 8] & 1 << (number % 8) != 0;
        for half in [0, 2048] {
            assert!(exits(half, 0x480) && exits(half, 0x491) && exits(half, 0x3a));
            assert!(!exits(half, 0x10) && !exits(half, 0x492) && !exits(half + 1024, 0x80));
        }
        assert!(exits(2048, 0x1b) && !exits(0, 0x1b));
        for types in [0x200, 0x20f, 0x250, 0x26f, 0x2ff] {
            assert!(exits(2048, types) && !exits(0, types));
        }
        assert!(!exits(2048, 0x277)); // PAT
    }

    #[test]
    fn only_starts_of_one_vcpu_are_commands() {
        assert_eq!(command(1 << 32 | 0x4500), Some((1, Command::Init)));
        assert_eq!(command(3 << 32 | 0x4608), Some((3, Command::StartUp(8))));
        assert_eq!(command(1 << 32 | 0xc_4500), None); // a shorthand
        assert_eq!(command(1 << 32 | 0x4d00), None); // a logical destination
        assert_eq!(command(1 << 32 | 0x4030), None); // an interrupt
    }

    #[test]
    fn xcr0_has_only_what_goes_together() {
        let all = u64::MAX;
        for good in [1, 0b11, 0b111, 0b11111, 0b1110_0111, 0b11 << 17 | 1] {
            assert!(is_xcr0(good, all), "{good:#b}");
        }
        for bad in [0, 0b10, 0b101, 0b1001, 0b10_0111, 0b1110_0011, 1 << 17 | 1] {
            assert!(!is_xcr0(bad, all), "{bad:#b}");
        }
        assert!(!is_xcr0(0b111, 0b11));
    }
}
