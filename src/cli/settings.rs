//! From what was given to everything that a run is made of.

use std::path::PathBuf;

use super::chosen::choose;
use super::exit::Failure;
use super::options::RunArgs;
use super::{launch, registration};
use crate::config::Global;
use crate::core::agent::config::AgentConfig;
use crate::edge::provider::{Host, Planner};
use crate::provider::capabilities::Provider;

/// Everything that a run is made of.
pub(super) struct RunSettings {
    /// For the agent's machine.
    pub agent: AgentConfig,
    /// For every start of the provider.
    pub planner: Planner,
    pub host: Host,
    pub cwd: PathBuf,
    pub global: Global,
    pub outbox_bytes_max: u64,
    /// Warnings for the person who starts it.
    pub warnings: Vec<String>,
    /// Warnings for the log only.
    pub log_only: Vec<String>,
}

/// Reads flags, environment and files. `started_at`: start of the runner, ms.
pub(super) fn settings(
    args: RunArgs,
    provider: &'static Provider,
    started_at: i64,
) -> Result<RunSettings, Failure> {
    let chosen = choose(args, provider)?;
    let (planner, log_only) = launch::planner(&chosen);
    Ok(RunSettings {
        agent: registration::agent_config(&chosen, started_at),
        planner,
        host: launch::host(&chosen),
        cwd: chosen.cwd,
        global: chosen.global,
        outbox_bytes_max: chosen.config.outbox_bytes_max,
        warnings: chosen.config.warnings,
        log_only,
    })
}
