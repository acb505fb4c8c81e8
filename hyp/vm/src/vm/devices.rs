//! Accesses to devices: which device, and what its interrupt line does.

use super::Vm;
use crate::{
    DeviceKind,
    gic::{self, GicVersion},
    host::{Line, ListRegisters},
    map,
    pl011::{Effect, Room, Taken},
    service::{Company, Left},
    vcpu::Vcpu,
    virtio::{Ask, Below, Bus, Counts, Source},
};
use core::sync::atomic::Ordering::Relaxed;
use frames::Frames;
use types::{Cpu, Ipa};

/// A data access of the guest's to what is not its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mmio {
    /// The address of its first byte.
    pub at: Ipa,
    /// The number of bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Which way.
    pub op: MmioOp,
}

/// A read, or a write and its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioOp {
    /// A load.
    Read,
    /// A store of the lowest bytes of this value.
    Write(u64),
}

/// What became of an [`Mmio`] access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioOutcome {
    /// The value read, zero-extended; the caller extends it as the instruction says.
    Read(u64),
    /// The write is done.
    Written,
    /// The write is done, and has told a device of work: a CPU is to be asked to serve ([`Vm::serve_devices`]).
    Notified,
    /// There is no such device: an external abort to the guest.
    Absent,
}

impl Vm {
    /// Carries out an access of `vcpu`'s to a device, on the CPU that runs it.
    pub fn mmio(
        &self,
        vcpu: &Vcpu,
        cpu: &impl Cpu,
        lrs: &mut impl ListRegisters,
        access: Mmio,
    ) -> MmioOutcome {
        let at = access.at.get();
        if let Some(offset) = offset_in(at, map::GICD, map::GICD_SIZE) {
            let offset = offset as u32;
            return match access.op {
                MmioOp::Read => {
                    let (value, told) = match self.gic.version() {
                        GicVersion::V2 => self.gic.read_v2(&self.vcpus, vcpu, offset, access.bytes, lrs),
                        GicVersion::V3 => {
                            self.gic.read_distributor(&self.vcpus, vcpu, offset, access.bytes, lrs)
                        }
                    };
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Read(value)
                }
                MmioOp::Write(value) => {
                    let told = match self.gic.version() {
                        GicVersion::V2 => self.gic.write_v2(&self.vcpus, vcpu, offset, access.bytes, value),
                        GicVersion::V3 => {
                            self.gic.write_distributor(&self.vcpus, offset, access.bytes, value)
                        }
                    };
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Written
                }
            };
        }
        if let Some(offset) = offset_in(at, map::UART, map::UART_SIZE) {
            return self.uart(cpu, offset as u32, access);
        }
        if let Some(offset) = offset_in(at, map::GICR, map::GICR_SIZE * self.vcpus.len() as u64)
            && self.gic.version() == GicVersion::V3
        {
            return match access.op {
                MmioOp::Read => {
                    let (value, told) =
                        self.gic.read_redistributor(&self.vcpus, vcpu, offset, access.bytes, lrs);
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Read(value)
                }
                MmioOp::Write(value) => {
                    let told = self.gic.write_redistributor(&self.vcpus, offset, access.bytes, value);
                    gic::ring(&self.vcpus, told, vcpu, cpu);
                    MmioOutcome::Written
                }
            };
        }
        if let Some(devices) = &self.devices
            && let Some(offset) = offset_in(at, map::VIRTIO, map::VIRTIO_SIZE * map::VIRTIO_SLOTS)
        {
            let done = match access.op {
                MmioOp::Read => devices.read(offset, access.bytes).map(MmioOutcome::Read),
                MmioOp::Write(value) => {
                    let set = |intid, line| self.gic.set_spi(&self.vcpus, cpu, intid, line);
                    devices.write(cpu.id(), offset, access.bytes, value, &set).map(|ask| match ask {
                        Ask::Somebody => MmioOutcome::Notified,
                        Ask::Nobody => MmioOutcome::Written,
                    })
                }
            };
            return done.unwrap_or(MmioOutcome::Absent);
        }
        MmioOutcome::Absent
    }

