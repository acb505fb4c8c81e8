//! Operations on real trees, whose invalidations are the instructions of [`Stage2`]: the judge reads what was written and
//! what was executed, in order, for machines with and without level hints and ranges, and in both styles.

use super::tests::{Fake, cpu};
use super::*;
use crate::effect;
use model::{Effect, Instructions, Judge, Machine, Op, Reach, Rig, Tiny, Tlbi, range};
use stage2::{Attrs, Bbm, Mapping, Why, span};
use std::cell::Cell;
use std::collections::BTreeMap;
use types::{Access, CpuId, Height, Ipa, Pa, Vmid};
use vmsa::{
    Controls, Features, Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Layout,
    Vmsa,
};

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

/// Who enters the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Visitors {
    /// CPU 1, which is inside whenever nobody kicks it out; CPU 0 has the space's tables loaded, too.
    Other,
    /// CPU 1, and CPU 0 has another space's tables loaded.
    OtherOnly,
    /// The CPU that works on the tables, and never another.
    Own,
}

/// The CPUs' instructions, as the judge reads them. CPU 0 works on the tables.
#[derive(Debug)]
struct Executed {
    stage2: Stage2<'static, RollsOver, Fake>,
    visitors: Visitors,
    pending: BTreeMap<usize, Pending>,
    vmid: Vmid,
}

impl Executed {
    fn new(style: Style, visitors: Visitors, means: Means, granule_shift: u32, index_bits: u32) -> Self {
        effect::reset();
        let ours = visitors != Visitors::OtherOnly;
        let loaded = if ours { OURS << 48 | 0x4000_0000 } else { FORMER << 48 | 0x5000_0000 };
        effect::script("vttbr_el2", &[loaded]);
        let stage2 = Stage2 {
            tag: RollsOver::default(),
            cpu: Box::leak(Box::new(Fake(cpu(0)))),
            presence: Box::leak(Box::default()),
            style,
            means,
            granule_shift,
            index_bits,
            issued: Box::leak(Box::default()),
        };
        let visitor = if visitors == Visitors::Own { cpu(0) } else { cpu(1) };
        stage2.presence.note_entry(visitor);
        Self { stage2, visitors, pending: BTreeMap::new(), vmid: Vmid((loaded >> 48) as u16) }
    }

    /// The other CPU's part.
    fn other(&mut self, act: impl FnOnce(&Stage2<'static, RollsOver, Fake>)) -> Vec<Effect> {
        let fake: &'static Fake = Box::leak(Box::new(Fake(cpu(1))));
        let vmid = core::mem::replace(&mut self.vmid, Judge::<Tiny>::VMID);
        act(&Stage2 { tag: RollsOver::default(), cpu: fake, ..self.stage2 });
        let effects = self.read(fake.0);
        self.vmid = vmid;
        effects
    }

    fn enters(&mut self) -> Vec<Effect> {
        if self.visitors == Visitors::Own {
            return vec![Effect::Entered { cpu: cpu(0) }];
        }
        let mut effects = self.other(Stage2::enter);
        effects.push(Effect::Entered { cpu: cpu(1) });
        effects
    }

    fn leaves(&mut self) -> Vec<Effect> {
        if self.visitors == Visitors::Own {
            return Vec::new();
        }
        let mut effects = self.other(Stage2::leave);
        effects.push(Effect::Left { cpu: cpu(1) });
        effects
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
            effect::Effect::Write("kick", to) => {
                Effect::Kick { from: cpu, to: CpuId::new(to as usize).expect("few") }
            }
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
        (Some(range(at, 1 << self.stage2.granule_shift)), height(level))
    }

    /// An operand by range: base in granules, or in 64 KiB where addresses have 52 bits; level, number, scale, granule.
    fn of_range(&self, operand: u64) -> (Option<Range>, Option<Height>) {
        let shift = self.stage2.granule_shift;
        let units = (operand >> 39 & 31) + 1;
        let granules = units << (5 * (operand >> 44 & 3) + 1);
        assert_eq!(operand >> 46, u64::from((shift - 10) / 2), "the granule");
        let unit = if self.stage2.means.wide_addresses == Has::Yes { 16 } else { shift };
        let base = (operand & ((1 << 37) - 1)) << unit;
        (Some(range(base, granules << shift)), height(operand >> 37 & 3))
    }
}

fn height(level: u64) -> Option<Height> {
    (level != 0).then(|| Height::new(3 - level as u8))
}

impl Instructions for Executed {
    fn begin(&mut self, cpu: CpuId, work: Work, id: usize) -> Vec<Effect> {
        self.stage2.tag.has_waited.set(false);
        let pending = self.stage2.begin(work);
        self.pending.insert(id, pending);
        self.read(cpu)
    }

