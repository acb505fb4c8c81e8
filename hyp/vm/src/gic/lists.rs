//! Which interrupts are in the list registers.

use super::{
    Gic, SPI_WORDS, VcpuSet,
    lr::{self, Link, Lr, State},
    ones,
    private::{Latched, PPIS, Private, SGIS, Slot},
    spi::Spis,
    timer_of,
};
use crate::{host::ListRegisters, vcpu::Vcpu};
use core::sync::atomic::Ordering::Relaxed;

/// The first shared interrupt's INTID.
pub(super) const FIRST_SPI: usize = 32;

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
            let value = Lr(lists.lrs.read(slot));
            lists.take_out(slot, value);
        }
        lists.irqs.active = 0;
        lists.irqs.release_timer(u32::MAX, lists.lrs);
        lists.control(lr::HCR_RUN);
    })
}

/// Takes everything out of the list registers of `vcpu`, which leaves this CPU and is to go on later: what was pending
/// or active stays so.
///
/// A timer's physical interrupt belongs to the CPU, and the next vCPU needs it. So it is ended here; where the guest has
/// not ended the virtual one yet, that is remembered, and [`unstow`] makes the physical one active again.
pub(super) fn stow(gic: &Gic, vcpus: &[Vcpu], vcpu: &Vcpu, lrs: &mut impl ListRegisters) -> VcpuSet {
    with(gic, vcpus, vcpu, &mut vcpu.port.irqs.lock(), lrs, |lists| {
        let mut left = lists.irqs.used;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            let value = Lr(lists.lrs.read(slot));
            lists.take_out(slot, value);
        }
        lists.irqs.stow_timers(lists.lrs);
        lists.control(lr::HCR_OFF);
    })
}

/// Makes the physical interrupts active again that the guest of `vcpu`, which comes to this CPU, has not ended. Its
/// timers are off still. The list registers are empty, and filled by the next [`refresh`].
pub(super) fn unstow(vcpu: &Vcpu, lrs: &mut impl ListRegisters) {
    let irqs = vcpu.port.irqs.lock();
    for timer in ones(irqs.fired).filter_map(timer_of) {
        lrs.activate(timer);
    }
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
pub(super) struct Lists<'a, L> {
    pub(super) gic: &'a Gic,
    pub(super) vcpus: &'a [Vcpu],
    pub(super) vcpu: &'a Vcpu,
    pub(super) irqs: &'a mut Private,
    /// The shared interrupts; `None` where none is in a list register or wants to be.
    pub(super) spis: Option<&'a mut Spis>,
    pub(super) lrs: &'a mut L,
    /// Who must look at their interrupts after this.
    pub(super) told: VcpuSet,
}

impl<L: ListRegisters> Lists<'_, L> {
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

    /// Puts a private interrupt, which is not resident, into a free list register.
    fn put_private(&mut self, slot: usize, intid: u32) {
        let bit = 1_u32 << intid;
        let irqs = &mut *self.irqs;
        let mut link = Link::NONE;
        if bit & PPIS != 0 {
            link = match timer_of(intid) {
                Some(timer) if irqs.fired & bit != 0 => Link::physical(self.gic.timers.get(timer)),
                Some(_) => Link::NONE,
                None => Link::WATCHED,
            };
        }
        let mut state = State::PENDING;
        let mut latched = irqs.latch & bit;
        if irqs.active & bit != 0 {
            let deliverable = irqs.enabled & self.gic.in_enabled_groups(irqs.group1);
            // What is pending of an SGI that has a sender may be another sender's: it comes by itself.
            let deliverable = if self.gic.has_senders() { deliverable & PPIS } else { deliverable };
            (state, link, latched) = active_again(link, latched, deliverable);
            irqs.active &= !bit;
        }
        irqs.latch &= !latched;
        let mut from = 0;
        if bit & SGIS != 0 && self.gic.has_senders() {
            if latched != 0 {
                irqs.next_sender(intid as usize);
            }
            from = irqs.senders.current[intid as usize & 15];
        }
        irqs.resident |= bit;
        irqs.used |= 1 << slot;
        irqs.slots[slot & 15] = Slot { intid: intid as u16, latched: Latched::from_bits(latched) };
        let value = Lr::new(intid, irqs.priority[intid as usize & 31], irqs.group1 >> intid, link, state);
        let value = value.sent_by(from);
        irqs.seen_pending = irqs.seen_pending & !bit | if value.is_pending() { bit } else { 0 };
        irqs.seen_active = irqs.seen_active & !bit | if value.is_active() { bit } else { 0 };
        self.lrs.write(slot, value.0);
    }

    /// Puts a shared interrupt, which is not resident, into a free list register.
    fn put_spi(&mut self, slot: usize, index: usize) {
        let Some(spis) = self.spis.as_deref_mut() else { return };
        let bit = 1_u32 << (index % 32);
        let word = &mut spis.words[index / 32];
        let mut link = if word.edge & bit != 0 { Link::NONE } else { Link::WATCHED };
        let mut state = State::PENDING;
        let mut latched = word.latch & bit;
        if word.active & bit != 0 {
            let deliverable = word.enabled & self.gic.in_enabled_groups(word.group1);
            (state, link, latched) = active_again(link, latched, deliverable);
            word.active &= !bit;
        }
        word.latch &= !latched;
        let intid = (index + FIRST_SPI) as u32;
        let value = Lr::new(intid, spis.priority[index], word.group1 >> (index % 32), link, state);
        word.seen_pending = word.seen_pending & !bit | if value.is_pending() { bit } else { 0 };
        word.seen_active = word.seen_active & !bit | if value.is_active() { bit } else { 0 };
        spis.settle(index, self.vcpu.index());
        self.irqs.used |= 1 << slot;
        self.irqs.used_by_spis |= 1 << slot;
        self.irqs.slots[slot] = Slot { intid: intid as u16, latched: Latched::from_bits(latched) };
        self.lrs.write(slot, value.0);
    }

    /// Chooses the most urgent interrupts where not all fit. Active ones come first: the guest could not end them
    /// otherwise. Returns ICH_HCR_EL2.
    #[cold]
    #[inline(never)]
    fn rank(&mut self) -> u64 {
        let mut left = self.irqs.used;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            let value = Lr(self.lrs.read(slot));
            if !value.is_active() {
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
            let value = Lr(self.lrs.read(slot));
            if !value.is_active() {
                hcr = lr::HCR_WAIT_TAKEN; // were it set with none pending, the guest would not get any further
            }
            if !value.is_linked() {
                self.lrs.write(slot, value.watched().0);
            }
        }
        hcr
    }

    /// Writes ICH_HCR_EL2, if that is news.
    fn control(&mut self, hcr: u64) {
        if self.irqs.hcr != hcr {
            self.irqs.hcr = hcr;
            self.lrs.control(hcr);
        }
    }
}

/// Decides how an active interrupt goes into a list register: it is pending as well by a latch only, since a level is
/// looked at when it has ended; not where it is linked, nor where it must not be delivered, and then somebody looks when
/// it has ended. Returns how much of the latch went into the list register.
#[cold]
fn active_again(link: Link, latch: u32, deliverable: u32) -> (State, Link, u32) {
    if latch == 0 || link != Link::NONE && link != Link::WATCHED {
        (State::ACTIVE, link, 0)
    } else if latch & deliverable != 0 {
        (State::BOTH, link, latch)
    } else {
        (State::ACTIVE, Link::WATCHED, 0)
    }
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
