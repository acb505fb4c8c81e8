//! `cargo xtask miri` and `cargo xtask tsan`: the host's tests in an interpreter that knows what Rust allows, and under
//! ThreadSanitizer, which sees accesses that nothing orders. Both need a nightly compiler, of a date that is pinned.

use crate::process::interrupted;
use crate::setup::{self, NIGHTLY, Need};
use crate::tests::{AlreadySaid, Cases, Summary};
use crate::{paths, shell};
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// What Miri may do that it does not by default: take an address that was once a pointer for one again (memory is
/// addressed by number here), and read the clock and the environment (test runners do).
const MIRI_FLAGS: &str = "-Zmiri-permissive-provenance -Zmiri-disable-isolation";

/// One `cargo test`.
struct Part {
    name: &'static str,
    /// What cargo is told, up to the test's own arguments.
    arguments: &'static [&'static str],
    /// What the test is told: which of its tests to run or to leave out.
    choice: &'static [&'static str],
}

impl Part {
    /// All tests of these arguments.
    const fn whole(name: &'static str, arguments: &'static [&'static str]) -> Self {
        Self { name, arguments, choice: &[] }
    }
}

/// What the tests choose to run under Miri. It takes some thousand times as long as the machine itself, and finds what
/// `unsafe` code does wrong and what threads do unordered. So: `types`, and of the others what sets up little, `frames`
/// first, which has such code. `cargo xtask miri --all` runs all of the four crates, which takes hours.
const MIRI: &[Part] = &[
    Part::whole("types", &["-p", "mezzanine-types"]),
    Part::whole("stage2", &["-p", "mezzanine-stage2", "--lib"]),
    Part {
        name: "stage2: waiting for readers",
        arguments: &["-p", "mezzanine-stage2", "--test", "quiescence"],
        choice: &["--skip", "any_way::a_section_inside_a_section"],
    },
    Part::whole("stage2: what a caller may rely on", &["-p", "mezzanine-stage2", "--test", "linear"]),
    Part {
        name: "frames",
        arguments: &["-p", "mezzanine-frames", "--lib"],
        choice: &[
            "layout::",
            "order::",
            "only_guests_frames_can_be_written",
            "a_gibibyte_comes_as_one_run",
            "a_run_counts_as_unpublished",
            "reclaimed_memory_is_free",
            "several_cpus_never_hold_the_same_frame",
            "what_is_carved_out_has_the_size",
            "whatever_the_order_of_calls",
            "a_frozen_word_refuses_everybody",
            "a_retired_table_keeps_its_link",
            "a_word_is_frozen_only_by",
            "counts_end_at_their_limit",
            "of_a_pinner_and_a_mover",
            "a_folio_given_back_whole",
            "a_frame_given_back_twice",
            "pins_that_race_with_giving_back",
        ],
    },
    Part {
        name: "space",
        arguments: &["-p", "mezzanine-space", "--lib"],
        choice: &[
            "a_space_keeps_its_vmid_within_a_generation",
            "a_space_that_has_not_run_since_the_rollover",
            "a_fixed_region_has_its_memory_type",
            "overlapping_regions_are_refused",
            "regions_are_found_whatever_the_order",
            "what_the_guest_may_not_write_cannot_be_pinned",
            "destroying_an_empty_space",
        ],
    },
];

/// All of the crates of data structures.
const MIRI_ALL: &[Part] = &[
    Part::whole("types", &["-p", "mezzanine-types"]),
    Part::whole("stage2", &["-p", "mezzanine-stage2"]),
    Part::whole("frames", &["-p", "mezzanine-frames"]),
    Part::whole("space", &["-p", "mezzanine-space"]),
];

/// What runs under ThreadSanitizer: every test with threads of its own, and no other. It sees what nothing orders, of which
/// there is none on one thread; and it takes some twenty times as long as the machine itself.
const TSAN: &[Part] = &[
    Part::whole("stage2: threads", &["-p", "mezzanine-stage2", "--test", "threads"]),
    Part::whole("stage2: who is in a guest", &["-p", "mezzanine-stage2", "--test", "presence_threads"]),
    Part::whole("stage2: what a caller may rely on", &["-p", "mezzanine-stage2", "--test", "linear"]),
    Part {
        name: "frames",
        arguments: &["-p", "mezzanine-frames", "--lib"],
        choice: &[
            "several_cpus_never_hold_the_same_frame",
            "cpus_that_empty_each_others_stocks_lose_no_frame",
            "pins_that_race_with_giving_back",
            "a_block_pin_keeps_a_page_although_others_let_go_meanwhile",
            "of_a_pinner_and_a_mover",
            "splitters_on_every_cpu",
        ],
    },
    Part {
        name: "space",
        arguments: &["-p", "mezzanine-space", "--lib"],
        choice: &[
            "parallel::",
            "faults_and_discards_at_once",
            "who_has_read_a_leaf_before_a_space_dies",
            "pins_hold_under_moves_splits_collapses_and_unmaps",
            "a_stop_outlasts_every_section_that_saw_the_log_run",
            "no_cpu_is_left_with_more_rights_than_the_last_decision_gave",
            "a_fault_that_was_planned",
            "what_cpus_write_while_rounds_go_on",
            "another_region_that_changes_meanwhile",
            "readers_see_one_map_or_the_next",
            "a_table_on_its_way_back_is_never_taken_for_gone",
            "cpus_that_run_different_spaces_at_once",
            "more_spaces_than_8_bits_tell_apart",
        ],
    },
];

/// What `cargo xtask miri` is told.
#[derive(clap::Args, Default)]
pub(crate) struct MiriArgs {
    /// Every test of the crates of data structures, which takes hours, not only those that `cargo xtask test` runs
    #[arg(long)]
    all: bool,
}

/// Runs Miri's tests and prints the counts.
pub(crate) fn run_miri(args: &MiriArgs) -> Result<()> {
    let parts = if args.all { MIRI_ALL } else { MIRI };
    run(|cases| add_parts(cases, parts))
}

/// Runs ThreadSanitizer's tests and prints the counts.
pub(crate) fn run_tsan() -> Result<()> {
    run(add_tsan)
}

fn run(add: impl FnOnce(&mut Cases) -> Result<()>) -> Result<()> {
    let mut cases = Cases::new(None);
    add(&mut cases)?;
    let summary = cases.finish();
    println!("{summary}");
    if summary.failed > 0 { Err(AlreadySaid.into()) } else { Ok(()) }
}

/// Adds Miri's tests to `cases`.
pub(crate) fn add_miri(cases: &mut Cases) -> Result<()> {
    add_parts(cases, MIRI)
}

fn add_parts(cases: &mut Cases, parts: &[Part]) -> Result<()> {
    cases.group("under Miri", parts.len());
    setup::ensure(&[Need::Nightly])?;
    for part in parts {
        count(cases, part, || miri_test(part.arguments))?;
    }
    Ok(())
}

/// Adds ThreadSanitizer's tests to `cases`.
pub(crate) fn add_tsan(cases: &mut Cases) -> Result<()> {
    cases.group("under ThreadSanitizer", TSAN.len());
    setup::ensure(&[Need::Nightly])?;
    let host = host()?;
    for part in TSAN {
        count(cases, part, || tsan_test(&host, part.arguments))?;
    }
    Ok(())
}

/// Returns a `cargo miri test`. What chooses an ordering or a mutant comes through to the tests.
pub(crate) fn miri_test<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    let mut command = cargo_nightly();
    command.env("MIRIFLAGS", MIRI_FLAGS).env("CARGO_TARGET_DIR", paths::target().join("miri"));
    command.args(["miri", "test"]).args(arguments);
    command
}

