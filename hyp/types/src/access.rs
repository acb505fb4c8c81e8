//! What an access does, and what a mapping allows.

bitflags::bitflags! {
    /// Rights to memory: those an access needs, or those a mapping gives.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Access: u8 {
        /// Data reads.
        const READ = 1;
        /// Data writes.
        const WRITE = 1 << 1;
        /// Instruction fetches.
        const EXEC = 1 << 2;
    }
}

impl Access {
    /// Reads and writes, no fetches.
    pub const RW: Self = Self::READ.union(Self::WRITE);
    /// Everything: what ordinary guest memory has.
    pub const RWX: Self = Self::RW.union(Self::EXEC);
    /// Reads and fetches, no writes.
    pub const RX: Self = Self::READ.union(Self::EXEC);
}
