//! The memory of a guest that is being loaded.

use crate::waiting::Waiting;
use space::{Space, SpaceError};
use stage2::{Format, Invalidate, Kick, Quiescence, Section};
use types::{Cpu, Ipa, Range};
use vm::{Populate, Ram, RamError, VmConfig};

/// Whether a guest is loaded for the first time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    First,
    Again,
}

/// A space, as the CPU that loads a guest into it reaches it.
pub(crate) struct SpaceRam<'a, F: Format, K, C, I> {
    pub(crate) space: &'a Space<'static, F>,
    pub(crate) waiting: &'a Waiting<K>,
    pub(crate) cpu: &'a C,
    pub(crate) tlb: &'a I,
}

fn told(error: SpaceError) -> RamError {
    match error {
        SpaceError::OutOfMemory { ipa } | SpaceError::OutOfTables { ipa } => RamError::NoFrames { at: ipa },
        SpaceError::Busy { ipa } => RamError::Busy { at: ipa },
        SpaceError::DeviceWouldFault { ipa } => RamError::NotRam { at: ipa },
        SpaceError::NoRegion { ipa } | SpaceError::NotRam { ipa } => RamError::NotRam { at: ipa },
        SpaceError::BadRegion { range } | SpaceError::RegionsOverlap { new: range, .. } => {
            RamError::NotRam { at: range.start() }
        }
        SpaceError::TooManyRegions
        | SpaceError::NoLog
        | SpaceError::LogRuns
        | SpaceError::NoIommu
        | SpaceError::Attached
        | SpaceError::NoVmids
        | SpaceError::Dying => RamError::NotRam { at: Ipa::new(0) },
    }
}

impl<F: Format, K: Kick, C: Cpu, I: Invalidate> SpaceRam<'_, F, K, C, I> {
    /// Prepares the memory of a guest that is off: contents that it had are discarded, and where its configuration says so,
    /// all of it is there from the start.
    pub(crate) fn prepare(&self, config: &VmConfig, load: Load) -> Result<(), SpaceError> {
        let Self { space, waiting, cpu, tlb } = *self;
        let mut section = waiting.enter(cpu.id());
        if load == Load::Again {
            space.reset(&mut section, cpu, tlb)?;
            while space.drain(&mut section, cpu) {
                section.pass(); // nobody runs this guest, so whoever looks at its tables will soon have done
            }
        }
        if config.populate == Populate::Ahead {
            for range in config.memory() {
                space.populate(&mut section, cpu, tlb, range)?;
            }
        }
        Ok(())
    }
}

impl<F: Format, K: Kick, C: Cpu, I: Invalidate> Ram for SpaceRam<'_, F, K, C, I> {
    fn write(&self, at: Ipa, bytes: &[u8]) -> Result<(), RamError> {
        let mut section = self.waiting.enter(self.cpu.id());
        self.space.copy_in(&mut section, self.cpu, self.tlb, at, bytes).map_err(told)
    }

    fn zero(&self, range: Range) -> Result<(), RamError> {
        let mut section = self.waiting.enter(self.cpu.id());
        self.space.zero(&mut section, self.cpu, self.tlb, range.start(), range.len()).map_err(told)
    }
}
