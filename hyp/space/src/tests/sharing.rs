//! Lending, taking back and giving, between two spaces on one machine.

use super::*;
use crate::{Between, Contents, Leaves, Outcome, Pins, Scattered, ShareError, Side};
use frames::{Hold, Kind, Word};
use stage2::{Attrs, Entry, Leaf, Owner as Owned, Section};
use std::sync::atomic::AtomicU64;

/// Where the borrower has a region for what others lend.
const WINDOW: u64 = 0x1000_0000;
/// Pages of either's RAM, the first of which are mapped with a block.
const PAGES: u64 = 1024;

/// Two spaces, and a CPU that acts for both.
struct Two<'m> {
    machine: &'m Machine,
    lender: Space<'m, Format>,
    borrower: Space<'m, Format>,
    epoch: &'m EntryEpoch,
}

/// What there is to see of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    owner: Owned,
    access: Access,
    pa: Pa,
    word: Word,
}

/// Invalidation that has something happen on another CPU before it is complete.
struct Meanwhile<'a>(&'a (dyn Fn() + Sync));

impl Invalidate for Meanwhile<'_> {
    type Pending = Work;

    fn begin(&self, work: Work) -> Work {
        work
    }

    fn complete(&self, work: Work) {
        if work.class >= stage2::Class::Leaves {
            (self.0)();
        }
    }
}

/// Runs a test on two spaces, the lender's first pages mapped and written, and looks whether anything leaks.
fn with_two(test: impl FnOnce(&Two<'_>, &mut Stay<'_>)) {
    let machine = machine(24 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let space = |owner, tables| {
        Space::new(&machine, Owner(owner), Format::new(Features::empty()), geometry(), Bbm::Level0, tables)
            .expect("there is memory")
    };
    let two = Two { machine: &machine, lender: space(1, 100), borrower: space(2, 100), epoch: &epoch };
    let mut stay = epoch.enter(cpu_id(0));
    add_ram(&two.lender, &mut stay, GUEST, PAGES * PAGE);
    add_ram(&two.borrower, &mut stay, GUEST, PAGES * PAGE);
    two.borrower.add_region(&mut stay, Region::borrowed(range(WINDOW, 64 * PAGE))).unwrap();
    let (cpu, tlb) = (two.cpu(), Recorder::default());
    two.lender.populate(&mut stay, &cpu, &tlb, range(GUEST, BLOCK)).unwrap();
    for n in 0..40 {
        let word = [n as u8 + 1; 8];
        two.lender.copy_in(&mut stay, &cpu, &tlb, Ipa::new(GUEST + n * PAGE), &word).unwrap();
    }
    test(&two, &mut stay);
    let Two { lender, borrower, .. } = two;
    for space in [borrower, lender] {
        while space.drain(&mut stay, &cpu) {
            stay.pass();
        }
        space.destroy(&mut stay, &cpu, &tlb);
    }
    machine.drain_kept();
    assert_eq!(machine.stats(), before, "nothing has leaked");
}

fn pages(first: u64, count: u64) -> Range {
    range(GUEST + first * PAGE, count * PAGE)
}

/// What a space maps at a page: the frame, whose the leaf is, the rights; the references to the frame, its owner, and whether it is frozen.
type Mapped = (Pa, Owned, Access, u64, u64, bool);

impl<'m> Two<'m> {
    fn cpu(&self) -> FakeCpu<'m> {
        FakeCpu::new(0, self.machine)
    }

    fn between<'a, I>(&'a self, tlb: &'a I) -> Between<'a, 'm, Format, I> {
        Between { from: Side { space: &self.lender, tlb }, to: Side { space: &self.borrower, tlb } }
    }

    fn lend(&self, stay: &Stay<'_>, from: Range, at: u64, access: Access) -> Result<(), ShareError> {
        self.between(&Recorder::default()).lend(stay, &self.cpu(), from, Ipa::new(at), access)
    }

    fn take_back(&self, stay: &mut Stay<'_>, from: Range, at: u64) -> Result<(), ShareError> {
        self.between(&Recorder::default()).take_back(stay, &self.cpu(), from, Ipa::new(at))
    }

    fn give(&self, stay: &Stay<'_>, from: Range, at: u64) -> Result<(), ShareError> {
        self.between(&Recorder::default()).give(stay, &self.cpu(), from, Ipa::new(at))
    }

    fn seen(&self, space: &Space<'_, Format>, stay: &Stay<'_>, ipa: u64) -> Option<Seen> {
        let found = space.tree().open(stay).translate(Ipa::new(ipa));
        let Entry::Leaf(Leaf { attrs: Attrs { owner, access, .. }, .. }) = found.entry(space.tree().format())
        else {
            return None;
        };
        let pa = found.pa(Ipa::new(ipa)).unwrap();
        Some(Seen { owner, access, pa, word: self.machine.record(pa).unwrap().load() })
    }

    /// Everything that there is to see of both.
    fn all(&self, stay: &Stay<'_>) -> Vec<[Option<Mapped>; 2]> {
        let look = |space: &Space<'_, Format>, ipa: u64| {
            self.seen(space, stay, ipa).map(|Seen { owner, access, pa, word }| {
                (pa, owner, access, word.refs(), u64::from(word.owner().0), word.is_frozen())
            })
        };
        let addresses = (0..PAGES).map(|n| GUEST + n * PAGE).chain((0..64).map(|n| WINDOW + n * PAGE));
        addresses.map(|ipa| [look(&self.lender, ipa), look(&self.borrower, ipa)]).collect()
    }

    /// A guest of `space` does something at an address.
    fn fault(
        &self,
        space: &Space<'_, Format>,
        stay: &Stay<'_>,
        ipa: u64,
        access: Access,
        kind: FaultKind,
    ) -> Outcome {
        let fault = Fault { access, kind, ..fault_at(ipa) };
        space.fault(stay, &self.cpu(), &Recorder::default(), &fault).unwrap()
    }

    fn pin(&self, stay: &Stay<'_>, page: Range) -> crate::Pin {
        let mut slot = [None];
        let mut pins = Pins::new(&mut slot);
        assert_eq!(self.lender.pin_fast(stay, page, Hold::Write, &mut pins), page.end());
        pins.pop().unwrap()
    }
}

