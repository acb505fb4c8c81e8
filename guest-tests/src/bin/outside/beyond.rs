//! Addresses above the size of the physical address space.

use crate::aim::{EXTERNAL, is_abort, mappable_bits, physical_bits};
use crate::witness::unharmed;
use guest_tests::access::{ACCESSES, Access, Effect, Placed};
use guest_tests::mmu::{self, Memory, Window};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, fail, read_sysreg, skip, write_sysreg};

/// Such an address is an external abort, or an address size fault of stage 1 (statuses 0 to 3).
fn right(status: u64) -> bool {
    status == EXTERNAL || status < 4
}

fn aborts(access: &Access, va: u64, address: u64) -> Verdict {
    // SAFETY: no memory is there, by the guest's own size of an address.
    match unsafe { access.perform(va) } {
        Ok(value) => fail!("`{}` of {address:#x}: expected an abort, found {value:#x}", access.name),
        Err(caught) => is_abort(access, va, address, caught, right),
    }
}

fn plain(access: &Access) -> bool {
    access.placed == Placed::Anywhere && access.effect != Effect::Hint || access.effect == Effect::Fetch
}

/// Chooses addresses of `bits` to `limit` bits, each length as likely as another.
fn addresses(bits: u32, limit: u32, rng: &mut Rng) -> [u64; 32] {
    core::array::from_fn(|i| {
        let top = bits + rng.below(u64::from(limit - bits)) as u32;
        let below = if i % 4 == 0 { 0x4000_0000 } else { rng.next_u64() % (1 << top) };
        1 << top | below & !63
    })
}

pub(crate) fn addresses_beyond_the_physical_size_abort() -> Verdict {
    unharmed(|| {
        let mut rng = Rng::of_run(5);
        let bits = physical_bits();
        if bits >= 52 {
            skip!("physical addresses have {bits} bits");
        }
        for address in addresses(bits, 48.max(bits + 1), &mut rng) {
            for access in ACCESSES.iter().filter(|a| plain(a)) {
                if bits < 48 {
                    aborts(access, Window::mine().at(address, Memory::Normal), address)?;
                }
            }
        }
        let mut verdict = Ok(());
        mmu::without(|| {
            for address in addresses(bits, 52, &mut rng) {
                for access in ACCESSES.iter().filter(|a| plain(a)) {
                    let result = aborts(access, address, address);
                    verdict = core::mem::replace(&mut verdict, Ok(())).and(result);
                }
            }
        });
        verdict
    })
}

/// The guest sets TCR_EL1.IPS to more than it was told it has: the hardware, which may have it, then lets the address
/// through to stage 2.
pub(crate) fn translations_beyond_what_the_guest_was_told_abort() -> Verdict {
    unharmed(|| {
        let bits = mappable_bits();
        if bits >= 48 {
            skip!("stage-1 tables cannot name more than {bits} bits");
        }
        let mut rng = Rng::of_run(6);
        let tcr = read_sysreg!("tcr_el1");
        // SAFETY: a larger output size, 48 bits, changes no translation in use.
        unsafe { write_sysreg!("tcr_el1", tcr & !(7 << 32) | 5 << 32) };
        mmu::flush();
        let verdict = addresses(bits, 48, &mut rng).into_iter().try_for_each(|address| {
            let mut plain = ACCESSES.iter().filter(|a| plain(a));
            plain.try_for_each(|access| aborts(access, Window::mine().at(address, Memory::Normal), address))
        });
        // SAFETY: as it was.
        unsafe { write_sysreg!("tcr_el1", tcr) };
        mmu::flush();
        verdict
    })
}
