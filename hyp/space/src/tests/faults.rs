use super::*;
use crate::{Backing, Outcome};
use stage2::{Class, Memory, Note, Scope, Why};

fn at_guest(bytes: u64, test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, bytes);
    test(&machine, &space, &mut stay);
}

fn fault(
    machine: &Machine,
    space: &Space<'_, Format>,
    stay: &Stay<'_>,
    ipa: u64,
) -> Result<Outcome, SpaceError> {
    space.fault(stay, &FakeCpu::new(0, machine), &Recorder::default(), &fault_at(ipa))
}

#[test]
fn a_fault_in_ram_maps_a_zeroed_block_of_2_mib() {
    at_guest(4 * MIB, |machine, space, stay| {
        let ipa = GUEST + BLOCK + 0x12345;
        assert_eq!(fault(machine, space, stay, ipa), Ok(Outcome::Mapped));
        let (pa, height) = translate(space, stay, ipa).unwrap();
        assert_eq!((pa.get() % BLOCK, height), (0x12345, Height::new(1)));
        for ipa in (GUEST + BLOCK..GUEST + 2 * BLOCK).step_by(PAGE as usize) {
            assert_eq!((byte_at(space, stay, ipa), byte_at(space, stay, ipa + PAGE - 1)), (0, 0));
        }
        assert_eq!(translate(space, stay, GUEST), None, "the neighbour is not mapped");
        assert_eq!(leaves(space), [0, 1, 0]);
        assert_eq!(machine.stats().guest, 512);
    });
}

#[test]
fn a_region_that_holds_no_whole_block_is_mapped_with_pages() {
    at_guest(BLOCK - PAGE, |machine, space, stay| {
        assert_eq!(fault(machine, space, stay, GUEST + 0x5678), Ok(Outcome::Mapped));
        let (pa, height) = translate(space, stay, GUEST + 0x5678).unwrap();
        assert_eq!((pa.get() % PAGE, height), (0x678, Height::PAGE));
        assert_eq!(byte_at(space, stay, GUEST + 0x5000), 0);
        assert_eq!(machine.stats().guest, 1);
        assert_eq!(space.stats().smaller, 0, "this is not for want of memory");
    });
}

#[test]
fn an_address_in_no_region_is_outside_and_nothing_is_mapped() {
    at_guest(4 * MIB, |machine, space, stay| {
        let before = machine.stats();
        for ipa in [0, GUEST - 1, GUEST + 4 * MIB, 1 << 36, u64::MAX] {
            assert_eq!(fault(machine, space, stay, ipa), Ok(Outcome::Outside), "{ipa:#x}");
        }
        let beyond = Fault { kind: FaultKind::AddressSize, ..fault_at(GUEST) };
        let outcome = space.fault(stay, &FakeCpu::new(0, machine), &Recorder::default(), &beyond);
        assert_eq!(outcome, Ok(Outcome::Outside));
        assert_eq!(machine.stats(), before);
        assert_eq!(space.stats().outside, 6);
    });
}

#[test]
fn a_right_that_the_region_does_not_give_is_denied_before_and_after_it_is_mapped() {
    at_guest(4 * MIB, |machine, space, stay| {
        let rom = Region { access: Access::RX, ..Region::ram(range(GUEST + 8 * MIB, BLOCK)) };
        space.add_region(stay, rom).unwrap();
        let ipa = GUEST + 8 * MIB;
        assert_eq!(fault(machine, space, stay, ipa), Ok(Outcome::Denied));
        assert_eq!(translate(space, stay, ipa), None);
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        let read = Fault { access: Access::READ, ..fault_at(ipa) };
        assert_eq!(space.fault(stay, &cpu, &tlb, &read), Ok(Outcome::Mapped));
        let write = Fault { kind: FaultKind::Permission, ..fault_at(ipa) };
        assert_eq!(space.fault(stay, &cpu, &tlb, &write), Ok(Outcome::Denied));
    });
}

