//! What goes on while devices translate through the tables, and what does not.

use super::device::Did;
use super::*;
use crate::{Granularity, Leaves, MoveError, Outcome, Pml, Scattered};
use frames::{Order, Usage};
use stage2::{ChangeError, Class, CollapseError, Section, Why};

/// Attaches a device of `capability`, and runs `test`.
fn with_device(
    capability: IommuCapability,
    bbm: Bbm,
    features: Features,
    test: impl FnOnce(&Board, &Space<'_, Format>, &Device<'_>, &mut Stay<'_>),
) {
    let board = Board::new();
    let device = Device::new(capability);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, bbm, features);
    let mut stay = board.stay();
    for ipa in [GUEST, GUEST + BLOCK] {
        board.fault(&space, &stay, &fault_at(ipa)).unwrap();
    }
    attach(&space, &mut stay, FIRST).unwrap();
    device.take();
    test(&board, &space, &device, &mut stay);
}

const HARM: Result<Ipa, SpaceError> = Err(SpaceError::DeviceWouldFault { ipa: Ipa::new(GUEST) });

#[test]
fn what_a_device_could_not_stand_is_refused_and_nothing_is_changed() {
    with_device(PLAIN, Bbm::Level2, Features::HARDWARE_DIRTY, |board, space, device, stay| {
        let (cpu, tlb, block) = (board.cpu(), Recorder::default(), range(GUEST, BLOCK));
        let before = space.stats();
        assert_eq!(space.age(stay, &tlb, block, &mut |_, _| {}), HARM);
        let log = space.start_log(stay, &Leaves, block, Granularity::AsMapped);
        assert_eq!(log, Err(SpaceError::DeviceWouldFault { ipa: Ipa::new(GUEST) }));
        let split = space.tree().open(&*stay).split(&tlb, Ipa::new(GUEST), Height::PAGE, Why::Pin);
        let height = Height::new(1);
        assert_eq!(split, Err(ChangeError::DeviceWouldFault { ipa: Ipa::new(GUEST), height }));
        assert_eq!(space.discard(stay, &plain(space), &tlb, range(GUEST, PAGE)), HARM, "a part of a block");
        let part = range(GUEST + PAGE, PAGE);
        let protected = space.protect(stay, &tlb, part, Access::READ).map(|done| *done);
        assert_eq!(protected, Err(SpaceError::DeviceWouldFault { ipa: Ipa::new(GUEST + PAGE) }));
        space.protect(stay, &tlb, part, Access::RWX).unwrap();
        let run = board.machine.allocate(Order::FOLIO, Usage::Guest(Owner(1))).unwrap();
        let moved = space.move_leaf(stay, &cpu, &tlb, Ipa::new(GUEST), run);
        assert_eq!(moved, Err(MoveError::DeviceWouldFault { ipa: Ipa::new(GUEST) }));
        assert_eq!((space.stats().census.leaves, device.store(space, GUEST)), (before.census.leaves, Ok(())));
        assert!(
            tlb.0.lock().unwrap().iter().all(|work| work.class < Class::Leaves),
            "and nothing was broken"
        );
    });
}

#[test]
fn pages_stay_pages_where_a_device_could_not_stand_a_block() {
    let board = Board::new();
    let device = Device::new(PLAIN);
    let iommus: [&dyn Iommu; 1] = [&device];
    let space = board.space(&iommus, Bbm::Level0, Features::empty());
    let (mut stay, cpu, tlb) = (board.stay(), board.cpu(), Recorder::default());
    board.fault(&space, &stay, &fault_at(GUEST)).unwrap();
    space.tree().open(&stay).split(&tlb, Ipa::new(GUEST), Height::PAGE, Why::Pin).unwrap();
    let small = board.fault(&space, &stay, &fault_at(GUEST + BLOCK));
    assert_eq!(small, Ok(Outcome::Mapped));
    attach(&space, &mut stay, FIRST).unwrap();
    let harm = MoveError::DeviceWouldFault { ipa: Ipa::new(GUEST) };
    let height = Height::new(1);
    assert_eq!(space.collapse(&mut stay, &cpu, &tlb, Ipa::new(GUEST), height, Scattered::Gather), Err(harm));
    let direct = space.tree().collapse(&mut stay, &tlb, Ipa::new(GUEST), height);
    assert_eq!(direct, Err(CollapseError::DeviceWouldFault));
    assert_eq!(device.store(&space, GUEST + 7 * PAGE), Ok(()));
    space.detach(FIRST).unwrap();
    assert!(space.collapse(&mut stay, &cpu, &tlb, Ipa::new(GUEST), height, Scattered::Gather).is_ok());
}

