//! Guests' calls to lend and give each other memory (`abi::share`), and the end of their offers when one of them stops.
//!
//! Neighbours: `vm` knows what the calls mean, and whose turn it is; the roster knows the other guest, and keeps it meanwhile.

use super::guest::Guest;
use super::service::Answered;
use super::{Format, Hypervisor, Tagged};
use crate::roster::Handle;
use aarch64::cpu::Core;
use aarch64::guest::tlb::Stage2;
use abi::Status;
use core::sync::atomic::Ordering::Relaxed;
use log::error;
use stage2::{Quiescence, Section};
use types::{Cpu, FRAME_SIZE};
use vm::CallRegs;
use vm::service::{Ended, Ending, Party, Service, Wants, answer_find, end_for_good, is_sharing, share};

/// How this CPU invalidates a guest's translations.
type Tlb<'h, 'm> = Stage2<'h, Tagged<'h>, Core<'m>>;

fn party<'p, 'h, 'm>(
    guest: &'p Guest,
    service: &'p Service,
    number: u64,
    tlb: &'p Tlb<'h, 'm>,
) -> Party<'p, 'static, Format, Tlb<'h, 'm>> {
    Party { number, service, space: &guest.space, tlb }
}

/// Answers a guest's call to share memory. Tells whether there is one of that number.
#[inline]
pub(super) fn call(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>, regs: &mut CallRegs) -> Answered {
    match guest.vm.service() {
        Some(service) if is_sharing(regs[0] as u32) => answer(guest, service, hypervisor, core, regs),
        _ => Answered::No,
    }
}

#[inline(never)] // needs much of the stack, seldom
fn answer(
    guest: &Guest,
    service: &Service,
    hypervisor: &Hypervisor,
    core: &Core<'_>,
    regs: &mut CallRegs,
) -> Answered {
    let number = hypervisor.ledger.roster.handle_of(guest.number).0;
    match service.begin_sharing(number, regs) {
        Wants::Nothing => {}
        Wants::Offers { from } => find(hypervisor, number, from, regs),
        Wants::Machine(other) => {
            let mut run = |other: &Guest, its: &Service, its_number| {
                let (tlb, its_tlb) = (guest.tlb(hypervisor, core), other.tlb(hypervisor, core));
                let mut section = hypervisor.waiting.enter(core.id());
                let me = party(guest, service, number, &tlb);
                let other = party(other, its, its_number, &its_tlb);
                share(&mut section, core, &me, &other, regs);
            };
            let there = hypervisor.ledger.roster.here(Handle(other));
            match there.as_ref().and_then(|other| Some((other, other.vm.service()?))) {
                Some((there, its)) => run(there, its, other),
                None => service.without(regs),
            }
        }
    }
    Answered::Yes
}

/// Looks for an offer to the guest whose number is `to`.
fn find(hypervisor: &Hypervisor, to: u64, (machine, place): (u64, usize), regs: &mut CallRegs) {
    let found = hypervisor.ledger.roster.iter().find_map(|guest| {
        let at = u64::from(guest.number);
        let from = match at.cmp(&machine) {
            core::cmp::Ordering::Less => return None,
            core::cmp::Ordering::Equal => place,
            core::cmp::Ordering::Greater => 0,
        };
        let number = hypervisor.ledger.roster.handle_of(guest.number).0;
        Some((at, guest.vm.service()?.find_offer(number, to, from)?))
    });
    answer_find(found, regs);
}

/// Ends all offers of a guest that has stopped, and all offers to it: what it borrowed goes back, and what it lent comes back.
/// Passes quiescent points, and waits for CPUs that do a step of one of them.
pub(super) fn end(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>) {
    let number = hypervisor.ledger.roster.handle_of(guest.number).0;
    if let Some(service) = guest.vm.service() {
        while let Ending::Next { offer, to } = service.next_to_end(None) {
            let other = hypervisor.ledger.roster.here(Handle(to));
            match other.as_deref() {
                Some(other) => end_one(hypervisor, core, (guest, number), (other, to), offer),
                None => drop_one(hypervisor, core, service, offer),
            }
        }
    }
    for other in hypervisor.ledger.roster.iter() {
        let Some(service) = other.vm.service() else { continue };
        let its = hypervisor.ledger.roster.handle_of(other.number).0;
        while let Ending::Next { offer, .. } = service.next_to_end(Some(number)) {
            end_one(hypervisor, core, (&other, its), (guest, number), offer);
        }
    }
}

/// Does a step of an offer's end.
fn end_one(
    hypervisor: &Hypervisor,
    core: &Core<'_>,
    (from, from_number): (&Guest, u64),
    (to, to_number): (&Guest, u64),
    offer: u64,
) {
    let mut section = hypervisor.waiting.enter(core.id());
    match (from.vm.service(), to.vm.service()) {
        (Some(its), Some(others)) => {
            let (tlb, others_tlb) = (from.tlb(hypervisor, core), to.tlb(hypervisor, core));
            let owner = party(from, its, from_number, &tlb);
            let other = party(to, others, to_number, &others_tlb);
            if let Ended::GivenUp { status, bytes } = end_for_good(&mut section, core, &owner, &other, offer)
            {
                error!("{bytes:#x} bytes that were lent do not come back: {status:?}");
                hypervisor.ledger.leaked.fetch_add(bytes / FRAME_SIZE, Relaxed);
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
fn drop_one(hypervisor: &Hypervisor, core: &Core<'_>, service: &Service, offer: u64) {
    let _: Status = service.withdraw(offer);
    hypervisor.waiting.enter(core.id()).pass();
}
