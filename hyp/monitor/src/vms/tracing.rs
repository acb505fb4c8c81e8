//! The trace of this machine: its memory, what only the monitor knows, and the calls to begin and to stop it.
//!
//! Where it begins before the first space is made, whoever reads it has seen every table from its first entry on. Where a
//! guest begins it later, recording begins first; then a grace period passes, after which every CPU records; and then each
//! space that is there is told of, a bounded part by each call ([`Teller`]). What others do to it meanwhile is recorded.

use super::guest::Guest;
use super::{Format, Hypervisor, IPA_BITS};
use crate::options::To;
use crate::roster::Handle;
use crate::{Machine, console, noted};
use aarch64::cpu::Core;
use aarch64::guest::tlb::Style;
use aarch64::guest::tlb::Tag;
use aarch64::local::Local;
use abi::{Status, calls};
use core::sync::atomic::AtomicU64;
use frames::Owner;
use log::{info, warn};
use space::Space;
use spin::mutex::SpinMutex;
use stage2::{Answer, Quiescence, Section, WalkEnd};
use trace::record::BYTES;
use trace::{Kind, Sink, ring};
use types::{Cpu, CpuId, CpuSet, FRAME_SIZE, Ipa, Range};
use vm::CallRegs;
use vmsa::Features;

/// Starts the trace where the command line asks for it.
pub(super) fn start_if_asked(machine: &Machine) {
    let Some((to, since)) = machine.options.trace else { return };
    let sink = match to {
        To::Memory(key) => rings(machine, key),
        To::Uart => uart(machine),
        #[cfg(target_arch = "x86_64")]
        To::Printer => None,
    };
    let Some(sink) = sink else { return };
    let style = u8::from(machine.options.invalidate == Style::Interrupt);
    let way = noted::way(machine.options.wait);
    trace::start(sink, machine.affinities.len() as u64, this_cpu, (style, way), since);
}

/// Bits that a UART sends for a byte.
const BITS: u64 = 10;

/// Has the trace go out by the second UART.
fn uart(machine: &Machine) -> Option<Sink> {
    let Some(at) = &machine.second else {
        warn!("no trace: the device tree has no second PL011");
        return None;
    };
    // SAFETY: the tree says that a PL011 is there, the map has it, and nobody else uses it.
    let baud = unsafe { console::use_second(at) };
    let most = baud / (BITS * BYTES as u64);
    info!("trace: by the UART at {}, {baud} baud: at most {most} records a second", at.registers.start());
    Some(Sink::Line(console::send))
}

/// Sets memory aside for the trace.
fn rings(machine: &Machine, key: u64) -> Option<Sink> {
    let cpus = machine.affinities.len() as u64;
    let bytes = ring::bytes(cpus);
    let Ok(memory) = machine.frames.carve_out(bytes) else {
        warn!("no trace: no {} KiB of memory in one piece for it", bytes >> 10);
        return None;
    };
    let start = memory.cast::<AtomicU64>();
    // SAFETY: mapped, ours for good, and shared with a tool outside of the program alone; zeroed here first. Aligned as
    // frames are. Atomics may be made of zeroes.
    let words = unsafe {
        start.write_bytes(0, memory.len() / size_of::<AtomicU64>());
        core::slice::from_raw_parts(start.as_ptr(), memory.len() / size_of::<AtomicU64>())
    };
    info!(
        "trace: {} KiB for {cpus} CPUs at {:#x}; CPUs wait where nobody reads it",
        bytes >> 10,
        start.addr()
    );
    Some(Sink::Rings(words, key))
}

fn this_cpu() -> CpuId {
    Local::this().cpu()
}

/// Returns what tables look like: shape and features, as [`Kind::Space`] has them.
pub(super) fn shape(hypervisor: &Hypervisor) -> (u64, u64) {
    let geometry = hypervisor.layout.geometry();
    let has = hypervisor.format.features();
    let features =
        u64::from(has.contains(Features::HARDWARE_DIRTY)) | u64::from(has.contains(Features::FWB)) << 1;
    (noted::shape(&geometry), features)
}

/// Notes that a space is made.
pub(super) fn space_is_made(hypervisor: &Hypervisor, space: &Space<'static, Format>) {
    if trace::is_on() {
        noted::space(Kind::Space, space, shape(hypervisor));
    }
}

/// Notes that this CPU runs no guest any more with the tables that it has loaded: from here on to the next load no walk of
/// them begins.
pub(super) fn leaves_tables() {
    if trace::is_on() {
        trace::note(Kind::Vttbr, 0, [0; 3]);
    }
}

/// Notes that this CPU runs a vCPU next.
pub(super) fn runs(owner: Owner, vcpu: usize) {
    if trace::is_on() {
        trace::note(Kind::Runs, 0, [owner.0.into(), vcpu as u64, 0]);
    }
}

/// Who begins and stops the trace, and how far it is.
#[derive(Debug, Default)]
pub(super) struct Teller(SpinMutex<State>);

/// How far the trace is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// Nothing is recorded.
    #[default]
    Off,
    /// The machine of this number has begun, and tells what is there.
    Begun(u64),
    /// A CPU does a step of that.
    InHand,
    /// All is told.
    On,
}

/// The most entries that are told of in one step: less than the room that a CPU has made when it begins one.
const STEP: u64 = trace::ROOM / 2;

/// What a call is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Nothing: this is the answer.
    Answered(Status),
    /// Begin.
    Begin,
    /// Tell more, from this place of the roster and this address on.
    Tell(u16, Ipa),
}

impl Teller {
    /// Makes it as the command line says.
    pub(super) fn new() -> Self {
        Self(SpinMutex::new(if trace::is_on() { State::On } else { State::Off }))
    }

