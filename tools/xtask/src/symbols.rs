//! Addresses in the image turned into functions and lines, from the ELF file.

use addr2line::Loader;
use anyhow::{Result, anyhow};
use std::borrow::Cow;
use std::path::Path;

/// The names in one ELF file.
pub(crate) struct Symbols(Loader);

impl Symbols {
    /// Reads the file's debug information.
    pub(crate) fn load(elf: &Path) -> Result<Self> {
        let loader = Loader::new(elf).map_err(|error| anyhow!("cannot read {}: {error}", elf.display()))?;
        Ok(Self(loader))
    }

    /// Names the code at `address`, innermost inlined function first: `function at file:line`.
    pub(crate) fn name(&self, address: u64) -> Vec<String> {
        let mut names = Vec::new();
        // The symbol is of the function that the address is in, not of one inlined there. It has the full path, and the
        // names of functions in assembly.
        let symbol =
            self.0.find_symbol(address).map(|name| addr2line::demangle_auto(name.into(), None).into_owned());
        if let Ok(mut frames) = self.0.find_frames(address) {
            let mut next = frames.next();
            while let Ok(Some(frame)) = next {
                next = frames.next();
                let inlined = matches!(next, Ok(Some(_)));
                let short = frame.function.and_then(|f| f.demangle().ok().map(Cow::into_owned));
                let function = if inlined { short } else { symbol.clone().or(short) };
                let function = function.unwrap_or_else(|| "?".to_owned());
                names.push(match frame.location.and_then(|l| Some((l.file?, l.line.unwrap_or(0)))) {
                    Some((file, line)) => format!("{function} at {}:{line}", shorten(file)),
                    None => function,
                });
            }
        }
        if names.is_empty() {
            names.extend(symbol);
        }
        names
    }
}

/// Shortens a path to what a reader of this workspace needs.
fn shorten(file: &str) -> &str {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    let root = root.strip_suffix("tools/xtask/../../").unwrap_or(root);
    file.strip_prefix(root).unwrap_or(file)
}

/// Reads a line of a backtrace, `  #N +0xADDRESS`, wherever it starts in a console line.
pub(crate) fn backtrace_line(line: &str) -> Option<(u32, u64)> {
    let (_, rest) = line.split_once('#')?;
    let (number, rest) = rest.split_once(" +0x")?;
    let hex = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    Some((number.parse().ok()?, u64::from_str_radix(hex, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_line_is_read_with_and_without_what_follows() {
        assert_eq!(backtrace_line("  #0 +0x1a2c"), Some((0, 0x1a2c)));
        assert_eq!(backtrace_line("  #12 +0x40 (vectors)"), Some((12, 0x40)));
        for line in ["", "#", "  #x +0x10", "  #1 0x10", "  #1 +0x", "x0 = 0x10"] {
            assert_eq!(backtrace_line(line), None, "{line}");
        }
    }

    #[test]
    fn a_function_of_this_program_is_named_with_its_file() {
        #[inline(never)]
        fn landmark() -> u64 {
            // The address of this test program's own code, relative to where it was loaded.
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let base = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
            landmark as *const () as u64 - base
        }
        let symbols = Symbols::load(&std::env::current_exe().unwrap()).unwrap();
        let names = symbols.name(landmark() + 1);
        assert!(names.iter().any(|name| name.contains("landmark")), "{names:?}");
        assert!(names.iter().any(|name| name.contains("symbols.rs:")), "{names:?}");
        assert!(names.iter().all(|name| !name.contains("/../")), "{names:?}");
    }
}
