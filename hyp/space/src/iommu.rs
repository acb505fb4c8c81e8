//! IOMMUs that translate through a space's tables: which there are, which are attached, and how they forget.
//!
//! Invariants (docs/protocol/iommu.md):
//! - From before its first walk to after its last, everybody who changes a live entry refrains from what an attached IOMMU
//!   could not stand, and has it forget what it may hold. Nobody needs to know of it besides: the tables refuse
//!   (`stage2::Restraint`), and whatever is owed goes through [`Everyone`].
//! - Where memory was mapped when an IOMMU was let in, its leaves are as the IOMMU needs them.
//! - The VMID that its stream table names is the space's own for as long.
//!
//! Neighbours: [`attach`], how one is let in and out; `vmid`, the pins; a driver, which implements [`Iommu`].

mod attach;

pub use attach::Attach;

use crate::{Space, Vmids};
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;
use spin::Mutex;
use stage2::{Class, Format, Harm, Hears, Invalidate, Iommu, Restraint, Section, Work};
use types::Range;
use types::sync::{AtomicU8, mutant};

/// The most IOMMUs that a space can have attached.
pub const MAX_IOMMUS: usize = 4;

/// Which of the IOMMUs that a space was made with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IommuId(u8);

impl IommuId {
    /// Names the `n`th, from 0; `None` where there can be no such.
    pub const fn new(n: u8) -> Option<Self> {
        if (n as usize) < MAX_IOMMUS { Some(Self(n)) } else { None }
    }

    const fn index(self) -> usize {
        self.0 as usize
    }

    const fn bit(self) -> u8 {
        1 << self.0
    }
}

/// The machine's, as far as a space may get to do with them.
struct Devices<'f> {
    vmids: &'f Vmids,
    iommus: &'f [&'f dyn Iommu],
}

/// The IOMMUs of a space.
pub(crate) struct Iommus<'f> {
    devices: Option<Devices<'f>>,
    /// A bit for each that is attached, or about to be: it is told to forget.
    attached: AtomicU8,
    /// Taken by who attaches or detaches one. Nobody waits for it.
    changing: Mutex<()>,
}

impl fmt::Debug for Iommus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommus").field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl<'f> Iommus<'f> {
    pub(crate) fn none() -> Self {
        Self { devices: None, attached: AtomicU8::new(0), changing: Mutex::new(()) }
    }

    fn get(&self, id: IommuId) -> Option<&'f dyn Iommu> {
        self.devices.as_ref()?.iommus.get(id.index()).copied()
    }

    /// Goes through those in a set.
    fn of(&self, set: u8) -> impl Iterator<Item = (IommuId, &'f dyn Iommu)> {
        let ids = (0..MAX_IOMMUS as u8).map(IommuId).filter(move |id| set & id.bit() != 0);
        ids.filter_map(|id| Some((id, self.get(id)?)))
    }

    /// Returns what tables of `format` refrain from for those in a set.
    fn restraint<F: Format>(&self, set: u8, format: F) -> Restraint {
        self.of(set).fold(Restraint::NONE, |all, (_, iommu)| all.and(iommu.capability().restraint(format)))
    }

    pub(crate) const fn everyone<'a, I>(&'a self, cpu: &'a I) -> Everyone<'a, 'f, I> {
        Everyone { cpu, iommus: self }
    }

    /// Turns off all that are attached: the end of the space, which nobody else is on. Nobody forgets about them yet.
    pub(crate) fn disable_all(&self) {
        if !mutant("iommu-on-to-the-end") {
            self.of(self.attached.load(Relaxed)).for_each(|(_, iommu)| iommu.disable());
        }
    }

    /// Gives back the pins of the VMID, after [`Iommus::disable_all`] and the last invalidation.
    pub(crate) fn unpin_all(&self, tag: &crate::Tag) {
        if let Some(devices) = &self.devices {
            self.of(self.attached.swap(0, Relaxed)).for_each(|_| devices.vmids.unpin(tag));
        }
    }
}

