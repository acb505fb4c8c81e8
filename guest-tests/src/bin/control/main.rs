//! A guest that makes others of the manifest's templates, runs and ends them (`abi::control`). Promises: each comes up;
//! it ends whatever it does; all that it had comes back; a handle is one machine's.
//!
//! Template 0 goes off by itself, template 1 runs until it is ended. `machines=` in the boot arguments says how many are
//! made of each in turn. With `falls` there is a template 2, whose machine fails.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "the entry symbol is not mangled")]

use abi::control::{self, state};
use abi::{Status, calls};
use guest_tests::cpu::give_way;
use guest_tests::machine::{self, Host};
use guest_tests::rng::Rng;
use guest_tests::service::{Answer, call};
use guest_tests::timer::{micros, now};
use guest_tests::{NotPassed, Verdict, check, guest_tests, same, skip};

guest_tests! {
    "control":
    odd_handles_and_templates_are_refused,
    the_calls_are_offered_where_others_are_too,
    machines_come_up_and_end_one_after_the_other,
    machines_end_in_the_middle_of_anything,
    a_machine_that_fails_is_off_and_all_comes_back,
    machines_are_made_until_there_is_no_room_and_all_come_back,
}

/// Goes off by itself.
const BRIEF: u64 = 0;
/// Runs until it is ended.
const STAYS: u64 = 1;
/// Fails.
const FALLS: u64 = 2;

/// Whether a CPU has one vCPU at most, on this architecture. There the two templates share a CPU.
const ONE_EACH: bool = cfg!(target_arch = "x86_64");

/// How often a step is made again, or a state looked at, before that counts as a failure.
const PATIENCE: u32 = 10_000_000;

/// Skips the test where this machine is no controller.
fn is_controller() -> Verdict {
    let is_one = machine::get().host == Host::Hypervisor
        && call(control::STATE, &[u64::MAX])?.status != Status::NotSupported;
    if !is_one {
        skip!("this machine is no controller");
    }
    Ok(())
}

fn count() -> u64 {
    machine::get().argument("machines").and_then(|text| text.parse().ok()).unwrap_or(20)
}

fn has_one_that_falls() -> bool {
    machine::get().argument("falls").is_some()
}

fn expect(what: &str, handle: u64, expected: Status, answer: Answer) -> Result<u64, NotPassed> {
    if answer.status == expected {
        return Ok(answer.x[0]);
    }
    Err(NotPassed::differs(what, handle, expected as u64, answer.status as u64))
}

fn create(template: u64) -> Result<u64, NotPassed> {
    expect("the status of CREATE", template, Status::Success, call(control::CREATE, &[template])?)
}

fn start(handle: u64) -> Verdict {
    expect("the status of START", handle, Status::Success, call(control::START, &[handle])?).map(|_| ())
}

fn state_of(handle: u64) -> Result<u64, NotPassed> {
    expect("the status of STATE", handle, Status::Success, call(control::STATE, &[handle])?)
}

fn wait_off(handle: u64) -> Verdict {
    for _ in 0..PATIENCE {
        if state_of(handle)? == state::OFF {
            return Ok(());
        }
        give_way();
    }
    Err(NotPassed::differs("the state of a machine that goes off", handle, state::OFF, state_of(handle)?))
}

/// Ends a machine, step by step, and checks that all that it had has come back.
fn destroy(handle: u64) -> Verdict {
    for _ in 0..PATIENCE {
        let status = call(control::DESTROY, &[handle])?.status;
        match status {
            Status::Continue => {}
            Status::Busy => give_way(),
            _ => {
                same!("the last status of DESTROY", handle, Status::Success as u64, status as u64);
                return Ok(());
            }
        }
    }
    Err(NotPassed::differs("the status of DESTROY", handle, Status::Success as u64, Status::Continue as u64))
}