#[test]
fn a_fault_that_finds_a_sufficient_mapping_forgets_what_this_cpu_has_cached() {
    at_guest(4 * MIB, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        assert_eq!(space.fault(stay, &cpu, &tlb, &fault_at(GUEST)), Ok(Outcome::Mapped));
        tlb.0.lock().unwrap().clear();
        let again = Fault { kind: FaultKind::Permission, ..fault_at(GUEST + 0x1234) };
        assert_eq!(space.fault(stay, &cpu, &tlb, &again), Ok(Outcome::AlreadyMapped));
        let work =
            Work { class: Class::Relax, scope: Scope::Range { range: range(GUEST, BLOCK), hint: None } };
        assert_eq!(*tlb.0.lock().unwrap(), [work]);
    });
}

#[test]
fn a_new_mapping_owes_visibility_and_no_more() {
    at_guest(4 * MIB, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        space.fault(stay, &cpu, &tlb, &fault_at(GUEST)).unwrap();
        let done = tlb.0.lock().unwrap();
        assert!(!done.is_empty() && done.iter().all(|work| work.class == Class::Publish), "{done:?}");
    });
}

#[test]
fn without_a_free_block_a_fault_maps_a_page_and_says_why() {
    at_guest(4 * MIB, |machine, space, stay| {
        let _held = break_all_blocks(machine);
        assert_eq!(fault(machine, space, stay, GUEST), Ok(Outcome::Mapped));
        assert_eq!(leaves(space), [1, 0, 0]);
        assert_eq!(space.stats().smaller, 1);
        assert_eq!(byte_at(space, stay, GUEST), 0);
        let why = table_above_page(space, stay);
        assert_eq!(why, Why::NoMemory);
    });
}

/// Returns why the table of pages at the guest's first address is there.
fn table_above_page(space: &Space<'_, Format>, _: &Stay<'_>) -> Why {
    use stage2::{Entries, Entry, Format as _};
    let tree = space.tree();
    let top = tree.geometry().top();
    let root = tree.memory().slot(tree.root(), tree.geometry().index(Ipa::new(GUEST), top)).word();
    match tree.format().decode(root.load(std::sync::atomic::Ordering::Acquire), top) {
        Entry::Table(table) => table.why,
        other => panic!("no table but {other:?}"),
    }
}

#[test]
fn no_memory_at_all_is_an_error_and_the_fault_can_be_taken_again() {
    at_guest(4 * MIB, |machine, space, stay| {
        let held = leave_free(machine, 0);
        let ipa = Ipa::new(GUEST + 7);
        assert_eq!(fault(machine, space, stay, GUEST + 7), Err(SpaceError::OutOfMemory { ipa }));
        drop(held);
        assert_eq!(fault(machine, space, stay, GUEST + 7), Ok(Outcome::Mapped));
        assert_eq!((space.stats().failed, space.stats().mapped), (1, 1));
    });
}

#[test]
fn a_space_at_its_table_budget_fails_with_nothing_lost() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let root = (geometry().root_size().bytes() / PAGE) as u32;
    let space = space_with_tables(&machine, root);
    add_ram(&space, &mut stay, GUEST, 4 * MIB);
    let ipa = Ipa::new(GUEST);
    assert_eq!(fault(&machine, &space, &stay, GUEST), Err(SpaceError::OutOfTables { ipa }));
    assert_eq!(space.stats().table_bytes, u64::from(root) * PAGE);
    assert_eq!(machine.stats().guest, 0, "the block that was prepared went back");
}

#[test]
fn a_fixed_region_goes_where_it_says_in_the_largest_blocks_that_fit() {
    at_guest(4 * MIB, |machine, space, stay| {
        let before = machine.stats().guest;
        let device = Region::device(range(0x800_0000, 2 * BLOCK + PAGE), Pa::new(0x1000_0000 + BLOCK));
        space.add_region(stay, device).unwrap();
        let odd = Region::device(range(0x900_0000, BLOCK), Pa::new(0x1100_1000));
        space.add_region(stay, odd).unwrap();
        for (ipa, pa, height) in
            [(0x800_0010, 0x1020_0010, 1), (0x840_0abc, 0x1060_0abc, 0), (0x900_1000, 0x1100_2000, 0)]
        {
            assert_eq!(fault(machine, space, stay, ipa), Ok(Outcome::Mapped));
            assert_eq!(translate(space, stay, ipa), Some((Pa::new(pa), Height::new(height))));
        }
        assert_eq!(machine.stats().guest, before, "no frame is behind a device");
    });
}

