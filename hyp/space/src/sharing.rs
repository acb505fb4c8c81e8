//! Sharing and giving: pages of one space come behind addresses of another, for a while or for good.
//!
//! | state of a page | the one side's leaf | the other side's leaf | the frame's word |
//! | --- | --- | --- | --- |
//! | owned | `Space` | none | one reference, its owner's |
//! | lent and borrowed, to read or to write | `Lent`, with all rights of its region | `Borrowed`, with the rights of the loan | two references, its owner's |
//! | given | none | `Space` | one reference, the receiver's |
//!
//! Invariants (docs/protocol/share.md):
//! - A step checks everything, then commits, and no check comes after the first thing that somebody can tell. Both sides'
//!   entries and the frames' words are owned from the last check on. A step that fails has changed nothing but sizes.
//! - The word decides: what is pinned, lent or being changed refuses. So nothing changes hands under a pinner, and nothing that
//!   is lent moves, is given away, lent once more, or made part of a block.
//! - What is taken back is the lender's alone again when no CPU and no IOMMU can reach it by the borrower's addresses, and
//!   nobody holds it by its word.
//! - Nobody waits here for software while it owns something: who finds an entry owned, or a word held, lets go of all it owns
//!   and says so. So two steps that cross, in whatever direction, never wait for each other.
//!
//! Neighbours: `stage2` holds, takes and claims entries, `frames` has the words. Which pages are lent to whom is for the caller
//! to know, who takes back what it has lent before one of the two spaces is condemned.

mod give;
mod lend;
mod take_back;

use crate::space::TableView;
use crate::{Backing, MoveError, Region, Space, SpaceError};
use core::fmt;
use frames::{FrameError, Order, Refused};
use stage2::{ChangeError, Claim, Format, Invalidate, Leaf, MapError, Why, span};
use types::{Access, CpuId, Height, Ipa, Range};

/// The most pages of one step.
pub const SHARE_STEP_PAGES: usize = 16;

/// One of two spaces, as the CPU that acts reaches it.
#[derive(Debug)]
pub struct Side<'a, 'f, F: Format, I> {
    /// The memory.
    pub space: &'a Space<'f, F>,
    /// How its translations are invalidated by this CPU.
    pub tlb: &'a I,
}

/// Two spaces between which pages go.
#[derive(Debug)]
pub struct Between<'a, 'f, F: Format, I> {
    /// Whose pages they are.
    pub from: Side<'a, 'f, F, I>,
    /// Who gets them.
    pub to: Side<'a, 'f, F, I>,
}

/// Why pages did not change hands. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShareError {
    /// The pages are none, too many for one step, not whole, beyond the addresses of one of the two, or both are one space.
    BadPages,
    /// Nothing is mapped here.
    NotMapped {
        /// The owner's address.
        ipa: Ipa,
    },
    /// A device, or memory that is lent or borrowed: it is not the owner's to lend or to give.
    NotOwned {
        /// The owner's address.
        ipa: Ipa,
    },
    /// The owner itself has not the rights that it would lend.
    Denied {
        /// The owner's address.
        ipa: Ipa,
    },
    /// Somebody has the memory pinned, and has been asked to let go. Come back later.
    Pinned {
        /// The owner's address.
        ipa: Ipa,
    },
    /// The other's addresses are not all in one region for such memory that gives the rights.
    NoPlace {
        /// The other's address.
        ipa: Ipa,
    },
    /// Something is there already.
    Occupied {
        /// The other's address.
        ipa: Ipa,
    },
    /// A dirty log of the borrower's runs there, which would not hear of the lender's writes.
    Logging,
    /// There is no page for a table.
    OutOfTables {
        /// The address, of either.
        ipa: Ipa,
    },
    /// An IOMMU is attached whose devices could not stand that the entry is broken.
    DeviceWouldFault {
        /// The owner's address.
        ipa: Ipa,
    },
    /// One of the two is dying.
    Dying,
    /// Another CPU is changing something here. Pass a quiescent point, and come back later.
    Busy {
        /// The address, of either.
        ipa: Ipa,
    },
}

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadPages => write!(f, "these are no pages that one step can bring from one VM to another"),
            Self::NotMapped { ipa } => write!(f, "nothing is mapped at {ipa}"),
            Self::NotOwned { ipa } => write!(f, "what is at {ipa} is not the VM's to lend or give"),
            Self::Denied { ipa } => write!(f, "the VM has not the rights at {ipa} that it would lend"),
            Self::Pinned { ipa } => write!(f, "the memory at {ipa} is pinned"),
            Self::NoPlace { ipa } => write!(f, "no memory region at {ipa} for what others lend or give"),
            Self::Occupied { ipa } => write!(f, "something is mapped at {ipa}"),
            Self::Logging => write!(f, "a dirty log of the borrower's runs"),
            Self::OutOfTables { ipa } => write!(f, "no memory left for the tables of {ipa}"),
            Self::DeviceWouldFault { ipa } => write!(f, "a device of the VM could not stand that {ipa} goes"),
            Self::Dying => write!(f, "the memory of one of the VMs is going back"),
            Self::Busy { ipa } => write!(f, "the mapping at {ipa} is being changed"),
        }
    }
}

