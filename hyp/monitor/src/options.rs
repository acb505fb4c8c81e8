//! The hypervisor's own command line: `key=value` words in `/chosen/bootargs`.

use crate::provoke::Provoke;
use log::LevelFilter;

/// What the command line says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// `log=off|error|warn|info|debug|trace`; info where it does not say.
    pub log: LevelFilter,
    /// `provoke=panic|overflow|null|write-code|execute-data|undefined`: a bug to provoke, for tests of the report.
    pub provoke: Option<Provoke>,
}

/// A word of the command line that means nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unknown<'a>(pub &'a str);

impl Options {
    /// Reads a command line. Words that mean nothing are handed to `unknown` and otherwise ignored: a loader adds
    /// some that are for others.
    pub fn parse<'a>(line: &'a str, mut unknown: impl FnMut(Unknown<'a>)) -> Self {
        let mut options = Self { log: LevelFilter::Info, provoke: None };
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("log", level)) => match level.parse() {
                    Ok(level) => options.log = level,
                    Err(_) => unknown(Unknown(word)),
                },
                Some(("provoke", bug)) => match Provoke::parse(bug) {
                    Some(bug) => options.provoke = Some(bug),
                    None => unknown(Unknown(word)),
                },
                _ => unknown(Unknown(word)),
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn the_last_log_level_counts_and_other_words_are_told() {
        let mut others = Vec::new();
        let options = Options::parse(" log=debug quiet  log=off log=loud ", |u| others.push(u.0));
        assert_eq!(options, Options { log: LevelFilter::Off, provoke: None });
        assert_eq!(others, ["quiet", "log=loud"]);
    }

    #[test]
    fn an_empty_line_logs_at_info() {
        assert_eq!(
            Options::parse("", |_| panic!("no word")),
            Options { log: LevelFilter::Info, provoke: None }
        );
    }

    #[test]
    fn a_bug_can_be_asked_for_by_name() {
        let options =
            Options::parse("provoke=overflow provoke=nothing", |u| assert_eq!(u.0, "provoke=nothing"));
        assert_eq!(options.provoke, Some(Provoke::Overflow));
    }
}
