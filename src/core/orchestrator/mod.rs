//! The orchestrator's decisions: which sessions there are on a host, what each is started with, who
//! fits, what follows the end of one, and how they are looked at and touched.
//!
//! What stands here so far are the pure parts, each with its table; the machine that uses them
//! comes beside them.

pub mod admission;
pub mod budget;
pub mod confine;
pub mod diagnosis;
pub mod guests;
pub mod host;
pub mod input;
pub mod launch;
pub mod log_text;
pub mod look;
pub mod names;
pub mod options;
pub mod picture;
pub mod record;
pub mod systemd;
