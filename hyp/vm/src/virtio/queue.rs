//! A split virtqueue (VIRTIO 1.2, 2.7), from the device's side.
//!
//! The driver is an enemy: it may write what it likes into rings and descriptors, at any time, on any CPU. Invariants:
//! - Each number is read once, and believed as far as it was checked: a chain has at most as many descriptors as the queue.
//! - No step depends on how many chains are said to wait, or how long they are, but by the queue's size.
//! - A queue that is found [`Broken`] is not looked at again until the driver resets the device.
//! - A step that [`Trouble::Later`] ends has changed nothing that is not changed the same way when it is made again.
//!
//! ```text
//! driver: descriptors, ring ──▶ available index ─▶ device: ──O190──▶ ring, descriptors
//! device: contents, element ──O191──▶ used index ──O192──▶ does the driver want an interrupt?
//! ```

use super::bus::{Bus, Unreached};
use super::chain::{Chain, Half};
use super::numbers::{NO_INTERRUPT, descriptor};
use core::sync::atomic::Ordering::{Acquire, Release};
use types::sync::{full_barrier, guest_barrier};

/// The most descriptors that a queue may have, a power of two.
pub(super) const MOST_DESCRIPTORS: u16 = 128;

/// What is wrong with a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// More chains are said to wait than there are descriptors.
    Index,
    /// A descriptor is said to be where there is none.
    Number,
    /// A chain has more descriptors than the queue.
    Loop,
    /// A descriptor of no bytes, or a chain of too many.
    Length,
    /// A descriptor that the device is to read comes after one that it is to write.
    Order,
    /// A descriptor leads to a table of others, which was not agreed on.
    Indirect,
    /// Something lies where the guest has no memory, or may not write itself.
    Memory,
    /// A chain has not what its device needs of it.
    Shape,
    /// A queue was made ready whose rings cannot be.
    Rings,
}

/// Why a step was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// Somebody is changing the guest's memory: the same step may succeed in a while.
    Later,
    /// The queue ends here.
    Broken(Broken),
}

impl From<Unreached> for Trouble {
    fn from(why: Unreached) -> Self {
        match why {
            Unreached::Later => Self::Later,
            Unreached::Never => Self::Broken(Broken::Memory),
        }
    }
}

impl From<Broken> for Trouble {
    fn from(why: Broken) -> Self {
        Self::Broken(why)
    }
}

/// Whether the driver wants to hear of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tell {
    /// It does.
    Interrupt,
    /// It looks itself.
    Nothing,
}

/// What a driver says of its queue before it is ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Rings {
    /// The number of descriptors.
    pub(super) size: u32,
    pub(super) descriptors: u64,
    /// The available ring.
    pub(super) driver: u64,
    /// The used ring.
    pub(super) device: u64,
}

