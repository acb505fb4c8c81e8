//! Registers and instructions that a guest may not touch, or that do not exist.

use crate::identity::read;
use guest_tests::code::{self, msr, register};
use guest_tests::exception::class;
use guest_tests::rng::Rng;
use guest_tests::{Verdict, check, fail, same, smp};

/// CRn of registers that each CPU defines as it likes, with op0 = 3.
fn is_implementation_defined(id: u16) -> bool {
    id >> 14 == 3 && matches!(id >> 7 & 0xf, 11 | 15)
}

/// Registers whose reading does something: ICC_IAR0_EL1, ICC_IAR1_EL1, ICC_NMIAR1_EL1.
const ACKNOWLEDGE: [u16; 3] = [register(3, 0, 12, 8, 0), register(3, 0, 12, 12, 0), register(3, 0, 12, 9, 5)];

pub(crate) fn registers_of_higher_levels_are_undefined() -> Verdict {
    for op1 in [4, 5, 6, 7] {
        for rest in 0..1 << 11 {
            let id = register(3, op1, 0, 0, 0) | rest;
            // SAFETY: at EL1 these are undefined; nothing of this guest's is in them.
            let results = [read(id), unsafe { code::run(&[msr(id)], 0, 0) }];
            for (what, result) in ["MRS", "MSR"].into_iter().zip(results) {
                match result {
                    Ok(_) if is_implementation_defined(id) => {}
                    Ok(value) => fail!("{what} of {id:#x}: expected it undefined, found {value:#x}"),
                    Err(caught) => {
                        check!(
                            caught.is_undefined(),
                            "{what} of {id:#x}: expected it undefined, found {caught:?}"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn instructions_of_higher_levels_are_undefined() -> Verdict {
    let instructions = [
        ("udf #0", 0),
        ("hlt #0xf000", 0xd45e_0000),
        ("drps", 0xd6bf_03e0),
        ("dcps1", 0xd4a0_0001),
        ("dcps2", 0xd4a0_0002),
        ("dcps3", 0xd4a0_0003),
        ("tlbi alle1", 0xd50c_879f),
        ("tlbi alle1is", 0xd50c_839f),
        ("tlbi alle2", 0xd50c_871f),
        ("tlbi alle3", 0xd50e_871f),
        ("tlbi vmalls12e1", 0xd50c_87df),
        ("tlbi vmalls12e1is", 0xd50c_83df),
        ("tlbi ipas2e1is, x0", 0xd50c_8020),
        ("tlbi ipas2e1, x0", 0xd50c_8420),
        ("tlbi vae2, x0", 0xd50c_8720),
        ("at s12e1r, x0", 0xd50c_7880),
        ("at s1e2r, x0", 0xd50c_7800),
        ("at s1e3r, x0", 0xd50e_7800),
        ("sys #0, c11, c0, #0", 0xd508_b000),
        ("sys #3, c15, c0, #0", 0xd50b_f000),
    ];
    for (name, instruction) in instructions {
        // SAFETY: undefined at EL1; were one of them not, it would drop translations, which come back.
        match unsafe { code::run(&[instruction], 0, 0) } {
            Ok(value) => fail!("`{name}`: expected it undefined, found {value:#x}"),
            Err(caught) => check!(caught.is_undefined(), "`{name}`: expected it undefined, found {caught:?}"),
        }
    }
    Ok(())
}

pub(crate) fn traps_of_the_guests_own_are_its_own() -> Verdict {
    for (name, instruction, expected) in [
        ("svc #0x1234", 0xd402_4681, class::SVC << 26 | 0x1234),
        ("brk #0x4321", 0xd428_6420, class::BRK << 26 | 0x4321),
    ] {
        // SAFETY: both go to this guest's own vector.
        match unsafe { code::run(&[instruction], 0, 0) } {
            Ok(_) => fail!("`{name}`: expected an exception, found none"),
            Err(caught) => same!(name, caught.elr, expected, caught.esr & !(1 << 25)),
        }
    }
    Ok(())
}

/// All of op0 = 2 and 3.
pub(crate) fn every_register_reads_as_something_or_is_undefined() -> Verdict {
    smp::on_all(&|this| {
        for id in (0x8000..=0xffff_u16).skip(this).step_by(smp::count()) {
            if ACKNOWLEDGE.contains(&id) {
                continue;
            }
            if let Err(caught) = read(id) {
                // Trapped by this guest's own CPACR_EL1: SVE, SME, trace.
                let own = matches!(caught.class(), 0x07 | 0x19 | 0x1d | 0x18);
                check!(
                    caught.is_undefined() || own,
                    "MRS of {id:#x}: expected a value or undefined, found {caught:?}"
                );
            }
        }
        Ok(())
    })
}

pub(crate) fn writes_of_unreadable_registers_do_no_harm() -> Verdict {
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(this as u64);
        let mut written = 0;
        for _ in 0..4000 {
            let id = 0x8000 | rng.next_u64() as u16;
            if ACKNOWLEDGE.contains(&id) || read(id).is_ok() {
                continue;
            }
            // SAFETY: nothing that this guest uses is in a register that cannot be read. Those that can be written only
            // do nothing when given 0: the interrupt 0 is not active, and an SGI to nobody is dropped.
            if let Err(caught) = unsafe { code::run(&[msr(id)], 0, 0) } {
                let own = matches!(caught.class(), 0x07 | 0x19 | 0x1d | 0x18);
                check!(
                    caught.is_undefined() || own,
                    "MSR of {id:#x}: expected it undefined, found {caught:?}"
                );
            }
            written += 1;
        }
        check!(written > 100, "expected many registers that cannot be read, found {written}");
        Ok(())
    })
}
