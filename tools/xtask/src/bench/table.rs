//! What a benchmark found: rows of a table, or of a JSON array.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// One measurement. In JSON: `{name, value, unit, base, ratio, target, met}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    /// The same without the hypervisor, where that means anything.
    base: Option<f64>,
    /// value / base
    ratio: Option<f64>,
    /// The most that the ratio may be, or the value where there is no base.
    target: f64,
    met: bool,
}

impl Row {
    /// Makes a row whose target is for the value's ratio to a base.
    pub(crate) fn ratio(name: &'static str, unit: &'static str, value: f64, base: f64, target: f64) -> Self {
        let ratio = value / base;
        Self { name, value, unit, base: Some(base), ratio: Some(ratio), target, met: ratio <= target }
    }

    /// Makes a row whose target is for the value itself.
    pub(crate) fn limit(name: &'static str, unit: &'static str, value: f64, target: f64) -> Self {
        Self { name, value, unit, base: None, ratio: None, target, met: value <= target }
    }

    fn cells(&self) -> [String; 7] {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), format);
        let met = if self.met { "yes" } else { "NO" };
        [
            self.name.to_owned(),
            format(self.value),
            self.unit.to_owned(),
            number(self.base),
            number(self.ratio),
            format(self.target),
            met.to_owned(),
        ]
    }
}

/// Prints the rows, writes them as JSON if there is a path for it, and fails if a target was missed.
pub(crate) fn finish(rows: &[Row], json: Option<&Path>) -> Result<()> {
    print!("{}", table(rows));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(rows)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    match rows.iter().filter(|row| !row.met).count() {
        0 => Ok(()),
        missed => bail!("{missed} of {} targets missed", rows.len()),
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["name", "value", "unit", "base", "ratio", "target", "met"].map(str::to_owned);
    let lines: Vec<[String; 7]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let mut out = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = width(column);
            match column {
                0 | 2 | 6 => out += &format!("{cell:<width$}  "),
                _ => out += &format!("{cell:>width$}  "),
            }
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

/// Writes a number with as many digits as are worth reading.
fn format(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.6}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_up_to_and_at_its_value() {
        assert!(Row::ratio("x", "s", 2.2, 2.0, 1.10).met);
        assert!(!Row::ratio("x", "s", 2.3, 2.0, 1.10).met);
        assert!(Row::limit("x", "B", 512.0, 512.0).met);
        assert!(!Row::limit("x", "B", 513.0, 512.0).met);
    }

    #[test]
    fn json_has_the_agreed_fields() {
        let row = serde_json::to_value(Row::ratio("boot", "s", 3.0, 2.0, 1.15)).unwrap();
        let want = serde_json::json!({
            "name": "boot", "value": 3.0, "unit": "s", "base": 2.0, "ratio": 1.5, "target": 1.15, "met": false,
        });
        assert_eq!(row, want);
        let row = serde_json::to_value(Row::limit("size", "B", 3.0, 4.0)).unwrap();
        assert!(row["base"].is_null() && row["ratio"].is_null() && row["met"] == true);
    }

    #[test]
    fn a_table_lines_up_and_shows_what_was_missed() {
        let text =
            table(&[Row::ratio("boot", "s", 3.0, 2.0, 1.15), Row::limit("image", "B", 500_000.0, 524_288.0)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with("NO"), "{text}");
        assert!(lines[2].ends_with("yes"), "{text}");
        assert_eq!(lines[1].find("3.000").unwrap() + 5, lines[2].find("500000").unwrap() + 6);
    }

    #[test]
    fn a_missed_target_fails_after_the_json_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        assert!(finish(&[Row::limit("x", "s", 2.0, 1.0)], Some(&path)).is_err());
        let rows: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 1);
    }
}