/// A virtqueue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) rings: Rings,
    ready: bool,
    /// Of the available ring: the index of the next chain.
    next: u16,
    /// Of the used ring: the index of the next element.
    used: u16,
    chain: Chain,
    /// Whether `chain` is one that has been taken, and not been given back.
    taken: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            rings: Rings::default(),
            ready: false,
            next: 0,
            used: 0,
            chain: Chain::with_room(MOST_DESCRIPTORS),
            taken: false,
        }
    }

    /// Puts it in its reset state.
    pub(super) fn reset(&mut self) {
        (self.rings, self.ready) = (Rings::default(), false);
        (self.next, self.used, self.taken) = (0, 0, false);
    }

    pub(super) const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Makes it ready, if its rings are as they must be.
    pub(super) fn make_ready(&mut self) -> Result<(), Broken> {
        let Rings { size, descriptors, driver, device } = self.rings;
        let fits = size.is_power_of_two() && size <= u32::from(MOST_DESCRIPTORS);
        let aligned = descriptors % 16 == 0 && driver % 2 == 0 && device % 4 == 0;
        let most = u64::MAX - 16 * u64::from(MOST_DESCRIPTORS) - 8;
        if !fits || !aligned || [descriptors, driver, device].into_iter().any(|at| at > most) {
            return Err(Broken::Rings);
        }
        self.ready = true;
        Ok(())
    }

    /// Tells whether a chain has been taken that has not been given back.
    pub(super) const fn is_at_a_chain(&self) -> bool {
        self.taken
    }

    /// Counts that its next step is to be made again. Returns how often, since something was done.
    pub(super) const fn wait(&mut self) -> u32 {
        self.chain.tries += 1;
        self.chain.tries
    }

    /// Returns the chain that is being served: the one that was taken, or the next. `None` where none waits.
    pub(super) fn chain(&mut self, bus: &mut impl Bus) -> Result<Option<&mut Chain>, Trouble> {
        if !self.ready {
            return Ok(None);
        }
        if !self.taken {
            let index = bus.half(self.rings.driver + 2)?;
            let waiting = index.wrapping_sub(self.next);
            if waiting == 0 {
                return Ok(None);
            }
            if u32::from(waiting) > self.rings.size {
                return Err(Broken::Index.into());
            }
            // O190: the index, before what the driver wrote ahead of it. Pairs with the driver's barrier.
            guest_barrier(190, Acquire);
            self.take(bus)?;
            self.taken = true;
        }
        Ok(Some(&mut self.chain))
    }

    /// Takes the next chain, which waits.
    fn take(&mut self, bus: &mut impl Bus) -> Result<(), Trouble> {
        let slot = u64::from(self.next) % u64::from(self.rings.size);
        let head = bus.half(self.rings.driver + 4 + 2 * slot)?;
        self.chain.begin(head);
        let mut number = head;
        for _ in 0..self.rings.size {
            if u32::from(number) >= self.rings.size {
                return Err(Broken::Number.into());
            }
            let at = self.rings.descriptors + descriptor::BYTES * u64::from(number);
            let bytes: [u8; descriptor::BYTES as usize] = bus.read(at)?;
            let whole = u128::from_le_bytes(bytes);
            let (address, length) = (whole as u64, (whole >> 64) as u32);
            let (flags, next) = ((whole >> 96) as u16, (whole >> 112) as u16);
            if flags & descriptor::INDIRECT != 0 {
                return Err(Broken::Indirect.into());
            }
            let half = if flags & descriptor::WRITE != 0 { Half::Writable } else { Half::Readable };
            self.chain.push(address, length, half)?;
            if flags & descriptor::NEXT == 0 {
                return Ok(());
            }
            number = next;
        }
        Err(Broken::Loop.into())
    }

    /// Gives the chain that was taken back, with `written` bytes in what the device was to write.
    pub(super) fn give_back(&mut self, bus: &mut impl Bus, written: u32) -> Result<Tell, Trouble> {
        let slot = u64::from(self.used) % u64::from(self.rings.size);
        let element = u64::from(self.chain.head()) | u64::from(written) << 32;
        bus.write(self.rings.device + 4 + 8 * slot, &element.to_le_bytes())?;
        let used = self.used.wrapping_add(1);
        // O191: contents and element, before the index. Pairs with the driver's barrier.
        guest_barrier(191, Release);
        bus.write(self.rings.device + 2, &used.to_le_bytes())?;
        // O192: the index, before the look whether the driver waits for an interrupt. Pairs with the driver's full
        // barrier between asking for interrupts and looking at the index.
        full_barrier(192);
        let flags = bus.half(self.rings.driver)?;
        (self.used, self.next, self.taken) = (used, self.next.wrapping_add(1), false);
        self.chain.tries = 0;
        Ok(if flags & NO_INTERRUPT == 0 { Tell::Interrupt } else { Tell::Nothing })
    }
}

