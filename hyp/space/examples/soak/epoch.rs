//! [`Epoch`]: one stretch of the soak: tables alone or whole spaces, of which format, on which machine, how fast they change
//! hands.

use crate::races::{Place, Race};
use crate::world::{self, Caches, Memory, Shape, Tagging};
use ept::Ept;
use model::{Dice, Oracles, Plain, Plan, Report, Style, Tiny, stress};
use stage2::{Bbm, Format, Geometry, Hears, IommuCapability, OnFault, Upkeep};
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

impl Tables {
    /// Chooses how CPUs that walk them are made to forget.
    fn style(self, dice: &mut Dice) -> Style {
        match (self, dice.roll(6)) {
            (Self::Intel, _) | (Self::Tiny, 0) => Style::Interrupt,
            (_, 1 | 2) => Style::InterruptArm,
            _ => Style::Broadcast,
        }
    }

    /// Returns the level for a machine of this style: CPUs of Intel's change sizes in place.
    fn bbm(self, style: Style, bbm: Bbm) -> Bbm {
        if style == Style::Interrupt { Bbm::Level3 } else { bbm }
    }
}

/// One stretch of the soak.
#[derive(Debug)]
pub(crate) struct Epoch {
    seed: u64,
    number: u64,
    /// What it is about; `None` where it is of anything.
    race: Option<&'static Race>,
    tables: Tables,
    plan: Plan,
    /// Of a whole space; `None` where the tables are alone.
    shape: Option<Shape>,
    /// Whether the hardware keeps dirty flags, and whether guests' caches are what the host says (FWB).
    features: Features,
}

