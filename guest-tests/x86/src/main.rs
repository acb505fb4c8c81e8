//! What a virtual machine on x86-64 promises that is this architecture's own: what a kernel finds at its start, what the CPU
//! says it is, and what is out of reach.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "registers and memory are touched that may not be touched")]

use abi::{calls, page};
use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;
use guest_tests::access::Effect;
use guest_tests::calls::hypercall;
use guest_tests::guard::{Caught, attempt};
use guest_tests::mmio::{read32, read64, write32, write64};
use guest_tests::mmu::PAGE;
use guest_tests::{Verdict, check, cpu, fail, guest_tests, machine, ram, same, service, skip, smp, timer};

guest_tests! {
    "pc":
    the_start_information_names_all_memory,
    memory_is_zero_at_first_and_keeps_what_is_written,
    there_is_a_hypervisor_and_no_vmx,
    vmx_cannot_be_switched_on,
    registers_of_the_machine_are_out_of_reach,
    beyond_memory_there_is_nothing,
    the_call_of_this_hypervisor_has_its_identity,
    every_vcpu_has_its_number,
    the_control_page_takes_moves_and_nothing_else,
    the_control_page_takes_moves_of_32_bit_code,
    a_timer_interrupts_once_and_not_early,
    an_interrupt_waits_until_it_is_let_in,
    a_timer_wakes_who_is_halted,
}

fn the_start_information_names_all_memory() -> Verdict {
    let machine = machine::get();
    let main = machine.ram[0];
    let image = guest_tests::start::image();
    check!(
        main.contains(image.start) && main.contains(image.end),
        "the image is at {image:x?}, memory at {main:x?}"
    );
    check!(main.contains(machine.information.start), "the information is outside of memory");
    check!(machine.ram.iter().any(|ram| ram.contains(0)), "there is no memory below 1 MiB");
    Ok(())
}

fn memory_is_zero_at_first_and_keeps_what_is_written() -> Verdict {
    let ram = ram::take(8 << 20, PAGE).expect("there is memory");
    for word in ram.words().iter().step_by(512) {
        same!("memory at first", word.as_ptr() as u64, 0, word.load(Relaxed));
        word.store(word.as_ptr() as u64 ^ 0x5eed, Relaxed);
    }
    for word in ram.words().iter().step_by(512) {
        same!("what was written", word.as_ptr() as u64, word.as_ptr() as u64 ^ 0x5eed, word.load(Relaxed));
    }
    Ok(())
}

fn there_is_a_hypervisor_and_no_vmx() -> Verdict {
    let leaf = |leaf| core::arch::x86_64::__cpuid(leaf);
    let features = leaf(1);
    check!(features.ecx & 1 << 5 == 0, "CPUID tells of VMX");
    check!(features.ecx & 1 << 31 != 0, "CPUID tells of no hypervisor");
    check!(leaf(0x4000_0000).ebx.to_le_bytes() == *b"Mezz", "the hypervisor has another name");
    Ok(())
}

/// Whether something ended in a general-protection exception.
fn is_refused<R>(result: Result<R, Caught>) -> bool {
    result.is_err_and(Caught::is_of_no_memory)
}

fn vmx_cannot_be_switched_on() -> Verdict {
    // SAFETY: VMX is not there: refused, and nothing has changed.
    let result = unsafe {
        attempt(|| asm!("mov {t}, cr4", "bts {t}, 13", "mov cr4, {t}", t = out(reg) _, options(nostack)))
    };
    check!(is_refused(result), "CR4.VMXE was taken");
    Ok(())
}

/// Reads a model-specific register.
fn rdmsr(register: u32) -> Result<u64, Caught> {
    // SAFETY: a read.
    unsafe {
        attempt(|| {
            let (low, high): (u32, u32);
            asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack));
            u64::from(high) << 32 | u64::from(low)
        })
    }
}

