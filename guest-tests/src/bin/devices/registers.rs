//! The registers of distributor and redistributors keep what they are given, and say what is there.

use crate::hits::{begin, count, spare_spi};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use guest_tests::gic::v3::{PIDR2, gicr, redistributors};
use guest_tests::gic::{self, gicd, v2};
use guest_tests::mmio::{read8, read32, read64, write8, write32, write64};
use guest_tests::rng::Rng;
use guest_tests::timer::Timer;
use guest_tests::{Verdict, check, machine, same, smp};

fn dist() -> u64 {
    machine::get().gicd.start
}

pub(crate) fn distributor_and_redistributors_say_what_they_are() -> Verdict {
    let (at, revision) = gic::revision();
    same!("GICD_PIDR2.ArchRev", at, revision.into(), u64::from(read32(at) >> 4 & 0xf));
    for (frame, _) in redistributors() {
        let at = frame + PIDR2;
        same!("GICR_PIDR2.ArchRev", at, 3, u64::from(read32(at) >> 4 & 0xf));
    }
    let lines = gic::lines();
    check!(lines >= 64, "GICD_TYPER.ITLinesNumber: expected at least 64 INTIDs, found {lines}");
    // What it is cannot be changed.
    let at = dist() + gicd::TYPER;
    let before = read32(at);
    write32(at, !before);
    same!("GICD_TYPER", at, before.into(), read32(at).into());
    begin(count);
    let at = dist() + gicd::CTLR;
    let on = if gic::is_v2() { 1 } else { gicd::CTLR_ARE | gicd::CTLR_GROUP1 };
    same!("GICD_CTLR, ARE and the group that is on", at, on.into(), (read32(at) & on).into());
    Ok(())
}

pub(crate) fn redistributors_are_those_of_the_vcpus() -> Verdict {
    let machine = machine::get();
    if gic::is_v2() {
        return each_vcpu_has_a_cpu_interface_of_its_own();
    }
    let mut frames = 0;
    let mut last = 0;
    for (frame, typer) in redistributors() {
        let affinity = typer >> 56 << 32 | typer >> 32 & 0xff_ffff;
        if frames < machine.cpus.len() {
            check!(
                machine.cpus.contains(&affinity),
                "redistributor at {frame:#x}: no vCPU has affinity {affinity:#x}"
            );
        }
        let halves =
            u64::from(read32(frame + gicr::TYPER)) | u64::from(read32(frame + gicr::TYPER + 4)) << 32;
        same!("GICR_TYPER by halves", frame + gicr::TYPER, typer, halves);
        frames += 1;
        last = typer & gicr::TYPER_LAST;
    }
    check!(last != 0, "GICR_TYPER.Last: not set in any of {frames} redistributors");
    check!(frames >= machine.cpus.len(), "expected {} redistributors, found {frames}", machine.cpus.len());
    Ok(())
}

/// What a GICv2 has instead of redistributors: eight registers that say which CPU interface reads them.
fn each_vcpu_has_a_cpu_interface_of_its_own() -> Verdict {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    SEEN.store(0, Relaxed);
    smp::on_all(&|_| {
        let first = dist() + gicd::ITARGETSR;
        let own = read8(first);
        check!(own.is_power_of_two(), "GICD_ITARGETSR0: expected one CPU interface, found {own:#x}");
        for at in (first..first + 32).step_by(4) {
            same!("targets of a private interrupt", at, u64::from(own) * 0x0101_0101, read32(at).into());
            write32(at, !0);
            same!("targets after a write", at, u64::from(own) * 0x0101_0101, read32(at).into());
        }
        let before = SEEN.fetch_or(own.into(), Relaxed);
        check!(before & u32::from(own) == 0, "CPU interface {own:#x} is that of two vCPUs");
        Ok(())
    })?;
    let cpus = machine::get().cpus.len() as u32;
    let typer = read32(dist() + gicd::TYPER);
    same!("GICD_TYPER.CPUNumber", dist() + gicd::TYPER, (cpus - 1).into(), (typer >> 5 & 7).into());
    Ok(())
}

pub(crate) fn all_ones_enable_what_there_is() -> Verdict {
    begin(count);
    for word in 0..gic::lines() / 32 {
        let bank = gic::bank(word * 32);
        let [set, clear] = [gicd::ISENABLER, gicd::ICENABLER].map(|r| bank + r + 4 * u64::from(word));
        write32(set, !0);
        let enabled = read32(set);
        same!("ICENABLER reads as ISENABLER", clear, enabled.into(), read32(clear).into());
        if word == 0 {
            let timers = 1 << Timer::Virtual.intid() | 1 << Timer::Physical.intid();
            same!("enabled timers", set, timers, u64::from(enabled) & timers);
        } else {
            check!(enabled != 0, "ISENABLER at {set:#x}: of 32 SPIs, none can be enabled");
        }
        // One bit at a time: zeros change nothing.
        let one = enabled & enabled.wrapping_neg();
        write32(clear, one);
        gic::wait_distributor();
        gic::wait_redistributor();
        same!("ISENABLER after one bit was cleared", set, (enabled & !one).into(), read32(set).into());
        write32(clear, !0);
        gic::wait_distributor();
        gic::wait_redistributor();
        // Some GICs do not let SGIs be disabled.
        let stuck = read32(set) & if word == 0 { 0xffff_0000 } else { !0 };
        same!("ISENABLER after all were cleared", set, 0, stuck.into());
    }
    Ok(())
}

