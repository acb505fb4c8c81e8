//! List registers and their control register, bit by bit (IHI 0069, 12.5: `ICH_LR<n>_EL2`, `ICH_HCR_EL2`).

use tock_registers::{
    fields::{Field, FieldValue},
    register_bitfields,
};

register_bitfields![u64,
    LR [
        /// The interrupt that the guest sees.
        VINTID OFFSET(0) NUMBITS(32) [],
        /// With HW = 1: the physical interrupt that the guest's deactivation deactivates, too.
        PINTID OFFSET(32) NUMBITS(13) [],
        /// Of an SGI, and with a GICv2: the CPU interface that sent it. (Bits of the field above, which nothing else uses then.)
        SENDER OFFSET(32) NUMBITS(3) [],
        /// With HW = 0: a maintenance interrupt when the guest ends the interrupt. (A bit of the field above.)
        EOI OFFSET(41) NUMBITS(1) [],
        /// Lower is more urgent.
        PRIORITY OFFSET(48) NUMBITS(8) [],
        /// Which group: 0 is signalled as FIQ, 1 as IRQ.
        GROUP OFFSET(60) NUMBITS(1) [],
        /// Linked to a physical interrupt. "Pending and active" is then not allowed.
        HW OFFSET(61) NUMBITS(1) [],
        STATE OFFSET(62) NUMBITS(2) [
            Invalid = 0,
            Pending = 1,
            Active = 2,
            PendingAndActive = 3
        ]
    ],
    HCR [
        /// The virtual CPU interface is on.
        EN OFFSET(0) NUMBITS(1) [],
        /// A maintenance interrupt while at most one list register is in use.
        UIE OFFSET(1) NUMBITS(1) [],
        /// A maintenance interrupt while no list register is pending.
        NPIE OFFSET(3) NUMBITS(1) []
    ]
];

/// ICH_HCR_EL2 where the vCPU is on no CPU: the interface is off, and asserts nothing.
pub(super) const HCR_OFF: u64 = 0;
/// ICH_HCR_EL2 where nothing waits for a list register.
pub(super) const HCR_RUN: u64 = mask(HCR::EN);
/// ICH_HCR_EL2 where something waits for a list register: it is put in when all but one are free, ...
pub(super) const HCR_WAIT: u64 = HCR_RUN | mask(HCR::UIE);
/// ... or when what the list registers hold, which is more urgent, has been taken.
pub(super) const HCR_WAIT_TAKEN: u64 = HCR_WAIT | mask(HCR::NPIE);

const HW: u64 = mask(LR::HW);
const EOI: u64 = mask(LR::EOI);
const STATE: u64 = mask(LR::STATE);

const fn mask<R: tock_registers::RegisterLongName>(field: Field<u64, R>) -> u64 {
    field.mask << field.shift
}

/// What an interrupt in a list register is linked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link(u64);

impl Link {
    /// Nothing.
    pub(super) const NONE: Self = Self(0);
    /// Nothing, but the hypervisor wants to know when the guest ends it.
    pub(super) const WATCHED: Self = Self(EOI);

    /// A physical interrupt of this CPU.
    pub(super) const fn physical(intid: u32) -> Self {
        Self(HW | FieldValue::<u64, LR::Register>::new(LR::PINTID.mask, LR::PINTID.shift, intid as u64).value)
    }
}

/// The state of an interrupt in a list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State(u64);

impl State {
    pub(super) const PENDING: Self = Self(1 << LR::STATE.shift);
    pub(super) const ACTIVE: Self = Self(2 << LR::STATE.shift);
    pub(super) const BOTH: Self = Self(3 << LR::STATE.shift);
}

/// A list register's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lr(pub(super) u64);

impl Lr {
    /// Makes the value for an interrupt.
    pub(super) const fn new(intid: u32, priority: u8, group: u32, link: Link, state: State) -> Self {
        let place = (intid as u64)
            | (priority as u64) << LR::PRIORITY.shift
            | ((group & 1) as u64) << LR::GROUP.shift;
        Self(place | link.0 | state.0)
    }

    /// Returns the value of an SGI of CPU interface `sender`.
    pub(super) const fn sent_by(self, sender: u8) -> Self {
        Self(self.0 | ((sender & 7) as u64) << LR::SENDER.shift)
    }

    /// Tells whether it holds no interrupt (any more).
    pub(super) const fn is_done(self) -> bool {
        self.0 & STATE == 0
    }

    /// Tells whether the interrupt is pending.
    pub(super) const fn is_pending(self) -> bool {
        self.0 & State::PENDING.0 != 0
    }

    /// Tells whether the interrupt is active.
    pub(super) const fn is_active(self) -> bool {
        self.0 & State::ACTIVE.0 != 0
    }

    /// Tells whether the interrupt is linked to a physical one.
    pub(super) const fn is_linked(self) -> bool {
        self.0 & HW != 0
    }

    /// Tells whether the list register asserts the maintenance interrupt: the guest has ended what was watched.
    pub(super) const fn asserts(self) -> bool {
        self.0 & (STATE | HW | EOI) == EOI
    }

    /// Returns the value with the interrupt pending, besides being active.
    pub(super) const fn pending_again(self) -> Self {
        Self(self.0 | State::PENDING.0)
    }

    /// Returns the value with the interrupt not pending.
    pub(super) const fn not_pending(self) -> Self {
        Self(self.0 & !State::PENDING.0)
    }

    /// Returns the value of an interrupt that is not linked, with the wish to know when the guest ends it.
    pub(super) const fn watched(self) -> Self {
        Self(self.0 | EOI)
    }
}
