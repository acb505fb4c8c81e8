use super::*;
use crate::top::printed;
use crate::top::sample::Sample;
use stage2::Bbm;
use tracing_tool::tables::Shape;
use tracing_tool::tally::Recorded;
use tracing_tool::view::Look;
use types::Pa;

fn vm(name: &str, owner: u16, exits: u64) -> Vm {
    let shape = Shape::of(Pa::new(0x1000), 40 << 16 | 2 << 24, 0, Bbm::Level2 as u8).unwrap();
    let mut vm = Vm {
        name: name.to_owned(),
        owner,
        is_on: true,
        vcpus: 2,
        shape,
        memory: vec![(0x4000_0000, 24 << 20)],
        exits: [0; EXITS.len()],
        leaves: [512, 11, 0, 0, 0, 0],
        numbers: [0; Space::COUNT],
        blackouts: [0; 24],
    };
    vm.exits[0] = exits;
    vm.numbers[Space::Splits as usize] = exits / 10;
    vm.blackouts[10] = 77;
    vm
}

fn sample(ticks: u64, exits: u64) -> Sample {
    let mut numbers = [0; Machine::COUNT];
    numbers[Machine::ByAddress as usize] = exits;
    numbers[Machine::Frames as usize] = 1000;
    numbers[Machine::Guests as usize] = 500;
    numbers[Machine::Free as usize] = 250;
    let vms = vec![vm("linux", 1, exits), vm("other", 2, 0)];
    Sample {
        look: Look { ticks, hertz: 1_000_000, cpus: 4, numbers, banks: Vec::new(), vms, recorded: None },
        pins: vec![3, 0],
    }
}

fn line<'t>(text: &'t str, part: &str) -> &'t str {
    text.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part} in\n{text}"))
}

#[test]
fn the_screen_says_what_has_happened_since_the_look_before() {
    let mut shown = Shown::new(sample(60_000_000, 1000));
    assert!(line(&printed(&shown).unwrap(), "TLBI by address").contains("1000 (0/s)"));
    shown.next(sample(62_000_000, 3000));
    let text = printed(&shown).unwrap();
    assert!(line(&text, "on for").contains("4 CPUs, on for 1:02"), "{text}");
    assert!(line(&text, "TLBI by address").contains("3000 (1000/s)"), "{text}");
    let cells: Vec<_> = line(&text, "linux  ").trim_start_matches('│').split_whitespace().collect();
    // Name, vCPUs, memory, exits, faults, sizes, tables, pins, splits.
    assert_eq!(cells[..13], ["linux", "2", "24M", "1000", "0", "0", "11", "512", "0K", "3", "100", "0", "0"]);
    assert!(line(&text, "linux: exits a second").contains("3000 in all"), "{text}");
    assert!(line(&text, "hvc").contains("1000"), "{text}");
    assert!(line(&text, "1024 us").contains("77"), "{text}");
}

#[test]
fn a_bar_shows_who_has_the_frames() {
    let text = printed(&Shown::new(sample(1, 0))).unwrap();
    let bar = line(&text, "░");
    let count = |symbol| bar.chars().filter(|c| *c == symbol).count();
    assert_eq!((count('█'), count('░')), (59, 29));
}

#[test]
fn another_vm_can_be_chosen_and_no_further_than_the_last() {
    let mut shown = Shown::new(sample(1, 0));
    shown.choose(1);
    shown.choose(1);
    assert!(printed(&shown).unwrap().contains("other: exits a second"));
    shown.choose(-5);
    assert!(printed(&shown).unwrap().contains("linux: exits a second"));
}

#[test]
fn all_numbers_have_names_in_the_json() {
    let json = sample(2_000_000, 50).json();
    assert_eq!(
        (json["seconds"].as_f64(), json["machine"]["TLBI by address"].as_u64()),
        (Some(2.0), Some(50))
    );
    let vm = &json["VMs"][0];
    assert_eq!(
        (vm["name"].as_str(), vm["exits"]["hvc"].as_u64(), vm["pins"].as_u64()),
        (Some("linux"), Some(50), Some(3))
    );
    assert_eq!(vm["space"].as_object().unwrap().len(), Space::COUNT);
}

#[test]
fn a_trace_that_is_over_shows_what_has_happened_in_all() {
    let mut sample = sample(0, 4000);
    sample.look.recorded = Some(Recorded { records: 12_345, grace_periods: 67 });
    let text = printed(&Shown::in_all(sample)).unwrap();
    assert!(line(&text, "Mezzanine").contains("4 CPUs, 12345 records"), "{text}");
    assert!(line(&text, "TLBI by address").contains("TLBI by address 4000   by range"), "{text}");
    assert!(line(&text, "grace periods").contains("grace periods 67"), "{text}");
    assert!(!text.contains("/s") && !text.contains("free"), "{text}");
    let cells: Vec<_> = line(&text, "linux  ").trim_start_matches('│').split_whitespace().collect();
    assert_eq!((cells[3], cells[10]), ("4000", "400"), "exits and splits");
    assert!(line(&text, "linux: ").contains("linux: 4000 exits"), "{text}");
}
