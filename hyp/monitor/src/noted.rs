//! What the trace is told by the monitor, whatever the architecture.

use crate::options::Way;
use space::Space;
use stage2::{Format, Geometry};
use trace::Kind;

/// Returns what the trace calls a way of waiting for readers.
pub(crate) const fn way(way: Way) -> u64 {
    match way {
        Way::Epoch => 0,
        Way::Count => 1,
        Way::Rendezvous => 2,
        Way::Batched => 3,
    }
}

/// Returns the shape of tables, as [`Kind::Space`] has it.
pub(crate) fn shape<F: Format>(geometry: &Geometry<F>) -> u64 {
    u64::from(geometry.ipa_bits()) << 16 | u64::from(geometry.top().get()) << 24
}

/// Notes a space, of this shape and with these features of its format.
pub(crate) fn space<F: Format>(kind: Kind, space: &Space<'static, F>, (shape, features): (u64, u64)) {
    let owner = u64::from(space.owner().0);
    trace::note(kind, space.tree().bbm() as u8, [space.root().get(), owner | shape, features]);
}

/// Notes that nothing follows.
pub(crate) fn end() {
    if trace::is_on() {
        trace::note(Kind::End, 0, [0; 3]);
    }
}
