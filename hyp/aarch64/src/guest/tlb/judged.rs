//! Operations on real trees, whose invalidations are the instructions of [`Broadcast`]: the judge reads what was
//! written and what was executed, in order, for machines with and without level hints and ranges.

use super::*;
use crate::effect;
use model::{Effect, Instructions, Judge, Machine, Op, Reach, Rig, Tiny, Tlbi, range};
use stage2::{Attrs, Bbm, Mapping, Why, span};
use std::cell::Cell;
use std::collections::BTreeMap;
use types::{Access, CpuId, Ipa, Pa, Vmid};
use vmsa::{Controls, Features, Granule, Granule4K, Granule16K, Granule64K, Layout, Vmsa};

/// The VMID of the space when its entries have been written.
const OURS: u64 = Judge::<Tiny>::VMID.0 as u64;
/// What was its VMID until then.
const FORMER: u64 = 9;

/// The tag of a space whose VMID is changed by another CPU just when this one waits for its writes to be visible.
#[derive(Debug, Default)]
struct RollsOver {
    has_waited: Cell<bool>,
}

impl Tag for RollsOver {
    fn borrow(&self) -> Option<u64> {
        let so_far = effect::take();
        let has_waited = self.has_waited.get() || so_far.contains(&effect::Effect::Dsb("ishst"));
        self.has_waited.set(has_waited);
        so_far.into_iter().for_each(effect::record);
        Some(if has_waited { OURS << 48 | 0x4000_0000 } else { FORMER << 48 | 0x4000_0000 })
    }

    fn give_back(&self) {}
}

/// A CPU's instructions, as the judge reads them.
#[derive(Debug)]
struct Executed {
    broadcast: Broadcast<'static, RollsOver>,
    pending: BTreeMap<usize, Pending>,
    vmid: Vmid,
}

impl Executed {
    fn new(means: Means, granule_shift: u32, index_bits: u32) -> Self {
        effect::reset();
        effect::script("vttbr_el2", &[FORMER << 48 | 0x5000_0000]);
        let issued = Box::leak(Box::default());
        let broadcast = Broadcast { tag: RollsOver::default(), means, granule_shift, index_bits, issued };
        Self { broadcast, pending: BTreeMap::new(), vmid: Vmid(FORMER as u16) }
    }

    fn read(&mut self, cpu: CpuId) -> Vec<Effect> {
        effect::take().into_iter().map(|done| self.translate(cpu, done)).collect()
    }

    fn translate(&mut self, cpu: CpuId, done: effect::Effect) -> Effect {
        match done {
            effect::Effect::Dsb("ishst") => Effect::Dsb { cpu, reach: Reach::Ishst },
            effect::Effect::Dsb("ish") => Effect::Dsb { cpu, reach: Reach::Ish },
            effect::Effect::Dsb("nsh") => Effect::Dsb { cpu, reach: Reach::Nsh },
            effect::Effect::Isb => Effect::Isb { cpu },
            effect::Effect::Write("vttbr_el2", value) => {
                self.vmid = Vmid((value >> 48) as u16);
                Effect::VmidSwitch { cpu, vmid: self.vmid }
            }
            effect::Effect::Tlbi(name, operand) => Effect::Tlbi { cpu, tlbi: self.tlbi(name, operand) },
            other => panic!("{other:?} is no part of an invalidation"),
        }
    }

    fn tlbi(&self, name: &str, operand: Option<u64>) -> Tlbi {
        let op = match name {
            "ipas2e1" => Op::Ipas2e1,
            "ipas2e1is" | "ripas2e1is" => Op::Ipas2e1is,
            "ipas2le1is" | "ripas2le1is" => Op::Ipas2le1is,
            "vmalle1" => Op::Vmalle1,
            "vmalle1is" => Op::Vmalle1is,
            "vmalls12e1" => Op::Vmalls12e1,
            "vmalls12e1is" => Op::Vmalls12e1is,
            "alle1is" => Op::Alle1is,
            other => panic!("{other} is unknown"),
        };
        let (range, hint) = match operand {
            None => (None, None),
            Some(operand) if name.starts_with('r') => self.of_range(operand),
            Some(operand) => self.of_address(operand),
        };
        Tlbi { op, vmid: self.vmid, range, hint }
    }

