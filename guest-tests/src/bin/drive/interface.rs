//! Promise: the calls are there as documented, by HVC and through the control page.

use crate::words::{BLOCK, blocks};
use abi::{Status, calls, page};
use guest_tests::mmio::{read64, write32, write64};
use guest_tests::mmu::{Memory, Window};
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
    for function in [calls::TRACE_START, calls::TRACE_STOP, abi::RANGE_64] {
        if call(calls::FEATURES, &[function.into()])?.status == Status::Success {
            continue; // granted, and tested by itself
        }
        let answer = call(function, &[0; 6])?;
        check!(answer.status == Status::NotSupported, "call {function:#x}: expected none, found {answer:?}");
    }
    Ok(())
}

pub(crate) fn the_control_page_makes_the_same_calls() -> Verdict {
    let ram = blocks(2)?;
    let base = Window::mine().at(page::BASE, Memory::Device);
    same!("the control page's name", page::BASE, page::MAGIC, read64(base + page::ID));
    let region = ram.region();
    write64(base + page::FUNCTION, calls::SPLIT.into());
    for (n, argument) in (0..).zip([region.start, region.size(), 0, 0]) {
        write64(base + page::ARGUMENT + 8 * n, argument);
    }
    write32(base + page::GO, 1);
    same!("the status of a split by the page", region.start, 0, read64(base + page::STATUS));
    same!("what the split has done", region.start, 2 * BLOCK, read64(base + page::RESULT));
    same!("blocks split", region.start, 2, read64(base + page::RESULT + 8));
    same!("pages after a split", region.start, 1024, service::leaves(region)?[0]);
    Ok(())
}
