//! The arrows between crates, and which crates hold no unsafe code.
//!
//! Arrows point toward less hardware. They are checked on what cargo says the dependencies are, so that an arrow added to
//! any Cargo.toml, for whatever target or feature, is seen.

use crate::paths;
use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use std::collections::BTreeSet;
use std::fs;

/// What each crate may use of the workspace. A crate that is not in the table is an error.
const MAY_USE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("abi", &[]),
    ("stage2", &["types"]),
    ("vmsa", &["stage2", "types"]),
    ("ept", &["stage2", "types"]),
    ("trace", &["types"]),
    ("frames", &["stage2", "trace", "types"]),
    ("model", &["stage2", "types"]),
    ("space", &["frames", "stage2", "types"]),
    ("vm", &["space", "frames", "stage2", "abi", "types"]),
    ("aarch64", &["vmsa", "stage2", "trace", "types"]),
    ("x86_64", &["ept", "stage2", "trace", "types"]),
    (
        "monitor",
        &["aarch64", "x86_64", "vm", "space", "frames", "vmsa", "ept", "stage2", "trace", "abi", "types"],
    ),
    ("bench", &["space", "frames", "vmsa", "stage2", "types"]),
    ("guest-tests", &["abi"]),
    ("guest-tests-x86", &["abi", "guest-tests"]),
    ("trace-tool", &["model", "trace", "vmsa", "ept", "frames", "stage2", "types"]),
    ("board-file", &[]),
    ("xtask", &["board-file", "trace-tool", "stage2", "types"]),
];

/// What a board, any crate in `platform/`, may use.
const BOARD_MAY_USE: &[&str] = &["board-file", "monitor"];

/// What tests may use as well: the model, and crates of data structures only, without an instruction of any CPU.
const TESTS_MAY_USE: &[&str] = &["model", "vmsa", "ept", "frames", "stage2", "types"];

/// Crates that say `#![forbid(unsafe_code)]`.
const NO_UNSAFE: &[&str] =
    &["abi", "board-file", "ept", "model", "space", "stage2", "trace", "trace-tool", "types", "vm", "vmsa"];

/// One dependency inside the workspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    from: String,
    /// Whether `from` is a board, which is known by its folder.
    board: Board,
    to: String,
    purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Board {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    /// Part of what is built.
    Product,
    /// Tests, examples and benchmarks only.
    Tests,
}

/// Checks the workspace.
pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new()
        .manifest_path(paths::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot ask cargo for the workspace's crates")?;
    let arrows = arrows(&metadata);
    let mut wrong: Vec<String> = arrows.iter().filter_map(objection).collect();
    for package in &metadata.packages {
        wrong.extend(unsafe_objection(package)?);
    }
    for objection in &wrong {
        println!("{objection}");
    }
    match wrong.len() {
        0 => {
            println!("{} crates, {} arrows: as they should be", metadata.packages.len(), arrows.len());
            Ok(())
        }
        count => bail!("{count} of the rules in {} are broken", file!()),
    }
}

fn arrows(metadata: &Metadata) -> BTreeSet<Arrow> {
    let members: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut arrows = BTreeSet::new();
    for package in &metadata.packages {
        let board = match package.manifest_path.parent().and_then(|dir| dir.parent()?.file_name()) {
            Some("platform") => Board::Yes,
            _ => Board::No,
        };
        for dependency in package.dependencies.iter().filter(|d| members.contains(d.name.as_str())) {
            let purpose = match dependency.kind {
                DependencyKind::Development => Purpose::Tests,
                _ => Purpose::Product,
            };
            let (from, to) = (short(&package.name), short(&dependency.name));
            arrows.insert(Arrow { from, board, to, purpose });
        }
    }
    arrows
}