impl core::error::Error for ShareError {}

/// The pages of one step: where they are, and where they go.
#[derive(Clone, Copy, Debug)]
struct Pages {
    from: Range,
    to: Range,
}

impl Pages {
    /// Goes through the pages: the owner's address, and the other's.
    fn iter<F: Format>(self) -> impl Iterator<Item = (Ipa, Ipa)> {
        let page = span::<F>(Height::PAGE);
        (0..self.from.len() / page)
            .map(move |n| (self.from.start().wrapping_add(n * page), self.to.start().wrapping_add(n * page)))
    }
}

/// As many places as one step has pages.
fn places<T>() -> [Option<T>; SHARE_STEP_PAGES] {
    core::array::from_fn(|_| None)
}

/// Returns the order of a page's frames.
fn page_order<F: Format>() -> Order {
    Order::of_bytes(span::<F>(Height::PAGE)).unwrap_or(Order::FRAME)
}

impl<'f, F: Format, I: Invalidate> Between<'_, 'f, F, I> {
    /// Checks what a step is on.
    fn pages(&self, from: Range, at: Ipa) -> Result<Pages, ShareError> {
        let page = span::<F>(Height::PAGE);
        let to = Range::with_len(at, from.len()).map_err(|_| ShareError::BadPages)?;
        let reach = |side: &Side<'_, 'f, F, I>| side.space.tree.geometry().reach();
        let is_right = !from.is_empty()
            && from.len() <= SHARE_STEP_PAGES as u64 * page
            && from.is_aligned(page)
            && to.is_aligned(page)
            && reach(&self.from).covers(from)
            && reach(&self.to).covers(to)
            && !core::ptr::eq(self.from.space, self.to.space);
        if is_right { Ok(Pages { from, to }) } else { Err(ShareError::BadPages) }
    }

    fn check_alive(&self) -> Result<(), ShareError> {
        let both = self.from.space.check_alive().and(self.to.space.check_alive());
        both.map_err(|_| ShareError::Dying)
    }
}

