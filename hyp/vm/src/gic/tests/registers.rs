//! Registers and list registers by their numbers.

use super::Machine;
use crate::{
    gic::{
        SgiGroups,
        lr::{self, Link, Lr, State},
    },
    host::{Line, ListRegisters, Timer},
};
use proptest::prelude::*;

/// IHI 0069, ICH_LR<n>_EL2: State 63:62, HW 61, Group 60, Priority 55:48, pINTID 44:32 (EOI 41), vINTID 31:0.
#[test]
fn list_register_values_are_the_manual_s() {
    for (value, raw) in [
        (Lr::new(27, 0xa0, 1, Link::physical(30), State::PENDING), 0x70a0_001e_0000_001b),
        (Lr::new(33, 0x08, 0, Link::WATCHED, State::PENDING), 0x4008_0200_0000_0021),
        (Lr::new(5, 0xf8, 1, Link::NONE, State::BOTH), 0xd0f8_0000_0000_0005),
        (Lr::new(1019, 0, 3, Link::physical(8191), State::ACTIVE), 0xb000_1fff_0000_03fb),
        (Lr::new(5, 0xf8, 1, Link::NONE, State::BOTH).not_pending().watched(), 0x90f8_0200_0000_0005),
        (Lr::new(5, 0xf8, 1, Link::NONE, State::ACTIVE).pending_again(), 0xd0f8_0000_0000_0005),
    ] {
        assert_eq!(value, Lr(raw), "{:#x}", value.0);
    }
    // Done, pending, active, linked, asserts the maintenance interrupt.
    for (raw, is) in [
        (0, [true, false, false, false, false]),
        (1 << 41, [true, false, false, false, true]),
        (1 << 61 | 1 << 41, [true, false, false, true, false]),
        (1 << 62 | 1 << 41, [false, true, false, false, false]),
        (1 << 63, [false, false, true, false, false]),
        (3 << 62, [false, true, true, false, false]),
    ] {
        let lr = Lr(raw);
        let seen = [lr.is_done(), lr.is_pending(), lr.is_active(), lr.is_linked(), lr.asserts()];
        assert_eq!(seen, is, "{raw:#x}");
    }
    assert_eq!((lr::HCR_RUN, lr::HCR_WAIT, lr::HCR_WAIT_TAKEN), (1, 3, 0xb));
}

#[test]
fn identification_and_control_registers_read_as_in_the_table() {
    let mut m = Machine::new(3, 4);
    for (offset, bytes, value) in [
        (0x0, 4, 0x50),        // CTLR: DS, ARE
        (0x4, 4, 0x0248_0003), // TYPER: No1N, 10 INTID bits, 128 INTIDs
        (0x8, 4, 0x4d00_043b), // IIDR
        (0xc, 4, 0),           // TYPER2
        (0x10, 4, 0),          // STATUSR
        (0x80, 4, 0),          // IGROUPR0: the redistributors'
        (0xffe8, 4, 0x3b),     // PIDR2
        (0xffe8, 8, 0),        // not a 64-bit register
        (0x4, 1, 0),
        (0xfffc, 4, 0),
    ] {
        assert_eq!(m.gicd_read(0, offset, bytes), value, "GICD + {offset:#x}");
    }
    for (offset, bytes, value) in [
        (0x0, 4, 0),                          // CTLR
        (0x4, 4, 0x4d00_043b),                // IIDR
        (0x8, 8, 0x0000_0000_0000_0000),      // TYPER of vCPU 0
        (0x2_0008, 8, 0x0000_0001_0000_0100), // of vCPU 1
        (0x4_0008, 8, 0x0000_0002_0000_0210), // of vCPU 2, the last
        (0x4_0008, 4, 0x0210),
        (0x4_000c, 4, 2),
        (0x14, 4, 6),               // WAKER: asleep
        (0xffe8, 4, 0x3b),          // PIDR2
        (0x1_ffe8, 4, 0x3b),        // PIDR2 of the other frame
        (0x1_0c00, 4, 0xaaaa_aaaa), // ICFGR0: SGIs are edges
        (0x1_0c04, 4, 0),           // ICFGR1: PPIs are levels
        (0x6_0008, 8, 0),           // beyond the last
    ] {
        assert_eq!(m.gicr_read(0, offset, bytes), value, "GICR + {offset:#x}");
    }
}

