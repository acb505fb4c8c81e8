//! x86-64's part of what the log, the console and reports need, and what a report shows of an exception.
#![cfg_attr(not(pc), allow(dead_code, reason = "the host takes the other architecture's"))]

use super::machine::PerCpu;
use super::platform;
use crate::report::{bug, calls_from, image};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use types::{Cpu, CpuId, Ticks};
use x86_64::exception::{Frame, Words};
use x86_64::instr::{Width, hlt, out, rdtsc};
use x86_64::local::Local;

/// Ticks of the time-stamp counter in a second; 0 while unknown.
static TICK_HZ: AtomicU64 = AtomicU64::new(0);

/// From where a call returns to, back into the call: its length differs, and any byte of it will do.
pub(crate) const CALL: u64 = 1;

/// Says how fast the time-stamp counter goes.
pub(crate) fn use_tick_hz(hz: u64) {
    TICK_HZ.store(hz, Relaxed);
}

/// Returns the number of the CPU that runs this.
pub(crate) fn this_cpu() -> CpuId {
    Local::this().cpu()
}

/// Reads the time-stamp counter.
pub(crate) fn ticks() -> Ticks {
    rdtsc()
}

/// Returns how many ticks it makes in a second; 0 while that is unknown.
pub(crate) fn tick_hz() -> u64 {
    TICK_HZ.load(Relaxed)
}

/// Waits for something.
pub(crate) fn wait() {
    hlt();
}

/// Counts a report that begins on this CPU: returns how many began before it.
pub(crate) fn begin_report() -> u8 {
    Local::this().begin_report()
}

/// Tells whether this CPU is where its slot works: always.
pub(crate) fn can_exclude() -> bool {
    true
}

/// Makes the other CPUs leave their guests, once they can have any.
pub(crate) fn stop_others() {
    if let Some(this) = PerCpu::this() {
        this.machine.cpus().filter(|cpu| *cpu != this.core.id()).for_each(|cpu| this.core.kick(cpu));
    }
}

/// Returns the stacks of this CPU, start and end.
pub(crate) fn stacks() -> [(u64, u64); 2] {
    let local = Local::this();
    [local.stack(), local.emergency_stack()]
}

/// Returns the frame pointer of who calls.
#[cfg(pc)]
#[inline(always)]
pub(crate) fn frame_pointer() -> u64 {
    let frame: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    frame
}

/// Turns the machine off; returns where that is impossible.
pub(crate) fn power_off() {
    #[cfg(pc)]
    super::com1::settle();
    for write in platform::board().power_off() {
        for &byte in write.bytes {
            // SAFETY: the board says that this turns it off.
            unsafe { out(write.port, Width::Byte, byte.into()) };
        }
    }
}

/// Resets the machine; returns where that is impossible.
///
/// On the boot CPU, another one does it, where there is one: when the boot CPU of several resets the machine, the time of Bochs
/// (2.7) stands still until it has executed as many instructions again, and its BIOS gives up meanwhile ("Keyboard error:21").
pub(crate) fn reset() {
    #[cfg(pc)]
    super::com1::settle();
    if this_cpu() == CpuId::BOOT {
        RESET_WANTED.store(true, Relaxed);
        stop_others();
        let since = rdtsc();
        while rdtsc().wrapping_sub(since) < tick_hz() / 8 {
            core::hint::spin_loop();
        }
    }
    reset_from_here();
}

/// Whether a CPU that is kicked is to reset the machine.
static RESET_WANTED: AtomicBool = AtomicBool::new(false);

/// Resets the machine by the register that chip sets have for that.
fn reset_from_here() {
    const RESET_CONTROL: u16 = 0xcf9;
    // SAFETY: a full reset.
    unsafe { out(RESET_CONTROL, Width::Byte, 0b1110) };
}