    fn complete(&mut self, cpu: CpuId, id: usize) -> Vec<Effect> {
        let pending = self.pending.remove(&id).expect("completed what was begun");
        let kicked = matches!(pending, Pending::Exits(request) if !request.kicked().is_empty());
        let mut effects = if kicked { self.leaves() } else { Vec::new() };
        self.stage2.complete(pending);
        effects.extend(self.read(cpu));
        if kicked || self.stage2.issued.publish.load(Relaxed) == 1 {
            effects.extend(self.enters()); // comes back, or for the first time when there is something to see
        }
        effects
    }
}

/// Every kind of change, on pages and blocks, few and many, at the edges and across them, by broadcast.
fn exercise<G: Granule>(means: Means, bbm: Bbm) {
    for visitors in [Visitors::Other, Visitors::OtherOnly] {
        exercise_as::<G>(Style::Broadcast, visitors, means, bbm);
    }
}

fn exercise_as<G: Granule>(style: Style, visitors: Visitors, means: Means, bbm: Bbm) {
    let machine = Machine::new(64 << G::SHIFT);
    machine.set_instructions(Executed::new(style, visitors, means, G::SHIFT, G::SHIFT - 3));
    let geometry =
        Layout::<G>::choose(42, Height::new(1), 6, Controls::empty()).expect("possible").geometry();
    let rig = Rig::new(&machine, Vmsa::<G>::new(Features::empty()), geometry, bbm);
    let mut rig = match (style, visitors) {
        (Style::Interrupt, _) => rig.in_style(model::Style::InterruptArm),
        (Style::Broadcast, Visitors::Own) => rig.entered_by_nobody(),
        (Style::Broadcast, Visitors::Other | Visitors::OtherOnly) => rig,
    };
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
    if style == Style::Broadcast {
        rig.destroy(); // by interrupts, whoever enters a space for the first time forgets what the tag was before
    }
}

/// Every machine: with level hints and ranges or without, at each level of changing sizes.
fn on_every_machine(act: impl Fn(Means, Bbm)) {
    for level_hint in [Has::No, Has::Yes] {
        for ranges in [Has::No, Has::Yes] {
            for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2, Bbm::Level3] {
                act(Means { level_hint, ranges, ..Means::default() }, bbm);
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
fn what_is_broadcast_cleans_every_entry_of_tables_with_52_bit_addresses() {
    let wide = |means| Means { wide_addresses: Has::Yes, ..means };
    on_every_machine(|means, bbm| exercise::<Granule4KLpa2>(wide(means), bbm));
    on_every_machine(|means, bbm| exercise::<Granule16KLpa2>(wide(means), bbm));
}

#[test]
fn what_is_broadcast_cleans_every_entry_of_64k_tables() {
    on_every_machine(exercise::<Granule64K>);
}

#[test]
fn what_is_done_on_one_cpu_cleans_every_entry_where_no_other_ever_entered() {
    on_every_machine(|means, bbm| exercise_as::<Granule4K>(Style::Broadcast, Visitors::Own, means, bbm));
}

#[test]
fn who_is_made_to_leave_has_cleaned_every_entry() {
    for visitors in [Visitors::Other, Visitors::OtherOnly] {
        on_every_machine(|means, bbm| exercise_as::<Granule4K>(Style::Interrupt, visitors, means, bbm));
    }
}
