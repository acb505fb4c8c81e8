//! What a reset does on AArch64 beyond memory: registers, the interrupt controller, timers, the console.

use guest_tests::calls::{affinity_info, call3, psci};
use guest_tests::gic::{self, gicd};
use guest_tests::mmio::{read32, write32};
use guest_tests::timer::{self, Timer};
use guest_tests::{Verdict, check, cpu, machine, same, write_sysreg};

const UART_IMSC: u64 = 0x38;
const TRANSMIT: u32 = 1 << 5;

pub(super) fn the_boot_vcpu_is_fresh() -> Verdict {
    let entry = machine::get().entry;
    same!("SCTLR_EL1 M, C at entry", 0, 0, entry.sctlr & 0b101);
    same!("DAIF at entry", 0, 0x3c0, entry.daif);
    same!("affinity of the boot vCPU", 0, 0, cpu::affinity());
    for (what, control) in
        [("CNTV_CTL_EL0", Timer::Virtual.control()), ("CNTP_CTL_EL0", Timer::Physical.control())]
    {
        same!(what, 0, 0, control & timer::ENABLE);
    }
    check!(!gic::is_group_on(), "the CPU interface lets interrupts through from the start");
    same!("priority mask", 0, 0, gic::mask().into());
    Ok(())
}

pub(super) fn other_vcpus_are_off() -> Verdict {
    for &other in &machine::get().cpus[1..] {
        same!("AFFINITY_INFO", other, psci::OFF as u64, affinity_info(other, 0) as u64);
    }
    Ok(())
}

pub(super) fn devices_are_fresh() -> Verdict {
    let machine = machine::get();
    let at = machine.gicd.start + gicd::CTLR;
    same!("GICD_CTLR group enables", at, 0, (read32(at) & 0b11).into());
    for word in 0..gic::lines() / 32 {
        let offset = 4 * u64::from(word);
        for register in [gicd::ISENABLER, gicd::ISPENDR, gicd::ISACTIVER] {
            let at = gic::bank(word * 32) + register + offset;
            // SGIs may be enabled from the start.
            let mask = if word == 0 && register == gicd::ISENABLER { 0xffff_0000 } else { !0 };
            same!("enabled, pending or active interrupts", at, 0, (read32(at) & mask).into());
        }
    }
    let at = machine.uart.start + UART_IMSC;
    same!("UARTIMSC", at, 0, read32(at).into());
    Ok(())
}

/// Leaves traces in all of that.
pub(super) fn leave_traces() {
    gic::set_up();
    gic::set_up_cpu();
    for intid in 32..gic::lines().min(1020) {
        gic::enable(intid);
        gic::set_bit(gicd::ISPENDR, intid);
    }
    gic::acknowledge(); // one of them is active
    for timer in [Timer::Virtual, Timer::Physical] {
        gic::enable(timer.intid());
        timer.arm(0);
    }
    write32(machine::get().uart.start + UART_IMSC, TRANSMIT);
    // SAFETY: nothing uses these.
    unsafe {
        write_sysreg!("tpidr_el0", !0_u64);
        write_sysreg!("contextidr_el1", !0_u64);
    }
}

/// Makes a call that changes nothing.
pub(super) fn call() {
    call3(psci::VERSION, 0, 0, 0);
}