#[test]
fn both_have_the_pages_of_a_loan_and_afterwards_the_owner_alone() {
    with_two(|two, stay| {
        let before = two.all(stay);
        two.lend(stay, pages(3, 16), WINDOW, Access::RW).unwrap();
        for n in 0..16 {
            let mine = two.seen(&two.lender, stay, GUEST + (3 + n) * PAGE).unwrap();
            let other = two.seen(&two.borrower, stay, WINDOW + n * PAGE).unwrap();
            assert_eq!((mine.pa, mine.owner, mine.access), (other.pa, Owned::Lent, Access::RWX));
            assert_eq!((other.owner, other.access), (Owned::Borrowed, Access::RW));
            let word = mine.word;
            assert_eq!((word.refs(), word.pins(), word.owner(), word.is_frozen()), (2, 0, Owner(1), false));
            assert_eq!(byte_at(&two.borrower, stay, WINDOW + n * PAGE), 4 + n as u8);
        }
        two.take_back(stay, pages(3, 16), WINDOW).unwrap();
        assert_eq!(two.all(stay), before, "as before");
        assert_eq!(byte_at(&two.lender, stay, GUEST + 3 * PAGE), 4);
        two.take_back(stay, pages(3, 16), WINDOW).unwrap(); // there is nothing to take back
        assert_eq!(two.all(stay), before);
    });
}

#[test]
fn a_loan_to_read_refuses_writes_for_good_and_the_owner_goes_on_writing() {
    with_two(|two, stay| {
        two.lend(stay, pages(0, 1), WINDOW, Access::READ).unwrap();
        let permission = FaultKind::Permission;
        for _ in 0..2 {
            assert_eq!(two.fault(&two.borrower, stay, WINDOW, Access::WRITE, permission), Outcome::Denied);
        }
        assert_eq!(two.seen(&two.borrower, stay, WINDOW).unwrap().access, Access::READ);
        let read = two.fault(&two.borrower, stay, WINDOW, Access::READ, FaultKind::AccessFlag);
        assert_eq!(read, Outcome::AlreadyMapped, "it may be made young");
        // The owner's own rights come and go as ever.
        let tlb = Recorder::default();
        two.lender.protect(stay, &tlb, pages(0, 1), Access::READ).unwrap();
        assert_eq!(two.fault(&two.lender, stay, GUEST, Access::WRITE, permission), Outcome::Denied);
        two.lender.protect(stay, &tlb, pages(0, 1), Access::RWX).unwrap();
        assert_eq!(two.fault(&two.lender, stay, GUEST, Access::WRITE, permission), Outcome::Allowed);
        // What it has not, it cannot lend.
        two.lender.protect(stay, &tlb, pages(1, 1), Access::READ).unwrap();
        let denied = Err(ShareError::Denied { ipa: pages(1, 1).start() });
        assert_eq!(two.lend(stay, pages(1, 1), WINDOW + PAGE, Access::RW), denied);
        two.take_back(stay, pages(0, 1), WINDOW).unwrap();
    });
}

