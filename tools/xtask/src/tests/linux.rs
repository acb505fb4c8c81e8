//! Linux in a VM: it comes up with all its CPUs and memory, gets its interrupts, reads its console, and ends.

use super::Extent;
use super::cases::Cases;
use crate::board::{Board, Built};
use crate::bundle::{self, One, Vm};
use crate::churn::{Trial, contents};
use crate::console::Console;
use crate::qemu::{CPUS, DEFAULT_CPU};
use crate::report::{self, END, STATS};
use crate::run::{GRANTED, HYPERVISOR_APPEND, Prepared, bare, host, linux_cmdline, vm};
use crate::setup;
use crate::size::Size;
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::time::Duration;

/// The numbers of CPUs and sizes of memory that are booted.
const SMP: [u32; 3] = [1, 2, 4];
const MEMORY: [Size; 3] = [Size::mib(256), Size::mib(1024), Size::mib(6 * 1024)];

/// No step of a boot takes that long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The shell's prompt, which init sets.
const PROMPT: &str = r"guest:\S* *# ";

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    cpu: &'static str,
    smp: u32,
    memory: Size,
}

/// Boots what the extent says.
pub(super) fn run(cases: &mut Cases, extent: Extent) -> Result<()> {
    let shapes = shapes(extent);
    let models: &[&str] = if extent == Extent::Quick { &[DEFAULT_CPU] } else { &CPUS };
    let variants: &[Variant] = if extent == Extent::Quick { &[] } else { &VARIANTS };
    cases.group("Linux in a VM", 1 + shapes.len() + 2 * models.len() + variants.len() + 2);
    // The control: if this fails, the fault is not the hypervisor's.
    let shape = Shape { cpu: DEFAULT_CPU, smp: 2, memory: MEMORY[1] };
    let bare = || bare(Board::virt()?, shape.cpu, shape.smp, shape.memory, linux_cmdline(None));
    cases.boot("Linux boots on the bare machine", bare, |console| {
        comes_up(console, shape)?;
        console.send("poweroff -f\n")?;
        ends(console)
    });
    let built = Board::virt()?.build()?;
    for shape in shapes {
        let name = format!("Linux boots and powers off: {}, {} CPUs, {}", shape.cpu, shape.smp, shape.memory);
        cases.boot(&name, || linux(&built, shape), |console| boots_and_powers_off(console, shape));
    }
    for cpu in models {
        let shape = Shape { cpu, smp: 4, memory: MEMORY[1] };
        let name = format!("timer and IPIs reach every CPU: {cpu}, 4 CPUs");
        cases.boot(&name, || linux(&built, shape), |console| interrupts_arrive(console, shape.smp));
        if extent == Extent::Quick {
            break;
        }
        let shape = Shape { cpu, smp: 2, memory: MEMORY[0] };
        let name = format!("a CPU, a VM and the machine start again: {cpu}, 2 CPUs");
        cases.boot(&name, || with(&built, shape, "exercise=cpus end=reset"), all_start_again);
    }
    if extent != Extent::Quick {
        let shape = Shape { cpu: DEFAULT_CPU, smp: 2, memory: MEMORY[0] };
        let name = "user space drives the page tables through the control page";
        cases.boot(name, || granted(&built, shape), drives);
        let trial = Trial {
            cpu: DEFAULT_CPU.to_owned(),
            rounds: 1,
            rate: 2000,
            tested: 1,
            disk: contents(4 << 20),
            more: String::new(),
            least: 0,
        };
        let name = "Linux judges its disk, a file and its memory, which change their places all the time";
        cases.boot(name, || trial.machine(&built), |console| trial.judge(console).map(|_| ()));
    }
    for variant in variants {
        let shape = Shape { cpu: variant.cpu, smp: 2, memory: MEMORY[0] };
        let name = format!("Linux boots with {}: {}, 2 CPUs", variant.options, variant.cpu);
        let says = |console: &mut Console| restarts_and_says(console, variant);
        cases.boot(&name, || with(&built, shape, variant.options), says);
    }
    Ok(())
}

/// What the hypervisor can do in more than one way, and does another way than by default.
struct Variant {
    cpu: &'static str,
    /// Added to the hypervisor's command line.
    options: &'static str,
    /// Lines that the statistics then have.
    says: &'static [&'static str],
    /// What the statistics count, and have counted.
    counts: &'static [&'static str],
}

