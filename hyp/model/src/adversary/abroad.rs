//! [`Abroad`]: another space on the same machine, to which pages are lent and given, and which lends and gives some.
//!
//! | a frame | who may reach it |
//! | --- | --- |
//! | the space's own | its guest, and devices by its pins |
//! | lent | the same guest, and the neighbour's |
//! | the neighbour's own | the neighbour's guest |
//! | borrowed | the same guest, and the space's |
//!
//! What is done to its tables is seen as what is done to the space's own is. Its guest runs on one CPU of its own, whose TLB
//! holds everything that was ever published there, until an invalidation of that space is complete. So who lends, gives and
//! takes back has to wait for it; and who owned a frame last is found where it reaches it still.

use super::breach::Breach;
use super::machine::{Adversary, pass};
use super::promise::page_range;
use super::state::{Crime, State};
use super::trace::Event;
use super::words::{Use, Words};
use stage2::{Attrs, Format, Geometry, Invalidate, Live, Owner, Scope, TableSize, Work, span};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use types::sync::{Point, Touch};
use types::{Access, Height, Ipa, Pa, Range};

/// Whose a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Whose {
    /// The space's, or nobody's.
    #[default]
    Own,
    /// The space's, and lent to the neighbour.
    Lent,
    /// The neighbour's.
    Theirs,
    /// The neighbour's, and lent to the space.
    Borrowed,
}

/// What the neighbour's TLB holds: a page's frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    page: Ipa,
    pa: Pa,
    access: Access,
}

/// The other space.
#[derive(Debug)]
pub(super) struct Abroad {
    root: Pa,
    tables: BTreeMap<Pa, TableSize>,
    /// Where a table that is or was linked hangs.
    spots: HashMap<Pa, (Ipa, Height)>,
    known: Vec<Known>,
}

impl Abroad {
    /// A space with this root comes into being.
    pub(super) fn new<F: Format>(root: Pa, geometry: &Geometry<F>) -> Self {
        Self {
            root,
            tables: BTreeMap::from([(root, geometry.root_size())]),
            spots: HashMap::from([(root, (Ipa::new(0), geometry.top()))]),
            known: Vec::new(),
        }
    }

    /// Returns the entry at `pa`, if it is one of its tables'.
    fn entry_at(&self, pa: Pa) -> Option<(Pa, usize)> {
        let (table, size) = self.tables.range(..=pa).next_back()?;
        let at = pa.get() - table.get();
        (at < size.bytes()).then_some((*table, (at / 8) as usize))
    }
}

impl<F: Format> State<F> {
    /// A CPU has done something to memory. Returns whether that was to the neighbour's tables, and is seen to.
    pub(super) fn touched_abroad(&mut self, words: &dyn Words, pa: Pa, touch: Touch) -> Result<bool, Crime> {
        let Some(abroad) = &mut self.abroad else { return Ok(false) };
        match touch {
            Touch::Taken(bytes) if words.use_of(pa) == Use::TableAbroad => {
                abroad.tables.extend(TableSize::from_shift(bytes.trailing_zeros()).map(|size| (pa, size)));
                return Ok(true);
            }
            Touch::Freed(_) => {
                abroad.spots.remove(&pa);
                return Ok(abroad.tables.remove(&pa).is_some());
            }
            Touch::Taken(_) | Touch::Cleaned(_) => return Ok(false),
            _ => {}
        }
        let Some((table, index)) = abroad.entry_at(pa) else { return Ok(false) };
        if let Touch::Wrote(_, new) = touch
            && let Some(&(base, height)) = abroad.spots.get(&table)
        {
            let start = base.wrapping_add(index as u64 * span::<F>(height));
            self.leads_abroad(words, Range::block_around(start, span::<F>(height)), height, new)?;
        }
        Ok(true)
    }

    /// An entry of the neighbour's leads somewhere.
    fn leads_abroad(
        &mut self,
        words: &dyn Words,
        range: Range,
        height: Height,
        raw: u64,
    ) -> Result<(), Crime> {
        match (self.format.decode(raw, height).live(), height.below()) {
            (Some(Live::Leaf(leaf)), _) => Self::pages(range).try_for_each(|page| {
                let pa = leaf.pa.wrapping_add(page.get() - range.start().get());
                self.comes_abroad(words, page, pa, leaf.attrs)
            }),
            (Some(Live::Table(table)), Some(below)) => {
                if let Some(abroad) = &mut self.abroad {
                    abroad.spots.insert(table.pa, (range.start(), below));
                }
                (0..self.geometry.entries(below)).try_for_each(|index| {
                    let start = range.start().wrapping_add(index as u64 * span::<F>(below));
                    let raw = words.load(table.pa, index);
                    self.leads_abroad(words, Range::block_around(start, span::<F>(below)), below, raw)
                })
            }
            _ => Ok(()),
        }
    }

