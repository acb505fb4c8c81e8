//! What guests find when they ask the CPU what it is (SDM 2A, CPUID).
//!
//! What a guest is not told of, it does not use: VMX, SMX, monitors, performance counters, memory encryption, tracing. What
//! it finds instead is that there is a hypervisor, and which.

use core::arch::x86_64::__cpuid_count;

/// The leaf that names the hypervisor, and its name.
const HYPERVISOR: u32 = 0x4000_0000;
const NAME: &[u8; 12] = b"Mezzanine MZ";
/// The leaf whose EAX is how many vCPUs the machine has; their APICs' numbers are from zero on.
const VCPUS: u32 = HYPERVISOR + 1;

/// Leaf 1, ECX: MONITOR, VMX, SMX, debug trace, deadline timer; OSXSAVE; a hypervisor.
const HIDDEN_1_ECX: u32 = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 2 | 1 << 15 | DEADLINE_TIMER;
/// Leaf 1, ECX: the APIC's timer has a TSC-deadline mode.
pub(super) const DEADLINE_TIMER: u32 = 1 << 24;
const OSXSAVE: u32 = 1 << 27;
const UNDER_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1, EDX: machine checks, MTRRs, thermal control.
const HIDDEN_1_EDX: u32 = 1 << 7 | 1 << 12 | 1 << 14 | 1 << 22 | 1 << 29;
/// Leaf 7, EBX: what has no state but registers of programs, and the protections of tables: FSGSBASE, BMI1, AVX2, SMEP,
/// BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT.
const SHOWN_7_EBX: u32 =
    1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;

/// The four registers of an answer: EAX, EBX, ECX, EDX.
pub(super) type Answer = [u32; 4];

/// Answers a guest. `vcpu` is its number, which is its APIC's, of so many; `cr4` is its CR4.
pub(super) fn answer(leaf: u32, subleaf: u32, (vcpu, of): (usize, usize), cr4: u64) -> Answer {
    let real = __cpuid_count(leaf, subleaf);
    change(leaf, subleaf, [real.eax, real.ebx, real.ecx, real.edx], (vcpu as u32, of as u32), cr4)
}

fn change(leaf: u32, subleaf: u32, real: Answer, (vcpu, of): (u32, u32), cr4: u64) -> Answer {
    let [eax, ebx, ecx, edx] = real;
    let word = |at: usize| u32::from_le_bytes([NAME[at], NAME[at + 1], NAME[at + 2], NAME[at + 3]]);
    match leaf {
        0 | 2 | 4 | 0xd | 0x15 | 0x16 => real,
        1 => {
            let osxsave = if cr4 & CR4_OSXSAVE != 0 { OSXSAVE } else { 0 };
            let ecx = ecx & !(HIDDEN_1_ECX | OSXSAVE) | X2APIC | UNDER_HYPERVISOR | osxsave;
            [eax, ebx & 0x00ff_ffff | vcpu << 24, ecx, edx & !HIDDEN_1_EDX]
        }
        7 if subleaf == 0 => [0, ebx & SHOWN_7_EBX, 0, 0],
        // One core per package: no levels; the x2APIC's number.
        0xb => [0, 0, subleaf & 0xff, vcpu],
        HYPERVISOR => [VCPUS, word(0), word(4), word(8)],
        VCPUS => [of, 0, 0, 0],
        0x8000_0000..=0x8000_0008 => real,
        _ => [0; 4],
    }
}

/// Answers a guest that has the machine: as the CPU does, but for what the hypervisor has for itself, or for nobody.
pub(super) fn answer_for_machine(leaf: u32, subleaf: u32, cr4: u64) -> Answer {
    let real = __cpuid_count(leaf, subleaf);
    change_for_machine(leaf, subleaf, [real.eax, real.ebx, real.ecx, real.edx], cr4)
}

fn change_for_machine(leaf: u32, subleaf: u32, real: Answer, cr4: u64) -> Answer {
    /// Leaf 1, ECX: MONITOR, VMX, SMX, debug store, debug trace, and x2APIC, since the hypervisor sends its kicks by the mode
    /// that the APIC is in.
    const HIDDEN: u32 = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 2 | 1 << 15 | X2APIC;
    /// Leaf 1, EDX: debug store.
    const HIDDEN_EDX: u32 = 1 << 21;
    let [eax, ebx, ecx, edx] = real;
    match leaf {
        1 => {
            let osxsave = if cr4 & CR4_OSXSAVE != 0 { OSXSAVE } else { 0 };
            [eax, ebx, ecx & !(HIDDEN | OSXSAVE) | UNDER_HYPERVISOR | osxsave, edx & !HIDDEN_EDX]
        }
        // Monitors, thermal control, performance counters, enclaves, tracing.
        5 | 6 | 0xa | 0x12 | 0x14 => [0; 4],
        7 if subleaf == 0 => [0, ebx & SHOWN_7_EBX, 0, 0],
        7 => [0; 4],
        HYPERVISOR..=0x4fff_ffff => change(leaf, subleaf, real, (0, 0), cr4),
        // Saving by supervisors needs a control that not every CPU has.
        0xd if subleaf == 1 => [eax & 0b111, 0, 0, 0],
        _ => real,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Answer = [u32::MAX; 4];

    #[test]
    fn vmx_is_hidden_and_the_hypervisor_is_not() {
        let [_, ebx, ecx, edx] = change(1, 0, ALL, (3, 4), 0);
        assert_eq!(ecx & (1 << 5 | 1 << 6 | 1 << 3), 0);
        assert_eq!(ecx & 1 << 31, 1 << 31);
        assert_eq!((ebx >> 24, edx & 1 << 12), (3, 0));
        let [_, ebx, ecx, edx] = change(HYPERVISOR, 0, [0; 4], (0, 1), 0);
        assert_eq!([ebx, ecx, edx].map(u32::to_le_bytes).concat(), NAME);
        assert_eq!(change(VCPUS, 0, ALL, (3, 4), 0), [4, 0, 0, 0]);
    }

    #[test]
    fn who_has_the_machine_finds_no_vmx_either() {
        let [_, ebx, ecx, _] = change_for_machine(1, 0, ALL, 0);
        assert_eq!(ecx & (1 << 5 | 1 << 6 | 1 << 21), 0);
        assert_eq!((ecx & 1 << 31, ebx), (1 << 31, u32::MAX));
        assert_eq!(change_for_machine(0xa, 0, ALL, 0), [0; 4]);
        assert_eq!(change_for_machine(4, 1, ALL, 0), ALL);
    }

    #[test]
    fn osxsave_is_what_the_guest_has_set() {
        assert_eq!(change(1, 0, ALL, (0, 1), 0)[2] & OSXSAVE, 0);
        assert_eq!(change(1, 0, [0; 4], (0, 1), CR4_OSXSAVE)[2] & OSXSAVE, OSXSAVE);
    }

    #[test]
    fn what_nobody_has_thought_of_is_not_there() {
        for (leaf, subleaf) in
            [(5, 0), (7, 1), (0xa, 0), (0x14, 0), (0x1b, 0), (0x4000_0002, 0), (0x8000_001f, 0)]
        {
            assert_eq!(change(leaf, subleaf, ALL, (0, 1), 0), [0; 4], "{leaf:#x}");
        }
        assert_eq!(change(7, 0, ALL, (0, 1), 0)[1], SHOWN_7_EBX);
    }
}
