//! Console input on its way to a guest.
//!
//! A guest's serial port holds sixteen bytes, and a pasted line is longer. What does not fit waits here until the guest
//! has read. Where that is much, the console's interrupt goes off until there is room, and the console's own flow
//! control holds the rest back.

use super::guest::Guest;
use super::service::Engine;
use crate::console;
use crate::outlet;
use aarch64::cpu::Core;
use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use spin::mutex::SpinMutex;
use vm::Room;

/// The most bytes that wait.
const CAPACITY: usize = 4096;

/// The key that gives the input to the next guest: Ctrl-].
const SWITCH: u8 = 0x1d;

/// Who has the input from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Switch {
    /// Who had it.
    Stay,
    /// The next guest that is on.
    Next,
}

/// Bytes that wait for a guest to read.
pub(super) struct Input {
    queue: SpinMutex<Queue>,
    /// Whether there are any. A hint: it is read without the lock, after a guest's read of its serial port.
    waiting: AtomicBool,
}

struct Queue {
    bytes: VecDeque<u8>,
    gate: Gate,
}

/// Whether the console interrupts for input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Shut,
}

impl Input {
    pub(super) fn new() -> Self {
        let queue = Queue { bytes: VecDeque::with_capacity(CAPACITY), gate: Gate::Open };
        Self { queue: SpinMutex::new(queue), waiting: AtomicBool::new(false) }
    }

    /// Takes what has come in at the console, on its interrupt, and hands `guest` what it has room for. Without a guest,
    /// it is dropped.
    ///
    /// Where there are several guests, [`SWITCH`] is for nobody: it tells that the input is to go to the next one.
    pub(super) fn receive(&self, guest: Option<&Guest>, engine: &Engine, core: &Core<'_>) -> Switch {
        let mut queue = self.queue.lock();
        let mut switch = Switch::Stay;
        console::receive(&mut |byte| {
            if byte == SWITCH && outlet::are_several() {
                switch = Switch::Next;
                queue.bytes.clear(); // what was not read was not for the next one
            } else if guest.is_some() && switch == Switch::Stay {
                queue.bytes.push_back(byte);
            }
        });
        if queue.bytes.len() + console::FIFO > CAPACITY {
            console::mask_receive_interrupt();
            queue.gate = Gate::Shut;
        }
        self.hand_over(&mut queue, guest, engine, core);
        switch
    }

    /// Tells whether anything waits for the guest to read.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Relaxed)
    }

    /// Hands `guest`, which has read from its serial port, what it has room for again.
    pub(super) fn go_on(&self, guest: &Guest, engine: &Engine, core: &Core<'_>) {
        self.hand_over(&mut self.queue.lock(), Some(guest), engine, core);
    }

    fn hand_over(&self, queue: &mut Queue, guest: Option<&Guest>, engine: &Engine, core: &Core<'_>) {
        let before = queue.bytes.len();
        while let Some(guest) = guest
            && let Some(&byte) = queue.bytes.front()
            && guest.vm.input_room() == Room::Some
        {
            guest.vm.input(core, byte);
            queue.bytes.pop_front();
        }
        if queue.bytes.len() < before && guest.is_some_and(|guest| guest.vm.has_devices()) {
            engine.ask(core);
        }
        self.waiting.store(!queue.bytes.is_empty(), Relaxed);
        if queue.gate == Gate::Shut && queue.bytes.len() < CAPACITY / 2 {
            console::enable_receive_interrupt();
            queue.gate = Gate::Open;
        }
    }
}