    /// An operand by address: the address from bit 12 on, and granule and level from bit 44 on.
    fn of_address(&self, operand: u64) -> (Option<Range>, Option<Height>) {
        let at = (operand & ((1 << 40) - 1)) << 12;
        let ttl = operand >> 44 & 0xf;
        let level = if ttl == 0 { 0 } else { ttl & 3 };
        (Some(range(at, 1 << self.broadcast.granule_shift)), height(level))
    }

    /// An operand by range: base in granules, level, number, scale, granule.
    fn of_range(&self, operand: u64) -> (Option<Range>, Option<Height>) {
        let shift = self.broadcast.granule_shift;
        let units = (operand >> 39 & 31) + 1;
        let granules = units << (5 * (operand >> 44 & 3) + 1);
        assert_eq!(operand >> 46, u64::from((shift - 10) / 2), "the granule");
        let base = (operand & ((1 << 37) - 1)) << shift;
        (Some(range(base, granules << shift)), height(operand >> 37 & 3))
    }
}

fn height(level: u64) -> Option<Height> {
    (level != 0).then(|| Height::new(3 - level as u8))
}

impl Instructions for Executed {
    fn begin(&mut self, cpu: CpuId, work: Work, id: usize) -> Vec<Effect> {
        self.broadcast.tag.has_waited.set(false);
        let pending = self.broadcast.begin(work);
        self.pending.insert(id, pending);
        self.read(cpu)
    }

    fn complete(&mut self, cpu: CpuId, id: usize) -> Vec<Effect> {
        let pending = self.pending.remove(&id).expect("completed what was begun");
        self.broadcast.complete(pending);
        self.read(cpu)
    }
}

/// Every kind of change, on pages and blocks, few and many, at the edges and across them.
fn exercise<G: Granule>(means: Means, bbm: Bbm) {
    let machine = Machine::new(64 << G::SHIFT);
    machine.set_instructions(Executed::new(means, G::SHIFT, G::SHIFT - 3));
    let geometry =
        Layout::<G>::choose(42, Height::new(1), 6, Controls::empty()).expect("possible").geometry();
    let mut rig = Rig::new(&machine, Vmsa::<G>::new(Features::empty()), geometry, bbm);
    let page = span::<Vmsa<G>>(Height::PAGE);
    let block = span::<Vmsa<G>>(Height::new(1));
    let all = range(2 * block, 6 * block);
    let start = all.start().get();
    let (pa, largest) = (Pa::new(64 * block), Height::new(1));
    rig.map(&Mapping { range: all, pa, attrs: Attrs::RAM, largest, why: Why::Alignment }).expect("free");
    rig.protect(range(start, block), Access::READ).expect("mapped");
    rig.protect(range(start, 2 * block), Access::RWX).expect("mapped");
    rig.split(Ipa::new(start), Height::PAGE).expect("room");
    rig.protect(range(start + page, 40 * page), Access::READ).expect("mapped");
    rig.unmap(range(start + 3 * page, page)).expect("mapped");
    rig.unmap(range(start + 5 * page, 3 * page)).expect("mapped");
    rig.unmap(range(start + 64 * page, 65 * page)).expect("mapped");
    rig.unmap(range(start + block - page, 2 * page)).expect("mapped");
    rig.unmap(range(start, 3 * block)).expect("mapped");
    rig.map(&Mapping {
        range: range(start, block),
        pa,
        attrs: Attrs::RAM,
        largest: Height::PAGE,
        why: Why::Pin,
    })
    .expect("free");
    rig.unmap(range(start, block - page)).expect("mapped");
    rig.unmap(range(start, block)).expect("mapped");
    rig.prune(all);
    rig.unmap(all).expect("mapped");
    rig.destroy();
}

/// Every machine: with level hints and ranges or without, at each level of changing sizes.
fn on_every_machine(act: impl Fn(Means, Bbm)) {
    for level_hint in [Has::No, Has::Yes] {
        for ranges in [Has::No, Has::Yes] {
            for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2, Bbm::Level3] {
                act(Means { level_hint, ranges }, bbm);
            }
        }
    }
}

#[test]
fn what_is_broadcast_cleans_every_entry_of_4k_tables() {
    on_every_machine(exercise::<Granule4K>);
}

#[test]
fn what_is_broadcast_cleans_every_entry_of_16k_tables() {
    on_every_machine(exercise::<Granule16K>);
}

#[test]
fn what_is_broadcast_cleans_every_entry_of_64k_tables() {
    on_every_machine(exercise::<Granule64K>);
}
