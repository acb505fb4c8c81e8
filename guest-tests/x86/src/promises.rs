//! What the hypervisor promises, a function each.

use crate::machine::{
    aim_other, allows_vmxe, call, free_memory, let_other_try, other_has_arrived, rdmsr, read, refused, say,
    start_other, write,
};
use abi::{Status, calls};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// How a test went: what was wrong.
type Verdict = Result<(), &'static str>;

fn check(holds: bool, what: &'static str) -> Verdict {
    if holds { Ok(()) } else { Err(what) }
}

/// A test: what it promises, and how that is looked at.
type Test = (&'static str, fn(&Memory) -> Verdict);

/// Every test, in the order in which they run.
const TESTS: [Test; 13] = [
    ("the start information names the memory", information),
    ("memory is zero at first, and keeps what is written", memory),
    ("there is a hypervisor, and no VMX", identity),
    ("VMX cannot be switched on", no_vmx),
    ("registers of the machine are out of reach", registers),
    ("beyond memory there is nothing", beyond),
    ("calls are told from others", convention),
    ("memory that was given back is zero when it comes again", balloon),
    ("a block is split and put together again, with its contents", resize),
    ("rights that are taken away are gone", protect),
    ("rights are gone on a CPU that is writing at that moment", protect_other),
    ("a page that the other CPU writes is dirty in every round", dirty),
    ("memory moves under a CPU that writes it", moving),
];

/// The machine's memory, as the start information tells.
struct Memory {
    is_told: bool,
    end: u64,
}

/// Runs every test.
pub(crate) fn run(information: u64) {
    let told = told(information);
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS {
        match test(&told) {
            Ok(()) => {
                passed += 1;
                say!("PASS {name}");
            }
            Err(what) => {
                failed += 1;
                say!("FAIL {name}: {what}");
            }
        }
        aim_other(0);
    }
    say!("{passed} passed, {failed} failed");
}

fn told(information: u64) -> Memory {
    const MAGIC: u64 = 0x336e_c578;
    let word = |at: u64| read(information + at).unwrap_or(0);
    let map = word(40);
    // Main memory comes first.
    let end = read(map).unwrap_or(0) + read(map + 8).unwrap_or(0);
    Memory { is_told: word(0) & 0xffff_ffff == MAGIC, end }
}

fn information(memory: &Memory) -> Verdict {
    check(memory.is_told, "the first word is another")?;
    check(memory.end > free_memory() + 8 * BLOCK, "there is not enough memory")
}

/// Four blocks of memory that nobody has touched yet.
fn memory(memory: &Memory) -> Verdict {
    let start = free_memory() + 4 * BLOCK;
    check(start + 4 * BLOCK <= memory.end, "there is not enough memory")?;
    for at in (start..start + 4 * BLOCK).step_by(PAGE as usize) {
        check(read(at) == Some(0), "a word is not zero")?;
        check(write(at, at ^ 0x5eed), "a write was refused")?;
    }
    for at in (start..start + 4 * BLOCK).step_by(PAGE as usize) {
        check(read(at) == Some(at ^ 0x5eed), "a word has changed")?;
    }
    Ok(())
}

fn identity(_: &Memory) -> Verdict {
    let leaf = |leaf| core::arch::x86_64::__cpuid(leaf);
    let features = leaf(1);
    check(features.ecx & 1 << 5 == 0, "CPUID tells of VMX")?;
    check(features.ecx & 1 << 31 != 0, "CPUID tells of no hypervisor")?;
    check(leaf(0x4000_0000).ebx.to_le_bytes() == *b"Mezz", "the hypervisor has another name")
}

fn no_vmx(_: &Memory) -> Verdict {
    check(!allows_vmxe(), "CR4.VMXE was taken")
}

fn registers(_: &Memory) -> Verdict {
    const FEATURE_CONTROL: u32 = 0x3a;
    const VMX_BASIC: u32 = 0x480;
    const EFER: u32 = 0xc000_0080;
    check(rdmsr(EFER).is_some(), "IA32_EFER was refused")?;
    check(rdmsr(FEATURE_CONTROL).is_none(), "IA32_FEATURE_CONTROL was read")?;
    check(rdmsr(VMX_BASIC).is_none(), "IA32_VMX_BASIC was read")
}

fn beyond(memory: &Memory) -> Verdict {
    let before = refused();
    for at in [memory.end, 0x1000_0000, 0xfee0_0000, 0xffff_f000] {
        check(read(at).is_none(), "a read was answered")?;
        check(!write(at, 1), "a write was taken")?;
    }
    check(refused() == before + 8, "exceptions were lost")
}

fn convention(_: &Memory) -> Verdict {
    let (word, _) = call(abi::UID, [0; 4]);
    check(word as u32 == abi::uuid_words(&abi::UUID)[0], "the identity is another")?;
    let is = |function, arguments, status: Status| call(function, arguments).0 == status as i64;
    check(is(calls::FEATURES, [calls::SPLIT.into(), 0, 0, 0], Status::Success), "SPLIT is not offered")?;
    check(is(calls::END - 1, [0; 4], Status::NotSupported), "a function that there is not was answered")?;
    check(is(calls::SPLIT, [1, PAGE, 0, 0], Status::InvalidParameter), "an odd address was taken")?;
    check(is(calls::SPLIT, [0x1000_0000, PAGE, 0, 0], Status::NotMemory), "a hole was taken for memory")
}

/// Makes a call on a range until it is done.
fn on_range(function: u32, at: u64, bytes: u64, third: u64) -> Verdict {
    let mut cursor = 0;
    for _ in 0..1000 {
        let (status, [done, ..]) = call(function, [at, bytes, third, cursor]);
        match Status::of(status as u64) {
            Some(Status::Success) => return Ok(()),
            Some(Status::Continue | Status::Busy) => cursor = done,
            _ => return Err("a call on a range has failed"),
        }
    }
    Err("a call on a range has no end")
}

/// Returns a block of memory with something in each of its pages.
fn block(number: u64) -> u64 {
    let at = free_memory() + number * BLOCK;
    for page in (at..at + BLOCK).step_by(PAGE as usize) {
        write(page, page ^ 0xb10c);
    }
    at
}

fn has_kept(block: u64) -> Verdict {
    for page in (block..block + BLOCK).step_by(PAGE as usize) {
        check(read(page) == Some(page ^ 0xb10c), "a page has lost its contents")?;
    }
    Ok(())
}

fn balloon(_: &Memory) -> Verdict {
    let at = block(0);
    on_range(calls::BALLOON_OUT, at, BLOCK, 0)?;
    for page in (at..at + BLOCK).step_by(PAGE as usize) {
        check(read(page) == Some(0), "something came back")?;
    }
    Ok(())
}

fn pages(at: u64) -> (u64, u64) {
    let (_, [_, pages, blocks, ..]) = call(calls::SURVEY, [at, BLOCK, 0, 0]);
    (pages, blocks)
}

fn resize(_: &Memory) -> Verdict {
    let at = block(1);
    check(pages(at) == (0, 1), "it is no block at first")?;
    on_range(calls::SPLIT, at, BLOCK, 0)?;
    check(pages(at) == (512, 0), "it is not 512 pages")?;
    has_kept(at)?;
    on_range(calls::COLLAPSE, at, BLOCK, 0)?;
    check(pages(at) == (0, 1), "it is no block again")?;
    has_kept(at)
}

use abi::calls::rights::{EXEC, READ, WRITE};

fn protect(_: &Memory) -> Verdict {
    let at = block(2) + 5 * PAGE;
    on_range(calls::PROTECT, at, PAGE, READ)?;
    check(!write(at, 1), "a write was taken")?;
    check(read(at) == Some(at ^ 0xb10c), "it cannot be read, or has changed")?;
    check(write(at + PAGE, 1) && write(at - PAGE, 1), "its neighbours cannot be written")?;
    on_range(calls::PROTECT, at, PAGE, READ | WRITE | EXEC)?;
    check(write(at, 1), "the right did not come back")
}

/// How often the other CPU tries in vain.
const TRIES: u64 = 200;
/// How often a test is made.
const ROUNDS: u64 = 20;

fn protect_other(_: &Memory) -> Verdict {
    start_other();
    check(other_has_arrived(), "the other CPU did not arrive")?;
    let at = block(3);
    for round in 0..ROUNDS {
        let at = at + round * PAGE;
        aim_other(at);
        on_range(calls::PROTECT, at, PAGE, READ)?;
        let seen = read(at);
        let before = refused();
        let_other_try(TRIES);
        check(read(at) == seen, "it was written after the right was gone")?;
        check(refused() > before, "nobody tried")?;
        on_range(calls::PROTECT, at, PAGE, READ | WRITE | EXEC)?;
        let_other_try(2);
        check(read(at) != seen, "the right did not come back")?;
    }
    Ok(())
}

fn dirty(_: &Memory) -> Verdict {
    check(other_has_arrived(), "there is no other CPU")?;
    let at = block(0);
    let buffer = block(1);
    on_range(calls::LOG_START, at, BLOCK, calls::granularity::PAGES)?;
    for round in 0..ROUNDS {
        let page = at + round * PAGE;
        is_dirty(page, buffer)?; // what was before
        aim_other(page);
        check(is_dirty(page, buffer)?, "a page that was written is not in the answer")?;
        // It writes still: so it is in the next round, too.
        let_other_try(2);
        check(is_dirty(page, buffer)?, "a page that is written all the time is not in the answer")?;
        aim_other(0);
    }
    loop {
        match Status::of(call(calls::LOG_STOP, [0; 4]).0 as u64) {
            Some(Status::Success) => return Ok(()),
            Some(Status::Continue | Status::Busy) => {}
            _ => return Err("the log does not end"),
        }
    }
}

/// Does a round of the dirty log, and tells whether `page` was written.
fn is_dirty(page: u64, buffer: u64) -> Result<bool, &'static str> {
    let (mut cursor, mut found) = (0, false);
    for _ in 0..1000 {
        let (status, [next, first, count, ..]) = call(calls::LOG_HARVEST, [buffer, 0, 0, cursor]);
        let status = Status::of(status as u64);
        if !matches!(status, Some(Status::Success | Status::Continue | Status::Busy)) {
            return Err("the log does not answer");
        }
        if status != Some(Status::Busy) && (first..first + count * PAGE).contains(&page) {
            let bit = (page - first) / PAGE;
            let word = read(buffer + bit / 64 * 8).unwrap_or(0);
            found |= word >> (bit % 64) & 1 == 1;
        }
        if status == Some(Status::Success) {
            return Ok(found);
        }
        cursor = next;
    }
    Err("a round of the log has no end")
}

fn moving(_: &Memory) -> Verdict {
    check(other_has_arrived(), "there is no other CPU")?;
    let at = block(2);
    on_range(calls::SPLIT, at, BLOCK, 0)?;
    for round in 0..ROUNDS {
        let page = at + round * PAGE;
        aim_other(page);
        on_range(calls::MOVE, page, PAGE, 0)?;
        // What it writes from here on goes to where the page is, and nowhere else.
        let_other_try(10);
        let seen = read(page);
        let_other_try(10);
        check(read(page) > seen, "what is written does not arrive")?;
    }
    Ok(())
}
