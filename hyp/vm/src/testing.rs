//! A CPU and a virtual CPU interface for tests. They do what the architecture says, and record what they were asked.

use crate::host::{Line, ListRegisters, Timer};
use std::{cell::RefCell, collections::BTreeMap, vec::Vec};
use types::{CpuId, StandIn, SysReg};

/// A CPU that records its kicks.
#[derive(Debug)]
pub(crate) struct FakeCpu {
    index: usize,
    pub(crate) kicks: RefCell<Vec<usize>>,
    pub(crate) ids: BTreeMap<SysReg, u64>,
}

impl FakeCpu {
    pub(crate) fn new(index: usize) -> Self {
        Self { index, kicks: RefCell::default(), ids: BTreeMap::new() }
    }

    /// Returns the CPUs kicked since the last call.
    pub(crate) fn take_kicks(&self) -> Vec<usize> {
        core::mem::take(&mut self.kicks.borrow_mut())
    }
}

impl StandIn for FakeCpu {
    fn number(&self) -> usize {
        self.index
    }

    fn kicks(&self, target: CpuId) {
        self.kicks.borrow_mut().push(target.index());
    }

    fn identifies(&self, reg: SysReg) -> u64 {
        self.ids.get(&reg).copied().unwrap_or(0)
    }
}

/// The virtual CPU interface of one CPU, and the two timers' physical interrupts there.
///
/// The guest acknowledges whatever is pending, whatever else is active (as if each had a higher priority than the one
/// before, or with priority drop and deactivation apart), which is the hardest case for the list registers.
#[derive(Debug)]
pub(crate) struct FakeInterface {
    lrs: Vec<u64>,
    pub(crate) hcr: u64,
    /// Reads and writes of list registers, which cost time.
    pub(crate) touched: usize,
    /// The timers' lines.
    pub(crate) lines: [Line; 2],
    /// Whether the timers' physical interrupts are active.
    pub(crate) physical_active: [bool; 2],
}

const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const HW: u64 = 1 << 61;
const EOI: u64 = 1 << 41;

/// The physical interrupts behind the timers, other than the virtual ones on purpose.
pub(crate) const TIMERS: crate::TimerIntids = crate::TimerIntids { virtual_timer: 19, physical_timer: 22 };
/// A GICv3 with those.
pub(crate) const GIC: crate::GicModel = crate::GicModel { version: crate::GicVersion::V3, timers: TIMERS };

impl FakeInterface {
    pub(crate) fn new(count: usize) -> Self {
        Self { lrs: vec![0; count], hcr: 0, touched: 0, lines: [Line::Low; 2], physical_active: [false; 2] }
    }

    /// The guest acknowledges the most urgent pending interrupt.
    pub(crate) fn acknowledge(&mut self) -> Option<u32> {
        assert_eq!(self.hcr & 1, 1, "the virtual CPU interface is off");
        let pending = self.lrs.iter_mut().filter(|lr| **lr & (PENDING | ACTIVE) == PENDING);
        let lr = pending.min_by_key(|lr| (**lr >> 48 & 0xff, **lr & 0xffff_ffff))?;
        *lr = *lr & !PENDING | ACTIVE;
        Some(*lr as u32)
    }

    /// As [`Self::acknowledge`]; nothing where the virtual CPU interface is not on yet.
    pub(crate) fn acknowledge_if_on(&mut self) -> Option<u32> {
        if self.hcr & 1 != 0 { self.acknowledge() } else { None }
    }

    /// The guest ends an interrupt.
    pub(crate) fn end(&mut self, intid: u32) {
        let lr = self.lrs.iter_mut().find(|lr| **lr as u32 == intid && **lr & ACTIVE != 0);
        let lr = lr.unwrap_or_else(|| panic!("{intid} is active in no list register"));
        *lr &= !ACTIVE;
        if *lr & HW != 0 {
            assert_eq!(*lr & PENDING, 0, "linked, pending and active");
            match (*lr >> 32) as u32 & 0x1fff {
                19 => self.physical_active[0] = false,
                22 => self.physical_active[1] = false,
                other => panic!("linked to {other}"),
            }
        }
    }

    /// Tells whether the maintenance interrupt is asserted.
    pub(crate) fn maintenance(&self) -> bool {
        let ended = |lr: &&u64| **lr & (PENDING | ACTIVE | HW | EOI) == EOI;
        let used = self.lrs.iter().filter(|lr| **lr & (PENDING | ACTIVE) != 0).count();
        let waiting = self.lrs.iter().any(|lr| lr & PENDING != 0);
        self.lrs.iter().any(|lr| ended(&lr))
            || self.hcr & 2 != 0 && used <= 1
            || self.hcr & 8 != 0 && !waiting
    }

    /// Returns the interrupts that are in list registers: number, pending, active.
    pub(crate) fn held(&self) -> Vec<(u32, bool, bool)> {
        let used = self.lrs.iter().filter(|lr| **lr & (PENDING | ACTIVE) != 0);
        used.map(|lr| (*lr as u32, lr & PENDING != 0, lr & ACTIVE != 0)).collect()
    }

    pub(crate) fn raw(&self, index: usize) -> u64 {
        self.lrs[index]
    }
}

impl ListRegisters for FakeInterface {
    fn count(&self) -> usize {
        self.lrs.len()
    }

    fn read(&self, index: usize) -> u64 {
        self.lrs[index]
    }

    fn write(&mut self, index: usize, value: u64) {
        self.touched += 1;
        assert_ne!(value & (HW | PENDING | ACTIVE), HW | PENDING | ACTIVE, "linked, pending and active");
        self.lrs[index] = value;
        let used = self.lrs.iter().filter(|lr| **lr & (PENDING | ACTIVE) != 0);
        let mut intids: Vec<_> = used.map(|lr| *lr as u32).collect();
        intids.sort_unstable();
        assert!(intids.windows(2).all(|pair| pair[0] != pair[1]), "one interrupt in two list registers");
    }

    fn control(&mut self, hcr: u64) {
        self.hcr = hcr;
    }

    fn line(&self, timer: Timer) -> Line {
        self.lines[timer as usize]
    }

    fn deactivate(&mut self, timer: Timer) {
        assert!(self.physical_active[timer as usize], "{timer:?} is not active");
        self.physical_active[timer as usize] = false;
    }

    fn activate(&mut self, timer: Timer) {
        assert!(!self.physical_active[timer as usize], "{timer:?} is active");
        self.physical_active[timer as usize] = true;
    }
}
