//! One device: its registers (VIRTIO 1.2, 4.2.2), its queues, and its interrupt.
//!
//! | lock | what | held for |
//! | --- | --- | --- |
//! | `state` | registers, queues, what the device is | an access to a register, or a step of a chain |
//! | `bell` | which queues somebody is to look at | a few instructions |
//! | `interrupt` | why it interrupts, and its line | a few instructions, and those of the interrupt controller |
//!
//! They are taken in this order. A guest's write of its status register that resets the device returns when no step is
//! under way, and no further one will be made: then the memory is the guest's again.

use super::bus::Bus;
use super::kinds::{Kind, Outside, RECEIVE, Step};
use super::numbers::{MAGIC, VENDOR, VERSION, feature, interrupt, register, status};
use super::queue::{Broken, MOST_DESCRIPTORS, Queue, Tell, Trouble};
use crate::host::Line;
use crate::pl011::Room;
use crate::service::{Company, Left};
use alloc::vec::Vec;
use spin::mutex::SpinMutex;
use types::CpuId;

/// How often a step is tried whose memory others keep changing. Then the guest does that to itself on purpose.
const PATIENCE: u32 = 10_000;

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    state: SpinMutex<State>,
    bell: SpinMutex<Bell>,
    /// Why it interrupts.
    interrupt: SpinMutex<u8>,
}

/// What there is to be looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Bell {
    /// A bit for each queue.
    queues: u8,
    /// The CPU whose guest has rung last.
    ringer: Option<CpuId>,
}

#[derive(Debug)]
struct State {
    kind: Kind,
    queues: Vec<Queue>,
    status: u8,
    driver_features: u64,
    /// Which half of the features is looked at, and which is written.
    halves: [u32; 2],
    /// Which queue the registers are about.
    selected: u32,
    counts: Counts,
}

/// What a device has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Requests that were completed.
    pub requests: u64,
    /// Those of them that another CPU completed than the one whose guest asked.
    pub elsewhere: u64,
    /// How often the device stopped, since its driver did what it must not.
    pub broken: u64,
    /// Steps that had to be made again, since others were changing the guest's memory.
    pub held_up: u64,
}

/// Whether a CPU is to be asked to serve a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    Nothing,
    Service,
}

/// How a device's interrupt line is set, with the lock held that keeps its changes in order.
pub(super) type SetLine<'a> = &'a dyn Fn(Line);

impl Device {
    pub(super) fn new(kind: Kind) -> Self {
        let queues = (0..kind.queues()).map(|_| Queue::new()).collect();
        Self {
            state: SpinMutex::new(State {
                kind,
                queues,
                status: 0,
                driver_features: 0,
                halves: [0; 2],
                selected: 0,
                counts: Counts::default(),
            }),
            bell: SpinMutex::default(),
            interrupt: SpinMutex::new(0),
        }
    }

    /// Runs `act` on what the device is, and puts all else of it in its reset state.
    pub(super) fn reset(&self, line: SetLine<'_>, act: impl FnOnce(&mut Kind)) {
        let mut state = self.state.lock();
        state.reset();
        act(&mut state.kind);
        drop(state);
        self.acknowledge(u8::MAX, line);
    }

    pub(super) fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Reads a register, or of the configuration.
    pub(super) fn read(&self, offset: u32, bytes: u8) -> u64 {
        if let Some(config) = offset.checked_sub(register::CONFIG) {
            let state = self.state.lock();
            return (0..u32::from(bytes.min(8)))
                .map(|n| u64::from(state.kind.config(config + n)) << (8 * n))
                .sum();
        }
        if bytes != 4 || !offset.is_multiple_of(4) {
            return 0; // the driver must not (4.2.2.2)
        }
        u64::from(match offset {
            register::INTERRUPT_STATUS => u32::from(*self.interrupt.lock()),
            _ => self.state.lock().read(offset),
        })
    }

    /// Writes a register, for a guest on `cpu`.
    pub(super) fn write(&self, cpu: CpuId, offset: u32, bytes: u8, value: u32, line: SetLine<'_>) -> Wants {
        if bytes != 4 {
            return Wants::Nothing;
        }
        match offset {
            register::QUEUE_NOTIFY => self.ring(1_u8.checked_shl(value).unwrap_or(0), Some(cpu)),
            register::INTERRUPT_ACK => {
                self.acknowledge(value as u8, line);
                Wants::Nothing
            }
            register::STATUS if value == 0 => {
                self.reset(line, |_| {});
                Wants::Nothing
            }
            _ => {
                let mut state = self.state.lock();
                let was_on = state.is_on();
                let written = state.write(offset, value);
                let on = !was_on && state.is_on();
                drop(state);
                if written.is_err() {
                    self.interrupt(interrupt::CONFIG_CHANGE, line);
                }
                // What waits since before the driver was ready.
                if on { self.ring(u8::MAX, Some(cpu)) } else { Wants::Nothing }
            }
        }
    }

