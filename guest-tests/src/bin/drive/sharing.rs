//! Promise: what is lent to another machine is there for both, with the rights of the loan, and afterwards for the owner alone;
//! what is given has its contents; nothing changes hands that is pinned or lent, and nothing is lost when one of the two ends.
//!
//! Needs a machine that may run others, and template 0 for a payload that serves (`guest_tests::partner`).

use crate::words::{self, blocks, page};
use abi::{Status, calls, control, share};
use core::sync::atomic::Ordering::Relaxed;
use guest_tests::guard::Caught;
use guest_tests::mmu::{Memory, PAGE, Window};
use guest_tests::partner::{Access, Partner, complete, done, read};
use guest_tests::ram::{self, Ram};
use guest_tests::service::{self, call};
use guest_tests::{NotPassed, Verdict, check, same, skip};

/// Where the second loan goes: the first one is the mailbox.
const SECOND: u64 = share::WINDOW + PAGE;

/// Returns memory, and a partner; skips the test where there can be none.
fn together() -> Result<(Ram, Partner), NotPassed> {
    let ram = blocks(1)?;
    if call(control::STATE, &[u64::MAX])?.status == Status::NotSupported {
        skip!("this machine runs no others");
    }
    words::fill(ram, 0);
    let Some(mailbox) = ram::take(PAGE, PAGE) else { skip!("too little memory") };
    Ok((ram, Partner::start(mailbox)?))
}

fn offer(function: u32, of: (u64, u64), rights: u64, to: &Partner) -> Result<u64, NotPassed> {
    Ok(done(function, &[of.0, of.1, rights, to.number])?.x[0])
}

/// Has the partner accept an offer.
fn accept(partner: &Partner, offer: u64, at: u64, bytes: u64) -> Verdict {
    let (status, come) = partner.complete(share::ACCEPT, &[partner.me, offer, at])?;
    check!(
        status == Status::Success,
        "ACCEPT of offer {offer:#x} at {at:#x}: expected success, found {status:?}"
    );
    same!("bytes that have come", at, bytes, come);
    Ok(())
}

fn expect(what: &str, address: u64, expected: Access, found: Access) -> Verdict {
    check!(expected == found, "{what} at {address:#x}: expected {expected:x?}, found {found:x?}");
    Ok(())
}

fn status(what: &str, expected: Status, found: Status) -> Verdict {
    check!(expected == found, "{what}: expected {expected:?}, found {found:?}");
    Ok(())
}

pub(crate) fn a_loan_to_read_refuses_writes() -> Verdict {
    let (ram, partner) = together()?;
    let lent = page(ram, 5);
    let loan = offer(share::LEND, (lent.start, PAGE), 1, &partner)?;
    expect("a read before the loan", SECOND, Access::Refused, partner.read(SECOND)?)?;
    accept(&partner, loan, SECOND, PAGE)?;
    let word = &ram.page(5)[0];
    expect("a read", SECOND, Access::Made(words::value(word, 0)), partner.read(SECOND)?)?;
    for _ in 0..2 {
        expect("a write", SECOND, Access::Refused, partner.write(SECOND, 1)?)?;
    }
    word.store(7, Relaxed); // the owner goes on
    expect("a read", SECOND, Access::Made(7), partner.read(SECOND)?)?;
    done(share::TAKE_BACK, &[loan])?;
    expect("a read after the loan", SECOND, Access::Refused, partner.read(SECOND)?)?;
    partner.end()
}

pub(crate) fn a_loan_to_write_is_seen_by_both_and_comes_back() -> Verdict {
    const BYTES: u64 = 40 * PAGE; // more than one step
    let (ram, partner) = together()?;
    let loan = offer(share::LEND, (page(ram, 100).start, BYTES), 3, &partner)?;
    accept(&partner, loan, SECOND, BYTES)?;
    for n in [0, 15, 16, 39] {
        let (mine, its) = (&ram.page(100 + n)[9], SECOND + n * PAGE + 72);
        mine.store(1000 + n, Relaxed);
        expect("what the owner wrote", its, Access::Made(1000 + n), partner.read(its)?)?;
        expect("a write", its, Access::Made(0), partner.write(its, 2000 + n)?)?;
        same!("what the borrower wrote", mine.as_ptr() as u64, 2000 + n, mine.load(Relaxed));
    }
    done(share::TAKE_BACK, &[loan])?;
    for n in [0, 15, 16, 39] {
        let its = SECOND + n * PAGE;
        expect("a read after the loan", its, Access::Refused, partner.read(its)?)?;
        expect("a write after the loan", its, Access::Refused, partner.write(its, 1)?)?;
    }
    for n in (0..100).chain(140..150) {
        for word in words::some(ram.page(n)) {
            same!("what was not lent", word.as_ptr() as u64, words::value(word, 0), word.load(Relaxed));
        }
    }
    service::self_check()?;
    partner.end()
}

