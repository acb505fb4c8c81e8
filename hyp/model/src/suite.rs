//! The shared suite: one sequence of operations, run on any format, or on several in step.
//!
//! Operations speak of places, not of addresses, so that one sequence means the same in every format: near the start or
//! the end of a block, some blocks around the middle of what the tree reaches, where entries of every height meet.
//!
//! A new operation of the library is a variant of [`Op`] and its line in `Player::act`.

use crate::{Content, Flat, Machine, Rig};
use stage2::{
    Attrs, Bbm, ChangeError, CollapseError, Format, Geometry, MapError, Mapping, Marks, Memory, Owner, Why,
    span,
};
use std::fmt;
use types::{Access, Height, Ipa, Pa, Range};

/// A page of a block.
#[derive(Clone, Copy, Debug)]
pub enum Near {
    /// So many pages behind the block's start.
    Start(u8),
    /// So many pages before its end.
    End(u8),
    /// In its middle.
    Middle,
}

/// A place among the few blocks that sequences work in.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// Which block, modulo those there are.
    pub block: u8,
    /// Which page of it.
    pub page: Near,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Map what is between two places.
    Map {
        /// One end.
        from: Spot,
        /// The other.
        to: Spot,
        /// How far off the addresses are from fitting blocks: at 3, and there only, by a page.
        shift: u8,
        /// Which of [`CHOICES`] attributes.
        attrs: u8,
        /// The largest leaf.
        largest: u8,
    },
    /// Unmap what is between two places.
    Unmap {
        /// One end.
        from: Spot,
        /// The other.
        to: Spot,
    },
    /// Unmap all there is.
    UnmapAll,
    /// Change rights between two places.
    Protect {
        /// One end.
        from: Spot,
        /// The other.
        to: Spot,
        /// The rights.
        access: Access,
    },
    /// Split what maps a place.
    Split {
        /// The place.
        at: Spot,
        /// How far down.
        height: u8,
    },
    /// Put a note on what is between two places.
    Annotate {
        /// One end.
        from: Spot,
        /// The other.
        to: Spot,
        /// The note.
        payload: u32,
    },
    /// Make one block of what maps the block around a place, where that is possible.
    Collapse {
        /// The place.
        at: Spot,
    },
    /// Clean what is dirty between two places; then the guest writes again to all that was reported.
    Harvest {
        /// One end.
        from: Spot,
        /// The other.
        to: Spot,
    },
    /// Make what is young between two places old.
    Age {
        /// One end.
        from: Spot,
        /// The other.
        to: Spot,
    },
    /// Have what maps a place, page or block, map other memory.
    Move {
        /// The place.
        at: Spot,
    },
    /// Give empty tables back.
    Prune,
    /// Let the next operation find memory for this many tables, and no more.
    Allow(u8),
}

/// The number of attributes that [`Op::Map`] chooses from. All formats can express the rights among them.
pub const CHOICES: u8 = 8;

fn attrs(choice: u8) -> Attrs {
    match choice % CHOICES {
        0 | 1 => Attrs::RAM,
        2 => Attrs::RAM.with_access(Access::RX),
        3 => Attrs::DEVICE,
        4 => Attrs { memory: Memory::Uncached, ..Attrs::RAM },
        5 => Attrs::RAM.without(Marks::YOUNG.union(Marks::DIRTY)),
        6 => Attrs { owner: Owner::Borrowed, ..Attrs::RAM.without(Marks::DIRTY) },
        _ => Attrs::RAM.with_access(Access::empty()).without(Marks::YOUNG),
    }
}

/// Why an operation ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Mapping did.
    Map(MapError),
    /// A change did.
    Change(ChangeError),
    /// A collapse did.
    Collapse(CollapseError),
}

impl From<CollapseError> for Refusal {
    fn from(error: CollapseError) -> Self {
        Self::Collapse(error)
    }
}

impl From<MapError> for Refusal {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Self {
        Self::Change(error)
    }
}

