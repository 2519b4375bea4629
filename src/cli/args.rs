//! What can be typed. Values follow their flag after a space.

use crate::core::ids::MessageId;
use argh::{ArgsInfo, FromArgs};

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
    error_code(2, "wrong use or configuration"),
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
    /// `hook`
    Hook(Hook),
    /// `generate`
    Generate(Generate),
    /// `service`
    Service(Service),
    /// `demo-agent`
    DemoAgent(DemoAgent),
    /// `version`
    Version(Version),
}

/// Start everything for one agent and chat with it: a hub if none runs, a runner, and this terminal
/// as chat.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "up",
    example = "Chat with the demo agent:\n    agent-relay up",
    example = "Chat with a real agent in the current folder:\n    agent-relay up -- <agent command>",
    example = "One question from a script:\n    agent-relay up --say \"Hello\" </dev/null"
)]
pub struct Up {
    /// say this and end after the answer; may be given several times
    #[argh(option)]
    pub say: Vec<String>,
    /// agent id (default: made of host, provider and folder)
    #[argh(option)]
    pub agent_id: Option<String>,
    /// approval mode: open, guarded or read-only (default guarded)
    #[argh(option)]
    pub approval: Option<String>,
    /// seconds to wait for an answer without a terminal (default 120)
    #[argh(option, default = "120")]
    pub wait: u64,
    /// command of an ACP agent, after `--` (default: the demo agent)
    #[argh(positional, greedy)]
    pub command: Vec<String>,
}

/// Run the relay of this machine in the foreground, or look after it: status, backup FILE, restore
/// FILE, vacuum.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "hub",
    example = "As a service of the user manager:\n    systemd-run --user --unit agent-relay-hub agent-relay hub",
    example = "How is it, and a copy of its data while it runs:\n    agent-relay hub status\n    agent-relay hub backup /backup/hub.sqlite",
    example = "Put a backup back, while no hub runs:\n    agent-relay hub restore /backup/hub.sqlite",
    example = "For other machines, with a certificate of its own:\n    agent-relay hub --listen 0.0.0.0 --tls-cert chain.pem --tls-key key.pem --url https://relay.example:4850",
    note = "Anything but a loopback address needs --tls-cert and --tls-key, or --behind-tls-proxy."
)]
pub struct Hub {
    /// nothing = run; status, backup FILE, restore FILE or vacuum
    #[argh(positional)]
    pub action: Vec<String>,
    /// port (default 4850; 0 = any free one)
    #[argh(option, default = "4850")]
    pub port: u16,
    /// take any free port when the wanted one is taken
    #[argh(switch)]
    pub any_port: bool,
    /// for a while only: the URL in config.json stays as it is
    #[argh(switch)]
    pub temporary: bool,
    /// address to listen on (default 127.0.0.1)
    #[argh(option, default = "std::net::IpAddr::from([127, 0, 0, 1])")]
    pub listen: std::net::IpAddr,
    /// a proxy in front of it speaks TLS with the world
    #[argh(switch)]
    pub behind_tls_proxy: bool,
    /// certificate chain, PEM
    #[argh(option)]
    pub tls_cert: Option<String>,
    /// private key of the certificate, PEM
    #[argh(option)]
    pub tls_key: Option<String>,
    /// how clients reach it, for config.json (default: made of address and port)
    #[argh(option)]
    pub url: Option<String>,
    /// print JSON (status)
    #[argh(switch)]
    pub json: bool,
}

/// Supervise one agent. Try `agent-relay run --help`.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "run")]
pub struct Run {
    /// see `agent-relay run --help`
    #[argh(positional, greedy)]
    pub rest: Vec<String>,
}

