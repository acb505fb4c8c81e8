//! Lending and giving memory to other machines: offers, loans, and who ends them (`abi::share`).
//!
//! ```text
//! free ──offer──▶ open ──accept, a step at a time──▶ open, some of it lent ──▶ ending ──▶ free
//!                  └─ in hand, while somebody does a step of it ─┘
//! ```
//!
//! Invariants:
//! - An offer is the owner's: it lies in the owner's service, and so do the facts about what has been lent by it.
//! - One CPU has an offer *in hand* at a time, and does one bounded step meanwhile. Who finds it in hand is busy. So no lock is
//!   held while memory changes hands, and calls of both machines, in any order, wait for nobody.
//! - What is lent is a first part of the range, and comes back from its end. Once it has begun to come back no more is lent.
//! - An offer ends before either of its machines does ([`Loans`] of the one, and those to the other): `monitor` sees to that.
//!
//! Neighbours: `space` moves pages between two spaces; `monitor` finds the other machine.

use super::Service;
use super::request::{Answer, Arguments, is_in, range};
use crate::call::CallRegs;
use abi::share::{self, OFFERS, STEP_BYTES, WINDOW, WINDOW_BYTES};
use abi::{Status, calls::rights};
use core::sync::atomic::Ordering::Relaxed;
use space::{Between, SHARE_STEP_PAGES, ShareError, Side, Space};
use spin::mutex::SpinMutex;
use stage2::{Format, Invalidate, Section};
use types::{Access, Cpu, FRAME_SIZE, Ipa, Range};

// The smallest pages are whole frames: so many fit into one step of `space`.
const _: () = assert!(STEP_BYTES == SHARE_STEP_PAGES as u64 * FRAME_SIZE);

/// One of the two machines of an offer, as the CPU that serves reaches it.
#[derive(Debug)]
pub struct Party<'p, 'f, F: Format, I> {
    /// Its number.
    pub number: u64,
    /// What serves its calls.
    pub service: &'p Service,
    /// Its memory.
    pub space: &'p Space<'f, F>,
    /// How its translations are invalidated by this CPU.
    pub tlb: &'p I,
}

/// What is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Terms {
    /// A loan with these rights.
    Loan(Access),
    /// A gift.
    Gift,
}

/// Whether something is to come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offers {
    Loan,
    Gift,
}

/// An offer.
#[derive(Clone, Copy, Debug)]
struct Offer {
    /// The machine that may accept.
    to: u64,
    range: Range,
    terms: Terms,
    /// Where it goes, once that is chosen.
    at: Option<Ipa>,
    /// How many bytes of the range have changed hands, and not come back.
    done: u64,
    /// It is coming back, and no more is lent.
    ending: bool,
}

/// A place for an offer.
#[derive(Debug, Default)]
struct Place {
    /// How often it was given out.
    times: u64,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Free,
    Open(Offer),
    /// Somebody does a step of it.
    InHand(Offer),
}

/// The offers of one machine.
#[derive(Debug, Default)]
pub(super) struct Loans {
    places: SpinMutex<[Place; OFFERS]>,
}

/// How far the end of a machine's offers is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// There is none left.
    Done,
    /// One is ended by [`end_for_good`], which the other machine of this number takes part in.
    Next {
        /// The offer.
        offer: u64,
        /// The other machine.
        to: u64,
    },
}

impl State {
    fn offer(&self) -> Option<&Offer> {
        match self {
            Self::Free => None,
            Self::Open(offer) | Self::InHand(offer) => Some(offer),
        }
    }
}

impl Loans {
    /// Puts an offer in a free place. Returns its number.
    fn add(&self, offer: Offer) -> Result<u64, Status> {
        let mut places = self.places.lock();
        if places
            .iter()
            .filter_map(|place| place.state.offer())
            .any(|other| other.range.overlaps(offer.range))
        {
            return Err(Status::Lent);
        }
        let free =
            places.iter().position(|place| matches!(place.state, State::Free)).ok_or(Status::NoRoom)?;
        let place = &mut places[free];
        place.times += 1;
        place.state = State::Open(offer);
        Ok(number(place.times, free))
    }