fn registers_of_the_machine_are_out_of_reach() -> Verdict {
    const FEATURE_CONTROL: u32 = 0x3a;
    const VMX_BASIC: u32 = 0x480;
    const EFER: u32 = 0xc000_0080;
    check!(rdmsr(EFER).is_ok(), "IA32_EFER was refused");
    check!(is_refused(rdmsr(FEATURE_CONTROL)), "IA32_FEATURE_CONTROL was read");
    check!(is_refused(rdmsr(VMX_BASIC)), "IA32_VMX_BASIC was read");
    Ok(())
}

fn beyond_memory_there_is_nothing() -> Verdict {
    for at in [machine::get().ram_end(), 0x1000_0000, 0xfee0_0000, 0xffff_f000] {
        for access in guest_tests::access::ACCESSES.iter().filter(|access| access.effect != Effect::Hint) {
            // SAFETY: nothing is there.
            let result = unsafe { access.perform(at) };
            check!(is_refused(result), "`{}` at {at:#x}: expected a refusal, found {result:?}", access.name);
        }
    }
    Ok(())
}

fn the_call_of_this_hypervisor_has_its_identity() -> Verdict {
    let mut registers = [0; _];
    registers[0] = abi::UID.into();
    let Ok(results) = hypercall(registers) else { fail!("the call for the identity was refused") };
    same!("the identity", 0, abi::uuid_words(&abi::UUID)[0].into(), results[0] & 0xffff_ffff);
    for function in [calls::END - 1, calls::END, 0x8400_0000, u32::MAX] {
        registers[0] = function.into();
        let Ok(results) = hypercall(registers) else { fail!("call {function:#x} was refused") };
        same!("a call that there is not", function.into(), u64::MAX, results[0]);
    }
    Ok(())
}

fn the_control_page_takes_moves_and_nothing_else() -> Verdict {
    /// Those of [`guest_tests::access::ACCESSES`] that compilers make of a volatile access.
    const TAKEN: [&str; 8] = [
        "movzx eax, word ptr [rdi]",
        "mov eax, [rdi]",
        "mov rax, [rdi]",
        "mov [rdi], al",
        "mov [rdi], ax",
        "mov [rdi], eax",
        "mov [rdi], rax",
        "mov qword ptr [rdi], 5",
    ];
    const SOME: u64 = 0x1122_3344_5566_7788;
    service::granted()?;
    let argument = page::BASE + page::ARGUMENT;
    for access in guest_tests::access::ACCESSES.iter().filter(|access| access.effect != Effect::Hint) {
        // SAFETY: a register that does nothing by itself.
        let result = unsafe { access.perform(argument) };
        let is_taken = TAKEN.contains(&access.name);
        check!(
            result.is_ok() == is_taken,
            "`{}`: expected it taken is {is_taken}, found {result:?}",
            access.name
        );
        check!(is_taken || is_refused(result), "`{}`: expected a refusal, found {result:?}", access.name);
    }
    same!("what the last move has left", argument, 5, read64(argument));
    write64(argument, SOME);
    let (scaled, low): (u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "mov {scaled}, [r12 + 8 * r13 - 8]",
            "mov {low:e}, [r12 + 24]",
            "mov dword ptr [r12 + 8 * r13 - 4], 0x77",
            scaled = out(reg) scaled, low = out(reg) low, in("r12") page::BASE, in("r13") 4_u64, options(nostack)
        );
    }
    same!("a register by a scaled index", argument, SOME, scaled);
    same!("its lower half", argument, SOME & 0xffff_ffff, low);
    same!("its upper half", argument + 4, 0x77, read32(argument + 4).into());
    write32(argument, 0x99);
    same!("both halves", argument, 0x77 << 32 | 0x99, read64(argument));
    same!("what is not aligned", argument + 4, 0, read64(argument + 4));
    // SAFETY: the registers end before this, and nothing is behind the page.
    let across = unsafe { attempt(|| read64(page::BASE + page::SIZE - 4)) };
    check!(is_refused(across), "a read across the end of the page: found {across:?}");
    Ok(())
}

