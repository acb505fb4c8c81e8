//! `cargo xtask top`: what a running machine does, in a terminal.
//!
//! ```text
//! the machine's RAM ─▶ tracing_tool::view ─▶ Sample ─▶ screen (ratatui), or JSON
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
use std::time::{Duration, Instant};
use tracing_tool::view::View;

/// What to show, and how.
#[derive(clap::Args)]
pub(crate) struct Args {
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
    let view = view::open()?;
    let every = Duration::from_millis(args.every);
    if args.json {
        println!("{:#}", Sample::of(&view)?.json());
        return Ok(());
    }
    if args.once {
        let mut shown = Shown::new(Sample::of(&view)?);
        std::thread::sleep(every);
        shown.next(Sample::of(&view)?);
        print!("{}", printed(&shown)?);
        return Ok(());
    }
    let mut terminal = ratatui::init();
    let result = watch(&mut terminal, &view, every);
    ratatui::restore();
    if view.is_gone() {
        println!("the machine is off");
    }
    result
}

/// Draws a screen into text.
pub(crate) fn printed(shown: &Shown) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(PRINTED.0, PRINTED.1))?;
    terminal.draw(|frame| screen::draw(frame, shown))?;
    let lines = terminal.backend().buffer().content.chunks(PRINTED.0.into());
    let text = lines.map(|line| line.iter().map(Cell::symbol).collect::<String>());
    Ok(text.fold(String::new(), |all, line| all + line.trim_end() + "\n"))
}

/// Looks, and draws, until the user leaves or the machine's memory is gone.
fn watch(terminal: &mut DefaultTerminal, view: &View, every: Duration) -> Result<()> {
    let mut shown = Shown::new(Sample::of(view)?);
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
        if view.is_gone() {
            return Ok(());
        }
        shown.next(Sample::of(view)?);
    }
}
