//! Commands that read and write messages and tasks.

use argh::{ArgsInfo, FromArgs};

use crate::core::ids::MessageId;

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
    /// the recipient: see the targets below
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
    /// wait up to this many seconds for the answer and print it
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
    /// include messages that were read already
    #[argh(switch)]
    pub all: bool,
    /// include the mirror of sessions: prompts, tools, thoughts
    #[argh(switch)]
    pub mirror: bool,
    /// mark what is shown as read
    #[argh(switch)]
    pub read: bool,
    /// keep running and show new messages
    #[argh(switch)]
    pub follow: bool,
    /// show at most this many (default 50)
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
