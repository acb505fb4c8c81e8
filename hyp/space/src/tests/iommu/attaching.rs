//! Letting IOMMUs in and out.

use super::device::Did;
use super::*;
use crate::{Between, Granularity, Leaves, Progress, Side, SpaceError, Tag};
use stage2::{Entry, Marks, Section, Why};
use std::cell::RefCell;

/// Writes, ages, and has a log run over all of a space, so that its leaves are old and clean, or without the right to write.
fn wear(board: &Board, space: &Space<'_, Format>, stay: &mut Stay<'_>) {
    let all = range(GUEST, 2 * BLOCK);
    for ipa in [GUEST, GUEST + BLOCK] {
        board.fault(space, stay, &fault_at(ipa)).unwrap();
    }
    let mut log = space.start_log(stay, &Leaves, all, Granularity::AsMapped).ok();
    while let Some(cursor) = log {
        log = space.arm_log(stay, &Recorder::default(), cursor).unwrap();
    }
    space.stop_log(stay).unwrap();
    space.age(stay, &Recorder::default(), all, &mut |_, _| {}).unwrap();
}

fn attrs(space: &Space<'_, Format>, stay: &Stay<'_>, ipa: u64) -> stage2::Attrs {
    match space.tree().open(stay).translate(Ipa::new(ipa)).entry(space.tree().format()) {
        Entry::Leaf(leaf) => leaf.attrs,
        other => panic!("no leaf but {other:?}"),
    }
}

#[test]
fn when_an_iommu_is_let_in_every_leaf_is_as_it_needs_it() {
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        let board = Board::new();
        let device = Device::new(PLAIN);
        let iommus: [&dyn Iommu; 1] = [&device];
        let space = board.space(&iommus, Bbm::Level0, features);
        let mut stay = board.stay();
        wear(&board, &space, &mut stay);
        let before = attrs(&space, &stay, GUEST);
        let is_writable = before.access.contains(Access::WRITE);
        assert!(!before.marks.contains(Marks::YOUNG) && !before.marks.contains(Marks::DIRTY));
        assert_eq!(is_writable, features == Features::HARDWARE_DIRTY);
        attach(&space, &mut stay, FIRST).unwrap();
        for ipa in [GUEST, GUEST + BLOCK + 5 * PAGE] {
            assert_eq!(device.store(&space, ipa), Ok(()), "{features:?}");
        }
        assert!(matches!(device.take().last(), Some(Did::Enabled(root, _)) if *root == space.root()));
        assert!(space.is_shared());
    }
}

/// A log takes the right to write from a page that is lent, too, and a fault of the owner's gives it back: a device, which does
/// not fault and try again, gets it when it is let in. The borrower's rights are those of the loan.
#[test]
fn what_is_lent_when_an_iommu_is_let_in_has_all_rights_of_its_region() {
    let board = Board::new();
    let (ours, theirs) = (Device::new(PLAIN), Device::new(PLAIN));
    let iommus: [&dyn Iommu; 2] = [&ours, &theirs];
    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    let borrower = board.space(&iommus, Bbm::Level0, Features::empty());
    let mut stay = board.stay();
    let (tlb, window, page) =
        (Recorder::default(), Ipa::new(GUEST + 4 * BLOCK), range(GUEST + 3 * PAGE, PAGE));
    borrower.add_region(&mut stay, Region::borrowed(range(window.get(), BLOCK))).unwrap();
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    let between =
        Between { from: Side { space: &space, tlb: &tlb }, to: Side { space: &borrower, tlb: &tlb } };
    between.lend(&stay, &board.cpu(), page, window, Access::READ).unwrap();
    wear(&board, &space, &mut stay);
    assert!(
        !attrs(&space, &stay, page.start().get()).access.contains(Access::WRITE),
        "the log has seen to that"
    );
    attach(&space, &mut stay, FIRST).unwrap();
    attach(&borrower, &mut stay, SECOND).unwrap();
    assert_eq!(ours.store(&space, page.start().get()), Ok(()));
    assert_eq!(theirs.store(&borrower, window.get()), Err(FaultKind::Permission));
    assert_eq!(theirs.access(&borrower, window.get(), Access::READ), Ok(()));
    // What is taken and given again while it is attached, is given at once.
    for (access, stored) in [(Access::READ, Err(FaultKind::Permission)), (Access::RWX, Ok(()))] {
        space.protect(&mut stay, &tlb, page, access).unwrap();
        assert_eq!(ours.store(&space, page.start().get()), stored);
    }
    between.take_back(&mut stay, &board.cpu(), page, window).unwrap();
    assert_eq!(ours.store(&space, page.start().get()), Ok(()));
}

