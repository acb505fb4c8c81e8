//! The power states of a virtual machine and its vCPUs, and how one goes from one to another on several CPUs.
//!
//! ```text
//! machine:  Off ──start──▶ Running ──stop──▶ Stopping ──the last vCPU is off──▶ Off
//! vCPU:     Off ──CPU_ON, start──▶ OnPending ──its CPU starts it──▶ On ──CPU_OFF, Stopping──▶ Off
//! ```
//!
//! A stop is asked for by any CPU. Every vCPU's own CPU turns it off on its way to the next entry; the one that turns
//! off the last is told so, alone, and what follows (starting again, or reporting the end) is its work. A vCPU that is
//! off when the stop is asked for takes no part.

use crate::vcpu::MAX_VCPUS;

/// Where and how a vCPU starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// The address of its first instruction.
    pub entry: u64,
    /// The value of X0.
    pub argument: u64,
}

/// Why a virtual machine stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Its guest turned it off, or turned off its last vCPU.
    PowerOff,
    /// Its guest asked for a restart.
    Reset,
    /// It did what cannot be answered, or the machine cannot go on with it; the log says what.
    Failure,
}

/// The state of a virtual machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Off,
    Running,
    Stopping(Why),
}

/// The state of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power<S = Start> {
    /// It has not been turned on, or has gone off.
    Off,
    /// It has been turned on, and its CPU has not started it yet.
    OnPending(S),
    /// It runs.
    On,
    /// On, and on its way off.
    Leaving,
}

/// What a vCPU's own CPU finds to do about its power.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step<S = Start> {
    /// Nothing.
    None,
    /// Start it.
    Start(S),
    /// Turn it off; others are still on.
    Off,
    /// Turn it off; it was the last, and the machine has stopped.
    Last(Why),
}

/// Why a vCPU cannot be turned on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotOff {
    /// It is on, or the machine stops and will not turn it on.
    On,
    /// It is being turned on.
    Pending,
}

/// The power states of one machine. `S` says how a vCPU starts.
#[derive(Debug)]
pub struct PowerStates<S = Start> {
    phase: Phase,
    vcpus: [Power<S>; MAX_VCPUS],
    /// How many vCPUs are not off.
    live: usize,
}

impl<S: Copy + PartialEq> Default for PowerStates<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Copy + PartialEq> PowerStates<S> {
    /// Makes the states of a machine that is off.
    pub const fn new() -> Self {
        Self { phase: Phase::Off, vcpus: [Power::Off; MAX_VCPUS], live: 0 }
    }

    /// Turns the machine on, with vCPU 0. Tells whether it was off.
    pub fn start(&mut self, start: S) -> bool {
        if self.phase != Phase::Off {
            return false;
        }
        self.phase = Phase::Running;
        self.vcpus[0] = Power::OnPending(start);
        self.live = 1;
        true
    }

    /// Asks for a stop. Tells whether this is the first to ask: then every vCPU is to be told.
    pub fn stop(&mut self, why: Why) -> bool {
        let first = self.phase == Phase::Running;
        if first {
            self.phase = Phase::Stopping(why);
        }
        first
    }

    /// Turns on vCPU `index`.
    ///
    /// # Errors
    /// [`NotOff`] where it is on, or about to be.
    pub fn turn_on(&mut self, index: usize, start: S) -> Result<(), NotOff> {
        match self.vcpus[index] {
            Power::On | Power::Leaving => Err(NotOff::On),
            Power::OnPending(_) => Err(NotOff::Pending),
            Power::Off if self.phase != Phase::Running => Err(NotOff::On),
            Power::Off => {
                self.vcpus[index] = Power::OnPending(start);
                self.live += 1;
                Ok(())
            }
        }
    }

    /// Notes that vCPU `index` wants to be off. Its next step turns it off.
    pub fn leave(&mut self, index: usize) {
        if self.vcpus[index] == Power::On {
            self.vcpus[index] = Power::Leaving;
        }
    }

    /// Turns off vCPU `index`, which is not off. The last one turns off the machine.
    fn turn_off(&mut self, index: usize) -> Step<S> {
        self.vcpus[index] = Power::Off;
        self.live -= 1;
        if self.live != 0 {
            return Step::Off;
        }
        let why = match self.phase {
            Phase::Stopping(why) => why,
            Phase::Running | Phase::Off => Why::PowerOff,
        };
        self.phase = Phase::Off;
        Step::Last(why)
    }

    /// Tells vCPU `index`'s own CPU what to do next.
    pub fn step(&mut self, index: usize) -> Step<S> {
        match (self.phase, self.vcpus[index]) {
            (Phase::Stopping(_), Power::On | Power::OnPending(_)) | (_, Power::Leaving) => {
                self.turn_off(index)
            }
            (_, Power::OnPending(start)) => {
                self.vcpus[index] = Power::On;
                Step::Start(start)
            }
            _ => Step::None,
        }
    }

    /// Returns the state of vCPU `index`.
    pub const fn of(&self, index: usize) -> Power<S> {
        self.vcpus[index]
    }

    /// Tells whether the machine is off.
    pub fn is_off(&self) -> bool {
        self.phase == Phase::Off
    }
}
