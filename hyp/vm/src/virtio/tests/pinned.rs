//! A device on a space: what it writes is marked, what it has not the right to is refused, and nothing stays pinned.

use super::*;
use crate::service::tests::{Rig as Space, with_rig};
use types::Cpu;

/// Where the rings and buffers are in that rig's memory.
const BASE: u64 = 0x4000_0000;
const BUFFER: u64 = BASE + 0x9_0000;

fn start(device: &Device) {
    let write = |register, value| device.write(CpuId::BOOT, register, 4, value, &|_| {});
    let _ = write(register::DRIVER_FEATURES_SEL, 1);
    let _ = write(register::DRIVER_FEATURES, 1);
    let _ = write(register::STATUS, 8 | 3);
    let _ = write(register::QUEUE_NUM, 8);
    for (low, at) in [
        (register::QUEUE_DESC_LOW, BASE),
        (register::QUEUE_DRIVER_LOW, BASE + 0x1000),
        (register::QUEUE_DEVICE_LOW, BASE + 0x2000),
    ] {
        let _ = write(low, at as u32);
    }
    let _ = write(register::QUEUE_READY, 1);
    let _ = write(register::STATUS, 8 | 4 | 3);
}

/// Makes a buffer available, the `nth` from 1, and has CPU 1 serve.
fn fill(rig: &Space<'_>, device: &Device, at: u64, bytes: u32, nth: u16) {
    rig.store(BASE, at);
    rig.store(BASE + 8, u64::from(bytes) | 2 << 32);
    rig.store(BASE + 0x1000, u64::from(nth) << 16);
    let _ = device.write(CpuId::BOOT, register::QUEUE_NOTIFY, 4, 0, &|_| {});
    let step = || {
        rig.with_memory(1, |memory| {
            let source = Source { frames: memory.space.frames(), owner: Owner(1), cpu: memory.cpu.id() };
            let mut random = |bytes: &mut [u8]| bytes.fill(0xa5);
            let mut outside = Outside { source, random: &mut random, say: &|_| {} };
            device.serve(memory, &mut outside, Company::Others, &|_| {})
        })
    };
    while step() != Left::Nothing {}
}

#[test]
fn what_a_device_writes_is_in_a_round_of_the_log_and_nothing_stays_pinned() {
    with_rig(|rig| {
        let device = Device::new(Kind::Entropy);
        start(&device);
        fill(rig, &device, BUFFER + 5, 8000, 1);
        assert_eq!(rig.load(BASE + 0x2000), 1 << 16, "one element");
        assert_eq!(rig.load(BUFFER), 0xa5a5_a500_0000_0000);
        assert_eq!(rig.load(BUFFER + 8000), 0xa5_a5a5_a5a5);
        rig.log_all();
        fill(rig, &device, BUFFER + 5, 8000, 2);
        // The guest has written its rings (two pages), the device the used ring and two pages.
        assert_eq!(rig.written(), 5);
        for at in [BASE, BASE + 0x2000, BUFFER] {
            let word = rig.record(at);
            assert_eq!((word.pins(), word.write_pins()), (0, 0), "{at:#x}");
        }
    });
}

#[test]
fn a_device_has_its_machines_rights() {
    with_rig(|rig| {
        let device = Device::new(Kind::Entropy);
        start(&device);
        rig.store(BUFFER, 5);
        rig.read_only(BUFFER);
        fill(rig, &device, BUFFER, 8, 1);
        assert_eq!(device.read(register::STATUS, 4) as u8 & status::NEEDS_RESET, status::NEEDS_RESET);
        assert_eq!((rig.load(BUFFER), rig.load(BASE + 0x2000)), (5, 0));
    });
}
