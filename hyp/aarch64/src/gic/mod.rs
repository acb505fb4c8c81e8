//! The machine's GICv3 (IHI 0069) or GICv2 ([`GicV2`]), as EL2 uses it: everything in non-secure group 1, one priority, end
//! of interrupt in two steps.
//!
//! The two steps (ICC_CTLR_EL1.EOImode = 1) are what lets a guest have an interrupt of the hardware: the hypervisor
//! drops the priority at once, so that others come through, and the interrupt stays active until the guest's own end of
//! interrupt deactivates it, by the list register's link. Interrupts that the hypervisor keeps are deactivated by
//! itself.
//!
//! Registers in memory are arm-gic's; the system registers are written here, because that crate has no deactivation.

mod distributor;
pub mod interface;
mod redistributor;
pub(crate) mod v2;

pub use distributor::Distributor;
pub use interface::{acknowledge, deactivate, drop_priority, send, send_to_others};
pub use redistributor::{Private, Redistributors};
pub use v2::{GicV2, use_registers as use_v2};

use core::fmt;
use types::Pa;

/// An interrupt's number: 0 to 15 an SGI, 16 to 31 a PPI, 32 to 1019 an SPI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IntId(u32);

impl IntId {
    /// The SGI by which one CPU makes another one leave its guest.
    pub const KICK: Self = Self(0);

    /// Makes a number; `None` where the GIC has no such interrupt (1020 and above are special, or LPIs).
    pub const fn new(number: u32) -> Option<Self> {
        if number < 1020 { Some(Self(number)) } else { None }
    }

    /// Makes the number of the private peripheral interrupt `index`, 0 to 15, which is cut to that.
    pub const fn ppi(index: u32) -> Self {
        Self(16 + (index & 0xf))
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Tells whether each CPU has its own: an SGI or PPI.
    pub const fn is_private(self) -> bool {
        self.0 < 32
    }
}

impl fmt::Display for IntId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is wrong with the GIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicError {
    /// What the device tree says is a distributor is not one of a GICv3 or v4.
    NotV3 {
        /// Where.
        at: Pa,
        /// GICD_PIDR2.ArchRev.
        revision: u8,
    },
    /// Nothing answers where the device tree says that registers are.
    Silent {
        /// Whose.
        what: &'static str,
        /// Where.
        at: Pa,
    },
    /// No redistributor is this CPU's.
    NoRedistributor {
        /// The CPU.
        mpidr: u64,
    },
    /// Firmware does not let EL2 use the system registers (ICC_SRE_EL3).
    NoSystemRegisters,
}

impl fmt::Display for GicError {
    #[inline] // made small, in the monitor
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotV3 { at, revision } => {
                write!(f, "no GICv3 at {at}: its architecture revision is {revision}")
            }
            Self::Silent { what, at } => {
                write!(f, "no {what} at {at}: nothing answers there; is it a GIC of another version?")
            }
            Self::NoRedistributor { mpidr } => write!(f, "no GIC redistributor for CPU {mpidr:#x}"),
            Self::NoSystemRegisters => write!(f, "firmware keeps the GIC's system registers from EL2"),
        }
    }
}

/// The one priority that everything has, in the non-secure view. Lower than this, and firmware's interrupts would wait.
const PRIORITY: u8 = 0x80;

/// Looks whether anything answers at `at`, where a register of `what` is.
///
/// # Safety
/// As for [`crate::probe::register`].
unsafe fn answers(what: &'static str, at: Pa) -> Result<(), GicError> {
    // SAFETY: the caller's promise.
    unsafe { crate::probe::register(at) }.map(|_| ()).ok_or(GicError::Silent { what, at })
}
