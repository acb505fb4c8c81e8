//! What the guest tests say of a board: its interrupts, its caches, and what stage 2 has, tried and compared with what the CPUs
//! say they have.

use super::{Report, VCPUS, Verdict};
use crate::board::Board;
use crate::console::{Console, Echo};
use crate::payload;
use crate::report;
use crate::tests::Summary;
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;

/// A payload's run.
struct Run {
    name: String,
    log: String,
    counts: Summary,
}

/// What tests say of one thing, by the payload and by their names.
struct Group {
    what: &'static str,
    tests: &'static [(&'static str, &'static str)],
}

const GROUPS: &[Group] = &[
    Group {
        what: "SGI",
        tests: &[
            ("devices", "sgis_to_self_arrive_once"),
            ("devices", "an_sgi_sent_again_before_it_is_taken_comes_once"),
            ("devices", "sgis_to_one_vcpu_arrive_there_once"),
            ("devices", "sgis_to_all_others_miss_nobody"),
            ("devices", "a_token_goes_round"),
        ],
    },
    Group {
        what: "PPI (timers)",
        tests: &[
            ("devices", "timers_fire_once_and_not_early"),
            ("devices", "a_timer_fires_again_until_it_is_quieted"),
            ("devices", "a_disabled_interrupt_stays_pending"),
            ("devices", "wfi_ends_with_a_timer"),
        ],
    },
    Group {
        what: "SPI",
        tests: &[
            ("devices", "pending_then_active_then_neither"),
            ("devices", "an_active_interrupt_does_not_come_again"),
            ("devices", "eoi_and_deactivation_can_be_two_steps"),
            ("devices", "spis_go_where_they_are_routed"),
            ("devices", "the_transmit_interrupt_is_a_level"),
        ],
    },
    Group {
        what: "list registers",
        tests: &[
            ("devices", "masked_priorities_wait"),
            ("devices", "a_more_urgent_interrupt_preempts"),
            ("devices", "more_interrupts_than_list_registers_come_in_order"),
        ],
    },
    Group {
        what: "cache maintenance: code that is written, the MMU off, set and way",
        tests: &[
            ("memory", "code_written_by_one_vcpu_runs_on_all"),
            ("memory", "what_is_written_with_the_mmu_off_is_seen_with_it_on"),
            ("sysregs", "set_way_maintenance_does_no_harm"),
        ],
    },
];

/// Runs all guest tests, and adds what they say to the report. `features` is what the hypervisor has found the CPUs to have.
pub(super) fn add(board: Board, features: &str, report: &mut Report) {
    let mut runs = Vec::new();
    report.add("guest tests", run_all(board, &mut runs));
    for group in GROUPS {
        report.add(group.what, said(&runs, group.tests));
    }
    report.add("maintenance interrupt", maintenance(&runs));
    let has = |name: &str| features.split(", ").any(|feature| feature == name);
    let updates = features.split(", ").find_map(|feature| feature.strip_prefix("hardware updates "));
    let updates = updates.unwrap_or("none");
    report.add("stage 2, tried: access flag", by_itself(&runs, "access flag", updates != "none"));
    report.add("stage 2, tried: dirty state", by_itself(&runs, "dirty state", updates.ends_with("dirty")));
    report.add("stage 2, tried: BBM level", sizes(&runs, features));
    report.add("stage 2, tried: level hints (TTL)", hints(&runs, has("TTL")));
    report.add("stage 2, tried: TLB invalidation by range", ranges(&runs, has("RANGE_TLBI")));
    report.add("stage 2, tried: forced write-back (FWB)", write_back(&runs, has("FWB")));
}