impl<'f, F: Format, I: Invalidate> Side<'_, 'f, F, I> {
    /// Has the page at `ipa` be one that can change hands, as far as that shows before anything is owned: mapped by itself,
    /// in a folio by itself, the space's own, pinned by nobody.
    fn single<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        cpu: CpuId,
        ipa: Ipa,
        access: Access,
    ) -> Result<(), ShareError> {
        let space = self.space;
        let region = space.standing(view, ipa).map_err(|_| ShareError::NotMapped { ipa })?.region;
        if region.backing != Backing::Ram {
            return Err(ShareError::NotOwned { ipa });
        }
        if !region.access.contains(access) {
            return Err(ShareError::Denied { ipa });
        }
        let sight = view.sight(ipa);
        let moves = |error| of_move(error, ipa);
        let leaf = space.movable(&sight, ipa).map_err(moves)?;
        let order = page_order::<F>();
        let inside = ipa.get() & (span::<F>(sight.height()) - 1);
        space.ask(cpu, ipa, leaf.pa.wrapping_add(inside), order).map_err(moves)?;
        let tlb = &space.everyone(self.tlb);
        view.split(tlb, ipa, Height::PAGE, Why::Owner).map_err(of_change)?;
        let leaf = space.movable(&view.sight(ipa), ipa).map_err(moves)?;
        space.ask(cpu, ipa, leaf.pa, order).map_err(moves)?;
        space.leave_folio(cpu, ipa, leaf.pa, order).map_err(moves)
    }

    /// Claims the place of each page, in one region whose backing is `backing`, that gives all of `access`. Returns the region,
    /// which stands as long as the places are claimed: who changes it waits for their outcome.
    fn claim<'c, 'v, R>(
        &self,
        view: &'c TableView<'v, 'f, F, R>,
        pages: Pages,
        backing: Backing,
        access: Access,
    ) -> Result<(Region, Claims<'c, 'v, 'f, F, R>), ShareError> {
        let (space, ipa) = (self.space, pages.to.start());
        let standing = space.standing(view, ipa).map_err(|_| ShareError::NoPlace { ipa })?;
        let region = standing.region;
        if region.backing != backing || !region.range.covers(pages.to) || !region.access.contains(access) {
            return Err(ShareError::NoPlace { ipa });
        }
        let mut claims = places();
        for (claim, (_, ipa)) in claims.iter_mut().zip(pages.iter::<F>()) {
            let claimed = space.regions.claim(view, &standing, ipa, Height::PAGE, Why::Owner);
            *claim = Some(claimed.map_err(|error| of_map(error, ipa))?.ok_or(ShareError::Busy { ipa })?);
        }
        Ok((region, claims))
    }

    /// Checks a leaf that is owned: it is a page of the space's own.
    fn check(&self, leaf: Leaf, height: Height, ipa: Ipa) -> Result<(), ShareError> {
        if height == Height::PAGE && leaf.attrs.owner == stage2::Owner::Space {
            Ok(())
        } else {
            Err(ShareError::Busy { ipa })
        }
    }
}

/// The places of pages, frozen.
type Claims<'c, 'v, 'f, F, R> = [Option<Claim<'c, 'v, F, frames::Tables<'f>, R>>; SHARE_STEP_PAGES];

/// Says what it means that an entry of the owner's could not be had.
fn of_change(error: ChangeError) -> ShareError {
    match error {
        ChangeError::Busy { ipa, .. } => ShareError::Busy { ipa },
        ChangeError::NoPages { ipa, .. } => ShareError::OutOfTables { ipa },
        ChangeError::DeviceWouldFault { ipa, .. } => ShareError::DeviceWouldFault { ipa },
        ChangeError::Unmappable => ShareError::BadPages,
    }
}

/// Says what it means that a page of the owner's cannot leave its place.
fn of_move(error: MoveError, ipa: Ipa) -> ShareError {
    match error {
        MoveError::NotMapped { ipa } => ShareError::NotMapped { ipa },
        MoveError::Immovable { ipa } => ShareError::NotOwned { ipa },
        MoveError::Pinned { ipa } => ShareError::Pinned { ipa },
        MoveError::DeviceWouldFault { ipa } => ShareError::DeviceWouldFault { ipa },
        MoveError::NoMemory => ShareError::OutOfTables { ipa },
        MoveError::WrongSize { ipa }
        | MoveError::Uneven { ipa }
        | MoveError::Scattered { ipa }
        | MoveError::Busy { ipa } => ShareError::Busy { ipa },
        MoveError::Logging => ShareError::Busy { ipa }, // for a while
    }
}

/// Says what it means that a place could not be claimed.
fn of_map(error: MapError, ipa: Ipa) -> ShareError {
    match error {
        MapError::NoPages => ShareError::OutOfTables { ipa },
        MapError::Occupied { .. } | MapError::Noted { .. } => ShareError::Occupied { ipa },
        MapError::Busy { .. } => ShareError::Busy { ipa },
        MapError::Unmappable => ShareError::BadPages,
    }
}

/// Says what a refused word means.
fn of_word(error: FrameError, ipa: Ipa) -> ShareError {
    match error {
        FrameError::Refused { why: Refused::Pinned, .. } => ShareError::Pinned { ipa },
        FrameError::Refused { why: Refused::Shared, .. } => ShareError::NotOwned { ipa },
        _ => ShareError::Busy { ipa },
    }
}

/// Says what it means that the borrower's entries could not be had.
fn of_space(error: SpaceError, ipa: Ipa) -> ShareError {
    match error {
        SpaceError::Busy { ipa } => ShareError::Busy { ipa },
        SpaceError::OutOfTables { ipa } => ShareError::OutOfTables { ipa },
        _ => ShareError::NoPlace { ipa },
    }
}
