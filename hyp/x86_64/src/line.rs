//! How a CPU is interrupted by the others: so that its handler knows their interrupts from the machine's own.
//!
//! ```text
//!            ring: send an NMI                 deaf: before it waits for a start-up
//!   down ────────────────────────▶ up     down ────────────────────────────────────▶ deaf
//!        ◀────────────────────────             ◀────────────────────────────────────
//!            answer: the handler, first of all      listens: it looks for itself what was wanted
//! ```
//!
//! An NMI that finds the line down is nobody's here. A line that is up has an NMI under way: who rings then sends none, and is
//! seen by the handler, which takes the line down before it looks.

use crate::apic::Apic;
use core::sync::atomic::{
    AtomicU8,
    Ordering::{Relaxed, SeqCst},
    compiler_fence,
};

const DOWN: u8 = 0;
const UP: u8 = 1;
const DEAF: u8 = 2;

/// A CPU as the others interrupt it.
///
/// The changes of its state are locked instructions, which are full barriers on this architecture (SDM 3A, 9.2.2): what was
/// stored before [`Line::ring`] is seen after [`Line::answer`] and [`Line::listen`].
#[derive(Debug)]
pub struct Line {
    apic_id: u32,
    state: AtomicU8,
}

impl Line {
    /// Makes the line of the CPU whose local APIC has this number.
    pub const fn new(apic_id: u32) -> Self {
        Self { apic_id, state: AtomicU8::new(DOWN) }
    }

    /// Returns the number of its local APIC.
    pub const fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// Sends the CPU a non-maskable interrupt, unless one is under way, or it takes none.
    pub fn ring(&self, apic: Apic) {
        compiler_fence(SeqCst);
        if self.state.compare_exchange(DOWN, UP, Relaxed, Relaxed).is_ok() {
            apic.send_nmi(self.apic_id);
        }
    }

    /// Tells whether somebody has rung. To be called on this CPU for each non-maskable interrupt that it takes, before it does
    /// what an interrupt is for.
    pub fn answer(&self) -> bool {
        let was = self.state.compare_exchange(UP, DOWN, Relaxed, Relaxed).is_ok();
        compiler_fence(SeqCst);
        was
    }

    /// Says that this CPU takes no interrupts from here on, once those that are under way have come.
    pub fn deafen(&self) {
        while self.state.compare_exchange(DOWN, DEAF, Relaxed, Relaxed) == Err(UP) {
            core::hint::spin_loop();
        }
    }

    /// Says that this CPU takes interrupts again. What it was to be rung for it looks for afterwards.
    pub fn listen(&self) {
        let _ = self.state.compare_exchange(DEAF, DOWN, Relaxed, Relaxed);
        compiler_fence(SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic::Mode;
    use crate::effect::{self, Effect};

    const APIC: Apic = Apic::new(Mode::X2);

    fn sent() -> usize {
        effect::take().iter().filter(|effect| matches!(effect, Effect::Wrmsr(..))).count()
    }

    #[test]
    fn one_interrupt_is_under_way_at_a_time_and_what_comes_beyond_is_somebody_else_s() {
        effect::reset();
        let line = Line::new(6);
        line.ring(APIC);
        line.ring(APIC);
        assert_eq!(sent(), 1);
        assert!(line.answer());
        assert!(!line.answer(), "nobody has rung");
        line.ring(APIC);
        assert_eq!(sent(), 1);
    }

    #[test]
    fn who_waits_for_a_start_up_is_sent_nothing() {
        effect::reset();
        let line = Line::new(6);
        line.deafen();
        line.ring(APIC);
        assert_eq!(sent(), 0);
        line.listen();
        assert!(!line.answer());
        line.ring(APIC);
        assert_eq!(sent(), 1);
    }
}
