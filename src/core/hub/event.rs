//! What can happen to a hub, what it wants done, and what it keeps durable.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::generations::{DataState, Mark, StoredGeneration};
use super::written::WrittenMessage;
use crate::core::Cause;
use crate::core::commit::Commit;
use crate::core::http::{GateCommand, GateStats, Request};
use crate::core::ids::{MessageId, PeerId, ReadNumber, TaskId, Ticket};
use crate::core::store::StoreError;
use crate::core::time::Tick;
use crate::wire::api::TaskStatus;
use crate::wire::api::{Command, Message, Task, TokenRecord};
use crate::wire::bus::Registration;
use crate::wire::control::LogLevel;

/// Lanes of the hub's state thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Answers of store and reader.
    Store,
    /// The gate: requests and peers.
    Gate,
    /// Signals and the end of threads.
    Main,
}

impl crate::core::Lane for Lane {
    const ALL: &'static [Lane] = &[Lane::Store, Lane::Gate, Lane::Main];
}

/// One event of the hub.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// From store or reader.
    Store(StoreEvent),
    /// A request that is answered by `Respond`.
    Request { ticket: Ticket, request: Request },
    /// Somebody wants the bus; answered by `Accept` or `Respond`.
    Upgrade {
        /// Also the number that the peer will have.
        ticket: Ticket,
        request: Request,
    },
    /// A text frame of a peer.
    PeerText { peer: PeerId, text: String },
    /// A peer is gone.
    PeerClosed { peer: PeerId },
    /// SIGINT or SIGTERM.
    StopRequested,
    /// A thread ended although nobody told it to.
    ThreadEnded {
        name: String,
        /// What it said when it panicked.
        panic: Option<String>,
    },
}

/// Answers of store and reader.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum StoreEvent {
    /// Always the first event: what the hub starts from.
    Restored(Box<HubSnapshot>),
    /// All commits up to this number are durable.
    Committed {
        /// Newest commit.
        upto: u64,
        /// Messages that were not stored because their key was seen before: new id, first message.
        existing: Vec<(MessageId, Message)>,
        /// Messages as they were stored: what they answer is not there, or not for their sender to
        /// see.
        unattached: Vec<Message>,
        /// Reactions to what their sender cannot see: message and agent.
        unseen: Vec<(MessageId, String)>,
        /// What the retention removed.
        retired: Retired,
    },
    /// The commit does not succeed for now; the store tries again when told to.
    Stalled(Cause),
    /// The store is damaged or gone: nothing more is durable.
    Broken(StoreError),
    /// Free pages were given back: bytes of the file before and after.
    Vacuumed(Result<(u64, u64), String>),
    /// A read came back.
    Read { number: ReadNumber, answer: ReadAnswer },
}

/// What a retention removed.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Retired {
    pub count: u64,
    /// Those that somebody had not acknowledged: recipient and message.
    pub unacknowledged: Vec<(String, MessageId)>,
    /// Offers that nobody claimed in all that time.
    pub offers: Vec<MessageId>,
    /// There is more to remove.
    pub more: bool,
}

/// What a read brings.
#[derive(Debug, Clone, PartialEq)]
pub enum ReadAnswer {
    /// A JSON body; null = no such thing.
    Json(Value),
    /// Messages for the bus.
    Messages(Vec<Message>),
    /// The read failed.
    Failed(StoreError),
}

/// Why a read was asked.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum ReadFor {
    /// What an agent owes; the answer tells whose data that is.
    Obligations(Ticket),
    /// To answer a request.
    Ticket(Ticket),
    /// To send these messages to an agent over the bus.
    Deliver(String, Vec<MessageId>),
    /// To answer with the state of the hub.
    StoreStats { ticket: Ticket, gate: GateStats, format: StatsFormat },
}

/// How the state of the hub is told: as text for Prometheus, or as JSON.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsFormat {
    Prometheus,
    Json,
}

/// Whose commands are asked for; an empty text is nobody.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CommandParties {
    /// Commands for this agent,
    pub agent: String,
    /// or for its component,
    pub component: String,
    /// or issued under this name.
    pub issuer: String,
}

