//! Linux in a VM on every board that there is an emulator for, and on one that lies outside of this repository.

use super::cases::Cases;
use super::linux;
use crate::board::{self, Board, DEFAULT_BOARD};
use crate::boards;
use anyhow::{Context, Result};

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
    cases.group("Boards", chosen.len() + 1);
    for board in chosen {
        linux::boots_on(cases, &format!("Linux boots and powers off on the board {board}"), board);
    }
    let outside = tempfile::tempdir().context("cannot make a folder")?;
    let folder = outside.path().join("outside");
    let path = folder.to_str().context("a folder whose name is no text")?;
    boards::make(path)?;
    let board: Board = path.parse()?;
    linux::boots_on(cases, "Linux boots and powers off on a board outside of the repository", board);
    Ok(())
}