    /// Takes an offer in hand, for a step.
    fn take(&self, offer: u64, to: u64) -> Result<Offer, Status> {
        let mut places = self.places.lock();
        let place = find(&mut places, offer).ok_or(Status::NoHandle)?;
        match place.state {
            State::Open(offer) if offer.to == to => {
                place.state = State::InHand(offer);
                Ok(offer)
            }
            State::InHand(offer) if offer.to == to => Err(Status::Busy),
            _ => Err(Status::NoHandle),
        }
    }

    /// Puts an offer back that the caller has in hand; `None` where it has ended.
    fn settle(&self, offer: u64, then: Option<Offer>) {
        if let Some(place) = find(&mut self.places.lock(), offer) {
            place.state = then.map_or(State::Free, State::Open);
        }
    }
}

/// Returns the number of what is in a place for the so-manieth time.
const fn number(times: u64, place: usize) -> u64 {
    times * OFFERS as u64 + place as u64
}

/// Finds the place of an offer that there is still.
fn find(places: &mut [Place; OFFERS], offer: u64) -> Option<&mut Place> {
    let place = &mut places[(offer % OFFERS as u64) as usize];
    (place.times == offer / OFFERS as u64 && !matches!(place.state, State::Free)).then_some(place)
}

impl Service {
    /// Makes an offer of the machine whose number is `me`.
    fn offer(&self, me: u64, arguments: Arguments, what: Offers) -> Result<Answer, Status> {
        let whole = range(arguments.x(1), arguments.x(2), FRAME_SIZE)?;
        is_in(&self.ram, whole)?;
        let terms = match arguments.x(3) {
            _ if what == Offers::Gift => Terms::Gift,
            rights::READ => Terms::Loan(Access::READ),
            both if both == rights::READ | rights::WRITE => Terms::Loan(Access::RW),
            _ => return Err(Status::InvalidParameter),
        };
        let to = arguments.x(4);
        if to == me || (terms != Terms::Gift && whole.len() > WINDOW_BYTES) {
            return Err(Status::InvalidParameter);
        }
        let offer = Offer { to, range: whole, terms, at: None, done: 0, ending: false };
        Ok(Answer::SUCCESS.with(1, self.loans.add(offer)?))
    }

    /// Finds the first offer of this machine's to `to` whose place is `from` or behind. Returns the place, and an answer that
    /// names `me`, whose service this is, as the one that offers.
    pub fn find_offer(&self, me: u64, to: u64, from: usize) -> Option<(usize, Found)> {
        let places = self.loans.places.lock();
        let offers = places.iter().enumerate().skip(from);
        let mut to_it = offers.filter_map(|(n, place)| Some((n, place.times, place.state.offer()?)));
        let (n, times, offer) = to_it.find(|(_, _, offer)| offer.to == to && !offer.ending)?;
        let rights = match offer.terms {
            Terms::Loan(access) if access.contains(Access::WRITE) => rights::READ | rights::WRITE,
            Terms::Loan(_) => rights::READ,
            Terms::Gift => 0,
        };
        Some((n, Found { values: [me, number(times, n), offer.range.len(), rights] }))
    }

    /// Says which offer of this machine's is to be ended first, with whom: of all where `with` is `None`, else of those to
    /// that machine.
    pub fn next_to_end(&self, with: Option<u64>) -> Ending {
        let places = self.loans.places.lock();
        let offers = places
            .iter()
            .enumerate()
            .filter_map(|(n, place)| Some((number(place.times, n), place.state.offer()?)));
        let mut its = offers.filter(|(_, offer)| with.is_none_or(|with| offer.to == with));
        its.next().map_or(Ending::Done, |(number, offer)| Ending::Next { offer: number, to: offer.to })
    }

