//! Why a guest cannot be made or loaded.

use abi::Status;
use alloc::string::String;
use core::fmt;
use space::SpaceError;
use vm::Error;

/// Why a guest cannot be made or loaded.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// The manifest asks for what cannot be.
    Config(Error),
    /// Its memory cannot be had.
    Space {
        /// The guest's name.
        name: String,
        /// What is wrong.
        error: SpaceError,
    },
}

impl Unfit {
    /// What is wrong with the memory of the guest that has this name.
    pub(crate) fn space(name: &str, error: SpaceError) -> Self {
        Self::Space { name: name.into(), error }
    }

    /// Returns what a controller is told of it.
    pub(crate) const fn status(&self) -> Status {
        match self {
            Self::Space { error: SpaceError::Busy { .. }, .. } => Status::Busy,
            Self::Space { .. } | Self::Config(_) => Status::NoMemory,
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Space { name, error } => write!(f, "virtual machine \"{name}\": {error}"),
        }
    }
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Config(error)
    }
}
