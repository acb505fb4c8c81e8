//! [`Visits`]: what each CPU of a machine may hold, where none can make another one forget, and the rules that follow.
//!
//! | | |
//! | --- | --- |
//! | a CPU runs a guest | when it has forgotten what was taken away while it was outside, and holds nothing of another space under that tag |
//! | it says that it is outside | when the table walks that it began for the guest are over |
//! | it loads other tables | when it has said that it is outside |
//!
//! A CPU may hold something of a space, under a tag, from when it loads that until it has invalidated all of the tag itself. What
//! others hold under the same tag is theirs: a tag may be another space's by then, since each forgets before it uses it.

use super::Fleet;
use super::exits::{Debts, Forgot};
use super::machine::{Flush, Judged, Since, object};
use crate::{Reach, Tlbi};
use stage2::Format;
use std::collections::{BTreeMap, BTreeSet};
use types::{CpuId, CpuSet, Vmid};

/// What a CPU has to forget before it runs a guest under a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owes {
    /// What it holds now.
    Once,
    /// What it will hold, too, when it has forgotten what it is about to.
    Anew,
}

/// What CPUs hold, and where they are.
#[derive(Debug, Default)]
pub(super) struct Visits {
    /// The spaces, by their serial numbers, of which a CPU may hold something under a tag.
    held: BTreeMap<(CpuId, Vmid), BTreeSet<u64>>,
    debts: BTreeMap<(CpuId, Vmid), Owes>,
    /// In a guest.
    inside: BTreeSet<CpuId>,
    /// With table walks that may be under way.
    walking: BTreeSet<CpuId>,
}

impl Visits {
    /// From now on a CPU may hold something.
    pub(super) fn hold(&mut self, cpu: CpuId, tag: Vmid, serial: u64) {
        self.held.entry((cpu, tag)).or_default().insert(serial);
    }

    /// Returns who may hold something of a space.
    fn holders(&self, serial: u64) -> CpuSet {
        let its = self.held.iter().filter(|(_, serials)| serials.contains(&serial));
        its.fold(CpuSet::EMPTY, |holders, ((cpu, _), _)| holders.with(*cpu))
    }

    /// Somebody relies on it that CPUs forget what they hold of a space before they use it.
    pub(super) fn owe(&mut self, serial: u64, debts: Debts) {
        if debts.all.is_empty() {
            return;
        }
        for ((cpu, tag), _) in self.held.iter().filter(|(_, serials)| serials.contains(&serial)) {
            if debts.anew.contains(*cpu) {
                self.debts.insert((*cpu, *tag), Owes::Anew);
            } else if debts.all.contains(*cpu) {
                self.debts.entry((*cpu, *tag)).or_insert(Owes::Once);
            }
        }
    }

    /// A CPU has passed a barrier.
    pub(super) fn waited(&mut self, cpu: CpuId, reach: Reach) {
        if reach != Reach::Ishst {
            self.walking.remove(&cpu);
        }
    }
}