fn odd_handles_and_templates_are_refused() -> Verdict {
    if machine::get().host == Host::Bare {
        skip!("nobody is below");
    }
    let refused = match call(control::STATE, &[u64::MAX])?.status {
        Status::NotSupported => Status::NotSupported, // this machine is no controller
        _ => Status::InvalidParameter,
    };
    // Handles that machines of the manifest would have are nobody's, either.
    for handle in [0, 1, 1 << 16, 1 << 16 | 1, 127, 128, 0xffff, u64::MAX] {
        for function in [control::START, control::STOP, control::RESET, control::DESTROY, control::STATE] {
            expect("a call with a handle that is nobody's", handle, refused, call(function, &[handle])?)?;
        }
    }
    let first = if has_one_that_falls() { FALLS + 1 } else { FALLS };
    for template in [first, FALLS + 1, 1 << 32, u64::MAX] {
        expect("CREATE of no template", template, refused, call(control::CREATE, &[template])?)?;
    }
    Ok(())
}

fn the_calls_are_offered_where_others_are_too() -> Verdict {
    is_controller()?;
    if call(calls::FEATURES, &[calls::YIELD.into()])?.status == Status::NotSupported {
        skip!("this machine has no calls on its memory, and none that says what is offered");
    }
    for function in control::ALL {
        expect("FEATURES", function.into(), Status::Success, call(calls::FEATURES, &[function.into()])?)?;
    }
    Ok(())
}

fn machines_come_up_and_end_one_after_the_other() -> Verdict {
    is_controller()?;
    // One that has run and sleeps meanwhile: its tag is not in use when tags begin anew, and TLBs may know it still.
    let sleeper = create(STAYS)?;
    start(sleeper)?;
    let until = now() + micros(20_000);
    while now() < until {
        give_way();
    }
    if ONE_EACH {
        expect("CREATE where a CPU is taken", BRIEF, Status::NoRoom, call(control::CREATE, &[BRIEF])?)?;
        end_anew(sleeper)?;
    }
    let mut last = None;
    for _ in 0..count() {
        let handle = create(BRIEF)?;
        check!(last != Some(handle), "handle {handle:#x} was another's");
        last = Some(handle);
        same!("the state of a machine that is made", handle, state::OFF, state_of(handle)?);
        start(handle)?;
        wait_off(handle)?;
        destroy(handle)?;
        expect("STATE of who is gone", handle, Status::InvalidParameter, call(control::STATE, &[handle])?)?;
    }
    if ONE_EACH { Ok(()) } else { end_anew(sleeper) }
}

/// Ends a machine that has just begun anew.
fn end_anew(handle: u64) -> Verdict {
    expect("the status of RESET", handle, Status::Success, call(control::RESET, &[handle])?)?;
    destroy(handle)
}

fn machines_end_in_the_middle_of_anything() -> Verdict {
    is_controller()?;
    let mut rng = Rng::of_run(0);
    for _ in 0..count().min(40) {
        let handle = create(STAYS)?;
        start(handle)?;
        let until = now() + rng.next_u64() % micros(20_000);
        while now() < until {
            give_way();
        }
        match rng.next_u64() % 3 {
            0 => expect("the status of RESET", handle, Status::Success, call(control::RESET, &[handle])?)?,
            1 => expect("the status of STOP", handle, Status::Success, call(control::STOP, &[handle])?)?,
            _ => 0,
        };
        destroy(handle)?;
    }
    Ok(())
}

fn a_machine_that_fails_is_off_and_all_comes_back() -> Verdict {
    is_controller()?;
    if !has_one_that_falls() {
        skip!("there is no template of a machine that fails");
    }
    for _ in 0..2 {
        let handle = create(FALLS)?;
        start(handle)?;
        wait_off(handle)?;
        destroy(handle)?;
    }
    Ok(())
}

fn machines_are_made_until_there_is_no_room_and_all_come_back() -> Verdict {
    is_controller()?;
    let mut handles = [0; 128];
    let mut made = 0;
    let refused = loop {
        let answer = call(control::CREATE, &[BRIEF])?;
        if answer.status != Status::Success || made == handles.len() {
            break answer.status;
        }
        handles[made] = answer.x[0];
        made += 1;
    };
    check!(made > 1 || ONE_EACH && made == 1, "no more than {made} machines");
    check!(matches!(refused, Status::NoMemory | Status::NoRoom), "refused with {refused:?} after {made}");
    for &handle in &handles[..made] {
        destroy(handle)?;
    }
    destroy(create(BRIEF)?)
}
