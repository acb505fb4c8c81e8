//! The screen: the machine above, its VMs below that, and one VM's exits and blackouts at the bottom.

use super::sample::{Rates, Shown};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Bar, BarChart, Block, Paragraph, Row, Table, TableState};
use tracing_tool::view::{EXITS, Look, Machine, Space, Vm};

/// What a number's name is shown in.
const NAME: Style = Style::new().fg(Color::DarkGray);
const TITLE: Style = Style::new().fg(Color::Cyan);

/// Draws what is shown.
pub(super) fn draw(frame: &mut Frame<'_>, shown: &Shown) {
    let vms = shown.now.look.vms.len() as u16;
    let [machine, list, detail, keys] = Layout::vertical([
        Constraint::Length(6),
        Constraint::Length((vms + 3).max(5)),
        Constraint::Min(8),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_machine(frame, machine, shown);
    draw_vms(frame, list, shown);
    if let Some(vm) = shown.now.look.vms.get(shown.chosen) {
        let [exits, blackouts] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(detail);
        draw_exits(frame, exits, shown, vm);
        draw_blackouts(frame, blackouts, shown.now.look.hertz, vm);
    }
    frame.render_widget(Paragraph::new("↑ ↓ another VM   q leaves").style(NAME), keys);
}

fn boxed(title: String) -> Block<'static> {
    Block::bordered().border_style(NAME).title(Span::styled(title, TITLE))
}

fn draw_machine(frame: &mut Frame<'_>, area: Rect, shown: &Shown) {
    let look = &shown.now.look;
    let seconds = look.ticks / look.hertz;
    let title = match look.recorded {
        Some(recorded) => format!(" Mezzanine: {} CPUs, {} records ", look.cpus, recorded.records),
        None => format!(" Mezzanine: {} CPUs, on for {}:{:02} ", look.cpus, seconds / 60, seconds % 60),
    };
    let pair = |name: &str, value: String| {
        [Span::styled(format!("{name} "), NAME), Span::raw(value), Span::raw("   ")]
    };
    let rated = |name: &str, number: Machine| pair(name, counted(shown, |look| look.number(number)));
    let grace = |look: &Look| match look.recorded {
        Some(recorded) => recorded.grace_periods,
        None => look.vms.iter().map(|vm| vm.number(Space::GracePeriods)).sum::<u64>(),
    };
    let lines: Vec<Line<'_>> = vec![
        Line::from_iter(
            [
                rated("TLBI by address", Machine::ByAddress),
                rated("by range", Machine::ByRange),
                rated("whole VMID", Machine::Whole),
                rated("this CPU", Machine::Local),
            ]
            .into_iter()
            .flatten(),
        ),
        Line::from_iter(
            [
                rated("none needed", Machine::Publish),
                rated("on return", Machine::Returns),
                rated("kicks", Machine::Kicks),
                rated("VMID rollovers", Machine::Rollovers),
                pair("grace periods", counted(shown, grace)),
            ]
            .into_iter()
            .flatten(),
        ),
        frames_line(shown, area.width.saturating_sub(2)),
        Line::from_iter(
            [
                ("guests", Machine::Guests, Color::Blue),
                ("tables", Machine::Tables, Color::Yellow),
                ("free", Machine::Free, Color::DarkGray),
                ("in all", Machine::Frames, Color::Reset),
            ]
            .into_iter()
            // A trace tells of tables, and of what they map.
            .filter(|(_, number, _)| {
                look.recorded.is_none() || matches!(number, Machine::Guests | Machine::Tables)
            })
            .flat_map(|(name, number, color)| {
                let value = format!("{name} {}", size(look.number(number) << 12));
                [Span::styled("■ ", Style::new().fg(color)), Span::raw(value), Span::raw("   ")]
            }),
        ),
    ];
    frame.render_widget(Paragraph::new(lines).block(boxed(title)), area);
}

/// Says a number, and how often in a second it has grown where that is known.
fn counted(shown: &Shown, of: impl Fn(&Look) -> u64) -> String {
    let count = short(of(&shown.now.look));
    match shown.rates {
        Rates::InASecond => format!("{count} ({}/s)", short(shown.rate(of) as u64)),
        Rates::InAll => count,
    }
}

/// A bar of all frames: guests', tables, what is neither, free.
fn frames_line(shown: &Shown, width: u16) -> Line<'static> {
    let number = |number| shown.now.look.number(number);
    let all = number(Machine::Frames).max(1);
    let cells = |count: u64| (count * u64::from(width)).div_ceil(all) as usize;
    let (guests, tables) = (cells(number(Machine::Guests)), cells(number(Machine::Tables)));
    let free = (number(Machine::Free) * u64::from(width) / all) as usize;
    let rest = usize::from(width).saturating_sub(guests + tables + free);
    let part = |symbol: &str, count, color| Span::styled(symbol.repeat(count), Style::new().fg(color));
    Line::from(vec![
        part("█", guests, Color::Blue),
        part("█", tables, Color::Yellow),
        part("▓", rest, Color::Gray),
        part("░", free, Color::DarkGray),
    ])
}

