//! `cargo xtask weaken`: each numbered ordering relaxed, each numbered barrier left out.

use super::row::Row;
use super::{Wrongs, code, row};
use anyhow::Result;
use std::collections::BTreeSet;

/// The orderings of docs/memory-ordering.md.
pub(crate) struct Orderings;

/// How an ordering or a barrier is written: `o(8, Acquire)`, `full_barrier(3)`, `guest_barrier(190, Release)`, `keeps(60)`.
const IN_RUST: &str = r"\b(?:o\(|full_barrier\(|guest_barrier\(|keeps\()\s*(\d+)\s*[,)]";
/// How one is named in assembly.
const IN_ASSEMBLY: &str = r"\bO(\d+)\b";

impl Wrongs for Orderings {
    const TITLE: &'static str = "each ordering weakened";
    const NOUN: &'static str = "ordering";
    const VARIABLE: &'static str = "MEZZANINE_WEAKEN";

    fn rows() -> Result<Vec<Row>> {
        let mut rows = row::read_file("memory-ordering.md", "number")?;
        for row in &mut rows {
            row.value = row.name.trim_start_matches('O').to_owned();
        }
        Ok(rows)
    }

    fn in_code() -> Result<BTreeSet<String>> {
        let mut numbers = code::in_rust(IN_RUST)?;
        numbers.extend(code::in_assembly(IN_ASSEMBLY)?);
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    #[test]
    fn every_way_to_write_an_ordering_is_found() {
        let text = "x.load(o(8, Acquire)); full_barrier(31); guest_barrier(190, Acquire); if keeps(60) { foo(5, 6) } sync::o(\n 12,\n Release)";
        let found: Vec<_> =
            Regex::new(IN_RUST).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect();
        assert_eq!(found, ["8", "31", "190", "60", "12"]);
    }
}
