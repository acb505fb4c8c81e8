//! What is written into a VMCS, for each thing that is asked of it.

use super::paging::LME;
use super::*;
use crate::effect::{self, Effect};
use std::vec::Vec;

fn capabilities() -> Capabilities {
    Capabilities {
        revision: 1,
        pin: super::super::capability::Allowed::from_msr(u64::MAX << 32 | 0x16),
        primary: super::super::capability::Allowed::from_msr(u64::MAX << 32 | 0x0401_e172),
        secondary: super::super::capability::Allowed::from_msr(0b1010_0010 << 32),
        exit: super::super::capability::Allowed::from_msr(u64::MAX << 32 | 0x3_6dff),
        entry: super::super::capability::Allowed::from_msr(u64::MAX << 32 | 0x11ff),
        timer_shift: 5,
        ept: ept::Capabilities::all(),
        cr0_must: 0x8000_0021,
        cr4_must: 0x2000,
        cr4_may: 0x3727ff,
    }
}

#[test]
fn a_guest_that_has_the_machine_waits_for_its_own_interrupts_and_one_that_has_nothing_leaves() {
    let machine = Controls::choose(&capabilities(), Has::Machine, None);
    let nothing = Controls::choose(&capabilities(), Has::Nothing, None);
    assert_eq!((machine.pin & 1, nothing.pin & 1), (0, 1));
    let hlt = PrimaryControls::HLT_EXITING.bits();
    assert_eq!((machine.primary & hlt, nothing.primary & hlt), (0, hlt));
    for controls in [machine, nothing] {
        assert_eq!(controls.pin & PIN, PIN);
        // Of what would be welcome, only what the CPU has: VPID.
        assert_eq!(controls.secondary, 0b1010_0010);
    }
}

#[test]
fn wbinvd_is_an_exit_of_a_guest_that_has_the_machine() {
    let secondary = super::super::capability::Allowed::from_msr(u64::MAX << 32);
    let all = Capabilities { secondary, ..capabilities() };
    let leaves =
        |has| Controls::choose(&all, has, None).secondary & SecondaryControls::WBINVD_EXITING.bits() != 0;
    assert!(leaves(Has::Machine) && !leaves(Has::Nothing));
}

#[test]
fn hlt_is_an_exit_where_that_is_asked_for() {
    let vmcs = vmcs();
    effect::script_field(control::PRIMARY_PROCBASED_EXEC_CONTROLS, 0x8200_0000);
    vmcs.leave_at_halt(Leave::Never);
    assert_eq!(effect::take(), []);
    for (when, value) in [(Leave::Then, 0x8200_0080), (Leave::Never, 0x8200_0000)] {
        vmcs.leave_at_halt(when);
        assert_eq!(effect::take(), [Effect::Vmwrite(control::PRIMARY_PROCBASED_EXEC_CONTROLS, value)]);
    }
}

fn vmcs() -> Vmcs {
    effect::reset();
    effect::script_field(control::VMENTRY_CONTROLS, 0x11ff | 1 << 9);
    Vmcs { region: Pa::new(0x1000), launched: false, list: None, registers: Registers::default() }
}

#[test]
fn a_start_up_interrupt_starts_at_its_page_in_real_mode() {
    let mut vmcs = vmcs();
    vmcs.registers.rax = 7;
    vmcs.start(&capabilities(), Start::Page(0x9a));
    let written = effect::take();
    for expected in [
        Effect::Vmwrite(guest::CS_SELECTOR, 0x9a00),
        Effect::Vmwrite(guest::CS_BASE, 0x9_a000),
        Effect::Vmwrite(guest::RIP, 0),
        Effect::Vmwrite(guest::CR0, 0x30), // ET, and NE, which VMX wants
        Effect::Vmwrite(control::CR0_READ_SHADOW, 0x10),
        Effect::Vmwrite(guest::ACTIVITY_STATE, 0),
        Effect::Vmwrite(control::VMENTRY_CONTROLS, 0x11ff),
    ] {
        assert!(written.contains(&expected), "{expected:?} in {written:?}");
    }
    assert_eq!(vmcs.registers, Registers::default());
}