#[test]
fn writable_registers_keep_the_bits_that_there_are() {
    let mut m = Machine::new(2, 4);
    for (offset, bytes, written, read) in [
        (0x0, 4, u64::MAX, 0x53),
        (0x84, 4, u64::MAX, 0xffff_ffff),
        (0x80, 4, u64::MAX, 0),
        (0x8c, 4, 0x8000_0001, 0x8000_0001),
        (0x90, 4, u64::MAX, 0), // INTID 128 to 159
        (0x420, 4, u64::MAX, 0xf8f8_f8f8),
        (0x421, 1, 0x47, 0x40),
        (0x400, 4, u64::MAX, 0),
        (0x47c, 4, u64::MAX, 0xf8f8_f8f8),
        (0x480, 4, u64::MAX, 0),
        (0xc08, 4, u64::MAX, 0xaaaa_aaaa),
        (0xc0c, 4, 0x5555_5556, 2),
        (0xc00, 4, u64::MAX, 0),
        (0xc20, 4, u64::MAX, 0),
        (0x6100, 8, u64::MAX, 0xff_ffff), // IROUTER32: Aff2 to Aff0
        (0x6108, 4, 1, 1),
        (0x610c, 4, 1, 0), // Aff3
        (0x60f8, 8, 1, 0), // IROUTER31
        (0x6400, 8, 1, 0), // IROUTER128
    ] {
        m.gicd_write(0, offset, bytes, written);
        assert_eq!(m.gicd_read(0, offset, bytes), read, "GICD + {offset:#x}");
    }
    for (offset, bytes, written, read) in [
        (0x14, 4, 0, 0),
        (0x14, 4, 2, 6),
        (0x3_0080, 4, 0x1234_5678, 0x1234_5678),
        (0x3_041b, 1, 0x9f, 0x98),
        (0x3_0418, 4, 0x1122_3344, 0x1020_3040),
        (0x3_0c00, 4, 0, 0xaaaa_aaaa),
    ] {
        m.gicr_write(0, offset, bytes, written);
        assert_eq!(m.gicr_read(0, offset, bytes), read, "GICR + {offset:#x}");
    }
}

#[test]
fn enable_bits_are_set_and_cleared_by_ones() {
    let mut m = Machine::new(1, 4);
    m.gicd_write(0, 0x104, 4, 0xf0);
    m.gicd_write(0, 0x184, 4, 0x30);
    assert_eq!((m.gicd_read(0, 0x104, 4), m.gicd_read(0, 0x184, 4)), (0xc0, 0xc0));
    m.gicr_write(0, 0x1_0100, 4, 0xffff_ffff);
    m.gicr_write(0, 0x1_0180, 4, 0x0fff_ffff);
    assert_eq!(m.gicr_read(0, 0x1_0100, 4), 0xf000_0000);
}

#[test]
fn an_sgi_goes_to_its_targets_and_no_others() {
    let mut m = Machine::ready(20, 4);
    for vcpu in &m.vcpus {
        vcpu.bell.arrive(types::CpuId::new(vcpu.index()).unwrap());
    }
    for (value, targets) in [
        (0x0100_0006, vec![1, 2]),
        (0x0101_0009, vec![16, 19]),         // Aff1 = 1; Aff0 = 0 and 3
        (0x0101_0010, vec![]),               // there is no vCPU 20
        (0x0100_0001, vec![]),               // itself: no kick
        (0x0001_0100_0002, vec![]),          // Aff2 = 1
        (0x0001_0000_0000_0002_u64, vec![]), // Aff3 = 1
        (0x1000_0100_0002, vec![]),          // RS = 1
        (1 << 40 | 3 << 24, (1..20).collect()),
    ] {
        m.cpus[0].take_kicks();
        m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], value, SgiGroups::Both);
        assert_eq!(m.cpus[0].take_kicks(), targets, "{value:#x}");
    }
    m.settle();
    assert_eq!(m.lists[0].held(), [(1, true, false)]);
    assert_eq!(m.lists[2].held(), [(1, true, false), (3, true, false)]);
}

