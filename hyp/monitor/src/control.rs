//! A controller's calls: making guests of templates, running them, and ending them (`abi::control`).
//!
//! The end of a guest goes in steps, each by a call of its own. Its space is condemned; the CPUs that its vCPUs belong to
//! let go of them, each by itself; then nobody has the guest but the roster. What is left is one invalidation of its tag,
//! one grace period, and a walk that gives back. Last, every frame's record is looked at: none may be the guest's.
//!
//! Neighbours: each architecture's hypervisor, which brings what [`Maker`] names.

use crate::fatal;
use crate::ledger::{Began, Ledger};
use crate::remains::Remains;
use crate::roster::{Found, Handle, Life, Listed, MOST_GUESTS};
use crate::unfit::Unfit;
use abi::{Status, control};
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;
use frames::Frames;
use log::{debug, error, info};
use space::Progress;
use types::{Cpu, Range};
use vm::{CallRegs, Role, VmConfig, Why};

/// A hypervisor, as the CPU that runs this makes, runs and ends guests by it.
pub(crate) trait Maker {
    /// Its guests.
    type Guest: Listed;

    /// Returns what is counted of them.
    fn ledger(&self) -> &Ledger<Self::Guest>;

    /// Returns the machine's frames.
    fn frames(&self) -> &Frames;

    /// Returns the CPU that runs this.
    fn cpu(&self) -> &impl Cpu;

    /// Makes the guest that `config` describes, in place `number` of the roster, off and without contents.
    fn make(&self, number: u16, config: VmConfig) -> Result<Self::Guest, Unfit>;

    /// Gives each vCPU of `guest` a place at the CPU that it belongs to, and has that CPU look. Tells whether there were
    /// places for all; where not, none is taken.
    fn seat(&self, guest: &Arc<Self::Guest>) -> bool;

    /// Counts `guest` among those that are on, before it is loaded.
    fn begin(&self, guest: &Self::Guest) -> Began;

    /// Loads `guest`, which is off, anew, and turns it on.
    fn start(&self, guest: &Self::Guest) -> Result<(), Unfit>;

    /// Has `guest` go off, wherever it is. Does nothing where it is off.
    fn stop(&self, guest: &Self::Guest, why: Why);

    /// Notes that `guest` is off.
    fn finish(&self, guest: &Self::Guest);

    /// Tells whether `guest` is on.
    fn is_on(&self, guest: &Self::Guest) -> bool;

    /// Condemns the space of `guest`, which is off, and has the CPUs let go of its vCPUs, each by itself.
    fn dismiss(&self, guest: &Self::Guest);

    /// Takes `guest` apart, which is the caller's alone: no CPU has a vCPU of it.
    fn take_apart(&self, guest: Self::Guest) -> Remains<<Self::Guest as Listed>::Format>;
}

/// Makes a guest that starts with the machine.
pub(crate) fn add<M: Maker>(hypervisor: &M, config: VmConfig) {
    let ledger = hypervisor.ledger();
    let name = config.name.clone();
    let (cpus, bytes) = (config.cpus.len(), config.frames_bytes());
    let megabytes = config.memory().map(Range::len).sum::<u64>() >> 20;
    // Who has the machine has memory that was never to be promised.
    let is_promised = config.role != Role::Primary;
    let Some(number) = ledger.roster.claim() else { fatal!("there are more than {MOST_GUESTS} VMs") };
    match hypervisor.make(number, config) {
        Ok(guest) => ledger.roster.settle(number, Life::Here(Arc::new(guest))),
        Err(error) => fatal!("{error}"),
    };
    if is_promised {
        ledger.spare.fetch_sub(bytes, Relaxed); // the manifest's check has counted them
    }
    info!("{name}: {cpus} vCPUs, {megabytes} MiB");
}

/// Answers a controller's call. Tells whether there is one of that number.
#[inline]
pub(crate) fn call<M: Maker>(guest: &M::Guest, hypervisor: &M, regs: &mut CallRegs) -> bool {
    guest.config().is_controller && answer(hypervisor, regs)
}

fn answer<M: Maker>(hypervisor: &M, regs: &mut CallRegs) -> bool {
    let argument = regs[1];
    let handle = Handle(argument);
    let (status, value) = match regs[0] as u32 {
        control::CREATE => match create(hypervisor, argument) {
            Ok(handle) => (Status::Success, handle.0),
            Err(status) => (status, 0),
        },
        control::START => (start(hypervisor, handle), 0),
        control::STOP => (stop(hypervisor, handle, Why::PowerOff), 0),
        control::RESET => (stop(hypervisor, handle, Why::Reset), 0),
        control::DESTROY => (destroy(hypervisor, handle), 0),
        control::STATE => state(hypervisor, handle),
        _ => return false,
    };
    regs[0] = status.value();
    regs[1] = value;
    true
}

