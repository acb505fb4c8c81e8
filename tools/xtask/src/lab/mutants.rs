//! `cargo xtask mutants`: each wrong version of the protocol that the code can follow.

use super::row::Row;
use super::{Wrongs, code, row};
use anyhow::Result;
use std::collections::BTreeSet;

/// The mutants of docs/mutants.md.
pub(crate) struct Mutants;

/// How the code asks for one: `mutant("free-before-grace")`.
const IN_RUST: &str = r#"\bmutant\(\s*"([^"]+)"\s*\)"#;

impl Wrongs for Mutants {
    const TITLE: &'static str = "each mutant of the protocol";
    const NOUN: &'static str = "mutant";
    const VARIABLE: &'static str = "MEZZANINE_MUTANT";

    fn rows() -> Result<Vec<Row>> {
        row::read_file("mutants.md", "mutant")
    }

    fn in_code() -> Result<BTreeSet<String>> {
        code::in_rust(IN_RUST)
    }
}