#[test]
fn a_group_0_register_generates_no_group_1_interrupt() {
    let mut m = Machine::ready(2, 4);
    m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], 2, SgiGroups::Zero);
    m.settle();
    assert_eq!(m.lists[1].held(), []);
    m.gicr_write(0, 0x3_0080, 4, 0);
    m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], 2, SgiGroups::Zero);
    m.settle();
    assert_eq!(m.lists[1].held(), [(0, true, false)]);
    assert_eq!(m.lists[1].raw(0) >> 60 & 1, 0, "group");
}

#[test]
fn an_entry_with_nothing_new_touches_no_list_register() {
    let mut m = Machine::ready(1, 4);
    m.gic.timer_fired(&m.vcpus[0], Timer::Virtual);
    m.lists[0].lines[0] = Line::High;
    m.lists[0].physical_active[0] = true;
    m.settle();
    assert_eq!(m.lists[0].raw(0), 0x70a0_0013_0000_001b);
    m.lists[0].touched = 0;
    m.settle();
    m.refresh(0);
    assert_eq!(m.lists[0].touched, 0);
}

#[test]
fn a_timer_whose_line_has_fallen_can_fire_again() {
    let mut m = Machine::ready(1, 4);
    m.lists[0].physical_active[0] = true;
    m.gic.timer_fired(&m.vcpus[0], Timer::Virtual);
    m.settle();
    assert_eq!((m.lists[0].held(), m.lists[0].physical_active[0]), (vec![], false));
}

#[test]
fn a_masked_timer_keeps_its_physical_interrupt_until_it_is_delivered_or_its_line_falls() {
    let mut m = Machine::ready(1, 4);
    m.gicr_write(0, 0x1_0180, 4, 1 << 27);
    m.lists[0].lines[0] = Line::High;
    m.lists[0].physical_active[0] = true;
    m.gic.timer_fired(&m.vcpus[0], Timer::Virtual);
    m.settle();
    assert_eq!((m.lists[0].held(), m.lists[0].physical_active[0]), (vec![], true));
    assert_eq!(m.gicr_read(0, 0x1_0200, 4), 1 << 27, "ISPENDR");
    m.gicr_write(0, 0x1_0100, 4, 1 << 27);
    m.settle();
    assert_eq!(m.lists[0].held(), [(27, true, false)]);
}

#[test]
fn what_does_not_fit_comes_when_there_is_room_and_urgent_things_first() {
    let mut m = Machine::ready(1, 4);
    for sgi in 0..10 {
        m.gicr_write(0, 0x1_0400 + sgi, 1, 0xa0 - 8 * sgi);
        m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], sgi << 24 | 1, SgiGroups::Both);
    }
    m.settle();
    let mut seen = Vec::new();
    for _ in 0..10 {
        let intid = m.lists[0].acknowledge().unwrap();
        m.lists[0].end(intid);
        seen.push(intid);
        if m.lists[0].maintenance() {
            m.refresh(0);
        }
    }
    assert_eq!(seen, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(m.lists[0].hcr, lr::HCR_RUN);
}

#[test]
fn a_more_urgent_interrupt_takes_the_place_of_a_less_urgent_one() {
    let mut m = Machine::ready(1, 4);
    for sgi in 0..4 {
        m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], sgi << 24 | 1, SgiGroups::Both);
    }
    m.settle();
    m.gicd_write(0, 0x421, 1, 0x10);
    m.gic.set_spi(&m.vcpus, &m.cpus[0], 33, Line::High);
    m.settle();
    assert_eq!(m.lists[0].acknowledge(), Some(33));
    assert_eq!(m.lists[0].hcr, lr::HCR_WAIT_TAKEN);
}

#[test]
fn where_all_that_is_held_is_active_the_guest_ends_one_first() {
    let mut m = Machine::ready(1, 4);
    for sgi in 0..4 {
        m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], sgi << 24 | 1, SgiGroups::Both);
        m.settle();
        assert_eq!(m.lists[0].acknowledge(), Some(sgi as u32));
    }
    m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], 4 << 24 | 1, SgiGroups::Both);
    m.settle();
    assert_eq!((m.lists[0].hcr, m.lists[0].maintenance()), (lr::HCR_WAIT, false));
    m.lists[0].end(2);
    assert!(m.lists[0].maintenance());
    m.refresh(0);
    assert_eq!((m.lists[0].acknowledge(), m.lists[0].hcr), (Some(4), lr::HCR_RUN));
}

