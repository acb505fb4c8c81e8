//! From the manifest's text to its values: keys, types and lines, but not yet what they mean.

use crate::error::BadManifest;
use alloc::{string::String, vec::Vec};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use toml_parser::{Source, lexer::TokenKind};

/// A `[[vm]]` table.
#[derive(Debug)]
pub(super) struct RawVm {
    pub(super) name: String,
    pub(super) vcpus: u64,
    pub(super) memory: String,
    pub(super) kernel: String,
    pub(super) format: Option<String>,
    pub(super) initrd: Option<String>,
    pub(super) cmdline: Option<String>,
    pub(super) populate: Option<String>,
    pub(super) largest: Option<String>,
    pub(super) hypercalls: Option<String>,
    pub(super) role: Option<String>,
    pub(super) controller: Option<bool>,
    pub(super) devices: Vec<String>,
    pub(super) disk: Option<String>,
    pub(super) cpus: Option<Vec<u64>>,
    pub(super) regions: Vec<RawRegion>,
}

/// A `[[vm.region]]` table.
#[derive(Debug)]
pub(super) struct RawRegion {
    pub(super) start: u64,
    pub(super) size: String,
}

const VERSION: u64 = 1;
const TOP: &str = "the manifest";
const VM: &str = "[[vm]]";
const REGION: &str = "[[vm.region]]";

/// How deep values and keys may be nested. A manifest needs two levels; the parser takes about 1 KiB of stack for each.
const MOST_DEPTH: usize = 8;

/// Reads a manifest.
pub(super) fn read(text: &str) -> Result<Vec<RawVm>, BadManifest> {
    check_depth(text)?;
    let parsed = DeTable::parse(text).map_err(|error| BadManifest::Syntax {
        line: error.span().map_or(1, |span| line(text, span.start)),
        message: error.message().into(),
    })?;
    let mut table = Table::new(text, TOP, parsed.span().start, parsed.into_inner());
    let version = table.number("version")?;
    let vms = table.tables("vm", VM)?;
    table.finish()?;
    let version = table.needed("version", version)?;
    if version != VERSION {
        return Err(BadManifest::Version { found: version });
    }
    if vms.is_empty() {
        return Err(BadManifest::NoVms);
    }
    vms.into_iter().map(read_vm).collect()
}

/// Refuses a text whose brackets or dotted keys go deep, before anything follows them there.
fn check_depth(text: &str) -> Result<(), BadManifest> {
    let (mut brackets, mut dots) = (0_usize, 0_usize);
    for token in Source::new(text).lex() {
        match token.kind() {
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => brackets += 1,
            TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                brackets = brackets.saturating_sub(1);
            }
            TokenKind::Dot => dots += 1,
            TokenKind::Newline => dots = 0,
            _ => {}
        }
        if brackets + dots > MOST_DEPTH {
            return Err(BadManifest::TooDeep { line: line(text, token.span().start()) });
        }
    }
    Ok(())
}

fn read_vm(mut table: Table<'_>) -> Result<RawVm, BadManifest> {
    let name = table.text("name")?;
    let vcpus = table.number("vcpus")?;
    let memory = table.text("memory")?;
    let kernel = table.text("kernel")?;
    let format = table.text("format")?;
    let initrd = table.text("initrd")?;
    let cmdline = table.text("cmdline")?;
    let populate = table.text("populate")?;
    let largest = table.text("largest")?;
    let hypercalls = table.text("hypercalls")?;
    let role = table.text("role")?;
    let controller = table.truth("controller")?;
    let devices = table.texts("devices")?.unwrap_or_default();
    let disk = table.text("disk")?;
    let cpus = table.numbers("cpus")?;
    let regions = table.tables("region", REGION)?;
    table.finish()?;
    Ok(RawVm {
        name: table.needed("name", name)?,
        vcpus: table.needed("vcpus", vcpus)?,
        memory: table.needed("memory", memory)?,
        kernel: table.needed("kernel", kernel)?,
        format,
        initrd,
        cmdline,
        populate,
        largest,
        hypercalls,
        role,
        controller,
        devices,
        disk,
        cpus,
        regions: regions.into_iter().map(read_region).collect::<Result<_, _>>()?,
    })
}