#[test]
fn what_a_device_does_not_notice_goes_on() {
    let capable = IommuCapability { bbm: Bbm::Level2, ..PLAIN };
    with_device(capable, Bbm::Level2, Features::empty(), |board, space, device, stay| {
        let (cpu, tlb) = (board.cpu(), Recorder::default());
        assert_eq!(device.store(space, GUEST), Ok(()));
        let everyone = space.everyone(&tlb);
        space.tree().open(&*stay).split(&everyone, Ipa::new(GUEST), Height::PAGE, Why::Pin).unwrap();
        assert_eq!((leaves(space), device.store(space, GUEST)), ([512, 1, 0], Ok(())));
        let made = space.collapse(stay, &cpu, &tlb, Ipa::new(GUEST), Height::new(1), Scattered::Gather);
        assert_eq!(made, Ok(crate::Collapsed::InPlace));
        assert_eq!((leaves(space), device.store(space, GUEST)), ([0, 2, 0], Ok(())));
        let next = space.discard(stay, &plain(space), &tlb, range(GUEST, PAGE)).unwrap();
        assert_eq!(next, Ipa::new(GUEST + PAGE), "the block was split live");
        assert_eq!(device.store(space, GUEST), Err(FaultKind::Translation), "this was asked for");
        assert_eq!(device.store(space, GUEST + PAGE), Ok(()));
        board.fault(space, stay, &fault_at(GUEST)).unwrap();
        assert_eq!(device.store(space, GUEST), Ok(()), "what is published is as the device needs it");
    });
}

#[test]
fn hardware_that_keeps_flags_may_be_aged_and_logged_and_one_that_stalls_may_anything() {
    let keeps = IommuCapability { upkeep: Upkeep::AccessedAndDirty, ..PLAIN };
    let stalls = IommuCapability { on_fault: OnFault::Stalls, ..PLAIN };
    for (capability, features, is_logged, is_broken) in [
        (keeps, Features::HARDWARE_DIRTY, true, false),
        (keeps, Features::empty(), false, false), // to be clean is to be read-only
        (IommuCapability { upkeep: Upkeep::Accessed, ..PLAIN }, Features::HARDWARE_DIRTY, false, false),
        (stalls, Features::empty(), true, true),
    ] {
        with_device(capability, Bbm::Level2, features, |_, space, _, stay| {
            let (tlb, block) = (Recorder::default(), range(GUEST, BLOCK));
            assert!(space.age(stay, &tlb, block, &mut |_, _| {}).is_ok(), "{capability:?}");
            let log = space.start_log(stay, &Leaves, block, Granularity::AsMapped);
            assert_eq!(log.is_ok(), is_logged, "{capability:?}, {features:?}");
            if is_logged {
                assert!(space.arm_log(stay, &tlb, log.unwrap()).is_ok());
                space.stop_log(stay).unwrap();
            }
            let split = space.tree().open(&*stay).split(&tlb, Ipa::new(GUEST), Height::PAGE, Why::Pin);
            assert_eq!(split.is_ok(), is_broken, "{capability:?}");
        });
    }
}

/// A list of nothing.
struct Nothing;

impl Pml for Nothing {
    fn drain(&self, _: &mut dyn FnMut(Ipa)) {}
}

#[test]
fn a_list_that_cpus_keep_says_nothing_of_devices() {
    let capable = IommuCapability { upkeep: Upkeep::AccessedAndDirty, on_fault: OnFault::Stalls, ..PLAIN };
    with_device(capable, Bbm::Level2, Features::HARDWARE_DIRTY, |_, space, _, stay| {
        let listed = space.start_log(stay, &crate::Listed(Nothing), range(GUEST, BLOCK), Granularity::Pages);
        assert_eq!(listed, Err(SpaceError::DeviceWouldFault { ipa: Ipa::new(GUEST) }));
        assert!(space.start_log(stay, &Leaves, range(GUEST, BLOCK), Granularity::AsMapped).is_ok());
    });
}

