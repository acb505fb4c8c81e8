//! What barriers and invalidations do: no more than they have to, and as late as they may.

use super::state::{Issued, State};
use super::trace::Event;
use crate::{Reach, Style, Tlbi};
use stage2::Format;

impl<F: Format> State<F> {
    /// A barrier was passed: what it has to have waited for is done.
    pub(super) fn dsb(&mut self, cpu: usize, reach: Reach) {
        if reach >= Reach::Ishst {
            self.unseen.retain(|write| write.cpu != cpu && write.outlasted_by & 1 << cpu == 0);
        }
        if reach == Reach::Ishst {
            return;
        }
        self.observers[cpu].is_finishing = false;
        let all = reach >= Reach::Ish;
        let mut issued = std::mem::take(&mut self.issued);
        issued.retain_mut(|one| {
            if one.by != cpu {
                return true;
            }
            let reached: Vec<usize> = one.left.iter().copied().filter(|&who| all || who == cpu).collect();
            one.left.retain(|who| !reached.contains(who));
            for who in reached {
                self.reach(who, &one.tlbi);
            }
            !one.left.is_empty()
        });
        self.issued = issued;
    }

    /// An invalidation is issued: it reaches each observer some time before the barrier that waits for it is passed.
    pub(super) fn tlbi(&mut self, cpu: usize, tlbi: Tlbi) {
        let everybody = 0..self.observers.len();
        let left = everybody.filter(|&who| who == cpu || tlbi.op.is_broadcast()).collect();
        self.issued.push(Issued { by: cpu, tlbi, left });
        let last = self.issued.len() - 1;
        for who in 0..self.observers.len() {
            if self.dice.one_in(3) {
                self.arrive(last, who);
            }
        }
        self.issued.retain(|one| !one.left.is_empty());
    }

    /// An invalidation under way reaches one observer more.
    pub(super) fn arrive(&mut self, n: usize, who: usize) {
        let Some(one) = self.issued.get_mut(n) else { return };
        if one.left.contains(&who) {
            one.left.retain(|left| *left != who);
            let tlbi = one.tlbi;
            self.reach(who, &tlbi);
        }
    }

    fn reach(&mut self, who: usize, tlbi: &Tlbi) {
        self.observers[who].cache.forget(tlbi);
        self.note(tlbi.range, Event::Reached(who, *tlbi));
    }

    /// Tells whether what `who` holds can be used: not where it has to forget it before it enters a guest again.
    pub(super) fn counts(&self, who: usize) -> bool {
        let observer = &self.observers[who];
        self.style == Style::Broadcast
            || observer.is_inside
            || observer.is_finishing
            || observer.generation == self.generation
    }

    /// Tells whether `who` may walk the tables now.
    pub(super) fn may_walk(&self, who: usize) -> bool {
        let observer = &self.observers[who];
        match self.style {
            // Before a tree ends, everybody has left it for another.
            _ if self.is_ending || observer.tag.is_none() => false,
            Style::Broadcast => true,
            Style::Interrupt => observer.is_inside,
            Style::InterruptArm => observer.is_inside || observer.is_finishing,
        }
    }
}
