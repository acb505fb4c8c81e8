//! The manual, `docs/hypercalls.md`, says of each call and each status what the table and the code say.

use abi::answers::CALLS;
use abi::{RANGE_64, Status, calls, share};
use std::collections::{BTreeMap, BTreeSet};

const MANUAL: &str = include_str!("../../../docs/hypercalls.md");

/// Returns the rows of tables that have so many cells.
fn rows(cells: usize) -> impl Iterator<Item = Vec<&'static str>> {
    let rows = MANUAL.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>()).filter(move |row| row.len() == cells)
}

/// Returns what stands between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn name(cell: &str) -> &str {
    quoted(cell).next().unwrap_or_default()
}

fn status(name: &str) -> Option<Status> {
    Status::ALL.iter().copied().find(|status| format!("{status:?}") == name)
}

#[test]
fn every_call_has_its_number_and_says_whether_it_is_on_a_range() {
    let mut found = BTreeMap::new();
    // Number, name, perhaps whether it is on a range, what it does.
    for row in rows(3).chain(rows(4)) {
        let Ok(number) = u32::from_str_radix(name(row[0]), 16) else { continue };
        let on_range = row.len() == 4 && row[2] == "yes";
        assert!(found.insert(RANGE_64 | number, (name(row[1]), on_range)).is_none(), "{row:?}");
    }
    let expected =
        CALLS.iter().map(|call| (call.function, (call.name, calls::ON_RANGES.contains(&call.function))));
    assert_eq!(found, expected.collect());
}

#[test]
fn every_call_names_every_status_that_it_may_answer() {
    let mut found = BTreeMap::new();
    for row in rows(4).filter(|row| CALLS.iter().any(|call| call.name == name(row[0]))) {
        let answers: BTreeSet<_> = quoted(row[3]).filter_map(status).collect();
        assert!(found.insert(name(row[0]), answers).is_none(), "{row:?}");
    }
    for call in CALLS {
        let mut answers = found.remove(call.name).unwrap_or_else(|| panic!("{} is not there", call.name));
        answers.insert(Status::Success);
        if calls::ON_RANGES.contains(&call.function) {
            answers.extend([Status::InvalidParameter, Status::NotMemory, Status::Busy]);
        }
        let expected: BTreeSet<_> = call.answers.iter().copied().collect();
        assert_eq!(answers, expected, "{}", call.name);
    }
    assert_eq!(found.len(), 0);
}

#[test]
fn every_status_has_its_number() {
    let numbered = rows(3).filter_map(|row| {
        let number: i64 = row[0].replace('−', "-").parse().ok()?;
        Some((name(row[1]).to_string(), number))
    });
    let found: BTreeMap<_, _> = numbered.collect();
    let expected = Status::ALL.iter().map(|status| (format!("{status:?}"), *status as i64));
    assert_eq!(found, expected.collect());
}

#[test]
fn limits_are_as_they_are_said_to_be() {
    for (text, is) in [
        ("256 handles", calls::HANDLES == 256),
        ("at most 256 KiB", calls::DMA_MOST == 256 << 10),
        ("at most eight under way", calls::TRANSFERS == 8),
        ("a buffer of 8 KiB", calls::BITMAP_BYTES == 8 << 10),
        ("at most eight offers", share::OFFERS == 8),
        (
            "a window of 16 MiB at `0x1000_0000`",
            share::WINDOW == 0x1000_0000 && share::WINDOW_BYTES == 16 << 20,
        ),
        ("up to 64 KiB", share::STEP_BYTES == 64 << 10),
    ] {
        assert!(is && MANUAL.contains(text), "{text}");
    }
}
