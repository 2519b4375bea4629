//! The vocabulary between an agent and its provider session, the same for every vendor.
//!
//! A provider session is a machine of its own (`provider/<name>/session`): bytes, timers and verbs
//! go in, writes and session events come out. The agent sends verbs and receives session events; no
//! vendor's spelling stands here.

mod io;
mod opening;

pub use self::io::{Input, Output, Screen, ServerAddress, Session, Signs, WATCHED_BYTES_MAX};
pub use self::opening::{OpenMode, Opened, StartFault};
use crate::core::ids::{BatchNumber, Ticket, VerbNumber};
use serde_json::{Map, Value};

use super::time::Wall;
use crate::wire::control::LogLevel;
use crate::wire::words::words;

/// Start of the text that tells an agent to go on after a restart; a session knows it again in a
/// record.
pub const RESTART_MARK: &str = "[agent-relay] The session was restarted";

/// Name of the one session in a terminal server of ours; the server's socket tells agents apart.
pub const TERMINAL_SESSION: &str = "agent";

/// The fact that tells how a person opens a window on the session: a record with `command`, `env`
/// and, where a variable is a secret, `envFiles`: the file that its value stands in.
pub const GUEST_WINDOW: &str = "window";

/// What the sessions of a provider can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionCapabilities {
    /// The words of people and of others reach it differently: a batch holds only one kind.
    pub split_by_sender: bool,
    /// It takes urgent messages into a running turn.
    pub takes_urgent: bool,
    /// It judges itself whether a turn runs; a bare status post is only a hint to it.
    pub tracks_turns: bool,
    /// It can be told to compact its conversation and to begin a new one.
    pub changes_context: bool,
    /// A person can open a window on it from anywhere on this machine, see [`GUEST_WINDOW`].
    pub takes_guests: bool,
}

/// What the agent asks of a session. Each verb but `Open` and `Deliver` is answered by
/// [`SessionEvent::Answered`].
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Verb {
    /// Start the conversation; answered by [`SessionEvent::Opened`] or
    /// [`SessionEvent::OpenFailed`].
    Open {
        /// Conversation to go on with.
        resume: Option<Resume>,
    },
    /// Put a batch into the conversation; answered by [`SessionEvent::Accepted`] and
    /// [`SessionEvent::TurnEnded`].
    Deliver(Delivery),
    /// Put a text of the runner into the conversation as soon as no turn runs; answered when the
    /// conversation has it.
    Inject {
        text: String,
        /// A person says it; else the system does.
        person: bool,
    },
    /// End the running turn.
    Interrupt,
    /// Shorten the context.
    Compact {
        /// What the summary should keep, for providers that can be told.
        instructions: Option<String>,
    },
    /// Drop the context.
    Clear,
    /// Answer an approval.
    Decide {
        approval: String,
        decision: Decision,
        /// Words for the agent, with a refusal.
        reason: Option<String>,
        /// Answers to a question: by question, a text or a list of texts.
        answers: Option<Value>,
    },
    /// A hook of the provider reports an event.
    Hook {
        /// Who waits for [`SessionEvent::HookAnswer`]; 0: nobody.
        ticket: Ticket,
        /// Name of the event, as the hook program says it.
        event: String,
        /// What the provider told the hook.
        payload: Value,
        /// When the hook ran; the provider goes on only after it.
        at: Wall,
    },
    /// The hook that waited has gone.
    HookGone { ticket: Ticket },
    /// Somebody was told how to open a window on the session, and may be there from now on.
    Guest,
    /// Say whether a turn runs. Whoever hosts the process tells its [`Signs`] too.
    Probe,
    /// Prepare for the end: no new turns, close the input.
    Stop,
}

/// Text for the conversation that is delivered exactly once.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delivery {
    pub batch: BatchNumber,
    /// A UUID that stays the same when the same messages are delivered again.
    pub key: String,
    /// What the provider reads.
    pub text: String,
    /// A person says it; else another agent or a system does.
    pub person: bool,
    /// It need not wait for the end of a turn.
    pub urgent: bool,
}

/// A conversation that was there before.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resume {
    /// Session id of the provider.
    pub session: String,
    /// Messages whose outcome is not known: the session looks for them in its record.
    pub evidence_for: Vec<MessageFingerprint>,
}

/// How a message can be recognised in a provider's record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MessageFingerprint {
    /// The header line that every delivered message begins with.
    pub header: String,
    /// Start of the text after it.
    pub start: String,
    /// There is no header, and the text is no longer than its start.
    pub is_whole: bool,
}

impl MessageFingerprint {
    /// Whether a text of the record is this one. `squeeze` takes away what changes on the way.
    /// Without a header the text itself must begin so, or be the same.
    pub fn is_in(&self, text: &str, squeeze: fn(&str) -> String) -> bool {
        let (header, start) = (squeeze(&self.header), squeeze(&self.start));
        if !header.is_empty() {
            return text.contains(&header) && text.contains(&start);
        }
        let text = text.strip_prefix("[prompt]").unwrap_or(text);
        if self.is_whole { text == start } else { text.starts_with(&start) }
    }
}

words! {
    /// A decision on an approval.
    Decision {
        /// Yes, this once.
        Approve = "approve",
        /// Yes, for the rest of the session.
        ApproveSession = "approve-session",
        /// No, go on without.
        Deny = "deny",
        /// No, and end the turn.
        Abort = "abort",
    }
}

