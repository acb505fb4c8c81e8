//! The first instructions: of the boot CPU, and of the CPUs that it starts.

use crate::cpu::{self, MAX_CPUS};
use crate::region::Region;
use crate::{exception, machine, report, smp};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

/// Bytes of stack for each CPU.
pub const STACK_SIZE: u64 = 16 * 1024;

global_asm!(
    include_str!("start.S"),
    stack_size = const STACK_SIZE,
    cpus = const MAX_CPUS,
    options(att_syntax)
);

unsafe extern "C" {
    #[link_name = "start"]
    static IMAGE_START: u8;
    #[link_name = "image_end"]
    static IMAGE_END: u8;
    #[link_name = "other"]
    static OTHER: u8;
    #[link_name = "other_words"]
    static OTHER_WORDS: u8;
    #[link_name = "other_end"]
    static OTHER_END: u8;
    #[link_name = "tables"]
    static TABLES: u8;
    #[link_name = "stacks"]
    static STACKS: u8;
}

/// Returns the memory that the payload itself fills, bss and stacks included.
pub fn image() -> Region {
    Region { start: &raw const IMAGE_START as u64, end: &raw const IMAGE_END as u64 }
}

/// The number of each CPU: GS points to a CPU's own.
#[unsafe(export_name = "numbers")]
static NUMBERS: [AtomicU64; MAX_CPUS] = {
    let mut numbers = [const { AtomicU64::new(0) }; MAX_CPUS];
    let mut n = 0;
    while n < MAX_CPUS {
        numbers[n] = AtomicU64::new(n as u64);
        n += 1;
    }
    numbers
};

/// Which page of the first MiB other CPUs start in.
const PAGE: u64 = 0x8;
/// How many CPUs have arrived, the boot CPU not counted.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// Starts the CPU whose number is `cpu`, and whose local APIC's is `apic`. Returns when it has arrived.
pub(crate) fn start(cpu: usize, apic: u64) {
    let from = &raw const OTHER;
    let len = &raw const OTHER_END as usize - from as usize;
    let words = &raw const OTHER_WORDS as usize - from as usize;
    let to = core::ptr::with_exposed_provenance_mut::<u8>((PAGE << 12) as usize);
    let stack = &raw const STACKS as u64 + STACK_SIZE * (cpu as u64 + 1);
    // SAFETY: memory that nobody else has, and no CPU runs there: each has arrived before the next is started.
    unsafe {
        to.copy_from_nonoverlapping(from, len);
        let words = to.add(words).cast::<u64>();
        words.write_unaligned(&raw const TABLES as u64);
        words.add(1).write_unaligned(stack);
        words.add(2).write_unaligned(secondary as *const () as u64);
        words.add(3).write_unaligned(&raw const NUMBERS[cpu] as u64);
    }
    let before = ARRIVED.load(Acquire);
    const INIT: u32 = 0x4500;
    const START_UP: u32 = 0x4600;
    for command in [INIT, START_UP | PAGE as u32] {
        const ICR: u32 = 0x830;
        // SAFETY: starts a CPU that is not in use.
        unsafe { cpu::wrmsr(ICR, u64::from(apic as u32) << 32 | u64::from(command)) };
    }
    cpu::wait_until("a vCPU to start", || ARRIVED.load(Acquire) > before);
}

/// Where the assembly goes with the boot CPU.
#[unsafe(no_mangle)]
extern "C" fn boot(information: u64) -> ! {
    exception::init();
    exception::load();
    // SAFETY: what the payload was entered with; only this CPU runs.
    unsafe { machine::init(information) };
    report::run_all()
}

/// Where the assembly goes with another one.
extern "C" fn secondary() -> ! {
    exception::load();
    ARRIVED.fetch_add(1, Release);
    smp::work_on()
}
