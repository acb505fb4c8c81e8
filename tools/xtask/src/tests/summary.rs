//! Counts of tests, and the lines of other runners that hold such counts.

use regex::Regex;
use std::fmt;

/// How many tests passed, and how many failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Those that passed.
    pub(crate) passed: u64,
    /// Those that failed.
    pub(crate) failed: u64,
}

impl Summary {
    /// Adds the counts of another runner.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Sums up the `test result:` lines of `cargo test`.
    pub(crate) fn of_cargo_test(output: &str) -> Self {
        Self::sum(output, r"(?m)^test result: \w+\. (\d+) passed; (\d+) failed;")
    }

    /// Reads a payload's closing line.
    pub(crate) fn of_payload(line: &str) -> Option<Self> {
        Regex::new(PAYLOAD).ok()?.is_match(line).then(|| Self::sum(line, PAYLOAD))
    }

    fn sum(text: &str, pattern: &str) -> Self {
        let mut sum = Self::default();
        if let Ok(regex) = Regex::new(pattern) {
            for found in regex.captures_iter(text) {
                let count = |group: usize| found[group].parse().unwrap_or(0);
                sum.add(Self { passed: count(1), failed: count(2) });
            }
        }
        sum
    }
}

/// The closing line of a payload in a VM.
pub(crate) const PAYLOAD: &str = r"^(?:payload\| )?(\d+) passed, (\d+) failed$";

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_programs_are_summed() {
        let output = "running 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                      \n   Doc-tests x\ntest result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured\n";
        assert_eq!(Summary::of_cargo_test(output), Summary { passed: 7, failed: 2 });
        assert_eq!(Summary::of_cargo_test("error: could not compile"), Summary::default());
    }

    #[test]
    fn a_payloads_closing_line_is_read_and_others_are_not() {
        for line in ["12 passed, 1 failed", "payload| 12 passed, 1 failed"] {
            assert_eq!(Summary::of_payload(line), Some(Summary { passed: 12, failed: 1 }));
        }
        for line in [
            "12 passed",
            "brief.2| 12 passed, 1 failed",
            "so far 12 passed, 1 failed",
            "12 passed, 1 failed.",
            "",
        ] {
            assert_eq!(Summary::of_payload(line), None, "{line}");
        }
    }

    #[test]
    fn the_last_line_has_the_agreed_form() {
        let mut summary = Summary { passed: 1, failed: 0 };
        summary.add(Summary { passed: 2, failed: 3 });
        assert_eq!(summary.to_string(), "3 passed, 3 failed");
    }
}
