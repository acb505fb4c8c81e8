//! The hypervisor's own command line: `key=value` words in `/chosen/bootargs`, or behind the image's name
//! in the boot loader's configuration.

use crate::provoke::Provoke;
#[cfg(not(pc))]
use aarch64::guest::tlb::Style;
use core::num::NonZeroU32;
use log::LevelFilter;
use stage2::Bbm;
use trace::Since;

/// What the command line says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// `log=off|error|warn|info|debug|trace`; info where it does not say.
    pub log: LevelFilter,
    /// `invalidate=broadcast|interrupt`: how other CPUs are made to forget translations; broadcast where it does not say. A PC
    /// has interrupts only.
    #[cfg(not(pc))]
    pub invalidate: Style,
    /// `wait=epoch|count|rendezvous|batched`: how readers of tables are waited for; epoch where it does not say.
    pub wait: Way,
    /// `bbm=0|1|2|3`: the break-before-make level to use at most; what the CPUs can do where it does not say.
    pub bbm: Bbm,
    /// `exercise=resize|cpus`: work for these mechanisms while guests run, or for firmware before they do; none where it does not
    /// say.
    pub exercise: Exercise,
    /// `trace=KEY`, a hexadecimal number: what is done to tables and TLBs is recorded, for a tool that finds it by the key;
    /// `trace=uart`: it goes out by a second UART; `trace=printer`: by a PC's parallel port; `trace-later=…`: when a guest asks for it.
    pub trace: Option<(To, Since)>,
    /// `view=KEY`, a hexadecimal number: what is counted, and where tables are, is put where a tool finds it by the key.
    pub view: Option<u64>,
    /// `churn=N`: changes that are made to guests' memory each second while they run, at least 1; none where it does not say.
    pub churn: Option<NonZeroU32>,
    /// `end=off|reset`: what becomes of the machine when the last guest is off; it is turned off where it does not say.
    pub end: End,
    /// `provoke=panic|overflow|null|write-code|execute-data|undefined`, and on a PC `entry|state`: a bug to provoke, for tests of
    /// the report.
    pub provoke: Option<Provoke>,
}

/// A way of waiting for readers ([`stage2::Quiescence`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Way {
    /// [`stage2::EntryEpoch`].
    #[default]
    Epoch,
    /// [`stage2::ReaderCount`].
    Count,
    /// [`stage2::IpiRendezvous`].
    Rendezvous,
    /// [`stage2::Batched`].
    Batched,
}

impl Way {
    /// Every way, by the name that the command line gives it.
    const NAMES: [(&'static str, Self); 4] = [
        ("epoch", Self::Epoch),
        ("count", Self::Count),
        ("rendezvous", Self::Rendezvous),
        ("batched", Self::Batched),
    ];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, way)| *way == self).map_or("", |(name, _)| name)
    }
}

/// Where the trace goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// Into memory that a tool shares, which finds it by this key.
    Memory(u64),
    /// Out by a second UART.
    Uart,
    /// Out by a PC's first parallel port.
    #[cfg(target_arch = "x86_64")]
    Printer,
}

impl To {
    fn parse(value: &str) -> Option<Self> {
        match value {
            "uart" => Some(Self::Uart),
            #[cfg(target_arch = "x86_64")]
            "printer" => Some(Self::Printer),
            key => u64::from_str_radix(key, 16).ok().map(Self::Memory),
        }
    }
}

/// Work for the mechanisms that may be chosen, while guests run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Exercise {
    /// None but what guests make.
    #[default]
    None,
    /// Splitting blocks and collapsing them again.
    Resize,
    /// Turning the other CPUs off and on again, before guests run.
    #[cfg(not(pc))]
    Cpus,
}

impl Exercise {
    /// Each, by the name that the command line gives it.
    const NAMES: &[(&str, Self)] = &[
        ("resize", Self::Resize),
        #[cfg(not(pc))]
        ("cpus", Self::Cpus),
    ];
}

/// What becomes of the machine when the last guest is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum End {
    /// It is turned off.
    #[default]
    Off,
    /// It starts again.
    Reset,
}

#[cfg(not(pc))]
/// The styles of invalidation, by the names that the command line gives them.
const STYLES: [(&str, Style); 2] = [("broadcast", Style::Broadcast), ("interrupt", Style::Interrupt)];

/// The levels of break-before-make, by theirs.
const LEVELS: [(&str, Bbm); 4] =
    [("0", Bbm::Level0), ("1", Bbm::Level1), ("2", Bbm::Level2), ("3", Bbm::Level3)];

/// Finds what a word's value names.
fn named<T: Copy>(names: &[(&str, T)], value: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == value).map(|(_, named)| *named)
}

