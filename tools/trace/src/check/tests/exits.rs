//! Traces of machines whose CPUs leave their guests to forget.

use super::*;

impl Story {
    /// [`Story::begins`], on CPUs that are interrupted. CPU 1 has the space loaded, too, and both have been in the guest and
    /// are outside.
    fn visited() -> Self {
        let mut story = Self::of_style(1, 0).with_a_block();
        story.then(1, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
        for cpu in [0, 1] {
            story.enters(cpu);
            story.leaves(cpu);
        }
        story
    }

    fn enters(&mut self, cpu: usize) {
        self.then(cpu, Kind::Enters, 0, [0; 3]);
    }

    fn leaves(&mut self, cpu: usize) {
        self.dsb(cpu, Reach::Nsh);
        self.then(cpu, Kind::Leaves, 0, [0; 3]);
    }

    fn forgets(&mut self, cpu: usize) {
        self.tlbi(cpu, Op::Vmalls12e1, 0);
        self.dsb(cpu, Reach::Nsh);
    }

    /// CPU 0 takes the block away.
    fn breaks(&mut self) {
        self.then(0, Kind::Write, 0, [TABLE, BLOCK, frozen()]);
        self.dsb(0, Reach::Ishst);
    }

    /// CPU 0 relies on it that nobody uses the block any more.
    fn relies(&mut self) {
        self.then(0, Kind::Write, 0, [TABLE, frozen(), 0]);
        self.then(0, Kind::Freed, 0, [0x5000_0000, 0x20_0000, 0]);
        self.then(0, Kind::Rests, 0, [0; 3]);
    }

    fn ends_well(self) {
        let report = self.ends();
        assert!(report.broken.is_none(), "{:?}", report.broken);
    }
}

#[test]
fn good_cpus_that_are_outside_and_forget_before_they_come_back() {
    let mut story = Story::visited();
    story.breaks();
    story.relies();
    for cpu in [1, 0] {
        story.forgets(cpu);
        story.enters(cpu);
        story.leaves(cpu);
    }
    story.enters(1); // nothing was taken away since
    story.ends_well();
}

#[test]
fn bad_a_cpu_that_comes_back_with_what_it_held() {
    for cpu in [0, 1] {
        let mut story = Story::visited();
        story.breaks();
        story.relies();
        story.enters(cpu);
        says(&story.ends(), "enters it with translations that were taken away while it was outside");
    }
    // Not waited for.
    let mut story = Story::visited();
    story.breaks();
    story.relies();
    story.tlbi(1, Op::Vmalls12e1, 0);
    story.enters(1);
    says(&story.ends(), "enters it with translations that were taken away while it was outside");
    // What leaves walk caches or combined entries alone.
    for op in [Op::Ipas2e1, Op::Vmalle1] {
        let mut story = Story::visited();
        story.breaks();
        story.relies();
        story.tlbi(1, op, 0);
        story.dsb(1, Reach::Nsh);
        story.enters(1);
        says(&story.ends(), "enters it with translations that were taken away while it was outside");
    }
}

#[test]
fn bad_who_relies_on_a_change_while_a_cpu_is_in_the_guest() {
    let mut story = Story::visited();
    story.enters(1);
    story.breaks();
    story.relies();
    says(&story.ends(), "stored before the invalidation was complete");
    // One that came in meanwhile, since nobody had asked it by then.
    let mut story = Story::visited();
    story.breaks();
    story.enters(1);
    story.relies();
    says(&story.ends(), "stored before the invalidation was complete");
}

#[test]
fn good_a_cpu_that_comes_and_goes_before_it_is_asked() {
    let mut story = Story::visited();
    story.enters(1);
    story.breaks();
    story.leaves(1);
    story.enters(1);
    story.leaves(1);
    story.relies();
    story.forgets(1);
    story.enters(1);
    story.ends_well();
}

#[test]
fn good_a_cpu_that_forgets_on_the_way_in_is_not_waited_for() {
    let mut story = Story::visited();
    story.breaks();
    story.forgets(1);
    story.enters(1);
    story.relies();
    story.ends_well();
}

#[test]
fn bad_what_was_forgotten_before_it_was_visible() {
    let mut story = Story::visited();
    story.tlbi(1, Op::Vmalls12e1, 0);
    story.breaks();
    story.dsb(1, Reach::Nsh);
    story.enters(1);
    story.relies();
    says(&story.ends(), "stored before the invalidation was complete");
    // And where it is outside when somebody relies on it, it has to forget anew.
    let mut story = Story::visited();
    story.tlbi(1, Op::Vmalls12e1, 0);
    story.breaks();
    story.relies();
    story.dsb(1, Reach::Nsh);
    story.enters(1);
    says(&story.ends(), "enters it with translations that were taken away while it was outside");
}

#[test]
fn bad_a_change_that_is_not_visible_when_it_is_relied_on() {
    let mut story = Story::visited();
    story.then(0, Kind::Write, 0, [TABLE, BLOCK, frozen()]);
    story.relies();
    says(&story.ends(), "stored before the invalidation was complete");
}

#[test]
fn bad_a_step_that_ends_and_has_not_waited_for_a_cpu_inside() {
    let weak = BLOCK & !(1 << 7); // not to be written any more
    for is_inside in [true, false] {
        let mut story = Story::visited();
        if is_inside {
            story.enters(1);
        }
        story.then(0, Kind::Write, 0, [TABLE, BLOCK, weak]);
        story.dsb(0, Reach::Ishst);
        story.then(0, Kind::Rests, 0, [0; 3]);
        if is_inside {
            says(&story.ends(), "a step ends and owes");
        } else {
            story.enters(1);
            says(&story.ends(), "enters it with translations that were taken away while it was outside");
        }
    }
}

#[test]
fn bad_a_cpu_that_says_it_is_outside_while_it_walks_and_one_that_does_not_say_so() {
    let mut story = Story::visited();
    story.enters(1);
    story.dsb(1, Reach::Ishst);
    story.then(1, Kind::Leaves, 0, [0; 3]);
    says(&story.ends(), "with table walks under way: no DSB");
    let mut story = Story::visited();
    story.enters(1);
    story.then(1, Kind::Vttbr, 0, [0; 3]);
    says(&story.ends(), "has not said that it left its guest");
}

#[test]
fn a_tag_is_used_anew_by_a_cpu_that_has_forgotten_whatever_others_hold() {
    for forgets in [true, false] {
        let mut story = Story::visited();
        second_space(&mut story);
        story.then(1, Kind::Vttbr, 0, [0; 3]);
        if forgets {
            story.tlbi(1, Op::Alle1, 0);
            story.dsb(1, Reach::Nsh);
        }
        // CPU 0 still holds the first space's.
        story.then(1, Kind::Vttbr, 0, [1 << 48 | SECOND, 0, 0]);
        story.enters(1);
        if forgets {
            story.ends_well();
        } else {
            says(&story.ends(), "under which it may hold translations of another space");
        }
    }
}

#[test]
fn a_space_ends_when_nobody_is_in_it_and_who_held_it_forgets() {
    let ends = |story: &mut Story| {
        for cpu in [0, 1] {
            story.then(cpu, Kind::Vttbr, 0, [0; 3]);
        }
        story.then(1, Kind::Grace, 0, [1, 0, 0]);
        story.then(1, Kind::GraceOver, 0, [1, 0, 0]);
        story.then(1, Kind::Freed, 0, [0x5000_0000, 0x20_0000, 0]);
        story.then(1, Kind::GiveBack, 0, [TABLE, 0x1000, OWNER]);
        story.then(1, Kind::GiveBack, 0, [ROOT, 0x2000, OWNER]);
        story.then(1, Kind::SpaceGone, 0, [0, OWNER, 0]);
    };
    let mut story = Story::visited();
    ends(&mut story);
    story.ends_well();
    let mut story = Story::visited();
    story.enters(0);
    story.then(1, Kind::Grace, 0, [1, 0, 0]);
    story.then(1, Kind::GraceOver, 0, [1, 0, 0]);
    story.then(1, Kind::Freed, 0, [0x5000_0000, 0x20_0000, 0]);
    says(&story.ends(), "is free, and an entry leads there");
}

#[test]
fn a_machine_is_joined_while_it_runs_where_nobody_knows_who_is_inside() {
    let mut story = Story::of_style(1, 1);
    story.then(0, Kind::Begin, 0, [0; 3]);
    story.then(0, Kind::There, 0, [ROOT, OWNER | 40 << 16 | 2 << 24, 0]);
    story.then(0, Kind::Known, 0, [ROOT, LINK, 0]);
    story.then(0, Kind::Known, 0, [TABLE, BLOCK, 0]);
    story.told(0b11);
    story.leaves(1);
    story.then(0, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
    story.breaks();
    story.relies();
    story.then(1, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
    story.enters(1);
    says(&story.ends(), "enters it with translations that were taken away while it was outside");
}
