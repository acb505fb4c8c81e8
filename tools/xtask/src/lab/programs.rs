//! The test programs: built once, and asked which tests they hold.

use super::row::{Named, Runner};
use crate::cargo::cargo;
use crate::{paths, shell};
use anyhow::{Context, Result, bail};
use cargo_metadata::{Message, TargetKind};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Tests that run under the model checker loom, which tries every interleaving that the memory model allows.
pub(crate) struct Model {
    /// The package.
    pub(crate) package: &'static str,
    /// What is tried.
    pub(crate) what: &'static str,
    /// The tests of the package that are meant: built for the model checker, the others do not run.
    pub(crate) tests: &'static [&'static str],
}

/// All of them.
pub(crate) const LOOM: &[Model] = &[
    Model { package: "mezzanine-vm", what: "doorbell, inbox", tests: &["--lib", "loom_tests"] },
    Model { package: "mezzanine-space", what: "VMIDs, regions, dirty log", tests: &["--lib", "interleaved"] },
    Model { package: "mezzanine-frames", what: "pins, split reserve", tests: &["--lib", "interleaved"] },
    Model { package: "mezzanine-stage2", what: "tables", tests: &["--test", "loom*"] },
];

impl Model {
    /// Returns the `cargo test` of these tests.
    pub(crate) fn cargo_test(&self) -> Command {
        let mut command = cargo("test");
        // A folder of its own: the flag changes every crate, and would have each kind of run build all anew.
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::target().join("loom"));
        command.args(["-p", self.package]).args(self.tests);
        command
    }
}

/// A program that `cargo test` has built.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) executable: PathBuf,
    /// The package's folder, where its tests run.
    pub(super) folder: PathBuf,
    /// How cargo is told of this program alone: `-p PACKAGE --test TARGET`.
    pub(super) selection: Vec<String>,
    tests: Vec<String>,
}

/// A program, and the full names of the tests in it that are meant.
pub(super) struct Match<'p> {
    pub(super) program: &'p Program,
    pub(super) tests: Vec<&'p str>,
}

/// All programs.
#[derive(Debug, Default)]
pub(super) struct Programs {
    host: Vec<Program>,
    loom: Vec<Program>,
}

impl Programs {
    /// Builds those that these tests need.
    pub(super) fn build(tests: &[&Named]) -> Result<Self> {
        let needs = |loom| tests.iter().any(|test| (test.runner == Runner::Loom) == loom);
        let mut programs = Self::default();
        if needs(false) {
            programs.host = built(cargo("test"))?;
        }
        if needs(true) {
            for model in LOOM {
                programs.loom.extend(built(model.cargo_test())?);
            }
        }
        Ok(programs)
    }

    /// Finds who holds a test. Tests that a macro makes for each format have one name in several modules, and are
    /// meant all, where `name` is not `module::name`.
    pub(super) fn find(&self, test: &Named) -> Result<Vec<Match<'_>>> {
        let programs = if test.runner == Runner::Loom { &self.loom } else { &self.host };
        let found: Vec<_> = programs.iter().filter_map(|program| program.find(&test.name)).collect();
        if found.is_empty() {
            bail!("no test program has a test {}", test.name);
        }
        Ok(found)
    }
}

impl Program {
    fn find(&self, name: &str) -> Option<Match<'_>> {
        let is_it =
            |full: &&str| full.strip_suffix(name).is_some_and(|path| path.is_empty() || path.ends_with("::"));
        let tests: Vec<&str> = self.tests.iter().map(String::as_str).filter(is_it).collect();
        (!tests.is_empty()).then_some(Match { program: self, tests })
    }
}

/// Builds what this `cargo test` would run.
fn built(mut cargo_test: Command) -> Result<Vec<Program>> {
    cargo_test.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let line = shell::line(&cargo_test);
    // Errors and progress go to the terminal.
    let output = cargo_test.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({})", output.status);
    }
    let mut programs = Vec::new();
    for message in Message::parse_stream(&output.stdout[..]) {
        let Message::CompilerArtifact(artifact) = message.context("cargo printed no JSON")? else { continue };
        let Some(executable) = artifact.executable.filter(|_| artifact.profile.test) else { continue };
        let Some(folder) = artifact.manifest_path.parent() else { continue };
        let package = folder_package(folder.as_str(), &artifact.package_id.repr);
        let mut selection = vec!["-p".to_owned(), package];
        match artifact.target.kind.first() {
            Some(TargetKind::Test) => selection.extend(["--test".to_owned(), artifact.target.name.clone()]),
            Some(TargetKind::Bin) => selection.extend(["--bin".to_owned(), artifact.target.name.clone()]),
            _ => selection.push("--lib".to_owned()),
        }
        let list = shell::output(Command::new(&executable).args(["--list", "--format", "terse"]))?;
        let tests = list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        programs.push(Program { executable: executable.into(), folder: folder.into(), selection, tests });
    }
    Ok(programs)
}

/// Returns the package's name from its id, `path+file:///folder#name@version`, or from its folder where the id has none.
fn folder_package(folder: &str, id: &str) -> String {
    let name = id.rsplit('#').next().and_then(|end| end.split_once('@')).map(|(name, _)| name);
    name.or_else(|| folder.rsplit('/').next()).unwrap_or(folder).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::row::Hang;

    fn programs() -> Programs {
        let program = |tests: &[&str]| Program {
            executable: PathBuf::new(),
            folder: PathBuf::new(),
            selection: Vec::new(),
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
        };
        Programs {
            host: vec![program(&["arm::splits", "x86::splits", "unsplits"]), program(&["merges"])],
            loom: vec![program(&["merges", "loom::splits"])],
        }
    }

    fn found(name: &str, runner: Runner) -> Option<Vec<String>> {
        let test = Named { name: name.to_owned(), runner, hang: Hang::Error };
        let programs = programs();
        let found = programs.find(&test).ok()?;
        Some(found.iter().flat_map(|found| &found.tests).map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_test_is_found_by_its_own_name_in_every_module_and_with_its_own_runner() {
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(found("splits", Runner::Host), names(&["arm::splits", "x86::splits"]));
        assert_eq!(found("arm::splits", Runner::Host), names(&["arm::splits"]));
        assert_eq!(found("splits", Runner::Loom), names(&["loom::splits"]));
        assert_eq!(found("merges", Runner::Miri), names(&["merges"]));
        assert_eq!(found("unsplits", Runner::Loom), None);
        assert_eq!(found("plits", Runner::Host), None);
    }

    #[test]
    fn a_package_is_known_by_its_id() {
        assert_eq!(folder_package("/a/hyp/vm", "path+file:///a/hyp/vm#mezzanine-vm@0.1.0"), "mezzanine-vm");
        assert_eq!(folder_package("/a/xtask", "path+file:///a/xtask#0.1.0"), "xtask");
    }
}