#[cfg(not(pc))]
/// Returns the name that the command line gives a style.
pub(crate) fn style_name(style: Style) -> &'static str {
    STYLES.iter().find(|(_, named)| *named == style).map_or("", |(name, _)| name)
}

/// A word of the command line that means nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unknown<'a>(pub &'a str);

impl Options {
    /// Reads a command line. Words that mean nothing are handed to `unknown` and otherwise ignored: a loader adds
    /// some that are for others.
    pub fn parse<'a>(line: &'a str, mut unknown: impl FnMut(Unknown<'a>)) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            if options.read(word).is_none() {
                unknown(Unknown(word));
            }
        }
        options
    }

    /// Reads one word; `None` where it means nothing.
    fn read(&mut self, word: &str) -> Option<()> {
        let (key, value) = word.split_once('=')?;
        match key {
            "log" => self.log = value.parse().ok()?,
            #[cfg(not(pc))]
            "invalidate" => self.invalidate = named(&STYLES, value)?,
            "wait" => self.wait = named(&Way::NAMES, value)?,
            "exercise" => self.exercise = named(Exercise::NAMES, value)?,
            "churn" => self.churn = Some(value.parse().ok()?),
            "bbm" => self.bbm = named(&LEVELS, value)?,
            "trace" => self.trace = Some((To::parse(value)?, Since::Start)),
            "trace-later" => self.trace = Some((To::parse(value)?, Since::Begin)),
            "view" => self.view = Some(u64::from_str_radix(value, 16).ok()?),
            "end" => self.end = named(&[("off", End::Off), ("reset", End::Reset)], value)?,
            "provoke" => self.provoke = Some(Provoke::parse(value)?),
            _ => return None,
        }
        Some(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LevelFilter::Info,
            #[cfg(not(pc))]
            invalidate: Style::Broadcast,
            wait: Way::Epoch,
            bbm: Bbm::Level3,
            exercise: Exercise::None,
            trace: None,
            view: None,
            churn: None,
            end: End::Off,
            provoke: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn the_last_log_level_counts_and_other_words_are_told() {
        let mut others = Vec::new();
        let options = Options::parse(" log=debug quiet  log=off log=loud ", |u| others.push(u.0));
        assert_eq!(options, Options { log: LevelFilter::Off, ..Options::default() });
        assert_eq!(others, ["quiet", "log=loud"]);
    }

    #[test]
    fn an_empty_line_logs_at_info() {
        assert_eq!(Options::parse("", |_| panic!("no word")).log, LevelFilter::Info);
    }

    #[test]
    fn the_mechanisms_can_be_exchanged_by_name() {
        let line = "invalidate=interrupt wait=batched bbm=1 exercise=resize wait=sleep bbm=4 invalidate=";
        let mut others = Vec::new();
        let options = Options::parse(line, |u| others.push(u.0));
        assert_eq!((options.invalidate, options.wait), (Style::Interrupt, Way::Batched));
        assert_eq!((options.bbm, options.exercise), (Bbm::Level1, Exercise::Resize));
        assert_eq!(others, ["wait=sleep", "bbm=4", "invalidate="]);
        assert_eq!((options.wait.name(), style_name(options.invalidate)), ("batched", "interrupt"));
    }

    #[test]
    fn the_trace_and_the_view_have_keys() {
        let options = Options::parse("trace=5eed trace=on view=7", |u| assert_eq!(u.0, "trace=on"));
        assert_eq!((options.trace, options.view), (Some((To::Memory(0x5eed), Since::Start)), Some(7)));
        let options = Options::parse("trace-later=uart", |u| panic!("{u:?}"));
        assert_eq!(options.trace, Some((To::Uart, Since::Begin)));
    }

    #[test]
    fn a_rate_is_a_number_that_is_not_zero() {
        let mut others = Vec::new();
        let options = Options::parse("churn=2000 churn=0 churn=-1 churn=fast", |u| others.push(u.0));
        assert_eq!(options.churn.map(NonZeroU32::get), Some(2000));
        assert_eq!(others, ["churn=0", "churn=-1", "churn=fast"]);
    }

    #[test]
    fn cpus_can_be_exercised() {
        assert_eq!(Options::parse("exercise=cpus", |u| panic!("{u:?}")).exercise, Exercise::Cpus);
    }

    #[test]
    fn the_end_is_chosen_by_name() {
        let options = Options::parse("end=reset end=never", |u| assert_eq!(u.0, "end=never"));
        assert_eq!(options.end, End::Reset);
        assert_eq!(Options::parse("end=reset end=off", |u| panic!("{u:?}")), Options::default());
    }

    #[test]
    fn a_bug_can_be_asked_for_by_name() {
        let options =
            Options::parse("provoke=overflow provoke=nothing", |u| assert_eq!(u.0, "provoke=nothing"));
        assert_eq!(options.provoke, Some(Provoke::Overflow));
    }
}