    /// Tells to which machine an offer of this one's is; `None` where there is no such offer.
    pub fn offered_to(&self, offer: u64) -> Option<u64> {
        Some(find(&mut self.loans.places.lock(), offer)?.state.offer()?.to)
    }
}

/// An offer that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// `X2` to `X5` of the answer.
    pub values: [u64; 4],
}

/// What a call needs besides the machine that makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    /// Nothing: it is answered.
    Nothing,
    /// The offers of all machines, from this cursor on, for [`Service::find_offer`]: [`answer_find`] answers.
    Offers {
        /// The cursor: the first machine's place, and the first place of its offers.
        from: (u64, usize),
    },
    /// The machine of this number: [`share()`] answers, or [`Service::without`] where there is none.
    Machine(u64),
}

/// Tells whether a function is one of these calls, granted or not.
pub const fn is_sharing(function: u32) -> bool {
    share::NUMBER <= function && function < share::END
}

impl Service {
    /// Answers a call for which [`is_sharing`] holds, of the machine whose number is `me`, where it needs no other one.
    pub fn begin_sharing(&self, me: u64, regs: &mut CallRegs) -> Wants {
        self.calls.fetch_add(1, Relaxed);
        let arguments = Arguments::of(regs);
        let answer = match regs[0] as u32 {
            share::NUMBER => Ok(Answer::SUCCESS.with(1, me)),
            share::LEND => self.offer(me, arguments, Offers::Loan),
            share::GIVE => self.offer(me, arguments, Offers::Gift),
            share::FIND => {
                let places = OFFERS as u64;
                return Wants::Offers { from: (arguments.x(1) / places, (arguments.x(1) % places) as usize) };
            }
            share::ACCEPT | share::RETURN => return Wants::Machine(arguments.x(1)),
            share::TAKE_BACK => match self.offered_to(arguments.x(1)) {
                Some(to) => return Wants::Machine(to),
                None => Err(Status::NoHandle),
            },
            _ => Err(Status::NotSupported),
        };
        answer.unwrap_or_else(Answer::from).write(regs);
        Wants::Nothing
    }

    /// Answers a call that wants a machine which is gone: of what was offered to it nothing is lent.
    pub fn without(&self, regs: &mut CallRegs) {
        let status = match regs[0] as u32 {
            share::TAKE_BACK => self.withdraw(regs[1]),
            _ => Status::NoHandle,
        };
        Answer::from(status).write(regs);
    }

    /// Ends an offer to a machine that is gone, and has returned what it had borrowed before it went.
    pub fn withdraw(&self, offer: u64) -> Status {
        let Some(to) = self.offered_to(offer) else { return Status::NoHandle };
        match self.loans.take(offer, to) {
            Ok(taken) => {
                debug_assert!(
                    taken.terms == Terms::Gift || taken.done == 0,
                    "a borrower went with what it had"
                );
                self.loans.settle(offer, None);
                Status::Success
            }
            Err(status) => status,
        }
    }

    /// Gives up an offer that cannot be ended. What is lent stays lent; returns how many bytes that are.
    fn give_up(&self, offer: u64) -> u64 {
        let mut places = self.loans.places.lock();
        let Some(place) = find(&mut places, offer) else { return 0 };
        let stays = place.state.offer().map_or(0, |offer| offer.done);
        place.state = State::Free;
        stays
    }
}

/// Answers `FIND`: `found` is the place of the machine that offers, with what [`Service::find_offer`] found there.
pub fn answer_find(found: Option<(u64, (usize, Found))>, regs: &mut CallRegs) {
    let answer = match found {
        None => Answer::from(Status::NoHandle),
        Some((machine, (place, found))) => {
            let next = machine * OFFERS as u64 + place as u64 + 1;
            let numbered = (2..).zip(found.values);
            numbered.fold(Answer::SUCCESS.with(1, next), |answer, (n, value)| answer.with(n, value))
        }
    };
    answer.write(regs);
}

