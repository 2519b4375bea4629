//! Looking at a host and its sessions: log files, terminals, and what the machine says of itself.

pub mod call;
pub mod host;
pub mod log_file;
pub mod look;
pub mod runner_port;
pub mod terminal;