#[test]
fn a_fixed_region_has_its_memory_type_and_rights() {
    let backing = Backing::Fixed { pa: Pa::new(0), memory: Memory::Uncached };
    let region = Region { range: range(0, PAGE), access: Access::READ, backing };
    let attrs = region.attrs();
    assert_eq!((attrs.memory, attrs.access), (Memory::Uncached, Access::READ));
    assert_eq!(Region::device(range(0, PAGE), Pa::new(0)).attrs().access, Access::RW);
}

#[test]
fn a_note_is_reported_and_not_overwritten() {
    at_guest(4 * MIB, |machine, space, stay| {
        space.tree().open(&*stay).annotate(range(GUEST, PAGE), Note::new(42)).unwrap();
        assert_eq!(fault(machine, space, stay, GUEST), Ok(Outcome::Noted(Note::new(42))));
        assert_eq!(fault(machine, space, stay, GUEST + PAGE), Ok(Outcome::Mapped));
        assert_eq!(leaves(space), [1, 0, 0], "beside a note only pages fit");
    });
}

#[test]
fn a_conflict_of_translations_makes_this_cpu_forget_everything() {
    at_guest(4 * MIB, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        let conflict = Fault { kind: FaultKind::TlbConflict, ..fault_at(GUEST) };
        assert_eq!(space.fault(stay, &cpu, &tlb, &conflict), Ok(Outcome::AlreadyMapped));
        let reach = space.tree().geometry().reach();
        let work = Work { class: Class::Relax, scope: Scope::Range { range: reach, hint: None } };
        assert_eq!(*tlb.0.lock().unwrap(), [work]);
        assert_eq!((space.stats().conflicts, space.stats().already_mapped), (1, 1));
    });
}

/// Invalidation during which somebody else does something.
struct Meanwhile<F>(F);

impl<F: Fn(Class)> Invalidate for Meanwhile<F> {
    type Pending = ();

    fn begin(&self, work: Work) {
        (self.0)(work.class);
    }

    fn complete(&self, (): ()) {}
}

#[test]
fn a_fault_on_a_block_that_is_valid_and_not_to_be_cached_is_busy() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let format = Format::new(Features::empty());
    let space =
        Space::new(&machine, Owner(1), format, geometry(), Bbm::Level1, 1000).expect("there is memory");
    add_ram(&space, &mut stay, GUEST, 4 * MIB);
    assert_eq!(fault(&machine, &space, &stay, GUEST), Ok(Outcome::Mapped));
    let faults = Mutex::new(Vec::new());
    let split = Meanwhile(|_| {
        let (other, tlb) = (FakeCpu::new(1, &machine), Recorder::default());
        let outcome = space.fault(&epoch.enter(cpu_id(1)), &other, &tlb, &fault_at(GUEST + 0x5678));
        faults.lock().unwrap().push((outcome, tlb.0.into_inner().unwrap().len()));
    });
    space.tree().open(&stay).split(&split, Ipa::new(GUEST), Height::PAGE, Why::DirtyLog).expect("room");
    // First the block with nT; then the pages, while TLBs may hold the block still.
    assert_eq!(faults.into_inner().unwrap(), [(Ok(Outcome::Busy), 0), (Ok(Outcome::AlreadyMapped), 1)]);
}

#[test]
fn a_weaker_cpu_lowers_the_level_before_it_takes_part_and_a_stronger_one_changes_nothing() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let format = Format::new(Features::empty());
    let space =
        Space::new(&machine, Owner(1), format, geometry(), Bbm::Level2, 1000).expect("there is memory");
    for (newcomer, level) in [
        (Bbm::Level3, Bbm::Level2),
        (Bbm::Level2, Bbm::Level2),
        (Bbm::Level1, Bbm::Level1),
        (Bbm::Level2, Bbm::Level1),
        (Bbm::Level0, Bbm::Level0),
    ] {
        space.admit(&mut stay, newcomer);
        assert_eq!(space.tree().bbm(), level, "after {newcomer:?}");
    }
}
