//! The orchestrator's decisions: which sessions there are on a host, what each is started with, who
//! fits, and what follows the end of one.
//!
//! What stands here so far are the pure parts, each with its table; the machine that uses them
//! comes beside them.

pub mod admission;
pub mod budget;
pub mod confine;
pub mod launch;
pub mod log_text;
pub mod names;
pub mod options;
pub mod record;
pub mod systemd;
