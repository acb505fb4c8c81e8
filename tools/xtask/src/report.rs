//! The hypervisor's reports on the console: `[mz PANIC …]` to `[mz END]`, and `[mz FATAL] …`.

use crate::symbols::{Symbols, backtrace_line};
use std::fmt;
use std::path::Path;

/// Begins the report of a bug in the hypervisor.
const PANIC: &str = "[mz PANIC";
/// Begins the one line that says which input was bad.
const FATAL: &str = "[mz FATAL]";
/// Begins the statistics that are printed at power-off.
pub(crate) const STATS: &str = "[mz STATS]";
/// Ends a report of more than one line.
pub(crate) const END: &str = "[mz END]";

/// What the hypervisor said about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It found a bug in itself; all lines of the report.
    Panic(Vec<String>),
    /// It was given bad input; the message.
    Fatal(String),
}

/// Finds reports in a console, line by line.
#[derive(Default)]
pub(crate) struct Watch {
    panic: Option<Vec<String>>,
}

impl Watch {
    /// Takes the next line, and returns the report that it completes. A prefix is searched for anywhere in the line, for
    /// a guest may have left one unfinished.
    pub(crate) fn line(&mut self, line: &str) -> Option<Report> {
        if let Some(lines) = &mut self.panic {
            lines.push(line.to_owned());
            return if line.contains(END) { self.unfinished() } else { None };
        }
        if let Some(at) = line.find(PANIC) {
            self.panic = Some(vec![line[at..].to_owned()]);
            return None;
        }
        line.split_once(FATAL).map(|(_, message)| Report::Fatal(message.trim().to_owned()))
    }

    /// Tells whether a report has begun and not ended.
    pub(crate) const fn in_report(&self) -> bool {
        self.panic.is_some()
    }

    /// Ends a report whose last line does not come.
    pub(crate) fn unfinished(&mut self) -> Option<Report> {
        self.panic.take().map(Report::Panic)
    }
}

impl Report {
    /// Names the functions of the report's backtrace; empty if it has none, or if there is nothing to name them from.
    pub(crate) fn backtrace(&self, elf: Option<&Path>) -> String {
        let (Self::Panic(lines), Some(elf)) = (self, elf) else { return String::new() };
        let frames: Vec<_> = lines.iter().filter_map(|line| backtrace_line(line)).collect();
        if frames.is_empty() {
            return String::new();
        }
        let symbols = match Symbols::load(elf) {
            Ok(symbols) => symbols,
            Err(error) => return format!("backtrace: {error:#}\n"),
        };
        let mut out = format!("backtrace, from {}:\n", elf.display());
        for (number, address) in frames {
            let names = symbols.name(address);
            let mut names = names.iter().map(String::as_str);
            out += &format!("  #{number:<2} {}\n", names.next().unwrap_or("?"));
            names.for_each(|name| out += &format!("      in {name}\n"));
        }
        out
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(lines) => {
                let first = lines.first().map_or("", String::as_str).trim_start_matches(PANIC).trim_start();
                let (cpu, message) = first.split_once("] ").unwrap_or(("?", first));
                write!(f, "the hypervisor panicked on {cpu}: {message}")
            }
            Self::Fatal(message) => write!(f, "the hypervisor refused its input: {message}"),
        }
    }
}

/// Returns the lines `name: value` of the first block of statistics in a log; empty if there is none.
pub(crate) fn statistics(log: &str) -> Vec<(String, String)> {
    log.lines()
        .skip_while(|line| !line.contains(STATS))
        .skip(1)
        .take_while(|line| !line.contains(END))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(text: &str) -> Vec<Report> {
        let mut watch = Watch::default();
        text.lines().filter_map(|line| watch.line(line)).collect()
    }

    #[test]
    fn a_panic_is_complete_at_its_end_line() {
        let reports =
            watch("booting\nlogin: [mz PANIC c1] oops (a.rs:1)\nx0 = 0\n  #0 +0x40\n[mz END]\nmore\n");
        let [Report::Panic(lines)] = &reports[..] else { panic!("{reports:?}") };
        assert_eq!(lines[0], "[mz PANIC c1] oops (a.rs:1)");
        assert_eq!(lines.last().unwrap(), "[mz END]");
        assert_eq!(reports[0].to_string(), "the hypervisor panicked on c1: oops (a.rs:1)");
    }

    #[test]
    fn a_panic_without_an_end_is_still_a_report() {
        let mut watch = Watch::default();
        assert_eq!(watch.line("[mz PANIC c0] x"), None);
        assert!(watch.in_report());
        assert_eq!(watch.unfinished(), Some(Report::Panic(vec!["[mz PANIC c0] x".to_owned()])));
        assert!(!watch.in_report());
    }

    #[test]
    fn bad_input_is_reported_with_its_message() {
        assert_eq!(watch("[mz FATAL] no bundle\n"), [Report::Fatal("no bundle".to_owned())]);
    }

    #[test]
    fn statistics_are_read_by_name() {
        let log = "noise: 1\n[mz STATS]\nexits: 3\ntime to guest entry: 0.5 s\n[mz END]\nmore: 2\n";
        let stats =
            statistics(log).into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
        assert_eq!(stats, ["exits=3", "time to guest entry=0.5 s"]);
        assert!(statistics("exits: 3\n").is_empty());
    }

    #[test]
    fn statistics_are_no_report_of_trouble() {
        assert_eq!(watch("[mz STATS]\nexits: 3\n[mz END]\n"), []);
    }
}
