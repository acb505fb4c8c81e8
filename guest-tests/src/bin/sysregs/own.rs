//! Registers that are the guest's own.

use core::arch::asm;
use guest_tests::calls::{call3, psci};
use guest_tests::cpu;
use guest_tests::guard::attempt;
use guest_tests::machine::{self, Host};
use guest_tests::mmu::PAGE;
use guest_tests::rng::Rng;
use guest_tests::timer::{Timer, micros};
use guest_tests::{Verdict, check, fail, gic, mmu, ram, read_sysreg, same, skip, smp, write_sysreg};

/// Makes this vCPU leave the guest, in all the ways there are: a call, devices, an interrupt. After `gic::set_up`.
fn leave_the_guest() {
    call3(psci::VERSION, 0, 0, 0);
    gic::set_up_cpu();
    gic::enable(Timer::Virtual.intid());
    Timer::Virtual.arm(micros(50));
    cpu::wait_until("the timer", || gic::highest_pending() == Timer::Virtual.intid());
    Timer::Virtual.stop();
    gic::disable(Timer::Virtual.intid());
}

/// A register, and the bits in it that may hold anything while nobody uses it.
struct Kept {
    name: &'static str,
    mask: u64,
    read: fn() -> u64,
    write: fn(u64),
}

macro_rules! kept {
    ($($name:literal & $mask:literal;)*) => {
        [$(Kept {
            name: $name,
            mask: $mask,
            read: || read_sysreg!($name),
            // SAFETY: `keep` restores it before anybody uses the register: no exception is taken meanwhile.
            write: |value| unsafe { write_sysreg!($name, value) },
        }),*]
    };
}

/// Writes random values, leaves the guest, and checks that they are still there.
fn keep<const N: usize>(registers: &[Kept; N], rng: &mut Rng) -> Verdict {
    let before = core::array::from_fn::<_, N, _>(|i| (registers[i].read)());
    let values = core::array::from_fn::<_, N, _>(|i| {
        before[i] & !registers[i].mask | rng.next_u64() & registers[i].mask
    });
    registers.iter().zip(values).for_each(|(register, value)| (register.write)(value));
    leave_the_guest();
    let after = core::array::from_fn::<_, N, _>(|i| (registers[i].read)());
    registers.iter().zip(before).for_each(|(register, value)| (register.write)(value));
    for (i, register) in registers.iter().enumerate() {
        same!(register.name, 0, values[i] & register.mask, after[i] & register.mask);
    }
    Ok(())
}

pub(crate) fn own_registers_keep_their_values() -> Verdict {
    gic::set_up();
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(this as u64);
        for _ in 0..20 {
            let registers = kept! {
                "tpidr_el0" & 0xffff_ffff_ffff_ffff;
                "tpidrro_el0" & 0xffff_ffff_ffff_ffff;
                "sp_el0" & 0xffff_ffff_ffff_fff0;
                "elr_el1" & 0x0000_ffff_ffff_fffc;
                "spsr_el1" & 0xf000_03c0;
                "esr_el1" & 0xffff_ffff;
                "far_el1" & 0xffff_ffff_ffff_ffff;
                "ttbr1_el1" & 0xffff_ffff_f000;
                "contextidr_el1" & 0xffff_ffff;
                "vbar_el1" & 0x0000_ffff_ffff_f800;
                "cntkctl_el1" & 0x303;
                "mair_el1" & 0xffff_ffff_0000_0000;
                "cntp_cval_el0" & 0xffff_ffff_ffff_ffff;
                "csselr_el1" & 1;
            };
            keep(&registers, &mut rng)?;
        }
        // The MMU, by what it does.
        check!(mmu::is_on(), "SCTLR_EL1.M: expected it set");
        Ok(())
    })
}

pub(crate) fn alignment_checks_can_be_turned_on() -> Verdict {
    smp::on_all(&|_| {
        let words = [0x0123_4567_89ab_cdef_u64; 2];
        let misaligned = &raw const words as u64 + 1;
        let load = || {
            let value: u64;
            // SAFETY: eight bytes of `words`.
            unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) misaligned, options(nostack, readonly)) };
            value
        };
        let before = read_sysreg!("sctlr_el1");
        for _ in 0..10 {
            // SAFETY: all other accesses are aligned.
            unsafe { write_sysreg!("sctlr_el1", before | 2) };
            // SAFETY: one load.
            let checked = unsafe { attempt(load) };
            call3(psci::VERSION, 0, 0, 0);
            // SAFETY: as it was.
            unsafe { write_sysreg!("sctlr_el1", before) };
            match checked {
                Ok(_) => {
                    fail!("a misaligned load with SCTLR_EL1.A set: expected an alignment fault, found none")
                }
                Err(caught) => {
                    same!("status of an alignment fault", misaligned, 0x21, caught.status());
                    same!("address of an alignment fault", misaligned, misaligned, caught.far);
                }
            }
            same!("a misaligned load", misaligned, 0xef01_2345_6789_abcd, load());
        }
        Ok(())
    })
}