/// A borrowed leaf that is old is made young, and given nothing else.
#[test]
fn a_borrowed_page_is_made_young_and_gets_no_right_by_it() {
    with_two(|two, stay| {
        two.lend(stay, pages(0, 1), WINDOW, Access::READ).unwrap();
        while two
            .borrower
            .tree()
            .age(stay, &Recorder::default(), range(WINDOW, PAGE), &mut |_, _| {})
            .is_err()
        {}
        let young = two.fault(&two.borrower, stay, WINDOW, Access::READ, FaultKind::AccessFlag);
        assert_eq!(young, Outcome::Allowed);
        assert_eq!(two.seen(&two.borrower, stay, WINDOW).unwrap().access, Access::READ);
        two.take_back(stay, pages(0, 1), WINDOW).unwrap();
    });
}

#[test]
fn a_borrower_faults_where_nothing_is_lent_or_is_not_any_more() {
    with_two(|two, stay| {
        let touch =
            |stay: &Stay<'_>| two.fault(&two.borrower, stay, WINDOW, Access::READ, FaultKind::Translation);
        assert_eq!(touch(stay), Outcome::Denied);
        two.lend(stay, pages(0, 1), WINDOW, Access::RW).unwrap();
        assert_eq!(touch(stay), Outcome::AlreadyMapped);
        let tlb = Recorder::default();
        two.between(&tlb).take_back(stay, &two.cpu(), pages(0, 1), Ipa::new(WINDOW)).unwrap();
        assert_eq!(touch(stay), Outcome::Denied);
        let is_told = |work: &Work| {
            let scope = match work.scope {
                stage2::Scope::Range { range, .. } => range.contains(Ipa::new(WINDOW)),
                stage2::Scope::Tag => true,
            };
            work.class >= stage2::Class::Leaves && scope
        };
        assert!(tlb.0.lock().unwrap().iter().any(is_told), "its TLBs have forgotten");
    });
}

/// Whoever has taken the page out of the borrower's tables may still be waiting for its TLBs: the owner waits for that.
#[test]
fn nothing_is_taken_back_before_the_borrower_has_forgotten_it() {
    with_two(|two, stay| {
        two.lend(stay, pages(0, 1), WINDOW, Access::RW).unwrap();
        let early = Mutex::new(None);
        let take_back = || {
            let mut stay = two.epoch.enter(cpu_id(1));
            let mut early = early.lock().unwrap();
            early.get_or_insert_with(|| two.take_back(&mut stay, pages(0, 1), WINDOW));
        };
        two.borrower.discard(stay, &two.cpu(), &Meanwhile(&take_back), range(WINDOW, PAGE)).unwrap();
        let early = early.lock().unwrap().take().expect("it was invalidated");
        assert!(matches!(early, Err(ShareError::Busy { .. })), "{early:?}");
        let mine = two.seen(&two.lender, stay, GUEST).unwrap();
        assert_eq!((mine.owner, mine.word.refs()), (Owned::Lent, 1));
        two.take_back(stay, pages(0, 1), WINDOW).unwrap();
        assert_eq!(two.seen(&two.lender, stay, GUEST).unwrap().owner, Owned::Space);
    });
}

/// Invalidation that has something happen on another CPU when new entries are visible.
struct Published<'a>(&'a (dyn Fn() + Sync));

impl Invalidate for Published<'_> {
    type Pending = Work;

    fn begin(&self, work: Work) -> Work {
        work
    }

    fn complete(&self, work: Work) {
        if work.class == stage2::Class::Publish {
            (self.0)();
        }
    }
}

