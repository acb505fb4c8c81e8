//! Guests' calls on their own memory, and the CPUs that serve their transfers and their devices.
//!
//! Each CPU that runs turns, or has nothing else to do, serves: it is asked by a bit and a kick, and serves when it has left
//! its guest or is about to idle. What it leaves for a while it comes back for: its own bit stays set, and its guest is
//! interrupted soon.
//!
//! Neighbours: `vm` knows what the calls mean; `turn` calls this where a guest was left.

use super::guest::Guest;
use super::making::Here;
use super::{Format, Hypervisor, Tagged, tracing};
use crate::control;
use crate::servers::Servers;
use aarch64::cpu::Core;
use aarch64::features::Features;
use aarch64::guest::tlb::Stage2;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use rand_chacha::rand_core::Rng;
use stage2::Quiescence;
use types::{Cpu, CpuId};
use vm::service::{After, Company, Left, Memory, PageAccess, Service};
use vm::virtio::{Bus, Fill, Source, Take, Unreached};
use vm::{CallRegs, Mmio, MmioOutcome};

/// The most steps of transfers that a CPU does before it looks after its guest again.
const STEPS: u32 = 32;

/// The CPUs that serve transfers.
#[derive(Debug, Default)]
pub(super) struct Engine {
    servers: Servers,
    /// The place in the roster of the guest that is served first, the next time.
    first: AtomicU64,
}

/// A section of the way of waiting that is in use.
type Section<'q> = <crate::waiting::Waiting<super::Kicks> as Quiescence>::Section<'q>;
/// A guest's memory, as a CPU of this machine reaches it.
type GuestMemory<'m, 'q, 'h> =
    Memory<'m, 'static, Format, Section<'q>, Core<'h>, Stage2<'h, Tagged<'h>, Core<'h>>>;

impl Engine {
    /// Notes that `core`, which runs this, serves from now on. It will walk every guest's tables.
    pub(super) fn join(&self, hypervisor: &Hypervisor, core: &Core<'_>) {
        for guest in hypervisor.ledger.roster.iter() {
            let mut section = hypervisor.waiting.enter(core.id());
            guest.space.admit(&mut section, Features::of_this_cpu().bbm);
        }
        self.servers.join(core.id());
    }

    /// Asks a CPU to serve: another one, where there is one, in turn.
    pub(super) fn ask(&self, core: &Core<'_>) {
        self.servers.ask(core.id(), |cpu| core.kick(cpu));
    }

    /// Tells whether `cpu` was asked to serve.
    #[inline]
    pub(super) fn is_asked(&self, cpu: CpuId) -> bool {
        self.servers.is_asked(cpu)
    }

    /// Serves transfers of any guest's on the CPU that runs this, for a while. Tells whether there may be more.
    #[inline(never)] // seldom called, from where every exit passes
    pub(super) fn serve(&self, hypervisor: &Hypervisor, core: &Core<'_>) -> Left {
        self.servers.take(core.id());
        let (company, _) = self.servers.company(core.id());
        let mut left = Left::Nothing;
        for _ in 0..STEPS {
            left = self.step(hypervisor, core, company);
            if left != Left::Some {
                break;
            }
        }
        if left != Left::Nothing {
            self.servers.ask_self(core.id());
        }
        left
    }

    /// Does a step of one transfer and of each device, of the first guest that has any to be served, in turn.
    fn step(&self, hypervisor: &Hypervisor, core: &Core<'_>, company: Company) -> Left {
        let first = self.first.load(Relaxed) as u16;
        let mut left = Left::Nothing;
        for behind in [false, true] {
            for guest in hypervisor.ledger.roster.iter().filter(|guest| (guest.number < first) == behind) {
                match step_of(&guest, hypervisor, core, company) {
                    Left::Some => {
                        self.first.store(u64::from(guest.number) + 1, Relaxed);
                        return Left::Some;
                    }
                    Left::Later => left = Left::Later,
                    Left::Nothing => {}
                }
            }
        }
        left
    }
}