/// Each way of waiting and of invalidating once, and the lowest level of break-before-make on a CPU that has a higher one;
/// while blocks are split and collapsed.
const VARIANTS: [Variant; 3] = [
    Variant {
        cpu: "cortex-a72",
        options: "exercise=resize invalidate=interrupt wait=batched",
        says: &["invalidation: interrupt", "waiting for readers: batched", "linux BBM level: 0"],
        counts: &["linux splits", "linux collapses", "linux blackouts", "kicks to invalidate"],
    },
    Variant {
        cpu: "neoverse-v1",
        options: "exercise=resize wait=rendezvous bbm=0",
        says: &["invalidation: broadcast", "waiting for readers: rendezvous", "linux BBM level: 0"],
        counts: &["linux splits", "linux collapses", "linux blackouts", "TLBI whole VMID"],
    },
    Variant {
        cpu: "max",
        options: "exercise=resize invalidate=interrupt wait=count",
        says: &["invalidation: interrupt", "waiting for readers: count", "linux BBM level: 2"],
        counts: &["linux splits", "linux collapses", "linux grace periods", "kicks to invalidate"],
    },
];

/// A machine whose hypervisor has these options, too.
fn with(built: &Built, shape: Shape, options: &str) -> Result<Prepared> {
    let mut prepared = linux(built, shape)?;
    prepared.machine.append = format!("{HYPERVISOR_APPEND} {options}");
    Ok(prepared)
}

/// Restarts once, so that what was mapped is unmapped while readers and TLBs may know it, and looks what was in use.
fn restarts_and_says(console: &mut Console, variant: &Variant) -> Result<()> {
    reboots(console)?;
    powers_off(console)?;
    for line in variant.says {
        let said = console.log().lines().any(|found| found.trim_end() == *line);
        ensure!(said, "the statistics do not say \"{line}\"");
    }
    let counted = report::statistics(console.log());
    for what in variant.counts {
        let count = counted.iter().find(|(name, _)| name == what).map_or("nothing", |(_, count)| count);
        ensure!(count.parse::<u64>().is_ok_and(|n| n > 0), "\"{what}\" is {count}");
    }
    Ok(())
}

/// Returns the combinations to boot. Every pair of values is in `Pairs`: memory advances with the model and with the
/// number of CPUs, so that each number of CPUs meets each size, and each model meets each of both.
fn shapes(extent: Extent) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (i, cpu) in CPUS.into_iter().enumerate() {
        for (j, smp) in SMP.into_iter().enumerate() {
            for (k, memory) in MEMORY.into_iter().enumerate() {
                let wanted = match extent {
                    Extent::Quick => cpu == DEFAULT_CPU && smp == 2 && memory == MEMORY[1],
                    Extent::Pairs => (i + j) % MEMORY.len() == k,
                    Extent::All => true,
                };
                if wanted {
                    shapes.push(Shape { cpu, smp, memory });
                }
            }
        }
    }
    shapes
}

fn linux(built: &Built, shape: Shape) -> Result<Prepared> {
    linux_as(built, shape, vm("linux", shape.smp, shape.memory, Some(linux_cmdline(None))))
}

/// As [`linux`], with the calls on its own memory.
fn granted(built: &Built, shape: Shape) -> Result<Prepared> {
    let mut vm = vm("linux", shape.smp, shape.memory, Some(linux_cmdline(None)));
    vm.hypercalls = Some(GRANTED.to_owned());
    linux_as(built, shape, vm)
}

fn linux_as(built: &Built, shape: Shape, vm: Vm) -> Result<Prepared> {
    let (kernel, initrd) = (setup::kernel(), setup::initramfs());
    let (bundle, _) = bundle::of_one(One { vm, kernel: &kernel, initrd: Some(&initrd) })?;
    host(Board::virt()?, built, shape.cpu, &bundle, shape.smp, shape.memory)
}

impl Shape {
    /// Returns two CPUs, of the board's own model, and little memory.
    pub(super) const fn smallest() -> Self {
        Self { cpu: "", smp: 2, memory: MEMORY[0] }
    }
}

/// Makes a machine of a board that has Linux in a VM.
pub(super) fn prepared(board: Board, shape: Shape) -> Result<Prepared> {
    let vm = vm("linux", shape.smp, shape.memory, Some(linux_cmdline(None)));
    let (kernel, initrd) = (setup::kernel(), setup::initramfs());
    let (bundle, _) = bundle::of_one(One { vm, kernel: &kernel, initrd: Some(&initrd) })?;
    host(board, &board.build()?, &board.cpu(None)?, &bundle, shape.smp, shape.memory)
}

