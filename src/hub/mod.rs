//! The hub as a process: its store, its threads and its first start.

pub mod mark;
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
    /// Its store.
    Store(StoreError),
}

impl From<String> for Trouble {
    fn from(text: String) -> Trouble {
        Trouble::Use(text)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Store(error)
    }
}
