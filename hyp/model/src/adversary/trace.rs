//! [`Trace`]: what was done lately, so that a failure can tell its story.

use super::cache::Translation;
use super::errand::Errand;
use crate::Effect;
use std::collections::VecDeque;
use std::fmt;
use types::{Pa, Range};

/// What is kept, and what is told of it.
const KEPT: usize = 8192;
const TOLD: usize = 160;

/// Something that was done, or happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Software or an instruction.
    Effect(Effect),
    /// An operation begins on a CPU.
    Begins(usize, Errand, Range),
    /// It has ended, and has got so far.
    Ends(usize, Errand, Range),
    /// An observer has cached a leaf.
    Cached(usize, Translation),
    /// The same, combined with stage 1.
    Combined(usize, Translation),
    /// An observer has cached a link to this table.
    Linked(usize, Pa, Range),
    /// An instruction has reached an observer.
    Reached(usize, crate::Tlbi),
    /// The hardware has set flags in an entry.
    Flagged(usize, Pa, usize, u64),
    /// A guest or a device has written.
    Wrote(usize, types::Ipa, Pa),
}

/// What was done lately: each with the time, and the addresses that it is about, where that is known.
#[derive(Debug, Default)]
pub(super) struct Trace {
    events: VecDeque<(u64, Option<Range>, Event)>,
}

impl Trace {
    /// Notes an event.
    pub(super) fn push(&mut self, time: u64, about: Option<Range>, event: Event) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back((time, about, event));
    }

    /// Tells what concerns `range` or `table`, the last of it.
    pub(super) fn tell(&self, range: Option<Range>, table: Option<Pa>) -> Vec<String> {
        let names = |event: &Event| match event {
            Event::Effect(Effect::Write { table: at, .. } | Effect::GiveBack { table: at })
            | Event::Flagged(_, at, ..)
            | Event::Linked(_, at, _) => Some(*at) == table,
            Event::Effect(Effect::Take { table: at, .. }) => Some(*at) == table,
            // Barriers and the like are about everything.
            Event::Effect(
                Effect::Dsb { .. } | Effect::Tlbi { .. } | Effect::Invept { .. } | Effect::GraceOver { .. },
            ) => true,
            _ => false,
        };
        let concerns = |about: Option<Range>| match (about, range) {
            (Some(about), Some(range)) => about.overlaps(range),
            _ => false,
        };
        let mut told: Vec<String> = self
            .events
            .iter()
            .rev()
            .filter(|(_, about, event)| concerns(*about) || names(event))
            .take(TOLD)
            .map(|(time, _, event)| format!("{time}: {event}"))
            .collect();
        told.reverse();
        told
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Effect(effect) => write!(f, "{effect:x?}"),
            Self::Begins(cpu, errand, range) => write!(f, "CPU {cpu} begins a {errand} of {range:x?}"),
            Self::Ends(cpu, errand, range) => write!(f, "CPU {cpu} ends its {errand} of {range:x?}"),
            Self::Cached(who, leaf) => write!(f, "{who} caches {leaf}"),
            Self::Combined(who, leaf) => write!(f, "{who} combines {leaf} with stage 1"),
            Self::Linked(who, table, range) => write!(f, "{who} caches a link to {table:x?} for {range:x?}"),
            Self::Reached(who, tlbi) => write!(f, "{who} obeys {tlbi:x?}"),
            Self::Flagged(who, table, index, raw) => {
                write!(f, "{who} sets flags in entry {index} of {table:x?}: {raw:#x}")
            }
            Self::Wrote(who, ipa, pa) => write!(f, "{who} writes {ipa:x?} at {pa:x?}"),
        }
    }
}
