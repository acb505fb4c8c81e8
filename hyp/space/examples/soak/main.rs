//! The adversarial stress of the page tables, and of whole spaces, for as long as one likes: `cargo xtask soak`.
//!
//! A run is a row of epochs, of tables alone or of spaces, each with a format, a break-before-make level, a way of waiting, a style of invalidation and a
//! pace of its own, all of which its number and the run's seed decide. An epoch's threads take turns as its seed says: so
//! `--seed S --epoch N` replays epoch `N` step by step.
//!
//! Ends with how often each race was met. From ten minutes on, a race that was met fewer than a thousand times is a failure:
//! what was not met was not tested.

mod epoch;
mod races;
#[path = "../../tests/world/mod.rs"]
mod world;

use epoch::Epoch;
use model::{Coverage, Report};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From this length on, races that were not met often enough count.
const LONG: Duration = Duration::from_secs(600);

/// What is asked for.
struct Wanted {
    length: Duration,
    seed: u64,
    /// This epoch alone.
    epoch: Option<u64>,
}

/// What came of it so far.
#[derive(Default)]
struct Outcome {
    epochs: u64,
    operations: u64,
    steps: u64,
    /// Of tables alone, and of spaces.
    tables: Coverage,
    spaces: Coverage,
    failure: Option<String>,
}

fn wanted() -> Result<Wanted, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let mut wanted = Wanted { length: LONG, seed: now, epoch: None };
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
            other => return Err(format!("what is `{other}`? Known: --minutes N, --seed S, --epoch N")),
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
        Some(number) => add(&outcome, &Epoch::number(wanted.seed, number)),
        None => soak(&wanted, &outcome, start),
    }
    let outcome = outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} operations in {} epochs, {:.0} a second; {} steps",
        outcome.operations,
        outcome.epochs,
        outcome.operations as f64 / seconds,
        outcome.steps
    );
    if let Some(failure) = outcome.failure {
        println!("{failure}");
        return ExitCode::from(1);
    }
    let short = races::print(&outcome.tables, &outcome.spaces);
    if wanted.epoch.is_none() && wanted.length >= LONG && short > 0 {
        println!("{short} races were met fewer than {} times", races::ENOUGH);
        return ExitCode::from(3);
    }
    ExitCode::SUCCESS
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
                    add(outcome, &Epoch::number(wanted.seed, number));
                    if lock(outcome).failure.is_some() {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn lock(outcome: &Mutex<Outcome>) -> std::sync::MutexGuard<'_, Outcome> {
    outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs one epoch and adds what came of it.
fn add(outcome: &Mutex<Outcome>, epoch: &Epoch) {
    let Report { failure, steps, operations, coverage } = epoch.run();
    let mut outcome = lock(outcome);
    outcome.epochs += 1;
    outcome.operations += operations;
    outcome.steps += steps;
    let of = if epoch.is_of_spaces() { &mut outcome.spaces } else { &mut outcome.tables };
    of.add(&coverage);
    if let Some(failure) = failure {
        outcome.failure.get_or_insert(format!("FAILED in {epoch}\n{failure}"));
    }
}
