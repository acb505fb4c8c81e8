//! Sizes of memory as people write them: `256M`, `1G`, `64K`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(u64);

impl Size {
    /// Makes a size from MiB.
    pub(crate) const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// Returns the size in bytes.
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }

    /// Adds two sizes; the sum is capped at the largest one.
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size such as 256M or 1G"))?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))?;
        Ok(Self(bytes))
    }
}

/// Writes the size in the largest unit that leaves no rest; QEMU and the manifest read that form.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = [(30, "G"), (20, "M"), (10, "K")].into_iter();
        match unit.clone().find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((shift, letter)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_and_writes_its_unit() {
        for (text, bytes) in
            [("256M", 256 << 20), ("6G", 6 << 30), ("64K", 64 << 10), ("1023", 1023), ("0", 0)]
        {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("1024m".parse::<Size>().unwrap().to_string(), "1G");
        assert_eq!(Size::mib(1024).plus(Size::mib(128)).to_string(), "1152M");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "-1M", "1.5G", "1T", "1 G", "17179869184G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
