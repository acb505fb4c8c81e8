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

/// What rows are made of: nanoseconds for each operation in one turn, of each contender in the order in which they stand.
pub type Turn<'t> = &'t [f64];

/// Contenders, and what their times say.
pub struct Comparison {
    /// Who takes turns.
    pub contenders: Vec<Contender>,
    /// How many passes of each make a turn, with those of the others between them. The median counts.
    slices: usize,
    /// Makes the rows, the same ones for each turn.
    pub rows: Box<dyn Fn(Turn<'_>) -> Vec<Row>>,
}

impl Comparison {
    /// Makes a comparison.
    pub fn new(contenders: Vec<Contender>, rows: impl Fn(Turn<'_>) -> Vec<Row> + 'static) -> Self {
        Self { contenders, slices: 1, rows: Box::new(rows) }
    }

    /// As [`Self::new`], with turns of several short passes: a host that is shared slows whoever is measured for some
    /// milliseconds, or takes one of two CPUs away.
    pub fn in_slices(contenders: Vec<Contender>, rows: impl Fn(Turn<'_>) -> Vec<Row> + 'static) -> Self {
        Self { slices: 9, ..Self::new(contenders, rows) }
    }

    /// Has everybody take `runs` turns, at least one, after one that does not count. Returns each row as it was in the turn
    /// in which it had its median: who is compared was measured there one after the other, on a host in one state.
    pub fn run(mut self, runs: usize) -> Vec<Row> {
        let mut turn = || -> Vec<f64> {
            let mut slices: Vec<_> =
                self.contenders.iter().map(|_| Vec::with_capacity(self.slices)).collect();
            for _ in 0..self.slices {
                for (slices, contender) in slices.iter_mut().zip(&mut self.contenders) {
                    slices.push(contender.take_turn());
                }
            }
            slices.into_iter().map(|slices| median_by(slices, |ns| *ns)).collect()
        };
        turn();
        let mut turns: Vec<_> = (0..runs.max(1)).map(|_| (self.rows)(&turn()).into_iter()).collect();
        std::iter::from_fn(|| {
            let row: Vec<Row> = turns.iter_mut().filter_map(Iterator::next).collect();
            (!row.is_empty()).then(|| median_by(row, Row::measure))
        })
        .collect()
    }
}

/// Returns the middle one by `key` of several; of an even number, the upper one of the two.
fn median_by<T>(mut all: Vec<T>, key: impl Fn(&T) -> f64) -> T {
    all.sort_by(|a, b| key(a).total_cmp(&key(b)));
    all.swap_remove(all.len() / 2)
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
    /// Returns what is compared: the ratio, or the value where there is no base.
    fn measure(&self) -> f64 {
        self.base.map_or(self.value, |base| self.value / base)
    }

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

/// Times `work` when it has been done once: nobody's tables come from further away than another's, who was measured right
/// before.
#[inline(always)]
pub fn time_again<T>(work: impl Fn() -> T) -> Duration {
    std::hint::black_box(work());
    time(work)
}
