//! This CPU's virtual CPU interface and timers, as `vm` wants them.

use aarch64::gic::{IntId, Private, interface};
use aarch64::guest::{el1, ich};
use aarch64::sysreg::{CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, Readable};
use types::Ticks;
use vm::{Line, ListRegisters, Timer};

/// The list registers of the CPU that runs this.
#[derive(Debug)]
pub(super) struct Lists {
    count: usize,
    timers: Timers,
    private: Private,
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
    pub(super) fn new(timers: Timers, private: Private) -> Self {
        ich::reset();
        Self { count: ich::count(), timers, private }
    }

    /// Returns when a timer of the vCPU whose registers are in this CPU asserts its interrupt; `None` where it is off or
    /// masked.
    pub(super) fn due(&self, timer: Timer) -> Option<Ticks> {
        match timer {
            Timer::Virtual => el1::due(CNTV_CTL_EL0.get(), CNTV_CVAL_EL0.get()),
            Timer::Physical => el1::due(CNTP_CTL_EL0.get(), CNTP_CVAL_EL0.get()),
        }
    }
}

impl Timers {
    const fn get(self, timer: Timer) -> IntId {
        match timer {
            Timer::Virtual => self.virtual_timer,
            Timer::Physical => self.physical_timer,
        }
    }
}

/// CNTx_CTL_EL0: enabled (bit 0), masked (1), condition met (2).
const FIRING: u64 = 0b101;

impl ListRegisters for Lists {
    fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    fn read(&self, index: usize) -> u64 {
        ich::read_lr(index)
    }

    #[inline(always)]
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
        interface::deactivate(self.timers.get(timer));
    }

    fn activate(&mut self, timer: Timer) {
        self.private.activate(self.timers.get(timer));
    }
}
