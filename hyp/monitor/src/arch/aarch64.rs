//! AArch64's part: the local slot, the counter, PSCI, kicks, and what a report shows of an exception.

use crate::platform;
use crate::report::{bug, calls_from, image};
use aarch64::barrier::wfe;
use aarch64::entry::Frame;
use aarch64::gic::{IntId, send_to_others};
use aarch64::local::Local;
use aarch64::psci::{Conduit, Psci};
use aarch64::sysreg::{CNTFRQ_EL0, CNTPCT_EL0, CURRENT_EL, Readable, fields};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use types::{CpuId, Ticks};

/// The firmware, for power-off: 0 none, 1 by SMC, 2 by HVC.
static PSCI: AtomicU8 = AtomicU8::new(0);

/// Whether the CPUs' part of the GIC is on.
static GIC_IS_ON: AtomicBool = AtomicBool::new(false);

/// Bytes from the start of a call to where it returns.
pub(crate) const CALL: u64 = 4;

/// Returns the number of the CPU that runs this.
pub(crate) fn this_cpu() -> CpuId {
    Local::this().cpu()
}

/// Reads the system counter.
pub(crate) fn ticks() -> Ticks {
    CNTPCT_EL0.get()
}

/// Returns how many ticks the system counter makes in a second; 0 where firmware has left that out.
pub(crate) fn tick_hz() -> u64 {
    CNTFRQ_EL0.get() & 0xffff_ffff
}

/// Waits for something.
pub(crate) fn wait() {
    wfe();
}

/// Counts a report that begins on this CPU: returns how many began before it.
pub(crate) fn begin_report() -> u8 {
    Local::this().begin_report()
}

/// Tells whether this CPU is at the level where the slot and exclusives work.
pub(crate) fn can_exclude() -> bool {
    CURRENT_EL.matches_all(fields::CurrentEL::EL::EL2)
}

/// Makes the other CPUs leave their guests, where this CPU can.
pub(crate) fn stop_others() {
    if GIC_IS_ON.load(Relaxed) {
        send_to_others(IntId::KICK);
    }
}

/// Returns the stacks of this CPU, start and end.
pub(crate) fn stacks() -> [(u64, u64); 2] {
    let local = Local::this();
    [local.stack(), local.emergency_stack()]
}

/// Returns the frame pointer of who calls.
#[cfg(target_os = "none")]
#[inline(always)]
pub(crate) fn frame_pointer() -> u64 {
    let frame: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    frame
}

/// Turns the machine off; returns where that is impossible.
pub(crate) fn power_off() {
    platform::board().power_off(psci());
}

/// Turns the CPU that runs this off; returns where that is impossible.
pub(crate) fn turn_off_this_cpu() {
    if let Some(psci) = psci() {
        psci.cpu_off();
    }
}

/// Resets the machine; returns where that is impossible.
pub(crate) fn reset() {
    platform::board().reset(psci());
}

/// Names the firmware that turns the machine off.
pub(crate) fn use_psci(psci: Psci) {
    let number = match psci.conduit() {
        Conduit::Smc => 1,
        Conduit::Hvc => 2,
    };
    PSCI.store(number, Relaxed);
}

fn psci() -> Option<Psci> {
    match PSCI.load(Relaxed) {
        1 => Some(Psci::new(Conduit::Smc)),
        2 => Some(Psci::new(Conduit::Hvc)),
        _ => None,
    }
}

/// Says that this CPU can send interrupts, which a report uses to make the others leave their guests.
pub(crate) fn gic_is_on() {
    GIC_IS_ON.store(true, Relaxed);
}

/// Reports an exception that the hypervisor itself has caused.
#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the vectors call it"))]
fn exception(frame: &Frame) -> ! {
    use aarch64::syndrome::{Words, vector};
    let base = image::base();
    let overflow = Local::this().is_guard(frame.far) && frame.vector.is_multiple_of(4);
    let what = if overflow { "stack overflow: " } else { "" };
    // Where the program counter went astray, the link register says from where.
    let first = if image::is_code(frame.pc) { frame.pc } else { frame.x[30].wrapping_sub(4) };
    let calls = core::iter::once(first.wrapping_sub(base))
        .filter(|_| image::is_code(first))
        .chain(calls_from(frame.x[29]));
    bug(
        format_args!("{what}{} at EL2: {}", vector(frame.vector), Words(frame.esr)),
        format_args!("{}", Registers(frame)),
        calls,
    )
}

struct Registers<'f>(&'f Frame);

impl fmt::Display for Registers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.0;
        writeln!(f, "  esr {:#018x}  far {:#018x}  hpfar {:#018x}", r.esr, r.far, r.hpfar)?;
        writeln!(f, "  pc  {:#018x}  sp  {:#018x}  spsr  {:#018x}", r.pc, r.sp, r.spsr)?;
        for (row, values) in r.x.chunks(4).enumerate() {
            for (column, value) in values.iter().enumerate() {
                write!(f, "  x{:<2} {value:#018x}", 4 * row + column)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "  image at {:#x}", image::base())
    }
}

#[cfg(target_os = "none")]
mod target {
    use super::exception;
    use aarch64::entry::Frame;

    /// Where the vectors go with an exception from EL2.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_exception(frame: &Frame) -> ! {
        exception(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_every_register() {
        let frame = Frame {
            x: core::array::from_fn(|i| 0xa000 + i as u64),
            sp: 1,
            pc: 2,
            spsr: 3,
            esr: 0x9600_0047,
            far: 5,
            hpfar: 6,
            vector: 4,
        };
        let text = std::format!("{}", Registers(&frame));
        for i in 0..31 {
            assert!(text.contains(&std::format!("x{i:<2} 0x000000000000{:x}", 0xa000 + i)), "{text}");
        }
        assert_eq!(text.lines().filter(|line| !line.starts_with("  ")).count(), 0, "{text}");
    }
}
