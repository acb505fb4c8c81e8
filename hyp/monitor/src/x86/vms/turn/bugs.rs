//! Bugs of the hypervisor's that show where a vCPU is entered: what their reports say, and how a test comes by one.

use super::super::super::machine::write_word;
use super::super::Format;
use super::Turn;
use crate::provoke::Provoke;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use log::warn;
use stage2::{Answer, HEIGHTS, Quiescence};
use types::{Cpu, FRAME_SIZE, Height, Ipa, Pa, Range};
use x86_64::vmx::refused::{Refused, State};

/// The entries on the way to an address, from the root on, up to the first that a CPU does not go past.
struct Steps {
    format: Format,
    /// How many bits the machine's addresses have.
    address_bits: u8,
    steps: [Option<Step>; HEIGHTS],
}

/// One of them.
#[derive(Clone, Copy)]
struct Step {
    height: Height,
    /// Where the entry is.
    at: Pa,
    raw: u64,
}

impl Steps {
    /// Adds a step. Tells whether a CPU goes past it.
    fn push(&mut self, step: Step) -> bool {
        if let Some(free) = self.steps.iter_mut().find(|step| step.is_none()) {
            *free = Some(step);
        }
        self.format.wrong(step.raw, step.height, self.address_bits).is_none()
    }
}

impl fmt::Display for Steps {
    /// A line for each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { height, at, raw } in self.steps.iter().flatten() {
            write!(f, "\n  height {}, entry at {at}: {raw:#018x}", height.get())?;
            if let Some(wrong) = self.format.wrong(*raw, *height, self.address_bits) {
                write!(f, ": {wrong}")?;
            }
        }
        Ok(())
    }
}

impl Turn {
    /// Reports an entry that the CPU has refused.
    pub(super) fn refused(&self, refused: Refused) -> ! {
        panic!("{}: vCPU {} cannot be entered: {refused}\n{}", self.name(), self.vcpu, State::read())
    }

    /// Reports tables that hold what is no entry, on the way to `ipa`.
    pub(super) fn misconfigured(&self, ipa: Ipa) -> ! {
        let steps = self.steps_to(ipa);
        panic!("{}: vCPU {} met a misconfigured entry on the way to {ipa}{steps}", self.name(), self.vcpu)
    }

    fn steps_to(&self, ipa: Ipa) -> Steps {
        const ALL: u8 = 52;
        let address_bits = self.hypervisor.machine.types.as_ref().map_or(ALL, |types| types.width);
        let mut steps =
            Steps { format: self.hypervisor.layout.format(), address_bits, steps: [None; HEIGHTS] };
        let section = self.hypervisor.waiting.enter(self.this.core.id());
        let view = self.guest.space.tree().open(&section);
        view.walk_shared(Range::block_around(ipa, FRAME_SIZE), &mut |entry| {
            let step = Step { height: entry.height(), at: entry.address(), raw: entry.raw() };
            if steps.push(step) { Answer::Descend } else { Answer::Stop }
        });
        steps
    }

    /// Makes the bug that the command line asks for, at the first vCPU that starts.
    pub(super) fn provoke_if_asked(&self) {
        static IS_DONE: AtomicBool = AtomicBool::new(false);
        let Some(bug) = self.hypervisor.machine.options.provoke else { return };
        if !bug.is_of_a_guest() || IS_DONE.swap(true, Relaxed) {
            return;
        }
        warn!("{}: vCPU {} gets the bug that is to be provoked", self.name(), self.vcpu);
        match bug {
            Provoke::Entry => {
                let steps = self.steps_to(Ipa::new(self.vmcs.rip()));
                if let Some(last) = steps.steps.iter().flatten().last() {
                    // Writes without reads.
                    // SAFETY: not safe: tables that are wrong are what is wanted.
                    unsafe { write_word(last.at, last.raw as u32 & !0b111 | 0b010) };
                }
            }
            Provoke::State => self.vmcs.spoil(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ept::{Ept, Features};

    #[test]
    fn the_entries_on_the_way_are_shown_with_what_is_wrong() {
        let format = Ept::new(Features::all());
        let mut steps = Steps { format, address_bits: 40, steps: [None; HEIGHTS] };
        let step = |height, at, raw| Step { height: Height::new(height), at: Pa::new(at), raw };
        assert!(steps.push(step(3, 0x1000, 0x2907)));
        assert!(steps.push(step(2, 0x2008, 0x3907)));
        assert!(!steps.push(step(1, 0x3010, 0x2003f2)));
        let text = std::format!("at 0x40200000{steps}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[1], "  height 3, entry at 0x1000: 0x0000000000002907");
        assert_eq!(
            lines[3],
            "  height 1, entry at 0x3010: 0x00000000002003f2: it allows writes, and no reads"
        );
    }
}
