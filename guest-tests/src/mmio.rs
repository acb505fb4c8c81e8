//! Accesses to device registers by single plain instructions.
//!
//! The compiler may turn a volatile access into one with writeback, for which the hardware tells the hypervisor neither
//! register nor size (ESR_EL2.ISV = 0). Written out, the instruction is the one that every driver uses.

use core::arch::asm;

macro_rules! accessors {
    ($($read:ident, $write:ident, $value:ty, $load:literal, $store:literal, $reg:literal;)*) => {$(
        #[doc = concat!("Reads a register of ", stringify!($value), " at `address`, in a region that the device tree lists.")]
        pub fn $read(address: u64) -> $value {
            let value: $value;
            // SAFETY: a read of a device register, or of nothing at all, leaves our memory as it is.
            unsafe {
                asm!(concat!($load, " {value:", $reg, "}, [{address}]"),
                    value = out(reg) value, address = in(reg) address, options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes a register of ", stringify!($value), " at `address`, in a region that the device tree lists.")]
        pub fn $write(address: u64, value: $value) {
            // SAFETY: no device of this machine writes to memory by itself, so a register has no say in ours.
            unsafe {
                asm!(concat!($store, " {value:", $reg, "}, [{address}]"),
                    value = in(reg) value, address = in(reg) address, options(nostack, preserves_flags));
            }
        }
    )*};
}

accessors! {
    read8, write8, u8, "ldrb", "strb", "w";
    read16, write16, u16, "ldrh", "strh", "w";
    read32, write32, u32, "ldr", "str", "w";
    read64, write64, u64, "ldr", "str", "x";
}
