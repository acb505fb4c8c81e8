//! What the code names: the numbers of its orderings, and its mutants. Comments do not count.

use crate::paths;
use anyhow::{Context, Result};
use regex::Regex;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the code is that goes into an image.
const FOLDERS: [&str; 2] = ["hyp", "platform"];

/// Returns what the first group of `pattern` matches in the Rust sources.
pub(super) fn in_rust(pattern: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for file in sources("rs")? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        found.extend(matches(pattern, &without_comments(&text))?);
    }
    Ok(found)
}

/// Returns what the first group of `pattern` matches in the assembly, where comments are all there is to name anything.
pub(super) fn in_assembly(pattern: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for file in sources("S")? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        found.extend(matches(pattern, &text)?);
    }
    Ok(found)
}

fn matches(pattern: &str, text: &str) -> Result<Vec<String>> {
    let pattern = Regex::new(pattern)?;
    Ok(pattern.captures_iter(text).map(|found| found[1].to_owned()).collect())
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Returns the files with this extension in the `src` folders of the packages.
fn sources(extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        for package in list(&paths::root().join(folder))? {
            let src = package.join("src");
            if src.is_dir() {
                collect(&src, extension, &mut files)?;
            }
        }
    }
    Ok(files)
}

fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in list(folder)? {
        if path.is_dir() {
            collect(&path, extension, files)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_name_nothing() {
        let text = "a(1); // a(2)\n/// a(3)\n  b(4)\n";
        assert_eq!(matches(r"[ab]\((\d)\)", &without_comments(text)).unwrap(), ["1", "4"]);
    }
}
