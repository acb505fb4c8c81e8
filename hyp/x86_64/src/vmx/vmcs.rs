//! One vCPU's control structure: what makes the CPU leave the guest, what it comes back to, and what it enters.

mod paging;

use super::capability::{
    Capabilities, ENTRY_MSRS, EXIT_MSRS, HLT, HLT_AND_PORTS, INTERRUPT_WINDOW, NMI_WINDOW, PE_AND_PG, PIN,
    TIMER, VMXE,
};
use super::exit::{Controlled, Exit, Told};
use super::instructions::{VmFail, Went, enter, exit_address, vmclear, vmptrld, vmread, vmwrite};
use super::{Registers, refused};
use crate::decode::Code;
use crate::instr::{Controls as Running, rdmsr};
use crate::local::{Local, Selectors};
use paging::{LMA, Paging};
use types::sync::mutant;
use types::{Ipa, Pa};
use x86::msr;
use x86::vmx::vmcs::control::{
    self, EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls,
};
use x86::vmx::vmcs::{guest, host, ro};

/// What of the machine a guest has for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Has {
    /// The machine's devices, ports and interrupts: they reach it without an exit, and HLT waits for them.
    Machine,
    /// Nothing: ports, HLT and interrupts are exits.
    Nothing,
}

/// What a VMCS is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What every CPU can do.
    pub capabilities: Capabilities,
    /// The EPT pointer.
    pub eptp: u64,
    /// The tag of the vCPU's translations, not 0; used where the CPUs have tags.
    pub vpid: u16,
    /// What the guest has for itself.
    pub has: Has,
    /// A frame with a bit for each MSR that reads and writes of are exits (25.6.9).
    pub msr_bitmap: Pa,
    /// A frame in which the hardware lists written pages, where the CPUs do that.
    pub list: Option<Pa>,
    /// Two frames with a bit for each port (25.6.4), all clear: no exits. For a guest that has the machine.
    pub port_bitmaps: [Pa; 2],
}

/// The controls of a VMCS, each checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    pin: u32,
    primary: u32,
    secondary: u32,
    exit: u32,
    entry: u32,
}

impl Controls {
    /// Chooses the controls for a guest that has `has`.
    pub fn choose(capabilities: &Capabilities, has: Has, list: Option<Pa>) -> Self {
        let c = capabilities;
        let (interrupts, stops) = match has {
            Has::Machine => (0, PrimaryControls::USE_IO_BITMAPS.bits()),
            Has::Nothing => (
                PinbasedControls::EXTERNAL_INTERRUPT_EXITING.bits(),
                PrimaryControls::HLT_EXITING.bits() | PrimaryControls::UNCOND_IO_EXITING.bits(),
            ),
        };
        debug_assert!(stops & !HLT_AND_PORTS == 0);
        let primary = PrimaryControls::USE_MSR_BITMAPS.bits() | PrimaryControls::SECONDARY_CONTROLS.bits();
        let mut secondary = SecondaryControls::ENABLE_EPT | SecondaryControls::UNRESTRICTED_GUEST;
        secondary.set(SecondaryControls::ENABLE_PML, list.is_some() && c.has_pml());
        let mut welcome = SecondaryControls::ENABLE_VPID
            | SecondaryControls::ENABLE_RDTSCP
            | SecondaryControls::ENABLE_INVPCID
            | SecondaryControls::ENABLE_XSAVES_XRSTORS;
        welcome.set(SecondaryControls::WBINVD_EXITING, has == Has::Machine);
        let acknowledge = match has {
            Has::Machine => 0,
            Has::Nothing => ExitControls::ACK_INTERRUPT_ON_EXIT.bits(),
        };
        let exit = EXIT_MSRS | ExitControls::HOST_ADDRESS_SPACE_SIZE.bits() | acknowledge;
        let debug = (ExitControls::SAVE_DEBUG_CONTROLS.bits(), EntryControls::LOAD_DEBUG_CONTROLS.bits());
        Self {
            pin: c.pin.choose(PIN | interrupts, 0),
            primary: c.primary.choose(primary | stops, 0),
            secondary: c.secondary.choose(secondary.bits(), welcome.bits()),
            exit: c.exit.choose(exit, debug.0),
            entry: c.entry.choose(ENTRY_MSRS, debug.1),
        }
    }
}

