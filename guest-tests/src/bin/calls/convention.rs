//! The calling convention: who answers, and which registers a call may change.

use crate::random::must_keep;
use core::arch::naked_asm;
use guest_tests::calls::{Registers, call_with, psci};
use guest_tests::machine::{self, Conduit, Host};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, check, code, fail, same, skip};

const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// SMCCC_ARCH_WORKAROUND_1, _2 and _3.
const WORKAROUNDS: [u32; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];

/// Calls `function` with random numbers in all other registers but `arguments` in x1 and on.
pub(crate) fn call(
    conduit: Conduit,
    function: u32,
    arguments: &[u64],
    rng: &mut Rng,
) -> Result<(Registers, i64), &'static str> {
    let mut registers: Registers = core::array::from_fn(|_| rng.next_u64());
    registers[0] = u64::from(function);
    registers[1..=arguments.len()].copy_from_slice(arguments);
    match call_with(conduit, registers) {
        Ok(results) => {
            // What the caller compares with is the state before.
            let result = results[0] as i64;
            must_keep(function, &registers, &results).map(|()| (results, result))
        }
        Err(_) => Err("it ended in an exception"),
    }
}

fn value(function: u32, arguments: &[u64]) -> i64 {
    let argument = |i: usize| arguments.get(i).copied().unwrap_or(0);
    guest_tests::calls::call3(function, argument(0), argument(1), argument(2))
}

pub(crate) fn the_calling_convention_is_1_1_or_later() -> Verdict {
    let version = value(SMCCC_VERSION, &[]);
    if version == psci::NOT_SUPPORTED && machine::get().host == Host::Bare {
        skip!("this firmware has no SMCCC_VERSION");
    }
    check!(
        (0x1_0001..0x1_0100).contains(&version),
        "SMCCC_VERSION: expected 0x10001 or later, found {version:#x}"
    );
    same!("PSCI_FEATURES(SMCCC_VERSION)", 0, 0, value(psci::FEATURES, &[SMCCC_VERSION.into()]) as u64);
    let unknown = value(SMCCC_ARCH_FEATURES, &[0x8000_7654]);
    same!("SMCCC_ARCH_FEATURES of an unknown function", 0, -1_i64 as u64, unknown as u64);
    Ok(())
}

pub(crate) fn workarounds_that_are_offered_can_be_called() -> Verdict {
    for function in WORKAROUNDS {
        // 0: needed and there; 1: not needed.
        let offered = value(SMCCC_ARCH_FEATURES, &[function.into()]);
        check!(
            (-2..=1).contains(&offered),
            "SMCCC_ARCH_FEATURES({function:#x}): expected -2 to 1, found {offered}"
        );
        if offered == 0 {
            let result = value(function, &[]);
            check!(result >= 0, "offered workaround {function:#x}: expected success, found {result}");
        }
    }
    Ok(())
}

pub(crate) fn smc_is_answered_like_hvc() -> Verdict {
    if machine::get().host == Host::Bare {
        skip!("nobody answers SMC here");
    }
    let mut rng = Rng::of_run(1);
    for function in [psci::VERSION, SMCCC_VERSION, psci::MIGRATE_INFO_TYPE, 0x8700_1234, 0xc300_0001] {
        let [hvc, smc] =
            [Conduit::Hvc, Conduit::Smc].map(|conduit| call(conduit, function, &[0, 0, 0], &mut rng));
        match (hvc, smc) {
            (Ok((_, hvc)), Ok((_, smc))) => same!("x0 after SMC", function.into(), hvc as u64, smc as u64),
            (_, Err(why)) | (Err(why), _) => fail!("call {function:#x}: {why}"),
        }
    }
    Ok(())
}

