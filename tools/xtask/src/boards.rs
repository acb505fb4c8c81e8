//! `cargo xtask boards` and `new-board`: what there is in `platform/`, how small it is, and how one more gets there.

use crate::board::{self, Board};
use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of code and data that a board may have.
const MOST_LINES: usize = 150;

/// Where a board's name may not stand: everything that is the same on all boards.
const COMMON: [&str; 2] = ["hyp", "guest-tests"];

/// The board that others are copied from.
const TEMPLATE: &str = "template";

/// Lists the boards; fails if one is larger than it may be, or known outside of its folder.
pub(crate) fn run() -> Result<()> {
    let boards = board::all()?;
    println!("{:<20} {:>4} {:>5}  {:<28} what it is", "board", "tier", "lines", "last checked");
    let mut wrong = Vec::new();
    for board in &boards {
        let description = board.description();
        let lines = lines(board.folder())?;
        println!(
            "{:<20} {:>4} {lines:>5}  {:<28} {}",
            board.to_string(),
            description.tier.number(),
            description.checked,
            description.description
        );
        if lines > MOST_LINES {
            wrong.push(format!("{board} has {lines} lines of code and data: at most {MOST_LINES}"));
        }
    }
    let names: Vec<String> = boards.iter().map(Board::to_string).filter(|name| name != TEMPLATE).collect();
    for folder in COMMON {
        for path in sources(&paths::clean(&paths::root().join(folder)))? {
            let text = read(&path)?;
            for name in names.iter().filter(|name| text.contains(name.as_str())) {
                wrong.push(format!("{} names the board {name}", paths::display(&path)));
            }
        }
    }
    for objection in &wrong {
        println!("{objection}");
    }
    ensure!(wrong.is_empty(), "{} of the rules for boards are broken", wrong.len());
    Ok(())
}

/// Counts lines of code and data in the folder of a board: those that are neither empty nor comments. Not counted is what a
/// board brings for firmware that it lacks: assembly.
fn lines(folder: &Path) -> Result<usize> {
    let counted = |path: &&PathBuf| path.extension().is_none_or(|ending| ending != "S");
    sources(folder)?.iter().filter(counted).map(|path| read(path).map(|text| count(&text))).sum()
}

fn count(text: &str) -> usize {
    let is_counted = |line: &&str| {
        let line = line.trim_start();
        // An attribute of Rust begins as a comment of TOML does.
        let is_comment = line.starts_with("//") || line.starts_with("# ") || line == "#";
        !line.is_empty() && !is_comment
    };
    text.lines().filter(is_counted).count()
}

/// Returns the files below `folder` that are code or data.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                found.extend(sources(&path)?);
            }
        } else if path
            .extension()
            .is_some_and(|ending| ["rs", "toml", "S", "ld", "dts"].iter().any(|e| ending == *e))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// How the image is built, and that the crate is a workspace by itself.
const PROFILE: &str = r#"[profile.release]
panic = "abort"
debug = "line-tables-only"
lto = "fat"
codegen-units = 1
opt-level = "s"

[workspace]
"#;

/// What is copied.
#[derive(clap::Args)]
pub(crate) struct NewArgs {
    /// The board's name: lower-case letters, digits and hyphens; or a path to a folder outside of this repository, which
    /// ends with the name
    name: String,
}

/// Copies the template, and says what comes next.
pub(crate) fn new(args: &NewArgs) -> Result<()> {
    let folder = make(&args.name)?;
    println!("{}: edit board.toml, then `cargo xtask run --board {}`", paths::display(&folder), args.name);
    Ok(())
}

/// Copies the template to a folder of `platform/`, or to a path. Returns the folder.
pub(crate) fn make(name: &str) -> Result<PathBuf> {
    let platform = paths::clean(&paths::root().join("platform"));
    let is_outside = name.contains('/');
    let folder = if is_outside { PathBuf::from(name) } else { platform.join(name) };
    let name = folder.file_name().context("the path ends with no name")?.to_string_lossy().into_owned();
    check_name(&name)?;
    ensure!(!folder.exists(), "{} is there already", paths::display(&folder));
    copy(&platform.join(TEMPLATE), &folder, &|text| {
        let text = text.replace(&format!("name = \"{TEMPLATE}\""), &format!("name = \"{name}\""));
        if is_outside { stand_alone(&text) } else { text }
    })?;
    if is_outside {
        // The versions that are tested here.
        const LOCK: &str = "Cargo.lock";
        fs::copy(paths::root().join(LOCK), folder.join(LOCK)).context("cannot copy Cargo.lock")?;
    }
    Ok(folder)
}

/// Tells whether cargo and QEMU's users would take it for a name.
fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || !name.chars().all(fits) || name.ends_with('-') {
        bail!(
            "\"{name}\" is no name for a board: use lower-case letters, digits and hyphens, a letter first"
        );
    }
    Ok(())
}

/// Makes a manifest of the workspace one that stands by itself: with its own workspace, and paths to what it uses.
fn stand_alone(text: &str) -> String {
    let root = paths::clean(paths::root());
    let inherited = [
        ("rust-version.workspace = true\n", String::new()),
        ("version.workspace = true", "version = \"0.1.0\"".to_owned()),
        ("edition.workspace = true", "edition = \"2024\"".to_owned()),
        ("license.workspace = true\n", String::new()),
        ("publish.workspace = true", "publish = false".to_owned()),
        (
            "monitor.workspace = true",
            format!("monitor = {{ path = {:?}, package = \"mezzanine-monitor\" }}", root.join("hyp/monitor")),
        ),
        ("board-file.workspace = true", format!("board-file = {{ path = {:?} }}", root.join("tools/board"))),
        ("[lints]\nworkspace = true\n", PROFILE.to_owned()),
    ];
    inherited.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn copy(from: &Path, to: &Path, edit: &dyn Fn(&str) -> String) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let to = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &to, edit)?;
        } else {
            fs::write(&to, edit(&read(&path)?)).with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_do_not_count() {
        assert_eq!(count("// a\n//! b\n\n# c\n#\n#![no_std]\nfn main() {}\n  a = 1 # d\n"), 3);
    }

    #[test]
    fn a_name_is_what_cargo_takes() {
        for good in ["raspi4b", "imx8mp-evk"] {
            assert!(check_name(good).is_ok());
        }
        for bad in ["", "4b", "Board", "a b", "a-", "a.b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_board_is_within_its_lines_and_in_its_folder() {
        run().unwrap();
    }

    #[test]
    fn a_board_outside_is_a_workspace_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("mine");
        let name = folder.to_str().unwrap().to_owned();
        new(&NewArgs { name: name.clone() }).unwrap();
        let manifest = read(&folder.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"mine\"") && !manifest.contains("workspace = true"), "{manifest}");
        let board: Board = name.parse().unwrap();
        assert_eq!(board.to_string(), "mine");
        assert!(new(&NewArgs { name }).unwrap_err().to_string().contains("there already"));
    }
}