#[test]
fn what_is_given_can_be_given_back_at_once() {
    with_two(|two, stay| {
        let discard = || {
            let mut stay = two.epoch.enter(cpu_id(1));
            let gift = pages(600, 1);
            let _ = two.borrower.let_go(&mut stay, &two.cpu(), &Recorder::default(), gift);
        };
        let tlb = Published(&discard);
        two.between(&tlb).give(stay, &two.cpu(), pages(0, 1), Ipa::new(GUEST + 600 * PAGE)).unwrap();
        assert_eq!(two.seen(&two.borrower, stay, GUEST + 600 * PAGE), None);
    });
}

#[test]
fn what_is_given_has_its_contents_and_another_owner() {
    with_two(|two, stay| {
        let frames: Vec<Pa> =
            (0..16).map(|n| translate(&two.lender, stay, GUEST + n * PAGE).unwrap().0).collect();
        let guest = two.machine.stats().guest;
        two.give(stay, pages(0, 16), GUEST + 600 * PAGE).unwrap();
        for (n, &pa) in (0..).zip(&frames) {
            assert_eq!(two.seen(&two.lender, stay, GUEST + n * PAGE), None);
            let gift = two.seen(&two.borrower, stay, GUEST + (600 + n) * PAGE).unwrap();
            assert_eq!((gift.pa, gift.owner, gift.access), (pa, Owned::Space, Access::RWX));
            let word = gift.word;
            assert_eq!((word.refs(), word.owner(), word.is_frozen()), (1, Owner(2), false));
            assert_eq!(byte_at(&two.borrower, stay, GUEST + (600 + n) * PAGE), 1 + n as u8, "not zeroed");
        }
        assert_eq!(two.machine.stats().guest, guest);
        assert_eq!(
            two.fault(&two.lender, stay, GUEST, Access::WRITE, FaultKind::Translation),
            Outcome::Mapped
        );
        assert_eq!(byte_at(&two.lender, stay, GUEST), 0, "what comes instead is zeroed");
        // It is the receiver's in every way: to pin, to lend, to give back.
        let tlb = Recorder::default();
        let back = Between {
            from: Side { space: &two.borrower, tlb: &tlb },
            to: Side { space: &two.lender, tlb: &tlb },
        };
        back.give(stay, &two.cpu(), pages(601, 1), Ipa::new(GUEST + PAGE)).unwrap();
        assert_eq!(byte_at(&two.lender, stay, GUEST + PAGE), 2);
        two.borrower.discard(stay, &two.cpu(), &tlb, pages(600, 1)).unwrap();
        assert_ne!(two.machine.record(frames[0]).unwrap().load().kind(), Kind::Guest, "it went back");
    });
}

#[test]
fn what_is_pinned_or_lent_changes_no_hands_and_nothing_has_changed() {
    with_two(|two, stay| {
        two.lend(stay, pages(10, 1), WINDOW, Access::RW).unwrap();
        let pin = two.pin(stay, pages(5, 1));
        let before = two.all(stay);
        let pinned = Err(ShareError::Pinned { ipa: pages(5, 1).start() });
        let lent = Err(ShareError::NotOwned { ipa: pages(10, 1).start() });
        let free = GUEST + 600 * PAGE;
        assert_eq!(two.lend(stay, pages(2, 8), WINDOW + PAGE, Access::READ), pinned);
        assert_eq!(two.give(stay, pages(2, 8), free), pinned);
        assert!(pin.is_wanted(two.machine), "its pinner is asked");
        assert_eq!(two.lend(stay, pages(8, 8), WINDOW + PAGE, Access::READ), lent);
        assert_eq!(two.give(stay, pages(8, 8), free), lent);
        assert_eq!(two.all(stay), before, "all or nothing");
        // Nor does what is lent move, become part of a block, or get pinned.
        let (cpu, tlb, lent) = (two.cpu(), Recorder::default(), pages(10, 1).start());
        let run = two.machine.allocate(frames::Order::FRAME, frames::Usage::Guest(Owner(1))).unwrap();
        let moved = two.lender.move_leaf(&*stay, &cpu, &tlb, lent, run);
        assert_eq!(moved, Err(crate::MoveError::Immovable { ipa: lent }));
        let block = Ipa::new(GUEST);
        let made = two.lender.collapse(stay, &cpu, &tlb, block, Height::new(1), Scattered::Gather);
        assert!(made.is_err(), "{made:?}");
        let mut slot = [None];
        let mut pins = Pins::new(&mut slot);
        for (space, page) in [(&two.lender, pages(10, 1)), (&two.borrower, range(WINDOW, PAGE))] {
            let pinned = space.pin(stay, &cpu, &tlb, page, Hold::Read, &mut pins);
            assert_eq!(pinned, Err(crate::PinError::NotOwned { ipa: page.start() }));
        }
        assert_eq!(two.all(stay), before);
        two.lender.unpin(stay, pin, Contents::Unchanged).unwrap();
        two.take_back(stay, pages(10, 1), WINDOW).unwrap();
        two.give(stay, pages(2, 8), free).unwrap();
    });
}

