//! Which interrupts are in the list registers.

use super::{
    Gic, SPI_WORDS, VcpuSet,
    lr::{self, Link, State},
    ones,
    private::{Latched, PPIS, Private, Slot},
    spi::Spis,
    timer_of,
};
use crate::{host::ListRegisters, vcpu::Vcpu};
use core::sync::atomic::Ordering::Relaxed;

/// The first shared interrupt's INTID.
const FIRST_SPI: usize = 32;

/// Brings the list registers of `vcpu`, which is on this CPU, up to date: takes out what is done or no longer to be
/// there, and puts in what is pending. Returns the other vCPUs that got an interrupt by that.
pub(super) fn refresh(gic: &Gic, vcpus: &[Vcpu], vcpu: &Vcpu, lrs: &mut impl ListRegisters) -> VcpuSet {
    with(gic, vcpus, vcpu, &mut vcpu.port.irqs.lock(), lrs, |lists| {
        lists.revisit();
        lists.fill();
    })
}

/// Reads back the state of what is in the list registers of `vcpu`, which is on this CPU, so that an access to the
/// interrupt controller's registers sees it. `irqs` are the vCPU's own.
pub(super) fn observe(
    gic: &Gic,
    vcpus: &[Vcpu],
    vcpu: &Vcpu,
    irqs: &mut Private,
    lrs: &mut impl ListRegisters,
) -> VcpuSet {
    with(gic, vcpus, vcpu, irqs, lrs, |lists| {
        lists.revisit();
    })
}

/// Takes everything out of the list registers of `vcpu`, which is on this CPU and goes off. What was pending stays so,
/// what was active is not any more.
pub(super) fn withdraw(gic: &Gic, vcpus: &[Vcpu], vcpu: &Vcpu, lrs: &mut impl ListRegisters) -> VcpuSet {
    with(gic, vcpus, vcpu, &mut vcpu.port.irqs.lock(), lrs, |lists| {
        let mut left = lists.irqs.used;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            lists.end(slot);
            let value = lists.lrs.read(slot);
            lists.take_out(slot, value);
        }
        lists.irqs.active = 0;
        lists.irqs.release_timer(u32::MAX, lists.lrs);
        lists.control(lr::HCR_RUN);
    })
}

fn with<L: ListRegisters>(
    gic: &Gic,
    vcpus: &[Vcpu],
    vcpu: &Vcpu,
    irqs: &mut Private,
    lrs: &mut L,
    then: impl FnOnce(&mut Lists<'_, L>),
) -> VcpuSet {
    let mut spis = (irqs.used_by_spis != 0 || vcpu.port.has_spis()).then(|| gic.spis.lock());
    let mut lists = Lists { gic, vcpus, vcpu, irqs, spis: spis.as_deref_mut(), lrs, told: 0 };
    then(&mut lists);
    lists.told & !(1 << vcpu.index())
}

/// The list registers of this CPU, and everything that decides what is to be in them.
struct Lists<'a, L> {
    gic: &'a Gic,
    vcpus: &'a [Vcpu],
    vcpu: &'a Vcpu,
    irqs: &'a mut Private,
    /// The shared interrupts; `None` where none is in a list register or wants to be.
    spis: Option<&'a mut Spis>,
    lrs: &'a mut L,
    /// Who must look at their interrupts after this.
    told: VcpuSet,
}