impl<'f, F: Format> Space<'f, F> {
    /// Returns the space, with IOMMUs that may be [attached](Space::attach), at most [`MAX_IOMMUS`] of `iommus`. `vmids` has
    /// the VMIDs that the space runs under.
    #[must_use]
    pub fn with_iommus(self, vmids: &'f Vmids, iommus: &'f [&'f dyn Iommu]) -> Self {
        let devices = Some(Devices { vmids, iommus });
        Self { iommus: Iommus { devices, ..Iommus::none() }, ..self }
    }

    /// Tells whether devices translate through the tables, or are about to.
    pub fn is_shared(&self) -> bool {
        self.iommus.attached.load(Relaxed) != 0
    }

    /// Returns what invalidates the space's translations: this CPU's `tlb` for those of CPUs, and what reaches the IOMMUs
    /// that are attached. For whoever changes the [tree](Space::tree) itself.
    pub fn everyone<'a, I: Invalidate>(&'a self, tlb: &'a I) -> Everyone<'a, 'f, I> {
        self.iommus.everyone(tlb)
    }

    /// Tells whether this would harm an IOMMU that is attached.
    pub(crate) fn refrains_from<S: Section>(&self, section: &S, harm: Harm) -> bool {
        let _reading = section.read();
        self.tree.restraint().from.intersects(harm)
    }
}

/// Everybody who may hold translations of a space: CPUs, and the IOMMUs that are attached.
#[derive(Debug)]
pub struct Everyone<'a, 'f, I> {
    cpu: &'a I,
    iommus: &'a Iommus<'f>,
}

/// An invalidation under way on CPUs and IOMMUs.
#[derive(Debug)]
pub struct Pending<P> {
    cpu: P,
    /// What IOMMUs were asked for; `None` where none was told.
    begun: Option<Begun>,
}

/// What each IOMMU that has commands of its own was asked for.
type Begun = [Option<u64>; MAX_IOMMUS];

impl<I: Invalidate> Invalidate for Everyone<'_, '_, I> {
    type Pending = Pending<I::Pending>;

    fn begin(&self, work: Work) -> Self::Pending {
        // Relaxed, in the section in which the entries were changed: who lets an IOMMU in has waited for that section, or it
        // began afterwards.
        let attached = self.iommus.attached.load(Relaxed);
        let is_for_all = work.class >= Class::Leaves && !mutant("iommu-not-invalidated");
        if attached == 0 || !is_for_all {
            return Pending { cpu: self.cpu.begin(work), begun: None };
        }
        self.begin_for(attached, work)
    }

    fn complete(&self, pending: Self::Pending) {
        self.cpu.complete(pending.cpu);
        if let Some(begun) = pending.begun {
            self.complete_for(&begun);
        }
    }

    /// An IOMMU finds what was absent when it looks for it.
    #[inline(always)]
    fn publish(&self, range: Range) {
        self.cpu.publish(range);
    }

    fn ticks(&self) -> u64 {
        self.cpu.ticks()
    }
}

impl<I: Invalidate> Everyone<'_, '_, I> {
    #[cold]
    #[inline(never)]
    fn begin_for(&self, attached: u8, work: Work) -> Pending<I::Pending> {
        let mut begun = [None; MAX_IOMMUS];
        let hears = |iommu: &dyn Iommu| iommu.capability().hears;
        let is_heard = self.iommus.of(attached).any(|(_, iommu)| hears(iommu) == Hears::Broadcasts);
        // The CPU's first: it makes our entry writes visible to table walkers.
        let cpu = if is_heard { self.cpu.begin_broadcast(work) } else { self.cpu.begin(work) };
        for (id, iommu) in self.iommus.of(attached) {
            if hears(iommu) == Hears::Commands {
                begun[id.index()] = Some(iommu.begin(work));
            }
        }
        Pending { cpu, begun: Some(begun) }
    }

    #[cold]
    #[inline(never)]
    fn complete_for(&self, begun: &Begun) {
        for (id, begun) in (0..).map(IommuId).zip(begun) {
            if let (Some(begun), Some(iommu)) = (begun, self.iommus.get(id)) {
                iommu.complete(*begun);
            }
        }
    }
}