    /// A page of the neighbour's leads to a frame: its own, a lent one, or one that was given to it.
    fn comes_abroad(&mut self, words: &dyn Words, page: Ipa, pa: Pa, attrs: Attrs) -> Result<(), Crime> {
        let Some(frame) = self.frames.get(pa).copied() else { return Ok(()) };
        let at = page_range::<F>(frame.home.unwrap_or(page));
        let how = if attrs.owner == Owner::Borrowed { "lent" } else { "given away" };
        match (attrs.owner, frame.whose, frame.home) {
            (Owner::Borrowed, Whose::Own, Some(_)) => self.has_left(words, pa, at, how)?,
            (Owner::Space, Whose::Own, Some(home)) => {
                self.has_left(words, pa, at, how)?;
                self.out_of_reach(pa, span::<F>(Height::PAGE), at)?;
                self.has_no_more(Some(home), pa);
            }
            (Owner::Space, Whose::Own, None) => {} // fresh, for itself
            (Owner::Space, Whose::Theirs, _) | (Owner::Lent, Whose::Borrowed, _) => {}
            (Owner::Space, Whose::Borrowed, _) => self.is_returned(pa, at)?,
            (owner, whose, home) => {
                let what = format!(
                    "{pa:?} comes to the neighbour's {page:?} as {owner:?}, and is {whose:?} of {home:?}"
                );
                return Err(Crime::at(Breach::LoanIgnored, at, what));
            }
        }
        if let Some(frame) = self.frames.get_mut(pa) {
            match attrs.owner {
                Owner::Borrowed => frame.whose = Whose::Lent,
                _ if frame.whose == Whose::Own => {
                    frame.contents = words.contents(pa).unwrap_or(0);
                    (frame.home, frame.leaving, frame.whose) = (None, None, Whose::Theirs);
                }
                _ => {}
            }
        }
        let known = Known { page, pa, access: attrs.access };
        if let Some(abroad) = self.abroad.as_mut().filter(|abroad| !abroad.known.contains(&known)) {
            abroad.known.push(known);
        }
        Ok(())
    }

    /// A frame of the neighbour's that the space had borrowed is the neighbour's alone again: nobody of the space reaches it.
    fn is_returned(&mut self, pa: Pa, at: Range) -> Result<(), Crime> {
        self.out_of_reach(pa, span::<F>(Height::PAGE), at)?;
        let Some(frame) = self.frames.get_mut(pa) else { return Ok(()) };
        let home = frame.home.take();
        (frame.leaving, frame.whose) = (None, Whose::Theirs);
        self.has_no_more(home, pa);
        Ok(())
    }

    /// A page of the space's leads to a frame that the neighbour lends: nobody else of the space has it, and what was written is
    /// there.
    pub(super) fn borrows(&mut self, words: &dyn Words, page: Ipa, pa: Pa) -> Result<(), Crime> {
        let (now, at) = (self.now, page_range::<F>(page));
        let Some(frame) = self.frames.get(pa).copied() else { return Ok(()) };
        if frame.whose != Whose::Theirs {
            let what = format!("{pa:?} is lent to {page:?}, and is {:?} of {:?}", frame.whose, frame.home);
            return Err(Crime::at(Breach::LoanIgnored, at, what));
        }
        self.has_left(words, pa, at, "lent to the space")?;
        self.out_of_reach(pa, span::<F>(Height::PAGE), at)?;
        if let Some(frame) = self.frames.get_mut(pa) {
            (frame.home, frame.whose) = (Some(page), Whose::Borrowed);
            (frame.since, frame.stored, frame.leaving) = (Some(now), now, None);
        }
        Ok(())
    }

    /// A page does not have this frame any more, if it had.
    pub(super) fn has_no_more(&mut self, page: Option<Ipa>, pa: Pa) {
        if let (Some(page), Some(holdings)) = (page, &mut self.holdings)
            && holdings.current.get(&page) == Some(&pa)
        {
            holdings.current.remove(&page);
        }
    }

    /// A frame is published for the other of the two: nobody has it pinned, and what was written is there.
    fn has_left(&self, words: &dyn Words, pa: Pa, at: Range, how: &str) -> Result<(), Crime> {
        let Some(frame) = self.frames.get(pa) else { return Ok(()) };
        if frame.pins > 0 {
            let what = format!("{pa:?} is {how}, and has {} pins", frame.pins);
            return Err(Crime::at(Breach::PinIgnored, at, what));
        }
        if words.contents(pa) != Some(frame.contents) {
            let (found, had) = (words.contents(pa), frame.contents);
            let what = format!("{pa:?} is {how} with {found:?}, and {had} was written there");
            return Err(Crime::at(Breach::ContentsLost, at, what));
        }
        Ok(())
    }

