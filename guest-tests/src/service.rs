//! Calls on the machine's own memory (`abi::calls`), as a test makes them.

use crate::calls::{KEPT_FROM, Registers, hypercall};
use crate::cpu;
use crate::machine::{self, Host};
use crate::region::Region;
use crate::report::{NotPassed, Text, Verdict};
use abi::{Status, calls};

/// What a call came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status, from `X0`.
    pub status: Status,
    /// `X1` to `X5`.
    pub x: [u64; 5],
}

/// How often a call that finds another CPU at work is made again, before that counts as a failure.
const PATIENCE: u32 = 100_000;

/// Skips the test where this machine is not granted the calls.
pub fn granted() -> Verdict {
    let is_there = machine::get().host == Host::Hypervisor
        && call(calls::FEATURES, &[calls::FEATURES.into()])?.status == Status::Success;
    if is_there {
        return Ok(());
    }
    Err(NotPassed::Skipped(Text::new(format_args!("the calls on memory are not granted"))))
}

/// Makes one call, with up to six arguments. Fails where what comes back is no answer, or changes what a call keeps.
pub fn call(function: u32, arguments: &[u64]) -> Result<Answer, NotPassed> {
    let mut registers: Registers = [0; _];
    registers[0] = function.into();
    registers[1..=arguments.len()].copy_from_slice(arguments);
    for (n, register) in registers.iter_mut().enumerate().skip(KEPT_FROM) {
        *register = 0x5a5a_0000 + n as u64;
    }
    let results = match hypercall(registers) {
        Ok(results) => results,
        Err(caught) => return Err(failed(function, arguments, format_args!("it ended in {caught:?}"))),
    };
    if results[KEPT_FROM..] != registers[KEPT_FROM..] {
        return Err(failed(function, arguments, format_args!("it changed a register beyond X6")));
    }
    let Some(status) = Status::of(results[0]) else {
        return Err(failed(function, arguments, format_args!("expected a status, found {:#x}", results[0])));
    };
    Ok(Answer { status, x: core::array::from_fn(|n| results[n + 1]) })
}

fn failed(function: u32, arguments: &[u64], why: core::fmt::Arguments<'_>) -> NotPassed {
    NotPassed::Failed(Text::new(format_args!("call {function:#x} with {arguments:x?}: {why}")))
}

/// Makes a call on a range until all of it is done, again where it is busy. Returns the last answer, which is `Success` or
/// an error that does not pass; its `x[0]` is how far it got.
pub fn attempt(function: u32, region: Region, parameter: u64) -> Result<Answer, NotPassed> {
    let mut cursor = 0;
    for _ in 0..PATIENCE {
        let answer = call(function, &[region.start, region.size(), parameter, cursor])?;
        match answer.status {
            Status::Continue | Status::Busy => {
                let done = answer.x[0];
                if done < cursor || done >= region.size() || (done == cursor && answer.status != Status::Busy)
                {
                    return Err(NotPassed::differs("the cursor of a call", region.start, cursor, done));
                }
                cursor = done;
                if answer.status == Status::Busy {
                    back_off();
                }
            }
            _ => return Ok(answer),
        }
    }
    Err(failed(
        function,
        &[region.start, region.size(), parameter, cursor],
        format_args!("it is busy for ever"),
    ))
}

/// As [`attempt`]; fails where it does not succeed.
pub fn complete(function: u32, region: Region, parameter: u64) -> Result<Answer, NotPassed> {
    let answer = attempt(function, region, parameter)?;
    if answer.status != Status::Success {
        let arguments = [region.start, region.size(), parameter, answer.x[0]];
        return Err(failed(
            function,
            &arguments,
            format_args!("expected success, found {:?}", answer.status),
        ));
    }
    Ok(answer)
}

/// Returns a number of [`calls::STATISTICS`].
pub fn statistic(number: u64) -> Result<u64, NotPassed> {
    let answer = call(calls::STATISTICS, &[number])?;
    match answer.status {
        Status::Success => Ok(answer.x[0]),
        other => Err(failed(calls::STATISTICS, &[number], format_args!("expected success, found {other:?}"))),
    }
}

/// Counts the pages of 4 KiB and the blocks of 2 MiB that a range is mapped with.
pub fn leaves(region: Region) -> Result<[u64; 2], NotPassed> {
    let (mut sums, mut cursor) = ([0; 2], 0);
    loop {
        let answer = call(calls::SURVEY, &[region.start, region.size(), 0, cursor])?;
        sums[0] += answer.x[1];
        sums[1] += answer.x[2];
        match answer.status {
            Status::Success => return Ok(sums),
            Status::Continue | Status::Busy => cursor = answer.x[0],
            other => return Err(failed(calls::SURVEY, &[region.start], format_args!("{other:?}"))),
        }
    }
}

/// Fails where the hypervisor finds its tables of all memory at odds with its records.
pub fn self_check() -> Verdict {
    for &ram in machine::get().ram.iter() {
        complete(calls::SELF_CHECK, ram, 0)?;
    }
    Ok(())
}

/// Waits a little: others have a turn meanwhile.
fn back_off() {
    (0..1000).for_each(|_| core::hint::spin_loop());
    cpu::dsb_isb();
}

/// Has the engine make a transfer, and waits for its end. Returns its status and value.
pub fn transfer(function: u32, arguments: [u64; 3]) -> Result<(Status, u64), NotPassed> {
    let mut ticket = None;
    for _ in 0..PATIENCE {
        let answer = match ticket {
            None => call(function, &arguments)?,
            Some(ticket) => call(calls::DMA_POLL, &[ticket])?,
        };
        match (ticket, answer.status) {
            (None, Status::Success) => ticket = Some(answer.x[0]),
            (None, Status::NoRoom) | (Some(_), Status::Continue) => {
                back_off();
            }
            (None, status) => return Ok((status, 0)),
            (Some(_), status) => return Ok((status, answer.x[0])),
        }
    }
    Err(failed(function, &arguments, format_args!("the transfer never ends")))
}