/// Send a message.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "send",
    example = "To an agent, and wait up to a minute for its answer:\n    agent-relay send web-agent --wait 60 \"Is the build green?\"",
    example = "From a pipe:\n    git diff | agent-relay send reviewer --stdin --subject \"Please review\"",
    note = "Targets: an agent id, user, broadcast, label:L, tag:T, cap:C, policy:P. Labels, tags and capabilities are what agents say of themselves; \
            policies stand in their tokens."
)]
pub struct Send {
    /// who gets it
    #[argh(positional)]
    pub to: String,
    /// the text
    #[argh(positional, greedy)]
    pub text: Vec<String>,
    /// read the text from standard input
    #[argh(switch)]
    pub stdin: bool,
    /// subject line
    #[argh(option)]
    pub subject: Option<String>,
    /// no answer is expected
    #[argh(switch)]
    pub no_reply: bool,
    /// idempotency key: sending twice under one key makes one message
    #[argh(option)]
    pub key: Option<String>,
    /// make a task that the first agent to claim it works on
    #[argh(switch)]
    pub task: bool,
    /// let it join the turn that runs, where the agent can do that (Claude Code can); else it waits
    /// for the end of that turn
    #[argh(switch)]
    pub urgent: bool,
    /// wait so many seconds for the answer and print it
    #[argh(option)]
    pub wait: Option<u64>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Show unread messages.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "inbox",
    example = "Read and mark as read:\n    agent-relay inbox --read",
    example = "For a script that acts on each message:\n    agent-relay inbox --follow --read --json"
)]
pub struct Inbox {
    /// whose inbox (default: the agent itself inside an agent, else user)
    #[argh(option, long = "for")]
    pub whose: Option<String>,
    /// read messages too
    #[argh(switch)]
    pub all: bool,
    /// the mirror of sessions too: prompts, tools, thoughts
    #[argh(switch)]
    pub mirror: bool,
    /// mark what is shown as read
    #[argh(switch)]
    pub read: bool,
    /// stay, and show what comes
    #[argh(switch)]
    pub follow: bool,
    /// at most so many (default 50)
    #[argh(option, default = "50")]
    pub limit: u64,
    /// print JSON, one message a line
    #[argh(switch)]
    pub json: bool,
}

/// Show one message in full.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "get-message", example = "agent-relay get-message 12")]
pub struct GetMessage {
    /// message id
    #[argh(positional)]
    pub id: MessageId,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Answer a message.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "reply",
    example = "agent-relay reply 12 \"Done, see the log.\"",
    example = "From a pipe:\n    make test 2>&1 | agent-relay reply 12 --stdin"
)]
pub struct Reply {
    /// id of the message to answer
    #[argh(positional)]
    pub id: MessageId,
    /// the text
    #[argh(positional, greedy)]
    pub text: Vec<String>,
    /// read the text from standard input
    #[argh(switch)]
    pub stdin: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Show one message in full (the same as get-message).
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "message", example = "agent-relay message 12")]
pub struct ShowMessage {
    /// message id
    #[argh(positional)]
    pub id: MessageId,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Show the thread of a message, oldest first.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "thread", example = "agent-relay thread 12")]
pub struct Thread {
    /// id of any message in it
    #[argh(positional)]
    pub id: MessageId,
    /// print JSON, one message a line
    #[argh(switch)]
    pub json: bool,
}

/// React to a message: a light acknowledgement that also settles what is owed for it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "react", example = "agent-relay react 12 \u{1F44D}")]
pub struct React {
    /// message id
    #[argh(positional)]
    pub id: MessageId,
    /// one emoji or a short word
    #[argh(positional)]
    pub emoji: String,
}

/// List tasks, show one, or move one on.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "tasks",
    example = "agent-relay tasks --status open",
    example = "agent-relay tasks show 3",
    example = "agent-relay tasks done 3 \"Fixed in the last commit\"",
    example = "agent-relay tasks reopen 3",
    note = "Make one with `agent-relay send TARGET --task TEXT`. Actions: show, start, block, done, fail, cancel, reopen. A task whose turn was interrupted is blocked: nobody works on it until you, or who sent it, reopen it; then all that it was meant for are offered it again."
)]
pub struct Tasks {
    /// nothing = list; else an action, a task id, and for some a text
    #[argh(positional, greedy)]
    pub action: Vec<String>,
    /// only in this status: open, claimed, in_progress, blocked, done, failed, cancelled
    #[argh(option)]
    pub status: Option<String>,
    /// with reopen: every task that is blocked
    #[argh(switch)]
    pub all: bool,
    /// print JSON, one task a line
    #[argh(switch)]
    pub json: bool,
}

/// Say who this shell speaks as, and to which relay.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "whoami", example = "agent-relay whoami --json")]
pub struct Whoami {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Teach an agent how to live with the relay.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "guide", example = "agent-relay guide")]
pub struct Guide {}

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

/// Make, list or revoke tokens.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "token",
    example = "For an agent on another machine, for a week:\n    agent-relay token create --agent web-agent --ttl 604800",
    example = "For an agent that gets what is sent to policy:deploy:\n    agent-relay token create --agent deployer --policy deploy",
    example = "agent-relay token list",
    example = "agent-relay token revoke JTI",
    note = "On the hub's own machine its root token is used; elsewhere the token of the settings."
)]
pub struct Token {
    /// create, list, or revoke and an id
    #[argh(positional)]
    pub action: Vec<String>,
    /// create: the agent that the token acts as
    #[argh(option)]
    pub agent: Option<String>,
    /// create: provider-agent (default with --agent), provider-interactive, operator (default) or
    /// orchestrator
    #[argh(option)]
    pub profile: Option<String>,
    /// create: life in seconds (default a day for agents, a year for others)
    #[argh(option)]
    pub ttl: Option<u64>,
    /// create: fewer scopes than the profile has, separated by commas; or further ones: admin
    /// (operator), approve:spawned (agents)
    #[argh(option)]
    pub scopes: Option<String>,
    /// create: what people call it
    #[argh(option)]
    pub name: Option<String>,
    /// create: the policy that its agent serves; messages to policy:P go to agents whose token says
    /// so
    #[argh(option)]
    pub policy: Option<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Check everything that an agent here needs, and name each cure.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "doctor",
    example = "agent-relay doctor",
    error_code(1, "something is broken")
)]
pub struct Doctor {
    /// print JSON, one check a line
    #[argh(switch)]
    pub json: bool,
}