/// Does a step of one transfer and of each device of a guest's.
fn step_of(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>, company: Company) -> Left {
    let service = guest.vm.service();
    if service.is_none() && !guest.vm.has_devices() {
        return Left::Nothing;
    }
    let transfers = service.map_or(Left::Nothing, |service| {
        with_memory(guest, hypervisor, core, |memory| service.serve(memory, company))
    });
    let source = Source { frames: guest.space.frames(), owner: guest.space.owner(), cpu: core.id() };
    let mut random = |bytes: &mut [u8]| hypervisor.random.lock().fill_bytes(bytes);
    let bus = &mut GuestBus { guest, hypervisor, core };
    let devices = guest.vm.serve_devices(bus, core, source, &mut random, company);
    if devices == Left::Some {
        hypervisor.has_read(guest, core);
    }
    match (transfers, devices) {
        (Left::Some, _) | (_, Left::Some) => Left::Some,
        (Left::Later, _) | (_, Left::Later) => Left::Later,
        (Left::Nothing, Left::Nothing) => Left::Nothing,
    }
}

/// A guest's memory, as its devices reach it: in a section for each access, and in none between them.
struct GuestBus<'a> {
    guest: &'a Guest,
    hypervisor: &'a Hypervisor,
    core: &'a Core<'a>,
}

impl Bus for GuestBus<'_> {
    fn fetch(&mut self, at: u64, bytes: u64, take: Take<'_>) -> Result<(), Unreached> {
        with_memory(self.guest, self.hypervisor, self.core, |memory| memory.fetch(at, bytes, take))
    }

    fn store(&mut self, at: u64, bytes: u64, fill: Fill<'_>) -> Result<(), Unreached> {
        with_memory(self.guest, self.hypervisor, self.core, |memory| memory.store(at, bytes, fill))
    }
}

/// Runs `act` with a guest's memory on the CPU that runs this, in a section.
pub(super) fn with_memory<R>(
    guest: &Guest,
    hypervisor: &Hypervisor,
    core: &Core<'_>,
    act: impl FnOnce(&mut GuestMemory<'_, '_, '_>) -> R,
) -> R {
    let tlb = guest.tlb(hypervisor, core);
    let mut section = hypervisor.waiting.enter(core.id());
    act(&mut Memory { space: &guest.space, section: &mut section, cpu: core, tlb: &tlb })
}

/// Answers a guest's call on its memory. Tells whether there is one of that number.
#[inline]
pub(super) fn call(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>, regs: &mut CallRegs) -> Answered {
    match guest.vm.service() {
        Some(service) if vm::service::is_call(regs[0] as u32) => {
            match serve_call(service, guest, hypervisor, core, regs) {
                After::Yield => Answered::GivesWay,
                After::Nothing | After::Serve | After::Trace => Answered::Yes,
            }
        }
        _ => Answered::No,
    }
}

/// Whether a call was one on a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answered {
    /// It was, and is answered.
    Yes,
    /// It was, and others may have the CPU first.
    GivesWay,
    /// It is somebody else's to answer.
    No,
}

fn serve_call(
    service: &Service,
    guest: &Guest,
    hypervisor: &Hypervisor,
    core: &Core<'_>,
    regs: &mut CallRegs,
) -> After {
    let after = with_memory(guest, hypervisor, core, |memory| service.call(memory, regs));
    match after {
        After::Serve => hypervisor.engine.ask(core),
        After::Trace => tracing::answer(guest, hypervisor, core, regs),
        After::Nothing | After::Yield => {}
    }
    after
}

/// Carries out an access to the control page; `None` where it is elsewhere, or the guest has no such page.
#[inline]
pub(super) fn page(
    guest: &Guest,
    hypervisor: &Hypervisor,
    core: &Core<'_>,
    access: Mmio,
) -> Option<MmioOutcome> {
    let service = guest.vm.service().filter(|_| vm::service::on_page(access.at))?;
    Some(match service.page(access) {
        PageAccess::Done(outcome) => outcome,
        PageAccess::Call(mut regs) => {
            if vm::service::is_call(regs[0] as u32) {
                // A yield from user space is its kernel's affair.
                let _ = serve_call(service, guest, hypervisor, core, &mut regs);
            } else if !control::call(guest, &Here(hypervisor, core), &mut regs) {
                regs[0] = abi::Status::NotSupported.value();
            }
            service.page_answered(&regs);
            MmioOutcome::Written
        }
    })
}

/// Ends what a guest holds that has stopped.
pub(super) fn end(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>) {
    if let Some(service) = guest.vm.service() {
        with_memory(guest, hypervisor, core, |memory| service.end(memory));
    }
    with_memory(guest, hypervisor, core, |memory| guest.churn.end(memory));
    guest.vm.end_devices(core, guest.space.frames());
}