impl Refusal {
    /// Returns the same without the height of the entry that was met: what trees of different height agree in.
    #[must_use]
    pub fn without_height(self) -> Self {
        let height = Height::PAGE;
        match self {
            Self::Map(MapError::Busy { ipa, .. }) => Self::Map(MapError::Busy { ipa, height }),
            Self::Map(MapError::Occupied { ipa, .. }) => Self::Map(MapError::Occupied { ipa, height }),
            Self::Map(MapError::Noted { ipa, .. }) => Self::Map(MapError::Noted { ipa, height }),
            Self::Change(ChangeError::Busy { ipa, .. }) => Self::Change(ChangeError::Busy { ipa, height }),
            Self::Change(ChangeError::NoPages { ipa, .. }) => {
                Self::Change(ChangeError::NoPages { ipa, height })
            }
            other => other,
        }
    }
}

/// How an operation ended.
pub type Outcome = Result<(), Refusal>;

/// Where sequences work: a few blocks around an address where larger blocks meet.
#[derive(Clone, Copy, Debug)]
struct Ground {
    middle: u64,
    page: u64,
    block: u64,
}

impl Ground {
    fn of<F: Format>(geometry: &Geometry<F>) -> Self {
        let page = span::<F>(Height::PAGE);
        let block = span::<F>(Height::new(1));
        // Half of the reach: a boundary at every height.
        Self { middle: geometry.reach().len() / 2, page, block }
    }

    fn blocks(&self) -> u64 {
        (self.middle / self.block).min(3)
    }

    fn place(&self, spot: Spot) -> Ipa {
        let blocks = self.blocks();
        let base = self.middle - blocks * self.block + u64::from(spot.block) % (2 * blocks + 1) * self.block;
        let pages = self.block / self.page;
        let page = match spot.page {
            Near::Start(n) => u64::from(n) % pages,
            Near::End(n) => pages - u64::from(n) % pages,
            Near::Middle => pages / 2,
        };
        Ipa::new((base + page * self.page).min(2 * self.middle))
    }

    fn range(&self, from: Spot, to: Spot) -> Range {
        let (a, b) = (self.place(from), self.place(to));
        Range::new(a.min(b), a.max(b)).expect("ordered")
    }
}

/// A tree that operations are played on, with both oracles beside it.
#[derive(Debug)]
pub struct Player<'m, F: Format> {
    rig: Rig<'m, F>,
    ground: Ground,
    label: String,
}

impl<'m, F: Format> Player<'m, F> {
    /// Makes an empty tree on `machine`, which no other tree is on.
    pub fn new(machine: &'m Machine, format: F, geometry: Geometry<F>, bbm: Bbm) -> Self {
        let label = format!("{format:?}, {geometry:?}, {bbm:?}");
        Self { rig: Rig::new(machine, format, geometry, bbm), ground: Ground::of(&geometry), label }
    }

    fn act(&mut self, op: Op) -> Outcome {
        let (ground, rig) = (self.ground, &mut self.rig);
        let reach = rig.tree.geometry().reach();
        match op {
            Op::Map { from, to, shift, attrs: choice, largest } => {
                let range = ground.range(from, to);
                // Congruent to the range at the largest block, but for a page now and then.
                let pa = Pa::new((1 << 40) + range.start().get() + u64::from(shift / 3) * ground.page);
                let largest = Height::new(largest);
                rig.map(&Mapping { range, pa, attrs: attrs(choice), largest, why: Why::Alignment })?;
            }
            Op::Unmap { from, to } => rig.unmap(ground.range(from, to))?,
            Op::UnmapAll => rig.unmap(reach)?,
            Op::Protect { from, to, access } => rig.protect(ground.range(from, to), access)?,
            Op::Split { at, height } => rig.split(ground.place(at), Height::new(height))?,
            Op::Annotate { from, to, payload } => rig.annotate(ground.range(from, to), payload)?,
            Op::Collapse { at } => {
                // How many pages it takes is the level's business: some keep aside what they may have to put back.
                rig.machine().arena().allow(usize::MAX);
                let at = ground.place(at).min(Ipa::new(reach.end().get() - ground.page));
                rig.collapse(at, Height::new(1))?;
            }
            Op::Harvest { from, to } => {
                let reported = rig.harvest(ground.range(from, to));
                rig.write_again(&reported);
            }
            Op::Age { from, to } => {
                rig.age(ground.range(from, to));
            }
            Op::Move { at } => rig.relocate(ground.place(at), 1 << 41),
            Op::Prune => rig.prune(reach),
            Op::Allow(n) => rig.machine().arena().allow(n.into()),
        }
        Ok(())
    }
}

/// A [`Player`] of whatever format.
pub trait Play: fmt::Debug {
    /// Says which format, shape and level this is.
    fn label(&self) -> &str;

