//! A vCPU's registers besides the general-purpose ones, while another vCPU has the CPU.
//!
//! Everything that a guest can write without a trap is here, or it would find another guest's value, and leave its own:
//! EL1's system registers and the timers, floating point, pointer-authentication keys, debug registers, and what it has
//! set in its virtual CPU interface. The list registers are not: `vm` takes the interrupts out of them before.
//!
//! Not switched, since nothing of a guest's is in them that another could use: the debug communication channel's data
//! registers and claim tags, which are for an external debugger.

use super::debug::{Count, Debug};
use super::el1::{self, El1};
use super::fp::Fp;
use super::ich::Interface;
use super::walks;
use crate::barrier::isb;
use crate::errata::{Action, Errata};
use crate::id;
use crate::sysreg::{Readable, VDISR_EL2, Writeable};
use types::SysReg;

/// What of it this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    keys: Present,
    /// The deferred SError status (FEAT_RAS).
    deferred: Present,
    debug: Count,
    /// Whether it walks by speculation, so that walks are let go last ([`crate::errata::Action::HOLD_WALKS`]).
    holds_walks: Present,
}

/// Whether a CPU has some registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Present {
    Yes,
    No,
}

impl Present {
    const fn when(field: u64) -> Self {
        if field != 0 { Self::Yes } else { Self::No }
    }
}

impl Extent {
    /// Reads what this CPU has.
    pub fn of_this_cpu() -> Self {
        let id = |crm, op2| id::read(SysReg::new(3, 0, 0, crm, op2));
        let (isar1, isar2) = (id(6, 1), id(6, 2));
        Self {
            keys: Present::when(isar1 >> 4 & 0xff | isar2 >> 12 & 0xf), // APA, API; APA3
            deferred: Present::when(id(4, 0) >> 28 & 0xf),              // RAS
            debug: Count::of(id(5, 0)),
            holds_walks: Present::when(u64::from(
                Errata::of(id::read(id::MIDR)).actions().contains(Action::HOLD_WALKS),
            )),
        }
    }
}

/// The registers of a vCPU that is on no CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    el1: El1,
    fp: Fp,
    keys: [u64; 10],
    debug: Debug,
    interface: Interface,
    vdisr: u64,
}

impl World {
    /// Makes the registers of a vCPU out of reset: MMU, caches, timers and debug off, nothing of another's anywhere.
    pub fn reset() -> Self {
        Self { el1: El1::reset(), ..Self::default() }
    }

    /// Takes the registers of the vCPU that this CPU has run last out of it, and turns off its timers. Its list registers
    /// are empty. What stays in the CPU is not wanted any more.
    pub fn save(&mut self, extent: &Extent) {
        self.el1 = El1::read();
        el1::stop_timers();
        self.fp.save();
        if extent.keys == Present::Yes {
            el1::read_keys(&mut self.keys);
        }
        self.debug.save(extent.debug);
        self.interface = Interface::read();
        if extent.deferred == Present::Yes {
            self.vdisr = VDISR_EL2.get();
        }
    }

    /// Puts the registers into this CPU, timers last.
    ///
    /// # Safety
    /// The CPU must be at EL2 with no guest's state in it that is still wanted, and is to run this vCPU next.
    pub unsafe fn load(&self, extent: &Extent) {
        if extent.deferred == Present::Yes {
            VDISR_EL2.set(self.vdisr);
        }
        self.interface.load();
        self.debug.load(extent.debug);
        if extent.keys == Present::Yes {
            el1::write_keys(&self.keys);
        }
        self.fp.load();
        if extent.holds_walks == Present::No {
            // SAFETY: the caller's promise.
            return unsafe { self.el1.load() };
        }
        // `Controls::install` has held walks off: with all else in place they are let go.
        let held = El1 {
            tcr: self.el1.tcr | walks::NO_WALKS,
            sctlr: self.el1.sctlr | walks::STAGE_1_ON,
            ..self.el1
        };
        // SAFETY: the caller's promise.
        unsafe { held.load() };
        isb();
        walks::Held::of(self.el1.tcr, self.el1.sctlr).release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    /// Gives every register that can be read a value of its own.
    fn fill(names: &[&'static str]) {
        for (number, name) in (1..).zip(names) {
            effect::script(name, &[number]);
        }
    }

    fn written() -> Vec<(&'static str, u64)> {
        let values = effect::take().into_iter();
        values
            .filter_map(|e| if let Effect::Write(name, value) = e { Some((name, value)) } else { None })
            .collect()
    }

    #[test]
    fn what_is_saved_is_what_is_loaded_register_by_register() {
        effect::reset();
        let extent = Extent {
            keys: Present::Yes,
            deferred: Present::Yes,
            debug: Count { breakpoints: 2, watchpoints: 1 },
            holds_walks: Present::No,
        };
        effect::script("ich_vtr_el2", &[4 << 26]);
        // What a load writes is all that there is: fill each of them.
        let mut world = World::default();
        // SAFETY: a fake CPU.
        unsafe { world.load(&extent) };
        let names: Vec<_> = written().into_iter().map(|(name, _)| name).collect();
        assert!(names.len() > 45, "{names:?}");
        fill(&names);
        effect::script("oslsr_el1", &[2 | 8]);
        world.save(&extent);
        assert_eq!(written(), [("cntv_ctl_el0", 0), ("cntp_ctl_el0", 0)], "the timers go off, and no more");
        // SAFETY: a fake CPU.
        unsafe { world.load(&extent) };
        for ((name, value), number) in written().into_iter().zip(1..) {
            assert_eq!(value, if name == "oslar_el1" { 1 } else { number }, "{name}");
        }
    }

    #[test]
    fn walks_that_are_held_off_are_let_go_when_all_else_is_in_place() {
        effect::reset();
        effect::script("ich_vtr_el2", &[4 << 26]);
        let none = Count { breakpoints: 0, watchpoints: 0 };
        let extent =
            Extent { keys: Present::No, deferred: Present::No, debug: none, holds_walks: Present::Yes };
        let el1 = El1 { tcr: 0x35, sctlr: 0x30d0_0980, ttbr0: 0x4000, ..El1::default() };
        // SAFETY: a fake CPU.
        unsafe { World { el1, ..World::default() }.load(&extent) };
        let effects = effect::take();
        let last = [
            Effect::Isb,
            Effect::Write("sctlr_el1", 0x30d0_0980),
            Effect::Isb,
            Effect::Write("tcr_el1", 0x35),
        ];
        assert_eq!(effects[effects.len() - last.len()..], last);
        let early = &effects[..effects.len() - last.len()];
        let written = |name| {
            early.iter().find_map(|effect| match effect {
                Effect::Write(found, value) if *found == name => Some(*value),
                _ => None,
            })
        };
        assert_eq!((written("tcr_el1"), written("sctlr_el1")), (Some(0x80_00b5), Some(0x30d0_0981)));
    }

    #[test]
    fn a_timer_is_due_where_it_is_on_and_not_masked() {
        let due = [0, 1, 2, 3, 5, 7].map(|control| el1::due(control, 9));
        assert_eq!(due, [None, Some(9), None, None, Some(9), None]);
    }

    #[test]
    fn a_timer_is_on_after_its_compare_value_is_there() {
        effect::reset();
        // SAFETY: a fake CPU.
        unsafe { El1::reset().load() };
        let names: Vec<_> = written().into_iter().map(|(name, _)| name).collect();
        let at = |name| names.iter().position(|n| *n == name);
        assert!(at("cntv_cval_el0") < at("cntv_ctl_el0") && at("cntp_cval_el0") < at("cntp_ctl_el0"));
    }
}
