use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::thread;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("small")
}

fn no_flush() {
    panic!("no rollover was due");
}

#[test]
fn a_space_keeps_its_vmid_within_a_generation() {
    let (vmids, one, two) = (Vmids::new(VmidBits::Eight), Tag::new(), Tag::new());
    let first = vmids.activate(cpu(0), &one, no_flush);
    let second = vmids.activate(cpu(1), &two, no_flush);
    assert_ne!(first, second);
    assert_ne!(first, Vmid(0), "0 is never given to a space");
    assert_eq!(vmids.activate(cpu(1), &one, no_flush), first);
    vmids.deactivate(cpu(1));
    assert_eq!(vmids.activate(cpu(0), &two, no_flush), second);
}

#[test]
fn what_is_left_of_a_space_is_invalidated_under_its_last_vmid() {
    let (vmids, tag) = (Vmids::new(VmidBits::Eight), Tag::new());
    assert_eq!(vmids.borrow_for(cpu(0), &tag.last()), None, "it never ran");
    let vmid = vmids.activate(cpu(1), &tag, no_flush);
    vmids.deactivate(cpu(1));
    assert_eq!(vmids.borrow_for(cpu(0), &tag.last()), Some(vmid));
    vmids.return_borrowed(cpu(0));
}

#[test]
fn the_256th_space_makes_8_bits_roll_over_and_16_bits_not() {
    for (bits, flushes) in [(VmidBits::Eight, 1), (VmidBits::Sixteen, 0)] {
        let vmids = Vmids::new(bits);
        let mut flushed = 0;
        for _ in 0..256 {
            vmids.activate(cpu(0), &Tag::new(), || flushed += 1);
        }
        assert_eq!(flushed, flushes, "{bits:?}");
    }
}

#[test]
fn what_runs_over_a_rollover_keeps_its_vmid_and_nobody_else_gets_it() {
    let vmids = Vmids::up_to(8);
    let running = Tag::new();
    let vmid = vmids.activate(cpu(1), &running, no_flush);
    let mut flushed = 0;
    while flushed < 3 {
        let other = vmids.activate(cpu(0), &Tag::new(), || flushed += 1);
        assert_ne!(other, vmid);
    }
    assert_eq!(vmids.activate(cpu(2), &running, no_flush), vmid, "on another CPU, too");
}

#[test]
fn what_is_borrowed_over_a_rollover_goes_to_nobody_else() {
    let vmids = Vmids::up_to(8);
    let (quiet, mut flushed) = (Tag::new(), 0);
    let vmid = vmids.activate(cpu(0), &quiet, no_flush);
    vmids.deactivate(cpu(0));
    assert_eq!(vmids.borrow_for(cpu(1), &quiet), Some(vmid));
    while flushed < 2 {
        assert_ne!(vmids.activate(cpu(0), &Tag::new(), || flushed += 1), vmid);
    }
    vmids.return_borrowed(cpu(1));
    while flushed < 3 {
        vmids.activate(cpu(0), &Tag::new(), || flushed += 1);
    }
    let all: Vec<_> = (0..7).map(|_| vmids.activate(cpu(0), &Tag::new(), || {})).collect();
    assert!(all.contains(&vmid), "{all:?}");
}

#[test]
fn a_space_that_has_not_run_since_the_rollover_needs_no_invalidation() {
    let vmids = Vmids::up_to(8);
    let (never, old, mut flushed) = (Tag::new(), Tag::new(), 0);
    vmids.activate(cpu(0), &old, no_flush);
    while flushed < 1 {
        vmids.activate(cpu(0), &Tag::new(), || flushed += 1);
    }
    assert_eq!(vmids.borrow_for(cpu(1), &never), None);
    assert_eq!(vmids.borrow_for(cpu(1), &old), None);
}

#[test]
fn what_is_pinned_keeps_its_vmid_over_every_rollover_and_nobody_else_gets_it() {
    let vmids = Vmids::up_to(8);
    let (pinned, mut flushed) = (Tag::new(), 0);
    let vmid = vmids.pin(&pinned, no_flush).expect("none is pinned yet");
    while flushed < 3 {
        assert_ne!(vmids.activate(cpu(0), &Tag::new(), || flushed += 1), vmid);
    }
    assert_eq!(
        vmids.borrow_for(cpu(1), &pinned),
        Some(vmid),
        "it has never run, and its IOMMU holds entries"
    );
    vmids.return_borrowed(cpu(1));
    assert_eq!(vmids.activate(cpu(2), &pinned, no_flush), vmid);
    vmids.deactivate(cpu(2));
    while flushed < 5 {
        assert_ne!(vmids.activate(cpu(0), &Tag::new(), || flushed += 1), vmid);
    }
    vmids.unpin(&pinned);
    while flushed < 6 {
        vmids.activate(cpu(0), &Tag::new(), || flushed += 1);
    }
    let all: Vec<_> = (0..7).map(|_| vmids.activate(cpu(0), &Tag::new(), || {})).collect();
    assert!(all.contains(&vmid), "{all:?}");
}

