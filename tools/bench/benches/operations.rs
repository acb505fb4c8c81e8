//! The contenders one by one, under criterion: how much each varies, and what changed since the last look.
//!
//! No ratios here: what runs minutes apart is not compared. `cargo xtask bench stage2` does that.

use criterion::Criterion;
use std::time::Duration;

fn main() {
    if let Err(error) = bench::check_build() {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for group in bench::rows::GROUPS {
        for comparison in (group.make)() {
            for mut contender in comparison.contenders {
                let operations = contender.operations;
                let mut bench = criterion.benchmark_group(group.key);
                bench.throughput(criterion::Throughput::Elements(operations));
                bench.bench_function(contender.name, |b| {
                    b.iter_custom(|passes| (0..passes).map(|_| (contender.pass)()).sum());
                });
                bench.finish();
            }
        }
    }
    criterion.final_summary();
}
