//! The machine as a payload sees it: console, calls, memory, exceptions, the other vCPU.

use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

global_asm!(include_str!("start.S"), options(att_syntax));

unsafe extern "C" {
    static refusals: AtomicU64;
    static other: u8;
    static other_cr3: u8;
    static other_end: u8;
    static tables: u8;
    static stack_1_end: u8;
    static image_end: u8;
    fn protection();
    fn surprise();
}

/// The console: a port that takes characters.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port takes characters, and nothing else happens.
            unsafe { asm!("out 0xe9, al", in("al") byte, options(nostack, preserves_flags)) };
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($text:tt)+) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::machine::Console, $($text)+);
    }};
}
pub(crate) use say;

/// Makes a call; returns its status and results.
pub(crate) fn call(function: u32, arguments: [u64; 4]) -> (i64, [u64; 5]) {
    let [a, b, c, d] = arguments;
    let (status, x1, x2, x3, x4, x5): (u64, u64, u64, u64, u64, u64);
    // SAFETY: the hypervisor changes these registers, and of memory only what the call says, which the caller knows.
    unsafe {
        asm!(
            "vmcall",
            inout("rax") u64::from(function) => status,
            inout("rdi") a => x1, inout("rsi") b => x2, inout("rdx") c => x3, inout("rcx") d => x4,
            inout("r8") 0_u64 => x5, in("r9") 0_u64,
            options(nostack)
        );
    }
    (status as i64, [x1, x2, x3, x4, x5])
}

/// Turns the machine off.
pub(crate) fn power_off() -> ! {
    const SYSTEM_OFF: u32 = 0x8400_0008;
    loop {
        call(SYSTEM_OFF, [0; 4]);
    }
}

/// Returns how many accesses were refused so far.
pub(crate) fn refused() -> u64 {
    // SAFETY: the handler of the exception changes it by a locked instruction.
    unsafe { refusals.load(Relaxed) }
}

/// Reads a word; `None` where the access is refused.
pub(crate) fn read(at: u64) -> Option<u64> {
    let (value, fine): (u64, u64);
    // SAFETY: not a word that Rust has; where the access is refused, the handler goes on at the second label.
    unsafe {
        asm!(
            "lea r15, [rip + 2f]",
            "xor {fine:e}, {fine:e}",
            "mov {value}, [{at}]",
            "mov {fine:e}, 1",
            "2:",
            at = in(reg) at, value = out(reg) value, fine = out(reg) fine, out("r15") _,
        );
    }
    (fine == 1).then_some(value)
}

/// Writes a word. Tells whether the access was allowed.
pub(crate) fn write(at: u64, value: u64) -> bool {
    let fine: u64;
    // SAFETY: as above; the word is none that Rust has.
    unsafe {
        asm!(
            "lea r15, [rip + 2f]",
            "xor {fine:e}, {fine:e}",
            "mov [{at}], {value}",
            "mov {fine:e}, 1",
            "2:",
            at = in(reg) at, value = in(reg) value, fine = out(reg) fine, out("r15") _,
        );
    }
    fine == 1
}

/// Reads a model-specific register; `None` where the access is refused.
pub(crate) fn rdmsr(register: u32) -> Option<u64> {
    let (low, high, fine): (u32, u32, u64);
    // SAFETY: a read.
    unsafe {
        asm!(
            "lea r15, [rip + 2f]",
            "xor {fine:e}, {fine:e}",
            "rdmsr",
            "mov {fine:e}, 1",
            "2:",
            in("ecx") register, lateout("eax") low, lateout("edx") high, fine = out(reg) fine, out("r15") _,
        );
    }
    (fine == 1).then_some(u64::from(high) << 32 | u64::from(low))
}

/// Tries to switch VMX on in CR4. Tells whether that was allowed.
pub(crate) fn allows_vmxe() -> bool {
    let fine: u64;
    // SAFETY: VMX is not there: refused, and nothing has changed.
    unsafe {
        asm!(
            "lea r15, [rip + 2f]",
            "xor {fine:e}, {fine:e}",
            "mov {t}, cr4",
            "bts {t}, 13",
            "mov cr4, {t}",
            "mov {fine:e}, 1",
            "2:",
            t = out(reg) _, fine = out(reg) fine, out("r15") _,
        );
    }
    fine == 1
}

