//! Agents that speak the Agent Client Protocol, version 1, over stdio (ACP FACTS).

pub mod presets;
mod replay;
pub mod session;