/// A pin that comes between the look and the commit: the words refuse, and all is as it was.
#[test]
fn a_pin_that_comes_after_the_look_keeps_pages_from_being_given() {
    with_two(|two, stay| {
        // The entries are pages already, so that the only invalidations are those of the commit.
        two.lend(stay, pages(0, 4), WINDOW, Access::RW).unwrap();
        two.take_back(stay, pages(0, 4), WINDOW).unwrap();
        let before = two.all(stay);
        let (pa, _) = translate(&two.lender, stay, GUEST + 2 * PAGE).unwrap();
        // A pinner that has walked before comes to the word, and has not looked again.
        let times = AtomicU64::new(0);
        let pin = || {
            if times.fetch_add(1, Relaxed) == 1 {
                two.machine.pin(pa, frames::Order::FRAME, Hold::Read).unwrap();
            }
        };
        let given =
            two.between(&Meanwhile(&pin)).give(stay, &two.cpu(), pages(0, 4), Ipa::new(GUEST + 600 * PAGE));
        assert_eq!(given, Err(ShareError::Pinned { ipa: pages(2, 1).start() }));
        two.machine.unpin(pa, frames::Order::FRAME, Hold::Read).unwrap();
        assert_eq!(two.all(stay), before);
    });
}

#[test]
fn what_cannot_change_hands_is_an_error_that_names_it() {
    with_two(|two, stay| {
        let before = two.all(stay);
        let absent = pages(PAGES - 1, 1);
        let rw = Access::RW;
        assert_eq!(two.lend(stay, absent, WINDOW, rw), Err(ShareError::NotMapped { ipa: absent.start() }));
        assert_eq!(two.give(stay, absent, GUEST), Err(ShareError::NotMapped { ipa: absent.start() }));
        for bad in [pages(0, 0), pages(0, 17), range(GUEST + 1, PAGE), range(0xf_ffff_f000, 2 * PAGE)] {
            assert_eq!(two.lend(stay, bad, WINDOW, rw), Err(ShareError::BadPages), "{bad:?}");
        }
        assert_eq!(two.lend(stay, pages(0, 1), WINDOW + 8, rw), Err(ShareError::BadPages));
        for nowhere in [GUEST, 0x5000_0000, WINDOW + 63 * PAGE] {
            let no_place = Err(ShareError::NoPlace { ipa: Ipa::new(nowhere) });
            assert_eq!(two.lend(stay, pages(0, 2), nowhere, rw), no_place);
        }
        let no_place = Err(ShareError::NoPlace { ipa: Ipa::new(WINDOW) });
        assert_eq!(two.give(stay, pages(0, 1), WINDOW), no_place);
        assert_eq!(
            two.lend(stay, pages(0, 1), WINDOW, Access::RWX),
            no_place,
            "nothing is fetched from there"
        );
        let mapped = two.fault(&two.borrower, stay, GUEST + PAGE, Access::WRITE, FaultKind::Translation);
        assert_eq!(mapped, Outcome::Mapped);
        let (there, _) = translate(&two.borrower, stay, GUEST + PAGE).unwrap();
        assert_eq!(two.give(stay, pages(0, 2), GUEST), Err(ShareError::Occupied { ipa: Ipa::new(GUEST) }));
        assert_eq!(translate(&two.borrower, stay, GUEST + PAGE).unwrap().0, there);
        let tlb = Recorder::default();
        let itself = Side { space: &two.lender, tlb: &tlb };
        let both = Between { from: itself, to: Side { space: &two.lender, tlb: &tlb } };
        let to_itself = both.give(stay, &two.cpu(), pages(0, 1), Ipa::new(GUEST + 700 * PAGE));
        assert_eq!(to_itself, Err(ShareError::BadPages));
        two.borrower.discard(stay, &two.cpu(), &tlb, range(GUEST, PAGES * PAGE)).unwrap();
        assert_eq!(two.all(stay), before);
    });
}