    /// Does one operation. What it cannot do it says, and the tree agrees with the list, and the judge with what was
    /// done.
    ///
    /// # Panics
    /// Where one does not.
    fn play(&mut self, op: Op) -> Outcome;

    /// Returns what the tree translates.
    fn flat(&self) -> &Flat;

    /// Returns what the tree is made of: leaves by height, and tables.
    fn shape(&self) -> (Vec<u64>, u64);

    /// Empties and ends the tree, and checks that everything comes back.
    fn finish(self: Box<Self>);
}

impl<F: Format> Play for Player<'_, F> {
    fn label(&self) -> &str {
        &self.label
    }

    fn play(&mut self, op: Op) -> Outcome {
        let outcome = self.act(op);
        if !matches!(op, Op::Allow(_)) {
            self.rig.machine().arena().allow(usize::MAX);
        }
        self.rig.compare();
        outcome
    }

    fn flat(&self) -> &Flat {
        &self.rig.flat
    }

    fn shape(&self) -> (Vec<u64>, u64) {
        let census = self.rig.tree.census();
        (census.leaves.to_vec(), census.tables)
    }

    fn finish(mut self: Box<Self>) {
        let machine = self.rig.machine();
        machine.arena().allow(usize::MAX);
        let reach = self.rig.tree.geometry().reach();
        self.rig.unmap(reach).expect("nothing fails with memory at hand");
        self.rig.prune(reach);
        self.rig.compare();
        assert_eq!(machine.arena().in_use(), 1, "an empty tree is its root");
        self.rig.destroy();
    }
}

/// Returns room for the tables of a sequence.
pub fn machine<F: Format>() -> Machine {
    Machine::new(64 << F::GRANULE_SHIFT)
}

/// Runs a sequence on one tree.
///
/// # Panics
/// Where anything is wrong.
pub fn run<F: Format>(format: F, geometry: Geometry<F>, bbm: Bbm, ops: &[Op]) {
    let machine = machine::<F>();
    let mut player = Box::new(Player::new(&machine, format, geometry, bbm));
    for &op in ops {
        let _ = player.play(op);
    }
    player.finish();
}

/// How much several trees have to agree in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Agreement {
    /// In everything: outcomes, what is translated, and what the trees are made of.
    Exact,
    /// In outcomes, but for the height of what was met, and in what is translated: trees of different height.
    Translation,
    /// In what is translated, where a right that one of them cannot express counts for none.
    Expressible,
}

/// Runs one sequence on several trees in step, and compares them after each operation.
///
/// # Panics
/// Where they do not agree, or anything is wrong with one of them.
pub fn run_in_step(mut players: Vec<Box<dyn Play + '_>>, ops: &[Op], agreement: Agreement) {
    for (n, &op) in ops.iter().enumerate() {
        let outcomes: Vec<_> = players.iter_mut().map(|player| player.play(op)).collect();
        let first = &players[0];
        for (player, &outcome) in players.iter().zip(&outcomes).skip(1) {
            let between = || format!("after operation {n}, {op:?}: {} and {}", first.label(), player.label());
            let flats = (first.flat(), player.flat());
            match agreement {
                Agreement::Exact => {
                    assert_eq!(outcomes[0], outcome, "{}", between());
                    assert_eq!(flats.0, flats.1, "{}", between());
                    assert_eq!(first.shape(), player.shape(), "{}", between());
                }
                Agreement::Translation => {
                    let outcomes = [outcomes[0], outcome].map(|o| o.map_err(Refusal::without_height));
                    assert_eq!(outcomes[0], outcomes[1], "{}", between());
                    assert_eq!(flats.0, flats.1, "{}", between());
                }
                Agreement::Expressible => {
                    assert_eq!(expressible(flats.0), expressible(flats.1), "{}", between());
                }
            }
        }
    }
    for player in players {
        player.finish();
    }
}

/// The list with the rights that every format can express: none without reads.
fn expressible(flat: &Flat) -> Flat {
    let mut common = Flat::new();
    for stretch in flat.stretches() {
        let content = match stretch.content {
            Content::Memory { pa, access, memory, share, owner } if !access.contains(Access::READ) => {
                Content::Memory { pa, access: Access::empty(), memory, share, owner }
            }
            other => other,
        };
        common.insert(stretch.range, content);
    }
    common
}
