//! Calls to the firmware that powers CPUs and the machine (PSCI, DEN 0022), by the conduit the device tree names.

use core::fmt;
use smccc::psci::{self, AffinityState, Error, LowestAffinityLevel};

/// The instruction that calls the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// HVC: EL2's own. From EL2 it cannot reach anybody.
    Hvc,
    /// SMC: to EL3.
    Smc,
}

impl fmt::Display for Conduit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hvc => "HVC",
            Self::Smc => "SMC",
        })
    }
}

#[cfg(target_os = "none")]
use smccc::{Hvc, Smc};

#[cfg(not(target_os = "none"))]
mod fake {
    /// An HVC that records.
    pub(super) enum Hvc {}
    /// An SMC that records.
    pub(super) enum Smc {}

    macro_rules! recording {
        ($name:ident, $conduit:literal) => {
            impl smccc::Call for $name {
                fn call32(function: u32, args: [u32; 7]) -> [u32; 8] {
                    let result =
                        crate::effect::call($conduit, function, core::array::from_fn(|i| args[i].into()));
                    core::array::from_fn(|i| if i == 0 { result as u32 } else { 0 })
                }

                fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
                    let result = crate::effect::call($conduit, function, core::array::from_fn(|i| args[i]));
                    core::array::from_fn(|i| if i == 0 { result } else { 0 })
                }
            }
        };
    }
    recording!(Hvc, "hvc");
    recording!(Smc, "smc");
}
#[cfg(not(target_os = "none"))]
use fake::{Hvc, Smc};

/// The firmware, which the device tree says is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Psci {
    conduit: Conduit,
}

impl Psci {
    /// Names the firmware behind `conduit`. It must be there: a call to none may hang the CPU for ever.
    pub const fn new(conduit: Conduit) -> Self {
        Self { conduit }
    }

    /// Returns the conduit.
    pub const fn conduit(self) -> Conduit {
        self.conduit
    }

    /// Asks for the version of PSCI.
    pub fn version(self) -> Result<psci::Version, Error> {
        match self.conduit {
            Conduit::Hvc => psci::version::<Hvc>(),
            Conduit::Smc => psci::version::<Smc>(),
        }
    }

    /// Starts the CPU with affinity `mpidr` at physical address `entry`, with `context` in X0.
    pub fn cpu_on(self, mpidr: u64, entry: u64, context: u64) -> Result<(), Error> {
        match self.conduit {
            Conduit::Hvc => psci::cpu_on::<Hvc>(mpidr, entry, context),
            Conduit::Smc => psci::cpu_on::<Smc>(mpidr, entry, context),
        }
    }

    /// Turns the CPU that runs this off. Returns where the firmware refused.
    pub fn cpu_off(self) -> Error {
        let result = match self.conduit {
            Conduit::Hvc => psci::cpu_off::<Hvc>(),
            Conduit::Smc => psci::cpu_off::<Smc>(),
        };
        result.err().unwrap_or(Error::InternalFailure)
    }

    /// Tells whether the CPU with affinity `mpidr` is off.
    pub fn is_off(self, mpidr: u64) -> bool {
        let level = LowestAffinityLevel::All;
        let state = match self.conduit {
            Conduit::Hvc => psci::affinity_info::<Hvc>(mpidr, level),
            Conduit::Smc => psci::affinity_info::<Smc>(mpidr, level),
        };
        state == Ok(AffinityState::Off)
    }

    /// Turns the machine off. Returns where the firmware refused.
    pub fn system_off(self) -> Error {
        let result = match self.conduit {
            Conduit::Hvc => psci::system_off::<Hvc>(),
            Conduit::Smc => psci::system_off::<Smc>(),
        };
        result.err().unwrap_or(Error::InternalFailure)
    }

    /// Resets the machine. Returns where the firmware refused.
    pub fn system_reset(self) -> Error {
        let result = match self.conduit {
            Conduit::Hvc => psci::system_reset::<Hvc>(),
            Conduit::Smc => psci::system_reset::<Smc>(),
        };
        result.err().unwrap_or(Error::InternalFailure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn a_cpu_is_started_by_the_conduit_that_was_named() {
        effect::reset();
        effect::answer(0);
        assert_eq!(Psci::new(Conduit::Smc).cpu_on(0x101, 0x4020_0000, 7), Ok(()));
        effect::answer(-4_i64 as u64);
        assert_eq!(Psci::new(Conduit::Hvc).cpu_on(1, 2, 3), Err(Error::AlreadyOn));
        assert_eq!(
            effect::take(),
            [
                Effect::Call("smc", 0xc400_0003, [0x101, 0x4020_0000, 7]),
                Effect::Call("hvc", 0xc400_0003, [1, 2, 3])
            ]
        );
    }

    #[test]
    fn a_cpu_is_off_where_firmware_says_so_and_only_there() {
        effect::reset();
        let psci = Psci::new(Conduit::Smc);
        for (answer, off) in [(0, false), (1, true), (2, false), (-2_i64 as u64, false)] {
            effect::answer(answer);
            assert_eq!(psci.is_off(0x101), off, "{answer:#x}");
            assert_eq!(effect::take(), [Effect::Call("smc", 0xc400_0004, [0x101, 0, 0])]);
        }
        effect::answer(-3_i64 as u64);
        assert_eq!(psci.cpu_off(), Error::Denied);
        assert_eq!(effect::take(), [Effect::Call("smc", 0x8400_0002, [0, 0, 0])]);
    }

    #[test]
    fn firmware_that_does_not_power_off_is_told_about() {
        effect::reset();
        effect::answer(-1_i64 as u64);
        assert_eq!(Psci::new(Conduit::Smc).system_off(), Error::NotSupported);
        assert_eq!(effect::take(), [Effect::Call("smc", 0x8400_0008, [0, 0, 0])]);
    }
}