pub(crate) fn calls_keep_the_registers_that_they_must() -> Verdict {
    let mut rng = Rng::of_run(2);
    let this = guest_tests::cpu::affinity();
    let calls: [(u32, &[u64]); 6] = [
        (psci::VERSION, &[]),
        (psci::FEATURES, &[u64::from(psci::CPU_OFF)]),
        (psci::AFFINITY_INFO_64, &[this, 0]),
        (SMCCC_VERSION, &[]),
        (0x8700_1234, &[]),
        (0xc300_0001, &[]),
    ];
    for (function, arguments) in calls {
        for _ in 0..20 {
            if let Err(why) = call(machine::get().conduit, function, arguments, &mut rng) {
                fail!("call {function:#x}: {why}");
            }
        }
    }
    Ok(())
}

/// Makes PSCI_VERSION calls with `pattern` in floating-point registers of all kinds, and returns what they differ from it
/// by, all ORed: 0 where they kept it.
#[unsafe(naked)]
extern "C" fn lost_in_call(_pattern: u64) -> u64 {
    naked_asm!(
        ".arch_extension fp",
        "fmov d0, x0",
        "fmov d7, x0",
        "fmov d8, x0",
        "fmov d16, x0",
        "fmov d31, x0",
        "mov x9, x0",
        "mov w0, #0x84000000",
        "hvc #0",
        "fmov x1, d0",
        "eor x0, x1, x9",
        "fmov x1, d7",
        "eor x1, x1, x9",
        "orr x0, x0, x1",
        "fmov x1, d8",
        "eor x1, x1, x9",
        "orr x0, x0, x1",
        "fmov x1, d16",
        "eor x1, x1, x9",
        "orr x0, x0, x1",
        "fmov x1, d31",
        "eor x1, x1, x9",
        "orr x0, x0, x1",
        "ret",
        ".arch_extension nofp",
    )
}

pub(crate) fn calls_keep_floating_point_registers() -> Verdict {
    if machine::get().conduit != Conduit::Hvc {
        skip!("PSCI is not called by HVC here");
    }
    guest_tests::smp::on_all(&|cpu| {
        let mut rng = Rng::of_run(3 + cpu as u64);
        for _ in 0..200 {
            same!("bits lost from d0, d7, d8, d16, d31", 0, 0, lost_in_call(rng.next_u64()));
        }
        Ok(())
    })
}

pub(crate) fn upper_halves_of_32_bit_arguments_do_not_matter() -> Verdict {
    if machine::get().host == Host::Bare {
        skip!("this firmware looks at them");
    }
    let mut rng = Rng::of_run(4);
    let this = guest_tests::cpu::affinity() & 0xff_ffff;
    for _ in 0..20 {
        let garbage = rng.next_u64() << 32;
        let on = value(psci::AFFINITY_INFO_32, &[this | garbage, 0]);
        same!("AFFINITY_INFO of this vCPU, by 32 bits", garbage | this, psci::ON as u64, on as u64);
        let mut registers: Registers = core::array::from_fn(|_| rng.next_u64());
        registers[0] = u64::from(psci::VERSION) | garbage;
        let version = value(psci::VERSION, &[]) as u64;
        match call_with(machine::get().conduit, registers) {
            Ok(results) => same!("PSCI_VERSION with garbage above its number", garbage, version, results[0]),
            Err(caught) => fail!("PSCI_VERSION with garbage above its number: {caught:?}"),
        }
    }
    Ok(())
}

/// Calls by `hvc #n` and `smc #n`: answered, refused, or undefined.
pub(crate) fn other_call_immediates_do_no_harm() -> Verdict {
    for base in [0xd400_0002, 0xd400_0003] {
        for immediate in [1, 2, 0x4a48, 0x7fff, 0x8000, 0xffff] {
            // SAFETY: at worst the call returns the version.
            let result = unsafe { code::run(&[base | immediate << 5], psci::VERSION.into(), 0) };
            if let Err(caught) = result {
                check!(
                    caught.is_undefined(),
                    "call with immediate {immediate:#x}: expected a result, found {caught:?}"
                );
            }
        }
    }
    Ok(())
}
