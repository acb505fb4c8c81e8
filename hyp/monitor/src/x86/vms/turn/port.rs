//! Ports: a debug console for guests that have none of the machine's; and what of the machine's own is not left to the guest that
//! has it.
//!
//! A PC is reset by its keyboard controller, and by the system control port. Both may be an INIT to the CPUs, as on the first of
//! these machines, and not a reset. A CPU in the hypervisor does not see that; and firmware that starts after it finds VMX
//! locked, which Bochs's BIOS does not expect: it writes IA32_FEATURE_CONTROL. So the hypervisor makes a reset of both.

use super::super::msr;
use super::Turn;
use vm::Console;
use x86_64::instr::{Width, inp, out};
use x86_64::vmx::exit::{Form, Io, Way};
use x86_64::vmx::vmcs::{Event, Has};

/// The port that takes characters: Bochs's and QEMU's debug console.
const CONSOLE: u16 = 0xe9;
/// Commands to the keyboard controller. Those from 0xf0 on pulse its lines, each whose bit is clear; bit 0 is the reset.
const KEYBOARD: u16 = 0x64;
/// System control port A: bit 0 is the reset.
const CONTROL: u16 = 0x92;

/// Returns the bitmaps of a guest that has the machine: which ports are exits, the lower half's and the upper half's.
pub(in super::super) fn bitmaps() -> [[u8; msr::BITMAP]; 2] {
    let mut low = [0; msr::BITMAP];
    for port in [KEYBOARD, CONTROL].map(usize::from) {
        low[port / 8] |= 1 << (port % 8);
    }
    [low, [0; msr::BITMAP]]
}

/// Tells whether what is written to `port` and those behind it, so many bytes, resets a PC.
fn resets(port: u16, value: u32, bytes: u8) -> bool {
    let ports = (0..u16::from(bytes)).map(|i| port.wrapping_add(i));
    ports.zip(value.to_le_bytes()).any(|(port, byte)| match port {
        KEYBOARD => byte & 0xf1 == 0xf0,
        CONTROL => byte & 1 != 0,
        _ => false,
    })
}

impl Turn {
    /// Carries out a port access: characters go to the console, and elsewhere there is nothing.
    pub(super) fn port(&mut self, io: Io) {
        if io.form == Form::String {
            self.complain(format_args!("moves memory to or from port {:#x}, where nothing is", io.port));
            self.vmcs.inject(Event::GeneralProtection);
            return;
        }
        match io.way {
            _ if self.has == Has::Machine => self.reach_machine(io),
            Way::Out if io.port == CONSOLE => self.guest.outlet.put(self.vmcs.registers.rax as u8),
            Way::Out => {}
            Way::In => {
                let mask = u64::MAX >> (64 - 8 * u32::from(io.bytes));
                // Bochs and QEMU answer the console's own number there; a 32-bit access clears the upper half.
                let value = if io.port == CONSOLE { CONSOLE.into() } else { mask };
                let kept = if io.bytes == 4 { 0 } else { self.vmcs.registers.rax & !mask };
                self.vmcs.registers.rax = kept | value & mask;
            }
        }
        self.vmcs.skip();
    }

    /// Carries out an access to a port of the machine's, for the guest that has it.
    fn reach_machine(&mut self, io: Io) {
        let width = match io.bytes {
            1 => Width::Byte,
            2 => Width::Word,
            _ => Width::Long,
        };
        let rax = &mut self.vmcs.registers.rax;
        match io.way {
            Way::Out if resets(io.port, *rax as u32, io.bytes) => self.reset("has asked for a reset"),
            // SAFETY: the device is the guest's, and this is what the guest does with it.
            Way::Out => unsafe { out(io.port, width, *rax as u32) },
            Way::In => {
                // SAFETY: as above.
                let value = u64::from(unsafe { inp(io.port, width) });
                let mask = u64::MAX >> (64 - 8 * u32::from(io.bytes));
                *rax = if io.bytes == 4 { value } else { *rax & !mask | value & mask };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ports_are_exits() {
        let [low, high] = bitmaps();
        let exits = |port: usize| low[port / 8] & 1 << (port % 8) != 0;
        assert!(exits(0x64) && exits(0x92));
        assert_eq!(low.iter().chain(&high).map(|byte| byte.count_ones()).sum::<u32>(), 2);
    }

    #[test]
    fn a_reset_is_told_from_what_else_is_written_there() {
        for command in [0xfe, 0xf0, 0xfc] {
            assert!(resets(0x64, command, 1), "{command:#x}");
        }
        for command in [0xff, 0xf1, 0xd1, 0xae, 0x60, 0] {
            assert!(!resets(0x64, command, 1), "{command:#x}");
        }
        assert!(resets(0x92, 3, 1) && !resets(0x92, 2, 1) && !resets(0x60, 0xfe, 1));
        // By the upper byte of two; what is beyond the access is nothing.
        assert!(resets(0x63, 0xfe00, 2) && !resets(0x63, 0xfe00, 1) && !resets(0x64, 0xfeff, 2));
    }
}
