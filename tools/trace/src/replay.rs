//! A machine's tables at any record of its trace.

use crate::tables::{Shape, Tables};
use anyhow::Result;
use std::collections::{BTreeMap, HashMap};
use trace::{Kind, Record};
use types::{FRAME_SIZE, Pa};

/// Of a start's small operand: the machine is a PC.
const PC: u8 = 2;

/// Words of a frame.
const WORDS: usize = FRAME_SIZE as usize / 8;

/// The tables, as they are after the records that were applied.
#[derive(Debug, Default)]
pub struct Replay {
    frames: HashMap<u64, Box<[u64; WORDS]>>,
    spaces: BTreeMap<u16, Shape>,
    /// Whether the machine is a PC.
    is_pc: bool,
}

impl Replay {
    /// Applies the next record.
    ///
    /// # Errors
    /// It is of a space that cannot be.
    pub fn apply(&mut self, record: &Record) -> Result<()> {
        let Record { kind, small, operands: [a, b, c], .. } = *record;
        match kind {
            // What is there by then is told.
            Kind::Begin => *self = Self { is_pc: self.is_pc, ..Self::default() },
            Kind::Start => self.is_pc = small & PC != 0,
            Kind::Space | Kind::There => {
                let of = if self.is_pc { Shape::of_pc } else { Shape::of };
                self.spaces.insert(b as u16, of(Pa::new(a), b, c, small)?);
            }
            Kind::SpaceGone => {
                self.spaces.remove(&(b as u16));
            }
            // What was in it is no entry; whoever takes it writes all that is to be there and not absent.
            Kind::Take => frames(a, b).for_each(|frame| {
                self.frames.insert(frame, Box::new([0; WORDS]));
            }),
            Kind::GiveBack => frames(a, b).for_each(|frame| {
                self.frames.remove(&frame);
            }),
            Kind::Write => {
                let frame = self.frames.entry(a / FRAME_SIZE).or_insert_with(|| Box::new([0; WORDS]));
                frame[(a % FRAME_SIZE / 8) as usize] = c;
            }
            Kind::Known => {
                let frame = self.frames.entry(a / FRAME_SIZE).or_insert_with(|| Box::new([0; WORDS]));
                let word = &mut frame[(a % FRAME_SIZE / 8) as usize];
                // What was written meanwhile is later.
                *word = if *word == 0 { b } else { *word };
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the space of this owner, if it is there.
    pub fn space(&self, owner: u16) -> Option<&Shape> {
        self.spaces.get(&owner)
    }

    /// Goes through the owners of the spaces that are there.
    pub fn owners(&self) -> impl Iterator<Item = u16> {
        self.spaces.keys().copied()
    }
}

fn frames(at: u64, bytes: u64) -> std::ops::Range<u64> {
    at / FRAME_SIZE..(at + bytes).div_ceil(FRAME_SIZE)
}

impl Tables for Replay {
    fn table(&self, at: Pa, count: usize) -> Result<Vec<u64>> {
        let first = at.get() / FRAME_SIZE;
        let words = (first..).flat_map(|frame| match self.frames.get(&frame) {
            Some(words) => words.as_slice(),
            None => &[0; WORDS],
        });
        Ok(words.copied().skip((at.get() % FRAME_SIZE / 8) as usize).take(count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{Format, Found, each};
    use stage2::{Attrs, Entry, Leaf, Table, Why};
    use types::{CpuId, Height};

    fn record(kind: Kind, operands: [u64; 3]) -> Record {
        Record { number: 0, cpu: CpuId::BOOT, kind, small: 2, operands }
    }

    #[test]
    fn tables_are_what_was_written_to_them() {
        const SHAPE: u64 = 3 | 40 << 16 | 2 << 24;
        written(SHAPE, Shape::of(Pa::new(0), SHAPE, 0, 2).expect("a shape").format, Replay::default());
    }

    #[test]
    fn tables_of_a_pc_are_read_as_such() {
        const SHAPE: u64 = 3 | 39 << 16 | 2 << 24;
        let mut replay = Replay::default();
        replay.apply(&Record { small: 3, ..record(Kind::Start, [0, 2, 0]) }).expect("a start");
        written(SHAPE, Shape::of_pc(Pa::new(0), SHAPE, 0b1111, 2).expect("a shape").format, replay);
    }

    fn written(shape: u64, format: Format, mut replay: Replay) {
        let mut apply = |kind, operands| replay.apply(&record(kind, operands)).expect("a possible space");
        apply(Kind::Take, [0x10_0000, 0x2000, 3]);
        let features = if matches!(format, Format::Pc(_)) { 0b1111 } else { 0 };
        apply(Kind::Space, [0x10_0000, shape, features]);
        let leaf = |pa| Entry::Leaf(Leaf { pa: Pa::new(pa), attrs: Attrs::RAM });
        let link = |pa, why| Entry::Table(Table { pa: Pa::new(pa), pending: false, why });
        let (block, page) = (Height::new(1), Height::PAGE);
        let mut write = |at: u64, entry, height| apply(Kind::Write, [at, 0, format.encode(entry, height)]);
        write(0x10_0000 + 8, link(0x20_0000, Why::Alignment), Height::new(2));
        write(0x20_0000, leaf(0x60_0000), block);
        write(0x20_0008, link(0x30_0000, Why::Pin), block);
        write(0x30_0010, leaf(0x9000), page);
        let shape = *replay.space(3).expect("it is there");
        let mut found: Vec<Found> = Vec::new();
        let range = (0x4000_0000, 0x4040_0000);
        each(&replay, &shape, range, &mut |one| found.push(*one)).expect("tables can be read");
        assert_eq!(found.len(), 1 + 512);
        assert_eq!((found[0].at, found[0].height, found[0].why), (0x4000_0000, block, Why::Alignment));
        let mapped = found.iter().filter(|one| one.entry.live().is_some());
        assert_eq!(mapped.map(|one| one.at).collect::<Vec<_>>(), [0x4000_0000, 0x4020_2000]);
        assert_eq!(found[1 + 2].why, Why::Pin);
        replay.apply(&record(Kind::SpaceGone, [0, 3, 0])).expect("it was there");
        assert_eq!(replay.owners().count(), 0);
    }
}