/// Answers a call of the machine `me` that wants `other`. Passes quiescent points.
pub fn share<F: Format, S: Section, C: Cpu, I: Invalidate>(
    section: &mut S,
    cpu: &C,
    me: &Party<'_, '_, F, I>,
    other: &Party<'_, '_, F, I>,
    regs: &mut CallRegs,
) {
    let arguments = Arguments::of(regs);
    let ended = |(status, left)| Answer::from(status).with(1, left);
    let answer = match regs[0] as u32 {
        share::ACCEPT => accept(&*section, cpu, other, me, arguments.x(2), arguments.x(3)),
        share::RETURN => ended(end_offer(section, cpu, other, me, arguments.x(2))),
        share::TAKE_BACK => ended(end_offer(section, cpu, me, other, arguments.x(1))),
        _ => Answer::from(Status::NotSupported),
    };
    answer.write(regs);
}

/// Answers `ACCEPT` of the machine `to`: brings the next part of an offer of `from`'s to `at`.
#[inline(never)] // needs much of the stack, seldom
fn accept<F: Format, S: Section, C: Cpu, I: Invalidate>(
    section: &S,
    cpu: &C,
    from: &Party<'_, '_, F, I>,
    to: &Party<'_, '_, F, I>,
    offer: u64,
    at: u64,
) -> Answer {
    let loans = &from.service.loans;
    let mut taken = match loans.take(offer, to.number) {
        Ok(taken) => taken,
        Err(status) => return status.into(),
    };
    let before = taken;
    let status = bring(section, cpu, from, to, &mut taken, Ipa::new(at));
    let is_over = taken.terms == Terms::Gift && taken.done == taken.range.len();
    // What was refused before anything came is not bound to an address.
    let kept = if taken.done == 0 { before } else { taken };
    loans.settle(offer, (!is_over).then_some(kept));
    Answer::from(status).with(1, taken.done)
}

/// Brings the next part of an offer that is in hand.
fn bring<F: Format, S: Section, C: Cpu, I: Invalidate>(
    section: &S,
    cpu: &C,
    from: &Party<'_, '_, F, I>,
    to: &Party<'_, '_, F, I>,
    offer: &mut Offer,
    at: Ipa,
) -> Status {
    if offer.ending {
        return Status::NoHandle;
    }
    if offer.at.is_some_and(|begun| begun != at) {
        return Status::InvalidParameter;
    }
    let place = match range(at.get(), offer.range.len(), FRAME_SIZE) {
        Ok(place) => place,
        Err(status) => return status,
    };
    let is_there = match offer.terms {
        Terms::Gift => is_in(&to.service.ram, place),
        Terms::Loan(_) => is_in(&[window()], place),
    };
    if let Err(status) = is_there {
        return status;
    }
    let Some(part) = part(offer.range, offer.done) else { return Status::Success };
    let both = between(from, to);
    let here = at.wrapping_add(offer.done);
    let brought = match offer.terms {
        Terms::Loan(access) => both.lend(section, cpu, part, here, access),
        Terms::Gift => both.give(section, cpu, part, here),
    };
    match brought {
        Ok(()) => {
            offer.at = Some(at);
            offer.done += part.len();
            if offer.done == offer.range.len() { Status::Success } else { Status::Continue }
        }
        Err(error) => of_share(error),
    }
}

