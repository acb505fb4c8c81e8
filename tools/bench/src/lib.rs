//! How fast the page-table library is, in numbers that can be compared: with the peer, the crate
//! `page_table_multiarch`, and with the limit, the bare chase of dependent loads through the same tables.
//!
//! A [`Comparison`](comparison::Comparison) is a few [contenders](comparison::Contender) that take turns, and the rows
//! of the table that their medians make. All rows of one run are measured on one machine in one state of the caches and
//! of the host: only ratios are worth anything.
//!
//! | module | measures |
//! | --- | --- |
//! | [`rows::translate`] | single translations, and ascending ones by the walker |
//! | [`rows::fill`] | map and unmap |
//! | [`rows::split`] | splitting blocks |
//! | [`rows::threads`] | two CPUs translating; a reader beside a writer |
//! | [`rows::faults`] | two CPUs faulting in one region |
//! | [`rows::pins`] | pins without waiting |
//! | [`rows::waiting`] | the ways of waiting for readers |
//! | [`rows::size`] | cost and memory against the size of a space |
//!
//! Ours and the peer take their tables from one [pool], touched before. `cargo xtask bench stage2` runs all of it and
//! judges by the targets; the criterion benchmark `operations` runs the same contenders one by one, for a look at one
//! of them and for what changed since the last look.
#![allow(unsafe_code)] // the pool's memory, and loads that nothing checks: the limit to compare with

pub mod chase;
pub mod comparison;
pub mod peer;
pub mod pool;
pub mod rows;
pub mod scene;

use anyhow::{Result, bail};

/// Makes sure that what is measured is what ships.
///
/// # Errors
/// Where the library was built for the laboratory, or without optimisation.
pub fn check_build() -> Result<()> {
    if types::sync::LAB {
        bail!(
            "built with the feature `lab`: orderings are looked up at run time. Build this package by itself"
        );
    }
    if cfg!(debug_assertions) {
        bail!(
            "built without optimisation: use `cargo run --profile measured -p mezzanine-bench`, or `cargo xtask bench stage2`"
        );
    }
    Ok(())
}
