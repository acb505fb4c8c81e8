//! One test, run as the code is and with one thing wrong.

use super::programs::{Match, Programs};
use super::row::{Hang, Named, Row, Runner, Tests};
use crate::nightly;
use crate::process::{Process, interrupted};
use crate::setup::{self, Need};
use crate::tests::Cases;
use crate::{paths, shell};
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long a run may take before it counts as one that does not end. The longest takes a twentieth of it.
const LIMIT: Duration = Duration::from_secs(120);

/// How a row went: who caught it, or each reason why it was not caught.
pub(super) type Verdict = Result<String, String>;

/// How a test went as the code is; whoever asks first runs it, and who else asks waits for that.
type AsItIs = Arc<OnceLock<Result<Run, String>>>;

/// The test programs, and what is known of their tests.
pub(super) struct Lab {
    programs: Programs,
    as_it_is: Mutex<BTreeMap<Named, AsItIs>>,
    /// How often each test must catch what is wrong.
    times: u32,
}

/// How a run went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Passed,
    Failed,
    Hung,
}

impl Lab {
    /// Builds the programs that the tests of `rows` are in.
    pub(super) fn build(cases: &Cases, rows: &[&Row], times: u32) -> anyhow::Result<Self> {
        cases.doing("building the tests");
        let tests: Vec<&Named> = rows
            .iter()
            .flat_map(|row| match &row.tests {
                Tests::Named(tests) => &tests[..],
                Tests::None(_) => &[],
            })
            .collect();
        if tests.iter().any(|test| test.runner == Runner::Miri) {
            setup::ensure(&[Need::Nightly])?;
        }
        Ok(Self { programs: Programs::build(&tests)?, as_it_is: Mutex::default(), times })
    }

    /// Tries each row, as many at a time as there are CPUs, and tells how it went, in the order of the rows.
    pub(super) fn try_rows(
        &self,
        variable: &str,
        rows: &[(&Row, &[Named])],
        mut tell: impl FnMut(&Row, &Verdict),
    ) {
        let next = AtomicUsize::new(0);
        let (sender, verdicts) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some((n, (row, tests))) = take(rows, next) {
                        if interrupted() || sender.send((n, self.try_row(variable, row, tests))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let (mut early, mut told) = (BTreeMap::new(), 0);
            for (n, verdict) in verdicts {
                early.insert(n, verdict);
                while let Some(verdict) = early.remove(&told) {
                    tell(rows[told].0, &verdict);
                    told += 1;
                }
            }
        });
    }

    /// Runs each test of the row: each must pass as the code is, and fail with `variable` set to the row's value.
    /// Returns who caught it, or each reason why it was not.
    fn try_row(&self, variable: &str, row: &Row, tests: &[Named]) -> Verdict {
        let (mut catchers, mut objections) = (Vec::new(), Vec::new());
        for test in tests {
            match self.try_test(variable, row, test) {
                Ok(text) => catchers.push(text),
                Err(error) => objections.push(format!("{error:#} ({})", row.place)),
            }
        }
        match objections.is_empty() {
            true => Ok(format!("caught by {}", catchers.join(", "))),
            false => Err(objections.join("\n     ")),
        }
    }

    /// Returns which test caught it and how fast; an error where it did not, or not each time.
    fn try_test(&self, variable: &str, row: &Row, test: &Named) -> anyhow::Result<String> {
        let found = self.programs.find(test)?;
        let name = &test.name;
        let as_it_is = self.as_it_is(test, &found).map_err(anyhow::Error::msg)?;
        if as_it_is != Run::Passed {
            bail!("{name} fails with nothing wrong: {}", paths::display(&log("as-it-is", test)?));
        }
        let log = log(&row.name, test)?;
        let mut longest = Duration::ZERO;
        let mut last = Run::Failed;
        for time in 1..=self.times {
            let started = Instant::now();
            last = run(&found, test, Some((variable, &row.value)), &log)?;
            longest = longest.max(started.elapsed());
            match (last, test.hang) {
                (Run::Failed, _) | (Run::Hung, Hang::Caught) => {}
                (Run::Hung, Hang::Error) => {
                    let seconds = LIMIT.as_secs();
                    bail!("{name} did not end within {seconds} s, and its row does not say that this counts")
                }
                (Run::Passed, _) if time == 1 => {
                    bail!("{name} passes all the same: {}", paths::display(&log))
                }
                (Run::Passed, _) => {
                    bail!("{name} catches it by luck: it passed when it was run for the {time}. time")
                }
            }
        }
        Ok(match last {
            Run::Hung => format!("{name}, which did not end"),
            _ => format!("{name} ({:.1} s)", longest.as_secs_f64()),
        })
    }

    fn as_it_is(&self, test: &Named, found: &[Match<'_>]) -> Result<Run, String> {
        let known = {
            let mut all = self.as_it_is.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(test.clone()).or_default().clone()
        };
        let go = || run(found, test, None, &log("as-it-is", test)?);
        known.get_or_init(|| go().map_err(|error| format!("{error:#}"))).clone()
    }
}

/// Takes the next of `rows`, with its number.
fn take<T: Copy>(rows: &[T], next: &AtomicUsize) -> Option<(usize, T)> {
    let n = next.fetch_add(1, Ordering::Relaxed);
    rows.get(n).map(|row| (n, *row))
}

/// Runs the tests, one program after the other, until one fails.
fn run(found: &[Match<'_>], test: &Named, wrong: Option<(&str, &str)>, log: &PathBuf) -> anyhow::Result<Run> {
    let file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    for found in found {
        let mut command = match test.runner {
            Runner::Miri => nightly::miri_test(&found.program.selection),
            Runner::Host | Runner::Loom => Command::new(&found.program.executable),
        };
        if test.runner == Runner::Miri {
            command.arg("--");
        }
        command.arg("--exact").args(&found.tests).current_dir(&found.program.folder);
        // Whoever runs us may have chosen something that is not meant here.
        command.env_remove("MEZZANINE_WEAKEN").env_remove("MEZZANINE_MUTANT");
        if let Some((variable, value)) = wrong {
            command.env(variable, value);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file.try_clone()?);
        match within_limit(command)? {
            Run::Passed => {}
            other => return Ok(other),
        }
    }
    Ok(Run::Passed)
}

/// Runs the command, and ends it with all that it has started if it takes too long or the user asks to stop.
fn within_limit(mut command: Command) -> anyhow::Result<Run> {
    let line = shell::line(&command);
    command.process_group(0);
    let mut process = Process::start(command)?;
    let started = Instant::now();
    loop {
        if let Some(status) =
            process.child().try_wait().with_context(|| format!("cannot wait for `{line}`"))?
        {
            return Ok(if status.success() { Run::Passed } else { Run::Failed });
        }
        if interrupted() || started.elapsed() > LIMIT {
            process.kill_group();
            if interrupted() {
                bail!("interrupted");
            }
            return Ok(Run::Hung);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the file for what a run of `test` prints, with `wrong` wrong.
fn log(wrong: &str, test: &Named) -> anyhow::Result<PathBuf> {
    let folder = paths::target().join("test-logs");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let runner = format!("{:?}", test.runner).to_lowercase();
    Ok(folder.join(format!("{wrong}-{}-{runner}.log", test.name.replace("::", "-"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_judged_by_its_exit_code() {
        assert_eq!(within_limit(Command::new("true")).unwrap(), Run::Passed);
        assert_eq!(within_limit(Command::new("false")).unwrap(), Run::Failed);
        assert!(within_limit(Command::new("/no/such/program")).is_err());
    }
}