impl<L: ListRegisters> Lists<'_, L> {
    /// Looks at everything in list registers: what is done is let go, what must not stay is taken out.
    fn revisit(&mut self) {
        let mut left = self.irqs.used;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            let value = self.lrs.read(slot);
            if usize::from(self.irqs.slots[slot].intid) < FIRST_SPI {
                self.revisit_private(slot, value);
            } else {
                self.revisit_spi(slot, value);
            }
        }
    }

    fn revisit_private(&mut self, slot: usize, value: u64) {
        let Slot { intid, latched } = self.irqs.slots[slot];
        let bit = 1_u32 << intid;
        let state = lr::state(value);
        let irqs = &mut *self.irqs;
        irqs.seen_pending = irqs.seen_pending & !bit | u32::from(state.pending) << intid;
        irqs.seen_active = irqs.seen_active & !bit | u32::from(state.active) << intid;
        if !state.pending && !state.active {
            if lr::is_linked(value) {
                irqs.timer_ended(bit);
            }
            irqs.wishes.clear &= !bit;
            irqs.wishes.end &= !bit;
            self.take_out(slot, value);
            return;
        }
        let deliverable = irqs.enabled & self.gic.in_enabled_groups(irqs.group1) & bit != 0;
        let (latch, wished) = (irqs.latch & bit != 0, irqs.wishes.any() & bit != 0);
        if state.active && !wished {
            if let Some(again) = self.pend_again(slot, value, deliverable, latch) {
                self.irqs.latch = self.irqs.latch & !bit | u32::from(again == Again::Later) << intid;
            }
            return;
        }
        let asserted = |irqs: &mut Private, lrs: &mut L| {
            latched == Latched::Yes
                || latch
                || irqs.level & PPIS & bit != 0
                || irqs.asserted_timers(bit, lrs) != 0
        };
        if wished || !deliverable || !asserted(irqs, self.lrs) {
            self.take_out(slot, value);
        } else if latch {
            irqs.latch &= !bit;
            irqs.slots[slot].latched = Latched::Yes;
        }
    }

    fn revisit_spi(&mut self, slot: usize, value: u64) {
        let Some(spis) = self.spis.as_deref_mut() else { return };
        let Slot { intid, latched } = self.irqs.slots[slot];
        let index = usize::from(intid) - FIRST_SPI;
        let bit = 1_u32 << (index % 32);
        let state = lr::state(value);
        let word = &mut spis.words[index / 32];
        word.seen_pending = word.seen_pending & !bit | u32::from(state.pending) << (index % 32);
        word.seen_active = word.seen_active & !bit | u32::from(state.active) << (index % 32);
        if !state.pending && !state.active {
            word.wishes.clear &= !bit;
            word.wishes.end &= !bit;
            self.take_out(slot, value);
            return;
        }
        let (latch, wished) = (word.latch & bit != 0, word.wishes.any() & bit != 0);
        let asserted = latched == Latched::Yes || word.waiting() & bit != 0;
        let deliverable = spis.may_stay(self.gic, index, self.vcpu.index());
        if state.active && !wished {
            if let Some(again) = self.pend_again(slot, value, deliverable, latch)
                && let Some(spis) = self.spis.as_deref_mut()
            {
                let word = &mut spis.words[index / 32];
                word.latch = word.latch & !bit | u32::from(again == Again::Later) << (index % 32);
            }
        } else if wished || !deliverable || !asserted {
            self.take_out(slot, value);
        } else if latch {
            spis.words[index / 32].latch &= !bit;
            self.irqs.slots[slot].latched = Latched::Yes;
        }
    }

    /// Looks at an active interrupt in a list register that is pending again, or is to be, by a latch. Returns where the
    /// pending state is after that; `None` where it stays where it is.
    fn pend_again(&mut self, slot: usize, value: u64, deliverable: bool, latch: bool) -> Option<Again> {
        if lr::is_linked(value) {
            return None; // it cannot be both in a list register; the latch is looked at when it has ended
        }
        let pending = lr::state(value).pending;
        if deliverable && latch {
            self.irqs.slots[slot].latched = Latched::Yes;
            self.lrs.write(slot, lr::pending(value));
            Some(Again::Here)
        } else if !deliverable && (latch || pending) {
            self.irqs.slots[slot].latched = Latched::No;
            self.lrs.write(slot, lr::watched(lr::not_pending(value)));
            Some(Again::Later)
        } else {
            None
        }
    }

    /// Empties a list register: what it holds becomes state of ours, and what was wanted of it meanwhile is done.
    fn take_out(&mut self, slot: usize, value: u64) {
        if lr::acts(value) {
            self.lrs.write(slot, 0);
        }
        let Slot { intid, latched } = self.irqs.slots[slot];
        let state = lr::state(value);
        let latched = state.pending && latched == Latched::Yes;
        self.irqs.used &= !(1 << slot);
        if usize::from(intid) < FIRST_SPI {
            self.take_out_private(1 << intid, latched, state);
            return;
        }
        self.irqs.used_by_spis &= !(1 << slot);
        let Some(spis) = self.spis.as_deref_mut() else { return };
        let index = usize::from(intid) - FIRST_SPI;
        let bit = 1_u32 << (index % 32);
        spis.unsettle(index);
        let word = &mut spis.words[index / 32];
        if latched && word.wishes.clear & bit == 0 {
            word.latch |= bit;
        }
        let begun = word.wishes.begin & bit != 0;
        if state.active && word.wishes.end & bit == 0 {
            word.active |= bit;
        }
        word.wishes.forget(bit);
        if begun {
            spis.set_active(index / 32, bit);
        }
        self.told |= spis.changed(self.gic, self.vcpus, index / 32, bit);
    }

    fn take_out_private(&mut self, bit: u32, latched: bool, state: State) {
        let irqs = &mut *self.irqs;
        irqs.resident &= !bit;
        irqs.seen_pending &= !bit;
        irqs.seen_active &= !bit;
        let wishes = irqs.wishes;
        irqs.wishes.forget(bit);
        if latched && wishes.clear & bit == 0 {
            irqs.latch |= bit;
        }
        if (state.active || wishes.begin & bit != 0) && wishes.end & bit == 0 {
            irqs.active |= bit;
        } else if (wishes.clear | wishes.end) & bit != 0 {
            irqs.release_timer(bit, self.lrs);
        }
    }

    /// Notes that what list register `slot` holds is not to be active once it is taken out.
    fn end(&mut self, slot: usize) {
        let intid = usize::from(self.irqs.slots[slot].intid);
        if intid < FIRST_SPI {
            self.irqs.wishes.end |= 1 << intid;
        } else if let Some(spis) = self.spis.as_deref_mut() {
            let index = intid - FIRST_SPI;
            spis.words[index / 32].wishes.end |= 1 << (index % 32);
        }
    }

    /// Puts what is to be delivered, and what is active, into free list registers.
    fn fill(&mut self) {
        let mut left = self.wanted();
        let mut free = self.free();
        while left != 0 && free != 0 {
            self.put_private(free.trailing_zeros() as usize, left.trailing_zeros());
            left &= left - 1;
            free &= free - 1;
        }
        let mut more = left != 0;
        if self.spis.is_some() {
            more |= self.each_spi(|lists, index| {
                let free = lists.free();
                if free == 0 {
                    return Placed::No;
                }
                lists.put_spi(free.trailing_zeros() as usize, index);
                Placed::Yes
            });
        }
        let hcr = if more { self.rank() } else { lr::HCR_RUN };
        self.control(hcr);
    }

    /// Returns the free list registers, a bit each.
    fn free(&self) -> u32 {
        !self.irqs.used & ((1 << self.lrs.count()) - 1)
    }

    /// Returns the private interrupts that are to go into list registers: those that are pending and may be delivered,
    /// and those that are active.
    fn wanted(&mut self) -> u32 {
        let irqs = &mut *self.irqs;
        let timers = if irqs.fired == 0 { 0 } else { irqs.asserted_timers(!irqs.resident, self.lrs) };
        let pending = irqs.latch | irqs.level & PPIS | timers;
        let ready = pending & irqs.enabled & self.gic.in_enabled_groups(irqs.group1);
        (ready | irqs.active) & !irqs.resident
    }

    /// Calls `place` with each shared interrupt that wants a list register here, until one is not placed. Tells whether
    /// one was not.
    fn each_spi(&mut self, mut place: impl FnMut(&mut Self, usize) -> Placed) -> bool {
        for word in 0..SPI_WORDS {
            let mut left = self.vcpu.port.spis[word].load(Relaxed);
            while left != 0 {
                let index = 32 * word + left.trailing_zeros() as usize;
                let bit = left & left.wrapping_neg();
                left &= !bit;
                let wanted =
                    self.spis.as_deref().is_some_and(|s| s.wanted_by(self.gic, index, self.vcpu.index()));
                match if wanted { place(self, index) } else { Placed::Gone } {
                    Placed::No => return true,
                    Placed::Later => {}
                    Placed::Yes | Placed::Gone => {
                        self.vcpu.port.spis[word].fetch_and(!bit, Relaxed);
                    }
                }
            }
        }
        false
    }

    fn put_private(&mut self, slot: usize, intid: u32) {
        let irqs = &mut *self.irqs;
        let bit = 1_u32 << intid;
        let active = irqs.active & bit != 0;
        let mut link = match timer_of(intid) {
            Some(timer) if irqs.fired & bit != 0 => Link::Physical(self.gic.timers.get(timer)),
            None if bit & PPIS != 0 => Link::Watched,
            _ => Link::Free,
        };
        let mut latched = irqs.latch & irqs.enabled & self.gic.in_enabled_groups(irqs.group1) & bit != 0;
        if active && matches!(link, Link::Physical(_)) {
            latched = false;
        } else if active && !latched && irqs.latch & bit != 0 {
            link = Link::Watched;
        }
        let pending = if active { latched } else { true };
        if latched {
            irqs.latch &= !bit;
        }
        irqs.active &= !bit;
        irqs.resident |= bit;
        irqs.seen_pending |= u32::from(pending) << intid;
        irqs.seen_active |= u32::from(active) << intid;
        irqs.used |= 1 << slot;
        irqs.slots[slot] =
            Slot { intid: intid as u16, latched: if latched { Latched::Yes } else { Latched::No } };
        let priority = irqs.priority[intid as usize];
        let value = lr::encode(intid, priority, irqs.group1 >> intid, link, State { pending, active });
        self.lrs.write(slot, value);
    }

    fn put_spi(&mut self, slot: usize, index: usize) {
        let Some(spis) = self.spis.as_deref_mut() else { return };
        let bit = 1_u32 << (index % 32);
        let groups = self.gic.in_enabled_groups(spis.words[index / 32].group1);
        let word = &mut spis.words[index / 32];
        let active = word.active & bit != 0;
        let latched = word.latch & word.enabled & groups & bit != 0;
        let pending = if active { latched } else { true };
        if latched {
            word.latch &= !bit;
        }
        word.active &= !bit;
        word.seen_pending |= if pending { bit } else { 0 };
        word.seen_active |= if active { bit } else { 0 };
        let later = active && !latched && word.latch & bit != 0;
        let link = if word.edge & bit != 0 && !later { Link::Free } else { Link::Watched };
        let group = word.group1 >> (index % 32);
        spis.settle(index, self.vcpu.index());
        let intid = (index + FIRST_SPI) as u32;
        let value = lr::encode(intid, spis.priority[index], group, link, State { pending, active });
        self.irqs.used |= 1 << slot;
        self.irqs.used_by_spis |= 1 << slot;
        self.irqs.slots[slot] =
            Slot { intid: intid as u16, latched: if latched { Latched::Yes } else { Latched::No } };
        self.lrs.write(slot, value);
    }

    /// Chooses the most urgent interrupts where not all fit. Active ones come first: the guest could not end them
    /// otherwise. Returns ICH_HCR_EL2.
    #[cold]
    fn rank(&mut self) -> u64 {
        let mut left = self.irqs.used;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            let value = self.lrs.read(slot);
            if !lr::state(value).active {
                self.take_out(slot, value);
            }
        }
        loop {
            let wanted = self.wanted();
            let best_private = ones(wanted)
                .map(|i| (self.irqs.active >> i & 1 == 0, self.irqs.priority[i as usize], i as usize))
                .min();
            let mut best = best_private;
            if self.spis.is_some() {
                self.each_spi(|lists, index| {
                    if let Some(spis) = lists.spis.as_deref() {
                        let active = spis.words[index / 32].active >> (index % 32) & 1 != 0;
                        let key = (!active, spis.priority[index], index + FIRST_SPI);
                        best = Some(best.map_or(key, |b| b.min(key)));
                    }
                    Placed::Later
                });
            }
            let Some((_, _, intid)) = best else { return lr::HCR_RUN };
            let free = self.free();
            if free == 0 {
                return self.wait_for_room();
            }
            let slot = free.trailing_zeros() as usize;
            if intid < FIRST_SPI {
                self.put_private(slot, intid as u32);
            } else {
                self.put_spi(slot, intid - FIRST_SPI);
            }
        }
    }

    /// Sees to it that this CPU looks again when there is room for what is left out: when the guest ends one that is not
    /// linked, or has taken all, or few are left. Returns ICH_HCR_EL2.
    fn wait_for_room(&mut self) -> u64 {
        let mut hcr = lr::HCR_WAIT;
        let mut left = self.irqs.used;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            let value = self.lrs.read(slot);
            if !lr::state(value).active {
                hcr = lr::HCR_WAIT_TAKEN; // were it set with none pending, the guest would not get any further
            }
            if !lr::is_linked(value) {
                self.lrs.write(slot, lr::watched(value));
            }
        }
        hcr
    }

    fn control(&mut self, hcr: u64) {
        if self.irqs.hcr != hcr {
            self.irqs.hcr = hcr;
            self.lrs.control(hcr);
        }
    }
}

/// Where an active interrupt's pending state is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// In the list register: it comes as soon as the guest has ended it.
    Here,
    /// In the latch: it must not come now, and somebody looks when the guest has ended it.
    Later,
}

/// What became of an interrupt that wanted a list register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// It got one.
    Yes,
    /// There is none.
    No,
    /// It still wants one.
    Later,
    /// It no longer wants one here.
    Gone,
}
