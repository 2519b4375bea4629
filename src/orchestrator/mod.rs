//! The orchestrator as a process: where it is found on this machine, its threads and its channels.

pub mod place;
pub mod run;