/// How a vCPU starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// In 32-bit protected mode without paging, flat, interrupts off: what Linux's 32-bit boot protocol and PVH ask for.
    Flat {
        /// The first instruction.
        entry: u32,
        /// EBX: PVH's start information.
        ebx: u32,
        /// ESI: Linux's boot parameters.
        esi: u32,
    },
    /// In real mode at the start of a page, after a start-up interrupt.
    Page(u8),
    /// Not before a start-up interrupt comes.
    WaitForStartUp,
}

/// An event that an entry delivers (25.8.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A non-maskable interrupt.
    Nmi,
    /// An undefined instruction.
    Undefined,
    /// A general-protection exception with error code 0.
    GeneralProtection,
    /// An interrupt, by its vector. The guest takes interrupts.
    Interrupt(u8),
}

impl Event {
    /// Returns the interruption information.
    const fn information(self) -> u32 {
        const VALID: u32 = 1 << 31;
        const ERROR_CODE: u32 = 1 << 11;
        const NMI: u32 = 2 << 8;
        const EXCEPTION: u32 = 3 << 8;
        match self {
            Self::Nmi => VALID | NMI | 2,
            Self::Undefined => VALID | EXCEPTION | 6,
            Self::GeneralProtection => VALID | EXCEPTION | ERROR_CODE | 13,
            Self::Interrupt(vector) => VALID | vector as u32,
        }
    }
}

/// Whether a guest leaves for something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// It does.
    Then,
    /// It does not.
    Never,
}

/// A segment: its selector, base, limit and access rights as the VMCS has them (25.4.1).
#[derive(Clone, Copy)]
struct Segment {
    selector: u16,
    base: u64,
    limit: u32,
    rights: u32,
}

/// Present, accessed: code that can be read, and data that can be written, with 32-bit defaults in units of pages.
const CODE_32: u32 = 0xc09b;
const DATA_32: u32 = 0xc093;
/// The same with 16-bit defaults in bytes.
const CODE_16: u32 = 0x9b;
const DATA_16: u32 = 0x93;
/// A busy 32-bit task segment, and a descriptor table that there is none of.
const TASK: u32 = 0x8b;
const UNUSABLE: u32 = 1 << 16;

/// Linux's boot protocol names these selectors (Documentation/arch/x86/boot.rst, "32-bit boot protocol").
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// Reserved bit 1 of RFLAGS is 1.
const RFLAGS: u64 = 2;
/// DR7 after a reset, and the PAT.
const DR7: u64 = 0x400;
const PAT: u64 = 0x0007_0406_0007_0406;
/// CR0 after a reset but for the cache bits: ET.
const CR0_ET: u64 = 1 << 4;
/// RFLAGS: interrupts are taken.
const IF: u64 = 1 << 9;
/// The activity states (25.4.2).
const ACTIVE: u64 = 0;
const WAIT_FOR_SIPI: u64 = 3;
/// Interruptibility: blocked by STI and by MOV SS; by NMI.
const BLOCKED_FOR_ONE: u64 = 0b11;
const BLOCKED_BY_NMI: u64 = 1 << 3;
/// Interruption information is valid; and what of it an entry takes: all but whether an IRET has unblocked NMIs.
const VALID: u64 = 1 << 31;
const UNBLOCKED_BY_IRET: u64 = 1 << 12;
const HAS_ERROR_CODE: u64 = 1 << 11;