/// Ends an offer of `from`'s to `to`, or a part of what was lent by it: answers `TAKE_BACK` and `RETURN`. Passes quiescent
/// points.
#[inline(never)] // likewise
fn end_offer<F: Format, S: Section, C: Cpu, I: Invalidate>(
    section: &mut S,
    cpu: &C,
    from: &Party<'_, '_, F, I>,
    to: &Party<'_, '_, F, I>,
    offer: u64,
) -> (Status, u64) {
    let loans = &from.service.loans;
    let mut taken = match loans.take(offer, to.number) {
        Ok(taken) => taken,
        Err(status) => return (status, 0),
    };
    taken.ending = true;
    let status = match (taken.terms, taken.at, last_part(taken.range, taken.done)) {
        (Terms::Loan(_), Some(at), Some(part)) => {
            let before = part.start().get() - taken.range.start().get();
            match between(from, to).take_back(section, cpu, part, at.wrapping_add(before)) {
                Ok(()) => {
                    taken.done = before;
                    if before == 0 { Status::Success } else { Status::Continue }
                }
                // Somebody is still about to let go.
                Err(ShareError::Busy { .. } | ShareError::Pinned { .. }) => Status::Busy,
                Err(error) => of_share(error),
            }
        }
        _ => Status::Success,
    };
    loans.settle(offer, (status != Status::Success).then_some(taken));
    (status, if status == Status::Success { 0 } else { taken.done })
}

/// What became of an offer whose end has been gone on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Ended {
    /// It has ended, or another step of its end may follow.
    AsItShould,
    /// It could not be ended, which is a bug, and is given up.
    GivenUp {
        /// Why it could not.
        status: Status,
        /// How many bytes stay lent.
        bytes: u64,
    },
}

/// Does a step of the end of an offer of `from`'s to `to`, one of which has stopped. While others let go, it is a step in vain;
/// but there is no error with which the offer stays for ever. Passes quiescent points.
pub fn end_for_good<F: Format, S: Section, C: Cpu, I: Invalidate>(
    section: &mut S,
    cpu: &C,
    from: &Party<'_, '_, F, I>,
    to: &Party<'_, '_, F, I>,
    offer: u64,
) -> Ended {
    match end_offer(section, cpu, from, to, offer).0 {
        // `Busy`: another CPU does a step, or is about to let go. `NoHandle`: another CPU has done the last one.
        Status::Success | Status::Continue | Status::Busy | Status::NoHandle => Ended::AsItShould,
        status => Ended::GivenUp { status, bytes: from.service.give_up(offer) },
    }
}

fn between<'p, 'f, F: Format, I: Invalidate>(
    from: &Party<'p, 'f, F, I>,
    to: &Party<'p, 'f, F, I>,
) -> Between<'p, 'f, F, I> {
    Between { from: Side { space: from.space, tlb: from.tlb }, to: Side { space: to.space, tlb: to.tlb } }
}

/// Returns the window for what others lend.
pub fn window() -> Range {
    let start = Ipa::new(WINDOW);
    Range::with_len(start, WINDOW_BYTES).unwrap_or(Range::block_around(start, FRAME_SIZE))
}

/// Returns the next part of a range of which `done` bytes are done; `None` where all are.
fn part(whole: Range, done: u64) -> Option<Range> {
    let bytes = (whole.len() - done).min(STEP_BYTES);
    Range::with_len(whole.start().wrapping_add(done), bytes).ok().filter(|part| !part.is_empty())
}

/// Returns the last part of the first `done` bytes of a range; `None` where there are none. It is one that [`part`] made.
fn last_part(whole: Range, done: u64) -> Option<Range> {
    let before = done.checked_sub(1)? / STEP_BYTES * STEP_BYTES;
    Range::new(whole.start().wrapping_add(before), whole.start().wrapping_add(done)).ok()
}

/// Says what it means to a guest that memory has not changed hands.
fn of_share(error: ShareError) -> Status {
    match error {
        ShareError::BadPages => Status::InvalidParameter,
        ShareError::NotMapped { .. } => Status::NotMapped,
        ShareError::NotOwned { .. } => Status::Lent,
        ShareError::Denied { .. } | ShareError::DeviceWouldFault { .. } => Status::Denied,
        ShareError::Pinned { .. } => Status::Pinned,
        ShareError::NoPlace { .. } => Status::NotMemory,
        ShareError::Occupied { .. } => Status::Occupied,
        ShareError::Logging => Status::Logging,
        ShareError::OutOfTables { .. } => Status::NoMemory,
        ShareError::Dying => Status::NoHandle,
        ShareError::Busy { .. } => Status::Busy,
    }
}
