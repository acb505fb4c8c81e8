//! What becomes of an interrupt that is in a list register: it is let go when the guest has ended it, and taken out when
//! it must not stay.

use super::{
    lists::{FIRST_SPI, Lists},
    lr::Lr,
    private::{Latched, PPIS, SGIS, Slot},
};
use crate::host::ListRegisters;

/// Whether an interrupt may be delivered: enabled, its group too, and routed here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// It may.
    Allowed,
    /// It may not.
    Barred,
}

/// Where an active interrupt's pending state is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// In the list register: it comes as soon as the guest has ended it.
    Here,
    /// In the latch: it must not come now, and somebody looks when the guest has ended it.
    Later,
}

impl<L: ListRegisters> Lists<'_, L> {
    /// Looks at everything in list registers.
    pub(super) fn revisit(&mut self) {
        let mut left = self.irqs.used;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            let value = Lr(self.lrs.read(slot));
            let held = self.irqs.slots[slot & 15];
            if usize::from(held.intid) >= FIRST_SPI {
                self.revisit_spi(slot, held, value);
            } else if value.is_done() {
                self.let_go(slot, held.intid, value);
            } else {
                self.revisit_private(slot, held, value);
            }
        }
    }

    /// Lets go of a private interrupt that the guest has ended.
    fn let_go(&mut self, slot: usize, intid: u16, value: Lr) {
        let irqs = &mut *self.irqs;
        let bit = 1_u32 << (intid & 31);
        irqs.used &= !(1 << slot);
        irqs.resident &= !bit;
        if value.is_linked() {
            irqs.timer_ended(bit);
        } else if value.asserts() {
            self.lrs.write(slot, 0);
        }
        if irqs.wishes.any() & bit != 0 {
            irqs.active |= irqs.wishes.begin & bit;
            irqs.wishes.forget(bit);
        }
    }

    fn revisit_private(&mut self, slot: usize, held: Slot, value: Lr) {
        let irqs = &mut *self.irqs;
        let bit = 1_u32 << (held.intid & 31);
        irqs.seen_pending = irqs.seen_pending & !bit | if value.is_pending() { bit } else { 0 };
        irqs.seen_active = irqs.seen_active & !bit | if value.is_active() { bit } else { 0 };
        let allowed = irqs.enabled & self.gic.in_enabled_groups(irqs.group1) & bit != 0;
        let has_sender = bit & SGIS != 0 && self.gic.has_senders();
        // Of an SGI that has a sender, what is pending besides may be another sender's: it comes by itself.
        let delivery = if allowed && !has_sender { Delivery::Allowed } else { Delivery::Barred };
        let latch = Latched::from_bits(irqs.latch & bit);
        let wished = irqs.wishes.any() & bit != 0;
        if value.is_active() && !wished {
            match self.pend_again(slot, value, latch, delivery) {
                Some(Again::Here) => self.irqs.latch &= !bit,
                Some(Again::Later) => self.irqs.latch |= bit,
                None => {}
            }
        } else if !wished && allowed && (held.latched == Latched::Yes || latch == Latched::Yes) {
            if has_sender {
                irqs.merge_sender(usize::from(held.intid));
            } else {
                irqs.latch &= !bit;
            }
            irqs.slots[slot].latched = Latched::Yes;
        } else {
            let asserted = !wished
                && allowed
                && (irqs.level & PPIS & bit != 0 || irqs.asserted_timers(bit, self.lrs) != 0);
            if !asserted {
                self.take_out(slot, value);
            }
        }
    }

    fn revisit_spi(&mut self, slot: usize, held: Slot, value: Lr) {
        if value.is_done() {
            self.take_out(slot, value);
            return;
        }
        let Some(spis) = self.spis.as_deref_mut() else { return };
        let index = usize::from(held.intid) - FIRST_SPI;
        let bit = 1_u32 << (index % 32);
        let allowed = spis.may_stay(self.gic, index, self.vcpu.index());
        let delivery = if allowed { Delivery::Allowed } else { Delivery::Barred };
        let word = &mut spis.words[index / 32];
        word.seen_pending = word.seen_pending & !bit | if value.is_pending() { bit } else { 0 };
        word.seen_active = word.seen_active & !bit | if value.is_active() { bit } else { 0 };
        let latch = Latched::from_bits(word.latch & bit);
        let wished = word.wishes.any() & bit != 0;
        let asserted = held.latched == Latched::Yes || word.waiting() & bit != 0;
        if value.is_active() && !wished {
            let again = self.pend_again(slot, value, latch, delivery);
            if let Some(spis) = self.spis.as_deref_mut() {
                let word = &mut spis.words[index / 32];
                match again {
                    Some(Again::Here) => word.latch &= !bit,
                    Some(Again::Later) => word.latch |= bit,
                    None => {}
                }
            }
        } else if wished || !allowed || !asserted {
            self.take_out(slot, value);
        } else if latch == Latched::Yes {
            word.latch &= !bit;
            self.irqs.slots[slot].latched = Latched::Yes;
        }
    }

    /// Looks at an active interrupt that is pending again, or is to be, by a latch. Returns where the pending state is
    /// after that; `None` where it stays where it is.
    fn pend_again(&mut self, slot: usize, value: Lr, latch: Latched, delivery: Delivery) -> Option<Again> {
        if value.is_linked() {
            return None; // it cannot be both in a list register; the latch is looked at when it has ended
        }
        match delivery {
            Delivery::Allowed if latch == Latched::Yes => {
                self.irqs.slots[slot].latched = Latched::Yes;
                self.lrs.write(slot, value.pending_again().0);
                Some(Again::Here)
            }
            Delivery::Barred if latch == Latched::Yes || value.is_pending() => {
                self.irqs.slots[slot].latched = Latched::No;
                self.lrs.write(slot, value.not_pending().watched().0);
                Some(Again::Later)
            }
            Delivery::Allowed | Delivery::Barred => None,
        }
    }

    /// Empties a list register: what it holds becomes state of ours, and what was wanted of it meanwhile is done.
    pub(super) fn take_out(&mut self, slot: usize, value: Lr) {
        if !value.is_done() || value.asserts() {
            self.lrs.write(slot, 0);
        }
        let Slot { intid, latched } = self.irqs.slots[slot];
        let latched = if value.is_pending() { latched } else { Latched::No };
        self.irqs.used &= !(1 << slot);
        if usize::from(intid) < FIRST_SPI {
            self.take_out_private(1 << intid, latched, value);
            return;
        }
        self.irqs.used_by_spis &= !(1 << slot);
        let Some(spis) = self.spis.as_deref_mut() else { return };
        let index = usize::from(intid) - FIRST_SPI;
        let bit = 1_u32 << (index % 32);
        let word = &mut spis.words[index / 32];
        let wishes = word.wishes;
        word.wishes.forget(bit);
        word.resident &= !bit;
        if latched == Latched::Yes && wishes.clear & bit == 0 {
            word.latch |= bit;
        }
        if value.is_active() && wishes.end & bit == 0 {
            word.active |= bit;
        }
        if wishes.begin & bit != 0 {
            spis.set_active(index / 32, bit);
        }
        self.told |= spis.changed(self.gic, self.vcpus, index / 32, bit);
    }

    fn take_out_private(&mut self, bit: u32, latched: Latched, value: Lr) {
        let irqs = &mut *self.irqs;
        let wishes = irqs.wishes;
        irqs.wishes.forget(bit);
        irqs.resident &= !bit;
        if value.is_done() && value.is_linked() {
            irqs.timer_ended(bit);
        }
        if latched == Latched::Yes && wishes.clear & bit == 0 {
            irqs.latch |= bit;
            if bit & SGIS != 0 && self.gic.has_senders() {
                irqs.keep_sender(bit.trailing_zeros() as usize);
            }
        }
        if (value.is_active() || wishes.begin & bit != 0) && wishes.end & bit == 0 {
            irqs.active |= bit;
        } else if (wishes.clear | wishes.end) & bit != 0 {
            irqs.release_timer(bit, self.lrs);
        }
    }

    /// Notes that what list register `slot` holds is not to be active once it is taken out.
    pub(super) fn end(&mut self, slot: usize) {
        let intid = usize::from(self.irqs.slots[slot].intid);
        if intid < FIRST_SPI {
            self.irqs.wishes.end |= 1 << intid;
        } else if let Some(spis) = self.spis.as_deref_mut() {
            let index = intid - FIRST_SPI;
            spis.words[index / 32].wishes.end |= 1 << (index % 32);
        }
    }
}
