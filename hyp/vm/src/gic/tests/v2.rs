//! A GICv2 (IHI 0048): its registers by their numbers, and SGIs that come from somebody.

use super::Machine;
use crate::{
    gic::{GicModel, GicVersion},
    host::{Line, ListRegisters},
    testing::GIC,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

const V2: GicModel = GicModel { version: GicVersion::V2, ..GIC };

impl Machine {
    /// Makes a machine whose interrupts are enabled, in group 0, as Linux has them on a GICv2.
    fn ready_v2(count: usize, lists: usize) -> Self {
        let mut m = Self::with(V2, count, lists);
        m.v2_write(0, 0, 4, 1);
        for me in 0..count {
            m.v2_write(me, 0x100, 4, 0xffff_ffff);
            for i in 0..8 {
                m.v2_write(me, 0x400 + 4 * i, 4, 0xa0a0_a0a0);
            }
        }
        for word in 1..4 {
            m.v2_write(0, 0x100 + 4 * word, 4, 0xffff_ffff);
        }
        m.settle();
        m
    }

    fn v2_read(&mut self, me: usize, offset: u32, bytes: u8) -> u64 {
        let (value, told) =
            self.gic.read_v2(&self.vcpus, &self.vcpus[me], offset, bytes, &mut self.lists[me]);
        crate::gic::ring(&self.vcpus, told, &self.vcpus[me], &self.cpus[me]);
        value
    }

    fn v2_write(&mut self, me: usize, offset: u32, bytes: u8, value: u64) {
        let told = self.gic.write_v2(&self.vcpus, &self.vcpus[me], offset, bytes, value);
        crate::gic::ring(&self.vcpus, told, &self.vcpus[me], &self.cpus[me]);
    }

    /// The guest acknowledges; returns the number and the sender, as GICC_IAR has them.
    fn acknowledge_v2(&mut self, me: usize) -> Option<(u32, u32)> {
        let before: Vec<u64> = (0..self.lists[me].count()).map(|i| self.lists[me].raw(i)).collect();
        let intid = self.lists[me].acknowledge()?;
        let taken = (0..before.len()).find(|&i| self.lists[me].raw(i) != before[i]).expect("one was taken");
        let sender = if intid < 16 { (before[taken] >> 32) as u32 & 7 } else { 0 };
        Some((intid, sender))
    }
}

#[test]
fn identification_and_control_registers_read_as_in_the_manual() {
    let mut m = Machine::with(V2, 3, 4);
    for (offset, bytes, value) in [
        (0x0, 4, 0),
        (0x4, 4, 0x43),          // TYPER: 3 CPU interfaces, 128 interrupts
        (0x8, 4, 0x4d00_043b),   // IIDR
        (0xfe8, 4, 0x2b),        // PIDR2: version 2
        (0xffe8, 4, 0),          // a GICv3's
        (0x6100, 8, 0),          // a GICv3's routers
        (0xc00, 4, 0xaaaa_aaaa), // ICFGR0: SGIs are edges
        (0xc04, 4, 0),
        (0x800, 4, 0x0202_0202), // ITARGETSR0: its own
        (0x820, 4, 0x0101_0101),
        (0xf00, 4, 0), // SGIR: write-only
    ] {
        assert_eq!(m.v2_read(1, offset, bytes), value, "GICD + {offset:#x}");
    }
    m.v2_write(0, 0, 4, 0xffff_ffff);
    assert_eq!(m.v2_read(0, 0, 4), 3);
    assert_eq!(m.gicr_read(0, 0x1_0100, 4), m.v2_read(0, 0x100, 4));
}

#[test]
fn private_registers_are_each_vcpu_s_own() {
    let mut m = Machine::with(V2, 2, 4);
    m.v2_write(1, 0x100, 4, 1 << 20 | 1);
    m.v2_write(1, 0x414, 1, 0x80);
    m.v2_write(1, 0x200, 4, 1 << 20 | 1); // ISPENDR0: an SGI's bit is read-only
    assert_eq!((m.v2_read(0, 0x100, 4), m.v2_read(1, 0x100, 4)), (0, 1 << 20 | 1));
    assert_eq!((m.v2_read(0, 0x414, 1), m.v2_read(1, 0x414, 1)), (0, 0x80));
    assert_eq!((m.v2_read(0, 0x200, 4), m.v2_read(1, 0x200, 4)), (0, 1 << 20));
}

#[test]
fn a_shared_interrupt_goes_to_the_lowest_interface_that_is_there() {
    let mut m = Machine::ready_v2(3, 4);
    for (targets, kept, taken_by) in
        [(0x04, 0x04, Some(2)), (0xf2, 0x02, Some(1)), (0xf8, 0, None), (0x07, 0x07, Some(0))]
    {
        m.v2_write(0, 0x821, 1, targets); // ITARGETSR of interrupt 33
        assert_eq!(m.v2_read(0, 0x821, 1), kept);
        m.gic.set_spi(&m.vcpus, &m.cpus[0], 33, Line::High);
        m.settle();
        let by: Vec<usize> = (0..3).filter(|&me| m.acknowledge_v2(me) == Some((33, 0))).collect();
        assert_eq!(by, taken_by.into_iter().collect::<Vec<_>>(), "{targets:#x}");
        m.gic.set_spi(&m.vcpus, &m.cpus[0], 33, Line::Low);
        for me in by {
            m.lists[me].end(33);
        }
        (0..3).for_each(|me| m.refresh(me));
    }
}

#[test]
fn an_sgi_goes_where_the_filter_says() {
    let mut m = Machine::ready_v2(3, 4);
    for (value, reached) in
        [(0x0005_0003, vec![0, 2]), (0x0100_0003, vec![0, 2]), (0x0200_0003, vec![1]), (0x0300_0003, vec![])]
    {
        m.v2_write(1, 0xf00, 4, value);
        m.settle();
        let by: Vec<usize> = (0..3).filter(|&me| m.acknowledge_v2(me) == Some((3, 1))).collect();
        assert_eq!(by, reached, "{value:#x}");
        for me in by {
            m.lists[me].end(3);
            m.refresh(me);
        }
    }
}

#[test]
fn software_makes_an_sgi_pending_for_a_sender_and_takes_it_back() {
    let mut m = Machine::with(V2, 2, 4);
    m.v2_write(0, 0xf25, 1, 0xff); // SPENDSGIR of SGI 5: of interfaces that there are
    assert_eq!((m.v2_read(0, 0xf25, 1), m.v2_read(0, 0xf15, 1), m.v2_read(1, 0xf25, 1)), (3, 3, 0));
    assert_eq!(m.v2_read(0, 0x200, 4), 1 << 5);
    m.v2_write(0, 0xf15, 1, 1);
    assert_eq!((m.v2_read(0, 0xf25, 1), m.v2_read(0, 0x200, 4)), (2, 1 << 5));
    m.v2_write(0, 0xf15, 1, 2);
    assert_eq!((m.v2_read(0, 0xf25, 1), m.v2_read(0, 0x200, 4)), (0, 0));
}

/// What happens to vCPU 0, on a machine of three.
#[derive(Clone, Debug)]
enum Step {
    Send { from: usize, sgi: u32 },
    Refresh,
    Acknowledge,
    End,
    Stow,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_usize, 0..3_u32).prop_map(|(from, sgi)| Step::Send { from, sgi }),
        2 => Just(Step::Refresh),
        3 => Just(Step::Acknowledge),
        3 => Just(Step::End),
        1 => Just(Step::Stow),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever is sent is taken, with its sender, once for as often as it was sent between two times that it was taken, or
    /// twice where it was sent while it was in a list register.
    #[test]
    fn no_sender_s_sgi_is_lost_or_invented(steps in steps(), lists in 1..5_usize) {
        let mut m = Machine::ready_v2(3, lists);
        let mut pending: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut again: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut active: Vec<u32> = Vec::new();
        let mut here = true;
        let take = |m: &mut Machine, pending: &mut BTreeSet<(u32, u32)>, again: &mut BTreeSet<(u32, u32)>| {
            let taken = m.acknowledge_v2(0)?;
            let known = pending.remove(&taken) || again.remove(&taken);
            assert!(known, "{taken:?} was not sent: {pending:?}");
            Some(taken.0)
        };
        for step in steps {
            match step {
                Step::Send { from, sgi } => {
                    m.v2_write(from, 0xf00, 4, 1 << 16 | u64::from(sgi));
                    if !pending.insert((sgi, from as u32)) {
                        again.insert((sgi, from as u32));
                    }
                }
                Step::Refresh if here => m.refresh(0),
                Step::Acknowledge if here => active.extend(take(&mut m, &mut pending, &mut again)),
                Step::End if here => {
                    if let Some(sgi) = active.pop() {
                        m.lists[0].end(sgi);
                    }
                }
                Step::Stow if here => {
                    m.gic.stow(&m.vcpus, &m.vcpus[0], &m.cpus[0], &mut m.lists[0]);
                    here = false;
                }
                _ if !here => {
                    m.gic.unstow(&m.vcpus[0], &mut m.lists[0]);
                    m.refresh(0);
                    here = true;
                }
                _ => {}
            }
        }
        if !here {
            m.gic.unstow(&m.vcpus[0], &mut m.lists[0]);
        }
        m.refresh(0);
        // The guest ends what is active, and takes what is left.
        for _ in 0..100 {
            while let Some(sgi) = active.pop() {
                m.lists[0].end(sgi);
            }
            m.refresh(0);
            active.extend(take(&mut m, &mut pending, &mut again));
        }
        prop_assert!(pending.is_empty(), "lost: {pending:?}");
    }
}
