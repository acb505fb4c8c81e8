//! This CPU's virtual CPU interface and timers, as `vm` wants them.

use aarch64::gic::{IntId, interface};
use aarch64::guest::ich;
use aarch64::sysreg::{CNTP_CTL_EL0, CNTV_CTL_EL0, Readable};
use vm::{Line, ListRegisters, Timer};

/// The list registers of the CPU that runs this.
#[derive(Debug)]
pub(super) struct Lists {
    count: usize,
    timers: Timers,
}

/// The interrupts of the two timers that a guest has to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timers {
    /// The virtual timer's.
    pub(super) virtual_timer: IntId,
    /// The physical timer's.
    pub(super) physical_timer: IntId,
}

impl Lists {
    /// Takes over the virtual CPU interface of this CPU, in its reset state.
    pub(super) fn new(timers: Timers) -> Self {
        ich::reset();
        Self { count: ich::count(), timers }
    }
}

/// CNTx_CTL_EL0: enabled (bit 0), masked (1), condition met (2).
const FIRING: u64 = 0b101;

impl ListRegisters for Lists {
    fn count(&self) -> usize {
        self.count
    }

    fn read(&self, index: usize) -> u64 {
        ich::read_lr(index)
    }

    fn write(&mut self, index: usize, value: u64) {
        ich::write_lr(index, value);
    }

    fn control(&mut self, hcr: u64) {
        ich::write_hcr(hcr);
    }

    fn line(&self, timer: Timer) -> Line {
        let control = match timer {
            Timer::Virtual => CNTV_CTL_EL0.get(),
            Timer::Physical => CNTP_CTL_EL0.get(),
        };
        if control & 0b111 == FIRING { Line::High } else { Line::Low }
    }

    fn deactivate(&mut self, timer: Timer) {
        interface::deactivate(match timer {
            Timer::Virtual => self.timers.virtual_timer,
            Timer::Physical => self.timers.physical_timer,
        });
    }
}
