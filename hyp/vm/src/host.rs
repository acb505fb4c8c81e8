//! What a virtual machine needs of the machine below it, besides a CPU.

use core::fmt;
use types::{Ipa, Range};

/// A virtual machine's memory, as the loader sees it.
///
/// What is written is visible to the guest with its caches off and to its instruction fetches when the call returns.
pub trait Ram {
    /// Copies `bytes` to guest memory from `at` on, putting frames behind it where there are none.
    fn write(&self, at: Ipa, bytes: &[u8]) -> Result<(), RamError>;

    /// Fills `range` with zeroes, putting frames behind it where there are none.
    fn zero(&self, range: Range) -> Result<(), RamError>;
}

/// Why guest memory could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RamError {
    /// The address is not memory of this machine.
    NotRam {
        /// The first such address.
        at: Ipa,
    },
    /// The machine has no frame left to put there.
    NoFrames {
        /// The address that has none.
        at: Ipa,
    },
    /// Somebody else is changing the mapping at this address; it may be written later.
    Busy {
        /// The address.
        at: Ipa,
    },
}

impl fmt::Display for RamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRam { at } => write!(f, "{at} is not its memory"),
            Self::NoFrames { at } => write!(f, "no physical memory is left for {at}"),
            Self::Busy { at } => write!(f, "the mapping of {at} is being changed"),
        }
    }
}

/// Where a serial port's output goes.
pub trait Console: Sync {
    /// Takes one byte. Does not wait longer than a byte takes to be sent.
    fn put(&self, byte: u8);
}

impl<T: Console + ?Sized> Console for &T {
    fn put(&self, byte: u8) {
        T::put(self, byte);
    }
}

/// The level of an interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// Not asserted.
    Low,
    /// Asserted.
    High,
}

/// One of the two timers that a guest has to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// The virtual timer (CNTV_*_EL0).
    Virtual,
    /// The physical timer (CNTP_*_EL0).
    Physical,
}

/// The virtual CPU interface of the CPU that this code runs on (IHI 0069, chapter 6): its list registers, their control
/// register, and the timers whose interrupts are linked to them.
pub trait ListRegisters {
    /// Returns the number of list registers, 1 to 16 (ICH_VTR_EL2.ListRegs + 1).
    fn count(&self) -> usize;

    /// Reads ICH_LR`index`_EL2.
    fn read(&self, index: usize) -> u64;

    /// Writes ICH_LR`index`_EL2.
    fn write(&mut self, index: usize, value: u64);

    /// Writes ICH_HCR_EL2.
    fn control(&mut self, hcr: u64);

    /// Tells whether `timer` asserts its interrupt now: enabled, not masked, condition met (CNTx_CTL_EL0 = 0b101).
    fn line(&self, timer: Timer) -> Line;

    /// Ends the active state that `timer`'s physical interrupt has on this CPU since it was acknowledged, so that it
    /// can fire again (ICC_DIR_EL1).
    fn deactivate(&mut self, timer: Timer);

    /// Makes `timer`'s physical interrupt active on this CPU, as if it had been acknowledged, so that it does not fire
    /// (GICR_ISACTIVER0). The timer is off, and the interrupt is not active.
    fn activate(&mut self, timer: Timer);
}