#[test]
fn each_pin_of_a_vmid_is_given_back_by_itself_and_there_is_a_bounded_number() {
    let vmids = Vmids::up_to(8);
    let tags = [Tag::new(), Tag::new(), Tag::new()];
    let one = vmids.pin(&tags[0], no_flush).unwrap();
    assert_eq!(vmids.pin(&tags[0], no_flush), Ok(one), "for a second IOMMU");
    assert!(vmids.pin(&tags[1], no_flush).is_ok());
    assert_eq!(vmids.pin(&tags[2], no_flush), Err(NoVmids), "a quarter of all is pinned");
    vmids.unpin(&tags[0]);
    assert_eq!(vmids.pin(&tags[2], no_flush), Err(NoVmids));
    vmids.unpin(&tags[0]);
    assert!(vmids.pin(&tags[2], no_flush).is_ok());
    let vmids = Vmids::new(VmidBits::Eight);
    let tags: Vec<_> = (0..=MAX_PINNED).map(|_| Tag::new()).collect();
    let pinned = tags.iter().filter(|tag| vmids.pin(tag, no_flush).is_ok()).count();
    assert_eq!(pinned, MAX_PINNED);
}

/// Every TLB that could be: which space each VMID may have entries of.
#[derive(Default)]
struct Tlbs {
    entries: HashMap<Vmid, usize>,
    in_use: HashMap<usize, (Vmid, usize)>,
    /// What IOMMUs hold entries under, and for whom.
    pinned: HashMap<usize, (Vmid, usize)>,
}

impl Tlbs {
    fn fill(&mut self, vmid: Vmid, space: usize) {
        for (other, (pinned, _)) in &self.pinned {
            assert_eq!(*other == space, *pinned == vmid, "{vmid:?} of {space} is pinned for {other}");
        }
        let owner = *self.entries.entry(vmid).or_insert(space);
        assert_eq!(owner, space, "{vmid:?} still has entries of another space");
    }

    /// Empties the TLBs; whoever is running fills them again at once.
    fn flush(&mut self) {
        self.entries = self.in_use.values().copied().collect();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_vmid_ever_has_entries_of_two_spaces(
        calls in prop::collection::vec((0usize..3, 0usize..12, 0u8..7), 1..400),
    ) {
        let vmids = Vmids::up_to(8);
        let tags: Vec<_> = (0..12).map(|_| Tag::new()).collect();
        let mut tlbs = Tlbs::default();
        let mut borrowing: HashMap<usize, (Vmid, usize)> = HashMap::new();
        for (n, space, what) in calls {
            let lent = borrowing.remove(&n).is_some();
            if lent {
                vmids.return_borrowed(cpu(n));
                tlbs.in_use.remove(&(n + 3));
            }
            match what {
                0 => {
                    vmids.deactivate(cpu(n));
                    tlbs.in_use.remove(&n);
                }
                1 => {
                    let held = tlbs.entries.iter().find(|(_, owner)| **owner == space).map(|(v, _)| *v);
                    let vmid = vmids.borrow_for(cpu(n), &tags[space]);
                    let held = held.or(tlbs.pinned.get(&space).map(|(vmid, _)| *vmid));
                    prop_assert!(held.is_none() || held == vmid, "entries under {:?} are missed", held);
                    if let Some(vmid) = vmid {
                        tlbs.fill(vmid, space);
                        tlbs.in_use.insert(n + 3, (vmid, space));
                        borrowing.insert(n, (vmid, space));
                    }
                }
                2 => {
                    if let Ok(vmid) = vmids.pin(&tags[space], || tlbs.flush()) {
                        tlbs.pinned.entry(space).or_insert((vmid, 0)).1 += 1;
                        tlbs.fill(vmid, space);
                    }
                }
                3 => {
                    if let Some((_, pins)) = tlbs.pinned.get_mut(&space) {
                        vmids.unpin(&tags[space]);
                        *pins -= 1;
                        if *pins == 0 {
                            tlbs.pinned.remove(&space);
                        }
                    }
                }
                _ => {
                    tlbs.in_use.remove(&n);
                    vmids.deactivate(cpu(n));
                    let vmid = vmids.activate(cpu(n), &tags[space], || tlbs.flush());
                    tlbs.fill(vmid, space);
                    tlbs.in_use.insert(n, (vmid, space));
                }
            }
        }
    }
}

/// Three CPUs run many spaces in turn, and nobody else's VMID is theirs while they do.
fn run_in_turn(vmids: &Vmids, spaces: usize) {
    let tags: Vec<_> = (0..spaces).map(|_| Tag::new()).collect();
    // Who runs under a VMID: the space plus 1, times 16, plus how many CPUs.
    let running: Vec<_> = (0..=vmids.last).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|s| {
        for n in 0..3 {
            let (tags, running) = (&tags, &running);
            s.spawn(move || {
                for round in 0..if cfg!(miri) { 60 } else { 30_000 } {
                    let space = (round * 7 + n * 5) % spaces;
                    let vmid = vmids.activate(cpu(n), &tags[space], || {});
                    let slot = &running[usize::from(vmid.0)];
                    let before = slot.fetch_add(1, Relaxed);
                    let mine = (space + 1) * 16;
                    if before == 0 {
                        slot.fetch_add(mine, Relaxed);
                    }
                    assert!(before < 16 || before / 16 == space + 1, "two spaces under {vmid:?}");
                    if slot.fetch_sub(1, Relaxed) % 16 == 1 {
                        let _ = slot.compare_exchange(mine, 0, Relaxed, Relaxed);
                    }
                    if round % 3 == 0 {
                        vmids.deactivate(cpu(n));
                    }
                }
            });
        }
    });
}

