//! Who a vCPU is.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::code::{self, register};
use guest_tests::cpu::Rendezvous;
use guest_tests::guard::Caught;
use guest_tests::{Verdict, check, fail, machine, read_sysreg, same, smp, write_sysreg};

/// Reads a register by its number.
pub(crate) fn read(register: u16) -> Result<u64, Caught> {
    // SAFETY: reading a system register changes no memory, and x0 is the result.
    unsafe { code::run(&[code::mrs(register)], 0, 0) }
}

/// Goes through the identification registers: op0 = 3, op1 = 0, CRn = 0, and CRm from 1 to 7, all of which can be read;
/// and of CRm = 0 those that are there.
fn identification() -> impl Iterator<Item = u16> {
    let midr_revidr = [0, 6].map(|op2| register(3, 0, 0, 0, op2));
    midr_revidr.into_iter().chain((1..8).flat_map(|crm| (0..8).map(move |op2| register(3, 0, 0, crm, op2))))
}

pub(crate) fn identification_registers_are_the_same_everywhere() -> Verdict {
    static FIRST: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        if this != 0 {
            meeting.wait()?;
        }
        for (id, first) in identification().zip(&FIRST) {
            match read(id) {
                Ok(value) if this == 0 => first.store(value, Relaxed),
                Ok(value) => same!("identification register", id.into(), first.load(Relaxed), value),
                Err(caught) => fail!("identification register {id:#x}: expected a value, found {caught:?}"),
            }
        }
        if this == 0 { meeting.wait() } else { Ok(()) }
    })
}

pub(crate) fn each_vcpu_is_who_the_device_tree_says() -> Verdict {
    smp::on_all(&|this| {
        let mpidr = read_sysreg!("mpidr_el1");
        same!("MPIDR_EL1 affinity", 0, machine::get().cpus[this], mpidr & 0xff_00ff_ffff);
        same!("MPIDR_EL1 bit 31, RES1", 0, 1, mpidr >> 31 & 1);
        same!(
            "MPIDR_EL1.U, one CPU alone",
            0,
            u64::from(smp::count() == 1 && mpidr >> 30 & 1 == 1),
            mpidr >> 30 & 1
        );
        same!("CurrentEL", 0, 1, read_sysreg!("CurrentEL") >> 2);
        Ok(())
    })
}

pub(crate) fn cache_geometry_can_be_read() -> Verdict {
    smp::on_all(&|_| {
        let clidr = read_sysreg!("clidr_el1");
        for level in 0..7 {
            let kind = clidr >> (3 * level) & 7;
            if kind == 0 {
                break;
            }
            let first = u64::from(kind == 1); // instruction cache only
            for instruction in first..=(kind & 1) {
                // SAFETY: selects what CCSIDR_EL1 tells.
                unsafe { write_sysreg!("csselr_el1", level << 1 | instruction) };
                same!("CSSELR_EL1", 0, level << 1 | instruction, read_sysreg!("csselr_el1"));
                let ccsidr = read_sysreg!("ccsidr_el1");
                check!(ccsidr & 7 < 6, "CCSIDR_EL1 of cache {level}: found {ccsidr:#x}");
            }
        }
        check!(read_sysreg!("ctr_el0") >> 31 & 1 == 1, "CTR_EL0: bit 31, RES1, is clear");
        check!(read_sysreg!("dczid_el0") & 0x10 == 0, "DCZID_EL0: zeroing by block is prohibited");
        Ok(())
    })
}

pub(crate) fn set_way_maintenance_does_no_harm() -> Verdict {
    let kept = AtomicU64::new(0);
    for way in 0..4_u64 {
        for set in 0..16_u64 {
            kept.store(way << 8 | set, Relaxed);
            // SAFETY: cleaning and invalidating keeps every value; invalidating by set and way in a guest cleans too.
            unsafe {
                asm!("dc csw, {0}", "dc cisw, {0}", "dsb sy", in(reg) way << 30 | set << 6, options(nostack));
            }
            same!(
                "memory after set/way maintenance",
                &raw const kept as u64,
                way << 8 | set,
                kept.load(Relaxed)
            );
        }
    }
    Ok(())
}
