//! Devices on the host: a guest's memory in a buffer, and a driver that does what it must, or what it must not.

mod devices;
mod enemy;
mod pinned;
mod registers;

use super::bus::{Bus, CHUNK, Unreached};
use super::device::{Device, Wants};
use super::disk::{Disk, Source};
use super::kinds::{Kind, Outside};
use super::numbers::{NO_INTERRUPT, feature, register, status};
use crate::bundle::File;
use crate::host::Line;
use crate::service::{Company, Left};
use frames::Owner;
use frames::fake::Machine;
use std::cell::{Cell, RefCell};
use types::CpuId;

/// Where the guest's memory is, and how much.
const RAM: u64 = 0x4000_0000;
const SIZE: usize = 0x4_0000;
/// Where the driver has its rings: a queue each, one page apart.
const RINGS: u64 = RAM;
const RING_BYTES: u64 = 0x1000;
/// Where it has buffers.
const BUFFERS: u64 = RAM + 0x1_0000;
/// The size of its queues.
const QUEUE: u16 = 16;

/// A small random number generator: what it makes is the same in each run.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// A guest's memory.
struct Ram {
    bytes: Vec<u8>,
    /// Makes one access in so many be held up.
    held_up: Option<(Dice, u64)>,
    accesses: u64,
}

impl Ram {
    fn place(&mut self, at: u64, bytes: u64) -> Result<usize, Unreached> {
        self.accesses += 1;
        if let Some((dice, one_in)) = &mut self.held_up
            && dice.roll(*one_in) == 0
        {
            return Err(Unreached::Later);
        }
        let place = at.checked_sub(RAM).filter(|place| place.saturating_add(bytes) <= SIZE as u64);
        place.map(|place| place as usize).ok_or(Unreached::Never)
    }
}

impl Bus for Ram {
    fn fetch(
        &mut self,
        at: u64,
        bytes: u64,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<(), Unreached>,
    ) -> Result<(), Unreached> {
        assert!(bytes <= super::bus::MOST);
        let place = self.place(at, bytes)?;
        let all = &self.bytes[place..place + bytes as usize];
        all.chunks(CHUNK).zip(0..).try_for_each(|(piece, n)| take(n * CHUNK as u64, piece))
    }

    fn store(
        &mut self,
        at: u64,
        bytes: u64,
        fill: &mut dyn FnMut(u64, &mut [u8]) -> Result<(), Unreached>,
    ) -> Result<(), Unreached> {
        assert!(bytes <= super::bus::MOST);
        let place = self.place(at, bytes)?;
        let all = &mut self.bytes[place..place + bytes as usize];
        all.chunks_mut(CHUNK).zip(0..).try_for_each(|(piece, n)| fill(n * CHUNK as u64, piece))
    }
}

/// A descriptor, as a driver writes it.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    at: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

/// A device and its driver.
struct Rig {
    device: Device,
    ram: Ram,
    machine: Machine,
    said: RefCell<Vec<u8>>,
    line: Cell<Line>,
    random: u8,
    /// The driver's indices, by queue: of the available ring, and of the used ring as far as it has looked.
    available: [u16; 2],
    used: [u16; 2],
}

/// A disk's contents: no two sectors alike.
fn image(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n / 512 * 7 + n % 251) as u8).collect()
}

fn disk(bytes: usize) -> Kind {
    Kind::Block(Disk::new(File { name: "disk", bytes: image(bytes).leak() }))
}

impl Rig {
    /// Makes a device, whose driver has set it up.
    fn new(kind: Kind) -> Self {
        let mut rig = Self::off(kind);
        rig.set_up();
        rig
    }

    /// Makes a device in its reset state.
    fn off(kind: Kind) -> Self {
        Self {
            device: Device::new(kind),
            ram: Ram { bytes: vec![0; SIZE], held_up: None, accesses: 0 },
            machine: Machine::with_ram(0x1_0000_0000, 1 << 20),
            said: RefCell::default(),
            line: Cell::new(Line::Low),
            random: 0,
            available: [0; 2],
            used: [0; 2],
        }
    }

    fn write(&self, register: u32, value: u32) -> Wants {
        self.device.write(CpuId::BOOT, register, 4, value, &|line| self.line.set(line))
    }

    fn read(&self, register: u32) -> u32 {
        self.device.read(register, 4) as u32
    }

