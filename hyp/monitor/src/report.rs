//! The end: reports of bugs, refusals of bad input, and power-off.
//!
//! A report is made on one CPU, and the others say nothing more. It waits for no lock and allocates nothing, since
//! whoever caused it may hold any lock.

use crate::console::{self, Raw};
use crate::platform;
use aarch64::barrier::wfe;
use aarch64::entry::Frame;
use aarch64::gic::{IntId, send_to_others};
use aarch64::local::Local;
use aarch64::psci::{Conduit, Psci};
use aarch64::sysreg::{CURRENT_EL, Readable, fields};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// The firmware, for power-off: 0 none, 1 by SMC, 2 by HVC.
static PSCI: AtomicU8 = AtomicU8::new(0);

/// Which CPU reports; [`NOBODY`] while none does.
static REPORTER: AtomicU8 = AtomicU8::new(NOBODY);
const NOBODY: u8 = u8::MAX;

/// Whether the MMU is on.
static MEMORY_IS_SHARED: AtomicBool = AtomicBool::new(false);

/// Whether the CPUs' part of the GIC is on.
static GIC_IS_ON: AtomicBool = AtomicBool::new(false);

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

/// Turns the machine off; waits for ever where that is impossible.
pub fn power_off() -> ! {
    platform::board().power_off(psci());
    park()
}

/// Resets the machine; waits for ever where that is impossible.
pub fn reset() -> ! {
    platform::board().reset(psci());
    park()
}

/// Waits for ever.
pub fn park() -> ! {
    loop {
        wfe();
    }
}

/// Refuses to go on, because of what the hypervisor was given: says what was wrong with it and turns the machine off.
pub fn fatal(message: fmt::Arguments<'_>) -> ! {
    claim();
    let _ = write!(Raw, "\n[mz FATAL] {message}\n");
    power_off()
}

/// Refuses to go on, because of what the hypervisor was given.
#[macro_export]
macro_rules! fatal {
    ($($message:tt)+) => { $crate::report::fatal(format_args!($($message)+)) };
}

/// Says that the MMU is on: from now on there may be several CPUs, and they can exclude each other.
pub(crate) fn memory_is_shared() {
    MEMORY_IS_SHARED.store(true, Relaxed);
}

/// Says that this CPU can send interrupts, which a report uses to make the others leave their guests.
pub(crate) fn gic_is_on() {
    GIC_IS_ON.store(true, Relaxed);
}

/// Stops this CPU for good if another one reports. To be called whenever a CPU has left its guest on a kick.
pub fn stop_if_reported() {
    let reporter = REPORTER.load(Relaxed);
    if reporter != NOBODY && usize::from(reporter) != Local::this().cpu().index() {
        park();
    }
}

fn is_at_el2() -> bool {
    CURRENT_EL.matches_all(fields::CurrentEL::EL::EL2)
}

/// Makes this CPU the one that reports, or stops it for good where another one is.
fn claim() {
    if !is_at_el2() || !MEMORY_IS_SHARED.load(Relaxed) {
        return; // there is one CPU, and the slot and exclusives may not work
    }
    let cpu = Local::this().cpu().index() as u8;
    match REPORTER.compare_exchange(NOBODY, cpu, Relaxed, Relaxed) {
        Ok(_) => {}
        Err(reporter) if reporter == cpu => return, // a bug in the report
        Err(_) => park(),
    }
    if GIC_IS_ON.load(Relaxed) {
        send_to_others(IntId::KICK);
    }
    console::seize();
}

/// Prints a bug's report and turns the machine off. `details` are its further lines; `calls` goes through the
/// addresses of the calls that led there, innermost first.
fn bug(message: fmt::Arguments<'_>, details: fmt::Arguments<'_>, calls: impl Iterator<Item = u64>) -> ! {
    claim();
    let local = Local::this();
    let cpu = local.cpu().index();
    match local.begin_report() {
        0 => {
            let _ = write!(Raw, "\n[mz PANIC c{cpu}] {message}\n{details}");
            for (depth, address) in calls.take(DEEPEST).enumerate() {
                let _ = writeln!(Raw, "  #{depth} +{address:#x}");
            }
        }
        // A bug in the report: what was printed so far must do.
        1 => {
            let _ = write!(Raw, "\n[mz PANIC c{cpu}] {message} (while reporting)\n");
        }
        _ => park(),
    }
    let _ = writeln!(Raw, "[mz END]");
    power_off()
}

const DEEPEST: usize = 32;

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
        .chain(frame_chain(frame.x[29]));
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

/// Goes through the calls that the frame records from `frame` on have led to, innermost first.
fn frame_chain(frame: u64) -> impl Iterator<Item = u64> {
    let local = Local::this();
    let [start, end, ..] = image::sections();
    // SAFETY: this CPU's stacks are mapped for ever.
    unsafe { calls(frame, [local.stack(), local.emergency_stack()], (start, end)) }
}