/// Has the guest of the current VMCS leave at once when it is entered: for the handler of a kick that comes while this CPU
/// is about to enter, and would otherwise be lost. A guest that is inside its own handler of such an interrupt leaves at the
/// end of it.
pub fn leave_at_once() {
    let controls = vmread(control::PRIMARY_PROCBASED_EXEC_CONTROLS);
    // SAFETY: every CPU has the control; its exit is one that the loop answers.
    unsafe { vmwrite(control::PRIMARY_PROCBASED_EXEC_CONTROLS, controls | u64::from(NMI_WINDOW)) };
}

/// The place of the list that is written first: the highest.
const FIRST_LISTED: u64 = 511;

/// One vCPU.
#[derive(Debug)]
pub struct Vmcs {
    region: Pa,
    launched: bool,
    /// Where the hardware lists written pages.
    list: Option<Pa>,
    /// The registers that are not in the VMCS.
    pub registers: Registers,
}

impl Vmcs {
    /// Makes a VMCS in `region` on the CPU that runs this, and makes it the current one. It starts nothing yet.
    ///
    /// # Errors
    /// [`VmFail`] where the CPU refuses the region.
    ///
    /// # Safety
    /// The CPU is in VMX operation; `region` is a zeroed frame that begins with the revision and is nobody else's, as are
    /// the bitmaps; the EPT pointer is that of tables for this guest, which map nothing of the hypervisor's.
    pub unsafe fn new(region: Pa, setup: &Setup, selectors: Selectors) -> Result<Self, VmFail> {
        // SAFETY: the caller's promise.
        unsafe {
            vmclear(region)?;
            vmptrld(region)?;
        }
        let made = Self { region, launched: false, list: None, registers: Registers::default() };
        made.write_controls(setup);
        made.write_host(selectors);
        Ok(Self { list: setup.list.filter(|_| setup.capabilities.has_pml()), ..made })
    }

    /// Calls `written` with each page that the hardware has listed since the last time (SDM 3C, 29.3.6), and empties the list.
    pub fn take_listed(&self, mut written: impl FnMut(Ipa)) {
        let Some(list) = self.list else { return };
        let index = self.get(guest::PML_INDEX);
        if index == FIRST_LISTED || mutant("list-not-handed-on") {
            return;
        }
        // It counts down to what is written next; beyond zero, the list is full.
        let last = if index > FIRST_LISTED { 0 } else { index + 1 };
        let words = core::ptr::with_exposed_provenance::<u64>(list.get() as usize);
        for place in last..=FIRST_LISTED {
            // SAFETY: the frame is this vCPU's list, mapped, of 512 words; the CPU writes it only in the guest.
            written(Ipa::new(unsafe { words.add(place as usize).read_volatile() }));
        }
        self.set(guest::PML_INDEX, FIRST_LISTED);
    }

    /// Ends it, on the CPU that it was made on: from here on that CPU keeps nothing of it, and the region may be used for
    /// something else. It must not be entered again.
    pub fn end(&self) {
        // SAFETY: `new`'s caller has said that the region is a VMCS of this CPU.
        if let Err(fail) = unsafe { vmclear(self.region) } {
            debug_assert!(false, "the CPU refuses to clear a VMCS: {fail:?}");
        }
    }

    fn set(&self, field: u32, value: u64) {
        // SAFETY: this module writes what the capabilities allow, and the host's state as it is.
        let has = unsafe { vmwrite(field, value) };
        debug_assert!(has, "the CPU has no VMCS field {field:#x}");
    }

    /// Reads a field of the guest's state, or of the last exit.
    pub fn get(&self, field: u32) -> u64 {
        vmread(field)
    }

