//! [`Epoch`]: one stretch of the soak: which tables, on which machine, how fast they change hands.

use ept::Ept;
use model::{Dice, Oracles, Plan, Report, Style, Tiny, stress};
use stage2::{Bbm, Geometry};
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
        Self { seed, number, tables, plan, features }
    }

    /// Runs it.
    pub(crate) fn run(&self) -> Report {
        match self.tables {
            Tables::Tiny => {
                let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
                stress(Tiny, geometry, &self.plan)
            }
            Tables::Arm4K => self.arm::<Granule4K>(40),
            Tables::Arm16K => self.arm::<Granule16K>(47),
            Tables::Arm64K => self.arm::<Granule64K>(48),
            Tables::Intel => {
                let mut features = ept::Features::all();
                features.set(ept::Features::ACCESSED_DIRTY, !self.features.is_empty());
                let geometry = Geometry::new(Height::new(3), 48).expect("possible");
                stress(Ept::new(features), geometry, &self.plan)
            }
        }
    }

    fn arm<G: Granule>(&self, ipa_bits: u32) -> Report {
        let layout = Layout::<G>::choose(ipa_bits, Height::new(2), 6, Controls::empty()).expect("possible");
        stress(Vmsa::<G>::new(self.features), layout.geometry(), &self.plan)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "epoch {} of seed {}: {:?} {:?} {:?}",
            self.number, self.seed, self.tables, self.features, self.plan
        )?;
        write!(f, "replay: cargo xtask soak --seed {} --epoch {}", self.seed, self.number)
    }
}
