//! `cargo xtask map`: a VM's addresses as a picture, or as many, out of a running machine or out of a trace.
//!
//! ```text
//! RAM of a machine, or a trace ─▶ tables (tracing_tool) ─▶ Picture ─▶ Scene ─▶ SVG, PNG, GIF
//! ```

mod draw;
mod picture;
mod scene;

use crate::view;
use anyhow::{Context, Result, bail, ensure};
use picture::{Kind, Painter, Picture};
use scene::Scene;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use tracing_tool::File;
use tracing_tool::replay::Replay;
use tracing_tool::view::{View, Vm};

/// Of what, and where to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A trace (`run --trace`, `stress --trace`); without one, the machine that runs with --view
    trace: Option<PathBuf>,
    /// Which VM: its name, or with a trace the number of its space [default: the first]
    #[arg(long, value_name = "VM")]
    vm: Option<String>,
    /// Where the picture goes: .svg, .png, or .gif for an animation
    #[arg(long, value_name = "FILE", default_value = "map.png")]
    out: PathBuf,
    /// Frames of an animation
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u64).range(2..=2000))]
    frames: u64,
    /// Milliseconds from one look at a running machine to the next
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    every: u64,
    /// The last record of a trace that is drawn, and the first of an animation [default: all of them]
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    /// See --to
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
}

/// For how long each frame is shown, in hundredths of a second.
const SHOWN: u16 = 20;

/// What kind of file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Svg,
    Png,
    Gif,
}

/// Draws it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let form = match args.out.extension().and_then(OsStr::to_str) {
        Some("svg") => Form::Svg,
        Some("png") => Form::Png,
        Some("gif") => Form::Gif,
        _ => bail!("{}: a picture is .svg, .png or .gif", args.out.display()),
    };
    let count = if form == Form::Gif { args.frames } else { 1 };
    let mut pictures = match &args.trace {
        Some(trace) => of_trace(trace, args, count)?,
        None => of_machine(args, count)?,
    };
    // All of one size: what is there in any of them is in all of them.
    let mut all = Picture::default();
    pictures.iter().for_each(|(_, picture)| all.extend(picture));
    pictures.iter_mut().for_each(|(_, picture)| picture.extend(&all));
    let scenes: Vec<_> = pictures.iter().map(|(title, picture)| Scene::of(picture, title)).collect();
    let last = scenes.last().context("nothing to draw")?;
    match form {
        Form::Svg => draw::svg(last, &args.out)?,
        Form::Png => draw::png(last, &args.out)?,
        Form::Gif => draw::gif(&scenes, SHOWN, &args.out)?,
    }
    println!("{} in {}", pictures.last().map_or("", |(title, _)| title), args.out.display());
    Ok(())
}

/// Looks at a running machine so many times.
fn of_machine(args: &Args, count: u64) -> Result<Vec<(String, Picture)>> {
    let view = view::open()?;
    let mut painter = Painter::default();
    let mut pictures = Vec::new();
    for n in 0..count {
        if n > 0 {
            thread::sleep(Duration::from_millis(args.every));
        }
        let look = view.look()?;
        let its = |name: &String| look.vms.iter().find(|vm| vm.name == *name);
        let found = args.vm.as_ref().map_or(look.vms.first(), its);
        let names: Vec<_> = look.vms.iter().map(|vm| vm.name.as_str()).collect();
        let vm = found.with_context(|| format!("there is no such VM; there are {}", names.join(", ")))?;
        let records = view.records(&look)?;
        let picture = painter.paint(&view, &vm.shape, Some(&records), &vm.memory)?;
        let when = format!("after {:.1} s", look.ticks as f64 / look.hertz as f64);
        pictures.push((scene::title(&vm.name, &picture, &when), picture));
    }
    Ok(pictures)
}

/// Counts the pages of 4 KiB and the blocks of 2 MiB that a VM's tables map, in the RAM of its machine.
pub(crate) fn leaves(view: &View, vm: &Vm) -> Result<[u64; 2]> {
    let picture = Painter::default().paint(view, &vm.shape, None, &vm.memory)?;
    let pages = picture.count(|cell| matches!(cell.kind, Kind::Page(_)));
    let blocks = picture.count(|cell| cell.kind == Kind::Block) / picture::PAGES;
    Ok([pages as u64, blocks as u64])
}

/// Goes through a trace, and draws so many pictures of it, as many records apart.
fn of_trace(trace: &Path, args: &Args, count: u64) -> Result<Vec<(String, Picture)>> {
    let owner = args
        .vm
        .as_ref()
        .map(|text| text.parse::<u16>().context("the VM of a trace is a number"))
        .transpose()?;
    let mut file = File::open(trace)?;
    let mut end = 0;
    // One that is still being written ends where it is whole.
    while file.read_so_far()?.is_some() {
        end += 1;
    }
    let last = args.to.unwrap_or(u64::MAX).min(end.max(1) - 1);
    ensure!(args.from <= last, "the trace has {end} records");
    // The last picture is behind the last record.
    let drawn = |n: u64| args.from + (last - args.from) * (n + 1) / count;
    let mut file = File::open(trace)?;
    let (mut replay, mut painter, mut pictures) = (Replay::default(), Painter::default(), Vec::new());
    let mut next = 0;
    while let Some(record) = file.read()?.filter(|record| record.number <= last) {
        replay.apply(&record)?;
        while next < count && record.number == drawn(next) {
            next += 1;
            let owner = owner.or_else(|| replay.owners().next());
            let Some((owner, shape)) = owner.and_then(|owner| Some((owner, replay.space(owner)?))) else {
                continue;
            };
            let picture = painter.paint(&replay, shape, None, &[])?;
            let when = format!("after record {}", record.number);
            pictures.push((scene::title(&format!("space {owner}"), &picture, &when), picture));
        }
    }
    ensure!(!pictures.is_empty(), "there is no such space then");
    Ok(pictures)
}
