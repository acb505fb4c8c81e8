//! Random operations on a machine with list registers and on a flat interrupt controller without any: the guest must
//! see the same.

use super::Machine;
use crate::{
    gic::{SgiGroups, timer_of},
    host::{Line, Timer},
    testing::FakeInterface,
};
use proptest::prelude::*;

const VCPUS: usize = 3;
/// Interrupts of interest: two SGIs, the timers, another private one, shared ones in two words.
const SGIS: [u32; 2] = [0, 9];
const TIMER_INTIDS: [u32; 2] = [27, 30];
const PPI: u32 = 20;
const SPIS: [u32; 3] = [33, 48, 70];
/// So many may be active at once on one vCPU: the list registers are no fewer.
const MOST_ACTIVE: usize = 3;

/// One interrupt, as the architecture describes it (IHI 0069, 4.1).
#[derive(Clone, Copy, Debug, Default)]
struct Flat {
    enabled: bool,
    edge: bool,
    latch: bool,
    line: bool,
    /// The vCPU on which it is active.
    active: Option<usize>,
    target: usize,
    priority: u8,
}

impl Flat {
    fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Sgi {
        from: usize,
        to: usize,
        which: usize,
    },
    Timer {
        vcpu: usize,
        which: usize,
        high: bool,
    },
    PrivateLine {
        by: usize,
        vcpu: usize,
        high: bool,
    },
    Line {
        which: usize,
        high: bool,
    },
    Enable {
        by: usize,
        on: Irq,
        set: bool,
    },
    Pend {
        by: usize,
        on: Irq,
        set: bool,
    },
    Activate {
        by: usize,
        on: Irq,
        set: bool,
    },
    Route {
        by: usize,
        which: usize,
        to: usize,
    },
    Acknowledge {
        vcpu: usize,
    },
    End {
        vcpu: usize,
        which: usize,
    },
    Read {
        by: usize,
    },
    /// The vCPU leaves its CPU, and comes back.
    Away {
        vcpu: usize,
    },
}

/// An interrupt: a private one of a vCPU, or a shared one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Irq {
    Private(usize, u32),
    Shared(u32),
}

