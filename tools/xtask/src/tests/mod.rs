//! `cargo xtask test`: every test there is, and one line at the end, `N passed, N failed`.
//!
//! Groups: unit tests on the host; Linux booted under the hypervisor, on every board; payloads that run inside a VM and
//! count their own tests; traces, in which bugs on purpose must be found; bad input, which must be refused with a message of
//! its own; bugs, which must be reported; each ordering weakened and each mutant of the protocol, which must be caught; tests
//! under Miri and ThreadSanitizer. One boot is one test, and so is one ordering or one mutant.

mod bad_input;
mod boards;
mod cases;
mod host;
pub(crate) mod linux;
mod machine_dtb;
mod machines;
mod payloads;
mod pc;
mod reports;
mod summary;
mod uboot;
mod wrong_facts;

use crate::setup::{self, Need};
use crate::{lab, nightly, trace};
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use std::fmt;
use std::thread;
use std::time::Instant;

pub(crate) use cases::Cases;
pub(crate) use summary::{PAYLOAD, Summary};

/// Which tests.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Tests on the host and two boots only, in under two minutes
    #[arg(long, conflicts_with = "all_boots")]
    quick: bool,
    /// Boot Linux with every CPU model, number of CPUs and size of memory, not only with every pair of them
    #[arg(long)]
    all_boots: bool,
    /// Only this group of tests; may be given more than once
    #[arg(long, value_enum, value_name = "GROUP")]
    only: Vec<Group>,
    /// Only boots whose name contains this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
}

/// A group of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Unit tests on the host
    Host,
    /// Linux in a VM
    Linux,
    /// Linux in a VM on other boards than QEMU's virt, and loaded by U-Boot
    Boards,
    /// Payloads in a VM
    Payloads,
    /// Several VMs on few CPUs, and VMs that come and go
    Machines,
    /// Traces of hypervisors with a bug on purpose, and without
    Traces,
    /// Bad input, and device trees that say what is not so
    BadInput,
    /// Bugs of the hypervisor
    Reports,
    /// The same hypervisor on a PC, x86-64, in Bochs
    Pc,
    /// Each ordering weakened
    Weaken,
    /// Each mutant of the protocol
    Mutants,
    /// Data structures under Miri
    Miri,
    /// Threads under ThreadSanitizer
    Tsan,
}

/// How many of the boots are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// One or two.
    Quick,
    /// Every pair of values.
    Pairs,
    /// Every combination.
    All,
}

/// Runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Qemu, Need::Guest])?;
    let extent = match (args.quick, args.all_boots) {
        (true, _) => Extent::Quick,
        (_, true) => Extent::All,
        _ => Extent::Pairs,
    };
    let mut cases = Cases::new(args.name.clone());
    let wanted = |group: &Group| args.only.is_empty() || args.only.contains(group);
    let beside = extent != Extent::Quick && wanted(&Group::Pc) && wanted(&Group::Miri);
    for group in Group::value_variants().iter().filter(|group| wanted(group)) {
        let result = match group {
            Group::Host => host::run(&mut cases),
            Group::Linux => linux::run(&mut cases, extent),
            Group::Boards if extent == Extent::Quick => Ok(()),
            Group::Boards => {
                boards::run(&mut cases, extent == Extent::All).and_then(|()| uboot::run(&mut cases))
            }
            Group::Payloads if extent == Extent::Quick => Ok(()),
            Group::Payloads => payloads::run(&mut cases),
            Group::Machines if extent == Extent::Quick => Ok(()),
            Group::Machines => machines::run(&mut cases, extent),
            Group::Traces if extent == Extent::Quick => Ok(()),
            Group::Traces => trace::run_few_seeds(&mut cases),
            Group::BadInput if extent == Extent::Quick => Ok(()),
            Group::BadInput => bad_input::run(&mut cases).and_then(|()| wrong_facts::run(&mut cases)),
            Group::Reports if extent == Extent::Quick => Ok(()),
            Group::Reports => reports::run(&mut cases),
            Group::Pc if extent == Extent::Quick => Ok(()),
            Group::Pc if beside => pc_and_miri(&mut cases),
            Group::Pc => pc::run(&mut cases),
            Group::Weaken | Group::Mutants | Group::Miri | Group::Tsan if extent == Extent::Quick => Ok(()),
            Group::Weaken => lab::add::<lab::Orderings>(&mut cases, &lab::Args::ALL),
            Group::Mutants => lab::add::<lab::Mutants>(&mut cases, &lab::Args::ALL),
            Group::Miri if beside => Ok(()),
            Group::Miri => nightly::add_miri(&mut cases),
            Group::Tsan => nightly::add_tsan(&mut cases),
        };
        // A group that could not start must neither pass nor keep the others from running.
        if let Err(error) = result {
            cases.fail(&format!("{group:?}"), &error);
        }
    }
    let summary = cases.finish();
    println!("{summary}");
    match summary.failed {
        0 => Ok(()),
        _ => Err(AlreadySaid.into()),
    }
}

/// Runs two groups side by side that each have one CPU at work: Bochs and Miri go through instructions one by one.
fn pc_and_miri(cases: &mut Cases) -> Result<()> {
    setup::ensure(&[Need::Pc, Need::Nightly])?;
    thread::scope(|scope| {
        let miri = scope.spawn(|| {
            let mut cases = Cases::held();
            if let Err(error) = nightly::add_miri(&mut cases) {
                cases.fail("Miri", &error);
            }
            (cases, Instant::now())
        });
        let result = pc::run(cases);
        match miri.join() {
            Ok((others, ended)) => cases.absorb(others, ended),
            Err(_) => cases.fail("Miri", &anyhow!("the thread that ran it has panicked")),
        }
        result
    })
}

/// A failure that the last line of the output has told.
#[derive(Debug)]
pub(crate) struct AlreadySaid;

impl fmt::Display for AlreadySaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tests failed")
    }
}

impl std::error::Error for AlreadySaid {}