/// Runs every payload; those that end are in `runs`, whatever the others do.
fn run_all(board: Board, runs: &mut Vec<Run>) -> Result<(Verdict, String)> {
    let cpu = board.cpu(None)?;
    let (mut sum, mut trouble) = (Summary::default(), Vec::new());
    for payload in payload::build()? {
        let prepared = payload.machine(board, (&cpu, VCPUS), VCPUS, payload::MEMORY, "")?;
        let mut console = Console::piped(&prepared.machine, Echo::Kept)?;
        match payload::counts(&mut console) {
            Ok(counts) => {
                sum.add(counts);
                runs.push(Run { name: payload.name(), log: console.log().to_owned(), counts });
            }
            Err(error) => trouble.push(format!("{}: {error:#}", payload.name())),
        }
    }
    let failed = runs.iter().filter(|run| run.counts.failed != 0).map(|run| format!("{} failed", run.name));
    trouble.extend(failed);
    ensure!(trouble.is_empty(), "{sum}; {}", trouble.join("; "));
    let skipped: Vec<&str> = runs.iter().flat_map(|run| run.log.lines()).filter_map(skip).collect();
    let skipped = match skipped.as_slice() {
        [] => String::new(),
        skipped => format!("; skipped: {}", skipped.join("; ")),
    };
    Ok((Verdict::Passed, format!("{sum}, {VCPUS} vCPUs{skipped}")))
}

fn skip(line: &str) -> Option<&str> {
    line.strip_prefix("SKIP ")
}

/// Finds the line about a test: how it went, and why.
fn line<'r>(runs: &'r [Run], payload: &str, test: &str) -> Result<(&'r str, &'r str)> {
    let run = runs.iter().find(|run| run.name == payload);
    let run = run.with_context(|| format!("{payload} has not come to its end"))?;
    let found = run.log.lines().find_map(|line| {
        let (verdict, rest) = line.split_once(' ')?;
        let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
        let name = name.rsplit("::").next()?;
        (name == test && matches!(verdict, "PASS" | "FAIL" | "SKIP")).then_some((verdict, why))
    });
    found.with_context(|| format!("{payload} has no test {test}"))
}

/// Sums up what tests say of one thing.
fn said(runs: &[Run], tests: &[(&str, &str)]) -> Result<(Verdict, String)> {
    let (mut passed, mut skipped) = (0, Vec::new());
    for (payload, test) in tests {
        match line(runs, payload, test)? {
            ("PASS", _) => passed += 1,
            ("SKIP", why) => skipped.push(format!("; {test} skipped: {why}")),
            (_, why) => bail!("{test}: {why}"),
        }
    }
    let verdict = if passed == 0 { Verdict::Absent } else { Verdict::Passed };
    Ok((verdict, format!("{passed} of {} tests{}", tests.len(), skipped.concat())))
}

/// Adds up what the hypervisor has counted under a name in all runs.
fn counted(runs: &[Run], name: &str) -> u64 {
    let all = runs.iter().flat_map(|run| report::statistics(&run.log));
    all.filter(|(found, _)| found == name).filter_map(|(_, count)| count.parse::<u64>().ok()).sum()
}

fn maintenance(runs: &[Run]) -> Result<(Verdict, String)> {
    let taken = counted(runs, "payload exits maintenance");
    ensure!(taken != 0, "none has come, and there were more interrupts than list registers");
    Ok((Verdict::Passed, format!("{taken} taken")))
}

/// Returns what a payload has measured: faults, and of how many.
fn measured(runs: &[Run], what: &str) -> Result<(u64, u64)> {
    let pattern = Regex::new(&format!(r"measured: {what}: (\d+) faults for (\d+)"))?;
    let found = runs.iter().find_map(|run| pattern.captures(&run.log));
    let found = found.with_context(|| format!("nothing was measured of the {what}"))?;
    Ok((found[1].parse()?, found[2].parse()?))
}

/// Compares what hardware should do by itself with how many faults it took.
fn by_itself(runs: &[Run], what: &str, is_there: bool) -> Result<(Verdict, String)> {
    let (faults, pages) = measured(runs, what)?;
    let detail = format!("{faults} faults for {pages} pages");
    match is_there {
        true => {
            ensure!(faults == 0, "{detail}, and the CPUs say that they need none");
            Ok((Verdict::Passed, detail))
        }
        false => {
            ensure!(faults == pages, "{detail}, and the CPUs say that they need one for each");
            Ok((Verdict::Absent, format!("{detail}, as the CPUs say")))
        }
    }
}

