//! The virtual machines that there are, each in a place of its own.
//!
//! ```text
//! free ──claim──▶ in hand ──settle──▶ here ──▶ leaving ──▶ remains ──▶ gone ──▶ free
//!                    ▲                  │         │           │         │
//!                    └─────────── take, for a step of the end; then settle ─┘
//! ```
//!
//! A place is locked for a look only. Who makes a guest, or does a step of its end, has it *in hand* meanwhile, and others
//! find it so and come back. A guest that is here is kept by whoever has got it from [`Roster::find`] or
//! [`Roster::iter`], so that its end waits for them.

use crate::remains::{Gone, Remains};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::mutex::SpinMutex;
use stage2::Format;
use vm::{Role, VmConfig};

/// The most virtual machines at a time.
pub(crate) const MOST_GUESTS: u16 = 128;

/// A guest, as its place knows it.
pub(crate) trait Listed {
    /// The format of its tables.
    type Format: Format;

    /// Returns what the manifest says of it.
    fn config(&self) -> &VmConfig;
}

/// How far a guest is in its life.
pub(crate) enum Life<G: Listed> {
    /// There is none.
    Free,
    /// A CPU makes it, or does a step of its end.
    InHand,
    /// It is there.
    Here(Arc<G>),
    /// Its space is condemned, and its vCPUs are on their way out.
    Leaving(Arc<G>),
    /// Its vCPUs are out, and its memory goes back.
    Remains(Box<Remains<G::Format>>),
    /// Its memory has gone back; whether all of it has is looked at.
    Gone(Gone),
}

/// A guest's place, and which guest's it is.
struct Place<G: Listed> {
    life: Life<G>,
    /// How many guests have had this place.
    times: u32,
}

/// What a handle leads to.
pub(crate) enum Found<G> {
    /// A guest.
    Here(Arc<G>),
    /// One whose end has begun.
    Ending,
}

/// What a controller knows a guest by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handle(pub(crate) u64);

impl Handle {
    const fn new(number: u16, times: u32) -> Self {
        Self((times as u64) << 16 | number as u64)
    }

    const fn number(self) -> u16 {
        self.0 as u16
    }

    const fn times(self) -> u64 {
        self.0 >> 16
    }
}

/// All places.
pub(crate) struct Roster<G: Listed> {
    places: Vec<SpinMutex<Place<G>>>,
}

impl<G: Listed> Roster<G> {
    /// Makes a roster of free places.
    pub(crate) fn new() -> Self {
        let place = |_| SpinMutex::new(Place { life: Life::Free, times: 0 });
        Self { places: (0..MOST_GUESTS).map(place).collect() }
    }

    /// Claims a free place for a guest that is to be made, and returns its number; `None` where none is free.
    pub(crate) fn claim(&self) -> Option<u16> {
        (0..MOST_GUESTS).zip(&self.places).find_map(|(number, place)| {
            let mut place = place.lock();
            matches!(place.life, Life::Free).then(|| {
                place.life = Life::InHand;
                place.times += 1;
                number
            })
        })
    }

    /// Puts what became of a guest in its place, which the caller has in hand. Returns the guest's handle.
    pub(crate) fn settle(&self, number: u16, life: Life<G>) -> Handle {
        let Some(place) = self.places.get(usize::from(number)) else { return Handle(0) };
        let mut place = place.lock();
        place.life = life;
        Handle::new(number, place.times)
    }

    /// Looks at the place of a guest that was made of a template: nobody's handle is that of another one.
    fn look<R>(&self, handle: Handle, then: impl FnOnce(&mut Life<G>) -> Option<R>) -> Option<R> {
        let mut place = self.places.get(usize::from(handle.number()))?.lock();
        let is_made = match &place.life {
            Life::Free => false,
            Life::Here(guest) => guest.config().role == Role::Template,
            Life::InHand | Life::Leaving(_) | Life::Remains(_) | Life::Gone(_) => true,
        };
        let is_its = is_made && u64::from(place.times) == handle.times();
        if is_its { then(&mut place.life) } else { None }
    }

    /// Returns the handle of the guest in place `number`, whether it was made of a template or not: what other guests know it by.
    pub(crate) fn handle_of(&self, number: u16) -> Handle {
        let times = self.places.get(usize::from(number)).map_or(0, |place| place.lock().times);
        Handle::new(number, times)
    }

