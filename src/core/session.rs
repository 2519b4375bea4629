//! The neutral words between an agent and its provider session.
//!
//! A provider session is a machine of its own (`provider/<name>/session`): bytes, timers and verbs go in, writes and
//! signals come out. The agent speaks verbs and hears signals; no vendor's spelling crosses this line.

use serde_json::Value;

use super::time::{Now, Tick};

/// Start of the text that tells an agent to go on after a restart; a session knows it again in a record.
pub const RESTART_MARK: &str = "[agent-relay] The session was restarted";

/// What the agent asks of a session. Each verb but `Open` and `Deliver` is answered by [`Signal::Answered`].
#[derive(Debug, Clone, PartialEq)]
pub enum Verb {
    /// Start the conversation; answered by [`Signal::Opened`] or [`Signal::OpenFailed`].
    Open {
        /// Conversation to go on with.
        resume: Option<Resume>,
    },
    /// Put a batch into the conversation; answered by [`Signal::Taken`] and [`Signal::TurnEnded`].
    Deliver {
        /// Number of the batch.
        batch: u64,
        /// What the provider reads.
        text: String,
    },
    /// Put a text of the runner into the conversation as soon as no turn runs.
    Inject {
        /// What the provider reads.
        text: String,
    },
    /// End the running turn.
    Interrupt,
    /// Shorten the context.
    Compact,
    /// Drop the context.
    Clear,
    /// Answer an approval.
    Decide {
        /// Which one.
        approval: String,
        /// What was decided.
        decision: Decision,
    },
    /// Say whether a turn runs.
    Probe,
    /// Prepare for the end: no new turns, close the input.
    Stop,
}

/// A conversation that was there before.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resume {
    /// Session id of the provider.
    pub session: String,
    /// Messages whose fate is not known: the session looks for them in its record.
    pub evidence_for: Vec<Trace>,
}

/// How a message can be recognised in a provider's record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// The header line (P-8).
    pub header: String,
    /// Start of the text after it.
    pub start: String,
}

/// A decision on an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// This once.
    Approve,
    /// For the rest of the session.
    ApproveSession,
    /// No, go on without.
    Deny,
    /// No, and end the turn.
    Abort,
}

impl Decision {
    /// Reads the wire word.
    pub fn parse(word: &str) -> Option<Decision> {
        Some(match word {
            "approve" => Decision::Approve,
            "approve-session" => Decision::ApproveSession,
            "deny" => Decision::Deny,
            "abort" => Decision::Abort,
            _ => return None,
        })
    }
}

/// What a session says.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// The conversation is open.
    Opened(Opened),
    /// It cannot be opened.
    OpenFailed {
        /// One sentence with the cure.
        reason: String,
        /// Trying again is pointless (login, protocol).
        permanent: bool,
    },
    /// The provider has the batch; evidence names how that is known (D-11).
    Taken {
        /// Which batch.
        batch: u64,
        /// Words for people.
        evidence: String,
    },
    /// A turn began.
    TurnStarted,
    /// What the provider does during the turn: record with `state` (P-4).
    ProviderState(Value),
    /// The turn is over.
    TurnEnded {
        /// The batch that started it.
        batch: Option<u64>,
        /// How it ended.
        end: TurnEnd,
        /// Final text.
        text: String,
    },
    /// Something to show in the session mirror.
    Mirror(Mirror),
    /// The provider asks for permission.
    ApprovalOpened(Approval),
    /// The question is gone.
    ApprovalClosed {
        /// Which one.
        id: String,
        /// Why.
        reason: String,
    },
    /// Use of the context window.
    Context(Value),
    /// Something about the session that people want to see, for example its mode or its plan.
    Fact {
        /// Which one.
        name: &'static str,
        /// How it stands.
        value: Value,
    },
    /// Answer to a verb.
    Answered {
        /// Number that came with the verb.
        verb: u64,
        /// Record, or the error text.
        result: Result<Value, String>,
    },
    /// For the log.
    Note {
        /// True for trouble.
        warn: bool,
        /// One line.
        text: String,
    },
}

/// How a conversation was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Session id to resume later.
    pub session: String,
    /// How.
    pub how: How,
    /// Name and version of the provider program, for people.
    pub agent: String,
    /// Model, if known.
    pub model: Option<String>,
    /// Whether the record can prove a delivery after a crash (D-11).
    pub has_evidence: bool,
}

/// New, resumed or lost.
#[derive(Debug, Clone, PartialEq)]
pub enum How {
    /// A fresh conversation; nothing was to be resumed.
    New,
    /// The old one goes on; what its record says of the messages asked for.
    Loaded(Fate),
    /// The old one goes on, without a look at the record.
    Resumed,
    /// The old one is gone: a fresh one was started.
    Lost(String),
}

/// What the record says about an unsettled batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
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
    /// As it should.
    Completed,
    /// Interrupted, by us or by the provider.
    Cancelled,
    /// With an error.
    Failed(String),
}

/// One mirrored piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// `prompt`, `response`, `reasoning` or `tool`.
    pub kind: &'static str,
    /// Text.
    pub body: String,
    /// Short title, for tools.
    pub label: Option<String>,
    /// For tools: how it stands.
    pub status: Option<String>,
    /// Number of the turn.
    pub turn: u64,
}

/// An open question of the provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Approval {
    /// Ours, unique for the runner's life.
    pub id: String,
    /// What is asked, in one line.
    pub title: String,
    /// `execute`, `edit` and the like.
    pub kind: String,
    /// What it would do, cut.
    pub input: Value,
    /// What can be chosen, as shown to people.
    pub options: Vec<String>,
}

/// What goes into a session machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Bytes from the provider.
    Bytes(Vec<u8>),
    /// The provider closed its output or died.
    Closed,
    /// A verb with its number.
    Verb(u64, Verb),
    /// A deadline has passed.
    Wake,
}

/// What comes out of a session machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Bytes for the provider.
    Write(Vec<u8>),
    /// No more input for the provider.
    CloseInput,
    /// A word for the agent.
    Signal(Signal),
}

/// A provider session as a pure machine.
pub trait Session: Send {
    /// Reacts to one input. Total: hostile bytes are an ordinary branch.
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output>;
    /// When it wants [`Input::Wake`].
    fn next_deadline(&self) -> Option<Tick>;
}
