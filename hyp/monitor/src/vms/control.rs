//! A controller's calls: making guests of templates, running them, and ending them (`abi::control`).
//!
//! The end of a guest goes in steps, each by a call of its own. Its space is condemned; the CPUs that its vCPUs belong to
//! let go of them, each by itself; then nobody has the guest but the roster. What is left is one invalidation of its tag,
//! one grace period, and a walk that gives back. Last, every frame's record is looked at: none may be the guest's.

use super::guest::{Began, Guest, Unfit};
use super::roster::{Found, Handle, Life};
use super::service::Answered;
use super::{Hypervisor, Load};
use aarch64::cpu::Core;
use abi::{Status, control};
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;
use log::{debug, error};
use space::{Progress, SpaceError};
use stage2::Quiescence;
use types::Cpu;
use vm::{CallRegs, Role, Why};

/// Answers a controller's call. Tells whether there is one of that number.
#[inline]
pub(super) fn call(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>, regs: &mut CallRegs) -> Answered {
    match guest.vm.config().role {
        Role::Controller => answer(hypervisor, core, regs),
        Role::Guest | Role::Template | Role::Primary => Answered::No,
    }
}

fn answer(hypervisor: &Hypervisor, core: &Core<'_>, regs: &mut CallRegs) -> Answered {
    let argument = regs[1];
    let handle = Handle(argument);
    let (status, value) = match regs[0] as u32 {
        control::CREATE => match create(hypervisor, core, argument) {
            Ok(handle) => (Status::Success, handle.0),
            Err(status) => (status, 0),
        },
        control::START => (start(hypervisor, core, handle), 0),
        control::STOP => (stop(hypervisor, core, handle, Why::PowerOff), 0),
        control::RESET => (stop(hypervisor, core, handle, Why::Reset), 0),
        control::DESTROY => (destroy(hypervisor, core, handle), 0),
        control::STATE => state(hypervisor, handle),
        _ => return Answered::No,
    };
    regs[0] = status.value();
    regs[1] = value;
    Answered::Yes
}

fn create(hypervisor: &Hypervisor, core: &Core<'_>, template: u64) -> Result<Handle, Status> {
    let config = usize::try_from(template).ok().and_then(|number| hypervisor.templates.get(number));
    let config = config.ok_or(Status::InvalidParameter)?;
    let memory = config.frames_bytes();
    let spare = |spare: u64| spare.checked_sub(memory);
    hypervisor.spare.fetch_update(Relaxed, Relaxed, spare).map_err(|_| Status::NoMemory)?;
    let made = make(hypervisor, core, config);
    if made.is_err() {
        hypervisor.spare.fetch_add(memory, Relaxed);
    }
    made
}

/// Makes a guest, whose memory is reserved.
fn make(hypervisor: &Hypervisor, core: &Core<'_>, config: &vm::VmConfig) -> Result<Handle, Status> {
    let number = hypervisor.roster.claim().ok_or(Status::NoRoom)?;
    let mut config = config.clone();
    let nth = hypervisor.made.fetch_add(1, Relaxed) + 1;
    config.name = format!("{}.{nth}", config.name);
    let made = Guest::new(hypervisor, core.id(), number, config).map(Arc::new);
    let guest = made.map_err(|error| {
        hypervisor.roster.settle(number, Life::Free);
        debug!("not made: {error}");
        Status::NoMemory
    })?;
    if hypervisor.seat(&guest, core) {
        return Ok(hypervisor.roster.settle(number, Life::Here(guest)));
    }
    // Nobody else has seen it: it goes at once.
    if let Some(guest) = Arc::into_inner(guest) {
        let mut remains = guest.take_apart(hypervisor, core);
        while remains.step(core) == Progress::More {}
    }
    hypervisor.roster.settle(number, Life::Free);
    Err(Status::NoRoom)
}