#[test]
fn a_level_that_is_still_there_when_the_guest_ends_it_comes_again() {
    let mut m = Machine::ready(2, 4);
    m.gicd_write(0, 0x6108, 8, 1);
    m.gic.set_spi(&m.vcpus, &m.cpus[0], 33, Line::High);
    m.settle();
    for _ in 0..3 {
        assert_eq!(m.lists[1].acknowledge(), Some(33));
        assert_eq!(m.lists[1].acknowledge(), None);
        m.lists[1].end(33);
        assert!(m.lists[1].maintenance());
        m.refresh(1);
    }
    m.gic.set_spi(&m.vcpus, &m.cpus[0], 33, Line::Low);
    m.settle();
    assert_eq!(m.lists[1].held(), []);
    assert!(!m.lists[1].maintenance());
}

#[test]
fn a_vcpu_that_goes_off_leaves_what_is_pending_and_nothing_active() {
    let mut m = Machine::ready(2, 4);
    m.gic.send_sgi(&m.vcpus, &m.vcpus[0], &m.cpus[0], 3 << 24 | 2, SgiGroups::Both);
    m.gicd_write(0, 0x6108, 8, 1);
    m.gic.set_spi(&m.vcpus, &m.cpus[0], 33, Line::High);
    m.lists[1].lines = [Line::High; 2];
    m.lists[1].physical_active = [true; 2];
    m.gic.timer_fired(&m.vcpus[1], Timer::Virtual);
    m.gic.timer_fired(&m.vcpus[1], Timer::Physical);
    m.settle();
    assert_eq!(m.lists[1].held().len(), 4);
    assert_eq!(m.lists[1].acknowledge(), Some(3));
    assert_eq!(m.lists[1].acknowledge(), Some(27));
    m.gic.withdraw(&m.vcpus, &m.vcpus[1], &m.cpus[1], &mut m.lists[1]);
    assert_eq!(m.lists[1].held(), []);
    assert_eq!(m.lists[1].physical_active, [false; 2]);
    assert_eq!(m.gicr_read(0, 0x3_0300, 4), 0, "ISACTIVER0");
    // The shared one goes where it is routed to.
    m.gicd_write(0, 0x6108, 8, 0);
    m.settle();
    assert_eq!(m.lists[0].held(), [(33, true, false)]);
}

#[test]
fn a_reset_forgets_everything_but_what_is_active_in_the_hardware() {
    let mut m = Machine::ready(1, 4);
    m.gic.set_spi(&m.vcpus, &m.cpus[0], 33, Line::High);
    m.gic.withdraw(&m.vcpus, &m.vcpus[0], &m.cpus[0], &mut m.lists[0]);
    // It fires once more while the vCPU is off.
    m.lists[0].physical_active[0] = true;
    m.gic.timer_fired(&m.vcpus[0], Timer::Virtual);
    m.gic.reset(&m.vcpus);
    m.refresh(0);
    assert_eq!((m.lists[0].held(), m.lists[0].physical_active[0]), (vec![], false));
    assert_eq!(m.lists[0].hcr, 1);
    for (offset, value) in [(0x0, 0x50), (0x104, 0), (0x204, 0), (0x420, 0)] {
        assert_eq!(m.gicd_read(0, offset, 4), value, "GICD + {offset:#x}");
    }
}

proptest! {
    #[test]
    fn no_access_makes_it_panic(
        accesses in prop::collection::vec(
            (0_usize..2, 0_u32..0x1_0000, 0_u64..0x8_0000, 0_u32..4, any::<u64>(), any::<bool>()),
            1..50,
        ),
    ) {
        let mut m = Machine::ready(2, 4);
        for (me, gicd, gicr, size, value, write) in accesses {
            let bytes = 1 << size;
            if write {
                m.gicd_write(me, gicd, bytes, value);
                m.gicr_write(me, gicr, bytes, value);
            } else {
                m.gicd_read(me, gicd, bytes);
                m.gicr_read(me, gicr, bytes);
            }
            m.settle();
        }
        prop_assert!(m.lists.iter().all(|l| l.count() == 4));
    }
}
