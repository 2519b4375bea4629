//! Looking at a host and its sessions: log files, terminals, and what the machine says of itself;
//! starting sessions, ending them, and keeping what is known of them.

pub mod call;
pub mod calls;
pub mod host;
pub mod log_file;
pub mod look;
pub mod records;
pub mod runner_port;
pub mod terminal;
pub mod units;
pub mod watch;
pub mod work;