/// The frame is the borrower's until the loan ends, and free then.
#[test]
fn what_an_owner_discards_stays_the_borrowers_until_it_is_taken_back() {
    with_two(|two, stay| {
        two.lend(stay, pages(0, 1), WINDOW, Access::RW).unwrap();
        let (pa, _) = translate(&two.lender, stay, GUEST).unwrap();
        two.lender.discard(stay, &two.cpu(), &Recorder::default(), pages(0, 1)).unwrap();
        assert_eq!(byte_at(&two.borrower, stay, WINDOW), 1);
        assert_eq!(two.machine.record(pa).unwrap().load().refs(), 1);
        // The owner has another page there, which the end of the loan leaves alone.
        two.fault(&two.lender, stay, GUEST, Access::WRITE, FaultKind::Translation);
        let other = two.seen(&two.lender, stay, GUEST).unwrap();
        assert_ne!(other.pa, pa);
        two.take_back(stay, pages(0, 1), WINDOW).unwrap();
        assert_eq!(two.seen(&two.lender, stay, GUEST), Some(other));
        assert_ne!(two.machine.record(pa).unwrap().load().kind(), Kind::Guest, "it went back");
    });
}

#[test]
fn a_borrower_that_lets_go_or_is_reset_leaves_the_owner_its_pages() {
    with_two(|two, stay| {
        two.lend(stay, pages(0, 4), WINDOW, Access::RW).unwrap();
        let tlb = Recorder::default();
        two.borrower.discard(stay, &two.cpu(), &tlb, range(WINDOW, PAGE)).unwrap();
        two.borrower.reset(stay, &two.cpu(), &tlb).unwrap();
        let mine = two.seen(&two.lender, stay, GUEST).unwrap();
        assert_eq!((mine.owner, mine.word.refs()), (Owned::Lent, 1));
        assert_eq!(
            two.lend(stay, pages(0, 1), WINDOW, Access::RW),
            Err(ShareError::NotOwned { ipa: pages(0, 1).start() })
        );
        two.take_back(stay, pages(0, 4), WINDOW).unwrap();
        assert_eq!(two.seen(&two.lender, stay, GUEST).unwrap().owner, Owned::Space);
        two.lend(stay, pages(0, 1), WINDOW, Access::RW).unwrap();
        two.take_back(stay, pages(0, 1), WINDOW).unwrap();
    });
}

#[test]
fn nothing_is_lent_or_given_by_or_to_the_dying_and_loans_still_end() {
    with_two(|two, stay| {
        two.lend(stay, pages(0, 1), WINDOW, Access::RW).unwrap();
        two.borrower.condemn(stay);
        assert_eq!(two.lend(stay, pages(1, 1), WINDOW + PAGE, Access::RW), Err(ShareError::Dying));
        assert_eq!(two.give(stay, pages(1, 1), GUEST), Err(ShareError::Dying));
        two.take_back(stay, pages(0, 1), WINDOW).unwrap();
        assert_eq!(two.seen(&two.lender, stay, GUEST).unwrap().owner, Owned::Space);
    });
}

/// What a borrower writes sets no mark in the owner's leaves: while it may write, every round reports the pages; and the first
/// round afterwards.
#[test]
fn no_round_of_the_owners_log_misses_what_a_borrower_wrote() {
    with_two(|two, stay| {
        let tlb = Recorder::default();
        two.lend(stay, pages(2, 2), WINDOW, Access::RW).unwrap();
        let granularity = crate::Granularity::Pages;
        let mut cursor = Some(two.lender.start_log(stay, &Leaves, pages(0, 8), granularity).unwrap());
        while let Some(at) = cursor {
            cursor = two.lender.arm_log(stay, &tlb, at).unwrap();
        }
        let round = |stay: &mut Stay<'_>| {
            let mut found = Vec::new();
            let mut cursor = two.lender.log_round(&*stay);
            while let Some(at) = cursor {
                cursor =
                    two.lender.harvest_log(stay, &tlb, &Leaves, at, &mut |part| found.push(part)).unwrap();
            }
            found
        };
        for _ in 0..2 {
            assert_eq!(round(stay), [pages(2, 2)], "as long as they are lent");
        }
        two.take_back(stay, pages(2, 1), WINDOW).unwrap();
        assert_eq!(round(stay), [pages(2, 2)], "the last writes");
        assert_eq!(round(stay), [pages(3, 1)]);
        // A borrower that is gone writes no more, but may have written.
        two.borrower.discard(stay, &two.cpu(), &tlb, range(WINDOW, 2 * PAGE)).unwrap();
        two.take_back(stay, pages(3, 1), WINDOW + PAGE).unwrap();
        assert_eq!(round(stay), [pages(3, 1)]);
        assert_eq!(round(stay), []);
        // What is given away has changed, too.
        two.give(stay, pages(5, 1), GUEST).unwrap();
        assert_eq!(round(stay), [pages(5, 1)]);
        two.lender.stop_log(stay).unwrap();
        // A log of the borrower's would not hear of the owner's writes.
        let log = two.borrower.start_log(stay, &Leaves, range(WINDOW, PAGE), granularity);
        assert_eq!(log.unwrap_err(), SpaceError::NotRam { ipa: Ipa::new(WINDOW) });
    });
}