    /// A frame that was lent or the neighbour's is about to be another's, or the space's alone: `how`. The neighbour's guest
    /// reaches it no more.
    pub(super) fn leaves_the_neighbour(&mut self, pa: Pa, at: Range, how: &str) -> Result<(), Crime> {
        let Some(frame) = self.frames.get_mut(pa) else { return Ok(()) };
        if frame.whose == Whose::Own {
            return Ok(());
        }
        frame.whose = Whose::Own;
        let known = self.abroad.as_ref().and_then(|abroad| abroad.known.iter().find(|known| known.pa == pa));
        match known {
            None => Ok(()),
            Some(known) => {
                let what = format!("{pa:?} is {how}, and the neighbour may reach it by {:?}", known.page);
                Err(Crime::at(Breach::OutTooEarly, at, what))
            }
        }
    }

    /// The neighbour's guest makes an access by what its TLB holds.
    pub(super) fn neighbour_reaches(&mut self, words: &dyn Words) -> Result<(), Crime> {
        let Some(abroad) = self.abroad.as_ref().filter(|abroad| !abroad.known.is_empty()) else {
            return Ok(());
        };
        let Known { page, pa, access } = *self.dice.pick(&abroad.known);
        let (writes, past_caches) = (self.dice.one_in(2), self.dice.one_in(3));
        let now = self.now;
        let Some(frame) = self.frames.get(pa).copied() else { return Ok(()) };
        let at = page_range::<F>(frame.home.unwrap_or(page));
        if frame.whose == Whose::Own {
            let what = format!("the neighbour reaches {pa:?} by {page:?}, which is of {:?}", frame.home);
            return Err(Crime::at(Breach::StaleUse, at, what));
        }
        if words.contents(pa) != Some(frame.contents) {
            let (found, had) = (words.contents(pa), frame.contents);
            let what = format!("the neighbour finds {found:?} at {pa:?}, and {had} was written there");
            return Err(Crime::at(Breach::ContentsLost, at, what));
        }
        if !writes || !access.contains(Access::WRITE) {
            return Ok(());
        }
        if past_caches {
            words.fill_past_caches(pa, now);
        } else {
            words.fill(pa, now);
        }
        if let Some(frame) = self.frames.get_mut(pa) {
            (frame.contents, frame.stored) = (now, now);
        }
        if let Some(home) =
            frame.home.filter(|home| self.current(*home) == Some(pa) && frame.leaving.is_none())
        {
            self.is_written(home);
        }
        self.note(Some(at), Event::Wrote(usize::MAX, page, pa));
        Ok(())
    }

    /// Returns what the neighbour's TLB holds of `scope` that its tables do not say any more.
    fn stale_abroad(&self, words: &dyn Words, scope: Scope) -> Vec<Known> {
        let Some(abroad) = &self.abroad else { return Vec::new() };
        let is_stale = |known: &&Known| match scope {
            Scope::Tag => true,
            Scope::Range { range, .. } => {
                range.contains(known.page)
                    && self.mapped_abroad(words, abroad.root, known.page) != Some(**known)
            }
        };
        abroad.known.iter().filter(is_stale).copied().collect()
    }

    fn mapped_abroad(&self, words: &dyn Words, root: Pa, page: Ipa) -> Option<Known> {
        let (mut table, mut height) = (root, self.geometry.top());
        loop {
            let raw = words.load(table, self.geometry.index(page, height));
            match self.format.decode(raw, height).live()? {
                Live::Table(link) => (table, height) = (link.pa, height.below()?),
                Live::Leaf(leaf) => {
                    let pa = leaf.pa.wrapping_add(page.get() & (span::<F>(height) - 1));
                    return Some(Known { page, pa, access: leaf.attrs.access });
                }
            }
        }
    }
}

/// How translations of the other space are invalidated.
#[derive(Debug)]
pub struct Neighbour<'g, F: Format>(pub(super) &'g Arc<Adversary<F>>);

/// What goes from the neighbour's TLB when an invalidation is complete.
#[derive(Debug)]
pub struct Stale(Vec<Known>);

impl<F: Format> Invalidate for Neighbour<'_, F> {
    type Pending = Stale;

    fn begin(&self, work: Work) -> Stale {
        pass(Point::Step);
        let mut stale = Vec::new();
        self.0.check(|state, words| {
            stale = state.stale_abroad(words, work.scope);
            Ok(())
        });
        pass(Point::Step);
        Stale(stale)
    }

    fn complete(&self, Stale(stale): Stale) {
        pass(Point::Step);
        self.0.check(|state, _| {
            if let Some(abroad) = &mut state.abroad {
                abroad.known.retain(|known| !stale.contains(known));
            }
            Ok(())
        });
        pass(Point::Step);
    }
}