fn irq() -> impl Strategy<Value = Irq> {
    let private: Vec<u32> = SGIS.into_iter().chain(TIMER_INTIDS).chain([PPI]).collect();
    prop_oneof![
        (0..VCPUS, prop::sample::select(private)).prop_map(|(vcpu, intid)| Irq::Private(vcpu, intid)),
        prop::sample::select(SPIS.to_vec()).prop_map(Irq::Shared),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = 0..VCPUS;
    prop_oneof![
        3 => (vcpu.clone(), vcpu.clone(), 0..SGIS.len())
            .prop_map(|(from, to, which)| Op::Sgi { from, to, which }),
        2 => (vcpu.clone(), 0_usize..2, any::<bool>())
            .prop_map(|(vcpu, which, high)| Op::Timer { vcpu, which, high }),
        2 => (vcpu.clone(), vcpu.clone(), any::<bool>())
            .prop_map(|(by, vcpu, high)| Op::PrivateLine { by, vcpu, high }),
        3 => (0..SPIS.len(), any::<bool>()).prop_map(|(which, high)| Op::Line { which, high }),
        2 => (vcpu.clone(), irq(), any::<bool>()).prop_map(|(by, on, set)| Op::Enable { by, on, set }),
        2 => (vcpu.clone(), irq(), any::<bool>()).prop_map(|(by, on, set)| Op::Pend { by, on, set }),
        1 => (vcpu.clone(), irq(), any::<bool>()).prop_map(|(by, on, set)| Op::Activate { by, on, set }),
        1 => (vcpu.clone(), 0..SPIS.len(), vcpu.clone())
            .prop_map(|(by, which, to)| Op::Route { by, which, to }),
        6 => vcpu.clone().prop_map(|vcpu| Op::Acknowledge { vcpu }),
        5 => (vcpu.clone(), 0_usize..4).prop_map(|(vcpu, which)| Op::End { vcpu, which }),
        2 => vcpu.clone().prop_map(|by| Op::Read { by }),
        2 => vcpu.prop_map(|vcpu| Op::Away { vcpu }),
    ]
}

struct Pair {
    real: Machine,
    private: [[Flat; 32]; VCPUS],
    shared: [Flat; 128],
    /// The vCPUs that are on no CPU, and their timers' lines.
    away: [Option<[Line; 2]>; VCPUS],
}

impl Pair {
    fn new(lists: usize) -> Self {
        let mut real = Machine::ready(VCPUS, lists);
        let mut shared = [Flat { enabled: true, priority: 0xa0, ..Flat::default() }; 128];
        let mut private = [[Flat { enabled: true, priority: 0xa0, ..Flat::default() }; 32]; VCPUS];
        // Different urgencies, one edge-triggered shared interrupt.
        for (intid, priority) in [(9, 0x80), (27, 0x60), (33, 0x90), (70, 0x40)] {
            if intid < 32 {
                for (vcpu, flat) in private.iter_mut().enumerate() {
                    let offset = vcpu as u64 * 0x2_0000 + 0x1_0400 + intid;
                    real.gicr_write(0, offset, 1, u64::from(priority));
                    flat[intid as usize].priority = priority;
                }
            } else {
                real.gicd_write(0, 0x400 + intid as u32, 1, u64::from(priority));
                shared[intid as usize].priority = priority;
            }
        }
        real.gicd_write(0, 0xc00 + 48 / 4, 4, 2); // INTID 48
        shared[48].edge = true;
        for vcpu in &mut private {
            for sgi in &mut vcpu[..16] {
                sgi.edge = true;
            }
        }
        real.settle();
        Self { real, private, shared, away: [None; VCPUS] }
    }

    fn flat(&mut self, irq: Irq) -> &mut Flat {
        match irq {
            Irq::Private(vcpu, intid) => &mut self.private[vcpu][intid as usize],
            Irq::Shared(intid) => &mut self.shared[intid as usize],
        }
    }

    fn irqs(vcpu: usize) -> Vec<Irq> {
        let private =
            SGIS.into_iter().chain(TIMER_INTIDS).chain([PPI]).map(|intid| Irq::Private(vcpu, intid));
        private.chain(SPIS.map(Irq::Shared)).collect()
    }

    /// The interrupt that `vcpu` would acknowledge.
    fn next(&mut self, vcpu: usize) -> Option<Irq> {
        let irqs = Self::irqs(vcpu).into_iter();
        let ready = irqs.filter(|&irq| {
            let flat = *self.flat(irq);
            let here = matches!(irq, Irq::Private(..)) || flat.target == vcpu;
            flat.enabled && flat.pending() && flat.active.is_none() && here
        });
        ready.collect::<Vec<_>>().into_iter().min_by_key(|&irq| (self.flat(irq).priority, intid(irq)))
    }

    fn active_on(&mut self, vcpu: usize) -> Vec<Irq> {
        Self::irqs(vcpu).into_iter().filter(|&irq| self.flat(irq).active == Some(vcpu)).collect()
    }

    /// Writes a register of one bit per interrupt.
    fn write_bit(&mut self, by: usize, irq: Irq, register: u32) {
        match irq {
            Irq::Private(vcpu, intid) => {
                let offset = vcpu as u64 * 0x2_0000 + 0x1_0000 + u64::from(register);
                self.real.gicr_write(by, offset, 4, 1 << intid);
            }
            Irq::Shared(intid) => {
                self.real.gicd_write(by, register + intid / 32 * 4, 4, 1 << (intid % 32));
            }
        }
    }

    fn read_bit(&mut self, by: usize, irq: Irq, register: u32) -> bool {
        let (value, bit) = match irq {
            Irq::Private(vcpu, intid) => {
                let offset = vcpu as u64 * 0x2_0000 + 0x1_0000 + u64::from(register);
                (self.real.gicr_read(by, offset, 4), intid)
            }
            Irq::Shared(intid) => (self.real.gicd_read(by, register + intid / 32 * 4, 4), intid % 32),
        };
        value >> bit & 1 != 0
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Sgi { from, to, which } => {
                let value = u64::from(SGIS[which]) << 24 | 1 << to;
                let (vcpus, cpu) = (&self.real.vcpus, &self.real.cpus[from]);
                self.real.gic.send_sgi(vcpus, &vcpus[from], cpu, value, SgiGroups::Both);
                self.private[to][SGIS[which] as usize].latch = true;
            }
            Op::Timer { vcpu, which, high } => {
                let line = if high { Line::High } else { Line::Low };
                self.private[vcpu][TIMER_INTIDS[which] as usize].line = high;
                if let Some(lines) = &mut self.away[vcpu] {
                    lines[which] = line;
                    return;
                }
                self.real.lists[vcpu].lines[which] = line;
                // A line that falls while the guest runs makes nobody look; the guest gets an interrupt for nothing, as
                // it may on any machine. Here somebody looks.
                self.real.refresh(vcpu);
            }
            Op::PrivateLine { by, vcpu, high } => {
                let line = if high { Line::High } else { Line::Low };
                self.real.gic.set_ppi(&self.real.vcpus[vcpu], &self.real.cpus[by], PPI, line);
                self.private[vcpu][PPI as usize].line = high;
            }
            Op::Line { which, high } => {
                let line = if high { Line::High } else { Line::Low };
                self.real.gic.set_spi(&self.real.vcpus, &self.real.cpus[0], SPIS[which], line);
                let flat = &mut self.shared[SPIS[which] as usize];
                flat.latch |= flat.edge && high && !flat.line;
                flat.line = high;
            }
            Op::Enable { by, on, set } => {
                self.write_bit(by, on, if set { 0x100 } else { 0x180 });
                self.flat(on).enabled = set;
            }
            Op::Pend { by, on, set } => {
                // Software does not make a timer pending here: the link to the physical interrupt has no place for it.
                if set && timer_of(intid(on)).is_some() {
                    return;
                }
                self.write_bit(by, on, if set { 0x200 } else { 0x280 });
                self.flat(on).latch = set;
            }
            Op::Activate { by, on, set } => self.activate(by, on, set),
            Op::Route { by, which, to } => {
                let intid = SPIS[which];
                self.real.gicd_write(by, 0x6000 + 8 * intid, 8, to as u64);
                self.shared[intid as usize].target = to;
            }
            Op::Acknowledge { vcpu } => self.acknowledge(vcpu),
            Op::End { vcpu, which } => {
                let active = self.active_on(vcpu);
                if let Some(&irq) = active.get(which) {
                    self.real.lists[vcpu].end(intid(irq));
                    self.flat(irq).active = None;
                    if self.real.lists[vcpu].hcr != 1 && timer_of(intid(irq)).is_some() {
                        // The hardware does not tell that a linked interrupt has ended. Something that waits for its
                        // place waits until the guest takes what is there, or ends another.
                        self.real.refresh(vcpu);
                    }
                }
            }
            Op::Read { by } => self.read(by),
            Op::Away { vcpu } => self.away(vcpu),
        }
    }

    /// Takes a vCPU off its CPU, or brings it back. The CPU's interface is in between as another vCPU finds and leaves it.
    fn away(&mut self, vcpu: usize) {
        let Machine { gic, vcpus, cpus, lists, .. } = &mut self.real;
        let lists = &mut lists[vcpu];
        if let Some(lines) = self.away[vcpu].take() {
            gic.unstow(&vcpus[vcpu], lists);
            lists.lines = lines;
            self.real.refresh(vcpu);
            return;
        }
        gic.stow(vcpus, &vcpus[vcpu], &cpus[vcpu], lists);
        assert!(lists.held().is_empty() && lists.hcr == 0, "the next vCPU finds {:?}", lists.held());
        assert_eq!(lists.physical_active, [false; 2], "the next vCPU's timers could not fire");
        self.away[vcpu] = Some(core::mem::replace(&mut lists.lines, [Line::Low; 2])); // its timers are off
        lists.hcr = 1;
    }

    /// Tells whether a vCPU that an operation is by is on its CPU.
    fn can(&self, op: &Op) -> bool {
        match *op {
            Op::Sgi { from: by, .. }
            | Op::PrivateLine { by, .. }
            | Op::Enable { by, .. }
            | Op::Pend { by, .. }
            | Op::Activate { by, .. }
            | Op::Route { by, .. }
            | Op::Acknowledge { vcpu: by }
            | Op::End { vcpu: by, .. }
            | Op::Read { by } => self.away[by].is_none(),
            Op::Timer { .. } | Op::Line { .. } | Op::Away { .. } => true,
        }
    }

    fn activate(&mut self, by: usize, on: Irq, set: bool) {
        let target = match on {
            Irq::Private(vcpu, _) => vcpu,
            Irq::Shared(intid) => self.shared[intid as usize].target,
        };
        let active = self.flat(on).active;
        if set && (active.is_some() || self.active_on(target).len() >= MOST_ACTIVE) {
            return;
        }
        if set && timer_of(intid(on)).is_some() {
            return; // as above
        }
        self.write_bit(by, on, if set { 0x300 } else { 0x380 });
        self.flat(on).active = set.then_some(target);
    }

    fn acknowledge(&mut self, vcpu: usize) {
        if self.active_on(vcpu).len() >= MOST_ACTIVE {
            return;
        }
        let expected = self.next(vcpu);
        let got = self.real.lists[vcpu].acknowledge();
        assert_eq!(got, expected.map(intid), "what vCPU {vcpu} acknowledges");
        if let Some(irq) = expected {
            let flat = self.flat(irq);
            flat.latch = false;
            flat.active = Some(vcpu);
        }
    }

    /// Reads every pending and active bit, from one vCPU.
    fn read(&mut self, by: usize) {
        for vcpu in 0..VCPUS {
            for irq in Self::irqs(vcpu) {
                // What another vCPU has in its list registers is known after it was asked.
                self.read_bit(by, irq, 0x300);
                self.settle();
                let flat = *self.flat(irq);
                let (pending, active) = (self.read_bit(by, irq, 0x200), self.read_bit(by, irq, 0x300));
                assert_eq!(active, flat.active.is_some(), "{irq:?} active, read by {by}");
                // A timer's line is seen by its own vCPU only, unless it has fired.
                if timer_of(intid(irq)).is_none() {
                    assert_eq!(pending, flat.pending(), "{irq:?} pending, read by {by}");
                }
            }
        }
    }

    /// Lets hardware and hypervisor do what they have to, until nothing changes.
    fn settle(&mut self) {
        let fires =
            |l: &FakeInterface, which: usize| l.lines[which] == Line::High && !l.physical_active[which];
        loop {
            for vcpu in (0..VCPUS).filter(|&vcpu| self.away[vcpu].is_none()) {
                for (which, timer) in [Timer::Virtual, Timer::Physical].into_iter().enumerate() {
                    let lists = &mut self.real.lists[vcpu];
                    if fires(lists, which) {
                        lists.physical_active[which] = true;
                        self.real.gic.timer_fired(&self.real.vcpus[vcpu], timer);
                    }
                }
                if self.real.lists[vcpu].maintenance() {
                    self.real.refresh(vcpu);
                    assert!(!self.real.lists[vcpu].maintenance(), "it would never end");
                }
            }
            self.real.settle_where(|vcpu| self.away[vcpu].is_none());
            if !self.real.lists.iter().any(|l| fires(l, 0) || fires(l, 1)) {
                return;
            }
        }
    }

    /// Checks that every vCPU would acknowledge the same interrupt on both sides.
    fn compare(&mut self) {
        let away = self.away;
        for vcpu in (0..VCPUS).filter(|&vcpu| away[vcpu].is_none()) {
            let expected = self.next(vcpu).map(intid);
            let held = self.real.lists[vcpu].held();
            let waiting = held.iter().filter(|(_, pending, active)| *pending && !active);
            let offered = waiting.map(|(intid, ..)| *intid).collect::<Vec<_>>();
            if self.active_on(vcpu).len() < MOST_ACTIVE {
                assert_eq!(offered.is_empty(), expected.is_none(), "vCPU {vcpu}: {held:?}, {expected:?}");
                assert!(expected.is_none_or(|intid| offered.contains(&intid)), "{held:?}, {expected:?}");
            }
        }
    }
}

fn intid(irq: Irq) -> u32 {
    match irq {
        Irq::Private(_, intid) | Irq::Shared(intid) => intid,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_guest_cannot_tell_list_registers_from_a_flat_controller(
        lists in prop::sample::select(vec![4_usize, 5, 16]),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut pair = Pair::new(lists);
        for op in ops {
            if !pair.can(&op) {
                continue;
            }
            pair.apply(op);
            pair.settle();
            pair.compare();
        }
    }
}