fn create<M: Maker>(hypervisor: &M, template: u64) -> Result<Handle, Status> {
    let ledger = hypervisor.ledger();
    let config = usize::try_from(template).ok().and_then(|number| ledger.templates.get(number));
    let config = config.ok_or(Status::InvalidParameter)?;
    let memory = config.frames_bytes();
    if !ledger.promise(memory) {
        return Err(Status::NoMemory);
    }
    let made = make(hypervisor, config);
    if made.is_err() {
        ledger.release(memory);
    }
    made
}

/// Makes a guest, whose memory is reserved.
fn make<M: Maker>(hypervisor: &M, config: &VmConfig) -> Result<Handle, Status> {
    let ledger = hypervisor.ledger();
    let number = ledger.roster.claim().ok_or(Status::NoRoom)?;
    let mut config = config.clone();
    let nth = ledger.made.fetch_add(1, Relaxed) + 1;
    config.name = format!("{}.{nth}", config.name);
    let guest = hypervisor.make(number, config).map(Arc::new).map_err(|error| {
        ledger.roster.settle(number, Life::Free);
        debug!("not made: {error}");
        Status::NoMemory
    })?;
    if hypervisor.seat(&guest) {
        return Ok(ledger.roster.settle(number, Life::Here(guest)));
    }
    // Nobody else has seen it: it goes at once.
    if let Some(guest) = Arc::into_inner(guest) {
        let mut remains = hypervisor.take_apart(guest);
        while remains.step(hypervisor.cpu()) == Progress::More {}
    }
    ledger.roster.settle(number, Life::Free);
    Err(Status::NoRoom)
}

/// Finds a guest that is here.
pub(crate) fn find<M: Maker>(hypervisor: &M, handle: Handle) -> Result<Arc<M::Guest>, Status> {
    match hypervisor.ledger().roster.find(handle) {
        Some(Found::Here(guest)) => Ok(guest),
        Some(Found::Ending) => Err(Status::Busy),
        None => Err(Status::InvalidParameter),
    }
}

fn start<M: Maker>(hypervisor: &M, handle: Handle) -> Status {
    let guest = match find(hypervisor, handle) {
        Ok(guest) => guest,
        Err(status) => return status,
    };
    if hypervisor.begin(&guest) == Began::Before {
        return Status::Busy;
    }
    match hypervisor.start(&guest) {
        Ok(()) => Status::Success,
        Err(error) => {
            hypervisor.finish(&guest);
            debug!("not started: {error}");
            error.status()
        }
    }
}

fn stop<M: Maker>(hypervisor: &M, handle: Handle, why: Why) -> Status {
    match find(hypervisor, handle) {
        Ok(guest) => {
            hypervisor.stop(&guest, why);
            Status::Success
        }
        Err(status) => status,
    }
}

fn state<M: Maker>(hypervisor: &M, handle: Handle) -> (Status, u64) {
    match hypervisor.ledger().roster.find(handle) {
        None => (Status::InvalidParameter, 0),
        Some(Found::Ending) => (Status::Success, control::state::ENDING),
        Some(Found::Here(guest)) if hypervisor.is_on(&guest) => (Status::Success, control::state::ON),
        Some(Found::Here(_)) => (Status::Success, control::state::OFF),
    }
}

fn destroy<M: Maker>(hypervisor: &M, handle: Handle) -> Status {
    let ledger = hypervisor.ledger();
    let Some((number, life)) = ledger.roster.take(handle) else { return Status::InvalidParameter };
    let (life, status) = step(hypervisor, life);
    if !matches!(life, Life::InHand) {
        ledger.roster.settle(number, life);
    }
    status
}

/// Does a step of a guest's end.
fn step<M: Maker>(hypervisor: &M, life: Life<M::Guest>) -> (Life<M::Guest>, Status) {
    match life {
        Life::Here(guest) if hypervisor.is_on(&guest) => {
            hypervisor.stop(&guest, Why::PowerOff);
            (Life::Here(guest), Status::Busy)
        }
        Life::Here(guest) => {
            hypervisor.dismiss(&guest);
            (Life::Leaving(guest), Status::Continue)
        }
        Life::Leaving(guest) => match Arc::try_unwrap(guest) {
            Ok(guest) => (Life::Remains(Box::new(hypervisor.take_apart(guest))), Status::Continue),
            Err(guest) => (Life::Leaving(guest), Status::Busy),
        },
        Life::Remains(mut remains) => match remains.step(hypervisor.cpu()) {
            Progress::More => (Life::Remains(remains), Status::Continue),
            Progress::Done => (Life::Gone(remains.gone()), Status::Continue),
        },
        Life::Gone(mut gone) => match gone.check(hypervisor.frames()) {
            Progress::More => (Life::Gone(gone), Status::Continue),
            Progress::Done => {
                let (ledger, left) = (hypervisor.ledger(), gone.left());
                ledger.release(gone.memory());
                ledger.ended.fetch_add(1, Relaxed);
                if left == 0 {
                    return (Life::Free, Status::Success);
                }
                error!("{left} frames of a guest that is gone have not come back");
                ledger.leaked.fetch_add(left, Relaxed);
                (Life::Free, Status::Broken)
            }
        },
        Life::Free | Life::InHand => (life, Status::Busy),
    }
}