    fn ring(&self, queues: u8, ringer: Option<CpuId>) -> Wants {
        let mut bell = self.bell.lock();
        bell.queues |= queues;
        bell.ringer = ringer;
        Wants::Service
    }

    fn interrupt(&self, why: u8, line: SetLine<'_>) {
        let mut reasons = self.interrupt.lock();
        if *reasons == 0 {
            line(Line::High);
        }
        *reasons |= why;
    }

    fn acknowledge(&self, what: u8, line: SetLine<'_>) {
        let mut reasons = self.interrupt.lock();
        let before = *reasons;
        *reasons &= !what;
        if before != 0 && *reasons == 0 {
            line(Line::Low);
        }
    }

    /// Tells whether it is a console with room for input. One that has no driver has none.
    pub(super) fn room(&self) -> Room {
        let state = self.state.lock();
        if state.is_on() && state.kind.has_room() { Room::Some } else { Room::None }
    }

    /// Gives a console a byte of input, for which there is room.
    pub(super) fn input(&self, byte: u8) {
        let mut state = self.state.lock();
        if state.kind.has_room() {
            state.kind.take_input(byte);
        }
        drop(state);
        let _ = self.ring(1 << RECEIVE, None); // the caller asks a CPU once, for all bytes
    }

    /// Does a step of what there is to do, on a CPU that left its guest, or idles.
    pub(super) fn serve(
        &self,
        bus: &mut impl Bus,
        outside: &mut Outside<'_>,
        company: Company,
        line: SetLine<'_>,
    ) -> Left {
        let bell = *self.bell.lock();
        let own = bell.ringer == Some(outside.source.cpu);
        if bell.queues == 0 || own && company == Company::Others {
            return Left::Nothing;
        }
        // Who is at it may have just looked at the bell for the last time.
        let Some(mut state) = self.state.try_lock() else { return Left::Later };
        let queues = core::mem::take(&mut self.bell.lock().queues);
        let mut ended = Ended::Idle;
        for index in 0..state.queues.len() {
            if queues >> index & 1 != 0 {
                ended = state.step(index, bus, outside, own);
                if ended != Ended::Idle {
                    break;
                }
            }
        }
        // Before a reset can come between: after it, nothing is told of what was before.
        if let Ended::Step(Some(why)) = ended {
            self.interrupt(why, line);
        }
        drop(state);
        match ended {
            Ended::Idle => Left::Nothing,
            Ended::Step(_) | Ended::HeldUp => {
                self.bell.lock().queues |= queues;
                if ended == Ended::HeldUp { Left::Later } else { Left::Some }
            }
        }
    }
}

/// What became of a look at a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// Nothing waits there.
    Idle,
    /// Something was done, which the driver is to be interrupted for.
    Step(Option<u8>),
    /// Others are changing the guest's memory.
    HeldUp,
}

impl State {
    fn reset(&mut self) {
        self.queues.iter_mut().for_each(Queue::reset);
        (self.status, self.driver_features) = (0, 0);
        (self.halves, self.selected) = ([0; 2], 0);
    }