#[test]
fn a_kernel_starts_flat_with_its_arguments() {
    let mut vmcs = vmcs();
    vmcs.start(&capabilities(), Start::Flat { entry: 0x10_0000, ebx: 5, esi: 6 });
    assert_eq!((vmcs.registers.rbx, vmcs.registers.rsi), (5, 6));
    let written = effect::take();
    assert!(written.contains(&Effect::Vmwrite(guest::CS_ACCESS_RIGHTS, 0xc09b)));
    assert!(written.contains(&Effect::Vmwrite(guest::CR0, 0x31)));
}

#[test]
fn an_interrupted_event_is_delivered_again_before_a_new_one() {
    let vmcs = vmcs();
    effect::script_field(ro::IDT_VECTORING_INFO, 0x8000_1b0e);
    effect::script_field(ro::IDT_VECTORING_ERR_CODE, 2);
    effect::script_field(ro::VMEXIT_INSTRUCTION_LEN, 3);
    vmcs.put_back();
    vmcs.inject(Event::GeneralProtection);
    assert_eq!(
        effect::take(),
        [
            Effect::Vmwrite(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0x8000_0b0e),
            Effect::Vmwrite(control::VMENTRY_EXCEPTION_ERR_CODE, 2),
            Effect::Vmwrite(control::VMENTRY_INSTRUCTION_LEN, 3),
        ]
    );
}

