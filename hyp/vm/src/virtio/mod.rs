//! Virtual devices whose DMA goes through pins: console, disk and random numbers, by the rules of virtio.
//!
//! ```text
//! vCPU on CPU A: writes its ring, notifies ─▶ bell ─▶ CPU B: takes the chain ─▶ moves bytes ─▶ gives it back ─▶ interrupt
//!                                                            └─ each access: pin, copy, mark, let go ─┘
//! ```
//!
//! Who is served is another CPU's work than the one whose guest has asked, where there is another one. What a driver does
//! comes from an enemy: a chain that is not what it must be ends the device, with the status that says so, until the driver
//! resets it. It costs nobody else anything: a step is bounded, and a lock is held for a step.
//!
//! Devices are modern virtio-mmio ones with split queues, and agree to nothing that they can do without: no indirect
//! descriptors, no event indices, no packed queues.
//!
//! Neighbours: [`crate::Vm`] knows where the devices are, and their interrupts; [`crate::service`] has the memory, and the
//! other engine; the exit loop asks CPUs to serve.

mod bus;
mod chain;
mod device;
mod disk;
mod kinds;
mod numbers;
mod queue;
#[cfg(test)]
mod tests;

pub use bus::{Bus, CHUNK, Fill, MOST, Take, Unreached};
pub use device::Counts;
pub use disk::Source;

use crate::bundle::File;
use crate::host::Line;
use crate::manifest::DeviceKind;
use crate::map;
use crate::pl011::Room;
use crate::service::{Company, Left};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use device::{Device, Wants};
use disk::Disk;
use frames::Frames;
use kinds::{Kind, Outside};
use types::CpuId;

/// The devices of one machine.
#[derive(Debug)]
pub(crate) struct Devices {
    /// In the order of their slots.
    all: Box<[(DeviceKind, Device)]>,
    /// Whether the console among them is where the guest has spoken last: then it hears what is typed.
    speaks: AtomicBool,
}

/// Whether a CPU is to be asked to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Nobody,
    Somebody,
}

/// What devices need of the machine below.
pub(crate) struct Below<'a> {
    /// Sets the line of the interrupt with this number.
    pub(crate) set_line: &'a dyn Fn(u32, Line),
    /// Takes a byte that a console says.
    pub(crate) say: &'a dyn Fn(u8),
}

impl Devices {
    /// Makes devices of these kinds, in the order of their slots.
    pub(crate) fn new(kinds: &[DeviceKind], disk: Option<File>) -> Self {
        let make = |&kind| {
            let device = match kind {
                DeviceKind::Console => Kind::console(),
                DeviceKind::Block => Kind::Block(Disk::new(disk.unwrap_or(File { name: "", bytes: &[] }))),
                DeviceKind::Entropy => Kind::Entropy,
            };
            (kind, Device::new(device))
        };
        Self { all: kinds.iter().map(make).collect(), speaks: AtomicBool::new(false) }
    }

    /// Reads `bytes` bytes of the slots' registers.
    pub(crate) fn read(&self, offset: u64, bytes: u8) -> Option<u64> {
        let (_, device, register) = self.at(offset)?;
        Some(device.read(register, bytes))
    }

    /// Writes `bytes` bytes of the slots' registers, for a guest on `cpu`.
    pub(crate) fn write(
        &self,
        cpu: CpuId,
        offset: u64,
        bytes: u8,
        value: u64,
        set_line: &dyn Fn(u32, Line),
    ) -> Option<Ask> {
        let (slot, device, register) = self.at(offset)?;
        let line = |line| set_line(map::virtio_intid(slot), line);
        Some(match device.write(cpu, register, bytes, value as u32, &line) {
            Wants::Service => Ask::Somebody,
            Wants::Nothing => Ask::Nobody,
        })
    }

    fn at(&self, offset: u64) -> Option<(usize, &Device, u32)> {
        let slot = (offset / map::VIRTIO_SIZE) as usize;
        let (_, device) = self.all.get(slot)?;
        Some((slot, device, (offset % map::VIRTIO_SIZE) as u32))
    }

    /// Puts every device in its reset state.
    pub(crate) fn reset(&self, set_line: &dyn Fn(u32, Line)) {
        self.reset_all(set_line, None);
    }

    /// Ends what devices hold, when the guest has stopped: frames that a disk's contents were written to.
    pub(crate) fn end(&self, frames: &Frames, set_line: &dyn Fn(u32, Line)) {
        self.reset_all(set_line, Some(frames));
    }

    fn reset_all(&self, set_line: &dyn Fn(u32, Line), frames: Option<&Frames>) {
        self.speaks.store(false, Relaxed);
        for (slot, (_, device)) in self.all.iter().enumerate() {
            device.reset(&|line| set_line(map::virtio_intid(slot), line), |kind| {
                if let (Kind::Block(disk), Some(frames)) = (kind, frames) {
                    disk.forget(frames);
                }
            });
        }
    }

    fn console(&self) -> Option<&Device> {
        self.all.iter().find(|(kind, _)| *kind == DeviceKind::Console).map(|(_, device)| device)
    }

    /// Notes that the guest has spoken through its serial port.
    pub(crate) fn note_serial_port(&self) {
        if self.speaks.load(Relaxed) {
            self.speaks.store(false, Relaxed);
        }
    }

    /// Tells whether the console has room for input; `None` where input is not for it.
    pub(crate) fn room(&self) -> Option<Room> {
        let console = self.console().filter(|_| self.speaks.load(Relaxed))?;
        Some(console.room())
    }

    /// Gives the console a byte of input, for which there is room.
    pub(crate) fn input(&self, byte: u8) {
        if let Some(console) = self.console() {
            console.input(byte);
        }
    }

    /// Does a step of what there is to do for each device.
    #[inline(never)] // needs much of the stack, seldom
    pub(crate) fn serve(
        &self,
        bus: &mut impl Bus,
        source: Source<'_>,
        random: &mut dyn FnMut(&mut [u8]),
        company: Company,
        below: &Below<'_>,
    ) -> Left {
        let say = |byte| {
            self.speaks.store(true, Relaxed);
            (below.say)(byte);
        };
        let mut left = Left::Nothing;
        for (slot, (_, device)) in self.all.iter().enumerate() {
            let mut outside = Outside { source, random: &mut *random, say: &say };
            let line = |line| (below.set_line)(map::virtio_intid(slot), line);
            match device.serve(bus, &mut outside, company, &line) {
                Left::Some => left = Left::Some,
                Left::Later if left == Left::Nothing => left = Left::Later,
                Left::Later | Left::Nothing => {}
            }
        }
        left
    }

    /// Returns what each device has done.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (DeviceKind, Counts)> {
        self.all.iter().map(|(kind, device)| (*kind, device.counts()))
    }
}
