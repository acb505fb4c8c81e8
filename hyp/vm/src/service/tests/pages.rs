//! The control page.

use super::*;
use crate::service::{PageAccess, on_page};
use crate::vm::{Mmio, MmioOp, MmioOutcome};
use abi::page;

fn access(rig: &Rig<'_>, offset: u64, bytes: u8, op: MmioOp) -> MmioOutcome {
    let at = Ipa::new(page::BASE + offset);
    assert!(on_page(at));
    match rig.service.page(Mmio { at, bytes, op }) {
        PageAccess::Done(outcome) => outcome,
        PageAccess::Call(mut regs) => {
            let _ = rig.with_memory(0, |memory| rig.service.call(memory, &mut regs));
            rig.service.page_answered(&regs);
            MmioOutcome::Written
        }
    }
}

fn read(rig: &Rig<'_>, offset: u64) -> u64 {
    match access(rig, offset, 8, MmioOp::Read) {
        MmioOutcome::Read(value) => value,
        other => panic!("{other:?}"),
    }
}

fn write(rig: &Rig<'_>, offset: u64, value: u64) {
    assert_eq!(access(rig, offset, 8, MmioOp::Write(value)), MmioOutcome::Written);
}

#[test]
fn a_call_is_made_by_writing_registers() {
    with_rig(|rig| {
        assert_eq!(read(rig, page::ID), page::MAGIC);
        write(rig, page::FUNCTION, calls::BALLOON_IN.into());
        for (n, value) in (0..).zip([RAM, 2 * BLOCK, 0, 0]) {
            write(rig, page::ARGUMENT + 8 * n, value);
        }
        write(rig, page::GO, 1);
        assert_eq!((read(rig, page::STATUS), read(rig, page::RESULT)), (1, BLOCK));
        write(rig, page::ARGUMENT + 24, BLOCK);
        write(rig, page::GO, 0);
        assert_eq!((read(rig, page::STATUS), read(rig, page::RESULT)), (0, 2 * BLOCK));
        assert_eq!(rig.leaves(RAM, SIZE), [0, 2]);
        write(rig, page::FUNCTION, calls::TRACE_START.into());
        write(rig, page::GO, 1);
        assert_eq!((read(rig, page::STATUS), read(rig, page::RESULT)), (u64::MAX, 0));
    });
}

#[test]
fn registers_have_two_halves_and_odd_accesses_do_nothing() {
    with_rig(|rig| {
        let half = |offset, value| access(rig, page::ARGUMENT + offset, 4, MmioOp::Write(value));
        half(0, 0x1_1111_2222);
        half(4, 0x3333_4444);
        assert_eq!(read(rig, page::ARGUMENT), 0x3333_4444_1111_2222);
        assert_eq!(access(rig, page::ARGUMENT + 4, 4, MmioOp::Read), MmioOutcome::Read(0x3333_4444));
        for (offset, bytes) in [(0, 1), (0, 2), (2, 4), (4, 8), (1, 8)] {
            let at = page::ARGUMENT + offset;
            assert_eq!(access(rig, at, bytes, MmioOp::Write(u64::MAX)), MmioOutcome::Written);
            assert_eq!(access(rig, at, bytes, MmioOp::Read), MmioOutcome::Read(0));
        }
        assert_eq!(read(rig, page::ARGUMENT), 0x3333_4444_1111_2222);
        for offset in (0..page::SIZE).step_by(8) {
            let _ = access(rig, offset, 8, MmioOp::Write(0x1234));
            let _ = access(rig, offset, 8, MmioOp::Read);
        }
        assert_eq!(read(rig, page::ID), page::MAGIC);
        assert!(!on_page(Ipa::new(page::BASE - 1)) && !on_page(Ipa::new(page::BASE + page::SIZE)));
    });
}
