//! Registers: what a driver finds, what it may write, and what a reset does.

use super::*;

#[test]
fn a_driver_finds_a_modern_device() {
    for (kind, id, queues) in [(Kind::Entropy, 4, 1), (Kind::console(), 3, 2), (disk(4096), 2, 1)] {
        let rig = Rig::off(kind);
        assert_eq!(rig.read(register::MAGIC), u32::from_le_bytes(*b"virt"));
        assert_eq!((rig.read(register::VERSION), rig.read(register::DEVICE_ID)), (2, id));
        rig.write(register::DEVICE_FEATURES_SEL, 1);
        assert_eq!(rig.read(register::DEVICE_FEATURES), 1, "VERSION_1");
        rig.write(register::DEVICE_FEATURES_SEL, 2);
        assert_eq!(rig.read(register::DEVICE_FEATURES), 0);
        for queue in 0..3 {
            rig.write(register::QUEUE_SEL, queue);
            let most = if queue < queues { 128 } else { 0 };
            assert_eq!(rig.read(register::QUEUE_NUM_MAX), most);
        }
        assert_eq!(rig.read(register::SHM_FIRST), u32::MAX, "no shared memory");
    }
}

#[test]
fn a_disk_tells_its_size_at_each_width() {
    let rig = Rig::off(disk(3 * 512));
    assert_eq!(rig.device.read(0x100, 8), 3);
    assert_eq!(rig.device.read(0x100, 1), 3);
    assert_eq!(rig.device.read(0x10c, 4), 126, "segments");
    assert_eq!(rig.device.read(0x1fc, 8), 0);
    assert_eq!(Rig::off(Kind::Entropy).device.read(0x100, 8), 0);
}

#[test]
fn features_that_were_not_offered_are_not_agreed_on() {
    for (low, high, agreed) in [(0, 1, true), (1 << 9, 1, true), (0, 0, false), (1, 1, false), (0, 3, false)]
    {
        let rig = Rig::off(disk(4096));
        for (half, features) in [(0, low), (1, high), (2, 0xffff)] {
            rig.write(register::DRIVER_FEATURES_SEL, half);
            rig.write(register::DRIVER_FEATURES, features);
        }
        rig.write(register::STATUS, 1 | 2 | 8);
        let status = rig.read(register::STATUS);
        assert_eq!(status & 8 != 0, agreed, "{low:#x} {high:#x}");
        // Not agreed: the device does nothing.
        assert_eq!(rig.write(register::STATUS, status | 4) == Wants::Service, agreed);
    }
}

#[test]
fn rings_that_cannot_be_stop_the_device() {
    for (size, descriptors, driver, device) in [
        (0, RINGS, RINGS, RINGS),
        (3, RINGS, RINGS, RINGS),
        (256, RINGS, RINGS, RINGS),
        (8, RINGS + 8, RINGS, RINGS),
        (8, RINGS, RINGS + 1, RINGS),
        (8, RINGS, RINGS, RINGS + 2),
        (8, u64::MAX - 15, RINGS, RINGS),
    ] {
        let rig = Rig::off(Kind::Entropy);
        rig.write(register::QUEUE_NUM, size);
        for (low, at) in [
            (register::QUEUE_DESC_LOW, descriptors),
            (register::QUEUE_DRIVER_LOW, driver),
            (register::QUEUE_DEVICE_LOW, device),
        ] {
            rig.write(low, at as u32);
            rig.write(low + 4, (at >> 32) as u32);
        }
        rig.write(register::QUEUE_READY, 1);
        assert_eq!(rig.read(register::QUEUE_READY), 0);
        assert!(rig.is_broken());
        assert_eq!(rig.read(register::INTERRUPT_STATUS), 2, "a configuration change");
        rig.write(register::STATUS, 0);
        assert!(!rig.is_broken());
        assert_eq!(rig.line.get(), Line::Low);
    }
}

#[test]
fn a_reset_ends_what_is_under_way() {
    let mut rig = Rig::new(disk(1 << 20));
    rig.send(0, &[(BUFFERS, 16, 0), (BUFFERS + 0x1000, 0x2_8000, 2), (BUFFERS + 16, 1, 2)]);
    assert_eq!(rig.step_on(1, Company::Others), Left::Some);
    rig.write(register::STATUS, 0);
    assert_eq!(rig.step_on(1, Company::Others), Left::Nothing);
    assert_eq!(rig.used(0), None);
    rig.set_up();
    assert_eq!(rig.request(0, 1, (BUFFERS + 0x1000, 512, 2)), 0);
}

#[test]
fn odd_accesses_do_nothing() {
    let mut rig = Rig::new(Kind::Entropy);
    for (offset, bytes) in [(0, 1), (2, 4), (8, 8), (0xfc, 4), (0x200, 4)] {
        assert_eq!(rig.device.read(offset, bytes), 0, "{offset:#x}, {bytes} bytes");
    }
    for value in [0, 1, u32::MAX] {
        for offset in
            (0..0x200).step_by(4).filter(|at| ![register::STATUS, register::QUEUE_READY].contains(at))
        {
            let _ = rig.device.write(CpuId::BOOT, offset, 4, value, &|_| {});
            let _ = rig.device.write(CpuId::BOOT, offset, 2, value, &|_| {});
        }
    }
    rig.send(0, &[(BUFFERS, 8, 2)]);
    rig.serve();
    assert_eq!(rig.used(0), Some((0, 8)));
}