pub(crate) fn the_root_table_can_be_switched() -> Verdict {
    let Some(page) = ram::take(PAGE, PAGE) else {
        skip!("no free page");
    };
    let root = read_sysreg!("ttbr0_el1");
    // SAFETY: the root table, a page of atomics.
    let old = unsafe { core::slice::from_raw_parts(root as *const core::sync::atomic::AtomicU64, 512) };
    for (new, old) in page.words().iter().zip(old) {
        new.store(old.load(core::sync::atomic::Ordering::Relaxed), core::sync::atomic::Ordering::Relaxed);
    }
    cpu::dsb_isb();
    smp::on_all(&|this| {
        for asid in 0..200 {
            let other = page.region().start | (asid << 8 | this as u64) << 48;
            // SAFETY: the tables under both roots are the same.
            unsafe { write_sysreg!("ttbr0_el1", other) };
            call3(psci::VERSION, 0, 0, 0);
            same!(
                "TTBR0_EL1",
                0,
                other & 0x00ff_ffff_ffff_ffff,
                read_sysreg!("ttbr0_el1") & 0x00ff_ffff_ffff_ffff
            );
            mmu::flush();
            // SAFETY: as it was.
            unsafe { write_sysreg!("ttbr0_el1", root) };
        }
        Ok(())
    })
}

/// What a kernel does to its debug registers when it starts.
pub(crate) fn debug_registers_can_be_cleared() -> Verdict {
    gic::set_up();
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(this as u64);
        // SAFETY: the OS lock only bears on debuggers, of which there is none; breakpoints stay disabled.
        unsafe {
            write_sysreg!("mdscr_el1", 0_u64);
            write_sysreg!("osdlr_el1", 0_u64);
            write_sysreg!("oslar_el1", 0_u64);
        }
        same!("OSLSR_EL1.OSLK", 0, 0, read_sysreg!("oslsr_el1") >> 1 & 1);
        let registers = kept! {
            "mdscr_el1" & 0x1000; // TDCC: traps user reads of the debug channel
            "dbgbvr0_el1" & 0x0000_ffff_ffff_fffc;
            "dbgbvr1_el1" & 0x0000_ffff_ffff_fffc;
            "dbgwvr0_el1" & 0x0000_ffff_ffff_fffc;
            "dbgbcr0_el1" & 0x6;
            "dbgwcr0_el1" & 0x1fe6;
        };
        keep(&registers, &mut rng)
    })
}

/// Signs a pointer, leaves the guest, and authenticates it.
pub(crate) fn pointers_stay_authentic() -> Verdict {
    let isar1 = read_sysreg!("id_aa64isar1_el1");
    let isar2 = read_sysreg!("S3_0_C0_C6_2");
    if isar1 >> 4 & 0xff == 0 && isar2 >> 12 & 0xf == 0 {
        skip!("this CPU has no pointer authentication");
    }
    gic::set_up();
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(this as u64);
        let before = read_sysreg!("sctlr_el1");
        // SAFETY: the runtime signs nothing: EnIA only turns on what is done here.
        unsafe {
            write_sysreg!("sctlr_el1", before | 1 << 31);
            write_sysreg!("S3_0_C2_C1_0", rng.next_u64()); // APIAKeyLo_EL1
            write_sysreg!("S3_0_C2_C1_1", rng.next_u64()); // APIAKeyHi_EL1
        }
        let keys = [read_sysreg!("S3_0_C2_C1_0"), read_sysreg!("S3_0_C2_C1_1")];
        let mut signed_any = 0;
        for _ in 0..50 {
            let pointer = rng.next_u64() & 0x7fff_ffff_ffff;
            let modifier = rng.next_u64();
            let signed: u64;
            let back: u64;
            // SAFETY: both only compute.
            unsafe {
                asm!(".inst 0xdac10020", inout("x0") pointer => signed, in("x1") modifier, options(nostack));
            }; // pacia
            call3(psci::VERSION, 0, 0, 0);
            // SAFETY: as above; a wrong signature gives another value.
            unsafe {
                asm!(".inst 0xdac11020", inout("x0") signed => back, in("x1") modifier, options(nostack));
            }; // autia
            signed_any |= signed ^ pointer;
            if back != pointer {
                break;
            }
            same!("an authenticated pointer", pointer, pointer, back);
        }
        leave_the_guest();
        let after = [read_sysreg!("S3_0_C2_C1_0"), read_sysreg!("S3_0_C2_C1_1")];
        // SAFETY: as it was.
        unsafe { write_sysreg!("sctlr_el1", before) };
        check!(keys == after, "pointer keys: expected {keys:x?}, found {after:x?}");
        check!(signed_any != 0 || machine::get().host == Host::Bare, "signed pointers carry no signature");
        Ok(())
    })
}