const HEAD: [&str; 14] = [
    "VM",
    "vCPUs",
    "memory",
    "exits/s",
    "faults/s",
    "1G",
    "2M",
    "4K",
    "tables",
    "pins",
    "splits/s",
    "collapses/s",
    "moves/s",
    "TLBI/s",
];

fn draw_vms(frame: &mut Frame<'_>, area: Rect, shown: &Shown) {
    let rows = shown.now.look.vms.iter().zip(&shown.now.pins).map(|(vm, pins)| {
        let rate = |of: fn(&Vm) -> u64| short(shown.rate_of(vm.owner, of) as u64);
        let cells = [
            vm.name.clone(),
            vm.vcpus.to_string(),
            size(vm.bytes()),
            rate(|vm| vm.exits.iter().sum()),
            rate(|vm| vm.number(Space::Faults)),
            short(vm.leaves[2]),
            short(vm.leaves[1]),
            short(vm.leaves[0]),
            size(vm.number(Space::TableBytes)),
            short(*pins),
            rate(|vm| vm.number(Space::Splits)),
            rate(|vm| vm.number(Space::Collapses)),
            rate(|vm| vm.number(Space::Moved)),
            rate(|vm| vm.number(Space::Invalidations)),
        ];
        let style = if vm.is_on { Style::new() } else { NAME };
        Row::new(cells).style(style)
    });
    let widths = HEAD.iter().enumerate().map(|(n, name)| match n {
        0 => Constraint::Fill(1),
        _ => Constraint::Length((name.len() as u16).max(6)),
    });
    let head = HEAD.map(|name| match shown.rates {
        Rates::InASecond => name,
        Rates::InAll => name.strip_suffix("/s").unwrap_or(name),
    });
    let table = Table::new(rows, widths)
        .header(Row::new(head).style(NAME))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(boxed(" VMs ".to_owned()));
    let mut state = TableState::new().with_selected(Some(shown.chosen));
    frame.render_stateful_widget(table, area, &mut state);
}

/// A row of bars, which lie.
fn draw_bars(frame: &mut Frame<'_>, area: Rect, title: String, bars: Vec<(String, u64)>) {
    let bars: Vec<_> = bars
        .into_iter()
        .map(|(name, value)| Bar::default().label(name).value(value).text_value(short(value)))
        .collect();
    let chart =
        BarChart::horizontal(bars).bar_gap(0).bar_style(Style::new().fg(Color::Blue)).block(boxed(title));
    frame.render_widget(chart, area);
}

fn draw_exits(frame: &mut Frame<'_>, area: Rect, shown: &Shown, vm: &Vm) {
    let mut exits: Vec<_> = EXITS
        .iter()
        .enumerate()
        .map(|(n, name)| ((*name).to_owned(), shown.rate_of(vm.owner, |vm| vm.exits[n]) as u64, vm.exits[n]))
        .filter(|(.., all)| *all > 0)
        .collect();
    exits.sort_by_key(|(_, rate, all)| std::cmp::Reverse((*rate, *all)));
    let total = short(exits.iter().map(|(.., all)| all).sum());
    let bars = exits.into_iter().map(|(name, rate, _)| (name, rate)).collect();
    let title = match shown.rates {
        Rates::InASecond => format!(" {}: exits a second; {total} in all ", vm.name),
        Rates::InAll => format!(" {}: {total} exits ", vm.name),
    };
    draw_bars(frame, area, title, bars);
}

fn draw_blackouts(frame: &mut Frame<'_>, area: Rect, hertz: u64, vm: &Vm) {
    let bars = (0..)
        .zip(&vm.blackouts)
        .filter(|(_, count)| **count > 0)
        .map(|(class, count)| (below(class, hertz), *count))
        .collect();
    let all = short(vm.blackouts.iter().sum());
    draw_bars(frame, area, format!(" {}: {all} entries were invalid, for less than ", vm.name), bars);
}

/// Says how long the ticks of a class are at most.
fn below(class: u32, hertz: u64) -> String {
    let nanos = (1_u128 << class) * 1_000_000_000 / u128::from(hertz.max(1));
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{} us", nanos / 1000),
        _ => format!("{} ms", nanos / 1_000_000),
    }
}

/// Shortens a count.
fn short(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..100_000_000 => format!("{} k", count / 1000),
        _ => format!("{} M", count / 1_000_000),
    }
}

/// Says a number of bytes.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{}K", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{}M", bytes >> 20),
        _ => format!("{:.1}G", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests;
