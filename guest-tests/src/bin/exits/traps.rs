//! Instructions that trap, one at a time.

use super::measure;
use core::arch::asm;
use guest_tests::machine::Conduit;
use guest_tests::mmio::read32;
use guest_tests::{Verdict, machine, read_sysreg, skip};

const TIMES: u64 = 10_000;

/// PSCI_VERSION, the cheapest call that there is anywhere.
pub(crate) fn hypercall() -> Verdict {
    const PSCI_VERSION: u64 = 0x8400_0000;
    if machine::get().conduit != Conduit::Hvc {
        skip!("PSCI is not called by HVC");
    }
    measure("hypercall", TIMES, || {
        // SAFETY: the call returns a number in X0, and may change X1 to X3.
        unsafe {
            asm!("hvc #0", inout("x0") PSCI_VERSION => _, out("x1") _, out("x2") _, out("x3") _, options(nostack));
        }
    });
    Ok(())
}

pub(crate) fn trapped_id_register() -> Verdict {
    measure("id-register", TIMES, || {
        read_sysreg!("id_aa64pfr0_el1");
    });
    Ok(())
}

/// GICD_TYPER, which never changes.
pub(crate) fn distributor_read() -> Verdict {
    let register = machine::get().gicd.start + 4;
    measure("distributor-read", TIMES, || {
        read32(register);
    });
    Ok(())
}
