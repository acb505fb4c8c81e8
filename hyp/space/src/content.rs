//! The contents of a guest's memory, for loaders and emulated devices.
//!
//! The hypervisor touches a guest's frame only while it holds a pin on it: the frame then stays the guest's, whatever
//! happens to its mapping meanwhile. The pin is taken as any pin is: find the word by the entry, pin, look at the
//! entry again.

use crate::fault::There;
use crate::space::TableView;
use crate::{Backing, Space, SpaceError};
use frames::{FrameError, Hold, Order};
use stage2::{Format, Found, Invalidate, Section};
use types::{Cpu, Ipa, Pa, Range};

/// How often an access tries anew after a lost race.
const PATIENCE: u32 = 8;

/// Part of a guest's memory that is pinned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// Where the access begins.
    pa: Pa,
    /// How many bytes from there are in the folio and in the leaf.
    bytes: u64,
    /// The folio that is pinned.
    folio: Pa,
    order: Order,
}

impl<F: Format> Space<'_, F> {
    /// Copies `bytes` to `ipa`, any alignment, putting memory behind the addresses where there is none, and makes them
    /// visible to instruction fetches and to observers with caches off. The guest's own rights do not matter: this
    /// loads read-only memory, too. Passes quiescent points.
    ///
    /// # Errors
    /// [`SpaceError::NoRegion`], [`SpaceError::NotRam`], [`SpaceError::OutOfMemory`], [`SpaceError::OutOfTables`],
    /// [`SpaceError::Busy`]: the bytes for the addresses before have been written.
    pub fn copy_in<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        bytes: &[u8],
    ) -> Result<(), SpaceError> {
        let mut rest = bytes;
        self.each_part(section, cpu, tlb, ipa, bytes.len() as u64, Hold::Write, |pa, length| {
            let (now, later) = rest.split_at(rest.len().min(length as usize));
            rest = later;
            self.frames.write(pa, now)?;
            cpu.publish(pa, length);
            Ok(())
        })
    }

    /// Zeroes `length` bytes at `ipa`, any alignment, and makes the zeroes visible as [`Space::copy_in`] does. Memory
    /// that nobody has touched is zero and stays unpopulated only where the guest has not faulted it in: so this is for
    /// a range that something was loaded to before.
    ///
    /// # Errors
    /// As for [`Space::copy_in`].
    pub fn zero<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        length: u64,
    ) -> Result<(), SpaceError> {
        static ZEROES: [u8; types::FRAME_SIZE as usize] = [0; types::FRAME_SIZE as usize];
        self.each_part(section, cpu, tlb, ipa, length, Hold::Write, |pa, length| {
            let mut at = pa;
            let end = pa.wrapping_add(length);
            while let Some(left) = end.offset_from(at).filter(|left| *left > 0) {
                let now = left.min(types::FRAME_SIZE);
                self.frames.write(at, &ZEROES[..now as usize])?;
                at = at.wrapping_add(now);
            }
            cpu.publish(pa, length);
            Ok(())
        })
    }

    /// Copies bytes out from `ipa` on, any alignment, putting (zeroed) memory behind the addresses where there is none.
    /// Passes quiescent points.
    ///
    /// # Errors
    /// As for [`Space::copy_in`]: bytes from the addresses before have been read.
    pub fn copy_out<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        bytes: &mut [u8],
    ) -> Result<(), SpaceError> {
        let length = bytes.len() as u64;
        let mut rest = bytes;
        self.each_part(section, cpu, tlb, ipa, length, Hold::Read, |pa, length| {
            let (now, later) = core::mem::take(&mut rest).split_at_mut(length as usize);
            rest = later;
            self.frames.read(pa, now)
        })
    }

    /// Calls `part` for each pinned piece of `length` bytes at `ipa`, in order.
    #[expect(clippy::too_many_arguments, reason = "what every operation takes, and what to do")]
    fn each_part<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        length: u64,
        hold: Hold,
        mut part: impl FnMut(Pa, u64) -> Result<(), FrameError>,
    ) -> Result<(), SpaceError> {
        let mut at = ipa;
        let mut left = length;
        while left > 0 {
            let pinned = self.pin_part(section, cpu, tlb, at, hold)?;
            let now = pinned.bytes.min(left);
            let done = part(pinned.pa, now);
            let unpinned = self.frames.unpin(pinned.folio, pinned.order, hold);
            debug_assert_eq!((done, unpinned), (Ok(()), Ok(())), "a pinned frame is not the guest's");
            left -= now;
            at = at.checked_add(now).ok_or(SpaceError::NoRegion { ipa: at })?;
            section.pass();
        }
        Ok(())
    }

    fn pin_part<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        hold: Hold,
    ) -> Result<Pinned, SpaceError> {
        for _ in 0..PATIENCE {
            let view = self.tree.open(&*section);
            let standing = self.standing(&view, ipa)?;
            if standing.region.backing != Backing::Ram {
                return Err(SpaceError::NotRam { ipa });
            }
            let found = view.translate(ipa);
            match self.read(found, ipa) {
                There::Leaf { .. } => {
                    if let Some(pinned) = self.try_pin(&view, ipa, found, hold)? {
                        return Ok(pinned);
                    }
                }
                There::Nothing(highest) => {
                    self.map_one(&view, cpu, tlb, &standing, ipa, highest)?;
                }
                There::Note(_) => return Err(SpaceError::NotRam { ipa }),
                There::Owned => {}
            }
            drop(view);
            section.pass();
        }
        Err(SpaceError::Busy { ipa })
    }

    /// Pins the folio that `found`, the entry for `ipa`, translates into. `None` where the entry changed meanwhile.
    pub(crate) fn try_pin<R>(
        &self,
        view: &TableView<'_, '_, F, R>,
        ipa: Ipa,
        found: Found<F>,
        hold: Hold,
    ) -> Result<Option<Pinned>, SpaceError> {
        let Some(pa) = found.pa(ipa) else {
            return Ok(None);
        };
        // Without a record there is nothing to pin. All else may be a frame that has gone since we found it.
        let record = self.frames.record(pa).map_err(|_| SpaceError::NotRam { ipa })?;
        let order = record.load().order();
        let folio = pa.align_down(order.bytes());
        if self.frames.pin(folio, order, hold).is_err() {
            return Ok(None);
        }
        let again = view.translate(ipa);
        if again.pa(ipa) != Some(pa) || again.height() != found.height() {
            self.frames.unpin(folio, order, hold).map_err(|_| SpaceError::NotRam { ipa })?;
            return Ok(None);
        }
        let leaf = Range::block_around(ipa, stage2::span::<F>(found.height()));
        let in_leaf = leaf.end().get() - ipa.get();
        let in_folio = order.bytes() - (pa.get() - folio.get());
        Ok(Some(Pinned { pa, bytes: in_leaf.min(in_folio), folio, order }))
    }
}
