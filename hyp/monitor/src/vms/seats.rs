//! A vCPU at the CPU that it belongs to, and where it comes in.

use super::guest::Guest;
use aarch64::cpu::Core;
use aarch64::guest::{Context, World};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::mutex::SpinMutex;
use types::CpuId;
use vm::Vcpu;
use vm::sched::{Home, Inbox, SeatId, SeatSet};

/// How many lines a vCPU's misbehaviour may put into the log: more would let a guest keep others from the console.
const MOST_LINES: u32 = 32;

/// Whether a vCPU's registers mean anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Registers {
    /// It has not started: the start sets them all.
    Unset,
    /// They are what its guest has made of them.
    Set,
}

/// A vCPU and its registers. The CPU that it belongs to has it to itself.
pub(super) struct Seat {
    pub(super) guest: Arc<Guest>,
    /// The vCPU's number in its guest.
    pub(super) vcpu: usize,
    pub(super) context: Context,
    /// The other registers, while another vCPU is on the CPU.
    pub(super) world: World,
    pub(super) registers: Registers,
    /// How many more lines this vCPU's misbehaviour may put into the log.
    pub(super) lines_left: u32,
}

impl Seat {
    /// Makes the seat of vCPU number `vcpu` of `guest`, which is off.
    #[inline(never)] // needs much of the stack, seldom
    pub(super) fn new(guest: Arc<Guest>, vcpu: usize) -> Box<Self> {
        Box::new(Self {
            guest,
            vcpu,
            context: Context::default(),
            world: World::default(),
            registers: Registers::Unset,
            lines_left: MOST_LINES,
        })
    }

    /// Returns the vCPU.
    pub(super) fn vcpu(&self) -> Option<&Vcpu> {
        self.guest.vm.vcpus().get(self.vcpu)
    }
}

/// Where the vCPUs of one CPU come in. Everybody may bring one; the CPU takes it.
pub(super) struct Desk {
    pub(super) inbox: Arc<Inbox>,
    book: SpinMutex<Book>,
}

/// Which seats are taken, and who has not been shown to one yet.
struct Book {
    taken: SeatSet,
    waiting: Vec<(SeatId, Box<Seat>)>,
}

impl Desk {
    /// Makes the desk of `cpu`, where nobody has come in.
    pub(super) fn new(cpu: CpuId) -> Self {
        let book = SpinMutex::new(Book { taken: SeatSet::EMPTY, waiting: Vec::new() });
        Self { inbox: Arc::new(Inbox::new(cpu)), book }
    }

    /// Reserves a seat; `None` where all are taken.
    pub(super) fn reserve(&self) -> Option<SeatId> {
        let mut book = self.book.lock();
        let id = book.taken.first_free()?;
        book.taken = book.taken.with(id);
        Some(id)
    }

    /// Frees a seat that nobody has, or has any more.
    pub(super) fn free(&self, id: SeatId) {
        let mut book = self.book.lock();
        book.taken = book.taken.without(id);
    }

    /// Lets a vCPU in, to have seat `id`, which is reserved, and has the CPU look at it. `core` is the CPU that runs this.
    pub(super) fn admit(&self, id: SeatId, seat: Box<Seat>, core: &Core<'_>) {
        if let Some(vcpu) = seat.vcpu() {
            seat.guest.vm.settle(vcpu, Home::new(Arc::clone(&self.inbox), id));
        }
        self.book.lock().waiting.push((id, seat));
        self.inbox.post(id, core);
    }

    /// Hands over the vCPU that is to have seat `id`, if one has come in for it. Called by the CPU.
    pub(super) fn show_in(&self, id: SeatId) -> Option<Box<Seat>> {
        let mut book = self.book.lock();
        let at = book.waiting.iter().position(|(waiting, _)| *waiting == id)?;
        Some(book.waiting.swap_remove(at).1)
    }
}
