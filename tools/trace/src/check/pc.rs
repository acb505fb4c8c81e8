//! A PC's records, in the words of the judge: what x86-64 does by itself is added.
//!
//! | record | what it is taken for |
//! | --- | --- |
//! | an entry is written | the write, and that table walkers see it: they see stores in the order of the program (SDM 3A, 10.2.2) |
//! | INVEPT | an invalidation of all that this CPU holds under the tag, complete before what follows |
//! | the guest was left | that its table walks are over, too: an exit ends them |
//! | the EPT pointer is loaded | a load of the tables, under a tag of their space's own: its owner's number |

use super::{Judged, appears, step_of_any};
use crate::tables;
use anyhow::{Result, ensure};
use ept::{Ept, Invept};
use model::{Fleet, Op, Reach, Tlbi};
use std::collections::BTreeMap;
use trace::{Kind, Record};
use types::{CpuId, CpuSet, Pa, Vmid};

/// All spaces of a PC.
#[derive(Debug)]
pub(super) struct Pc {
    pub(super) fleet: Fleet<Ept>,
    /// The owner of each root.
    owners: BTreeMap<Pa, u16>,
}

impl Pc {
    /// Makes it of all spaces that there are.
    pub(super) fn new(fleet: Fleet<Ept>) -> Self {
        Self { fleet, owners: BTreeMap::new() }
    }

    /// Hands a record to the judges. The inner error is theirs.
    pub(super) fn step(&mut self, record: &Record) -> Result<Judged> {
        let Record { cpu, small, operands: [a, b, c], .. } = *record;
        Ok(match record.kind {
            Kind::Space | Kind::There => {
                self.owners.insert(Pa::new(a), b as u16);
                appears(&mut self.fleet, record, tables::of_pc(b, c, small)?)
            }
            Kind::Told => self.fleet.told(b as u16, (a != 0).then(|| self.tag(a)), CpuSet::from_bits(c)),
            Kind::Write => step_of_any(&mut self.fleet, record).and_then(|()| self.waited(cpu, Reach::Ishst)),
            Kind::Tlbi => {
                ensure!(small == trace::Op::Invept as u8, "an instruction of another architecture");
                let op = if a == Invept::All as u64 { Op::Alle1 } else { Op::Vmalls12e1 };
                let tlbi = Tlbi { op, vmid: self.tag(b), range: None, hint: None };
                self.fleet.invalidates(cpu, tlbi).and_then(|()| self.waited(cpu, Reach::Nsh))
            }
            Kind::Vttbr => self.fleet.loads(cpu, self.tag(a), root(a)),
            Kind::Leaves => self.waited(cpu, Reach::Nsh).and_then(|()| step_of_any(&mut self.fleet, record)),
            _ => step_of_any(&mut self.fleet, record),
        })
    }

    fn waited(&mut self, cpu: CpuId, reach: Reach) -> Judged {
        self.fleet.waited(cpu, reach)
    }

    /// Returns the tag of the tables of an EPT pointer; one that is nobody's where they are no space's.
    fn tag(&self, eptp: u64) -> Vmid {
        Vmid(self.owners.get(&root(eptp)).copied().unwrap_or(u16::MAX))
    }
}

/// Returns the root of an EPT pointer.
fn root(eptp: u64) -> Pa {
    Pa::new(eptp & !0xfff)
}
