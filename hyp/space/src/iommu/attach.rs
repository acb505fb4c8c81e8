//! Letting an IOMMU in, and out again.
//!
//! In: pin the VMID; refrain, and have it forget, from now on; **wait** for whoever began before; make the leaves that are
//! there as it needs them, for table walkers to see; turn it on. Out: turn it off, with nothing left in it; refrain no more; give back the pin.
//!
//! Invariant: whatever fails, or is not gone on with, leaves the space as it was before, but for leaves that have got what
//! their regions give.

use super::{IommuId, Iommus};
use crate::log::at;
use crate::{Backing, Progress, Space, SpaceError};
use core::sync::atomic::Ordering::Relaxed;
use spin::MutexGuard;
use stage2::{Format, Harm, Invalidate, Iommu, Owed, Quiesced, Section};
use types::sync::mutant;
use types::{Access, Ipa, Range, Vmid};

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Others may be at work who do not know yet.
    Waiting,
    /// Everybody knows; leaves from here on may not be as they ought to be.
    Readying(Ipa),
    /// The IOMMU is on.
    On,
}

/// An IOMMU that is being attached. Dropped before [`Attach::step`] is done, it leaves everything as it was.
#[must_use = "the IOMMU is let in by the last step"]
pub struct Attach<'s, 'f, F: Format> {
    space: &'s Space<'f, F>,
    id: IommuId,
    iommu: &'f dyn Iommu,
    vmid: Vmid,
    stage: Stage,
    /// Nobody else attaches or detaches one meanwhile.
    _changing: MutexGuard<'s, ()>,
}

impl<F: Format> core::fmt::Debug for Attach<'_, '_, F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Attach").field("id", &self.id).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl<'f, F: Format> Space<'f, F> {
    /// Has the devices behind an IOMMU translate through the space's tables. Passes a quiescent point after each step.
    ///
    /// From then on what its devices could not stand is refused, and every leaf that is published is as they need it. Memory
    /// that is not mapped yet faults, as ever: whoever lets a device at it puts it there, and pins it.
    ///
    /// `flush` as for [`Vmids::activate`](crate::Vmids::activate).
    ///
    /// # Errors
    /// [`SpaceError::NoIommu`], [`SpaceError::Attached`], [`SpaceError::NoVmids`]; [`SpaceError::LogRuns`];
    /// [`SpaceError::DeviceWouldFault`] where a leaf cannot be made as the IOMMU needs it; [`SpaceError::Busy`] where another
    /// CPU is attaching or detaching one, or changing something for long; [`SpaceError::Dying`]. It is not attached then.
    pub fn attach<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        id: IommuId,
        flush: impl FnOnce(),
    ) -> Result<(), SpaceError> {
        let mut attach = self.start_attach(section, id, flush)?;
        while attach.step(section, tlb)? == Progress::More {
            section.pass();
        }
        Ok(())
    }

    /// Begins to attach an IOMMU: from the return on, steps that begin go by what it can stand. Waits for nobody. While the
    /// result lives, no other IOMMU is attached or detached.
    ///
    /// # Errors
    /// Those of [`Space::attach`]. Nothing was changed.
    pub fn start_attach<S: Section>(
        &self,
        section: &S,
        id: IommuId,
        flush: impl FnOnce(),
    ) -> Result<Attach<'_, 'f, F>, SpaceError> {
        self.alive(section)?;
        let changing = self.iommus.change()?;
        let iommus = &self.iommus;
        let (Some(iommu), Some(devices)) = (iommus.get(id), &iommus.devices) else {
            return Err(SpaceError::NoIommu);
        };
        let before = iommus.attached.load(Relaxed);
        if before & id.bit() != 0 {
            return Err(SpaceError::Attached);
        }
        let vmid = devices.vmids.pin(self.tag(), flush).map_err(|_| SpaceError::NoVmids)?;
        // Told to forget before anybody else knows, and long before it has anything to forget.
        iommus.attached.store(before | id.bit(), Relaxed);
        let attach = Attach { space: self, id, iommu, vmid, stage: Stage::Waiting, _changing: changing };
        let restraint = iommus.restraint(before | id.bit(), self.tree.format());
        // Where it fails, what was done is undone by `attach`.
        self.tree.restrain(restraint).map_err(|_| SpaceError::LogRuns)?;
        Ok(attach)
    }

    /// Has the devices behind an IOMMU translate through the tables no more: on return none of their accesses does, and
    /// nothing is left of the space in the IOMMU. The VMID may become another space's then.
    ///
    /// # Errors
    /// [`SpaceError::NoIommu`] where it is not attached; [`SpaceError::Busy`] where another CPU is attaching or detaching one.
    pub fn detach(&self, id: IommuId) -> Result<(), SpaceError> {
        let _changing = self.iommus.change()?;
        let attached = self.iommus.attached.load(Relaxed);
        match self.iommus.get(id).filter(|_| attached & id.bit() != 0) {
            Some(iommu) => iommu.disable(),
            None => return Err(SpaceError::NoIommu),
        }
        self.let_out(id);
        Ok(())
    }

    /// Undoes what [`Space::start_attach`] has done, for an IOMMU that is off.
    fn let_out(&self, id: IommuId) {
        let iommus = &self.iommus;
        let rest = iommus.attached.load(Relaxed) & !id.bit();
        self.tree.relent(iommus.restraint(rest, self.tree.format()));
        iommus.attached.store(rest, Relaxed);
        if let Some(devices) = &iommus.devices {
            devices.vmids.unpin(self.tag());
        }
    }

    /// Gives the leaves in the first part of `range` what devices need, if any are attached that fail without it: flags, and
    /// all rights that their regions give. Returns up to where that is so.
    pub(crate) fn ready<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
    ) -> Result<Option<Quiesced<Ipa>>, SpaceError> {
        // The regions go on saying what they say until it is done: whoever takes a right away walks the tables afterwards.
        let steady = self.regions.steady(range.start())?;
        let next = {
            let _reading = section.read();
            self.regions.iter().find_map(|region| {
                let part = region.range.intersection(range).filter(|part| !part.is_empty())?;
                Some((region, part))
            })
        };
        let Some((region, part)) = next else { return Ok(None) };
        let owner = region.attrs().owner;
        // What is borrowed has the rights of its loan.
        let access = if region.backing == Backing::Borrowed { Access::empty() } else { region.access };
        let done = self.tree.ready(section, tlb, part, access, owner).map_err(|error| at(error, part))?;
        drop(steady);
        Ok(Some(done))
    }
}

