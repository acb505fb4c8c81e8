//! Calls that nobody defined, and calls made at random.

use crate::convention::call;
use guest_tests::calls::{Registers, call3, psci};
use guest_tests::machine::{self, Conduit, Host};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, check, cpu, fail, same, smp};

/// Functions that exist, to start from.
const KNOWN: [u32; 24] = [
    0x8400_0000,
    0x8400_0003,
    0xc400_0003,
    0x8400_0004,
    0xc400_0004,
    0x8400_0005,
    0x8400_0006,
    0xc400_0007,
    0x8400_000a,
    0xc400_000d,
    0x8400_000f,
    0xc400_0010,
    0xc400_0011,
    0x8400_0013,
    0xc400_0014,
    0x8400_0050,
    0x8400_0051,
    0xc400_0053,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_8000,
    0x8600_ff01,
    0x8600_ff03,
];

/// Tells whether a call may end the run or start a vCPU somewhere: the one thing that random calls avoid.
fn is_final(function: u32, arguments: &[u64; 4]) -> bool {
    // Bit 30 is the width of the arguments; bit 16 a hint that a callee drops.
    match function & !(1 << 30 | 1 << 16) {
        // CPU_SUSPEND, CPU_OFF, SYSTEM_OFF, SYSTEM_RESET, CPU_FREEZE, CPU_DEFAULT_SUSPEND, SYSTEM_SUSPEND, SYSTEM_RESET2,
        // SYSTEM_OFF2.
        0x8400_0001 | 0x8400_0002 | 0x8400_0008 | 0x8400_0009 | 0x8400_000b | 0x8400_000c | 0x8400_000e
        | 0x8400_0012 | 0x8400_0015 => true,
        // CPU_ON of a vCPU that could be off.
        0x8400_0003 => machine::get()
            .cpus
            .iter()
            .any(|&other| other != cpu::affinity() && other == arguments[0] & 0xff_ffff),
        // PSCI 0.1 as QEMU numbers it.
        0x95c1_ba5e..=0x95c1_ba61 => true,
        _ => false,
    }
}

/// Tells whether nobody has defined `function`, or is likely to.
fn is_unknown(function: u32) -> bool {
    let owner = function >> 24 & 0x3f;
    let number = function & 0xffff;
    let reserved = function >> 17 & 0x7f != 0; // bits 23:17 must be 0
    if (0x95c1_ba5e..=0x95c1_ba61).contains(&function) {
        return false;
    }
    if function >> 31 == 0 {
        return owner < 0x30; // a yielding call, and to no trusted OS
    }
    match owner {
        0 => reserved || (number > 0x100 && number < 0x3000),
        4 => reserved || number >= 0x400,
        5 => reserved || number >= 0x1000,
        6 => reserved,
        _ => true,
    }
}

/// Checks what every call keeps: x4 to x17 where the function returns at most four values (SMCCC 1.1, 2.6), and always
/// x18 to x30. A function that nobody defined returns x0 only, by which the caller tells.
pub(crate) fn must_keep(function: u32, before: &Registers, after: &Registers) -> Result<(), &'static str> {
    // Calls of the hypervisor's own may return values up to x17.
    let first = if function >> 24 & 0x3f == 6 && !is_unknown(function) { 18 } else { 4 };
    if before[first..] != after[first..] {
        return Err("it changed a register that a call must keep");
    }
    Ok(())
}

fn random_function(rng: &mut Rng) -> u32 {
    let small = rng.below(0x40) as u32;
    match rng.below(4) {
        0 => rng.next_u64() as u32,
        1 => rng.pick(&KNOWN) ^ 1 << rng.below(32),
        2 => rng.pick(&KNOWN),
        _ => {
            let owner = rng.below(64) as u32;
            0x8000_0000 | (rng.below(2) as u32) << 30 | owner << 24 | small
        }
    }
}

/// Chooses an argument that might mean something.
fn random_argument(rng: &mut Rng) -> u64 {
    let machine = machine::get();
    match rng.below(8) {
        0 => rng.next_u64(),
        1 => rng.below(8),
        2 => rng.pick(&machine.cpus) ^ 1 << rng.below(64),
        3 => machine.ram[0].start + rng.below(machine.ram[0].size()),
        4 => machine.ram_end() + rng.below(1 << 32),
        5 => u64::from(rng.pick(&KNOWN)),
        6 => u64::MAX - rng.below(8),
        _ => 1 << rng.below(64),
    }
}

fn conduits() -> &'static [Conduit] {
    match machine::get().host {
        Host::Bare => &[Conduit::Hvc],
        Host::Hypervisor => &[Conduit::Hvc, Conduit::Smc],
    }
}

fn one(rng: &mut Rng) -> Verdict {
    let function = random_function(rng);
    let arguments = core::array::from_fn(|_| random_argument(rng));
    if is_final(function, &arguments) {
        return Ok(());
    }
    let conduit = rng.pick(conduits());
    match call(conduit, function, &arguments, rng) {
        Ok((_, result)) => {
            let unknown = is_unknown(function);
            check!(
                !unknown || result == psci::NOT_SUPPORTED,
                "{conduit:?} {function:#x}, unknown: expected -1, found {result:#x}"
            );
        }
        Err(why) => fail!("{conduit:?} {function:#x} with {arguments:x?}: {why}"),
    }
    Ok(())
}

pub(crate) fn unknown_functions_are_not_supported() -> Verdict {
    let mut rng = Rng::of_run(10);
    for &conduit in conduits() {
        let mut left = 2000;
        while left > 0 {
            let function = random_function(&mut rng);
            if !is_unknown(function) {
                continue;
            }
            left -= 1;
            match call(conduit, function, &[], &mut rng) {
                Ok((_, result)) => {
                    same!("x0 of an unknown function", function.into(), u64::MAX, result as u64);
                }
                Err(why) => fail!("{conduit:?} {function:#x}: {why}"),
            }
        }
    }
    Ok(())
}

pub(crate) fn functions_without_a_feature_are_not_supported() -> Verdict {
    let mut rng = Rng::of_run(11);
    for function in (0x8400_0000..0x8400_0100).chain(0xc400_0000..0xc400_0100) {
        let offered = call3(psci::FEATURES, function.into(), 0, 0);
        check!(offered >= -1, "PSCI_FEATURES({function:#x}): expected -1 or flags, found {offered}");
        let arguments = [cpu::affinity(), 0, 0, 0];
        if offered >= 0 || is_final(function, &arguments) || (0x50..0x60).contains(&(function & 0xff)) {
            continue; // TRNG has a feature call of its own
        }
        match call(machine::get().conduit, function, &arguments, &mut rng) {
            Ok((_, result)) => {
                same!("x0 of a function without a feature", function.into(), u64::MAX, result as u64);
            }
            Err(why) => fail!("{function:#x}: {why}"),
        }
    }
    Ok(())
}

pub(crate) fn random_calls_from_all_vcpus_do_no_harm() -> Verdict {
    smp::on_all(&|index| {
        let mut rng = Rng::of_run(12 + index as u64);
        (0..5000).try_for_each(|_| one(&mut rng))
    })
}