pub(crate) fn what_is_pinned_or_lent_does_not_change_hands() -> Verdict {
    let (ram, partner) = together()?;
    let (lent, pinned) = (page(ram, 3), page(ram, 8));
    let loan = offer(share::LEND, (lent.start, PAGE), 3, &partner)?;
    accept(&partner, loan, SECOND, PAGE)?;
    // What is lent is not pinned, moved, or offered again.
    status("PIN", Status::Denied, service::attempt(calls::PIN, lent, 0)?.status)?;
    status("MOVE", Status::Denied, service::attempt(calls::MOVE, lent, 0)?.status)?;
    status("LEND", Status::Lent, call(share::LEND, &[lent.start, PAGE, 1, partner.number])?.status)?;
    let (pin, _) = partner.call(calls::PIN, &[SECOND, PAGE, 0, 0])?;
    status("PIN by the borrower", Status::NotMemory, pin)?;
    // What is pinned is neither lent nor given; and of a range with it, nothing is.
    let handle = service::complete(calls::PIN, pinned, 1)?.x[1];
    for (function, at) in [(share::LEND, SECOND + PAGE), (share::GIVE, partner_hole(&partner)?)] {
        let offer = offer(function, (page(ram, 6).start, 4 * PAGE), 1, &partner)?;
        let (refused, come) = partner.call(share::ACCEPT, &[partner.me, offer, at])?;
        status("ACCEPT of what is pinned", Status::Pinned, refused)?;
        same!("bytes that have come", at, 0, come);
        done(share::TAKE_BACK, &[offer])?;
    }
    words::check("what did not change hands", ram, 0)?;
    done(calls::UNPIN, &[handle, 0])?;
    done(share::TAKE_BACK, &[loan])?;
    service::complete(calls::MOVE, lent, 0)?;
    partner.end()
}

/// Returns addresses of the partner's memory where nothing is mapped, for four pages.
fn partner_hole(partner: &Partner) -> Result<u64, NotPassed> {
    let hole = partner.place()?;
    let (out, _) = partner.complete(calls::BALLOON_OUT, &[hole, 4 * PAGE, 0, 0])?;
    status("BALLOON_OUT by the partner", Status::Success, out)?;
    Ok(hole)
}

pub(crate) fn what_is_given_has_its_contents() -> Verdict {
    let (ram, partner) = together()?;
    let given = page(ram, 20);
    let hole = partner_hole(&partner)?;
    let gift = offer(share::GIVE, (given.start, 4 * PAGE), 0, &partner)?;
    let (refused, _) = partner.call(share::ACCEPT, &[partner.me, gift, SECOND])?;
    status("ACCEPT of a gift outside of memory", Status::NotMemory, refused)?;
    accept(&partner, gift, hole, 4 * PAGE)?;
    for n in 0..4 {
        let mine = &ram.page(20 + n)[0];
        let its = hole + n * PAGE;
        expect("what was given", its, Access::Made(words::value(mine, 0)), partner.read(its)?)?;
        expect("a write to it", its, Access::Made(0), partner.write(its, 5)?)?;
        same!("what comes in its place", mine.as_ptr() as u64, 0, mine.load(Relaxed));
    }
    status("TAKE_BACK of a gift", Status::NoHandle, call(share::TAKE_BACK, &[gift])?.status)?;
    service::self_check()?;
    partner.end()
}

/// Whoever dies, whatever is lent: nothing is lost, and nothing is left behind.
pub(crate) fn the_end_of_one_side_leaks_nothing() -> Verdict {
    // The borrower ends.
    let (ram, partner) = together()?;
    let loan = offer(share::LEND, (page(ram, 30).start, 20 * PAGE), 3, &partner)?;
    accept(&partner, loan, SECOND, 20 * PAGE)?;
    expect("a write", SECOND, Access::Made(0), partner.write(SECOND, 99)?)?;
    partner.destroy()?;
    status("TAKE_BACK", Status::NoHandle, call(share::TAKE_BACK, &[loan])?.status)?;
    same!("what the borrower wrote", page(ram, 30).start, 99, ram.page(30)[0].load(Relaxed));
    service::complete(calls::MOVE, page(ram, 30), 0)?; // it is ours alone
    // The lender ends.
    let (_, partner) = together()?;
    let hole = partner_hole(&partner)?;
    expect("a write", hole, Access::Made(0), partner.write(hole, 41)?)?;
    let (lent, theirs) = partner.call(share::LEND, &[hole, PAGE, 3, partner.me])?;
    status("LEND by the partner", Status::Success, lent)?;
    let come = complete(share::ACCEPT, &[partner.number, theirs, share::WINDOW])?;
    status("ACCEPT", Status::Success, come.status)?;
    let here = Window::mine().at(share::WINDOW, Memory::Normal);
    check!(read(here) == Ok(41), "what is borrowed: expected 41, found {:x?}", read(here));
    partner.destroy()?; // which looks at every frame
    let gone = read(here);
    check!(
        gone.is_err_and(Caught::is_of_no_memory),
        "a read of what is borrowed of who is gone: expected a refusal, found {gone:x?}"
    );
    Ok(())
}