#[test]
fn what_was_written_before_an_iommu_is_let_in_is_visible_to_it() {
    let board = Board::new();
    let tlb = Recorder::default();
    let works = || tlb.0.lock().unwrap().clone();
    let seen = Mutex::new(None);
    let on_enable = || drop(seen.lock().unwrap().replace(works()));
    let mut device = Device::new(PLAIN);
    device.on_enable = Some(&on_enable);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    let mut stay = board.stay();
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    // Breaks the block. What is written last, the link to the table, no barrier is behind: guests come again.
    space.tree().open(&stay).split(&tlb, Ipa::new(GUEST), Height::PAGE, Why::Pin).unwrap();
    let split = works().len();
    space.attach(&mut stay, &tlb, FIRST, || panic!("no rollover was due")).unwrap();
    let seen = seen.into_inner().unwrap().expect("it was turned on");
    assert!(seen.len() > split, "no barrier came after the split and before the IOMMU");
    assert!(matches!(seen.last(), Some(work) if work.class == stage2::Class::Publish), "{seen:?}");
}

/// In the middle of a change that breaks a leaf, another CPU lets an IOMMU in.
struct Meanwhile<F>(RefCell<Option<F>>);

impl<F: FnOnce()> Invalidate for Meanwhile<F> {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}

#[test]
fn an_iommu_is_not_let_in_while_a_change_is_under_way_that_it_could_not_stand() {
    let board = Board::new();
    let device = Device::new(PLAIN);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    let mut stay = board.stay();
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    // On one thread nobody's section can end inside another's wait: this CPU counts as in none of its own.
    let elsewhere = EntryEpoch::new();
    let attaching = RefCell::new(None);
    let during = Meanwhile(RefCell::new(Some(|| {
        let mut other = elsewhere.enter(cpu_id(1));
        let mut attach = space.start_attach(&other, FIRST, || {}).unwrap();
        assert_eq!(translate(&space, &other, GUEST), None, "the block is broken");
        let busy = matches!(attach.step(&mut other, &Recorder::default()), Err(SpaceError::Busy { .. }));
        assert!(busy, "and would be to the device");
        attaching.replace(Some(attach));
    })));
    space.tree().open(&stay).split(&during, Ipa::new(GUEST), Height::PAGE, Why::Pin).unwrap();
    stay.pass();
    let mut attach = attaching.take().expect("it was met");
    while attach.step(&mut stay, &Recorder::default()).unwrap() == Progress::More {}
    assert_eq!(device.store(&space, GUEST), Ok(()));
    let again = space.tree().open(&stay).split(&during, Ipa::new(GUEST + BLOCK), Height::PAGE, Why::Pin);
    assert_eq!(again, Ok(()), "there is nothing");
}

#[test]
fn an_attachment_that_is_not_gone_on_with_leaves_everything_as_it_was() {
    let board = Board::new();
    let device = Device::new(PLAIN);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, Bbm::Level2, Features::empty());
    let mut stay = board.stay();
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    let attach = space.start_attach(&stay, FIRST, || {}).unwrap();
    assert_eq!((space.is_shared(), space.tree().bbm()), (true, Bbm::Level0));
    assert_eq!(space.detach(FIRST), Err(SpaceError::Busy { ipa: Ipa::new(0) }));
    let other = space.start_attach(&stay, SECOND, || {}).map(drop);
    assert_eq!(other, Err(SpaceError::Busy { ipa: Ipa::new(0) }));
    drop(attach);
    assert_eq!((space.is_shared(), space.tree().bbm()), (false, Bbm::Level2));
    assert_eq!(
        space.age(&mut stay, &Recorder::default(), range(GUEST, BLOCK), &mut |_, _| {}).map(Ipa::get),
        Ok(GUEST + BLOCK)
    );
    assert!(device.take().iter().all(|did| !matches!(did, Did::Enabled(..))));
    let mut pins = 0;
    while board.vmids.pin(&Tag::new(), || {}).is_ok() {
        pins += 1;
    }
    assert_eq!(pins, crate::MAX_PINNED, "the VMID was given back");
}

#[test]
fn what_cannot_be_attached_is_named() {
    let board = Board::new();
    let device = Device::new(PLAIN);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    let mut stay = board.stay();
    assert_eq!(attach(&space, &mut stay, SECOND), Err(SpaceError::NoIommu));
    assert_eq!(space.detach(FIRST), Err(SpaceError::NoIommu));
    let log = space.start_log(&mut stay, &Leaves, range(GUEST, BLOCK), Granularity::AsMapped);
    assert!(log.is_ok());
    assert_eq!(attach(&space, &mut stay, FIRST), Err(SpaceError::LogRuns));
    assert!(!space.is_shared());
    space.stop_log(&mut stay).unwrap();
    let others: Vec<Tag> = (0..crate::MAX_PINNED).map(|_| Tag::new()).collect();
    others.iter().for_each(|tag| assert!(board.vmids.pin(tag, || {}).is_ok()));
    assert_eq!(attach(&space, &mut stay, FIRST), Err(SpaceError::NoVmids));
    board.vmids.unpin(&others[3]);
    assert_eq!(attach(&space, &mut stay, FIRST), Ok(()));
    assert_eq!(attach(&space, &mut stay, FIRST), Err(SpaceError::Attached));
    let without = space_of(&board.machine, Features::empty(), 1000);
    assert_eq!(attach(&without, &mut stay, FIRST), Err(SpaceError::NoIommu));
    assert!(IommuId::new(crate::MAX_IOMMUS as u8).is_none());
}

