//! [`Sequence`]: the instructions that an invalidation by broadcast is made of, as a list of effects: right, or wrong in
//! one way, so that it can be seen that the oracles tell the difference.
//!
//! DSB ISHST; TLBI of stage 2; DSB ISH; TLBI of what combines both stages; DSB ISH; ISB (DDI 0487, D8.17).
//!
//! Of the instructions that a class allows these are the weakest: the last-level form for leaves, with a hint or without.

use crate::{Effect, Judge, Op, Reach, Tiny, Tlbi};
use stage2::{Class, Scope, Work};
use std::collections::BTreeMap;
use std::fmt::Debug;
use types::{CpuId, Height, Range, Vmid};

/// One way in which an invalidation can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Nothing makes the writes visible first.
    NoFirstDsb,
    /// Combined entries are invalidated before stage-2 entries are gone.
    NoMiddleDsb,
    /// Nobody waits for the last invalidation.
    NoLastDsb,
    /// Combined entries stay.
    NoCombined,
    /// The operation is for the hypervisor's own translations.
    OtherRegime,
    /// It is for another space's tag.
    OtherTag,
    /// Other CPUs take no part.
    ThisCpuOnly,
    /// The barriers are for this CPU.
    NarrowDsb,
    /// The last page is left out.
    PageShort,
    /// Walk caches are spared.
    LastLevel,
    /// A level hint where there must be none.
    HintAnyway,
}

impl Flaw {
    /// Every flaw.
    pub const ALL: [Self; 11] = [
        Self::NoFirstDsb,
        Self::NoMiddleDsb,
        Self::NoLastDsb,
        Self::NoCombined,
        Self::OtherRegime,
        Self::OtherTag,
        Self::ThisCpuOnly,
        Self::NarrowDsb,
        Self::PageShort,
        Self::LastLevel,
        Self::HintAnyway,
    ];
}

/// Whoever turns an invalidation into instructions.
pub trait Instructions: Debug {
    /// Returns what `cpu` does to begin `work`, which is known as `id` from now on.
    fn begin(&mut self, cpu: CpuId, work: Work, id: usize) -> Vec<Effect>;

    /// Returns what `cpu` does to complete the work `id`.
    fn complete(&mut self, cpu: CpuId, id: usize) -> Vec<Effect>;
}

/// The instructions of invalidations by broadcast.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequence {
    flaw: Option<Flaw>,
    page: u64,
    vmid: Vmid,
    /// What is begun, and not complete.
    works: BTreeMap<usize, Work>,
}

impl Instructions for Sequence {
    fn begin(&mut self, cpu: CpuId, work: Work, id: usize) -> Vec<Effect> {
        self.works.insert(id, work);
        self.first(cpu, work)
    }

    fn complete(&mut self, cpu: CpuId, id: usize) -> Vec<Effect> {
        let work = self.works.remove(&id).expect("completed what was begun");
        self.last(cpu, work)
    }
}

impl Sequence {
    /// As the manual has it, for the tag that a [`Judge`] expects.
    pub const RIGHT: Self =
        Self { flaw: None, page: 1 << 12, vmid: Judge::<Tiny>::VMID, works: BTreeMap::new() };

    /// With one flaw. `page`: the size of a page in bytes.
    pub fn with(flaw: Flaw, page: u64) -> Self {
        Self { flaw: Some(flaw), page, ..Self::RIGHT }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Returns what `cpu` does to begin `work`.
    pub fn first(&self, cpu: CpuId, work: Work) -> Vec<Effect> {
        let first = if self.has(Flaw::NarrowDsb) { Reach::Nsh } else { Reach::Ishst };
        let mut list = vec![Effect::Dsb { cpu, reach: first }];
        if self.has(Flaw::NoFirstDsb) {
            list.clear();
        }
        if work.class == Class::Publish {
            return list;
        }
        let vmid = if self.has(Flaw::OtherTag) { Vmid(self.vmid.0 + 1) } else { self.vmid };
        let tlbi = match work.scope {
            Scope::Tag => Tlbi { op: self.everything(), vmid, range: None, hint: None },
            Scope::Range { range, hint } => {
                let hint = hint.filter(|_| work.class == Class::Leaves);
                let hint = if self.has(Flaw::HintAnyway) { Some(hint.unwrap_or(Height::PAGE)) } else { hint };
                let op = self.by_address(work.class, hint);
                Tlbi { op, vmid, range: Some(self.shortened(range)), hint }
            }
        };
        list.push(Effect::Tlbi { cpu, tlbi });
        list
    }

    fn everything(&self) -> Op {
        match self.flaw {
            Some(Flaw::OtherRegime) => Op::Alle2is,
            Some(Flaw::ThisCpuOnly) => Op::Vmalls12e1,
            _ => Op::Vmalls12e1is,
        }
    }

    fn by_address(&self, class: Class, hint: Option<Height>) -> Op {
        let local = class == Class::Relax || self.has(Flaw::ThisCpuOnly);
        let last_level = class == Class::Leaves || hint.is_some() || self.has(Flaw::LastLevel);
        match (last_level, local) {
            _ if self.has(Flaw::OtherRegime) => Op::Vae2is,
            (true, true) => Op::Ipas2le1,
            (true, false) => Op::Ipas2le1is,
            (false, true) => Op::Ipas2e1,
            (false, false) => Op::Ipas2e1is,
        }
    }

    fn shortened(&self, range: Range) -> Range {
        let less = if self.has(Flaw::PageShort) { self.page } else { 0 };
        Range::with_len(range.start(), range.len().saturating_sub(less)).unwrap_or(range)
    }

    /// Returns what `cpu` does to complete `work`.
    pub fn last(&self, cpu: CpuId, work: Work) -> Vec<Effect> {
        if work.class == Class::Publish {
            return Vec::new();
        }
        let local = work.class == Class::Relax;
        let reach = if local || self.has(Flaw::NarrowDsb) { Reach::Nsh } else { Reach::Ish };
        let dsb = Effect::Dsb { cpu, reach };
        let mut list = Vec::new();
        if let Scope::Range { .. } = work.scope {
            if !self.has(Flaw::NoMiddleDsb) {
                list.push(dsb);
            }
            if !self.has(Flaw::NoCombined) {
                let vmid = if self.has(Flaw::OtherTag) { Vmid(self.vmid.0 + 1) } else { self.vmid };
                let op = if local || self.has(Flaw::ThisCpuOnly) { Op::Vmalle1 } else { Op::Vmalle1is };
                list.push(Effect::Tlbi { cpu, tlbi: Tlbi { op, vmid, range: None, hint: None } });
            }
        }
        if !self.has(Flaw::NoLastDsb) {
            list.push(dsb);
        }
        list.push(Effect::Isb { cpu });
        list
    }
}
