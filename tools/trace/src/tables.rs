//! A space's tables, entry by entry, wherever they were found.
//!
//! A look, not a walk of the library's: it owns nothing and is in no section, so a table may be another one's by the time it
//! is read. Whoever looks at a running machine has to bear that.

use anyhow::{Context, Result};
use ept::Ept;
use stage2::{Bbm, Entry, Format as _, Geometry, Live, Why, shift, span};
use types::{Height, Pa};
use vmsa::{Features, Granule4K, Vmsa};

/// The format of every guest's tables on AArch64.
pub type Stage2 = Vmsa<Granule4K>;

/// What entries mean, on either architecture. Tables have the same sizes on both.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    /// AArch64's.
    Arm(Stage2),
    /// A PC's.
    Pc(Ept),
}

impl Format {
    /// As [`stage2::Format::decode`].
    pub fn decode(self, word: u64, height: Height) -> Entry {
        match self {
            Self::Arm(format) => format.decode(word, height),
            Self::Pc(format) => format.decode(word, height),
        }
    }

    /// As [`stage2::Format::encode`].
    pub fn encode(self, entry: Entry, height: Height) -> u64 {
        match self {
            Self::Arm(format) => format.encode(entry, height),
            Self::Pc(format) => format.encode(entry, height),
        }
    }
}

/// Where tables are.
pub trait Tables {
    /// Reads the `count` entries of the table at `at`.
    ///
    /// # Errors
    /// Nothing can be read there.
    fn table(&self, at: Pa, count: usize) -> Result<Vec<u64>>;
}

/// What a space's tables look like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The root.
    pub root: Pa,
    /// The height of the root's entries.
    pub top: Height,
    /// How wide addresses are, in bits.
    pub ipa_bits: u32,
    /// What entries mean.
    pub format: Format,
    /// The level of break-before-make.
    pub bbm: Bbm,
}

impl Shape {
    /// Reads a shape of AArch64's: `shape` and `features` are `b` and `c` of [`trace::Kind::Space`].
    ///
    /// # Errors
    /// No space has such a shape.
    pub fn of(root: Pa, shape: u64, features: u64, bbm: u8) -> Result<Self> {
        let (format, geometry, bbm) = of_arm(shape, features, bbm)?;
        Ok(Self::with(root, Format::Arm(format), geometry, bbm))
    }

    /// Reads a shape of a PC's, as [`Shape::of`].
    ///
    /// # Errors
    /// No space has such a shape.
    pub fn of_pc(root: Pa, shape: u64, features: u64, bbm: u8) -> Result<Self> {
        let (format, geometry, bbm) = of_pc(shape, features, bbm)?;
        Ok(Self::with(root, Format::Pc(format), geometry, bbm))
    }

    fn with<F: stage2::Format>(root: Pa, format: Format, geometry: Geometry<F>, bbm: Bbm) -> Self {
        Self { root, top: geometry.top(), ipa_bits: geometry.ipa_bits(), format, bbm }
    }
}

/// Returns the format of AArch64's tables, their sizes and the level of break-before-make: as [`Shape::of`].
///
/// # Errors
/// No space has such a shape.
pub(crate) fn of_arm(shape: u64, features: u64, bbm: u8) -> Result<(Stage2, Geometry<Stage2>, Bbm)> {
    let mut has = Features::empty();
    has.set(Features::HARDWARE_DIRTY, features & 1 != 0);
    has.set(Features::FWB, features & 2 != 0);
    Ok((Vmsa::new(has), geometry(shape)?, Bbm::from_number(bbm)))
}

/// Returns the format of a PC's tables, their sizes and the level of break-before-make: as [`Shape::of`].
///
/// # Errors
/// No space has such a shape.
pub(crate) fn of_pc(shape: u64, features: u64, bbm: u8) -> Result<(Ept, Geometry<Ept>, Bbm)> {
    let has = ept::Features::from_bits(features as u8).context("unknown features of a format")?;
    Ok((Ept::new(has), geometry(shape)?, Bbm::from_number(bbm)))
}

fn geometry<F: stage2::Format>(shape: u64) -> Result<Geometry<F>> {
    let geometry = Geometry::new(Height::new((shape >> 24) as u8), u32::from((shape >> 16) as u8));
    geometry.map_err(|error| anyhow::anyhow!("a space of an impossible shape: {error:?}"))
}

/// An entry that is no link, as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The first address that it is for.
    pub at: u64,
    /// Its height.
    pub height: Height,
    /// What it is.
    pub entry: Entry,
    /// Why it is not a larger one.
    pub why: Why,
}

impl Found {
    /// Returns how many bytes it is for.
    pub fn bytes(&self) -> u64 {
        span::<Stage2>(self.height)
    }
}

/// Goes through the entries for addresses from `start` to `end`, lowest first, holes included.
///
/// # Errors
/// A table cannot be read.
pub fn each(
    tables: &impl Tables,
    shape: &Shape,
    (start, end): (u64, u64),
    visit: &mut impl FnMut(&Found),
) -> Result<()> {
    let top = shape.top;
    let count = 1 << (shape.ipa_bits - shift::<Stage2>(top));
    let table = Place { at: shape.root, count, first: 0, height: top, why: Why::Alignment };
    below(tables, shape, &table, (start, end), visit)
}

struct Place {
    at: Pa,
    count: usize,
    first: u64,
    height: Height,
    why: Why,
}

fn below(
    tables: &impl Tables,
    shape: &Shape,
    place: &Place,
    (start, end): (u64, u64),
    visit: &mut impl FnMut(&Found),
) -> Result<()> {
    let &Place { height, why, .. } = place;
    let bytes = span::<Stage2>(height);
    let words =
        tables.table(place.at, place.count).with_context(|| format!("a table at {:#x}", place.at.get()))?;
    for (n, &word) in (0..).zip(&words) {
        let at = place.first + n * bytes;
        if at + bytes <= start || at >= end {
            continue;
        }
        let entry = shape.format.decode(word, height);
        if let Some(Live::Table(table)) = entry.live()
            && let Some(lower) = height.get().checked_sub(1)
        {
            let count = 1 << Stage2::INDEX_BITS;
            let next = Place { at: table.pa, count, first: at, height: Height::new(lower), why: table.why };
            below(tables, shape, &next, (start, end), visit)?;
        } else {
            visit(&Found { at, height, entry, why });
        }
    }
    Ok(())
}
