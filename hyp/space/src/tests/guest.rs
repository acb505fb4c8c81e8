//! A guest's hardware: walks the tables by itself, sets dirty flags, lists pages, or faults.

use super::*;
use crate::{Outcome, Pml};
use stage2::{Entries, Entry, Format as _, FreshTable, Marks, TablePa, TableSize};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, RwLock};

/// What stores and invalidations agree on: an invalidation is complete when every store that is under way has landed.
#[derive(Default)]
pub(super) struct Hardware {
    /// Held by a store from its walk to its landing.
    stores: RwLock<()>,
    /// Pages whose dirty flag was set, in no order.
    list: Mutex<Vec<Ipa>>,
}

impl Invalidate for Hardware {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {
        drop(self.stores.write().unwrap());
    }
}

impl Pml for Arc<Hardware> {
    fn drain(&self, listed: &mut dyn FnMut(Ipa)) {
        drop(self.stores.write().unwrap()); // every CPU has been out of its guest
        std::mem::take(&mut *self.list.lock().unwrap()).into_iter().for_each(listed);
    }
}

impl Hardware {
    /// Stores to `ipa` as a guest does: where the tables permit it, sets the dirty flag and calls `land` with the memory.
    /// Else returns the fault.
    pub(super) fn try_store(
        &self,
        space: &Space<'_, Format>,
        ipa: u64,
        land: impl FnOnce(Pa),
    ) -> Result<(), Fault> {
        let _landing = self.stores.read().unwrap();
        let fault = |kind| Fault { kind, ..fault_at(ipa) };
        let (tree, ipa) = (space.tree(), Ipa::new(ipa));
        let format = tree.format();
        let mut height = tree.geometry().top();
        let mut table = tree.root();
        loop {
            let slot = tree.memory().slot(table, tree.geometry().index(ipa, height)).word();
            let raw = slot.load(SeqCst);
            let Some(live) = format.decode(raw, height).live() else {
                return Err(fault(FaultKind::Translation));
            };
            match live {
                stage2::Live::Table(link) => {
                    table = table_at(link.pa);
                    height = height.below().expect("links are above pages");
                }
                stage2::Live::Leaf(leaf) => {
                    if !leaf.attrs.marks.contains(Marks::YOUNG) {
                        return Err(fault(FaultKind::AccessFlag));
                    }
                    if !leaf.attrs.access.contains(Access::WRITE) {
                        return Err(fault(FaultKind::Permission));
                    }
                    let mut dirty = leaf;
                    dirty.attrs = leaf.attrs.with(Marks::DIRTY);
                    let was_held = matches!(format.decode(raw, height), Entry::Held(_));
                    let dirty = match was_held {
                        true => format.encode(Entry::Held(stage2::Live::Leaf(dirty)), height),
                        false => format.encode(Entry::Leaf(dirty), height),
                    };
                    if raw != dirty {
                        if slot.compare_exchange(raw, dirty, SeqCst, SeqCst).is_err() {
                            continue;
                        }
                        self.list.lock().unwrap().push(ipa);
                    }
                    let offset = ipa.get() % stage2::span::<Format>(height);
                    land(leaf.pa.wrapping_add(offset));
                    return Ok(());
                }
            }
        }
    }

    /// Stores to `ipa`, and takes whatever faults that costs.
    pub(super) fn store(
        &self,
        space: &Space<'_, Format>,
        section: &mut Stay<'_>,
        cpu: &FakeCpu<'_>,
        ipa: u64,
        mut land: impl FnMut(Pa),
    ) {
        use stage2::Section;
        for _ in 0..10_000 {
            let Err(fault) = self.try_store(space, ipa, &mut land) else { return };
            match space.fault(section, cpu, self, &fault) {
                Ok(Outcome::Mapped | Outcome::Allowed | Outcome::AlreadyMapped | Outcome::Busy) => {}
                other => panic!("{fault:?} ends as {other:?}"),
            }
            section.pass();
            std::thread::yield_now();
        }
        panic!("{ipa:#x} faults for ever");
    }
}

#[expect(clippy::disallowed_methods, reason = "hardware goes wherever an entry leads")]
fn table_at(pa: Pa) -> TablePa {
    let size: TableSize = Geometry::<Format>::table_size();
    FreshTable::new(pa, size).table()
}
