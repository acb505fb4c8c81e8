//! Exceptions that the hypervisor itself causes: each is a bug. And the interrupt-descriptor table.

use core::fmt;

/// The registers at an exception, as the stubs store them.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Frame {
    /// CR2: the address of a page fault.
    pub cr2: u64,
    /// R15 to R8, in this order.
    pub r15_to_r8: [u64; 8],
    /// RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    pub rdi_to_rax: [u64; 7],
    /// The vector.
    pub vector: u64,
    /// The error code; 0 where the vector has none.
    pub error: u64,
    /// The instruction.
    pub rip: u64,
    /// The code segment.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack pointer at the exception.
    pub rsp: u64,
    /// The stack segment.
    pub ss: u64,
}

impl Frame {
    /// Returns the frame pointer at the exception.
    pub const fn rbp(&self) -> u64 {
        self.rdi_to_rax[2]
    }
}

/// An exception in words: a vector and an error code.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// The vector.
    pub vector: u64,
    /// The error code.
    pub error: u64,
}

/// The names of vectors (SDM 3A, table 7-1).
const NAMES: [(u64, &str); 18] = [
    (0, "divide error"),
    (1, "debug exception"),
    (2, "non-maskable interrupt"),
    (3, "breakpoint"),
    (4, "overflow"),
    (5, "bound exceeded"),
    (6, "undefined instruction"),
    (7, "no FPU"),
    (8, "double fault"),
    (10, "invalid TSS"),
    (11, "segment not present"),
    (12, "stack fault"),
    (13, "general protection"),
    (14, "page fault"),
    (16, "FPU error"),
    (17, "alignment check"),
    (18, "machine check"),
    (19, "SIMD error"),
];

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, error } = *self;
        match NAMES.iter().find(|(number, _)| *number == vector) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "vector {vector}")?,
        }
        match vector {
            // SDM 3A, 5.12: the error code of page faults.
            14 => {
                let what = match error {
                    error if error & 1 << 4 != 0 => "a fetch",
                    error if error & 1 << 1 != 0 => "a write",
                    _ => "a read",
                };
                let why = match error {
                    error if error & 1 << 3 != 0 => "a reserved bit is set",
                    error if error & 1 != 0 => "no right",
                    _ => "not mapped",
                };
                write!(f, ": {why}, on {what}")
            }
            8 | 10..=13 | 17 if error != 0 => write!(f, ", error {error:#x}"),
            _ => Ok(()),
        }
    }
}

#[cfg(target_os = "none")]
mod target {
    use crate::local::{EMERGENCY_IST, NMI_IST};
    use amd64::VirtAddr;
    use amd64::structures::idt::InterruptDescriptorTable;
    use core::cell::UnsafeCell;

    struct Table(UnsafeCell<InterruptDescriptorTable>);

    // SAFETY: written by the boot CPU alone, before there are others.
    unsafe impl Sync for Table {}

    static TABLE: Table = Table(UnsafeCell::new(InterruptDescriptorTable::new()));

    unsafe extern "C" {
        static mz_vectors: u8;
        safe fn mz_nmi_entry();
    }

    /// Fills the table that all CPUs have.
    ///
    /// # Safety
    /// Called once, by the boot CPU, before any CPU loads the table.
    pub unsafe fn fill() {
        // SAFETY: the caller's promise.
        let table = unsafe { &mut *TABLE.0.get() };
        let stub = |vector: u64| VirtAddr::new(&raw const mz_vectors as u64 + 16 * vector);
        let nmi = VirtAddr::new(mz_nmi_entry as *const () as u64);
        // SAFETY: the stubs are made for these vectors and take what the CPU pushes; the stacks are in every slot's task
        // segment.
        unsafe {
            macro_rules! bug {
                ($($vector:literal $field:ident),+) => {
                    $(table.$field.set_handler_addr(stub($vector)).set_stack_index(EMERGENCY_IST);)+
                };
            }
            bug!(
                0 divide_error, 1 debug, 3 breakpoint, 4 overflow, 5 bound_range_exceeded, 6 invalid_opcode,
                7 device_not_available, 8 double_fault, 10 invalid_tss, 11 segment_not_present,
                12 stack_segment_fault, 13 general_protection_fault, 14 page_fault, 16 x87_floating_point,
                17 alignment_check, 18 machine_check, 19 simd_floating_point, 20 virtualization
            );
            table.non_maskable_interrupt.set_handler_addr(nmi).set_stack_index(NMI_IST);
        }
    }

    /// Loads it on the CPU that runs this.
    pub(crate) fn load() {
        // SAFETY: it is there for ever; filled before.
        unsafe { (*TABLE.0.get()).load_unsafe() };
    }

    /// Returns where the table is.
    pub fn table() -> u64 {
        TABLE.0.get() as u64
    }
}

#[cfg(target_os = "none")]
pub(crate) use target::load;
#[cfg(target_os = "none")]
pub use target::{fill, table};

/// Returns where the table is; nowhere on the host.
#[cfg(not(target_os = "none"))]
pub fn table() -> u64 {
    0
}

const _: () = assert!(size_of::<Frame>() == 23 * 8);

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn exceptions_are_put_in_words() {
        let words = |vector, error| format!("{}", Words { vector, error });
        assert_eq!(words(6, 0), "undefined instruction");
        assert_eq!(words(13, 0x18), "general protection, error 0x18");
        assert_eq!(words(14, 0), "page fault: not mapped, on a read");
        assert_eq!(words(14, 0b11), "page fault: no right, on a write");
        assert_eq!(words(14, 0b1_0001), "page fault: no right, on a fetch");
        assert_eq!(words(14, 0b1001), "page fault: a reserved bit is set, on a read");
        assert_eq!(words(25, 0), "vector 25");
    }
}
