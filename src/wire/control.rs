//! What a runner's control port speaks (runner specification section 8, D-7, D-42).

use serde::{Deserialize, Serialize};

/// Content of the runner info file, mode 0600 (R-228, D-7).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerInfo {
    /// The agent.
    pub agent_id: String,
    /// This runner.
    pub runner_id: String,
    /// Name of the provider.
    pub provider: String,
    /// `http://127.0.0.1:<port>`.
    pub control_url: String,
    /// Bearer token of the control port.
    pub control_token: String,
    /// Process id of the runner.
    pub pid: u32,
    /// Terminal session of the provider, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmux_session: Option<String>,
    /// Terminal socket of the provider, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmux_socket: Option<String>,
    /// ms.
    pub started_at: i64,
}

/// Environment of the provider: port of the control server.
pub const ENV_PORT: &str = "AGENT_RELAY_RUNNER_PORT";
/// Environment of the provider: token of the control server (D-7).
pub const ENV_CONTROL_TOKEN: &str = "AGENT_RELAY_RUNNER_TOKEN";
/// Environment of the provider: the agent that it is.
pub const ENV_AGENT: &str = "AGENT_RELAY_ID";
/// Environment of the provider: its first relay token, if there was one at its start.
pub const ENV_TOKEN: &str = "AGENT_RELAY_TOKEN";
/// Environment of the provider: the file that holds the agent's token of now.
pub const ENV_TOKEN_FILE: &str = "AGENT_RELAY_TOKEN_FILE";
/// What is known of the token that a runner was started with: id, profile, end in seconds. It says nothing about later ones.
pub const ENV_TOKEN_DATA: [&str; 3] = ["AGENT_RELAY_TOKEN_JTI", "AGENT_RELAY_TOKEN_PROFILE", "AGENT_RELAY_TOKEN_EXPIRES_AT"];
/// Environment of the provider: random id of this provider process.
pub const ENV_PROVIDER_SESSION: &str = "AGENT_RELAY_PROVIDER_SESSION_ID";
/// Environment of the provider: `explicit` where the agent answers itself (D-41); only then a hook looks what it owes.
pub const ENV_REPLY_MODE: &str = "AGENT_RELAY_REPLY_MODE";
/// Environment of the provider: which events its hooks tell, by their words; not set: all.
pub const ENV_HOOKS: &str = "AGENT_RELAY_HOOKS";
/// Field of a hook's payload whose texts the hook program had to cut.
pub const CUT: &str = "agentRelayCut";
/// Levels of `/log-level`, lowest first.
pub const LOG_LEVELS: [&str; 5] = ["debug", "info", "warn", "error", "fatal"];
