//! ESR_EL2 in words (DDI 0487, D24.2 "ESR_EL2"), for reports of exceptions that the hypervisor itself has caused.

use core::fmt;

/// Returns what vector number `vector` is for.
pub const fn vector(vector: u64) -> &'static str {
    match vector % 4 {
        0 => "exception",
        1 => "unexpected IRQ",
        2 => "unexpected FIQ",
        _ => "SError",
    }
}

/// A syndrome that prints in words.
#[derive(Clone, Copy, Debug)]
pub struct Words(pub u64);

impl fmt::Display for Words {
    #[inline] // made small, in the monitor
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.0 >> 26 & 0x3f;
        match class {
            0x00 => write!(f, "unknown or undefined instruction"),
            0x0e => write!(f, "illegal execution state"),
            0x15 => write!(f, "SVC {:#x}", self.0 & 0xffff),
            0x16 => write!(f, "HVC {:#x}", self.0 & 0xffff),
            0x17 => write!(f, "SMC {:#x}", self.0 & 0xffff),
            0x07 => write!(f, "floating point, which is off"),
            0x18 => write!(f, "trapped system instruction"),
            0x20 => write!(f, "instruction abort from a lower level: {}", status(self.0)),
            0x21 => write!(f, "instruction abort: {}", status(self.0)),
            0x22 => write!(f, "misaligned program counter"),
            0x24 => write!(f, "data abort from a lower level: {} on a {}", status(self.0), direction(self.0)),
            0x25 => write!(f, "data abort: {} on a {}", status(self.0), direction(self.0)),
            0x26 => write!(f, "misaligned stack pointer"),
            0x2f => write!(f, "SError"),
            0x30..=0x35 => write!(f, "debug exception"),
            0x3c => write!(f, "BRK {:#x}", self.0 & 0xffff),
            _ => write!(f, "class {class:#x}"),
        }
    }
}

/// WnR, and CM, for which WnR says nothing.
const fn direction(esr: u64) -> &'static str {
    if esr >> 8 & 1 != 0 {
        "cache maintenance"
    } else if esr >> 6 & 1 != 0 {
        "write"
    } else {
        "read"
    }
}

/// DFSC and IFSC, which are alike.
const fn status(esr: u64) -> &'static str {
    match esr & 0x3f {
        0x00 => "address size fault, level 0",
        0x01 => "address size fault, level 1",
        0x02 => "address size fault, level 2",
        0x03 => "address size fault, level 3",
        0x04 => "translation fault, level 0",
        0x05 => "translation fault, level 1",
        0x06 => "translation fault, level 2",
        0x07 => "translation fault, level 3",
        0x08 => "access flag fault, level 0",
        0x09 => "access flag fault, level 1",
        0x0a => "access flag fault, level 2",
        0x0b => "access flag fault, level 3",
        0x0c => "permission fault, level 0",
        0x0d => "permission fault, level 1",
        0x0e => "permission fault, level 2",
        0x0f => "permission fault, level 3",
        0x10 => "synchronous external abort",
        0x14 => "synchronous external abort on a table walk, level 0",
        0x15 => "synchronous external abort on a table walk, level 1",
        0x16 => "synchronous external abort on a table walk, level 2",
        0x17 => "synchronous external abort on a table walk, level 3",
        0x18 => "parity or ECC error",
        0x21 => "alignment fault",
        0x30 => "TLB conflict",
        0x34 | 0x35 => "unsupported exclusive, atomic or lockdown",
        _ => "fault of another kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn syndromes_are_told_in_words() {
        for (esr, words) in [
            (0x9600_0047, "data abort: translation fault, level 3 on a write"),
            (0x9600_000f, "data abort: permission fault, level 3 on a read"),
            (0x8600_000e, "instruction abort: permission fault, level 2"),
            (0xf200_0001, "BRK 0x1"),
            (0x0200_0000, "unknown or undefined instruction"),
            (0xac00_0000, "class 0x2b"),
        ] {
            assert_eq!(format!("{}", Words(esr)), words);
        }
    }
}
