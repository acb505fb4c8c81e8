//! A vCPU whose exception vector lies outside: each abort aborts, for ever.

use crate::aim::{all_holes, anywhere, mappable_bits};
use crate::single;
use crate::witness::unharmed;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use guest_tests::calls::{affinity_info, cpu_on, psci};
use guest_tests::mmu::{Memory, Window};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, cpu, machine, same, skip, smp, timer};

static GONE: AtomicBool = AtomicBool::new(false);

fn go_astray(this: usize) -> Verdict {
    let mut rng = Rng::of_run(this as u64);
    let hole = anywhere(&all_holes(mappable_bits()), &mut rng) & !4095;
    let vector = Window::mine().at(hole, Memory::Normal);
    GONE.store(true, Relaxed);
    // SAFETY: this vCPU does nothing from here on, and no other uses its stack.
    unsafe { asm!("msr vbar_el1, {}", "isb", "brk #0", in(reg) vector, options(noreturn)) }
}

pub(crate) fn a_vcpu_that_is_lost_does_not_hold_the_others() -> Verdict {
    let lost = smp::count() - 1;
    if lost == 0 {
        skip!("there is one vCPU");
    }
    unharmed(|| {
        smp::lose(lost, &go_astray);
        cpu::wait_until("a vCPU to go astray", || GONE.load(Relaxed));
        let affinity = machine::get().cpus[lost];
        let mut rng = Rng::of_run(0);
        let until = timer::now() + timer::micros(50_000);
        while timer::now() < until {
            single::one(&mut rng)?;
            same!("AFFINITY_INFO", affinity, psci::ON as u64, affinity_info(affinity, 0) as u64);
        }
        let again = cpu_on(affinity, machine::get().ram[0].start, 0);
        same!("CPU_ON of who is lost", affinity, psci::ALREADY_ON as u64, again as u64);
        Ok(())
    })
}
