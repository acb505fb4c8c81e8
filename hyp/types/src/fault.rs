//! What the hardware tells about a second-stage fault.

use crate::{Access, Height, Ipa};

/// A second-stage fault: the start of the flow fault → plan → owed → ticket → quiesced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The address that did not translate. Exact to the byte for data accesses and fetches; for a fault on a stage-1
    /// table walk, exact to the page (HPFAR_EL2 holds no lower bits, and FAR_EL2 then speaks of another address).
    pub ipa: Ipa,
    /// The rights that the access needed. A permission fault on a stage-1 walk counts as a write, since the walk may
    /// have wanted to set an access or dirty flag.
    pub access: Access,
    /// Why it did not translate.
    pub kind: FaultKind,
    /// What kind of access it was.
    pub cause: Cause,
    /// The height at which the walk stopped.
    pub height: Height,
}

/// Why an access did not translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The entry is not valid.
    Translation,
    /// The entry is valid and does not give the right.
    Permission,
    /// The entry is valid and old, and this CPU does not set the access flag by itself.
    AccessFlag,
    /// The input or output address is beyond the configured size.
    AddressSize,
    /// The CPU found two translations for one address (break-before-make level 1 or 2 in progress).
    TlbConflict,
}

/// What kind of access faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A load or store.
    Data,
    /// An instruction fetch.
    Fetch,
    /// The CPU's own walk of the guest's stage-1 tables.
    Stage1Walk,
    /// A cache-maintenance or address-translation instruction.
    Maintenance,
}