/// Returns a `cargo test` under ThreadSanitizer. The standard library is built for it, too: it would be blind to what
/// that orders.
fn tsan_test(host: &str, arguments: &[&str]) -> Command {
    let mut command = cargo_nightly();
    command.env("RUSTFLAGS", "-Zsanitizer=thread").env("CARGO_TARGET_DIR", paths::target().join("tsan"));
    command.args(["test", "-Zbuild-std", "--target", host]).args(arguments);
    command
}

fn cargo_nightly() -> Command {
    let mut command = Command::new("rustup");
    command.current_dir(paths::root()).args(["run", NIGHTLY, "cargo"]);
    command
}

/// Returns the target that the compiler itself runs on.
fn host() -> Result<String> {
    let text = shell::output(Command::new("rustup").args(["run", NIGHTLY, "rustc", "-vV"]))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what it runs on")?.to_owned())
}

/// Runs one part, and counts its tests; the output is shown only if something failed.
fn count(cases: &mut Cases, part: &Part, command: impl FnOnce() -> Command) -> Result<()> {
    if interrupted() {
        return Ok(());
    }
    cases.doing(part.name);
    let mut command = command();
    command.arg("--no-fail-fast").arg("--").args(part.choice).stdin(Stdio::null());
    let line = shell::line(&command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut counts = Summary::of_cargo_test(&text);
    if output.status.success() {
        for name in unmatched(part.choice, &text) {
            cases.say(&format!("{line}\nno test is called `{name}`, which {} names", file!()));
            counts.failed += 1;
        }
    } else {
        cases.say(&format!("{line}\n{text}\n{}", String::from_utf8_lossy(&output.stderr)));
        counts.failed = counts.failed.max(1);
    }
    cases.add(part.name, counts);
    Ok(())
}

/// Returns what of a choice has chosen nothing, by what a run that has passed has printed: a name that is in no test's, and
/// every name to be left out where nothing was.
fn unmatched<'c>(choice: &[&'c str], output: &str) -> Vec<&'c str> {
    let ran: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix("test ")).collect();
    let left_out = output.lines().any(|line| {
        let filtered = line.split("; ").find_map(|part| part.strip_suffix(" filtered out"));
        filtered.is_some_and(|count| count != "0")
    });
    let mut unmatched = Vec::new();
    let mut names = choice.iter();
    while let Some(name) = names.next() {
        match *name {
            "--skip" => unmatched.extend(names.next().filter(|_| !left_out)),
            name if ran.iter().any(|test| test.contains(name)) => {}
            name => unmatched.push(name),
        }
    }
    unmatched
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\nrunning 2 tests\ntest order::an_order ... ok\ntest tests::a_frame_given_back_twice ... ok\n\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s\n";

    #[test]
    fn a_name_that_chooses_no_test_is_found() {
        assert_eq!(unmatched(&["order::", "a_frame_given_back"], OUTPUT), [""; 0]);
        assert_eq!(unmatched(&["order::", "a_frame_that_was_renamed"], OUTPUT), ["a_frame_that_was_renamed"]);
    }

    #[test]
    fn a_name_to_be_left_out_that_leaves_nothing_out_is_found() {
        assert_eq!(unmatched(&["--skip", "long"], OUTPUT), [""; 0]);
        let all = OUTPUT.replace("7 filtered out", "0 filtered out");
        assert_eq!(unmatched(&["--skip", "long"], &all), ["long"]);
    }
}
