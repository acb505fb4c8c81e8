//! Accesses to registers by single plain moves: those that are carried out for a guest where nothing is behind the address.

use core::arch::asm;

macro_rules! accessors {
    ($($read:ident, $write:ident, $value:ty, $reg:literal;)*) => {$(
        #[doc = concat!("Reads a register of ", stringify!($value), " at `address`.")]
        pub fn $read(address: u64) -> $value {
            let value: $value;
            // SAFETY: a read of a register, or of nothing at all, leaves our memory as it is.
            unsafe {
                asm!(concat!("mov {value:", $reg, "}, [{address}]"),
                    value = out(reg) value, address = in(reg) address, options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes a register of ", stringify!($value), " at `address`.")]
        pub fn $write(address: u64, value: $value) {
            // SAFETY: what has registers writes to memory only as its calls say, and the caller makes these.
            unsafe {
                asm!(concat!("mov [{address}], {value:", $reg, "}"),
                    value = in(reg) value, address = in(reg) address, options(nostack, preserves_flags));
            }
        }
    )*};
}

accessors! {
    read32, write32, u32, "e";
    read64, write64, u64, "r";
}
