//! Payloads of `guest-tests`, each in a VM as its kernel. A payload says how many of its own tests passed.

use super::cases::Cases;
use crate::board::Board;
use crate::console::Console;
use crate::payload::{MEMORY, PATIENCE, Payload, RESETS, VCPUS, build, counts};
use crate::qemu::DEFAULT_CPU;
use crate::run::Prepared;
use crate::{cargo, image};
use anyhow::{Result, ensure};
use regex::Regex;
use std::time::Duration;

/// The CPU models that payloads run on: the least able and one with everything that a server has.
const MODELS: [&str; 2] = ["cortex-a72", DEFAULT_CPU];

/// How often a payload that resets its machine must come up again.
const TIMES: usize = 4;

/// Runs every payload; one also in the other forms that a kernel may have, and one that resets its machine in a loop.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    let payloads = build()?;
    cases.group("payloads in a VM", payloads.len() * MODELS.len() + 3);
    for payload in &payloads {
        for cpu in MODELS {
            let name = format!("payload {}: {cpu}", payload.name());
            cases.boot_and_count(&name, || machine(payload, cpu, ""), counts);
        }
    }
    let calls = cargo::release_dir().join("calls");
    // The seed shows that the boot arguments arrive.
    let first_line = Regex::new("^guest-tests .*, seed=0x5eed$")?;
    for form in ["Image", "flat"] {
        let file = calls.with_extension(form);
        image::flatten(&calls, &file)?;
        let file = Payload::at(file);
        let seeded = || machine(&file, DEFAULT_CPU, "seed=0x5eed");
        cases.boot_and_count(&format!("payload calls, as a file .{form}"), seeded, |console| {
            console.expect_line(&first_line, PATIENCE)?;
            counts(console)
        });
    }
    let reset = Payload::at(cargo::release_dir().join(RESETS));
    let looped = || machine(&reset, DEFAULT_CPU, "reset=loop");
    cases.boot(&format!("a machine is new after each of {TIMES} resets"), looped, |console| {
        starts_anew(console, TIMES, PATIENCE)
    });
    Ok(())
}

/// Waits until a payload that resets its machine has come up again so often, and has found nothing wrong.
pub(super) fn starts_anew(console: &mut Console, times: usize, patience: Duration) -> Result<()> {
    let banner = Regex::new("^RESET-BANNER$|^FAIL .*")?;
    for start in 0..=times {
        let line = console.expect_line(&banner, patience)?;
        ensure!(!line[0].starts_with("FAIL"), "after {start} starts: {}", line[0]);
    }
    Ok(())
}

fn machine(payload: &Payload, cpu: &str, append: &str) -> Result<Prepared> {
    payload.machine(Board::virt()?, (cpu, VCPUS), VCPUS, MEMORY, append)
}