#[test]
fn cpus_that_run_different_spaces_at_once_never_share_a_vmid() {
    run_in_turn(&Vmids::up_to(12), 20);
}

#[test]
fn more_spaces_than_8_bits_tell_apart_run_at_once_and_never_share_a_vmid() {
    let vmids = Vmids::new(VmidBits::Eight);
    run_in_turn(&vmids, 400);
    assert!(cfg!(miri) || vmids.rollovers() > 100);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Where each CPU empties its own TLB, it finds nothing of another space in it under the VMID that it comes to run. What
    /// is loaded while a TLB is emptied fills it again.
    #[test]
    fn no_cpu_s_own_tlb_has_entries_of_another_space_under_the_vmid_that_it_runs(
        calls in prop::collection::vec((0usize..3, 0usize..12, any::<bool>()), 1..400),
    ) {
        let vmids = Vmids::up_to(8).emptied_by_each();
        let tags: Vec<_> = (0..12).map(|_| Tag::new()).collect();
        let mut tlbs = [const { Vec::<(Vmid, usize)>::new() }; 3];
        let mut loaded: [Option<(Vmid, usize)>; 3] = [None; 3];
        for (n, space, leaves) in calls {
            if leaves {
                loaded[n] = None; // first
                vmids.deactivate(cpu(n));
            }
            let vmid = vmids.activate(cpu(n), &tags[space], || tlbs[n] = loaded[n].into_iter().collect());
            let strange = tlbs[n].iter().find(|(under, of)| *under == vmid && *of != space);
            prop_assert_eq!(strange, None, "in the TLB of CPU {} when it runs {} as {:?}", n, space, vmid);
            tlbs[n].push((vmid, space));
            loaded[n] = Some((vmid, space));
        }
    }
}

#[test]
fn each_cpu_empties_its_own_tlb_once_after_a_rollover_and_before_it_runs_anything() {
    let vmids = Vmids::up_to(8).emptied_by_each();
    let (running, quiet) = (Tag::new(), Tag::new());
    let vmid = vmids.activate(cpu(1), &running, no_flush);
    let mut own = 0;
    while vmids.rollovers() < 2 {
        vmids.activate(cpu(0), &Tag::new(), || own += 1);
    }
    assert_eq!(own, 2, "by the CPU whose rollovers they were");
    let mut other = 0;
    assert_eq!(vmids.activate(cpu(1), &running, || other += 1), vmid, "it ran all the time");
    vmids.activate(cpu(1), &quiet, || other += 1);
    assert_eq!(other, 1, "once, though two rollovers have been here");
}