impl Iommus<'_> {
    fn change(&self) -> Result<MutexGuard<'_, ()>, SpaceError> {
        self.changing.try_lock().ok_or(SpaceError::Busy { ipa: Ipa::new(0) })
    }
}

impl<F: Format> Attach<'_, '_, F> {
    /// Does one step. Done, the devices translate through the tables.
    ///
    /// The first step is bounded by a grace period and a bounded wait; each later one by 65,536 entries and four invalidations.
    ///
    /// # Errors
    /// Those of [`Space::attach`]. After [`SpaceError::Busy`] a later step tries again.
    pub fn step<S: Section, I: Invalidate>(
        &mut self,
        section: &mut S,
        tlb: &I,
    ) -> Result<Progress, SpaceError> {
        let space = self.space;
        let tlb = &space.everyone(tlb);
        space.alive(section)?;
        let reach = space.tree.geometry().reach();
        match self.stage {
            Stage::Waiting => {
                if !mutant("iommu-attach-does-not-wait") {
                    space.tree.outlast(section).map_err(|error| at(error, reach))?;
                }
                self.stage = Stage::Readying(reach.start());
            }
            Stage::Readying(next) => {
                let rest =
                    Range::new(next, reach.end()).map_err(|_| SpaceError::BadRegion { range: reach })?;
                let is_needed = space.refrains_from(section, Harm::BREAK) && !mutant("iommu-old-leaves");
                let done = if is_needed { space.ready(section, tlb, rest)? } else { None };
                match done {
                    Some(done) if *done < reach.end() => self.stage = Stage::Readying(*done),
                    _ => {
                        // Who breaks an entry need not have its last word seen at once: guests come again, and devices do not.
                        if !mutant("iommu-let-in-unpublished") {
                            Owed::publication(reach).discharge(tlb).into_inner();
                        }
                        self.iommu.enable(space.root(), self.vmid);
                        self.stage = Stage::On;
                    }
                }
            }
            Stage::On => {}
        }
        Ok(if self.stage == Stage::On { Progress::Done } else { Progress::More })
    }
}

impl<F: Format> Drop for Attach<'_, '_, F> {
    fn drop(&mut self) {
        if self.stage != Stage::On {
            self.space.let_out(self.id);
        }
    }
}
