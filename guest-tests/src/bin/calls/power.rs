//! PSCI: vCPUs on, off and asleep.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use guest_tests::calls::{affinity_info, call3, cpu_on, psci};
use guest_tests::cpu::{self, Rendezvous};
use guest_tests::machine::{self, Conduit, Host};
use guest_tests::timer::{self, Timer};
use guest_tests::{Verdict, check, fail, gic, same, skip, smp};

/// Affinities that no vCPU has: beyond the last, with higher fields set, with bits set that no affinity has.
fn nobody() -> impl Iterator<Item = u64> {
    let this = cpu::affinity();
    let candidates = [
        0xff,
        0x0f,
        0x100,
        0xff00,
        0x1_0000,
        0x1_0000_0000,
        0xff_00ff_ffff,
        1 << 24,
        1 << 31,
        1 << 40,
        1 << 63,
    ];
    candidates
        .into_iter()
        .map(move |bits| this ^ bits)
        .filter(|a| !machine::get().cpus.contains(a))
        .chain([u64::MAX])
}

pub(crate) fn psci_is_1_0_or_later() -> Verdict {
    let version = call3(psci::VERSION, 0, 0, 0);
    check!(
        (0x1_0000..0x2_0000).contains(&version),
        "PSCI_VERSION: expected 1.0 or later, found {version:#x}"
    );
    Ok(())
}

pub(crate) fn psci_features_say_what_there_is() -> Verdict {
    let needed = [
        psci::VERSION,
        psci::CPU_ON_32,
        psci::CPU_ON_64,
        psci::CPU_OFF,
        psci::AFFINITY_INFO_32,
        psci::AFFINITY_INFO_64,
        psci::CPU_SUSPEND_64,
        psci::SYSTEM_OFF,
        psci::SYSTEM_RESET,
        psci::FEATURES,
    ];
    for function in needed {
        let offered = call3(psci::FEATURES, function.into(), 0, 0);
        check!(offered >= 0, "PSCI_FEATURES({function:#x}): expected it to be there, found {offered}");
    }
    for function in [0x8400_00ff_u64, 0xc400_00ff, 0x8400_0fff, 0x0400_0003, 0] {
        same!("PSCI_FEATURES of nothing", function, u64::MAX, call3(psci::FEATURES, function, 0, 0) as u64);
    }
    // 2: there is no trusted OS that would have to migrate.
    let migrate = call3(psci::MIGRATE_INFO_TYPE, 0, 0, 0);
    check!(migrate == 2 || migrate == -1, "MIGRATE_INFO_TYPE: expected 2 or -1, found {migrate}");
    Ok(())
}

pub(crate) fn affinity_info_knows_who_is_on() -> Verdict {
    for (i, &affinity) in machine::get().cpus.iter().enumerate() {
        let expected = if i == 0 { psci::ON } else { psci::OFF };
        same!("AFFINITY_INFO", affinity, expected as u64, affinity_info(affinity, 0) as u64);
    }
    for affinity in nobody() {
        same!(
            "AFFINITY_INFO of nobody",
            affinity,
            psci::INVALID_PARAMETERS as u64,
            affinity_info(affinity, 0) as u64
        );
    }
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|_| {
        for &affinity in machine::get().cpus.iter() {
            // One call for both: between two calls OFF may become PENDING.
            let pending = || [psci::PENDING, psci::OFF].contains(&affinity_info(affinity, 0));
            cpu::wait_until("AFFINITY_INFO to say on", || !pending());
            same!("AFFINITY_INFO", affinity, psci::ON as u64, affinity_info(affinity, 0) as u64);
        }
        meeting.wait() // all are on until the last has looked
    })?;
    if machine::get().host == Host::Bare {
        return Ok(()); // QEMU's own firmware does not look at the level
    }
    for level in [4, 0x100, 1 << 32, u64::MAX] {
        let found = affinity_info(cpu::affinity(), level);
        check!(
            found == psci::INVALID_PARAMETERS,
            "AFFINITY_INFO of level {level:#x}: expected -2, found {found}"
        );
    }
    Ok(())
}

pub(crate) fn cpu_on_refuses_who_is_on_and_who_is_not_there() -> Verdict {
    let entry = machine::get().ram[0].start;
    for affinity in nobody() {
        let found = cpu_on(affinity, entry, 0);
        same!("CPU_ON of nobody", affinity, psci::INVALID_PARAMETERS as u64, found as u64);
    }
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|_| {
        meeting.wait()?;
        let mut verdict = Ok(());
        for &affinity in machine::get().cpus.iter() {
            let found = cpu_on(affinity, entry, 0);
            if found != psci::ALREADY_ON && verdict.is_ok() {
                let expected = psci::ALREADY_ON as u64;
                verdict = Err(guest_tests::NotPassed::differs(
                    "CPU_ON of who is on",
                    affinity,
                    expected,
                    found as u64,
                ));
            }
        }
        meeting.wait()?;
        verdict
    })
}

