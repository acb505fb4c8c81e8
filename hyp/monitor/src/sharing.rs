//! Guests' calls to lend and give each other memory (`abi::share`), and the end of their offers when one of them stops.
//!
//! Neighbours: `vm` knows what the calls mean, and whose turn it is; the roster knows the other guest, and keeps it meanwhile;
//! each architecture's hypervisor brings what [`Lender`] names.

use crate::control::Maker;
use crate::roster::{Handle, Listed};
use abi::Status;
use core::sync::atomic::Ordering::Relaxed;
use log::error;
use space::Space;
use stage2::{Invalidate, Quiescence, Section};
use types::{Cpu, FRAME_SIZE};
use vm::CallRegs;
use vm::service::{Ended, Ending, Party, Service, Wants, answer_find, end_for_good, is_sharing, share};

/// A hypervisor, as the CPU that runs this has guests' memory change hands by it.
pub(crate) trait Lender: Maker {
    /// Returns how readers of guests' tables are waited for.
    fn waiting(&self) -> &impl Quiescence;

    /// Returns the place of `guest` in the roster.
    fn place(&self, guest: &Self::Guest) -> u16;

    /// Returns what serves the calls of `guest`; `None` where it has none, so that it neither lends nor borrows.
    fn service<'g>(&self, guest: &'g Self::Guest) -> Option<&'g Service>;

    /// Returns the memory of `guest`.
    fn space<'g>(&self, guest: &'g Self::Guest) -> &'g Space<'static, <Self::Guest as Listed>::Format>;

    /// Returns how translations of `guest` are invalidated by this CPU.
    fn tlb<'g>(&'g self, guest: &'g Self::Guest) -> impl Invalidate;
}

/// Returns what others know `guest` by.
fn number<L: Lender>(hypervisor: &L, guest: &L::Guest) -> u64 {
    hypervisor.ledger().roster.handle_of(hypervisor.place(guest)).0
}

/// Returns one side of an offer. Its number is `number`.
fn party<'p, L: Lender, I>(
    hypervisor: &L,
    guest: &'p L::Guest,
    service: &'p Service,
    number: u64,
    tlb: &'p I,
) -> Party<'p, 'static, <L::Guest as Listed>::Format, I> {
    Party { number, service, space: hypervisor.space(guest), tlb }
}

/// Answers a guest's call to share memory. Tells whether there is one of that number.
#[inline]
pub(crate) fn call<L: Lender>(guest: &L::Guest, hypervisor: &L, regs: &mut CallRegs) -> bool {
    match hypervisor.service(guest) {
        Some(service) if is_sharing(regs[0] as u32) => {
            answer(guest, service, hypervisor, regs);
            true
        }
        _ => false,
    }
}

#[inline(never)] // needs much of the stack, seldom
fn answer<L: Lender>(guest: &L::Guest, service: &Service, hypervisor: &L, regs: &mut CallRegs) {
    let me = number(hypervisor, guest);
    match service.begin_sharing(me, regs) {
        Wants::Nothing => {}
        Wants::Offers { from } => find(hypervisor, me, from, regs),
        Wants::Machine(other) => {
            let mut run = |there: &L::Guest, its: &Service| {
                let (tlb, its_tlb) = (hypervisor.tlb(guest), hypervisor.tlb(there));
                let cpu = hypervisor.cpu();
                let mut section = hypervisor.waiting().enter(cpu.id());
                let me = party(hypervisor, guest, service, me, &tlb);
                let other = party(hypervisor, there, its, other, &its_tlb);
                share(&mut section, cpu, &me, &other, regs);
            };
            let there = hypervisor.ledger().roster.here(Handle(other));
            match there.as_ref().and_then(|there| Some((there, hypervisor.service(there)?))) {
                Some((there, its)) => run(there, its),
                None => service.without(regs),
            }
        }
    }
}

/// Looks for an offer to the guest whose number is `to`.
fn find<L: Lender>(hypervisor: &L, to: u64, (machine, place): (u64, usize), regs: &mut CallRegs) {
    let found = hypervisor.ledger().roster.iter().find_map(|guest| {
        let at = u64::from(hypervisor.place(&guest));
        let from = match at.cmp(&machine) {
            core::cmp::Ordering::Less => return None,
            core::cmp::Ordering::Equal => place,
            core::cmp::Ordering::Greater => 0,
        };
        let number = number(hypervisor, &guest);
        Some((at, hypervisor.service(&guest)?.find_offer(number, to, from)?))
    });
    answer_find(found, regs);
}

/// Ends all offers of a guest that has stopped, and all offers to it: what it borrowed goes back, and what it lent comes back.
/// Passes quiescent points, and waits for CPUs that do a step of one of them.
pub(crate) fn end<L: Lender>(guest: &L::Guest, hypervisor: &L) {
    let number = number(hypervisor, guest);
    let roster = &hypervisor.ledger().roster;
    if let Some(service) = hypervisor.service(guest) {
        while let Ending::Next { offer, to } = service.next_to_end(None) {
            match roster.here(Handle(to)).as_deref() {
                Some(other) => end_one(hypervisor, (guest, number), (other, to), offer),
                None => drop_one(hypervisor, service, offer),
            }
        }
    }
    for other in roster.iter() {
        let Some(service) = hypervisor.service(&other) else { continue };
        let its = self::number(hypervisor, &other);
        while let Ending::Next { offer, .. } = service.next_to_end(Some(number)) {
            end_one(hypervisor, (&other, its), (guest, number), offer);
        }
    }
}

/// Does a step of an offer's end.
fn end_one<L: Lender>(
    hypervisor: &L,
    (from, from_number): (&L::Guest, u64),
    (to, to_number): (&L::Guest, u64),
    offer: u64,
) {
    let cpu = hypervisor.cpu();
    let mut section = hypervisor.waiting().enter(cpu.id());
    match (hypervisor.service(from), hypervisor.service(to)) {
        (Some(its), Some(others)) => {
            let (tlb, others_tlb) = (hypervisor.tlb(from), hypervisor.tlb(to));
            let owner = party(hypervisor, from, its, from_number, &tlb);
            let other = party(hypervisor, to, others, to_number, &others_tlb);
            if let Ended::GivenUp { status, bytes } = end_for_good(&mut section, cpu, &owner, &other, offer) {
                error!("{bytes:#x} bytes that were lent do not come back: {status:?}");
                hypervisor.ledger().leaked.fetch_add(bytes / FRAME_SIZE, Relaxed);
            }
        }
        // Who is not granted the calls has accepted nothing.
        (Some(its), None) => {
            let _: Status = its.withdraw(offer);
        }
        (None, _) => {}
    }
    section.pass();
}

/// Withdraws an offer to a guest that is gone.
fn drop_one<L: Lender>(hypervisor: &L, service: &Service, offer: u64) {
    let _: Status = service.withdraw(offer);
    hypervisor.waiting().enter(hypervisor.cpu().id()).pass();
}
