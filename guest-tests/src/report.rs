//! Running the tests, and saying how they went.
//!
//! Lines: `PASS name`, `FAIL name: what, where, expected, found`, `SKIP name: why`; at the end
//! `N passed, N failed`, which does not count what was skipped. Then the machine is turned off.

use crate::{calls, console, cpu, exception, machine, say, smp};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// One test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// What it promises, as a sentence.
    pub name: &'static str,
    /// The test, run on the boot CPU with the other CPUs off.
    pub run: fn() -> Verdict,
}

/// How a test went.
pub type Verdict = Result<(), NotPassed>;

/// Why a test did not pass.
#[derive(Clone, Debug)]
pub enum NotPassed {
    /// The promise is broken.
    Failed(Text),
    /// This machine does not make the promise.
    Skipped(Text),
    /// Another vCPU has failed, and this one would have waited for it in vain.
    Alone,
}

impl NotPassed {
    /// Makes a failure of a value that is not as it should be.
    pub fn differs(what: &str, address: u64, expected: u64, found: u64) -> Self {
        Self::Failed(Text::new(format_args!(
            "{what}, address {address:#x}, expected {expected:#x}, found {found:#x}"
        )))
    }
}

/// A line of text, cut off where it is too long.
#[derive(Clone)]
pub struct Text {
    bytes: [u8; 200],
    len: usize,
}

impl Text {
    /// Makes a text of format arguments.
    pub fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; 200], len: 0 };
        let _ = text.write_fmt(arguments);
        text
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            let place = self.bytes.get_mut(self.len).ok_or(fmt::Error)?;
            *place = if byte.is_ascii() { byte } else { b'?' };
            self.len += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?"))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Registers the tests of a payload, in the order in which they run: functions `fn() -> Verdict`, named as what they
/// promise. Grouped by the modules that they are in, the module's name is part of theirs. What only one architecture has says so
/// (`#[cfg]`).
#[macro_export]
macro_rules! guest_tests {
    ($payload:literal: $($module:ident { $($(#[$only:meta])* $test:ident),* $(,)? })*) => {
        #[unsafe(no_mangle)]
        fn guest_tests() -> (&'static str, &'static [$crate::Test]) {
            ($payload, &[$($($(#[$only])* $crate::Test {
                name: ::core::concat!(::core::stringify!($module), "::", ::core::stringify!($test)),
                run: $module::$test,
            }),*),*])
        }
    };
    ($payload:literal: $($test:ident),* $(,)?) => {
        #[unsafe(no_mangle)]
        fn guest_tests() -> (&'static str, &'static [$crate::Test]) {
            ($payload, &[$($crate::Test { name: ::core::stringify!($test), run: $test }),*])
        }
    };
}

unsafe extern "Rust" {
    fn guest_tests() -> (&'static str, &'static [Test]);
}

/// Ends the test as failed unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($arg:tt)+) => {
        if !$condition {
            $crate::fail!($($arg)+);
        }
    };
}

/// Ends the test as failed unless the last two are equal: `same!("what", address, expected, found)`.
#[macro_export]
macro_rules! same {
    ($what:expr, $address:expr, $expected:expr, $found:expr $(,)?) => {{
        let (expected, found): (u64, u64) = ($expected, $found);
        if expected != found {
            return Err($crate::NotPassed::differs($what, $address, expected, found));
        }
    }};
}

/// Ends the test as failed.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)+) => {
        return Err($crate::NotPassed::Failed($crate::Text::new(::core::format_args!($($arg)+))))
    };
}

/// Ends the test as skipped: this machine does not make the promise.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)+) => {
        return Err($crate::NotPassed::Skipped($crate::Text::new(::core::format_args!($($arg)+))))
    };
}

static PASSED: AtomicUsize = AtomicUsize::new(0);
static FAILED: AtomicUsize = AtomicUsize::new(0);
static GIVING_UP: AtomicBool = AtomicBool::new(false);
/// The index of the test that runs, plus 1.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

fn tests() -> (&'static str, &'static [Test]) {
    // SAFETY: every payload defines it, with `guest_tests!`.
    unsafe { guest_tests() }
}

/// Runs the tests whose names contain `test=` of the boot arguments, all where that is not given, and turns the machine
/// off.
pub(crate) fn run_all() -> ! {
    let (payload, tests) = tests();
    let machine = machine::get();
    say!(
        "guest-tests {payload}: {} vCPUs, {} MiB, image at {:#x}, {:?}, seed={:#x}",
        smp::count(),
        machine.ram_size() >> 20,
        crate::start::image().start,
        machine.host,
        machine.seed
    );
    let wanted = machine.argument("test").unwrap_or("");
    for (i, test) in tests.iter().enumerate().filter(|(_, t)| t.name.contains(wanted)) {
        RUNNING.store(i + 1, Relaxed);
        match (test.run)() {
            Ok(()) => {
                PASSED.fetch_add(1, Relaxed);
                say!("PASS {}", test.name);
            }
            Err(NotPassed::Failed(text)) => {
                FAILED.fetch_add(1, Relaxed);
                say!("FAIL {}: {text}", test.name);
            }
            Err(NotPassed::Skipped(text)) => say!("SKIP {}: {text}", test.name),
            Err(NotPassed::Alone) => unreachable!("the vCPU that failed says why"),
        }
    }
    RUNNING.store(0, Relaxed);
    close()
}

/// Ends the run after a panic or an unexpected exception, which counts as a failure.
pub(crate) fn give_up() -> ! {
    if GIVING_UP.swap(true, Relaxed) {
        cpu::park(); // somebody is at it, or it is the report that fails
    }
    let running = RUNNING.load(Relaxed).checked_sub(1).map_or("boot", |i| tests().1[i].name);
    FAILED.fetch_add(1, Relaxed);
    say!("FAIL {running}: it ended in a panic or an unexpected exception");
    close()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::break_lock();
    let (file, line) = info.location().map_or(("?", 0), |place| (place.file(), place.line()));
    say!("PANIC c{}: {} ({file}:{line})", exception::cpu(), info.message());
    give_up()
}

/// Returns how many tests have failed so far.
pub fn failures() -> usize {
    FAILED.load(Relaxed)
}

fn close() -> ! {
    say!("{} passed, {} failed", PASSED.load(Relaxed), FAILED.load(Relaxed));
    calls::system_off()
}