/// Boots Linux with two CPUs on a board, and powers off.
pub(super) fn boots_on(cases: &mut Cases, name: &str, board: Board) {
    let shape = Shape::smallest();
    let turns_off = board.emulator().is_ok_and(|emulator| emulator.power_off);
    cases.boot(
        name,
        || prepared(board, shape),
        |console| {
            if turns_off {
                return boots_and_powers_off(console, shape);
            }
            comes_up(console, shape)?;
            says_statistics(console)
        },
    );
}

pub(super) fn boots_and_powers_off(console: &mut Console, shape: Shape) -> Result<()> {
    comes_up(console, shape)?;
    powers_off(console)
}

/// Waits for init, checks what it says, and has the shell compute something.
fn comes_up(console: &mut Console, shape: Shape) -> Result<()> {
    let cpus = number(console, r"^CPUs: (\d+) online")?;
    ensure!(cpus == u64::from(shape.smp), "{cpus} of {} CPUs are online", shape.smp);
    let memory = number(console, r"^Memory: (\d+) MiB")?;
    // The kernel keeps some for itself: a sixteenth, and 64 MiB of a small machine.
    let given = shape.memory.bytes() >> 20;
    ensure!(memory <= given && memory >= given * 15 / 16 - 64, "{memory} MiB of {given} MiB are there");
    expect(console, "^INIT-OK$")?;
    prompt(console)?;
    // What is typed is echoed: only the sum is an answer.
    console.send("echo SUM-$((6 * 7))\n")?;
    expect(console, "^SUM-42$")?;
    prompt(console)
}

fn powers_off(console: &mut Console) -> Result<()> {
    says_statistics(console)?;
    ends(console)
}

/// Powers the guest off, and waits until the hypervisor has said what there is to say.
pub(crate) fn says_statistics(console: &mut Console) -> Result<()> {
    console.send("poweroff -f\n")?;
    expect(console, &format!("^{}", regex::escape(STATS)))?;
    expect(console, &format!("^{}", regex::escape(END)))?;
    Ok(())
}