/// A read-only question.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// Unread messages of a recipient.
    Unread { recipient: String, since: MessageId, limit: u64, mirror: bool },
    /// All messages of a recipient, newest last.
    Inbox { recipient: String, since: MessageId, limit: u64, mirror: bool },
    /// Unacknowledged messages of everybody.
    Queued { limit: u64 },
    /// One message; `viewer` sees only what it sent or got.
    Message { id: MessageId, viewer: Option<String> },
    /// A thread, oldest first.
    Thread { id: MessageId, viewer: Option<String> },
    /// Messages by id, as a recipient sees them.
    Deliver { recipient: String, ids: Vec<MessageId> },
    /// Tasks.
    Tasks { status: Option<String>, viewer: Option<String> },
    /// One task.
    Task { id: TaskId, viewer: Option<String> },
    /// Commands.
    Commands { target: Option<String>, status: Option<String>, own: Option<CommandParties> },
    /// One command.
    Command { id: String, own: Option<CommandParties> },
    /// What an agent owes.
    Obligations { agent: String },
    /// Size of the store.
    StoreStats,
}

/// One order of the hub.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// To the store.
    Store(StoreCommand),
    /// Ask the reader.
    Read { number: ReadNumber, query: Query },
    /// To the gate.
    Gate(GateCommand),
    /// For the log.
    Log { level: LogLevel, text: String },
    /// A thread died: exit code 70.
    Failed(String),
    /// The store is damaged or gone: exit code 1.
    Broken(StoreError),
    /// The hub ends; no effect follows.
    Finish,
}

/// A command to the store.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum StoreCommand {
    /// Make these durable together.
    Commit(Commit<HubOp>),
    /// Try the stalled commit again.
    Retry,
    /// Give free pages of the store back to the disk.
    Vacuum,
    /// See whether the store's file is still where it was; the answer is [`StoreEvent::Broken`] or
    /// none.
    Look,
    /// Answer a question: what becomes of [`Effect::Read`] where no reader could be opened beside
    /// the writer. Boxed: the queue has a place of this size for each command that it can hold.
    Read { number: ReadNumber, query: Box<Query> },
}

impl From<Commit<HubOp>> for Effect {
    fn from(commit: Commit<HubOp>) -> Effect {
        Effect::Store(StoreCommand::Commit(commit))
    }
}

/// What waits for a commit.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum After {
    /// An effect.
    Effect(Effect),
    /// An event for subscribers.
    Event { event: &'static str, subject: String, data: Value },
    /// The answer to a request.
    Answer { ticket: Ticket, status: u16, body: Value },
    /// A message was sent: answer and route it.
    AcceptedMessage { ticket: Ticket, sent: AcceptedMessage },
    /// A batch was sent: answer row by row and route.
    Batch { ticket: Ticket, rows: Vec<Result<AcceptedMessage, (u16, Value)>> },
    /// A reaction: told to subscribers if its sender can see the message.
    Reacted { ticket: Ticket, message: MessageId, agent: String },
    /// A message without a call that waits for its answer.
    Route { sent: AcceptedMessage },
    /// A registration: the peer is told and gets what waits for it.
    Registered { peer: PeerId, agent: Option<String>, text: String },
    /// Messages went back into queues.
    Offer { recipients: Vec<String> },
}

/// A message with its recipients.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct AcceptedMessage {
    pub message: WrittenMessage,
    /// Who gets it.
    pub recipients: Vec<String>,
    /// When it came.
    pub at: Tick,
}

