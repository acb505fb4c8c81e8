//! Promise: an address leads to its own memory, whatever becomes of its mapping.

use crate::words::{self, BLOCK, blocks};
use abi::calls::{self, statistic};
use guest_tests::service::{complete, leaves, self_check, statistic};
use guest_tests::{Verdict, check, same, service};

pub(crate) fn every_page_keeps_its_contents_through_split_move_and_collapse() -> Verdict {
    let ram = blocks(3)?;
    let region = ram.region();
    let before = statistic(statistic::MOVED)?;
    words::fill(ram, 0);
    complete(calls::SPLIT, region, 0)?;
    same!("pages after a split", region.start, ram.pages(), leaves(region)?[0]);
    words::check("after a split", ram, 0)?;
    complete(calls::COLLAPSE, region, 0)?;
    same!("blocks after a collapse in place", region.start, region.size() / BLOCK, leaves(region)?[1]);
    words::check("after a collapse in place", ram, 0)?;
    complete(calls::MOVE, region, 0)?;
    words::check("after blocks were moved", ram, 0)?;
    complete(calls::SPLIT, region, 0)?;
    words::fill(ram, 1);
    complete(calls::MOVE, words::block(ram, 1), 0)?;
    words::check("after pages were moved", ram, 1)?;
    let moved = statistic(statistic::MOVED)? - before;
    check!(moved >= 512 + 3, "leaves moved: expected 515, found {moved}");
    complete(calls::COLLAPSE, region, 1)?;
    same!("blocks after a collapse that moves", region.start, region.size() / BLOCK, leaves(region)?[1]);
    words::check("after a collapse that moves", ram, 1)
}

pub(crate) fn the_tables_agree_with_the_frames() -> Verdict {
    service::granted()?;
    self_check()
}
