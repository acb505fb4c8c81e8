//! A vCPU's local APIC on x86-64, as far as a machine without devices needs one: a timer, and the delivery of its interrupt
//! (SDM 3A, 12.5.4.1 "TSC-Deadline Mode", 12.8, 12.12).
//!
//! ```text
//! idle ──(deadline written)──▶ armed ──(it is reached)──▶ pending ──(the guest takes it)──▶ in service ──(EOI)──▶ idle
//! ```
//!
//! In x2APIC mode, by model-specific registers. One interrupt at a time is kept pending, and one is in service: there is one
//! source. Whoever runs the vCPU asks what is due before each entry.

use types::Ticks;

/// The registers, by their numbers.
mod register {
    pub(super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(super) const VERSION: u32 = 0x803;
    pub(super) const TASK_PRIORITY: u32 = 0x808;
    pub(super) const END_OF_INTERRUPT: u32 = 0x80b;
    pub(super) const SPURIOUS: u32 = 0x80f;
    pub(super) const TIMER: u32 = 0x832;
}

/// Version 0x14, and one entry of the local vector table.
const VERSION: u64 = 0x14;
/// The timer's entry: its vector, whether it is masked, its mode.
const VECTOR: u64 = 0xff;
const MASKED: u64 = 1 << 16;
const MODE: u64 = 0b11 << 17;
const DEADLINE_MODE: u64 = 0b10 << 17;
/// The APIC is on; and the spurious vector.
const ENABLED: u64 = 1 << 8;
/// The lowest vector that is no exception's.
const FIRST_VECTOR: u64 = 16;

/// A value that a register does not take, or a register that there is not: a general-protection exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// A local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalApic {
    timer: u64,
    spurious: u64,
    priority: u64,
    /// The count at which the timer fires; 0 where it is not armed.
    deadline: Ticks,
    is_pending: bool,
    is_in_service: bool,
}

impl Default for LocalApic {
    /// As after a reset: off, its timer masked.
    fn default() -> Self {
        Self {
            timer: MASKED,
            spurious: VECTOR,
            priority: 0,
            deadline: 0,
            is_pending: false,
            is_in_service: false,
        }
    }
}

