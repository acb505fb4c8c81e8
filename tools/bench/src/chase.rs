//! The limit: loads, each from the address that the last one gave, through the tables that the library made.
//!
//! Nothing is checked, nothing but the address bits of an entry is looked at, and a physical address is an address in
//! this process ([`crate::pool`]).

use crate::scene::Scene;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Address bits 47 down to 12.
const ADDRESS: u64 = 0xffff_ffff_f000;

/// An entry that leads somewhere.
const VALID: u64 = 1;

/// Tables to be chased through.
#[derive(Clone, Copy)]
pub struct Chase {
    root: u64,
}

impl Chase {
    /// Makes a chase through the tables of `scene`.
    ///
    /// # Safety
    /// They stay, and every address that is asked for is mapped with a page.
    pub unsafe fn through(scene: &Scene) -> Self {
        Self { root: scene.tree.root().pa().get() }
    }

    /// Returns the address that the page of `ipa` goes to: four loads.
    #[inline(always)]
    pub fn page(self, ipa: u64) -> u64 {
        let mut table = self.root;
        for shift in [39, 30, 21, 12] {
            // SAFETY: an entry of a table, since all links on the way are there, by the contract of `through`.
            table = unsafe { entry(table, ipa >> shift & 511) } & ADDRESS;
        }
        table
    }

    /// As [`Self::page`], with what no walk can leave out: a test of each entry, before its address is used; `None` where one
    /// is not valid.
    #[inline(always)]
    pub fn tested(self, ipa: u64) -> Option<u64> {
        let mut table = self.root;
        for shift in [39, 30, 21, 12] {
            // SAFETY: as in `page`.
            let raw = unsafe { entry(table, ipa >> shift & 511) };
            if raw & VALID == 0 {
                return None;
            }
            table = raw & ADDRESS;
        }
        Some(table | ipa & 0xfff)
    }

    /// Adds up what `pages` pages side by side go to, from the one of `ipa` on, the first of a table: a load each, and three
    /// for each table.
    #[inline(always)]
    pub fn sum(self, ipa: u64, pages: u64) -> u64 {
        let mut sum = 0u64;
        for first in (0..pages).step_by(512) {
            let mut table = self.root;
            for shift in [39, 30, 21] {
                // SAFETY: as in `page`.
                table = unsafe { entry(table, (ipa + (first << 12)) >> shift & 511) } & ADDRESS;
            }
            for page in 0..512.min(pages - first) {
                // SAFETY: as in `page`.
                sum = sum.wrapping_add(unsafe { entry(table, page) } & ADDRESS);
            }
        }
        sum
    }
}

/// Loads entry `index` of the table at `table`.
///
/// # Safety
/// A table is there, and has such an entry.
#[inline(always)]
unsafe fn entry(table: u64, index: u64) -> u64 {
    let entry = std::ptr::with_exposed_provenance::<AtomicU64>((table + index * 8) as usize);
    // SAFETY: it is there, by this function's contract, and accessed as an atomic only.
    unsafe { &*entry }.load(Relaxed)
}

/// Numbers at random, made in registers, and not dependent on any load.
pub struct Random(u64);

impl Random {
    /// Makes the sequence that `seed` begins.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number of `bits` bits.
    #[inline(always)]
    pub fn next(&mut self, bits: u32) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> (64 - bits)
    }
}
