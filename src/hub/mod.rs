//! The hub as a process: its store, its threads and its first start.

mod handler;
pub mod mark;
pub mod place;
pub mod read;
pub mod restore;
pub mod run;
pub mod salvage;
pub mod store;

use crate::core::store::StoreError;

/// Why a hub, or what looks after it, cannot go on.
#[derive(Debug)]
pub enum Trouble {
    /// Wrong use or configuration; one sentence that names the cure.
    Use(String),
    /// The store cannot be used.
    Store(StoreError),
    /// The operating system refused something: a thread, a descriptor, a signal.
    System(String),
    /// `config.json` is broken or cannot be written.
    Settings(crate::config::Trouble),
}

impl From<crate::config::Trouble> for Trouble {
    fn from(trouble: crate::config::Trouble) -> Trouble {
        Trouble::Settings(trouble)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Store(error)
    }
}
