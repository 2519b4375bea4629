//! Agents that speak the Agent Client Protocol, version 1, over standard streams.
//!
#![doc = include_str!("FACTS.md")]

pub mod presets;
mod replay;
pub mod session;
