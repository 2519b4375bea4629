//! The hub as a process: its store, its threads and its first start.

pub mod mark;
pub mod read;
pub mod run;
pub mod store;