impl<F: Format> Fleet<F> {
    /// A CPU is about to run a guest of the space whose tables it has loaded.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn enters(&mut self, cpu: CpuId) -> Judged {
        let Some(visits) = &mut self.visits else { return Ok(()) };
        let Some(&(tag, serial)) = self.loaded.get(&cpu) else {
            if self.since == Since::Later {
                return Ok(()); // what was loaded before is not known
            }
            return Err(object(
                None,
                format!("CPU {} enters a guest, and no tables are loaded", cpu.index()),
            ));
        };
        let member = self.spaces.iter_mut().find(|(_, member)| member.serial == serial);
        let owner = member.as_ref().map(|(owner, _)| **owner);
        let held = visits.held.get(&(cpu, tag));
        if held.is_some_and(|serials| serials.iter().any(|held| *held != serial)) {
            let what = format!(
                "CPU {} enters it under VMID {}, under which it may hold translations of another space",
                cpu.index(),
                tag.0
            );
            return Err(object(owner, what));
        }
        if visits.debts.contains_key(&(cpu, tag)) {
            let what = format!(
                "CPU {} enters it with translations that were taken away while it was outside",
                cpu.index()
            );
            return Err(object(owner, what));
        }
        visits.inside.insert(cpu);
        visits.walking.insert(cpu);
        if let Some((_, member)) = member {
            member.judge.comes(cpu);
        }
        Ok(())
    }

    /// A CPU is about to say that it is outside of its guest.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn leaves(&mut self, cpu: CpuId) -> Judged {
        let Some(visits) = &mut self.visits else { return Ok(()) };
        visits.inside.remove(&cpu);
        let walks = visits.walking.remove(&cpu);
        for member in self.spaces.values_mut() {
            member.judge.goes(cpu);
        }
        if walks {
            let what = format!(
                "CPU {} says that it is outside of its guest with table walks under way: no DSB",
                cpu.index()
            );
            return Err(object(None, what));
        }
        Ok(())
    }

    /// A CPU is about to load something: it is in no guest.
    pub(super) fn loads_elsewhere(&self, cpu: CpuId) -> Judged {
        match &self.visits {
            Some(visits) if visits.inside.contains(&cpu) => {
                let what =
                    format!("CPU {} loads tables, and has not said that it left its guest", cpu.index());
                Err(object(None, what))
            }
            _ => Ok(()),
        }
    }

    /// A CPU loads the tables of a space.
    pub(super) fn loads_here(&mut self, cpu: CpuId, tag: Vmid, owner: u16) {
        let (Some(visits), Some(member)) = (&mut self.visits, self.spaces.get_mut(&owner)) else { return };
        visits.hold(cpu, tag, member.serial);
        member.judge.hold(Some(tag), visits.holders(member.serial));
        self.loaded.insert(cpu, (tag, member.serial));
    }

    /// A CPU begins to forget everything under a tag, or under all.
    pub(super) fn begins_to_forget(&mut self, cpu: CpuId, tlbi: &Tlbi) {
        let Some(visits) = self.visits.as_ref().filter(|_| tlbi.op.takes_everything()) else { return };
        let is_meant = |tag: Vmid| tlbi.op.is_for_every_tag() || tlbi.vmid == tag;
        let its = visits.held.iter().filter(|((by, tag), _)| *by == cpu && is_meant(*tag));
        let meant: BTreeSet<u64> = its.flat_map(|(_, serials)| serials.iter().copied()).collect();
        for member in self.spaces.values_mut().filter(|member| meant.contains(&member.serial)) {
            member.judge.forgets(cpu);
        }
    }

    /// It has. What it has loaded it may come to hold again.
    pub(super) fn has_forgotten(&mut self, flush: &Flush) {
        let cpu = flush.by;
        let loaded = self.loaded.get(&cpu).copied();
        let Some(visits) = &mut self.visits else { return };
        let its = |(by, tag): &(CpuId, Vmid)| *by == cpu && flush.is_of(*tag);
        let mut forgotten = BTreeSet::new();
        for ((_, tag), serials) in visits.held.iter_mut().filter(|(key, _)| its(key)) {
            forgotten.extend(serials.iter().copied());
            serials.retain(|serial| loaded == Some((*tag, *serial)));
        }
        visits.held.retain(|_, serials| !serials.is_empty());
        visits.debts.retain(|key, owes| {
            let stays = !its(key) || *owes == Owes::Anew;
            if its(key) {
                *owes = Owes::Once;
            }
            stays
        });
        for member in self.spaces.values_mut().filter(|member| forgotten.contains(&member.serial)) {
            let elsewhere = visits.held.iter().any(|(key, serials)| {
                key.0 == cpu && !flush.is_of(key.1) && serials.contains(&member.serial)
            });
            member.judge.forgot(cpu, if elsewhere { Forgot::Part } else { Forgot::All });
            member.judge.hold(None, visits.holders(member.serial));
        }
    }
}
