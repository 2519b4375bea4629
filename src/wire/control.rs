//! What a runner's control port speaks, and the environment of a provider that leads to it.

use serde::{Deserialize, Serialize};

/// Content of the runner info file, mode 0600: it holds the token of the control port.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerInfo {
    pub agent_id: String,
    pub runner_id: String,
    pub provider: String,
    /// `http://127.0.0.1:<port>`.
    pub control_url: String,
    /// Bearer token of the control port; not a relay token.
    pub control_token: String,
    /// Process id of the runner.
    pub pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmux_session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmux_socket: Option<String>,
    /// ms since 1970.
    pub started_at: i64,
}

/// Environment of the provider: port of the control server.
pub const ENV_PORT: &str = "AGENT_RELAY_RUNNER_PORT";
/// Environment of the provider: token of the control server.
pub const ENV_CONTROL_TOKEN: &str = "AGENT_RELAY_RUNNER_TOKEN";
/// Environment of the provider: the agent that it is.
pub const ENV_AGENT: &str = "AGENT_RELAY_ID";
/// Environment of the provider: its first relay token, if there was one at its start.
pub const ENV_TOKEN: &str = "AGENT_RELAY_TOKEN";
/// Environment of the provider: the file that holds the agent's current token.
pub const ENV_TOKEN_FILE: &str = "AGENT_RELAY_TOKEN_FILE";
/// Id, profile and end (seconds) of the token that a runner was started with; they say nothing
/// about later tokens.
pub const ENV_TOKEN_DATA: [&str; 3] =
    ["AGENT_RELAY_TOKEN_JTI", "AGENT_RELAY_TOKEN_PROFILE", "AGENT_RELAY_TOKEN_EXPIRES_AT"];
/// Environment of a runner that an orchestrator starts: the file with the rest of its environment,
/// which the runner removes as soon as it has read it.
pub const ENV_ENVIRONMENT_FILE: &str = "AGENT_RELAY_ENVIRONMENT_FILE";
/// Environment of a session that an orchestrator starts: random text of that start, by which
/// everything that belongs to it is found.
pub const ENV_SESSION_LAUNCH: &str = "AGENT_RELAY_SESSION_LAUNCH";
/// Environment of the provider: random id of this provider process, new at every start.
pub const ENV_PROVIDER_SESSION: &str = "AGENT_RELAY_PROVIDER_SESSION_ID";
/// Environment of the provider: `explicit` where the agent answers by itself; only then a hook asks
/// what it owes.
pub const ENV_REPLY_MODE: &str = "AGENT_RELAY_REPLY_MODE";
/// Environment of the provider: names of the events that its hooks report; not set: all.
pub const ENV_HOOKS: &str = "AGENT_RELAY_HOOKS";
/// Value of `source` in a posted status that comes from outside of the session.
pub const OUTSIDE: &str = "outside";
/// Value of `reason` in a posted status that is no turn of the provider.
pub const POSTED: &str = "posted";
/// Field of a hook's payload that is set where the hook program had to cut texts.
pub const CUT: &str = "agentRelayCut";

super::words::words! {
    /// How much a line of the log matters, and from where on lines are written; lowest first.
    LogLevel {
        Debug = "debug",
        Info = "info",
        Warn = "warn",
        Error = "error",
        /// What the process or a promise of it ends with; no setting leaves it out.
        Fatal = "fatal",
    }
}

/// The hook event at which a session waits for a person's decision; `/permission-request` is its
/// older endpoint.
pub const PERMISSION_REQUEST: &str = "permission-request";
