//! The adversarial stress of the page tables, and of whole spaces, for as long as one likes: `cargo xtask soak`.
//!
//! A run is a row of epochs, of tables alone or of spaces, each with a format, a break-before-make level, a way of waiting,
//! a style of invalidation and a pace of its own, all of which its number and the run's seed decide. Three epochs in four are about
//! one of the races that were met too rarely so far, if there are any: everybody does what it takes. An epoch's threads take
//! turns as its seed says: so `--seed S --epoch N`, with `--race R` where it was about one, replays it step by step.
//!
//! Ends with how often each race was met. From ten minutes on, a race that was met fewer than a thousand times is a failure:
//! what was not met was not tested.

mod epoch;
mod races;
#[path = "../../tests/world/mod.rs"]
mod world;

use epoch::Epoch;
use model::{Dice, Report};
use races::{Race, Seen};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From this length on, a race that was not met often enough is a failure.
const LONG: Duration = Duration::from_secs(600);
/// How often a race must be met in that time to count as tested.
const ENOUGH: u64 = 1000;

/// What is asked for.
struct Wanted {
    length: Duration,
    seed: u64,
    /// This epoch alone.
    epoch: Option<u64>,
    /// What it is about.
    race: Option<&'static Race>,
}

impl Wanted {
    /// How often a race must be met in a run of this length.
    fn enough(&self) -> u64 {
        let part = self.length.as_secs_f64() / LONG.as_secs_f64();
        (ENOUGH as f64 * part.min(1.0)).ceil() as u64
    }
}

/// What came of it so far.
#[derive(Default)]
struct Outcome {
    epochs: u64,
    operations: u64,
    steps: u64,
    seen: Seen,
    /// The epoch that took longest, and how long.
    slowest: Option<(Duration, Epoch)>,
    /// What the time went to: epochs of which kind, and how many.
    times: BTreeMap<String, (u64, Duration)>,
    failure: Option<Failed>,
}

/// What went wrong first.
struct Failed {
    epoch: Epoch,
    failure: String,
}

fn wanted() -> Result<Wanted, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let mut wanted = Wanted { length: LONG, seed: now, epoch: None, race: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} wants a number"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} wants a number, and not `{value}`"));
        match name.as_str() {
            "--minutes" => {
                let minutes: f64 = value.parse().map_err(|_| format!("{name} wants a number of minutes"))?;
                wanted.length =
                    Duration::try_from_secs_f64(minutes * 60.0).map_err(|error| error.to_string())?;
            }
            "--seed" => wanted.seed = number()?,
            "--epoch" => wanted.epoch = Some(number()?),
            "--race" => {
                let race = Race::find(&value);
                wanted.race = Some(race.ok_or_else(|| format!("no race is called `{value}`"))?);
            }
            other => {
                let known = "--minutes N, --seed S, --epoch N, --race R";
                return Err(format!("what is `{other}`? Known: {known}"));
            }
        }
    }
    Ok(wanted)
}

fn main() -> ExitCode {
    let wanted = match wanted() {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    println!("seed {}", wanted.seed);
    let outcome = Mutex::new(Outcome::default());
    let start = Instant::now();
    match wanted.epoch {
        Some(number) => add(&outcome, Epoch::number(wanted.seed, number, wanted.race)),
        None => soak(&wanted, &outcome, start),
    }
    let outcome = outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} operations in {} epochs and {seconds:.0} seconds, {:.0} a second; {} steps",
        outcome.operations,
        outcome.epochs,
        outcome.operations as f64 / seconds,
        outcome.steps
    );
    let all: Duration = outcome.times.values().map(|(_, time)| *time).sum();
    for (of, (epochs, time)) in &outcome.times {
        let part = time.as_secs_f64() / all.as_secs_f64().max(f64::EPSILON);
        println!("{:>10.1} % of the time for {epochs} epochs of {of}", part * 100.0);
    }
    if let Some((time, epoch)) = outcome.slowest {
        println!("the slowest took {:.1} seconds: {epoch}", time.as_secs_f64());
    }
    if let Some(failed) = outcome.failure {
        tell(&failed, wanted.epoch.is_some());
        return ExitCode::from(1);
    }
    outcome.seen.print(wanted.enough());
    if wanted.epoch.is_some() {
        return ExitCode::SUCCESS;
    }
    let rare = outcome.seen.rare(wanted.enough());
    if rare.is_empty() {
        println!("\nnothing was found, and every race was met at least {} times", wanted.enough());
        return ExitCode::SUCCESS;
    }
    println!("\nnothing was found, but {} races were met fewer than {} times:", rare.len(), wanted.enough());
    for (race, met) in rare {
        println!("{met:>10}  {race}");
    }
    if wanted.length >= LONG { ExitCode::from(3) } else { ExitCode::SUCCESS }
}

/// Says what went wrong; and where this was not a replay, whether one ends in the same way.
fn tell(Failed { epoch, failure }: &Failed, is_replay: bool) {
    println!("FAILED in {epoch}\n{failure}");
    if is_replay {
        return;
    }
    let again = epoch.run().failure.map(|failure| failure.to_string());
    let is_same = again.as_ref() == Some(failure);
    println!("\nreplay: {}", epoch.replay());
    println!(
        "{}",
        if is_same {
            "That was tried once: it ends in the same way, at the same step."
        } else {
            "That was tried once, and did not end in the same way: something depends on more than the seed."
        }
    );
}

/// Runs epochs on every core until the time is over, or one fails.
fn soak(wanted: &Wanted, outcome: &Mutex<Outcome>, start: Instant) {
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && start.elapsed() < wanted.length {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let race = about(wanted, outcome, number);
                    add(outcome, Epoch::number(wanted.seed, number, race));
                    if lock(outcome).failure.is_some() {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Chooses what an epoch is about: one in four of anything, the others of what was too rare so far.
fn about(wanted: &Wanted, outcome: &Mutex<Outcome>, number: u64) -> Option<&'static Race> {
    if number.is_multiple_of(4) {
        return None;
    }
    let rare = lock(outcome).seen.rare(wanted.enough());
    let mut dice = Dice::new(wanted.seed ^ number);
    if rare.is_empty() { None } else { Some(dice.pick(&rare).0) }
}

fn lock(outcome: &Mutex<Outcome>) -> std::sync::MutexGuard<'_, Outcome> {
    outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs one epoch and adds what came of it.
fn add(outcome: &Mutex<Outcome>, epoch: Epoch) {
    let start = Instant::now();
    let Report { failure, steps, operations, coverage } = epoch.run();
    let time = start.elapsed();
    let mut outcome = lock(outcome);
    outcome.epochs += 1;
    let kind = outcome.times.entry(epoch.of_what()).or_default();
    *kind = (kind.0 + 1, kind.1 + time);
    outcome.operations += operations;
    outcome.steps += steps;
    let seen = &mut outcome.seen;
    let of = if epoch.is_of_spaces() { &mut seen.spaces } else { &mut seen.tables };
    of.add(&coverage);
    if let Some(failure) = failure {
        outcome.failure.get_or_insert(Failed { epoch, failure: failure.to_string() });
    } else if outcome.slowest.as_ref().is_none_or(|(slowest, _)| *slowest < time) {
        outcome.slowest = Some((time, epoch));
    }
}