/// Reports an exception that the hypervisor itself has caused.
fn exception(frame: &Frame) -> ! {
    const DOUBLE_FAULT: u64 = 8;
    const PAGE_FAULT: u64 = 14;
    let (base, local) = (image::base(), Local::this());
    // Where the stack is used up, the exception's own frame may have found no room.
    let overflow = match frame.vector {
        PAGE_FAULT => local.is_guard(frame.cr2),
        DOUBLE_FAULT => local.is_guard(frame.rsp) || local.is_guard(frame.rsp.wrapping_sub(8)),
        _ => false,
    };
    let what = if overflow { "stack overflow: " } else { "" };
    // Where the program counter went astray, the call that led there has put its return address on the stack.
    let first = if image::is_code(frame.rip) { Some(frame.rip) } else { returns_to(frame.rsp) };
    let calls = first.map(|at| at.wrapping_sub(base)).into_iter().chain(calls_from(frame.rbp()));
    bug(
        format_args!("{what}{}", Words { vector: frame.vector, error: frame.error }),
        format_args!("{}", Registers(frame)),
        calls,
    )
}

/// Returns the call whose return address is on top of the stack, where that is in the image.
fn returns_to(rsp: u64) -> Option<u64> {
    let (start, end) = Local::this().stack();
    if !rsp.is_multiple_of(8) || !(start..end).contains(&rsp) {
        return None;
    }
    // SAFETY: on this CPU's stack, which is mapped for ever.
    let back = unsafe { core::ptr::with_exposed_provenance::<u64>(rsp as usize).read_volatile() };
    image::is_code(back).then(|| back.wrapping_sub(CALL))
}

struct Registers<'f>(&'f Frame);

impl fmt::Display for Registers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.0;
        writeln!(
            f,
            "  vector {:<2} error {:#x}  cr2 {:#018x}  rflags {:#010x}",
            r.vector, r.error, r.cr2, r.rflags
        )?;
        writeln!(f, "  rip {:#018x}  cs {:#06x}  rsp {:#018x}  ss {:#06x}", r.rip, r.cs, r.rsp, r.ss)?;
        const NAMES: [&str; 15] = [
            "r15", "r14", "r13", "r12", "r11", "r10", "r9 ", "r8 ", "rdi", "rsi", "rbp", "rbx", "rdx", "rcx",
            "rax",
        ];
        let values = r.r15_to_r8.iter().chain(&r.rdi_to_rax);
        for (place, (name, value)) in NAMES.iter().zip(values).enumerate() {
            write!(f, "  {name} {value:#018x}{}", if place % 4 == 3 { "\n" } else { "" })?;
        }
        writeln!(f, "\n  image at {:#x}", image::base())
    }
}

#[cfg(pc)]
mod target {
    use super::{Local, PerCpu, exception};
    use x86_64::exception::Frame;

    /// Where the stubs go with an exception.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_exception(frame: &Frame) -> ! {
        exception(frame)
    }

    /// Where the stub of non-maskable interrupts goes: a kick has come while this CPU is in the hypervisor. It takes no
    /// lock, and does what must not wait.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_nmi() {
        Local::this().note_nmi();
        if super::RESET_WANTED.load(super::Relaxed) {
            super::reset_from_here();
        }
        if let Some(this) = PerCpu::this() {
            this.kicked();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_every_register() {
        let frame = Frame {
            cr2: 1,
            r15_to_r8: core::array::from_fn(|i| 0xa000 + i as u64),
            rdi_to_rax: core::array::from_fn(|i| 0xa008 + i as u64),
            vector: 14,
            error: 2,
            rip: 3,
            cs: 8,
            rflags: 2,
            rsp: 5,
            ss: 16,
        };
        let text = std::format!("{}", Registers(&frame));
        for i in 0..15 {
            assert!(text.contains(&std::format!("0x000000000000a{i:03x}")), "{text}");
        }
        assert!(text.contains("rax 0x000000000000a00e") && text.contains("rbp 0x000000000000a00a"), "{text}");
        assert_eq!(frame.rbp(), 0xa00a);
        assert_eq!(text.lines().filter(|line| !line.starts_with("  ")).count(), 0, "{text}");
    }
}