    /// Returns the guest of this handle, if it is here, whether it was made of a template or not.
    pub(crate) fn here(&self, handle: Handle) -> Option<Arc<G>> {
        let place = self.places.get(usize::from(handle.number()))?.lock();
        match &place.life {
            Life::Here(guest) if u64::from(place.times) == handle.times() => Some(Arc::clone(guest)),
            _ => None,
        }
    }

    /// Finds a guest; `None` where the handle is nobody's.
    pub(crate) fn find(&self, handle: Handle) -> Option<Found<G>> {
        self.look(handle, |life| match life {
            Life::Here(guest) => Some(Found::Here(Arc::clone(guest))),
            Life::Free | Life::InHand | Life::Leaving(_) | Life::Remains(_) | Life::Gone(_) => {
                Some(Found::Ending)
            }
        })
    }

    /// Takes a guest in hand, for a step of its end; `None` where the handle is nobody's. The caller settles it again,
    /// unless it is in somebody else's hand.
    pub(crate) fn take(&self, handle: Handle) -> Option<(u16, Life<G>)> {
        self.look(handle, |life| Some((handle.number(), core::mem::replace(life, Life::InHand))))
    }

    /// Goes through the guests that are here.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<G>> {
        self.places.iter().filter_map(|place| match &place.lock().life {
            Life::Here(guest) => Some(Arc::clone(guest)),
            Life::Free | Life::InHand | Life::Leaving(_) | Life::Remains(_) | Life::Gone(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmsa::{Granule4K, Vmsa};

    /// A guest that nothing is known of but its configuration.
    struct Nobody(VmConfig);

    impl Listed for Nobody {
        type Format = Vmsa<Granule4K>;

        fn config(&self) -> &VmConfig {
            &self.0
        }
    }

    type Places = Roster<Nobody>;

    /// Claims a place for a guest, and has it be gone, but for the last look.
    fn gone(roster: &Places) -> Handle {
        let number = roster.claim().expect("a place is free");
        roster.settle(number, Life::Gone(Gone::of_nobody()))
    }

    #[test]
    fn each_claim_is_another_place_until_none_is_free() {
        let roster = Places::new();
        let claimed: Vec<u16> = core::iter::from_fn(|| roster.claim()).collect();
        assert!(claimed.iter().copied().eq(0..MOST_GUESTS));
        roster.settle(7, Life::Free);
        assert_eq!((roster.claim(), roster.claim()), (Some(7), None));
        assert_eq!(roster.iter().count(), 0, "none of them is here");
    }

    #[test]
    fn a_handle_is_one_guests_and_never_anothers() {
        let roster = Places::new();
        let first = gone(&roster);
        assert!(matches!(roster.find(first), Some(Found::Ending)));
        assert!(roster.here(first).is_none());
        let (number, _) = roster.take(first).expect("it is there");
        roster.settle(number, Life::Free);
        assert!(roster.find(first).is_none() && roster.take(first).is_none());
        let second = gone(&roster);
        assert_eq!(second.number(), first.number(), "the place is used anew");
        assert_ne!(second, first);
        assert!(roster.find(first).is_none() && roster.find(second).is_some());
        for nobody in [0, u64::MAX, MOST_GUESTS.into(), second.0 + (1 << 16)] {
            assert!(roster.find(Handle(nobody)).is_none() && roster.take(Handle(nobody)).is_none());
        }
    }

    #[test]
    fn who_finds_a_guest_in_hand_leaves_it_there() {
        let roster = Places::new();
        let handle = gone(&roster);
        let (number, life) = roster.take(handle).expect("it is there");
        assert!(matches!(life, Life::Gone(_)));
        assert!(matches!(roster.take(handle), Some((_, Life::InHand))));
        assert!(matches!(roster.find(handle), Some(Found::Ending)));
        assert_ne!(roster.claim(), Some(number), "it is not free meanwhile");
        assert_eq!(roster.settle(number, life), handle);
        assert!(matches!(roster.take(handle), Some((_, Life::Gone(_)))));
    }

    #[test]
    fn one_of_two_that_reach_for_a_guest_at_once_gets_it() {
        let roster = Places::new();
        let handle = gone(&roster);
        let got: usize = std::thread::scope(|scope| {
            let reach = || matches!(roster.take(handle), Some((_, Life::Gone(_))));
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(reach)).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap_or(false))).sum()
        });
        assert_eq!(got, 1);
    }
}
