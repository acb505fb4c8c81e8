//! A device behind an IOMMU, which walks the tables by itself, keeps what it has read, and fails where it faults.

use super::*;
use stage2::{Entries, Entry, Format as _, FreshTable, Leaf, Live, Marks, Scope, TablePa};
use types::Vmid;

/// What was done to an IOMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Did {
    Enabled(Pa, Vmid),
    Disabled,
    Begun(Work),
    Completed,
}

/// The device with its IOMMU.
pub(super) struct Device<'d> {
    pub(super) capability: IommuCapability,
    pub(super) did: Mutex<Vec<Did>>,
    tlb: Mutex<Vec<(Range, Leaf)>>,
    /// Called when it is turned on.
    pub(super) on_enable: Option<&'d (dyn Fn() + Sync)>,
}

impl<'d> Device<'d> {
    pub(super) fn new(capability: IommuCapability) -> Self {
        Self { capability, did: Mutex::default(), tlb: Mutex::default(), on_enable: None }
    }

    /// Returns what was done since the last time.
    pub(super) fn take(&self) -> Vec<Did> {
        std::mem::take(&mut *self.did.lock().unwrap())
    }

    pub(super) fn forget(&self, work: Work) {
        self.tlb.lock().unwrap().retain(|(held, _)| match work.scope {
            Scope::Range { range, .. } => !held.overlaps(range),
            Scope::Tag => false,
        });
    }

    fn note(&self, did: Did) {
        self.did.lock().unwrap().push(did);
    }

    /// Makes an access. What it faults on is gone, and the TLB keeps what it has.
    pub(super) fn access(
        &self,
        space: &Space<'_, Format>,
        ipa: u64,
        access: Access,
    ) -> Result<(), FaultKind> {
        let ipa = Ipa::new(ipa);
        let held =
            self.tlb.lock().unwrap().iter().find(|(held, _)| held.contains(ipa)).map(|(_, leaf)| *leaf);
        let leaf = match held {
            Some(leaf) => leaf,
            None => {
                let (range, leaf) = walk(space, ipa).ok_or(FaultKind::Translation)?;
                if !leaf.attrs.marks.contains(Marks::YOUNG) && self.capability.upkeep < Upkeep::Accessed {
                    return Err(FaultKind::AccessFlag); // such an entry is not kept
                }
                self.tlb.lock().unwrap().push((range, leaf));
                leaf
            }
        };
        let is_clean = access.contains(Access::WRITE) && !leaf.attrs.marks.contains(Marks::DIRTY);
        if !leaf.attrs.access.contains(access)
            || is_clean && self.capability.upkeep < Upkeep::AccessedAndDirty
        {
            return Err(FaultKind::Permission);
        }
        Ok(())
    }

    pub(super) fn store(&self, space: &Space<'_, Format>, ipa: u64) -> Result<(), FaultKind> {
        self.access(space, ipa, Access::WRITE)
    }
}

fn walk(space: &Space<'_, Format>, ipa: Ipa) -> Option<(Range, Leaf)> {
    let tree = space.tree();
    let (mut table, mut height) = (tree.root(), tree.geometry().top());
    loop {
        let raw = tree.memory().slot(table, tree.geometry().index(ipa, height)).word().load(Relaxed);
        match tree.format().decode(raw, height) {
            Entry::Table(link) | Entry::Held(Live::Table(link)) => {
                table = table_at(link.pa);
                height = height.below().expect("links are above pages");
            }
            Entry::Leaf(leaf) | Entry::Held(Live::Leaf(leaf)) => {
                return Some((Range::block_around(ipa, stage2::span::<Format>(height)), leaf));
            }
            _ => return None,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "hardware goes wherever an entry leads")]
fn table_at(pa: Pa) -> TablePa {
    FreshTable::new(pa, Geometry::<Format>::table_size()).table()
}

impl Iommu for Device<'_> {
    fn capability(&self) -> IommuCapability {
        self.capability
    }

    fn enable(&self, root: Pa, vmid: Vmid) {
        if let Some(on_enable) = self.on_enable {
            on_enable();
        }
        self.note(Did::Enabled(root, vmid));
    }

    fn disable(&self) {
        self.tlb.lock().unwrap().clear();
        self.note(Did::Disabled);
    }

    fn begin(&self, work: Work) -> u64 {
        assert_eq!(self.capability.hears, Hears::Commands, "it would not be asked");
        self.forget(work);
        self.note(Did::Begun(work));
        7
    }

    fn complete(&self, begun: u64) {
        assert_eq!(begun, 7);
        self.note(Did::Completed);
    }
}
