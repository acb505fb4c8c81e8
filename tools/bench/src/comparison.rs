//! [`Comparison`]: contenders that take turns, so that what slows the host slows all of them, and the rows that their
//! medians make.

use serde::Serialize;
use std::time::{Duration, Instant};

/// One thing that is timed.
pub struct Contender {
    /// What it is, for a person who looks at it by itself.
    pub name: &'static str,
    /// How many operations one pass does.
    pub operations: u64,
    /// Does them, and says how long they took; what it prepares and clears away is not in that.
    pub pass: Box<dyn FnMut() -> Duration>,
}

impl Contender {
    /// Makes a contender.
    pub fn new(name: &'static str, operations: u64, pass: impl FnMut() -> Duration + 'static) -> Self {
        Self { name, operations, pass: Box::new(pass) }
    }

    /// Does one pass. Returns nanoseconds for each operation.
    pub fn take_turn(&mut self) -> f64 {
        (self.pass)().as_secs_f64() * 1e9 / self.operations as f64
    }
}

/// What rows are made of: the median of each contender, in nanoseconds for each operation, in the order in which they
/// stand.
pub type Medians<'m> = &'m [f64];

/// Contenders, and what their times say.
pub struct Comparison {
    /// Who takes turns.
    pub contenders: Vec<Contender>,
    /// Makes the rows.
    pub rows: Box<dyn Fn(Medians<'_>) -> Vec<Row>>,
}

impl Comparison {
    /// Makes a comparison.
    pub fn new(contenders: Vec<Contender>, rows: impl Fn(Medians<'_>) -> Vec<Row> + 'static) -> Self {
        Self { contenders, rows: Box::new(rows) }
    }

    /// Has everybody take `runs` turns, after one that does not count. Returns the rows.
    pub fn run(mut self, runs: usize) -> Vec<Row> {
        let mut times = vec![Vec::with_capacity(runs); self.contenders.len()];
        for contender in &mut self.contenders {
            contender.take_turn();
        }
        for _ in 0..runs {
            for (times, contender) in times.iter_mut().zip(&mut self.contenders) {
                times.push(contender.take_turn());
            }
        }
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        (self.rows)(&medians)
    }
}

/// Returns the middle value; of an even number, the upper one of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is asked of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The ratio, or the value where there is no base, is at most this.
    AtMost(f64),
    /// It is at least this.
    AtLeast(f64),
    /// Nothing: shown beside others.
    None,
}

/// A row of the table, not yet judged.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured, and what against.
    pub name: String,
    /// Ours.
    pub value: f64,
    /// The unit of `value` and `base`.
    pub unit: &'static str,
    /// What it is compared with, where it is.
    pub base: Option<f64>,
    /// What is asked.
    pub target: Target,
}

impl Row {
    /// Makes a row of nanoseconds for each operation.
    pub fn ns(name: impl Into<String>, value: f64, base: f64, target: Target) -> Self {
        Self { name: name.into(), value, unit: "ns", base: Some(base), target }
    }

    /// Makes a row without a base.
    pub fn alone(name: impl Into<String>, value: f64, unit: &'static str, target: Target) -> Self {
        Self { name: name.into(), value, unit, base: None, target }
    }

    /// Makes a row of how much more two threads get done in the same time than one.
    pub fn scaling(name: impl Into<String>, value: f64, base: f64, target: Target) -> Self {
        Self { name: name.into(), value, unit: "x", base: Some(base), target }
    }

    /// Makes a row of operations in a microsecond, from nanoseconds for each.
    pub fn rate(name: impl Into<String>, value: f64, base: f64, target: Target) -> Self {
        Self { name: name.into(), value: 1e3 / value, unit: "/us", base: Some(1e3 / base), target }
    }
}

/// Times `work`.
pub fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed()
}
