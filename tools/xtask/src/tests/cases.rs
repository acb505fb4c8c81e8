//! Running named tests one after the other, with a line for each and a progress bar where there is a terminal.

use super::summary::Summary;
use crate::console::{Console, Echo, Trouble};
use crate::paths;
use crate::process::interrupted;
use crate::run::Boot;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many of the console's last lines are shown of a test that failed.
const TAIL: usize = 30;

/// The tests that ran, and how they went.
pub(crate) struct Cases {
    summary: Summary,
    name: Option<String>,
    bar: ProgressBar,
    /// When each group began.
    groups: Vec<(String, Instant)>,
    /// Groups that ran beside these, and how long each took.
    beside: Vec<(String, Duration)>,
    /// What there was to say, where it is said later.
    held: Option<Mutex<Vec<String>>>,
}

impl Cases {
    /// Starts with no test; boots whose name does not contain `name` will be left out.
    pub(crate) fn new(name: Option<String>) -> Self {
        Self {
            summary: Summary::default(),
            name,
            bar: ProgressBar::hidden(),
            groups: Vec::new(),
            beside: Vec::new(),
            held: None,
        }
    }

    /// Starts with no test, for a group that runs beside others: what there is to say is said when it has ended
    /// ([`Self::absorb`]).
    pub(super) fn held() -> Self {
        Self { held: Some(Mutex::default()), ..Self::new(None) }
    }

    /// Says what was held by a group that ended then, and adds the counts.
    pub(super) fn absorb(&mut self, others: Self, ended: Instant) {
        self.bar.finish_and_clear();
        for text in others.held.into_iter().flat_map(|held| held.into_inner().unwrap_or_default()) {
            self.say(&text);
        }
        self.summary.add(others.summary);
        self.beside
            .extend(others.groups.into_iter().map(|(title, began)| (title, ended.duration_since(began))));
    }

    /// Begins a group of tests; `count` is only for the bar.
    pub(crate) fn group(&mut self, title: &str, count: usize) {
        self.bar.finish_and_clear();
        self.say(&format!("== {title}"));
        self.groups.push((title.to_owned(), Instant::now()));
        if self.held.is_some() {
            return;
        }
        // Where the output is no terminal, the bar draws nothing.
        self.bar = ProgressBar::new(count as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}") {
            self.bar.set_style(style);
        }
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// Shows what is being done.
    pub(crate) fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// Adds the counts of another runner.
    pub(crate) fn add(&mut self, name: &str, counts: Summary) {
        self.summary.add(counts);
        self.bar.inc(1);
        self.say(&format!("{} {name}: {counts}", if counts.failed == 0 { "ok  " } else { "FAIL" }));
    }

    /// Counts one test that is no boot, and says how it went: what there is to say of it, or why it failed.
    pub(crate) fn verdict(&mut self, name: &str, verdict: &Result<String, String>) {
        self.bar.inc(1);
        match verdict {
            Ok(text) => {
                self.summary.passed += 1;
                self.say(&format!("ok   {name}: {text}"));
            }
            Err(text) => {
                self.summary.failed += 1;
                self.say(&format!("FAIL {name}: {text}"));
            }
        }
    }

    /// Counts one failure that belongs to no boot.
    pub(crate) fn fail(&mut self, name: &str, error: &anyhow::Error) {
        self.summary.failed += 1;
        self.say(&format!("FAIL {name}: {error:#}"));
    }

    /// Boots a machine and plays a script with it: one test.
    pub(super) fn boot<B: Boot>(
        &mut self,
        name: &str,
        machine: impl FnOnce() -> Result<B>,
        script: impl FnOnce(&mut Console) -> Result<()>,
    ) {
        self.boot_and_count(name, machine, |console| {
            script(console).map(|()| Summary { passed: 1, failed: 0 })
        });
    }

