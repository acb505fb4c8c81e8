//! Single instructions: ports, model-specific registers, control registers, waiting.

#[cfg(not(target_os = "none"))]
use crate::effect::{self, Effect};

/// Reads a model-specific register.
///
/// The CPU must have it: otherwise it raises a general-protection exception, which is a bug.
pub fn rdmsr(msr: u32) -> u64 {
    #[cfg(target_os = "none")]
    // SAFETY: reading the registers that this crate names has no effect on memory.
    unsafe {
        let (low, high): (u32, u32);
        core::arch::asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags));
        u64::from(high) << 32 | u64::from(low)
    }
    #[cfg(not(target_os = "none"))]
    effect::msr(msr)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must be one that the CPU takes, and must leave what Rust rests on (paging, the segments' bases) as it is.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise. Not `nomem`: some writes order accesses, or send interrupts to who reads memory.
    unsafe {
        core::arch::asm!(
            "wrmsr",
            in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_os = "none"))]
    effect::record(Effect::Wrmsr(msr, value));
}

/// The bytes that one port access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// One.
    Byte,
    /// Two.
    Word,
    /// Four.
    Long,
}

impl Width {
    /// Returns the number of bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Long => 4,
        }
    }
}

/// Writes to a port.
///
/// # Safety
/// The device behind the port must be the caller's, and must write no memory that is somebody else's.
pub unsafe fn out(port: u16, width: Width, value: u32) {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            Width::Byte => {
                core::arch::asm!("out dx, al", in("dx") port, in("al") value as u8, options(nostack, preserves_flags));
            }
            Width::Word => {
                core::arch::asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nostack, preserves_flags));
            }
            Width::Long => {
                core::arch::asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
            }
        }
    }
    #[cfg(not(target_os = "none"))]
    effect::record(Effect::Out(port, width.bytes(), value));
}

/// Reads from a port; on the host, all ones, as where there is no device.
///
/// # Safety
/// The device behind the port must be the caller's.
pub unsafe fn inp(port: u16, width: Width) -> u32 {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            Width::Byte => {
                let value: u8;
                core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags));
                u32::from(value)
            }
            Width::Word => {
                let value: u16;
                core::arch::asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags));
                u32::from(value)
            }
            Width::Long => {
                let value: u32;
                core::arch::asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
                value
            }
        }
    }
    #[cfg(not(target_os = "none"))]
    {
        let _ = port;
        u32::MAX >> (32 - 8 * u32::from(width.bytes()))
    }
}

/// Has every earlier store seen by all, and waits with what follows.
pub(crate) fn mfence_lfence() {
    #[cfg(target_os = "none")]
    // SAFETY: barriers.
    unsafe {
        core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    effect::record(Effect::Fence);
}

/// Stops until an interrupt comes that is not masked: with interrupts off, a non-maskable one.
pub fn hlt() {
    #[cfg(target_os = "none")]
    // SAFETY: stops this CPU for a while. Not `nomem`: others write meanwhile what is looked at next.
    unsafe {
        core::arch::asm!("hlt", options(nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    effect::record(Effect::Hlt);
}

/// Writes this CPU's caches back, and empties them.
pub fn wbinvd() {
    #[cfg(target_os = "none")]
    // SAFETY: no memory changes.
    unsafe {
        core::arch::asm!("wbinvd", options(nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    effect::record(Effect::Wbinvd);
}

/// Reads the time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Takes a non-maskable interrupt that the CPU has held back since a VM exit that one caused: the handler runs, and its
/// IRET lets the next one in ("31.7.1.2 Resuming Guest Software after Handling an Exception" speaks of the guest's; the
/// host's are blocked by the exit itself, 27.5.5).
pub fn take_nmi() {
    #[cfg(target_os = "none")]
    // SAFETY: the handler of vector 2 returns, and changes no register and no memory but this CPU's own counters.
    unsafe {
        core::arch::asm!("int 2");
    }
}

/// Lets non-maskable interrupts in, where none is being handled: by an IRET to the next instruction. A CPU that waited for a
/// start-up may hold them back.
pub fn let_nmis_in() {
    #[cfg(target_os = "none")]
    // SAFETY: returns to where it is, with the same stack, segments and flags.
    unsafe {
        core::arch::asm!(
            "mov {stack}, rsp",
            "mov {segment:e}, ss",
            "push {segment}",
            "push {stack}",
            "pushfq",
            "mov {segment:e}, cs",
            "push {segment}",
            "lea {stack}, [rip + 2f]",
            "push {stack}",
            "iretq",
            "2:",
            stack = out(reg) _,
            segment = out(reg) _,
        );
    }
}

/// The registers that say how this CPU translates, which another CPU is to be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Controls {
    /// CR0.
    pub cr0: u64,
    /// CR3: the root of the tables.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

impl Controls {
    /// Reads this CPU's.
    pub fn of_this_cpu() -> Self {
        #[cfg(target_os = "none")]
        {
            let (cr0, cr3, cr4): (u64, u64, u64);
            // SAFETY: reads registers.
            unsafe {
                core::arch::asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags));
                core::arch::asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags));
                core::arch::asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
            }
            Self { cr0, cr3, cr4, efer: rdmsr(x86::msr::IA32_EFER) }
        }
        #[cfg(not(target_os = "none"))]
        Self::default()
    }
}

/// Writes CR0.
///
/// # Safety
/// Paging and protection stay on.
#[cfg(target_os = "none")]
pub(crate) unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { core::arch::asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Writes CR4.
///
/// # Safety
/// Physical-address extension stays on, and every bit that is set is one that the CPU has.
#[cfg(target_os = "none")]
pub(crate) unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { core::arch::asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Waits until `word` is not `seen` any more, or an interrupt comes that is not masked; may return early.
pub fn wait_for_change(word: &core::sync::atomic::AtomicU32, seen: u32) {
    use core::sync::atomic::Ordering::Relaxed;
    let has_monitor = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|info| info.has_monitor_mwait());
    if !has_monitor {
        core::hint::spin_loop();
        return;
    }
    #[cfg(target_os = "none")]
    // SAFETY: arms a watch on the word's line, and stops this CPU until it is written. What is written between the two
    // instructions ends the wait at once.
    unsafe {
        core::arch::asm!("monitor", in("rax") word.as_ptr(), in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
        if word.load(Relaxed) == seen {
            core::arch::asm!("mwait", in("eax") 0, in("ecx") 0, options(nostack, preserves_flags));
        }
    }
    #[cfg(not(target_os = "none"))]
    if word.load(Relaxed) == seen {
        effect::record(Effect::Hlt);
    }
}

/// Sets XCR0, which says what of a guest's extended state there is.
///
/// # Safety
/// CR4.OSXSAVE is set, and the value is one that the CPU takes. The hypervisor uses none of that state.
pub unsafe fn xsetbv(value: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "xsetbv",
            in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_os = "none"))]
    let _ = value;
}
