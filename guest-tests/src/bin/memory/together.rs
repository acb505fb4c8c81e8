//! Many vCPUs at once on memory that nobody has touched.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::cpu::Rendezvous;
use guest_tests::ram::{self, Ram};
use guest_tests::{NotPassed, Text, Verdict, machine, read_sysreg, same, smp};

/// What a hypervisor may back by one block.
pub(crate) const BLOCK: u64 = 2 << 20;

/// Takes untouched blocks: up to `most`, and no more than a sixteenth of memory.
pub(crate) fn blocks(most: u64) -> Result<Ram, NotPassed> {
    let count = most.min(machine::get().ram_size() / 16 / BLOCK).max(1);
    ram::take(count * BLOCK, BLOCK)
        .ok_or_else(|| NotPassed::Skipped(Text::new(format_args!("too little memory"))))
}

pub(crate) fn vcpus_that_fault_on_one_page_share_it() -> Verdict {
    let ram = blocks(16)?;
    let count = smp::count();
    let meeting = Rendezvous::new(count);
    smp::on_all(&|this| {
        for (i, page) in (0..ram.pages()).map(|i| (i, ram.page(i))) {
            if i % 256 == 0 {
                meeting.wait()?; // so that all are at the same page
            }
            page[0].fetch_add(1, Relaxed);
            let own = &page[1 + this];
            same!(
                "a page that nobody has written",
                own.as_ptr() as u64,
                0,
                own.swap(this as u64 + 1, Relaxed)
            );
        }
        meeting.wait()?;
        for page in (0..ram.pages()).map(|i| ram.page(i)) {
            same!("a count by all vCPUs", page.as_ptr() as u64, count as u64, page[0].load(Relaxed));
            for other in 0..count {
                let word = &page[1 + other];
                same!("a word of another vCPU", word.as_ptr() as u64, other as u64 + 1, word.load(Relaxed));
            }
        }
        Ok(())
    })
}

pub(crate) fn vcpus_that_fault_on_neighbouring_pages_get_their_own() -> Verdict {
    let ram = blocks(16)?;
    let count = smp::count() as u64;
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        let this = this as u64;
        meeting.wait()?;
        for i in (this..ram.pages()).step_by(count as usize) {
            for word in [0, 255, 511] {
                ram.page(i)[word].store(i << 16 | this, Relaxed);
            }
        }
        meeting.wait()?;
        for (i, page) in (0..ram.pages()).map(|i| (i, ram.page(i))) {
            for (word, value) in page.iter().enumerate().filter(|(word, _)| word % 85 == 0) {
                let expected = if matches!(word, 0 | 255) { (i << 16) | (i % count) } else { 0 };
                same!("a word of a page", value.as_ptr() as u64, expected, value.load(Relaxed));
            }
            same!(
                "the last word of a page",
                page[511].as_ptr() as u64,
                (i << 16) | (i % count),
                page[511].load(Relaxed)
            );
        }
        Ok(())
    })
}

/// Adds by one instruction of FEAT_LSE.
fn add_atomically(word: &AtomicU64, value: u64) {
    // SAFETY: the word is atomic.
    unsafe {
        asm!(".arch_extension lse", "stadd {}, [{}]", ".arch_extension nolse", in(reg) value, in(reg) word.as_ptr(),
            options(nostack, preserves_flags));
    }
}

pub(crate) fn atomics_lose_no_count() -> Verdict {
    const TIMES: u64 = 20_000;
    let ram = blocks(1)?;
    // The ends of two pages in a row, and two words of one cache line.
    let [exclusive, other, near, far] = [0, 1, 511, 512].map(|i| &ram.words()[i]);
    let lse = read_sysreg!("id_aa64isar0_el1") >> 20 & 0xf >= 2;
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        meeting.wait()?;
        for _ in 0..TIMES {
            // Compiled for the first Armv8: exclusive loads and stores.
            exclusive.fetch_add(1, Relaxed);
            far.fetch_add(this as u64, Relaxed);
            if lse {
                add_atomically(other, 1);
                add_atomically(near, this as u64);
            }
        }
        Ok(())
    })?;
    let count = smp::count() as u64;
    let ids = (0..count).sum::<u64>();
    same!("a count by exclusives", exclusive.as_ptr() as u64, TIMES * count, exclusive.load(Relaxed));
    same!("a sum by exclusives", far.as_ptr() as u64, TIMES * ids, far.load(Relaxed));
    if lse {
        same!("a count by atomics", other.as_ptr() as u64, TIMES * count, other.load(Relaxed));
        same!("a sum by atomics", near.as_ptr() as u64, TIMES * ids, near.load(Relaxed));
    }
    Ok(())
}
