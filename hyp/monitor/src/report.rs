//! The end: reports of bugs, refusals of bad input, and power-off.
//!
//! A report is made on one CPU, and the others say nothing more. It waits for no lock and allocates nothing, since
//! whoever caused it may hold any lock.

use crate::arch;
use crate::console::{self, Raw};
use crate::options::End;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// Which CPU reports; [`NOBODY`] while none does.
static REPORTER: AtomicU8 = AtomicU8::new(NOBODY);
const NOBODY: u8 = u8::MAX;

/// Whether the MMU is on.
static MEMORY_IS_SHARED: AtomicBool = AtomicBool::new(false);

/// Turns the machine off; waits for ever where that is impossible.
pub fn power_off() -> ! {
    arch::power_off();
    park()
}

/// Ends the machine's work: turns it off, or resets it.
pub(crate) fn end(end: End) -> ! {
    match end {
        End::Off => power_off(),
        End::Reset => reset(),
    }
}

/// Resets the machine; waits for ever where that is impossible.
pub fn reset() -> ! {
    arch::reset();
    park()
}

/// Waits for ever.
pub fn park() -> ! {
    loop {
        arch::wait();
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

/// Stops this CPU for good if another one reports. To be called whenever a CPU has left its guest on a kick.
pub fn stop_if_reported() {
    let reporter = REPORTER.load(Relaxed);
    if reporter != NOBODY && usize::from(reporter) != arch::this_cpu().index() {
        park();
    }
}

/// Makes this CPU the one that reports, or stops it for good where another one is.
fn claim() {
    if !arch::can_exclude() || !MEMORY_IS_SHARED.load(Relaxed) {
        return; // there is one CPU, and the slot and exclusives may not work
    }
    let cpu = arch::this_cpu().index() as u8;
    match REPORTER.compare_exchange(NOBODY, cpu, Relaxed, Relaxed) {
        Ok(_) => {}
        Err(reporter) if reporter == cpu => return, // a bug in the report
        Err(_) => park(),
    }
    arch::stop_others();
    console::seize();
}

/// Prints a bug's report and turns the machine off. `details` are its further lines; `calls` goes through the
/// addresses of the calls that led there, innermost first.
pub(crate) fn bug(
    message: fmt::Arguments<'_>,
    details: fmt::Arguments<'_>,
    calls: impl Iterator<Item = u64>,
) -> ! {
    claim();
    let cpu = arch::this_cpu().index();
    match arch::begin_report() {
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

/// Goes through the calls that the frame records from `frame` on have led to, innermost first.
#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "reports of exceptions call it"))]
pub(crate) fn calls_from(frame: u64) -> impl Iterator<Item = u64> {
    let [start, end, ..] = image::sections();
    // SAFETY: this CPU's stacks are mapped for ever.
    unsafe { calls(frame, arch::stacks(), (start, end)) }
}

/// Goes through the frame records (of both architectures: the next record's address, then a return address) from `frame` on: the
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
        Some(back - code.0 - arch::CALL)
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
    use super::{bug, calls_from};
    use crate::arch;
    use core::panic::PanicInfo;

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        let frame = arch::frame_pointer();
        match info.location() {
            Some(at) => bug(
                format_args!("{} ({}:{})", info.message(), at.file(), at.line()),
                format_args!(""),
                calls_from(frame),
            ),
            None => bug(format_args!("{}", info.message()), format_args!(""), calls_from(frame)),
        }
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
}
