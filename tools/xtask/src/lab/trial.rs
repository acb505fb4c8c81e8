//! One test, run as the code is and with one thing wrong.

use super::programs::{Match, Programs};
use super::row::{Hang, Named, Row, Runner, Tests};
use crate::nightly;
use crate::process::{Process, interrupted};
use crate::setup::{self, Need};
use crate::tests::Cases;
use crate::{paths, shell};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a run may take before it counts as one that does not end. The longest takes a twentieth of it.
const LIMIT: Duration = Duration::from_secs(120);

/// The test programs, and what is known of their tests.
pub(super) struct Lab {
    programs: Programs,
    /// How each test went as the code is.
    as_it_is: BTreeMap<Named, Run>,
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
    pub(super) fn build(cases: &Cases, rows: &[&Row]) -> Result<Self> {
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
        Ok(Self { programs: Programs::build(&tests)?, as_it_is: BTreeMap::new() })
    }

    /// Runs each test of the row: each must pass as the code is, and fail with `variable` set to the row's value.
    /// Returns who caught it, or each reason why it was not.
    pub(super) fn try_row(
        &mut self,
        variable: &str,
        row: &Row,
        tests: &[Named],
    ) -> std::result::Result<String, String> {
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

    /// Returns which test caught it and how fast; an error where none did.
    fn try_test(&mut self, variable: &str, row: &Row, test: &Named) -> Result<String> {
        let found = self.programs.find(test)?;
        let as_it_is = match self.as_it_is.get(test) {
            Some(run) => *run,
            None => {
                let run = run(&found, test, None, &log(&format!("as-it-is-{}", test.name))?)?;
                self.as_it_is.insert(test.clone(), run);
                run
            }
        };
        let name = &test.name;
        if as_it_is != Run::Passed {
            let log = paths::display(&log(&format!("as-it-is-{name}"))?);
            bail!("{name} fails with nothing wrong: {log}");
        }
        let started = Instant::now();
        let log = log(&format!("{}-{name}", row.name))?;
        let run = run(&found, test, Some((variable, &row.value)), &log)?;
        let seconds = started.elapsed().as_secs_f64();
        match (run, test.hang) {
            (Run::Failed, _) => Ok(format!("{name} ({seconds:.1} s)")),
            (Run::Hung, Hang::Caught) => Ok(format!("{name}, which did not end")),
            (Run::Hung, Hang::Error) => {
                bail!(
                    "{name} did not end within {} s, and its row does not say that this counts",
                    LIMIT.as_secs()
                )
            }
            (Run::Passed, _) => bail!("{name} passes all the same: {}", paths::display(&log)),
        }
    }
}

/// Runs the tests, one program after the other, until one fails.
fn run(found: &[Match<'_>], test: &Named, wrong: Option<(&str, &str)>, log: &PathBuf) -> Result<Run> {
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
fn within_limit(mut command: Command) -> Result<Run> {
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

/// Returns the file for what a run prints.
fn log(name: &str) -> Result<PathBuf> {
    let folder = paths::target().join("test-logs");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(format!("{name}.log")))
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
