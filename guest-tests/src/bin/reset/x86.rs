//! What a reset does on x86-64 beyond memory: the registers that a CPU keeps for its guest, and the local APIC.

use core::arch::asm;
use guest_tests::calls::hypercall;
use guest_tests::cpu::wrmsr;
use guest_tests::{Verdict, same, skip, timer};

/// Registers that nothing of the runtime's writes: IA32_STAR, LSTAR, CSTAR and FMASK, KERNEL_GS_BASE, and those of SYSENTER.
const UNUSED: [u32; 8] =
    [0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102, 0x174, 0x175, 0x176];

/// The registers of the local APIC, in x2APIC mode, and what they are after a reset: the timer is masked, and not armed.
const APIC: [(&str, u32, u64); 3] =
    [("SVR", 0x80f, 0xff), ("LVT of the timer", 0x832, 1 << 16), ("IA32_TSC_DEADLINE", 0x6e0, 0)];

/// The control word of x87 after FNINIT.
const FCW: u16 = 0x37f;

fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: a read, of a register that there is.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

pub(super) fn the_boot_vcpu_is_fresh() -> Verdict {
    for register in UNUSED {
        same!("a register", register.into(), 0, rdmsr(register));
    }
    let (breakpoints, control, page_fault): ([u64; 4], u64, u64);
    let mut fcw = 0_u16;
    // SAFETY: reads.
    unsafe {
        let (dr0, dr1, dr2, dr3);
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, dr7", "mov {}, cr2",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3, out(reg) control, out(reg) page_fault,
            options(nostack)
        );
        breakpoints = [dr0, dr1, dr2, dr3];
        asm!("fnstcw [{}]", in(reg) &raw mut fcw, options(nostack));
    }
    for (n, at) in (0..).zip(breakpoints) {
        same!("a breakpoint", n, 0, at);
    }
    same!("DR7", 0, 0x400, control);
    same!("CR2", 0, 0, page_fault);
    same!("the control word of x87", 0, FCW.into(), fcw.into());
    Ok(())
}

pub(super) fn other_vcpus_are_off() -> Verdict {
    skip!("nothing tells it; each has to be started, which the last test does");
}

fn has_timer() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 24 != 0
}

pub(super) fn devices_are_fresh() -> Verdict {
    if !has_timer() {
        skip!("there is no timer with a deadline");
    }
    for (name, register, value) in APIC {
        same!(name, register.into(), value, rdmsr(register));
    }
    Ok(())
}

/// Leaves traces in all of that.
pub(super) fn leave_traces() {
    const SOMEWHERE: u64 = 0x5ec2_e000;
    let fcw = FCW & !1;
    // SAFETY: nothing uses these, and no breakpoint is on.
    unsafe {
        for register in UNUSED {
            wrmsr(register, SOMEWHERE);
        }
        asm!(
            "mov dr0, {at}", "mov dr1, {at}", "mov dr2, {at}", "mov dr3, {at}", "mov cr2, {at}",
            at = in(reg) SOMEWHERE, options(nostack)
        );
        asm!("fldcw [{}]", in(reg) &raw const fcw, options(nostack));
    }
    if has_timer() {
        timer::on();
        timer::arm(1); // it waits for ever: interrupts are not let in
    }
}

/// Makes a call that changes nothing.
pub(super) fn call() {
    let mut registers = [0; _];
    registers[0] = abi::UID.into();
    let _ = hypercall(registers);
}