/// Report an event of a provider session to its runner: for hooks. Reads the payload from standard
/// input.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "hook",
    example = "agent-relay hook stop <payload.json",
    note = "Events: session-start, user-prompt-submit, stop, stop-failure, subagent-start, subagent-stop, pre-compact, post-compact, session-end, permission-request, notification, status-line; or a bare busy, idle, error, offline.",
    note = "Where no runner is (AGENT_RELAY_RUNNER_PORT is not set), it leaves quietly with 0. It never takes longer than 2 seconds, but for permission-request, which waits for the decision."
)]
pub struct Hook {
    /// what happened
    #[argh(positional)]
    pub event: String,
}

/// Print shell completions, the manual page or a systemd unit.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "generate",
    example = "agent-relay generate bash >~/.local/share/bash-completion/completions/agent-relay",
    example = "agent-relay generate man | man -l -",
    example = "agent-relay generate unit hub >~/.config/systemd/user/agent-relay-hub.service"
)]
pub struct Generate {
    /// bash, zsh, fish, man or unit
    #[argh(positional)]
    pub what: String,
    /// unit: hub or agent
    #[argh(positional)]
    pub which: Option<String>,
}

/// Run the hub or an agent as a service of your user's systemd.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "service",
    example = "agent-relay service install hub",
    example = "A hub with options:\n    agent-relay service install hub -- --port 4860",
    example = "An agent that works in a folder:\n    agent-relay service install web -- <agent> --cwd ~/project",
    example = "agent-relay service remove web",
    note = "The name is the agent id. What follows -- goes to `agent-relay run`. A service is started again after failures, but not after wrong use (exit code 2)."
)]
pub struct Service {
    /// install NAME -- what to run, install hub, list, or remove NAME
    #[argh(positional)]
    pub action: Vec<String>,
    /// print JSON, one service a line (list)
    #[argh(switch)]
    pub json: bool,
}

/// List the agents that the relay knows.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "agents",
    example = "agent-relay agents --status idle",
    example = "A live table; Ctrl-C ends:\n    agent-relay agents --watch"
)]
pub struct Agents {
    /// stay, and show every change
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

/// Show how agents of this machine are, asked at their runners; others as the relay sees them.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "status", example = "agent-relay status my-agent --why")]
pub struct Status {
    /// agent id (default: all agents of this machine)
    #[argh(positional)]
    pub agent: Option<String>,
    /// say why and since when, with queues and last errors
    #[argh(switch)]
    pub why: bool,
    /// print the whole truth as JSON
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
    /// only look
    #[argh(switch)]
    pub read_only: bool,
    /// print how to attach, as JSON, instead of doing it
    #[argh(switch)]
    pub json: bool,
}

/// Name waiting relay messages on standard output, one short line each time; a session's plugin
/// starts it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "monitor",
    note = "It reads AGENT_RELAY_RUNNER_PORT and its companions, reconnects for ever, and ends with the session."
)]
pub struct Monitor {}

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

/// Send a command to an agent's runner and wait for its end.
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
    /// what to do
    #[argh(positional)]
    pub command: String,
    /// reason for the record
    #[argh(option)]
    pub reason: Option<String>,
    /// patience of shutdown and kill, ms
    #[argh(option)]
    pub timeout_ms: Option<u64>,
    /// further parameters as a JSON object
    #[argh(option)]
    pub params: Option<String>,
    /// do not wait for the end
    #[argh(switch)]
    pub no_wait: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// The built-in demo agent, an ACP agent without a model, on standard input and output.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "demo-agent",
    note = "A message that begins with one of these words makes it do that: work [s], ask, slow [s], flood [MB], garbage, hang, crash, error, child, forget."
)]
pub struct DemoAgent {
    /// where conversations are kept (default <AGENT_RELAY_HOME>/demo)
    #[argh(option)]
    pub state: Option<String>,
    /// offer no session/load
    #[argh(switch)]
    pub no_load: bool,
    /// offer no session/resume
    #[argh(switch)]
    pub no_resume: bool,
}

/// Show the version.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "version")]
pub struct Version {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}
