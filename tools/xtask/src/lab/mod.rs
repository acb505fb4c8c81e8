//! The laboratory: tests that must fail, because something was made wrong on purpose.
//!
//! A test build can relax one numbered ordering or follow one mutant of the protocol (`types::sync`), chosen when it is
//! run. A table in the book says which test catches it. Here each such test is run twice: as the code is, when it must
//! pass, and with the one thing wrong, when it must fail. So no row of the tables can quietly become untrue. Rows are
//! tried side by side, one on each CPU.
//!
//! ```text
//! docs/*.md ─ rows ─▶ Row ─▶ Trial: pass as it is, fail with the wrong ─▶ a line, a count
//! hyp/**/*.rs ─ code ──▲ every number and name has a row, every row has code
//! ```

mod code;
mod mutants;
mod programs;
mod row;
mod trial;
mod weaken;

pub(crate) use mutants::Mutants;
pub(crate) use programs::LOOM;
pub(crate) use weaken::Orderings;

use crate::tests::{AlreadySaid, Cases};
use anyhow::{Result, bail};
use row::{Row, Tests};
use std::collections::BTreeSet;
use trial::Lab;

/// Which rows are tried, and how often.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these, separated by commas: the numbers of orderings, the names of mutants
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Have each test catch it this often, to see that it does not by luck
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
}

impl Args {
    /// Every row, once.
    pub(crate) const ALL: Self = Self { only: Vec::new(), times: 1 };
}

/// What can be made wrong: the orderings, or the mutants.
pub(crate) trait Wrongs {
    /// The title of their group of tests.
    const TITLE: &'static str;
    /// What one is called: `ordering`.
    const NOUN: &'static str;
    /// What chooses one in a test build.
    const VARIABLE: &'static str;

    /// Returns the rows of the table.
    fn rows() -> Result<Vec<Row>>;

    /// Returns what the code has: the value of the variable for each.
    fn in_code() -> Result<BTreeSet<String>>;
}

/// Runs those that `only` names, or all, and prints the counts.
pub(crate) fn run<W: Wrongs>(args: &Args) -> Result<()> {
    let mut cases = Cases::new(None);
    add::<W>(&mut cases, args)?;
    let summary = cases.finish();
    println!("{summary}");
    if summary.failed > 0 { Err(AlreadySaid.into()) } else { Ok(()) }
}

/// Adds a test for each wrong that `only` names, or for all of them, to `cases`.
pub(crate) fn add<W: Wrongs>(cases: &mut Cases, args: &Args) -> Result<()> {
    let only = &args.only;
    let all = W::rows()?;
    let strays = strays::<W>(&all, &W::in_code()?);
    if let Some(unknown) = only.iter().find(|name| !all.iter().any(|row| row.is(name))) {
        bail!("there is no {} {unknown} in {}", W::NOUN, row::path(&all));
    }
    let rows: Vec<&Row> =
        all.iter().filter(|row| only.is_empty() || only.iter().any(|name| row.is(name))).collect();
    cases.group(W::TITLE, rows.len() + usize::from(only.is_empty()));
    if only.is_empty() {
        let agreed = format!("it and the code name the same {}s", W::NOUN);
        let verdict = if strays.is_empty() { Ok(agreed) } else { Err(strays.join("\n     ")) };
        cases.verdict(row::path(&all), &verdict);
    }
    let lab = Lab::build(cases, &rows, args.times)?;
    let mut testable = Vec::new();
    let mut untested = 0;
    for row in rows {
        match &row.tests {
            Tests::None(reason) => {
                untested += 1;
                cases.say(&format!("--   {}: not testable: {reason}", row.name));
            }
            Tests::Named(tests) => testable.push((row, &tests[..])),
        }
    }
    cases.doing("each test as it is, and with one thing wrong");
    lab.try_rows(W::VARIABLE, &testable, |row, verdict| cases.verdict(&row.name, verdict));
    if untested > 0 {
        cases.say(&format!("{untested} of the {}s cannot be tested, for the reasons given", W::NOUN));
    }
    Ok(())
}

/// Says what is in the table and not in the code, or the other way round, or in the table twice.
fn strays<W: Wrongs>(rows: &[Row], in_code: &BTreeSet<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut strays = Vec::new();
    for row in rows {
        if !seen.insert(row.value.clone()) {
            strays.push(format!("{}: a second row", row.name));
        }
        if !in_code.contains(&row.value) {
            strays.push(format!("{}: there is no such {} in the code", row.name, W::NOUN));
        }
    }
    let absent = in_code.iter().filter(|value| !seen.contains(*value));
    strays.extend(absent.map(|value| format!("{value}: the code has it, the table has no row")));
    strays
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two;

    impl Wrongs for Two {
        const TITLE: &'static str = "";
        const NOUN: &'static str = "ordering";
        const VARIABLE: &'static str = "";

        fn rows() -> Result<Vec<Row>> {
            row::read("x.md", "| n | test |\n| - | - |\n| O1 | `a` |\n| O2 | `b` |\n", "n")
        }

        fn in_code() -> Result<BTreeSet<String>> {
            Ok(["O2", "O3"].map(str::to_owned).into())
        }
    }

    #[test]
    fn a_row_without_code_and_code_without_a_row_are_found() {
        let strays = strays::<Two>(&Two::rows().unwrap(), &Two::in_code().unwrap());
        assert_eq!(strays.len(), 2, "{strays:?}");
        assert!(strays[0].starts_with("O1: there is no such ordering"), "{strays:?}");
        assert!(strays[1].starts_with("O3: the code has it"), "{strays:?}");
    }

    #[test]
    fn a_second_row_is_found() {
        let row = || Two::rows().unwrap().remove(1);
        assert_eq!(strays::<Two>(&[row(), row()], &["O2".to_owned()].into()), ["O2: a second row"]);
    }
}
