//! Promise: the calls are there through the control page, too.

use crate::words::{BLOCK, blocks};
use abi::{Status, calls, control, page};
use guest_tests::mmio::{read64, write32, write64};
use guest_tests::mmu::{Memory, Window};
use guest_tests::service::call;
use guest_tests::{Verdict, same, service};

pub(crate) fn makes_the_same_calls() -> Verdict {
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

pub(crate) fn has_a_controller_s_calls_where_the_machine_is_one() -> Verdict {
    service::granted()?;
    let base = Window::mine().at(page::BASE, Memory::Device);
    let by_page = |function: u32, argument: u64| {
        write64(base + page::FUNCTION, function.into());
        write64(base + page::ARGUMENT, argument);
        write32(base + page::GO, 1);
        read64(base + page::STATUS)
    };
    for function in [control::START, control::STATE, control::DESTROY] {
        let expected = match call(calls::FEATURES, &[function.into()])?.status {
            Status::Success => Status::InvalidParameter, // nobody's handle
            other => other,
        };
        let status = by_page(function, u64::MAX);
        same!("the status of a controller's call by the page", function.into(), expected.value(), status);
    }
    same!("a call that there is not", 0, Status::NotSupported.value(), by_page(abi::UID, 0));
    Ok(())
}