/// What a session tells the agent.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum SessionEvent {
    /// The conversation is open.
    Opened(Opened),
    /// The conversation cannot be opened.
    OpenFailed {
        /// One sentence for people, which names the cure.
        reason: String,
        /// What kind of cause it is.
        fault: StartFault,
    },
    /// The provider has the delivery.
    Accepted {
        batch: BatchNumber,
        key: String,
        /// How that is known, for people: the provider's own record counts, never a successful
        /// write.
        evidence: String,
    },
    /// The delivery will never reach the provider; whoever sent it is told so.
    Refused {
        batch: BatchNumber,
        key: String,
        /// The reason, in words for people.
        why: String,
    },
    /// A turn began.
    TurnStarted,
    /// How it is known that the provider is busy or idle, for people.
    Evidence(String),
    /// Something beside the turn runs, for example a subagent, or has ended.
    Work {
        /// `subagent` and the like.
        kind: &'static str,
        id: String,
        label: String,
        /// False: it has ended.
        runs: bool,
    },
    /// An event for the agent's timeline, which people see.
    Timeline(&'static str),
    /// The conversation has another id from now on.
    ConversationChanged {
        /// Session id to resume later.
        session: String,
    },
    /// Somebody at the provider's own terminal ended it on purpose: the runner ends too, without a
    /// restart.
    EndedByUser {
        /// How it was ended, for people.
        reason: String,
    },
    /// Answer to a hook that waits; `None` leaves the matter to the provider.
    HookAnswer {
        ticket: Ticket,
        /// What the hook prints.
        answer: Option<Value>,
    },
    /// Tell the monitors of this provider process that the batch waits.
    Announce { batch: BatchNumber },
    /// What the provider does during the turn: a record with `state`.
    ProviderState(Value),
    /// The turn is over.
    TurnEnded {
        /// The batch that started it.
        batch: Option<BatchNumber>,
        end: TurnEnd,
        text: String,
    },
    /// Something to show in the session mirror.
    Mirror(Mirror),
    /// The provider asks for permission.
    ApprovalOpened(Approval),
    /// The provider does not wait for this decision any more.
    ApprovalClosed { id: String, reason: String },
    /// Use of the context window.
    Context(Value),
    /// Something about the session that people want to see, for example its mode or its plan.
    Fact { name: &'static str, value: Value },
    /// Answer to a verb.
    Answered {
        /// Number that came with the verb.
        verb: VerbNumber,
        /// Record, or the error text.
        result: Result<Value, String>,
    },
    /// A line for the log.
    Log { level: LogLevel, text: String },
}

impl SessionEvent {
    /// The word for it in the ring of recent events.
    pub fn name(&self) -> &'static str {
        match self {
            SessionEvent::Opened(_) => "Opened",
            SessionEvent::OpenFailed { .. } => "OpenFailed",
            SessionEvent::Accepted { .. } => "Accepted",
            SessionEvent::Refused { .. } => "Refused",
            SessionEvent::TurnStarted => "TurnStarted",
            SessionEvent::Evidence(_) => "Evidence",
            SessionEvent::Work { .. } => "Work",
            SessionEvent::Timeline(_) => "Timeline",
            SessionEvent::ConversationChanged { .. } => "ConversationChanged",
            SessionEvent::EndedByUser { .. } => "EndedByUser",
            SessionEvent::HookAnswer { .. } => "HookAnswer",
            SessionEvent::Announce { .. } => "Announce",
            SessionEvent::ProviderState(_) => "ProviderState",
            SessionEvent::TurnEnded { .. } => "TurnEnded",
            SessionEvent::Mirror(_) => "Mirror",
            SessionEvent::ApprovalOpened(_) => "ApprovalOpened",
            SessionEvent::ApprovalClosed { .. } => "ApprovalClosed",
            SessionEvent::Context(_) => "Context",
            SessionEvent::Fact { .. } => "Fact",
            SessionEvent::Answered { .. } => "Answered",
            SessionEvent::Log { .. } => "Log",
        }
    }
}

/// What the record says about an unsettled message.
#[derive(Debug, Clone, PartialEq)]
pub enum DeliveryOutcome {
    /// It never arrived.
    Unseen,
    /// It arrived and was not answered.
    Unanswered,
    /// It arrived and the answer follows it.
    Answered(String),
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEnd {
    /// The provider finished its answer.
    Completed,
    /// Interrupted, by us or by the provider.
    Cancelled,
    /// The provider reported an error.
    Failed(String),
}

/// One piece of the conversation for the session mirror, which people see.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// `prompt`, `response`, `reasoning` or `tool`.
    pub kind: &'static str,
    pub body: String,
    /// Short title, for tools.
    pub label: Option<String>,
    /// For tools: how it stands.
    pub status: Option<String>,
    /// Number of the turn.
    pub turn: u64,
    /// Key that stays the same if it is told again, where the provider has one.
    pub key: Option<String>,
}

/// An open question of the provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Approval {
    /// Given by the runner, unique while it runs.
    pub id: String,
    /// What is asked, in one line.
    pub title: String,
    /// `execute`, `edit` and the like.
    pub kind: String,
    /// What it would do, cut.
    pub input: Value,
    /// What can be chosen, as shown to people.
    pub options: Vec<String>,
    /// Further fields of the view, for example the questions to be answered.
    pub detail: Map<String, Value>,
}
