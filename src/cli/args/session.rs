//! Commands that run inside of a session: what its agent and its hooks call.

use argh::{ArgsInfo, FromArgs};

/// Show as whom commands speak here, and to which relay.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "whoami", example = "agent-relay whoami --json")]
pub struct Whoami {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Explain to an agent how it works with the relay.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "guide", example = "agent-relay guide")]
pub struct Guide {}

/// Name waiting relay messages on standard output, one short line each time; a session's plugin
/// starts it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "monitor",
    note = "It reads AGENT_RELAY_RUNNER_PORT and its companions, reconnects whenever the connection is lost, and ends with the session."
)]
pub struct Monitor {}

/// Report an event of a provider session to its runner: for hooks. Reads the payload from standard
/// input.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "hook",
    example = "agent-relay hook stop <payload.json",
    note = "Events: session-start, user-prompt-submit, stop, stop-failure, subagent-start, subagent-stop, pre-compact, post-compact, session-end, permission-request, notification, pre-skill-shell-command, status-line; or a bare busy, idle, error, offline.",
    note = "Without a runner (AGENT_RELAY_RUNNER_PORT is not set) it does nothing and exits with 0. It takes at most 2 seconds, except for permission-request, which waits for the decision."
)]
pub struct Hook {
    /// what happened
    #[argh(positional)]
    pub event: String,
}
