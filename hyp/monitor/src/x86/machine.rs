//! What boot has found and made, for everybody, for ever; and what each CPU has for itself.

use crate::options::Options;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
    compiler_fence,
};
use ept::mtrr::Mtrrs;
use frames::Frames;
use types::{Cpu, CpuId, Pa, PaRange, Ticks};
use vm::VmConfig;
use vm::image::linux::E820Entry;
use x86_64::apic::Apic;
use x86_64::cpu::Core;
use x86_64::line::Line;
use x86_64::local::{Local, Selectors};
use x86_64::vmx::capability::Capabilities;
use x86_64::vmx::tlb::Tlb;
use x86_64::vmx::vmcs::leave_at_once;

/// The machine that the hypervisor runs on. Made once, before the first guest; shared by all CPUs.
pub struct Machine {
    /// The command line.
    pub options: Options,
    /// How each CPU that runs is interrupted, by number.
    pub lines: Vec<Line>,
    /// What VMX can do on every CPU.
    pub capabilities: Capabilities,
    /// Which types its memory has; `None` where the CPUs have no registers for that.
    pub types: Option<Mtrrs>,
    /// Banks of RAM.
    pub memory: Vec<PaRange>,
    /// All RAM that is free, and the records of the rest.
    pub frames: Frames,
    /// What the bundle says of the guests.
    pub guests: Vec<VmConfig>,
    /// What a guest that has the machine is told of it.
    pub firmware: Firmware,
    /// The time-stamp counter when the image was entered.
    pub started: Ticks,
    /// Its ticks in a second.
    pub tick_hz: u64,
}

impl Machine {
    /// Goes through the CPUs that run.
    pub fn cpus(&self) -> impl Iterator<Item = CpuId> + use<> {
        (0..self.lines.len()).filter_map(CpuId::new)
    }
}

/// What firmware tells of the machine.
#[derive(Clone, Debug)]
pub struct Firmware {
    /// Ranges of addresses: the start, the bytes, and what it is.
    pub areas: Vec<E820Entry>,
    /// Where its root pointer is; 0 where it is not known.
    pub root_pointer: u64,
}

/// What this CPU would forget where a kick comes before its guest runs: the guest that it enters.
pub(super) type Entering = Tlb<'static, Core<'static>>;

/// The state of one CPU. Shared state is in [`Machine`]; what is here, only its CPU touches.
pub struct PerCpu {
    /// The machine.
    pub machine: &'static Machine,
    /// This CPU, as virtual machines see it.
    pub core: Core<'static>,
    /// Its interrupt controller.
    pub(super) apic: Apic,
    /// The selectors of its segments.
    pub(super) selectors: Selectors,
    /// The guest whose vCPU it runs.
    entering: Cell<Option<&'static Entering>>,
    /// Whether it is between its last look at what is wanted of it and the guest.
    committed: AtomicBool,
    /// Whether a non-maskable interrupt came that nobody here has sent: it is for the guest that has the machine.
    owed: AtomicBool,
}

impl PerCpu {
    /// Makes the state of the CPU that runs this, whose number is `cpu`, and hangs it where [`PerCpu::this`] finds it.
    pub(super) fn install(
        machine: &'static Machine,
        cpu: CpuId,
        apic: Apic,
        selectors: Selectors,
    ) -> &'static Self {
        let core = Core::of_this_cpu(cpu, apic, &machine.lines, machine.tick_hz);
        let this: &'static Self = Box::leak(Box::new(Self {
            machine,
            core,
            apic,
            selectors,
            entering: Cell::new(None),
            committed: AtomicBool::new(false),
            owed: AtomicBool::new(false),
        }));
        Local::this().set_data((&raw const *this).cast());
        this
    }

    /// Returns the state of the CPU that runs this; `None` while the machine is not complete.
    pub fn this() -> Option<&'static Self> {
        let data = Local::this().data().cast::<Self>();
        // SAFETY: null, or what `install` put there, which is never freed and is this CPU's own.
        unsafe { data.as_ref() }
    }

    /// Says whose guest this CPU enters from here on.
    pub(super) fn enters(&self, entering: &'static Entering) {
        self.entering.set(Some(entering));
    }

    /// Says that this CPU enters no guest any more: from here on the handler of kicks knows of none.
    pub(super) fn leaves(&self) {
        self.entering.set(None);
        compiler_fence(SeqCst); // the handler runs on this CPU: the program's order is enough
    }

    /// Says that this CPU is about to look for the last time at what is wanted of it, and to enter its guest then.
    pub(super) fn commit(&self) {
        self.committed.store(true, Relaxed);
        compiler_fence(SeqCst); // as above
    }

    /// Says that it is not any more.
    pub(super) fn retract(&self) {
        compiler_fence(SeqCst);
        self.committed.store(false, Relaxed);
    }

    /// Returns how this CPU is interrupted.
    pub(super) fn line(&self) -> &'static Line {
        &self.machine.lines[self.core.id().index()]
    }

    /// Takes a non-maskable interrupt that nobody here has sent, if one has come.
    pub(super) fn take_owed(&self) -> bool {
        self.owed.swap(false, Relaxed)
    }

    /// Puts one back that its guest does not take yet.
    pub(super) fn owe(&self) {
        self.owed.store(true, Relaxed);
    }

    /// Does what a kick is for that came while this CPU is in the hypervisor. For its handler.
    #[cfg_attr(not(pc), allow(dead_code, reason = "the handler calls it"))]
    pub(super) fn kicked(&self) {
        if !self.line().answer() {
            self.owed.store(true, Relaxed);
        }
        // With the trace on the handler forgets nothing: it would record that, and this CPU may hold the trace's lock. That
        // the guest leaves at once is enough for who waits.
        if let Some(entering) = self.entering.get().filter(|_| !trace::is_on()) {
            entering.interrupted();
        }
        if self.committed.load(Relaxed) {
            leave_at_once();
        }
    }
}

/// Returns the bytes of a range of RAM.
///
/// # Safety
/// The range is mapped, stays as it is, and nobody writes it.
pub(super) unsafe fn bytes(range: PaRange) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance::<u8>(range.start().get() as usize);
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(start, range.len() as usize) }
}

/// Writes the first word of a frame.
///
/// # Safety
/// The frame is mapped and the caller's.
pub(super) unsafe fn write_word(frame: Pa, value: u32) {
    let at = core::ptr::with_exposed_provenance_mut::<u32>(frame.get() as usize);
    // SAFETY: the caller's promise.
    unsafe { at.write(value) };
}

/// Copies memory, whose two places may overlap.
///
/// # Safety
/// Both ranges are mapped, and the caller's.
pub(super) unsafe fn copy(from: Pa, to: Pa, bytes: u64) {
    let source = core::ptr::with_exposed_provenance::<u8>(from.get() as usize);
    let target = core::ptr::with_exposed_provenance_mut::<u8>(to.get() as usize);
    // SAFETY: the caller's promise.
    unsafe { target.copy_from(source, bytes as usize) };
}