    /// Does what a driver does: 3.1.1 of the specification.
    fn set_up(&mut self) {
        let (available, used) = ([0; 2], [0; 2]);
        self.write(register::STATUS, 0);
        (self.available, self.used) = (available, used);
        self.ram.bytes[..(2 * RING_BYTES) as usize].fill(0);
        self.write(register::STATUS, 1 | 2);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, (feature::VERSION_1 >> 32) as u32);
        self.write(register::STATUS, 1 | 2 | 8);
        assert_eq!(self.read(register::STATUS), 1 | 2 | 8);
        for queue in 0..2 {
            self.write(register::QUEUE_SEL, queue);
            if self.read(register::QUEUE_NUM_MAX) == 0 {
                continue;
            }
            let at = RINGS + u64::from(queue) * RING_BYTES;
            self.write(register::QUEUE_NUM, u32::from(QUEUE));
            self.write(register::QUEUE_DESC_LOW, at as u32);
            self.write(register::QUEUE_DESC_HIGH, (at >> 32) as u32);
            self.write(register::QUEUE_DRIVER_LOW, (at + 0x400) as u32);
            self.write(register::QUEUE_DRIVER_HIGH, 0);
            self.write(register::QUEUE_DEVICE_LOW, (at + 0x800) as u32);
            self.write(register::QUEUE_DEVICE_HIGH, 0);
            self.write(register::QUEUE_READY, 1);
            assert_eq!(self.read(register::QUEUE_READY), 1);
        }
        self.write(register::STATUS, 1 | 2 | 8 | 4);
    }

    fn poke(&mut self, at: u64, bytes: &[u8]) {
        self.ram.bytes[(at - RAM) as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn peek(&self, at: u64, bytes: usize) -> &[u8] {
        &self.ram.bytes[(at - RAM) as usize..][..bytes]
    }

    fn describe(&mut self, queue: usize, number: u16, descriptor: Descriptor) {
        let at = RINGS + queue as u64 * RING_BYTES + 16 * u64::from(number % 64);
        self.poke(at, &descriptor.at.to_le_bytes());
        self.poke(at + 8, &descriptor.bytes.to_le_bytes());
        self.poke(at + 12, &descriptor.flags.to_le_bytes());
        self.poke(at + 14, &descriptor.next.to_le_bytes());
    }

    /// Makes the chain that begins at a descriptor available.
    fn make_available(&mut self, queue: usize, head: u16) {
        let ring = RINGS + queue as u64 * RING_BYTES + 0x400;
        let slot = u64::from(self.available[queue] % QUEUE);
        self.poke(ring + 4 + 2 * slot, &head.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        let index = self.available[queue];
        self.poke(ring + 2, &index.to_le_bytes());
    }

    /// Makes a chain of these buffers available, from descriptor 0 on, and notifies.
    fn send(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) {
        for (number, &(at, bytes, flags)) in buffers.iter().enumerate() {
            let last = number + 1 == buffers.len();
            let (flags, next) = if last { (flags, 0) } else { (flags | 1, number as u16 + 1) };
            self.describe(queue, number as u16, Descriptor { at, bytes, flags, next });
        }
        self.make_available(queue, 0);
        assert_eq!(self.write(register::QUEUE_NOTIFY, queue as u32), Wants::Service);
    }

    /// Has CPU `cpu` do a step.
    fn step_on(&mut self, cpu: usize, company: Company) -> Left {
        let Self { device, ram, machine, said, line, random, .. } = self;
        let cpu = CpuId::new(cpu).unwrap();
        let mut fill = |bytes: &mut [u8]| {
            for byte in bytes {
                *random = random.wrapping_add(1);
                *byte = *random;
            }
        };
        let say = |byte| said.borrow_mut().push(byte);
        let mut outside = Outside {
            source: Source { frames: machine, owner: Owner(1), cpu },
            random: &mut fill,
            say: &say,
        };
        device.serve(ram, &mut outside, company, &|level| line.set(level))
    }

    /// Has another CPU serve until nothing is left. Returns how many steps that took.
    fn serve(&mut self) -> usize {
        (0..).find(|_| self.step_on(1, Company::Others) == Left::Nothing).unwrap()
    }

    /// Returns the next element of the used ring: the chain's first descriptor, and the bytes written.
    fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = RINGS + queue as u64 * RING_BYTES + 0x800;
        let index = u16::from_le_bytes(self.peek(ring + 2, 2).try_into().unwrap());
        if index == self.used[queue] {
            return None;
        }
        let slot = u64::from(self.used[queue] % QUEUE);
        self.used[queue] = self.used[queue].wrapping_add(1);
        let word = |at| u32::from_le_bytes(self.peek(at, 4).try_into().unwrap());
        let at = ring + 4 + 8 * slot;
        Some((word(at), word(at + 4)))
    }

    fn is_broken(&self) -> bool {
        self.read(register::STATUS) as u8 & status::NEEDS_RESET != 0
    }

    /// Makes a request to a disk, and returns its status.
    fn request(&mut self, what: u32, sector: u64, data: (u64, u32, u16)) -> u8 {
        self.poke(BUFFERS, &what.to_le_bytes());
        self.poke(BUFFERS + 8, &sector.to_le_bytes());
        self.poke(BUFFERS + 16, &[0xee]);
        let (header, status) = ((BUFFERS, 16, 0), (BUFFERS + 16, 1, 2));
        if data.1 == 0 {
            self.send(0, &[header, status]);
        } else {
            self.send(0, &[header, data, status]);
        }
        self.serve();
        assert!(self.used(0).is_some_and(|(head, _)| head == 0));
        self.peek(BUFFERS + 16, 1)[0]
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut rig = Rig::new(Kind::Entropy);
    rig.poke(RINGS + 0x400, &NO_INTERRUPT.to_le_bytes());
    rig.send(0, &[(BUFFERS, 8, 2)]);
    rig.serve();
    assert_eq!((rig.used(0), rig.line.get()), (Some((0, 8)), Line::Low));
    rig.poke(RINGS + 0x400, &[0; 2]);
    rig.send(0, &[(BUFFERS, 8, 2)]);
    rig.serve();
    assert_eq!((rig.used(0), rig.line.get()), (Some((0, 8)), Line::High));
    assert_eq!(rig.read(register::INTERRUPT_STATUS), 1);
    rig.write(register::INTERRUPT_ACK, 1);
    assert_eq!((rig.read(register::INTERRUPT_STATUS), rig.line.get()), (0, Line::Low));
}