impl LocalApic {
    /// Reads a register.
    ///
    /// # Errors
    /// [`Refused`] where it is none of these, or can only be written.
    pub fn read(&self, register: u32) -> Result<u64, Refused> {
        match register {
            register::TSC_DEADLINE => Ok(self.deadline),
            register::VERSION => Ok(VERSION),
            register::TASK_PRIORITY => Ok(self.priority),
            register::SPURIOUS => Ok(self.spurious),
            register::TIMER => Ok(self.timer),
            _ => Err(Refused),
        }
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`Refused`] where it is none of these, can only be read, or does not take the value: reserved bits, another mode of the
    /// timer.
    pub fn write(&mut self, register: u32, value: u64) -> Result<(), Refused> {
        let takes = |bits: u64| if value & !bits == 0 { Ok(()) } else { Err(Refused) };
        match register {
            // In another mode the write is ignored.
            register::TSC_DEADLINE if self.timer & MODE == DEADLINE_MODE => self.deadline = value,
            register::TSC_DEADLINE => {}
            register::TASK_PRIORITY => {
                takes(0xff)?;
                self.priority = value;
            }
            register::END_OF_INTERRUPT => {
                takes(0)?;
                self.is_in_service = false;
            }
            register::SPURIOUS => {
                takes(VECTOR | ENABLED)?;
                self.spurious = value;
                if value & ENABLED == 0 {
                    self.timer |= MASKED; // 12.4.7.2
                }
            }
            register::TIMER => {
                takes(VECTOR | MASKED | MODE)?;
                if ![0, DEADLINE_MODE].contains(&(value & MODE)) {
                    return Err(Refused);
                }
                if value & MODE != self.timer & MODE {
                    self.deadline = 0;
                }
                self.timer = if self.spurious & ENABLED == 0 { value | MASKED } else { value };
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Returns when the timer fires, where it is armed.
    pub fn deadline(&self) -> Option<Ticks> {
        (self.deadline != 0).then_some(self.deadline)
    }

    /// Lets the time be `now`. Tells whether an interrupt waits to be taken.
    pub fn is_due(&mut self, now: Ticks) -> bool {
        if self.deadline != 0 && now >= self.deadline {
            self.deadline = 0;
            self.is_pending |= self.timer & MASKED == 0 && self.timer & VECTOR >= FIRST_VECTOR;
        }
        // The class of the vector must be above the task's, and above that of what is in service, which is the same.
        self.is_pending && !self.is_in_service && self.timer >> 4 & 0xf > self.priority >> 4
    }

    /// Takes the interrupt that is due: the guest is about to have it. Returns its vector.
    pub fn take(&mut self) -> u8 {
        self.is_pending = false;
        self.is_in_service = true;
        (self.timer & VECTOR) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on() -> LocalApic {
        let mut apic = LocalApic::default();
        apic.write(register::SPURIOUS, ENABLED | 0xff).expect("it takes that");
        apic.write(register::TIMER, DEADLINE_MODE | 0x40).expect("likewise");
        apic
    }

    #[test]
    fn a_deadline_fires_once_and_not_before() {
        let mut apic = on();
        assert_eq!((apic.deadline(), apic.is_due(u64::MAX)), (None, false));
        apic.write(register::TSC_DEADLINE, 100).expect("it takes that");
        assert_eq!((apic.deadline(), apic.is_due(99)), (Some(100), false));
        assert!(apic.is_due(100) && apic.is_due(101), "it stays until it is taken");
        assert_eq!((apic.take(), apic.deadline(), apic.is_due(102)), (0x40, None, false));
    }

    #[test]
    fn while_one_is_in_service_the_next_waits() {
        let mut apic = on();
        apic.write(register::TSC_DEADLINE, 1).expect("it takes that");
        assert!(apic.is_due(1));
        apic.take();
        apic.write(register::TSC_DEADLINE, 2).expect("it takes that");
        assert!(!apic.is_due(3));
        apic.write(register::END_OF_INTERRUPT, 0).expect("it takes that");
        assert!(apic.is_due(3));
    }

    #[test]
    fn what_is_masked_off_or_of_a_lower_class_does_not_come() {
        let mut masked = on();
        masked.write(register::TIMER, DEADLINE_MODE | MASKED | 0x40).expect("it takes that");
        masked.write(register::TSC_DEADLINE, 1).expect("it takes that");
        assert!(!masked.is_due(2));
        assert_eq!(masked.deadline(), None, "it has fired");
        let mut off = on();
        off.write(register::SPURIOUS, 0xff).expect("it takes that");
        assert_eq!(off.read(register::TIMER), Ok(DEADLINE_MODE | MASKED | 0x40));
        let mut busy = on();
        busy.write(register::TASK_PRIORITY, 0x40).expect("it takes that");
        busy.write(register::TSC_DEADLINE, 1).expect("it takes that");
        assert!(!busy.is_due(2));
        busy.write(register::TASK_PRIORITY, 0x3f).expect("it takes that");
        assert!(busy.is_due(2));
    }

    #[test]
    fn another_mode_and_zero_disarm() {
        let mut apic = on();
        apic.write(register::TSC_DEADLINE, 5).expect("it takes that");
        apic.write(register::TSC_DEADLINE, 0).expect("it takes that");
        assert_eq!(apic.deadline(), None);
        apic.write(register::TSC_DEADLINE, 5).expect("it takes that");
        apic.write(register::TIMER, 0x40).expect("it takes that");
        assert_eq!(apic.deadline(), None);
        apic.write(register::TSC_DEADLINE, 5).expect("it is ignored");
        assert_eq!(apic.deadline(), None);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let mut apic = on();
        for (register, value) in [
            (register::TIMER, 1 << 12),
            (register::TIMER, 0b01 << 17),
            (register::END_OF_INTERRUPT, 1),
            (register::VERSION, 0),
            (register::SPURIOUS, 1 << 9),
            (0x838, 1),
            (0x801, 0),
        ] {
            assert_eq!(apic.write(register, value), Err(Refused), "{register:#x} = {value:#x}");
        }
        assert_eq!(apic.read(register::END_OF_INTERRUPT), Err(Refused));
        assert_eq!(apic.read(0x802), Err(Refused), "its number is the CPU's, not its own");
    }
}
