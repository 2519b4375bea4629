//! Commands about agents: who is there, how they are, what they ask, what they are told.

use argh::{ArgsInfo, FromArgs};

/// List the agents that the relay knows.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "agents",
    example = "agent-relay agents --status idle",
    example = "A live table; Ctrl-C ends:\n    agent-relay agents --watch",
    example = "What failed and will not come back:\n    agent-relay agents forget --offline"
)]
pub struct Agents {
    /// what to do; nothing = list
    #[argh(subcommand)]
    pub action: Option<AgentsAction>,
    /// keep running and show every change
    #[argh(switch)]
    pub watch: bool,
    /// only the ids, one a line
    #[argh(switch)]
    pub ids: bool,
    /// only with this tag
    #[argh(option)]
    pub tag: Option<String>,
    /// only with this label
    #[argh(option)]
    pub label: Option<String>,
    /// only in this status: idle, busy, offline
    #[argh(option)]
    pub status: Option<String>,
    /// print JSON, one agent a line
    #[argh(switch)]
    pub json: bool,
}

/// Something to do with agents.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
#[allow(missing_docs)] // the names say it
pub enum AgentsAction {
    Forget(Forget),
}

/// Forget agents that are offline: they leave the list, and nothing is queued for them any more.
/// What waits for one is kept for a day, in case it comes back.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "forget",
    example = "agent-relay agents forget build-7 build-8",
    example = "agent-relay agents forget --offline",
    note = "An agent that is connected is stopped first: `agent-relay command ID shutdown`. Its folder on its machine stays, and its runner registers it again when it is started."
)]
pub struct Forget {
    /// agent ids
    #[argh(positional)]
    pub ids: Vec<String>,
    /// all agents that are offline
    #[argh(switch)]
    pub offline: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Show the status of agents: of this machine as their runners tell it, of others as the relay sees
/// it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "status", example = "agent-relay status my-agent --why")]
pub struct Status {
    /// agent id (default: all agents of this machine)
    #[argh(positional)]
    pub agent: Option<String>,
    /// say why and since when, with queues and last errors
    #[argh(switch)]
    pub why: bool,
    /// print everything as JSON
    #[argh(switch)]
    pub json: bool,
}

/// Attach to the terminal of an agent that runs in one (headless claude); leave it with Ctrl-B D.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "attach",
    example = "agent-relay attach my-agent",
    example = "agent-relay attach --read-only",
    note = "What you type there is typed into the session. A draft in its input box stays yours: the runner puts it away while it delivers."
)]
pub struct Attach {
    /// agent id; default: the only runner on this machine
    #[argh(positional)]
    pub agent: Option<String>,
    /// watch without typing
    #[argh(switch)]
    pub read_only: bool,
    /// print how to attach, as JSON, instead of doing it
    #[argh(switch)]
    pub json: bool,
}

/// List open approvals, or answer one.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "approvals",
    example = "agent-relay approvals",
    example = "agent-relay approvals approve 1-a2b3c4",
    example = "agent-relay approvals approve 1-a2b3c4 --answer Blue",
    note = "Decisions: approve, approve-session, deny, abort (deny and end the turn)."
)]
pub struct Approvals {
    /// a decision and an approval id; nothing = list the open ones
    #[argh(positional)]
    pub decision: Vec<String>,
    /// agent that asks (needed only if the id is not unique)
    #[argh(option)]
    pub agent: Option<String>,
    /// reason, shown to the agent where it can be
    #[argh(option)]
    pub reason: Option<String>,
    /// answer to a question, as "question=choice", or just the choice where there is one question;
    /// repeat for more
    #[argh(option)]
    pub answer: Vec<String>,
    /// print JSON, one approval a line
    #[argh(switch)]
    pub json: bool,
}

/// Send a command to an agent's runner and wait for its result.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "command",
    example = "agent-relay command my-agent interrupt",
    example = "agent-relay command my-agent shutdown --timeout-ms 20000",
    note = "Commands: shutdown, kill, restart, reconnect, interrupt, compact, clearContext, injectContext, permissionDecision."
)]
pub struct Issue {
    /// agent id or runner id
    #[argh(positional)]
    pub target: String,
    /// one of the commands below
    #[argh(positional)]
    pub command: String,
    /// reason for the record
    #[argh(option)]
    pub reason: Option<String>,
    /// time that shutdown and kill wait for the session, ms
    #[argh(option)]
    pub timeout_ms: Option<u64>,
    /// further parameters as a JSON object
    #[argh(option)]
    pub params: Option<String>,
    /// do not wait for the result
    #[argh(switch)]
    pub no_wait: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Set an agent's label, or clear it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "label",
    example = "agent-relay label my-agent web",
    example = "agent-relay label my-agent --clear"
)]
pub struct Label {
    /// agent id
    #[argh(positional)]
    pub agent: String,
    /// new label
    #[argh(positional)]
    pub label: Option<String>,
    /// clear the label
    #[argh(switch)]
    pub clear: bool,
}
