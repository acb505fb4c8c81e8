//! Linux in a VM on every board that there is an emulator for, and on one that lies outside of this repository. The payload
//! that drives a GIC on a board that has another one than QEMU's virt.

use super::cases::Cases;
use super::linux;
use crate::board::{self, Board, DEFAULT_BOARD};
use crate::boards;
use crate::payload;
use anyhow::{Context, Result};

/// A board with a GICv2, and as many CPUs as a payload has vCPUs.
const V2_BOARD: &str = "raspi4b";
const VCPUS: u32 = payload::VCPUS;

/// Boots the boards of the first tier, but the one that everything else runs on; or all.
pub(super) fn run(cases: &mut Cases, every: bool) -> Result<()> {
    let mut chosen = board::all()?;
    chosen.retain(|board| {
        let description = board.description();
        let is_promised = description.tier.number() <= if every { 2 } else { 1 };
        description.emulator.is_some() && is_promised && board.to_string() != DEFAULT_BOARD
    });
    for board in board::all()? {
        chosen.extend(board.variants()?);
    }
    cases.group("Boards", chosen.len() + 2);
    for board in chosen {
        linux::boots_on(cases, &format!("Linux boots and powers off on the board {board}"), board);
    }
    let outside = tempfile::tempdir().context("cannot make a folder")?;
    let folder = outside.path().join("outside");
    let path = folder.to_str().context("a folder whose name is no text")?;
    boards::make(path)?;
    let board: Board = path.parse()?;
    linux::boots_on(cases, "Linux boots and powers off on a board outside of the repository", board);
    let (board, devices) = (V2_BOARD.parse::<Board>()?, payload::build_one("devices")?);
    cases.boot_and_count(
        &format!("payload devices on the board {board}"),
        || devices.machine(board, (&board.cpu(None)?, VCPUS), VCPUS, payload::MEMORY, ""),
        payload::counts,
    );
    Ok(())
}
