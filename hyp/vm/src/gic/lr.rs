//! List registers and their control register, bit by bit (IHI 0069, 12.5: `ICH_LR<n>_EL2`, `ICH_HCR_EL2`).

use tock_registers::{fields::Field, register_bitfields};

register_bitfields![u64,
    LR [
        /// The interrupt that the guest sees.
        VINTID OFFSET(0) NUMBITS(32) [],
        /// With HW = 1: the physical interrupt that the guest's deactivation deactivates, too.
        PINTID OFFSET(32) NUMBITS(13) [],
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

/// ICH_HCR_EL2 where nothing waits for a list register.
pub(crate) const HCR_RUN: u64 = bit(HCR::EN);
/// ICH_HCR_EL2 where something waits for a list register: it is put in when all but one are free, ...
pub(crate) const HCR_WAIT: u64 = HCR_RUN | bit(HCR::UIE);
/// ... or when what the list registers hold, which is more urgent, has been taken.
pub(crate) const HCR_WAIT_TAKEN: u64 = HCR_WAIT | bit(HCR::NPIE);

const fn bit(field: Field<u64, HCR::Register>) -> u64 {
    field.mask << field.shift
}

/// What an interrupt in a list register is linked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Link {
    /// Nothing.
    Free,
    /// Nothing, but the hypervisor wants to know when the guest ends it: its line may still be asserted then.
    Watched,
    /// A physical interrupt of this CPU, by its number.
    Physical(u32),
}

/// The state of an interrupt in a list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    pub(crate) pending: bool,
    pub(crate) active: bool,
}

/// Makes a list register's value.
pub(crate) fn encode(intid: u32, priority: u8, group: u32, link: Link, state: State) -> u64 {
    let state = match (state.active, state.pending) {
        (false, false) => LR::STATE::Invalid,
        (false, true) => LR::STATE::Pending,
        (true, false) => LR::STATE::Active,
        (true, true) => LR::STATE::PendingAndActive,
    };
    let link = match link {
        Link::Free => LR::HW.val(0),
        Link::Watched => LR::EOI.val(1),
        Link::Physical(intid) => LR::HW.val(1) + LR::PINTID.val(u64::from(intid)),
    };
    (LR::VINTID.val(u64::from(intid))
        + LR::PRIORITY.val(u64::from(priority))
        + LR::GROUP.val(u64::from(group & 1))
        + link
        + state)
        .value
}

/// Reads the state out of a list register's value.
pub(crate) const fn state(lr: u64) -> State {
    State { pending: lr >> 62 & 1 != 0, active: lr >> 63 != 0 }
}

/// Tells whether a list register's value links it to a physical interrupt.
pub(crate) const fn is_linked(lr: u64) -> bool {
    lr >> 61 & 1 != 0
}

/// Returns a list register's value with "pending" added.
pub(crate) const fn pending(lr: u64) -> u64 {
    lr | 1 << 62
}

/// Returns the value of a list register that is not linked, with the wish to know when the guest ends it.
pub(crate) const fn watched(lr: u64) -> u64 {
    lr | 1 << 41
}

/// Returns a list register's value without "pending".
pub(crate) const fn not_pending(lr: u64) -> u64 {
    lr & !(1 << 62)
}

/// Tells whether a list register with this value has an effect: it holds an interrupt, or it asserts the maintenance
/// interrupt because the guest has ended a watched one.
pub(crate) const fn acts(lr: u64) -> bool {
    lr >> 62 != 0 || lr & (1 << 61 | 1 << 41) == 1 << 41
}
