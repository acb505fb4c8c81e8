//! Offers, loans and gifts between two machines.

use super::*;
use crate::service::{
    Ended, Ending, Party, Wants, answer_find, borrowed_window, end_for_good, share as share_with,
};
use abi::share;

/// The numbers of the two, and of one that there is not.
pub(super) const ONE: u64 = 0x1_0000;
pub(super) const OTHER: u64 = 0x1_0001;
const NOBODY: u64 = 0x1_0002;

/// Two machines with memory of their own.
pub(super) struct Pair<'f> {
    machines: [Rig<'f>; 2],
}

/// Runs a test, and looks whether anything leaks when both have ended.
pub(super) fn with_pair(test: impl FnOnce(&Pair<'_>)) {
    let machine = Machine::with_ram(0x1_0000_0000, 32 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let layout = Layout::<Granule4K>::choose(36, Height::new(2), 5, Controls::empty());
    let geometry: Geometry<Format> = layout.expect("36 bits fit").geometry();
    let machines = [1, 2].map(|owner| {
        let format = Format::new(Features::HARDWARE_DIRTY);
        let space = Space::new(&machine, Owner(owner), format, geometry, Bbm::Level0, 200);
        let space = space.expect("there is memory");
        let mut stay = epoch.enter(CpuId::BOOT);
        space.add_region(&mut stay, Region::ram(range(RAM, SIZE))).unwrap();
        space.add_region(&mut stay, Region::borrowed(borrowed_window())).unwrap();
        let service = Service::new([range(RAM, SIZE)].into_iter(), Granted::All, &[&share::ALL]);
        Rig { machine: &machine, space, service, epoch: &epoch }
    });
    let pair = Pair { machines };
    test(&pair);
    for number in [ONE, OTHER] {
        assert_eq!(pair.end(number), 0);
    }
    for rig in pair.machines {
        rig.with_memory(0, |memory| rig.service.end(memory));
        let mut stay = epoch.enter(CpuId::BOOT);
        while rig.space.drain(&mut stay, &FakeCpu(0, &machine)) {
            stay.pass();
        }
        rig.space.destroy(&mut stay, &FakeCpu(0, &machine), &Complete);
    }
    machine.drain_kept();
    assert_eq!(machine.stats(), before, "nothing has leaked");
}

impl<'f> Pair<'f> {
    pub(super) fn rig(&self, number: u64) -> &Rig<'f> {
        &self.machines[(number - ONE) as usize]
    }

    fn party(&self, number: u64) -> Party<'_, 'f, Format, Complete> {
        let rig = self.rig(number);
        Party { number, service: &rig.service, space: &rig.space, tlb: &Complete }
    }

    /// Makes a call of the machine `me`, as `monitor` does.
    pub(super) fn call(&self, me: u64, function: u32, arguments: &[u64]) -> (Status, [u64; 5]) {
        let mut regs: CallRegs = [0; 18];
        regs[0] = u64::from(function);
        regs[1..=arguments.len()].copy_from_slice(arguments);
        match self.rig(me).service.begin_sharing(me, &mut regs) {
            Wants::Nothing => {}
            Wants::Offers { from: (machine, place) } => {
                let found = (0..2).filter(|n| *n >= machine).find_map(|n| {
                    let from = if n == machine { place } else { 0 };
                    let its = ONE + n;
                    Some((n, self.rig(its).service.find_offer(its, me, from)?))
                });
                answer_find(found, &mut regs);
            }
            Wants::Machine(other) if other == ONE || other == OTHER => {
                let cpu = FakeCpu(0, self.rig(me).machine);
                let mut section = self.rig(me).epoch.enter(CpuId::BOOT);
                share_with(&mut section, &cpu, &self.party(me), &self.party(other), &mut regs);
            }
            Wants::Machine(_) => self.rig(me).service.without(&mut regs),
        }
        note(function, regs[0]);
        (Status::of(regs[0]).expect("a status"), regs[1..6].try_into().unwrap())
    }

    /// Makes a call until it neither goes on nor is busy.
    pub(super) fn whole(&self, me: u64, function: u32, arguments: &[u64]) -> (Status, u64) {
        loop {
            match self.call(me, function, arguments) {
                (Status::Continue | Status::Busy, _) => {}
                (status, results) => return (status, results[0]),
            }
        }
    }

    pub(super) fn offer(&self, me: u64, function: u32, start: u64, bytes: u64, rights: u64) -> u64 {
        let to = ONE + OTHER - me;
        let (status, results) = self.call(me, function, &[start, bytes, rights, to]);
        assert_eq!(status, Status::Success);
        results[0]
    }

    /// Ends all offers of and to a machine, as `monitor` does when it stops. Returns how many bytes stay lent, which is a bug.
    fn end(&self, number: u64) -> u64 {
        let mut stays = 0;
        let mut end = |from: u64, to: u64, offer| {
            let cpu = FakeCpu(0, self.rig(from).machine);
            let mut section = self.rig(from).epoch.enter(CpuId::BOOT);
            match end_for_good(&mut section, &cpu, &self.party(from), &self.party(to), offer) {
                Ended::AsItShould => {}
                Ended::GivenUp { bytes, .. } => stays += bytes,
            }
        };
        while let Ending::Next { offer, to } = self.rig(number).service.next_to_end(None) {
            match to {
                ONE | OTHER => end(number, to, offer),
                _ => assert_eq!(self.rig(number).service.withdraw(offer), Status::Success),
            }
        }
        let other = ONE + OTHER - number;
        while let Ending::Next { offer, .. } = self.rig(other).service.next_to_end(Some(number)) {
            end(other, number, offer);
        }
        stays
    }

    /// Returns whether a machine may do something at an address where memory is mapped.
    fn may(&self, number: u64, ipa: u64, access: Access) -> bool {
        let rig = self.rig(number);
        rig.with_memory(0, |memory| {
            [FaultKind::Translation, FaultKind::Permission].into_iter().all(|kind| {
                let fault =
                    Fault { ipa: Ipa::new(ipa), access, kind, cause: Cause::Data, height: Height::PAGE };
                let outcome = rig.space.fault(&*memory.section, memory.cpu, memory.tlb, &fault).unwrap();
                !matches!(outcome, space::Outcome::Denied | space::Outcome::Outside)
            })
        })
    }
}

#[test]
pub(super) fn a_loan_goes_there_and_back_in_steps() {
    with_pair(|pair| {
        let bytes = 3 * share::STEP_BYTES + 2 * PAGE;
        for at in (0..bytes).step_by(PAGE as usize) {
            pair.rig(ONE).store(RAM + at, at);
        }
        assert_eq!(pair.call(OTHER, share::NUMBER, &[]), (Status::Success, [OTHER, 0, 0, 0, 0]));
        assert_eq!(pair.call(OTHER, share::FIND, &[0]).0, Status::NoHandle);
        let offer = pair.offer(ONE, share::LEND, RAM, bytes, 3);
        let (status, found) = pair.call(OTHER, share::FIND, &[0]);
        assert_eq!((status, &found[1..]), (Status::Success, &[ONE, offer, bytes, 3][..]));
        assert_eq!(pair.call(OTHER, share::FIND, &[found[0]]).0, Status::NoHandle);
        assert_eq!(pair.call(ONE, share::FIND, &[0]).0, Status::NoHandle, "it is not to this one");
        assert!(!pair.may(OTHER, share::WINDOW, Access::READ), "an offer changes nothing");
        let accept = [ONE, offer, share::WINDOW];
        assert_eq!(pair.call(OTHER, share::ACCEPT, &accept).1[0], share::STEP_BYTES);
        // It goes on where it began, and nowhere else.
        let elsewhere = [ONE, offer, share::WINDOW + PAGE];
        let refused = pair.call(OTHER, share::ACCEPT, &elsewhere);
        assert_eq!((refused.0, refused.1[0]), (Status::InvalidParameter, share::STEP_BYTES));
        assert_eq!(pair.whole(OTHER, share::ACCEPT, &accept), (Status::Success, bytes));
        assert_eq!(pair.whole(OTHER, share::ACCEPT, &accept), (Status::Success, bytes), "and again");
        for at in (0..bytes).step_by(PAGE as usize) {
            assert_eq!(pair.rig(ONE).pa(RAM + at), pair.rig(OTHER).pa(share::WINDOW + at));
        }
        assert!(pair.may(OTHER, share::WINDOW, Access::WRITE));
        // It comes back from its end, and is not accepted any more meanwhile.
        let (status, left) = pair.call(ONE, share::TAKE_BACK, &[offer]);
        assert_eq!((status, left[0]), (Status::Continue, 3 * share::STEP_BYTES));
        assert!(pair.may(OTHER, share::WINDOW, Access::READ));
        assert_eq!(pair.call(OTHER, share::ACCEPT, &accept).0, Status::NoHandle);
        assert_eq!(pair.whole(OTHER, share::RETURN, &[ONE, offer]), (Status::Success, 0));
        assert!(!pair.may(OTHER, share::WINDOW, Access::READ));
        assert_eq!(pair.call(ONE, share::TAKE_BACK, &[offer]).0, Status::NoHandle);
        assert_eq!(pair.rig(ONE).load(RAM + PAGE), PAGE);
    });
}

#[test]
pub(super) fn a_gift_is_the_receivers() {
    with_pair(|pair| {
        pair.rig(ONE).store(RAM, 77);
        let offer = pair.offer(ONE, share::GIVE, RAM, 2 * PAGE, 0);
        let (_, found) = pair.call(OTHER, share::FIND, &[0]);
        assert_eq!(found[4], 0, "it is a gift");
        let accept = |at| pair.whole(OTHER, share::ACCEPT, &[ONE, offer, at]);
        assert_eq!(accept(share::WINDOW), (Status::NotMemory, 0), "nothing is given into the window");
        pair.rig(OTHER).store(RAM + BLOCK, 1);
        assert_eq!(accept(RAM + BLOCK), (Status::Occupied, 0));
        assert_eq!(accept(RAM), (Status::Success, 2 * PAGE), "elsewhere, since nothing has come");
        assert_eq!((pair.rig(OTHER).load(RAM), pair.rig(ONE).load(RAM)), (77, 0));
        assert_eq!(pair.call(ONE, share::TAKE_BACK, &[offer]).0, Status::NoHandle, "it stays given");
        for number in [ONE, OTHER] {
            pair.rig(number).whole(calls::SELF_CHECK, RAM, SIZE, 0);
        }
    });
}

#[test]
pub(super) fn offers_that_are_none_are_refused() {
    with_pair(|pair| {
        pair.rig(ONE).store(RAM, 1);
        pair.rig(ONE).whole(calls::BALLOON_OUT, RAM + PAGE, PAGE, 0);
        let lend = |arguments: &[u64]| pair.call(ONE, share::LEND, arguments).0;
        for (arguments, status) in [
            ([RAM, 0, 3, OTHER], Status::InvalidParameter),
            ([RAM + 8, PAGE, 3, OTHER], Status::InvalidParameter),
            ([RAM, PAGE, 2, OTHER], Status::InvalidParameter),
            ([RAM, PAGE, 7, OTHER], Status::InvalidParameter),
            ([RAM, PAGE, 3, ONE], Status::InvalidParameter),
            ([RAM - PAGE, 2 * PAGE, 3, OTHER], Status::NotMemory),
            ([share::WINDOW, PAGE, 3, OTHER], Status::NotMemory),
            ([u64::MAX - PAGE + 1, PAGE, 3, OTHER], Status::InvalidParameter),
        ] {
            assert_eq!(lend(&arguments), status, "{arguments:x?}");
        }
        let offer = pair.offer(ONE, share::LEND, RAM, 2 * PAGE, 1);
        assert_eq!(lend(&[RAM + PAGE, PAGE, 1, OTHER]), Status::Lent, "it is offered");
        for (from, offer) in
            [(ONE, offer + 1), (ONE, 0), (OTHER, offer), (NOBODY, offer), (u64::MAX, u64::MAX)]
        {
            assert_eq!(pair.call(OTHER, share::ACCEPT, &[from, offer, share::WINDOW]).0, Status::NoHandle);
            assert_eq!(pair.call(OTHER, share::RETURN, &[from, offer]).0, Status::NoHandle);
        }
        assert_eq!(pair.call(ONE, share::ACCEPT, &[ONE, offer, share::WINDOW]).0, Status::NoHandle);
        for at in [RAM, share::WINDOW + share::WINDOW_BYTES - PAGE, 0, share::WINDOW - PAGE] {
            assert_eq!(pair.call(OTHER, share::ACCEPT, &[ONE, offer, at]).0, Status::NotMemory, "{at:#x}");
        }
        // Nothing is behind the second page: neither comes.
        let refused = pair.call(OTHER, share::ACCEPT, &[ONE, offer, share::WINDOW]);
        assert_eq!((refused.0, refused.1[0]), (Status::NotMapped, 0));
        assert!(!pair.may(OTHER, share::WINDOW, Access::READ));
        for n in 1..share::OFFERS as u64 {
            pair.offer(ONE, share::LEND, RAM + BLOCK + n * PAGE, PAGE, 1);
        }
        assert_eq!(lend(&[RAM + BLOCK, PAGE, 1, OTHER]), Status::NoRoom);
        assert_eq!(pair.call(OTHER, share::RETURN, &[ONE, offer]).0, Status::Success, "turned down");
        let (status, again) = pair.call(ONE, share::LEND, &[RAM, PAGE, 1, NOBODY]);
        assert_eq!(status, Status::Success);
        assert_ne!(again[0], offer, "a number is one offer's");
        assert_eq!(pair.call(ONE, share::TAKE_BACK, &[again[0]]).0, Status::Success, "to nobody");
    });
}

#[test]
pub(super) fn a_machine_that_stops_has_lent_and_borrowed_nothing() {
    for ends in [ONE, OTHER] {
        with_pair(|pair| {
            for n in 0..4 {
                pair.rig(ONE).store(RAM + n * PAGE, n);
                pair.rig(OTHER).store(RAM + n * PAGE, n);
            }
            let there = pair.offer(ONE, share::LEND, RAM, 4 * PAGE, 3);
            let back = pair.offer(OTHER, share::LEND, RAM, 4 * PAGE, 3);
            assert_eq!(pair.whole(OTHER, share::ACCEPT, &[ONE, there, share::WINDOW]).0, Status::Success);
            assert_eq!(pair.whole(ONE, share::ACCEPT, &[OTHER, back, share::WINDOW]).0, Status::Success);
            pair.offer(ONE, share::GIVE, RAM + BLOCK, PAGE, 0);
            assert_eq!(pair.end(ends), 0);
            for number in [ONE, OTHER] {
                assert!(!pair.may(number, share::WINDOW, Access::READ));
                assert_eq!(pair.call(number, share::FIND, &[0]).0, Status::NoHandle);
                let moved = pair.rig(number).call(calls::MOVE, &[RAM, PAGE, 0, 0]);
                assert_eq!(moved.0, Status::Success, "it is its own alone");
            }
        });
    }
}

#[test]
pub(super) fn an_offer_that_cannot_be_ended_is_given_up() {
    for ends in [ONE, OTHER] {
        with_pair(|pair| {
            (0..2).for_each(|n| pair.rig(ONE).store(RAM + n * PAGE, n));
            let offer = pair.offer(ONE, share::LEND, RAM, 2 * PAGE, 3);
            assert_eq!(pair.whole(OTHER, share::ACCEPT, &[ONE, offer, share::WINDOW]).0, Status::Success);
            // Nothing takes the window away; this stands for a bug that would.
            let borrower = pair.rig(OTHER);
            let mut stay = borrower.epoch.enter(CpuId::BOOT);
            borrower.space.remove_region(&mut stay, borrowed_window().start()).expect("it is there");
            drop(stay);
            assert_eq!(pair.end(ends), 2 * PAGE, "and said so");
            assert_eq!(pair.end(ends), 0, "there is no such offer");
            assert_eq!(pair.call(ONE, share::TAKE_BACK, &[offer]).0, Status::NoHandle);
            let again = pair.offer(ONE, share::GIVE, RAM, PAGE, 0);
            let place = [ONE, again, RAM + BLOCK];
            assert_eq!(pair.call(OTHER, share::ACCEPT, &place).0, Status::Lent, "it stays so");
        });
    }
}

#[test]
pub(super) fn random_calls_of_two_machines_leak_nothing() {
    with_pair(|pair| {
        let mut seed = 1u64;
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let mut offers = vec![0u64];
        for _ in 0..4000 {
            let me = ONE + below(2);
            let page = RAM + below(24) * PAGE;
            let place = if below(2) == 0 { share::WINDOW + below(24) * PAGE } else { page };
            let offer = offers[below(offers.len() as u64) as usize];
            let other = ONE + below(3);
            match below(9) {
                0 => {
                    let bytes = PAGE << below(5);
                    let (status, results) =
                        pair.call(me, share::LEND, &[page, bytes, 1 + 2 * below(2), other]);
                    offers.extend((status == Status::Success).then_some(results[0]));
                }
                1 => {
                    let (status, results) = pair.call(me, share::GIVE, &[page, PAGE << below(2), 0, other]);
                    offers.extend((status == Status::Success).then_some(results[0]));
                }
                2 | 3 => {
                    let _ = pair.call(me, share::ACCEPT, &[other, offer, place]);
                }
                4 => {
                    let _ = pair.call(me, share::TAKE_BACK, &[offer]);
                }
                5 => {
                    let _ = pair.call(me, share::RETURN, &[other, offer]);
                }
                6 => {
                    let _ = pair.rig(me).try_store(page, 1);
                }
                7 => {
                    let _ = pair.rig(me).call(calls::BALLOON_OUT, &[page, PAGE, 0, 0]);
                }
                _ => {
                    let _ = pair.rig(me).call(calls::MOVE, &[page, PAGE, 0, 0]);
                }
            }
        }
        for number in [ONE, OTHER] {
            pair.rig(number).whole(calls::SELF_CHECK, RAM, SIZE, 0);
        }
    });
}