/// Compares the level of break-before-make with the faults of a vCPU that writes meanwhile.
fn sizes(runs: &[Run], features: &str) -> Result<(Verdict, String)> {
    let level = features.split(", ").find_map(|feature| feature.strip_prefix("BBM level "));
    let level: u8 = level.context("no level was found")?.parse()?;
    let (faults, splits) = measured(runs, "change of size")?;
    let detail = format!("level {level}: {faults} faults of a vCPU that writes, in {splits} splits");
    ensure!(splits != 0, "nothing was split");
    ensure!(level < 2 || faults == 0, "{detail}, and at this level an entry is never broken");
    Ok((if level == 0 { Verdict::Absent } else { Verdict::Passed }, detail))
}

/// The tests that would see what an invalidation has left.
const STALE: &[(&str, &str)] = &[
    ("drive", "what_is_read_only_is_not_written"),
    ("drive", "a_right_that_is_taken_is_gone_on_every_vcpu"),
    ("drive", "every_page_keeps_its_contents_through_split_move_and_collapse"),
];

fn hints(runs: &[Run], is_there: bool) -> Result<(Verdict, String)> {
    let (verdict, detail) = said(runs, STALE)?;
    let count = counted(runs, "TLBI by address");
    ensure!(count != 0, "nothing was invalidated by address");
    let verdict = if is_there { verdict } else { Verdict::Absent };
    Ok((verdict, format!("{count} by address, {detail} found nothing stale")))
}

fn ranges(runs: &[Run], is_there: bool) -> Result<(Verdict, String)> {
    let (verdict, detail) = said(runs, STALE)?;
    let count = counted(runs, "TLBI by range");
    ensure!(is_there == (count != 0), "{count} by range, and the CPUs say otherwise");
    let verdict = if is_there { verdict } else { Verdict::Absent };
    Ok((verdict, format!("{count} by range, {detail} found nothing stale")))
}

fn write_back(runs: &[Run], is_there: bool) -> Result<(Verdict, String)> {
    let tests = [("memory", "what_is_written_with_the_mmu_off_is_seen_with_it_on")];
    let (verdict, detail) = said(runs, &tests)?;
    match is_there {
        true => Ok((verdict, format!("{detail}: a guest without caches sees what one with caches wrote"))),
        false => Ok((Verdict::Absent, format!("{detail}, by maintenance"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(name: &str, log: &str) -> [Run; 1] {
        [Run { name: name.to_owned(), log: log.to_owned(), counts: Summary::default() }]
    }

    #[test]
    fn a_group_fails_with_the_first_of_its_tests() {
        let runs = runs("devices", "PASS a\nSKIP b: no such thing\nFAIL m::c: why\n");
        let of = |names: &[&'static str]| {
            let tests: Vec<_> = names.iter().map(|name| ("devices", *name)).collect();
            said(&runs, &tests).map_err(|error| error.to_string())
        };
        assert_eq!(of(&["a"]), Ok((Verdict::Passed, "1 of 1 tests".to_owned())));
        assert_eq!(
            of(&["a", "b"]),
            Ok((Verdict::Passed, "1 of 2 tests; b skipped: no such thing".to_owned()))
        );
        assert_eq!(of(&["a", "c"]), Err("c: why".to_owned()));
        assert_eq!(of(&["d"]), Err("devices has no test d".to_owned()));
    }

    #[test]
    fn what_the_cpus_say_and_what_was_measured_must_agree() {
        let with =
            |faults: u64| runs("drive", &format!("  measured: access flag: {faults} faults for 64 pages\n"));
        let verdict =
            |faults, is_there| by_itself(&with(faults), "access flag", is_there).map(|found| found.0).ok();
        assert_eq!(verdict(0, true), Some(Verdict::Passed));
        assert_eq!(verdict(64, false), Some(Verdict::Absent));
        assert_eq!((verdict(64, true), verdict(0, false)), (None, None));
    }
}
