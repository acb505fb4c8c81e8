//! [`Cache`]: what one observer (a CPU, an IOMMU) holds of the tables: leaves, links for its next walks, and entries that
//! combine both stages.
//!
//! Nothing is evicted but by an instruction: what may be kept is kept. What an instruction does not have to remove stays.

use crate::Tlbi;
use std::fmt;
use types::{Height, Ipa, Pa, Range, Vmid};

/// The most that is held of one kind.
const ROOM: usize = 48;

/// A cached leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Translation {
    pub(super) tag: Vmid,
    pub(super) range: Range,
    pub(super) height: Height,
    /// The entry as the walk read it.
    pub(super) raw: u64,
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x?} (height {}, {:#x})", self.range, self.height.get(), self.raw)
    }
}

/// A cached link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) tag: Vmid,
    pub(super) range: Range,
    /// The height of the entries in the table.
    pub(super) height: Height,
    pub(super) table: Pa,
}

/// What one observer holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache {
    pub(super) leaves: Vec<Translation>,
    pub(super) links: Vec<Link>,
    /// Tagged by a guest's virtual address, which no instruction for stage 2 knows.
    pub(super) combined: Vec<Translation>,
}

impl Cache {
    /// Returns everything that translates, of both kinds.
    pub(super) fn translations(&self) -> impl Iterator<Item = &Translation> {
        self.leaves.iter().chain(&self.combined)
    }

    /// Keeps a leaf; instead of what it holds of the same size for the same addresses.
    pub(super) fn keep_leaf(&mut self, leaf: Translation) {
        keep(&mut self.leaves, leaf, |old| old.range == leaf.range && old.tag == leaf.tag);
    }

    /// Keeps a leaf as part of an entry for both stages.
    pub(super) fn keep_combined(&mut self, leaf: Translation) {
        keep(&mut self.combined, leaf, |old| old.range == leaf.range && old.tag == leaf.tag);
    }

    /// Keeps a link; instead of another at the same place.
    pub(super) fn keep_link(&mut self, link: Link) {
        keep(&mut self.links, link, |old| {
            old.range == link.range && old.height == link.height && old.tag == link.tag
        });
    }

    /// Notes that a cached leaf has become another: the hardware has set a flag in it.
    pub(super) fn refresh(&mut self, was: Translation, raw: u64) {
        for held in self.leaves.iter_mut().chain(&mut self.combined).filter(|held| **held == was) {
            held.raw = raw;
        }
    }

    /// Forgets one leaf: it did not let through what was asked.
    pub(super) fn drop_leaf(&mut self, leaf: Translation) {
        self.leaves.retain(|held| *held != leaf);
        self.combined.retain(|held| *held != leaf);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets what `tlbi` has to remove, and nothing more.
    pub(super) fn forget(&mut self, tlbi: &Tlbi) {
        let op = tlbi.op;
        let meant = |tag: Vmid| tag == tlbi.vmid || op.is_for_every_tag();
        if op.takes_combined() {
            self.combined.retain(|held| !meant(held.tag));
        }
        if op.takes_everything() {
            self.leaves.retain(|held| !meant(held.tag));
            self.links.retain(|held| !meant(held.tag));
        } else if op.takes_stage2() {
            let Some(range) = tlbi.range else { return };
            let of_hint = |height| tlbi.hint.is_none_or(|hint| hint == height);
            self.leaves
                .retain(|held| !(meant(held.tag) && of_hint(held.height) && held.range.overlaps(range)));
            if !op.is_last_level() && tlbi.hint.is_none() {
                self.links.retain(|held| !(meant(held.tag) && held.range.overlaps(range)));
            }
        }
    }

    /// Returns the links from which a walk for `ipa` may go on.
    pub(super) fn links_for(&self, tag: Vmid, ipa: Ipa) -> Vec<Link> {
        self.links.iter().filter(|link| link.tag == tag && link.range.contains(ipa)).copied().collect()
    }
}

fn keep<T: Copy>(list: &mut Vec<T>, item: T, same: impl Fn(&T) -> bool) {
    list.retain(|old| !same(old));
    if list.len() == ROOM {
        list.remove(0);
    }
    list.push(item);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Op, range};

    const TAG: Vmid = Vmid(1);

    fn full() -> Cache {
        let mut cache = Cache::default();
        let page = Translation { tag: TAG, range: range(0x1000, 0x1000), height: Height::PAGE, raw: 1 };
        let block = Translation { tag: TAG, range: range(0, 0x2000), height: Height::new(1), raw: 2 };
        cache.keep_leaf(page);
        cache.keep_leaf(block);
        cache.keep_combined(page);
        cache.keep_link(Link { tag: TAG, range: range(0, 0x2000), height: Height::PAGE, table: Pa::new(0) });
        cache
    }

    fn after(op: Op, range: Option<Range>, hint: Option<Height>) -> (usize, usize, usize) {
        let mut cache = full();
        cache.forget(&Tlbi { op, vmid: TAG, range, hint });
        (cache.leaves.len(), cache.links.len(), cache.combined.len())
    }

    #[test]
    fn an_instruction_removes_what_it_has_to_and_leaves_the_rest() {
        let page = Some(range(0x1000, 0x1000));
        assert_eq!(after(Op::Ipas2e1is, page, None), (0, 0, 1));
        assert_eq!(after(Op::Ipas2le1is, page, None), (0, 1, 1));
        assert_eq!(after(Op::Ipas2le1is, page, Some(Height::PAGE)), (1, 1, 1));
        assert_eq!(after(Op::Ipas2e1is, Some(range(0x4000, 0x1000)), None), (2, 1, 1));
        assert_eq!(after(Op::Vmalle1is, None, None), (2, 1, 0));
        assert_eq!(after(Op::Vmalls12e1is, None, None), (0, 0, 0));
        assert_eq!(after(Op::Vae2is, page, None), (2, 1, 1));
    }

    #[test]
    fn another_tag_is_another_space() {
        let mut cache = full();
        let tlbi = Tlbi { op: Op::Vmalls12e1is, vmid: Vmid(2), range: None, hint: None };
        cache.forget(&tlbi);
        assert_eq!(cache.leaves.len(), 2);
        cache.forget(&Tlbi { op: Op::Alle1is, ..tlbi });
        assert_eq!(cache.translations().count(), 0);
    }
}
