//! A record as a person reads it: one line.

use crate::decode;
use trace::{Kind, Op, Record};

/// Returns the line of a record.
pub fn line(record: &Record) -> String {
    let [a, b, c] = record.operands;
    let what = match record.kind {
        Kind::Start => format!("start, {b} CPUs"),
        Kind::Space | Kind::There => {
            let (owner, bits, top) = (b & 0xffff, b >> 16 & 0xff, b >> 24 & 0xff);
            let is = if record.kind == Kind::Space { "is made" } else { "is there" };
            format!(
                "space {owner} {is}: root {a:#x}, {bits} bits, root's height {top}, level {}",
                record.small
            )
        }
        Kind::SpaceGone => format!("space {b} is gone"),
        Kind::Take => format!("table {a:#x} is taken, {b:#x} bytes, for space {c}"),
        Kind::GiveBack => format!("table {a:#x} is given back by space {c}"),
        Kind::Write => format!("entry {a:#x}: {b:#x} -> {c:#x}"),
        Kind::Dsb => format!(
            "dsb {}",
            decode::reach(record).map_or("?".into(), |reach| format!("{reach:?}").to_lowercase())
        ),
        Kind::Tlbi => tlbi(record, a, b),
        Kind::Vttbr => format!("vttbr_el2 = {:#x}, VMID {}", a & ((1 << 48) - 1), decode::vmid(a).0),
        Kind::Runs => format!("runs vCPU {b} of space {a}"),
        Kind::Freed => format!("free: {a:#x}, {b:#x} bytes"),
        Kind::Grace => format!("grace period {} begins", name(record)),
        Kind::GraceOver => format!("grace period {} is over", name(record)),
        Kind::Unread => "what it has unlinked nobody else has ever looked at".into(),
        Kind::Rests => "rests".into(),
        Kind::Stall if record.small == 0 => format!("waited for room, {a} looks"),
        Kind::Stall => format!("waited for room in the middle of an operation, {a} looks"),
        Kind::End => "end".into(),
        Kind::Begin => "begins".into(),
        Kind::Stop => "stops".into(),
        Kind::Enters => "enters its guest".into(),
        Kind::Leaves => "has left its guest".into(),
        Kind::Known => format!("entry {a:#x} is {b:#x}"),
        Kind::Told if a == 0 => format!("no more of space {b}; no TLB holds anything of it"),
        Kind::Told => {
            let vmid = decode::vmid(a).0;
            format!("no more of space {b}; CPUs {c:#b} may hold something of it under VMID {vmid}")
        }
    };
    format!("{:>9}  CPU {}  {what}", record.number, record.cpu.index())
}

fn name(record: &Record) -> String {
    let [a, ..] = record.operands;
    if record.small == 0 { a.to_string() } else { format!("of epoch {a}") }
}

fn tlbi(record: &Record, operand: u64, vttbr: u64) -> String {
    if record.small == Op::Invept as u8 {
        return format!("invept {operand}, {vttbr:#x}");
    }
    let name = Op::of(record.small).map_or("?".into(), |op| format!("{op:?}").to_lowercase());
    let vmid = decode::vmid(vttbr).0;
    let Some(decoded) = decode::tlbi(record) else { return format!("tlbi {name}") };
    match decoded.range {
        Some(range) => {
            let hint = decoded.hint.map_or(String::new(), |height| format!(", height {}", height.get()));
            let (start, end) = (range.start().get(), range.end().get());
            format!("tlbi {name}, {operand:#x}: {start:#x} to {end:#x}{hint}, VMID {vmid}")
        }
        None => format!("tlbi {name}, VMID {vmid}"),
    }
}