/// Reads the word at `page` + 0x18 in 32-bit code, writes it to the next register, and a number to that one's upper half.
///
/// # Safety
/// There are registers that do nothing by themselves.
unsafe fn copy_in_32_bit_code(page: u64) {
    /// As the entry code has them, and code of 32 bits behind.
    static GDT: [u64; 4] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff];
    const CODE_32: u64 = 3 << 3;
    let gdt = &raw const GDT as u64;
    let register = [(size_of_val(&GDT) as u64 - 1) | gdt << 16, gdt >> 48];
    let mut far = 0_u64;
    // SAFETY: the segments in use stay the same. Code, stack and page are below 4 GiB, where a far call leads that has 32 bits, and
    // so does the way back.
    unsafe {
        asm!(
            "lgdt ({register})",
            "leaq 2f(%rip), %rax",
            "movl %eax, ({far})",
            "movl ${code}, 4({far})",
            "lcalll *({far})",
            "jmp 3f",
            ".code32",
            "2: movl 0x18(%edi), %eax",
            "movl %eax, 0x20(%edi)",
            "movl $0x77, 0x24(%edi)",
            "lretl",
            ".code64",
            "3:",
            register = in(reg) register.as_ptr(),
            far = in(reg) &raw mut far,
            code = const CODE_32,
            in("rdi") page,
            out("rax") _,
            options(att_syntax)
        );
    }
}

fn the_control_page_takes_moves_of_32_bit_code() -> Verdict {
    service::granted()?;
    let argument = page::BASE + page::ARGUMENT;
    write64(argument, 0x1122_3344_5566_7788);
    write64(argument + 8, 0);
    // SAFETY: arguments do nothing by themselves.
    unsafe { copy_in_32_bit_code(page::BASE) };
    same!("what 32-bit code has copied", argument + 8, 0x77 << 32 | 0x5566_7788, read64(argument + 8));
    Ok(())
}

fn every_vcpu_has_its_number() -> Verdict {
    smp::on_all(&|this| {
        let apic = core::arch::x86_64::__cpuid(0xb).edx;
        same!("the x2APIC's number", this as u64, this as u64, apic.into());
        Ok(())
    })
}

fn has_timer() -> Verdict {
    if core::arch::x86_64::__cpuid(1).ecx & 1 << 24 == 0 {
        skip!("there is no timer with a deadline");
    }
    timer::on();
    Ok(())
}

/// Some ticks: longer than an exit takes.
const SOME: u64 = 200_000;

fn a_timer_interrupts_once_and_not_early() -> Verdict {
    smp::on_all(&|this| {
        has_timer()?;
        for round in 0..20 {
            let (before, at) = (timer::taken(), timer::now() + round * SOME / 10);
            timer::arm(at);
            let came = cpu::with_interrupts(|| {
                cpu::wait_until("the timer", || timer::taken() > before);
                timer::now()
            });
            check!(came >= at, "vCPU {this}: expected nothing before {at}, found an interrupt at {came}");
            cpu::with_interrupts(|| while timer::now() < at + SOME {});
            same!("interrupts for one deadline", this as u64, 1, timer::taken() - before);
        }
        Ok(())
    })
}

fn an_interrupt_waits_until_it_is_let_in() -> Verdict {
    smp::on_all(&|this| {
        has_timer()?;
        let (before, at) = (timer::taken(), timer::now() + SOME / 10);
        timer::arm(at);
        while timer::now() < at + SOME {}
        same!("interrupts where none are taken", this as u64, 0, timer::taken() - before);
        cpu::with_interrupts(|| cpu::wait_until("the timer", || timer::taken() > before));
        timer::arm(timer::now() + SOME);
        timer::arm(0);
        cpu::with_interrupts(|| {
            let from = timer::now();
            while timer::now() < from + 2 * SOME {}
        });
        same!("interrupts of a timer that was switched off", this as u64, 1, timer::taken() - before);
        Ok(())
    })
}

fn a_timer_wakes_who_is_halted() -> Verdict {
    smp::on_all(&|this| {
        has_timer()?;
        for _ in 0..5 {
            let (before, at) = (timer::taken(), timer::now() + SOME);
            timer::arm(at);
            cpu::halt();
            check!(timer::now() >= at, "vCPU {this} went on before {at}");
            same!("interrupts that have woken a vCPU", this as u64, 1, timer::taken() - before);
        }
        Ok(())
    })
}
