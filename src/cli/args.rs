//! What can be typed. Values follow their flag after a space.

mod agents;
mod machine;
mod messages;
mod orchestrator;
mod session;

use argh::{ArgsInfo, FromArgs};

pub use self::agents::*;
pub use self::machine::*;
pub use self::messages::*;
pub use self::orchestrator::*;
pub use self::session::*;
use super::options;
use crate::provider::registry;

/// Puts a known agent into the examples below, which are literals and name none.
pub(super) fn with_examples(text: &str) -> String {
    let known = (registry::any_command().presets)();
    let command = known.first().map_or(String::new(), |preset| preset.command.join(" "));
    text.replace("<run an agent>", &options::example())
        .replace("<agent command>", &command)
        .replace("<agent>", &options::example_arguments())
}

/// Keeps coding agents alive and reachable: runs them, connects them to a relay, talks to them.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    example = "Talk to the built-in demo agent (starts a hub, a runner and a chat):\n    agent-relay up",
    example = "Supervise a real agent:\n    agent-relay hub &\n    <run an agent>",
    example = "Send it something and wait for the answer:\n    agent-relay send my-agent --wait 60 \"What changed today?\"",
    note = "Files live under AGENT_RELAY_HOME (default ~/.agent-relay). Settings: flag, then environment, then config.json.",
    note = "Inside an agent's session (AGENT_RELAY_ID is set) a command speaks as that agent; a person's commands need --as-operator there, before or behind the command.",
    error_code(0, "done, or stopped as asked"),
    error_code(1, "the answer is no, or the provider failed for good"),
    error_code(2, "invalid arguments or configuration"),
    error_code(3, "the other side cannot be reached"),
    error_code(70, "a bug"),
    error_code(
        71,
        "the system refused something at the start (disk, descriptors, memory, permissions): trying again may help"
    )
)]
pub struct Top {
    /// the command
    #[argh(subcommand)]
    pub command: Command,
}

/// All commands.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
pub enum Command {
    /// `up`
    Up(Up),
    /// `hub`
    Hub(Hub),
    /// `run` (only for the list of commands: its arguments are read by `cli::run`)
    Run(Run),
    /// `send`
    Send(Send),
    /// `inbox`
    Inbox(Inbox),
    /// `get-message`
    GetMessage(GetMessage),
    /// `message`
    Message(ShowMessage),
    /// `thread`
    Thread(Thread),
    /// `reply`
    Reply(Reply),
    /// `react`
    React(React),
    /// `tasks`
    Tasks(Tasks),
    /// `whoami`
    Whoami(Whoami),
    /// `guide`
    Guide(Guide),
    /// `mcp`
    Mcp(Mcp),
    /// `agents`
    Agents(Agents),
    /// `status`
    Status(Status),
    /// `attach`
    Attach(Attach),
    /// `monitor`
    Monitor(Monitor),
    /// `approvals`
    Approvals(Approvals),
    /// `command`
    Command(Issue),
    /// `label`
    Label(Label),
    /// `token`
    Token(Token),
    /// `doctor`
    Doctor(Doctor),
    /// `config`
    Config(Config),
    /// `hook`
    Hook(Hook),
    /// `generate`
    Generate(Generate),
    /// `service`
    Service(Service),
    /// `orchestrator`
    Orchestrator(Orchestrator),
    /// `spawn`
    Spawn(Spawn),
    /// `stop`
    Stop(Stop),
    /// `sessions`
    Sessions(Sessions),
    /// `recover`
    Recover(Recover),
    /// `logs`
    Logs(Logs),
    /// `diagnose`
    Diagnose(Diagnose),
    /// `demo-agent`
    DemoAgent(DemoAgent),
    /// `version`
    Version(Version),
}