/// Finds a guest that is here.
fn find(hypervisor: &Hypervisor, handle: Handle) -> Result<Arc<Guest>, Status> {
    match hypervisor.roster.find(handle) {
        Some(Found::Here(guest)) => Ok(guest),
        Some(Found::Ending) => Err(Status::Busy),
        None => Err(Status::InvalidParameter),
    }
}

fn start(hypervisor: &Hypervisor, core: &Core<'_>, handle: Handle) -> Status {
    let guest = match find(hypervisor, handle) {
        Ok(guest) => guest,
        Err(status) => return status,
    };
    if guest.begin(hypervisor) == Began::Before {
        return Status::Busy;
    }
    match guest.load(hypervisor, core, Load::Again) {
        Ok(start) => {
            guest.vm.start(core, start);
            Status::Success
        }
        Err(error) => {
            guest.finish(hypervisor);
            debug!("not started: {error}");
            match error {
                Unfit::Space { error: SpaceError::Busy { .. }, .. } => Status::Busy,
                Unfit::Space { .. } | Unfit::Config(_) => Status::NoMemory,
            }
        }
    }
}

fn stop(hypervisor: &Hypervisor, core: &Core<'_>, handle: Handle, why: Why) -> Status {
    match find(hypervisor, handle) {
        Ok(guest) => {
            guest.vm.stop(core, why);
            Status::Success
        }
        Err(status) => status,
    }
}

fn state(hypervisor: &Hypervisor, handle: Handle) -> (Status, u64) {
    match hypervisor.roster.find(handle) {
        None => (Status::InvalidParameter, 0),
        Some(Found::Ending) => (Status::Success, control::state::ENDING),
        Some(Found::Here(guest)) if guest.is_on() => (Status::Success, control::state::ON),
        Some(Found::Here(_)) => (Status::Success, control::state::OFF),
    }
}

fn destroy(hypervisor: &Hypervisor, core: &Core<'_>, handle: Handle) -> Status {
    let Some((number, life)) = hypervisor.roster.take(handle) else { return Status::InvalidParameter };
    let (life, status) = step(hypervisor, core, life);
    if !matches!(life, Life::InHand) {
        hypervisor.roster.settle(number, life);
    }
    status
}

/// Does a step of a guest's end.
fn step(hypervisor: &Hypervisor, core: &Core<'_>, life: Life) -> (Life, Status) {
    match life {
        Life::Here(guest) if guest.is_on() => {
            guest.vm.stop(core, Why::PowerOff);
            (Life::Here(guest), Status::Busy)
        }
        Life::Here(guest) => {
            guest.space.condemn(&mut hypervisor.waiting.enter(core.id()));
            guest.dismiss(core);
            (Life::Leaving(guest), Status::Continue)
        }
        Life::Leaving(guest) => match Arc::try_unwrap(guest) {
            Ok(guest) => (Life::Remains(Box::new(guest.take_apart(hypervisor, core))), Status::Continue),
            Err(guest) => (Life::Leaving(guest), Status::Busy),
        },
        Life::Remains(mut remains) => match remains.step(core) {
            Progress::More => (Life::Remains(remains), Status::Continue),
            Progress::Done => (Life::Gone(remains.gone()), Status::Continue),
        },
        Life::Gone(mut gone) => match gone.check(&hypervisor.machine.frames) {
            Progress::More => (Life::Gone(gone), Status::Continue),
            Progress::Done => {
                hypervisor.spare.fetch_add(gone.memory(), Relaxed);
                hypervisor.ended.fetch_add(1, Relaxed);
                let left = gone.left();
                if left == 0 {
                    return (Life::Free, Status::Success);
                }
                error!("{left} frames of a guest that is gone have not come back");
                hypervisor.leaked.fetch_add(left, Relaxed);
                (Life::Free, Status::Broken)
            }
        },
        Life::Free | Life::InHand => (life, Status::Busy),
    }
}

#[cfg(test)]
mod tests;