impl Epoch {
    /// Makes epoch `number` of the run with `seed`, about `race`.
    pub(crate) fn number(seed: u64, number: u64, race: Option<&'static Race>) -> Self {
        let mut dice = Dice::new(seed.wrapping_add(number.wrapping_mul(0x1_0001)));
        let has_device = race.is_some_and(|race| race.place.has_device());
        let tables = match dice.roll(if race.is_some() { 120 } else { 40 }) {
            0 => Tables::Arm64K,
            1 => Tables::Arm16K,
            2..4 => Tables::Arm4K,
            4..6 if !has_device => Tables::Intel,
            _ => Tables::Tiny,
        };
        let (dirty, fwb) = (Features::HARDWARE_DIRTY, Features::FWB);
        let features = *dice.pick(&[Features::empty(), dirty, fwb, dirty.union(fwb)]);
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
            style: tables.style(&mut dice),
            bbm: Bbm::from_number(dice.roll(4) as u8),
            waiting: dice.roll(4),
            oracles: if dice.one_in(4) { Oracles::Machine } else { Oracles::All },
            pace: *dice.pick(&[1, 2, 3, 5, 8, 20, 60]),
            ..Plan::new(dice.number())
        };
        let epoch = Self { seed, number, race, tables, plan, shape: None, features };
        let is_of_tables = match race {
            Some(race) => matches!(race.place, Place::Tables | Place::TwoSizes | Place::Device),
            None => dice.one_in(3),
        };
        let epoch = if is_of_tables { epoch } else { epoch.with_a_space(&mut dice) };
        epoch.about(&mut dice).with_a_device(&mut dice)
    }

    /// The same, in a quarter of all cases with a device behind an IOMMU: of tables alone, attached all the time.
    fn with_a_device(mut self, dice: &mut Dice) -> Self {
        let is_wanted = self.race.is_some_and(|race| race.place.has_device());
        let has_tag = self.shape.is_none_or(|shape| shape.tagging == Tagging::Fixed);
        if self.plan.style == Style::Broadcast && has_tag && (is_wanted || dice.one_in(4)) {
            let on_faults = [OnFault::Terminates, OnFault::Stalls];
            self.plan.iommu = Some(IommuCapability {
                upkeep: *dice.pick(&[Upkeep::Nothing, Upkeep::Accessed, Upkeep::AccessedAndDirty]),
                on_fault: if is_wanted { OnFault::Terminates } else { *dice.pick(&on_faults) },
                bbm: Bbm::from_number(dice.roll(4) as u8),
                hears: Hears::Broadcasts,
            });
            self.plan.oracles = Oracles::Machine;
        }
        self
    }

    /// The same, of whole spaces: their frames are of 4 KiB, and tags that change are for where invalidations are broadcast.
    fn with_a_space(self, dice: &mut Dice) -> Self {
        let tables = match self.tables {
            Tables::Arm4K | Tables::Intel | Tables::Tiny => self.tables,
            _ => Tables::Tiny,
        };
        let is_tagged = tables != Tables::Intel && dice.one_in(5);
        let tagging = match self.race {
            Some(race) if race.place == Place::SharedTags => Tagging::Shared,
            None if is_tagged => Tagging::Shared,
            _ => Tagging::Fixed,
        };
        // Where tags are shared, everything is of Arm.
        let tables =
            if tagging == Tagging::Shared && tables == Tables::Intel { Tables::Tiny } else { tables };
        let (style, oracles) = match tagging {
            Tagging::Shared => (Style::Broadcast, Oracles::Machine),
            Tagging::Fixed if self.race.is_some_and(|race| race.place.has_device()) => {
                (Style::Broadcast, self.plan.oracles)
            }
            Tagging::Fixed => (tables.style(dice), self.plan.oracles),
        };
        let memory = if dice.one_in(8) { Memory::Scarce } else { Memory::Enough };
        let ram = match (tables, memory) {
            (Tables::Tiny, Memory::Enough) => 128 << 12,
            (Tables::Tiny, Memory::Scarce) => 40 << 12,
            (_, Memory::Enough) => 32 << 20,
            (_, Memory::Scarce) => 9 << 20,
        };
        let operations = if tables == Tables::Tiny { 120 } else { 25 };
        // Intel's hypervisor says what is cached.
        let is_forced = tables == Tables::Intel || self.features.contains(Features::FWB);
        let caches = if is_forced { Caches::Forced } else { Caches::Apart };
        let plan = Plan { style, operations, oracles, lives: 3, ..self.plan };
        Self { tables, plan, shape: Some(Shape { ram, tagging, memory, caches }), ..self }
    }

    /// The same, so that its race is met, if it is about one.
    fn about(mut self, dice: &mut Dice) -> Self {
        let bbm = self.tables.bbm(self.plan.style, self.plan.bbm);
        self.plan.bbm = bbm;
        let Some(race) = self.race else { return self };
        self.plan.likes = Some(race.likes);
        self.plan.lingers = *dice.pick(&[2, 3, 6]);
        self.plan.longest = match race.place {
            Place::SharedTags => *dice.pick(&[500, 2000, 5000]),
            Place::SlowLooks => *dice.pick(&[500, 1000, 2000]),
            _ => *dice.pick(&[60, 200, 600]),
        };
        self.plan.pace = *dice.pick(&[1, 2, 3, 5]);
        match race.place {
            Place::TwoSizes => self.plan.bbm = *dice.pick(&[Bbm::Level2, Bbm::Level3]),
            Place::ShortLives => (self.plan.lives, self.plan.operations) = (12, self.plan.operations.min(25)),
            Place::AboveLevel0 => self.plan.bbm = bbm.max(Bbm::Level1),
            Place::Device => self.plan.style = Style::Broadcast,
            Place::Tables | Place::Space | Place::SlowLooks | Place::SharedTags | Place::SpaceWithDevice => {}
        }
        self
    }

    /// Runs it.
    pub(crate) fn run(&self) -> Report {
        match self.tables {
            Tables::Tiny => {
                // Where the hardware keeps no dirty flag, a log takes the right to write.
                if !self.features.contains(Features::HARDWARE_DIRTY) {
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
                features.set(ept::Features::ACCESSED_DIRTY, self.features.contains(Features::HARDWARE_DIRTY));
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

    /// Returns the command that runs it again, and nothing else.
    pub(crate) fn replay(&self) -> String {
        let race = self.race.map_or(String::new(), |race| format!(" --race '{race}'"));
        format!("cargo xtask soak --seed {} --epoch {}{race}", self.seed, self.number)
    }

    /// Says what it is of: whose tables, alone or of spaces.
    pub(crate) fn of_what(&self) -> String {
        format!("{:?}{}", self.tables, if self.is_of_spaces() { ", spaces" } else { "" })
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
        let Self { seed, number, tables, features, shape, plan, race: _ } = self;
        write!(f, "epoch {number} of seed {seed}: {tables:?} {features:?} {shape:?} {plan:?}")
    }
}
