//! `cargo xtask doc`: the documentation of the code, and the book in `docs/`.
//!
//! The book is built where there is an `mdbook` in `PATH`. Everywhere, what it would refuse or silently break is checked
//! here: every page is in the summary, and every link between files leads somewhere.

use crate::cargo::cargo;
use crate::setup::{self, Need, PC_TARGET, TARGET};
use crate::{board, paths, shell};
use anyhow::{Context, Result, bail};
use regex::Regex;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUMMARY: &str = "SUMMARY.md";

/// Packages that exist on the host only.
const HOST_ONLY: [&str; 5] = ["mezzanine-bench", "board-file", "mezzanine-model", "trace-tool", "xtask"];

/// Packages that exist on x86-64 only, besides the boards that are PCs.
const PC_ONLY: [&str; 2] = ["mezzanine-x86_64", "guest-tests-x86"];

/// Builds the documentation and checks the book.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Pc])?;
    let pcs = board::all()?.into_iter().filter(|board| board.pc().is_some());
    let pc_only: Vec<String> = PC_ONLY
        .iter()
        .map(|package| (*package).to_owned())
        .chain(pcs.map(|board| board.to_string()))
        .collect();
    // What runs on the machine is documented as it is there, where all of it exists.
    let on_host = HOST_ONLY.iter().flat_map(|package| ["-p", package]);
    document(cargo("doc").arg("--no-deps").args(on_host))?;
    let off_host = HOST_ONLY.iter().flat_map(|package| ["--exclude", package]);
    let not_here = pc_only.iter().flat_map(|package| ["--exclude", package]);
    document(
        cargo("doc").args(["--no-deps", "--workspace", "--target", TARGET]).args(off_host).args(not_here),
    )?;
    let there = pc_only.iter().map(String::as_str).chain(["mezzanine-monitor"]);
    let there = there.flat_map(|package| ["-p", package]);
    document(cargo("doc").args(["--no-deps", "--target", PC_TARGET]).args(there))?;
    println!("code: {}", paths::target().join(TARGET).join("doc").display());

    let docs = paths::clean(&paths::root().join("docs"));
    let wrong = check(&docs)?;
    for objection in &wrong {
        println!("{objection}");
    }
    if !wrong.is_empty() {
        bail!("{} faults in the book", wrong.len());
    }
    if shell::which("mdbook").is_some() {
        shell::run(Command::new("mdbook").arg("build").arg(&docs))?;
        println!("book: {}", docs.join("book").display());
    } else {
        println!("book: links checked; not built, since mdbook is not installed (cargo install mdbook)");
    }
    Ok(())
}

fn document(command: &mut Command) -> Result<()> {
    shell::run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Returns what is wrong with the book in a folder.
fn check(docs: &Path) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut pages = Vec::new();
    find_pages(docs, &mut pages)?;
    let mut summarised = BTreeSet::new();
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
        let folder = page.parent().unwrap_or(docs);
        for link in links(&text) {
            let target = folder.join(&link);
            if !target.exists() {
                wrong.push(format!("{}: there is no {link}", page.display()));
            }
            if page.ends_with(SUMMARY) {
                summarised.insert(paths::clean(&target));
            }
        }
    }
    for page in pages.iter().filter(|page| !page.ends_with(SUMMARY)) {
        if !summarised.contains(&paths::clean(page)) {
            wrong.push(format!("{} is not in {SUMMARY}", page.display()));
        }
    }
    Ok(wrong)
}

/// Collects the pages of the book, not what mdbook made of them.
fn find_pages(dir: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("docs/book") {
            find_pages(&path, pages)?;
        } else if path.extension().is_some_and(|e| e == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(())
}

/// Returns the files that a page links to, without anchors and without addresses on the network.
fn links(text: &str) -> Vec<String> {
    let mut fenced = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    });
    let prose = prose.collect::<Vec<_>>().join("\n");
    let Ok(regex) = Regex::new(r"\]\(([^)\s]+)\)") else { return Vec::new() };
    regex
        .captures_iter(&prose)
        .map(|found| found[1].split('#').next().unwrap_or_default().to_owned())
        .filter(|link| !link.is_empty() && !link.contains("://") && !link.starts_with("mailto:"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_in_prose_and_not_in_code() {
        let text = "See [a](a.md) and [b](x/b.md#part), [web](https://a.b/c), [here](#here).\n```\n[no](no.md)\n```\n[c](c.md)";
        assert_eq!(links(text), ["a.md", "x/b.md", "c.md"]);
    }

    #[test]
    fn a_missing_page_and_a_forgotten_page_are_faults() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(SUMMARY, "- [One](one.md)\n- [Two](two.md)\n");
        write("one.md", "[two](two.md)");
        write("three.md", "");
        let wrong = check(dir.path()).unwrap().join("\n");
        assert_eq!(wrong.matches("there is no two.md").count(), 2, "{wrong}");
        assert_eq!(wrong.matches("three.md is not in").count(), 1, "{wrong}");
        write("two.md", "");
        fs::remove_file(dir.path().join("three.md")).unwrap();
        assert_eq!(check(dir.path()).unwrap(), [""; 0]);
    }
}
