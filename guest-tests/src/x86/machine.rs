//! What PVH's start information and CPUID say about a PC's virtual machine (Xen, public/arch-x86/hvm/start_info.h).

use super::{Host, MACHINE, argument, number};
use crate::cpu::MAX_CPUS;
use crate::list::List;
use crate::region::Region;
use crate::start;
use core::ffi::CStr;

/// The machine that the payload runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The start information itself.
    pub information: Region,
    /// The initrd, if any.
    pub initrd: Region,
    /// Memory, the main one first.
    pub ram: List<Region, 8>,
    /// The numbers of the CPUs' local APICs, that of the boot CPU first.
    pub cpus: List<u64, MAX_CPUS>,
    /// The boot arguments.
    pub arguments: &'static str,
    /// Where this run's random numbers start (`seed=`; 1 where not given).
    pub seed: u64,
    /// What is under the payload: always a hypervisor.
    pub host: Host,
}

/// What the first word of the information is.
const MAGIC: u32 = 0x336e_c578;
/// The leaf of CPUID that says how many CPUs the machine has.
const COUNT: u32 = 0x4000_0001;
/// The first addresses, where other CPUs start and firmware's tables would be: not for tests.
const LOW: Region = Region { start: 0, end: 2 << 20 };

/// Reads the information.
///
/// # Panics
/// Where it is none.
///
/// # Safety
/// `at` must be what the payload was entered with. Only the boot CPU may run.
pub(crate) unsafe fn init(at: u64) {
    MACHINE.get_or_make(|| {
        // SAFETY: the boot protocol says that the information is there, which nobody else uses.
        unsafe { read(at) }
    });
}

/// # Safety
/// As [`init`].
unsafe fn read(at: u64) -> Machine {
    // SAFETY: the caller's promise; all that the information points to is mapped, and stays.
    let word = |at: u64| unsafe { (at as *const u32).read_unaligned() };
    // SAFETY: likewise.
    let long = |at: u64| unsafe { (at as *const u64).read_unaligned() };
    assert!(word(at) == MAGIC, "EBX points to start information");
    let (modules, cmdline, memory) = (long(at + 16), long(at + 24), long(at + 40));
    let initrd = match word(at + 12) {
        0 => Region::default(),
        _ => Region::new(long(modules), long(modules + 8)),
    };
    let mut ram = List::new();
    for entry in (0..u64::from(word(at + 48))).map(|n| memory + 24 * n) {
        let is_ram = word(entry + 16) == 1;
        assert!(!is_ram || ram.push(Region::new(long(entry), long(entry + 8))), "too many regions of memory");
    }
    // SAFETY: as above; it ends with a zero.
    let arguments = unsafe { CStr::from_ptr(cmdline as *const _) }.to_str().unwrap_or("");
    let mut cpus = List::new();
    let count = core::arch::x86_64::__cpuid(COUNT).eax.max(1);
    let _ = (0..u64::from(count)).all(|id| cpus.push(id));
    Machine {
        information: Region { start: at, end: cmdline + arguments.len() as u64 + 1 },
        initrd,
        ram,
        cpus,
        arguments,
        seed: argument(arguments, "seed").and_then(number).unwrap_or(1),
        host: Host::Hypervisor,
    }
}

impl Machine {
    /// Returns what is the payload's own, or was given to it.
    pub(super) fn taken(&self) -> [Region; 4] {
        [start::image(), self.information, self.initrd, LOW]
    }
}
