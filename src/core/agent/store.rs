//! What an agent keeps durable, as plain data: operations, rows and the snapshot it starts from.

use serde_json::Value;

use crate::wire::api::{Command, Message};

/// One change of the store. The operations of one commit are one transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreOp {
    /// A message arrived; repeated ids are ignored.
    InboxPut(Message),
    /// A message moved on.
    InboxMark {
        /// Message id.
        id: u64,
        /// New state.
        state: InboxState,
        /// Batch that it travels in.
        batch: u64,
        /// How the state is known.
        evidence: String,
    },
    /// A message is done: its body goes, its id stays.
    InboxSettle {
        /// Message id.
        id: u64,
        /// Whether the relay knows that it is read.
        read: bool,
    },
    /// The row goes altogether.
    InboxForget {
        /// Message id.
        id: u64,
    },
    /// A command arrived.
    CommandPut(Command),
    /// A command moved on.
    CommandMark {
        /// Command id.
        id: String,
        /// New status.
        status: String,
        /// Result, if it succeeded.
        result: Option<Value>,
        /// Error, if it failed.
        error: Option<String>,
        /// Whether the relay knows that status.
        reported: bool,
    },
    /// The command leaves the log.
    CommandForget {
        /// Command id.
        id: String,
    },
    /// Something that must reach the relay.
    OutboxAppend(OutboxRow),
    /// These rows have arrived.
    OutboxDelete(Vec<u64>),
    /// The relay will never take this row.
    OutboxPoison {
        /// Which row.
        seq: u64,
        /// Why.
        reason: String,
    },
    /// The provider process and its conversation (D-23).
    ProviderPut(ProviderRecord),
    /// A value by name.
    Note {
        /// Name.
        key: String,
        /// Value; `None` removes it.
        value: Option<String>,
    },
}

/// Life of an inbox message; `done` is [`StoreOp::InboxSettle`].
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
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxRow {
    /// `message`, `session-message`, `task-update` or `insight`.
    pub kind: String,
    /// Idempotency key.
    pub key: String,
    /// When it happened, ms.
    pub occurred_at: i64,
    /// Body of the call.
    pub payload: Value,
}

/// Which rows go first when the bound is reached: a higher class is dropped earlier.
pub fn outbox_class(kind: &str) -> u8 {
    match kind {
        "message" | "task-update" => 0,
        "insight" => 1,
        _ => 2,
    }
}

/// A row of the outbox with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Order, never reused.
    pub seq: u64,
    /// The row.
    pub row: OutboxRow,
}

/// The provider process and its conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProviderRecord {
    /// Process id and process group; 0 when none runs.
    pub pid: u32,
    /// Start time of that process.
    pub start: u64,
    /// Random id that stands in the environment of everything it started.
    pub provider_session: String,
    /// Session id of the provider's conversation; empty if there is none yet.
    pub session: String,
}

/// A message that was in a batch when the last life ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Unsettled {
    /// The message.
    pub message: Message,
    /// Delivering or confirmed.
    pub state: InboxState,
    /// Its batch.
    pub batch: u64,
}

/// All that an agent starts from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Waiting messages, lowest ids first, at most `INBOX_CACHED_MAX`.
    pub waiting: Vec<Message>,
    /// Whether more wait in the store.
    pub more_waiting: bool,
    /// Messages in a batch.
    pub unsettled: Vec<Unsettled>,
    /// Ids of settled messages, oldest first, with whether the relay knows that they are read.
    pub settled: Vec<(u64, bool)>,
    /// Command log, oldest first, with whether the relay knows the status.
    pub commands: Vec<(Command, bool)>,
    /// Rows that wait in the outbox.
    pub outbox_pending: u64,
    /// Rows that the relay will never take.
    pub outbox_poisoned: u64,
    /// Last provider.
    pub provider: Option<ProviderRecord>,
    /// Values by name.
    pub notes: Vec<(String, String)>,
}
