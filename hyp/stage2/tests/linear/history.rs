//! What happened to one page, as its callers saw it, and the search for an order that explains it.
//!
//! A history is linearizable if each step can be placed at one moment between its call and its return so that, taken in that
//! order, every step sees what a single owner of the page would have seen. The search tries the steps that may come first, one
//! after the other, and remembers which sets of steps it has left behind in which state (Wing and Gong, 1993; Lowe, 2017).

use std::collections::HashSet;
use types::Access;

/// What a page is: where it goes, what may be done there, and whether the next harvest owes a report of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Mapped {
    pub(crate) pa: u64,
    pub(crate) access: Access,
    pub(crate) is_dirty: bool,
}

/// The state of a page.
pub(crate) type Page = Option<Mapped>;

/// What a call did to a page, or saw of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Step {
    /// It was a hole and is mapped.
    Map(Mapped),
    /// It was mapped already.
    Occupied,
    /// It is a hole now, and this is where it went, if it was none before.
    Unmap(Option<u64>),
    /// It has these rights, if it is mapped.
    Protect(Access),
    /// It may be written and counts as written.
    Write,
    /// It was reported as written, or not, and is clean.
    Harvest { reported: bool },
    /// It went to the first address, and goes to the second.
    Move(u64, u64),
    /// It was found like this.
    See(Option<(u64, Access)>),
}

/// A step, and the interval in which it happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    pub(crate) call: u64,
    pub(crate) returned: u64,
    pub(crate) step: Step,
}

impl Step {
    /// Returns the page after the step; `None` where the step cannot have been seen on a page like this.
    fn on(self, page: Page) -> Option<Page> {
        match (self, page) {
            (Self::Map(mapped), None) => Some(Some(mapped)),
            (Self::Occupied, Some(_)) => Some(page),
            (Self::Unmap(pa), _) => (pa == page.map(|mapped| mapped.pa)).then_some(None),
            (Self::Protect(_), None) => Some(None),
            (Self::Protect(access), Some(mapped)) => {
                let is_dirty = mapped.is_dirty && access.contains(Access::WRITE);
                Some(Some(Mapped { access, is_dirty, ..mapped }))
            }
            (Self::Write, Some(mapped)) => {
                Some(Some(Mapped { access: mapped.access | Access::WRITE, is_dirty: true, ..mapped }))
            }
            // More may be reported than was written: blocks are reported whole.
            (Self::Harvest { reported: true }, Some(mapped)) => {
                Some(Some(Mapped { is_dirty: false, ..mapped }))
            }
            (Self::Harvest { reported: false }, _) => {
                page.is_none_or(|mapped| !mapped.is_dirty).then_some(page)
            }
            (Self::Move(from, to), Some(mapped)) if mapped.pa == from => {
                Some(Some(Mapped { pa: to, ..mapped }))
            }
            (Self::See(seen), _) => (seen == page.map(|mapped| (mapped.pa, mapped.access))).then_some(page),
            _ => None,
        }
    }
}

/// Tells whether an order of the steps, each within its interval, explains them all, from a hole on.
///
/// # Panics
/// Where there are more than 128 steps.
pub(crate) fn is_linearizable(steps: &[Timed]) -> bool {
    assert!(steps.len() <= 128, "a history for a small search");
    let all = if steps.is_empty() { 0 } else { u128::MAX >> (128 - steps.len()) };
    let mut seen = HashSet::new();
    let mut open = vec![(0u128, None)];
    while let Some((done, page)) = open.pop() {
        if done == all {
            return true;
        }
        let left = || (0..steps.len()).filter(|n| done & (1 << n) == 0);
        // Whatever was called after another step had returned comes after it.
        let first_return = left().map(|n| steps[n].returned).min().unwrap_or(u64::MAX);
        for n in left().filter(|&n| steps[n].call < first_return) {
            if let Some(next) = steps[n].step.on(page) {
                let then = (done | 1 << n, next);
                if seen.insert(then) {
                    open.push(then);
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mapped = Mapped { pa: 1, access: Access::RWX, is_dirty: true };

    fn at(call: u64, returned: u64, step: Step) -> Timed {
        Timed { call, returned, step }
    }

    #[test]
    fn steps_that_overlap_may_have_come_in_either_order() {
        let map = at(0, 3, Step::Map(A));
        assert!(is_linearizable(&[map, at(1, 2, Step::See(None))]));
        assert!(is_linearizable(&[map, at(1, 2, Step::See(Some((1, Access::RWX))))]));
        assert!(is_linearizable(&[map, at(1, 2, Step::Unmap(None)), at(4, 5, Step::Occupied)]));
    }

    #[test]
    fn what_has_returned_is_seen_by_whoever_is_called_later() {
        let map = at(0, 1, Step::Map(A));
        assert!(!is_linearizable(&[map, at(2, 3, Step::See(None))]), "lost");
        assert!(!is_linearizable(&[map, at(2, 3, Step::Unmap(None))]), "left behind");
        assert!(!is_linearizable(&[map, at(2, 3, Step::Map(A))]), "mapped twice");
        assert!(!is_linearizable(&[map, at(2, 3, Step::Harvest { reported: false })]), "a write is missing");
    }

    #[test]
    fn nothing_comes_out_twice() {
        let map = at(0, 1, Step::Map(A));
        let unmap = |call| at(call, 9, Step::Unmap(Some(1)));
        assert!(is_linearizable(&[map, unmap(2)]));
        assert!(!is_linearizable(&[map, unmap(2), unmap(3)]));
        assert!(!is_linearizable(&[map, unmap(2), at(3, 9, Step::Move(1, 2)), at(10, 11, Step::Occupied)]));
    }
}
