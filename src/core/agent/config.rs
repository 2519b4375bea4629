//! Settings of an agent machine, as plain data that was checked before.

use std::time::Duration;

use super::prompt::Prompt;
use crate::core::matching::Identity;
use crate::core::session::SessionCapabilities;
use crate::secret::Secret;
use crate::wire::bus::Registration;

/// All settings of one agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Stable over restarts, so that a runner finds its store again.
    pub agent_id: String,
    /// `<host>-<provider>-<label or folder>-<8 hex digits>`; new at every start.
    pub runner_id: String,
    /// Fresh for every process.
    pub instance_id: String,
    /// Name of the provider.
    pub provider: String,
    /// Who messages are matched against.
    pub identity: Identity,
    /// What is registered; `meta` holds the part that never changes.
    pub registration: Registration,
    /// `open`, `guarded` or `read-only`.
    pub approval_mode: String,
    /// First prompt, if any.
    pub prompt: Option<Prompt>,
    /// URL of the relay, to tell a stored token of another relay apart.
    pub relay_url: String,
    /// The relay was named by a flag or the environment; else the runner follows `config.json`
    /// until it is registered.
    pub url_by_hand: bool,
    /// The token was given by a flag or the environment; else one that is missing or refused is
    /// looked for in `config.json`.
    pub token_by_hand: bool,
    /// Token that was handed in.
    pub token: Option<Secret>,
    /// Its profile, if known.
    pub token_profile: Option<String>,
    /// Its id, if known.
    pub token_jti: Option<String>,
    /// Its end in seconds, if known.
    pub token_expires_at: Option<i64>,
    /// Time that the provider has to end in order at a stop.
    pub shutdown_timeout: Duration,
    /// When a provider that ended is started again.
    pub restart: RestartPolicy,
    /// A turn without any sign of life for so long is stuck.
    pub stuck_after: Duration,
    /// Whether final texts become replies.
    pub reply_mode: ReplyMode,
    /// What its session can do.
    pub session: SessionCapabilities,
    /// It runs in a person's own terminal: a clean end there is that person's wish.
    pub in_user_terminal: bool,
    /// A sentence for people about the store, for example that a damaged one was set aside.
    pub store_note: Option<String>,
    /// Start of the runner, ms since 1970; restarts of the provider do not change it.
    pub started_at: i64,
}

/// A turn is stuck after this time, where nothing else is said.
pub const STUCK_AFTER: Duration = Duration::from_secs(900);

/// Who answers a message that expects a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyMode {
    /// The runner, with the final text of the turn, unless the agent has answered by itself.
    Auto,
    /// Only the agent itself.
    Explicit,
}

/// When a provider that ended is started again, and when it is given up (parked).
#[derive(Debug, Clone, PartialEq)]
pub struct RestartPolicy {
    /// First pause.
    pub first: Duration,
    /// Longest pause.
    pub most: Duration,
    /// So many exits within `window` and the agent is parked.
    pub exits_max: usize,
    /// Time within which exits are counted.
    pub window: Duration,
    /// A run that lasted this long clears the count.
    pub healthy: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            first: Duration::from_millis(500),
            most: Duration::from_secs(60),
            exits_max: 5,
            window: Duration::from_secs(600),
            healthy: Duration::from_secs(600),
        }
    }
}
