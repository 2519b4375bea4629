//! Commands about a host full of sessions.

use argh::{ArgsInfo, FromArgs};

/// Run the orchestrator of this machine in the foreground: it starts sessions, watches them and
/// starts them again. Its sessions stay when it ends.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "orchestrator",
    example = "agent-relay orchestrator --base-dir ~/projects",
    example = "As a service of your user's systemd:\n    systemd-run --user --unit agent-relay-orchestrator agent-relay orchestrator",
    note = "Each session is a unit of your user's systemd (slice agent-relay.slice), or a process group where there is none. Settings: orchestrator.json in AGENT_RELAY_HOME."
)]
pub struct Orchestrator {
    /// port of its interface on 127.0.0.1 (default: the one it had, else any free one)
    #[argh(option)]
    pub port: Option<u16>,
    /// folder that sessions work in or below (default: your home)
    #[argh(option)]
    pub base_dir: Option<String>,
}

/// Start a session: an agent with its runner, which goes on without this terminal.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "spawn",
    example = "The built-in demo agent:\n    agent-relay spawn <agent>",
    example = "With bounds, and a first prompt:\n    agent-relay spawn --cwd ~/project --memory-max 2G --prompt \"Run the tests\" <agent>",
    note = "What follows the provider goes to it. A session that fails is started again after a pause, five times within ten minutes; `agent-relay sessions` tells what became of it."
)]
pub struct Spawn {
    /// working directory (default: here)
    #[argh(option)]
    pub cwd: Option<String>,
    /// approval mode: open, guarded or read-only (default guarded)
    #[argh(option)]
    pub approval: Option<String>,
    /// a name for people, and part of the session's name
    #[argh(option)]
    pub label: Option<String>,
    /// agent id (default: made of host, provider and label)
    #[argh(option)]
    pub agent_id: Option<String>,
    /// first prompt, delivered once
    #[argh(option)]
    pub prompt: Option<String>,
    /// model of the provider
    #[argh(option)]
    pub model: Option<String>,
    /// effort of the provider
    #[argh(option)]
    pub effort: Option<String>,
    /// the policy that its agent serves
    #[argh(option)]
    pub policy: Option<String>,
    /// further tags, separated by commas
    #[argh(option)]
    pub tags: Option<String>,
    /// further capabilities, separated by commas
    #[argh(option)]
    pub caps: Option<String>,
    /// NAME=VALUE for its environment; may be given several times
    #[argh(option)]
    pub env: Vec<String>,
    /// when it is started again: always, on-failure (default) or never
    #[argh(option)]
    pub restart: Option<String>,
    /// folder mode: inherit (default) or shared
    #[argh(option)]
    pub workspace_mode: Option<String>,
    /// id of this request; repeated, it gives the same session
    #[argh(option)]
    pub request_id: Option<String>,
    /// most memory: bytes, or with K, M or G
    #[argh(option)]
    pub memory_max: Option<String>,
    /// share of the processors, 1 to 10000 (usual: 100)
    #[argh(option)]
    pub cpu_weight: Option<u64>,
    /// most processor time, percent of one processor
    #[argh(option)]
    pub cpu_quota: Option<u64>,
    /// most processes and threads
    #[argh(option)]
    pub tasks_max: Option<u64>,
    /// seconds until it is ended
    #[argh(option)]
    pub runtime_max: Option<u64>,
    /// wait until there is room instead of being refused
    #[argh(switch)]
    pub queue: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// the provider, and what its program gets
    #[argh(positional, greedy)]
    pub command: Vec<String>,
}

/// Stop a session and everything that it has started.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "stop",
    example = "agent-relay stop my-agent",
    error_code(1, "something of it still runs")
)]
pub struct Stop {
    /// its name, its agent's id or its label
    #[argh(positional)]
    pub session: String,
    /// do not wait for an orderly end
    #[argh(switch)]
    pub now: bool,
    /// seconds for an orderly end (default 15)
    #[argh(option)]
    pub timeout: Option<u64>,
    /// why, for the log
    #[argh(option)]
    pub reason: Option<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// List the sessions of this machine's orchestrator.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "sessions", example = "agent-relay sessions --json")]
pub struct Sessions {
    /// how the last sessions ended, too
    #[argh(switch)]
    pub ended: bool,
    /// print JSON, one session a line
    #[argh(switch)]
    pub json: bool,
}

/// Start parked sessions again: those that failed too often, or that another start would not help
/// before something was changed.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "recover", example = "agent-relay recover my-agent")]
pub struct Recover {
    /// its name, its agent's id or its label (default: all)
    #[argh(positional)]
    pub session: Option<String>,
    /// print JSON, one session a line
    #[argh(switch)]
    pub json: bool,
}

/// Show the end of a session's log, without what a terminal would act on.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "logs",
    example = "agent-relay logs my-agent --lines 20",
    example = "agent-relay logs my-agent --follow"
)]
pub struct Logs {
    /// its name, its agent's id or its label; of a session that is over, its name
    #[argh(positional)]
    pub session: String,
    /// how many lines, 1 to 1000 (default 100)
    #[argh(option)]
    pub lines: Option<u64>,
    /// as it was written; what a terminal would act on is shown as text
    #[argh(switch)]
    pub raw: bool,
    /// go on with what comes
    #[argh(switch)]
    pub follow: bool,
    /// print JSON, one object a line
    #[argh(switch)]
    pub json: bool,
}

/// Tell why a session is as it is: how it ended, what its unit, the kernel, its log and its runner
/// say, and what helps.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "diagnose", example = "agent-relay diagnose my-agent")]
pub struct Diagnose {
    /// its name, its agent's id or its label; of a session that is over, its name
    #[argh(positional)]
    pub session: String,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}