/// Says what is wrong with an arrow, if anything.
fn objection(arrow: &Arrow) -> Option<String> {
    let Arrow { from, board, to, purpose } = arrow;
    let table = MAY_USE.iter().find(|(name, _)| name == from).map(|(_, allowed)| *allowed);
    let allowed = match board {
        Board::Yes => BOARD_MAY_USE,
        Board::No => match table {
            Some(allowed) => allowed,
            None => return Some(format!("{from} is in no row of the table: say what it may use")),
        },
    };
    if allowed.contains(&to.as_str()) {
        return None;
    }
    match purpose {
        Purpose::Tests if TESTS_MAY_USE.contains(&to.as_str()) => None,
        Purpose::Tests => Some(format!("the tests of {from} may not use {to}")),
        Purpose::Product => Some(format!("{from} may not use {to}")),
    }
}

/// Says so if a crate that must forbid unsafe code does not.
fn unsafe_objection(package: &Package) -> Result<Option<String>> {
    let name = short(&package.name);
    if !NO_UNSAFE.contains(&name.as_str()) {
        return Ok(None);
    }
    let Some(library) = package.targets.iter().find(|target| target.is_lib()) else {
        return Ok(Some(format!("{name} has no library to forbid unsafe code in")));
    };
    let text = fs::read_to_string(&library.src_path).context("cannot read a crate's root")?;
    Ok(match forbids_unsafe(&text) {
        true => None,
        false => Some(format!("{name} does not say #![forbid(unsafe_code)] in {}", library.src_path)),
    })
}

fn forbids_unsafe(source: &str) -> bool {
    source.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]")
}

/// Strips what the package names of libraries begin with.
fn short(package: &str) -> String {
    package.strip_prefix("mezzanine-").unwrap_or(package).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrow(from: &str, to: &str, purpose: Purpose) -> Arrow {
        let board = if from == "some-board" { Board::Yes } else { Board::No };
        Arrow { from: from.to_owned(), board, to: to.to_owned(), purpose }
    }

    #[test]
    fn forbidden_arrows_are_refused() {
        for (from, to) in [
            ("stage2", "aarch64"),
            ("space", "aarch64"),
            ("space", "vmsa"),
            ("aarch64", "space"),
            ("aarch64", "ept"),
            ("x86_64", "vmsa"),
            ("some-board", "stage2"),
            ("vm", "monitor"),
            ("guest-tests", "types"),
            ("types", "abi"),
            ("stage2", "model"),
            ("bench", "model"),
        ] {
            assert!(objection(&arrow(from, to, Purpose::Product)).is_some(), "{from} -> {to}");
        }
    }

    #[test]
    fn allowed_arrows_are_allowed() {
        for (from, to) in
            [("vm", "space"), ("monitor", "aarch64"), ("some-board", "monitor"), ("vmsa", "stage2")]
        {
            assert_eq!(objection(&arrow(from, to, Purpose::Product)), None, "{from} -> {to}");
        }
    }

    #[test]
    fn the_model_is_for_tests_and_the_checker_of_traces_only_and_tests_hold_no_instructions() {
        assert!(objection(&arrow("space", "model", Purpose::Product)).is_some());
        assert_eq!(objection(&arrow("trace-tool", "model", Purpose::Product)), None);
        assert_eq!(objection(&arrow("space", "model", Purpose::Tests)), None);
        assert_eq!(objection(&arrow("space", "vmsa", Purpose::Tests)), None);
        assert!(objection(&arrow("space", "aarch64", Purpose::Tests)).is_some());
    }

    #[test]
    fn a_crate_without_a_row_is_refused() {
        let message = objection(&arrow("newcomer", "types", Purpose::Product)).unwrap();
        assert!(message.contains("newcomer"), "{message}");
    }

    #[test]
    fn forbidding_unsafe_in_a_comment_does_not_count() {
        assert!(forbids_unsafe("#![no_std]\n#![forbid(unsafe_code)]\n"));
        assert!(!forbids_unsafe("// #![forbid(unsafe_code)]\n#![deny(unsafe_code)]\n"));
    }
}