/// A gate to a handler (SDM 3A, 7.14.1).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate(u64, u64);

/// Loads a table of exceptions.
fn catch_exceptions() {
    static mut GATES: [Gate; 32] = [Gate(0, 0); 32];
    const PROTECTION: usize = 13;
    let gate = |handler: unsafe extern "C" fn()| {
        let at = handler as *const () as u64;
        Gate(at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48, at >> 32)
    };
    let gates = &raw mut GATES;
    for vector in 0..32 {
        let made = gate(if vector == PROTECTION { protection } else { surprise });
        // SAFETY: one vCPU runs, and this is called once.
        unsafe { (*gates)[vector] = made };
    }
    load_exceptions(gates as u64);
}

static TABLE: AtomicU64 = AtomicU64::new(0);

fn load_exceptions(table: u64) {
    TABLE.store(table, Relaxed);
    let mut pointer = [0_u8; 10];
    pointer[..2].copy_from_slice(&(32 * 16 - 1_u16).to_le_bytes());
    pointer[2..].copy_from_slice(&table.to_le_bytes());
    // SAFETY: the table is there for ever.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

/// The first address behind the payload that nobody uses, a multiple of 2 MiB.
pub(crate) fn free_memory() -> u64 {
    (&raw const image_end as u64).next_multiple_of(2 << 20)
}

/// Where the other vCPU writes; 0 nowhere.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// How often it has written there.
static WRITES: AtomicU64 = AtomicU64::new(0);
/// Whether it has arrived.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// Where in the first MiB it starts.
const PAGE: u64 = 0x8;

/// Starts the other vCPU.
pub(crate) fn start_other() {
    let from = &raw const other;
    let len = &raw const other_end as usize - from as usize;
    let handover = &raw const other_cr3 as usize - from as usize;
    let to = core::ptr::with_exposed_provenance_mut::<u8>((PAGE << 12) as usize);
    // SAFETY: memory that nobody else has, and no CPU runs there.
    unsafe {
        to.copy_from_nonoverlapping(from, len);
        let words = to.add(handover).cast::<u64>();
        words.write_unaligned(&raw const tables as u64);
        words.add(1).write_unaligned(&raw const stack_1_end as u64);
        words.add(2).write_unaligned(run_other as *const () as u64);
    }
    for command in [0x4500, 0x4600 | PAGE] {
        const ICR: u32 = 0x830;
        // SAFETY: starts the second vCPU.
        unsafe { asm!("wrmsr", in("ecx") ICR, in("eax") command as u32, in("edx") 1, options(nostack)) };
    }
}

extern "C" fn run_other() -> ! {
    load_exceptions(TABLE.load(Relaxed));
    ARRIVED.store(1, Release);
    let mut value = 0;
    loop {
        let target = TARGET.load(Acquire);
        if target == 0 {
            core::hint::spin_loop();
            continue;
        }
        value += 1;
        write(target, value);
        WRITES.store(value, Release);
    }
}

/// Waits until the other vCPU has arrived, for a while.
pub(crate) fn other_has_arrived() -> bool {
    (0..100_000_000_u64).any(|_| {
        core::hint::spin_loop();
        ARRIVED.load(Acquire) == 1
    })
}

/// Has the other vCPU write to `target` without end, or rest where it is 0; returns when it does.
pub(crate) fn aim_other(target: u64) {
    TARGET.store(target, Release);
    if target == 0 {
        return;
    }
    let before = WRITES.load(Acquire);
    while WRITES.load(Acquire) < before + 2 {
        core::hint::spin_loop();
    }
}

/// Waits until the other vCPU has tried to write so often again.
pub(crate) fn let_other_try(times: u64) {
    let before = WRITES.load(Acquire);
    while WRITES.load(Acquire) < before + times {
        core::hint::spin_loop();
    }
}

/// Where the assembly goes.
// SAFETY: the name is the assembly's.
#[unsafe(no_mangle)]
extern "C" fn boot(information: u64) -> ! {
    catch_exceptions();
    crate::promises::run(information);
    power_off()
}

// SAFETY: the name is the assembly's.
#[unsafe(no_mangle)]
extern "C" fn surprised() -> ! {
    say!("FAIL an exception that nobody expects\n0 passed, 1 failed");
    power_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("FAIL {}\n0 passed, 1 failed", info.message());
    power_off()
}