/// Waits for the machine's end, which must be a clean one.
fn ends(console: &mut Console) -> Result<()> {
    let status = console.end(Some(PATIENCE))?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

fn reboots(console: &mut Console) -> Result<()> {
    expect(console, "^INIT-OK$")?;
    prompt(console)?;
    console.send("reboot -f\n")?;
    expect(console, "Booting Linux on physical CPU")?;
    expect(console, "^INIT-OK$")?;
    prompt(console)
}

/// The other CPU, before there are guests; the VM; and the machine, when it is off.
fn all_start_again(console: &mut Console) -> Result<()> {
    expect(console, "CPUs off and on again: 1 of 1$")?;
    reboots(console)?;
    says_statistics(console)?;
    expect(console, r"Mezzanine \S+ on ")?;
    Ok(())
}

fn interrupts_arrive(console: &mut Console, smp: u32) -> Result<()> {
    expect(console, "^INIT-OK$")?;
    prompt(console)?;
    let before = interrupts(console, 1)?;
    // Something to do on each CPU in turn: moving there takes an IPI, being there for a while takes ticks.
    console.send(&format!(
        "for cpu in $(seq 0 {}); do taskset -c $cpu sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; done\n",
        smp - 1
    ))?;
    prompt(console)?;
    let after = interrupts(console, 2)?;
    for (what, before, after) in
        [("arch_timer", &before.timer, &after.timer), ("IPIs", &before.ipi, &after.ipi)]
    {
        ensure!(after.len() == smp as usize, "{what}: {after:?} are not counts of {smp} CPUs");
        ensure!(after.iter().all(|count| *count > 0), "{what}: a CPU has had none: {after:?}");
        ensure!(sum(after) > sum(before), "{what}: {before:?} did not grow: {after:?}");
    }
    let grown = before.timer.iter().zip(&after.timer).all(|(before, after)| after > before);
    ensure!(grown, "arch_timer did not grow on every CPU: {:?}, then {:?}", before.timer, after.timer);
    powers_off(console)
}

/// Splits the first block of memory under the running kernel and makes it again, by writes to the control page.
fn drives(console: &mut Console) -> Result<()> {
    expect(console, "^INIT-OK$")?;
    prompt(console)?;
    // Function, address, length, parameter, cursor; go; the status is what is printed.
    console.send(
        "call() { at=$((0x09100010)); for value; do devmem $at 64 $value; at=$((at + 8)); done; \
         devmem 0x09100048 64 1; echo STATUS-$(devmem 0x09100050 64)-$(devmem 0x09100060 64); }\n",
    )?;
    prompt(console)?;
    // SPLIT, COLLAPSE in place: one block each. Then a function that there is none of.
    for (call, answer) in [
        ("0xc6000013 0x40000000 0x200000 0 0", "STATUS-0x0+-0x0+1"),
        ("0xc6000014 0x40000000 0x200000 0 0", "STATUS-0x0+-0x0+1"),
        ("0xc60000ff 0 0 0 0", "STATUS-0xF{16}-0x0+"),
    ] {
        console.send(&format!("call {call}\n"))?;
        expect(console, &format!("^{answer}$"))?;
        prompt(console)?;
    }
    powers_off(console)
}

/// Counts of interrupts, by CPU.
#[derive(Debug, Default, PartialEq)]
struct Interrupts {
    timer: Vec<u64>,
    ipi: Vec<u64>,
}

/// Asks the guest; `turn` makes the closing line one that was not there before.
fn interrupts(console: &mut Console, turn: u32) -> Result<Interrupts> {
    let from = console.log().len();
    console.send(&format!("cat /proc/interrupts; echo END-$(({turn} + 100))\n"))?;
    expect(console, &format!("^END-{}$", turn + 100))?;
    let printed = console.log().get(from..).context("the console's log shrank")?;
    Ok(parse_interrupts(printed))
}

/// Reads the rows of the timer and of IPIs; the latter are added up.
fn parse_interrupts(text: &str) -> Interrupts {
    let mut found = Interrupts::default();
    for line in text.lines() {
        let Some((label, rest)) = line.split_once(':') else { continue };
        let counts: Vec<u64> = rest.split_whitespace().map_while(|word| word.parse().ok()).collect();
        if line.contains("arch_timer") {
            found.timer = counts;
        } else if label.trim().starts_with("IPI") {
            found.ipi.resize(counts.len().max(found.ipi.len()), 0);
            found.ipi.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    found
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().sum()
}

pub(crate) fn expect(console: &mut Console, pattern: &str) -> Result<Vec<String>> {
    Ok(console.expect_line(&Regex::new(pattern)?, PATIENCE)?)
}

/// Waits for the shell to be ready for another line.
pub(crate) fn prompt(console: &mut Console) -> Result<()> {
    console.expect(&Regex::new(PROMPT)?, PATIENCE)?;
    Ok(())
}

fn number(console: &mut Console, pattern: &str) -> Result<u64> {
    let groups = expect(console, pattern)?;
    groups.get(1).context("the pattern has no group")?.parse().context("no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifteen_boots_hold_every_pair_of_values() {
        let shapes = shapes(Extent::Pairs);
        assert_eq!(shapes.len(), 15);
        for cpu in CPUS {
            assert!(SMP.iter().all(|smp| shapes.iter().any(|s| s.cpu == cpu && s.smp == *smp)));
            assert!(MEMORY.iter().all(|memory| shapes.iter().any(|s| s.cpu == cpu && s.memory == *memory)));
        }
        for smp in SMP {
            assert!(MEMORY.iter().all(|memory| shapes.iter().any(|s| s.smp == smp && s.memory == *memory)));
        }
    }

    #[test]
    fn all_boots_are_the_full_product() {
        assert_eq!(shapes(Extent::All).len(), 45);
        assert_eq!(shapes(Extent::Quick).len(), 1);
    }

    #[test]
    fn interrupt_counts_are_read_by_cpu_and_ipis_are_added_up() {
        let text = "           CPU0       CPU1\n 11:        448        430     GICv3  27 Level     arch_timer\n \
                    13:          2          0     GICv3  33 Level     uart-pl011\n\
                    IPI0:        10         20       Rescheduling interrupts\n\
                    IPI1:         1          2       Function call interrupts\nErr:          0\n";
        assert_eq!(parse_interrupts(text), Interrupts { timer: vec![448, 430], ipi: vec![11, 22] });
        assert_eq!(parse_interrupts(""), Interrupts::default());
    }
}
