//! What each kind of device does for a driver that does what it must.

use super::*;
use crate::pl011::Room;
use crate::virtio::numbers::block;

const DISK: usize = 40 * 512;
const DATA: u64 = BUFFERS + 0x1000;

#[test]
fn a_sector_reads_as_the_file_has_it_or_as_it_was_written_last() {
    let mut rig = Rig::new(disk(DISK));
    let contents = image(DISK);
    assert_eq!(rig.request(block::IN, 3, (DATA, 1024, 2)), block::OK);
    assert_eq!(rig.peek(DATA, 1024), &contents[3 * 512..5 * 512]);
    rig.poke(DATA, &[0x5a; 1024]);
    assert_eq!(rig.request(block::OUT, 7, (DATA, 1024, 0)), block::OK); // over a page's end
    assert_eq!(rig.request(block::IN, 6, (DATA + 0x1000, 2048, 2)), block::OK);
    let read = rig.peek(DATA + 0x1000, 2048).to_vec();
    assert_eq!(read[..512], contents[6 * 512..7 * 512]);
    assert_eq!(read[512..1536], [0x5a; 1024]);
    assert_eq!(read[1536..], contents[9 * 512..10 * 512]);
    // The last page of the file is not a whole one.
    assert_eq!(rig.request(block::OUT, 39, (DATA, 512, 0)), block::OK);
    assert_eq!(rig.request(block::IN, 39, (DATA + 0x1000, 512, 2)), block::OK);
    assert_eq!(rig.peek(DATA + 0x1000, 512), [0x5a; 512]);
    assert_eq!(rig.machine.stats().guest, 3, "frames for what was written");
    rig.device.reset(&|_| {}, |kind| {
        if let Kind::Block(disk) = kind {
            disk.forget(&rig.machine);
        }
    });
    assert_eq!(rig.machine.stats().guest, 0);
    rig.set_up();
    assert_eq!(rig.request(block::IN, 7, (DATA, 512, 2)), block::OK);
    assert_eq!(rig.peek(DATA, 512), &contents[7 * 512..8 * 512], "the file as it was");
}

#[test]
fn a_request_may_come_in_pieces_of_any_size() {
    let mut rig = Rig::new(disk(DISK));
    let contents = image(DISK);
    rig.poke(BUFFERS, &block::IN.to_le_bytes());
    rig.poke(BUFFERS + 8, &2_u64.to_le_bytes());
    // A header in three pieces, and a sector and the status in three others.
    rig.send(
        0,
        &[
            (BUFFERS, 3, 0),
            (BUFFERS + 3, 9, 0),
            (BUFFERS + 12, 4, 0),
            (DATA, 100, 2),
            (DATA + 5000, 411, 2),
            (DATA + 9000, 2, 2),
        ],
    );
    rig.serve();
    assert_eq!(rig.used(0), Some((0, 513)));
    assert_eq!(rig.peek(DATA, 100), &contents[1024..1124]);
    assert_eq!(rig.peek(DATA + 5000, 411), &contents[1124..1535]);
    assert_eq!(rig.peek(DATA + 9000, 2), &[contents[1535], block::OK]);
}

#[test]
fn what_a_disk_cannot_do_is_said_in_the_status() {
    let mut rig = Rig::new(disk(DISK));
    for (what, sector, bytes, flags, expected) in [
        (block::IN, 40, 512, 2, block::IO_ERROR),
        (block::IN, 39, 1024, 2, block::IO_ERROR),
        (block::OUT, u64::MAX, 512, 0, block::IO_ERROR),
        (block::IN, u64::MAX / 512, 512, 2, block::IO_ERROR),
        (block::IN, 0, 100, 2, block::IO_ERROR),
        (block::OUT, 0, 0, 0, block::IO_ERROR),
        (block::FLUSH, 0, 0, 0, block::OK),
        (block::GET_ID, 0, 20, 2, block::OK),
        (11, 0, 512, 0, block::UNSUPPORTED),
    ] {
        let found = rig.request(what, sector, (DATA, bytes, flags));
        assert_eq!(found, expected, "{what} at {sector}, {bytes} bytes");
    }
    assert_eq!(rig.peek(DATA, 14), b"mezzanine disk");
    assert!(!rig.is_broken());
    assert_eq!(rig.machine.stats().guest, 0);
}

