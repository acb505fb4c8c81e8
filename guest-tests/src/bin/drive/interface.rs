//! Promise: the calls are there as documented.

use abi::{Status, calls, control, share};
use guest_tests::service::{self, call};
use guest_tests::{Verdict, check, same};

pub(crate) fn every_call_that_is_offered_is_there() -> Verdict {
    service::granted()?;
    let revision = u64::from(abi::REVISION_MAJOR) << 16 | u64::from(abi::REVISION_MINOR);
    for function in calls::OFFERED {
        let answer = call(calls::FEATURES, &[function.into()])?;
        check!(answer.status == Status::Success, "call {function:#x}: expected it offered, found {answer:?}");
        same!("the revision of a call", function.into(), revision, answer.x[0]);
        // Arguments that are none: refused, and not for want of the call.
        let answer = call(function, &[u64::MAX; 6])?;
        check!(
            answer.status != Status::NotSupported || function == calls::FEATURES,
            "call {function:#x}: offered, and not there"
        );
    }
    // Arguments that are none, again. Some machines have these, and each is offered where it is there.
    for &function in share::ALL.iter().chain(&control::ALL) {
        let offered = call(calls::FEATURES, &[function.into()])?.status == Status::Success;
        let there = call(function, &[u64::MAX; 6])?.status != Status::NotSupported;
        check!(offered == there, "call {function:#x}: offered is {offered}, and there is {there}");
    }
    for function in [calls::TRACE_START, calls::TRACE_STOP, abi::RANGE_64] {
        if call(calls::FEATURES, &[function.into()])?.status == Status::Success {
            continue; // granted, and tested by itself
        }
        let answer = call(function, &[0; 6])?;
        check!(answer.status == Status::NotSupported, "call {function:#x}: expected none, found {answer:?}");
    }
    Ok(())
}
