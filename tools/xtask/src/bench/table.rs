//! What a benchmark found: rows of a table, or of a JSON array.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fs;
use std::path::Path;

/// One measurement. In JSON: `{name, value, unit, base, ratio, target, met}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    name: Cow<'static, str>,
    value: f64,
    unit: Cow<'static, str>,
    /// What it is compared with, where that means anything: the same without the hypervisor, or another's.
    base: Option<f64>,
    /// value / base
    ratio: Option<f64>,
    /// What is asked of the ratio, or of the value where there is no base or that is only beside it; `None` for what is
    /// only shown.
    #[serde(serialize_with = "number")]
    target: Target,
    met: Option<bool>,
}

/// What is asked of a row.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
    /// Nothing: shown beside others.
    None,
}

/// A measurement that nobody has judged, as the benchmarks of other packages write it.
#[derive(Deserialize)]
pub(crate) struct Measured {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: String,
    pub(super) base: Option<f64>,
    pub(super) target: Target,
}

/// What becomes of a command that has missed a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// It fails.
    Fails,
    /// It says so, and that is all.
    IsSaid,
}

impl Target {
    /// Tells whether it is met; `None` where there is none.
    fn met(self, is: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(is <= most),
            Self::AtLeast(least) => Some(is >= least),
            Self::None => None,
        }
    }

    fn number(self) -> Option<f64> {
        match self {
            Self::AtMost(number) | Self::AtLeast(number) => Some(number),
            Self::None => None,
        }
    }
}

fn number<S: Serializer>(target: &Target, serializer: S) -> Result<S::Ok, S::Error> {
    target.number().serialize(serializer)
}

impl From<Measured> for Row {
    fn from(Measured { name, value, unit, base, target }: Measured) -> Self {
        let ratio = base.map(|base| value / base);
        let met = target.met(ratio.unwrap_or(value));
        Self { name: name.into(), value, unit: unit.into(), base, ratio, target, met }
    }
}

impl Row {
    /// Makes a row whose target is for the value's ratio to a base.
    pub(crate) fn ratio(name: &'static str, unit: &'static str, value: f64, base: f64, target: f64) -> Self {
        let measured = Measured {
            name: name.into(),
            value,
            unit: unit.into(),
            base: Some(base),
            target: Target::AtMost(target),
        };
        measured.into()
    }

    /// Makes a row whose target is for the value itself.
    pub(crate) fn limit(name: &'static str, unit: &'static str, value: f64, target: f64) -> Self {
        let target = Target::AtMost(target);
        Measured { name: name.into(), value, unit: unit.into(), base: None, target }.into()
    }

    /// Makes a row whose target is for the value itself, with a base beside it.
    pub(super) fn beside(measured: Measured) -> Self {
        let met = measured.target.met(measured.value);
        Self { met, ..measured.into() }
    }

    fn cells(&self) -> [String; 7] {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), format);
        let target = match self.target {
            Target::AtMost(most) => format(most),
            Target::AtLeast(least) => format!(">= {}", format(least)),
            Target::None => "-".to_owned(),
        };
        let met = match self.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        [
            self.name.clone().into_owned(),
            format(self.value),
            self.unit.clone().into_owned(),
            number(self.base),
            number(self.ratio),
            target,
            met.to_owned(),
        ]
    }
}

/// Prints the rows, writes them as JSON if there is a path for it, and says or fails if a target was missed.
pub(crate) fn finish(rows: &[Row], json: Option<&Path>, missed: Missed) -> Result<()> {
    print!("{}", table(rows));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(rows)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let all = rows.iter().filter(|row| row.met.is_some()).count();
    match (rows.iter().filter(|row| row.met == Some(false)).count(), missed) {
        (0, _) => Ok(()),
        (count, Missed::Fails) => bail!("{count} of {all} targets missed"),
        (count, Missed::IsSaid) => {
            println!("{count} of {all} targets missed");
            Ok(())
        }
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
        assert_eq!(Row::ratio("x", "s", 2.2, 2.0, 1.10).met, Some(true));
        assert_eq!(Row::ratio("x", "s", 2.3, 2.0, 1.10).met, Some(false));
        assert_eq!(Row::limit("x", "B", 512.0, 512.0).met, Some(true));
        assert_eq!(Row::limit("x", "B", 513.0, 512.0).met, Some(false));
    }

    fn measured(base: Option<f64>, target: &serde_json::Value) -> Row {
        let text =
            serde_json::json!({ "name": "x", "value": 3.0, "unit": "x", "base": base, "target": target });
        serde_json::from_value::<Measured>(text).unwrap().into()
    }

    #[test]
    fn what_another_package_measured_is_judged_by_the_ratio_or_without_a_base_by_the_value() {
        use serde_json::json;
        assert_eq!(measured(Some(2.0), &json!({ "at_least": 1.5 })).met, Some(true));
        assert_eq!(measured(Some(2.0), &json!({ "at_least": 1.6 })).met, Some(false));
        assert_eq!(measured(Some(2.0), &json!({ "at_most": 1.5 })).met, Some(true));
        assert_eq!(measured(None, &json!({ "at_most": 2.9 })).met, Some(false));
    }

    #[test]
    fn what_is_only_shown_is_neither_met_nor_missed() {
        let row = measured(None, &serde_json::json!("none"));
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["met"].is_null() && json["target"].is_null());
        assert!(table(std::slice::from_ref(&row)).trim_end().ends_with('-'));
        assert!(finish(&[row], None, Missed::Fails).is_ok());
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
        assert!(finish(&[Row::limit("x", "s", 2.0, 1.0)], Some(&path), Missed::Fails).is_err());
        let rows: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 1);
        assert!(finish(&[Row::limit("x", "s", 2.0, 1.0)], None, Missed::IsSaid).is_ok());
    }
}
