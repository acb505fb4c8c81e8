//! The contents of a guest's memory, for loaders and emulated devices.
//!
//! The hypervisor touches a guest's frame only while it holds a pin on it: the frame then stays the guest's, whatever
//! happens to its mapping meanwhile. The pin is taken as any pin is: find the word by the entry, pin, look at the
//! entry again.

use crate::fault::There;
use crate::space::TableView;
use crate::tally::Event;
use crate::{Backing, Space, SpaceError};
use frames::{FrameError, Hold, Order};
use stage2::{Format, Found, Invalidate, Section, span};
use types::{Cpu, Ipa, Pa, Range};

/// How often an access tries anew after a lost race.
const PATIENCE: u32 = 8;

/// What is to be touched, and how.
struct Access {
    ipa: Ipa,
    length: u64,
    hold: Hold,
    absent: Absent,
}

/// What to do where there is no memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// Put memory there.
    Populate,
    /// Go on behind it.
    Skip,
}

/// A place in a guest's memory that is pinned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// Where the access begins.
    pa: Pa,
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
        let length = bytes.len() as u64;
        let access = Access { ipa, length, hold: Hold::Write, absent: Absent::Populate };
        self.each_part(section, cpu, tlb, &access, |pa, length| {
            let (now, later) = rest.split_at(rest.len().min(length as usize));
            rest = later;
            self.frames.write(pa, now)?;
            cpu.publish(pa, length);
            Ok(())
        })
    }

    /// Zeroes `length` bytes at `ipa`, any alignment, and makes the zeroes visible as [`Space::copy_in`] does. Where
    /// there is no memory behind an address it stays so, since it would come zeroed.
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
        /// Aligned, for the copy to be by words.
        #[repr(align(8))]
        struct Zeroes([u8; 256]);
        static ZEROES: Zeroes = Zeroes([0; 256]);
        let access = Access { ipa, length, hold: Hold::Write, absent: Absent::Skip };
        self.each_part(section, cpu, tlb, &access, |pa, length| {
            let mut at = pa;
            let end = pa.wrapping_add(length);
            while let Some(left) = end.offset_from(at).filter(|left| *left > 0) {
                let now = &ZEROES.0[..ZEROES.0.len().min(left as usize)];
                self.frames.write(at, now)?;
                at = at.wrapping_add(now.len() as u64);
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
        let access = Access { ipa, length, hold: Hold::Read, absent: Absent::Populate };
        self.each_part(section, cpu, tlb, &access, |pa, length| {
            let (now, later) = core::mem::take(&mut rest).split_at_mut(length as usize);
            rest = later;
            self.frames.read(pa, now)
        })
    }

    /// Calls `part` for each pinned piece of an access, in order.
    fn each_part<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        access: &Access,
        mut part: impl FnMut(Pa, u64) -> Result<(), FrameError>,
    ) -> Result<(), SpaceError> {
        let mut at = access.ipa;
        let mut left = access.length;
        while left > 0 {
            let (bytes, pinned) = self.next_part(section, cpu, tlb, at, access)?;
            let now = bytes.min(left);
            if let Some(Pinned { pa, folio, order }) = pinned {
                let done = part(pa, now);
                if access.hold == Hold::Write {
                    self.tally.count(section.cpu(), Event::Written);
                    self.mark_written(
                        section,
                        Range::with_len(at, now).unwrap_or(Range::block_around(at, 1)),
                    );
                }
                let unpinned = self.frames.unpin(folio, order, access.hold);
                debug_assert_eq!((done, unpinned), (Ok(()), Ok(())), "a pinned frame is not the guest's");
            }
            left -= now;
            at = at.checked_add(now).ok_or(SpaceError::NoRegion { ipa: at })?;
            section.pass();
        }
        Ok(())
    }

    /// Pins what is at `ipa`. Returns how many bytes from there are of the same kind; and the pin, where there is memory.
    fn next_part<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        access: &Access,
    ) -> Result<(u64, Option<Pinned>), SpaceError> {
        for _ in 0..PATIENCE {
            let view = self.tree.open(&*section);
            let standing = self.standing(&view, ipa)?;
            let region = standing.region;
            if region.backing != Backing::Ram {
                return Err(SpaceError::NotRam { ipa });
            }
            let found = view.translate(ipa);
            match self.read(found, ipa) {
                There::Leaf { .. } => {
                    if let Some((bytes, pinned)) = self.try_pin(&view, ipa, found, access.hold)? {
                        return Ok((bytes, Some(pinned)));
                    }
                }
                There::Nothing(height) if access.absent == Absent::Skip => {
                    let end = Range::block_around(ipa, span::<F>(height)).end().min(region.range.end());
                    return Ok((end.get() - ipa.get(), None));
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

    /// Pins the folio that `found`, the entry for `ipa`, translates into. Returns how many bytes from there are in both
    /// the leaf and the folio. `None` where the entry changed meanwhile.
    pub(crate) fn try_pin<R>(
        &self,
        view: &TableView<'_, '_, F, R>,
        ipa: Ipa,
        found: Found<F>,
        hold: Hold,
    ) -> Result<Option<(u64, Pinned)>, SpaceError> {
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
        let leaf = Range::block_around(ipa, span::<F>(found.height()));
        let in_leaf = leaf.end().get() - ipa.get();
        let in_folio = order.bytes() - (pa.get() - folio.get());
        Ok(Some((in_leaf.min(in_folio), Pinned { pa, folio, order })))
    }
}