/// Every order of the device's steps and of a driver's, with every value that a load may return: `RUSTFLAGS="--cfg loom"`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use core::sync::atomic::Ordering::{Relaxed, SeqCst};
    use loom::{
        sync::{
            Arc,
            atomic::{AtomicU16, fence},
        },
        thread,
    };

    /// The half-words that the device and its driver share, of a queue of one descriptor at 0.
    struct Shared {
        /// Of the descriptor, its length.
        length: AtomicU16,
        /// The available ring: its flags, its index, its entry.
        flags: AtomicU16,
        available: AtomicU16,
        entry: AtomicU16,
        /// The used ring: its index, and of its element, the bytes written.
        used: AtomicU16,
        written: AtomicU16,
    }

    const DRIVER: u64 = 0x100;
    const DEVICE: u64 = 0x200;
    const RINGS: Rings = Rings { size: 1, descriptors: 0, driver: DRIVER, device: DEVICE };

    impl Shared {
        fn new() -> Arc<Self> {
            let half = || AtomicU16::new(0);
            Arc::new(Self {
                length: half(),
                flags: half(),
                available: half(),
                entry: half(),
                used: half(),
                written: half(),
            })
        }
    }

    struct Halves(Arc<Shared>);

    impl Bus for Halves {
        fn fetch(
            &mut self,
            at: u64,
            bytes: u64,
            take: &mut dyn FnMut(u64, &[u8]) -> Result<(), Unreached>,
        ) -> Result<(), Unreached> {
            let mut found = vec![0; bytes as usize];
            let (place, half) = match at {
                0 => (8, &self.0.length),
                DRIVER => (0, &self.0.flags),
                0x102 => (0, &self.0.available),
                0x104 => (0, &self.0.entry),
                _ => panic!("{at:#x}"),
            };
            found[place..place + 2].copy_from_slice(&half.load(Relaxed).to_le_bytes());
            take(0, &found)
        }

        fn store(
            &mut self,
            at: u64,
            bytes: u64,
            fill: &mut dyn FnMut(u64, &mut [u8]) -> Result<(), Unreached>,
        ) -> Result<(), Unreached> {
            let mut made = vec![0; bytes as usize];
            fill(0, &mut made)?;
            let (place, half) = match at {
                0x202 => (0, &self.0.used),
                0x204 => (4, &self.0.written),
                _ => panic!("{at:#x}"),
            };
            half.store(u16::from_le_bytes([made[place], made[place + 1]]), Relaxed);
            Ok(())
        }
    }

    /// A device that takes a chain, if there is one, and gives it back.
    fn device(shared: &Arc<Shared>) -> Option<Tell> {
        let mut queue = Queue::new();
        queue.rings = RINGS;
        queue.make_ready().unwrap();
        let bus = &mut Halves(shared.clone());
        let bytes = queue.chain(bus).unwrap()?.bytes(Half::Readable);
        assert_eq!(bytes, 7, "what the driver has written before the index");
        Some(queue.give_back(bus, 5).unwrap())
    }

    fn make_available(shared: &Shared) {
        shared.length.store(7, Relaxed);
        fence(Release);
        shared.available.store(1, Relaxed);
    }

    #[test]
    fn the_device_sees_what_the_driver_wrote_before_its_index() {
        loom::model(|| {
            let shared = Shared::new();
            let driver = thread::spawn({
                let shared = shared.clone();
                move || make_available(&shared)
            });
            device(&shared);
            driver.join().unwrap();
        });
    }

    #[test]
    fn the_driver_sees_what_the_device_wrote_before_its_index() {
        loom::model(|| {
            let shared = Shared::new();
            make_available(&shared);
            let driver = thread::spawn({
                let shared = shared.clone();
                move || {
                    if shared.used.load(Relaxed) == 1 {
                        fence(Acquire);
                        assert_eq!(shared.written.load(Relaxed), 5, "the element");
                    }
                }
            });
            device(&shared);
            driver.join().unwrap();
        });
    }

    #[test]
    fn a_driver_that_waits_for_an_interrupt_gets_it_or_sees_the_buffer() {
        loom::model(|| {
            let shared = Shared::new();
            make_available(&shared);
            shared.flags.store(NO_INTERRUPT, Relaxed);
            let driver = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.flags.store(0, Relaxed);
                    fence(SeqCst);
                    shared.used.load(Relaxed) == 1
                }
            });
            let told = device(&shared) == Some(Tell::Interrupt);
            assert!(driver.join().unwrap() || told, "it waits for ever");
        });
    }
}
