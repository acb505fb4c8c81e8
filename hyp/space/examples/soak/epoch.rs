//! [`Epoch`]: one stretch of the soak: tables alone or whole spaces, of which format, on which machine, how fast they change
//! hands.

use crate::world::{self, Memory, Shape, Tagging};
use ept::Ept;
use model::{Dice, Oracles, Plain, Plan, Report, Style, Tiny, stress};
use stage2::{Bbm, Format, Geometry};
use std::fmt;
use types::Height;
use vmsa::{Controls, Features, Granule, Granule4K, Granule16K, Granule64K, Layout, Vmsa};

/// Whose tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tables {
    /// The tiny format's: two entries each, so that everybody meets everybody.
    Tiny,
    Arm4K,
    Arm16K,
    Arm64K,
    Intel,
}

/// One stretch of the soak.
#[derive(Debug)]
pub(crate) struct Epoch {
    seed: u64,
    number: u64,
    tables: Tables,
    plan: Plan,
    /// Of a whole space; `None` where the tables are alone.
    shape: Option<Shape>,
    /// Whether the hardware keeps dirty flags.
    features: Features,
}

impl Epoch {
    /// Makes epoch `number` of the run with `seed`.
    pub(crate) fn number(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed.wrapping_add(number.wrapping_mul(0x1_0001)));
        let tables = match dice.roll(40) {
            0 => Tables::Arm64K,
            1 => Tables::Arm16K,
            2..4 => Tables::Arm4K,
            4 => Tables::Intel,
            _ => Tables::Tiny,
        };
        let style = match (tables, dice.roll(6)) {
            (Tables::Intel, _) => Style::Interrupt,
            (_, 0) => Style::InterruptArm,
            _ => Style::Broadcast,
        };
        let bbm = if tables == Tables::Intel { Bbm::Level3 } else { Bbm::from_number(dice.roll(4) as u8) };
        let operations = match tables {
            Tables::Tiny => 200,
            Tables::Arm64K => 6,
            Tables::Arm16K => 10,
            Tables::Arm4K | Tables::Intel => 25,
        };
        let plan = Plan {
            cpus: 2 + dice.roll(3) as usize,
            operations,
            lives: 2,
            style,
            bbm,
            waiting: dice.roll(4),
            oracles: if dice.one_in(4) { Oracles::Machine } else { Oracles::All },
            pace: *dice.pick(&[1, 2, 3, 5, 8, 20, 60]),
            ..Plan::new(dice.number())
        };
        let features = *dice.pick(&[Features::empty(), Features::HARDWARE_DIRTY, Features::all()]);
        let epoch = Self { seed, number, tables, plan, shape: None, features };
        if dice.one_in(3) { epoch } else { epoch.with_a_space(&mut dice) }
    }

    /// The same, of whole spaces: their frames are of 4 KiB, and invalidations are broadcast.
    fn with_a_space(self, dice: &mut Dice) -> Self {
        let tables = match self.tables {
            Tables::Arm4K | Tables::Tiny => self.tables,
            _ => Tables::Tiny,
        };
        let tagging = if dice.one_in(5) { Tagging::Shared } else { Tagging::Fixed };
        let oracles = if tagging == Tagging::Shared { Oracles::Machine } else { self.plan.oracles };
        let memory = if dice.one_in(8) { Memory::Scarce } else { Memory::Enough };
        let ram = match (tables, memory) {
            (Tables::Tiny, Memory::Enough) => 128 << 12,
            (Tables::Tiny, Memory::Scarce) => 40 << 12,
            (_, Memory::Enough) => 32 << 20,
            (_, Memory::Scarce) => 9 << 20,
        };
        let bbm = Bbm::from_number(dice.roll(4) as u8);
        let (style, operations) = match tables {
            Tables::Tiny => (Style::Broadcast, 120),
            _ => (Style::Broadcast, 25),
        };
        let plan = Plan { style, operations, oracles, bbm, lives: 3, ..self.plan };
        Self { tables, plan, shape: Some(Shape { ram, tagging, memory }), ..self }
    }

    /// Runs it.
    pub(crate) fn run(&self) -> Report {
        match self.tables {
            Tables::Tiny => {
                // Whole spaces are also run where the hardware keeps no dirty flag: there a log takes the right to write.
                if self.shape.is_some() && self.features.is_empty() {
                    let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
                    return self.stress(Plain, geometry);
                }
                let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
                self.stress(Tiny, geometry)
            }
            Tables::Arm4K => self.arm::<Granule4K>(40),
            Tables::Arm16K => self.arm::<Granule16K>(47),
            Tables::Arm64K => self.arm::<Granule64K>(48),
            Tables::Intel => {
                let mut features = ept::Features::all();
                features.set(ept::Features::ACCESSED_DIRTY, !self.features.is_empty());
                let geometry = Geometry::new(Height::new(3), 48).expect("possible");
                self.stress(Ept::new(features), geometry)
            }
        }
    }

    fn stress<F: Format>(&self, format: F, geometry: Geometry<F>) -> Report {
        match self.shape {
            None => stress(format, geometry, &self.plan),
            Some(shape) => world::stress(format, geometry, &self.plan, shape),
        }
    }

    /// Tells whether it is of whole spaces.
    pub(crate) fn is_of_spaces(&self) -> bool {
        self.shape.is_some()
    }

    fn arm<G: Granule>(&self, ipa_bits: u32) -> Report {
        let layout = Layout::<G>::choose(ipa_bits, Height::new(2), 6, Controls::empty()).expect("possible");
        self.stress(Vmsa::<G>::new(self.features), layout.geometry())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "epoch {} of seed {}: {:?} {:?} {:?} {:?}",
            self.number, self.seed, self.tables, self.features, self.shape, self.plan
        )?;
        write!(f, "replay: cargo xtask soak --seed {} --epoch {}", self.seed, self.number)
    }
}