#[test]
fn the_vmid_of_a_space_with_an_iommu_is_its_own_over_every_rollover_until_the_iommu_is_off() {
    let board = Board::new();
    let device = Device::new(PLAIN);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    attach(&space, &mut board.stay(), FIRST).unwrap();
    let Some(&Did::Enabled(_, vmid)) = device.take().last() else { panic!("it is on") };
    let mut flushed = 0;
    while flushed < 2 {
        assert_ne!(board.vmids.activate(cpu_id(1), &Tag::new(), || flushed += 1), vmid);
    }
    assert_eq!(board.vmids.activate(cpu_id(0), space.tag(), || {}), vmid);
    board.vmids.deactivate(cpu_id(0));
    space.detach(FIRST).unwrap();
    assert_eq!(device.take(), [Did::Disabled]);
    let mut given = false;
    while flushed < 4 {
        given |= board.vmids.activate(cpu_id(1), &Tag::new(), || flushed += 1) == vmid;
    }
    assert!(given, "it was given back");
    assert_eq!(space.detach(FIRST), Err(SpaceError::NoIommu));
}

#[test]
fn of_two_iommus_the_weaker_one_decides_as_long_as_it_is_attached() {
    let board = Board::new();
    let strong = Device::new(IommuCapability { bbm: Bbm::Level2, upkeep: Upkeep::AccessedAndDirty, ..PLAIN });
    let weak = Device::new(PLAIN);
    let iommus: [&dyn Iommu; 2] = [&strong, &weak];
    let space = board.space(&iommus, Bbm::Level3, Features::HARDWARE_DIRTY);
    let mut stay = board.stay();
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    let block = range(GUEST, BLOCK);
    let age = |stay: &mut Stay<'_>| space.age(stay, &Recorder::default(), block, &mut |_, _| {});
    attach(&space, &mut stay, FIRST).unwrap();
    assert_eq!(space.tree().bbm(), Bbm::Level2);
    assert!(age(&mut stay).is_ok());
    attach(&space, &mut stay, SECOND).unwrap();
    assert_eq!(space.tree().bbm(), Bbm::Level0);
    assert_eq!(weak.store(&space, GUEST), Ok(()), "what was old is young again");
    assert_eq!(age(&mut stay), Err(SpaceError::DeviceWouldFault { ipa: Ipa::new(GUEST) }));
    space.detach(SECOND).unwrap();
    assert_eq!(space.tree().bbm(), Bbm::Level2);
    assert!(age(&mut stay).is_ok());
    space.detach(FIRST).unwrap();
    assert_eq!(space.tree().bbm(), Bbm::Level3);
    assert!(!space.is_shared());
}

#[test]
fn a_space_ends_with_its_iommus_off_before_the_last_invalidation() {
    let board = Board::new();
    let device = Device::new(PLAIN);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    let mut stay = board.stay();
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    let started = space.start_attach(&stay, FIRST, || {}).unwrap();
    space.condemn(&mut stay);
    let mut started = started;
    assert_eq!(
        started.step(&mut stay, &Recorder::default()),
        Err(SpaceError::Dying),
        "nobody is let in any more"
    );
    drop(started);
    destroy(space, &mut stay, &Recorder::default());
    drop(stay);

    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    let mut stay = board.stay();
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    attach(&space, &mut stay, FIRST).unwrap();
    device.take();
    struct Order<'a>(&'a Device<'a>);
    impl Invalidate for Order<'_> {
        type Pending = ();
        fn begin(&self, _: Work) {
            assert_eq!(self.0.take(), [Did::Disabled], "off when everything is forgotten");
        }
        fn complete(&self, (): ()) {}
    }
    destroy(space, &mut stay, &Order(&device));
    board.machine.drain_kept();
    assert_eq!(board.machine.stats().guest, 0);
    let pins = (0..crate::MAX_PINNED).filter(|_| board.vmids.pin(&Tag::new(), || {}).is_ok()).count();
    assert_eq!(pins, crate::MAX_PINNED, "the VMID is nobody's");
}