    /// Tells whether the device may look at its queues.
    const fn is_on(&self) -> bool {
        const ALL: u8 = status::DRIVER_OK | status::FEATURES_OK | status::NEEDS_RESET | status::FAILED;
        self.status & ALL == status::DRIVER_OK | status::FEATURES_OK
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.selected as usize)
    }

    fn read(&mut self, offset: u32) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.kind.id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.kind.features(), self.halves[0]),
            register::QUEUE_NUM_MAX => self.queue().map_or(0, |_| u32::from(MOST_DESCRIPTORS)),
            register::QUEUE_READY => self.queue().map_or(0, |queue| u32::from(queue.is_ready())),
            register::STATUS => u32::from(self.status),
            register::SHM_FIRST..=register::SHM_LAST => u32::MAX,
            _ => 0,
        }
    }

    /// Writes a register other than those that have locks of their own.
    fn write(&mut self, offset: u32, value: u32) -> Result<(), Broken> {
        match offset {
            register::DEVICE_FEATURES_SEL => self.halves[0] = value,
            register::DRIVER_FEATURES_SEL => self.halves[1] = value,
            register::DRIVER_FEATURES if self.status & status::FEATURES_OK == 0 => {
                let shift = 32 * self.halves[1];
                if self.halves[1] < 2 {
                    self.driver_features &= !(u64::from(u32::MAX) << shift);
                    self.driver_features |= u64::from(value) << shift;
                }
            }
            register::STATUS => {
                let agreed = self.driver_features & !self.kind.features() == 0
                    && self.driver_features & feature::VERSION_1 != 0;
                let refused = if agreed { 0 } else { status::FEATURES_OK };
                self.status = value as u8 & !refused | self.status & status::NEEDS_RESET;
            }
            register::QUEUE_SEL => self.selected = value,
            register::QUEUE_READY => {
                let made = self.queue().map_or(Ok(()), |queue| match value {
                    0 => {
                        queue.reset();
                        Ok(())
                    }
                    _ if queue.is_ready() => Ok(()),
                    _ => queue.make_ready(),
                });
                return made.inspect_err(|why| self.stop(*why));
            }
            _ => {
                if let Some(queue) = self.queue()
                    && !queue.is_ready()
                {
                    let rings = &mut queue.rings;
                    match offset {
                        register::QUEUE_NUM => rings.size = value,
                        register::QUEUE_DESC_LOW => set_low(&mut rings.descriptors, value),
                        register::QUEUE_DESC_HIGH => set_high(&mut rings.descriptors, value),
                        register::QUEUE_DRIVER_LOW => set_low(&mut rings.driver, value),
                        register::QUEUE_DRIVER_HIGH => set_high(&mut rings.driver, value),
                        register::QUEUE_DEVICE_LOW => set_low(&mut rings.device, value),
                        register::QUEUE_DEVICE_HIGH => set_high(&mut rings.device, value),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Stops the device, until its driver resets it.
    fn stop(&mut self, why: Broken) {
        log::debug!("a virtio device stops: {why:?}");
        self.status |= status::NEEDS_RESET;
        self.counts.broken += 1;
    }

    /// Does a step of the chain that queue `index` is at.
    fn step(&mut self, index: usize, bus: &mut impl Bus, outside: &mut Outside<'_>, own: bool) -> Ended {
        if !self.is_on() {
            return Ended::Idle;
        }
        match self.try_step(index, bus, outside) {
            Ok(ended) => {
                if matches!(ended, Ended::Step(_)) && !self.queues[index].is_at_a_chain() {
                    self.counts.requests += 1;
                    self.counts.elsewhere += u64::from(!own);
                }
                ended
            }
            Err(Trouble::Later) if self.queues[index].wait() < PATIENCE => {
                self.counts.held_up += 1;
                Ended::HeldUp
            }
            Err(Trouble::Later) => self.broken(Broken::Memory),
            Err(Trouble::Broken(why)) => self.broken(why),
        }
    }

    fn broken(&mut self, why: Broken) -> Ended {
        self.stop(why);
        Ended::Step(Some(interrupt::CONFIG_CHANGE))
    }

    fn try_step(
        &mut self,
        index: usize,
        bus: &mut impl Bus,
        outside: &mut Outside<'_>,
    ) -> Result<Ended, Trouble> {
        let queue = &mut self.queues[index];
        let Some(chain) = queue.chain(bus)? else { return Ok(Ended::Idle) };
        let written = match chain.written {
            Some(written) => written,
            None => match self.kind.step(bus, index, chain, outside)? {
                Step::More => {
                    chain.tries = 0;
                    return Ok(Ended::Step(None));
                }
                Step::Waits => return Ok(Ended::Idle),
                Step::Done(written) => written,
            },
        };
        chain.written = Some(written);
        let tell = queue.give_back(bus, written)?;
        Ok(Ended::Step((tell == Tell::Interrupt).then_some(interrupt::USED_BUFFER)))
    }
}

/// Returns the low or the high half; 0 where there is no such half.
const fn half(features: u64, which: u32) -> u32 {
    match which {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

const fn set_low(address: &mut u64, value: u32) {
    *address = *address >> 32 << 32 | value as u64;
}

const fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | (value as u64) << 32;
}