    /// Does a step of what there is to do for each virtio device, on a CPU that left its guest, or idles, and is in no
    /// section: `bus` enters one for each access. `random` fills bytes with random numbers.
    pub fn serve_devices(
        &self,
        bus: &mut impl Bus,
        cpu: &impl Cpu,
        source: Source<'_>,
        random: &mut dyn FnMut(&mut [u8]),
        company: Company,
    ) -> Left {
        let Some(devices) = &self.devices else { return Left::Nothing };
        let set_line = |intid, line| self.gic.set_spi(&self.vcpus, cpu, intid, line);
        let below = Below { set_line: &set_line, say: &|byte| self.console.put(byte) };
        devices.serve(bus, source, random, company, &below)
    }

    /// Ends what virtio devices hold, when the guest has stopped. `frames` are those of the machine's memory.
    pub fn end_devices(&self, cpu: &impl Cpu, frames: &Frames) {
        if let Some(devices) = &self.devices {
            devices.end(frames, &|intid, line| self.gic.set_spi(&self.vcpus, cpu, intid, line));
        }
    }

    /// Tells whether the machine has virtio devices.
    pub fn has_devices(&self) -> bool {
        self.devices.is_some()
    }

    /// Returns what each of its virtio devices has done.
    pub fn device_counts(&self) -> impl Iterator<Item = (DeviceKind, Counts)> {
        self.devices.iter().flat_map(|devices| devices.counts())
    }

    fn uart(&self, cpu: &impl Cpu, offset: u32, access: Mmio) -> MmioOutcome {
        let mut uart = self.uart.lock();
        let before = uart.line();
        let outcome = match access.op {
            MmioOp::Read => {
                let bits = 8 * u32::from(access.bytes.min(4));
                MmioOutcome::Read(u64::from(uart.read(offset)) & ((1 << bits) - 1))
            }
            MmioOp::Write(value) => {
                if let Effect::Send(byte) = uart.write(offset, value as u32) {
                    self.console.put(byte);
                    if let Some(devices) = &self.devices {
                        devices.note_serial_port();
                    }
                }
                MmioOutcome::Written
            }
        };
        self.uart_line(cpu, before, uart.line());
        outcome
    }

    /// Hands a change of the serial port's line on, with its lock held so that changes stay in order.
    fn uart_line(&self, cpu: &impl Cpu, before: Line, after: Line) {
        if before != after {
            self.gic.set_spi(&self.vcpus, cpu, map::UART_INTID, after);
        }
    }

    /// Tells whether there is room for another byte of input, where the guest has spoken last: at its serial port, or at its
    /// virtio console.
    pub fn input_room(&self) -> Room {
        let console = self.devices.as_ref().and_then(|devices| devices.room());
        console.unwrap_or_else(|| self.uart.lock().room())
    }

    /// Gives the guest a byte of input, where [`Vm::input_room`] was asked for it. On any CPU; where the machine has virtio
    /// devices, a CPU is to be asked to serve them then.
    pub fn input(&self, cpu: &impl Cpu, byte: u8) -> Taken {
        if let Some(devices) = &self.devices
            && devices.room() == Some(Room::Some)
        {
            devices.input(byte);
            return Taken::Kept;
        }
        let mut uart = self.uart.lock();
        let before = uart.line();
        let taken = uart.take(byte);
        if taken == Taken::Dropped {
            self.dropped_input.fetch_add(1, Relaxed);
        }
        self.uart_line(cpu, before, uart.line());
        taken
    }
}

/// Returns the offset of `at` in the `size` bytes from `base` on, if it is there.
#[inline]
fn offset_in(at: u64, base: Ipa, size: u64) -> Option<u64> {
    let offset = at.wrapping_sub(base.get());
    (offset < size).then_some(offset)
}
