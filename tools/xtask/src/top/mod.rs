//! `cargo xtask top`: what a running machine does, in a terminal.
//!
//! ```text
//! the machine's RAM ─▶ tracing_tool::view ──┬─▶ Sample ─▶ screen (ratatui), or JSON
//! a trace, also one that grows ─▶ tally ────┘
//! ```

mod sample;
mod screen;

use crate::view;
use anyhow::{Context, Result};
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
pub(crate) use sample::Sample;
use sample::Shown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing_tool::File;
use tracing_tool::tally::Tally;
use tracing_tool::view::View;

/// What to show, and how.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A trace, of a machine that runs (`run --board bochs --trace`) or has ended; without one, the machine that runs with --view
    trace: Option<PathBuf>,
    /// Print one screen, and end
    #[arg(long)]
    once: bool,
    /// Print all numbers as JSON, and end
    #[arg(long, conflicts_with = "once")]
    json: bool,
    /// Milliseconds from one look to the next
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    every: u64,
}

/// The size of a screen that is printed.
const PRINTED: (u16, u16) = (120, 40);

/// Shows it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut source = match &args.trace {
        Some(trace) => Source::Trace(Box::new(Followed::open(trace)?)),
        None => Source::Machine(view::open()?),
    };
    let every = Duration::from_millis(args.every);
    let first = source.sample()?;
    if args.json {
        println!("{:#}", first.json());
        return Ok(());
    }
    if args.once {
        print!("{}", printed(&source.shown(first, every)?)?);
        return Ok(());
    }
    let mut terminal = ratatui::init();
    let result = watch(&mut terminal, &mut source, first, every);
    ratatui::restore();
    if source.is_gone() {
        println!("the machine is off");
    }
    result
}

/// Where numbers come from.
enum Source {
    /// A machine's RAM.
    Machine(View),
    /// Its trace.
    Trace(Box<Followed>),
}

/// A trace that may grow.
struct Followed {
    file: File,
    tally: Tally,
    since: Instant,
}

impl Followed {
    fn open(trace: &Path) -> Result<Self> {
        let file = File::open(trace)?;
        let tally = Tally::new(file.cpus());
        Ok(Self { file, tally, since: Instant::now() })
    }
}

impl Source {
    /// Looks.
    fn sample(&mut self) -> Result<Sample> {
        match self {
            Self::Machine(view) => Sample::of(view),
            Self::Trace(followed) => {
                let Followed { file, tally, since } = &mut **followed;
                while let Some(record) = file.read_so_far()? {
                    tally.apply(&record)?;
                }
                Ok(Sample::of_trace(tally.look(since.elapsed().as_millis() as u64)?))
            }
        }
    }

    /// Tells whether nothing more will come.
    fn is_gone(&self) -> bool {
        match self {
            Self::Machine(view) => view.is_gone(),
            Self::Trace(followed) => followed.tally.is_over(),
        }
    }

    /// Looks once more, after a time; or shows what there is in all where no more comes.
    fn shown(&mut self, first: Sample, after: Duration) -> Result<Shown> {
        if self.is_gone() {
            return Ok(Shown::in_all(first));
        }
        let mut shown = Shown::new(first);
        std::thread::sleep(after);
        shown.next(self.sample()?);
        Ok(shown)
    }
}

/// Draws a screen into text.
pub(crate) fn printed(shown: &Shown) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(PRINTED.0, PRINTED.1))?;
    terminal.draw(|frame| screen::draw(frame, shown))?;
    let lines = terminal.backend().buffer().content.chunks(PRINTED.0.into());
    let text = lines.map(|line| line.iter().map(Cell::symbol).collect::<String>());
    Ok(text.fold(String::new(), |all, line| all + line.trim_end() + "\n"))
}

/// Looks, and draws, until the user leaves or the machine is gone. A trace that is at its end stays until the user leaves.
fn watch(terminal: &mut DefaultTerminal, source: &mut Source, first: Sample, every: Duration) -> Result<()> {
    let is_whole = source.is_gone();
    let mut shown = if is_whole { Shown::in_all(first) } else { Shown::new(first) };
    loop {
        terminal.draw(|frame| screen::draw(frame, &shown)).context("cannot draw")?;
        let next = Instant::now() + every;
        while event::poll(next.saturating_duration_since(Instant::now()))? {
            match event::read()? {
                Event::Key(key) if key.is_press() => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Down | KeyCode::Char('j') => shown.choose(1),
                    KeyCode::Up | KeyCode::Char('k') => shown.choose(-1),
                    _ => continue,
                },
                Event::Resize(..) => {}
                _ => continue,
            }
            terminal.draw(|frame| screen::draw(frame, &shown)).context("cannot draw")?;
        }
        if is_whole {
            continue;
        }
        if source.is_gone() {
            return Ok(());
        }
        shown.next(source.sample()?);
    }
}
