//! A guest that resets its machine in the middle of everything. Promise: the machine that comes up again is as new, in
//! memory, image, devices, vCPUs, and whatever it has asked of its own memory.
//!
//! Nothing outlives a reset, so that nothing here can tell the first start from the second. With `reset=loop` in the boot
//! arguments, each start prints `RESET-BANNER`, checks that the machine is new, makes a mess, and resets, without end:
//! who runs this counts the banners, and stops it after as many as it wants. Where a check fails, and where the argument
//! is not given, the run ends as every run does, with a closing line.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "the state that must not survive is written where it could")]

/// What only one architecture has.
#[cfg_attr(target_arch = "aarch64", path = "arm.rs")]
#[cfg_attr(target_arch = "x86_64", path = "x86.rs")]
mod own;

use abi::Status;
use abi::calls::{self, granularity, rights, statistic};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::calls::system_reset;
use guest_tests::cell::BootCell;
use guest_tests::list::List;
use guest_tests::machine::{self, Host};
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::region::{MAX_HOLES, Region};
use guest_tests::{Verdict, check, cpu, guest_tests, report, same, say, service, skip, smp, timer};
use own::{devices_are_fresh, other_vcpus_are_off, the_boot_vcpu_is_fresh};

guest_tests! {
    "reset":
    the_image_is_fresh,
    the_boot_vcpu_is_fresh,
    other_vcpus_are_off,
    devices_are_fresh,
    memory_is_zero,
    nothing_is_pinned_logged_or_protected,
    // Last: it does not come back.
    reset_in_the_middle_of_everything,
}

/// Initialized data, which every start changes.
static DATA: [AtomicU64; 64] = [const { AtomicU64::new(0x600d_da7a) }; 64];
/// Data that begins as zero.
static BSS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

fn free() -> &'static [Ram] {
    static FREE: BootCell<List<Ram, MAX_HOLES>> = BootCell::new();
    FREE.get_or_make(ram::take_rest)
}

/// Goes through words all over memory: one in each page of the first 64 MiB, one in each 2 MiB of the rest.
fn samples() -> impl Iterator<Item = &'static AtomicU64> {
    free().iter().flat_map(|piece| {
        let words = piece.words();
        let (near, far) = words.split_at(words.len().min((64 << 20) / 8));
        near.iter().skip(7).step_by(512).chain(far.iter().skip(7).step_by((2 << 20) / 8))
    })
}

fn the_image_is_fresh() -> Verdict {
    say!("RESET-BANNER");
    for word in &DATA {
        same!("initialized data", word.as_ptr() as u64, 0x600d_da7a, word.load(Relaxed));
    }
    for word in &BSS {
        same!("zeroed data", word.as_ptr() as u64, 0, word.load(Relaxed));
    }
    Ok(())
}

fn memory_is_zero() -> Verdict {
    if machine::get().host == Host::Bare {
        skip!("a bare machine keeps its memory through a reset");
    }
    for word in samples() {
        same!("memory at the start", word.as_ptr() as u64, 0, word.load(Relaxed));
    }
    Ok(())
}

/// The pages that the calls of a mess are about: the last 64 of the largest piece of free memory.
fn messy() -> Region {
    let largest = free().iter().map(|piece| piece.region()).max_by_key(|region| region.size());
    let end = largest.map_or(0, |region| region.end & !(PAGE - 1));
    Region { start: end - 64 * PAGE, end }
}

fn nothing_is_pinned_logged_or_protected() -> Verdict {
    service::granted()?;
    same!("handles in use", 0, 0, service::statistic(statistic::HANDLES)?);
    let stopped = service::call(calls::LOG_STOP, &[])?;
    check!(stopped.status == Status::NoLog, "the end of a log that nobody began: {stopped:?}");
    let polled = service::call(calls::DMA_POLL, &[calls::TRANSFERS as u64])?;
    check!(polled.status == Status::NoHandle, "a transfer that nobody asked for: {polled:?}");
    // Were it not writable, this would end the run.
    let (status, _) = service::transfer(calls::DMA_FILL, [messy().start, 0, messy().size()])?;
    check!(status == Status::Success, "fill of {:#x}: {status:?}", messy().start);
    service::self_check()
}

/// Has the hypervisor hold things for this machine: rights, pins, a log, a transfer that nobody waits for.
fn ask_for_a_mess() -> Verdict {
    if service::granted().is_err() {
        return Ok(());
    }
    let region = messy();
    for page in (region.start..region.end).step_by(2 * PAGE as usize) {
        service::call(calls::PIN, &[page, PAGE, 1, 0])?;
    }
    service::attempt(calls::BALLOON_OUT, Region::new(region.start, 4 * PAGE), 0)?;
    service::call(calls::LOG_START, &[region.start, region.size(), granularity::PAGES, 0])?;
    for _ in 0..calls::TRANSFERS {
        service::call(calls::DMA_FILL, &[region.start, 0xdead, region.size()])?;
    }
    service::attempt(calls::PROTECT, Region::new(region.start + 8 * PAGE, 40 * PAGE), rights::READ)?;
    Ok(())
}

/// Leaves traces wherever one could survive.
fn make_a_mess() {
    DATA.iter().chain(&BSS).chain(samples()).for_each(|word| word.store(0xdead_dead_dead_dead, Relaxed));
    own::leave_traces();
}

fn reset_in_the_middle_of_everything() -> Verdict {
    if machine::get().argument("reset") != Some("loop") {
        skip!("the boot arguments have no `reset=loop`, and nobody counts the starts");
    }
    if report::failures() != 0 {
        skip!("there are failures to report");
    }
    make_a_mess();
    ask_for_a_mess()?;
    let who = timer::now() as usize % smp::count();
    say!("  reset from vCPU {who}");
    let meeting = cpu::Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        meeting.wait()?;
        if this == who {
            system_reset();
        }
        // The others call, sleep, and touch memory, for as long as there is a machine.
        let mut words = free().iter().flat_map(|piece| piece.words().iter().skip(this).step_by(512)).cycle();
        loop {
            match this % 3 {
                0 => own::call(),
                1 => cpu::wfi(),
                _ => {
                    // Some may not be written any more.
                    let word = words.next().filter(|word| !messy().contains(word.as_ptr() as u64));
                    word.map(|word| word.fetch_add(1, Relaxed));
                }
            }
        }
    })
}
