//! Measures, and writes the rows as JSON, not yet judged: what `cargo xtask bench stage2` runs.

use anyhow::{Context, Result, bail};
use bench::comparison::Row;
use bench::rows::GROUPS;
use clap::Parser;
use std::process::ExitCode;

/// Measures the page-table library on this host.
#[derive(Parser)]
struct Args {
    /// Measure only the groups of rows that have one of these names
    #[arg(long, value_name = "GROUP")]
    only: Vec<String>,
    /// Turns that each contender takes; the median counts
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    bench::check_build()?;
    let known: Vec<&str> = GROUPS.iter().map(|group| group.key).collect();
    if let Some(unknown) = args.only.iter().find(|only| !known.contains(&only.as_str())) {
        bail!("there is no group {unknown}: there are {}", known.join(", "));
    }
    let runs = args.runs as usize;
    let mut rows: Vec<Row> = Vec::new();
    for group in
        GROUPS.iter().filter(|group| args.only.is_empty() || args.only.iter().any(|only| only == group.key))
    {
        eprintln!("{}", group.key);
        for comparison in (group.make)() {
            rows.extend(comparison.run(runs));
        }
    }
    let json = serde_json::to_string_pretty(&rows).context("a measurement is no number")?;
    println!("{json}");
    Ok(())
}
