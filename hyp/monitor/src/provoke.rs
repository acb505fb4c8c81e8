//! Bugs on demand, so that a test sees what the report of one looks like: `provoke=…` on the command line.

use core::hint::black_box;
use types::CpuId;

/// A bug to provoke: on the CPU with the highest number, instead of running guests, unless it is a guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provoke {
    /// A Rust panic.
    Panic,
    /// Recursion without end.
    Overflow,
    /// A load from address 0.
    Null,
    /// A store to the hypervisor's own code.
    WriteCode,
    /// A jump to the hypervisor's own data.
    ExecuteData,
    /// An instruction that is none.
    Undefined,
    /// An entry of a guest's tables that is a misconfiguration.
    #[cfg(target_arch = "x86_64")]
    Entry,
    /// A state of a guest's that the CPU refuses to enter.
    #[cfg(target_arch = "x86_64")]
    State,
}

impl Provoke {
    /// Reads the name that the command line gives.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "panic" => Self::Panic,
            "overflow" => Self::Overflow,
            "null" => Self::Null,
            "write-code" => Self::WriteCode,
            "execute-data" => Self::ExecuteData,
            "undefined" => Self::Undefined,
            #[cfg(target_arch = "x86_64")]
            "entry" => Self::Entry,
            #[cfg(target_arch = "x86_64")]
            "state" => Self::State,
            _ => return None,
        })
    }

    /// Tells whether it takes a guest, at which it is provoked when that starts.
    pub(crate) const fn is_of_a_guest(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Self::Entry | Self::State);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Provokes what the command line asks for, on the CPU with the highest number of `cpus`; the others then wait for the end. What
/// takes a guest is for later.
pub(crate) fn if_asked(asked: Option<Provoke>, cpus: usize, cpu: CpuId) {
    if let Some(bug) = asked.filter(|bug| !bug.is_of_a_guest()) {
        if cpu.index() == cpus - 1 {
            provoke(bug);
        }
        crate::report::park();
    }
}

#[inline(never)]
fn provoke(bug: Provoke) {
    match bug {
        Provoke::Panic => panic!("provoked"),
        Provoke::Overflow => {
            black_box(deeper(&[1; 32]));
        }
        Provoke::Null => {
            // SAFETY: not safe: the fault is what is wanted.
            black_box(unsafe { black_box(core::ptr::null::<u64>()).read_volatile() });
        }
        Provoke::WriteCode => {
            let code = provoke as *const () as *mut u32;
            // SAFETY: not safe: the fault is what is wanted.
            unsafe { black_box(code).write_volatile(0) };
        }
        Provoke::ExecuteData => {
            let data: [u32; 1] = [0xd65f_03c0]; // RET
            // SAFETY: not safe: the fault is what is wanted.
            let call: fn() = unsafe { core::mem::transmute(black_box(&raw const data)) };
            call();
        }
        Provoke::Undefined => {
            #[cfg(target_os = "none")]
            // SAFETY: not safe: the exception is what is wanted.
            unsafe {
                #[cfg(not(pc))]
                core::arch::asm!("udf #0");
                #[cfg(pc)]
                core::arch::asm!("ud2");
            }
        }
        #[cfg(target_arch = "x86_64")]
        Provoke::Entry | Provoke::State => {}
    }
}

#[inline(never)]
fn deeper(above: &[u64; 32]) -> u64 {
    let here = black_box(above.map(|v| v + 1));
    if here[0] == 0 { 0 } else { deeper(&here) + here[black_box(3)] }
}
