//! Where to aim, and what must come back.

use guest_tests::access::{Access, Effect};
use guest_tests::exception::class;
use guest_tests::guard::{Caught, Kind};
use guest_tests::list::List;
use guest_tests::machine::Host;
use guest_tests::region::{MAX_HOLES, Region, holes};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, check, fail, machine, read_sysreg};

/// All addresses in use are multiples of this: the largest single access, and a cache line.
pub(crate) const STEP: u64 = 64;
/// ESR_EL1.ISS.FSC: synchronous external abort, not on a walk.
pub(crate) const EXTERNAL: u64 = 0x10;
/// ESR_EL1.ISS.FSC: synchronous external abort on a walk, at level 0; the level is added.
const EXTERNAL_ON_WALK: u64 = 0x14;

/// Tells whether `status` is that of an external abort on a walk's table of `level`.
///
/// The hardware does not tell a hypervisor the level of stage 1: it may say any.
pub(crate) fn is_external_on_walk(status: u64, level: u32) -> bool {
    match machine::get().host {
        Host::Bare => status == EXTERNAL_ON_WALK + u64::from(level),
        Host::Hypervisor => (EXTERNAL_ON_WALK..EXTERNAL_ON_WALK + 4).contains(&status),
    }
}

/// Returns the bits of a physical address, as ID_AA64MMFR0_EL1 tells the guest.
pub(crate) fn physical_bits() -> u32 {
    match read_sysreg!("id_aa64mmfr0_el1") & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        6 => 52,
        _ => 56,
    }
}

/// Returns the bits of an address that stage-1 tables of a 4 KiB granule can name.
pub(crate) fn mappable_bits() -> u32 {
    physical_bits().min(48)
}

/// Lists the regions below 2 to the power of `bits` that are neither memory nor a device.
pub(crate) fn all_holes(bits: u32) -> List<Region, MAX_HOLES> {
    let machine = machine::get();
    let mut taken = List::<Region, 128>::new();
    for region in machine.ram.iter().chain(machine.devices.iter()) {
        assert!(taken.push(*region), "too many regions");
    }
    let mut found = List::new();
    for hole in holes(&mut taken, 1 << bits).iter() {
        let aligned = Region { start: (hole.start + STEP - 1) & !(STEP - 1), end: hole.end & !(STEP - 1) };
        if aligned.start < aligned.end {
            let _ = found.push(aligned);
        }
    }
    found
}

/// Chooses addresses in a hole: its ends, next to its ends, its middle, and a few at random.
pub(crate) fn points(hole: Region, rng: &mut Rng) -> [u64; 8] {
    let steps = hole.size() / STEP;
    let at = |step: u64| hole.start + STEP * step.min(steps - 1);
    [
        at(0),
        at(4096 / STEP),
        at(steps / 2),
        at(steps - 1),
        at(steps.saturating_sub(1 + 4096 / STEP)),
        at(rng.below(steps)),
        at(rng.below(steps)),
        at(rng.below(steps.min(1 << 20))),
    ]
}

/// Chooses one address in one of `holes`, each hole as likely as another.
pub(crate) fn anywhere(holes: &[Region], rng: &mut Rng) -> u64 {
    let hole = rng.pick(holes);
    let point = rng.below(8) as usize;
    points(hole, rng)[point]
}

/// Checks that `result`, of an access to `va` that means guest-physical `address`, is the abort it must be.
pub(crate) fn must_abort(access: &Access, va: u64, address: u64, result: Result<u64, Caught>) -> Verdict {
    let caught = match (access.effect, result) {
        (Effect::Hint | Effect::Maintain, Ok(_)) => return Ok(()),
        (Effect::Hint, Err(caught)) => fail!("`{}` of {address:#x}: a hint faulted, {caught:?}", access.name),
        (_, Ok(value)) => fail!("`{}` of {address:#x}: expected an abort, found {value:#x}", access.name),
        (_, Err(caught)) => caught,
    };
    is_abort(access, va, address, caught, |status| status == EXTERNAL)
}

/// Checks that `caught` is an abort of `access` to `va` with a status that is `right`.
pub(crate) fn is_abort(
    access: &Access,
    va: u64,
    address: u64,
    caught: Caught,
    right: impl Fn(u64) -> bool,
) -> Verdict {
    let name = access.name;
    let fetch = access.effect == Effect::Fetch;
    let class = if fetch { class::FETCH_ABORT } else { class::DATA_ABORT };
    check!(caught.kind == Kind::Synchronous, "`{name}` of {address:#x}: expected an abort, found {caught:?}");
    check!(caught.class() == class, "`{name}` of {address:#x}: expected class {class:#x}, found {caught:?}");
    check!(right(caught.status()), "`{name}` of {address:#x}: wrong fault status, found {caught:?}");
    check!(
        va <= caught.far && caught.far < va + access.size,
        "`{name}` of {address:#x}: expected far {va:#x}, found {caught:?}"
    );
    check!(caught.esr & 1 << 25 != 0, "`{name}` of {address:#x}: expected IL set, found {caught:?}");
    check!(!fetch || caught.elr == va, "`{name}` of {address:#x}: expected elr {va:#x}, found {caught:?}");
    let write = match access.effect {
        // The hardware does not tell a hypervisor what a walk was for.
        _ if caught.status() >= EXTERNAL_ON_WALK && machine::get().host == Host::Hypervisor => return Ok(()),
        Effect::Read => false,
        Effect::Write => true,
        _ => return Ok(()),
    };
    check!(caught.is_write() == write, "`{name}` of {address:#x}: expected WnR {write}, found {caught:?}");
    Ok(())
}
