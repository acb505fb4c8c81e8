//! What leaving the guest costs, operation by operation, in ticks of the counter. Where the machine's time counts
//! instructions, that is the path's length, the loop around the operation included; `cargo xtask bench exits` runs this
//! with and without a hypervisor under it, and compares.
//!
//! A line for each: `COST name ticks times`, of which the quotient counts, and `COUNT name number`.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "the instructions that are measured are written out")]

mod interrupts;
mod memory;
mod traps;

use guest_tests::{guest_tests, read_sysreg, say};

guest_tests! {
    "exits":
    traps { hypercall, trapped_id_register, distributor_read }
    interrupts { sgi_to_self, virtual_timer, ipi_to_another_vcpu }
    memory {
        first_write_to_a_page_among_pages,
        first_write_to_a_page_in_blocks,
        zero_and_clean_by_line,
        protect_and_unmap_1_gib_of_pages,
        protect_and_unmap_1_gib_of_blocks,
    }
}

/// Returns the count, read in program order, at the cost of two instructions.
fn now() -> u64 {
    // SAFETY: a barrier only orders.
    unsafe { core::arch::asm!("isb", options(nostack, preserves_flags)) };
    read_sysreg!("cntvct_el0")
}

/// Does something so many times, once more before that counts, and says what it cost.
fn measure(name: &str, times: u64, mut what: impl FnMut()) {
    what();
    let start = now();
    for _ in 0..times {
        what();
    }
    cost(name, now() - start, times);
}

fn cost(name: &str, ticks: u64, times: u64) {
    say!("COST {name} {ticks} {times}");
}