#[test]
fn what_is_taken_away_the_iommu_has_forgotten_when_the_answer_comes() {
    with_device(PLAIN, Bbm::Level0, Features::empty(), |_, space, device, stay| {
        let tlb = Recorder::default();
        assert_eq!((device.store(space, GUEST), device.store(space, GUEST + BLOCK)), (Ok(()), Ok(())));
        space.discard(stay, &plain(space), &tlb, range(GUEST, BLOCK)).unwrap();
        assert_eq!(device.store(space, GUEST), Err(FaultKind::Translation));
        assert!(
            matches!(device.take()[..], [Did::Begun(work), Did::Completed] if work.class >= Class::Leaves)
        );
        space.protect(stay, &tlb, range(GUEST + BLOCK, BLOCK), Access::READ).unwrap();
        assert_eq!(device.store(space, GUEST + BLOCK), Err(FaultKind::Permission));
        assert_eq!(device.access(space, GUEST + BLOCK, Access::READ), Ok(()));
    });
}

#[test]
fn an_iommu_forgets_the_way_to_a_table_before_that_goes_back() {
    with_device(PLAIN, Bbm::Level0, Features::empty(), |_, space, device, stay| {
        let tlb = Recorder::default();
        let tables = space.stats().census.tables;
        for unmapped in [GUEST, GUEST + BLOCK] {
            space.tree().unmap(stay, &space.everyone(&tlb), range(unmapped, BLOCK), &mut |_| {}).unwrap();
        }
        device.take();
        assert_eq!(space.prune_all(stay, &tlb), Ok(true));
        assert!(space.stats().census.tables < tables);
        let told = |did: &Did| matches!(did, Did::Begun(work) if work.class == Class::Tables);
        assert!(device.take().iter().any(told), "its walk caches lead there");
    });
}

#[test]
fn what_is_given_is_given_to_devices_at_once_and_the_stricter_entry_is_forgotten() {
    with_device(PLAIN, Bbm::Level0, Features::empty(), |_, space, device, stay| {
        let tlb = Recorder::default();
        let block = range(GUEST, BLOCK);
        space.protect(stay, &tlb, block, Access::READ).unwrap();
        assert_eq!(device.access(space, GUEST, Access::READ), Ok(()), "it holds the stricter entry");
        space.protect(stay, &tlb, block, Access::RWX).unwrap();
        assert_eq!(device.store(space, GUEST), Ok(()), "nobody has faulted there");
    });
    // Where the device stalls, a fault gives the right, and the IOMMU has to look again.
    let stalls = IommuCapability { on_fault: OnFault::Stalls, ..PLAIN };
    with_device(stalls, Bbm::Level0, Features::empty(), |board, space, device, stay| {
        let tlb = Recorder::default();
        let block = range(GUEST, BLOCK);
        space.protect(stay, &tlb, block, Access::READ).unwrap();
        assert_eq!(device.access(space, GUEST, Access::READ), Ok(()));
        space.protect(stay, &tlb, block, Access::RWX).unwrap();
        assert_eq!(device.store(space, GUEST), Err(FaultKind::Permission));
        let fault = Fault { kind: FaultKind::Permission, ..fault_at(GUEST) };
        assert_eq!(board.fault(space, stay, &fault), Ok(Outcome::Allowed));
        assert_eq!(device.store(space, GUEST), Ok(()));
    });
}

/// A CPU that does as little as it may: what it broadcasts a device hears.
struct Lone<'a>(&'a Device<'a>, Mutex<Vec<Work>>);

impl Invalidate for Lone<'_> {
    type Pending = ();

    fn begin(&self, work: Work) {
        self.1.lock().unwrap().push(work);
    }

    fn begin_broadcast(&self, work: Work) {
        self.0.forget(work);
    }

    fn complete(&self, (): ()) {}
}

#[test]
fn an_iommu_that_listens_is_told_by_broadcasts_and_never_by_what_one_cpu_does_for_itself() {
    let listens = IommuCapability { hears: Hears::Broadcasts, ..PLAIN };
    with_device(listens, Bbm::Level0, Features::empty(), |board, space, device, stay| {
        let tlb = Lone(device, Mutex::default());
        let block = range(GUEST, BLOCK);
        assert_eq!(device.store(space, GUEST), Ok(()));
        space.protect(stay, &tlb, block, Access::READ).unwrap();
        assert_eq!(device.store(space, GUEST), Err(FaultKind::Permission));
        space.protect(stay, &tlb, block, Access::RWX).unwrap();
        assert_eq!(device.store(space, GUEST), Ok(()));
        space.discard(stay, &plain(space), &tlb, block).unwrap();
        assert_eq!(device.store(space, GUEST), Err(FaultKind::Translation));
        space.fault(stay, &board.cpu(), &tlb, &fault_at(GUEST)).unwrap();
        assert!(
            tlb.1.lock().unwrap().iter().all(|work| work.class == Class::Publish),
            "all else was broadcast"
        );
        assert!(device.take().is_empty(), "it has no commands");
        stay.pass();
    });
}
