//! What was seen at one moment, and what has happened since the moment before.

use anyhow::Result;
use serde_json::{Map, Value, json};
use tracing_tool::view::{EXITS, Look, Machine, Space, View, Vm};

/// What was seen at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(super) look: Look,
    /// Pins of each VM's frames.
    pub(super) pins: Vec<u64>,
}

impl Sample {
    /// Looks at a machine.
    pub(crate) fn of(view: &View) -> Result<Self> {
        let look = view.look()?;
        let records = view.records(&look)?;
        let pins = look.vms.iter().map(|vm| records.pins(vm.owner)).collect();
        Ok(Self { look, pins })
    }

    /// Takes what a trace says, which knows no pins.
    pub(crate) fn of_trace(look: Look) -> Self {
        let pins = vec![0; look.vms.len()];
        Self { look, pins }
    }

    /// Returns all numbers by name.
    pub(crate) fn json(&self) -> Value {
        let look = &self.look;
        let machine: Map<_, _> = Machine::ALL
            .iter()
            .map(|number| (number.name().to_owned(), look.number(*number).into()))
            .collect();
        let vms: Vec<_> = look.vms.iter().zip(&self.pins).map(|(vm, pins)| json_of(vm, *pins)).collect();
        json!({
            "seconds": look.ticks as f64 / look.hertz as f64,
            "ticks in a second": look.hertz,
            "CPUs": look.cpus,
            "records": look.recorded.map(|recorded| recorded.records),
            "grace periods": look.recorded.map(|recorded| recorded.grace_periods),
            "machine": machine,
            "VMs": vms,
        })
    }
}

fn json_of(vm: &Vm, pins: u64) -> Value {
    let exits: Map<_, _> =
        EXITS.iter().zip(vm.exits).map(|(name, n)| ((*name).to_owned(), n.into())).collect();
    let space: Map<_, _> =
        Space::ALL.iter().map(|number| (number.name().to_owned(), vm.number(*number).into())).collect();
    json!({
        "name": vm.name,
        "on": vm.is_on,
        "vCPUs": vm.vcpus,
        "memory": vm.bytes(),
        "BBM level": vm.shape.bbm as u8,
        "exits": exits,
        "mapped by height": vm.leaves,
        "space": space,
        "pins": pins,
        "blackouts by ticks": vm.blackouts,
    })
}

/// What is on the screen.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(super) now: Sample,
    pub(super) before: Option<Sample>,
    /// The VM of which more is shown, in their order.
    pub(super) chosen: usize,
    /// What its rates are of.
    pub(super) rates: Rates,
}

/// What is shown of things that happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rates {
    /// How often in a second since the look before.
    InASecond,
    /// How often in all: a trace that is at its end tells no time.
    InAll,
}

impl Shown {
    /// Begins with a first look.
    pub(crate) const fn new(now: Sample) -> Self {
        Self { now, before: None, chosen: 0, rates: Rates::InASecond }
    }

    /// Shows all that has happened, at the end.
    pub(crate) const fn in_all(now: Sample) -> Self {
        Self { now, before: None, chosen: 0, rates: Rates::InAll }
    }

    /// Takes the next look.
    pub(crate) fn next(&mut self, now: Sample) {
        self.before = Some(std::mem::replace(&mut self.now, now));
        self.choose(0);
    }

    /// Chooses the VM that is so many places further on.
    pub(crate) fn choose(&mut self, by: isize) {
        let last = self.now.look.vms.len().saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(by).min(last);
    }

    /// Returns how often in a second something of the machine's has happened since the look before.
    pub(super) fn rate(&self, of: impl Fn(&Look) -> u64) -> f64 {
        if self.rates == Rates::InAll {
            return of(&self.now.look) as f64;
        }
        let Some(before) = &self.before else { return 0.0 };
        let ticks = self.now.look.ticks.saturating_sub(before.look.ticks);
        let count = of(&self.now.look).saturating_sub(of(&before.look));
        if ticks == 0 { 0.0 } else { count as f64 * self.now.look.hertz as f64 / ticks as f64 }
    }

    /// As [`Shown::rate`], of one VM, which is known by its owner's number.
    pub(super) fn rate_of(&self, owner: u16, of: impl Fn(&Vm) -> u64) -> f64 {
        self.rate(|look| look.vms.iter().find(|vm| vm.owner == owner).map_or(0, &of))
    }
}
