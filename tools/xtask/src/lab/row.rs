//! Rows of a Markdown table whose column `test` names the tests that catch something.
//!
//! | a cell of `test` | means |
//! | --- | --- |
//! | `` `name`, `other` `` | each of these catches it, in what `cargo test` runs |
//! | `` `module::name` `` | the test of that name in this module alone |
//! | `` `name` (loom) `` | a test of the model checker |
//! | `` `name` (Miri) `` | a test that Miri runs |
//! | `` `name` (loom; a hang counts) `` | a run that does not end has caught it, too |
//! | `as O40` | the same as that row |
//! | `(reason)` | it cannot be tested |

use crate::paths;
use anyhow::{Context, Result, bail};
use regex::Regex;
use std::fs;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The file and line, for messages.
    pub(crate) place: String,
    /// The first cell, without backticks.
    pub(crate) name: String,
    /// What chooses it in a test build.
    pub(crate) value: String,
    pub(crate) tests: Tests,
}

/// What the row's column `test` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tests {
    Named(Vec<Named>),
    /// There is none, for this reason.
    None(String),
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) runner: Runner,
    pub(crate) hang: Hang,
}

/// Who runs a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Runner {
    /// `cargo test`.
    Host,
    /// The model checker.
    Loom,
    /// The interpreter.
    Miri,
}

/// What it means that a run does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hang {
    /// What was made wrong shows like this.
    Caught,
    /// Nothing: it may end some day.
    Error,
}

impl Row {
    /// Tells whether this is the row that a person calls `name`: `O8`, or `8`.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name || self.value == name
    }
}

/// Reads the table of `docs/FILE` whose first column is called `first`.
pub(super) fn read_file(file: &str, first: &str) -> Result<Vec<Row>> {
    let path = paths::root().join("docs").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read docs/{file}"))?;
    read(file, &text, first)
}

/// Reads the table of `text` whose first column is called `first`.
pub(super) fn read(file: &str, text: &str, first: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().enumerate().skip_while(|(_, line)| cells(line).first() != Some(&first));
    let (_, heading) = lines.next().with_context(|| format!("{file} has no table of a `{first}`"))?;
    let heading = cells(heading);
    let column = heading.iter().position(|cell| *cell == "test");
    let column = column.with_context(|| format!("the table in {file} has no column `test`"))?;
    let mut rows: Vec<Row> = Vec::new();
    for (n, line) in lines.skip(1).take_while(|(_, line)| line.starts_with('|')) {
        let place = format!("docs/{file}:{}", n + 1);
        let cells = cells(line);
        if cells.len() != heading.len() {
            bail!("{place}: {} cells in a table of {} columns", cells.len(), heading.len());
        }
        let name = cells[0].trim_matches('`').to_owned();
        let tests = tests(cells[column], &rows).with_context(|| place.clone())?;
        rows.push(Row { place, value: name.clone(), name, tests });
    }
    Ok(rows)
}

/// Returns the file that rows are from.
pub(super) fn path(rows: &[Row]) -> &str {
    rows.first().and_then(|row| row.place.split(':').next()).unwrap_or("the table")
}

/// Splits a line into cells, none where it is no line of a table. A `\|` is part of its cell.
fn cells(line: &str) -> Vec<&str> {
    let Some(inner) = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
        return Vec::new();
    };
    let mut cells = Vec::new();
    let mut start = 0;
    for (at, _) in inner.match_indices('|') {
        if !inner[..at].ends_with('\\') {
            cells.push(inner[start..at].trim());
            start = at + 1;
        }
    }
    cells.push(inner[start..].trim());
    cells
}

/// Reads a cell of the column `test`; `above` are the rows that it may refer to.
fn tests(cell: &str, above: &[Row]) -> Result<Tests> {
    if let Some(other) = cell.strip_prefix("as ") {
        let row = above.iter().find(|row| row.name == other.trim_matches('`'));
        return Ok(row.with_context(|| format!("there is no row {other} above"))?.tests.clone());
    }
    if let Some(reason) = cell.strip_prefix('(').and_then(|cell| cell.strip_suffix(')'))
        && !cell.contains('`')
    {
        return Ok(Tests::None(reason.to_owned()));
    }
    let one = Regex::new(r"^`([A-Za-z0-9_:]+)`(?: \(([^)]*)\))?(?:, | and |$)")?;
    let mut named = Vec::new();
    let mut rest = cell;
    while !rest.is_empty() {
        let found = one.captures(rest).with_context(|| format!("`{rest}` is no list of tests"))?;
        let words = found.get(2).map_or("", |words| words.as_str());
        let mut test = Named { name: found[1].to_owned(), runner: Runner::Host, hang: Hang::Error };
        for word in words.split(';').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "loom" => test.runner = Runner::Loom,
                "Miri" => test.runner = Runner::Miri,
                "a hang counts" => test.hang = Hang::Caught,
                other => bail!("`({other})` after a test means nothing"),
            }
        }
        named.push(test);
        rest = &rest[found[0].len()..];
    }
    if named.is_empty() {
        bail!("neither a test nor, in parentheses, the reason why there is none");
    }
    Ok(Tests::Named(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# Title\n\n| other | table |\n| --- | --- |\n| `x` | y |\n\n\
        | number | what | test |\n| --- | --- | --- |\n\
        | O1 | a \\| b | `one`, `two` (loom) |\n\
        | O2 | | `three` (loom; a hang counts) |\n\
        | O3 | | as O1 |\n\
        | O4 | | (assembly; an emulator forgives it) |\n\
        | O5 | | `four` (Miri) |\n\nText.\n";

    fn named(name: &str, runner: Runner, hang: Hang) -> Named {
        Named { name: name.to_owned(), runner, hang }
    }

    #[test]
    fn every_form_of_the_cell_is_read() {
        let rows = read("t.md", TABLE, "number").unwrap();
        let [one, two, three, four, five] = &rows[..] else { panic!("{rows:?}") };
        let first = Tests::Named(vec![
            named("one", Runner::Host, Hang::Error),
            named("two", Runner::Loom, Hang::Error),
        ]);
        assert_eq!((one.name.as_str(), one.place.as_str()), ("O1", "docs/t.md:9"));
        assert_eq!(one.tests, first);
        assert_eq!(two.tests, Tests::Named(vec![named("three", Runner::Loom, Hang::Caught)]));
        assert_eq!(three.tests, first);
        assert_eq!(four.tests, Tests::None("assembly; an emulator forgives it".to_owned()));
        assert_eq!(five.tests, Tests::Named(vec![named("four", Runner::Miri, Hang::Error)]));
        assert_eq!(path(&rows), "docs/t.md");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_line() {
        for (cell, message) in [
            ("", "neither a test nor"),
            ("one", "is no list of tests"),
            ("`one` (sometimes)", "means nothing"),
            ("as O9", "no row O9"),
            ("`one` | more", "cells in a table of"),
        ] {
            let text = format!("| number | test |\n| --- | --- |\n| O1 | {cell} |\n");
            let error = format!("{:#}", read("t.md", &text, "number").unwrap_err());
            assert!(error.contains(message) && error.contains("docs/t.md:3"), "{cell}: {error}");
        }
    }

    #[test]
    fn a_file_without_the_table_is_refused() {
        assert!(read("t.md", "# Title\n", "number").is_err());
        assert!(read("t.md", "| number |\n| --- |\n", "number").is_err());
    }
}