    fn write_controls(&self, setup: &Setup) {
        let c = &setup.capabilities;
        let controls = Controls::choose(c, setup.has, setup.list);
        self.set(control::PINBASED_EXEC_CONTROLS, controls.pin.into());
        self.set(control::PRIMARY_PROCBASED_EXEC_CONTROLS, controls.primary.into());
        self.set(control::SECONDARY_PROCBASED_EXEC_CONTROLS, controls.secondary.into());
        self.set(control::VMEXIT_CONTROLS, controls.exit.into());
        self.set(control::VMENTRY_CONTROLS, controls.entry.into());
        self.set(control::EXCEPTION_BITMAP, 0);
        self.set(control::CR3_TARGET_COUNT, 0);
        self.set(control::VMEXIT_MSR_STORE_COUNT, 0);
        self.set(control::VMEXIT_MSR_LOAD_COUNT, 0);
        self.set(control::VMENTRY_MSR_LOAD_COUNT, 0);
        self.set(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
        self.set(control::MSR_BITMAPS_ADDR_FULL, setup.msr_bitmap.get());
        if setup.has == Has::Machine {
            self.set(control::IO_BITMAP_A_ADDR_FULL, setup.port_bitmaps[0].get());
            self.set(control::IO_BITMAP_B_ADDR_FULL, setup.port_bitmaps[1].get());
        }
        self.set(control::EPTP_FULL, setup.eptp);
        if controls.secondary & SecondaryControls::ENABLE_VPID.bits() != 0 {
            self.set(control::VPID, setup.vpid.into());
        }
        if let Some(list) = setup.list.filter(|_| c.has_pml()) {
            self.set(control::PML_ADDR_FULL, list.get());
            self.set(guest::PML_INDEX, FIRST_LISTED);
        }
        if controls.secondary & SecondaryControls::ENABLE_XSAVES_XRSTORS.bits() != 0 {
            self.set(control::XSS_EXITING_BITMAP_FULL, 0);
        }
        // A guest may have anything but what VMX itself wants: it sees those bits as it has written them.
        self.set(control::CR0_GUEST_HOST_MASK, c.cr0_must & !PE_AND_PG);
        self.set(control::CR4_GUEST_HOST_MASK, c.cr4_must | VMXE);
        self.set(guest::LINK_PTR_FULL, u64::MAX);
    }

    fn write_host(&self, selectors: Selectors) {
        let running = Running::of_this_cpu();
        let local = Local::this();
        self.set(host::CR0, running.cr0);
        self.set(host::CR3, running.cr3);
        self.set(host::CR4, running.cr4);
        self.set(host::CS_SELECTOR, selectors.code.0.into());
        for field in
            [host::SS_SELECTOR, host::DS_SELECTOR, host::ES_SELECTOR, host::FS_SELECTOR, host::GS_SELECTOR]
        {
            self.set(field, selectors.data.0.into());
        }
        self.set(host::TR_SELECTOR, selectors.task.0.into());
        self.set(host::FS_BASE, 0);
        self.set(host::GS_BASE, &raw const *local as u64);
        self.set(host::TR_BASE, local.task());
        self.set(host::GDTR_BASE, local.gdt());
        self.set(host::IDTR_BASE, crate::exception::table());
        self.set(host::IA32_SYSENTER_CS, 0);
        self.set(host::IA32_SYSENTER_ESP, 0);
        self.set(host::IA32_SYSENTER_EIP, 0);
        self.set(host::IA32_EFER_FULL, running.efer);
        self.set(host::IA32_PAT_FULL, rdmsr(msr::IA32_PAT));
        self.set(host::RIP, exit_address());
    }

    /// Puts the vCPU into the state that it starts in. Everything that a reset sets is set.
    pub fn start(&mut self, capabilities: &Capabilities, start: Start) {
        self.registers = Registers::default();
        let real = |selector: u16, rights| Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            rights,
        };
        let flat = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
        let (code, data, pe, rip, activity) = match start {
            Start::Flat { entry, ebx, esi } => {
                self.registers.rbx = ebx.into();
                self.registers.rsi = esi.into();
                (flat(BOOT_CS, CODE_32), flat(BOOT_DS, DATA_32), 1, u64::from(entry), ACTIVE)
            }
            Start::Page(page) => {
                let code = real(u16::from(page) << 8, CODE_16);
                (code, real(0, DATA_16), 0, 0, ACTIVE)
            }
            Start::WaitForStartUp => (real(0, CODE_16), real(0, DATA_16), 0, 0, WAIT_FOR_SIPI),
        };
        self.segment(guest::CS_SELECTOR, code);
        for selector in [
            guest::SS_SELECTOR,
            guest::DS_SELECTOR,
            guest::ES_SELECTOR,
            guest::FS_SELECTOR,
            guest::GS_SELECTOR,
        ] {
            self.segment(selector, data);
        }
        let nothing = |rights| Segment { selector: 0, base: 0, limit: 0xffff, rights };
        self.segment(guest::LDTR_SELECTOR, nothing(UNUSABLE));
        self.segment(guest::TR_SELECTOR, nothing(TASK));
        for base in [guest::GDTR_BASE, guest::IDTR_BASE] {
            self.set(base, 0);
        }
        for limit in [guest::GDTR_LIMIT, guest::IDTR_LIMIT] {
            self.set(limit, 0xffff);
        }
        let cr0 = CR0_ET | pe;
        self.set(guest::CR0, cr0 | capabilities.cr0_must & !PE_AND_PG);
        self.set(control::CR0_READ_SHADOW, cr0);
        self.set(guest::CR3, 0);
        self.set(guest::CR4, capabilities.cr4_must | VMXE);
        self.set(control::CR4_READ_SHADOW, 0);
        self.set(guest::IA32_EFER_FULL, 0);
        self.set(guest::IA32_PAT_FULL, PAT);
        self.set(guest::IA32_DEBUGCTL_FULL, 0);
        self.set(guest::DR7, DR7);
        self.set(guest::RSP, 0);
        self.set(guest::RIP, rip);
        self.set(guest::RFLAGS, RFLAGS);
        self.set(guest::IA32_SYSENTER_CS, 0);
        self.set(guest::IA32_SYSENTER_ESP, 0);
        self.set(guest::IA32_SYSENTER_EIP, 0);
        self.set(guest::PENDING_DBG_EXCEPTIONS, 0);
        self.set(guest::INTERRUPTIBILITY_STATE, 0);
        self.set(guest::ACTIVITY_STATE, activity);
        let entry = self.get(control::VMENTRY_CONTROLS);
        let wide = u64::from(EntryControls::IA32E_MODE_GUEST.bits());
        self.set(control::VMENTRY_CONTROLS, entry & !wide);
        self.set(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
    }

    /// Writes a segment, whose fields lie side by side in each group, in the order of the selectors.
    fn segment(&self, selector: u32, segment: Segment) {
        let place = selector - guest::ES_SELECTOR;
        self.set(selector, segment.selector.into());
        self.set(guest::ES_LIMIT + place, segment.limit.into());
        self.set(guest::ES_ACCESS_RIGHTS + place, segment.rights.into());
        self.set(guest::ES_BASE + place, segment.base);
    }

    /// Enters the guest, and returns why it has left.
    ///
    /// # Errors
    /// [`refused::Refused`] where the CPU refused the entry: a bug, of which it says what can be said.
    ///
    /// # Safety
    /// This VMCS is the current one of the CPU that runs this; the tables of its EPT pointer are the guest's own.
    pub unsafe fn enter(&mut self) -> Result<Exit, refused::Refused> {
        // SAFETY: the caller's promise.
        match unsafe { enter(&mut self.registers, self.launched) } {
            Went::Exit => {}
            Went::Failed(fail) => return Err(refused::of_instruction(fail)),
        }
        let told = Told::read();
        if told.failed_entry() {
            return Err(refused::of_state(&told));
        }
        self.launched = true;
        self.put_back();
        Ok(Exit::decode(&told))
    }

    /// An exit that came while an event was being delivered has taken the event away: the next entry delivers it. And one
    /// that an IRET met which had unblocked NMIs already blocks them again, since the IRET is executed again (28.2.3).
    fn put_back(&self) {
        let event = self.get(ro::IDT_VECTORING_INFO);
        if event & VALID != 0 {
            self.set(control::VMENTRY_INTERRUPTION_INFO_FIELD, event & !UNBLOCKED_BY_IRET);
            if event & HAS_ERROR_CODE != 0 {
                self.set(control::VMENTRY_EXCEPTION_ERR_CODE, self.get(ro::IDT_VECTORING_ERR_CODE));
            }
            self.set(control::VMENTRY_INSTRUCTION_LEN, self.get(ro::VMEXIT_INSTRUCTION_LEN));
        } else if super::exit::TELLS_OF_IRET.contains(&(self.get(ro::EXIT_REASON) & 0xffff))
            && self.get(ro::EXIT_QUALIFICATION) & UNBLOCKED_BY_IRET != 0
        {
            let state = self.get(guest::INTERRUPTIBILITY_STATE);
            self.set(guest::INTERRUPTIBILITY_STATE, state | BLOCKED_BY_NMI);
        }
    }

    /// Makes the guest's state one that no CPU enters, to see the report of that: RFLAGS without the bit that is always set.
    pub fn spoil(&self) {
        self.set(guest::RFLAGS, 0);
    }

    /// Ends what [`leave_at_once`] has asked for.
    pub fn stay(&self) {
        let controls = self.get(control::PRIMARY_PROCBASED_EXEC_CONTROLS);
        self.set(control::PRIMARY_PROCBASED_EXEC_CONTROLS, controls & !u64::from(NMI_WINDOW));
    }

    /// Tells whether the next entry can deliver an interrupt: the guest takes them, and nothing else is to be delivered.
    pub fn takes_interrupts(&self) -> bool {
        self.lets_interrupts_in()
            && self.get(guest::INTERRUPTIBILITY_STATE) & BLOCKED_FOR_ONE == 0
            && self.get(control::VMENTRY_INTERRUPTION_INFO_FIELD) & VALID == 0
    }

    /// Has the guest leave as soon as it takes interrupts, or not for that.
    pub fn leave_for_interrupts(&self, when: Leave) {
        self.switch(control::PRIMARY_PROCBASED_EXEC_CONTROLS, INTERRUPT_WINDOW, when);
    }

    /// Has a guest that has the machine leave at HLT, or not for that.
    pub fn leave_at_halt(&self, when: Leave) {
        self.switch(control::PRIMARY_PROCBASED_EXEC_CONTROLS, HLT, when);
    }

    /// Tells whether the guest lets interrupts in.
    pub fn lets_interrupts_in(&self) -> bool {
        self.get(guest::RFLAGS) & IF != 0
    }

    /// Has the guest leave after so many ticks of the time-stamp counter, soon after the last, or never. The CPUs have a timer.
    pub fn leave_after(&self, capabilities: &Capabilities, ticks: Option<u64>) {
        let when = if ticks.is_some() { Leave::Then } else { Leave::Never };
        self.switch(control::PINBASED_EXEC_CONTROLS, TIMER, when);
        if let Some(ticks) = ticks {
            let units = (ticks >> capabilities.timer_shift) + 1;
            self.set(guest::VMX_PREEMPTION_TIMER_VALUE, units.min(u32::MAX.into()));
        }
    }

    fn switch(&self, field: u32, bit: u32, when: Leave) {
        let (before, bit) = (self.get(field), u64::from(bit));
        let after = if when == Leave::Then { before | bit } else { before & !bit };
        if after != before {
            self.set(field, after);
        }
    }

    /// Goes on behind the instruction that the exit was for.
    pub fn skip(&self) {
        self.skip_bytes(self.get(ro::VMEXIT_INSTRUCTION_LEN));
    }

    /// As [`Vmcs::skip`], where the exit does not tell the instruction's length.
    pub fn skip_bytes(&self, bytes: u64) {
        let next = self.rip().wrapping_add(bytes);
        // Outside 64-bit code addresses have 32 bits.
        let next = if self.is_wide() { next } else { next & 0xffff_ffff };
        self.set(guest::RIP, next);
        let state = self.get(guest::INTERRUPTIBILITY_STATE);
        self.set(guest::INTERRUPTIBILITY_STATE, state & !BLOCKED_FOR_ONE);
    }

    /// Returns the address of the instruction that the guest is at.
    pub fn rip(&self) -> u64 {
        self.get(guest::RIP)
    }

    /// Tells whether the guest is in 64-bit code.
    pub fn is_wide(&self) -> bool {
        const L: u64 = 1 << 13;
        self.get(guest::CS_ACCESS_RIGHTS) & L != 0
    }

    /// Returns what the guest's code is; `None` where its instructions have 16 bits.
    pub fn code(&self) -> Option<Code> {
        const D: u64 = 1 << 14;
        match self.is_wide() {
            true => Some(Code::Bits64),
            false if self.get(guest::CS_ACCESS_RIGHTS) & D != 0 => Some(Code::Bits32),
            false => None,
        }
    }

    /// Tells whether the last exit came while an event was being delivered: the CPU had left the instruction that it names.
    pub fn is_delivering(&self) -> bool {
        self.get(ro::IDT_VECTORING_INFO) & VALID != 0
    }

    /// Returns the guest's privilege: 0 is the kernel's.
    pub fn privilege(&self) -> u8 {
        (self.get(guest::SS_ACCESS_RIGHTS) >> 5) as u8 & 3
    }

    /// Has the next entry deliver an event. An event that the last exit has interrupted comes first: it stays, and this
    /// one is dropped, since what caused it happens again.
    pub fn inject(&self, event: Event) {
        if self.get(control::VMENTRY_INTERRUPTION_INFO_FIELD) & VALID == 0 {
            self.set(control::VMENTRY_EXCEPTION_ERR_CODE, 0);
            self.set(control::VMENTRY_INTERRUPTION_INFO_FIELD, event.information().into());
        }
    }

    /// Has the next entry deliver a non-maskable interrupt, or, where the guest takes none now or has another event to take, has
    /// the guest leave as soon as it takes one. Tells whether it will have been delivered.
    pub fn deliver_nmi(&self) -> bool {
        let blocked = self.get(guest::INTERRUPTIBILITY_STATE) & (BLOCKED_FOR_ONE | BLOCKED_BY_NMI) != 0;
        let is_taken = !blocked && self.get(control::VMENTRY_INTERRUPTION_INFO_FIELD) & VALID == 0;
        if is_taken {
            self.inject(Event::Nmi);
        } else {
            leave_at_once();
        }
        is_taken
    }

    /// Writes CR0 or CR4 for a guest, which sees what it has asked for and has what VMX wants. Tells whether it may: the CPU
    /// would raise a general-protection exception otherwise.
    pub fn write_shadow(&self, register: Controlled, value: u64, capabilities: &Capabilities) -> bool {
        match register {
            Controlled::Cr0 => {
                let now = Paging {
                    cr0: self.get(guest::CR0),
                    cr4: self.get(guest::CR4),
                    efer: self.get(guest::IA32_EFER_FULL),
                    is_wide: self.is_wide(),
                };
                let Some(efer) = now.with_cr0(value) else { return false };
                self.set(control::CR0_READ_SHADOW, value);
                self.set(guest::CR0, value | capabilities.cr0_must & !PE_AND_PG);
                self.set(guest::IA32_EFER_FULL, efer);
                let wide = u64::from(EntryControls::IA32E_MODE_GUEST.bits());
                let entry = self.get(control::VMENTRY_CONTROLS) & !wide;
                self.set(control::VMENTRY_CONTROLS, if efer & LMA != 0 { entry | wide } else { entry });
                true
            }
            // There is no VMX for guests, nor anything else that this CPU does not have.
            Controlled::Cr4 if value & (VMXE | !capabilities.cr4_may) != 0 => false,
            Controlled::Cr4 => {
                self.set(control::CR4_READ_SHADOW, value);
                self.set(guest::CR4, value | capabilities.cr4_must | VMXE);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests;