#[test]
fn a_write_that_finds_no_frame_is_an_error_and_the_next_one_is_not() {
    let mut rig = Rig::new(disk(DISK));
    let next = rig.machine.requested();
    rig.machine.refuse(next..next + 1);
    assert_eq!(rig.request(block::OUT, 0, (DATA, 512, 0)), block::IO_ERROR);
    assert_eq!(rig.request(block::OUT, 0, (DATA, 512, 0)), block::OK);
}

#[test]
fn a_request_is_done_in_bounded_steps() {
    let mut rig = Rig::new(disk(1 << 20));
    rig.poke(BUFFERS, &block::IN.to_le_bytes());
    rig.poke(BUFFERS + 8, &0_u64.to_le_bytes());
    rig.send(0, &[(BUFFERS, 16, 0), (DATA, 0x2_8000, 2), (BUFFERS + 16, 1, 2)]);
    rig.ram.accesses = 0;
    let mut steps = 0;
    while rig.step_on(1, Company::Others) == Left::Some {
        steps += 1;
        assert!(core::mem::take(&mut rig.ram.accesses) < 12);
    }
    assert!(steps >= 3, "{steps} steps for 160 KiB");
    assert_eq!(rig.used(0), Some((0, 0x2_8001)));
}

#[test]
fn who_asked_is_served_by_another_cpu_where_there_is_one() {
    let mut rig = Rig::new(Kind::Entropy);
    rig.send(0, &[(BUFFERS, 600, 2)]);
    assert_eq!(rig.step_on(0, Company::Others), Left::Nothing);
    assert_eq!(rig.used(0), None);
    rig.serve();
    assert_eq!(rig.used(0), Some((0, 600)));
    assert_eq!(rig.peek(BUFFERS + 254, 3), [255, 0, 1]);
    rig.send(0, &[(BUFFERS, 1, 2)]);
    while rig.step_on(0, Company::Alone) != Left::Nothing {}
    assert_eq!(rig.used(0), Some((0, 1)));
    let counts = rig.device.counts();
    assert_eq!((counts.requests, counts.elsewhere), (2, 1));
}

#[test]
fn a_console_says_what_it_is_sent_and_hears_what_there_is_room_for() {
    let mut rig = Rig::new(Kind::console());
    rig.poke(DATA, &[b'x'; 3000]);
    rig.send(1, &[(DATA, 1000, 0), (DATA, 2000, 0)]);
    rig.serve();
    assert_eq!((rig.used(1), rig.said.borrow().len()), (Some((0, 0)), 3000));
    // The driver's buffer waits for input.
    rig.send(0, &[(BUFFERS, 10, 2)]);
    rig.serve();
    assert_eq!(rig.used(0), None);
    assert_eq!(rig.device.room(), Room::Some);
    for byte in b"hello" {
        rig.device.input(*byte);
    }
    rig.serve();
    assert_eq!((rig.used(0), rig.peek(BUFFERS, 5)), (Some((0, 5)), &b"hello"[..]));
    // Without a buffer, some of it waits.
    let taken = (0..1000).take_while(|_| rig.device.room() == Room::Some).map(|n| rig.device.input(n as u8));
    assert_eq!(taken.count(), 64);
    rig.serve();
    rig.send(0, &[(BUFFERS, 40, 2)]);
    rig.serve();
    assert_eq!(rig.used(0), Some((0, 40)));
    assert_eq!(rig.device.room(), Room::Some);
}

#[test]
fn memory_that_others_change_meanwhile_holds_up_but_changes_nothing() {
    let mut rig = Rig::new(disk(1 << 20));
    rig.ram.held_up = Some((Dice(0x1234_5678_9abc_def1), 3));
    let contents = image(1 << 20);
    for round in 0..200_u64 {
        let sector = round * 5 % 1000;
        if round % 3 == 0 {
            rig.poke(DATA, &[round as u8; 3072]);
            assert_eq!(rig.request(block::OUT, 1024 + round * 3 % 500, (DATA, 3072, 0)), block::OK);
            assert_eq!(rig.request(block::IN, 1024 + round * 3 % 500, (DATA + 0x4000, 3072, 2)), block::OK);
            assert_eq!(rig.peek(DATA + 0x4000, 3072), [round as u8; 3072]);
        } else {
            assert_eq!(rig.request(block::IN, sector, (DATA, 4096, 2)), block::OK);
            assert_eq!(rig.peek(DATA, 4096), &contents[sector as usize * 512..][..4096]);
        }
    }
    assert!(rig.device.counts().held_up > 200);
}