/// Goes through the frame records (AAPCS64: the next record's address, then a return address) from `frame` on: the
/// addresses of the calls themselves, relative to the start of `code`. Stops at the first record that is not on one of
/// `stacks`, not above the one before, or does not return into `code`.
///
/// # Safety
/// `stacks` may be read.
unsafe fn calls(frame: u64, stacks: [(u64, u64); 2], code: (u64, u64)) -> impl Iterator<Item = u64> {
    let mut at = frame;
    core::iter::from_fn(move || {
        let stack = stacks.iter().find(|(start, end)| *start <= at && at < *end && *end - at >= 16)?;
        if !at.is_multiple_of(16) {
            return None;
        }
        let record = core::ptr::with_exposed_provenance::<[u64; 2]>(at as usize);
        // SAFETY: on one of the stacks, and aligned.
        let [next, back] = unsafe { record.read_volatile() };
        if !(code.0 < back && back < code.1) {
            return None;
        }
        at = if next > at && next < stack.1 { next } else { 0 };
        Some(back - code.0 - 4)
    })
}

/// Where the image runs.
pub(crate) mod image {
    #[cfg(target_os = "none")]
    unsafe extern "C" {
        static mz_image: u8;
        static __text_end: u8;
        static __constants_end: u8;
        static __image_end: u8;
    }

    /// Returns the addresses at which the code starts, the constants, the data, and where all ends.
    #[cfg(target_os = "none")]
    pub(crate) fn sections() -> [u64; 4] {
        [&raw const mz_image, &raw const __text_end, &raw const __constants_end, &raw const __image_end]
            .map(|symbol| symbol as u64)
    }

    /// Returns the sections of no image: the host has none.
    #[cfg(not(target_os = "none"))]
    pub(crate) fn sections() -> [u64; 4] {
        [0; 4]
    }

    /// Returns the address that the image's offset 0 has.
    pub(crate) fn base() -> u64 {
        sections()[0]
    }

    /// Tells whether `address` is in the image's code.
    pub(crate) fn is_code(address: u64) -> bool {
        let [start, end, ..] = sections();
        start <= address && address < end
    }
}

#[cfg(target_os = "none")]
mod target {
    use super::{bug, exception, frame_chain};
    use aarch64::entry::Frame;
    use core::panic::PanicInfo;

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        let frame: u64;
        // SAFETY: reads the frame pointer.
        unsafe { core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags)) };
        match info.location() {
            Some(at) => bug(
                format_args!("{} ({}:{})", info.message(), at.file(), at.line()),
                format_args!(""),
                frame_chain(frame),
            ),
            None => bug(format_args!("{}", info.message()), format_args!(""), frame_chain(frame)),
        }
    }

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
    use std::vec::Vec;

    /// A stack with room for records, aligned as stacks are.
    #[repr(align(16))]
    struct Stack([[u64; 2]; 8]);

    const CODE: (u64, u64) = (0x1_0000, 0x2_0000);

    /// Goes through the records at these places of a stack; each is (place of the next, return address).
    fn chain(records: [(u64, u64); 8], first: u64) -> Vec<u64> {
        let mut stack = Stack([[0; 2]; 8]);
        let base = stack.0.as_mut_ptr().expose_provenance() as u64;
        let at = |place: u64| base.wrapping_add(place.wrapping_mul(16));
        for (record, (next, back)) in stack.0.iter_mut().zip(records) {
            *record = [at(next), back];
        }
        let stacks = [(base, at(8)), (0, 0)];
        // SAFETY: the stack above.
        unsafe { calls(at(first), stacks, CODE) }.collect()
    }

    const NOWHERE: (u64, u64) = (0, 0);

    #[test]
    fn calls_are_relative_to_the_code_and_innermost_first() {
        let mut records = [NOWHERE; 8];
        records[1] = (3, 0x1_0104);
        records[3] = (7, 0x1_0204);
        records[7] = (100, 0x1_0304);
        assert_eq!(chain(records, 1), [0x100, 0x200, 0x300]);
    }

    #[test]
    fn a_broken_chain_ends() {
        let mut records = [NOWHERE; 8];
        records[2] = (2, 0x1_0104); // itself
        assert_eq!(chain(records, 2), [0x100]);
        records[2] = (1, 0x1_0104); // downwards
        assert_eq!(chain(records, 2), [0x100]);
        records[2] = (3, 0x2_0000); // back to what is no code
        assert_eq!(chain(records, 2), []);
        assert_eq!(chain(records, 8), []); // off the stack
        assert_eq!(chain(records, u64::MAX), []);
    }

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