pub(crate) fn priorities_are_kept_by_byte_and_by_word() -> Verdict {
    begin(count);
    let mut rng = Rng::of_run(1);
    for intid in [0, 4, 12, 28, 32, 36, spare_spi() & !3] {
        let at = gic::bank(intid) + gicd::IPRIORITYR + u64::from(intid);
        write32(at, !0);
        let kept = read32(at);
        let bits = kept as u8;
        same!("priorities, all ones", at, u64::from(bits) * 0x0101_0101, kept.into());
        // At least 16 levels, and the bits that there are, at the top.
        check!(
            bits >= 0xf0 && bits.leading_ones() + bits.trailing_zeros() == 8,
            "priority bits at {at:#x}: {bits:#x}"
        );
        for _ in 0..20 {
            let word = rng.next_u64() as u32;
            write32(at, word);
            same!("priorities, by word", at, (word & kept).into(), read32(at).into());
            let byte = rng.next_u64() as u8;
            let which = rng.below(4);
            write8(at + which, byte);
            same!("priority, by byte", at + which, (byte & bits).into(), read8(at + which).into());
            let expected =
                u64::from(word & kept) & !(0xff << (8 * which)) | u64::from(byte & bits) << (8 * which);
            same!("priorities after one changed", at, expected, read32(at).into());
        }
    }
    Ok(())
}

/// The routes of a GICv2: a byte for each interrupt, of which those for CPU interfaces that are there are kept.
fn targets_are_kept_by_byte_and_by_word() -> Verdict {
    smp::on_all(&|_| {
        gic::set_up_cpu();
        Ok(())
    })?;
    let cpus = &machine::get().cpus;
    let all = cpus.iter().fold(0, |all, &cpu| all | v2::interfaces_of(cpu));
    let mut rng = Rng::of_run(2);
    for intid in [32, 36, spare_spi() & !3] {
        let at = dist() + gicd::ITARGETSR + u64::from(intid);
        for _ in 0..20 {
            let word = rng.next_u64() as u32;
            write32(at, word);
            let kept = u64::from(word & (u32::from(all) * 0x0101_0101));
            same!("targets, by word", at, kept, read32(at).into());
            let (byte, which) = (rng.next_u64() as u8, rng.below(4));
            write8(at + which, byte);
            same!("targets, by byte", at + which, (byte & all).into(), read8(at + which).into());
            let expected = kept & !(0xff << (8 * which)) | u64::from(byte & all) << (8 * which);
            same!("targets after one changed", at, expected, read32(at).into());
        }
    }
    Ok(())
}

pub(crate) fn routes_are_kept() -> Verdict {
    begin(count);
    if gic::is_v2() {
        return targets_are_kept_by_byte_and_by_word();
    }
    for intid in [32, 33, spare_spi()] {
        let at = dist() + gicd::IROUTER + 8 * u64::from(intid);
        for &affinity in machine::get().cpus.iter() {
            write64(at, affinity);
            same!("GICD_IROUTER, 64 bits", at, affinity, read64(at));
            same!("GICD_IROUTER, low half", at, affinity & 0xffff_ffff, read32(at).into());
            same!("GICD_IROUTER, high half", at, affinity >> 32, read32(at + 4).into());
            write64(at, 0);
            write32(at + 4, (affinity >> 32) as u32);
            write32(at, affinity as u32);
            same!("GICD_IROUTER, written by halves", at, affinity, read64(at));
        }
    }
    Ok(())
}

pub(crate) fn groups_and_triggers_are_kept() -> Verdict {
    begin(count);
    let intid = spare_spi();
    let at = dist() + gicd::IGROUPR + 4 * u64::from(intid / 32);
    same!("GICD_IGROUPR", at, gic::group().into(), u64::from(read32(at) >> (intid % 32) & 1));
    let at = dist() + gicd::ICFGR + 4 * u64::from(intid / 16);
    for trigger in [0b10, 0b00, 0b10] {
        let field = 2 * (intid % 16);
        write32(at, trigger << field);
        same!("GICD_ICFGR, edge or level", at, trigger.into(), u64::from(read32(at) >> field & 0b10));
    }
    Ok(())
}

pub(crate) fn registers_beyond_the_last_line_are_zero() -> Verdict {
    begin(count);
    let lines = u64::from(gic::lines());
    if lines >= 1020 {
        return Ok(());
    }
    let by_bit = [gicd::IGROUPR, gicd::ISENABLER, gicd::ISPENDR, gicd::ISACTIVER].map(|r| r + lines / 8);
    for offset in by_bit.into_iter().chain([gicd::IPRIORITYR + lines, gicd::ICFGR + lines / 4]) {
        let at = dist() + offset;
        write32(at, !0);
        same!("register beyond the last line", at, 0, read32(at).into());
    }
    Ok(())
}