pub(crate) fn vcpus_go_off_and_on_a_hundred_times() -> Verdict {
    if smp::count() == 1 {
        skip!("there is one vCPU");
    }
    let visits = AtomicUsize::new(0);
    for _ in 0..100 {
        smp::on_all(&|_| {
            visits.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })?;
    }
    same!("visits", 0, 100 * smp::count() as u64, visits.load(Ordering::Relaxed) as u64);
    Ok(())
}

/// What a contested vCPU is given in x0. It runs with its MMU off, so that this is kept clean of caches.
#[repr(C, align(64))]
struct Contest {
    visits: AtomicU64,
    by_smc: AtomicU64,
    released: AtomicU64,
}

impl Contest {
    fn sync(&self) {
        let start = &raw const *self as u64;
        cpu::clean_invalidate(start, start + 64);
    }
}

global_asm!(
    ".section .text.contested, \"ax\"",
    "contested:",
    "ldr    x1, [x0]",
    "add    x1, x1, #1",
    "str    x1, [x0]",
    "1: ldr x1, [x0, #16]",
    "cbz    x1, 1b",
    "ldr    x1, [x0, #8]",
    "mov    w0, #0x84000000",
    "add    w0, w0, #2", // CPU_OFF
    "dsb    sy",
    "cbnz   x1, 2f",
    "hvc    #0",
    "2: smc #0",
    "b      .",
);

unsafe extern "C" {
    #[link_name = "contested"]
    static CONTESTED: u8;
}

pub(crate) fn of_many_that_start_a_vcpu_one_wins() -> Verdict {
    let Some(callers) = smp::count().checked_sub(1).filter(|&n| n > 1) else {
        skip!("it takes three vCPUs");
    };
    if machine::get().host == Host::Bare {
        skip!("QEMU's own firmware lets several win");
    }
    let target = machine::get().cpus[callers];
    let entry = &raw const CONTESTED as u64;
    let by_smc = u64::from(machine::get().conduit == Conduit::Smc);
    let contest = Contest { visits: 0.into(), by_smc: by_smc.into(), released: 0.into() };
    let context = &raw const contest as u64;
    let wins = AtomicU64::new(0);
    let meeting = Rendezvous::new(callers);
    contest.sync();
    smp::on_first(callers, &|cpu| {
        for round in 1..=50 {
            meeting.wait()?;
            let result = cpu_on(target, entry, context);
            match result {
                psci::SUCCESS => drop(wins.fetch_add(1, Ordering::Relaxed)),
                psci::ALREADY_ON | psci::ON_PENDING => {}
                _ => fail!("CPU_ON of a contested vCPU: expected 0, -4 or -5, found {result}"),
            }
            meeting.wait()?;
            if cpu == 0 {
                same!("winners", target, round, wins.load(Ordering::Relaxed));
                cpu::wait_until("the contested vCPU to come", || {
                    contest.sync();
                    contest.visits.load(Ordering::Relaxed) >= round
                });
                contest.released.store(1, Ordering::Relaxed);
                contest.sync();
                smp::wait_off(callers);
                contest.sync();
                same!("visits of the contested vCPU", target, round, contest.visits.load(Ordering::Relaxed));
                contest.released.store(0, Ordering::Relaxed);
                contest.sync();
            }
        }
        Ok(())
    })
}

pub(crate) fn standby_ends_with_an_interrupt() -> Verdict {
    gic::set_up();
    smp::on_all(&|_| {
        gic::set_up_cpu();
        gic::enable(Timer::Virtual.intid());
        for _ in 0..10 {
            Timer::Virtual.arm(timer::micros(500));
            while Timer::Virtual.control() & timer::ISTATUS == 0 {
                let result = call3(psci::CPU_SUSPEND_64, 0, 0, 0); // a standby state, of this vCPU only
                same!("CPU_SUSPEND into standby", 0, psci::SUCCESS as u64, result as u64);
            }
        }
        Timer::Virtual.stop();
        gic::disable(Timer::Virtual.intid());
        Ok(())
    })
}

pub(crate) fn an_entry_point_outside_memory_is_refused() -> Verdict {
    let machine = machine::get();
    let Some(&target) = machine.cpus.last().filter(|_| smp::count() > 1) else {
        skip!("there is one vCPU");
    };
    if machine.host == Host::Bare {
        skip!("this firmware starts a CPU anywhere");
    }
    let outside =
        [0, machine.uart.start, machine.ram_end(), machine.ram_end() + (1 << 30), 1 << 50, u64::MAX - 3];
    for entry in outside.into_iter().filter(|&a| !machine.is_ram(a)) {
        let result = cpu_on(target, entry, 0);
        check!(
            result == psci::INVALID_ADDRESS || result == psci::INVALID_PARAMETERS,
            "CPU_ON at {entry:#x}: expected -9 or -2, found {result}"
        );
    }
    Ok(())
}
