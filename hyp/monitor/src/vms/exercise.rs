//! Work for the mechanisms that the command line chooses, while guests run: `exercise=resize`.
//!
//! A guest that only boots has its memory mapped once, and nothing is ever taken away from it under its feet. Here each
//! tick of a vCPU's timer splits some of its VM's blocks into pages and collapses them again, on every vCPU at once: so
//! the style of invalidation, the way of waiting and the break-before-make level have something to do, and can be
//! compared. The guest sees nothing of it but time.

use super::Hypervisor;
use super::guest::Guest;
use aarch64::cpu::Core;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stage2::{CollapseError, Entry, Quiescence, Section, Why};
use types::{Cpu, Height, Ipa};

/// How many addresses are looked at in one step.
const STEP: u64 = 2;

/// How often a block that somebody else is at work on is tried to be put together again. Then it stays in pages.
const PATIENCE: u32 = 16;

/// The height of what is split and collapsed.
const BLOCK: Height = Height::new(1);

/// Where in a guest's memory the next step begins.
#[derive(Debug, Default)]
pub(super) struct Exercise {
    next: AtomicU64,
}

impl Exercise {
    /// Splits and collapses what is mapped with blocks among the next few addresses of `guest`.
    #[inline(never)] // seldom called, from where every exit passes
    pub(super) fn resize(&self, guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>) {
        let span = stage2::span::<super::Format>(BLOCK);
        let Some(ram) = guest.vm.config().memory().next() else { return };
        let Some(blocks) = (ram.len() / span).checked_sub(1) else { return };
        let first = self.next.fetch_add(STEP, Relaxed);
        for n in first..first.saturating_add(STEP) {
            let ipa = ram.start().wrapping_add(n % (blocks + 1) * span);
            resize(guest, hypervisor, core, ipa);
        }
    }
}

/// Splits the block at `ipa`, where there is one, and collapses what came of it: in one folio still, since nobody else
/// puts other pages there.
fn resize(guest: &Guest, hypervisor: &Hypervisor, core: &Core<'_>, ipa: Ipa) {
    let (tree, tlb) = (guest.space.tree(), guest.tlb(hypervisor, core));
    let tlb = guest.space.everyone(&tlb);
    let mut section = hypervisor.waiting.enter(core.id());
    let view = tree.open(&section);
    let found = view.translate(ipa);
    let is_block = found.height() == BLOCK && matches!(found.entry(tree.format()), Entry::Leaf(_));
    if !is_block {
        return;
    }
    if view.split(&tlb, ipa, Height::PAGE, Why::DirtyLog).is_err() {
        return;
    }
    drop(view);
    for _ in 0..PATIENCE {
        match tree.collapse(&mut section, &tlb, ipa, BLOCK) {
            Err(CollapseError::Busy { .. }) => section.pass(),
            _ => return,
        }
    }
}
