//! What is measured, by operation.

pub mod faults;
pub mod fill;
pub mod pins;
pub mod size;
pub mod split;
pub mod threads;
pub mod translate;
pub mod waiting;

use crate::comparison::Comparison;

/// A group of rows that are measured together.
pub struct Group {
    /// How it is asked for.
    pub key: &'static str,
    /// Prepares it.
    pub make: fn() -> Vec<Comparison>,
}

/// All groups, in the order of the table.
pub const GROUPS: &[Group] = &[
    Group { key: "translate", make: translate::comparisons },
    Group { key: "map", make: fill::map },
    Group { key: "unmap", make: fill::unmap },
    Group { key: "split", make: split::comparisons },
    Group { key: "threads", make: threads::translating },
    Group { key: "faults", make: faults::comparisons },
    Group { key: "pins", make: pins::comparisons },
    Group { key: "disturbed", make: threads::disturbed },
    Group { key: "waiting", make: waiting::comparisons },
    Group { key: "size", make: size::comparisons },
];