fn read_region(mut table: Table<'_>) -> Result<RawRegion, BadManifest> {
    let start = table.number("start")?;
    let size = table.text("size")?;
    table.finish()?;
    Ok(RawRegion { start: table.needed("start", start)?, size: table.needed("size", size)? })
}

/// A table of which one key after the other is taken; what is left at the end is unknown.
struct Table<'a> {
    text: &'a str,
    name: &'static str,
    line: usize,
    entries: DeTable<'a>,
}

impl<'a> Table<'a> {
    fn new(text: &'a str, name: &'static str, at: usize, entries: DeTable<'a>) -> Self {
        Self { text, name, line: line(text, at), entries }
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'a>>> {
        self.entries.remove(key)
    }

    fn wrong(&self, key: &'static str, expected: &'static str, at: usize) -> BadManifest {
        BadManifest::WrongType { key, expected, line: line(self.text, at) }
    }

    /// Takes a string.
    fn text(&mut self, key: &'static str) -> Result<Option<String>, BadManifest> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let at = value.span().start;
        match value.into_inner() {
            DeValue::String(text) => Ok(Some(text.into_owned())),
            _ => Err(self.wrong(key, "a string", at)),
        }
    }

    /// Takes true or false.
    fn truth(&mut self, key: &'static str) -> Result<Option<bool>, BadManifest> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let truth = value.get_ref().as_bool();
        truth.map(Some).ok_or_else(|| self.wrong(key, "true or false", value.span().start))
    }

    /// Takes a number.
    fn number(&mut self, key: &'static str) -> Result<Option<u64>, BadManifest> {
        self.take(key).map(|value| self.to_number(key, "a number", &value)).transpose()
    }

    /// Takes an array of numbers.
    fn numbers(&mut self, key: &'static str) -> Result<Option<Vec<u64>>, BadManifest> {
        const EXPECTED: &str = "an array of numbers";
        let Some(value) = self.take(key) else { return Ok(None) };
        let Some(values) = value.get_ref().as_array() else {
            return Err(self.wrong(key, EXPECTED, value.span().start));
        };
        values.iter().map(|value| self.to_number(key, EXPECTED, value)).collect::<Result<_, _>>().map(Some)
    }

    /// Takes an array of strings.
    fn texts(&mut self, key: &'static str) -> Result<Option<Vec<String>>, BadManifest> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let texts = value.get_ref().as_array().and_then(|values| {
            values.iter().map(|value| value.get_ref().as_str().map(String::from)).collect()
        });
        texts.map(Some).ok_or_else(|| self.wrong(key, "an array of strings", value.span().start))
    }

    fn to_number(
        &self,
        key: &'static str,
        expected: &'static str,
        value: &Spanned<DeValue<'a>>,
    ) -> Result<u64, BadManifest> {
        let at = value.span().start;
        let Some(number) = value.get_ref().as_integer() else { return Err(self.wrong(key, expected, at)) };
        u64::from_str_radix(number.as_str(), number.radix())
            .map_err(|_| BadManifest::BadNumber { key, line: line(self.text, at) })
    }

    /// Takes an array of tables.
    fn tables(&mut self, key: &'static str, name: &'static str) -> Result<Vec<Table<'a>>, BadManifest> {
        const EXPECTED: &str = "an array of tables";
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        let at = value.span().start;
        let DeValue::Array(values) = value.into_inner() else { return Err(self.wrong(key, EXPECTED, at)) };
        let table = |value: Spanned<DeValue<'a>>| {
            let at = value.span().start;
            match value.into_inner() {
                DeValue::Table(entries) => Ok(Table::new(self.text, name, at, entries)),
                _ => Err(self.wrong(key, EXPECTED, at)),
            }
        };
        values.into_iter().map(table).collect()
    }

    /// Refuses what nobody took: the first such key in the text.
    fn finish(&self) -> Result<(), BadManifest> {
        match self.entries.keys().min_by_key(|key| key.span().start) {
            None => Ok(()),
            Some(key) => Err(BadManifest::UnknownKey {
                key: key.get_ref().as_ref().into(),
                table: self.name,
                line: line(self.text, key.span().start),
            }),
        }
    }

    fn needed<T>(&self, key: &'static str, value: Option<T>) -> Result<T, BadManifest> {
        value.ok_or(BadManifest::MissingKey { key, table: self.name, line: self.line })
    }
}

/// Returns the number of the line that the byte at `at` is in, from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}