#[test]
fn a_non_maskable_interrupt_waits_until_the_guest_takes_one() {
    let vmcs = vmcs();
    effect::script_field(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
    effect::script_field(control::PRIMARY_PROCBASED_EXEC_CONTROLS, 0);
    for blocked in [1, 2, 8] {
        effect::script_field(guest::INTERRUPTIBILITY_STATE, blocked);
        assert!(!vmcs.deliver_nmi());
        let window = Effect::Vmwrite(control::PRIMARY_PROCBASED_EXEC_CONTROLS, NMI_WINDOW.into());
        assert_eq!(effect::take(), [window]);
    }
    effect::script_field(guest::INTERRUPTIBILITY_STATE, 0);
    assert!(vmcs.deliver_nmi());
    assert!(effect::take().contains(&Effect::Vmwrite(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0x8000_0202)));
}

#[test]
fn an_iret_that_is_executed_again_finds_nmis_blocked_again() {
    let vmcs = vmcs();
    effect::script_field(ro::IDT_VECTORING_INFO, 0);
    effect::script_field(ro::EXIT_REASON, 48);
    effect::script_field(ro::EXIT_QUALIFICATION, 1 << 12 | 1);
    effect::script_field(guest::INTERRUPTIBILITY_STATE, 0);
    vmcs.put_back();
    assert_eq!(effect::take(), [Effect::Vmwrite(guest::INTERRUPTIBILITY_STATE, 8)]);
}

#[test]
fn paging_comes_on_with_long_mode_and_goes_with_it() {
    let off = Paging { cr0: 0x31, cr4: 0x20, efer: LME, is_wide: false };
    assert_eq!(off.with_cr0(0x8005_0033), Some(LME | LMA));
    let on = Paging { cr0: 0x8005_0033, efer: LME | LMA, ..off };
    assert_eq!(on.with_cr0(0x11), Some(LME));
    assert_eq!(on.with_cr0(0x8000_0031), Some(LME | LMA));
    assert_eq!(Paging { efer: 0, cr4: 0, ..off }.with_cr0(0x8000_0031), Some(0));
}

#[test]
fn what_the_cpu_refuses_of_cr0_never_reaches_an_entry() {
    let off = Paging { cr0: 0x31, cr4: 0x20, efer: LME, is_wide: false };
    let on = Paging { cr0: 0x8000_0031, efer: LME | LMA, is_wide: true, ..off };
    assert_eq!(off.with_cr0(0x8000_0030), None, "paging without protection");
    assert_eq!(off.with_cr0(0x2000_0031), None, "NW without CD");
    assert_eq!(off.with_cr0(1 << 32 | 0x31), None, "a reserved bit");
    assert_eq!(Paging { cr4: 0, ..off }.with_cr0(0x8000_0031), None, "long mode without PAE");
    assert_eq!(Paging { efer: 0, ..off }.with_cr0(0x8000_0031), None, "page-directory pointers");
    assert_eq!(on.with_cr0(0x31), None, "paging off in 64-bit code");
    assert_eq!(Paging { is_wide: false, cr4: 1 << 17 | 0x20, ..on }.with_cr0(0x31), None, "PCIDs");
}

#[test]
fn a_list_is_read_from_its_end_and_emptied() {
    let words: Vec<u64> = (0..512).map(|n| n << 12).collect();
    let list = Pa::new(words.as_ptr().expose_provenance() as u64);
    let vmcs = Vmcs { list: Some(list), ..vmcs() };
    let listed = |index: u64| {
        effect::script_field(guest::PML_INDEX, index);
        let mut listed = Vec::new();
        vmcs.take_listed(|ipa| listed.push(ipa.get() >> 12));
        (listed, effect::take())
    };
    assert_eq!(listed(511), (Vec::new(), Vec::new()));
    let emptied = std::vec![Effect::Vmwrite(guest::PML_INDEX, 511)];
    assert_eq!(listed(508), (std::vec![509, 510, 511], emptied.clone()));
    assert_eq!(listed(0xffff), ((0..512).collect(), emptied));
}

#[test]
fn a_time_is_set_in_the_timer_s_units_and_rounded_up() {
    let vmcs = vmcs();
    effect::script_field(control::PINBASED_EXEC_CONTROLS, 0x16);
    vmcs.leave_after(&capabilities(), Some(64));
    assert_eq!(
        effect::take(),
        [
            Effect::Vmwrite(control::PINBASED_EXEC_CONTROLS, 0x56),
            Effect::Vmwrite(guest::VMX_PREEMPTION_TIMER_VALUE, 3),
        ]
    );
    vmcs.leave_after(&capabilities(), Some(u64::MAX));
    assert_eq!(effect::take(), [Effect::Vmwrite(guest::VMX_PREEMPTION_TIMER_VALUE, u32::MAX.into())]);
    vmcs.leave_after(&capabilities(), None);
    assert_eq!(effect::take(), [Effect::Vmwrite(control::PINBASED_EXEC_CONTROLS, 0x16)]);
}

#[test]
fn a_guest_takes_interrupts_where_it_lets_them_in_and_nothing_else_comes() {
    let vmcs = vmcs();
    let takes = |flags: u64, state: u64, event: u64| {
        effect::script_field(guest::RFLAGS, flags);
        effect::script_field(guest::INTERRUPTIBILITY_STATE, state);
        effect::script_field(control::VMENTRY_INTERRUPTION_INFO_FIELD, event);
        vmcs.takes_interrupts()
    };
    assert!(takes(0x202, 0, 0) && takes(0x202, 8, 0x20));
    assert!(!takes(2, 0, 0) && !takes(0x202, 1, 0) && !takes(0x202, 2, 0) && !takes(0x202, 0, 1 << 31));
}

#[test]
fn a_guest_cannot_switch_vmx_on() {
    let vmcs = vmcs();
    assert!(!vmcs.write_shadow(Controlled::Cr4, 0x2020, &capabilities()));
    assert_eq!(effect::take(), []);
    assert!(vmcs.write_shadow(Controlled::Cr4, 0x20, &capabilities()));
    assert!(effect::take().contains(&Effect::Vmwrite(guest::CR4, 0x2020)));
}
