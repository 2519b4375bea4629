//! What an agent keeps durable, as plain data: operations, rows and the snapshot that it starts
//! from.

use serde_json::Value;

use crate::core::ids::{BatchNumber, MessageId, MessageRef, ProcessRef, TaskId};
use crate::wire::api::{Command, CommandStatus, Message, TaskStatus};
use crate::wire::words::open_words;

/// One change of the store. The operations of one commit are one transaction.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum StoreOp {
    /// A generation of a relay's data is known, or more is known of it.
    GenerationPut(Generation),
    /// A message arrived; a repeated one is ignored.
    InboxPut(InboxMessage),
    /// An inbox message has another state.
    InboxMark {
        at: MessageRef,
        state: InboxState,
        /// Batch that it travels in.
        batch: BatchNumber,
        /// How the state is known.
        evidence: String,
    },
    /// A message is done: its body goes, its id and its sender stay.
    InboxSettle {
        at: MessageRef,
        /// Whether the relay knows that it is read.
        read: bool,
        /// How its task ended, if it carried one and this runner reported its end.
        ended: Option<TaskEnd>,
    },
    /// The row goes altogether.
    InboxForget { at: MessageRef },
    /// A command arrived.
    CommandPut(Command),
    /// A command has another status.
    CommandMark {
        id: String,
        status: CommandStatus,
        result: Option<Value>,
        error: Option<String>,
        /// Whether the relay knows that status.
        reported: bool,
    },
    /// The command leaves the log.
    CommandForget { id: String },
    /// Something that must reach the relay.
    OutboxAppend(OutboxRow),
    /// These rows have arrived.
    OutboxDelete(Vec<u64>),
    /// The relay will never take this row.
    OutboxPoison { seq: u64, reason: String },
    /// The provider process and its conversation.
    ProviderPut(ProviderRecord),
    /// A value by name.
    PutMeta {
        key: String,
        /// Value; `None` removes it.
        value: Option<String>,
    },
}

/// How far an inbox message has come; `done` is [`StoreOp::InboxSettle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxState {
    /// Durable, not yet tried.
    Received,
    /// About to be written, or written, to the provider.
    Delivering,
    /// The provider has it.
    Confirmed,
}

impl InboxState {
    /// The word in the store.
    pub fn word(self) -> &'static str {
        match self {
            InboxState::Received => "received",
            InboxState::Delivering => "delivering",
            InboxState::Confirmed => "confirmed",
        }
    }
}

/// A row for the outbox.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxRow {
    pub kind: RowKind,
    pub key: String,
    /// When it happened, ms.
    pub occurred_at: i64,
    pub payload: Value,
    /// Number of the generation that the ids in the body belong to; 0: it names none.
    pub generation: u32,
}

open_words! {
    /// What an outbox row is; the word stands in the store. One that is not known goes as a
    /// message.
    RowKind {
        Message = "message",
        SessionMessage = "session-message",
        TaskUpdate = "task-update",
        Reaction = "reaction",
        Insight = "insight",
    }
}

impl RowKind {
    /// Which rows go first when the bound is reached: a higher class is dropped earlier.
    pub fn class(&self) -> u8 {
        use RowKind::*;
        match self {
            Message | TaskUpdate | Reaction => 0,
            Insight => 1,
            SessionMessage | Other(_) => 2,
        }
    }

    /// Whether it can travel with others as a batch of messages.
    pub fn is_message(&self) -> bool {
        matches!(self, RowKind::Message | RowKind::SessionMessage)
    }
}

/// A row of the outbox with its place.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct QueuedRow {
    /// Order, never reused.
    pub seq: u64,
    pub row: OutboxRow,
}

/// The provider process and its conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProviderRecord {
    /// The process, whose pid is also that of its group; the default when none runs.
    pub process: ProcessRef,
    /// Random id that stands in the environment of everything it started.
    pub provider_session: String,
    /// Session id of the provider's conversation; empty if there is none yet.
    pub session: String,
}

/// A generation of a relay's data, as this runner keeps it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generation {
    /// Its number here, from 1; never reused.
    pub number: u32,
    /// Generations of one family never reuse ids, and are ordered by them.
    pub family: u32,
    /// What the relay calls it; the relay's id or URL where it has no generations. Unique: a second
    /// relay that says the same name has a suffix.
    pub name: String,
    /// The name as it stands on the wire, for relays that have generations.
    pub told: Option<String>,
    /// Highest message id of it in the store.
    pub highest: MessageId,
}

/// A message with its place.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct InboxMessage {
    pub at: MessageRef,
    pub message: Message,
}

/// How a task ended, as this runner reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// The relay's id of the task.
    pub task: TaskId,
    /// Done or failed.
    pub status: TaskStatus,
}

/// A message that is done.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    pub at: MessageRef,
    /// Whether the relay knows that it is read.
    pub read: bool,
    /// How its task ended.
    pub ended: Option<TaskEnd>,
    /// Who sent it; empty where that was not kept.
    pub from: String,
}

/// Which of the waiting messages are brought first when memory cannot hold all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The oldest, whoever sent them.
    InOrder,
    /// Sender by sender, each with the oldest, beginning with the sender of whom the oldest waits.
    BySender {
        /// These come behind all others.
        last: Vec<String>,
    },
}

/// A message that was in a batch when the last runner ended.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Unsettled {
    pub at: MessageRef,
    pub message: Message,
    /// Delivering or confirmed.
    pub state: InboxState,
    pub batch: BatchNumber,
}

/// All that an agent starts from.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Generations of relays' data that rows belong to.
    pub generations: Vec<Generation>,
    /// The oldest of the waiting messages, at most `INBOX_CACHED_MAX`.
    pub waiting: Vec<InboxMessage>,
    /// Whether more wait in the store.
    pub more_waiting: bool,
    /// Messages in a batch.
    pub unsettled: Vec<Unsettled>,
    /// Settled messages, oldest first.
    pub settled: Vec<Settled>,
    /// Command log, oldest first, with whether the relay knows the status.
    pub commands: Vec<(Command, bool)>,
    /// Rows that wait in the outbox.
    pub outbox_pending: u64,
    /// Rows that the relay will never take.
    pub outbox_poisoned: u64,
    pub provider: Option<ProviderRecord>,
    pub notes: Vec<(String, String)>,
}