#[test]
fn what_is_given_is_a_change_in_the_receivers_log() {
    with_two(|two, stay| {
        let tlb = Recorder::default();
        let gifts = pages(600, 2);
        // No flag tells of a write where nobody may write.
        let mut protect = two.borrower.start_protect(gifts, Access::RX);
        while *protect.step(stay, &tlb).unwrap() < gifts.end() {}
        let mut cursor =
            Some(two.borrower.start_log(stay, &Leaves, gifts, crate::Granularity::Pages).unwrap());
        while let Some(at) = cursor {
            cursor = two.borrower.arm_log(stay, &tlb, at).unwrap();
        }
        two.give(stay, pages(0, 2), GUEST + 600 * PAGE).unwrap();
        let mut found = Vec::new();
        let mut cursor = two.borrower.log_round(&*stay);
        while let Some(at) = cursor {
            let told = &mut |part| found.push(part);
            cursor = two.borrower.harvest_log(stay, &tlb, &Leaves, at, told).unwrap();
        }
        assert_eq!(found, [gifts]);
        two.borrower.stop_log(stay).unwrap();
    });
}

#[test]
fn what_caches_hold_is_seen_to_before_the_other_side_looks() {
    with_two(|two, stay| {
        let (pa, _) = translate(&two.lender, stay, GUEST).unwrap();
        let (cpu, tlb) = (two.cpu(), Recorder::default());
        let both = two.between(&tlb);
        both.lend(stay, &cpu, pages(0, 1), Ipa::new(WINDOW), Access::RW).unwrap();
        both.take_back(stay, &cpu, pages(0, 1), Ipa::new(WINDOW)).unwrap();
        both.give(stay, &cpu, pages(0, 1), Ipa::new(GUEST)).unwrap();
        use Cleaned::{AndInvalidated, ForData, ForFetches};
        // Lent; gone from the borrower, and the owner's alone; given.
        let how = [ForData, AndInvalidated, AndInvalidated, AndInvalidated, ForFetches];
        assert_eq!(*cpu.cleaned.lock().unwrap(), how.map(|how| (how, pa, 1)));
    });
}

/// Each request for memory refused in turn, with all that come after it: what is refused has changed nothing that anybody can tell.
#[test]
fn what_is_refused_memory_has_changed_no_hands() {
    type Act = fn(&Two<'_>, &mut Stay<'_>) -> Result<(), ShareError>;
    let acts: [Act; 2] = [
        |two, stay| two.lend(stay, pages(0, 16), WINDOW, Access::RW),
        |two, stay| two.give(stay, pages(0, 16), GUEST + 600 * PAGE),
    ];
    for act in acts {
        let (mut number, mut refusals) = (0, 0);
        loop {
            let mut went = false;
            with_two(|two, stay| {
                let before = two.all(stay);
                two.machine.refuse(number..u64::MAX);
                let done = act(two, stay);
                let requests = two.machine.requested();
                two.machine.refuse(0..0);
                went = requests <= number;
                match done {
                    Ok(()) => assert!(went, "request {number} was refused"),
                    Err(ShareError::OutOfTables { .. }) => {
                        refusals += 1;
                        assert_eq!(two.all(stay), before, "request {number}");
                        act(two, stay).expect("with memory it goes through");
                    }
                    Err(error) => panic!("{error:?}"),
                }
                let _ = two.take_back(stay, pages(0, 16), WINDOW);
            });
            if went {
                break;
            }
            number += 1;
        }
        assert!(refusals >= 2, "{refusals} of {number}: tables for the new addresses, at least");
    }
}
