//! A driver's side of a virtio-mmio device with one queue: as the specification has it, or not.

use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU16, Ordering::Relaxed, fence};
use guest_tests::mmio::{read32, write32};
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::timer::{micros, now};
use guest_tests::{NotPassed, Verdict, check, machine, same};

/// Registers (VIRTIO 1.2, 4.2.2).
pub(crate) mod register {
    pub(crate) const DEVICE_ID: u64 = 0x008;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(crate) const QUEUE_SEL: u64 = 0x030;
    pub(crate) const QUEUE_NUM: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
    pub(crate) const INTERRUPT_ACK: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESC: u64 = 0x080;
    pub(crate) const QUEUE_DRIVER: u64 = 0x090;
    pub(crate) const QUEUE_DEVICE: u64 = 0x0a0;
}

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// The device waits for a reset.
const NEEDS_RESET: u32 = 64;
/// The descriptors of a queue.
pub(crate) const SIZE: u16 = 16;
/// Where the rings are in their pages: the descriptors first.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// How long a device may take, in microseconds: emulated, and with other machines on the same CPUs.
const PATIENCE: u64 = 60_000_000;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) at: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// How a device answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// With a chain's first descriptor, and how many bytes it has written.
    Used(u32, u32),
    /// It has stopped, and waits for a reset.
    Stopped,
    /// Not at all.
    Silence,
}

/// A device that has a driver.
#[derive(Debug)]
pub(crate) struct Driver {
    registers: u64,
    rings: Ram,
    /// The next of the available ring, and of the used ring.
    available: u16,
    used: u16,
}

impl Driver {
    /// Finds the device of this type, and sets it up; `None` where the machine has none.
    pub(crate) fn find(id: u32) -> Result<Option<Self>, NotPassed> {
        for slot in machine::get().virtio() {
            same!("the magic of", slot.start, u64::from(MAGIC), u64::from(read32(slot.start)));
            same!("the version of", slot.start, 2, u64::from(read32(slot.start + 4)));
            if read32(slot.start + register::DEVICE_ID) == id {
                let rings = ram::take(PAGE, PAGE).ok_or_else(|| NotPassed::differs("memory", 0, 1, 0))?;
                let mut driver = Self { registers: slot.start, rings, available: 0, used: 0 };
                driver.set_up()?;
                return Ok(Some(driver));
            }
        }
        Ok(None)
    }

    /// Resets the device, and begins anew.
    pub(crate) fn set_up(&mut self) -> Verdict {
        let rings = self.rings.region().start;
        self.write(register::STATUS, 0);
        same!("the status after a reset", self.registers, 0, u64::from(self.read(register::STATUS)));
        self.rings.words().iter().for_each(|word| word.store(0, Relaxed));
        (self.available, self.used) = (0, 0);
        self.write(register::STATUS, 3);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, 1);
        self.write(register::STATUS, 3 | 8);
        same!("the status with features", self.registers, 11, u64::from(self.read(register::STATUS)));
        self.write(register::QUEUE_SEL, 0);
        self.write(register::QUEUE_NUM, u32::from(SIZE));
        for (register, at) in [
            (register::QUEUE_DESC, rings),
            (register::QUEUE_DRIVER, rings + AVAILABLE),
            (register::QUEUE_DEVICE, rings + USED),
        ] {
            self.write(register, at as u32);
            self.write(register + 4, (at >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
        self.write(register::STATUS, 3 | 8 | 4);
        Ok(())
    }

    pub(crate) fn read(&self, register: u64) -> u32 {
        read32(self.registers + register)
    }

    pub(crate) fn write(&self, register: u64, value: u32) {
        write32(self.registers + register, value);
    }

    fn half(&self, offset: u64) -> &'static AtomicU16 {
        &self.rings.halves()[(offset / 2) as usize]
    }

    /// Writes a descriptor.
    pub(crate) fn describe(&self, number: u16, descriptor: Descriptor) {
        let Descriptor { at, bytes, flags, next } = descriptor;
        let whole =
            u128::from(at) | u128::from(bytes) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        for n in 0..8 {
            let half = (whole >> (16 * n)) as u16;
            self.half(16 * u64::from(number % SIZE) + 2 * n).store(half, Relaxed);
        }
    }

    /// Makes the chain that begins at a descriptor available, says that there are `more` than there are, and notifies.
    pub(crate) fn make_available(&mut self, head: u16, more: u16) {
        let slot = u64::from(self.available % SIZE);
        self.half(AVAILABLE + 4 + 2 * slot).store(head, Relaxed);
        self.available = self.available.wrapping_add(1);
        fence(SeqCst);
        self.half(AVAILABLE + 2).store(self.available.wrapping_add(more), Relaxed);
        fence(SeqCst);
        self.write(register::QUEUE_NOTIFY, 0);
    }

    /// Waits for an answer.
    pub(crate) fn wait(&mut self) -> Answer {
        let until = now() + micros(PATIENCE);
        while now() < until {
            if let Some((head, bytes)) = self.next_used() {
                return Answer::Used(head, bytes);
            }
            if self.read(register::STATUS) & NEEDS_RESET != 0 {
                return Answer::Stopped;
            }
        }
        Answer::Silence
    }

    /// Returns the next element of the used ring, if there is one.
    fn next_used(&mut self) -> Option<(u32, u32)> {
        let index = self.half(USED + 2).load(Relaxed);
        if index == self.used {
            return None;
        }
        fence(SeqCst);
        let slot = u64::from(self.used % SIZE);
        let word =
            |at| u32::from(self.half(at).load(Relaxed)) | u32::from(self.half(at + 2).load(Relaxed)) << 16;
        let at = USED + 4 + 8 * slot;
        let element = (word(at), word(at + 4));
        self.used = self.used.wrapping_add(1);
        Some(element)
    }

    /// Sends a chain of these buffers, each for the device to read, or to write with flag 2, and waits until it is done.
    pub(crate) fn send(&mut self, buffers: &[(u64, u32, u16)]) -> Result<u32, NotPassed> {
        for (number, &(at, bytes, flags)) in (0..).zip(buffers) {
            let last = usize::from(number) + 1 == buffers.len();
            let flags = if last { flags } else { flags | 1 };
            self.describe(number, Descriptor { at, bytes, flags, next: number + 1 });
        }
        self.make_available(0, 0);
        let answer = self.wait();
        let Answer::Used(0, bytes) = answer else {
            guest_tests::fail!("a chain that is as it must be: {answer:?}");
        };
        let reasons = self.read(register::INTERRUPT_STATUS);
        check!(reasons & 1 != 0, "a buffer was used, and the interrupt status is {reasons:#x}");
        self.write(register::INTERRUPT_ACK, reasons);
        Ok(bytes)
    }
}
