//! Drivers that do what they must not.

use super::*;
use crate::virtio::numbers::block;
use proptest::prelude::*;

/// Has a device serve what an enemy has left for it. What that costs is bounded, and the device works again after a reset.
fn survives(rig: &mut Rig) -> bool {
    rig.ram.accesses = 0;
    let steps = rig.serve();
    assert!(steps < 4096, "{steps} steps");
    let broken = rig.is_broken();
    if broken {
        assert_eq!(rig.read(register::INTERRUPT_STATUS) & 2, 2, "it says so");
        let accesses = rig.ram.accesses;
        rig.write(register::QUEUE_NOTIFY, 0);
        rig.serve();
        assert_eq!(rig.ram.accesses, accesses, "it is not looked at again");
        rig.set_up();
        assert!(!rig.is_broken());
    }
    while rig.used(0).is_some() {}
    broken
}

#[test]
fn each_wrong_chain_ends_the_device_and_a_reset_begins_it_anew() {
    let chain = |at, bytes, flags, next| Descriptor { at, bytes, flags, next };
    let good = chain(BUFFERS, 16, 1, 1);
    let cases: [(&str, &[Descriptor], u16); 14] = [
        ("a head beyond the queue", &[good], QUEUE),
        ("a next beyond the queue", &[chain(BUFFERS, 16, 1, 0xffff)], 0),
        ("a loop of one", &[chain(BUFFERS, 16, 1, 0)], 0),
        ("a loop of two", &[good, chain(BUFFERS, 16, 1, 0)], 0),
        ("no bytes", &[chain(BUFFERS, 0, 0, 0)], 0),
        ("bytes that wrap", &[chain(u64::MAX - 3, 8, 0, 0)], 0),
        ("outside of RAM", &[chain(0x1000, 16, 0, 0)], 0),
        ("over the end of RAM", &[chain(RAM + SIZE as u64 - 8, 16, 0, 0)], 0),
        ("readable behind writable", &[chain(BUFFERS, 16, 3, 1), chain(BUFFERS, 16, 0, 0)], 0),
        ("indirect", &[chain(BUFFERS, 16, 4, 0)], 0),
        ("no status", &[chain(BUFFERS, 16, 0, 0)], 0),
        ("half a header", &[chain(BUFFERS, 8, 1, 1), chain(BUFFERS + 64, 1, 2, 0)], 0),
        ("no header", &[chain(BUFFERS, 513, 2, 0)], 0),
        ("a status outside of RAM", &[good, chain(0x1000, 1, 2, 0)], 0),
    ];
    let mut rig = Rig::new(disk(1 << 20));
    for (what, descriptors, head) in cases {
        rig.poke(BUFFERS, &[0; 16]); // it reads sector 0
        for (number, descriptor) in descriptors.iter().enumerate() {
            rig.describe(0, number as u16, *descriptor);
        }
        rig.make_available(0, head);
        rig.write(register::QUEUE_NOTIFY, 0);
        assert!(survives(&mut rig), "{what}");
        assert_eq!(rig.request(block::IN, 0, (BUFFERS + 512, 512, 2)), block::OK, "after {what}");
    }
    // More chains than there are descriptors.
    rig.poke(RINGS + 0x402, &(rig.available[0] + QUEUE + 1).to_le_bytes());
    rig.write(register::QUEUE_NOTIFY, 0);
    assert!(survives(&mut rig));
    assert_eq!(rig.device.counts().broken, 15);
}

/// Writes a chain that is nearly right, and often is not.
fn lay_out(rig: &mut Rig, dice: &mut Dice) {
    let at = |dice: &mut Dice| match dice.roll(16) {
        0 => dice.roll(u64::MAX),
        1 => RAM + SIZE as u64 - dice.roll(600),
        2 => RINGS + dice.roll(0x1000), // on its own rings
        3 => RAM - dice.roll(64),
        _ => BUFFERS + dice.roll(0x1_0000),
    };
    let length = 1 + dice.roll(6) as u16;
    let first = dice.roll(u64::from(QUEUE)) as u16;
    for n in 0..length {
        let number = (first + n) % QUEUE;
        let writable = if n == 0 { 0 } else { 2 };
        let more = u16::from(n + 1 < length);
        let flags = match dice.roll(24) {
            0 => dice.roll(8) as u16,
            1 => dice.roll(0x1_0000) as u16,
            _ => writable | more,
        };
        let bytes = match (dice.roll(24), n) {
            (0, _) => 0,
            (1, _) => u32::MAX,
            (2, _) => dice.roll(0x4_0000) as u32,
            (_, 0) => 16,
            (_, n) if n + 1 == length => 1,
            _ => 512 * (1 + dice.roll(4) as u32),
        };
        let next = if dice.roll(24) == 0 { dice.roll(0x1_0000) as u16 } else { (number + 1) % QUEUE };
        let descriptor = Descriptor { at: at(dice), bytes, flags, next };
        rig.describe(0, number, descriptor);
    }
    if dice.roll(3) != 0 {
        let header = BUFFERS + dice.roll(0x100);
        rig.poke(header, &(dice.roll(10) as u32).to_le_bytes());
        rig.poke(header + 8, &dice.roll(2100).to_le_bytes());
        rig.describe(0, first, Descriptor { at: header, bytes: 16, flags: 1, next: (first + 1) % QUEUE });
    }
    let head = if dice.roll(40) == 0 { dice.roll(0x1_0000) as u16 } else { first };
    rig.make_available(0, head);
    if dice.roll(100) == 0 {
        let index = dice.roll(0x1_0000) as u16;
        rig.poke(RINGS + 0x402, &index.to_le_bytes());
    }
    rig.write(register::QUEUE_NOTIFY, 0);
}

#[test]
fn a_hundred_thousand_malformed_chains_end_no_more_than_their_queue() {
    let chains = if cfg!(miri) { 20 } else { 100_000 };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut rig = Rig::new(disk(1 << 20));
    let mut broken = 0;
    for _ in 0..chains {
        lay_out(&mut rig, &mut dice);
        broken += u32::from(survives(&mut rig));
    }
    let counts = rig.device.counts();
    if !cfg!(miri) {
        assert!(broken > chains / 8 && counts.requests > u64::from(chains) / 8, "{broken}, {counts:?}");
    }
    rig.set_up();
    assert_eq!(rig.request(block::IN, 0, (BUFFERS + 512, 512, 2)), block::OK);
}

proptest! {
    /// Whatever is in the rings and in the registers.
    #[test]
    fn random_rings_end_no_more_than_their_queue(
        seed in 1_u64..,
        kind in 0..3,
        pokes in proptest::collection::vec((0_u64..0x1000, any::<u16>()), 0..60),
        registers in proptest::collection::vec((0_u32..0x80, any::<u32>()), 0..6),
    ) {
        let mut rig = Rig::new(match kind { 0 => disk(1 << 20), 1 => Kind::console(), _ => Kind::Entropy });
        let mut dice = Dice(seed);
        for _ in 0..4 {
            lay_out(&mut rig, &mut dice);
            for (at, half) in &pokes {
                rig.poke(RINGS + (at & !1), &half.to_le_bytes());
            }
            survives(&mut rig);
        }
        for (register, value) in registers {
            let _ = rig.write(4 * register, value);
        }
        rig.serve();
        rig.set_up();
    }
}