    /// Decides what a call of the machine `me` to begin is to do. `is_here` tells whether a machine is there still.
    fn begins(&self, me: u64, cursor: u64, is_here: impl FnOnce(u64) -> bool) -> Step {
        if !trace::has_sink() {
            return Step::Answered(Status::NoMemory);
        }
        let mut state = self.0.lock();
        let step = match (*state, cursor) {
            (State::On, _) => Step::Answered(Status::Success),
            (State::InHand, _) => Step::Answered(Status::Busy),
            (State::Off, 0) => Step::Begin,
            (State::Begun(by), 0) if by == me || !is_here(by) => Step::Begin,
            (State::Begun(by), _) if by == me => match place_of(cursor) {
                Some((place, ipa)) => Step::Tell(place, ipa),
                None => Step::Answered(Status::InvalidParameter),
            },
            (State::Begun(_), _) => Step::Answered(Status::Busy),
            (State::Off, _) => Step::Answered(Status::InvalidParameter),
        };
        if !matches!(step, Step::Answered(_)) {
            *state = State::InHand;
        }
        step
    }

    fn stops(&self) -> Status {
        if !trace::has_sink() {
            return Status::NoMemory;
        }
        let mut state = self.0.lock();
        if *state == State::InHand {
            return Status::Busy;
        }
        if *state != State::Off {
            trace::stop();
        }
        *state = State::Off;
        Status::Success
    }
}

/// A cursor is one more than a place of the roster, above the bits of an address, and the address.
fn cursor_at(place: u16, ipa: Ipa) -> u64 {
    (u64::from(place) << IPA_BITS | ipa.get()) + 1
}

fn place_of(cursor: u64) -> Option<(u16, Ipa)> {
    let at = cursor.checked_sub(1)?;
    let ipa = Ipa::new(at & ((1 << IPA_BITS) - 1));
    let place = u16::try_from(at >> IPA_BITS).ok()?;
    ipa.is_aligned(FRAME_SIZE).then_some((place, ipa))
}

/// Answers a call of `guest`'s to begin or to stop the trace.
#[inline(never)] // needs much of the stack, seldom
pub(super) fn answer(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>, regs: &mut CallRegs) {
    let (status, cursor) = if regs[0] as u32 == calls::TRACE_STOP {
        (hypervisor.teller.stops(), 0)
    } else {
        start(guest, hypervisor, core, regs[1])
    };
    regs[0] = status.value();
    regs[1..6].copy_from_slice(&[cursor, 0, 0, 0, 0]);
}

fn start(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>, cursor: u64) -> (Status, u64) {
    let me = hypervisor.ledger.roster.handle_of(guest.number).0;
    let next = match hypervisor
        .teller
        .begins(me, cursor, |by| hypervisor.ledger.roster.here(Handle(by)).is_some())
    {
        Step::Answered(status) => return (status, cursor),
        Step::Begin => {
            begin(hypervisor, core);
            Some(cursor_at(0, Ipa::new(0)))
        }
        Step::Tell(place, ipa) => tell(hypervisor, core, place, ipa),
    };
    *hypervisor.teller.0.lock() = if next.is_some() { State::Begun(me) } else { State::On };
    next.map_or((Status::Success, 0), |next| (Status::Continue, next))
}

/// Has all CPUs record, and tells of the tables that map nothing.
fn begin(hypervisor: &Hypervisor, core: &Core<'_>) {
    trace::begin();
    let mut section = hypervisor.waiting.enter(core.id());
    let everyone = hypervisor.machine.cpus().fold(CpuSet::EMPTY, CpuSet::with);
    let period = section.period(everyone);
    section.wait(period);
    if let Some(space) = &hypervisor.nowhere {
        noted::space(Kind::There, space, shape(hypervisor));
        trace::note(Kind::Told, 0, [0, space.owner().0.into(), 0]);
    }
}

/// Tells of the first guest at `place` or behind, from `ipa` on, which is an address of the one at `place`. Returns the cursor
/// to go on from; `None` where there is no such guest.
fn tell(hypervisor: &Hypervisor, core: &Core<'_>, place: u16, ipa: Ipa) -> Option<u64> {
    let guest = hypervisor.ledger.roster.iter().find(|guest| guest.number >= place)?;
    let ipa = if guest.number == place { ipa } else { Ipa::new(0) };
    let space = &guest.space;
    let section = hypervisor.waiting.enter(core.id());
    if ipa == Ipa::new(0) {
        noted::space(Kind::There, space, shape(hypervisor));
    }
    let reach = space.tree().geometry().reach();
    let rest = Range::new(ipa, reach.end()).unwrap_or(reach);
    let mut left = STEP;
    let walked = space.tree().open(&section).walk_shared(rest, &mut |visit| {
        if visit.raw() != 0 {
            let Some(less) = left.checked_sub(1) else { return Answer::Stop };
            left = less;
            trace::note(Kind::Known, 0, [visit.address().get(), visit.raw(), 0]);
        }
        Answer::Descend
    });
    if walked.end != WalkEnd::Done {
        return Some(cursor_at(guest.number, walked.next));
    }
    // As long as the tag is borrowed it is no other space's.
    let tlb = guest.tlb(hypervisor, core);
    let vttbr = tlb.tag.borrow();
    let holders = guest.has_entered();
    trace::note(Kind::Told, 0, [vttbr.unwrap_or(0), space.owner().0.into(), holders.bits()]);
    tlb.tag.give_back();
    Some(cursor_at(guest.number + 1, Ipa::new(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_place_and_an_address() {
        let ipa = Ipa::new(0xff_ffff_f000);
        assert_eq!(place_of(cursor_at(127, ipa)), Some((127, ipa)));
        for none in [0, 2, u64::MAX] {
            assert_eq!(place_of(none), None);
        }
    }
}
