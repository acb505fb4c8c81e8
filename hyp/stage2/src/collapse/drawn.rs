//! The pages that a collapse takes.

use super::CollapseError;
use crate::{Entries, Format, Geometry, IdleTable, Pages, Purpose, TablePa, TableSize, Tree};
use types::Ipa;
use types::sync::mutant;

/// What a collapse draws before it changes anything. Goes back when this is dropped, but for a reserve that is kept.
pub(super) struct Drawn<'t, M: Pages> {
    memory: &'t M,
    /// The page for what the children were.
    pub(super) scratch: Option<TablePa>,
    size: TableSize,
    pub(super) is_reserve_kept: bool,
}

impl<'t, M: Entries + Pages> Drawn<'t, M> {
    /// Draws the block's reserve, on behalf of a caller that is counted as retiring.
    pub(super) fn reserve<F: Format>(tree: &'t Tree<F, M>, ipa: Ipa) -> Result<Self, CollapseError> {
        if !mutant("collapse-without-reserve") {
            let drawn = tree.draw(|| tree.memory.reserve(1));
            drawn.map_err(|shortage| Tree::<F, M>::no_reserve(shortage, ipa))?;
        }
        let size = Geometry::<F>::table_size();
        Ok(Self { memory: &tree.memory, scratch: None, size, is_reserve_kept: false })
    }

    /// Draws the scratch page, or returns the one that is drawn.
    pub(super) fn scratch<F: Format>(
        &mut self,
        tree: &Tree<F, M>,
        ipa: Ipa,
    ) -> Result<TablePa, CollapseError> {
        if let Some(scratch) = self.scratch {
            return Ok(scratch);
        }
        let scratch = tree.draw(|| tree.memory.take(self.size, Purpose::Scratch));
        let scratch = scratch.map_err(|shortage| Tree::<F, M>::no_reserve(shortage, ipa))?.into_table();
        Ok(*self.scratch.insert(scratch))
    }
}

impl<M: Pages> Drop for Drawn<'_, M> {
    fn drop(&mut self) {
        if let Some(scratch) = self.scratch {
            self.memory.give_back(IdleTable::unseen(scratch, self.size));
        }
        if !self.is_reserve_kept && !mutant("refused-keeps-its-reserve") {
            self.memory.release(1);
        }
    }
}
