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

/// Serve the relay's tools to the program of an agent, by the Model Context Protocol on standard
/// input and output.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "mcp",
    note = "A runner tells its session of it by itself. It stays while relay and runner come and go, and ends with its input."
)]
pub struct Mcp {}

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
    example = "From a script beside the session:\n    agent-relay hook --agent build busy --why 'compiling, 3 of 10'",
    example = "Whether the hooks of this session arrive:\n    agent-relay hook --check stop",
    note = "Events: session-start, user-prompt-submit, stop, stop-failure, subagent-start, subagent-stop, pre-compact, post-compact, session-end, permission-request, notification, pre-skill-shell-command, status-line; or a bare busy, idle, error, offline.",
    note = "Without a runner (AGENT_RELAY_RUNNER_PORT is not set) it does nothing and exits with 0. It takes at most 2 seconds, except for permission-request, which waits for the decision.",
    note = "A posted status is shown as posted. It ends with the next one, and an error or offline also with the next turn of the session."
)]
pub struct Hook {
    /// post a busy, idle, error or offline for this agent of this machine, from outside of its
    /// session
    #[argh(option)]
    pub agent: Option<String>,
    /// what people read beside a busy, idle, error or offline
    #[argh(option)]
    pub why: Option<String>,
    /// say what happened, and fail if it did not arrive; of an event of the session only whether it
    /// would
    #[argh(switch)]
    pub check: bool,
    /// what happened
    #[argh(positional)]
    pub event: String,
}