/// One change of the hub's store.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum HubOp {
    /// A hub starts with these data: blocks of ids are reserved. `generation`: a new one begins.
    /// `copy`: what was under way in the data has gone on since they were copied; unfinished tasks
    /// are blocked, claims end, commands expire.
    Adopt {
        generation: Option<StoredGeneration>,
        messages_end: MessageId,
        tasks_end: TaskId,
        starts: u64,
        copy: bool,
        at: i64,
    },
    /// Ids up to these ends may be given.
    Reserve { messages_end: MessageId, tasks_end: TaskId },
    /// A message with its recipients; nothing happens when sender and key were seen before. It
    /// answers only what its sender can see; `sees_all`: who holds the token sees everything,
    /// whatever name the message has.
    MessagePut {
        message: WrittenMessage,
        recipients: Vec<String>,
        key: Option<String>,
        sees_all: bool,
    },
    /// A recipient more, found later.
    RecipientAdd { message: MessageId, recipient: String },
    /// The recipient has acknowledged it.
    Acked { message: MessageId, recipient: String },
    /// The recipient has read it.
    Read { message: MessageId, recipient: String, at: i64, reason: Option<String> },
    /// A reaction to what its sender can see; `sees_all`: a person, whatever name it reacts under.
    Reacted { message: MessageId, agent: String, emoji: String, at: i64, sees_all: bool },
    /// A claim is held.
    ClaimPut { message: MessageId, agent: String, expires_at: i64 },
    /// A claim is gone. `reoffer`: the message is unread and unacknowledged again for everybody;
    /// else it is settled, and nobody needs to read it any more.
    ClaimEnd { message: MessageId, reoffer: bool, at: i64 },
    /// The claim is gone and the message is offered to nobody, though it is not settled.
    OfferHeld { message: MessageId, at: i64 },
    /// The message waits for a match until then; `None` ends the waiting.
    Unresolved { message: MessageId, until: Option<i64> },
    /// A new task; its message carries it.
    TaskPut(Task),
    /// A task has another status.
    TaskMark { id: TaskId, status: TaskStatus, agent: Option<String>, entry: Value, at: i64 },
    /// A command is known.
    CommandPut(Command),
    /// An agent is known.
    AgentPut(StoredAgent),
    /// An agent is forgotten.
    AgentDelete { id: String },
    /// The queue of a deleted agent goes.
    QueueDrop { recipient: String },
    /// A token is known by its hash.
    TokenPut { hash: String, record: TokenRecord },
    /// A token is gone.
    TokenDelete { hash: String },
    /// A token is gone, and must not come back with a copy of the data. Times in seconds.
    TokenRevoke { hash: String, jti: String, expires_at: Option<i64>, at: i64 },
    /// Takes away at most `limit` messages of each class that are older than told, and final
    /// commands.
    Retain { session_before: i64, before: i64, limit: u64 },
}

/// An agent as stored.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredAgent {
    pub id: String,
    /// Last registration.
    pub registration: Registration,
    /// Counts the instances of this agent.
    pub epoch: u64,
    /// Label that was set over HTTP.
    pub label: Option<String>,
    /// The policy that it serves, as its token says.
    pub policy: Option<String>,
    /// The agent or orchestrator that asked for it, as its token says.
    pub spawned_by: Option<String>,
    /// Component ids that belong to it, oldest first.
    pub components: Vec<String>,
    /// In ms since 1970.
    pub last_seen: i64,
    /// How it went; none while it is there.
    pub ended: Option<Ended>,
}

/// The end of an agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ended {
    /// `offline`, or `error` or `parked` where it failed for good.
    pub status: String,
    /// For people.
    pub why: String,
    /// In ms since 1970.
    pub since: i64,
}

/// A task that is not final.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredTask {
    pub id: TaskId,
    pub message: MessageId,
    pub status: TaskStatus,
    pub sender: String,
    /// It is blocked since it stood in a copy of the data.
    pub restored: bool,
}

/// A claimable message that is not settled.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredOffer {
    pub message: MessageId,
    pub task: Option<TaskId>,
    /// Everybody whom it was offered to.
    pub recipients: Vec<String>,
    /// Who works on it.
    pub claim: Option<StoredClaim>,
}

/// Who has claimed a message.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredClaim {
    pub agent: String,
    /// End of the lease, ms since 1970.
    pub expires_at: i64,
    /// The agent has read the message.
    pub is_read: bool,
}

/// A message that matches nobody yet.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredUnresolved {
    pub id: MessageId,
    pub target: String,
    pub claimable: bool,
    pub sender: String,
    /// It waits until then, ms since 1970.
    pub until: i64,
}

/// All that a hub starts from.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HubSnapshot {
    /// Generations and reserved ids, as the store knows them.
    pub data: DataState,
    /// The mark beside the hub's folder, if there is one.
    pub mark: Option<Mark>,
    /// Highest message id.
    pub last_message: MessageId,
    /// Highest task id.
    pub last_task: TaskId,
    /// Unacknowledged ids by recipient.
    pub unacknowledged: Vec<(String, Vec<MessageId>)>,
    pub agents: Vec<StoredAgent>,
    /// Who sent something that waits.
    pub senders: Vec<String>,
    /// Claimable messages that are not settled.
    pub offers: Vec<StoredOffer>,
    /// Tasks that are not final.
    pub tasks: Vec<StoredTask>,
    /// Messages that wait for a match.
    pub unresolved: Vec<StoredUnresolved>,
    /// Commands that are not final.
    pub commands: Vec<Command>,
    /// Tokens by hash.
    pub tokens: Vec<(String, TokenRecord)>,
}