    /// Boots a machine that counts tests of its own, which are added up instead.
    pub(super) fn boot_and_count<B: Boot>(
        &mut self,
        name: &str,
        machine: impl FnOnce() -> Result<B>,
        script: impl FnOnce(&mut Console) -> Result<Summary>,
    ) {
        if interrupted() || self.name.as_ref().is_some_and(|part| !name.contains(part.as_str())) {
            return;
        }
        self.doing(name);
        let started = Instant::now();
        let (counts, fault) = match play(name, machine, script) {
            Ok(played) => played,
            Err(error) => (Summary { passed: 0, failed: 1 }, Some(format!("{error:#}"))),
        };
        let seconds = started.elapsed().as_secs_f64();
        self.summary.add(counts);
        self.bar.inc(1);
        let ok = if counts.failed == 0 { "ok  " } else { "FAIL" };
        let of = if counts.passed + counts.failed == 1 { String::new() } else { format!(", {counts}") };
        let fault = fault.map(|fault| format!("\n     {}", fault.trim_end())).unwrap_or_default();
        self.say(&format!("{ok} {name} ({seconds:.1} s{of}){fault}"));
    }

    /// Ends the last group, says how long each has taken where there were several, and returns the counts.
    pub(crate) fn finish(self) -> Summary {
        self.bar.finish_and_clear();
        if self.groups.len() > 1 {
            println!("== how long each took");
            let ends = self.groups.iter().skip(1).map(|(_, began)| *began).chain([Instant::now()]);
            for ((title, began), end) in self.groups.iter().zip(ends) {
                println!("{:5.1} min  {title}", end.duration_since(*began).as_secs_f64() / 60.0);
            }
            for (title, time) in &self.beside {
                println!("{:5.1} min  {title}, beside another", time.as_secs_f64() / 60.0);
            }
        }
        self.summary
    }

    /// Prints above the bar, or plainly where there is none; or later.
    pub(crate) fn say(&self, text: &str) {
        match &self.held {
            Some(held) => held.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned()),
            None => self.bar.suspend(|| println!("{text}")),
        }
    }
}

/// Runs one boot. What its console printed goes to a file, and of a failure what tells most to the text returned.
fn play<B: Boot>(
    name: &str,
    machine: impl FnOnce() -> Result<B>,
    script: impl FnOnce(&mut Console) -> Result<Summary>,
) -> Result<(Summary, Option<String>)> {
    let mut prepared = machine()?;
    let mut console = prepared.console(Echo::Kept)?;
    let mut result = script(&mut console);
    let printed = console.log().to_owned();
    drop(console);
    if let Err(error) = prepared.judge() {
        result = result.and(Err(error));
    }
    let path = log_file(name)?;
    let command = prepared.line();
    fs::write(&path, format!("{command}\n{printed}")).context("cannot write the console's log")?;
    let log = format!("the whole console: {}", paths::display(&path));
    let error = match result {
        Ok(counts) if counts.failed == 0 => return Ok((counts, None)),
        Ok(counts) => {
            let failures: Vec<&str> = printed.lines().filter(|line| line.starts_with("FAIL ")).collect();
            return Ok((counts, Some(format!("{}\n     {log}", failures.join("\n     ")))));
        }
        Err(error) => error,
    };
    let backtrace = match error.downcast_ref::<Trouble>() {
        Some(Trouble::Report(report)) => report.backtrace(prepared.elf()),
        _ => String::new(),
    };
    let lines: Vec<&str> = printed.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n     | ");
    let text = format!("{error:#}\n{backtrace}     | {tail}\n     {log}");
    Ok((Summary { passed: 0, failed: 1 }, Some(text)))
}

/// Returns the file for a test's console, named after the test.
fn log_file(name: &str) -> Result<PathBuf> {
    let dir = paths::target().join("test-logs");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    Ok(dir.join(name.chars().map(plain).collect::<String>() + ".log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_beside_others_has_counted_and_said_is_counted_and_said() {
        let mut all = Cases::new(None);
        all.verdict("one", &Ok(String::new()));
        let mut beside = Cases::held();
        beside.group("beside", 2);
        beside.verdict("two", &Ok(String::new()));
        beside.verdict("three", &Err("wrong".to_owned()));
        let held = beside.held.as_ref().unwrap().lock().unwrap().clone();
        assert_eq!(held, ["== beside", "ok   two: ", "FAIL three: wrong"]);
        all.absorb(beside, Instant::now());
        assert_eq!((all.summary.passed, all.summary.failed), (2, 1));
        assert_eq!(all.beside.len(), 1);
    }
}
