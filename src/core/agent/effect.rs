//! What an agent wants done, as commands to its edges.

use serde_json::Value;

use super::store::{Choice, ProviderRecord, QueuedRow, StoreOp};
use crate::core::commit::Commit;
use crate::core::http::GateCommand;
use crate::core::ids::{CallNumber, PeerId, ProcessNumber, VerbNumber};
use crate::core::session::Verb;
use crate::secret::Secret;
use crate::wire::bus::{CLOSE_NORMAL, ClientFrame};
use crate::wire::control::LogLevel;

/// One order of the agent.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Store(StoreCommand),
    /// To the connection with the relay.
    Bus(BusCommand),
    /// To whoever makes calls and keeps the files of tokens.
    Heartbeat(HeartbeatCommand),
    /// To whoever takes the outbox to the relay.
    Pump(PumpCommand),
    /// To whoever hosts the provider.
    Provider(ProviderCommand),
    Gate(GateCommand),
    /// Something that whoever started the runner has to know: a line on standard error.
    Tell {
        text: String,
    },
    /// A line for the log.
    Log {
        /// Which lines of the log it stands among.
        level: LogLevel,
        /// Component of the log line, for example `bus`.
        component: String,
        text: String,
    },
    /// The runner ends; no effect follows.
    Finish(Outcome),
}

/// A command to the store.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreCommand {
    /// Make these durable together; answered by `Committed` with at least this number.
    Commit(Commit<StoreOp>),
    /// Try the stalled commit again.
    Retry,
    /// Read waiting messages, as many as memory takes.
    FetchInbox(Choice),
    /// Read the head of the outbox, as many rows as one exchange takes.
    FetchOutbox,
}

/// A command to the connection with the relay.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum BusCommand {
    /// Open the bus; one attempt. Boxed: the queue has a place of this size for each command that
    /// it can hold.
    Connect(Box<Access>),
    /// Send this frame; dropped if the connection is gone.
    Send(String),
    /// Close the bus with a normal close frame.
    Disconnect { reason: String },
}

/// A relay, and what opens it.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// The URL, which was checked.
    pub relay: String,
    pub token: Secret,
}

/// A command to whoever makes HTTP calls, one at a time, and keeps the files of tokens.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum HeartbeatCommand {
    /// Make one call; one attempt.
    Call {
        call: CallNumber,
        /// URL of the relay; it was checked.
        relay: String,
        /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
        method: &'static str,
        path: String,
        body: Option<Value>,
        token: Secret,
    },
    /// Look for relay and token in the configuration file.
    ReadConfigToken,
    /// Put this token where the tools inside the session look for it; answered by `TokenWritten`.
    WriteToken {
        /// The agent's own relay token.
        token: Secret,
    },
}

/// Take these rows to the relay, in order; one attempt.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct PumpCommand {
    /// URL of the relay; it was checked.
    pub relay: String,
    pub rows: Vec<QueuedRow>,
    pub token: Secret,
}

/// A command to whoever hosts the provider.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderCommand {
    /// End what an earlier runner left, then start the provider.
    Spawn {
        /// Counts the starts since this runner began.
        process: ProcessNumber,
        /// Fresh random id of this provider process; it stands in the environment of everything
        /// that the provider starts.
        provider_session: String,
        /// Conversation to go on with; empty: none.
        conversation: String,
        /// Why that one cannot be gone on with, if the provider has said so.
        refused: Option<String>,
        /// Id for a new conversation, where the provider lets us choose.
        fresh: String,
        /// Which of the folders for its sockets is used, counted from 0.
        folder: usize,
        /// The provider is a server that is told to listen at a port, since it does not know what
        /// is better.
        at_port: bool,
        token: Option<Secret>,
        /// URL of the relay where it is certain; else its tools look into the configuration file,
        /// as the runner does.
        relay: Option<String>,
        /// What the store says of the last provider.
        leftover: Option<ProviderRecord>,
        /// Socket of the terminal that an earlier runner has started last.
        left_terminal: Option<String>,
    },
    /// A verb for the session. Verbs wait for the disk: one that was made for a process that has
    /// died since must not reach the next one.
    Verb { process: ProcessNumber, number: VerbNumber, verb: Verb },
    /// Stop the provider: politely at first, then by force; 0 = by force at once.
    Stop {
        /// Milliseconds until it is ended by force.
        grace_ms: u64,
    },
}

/// How a runner ended: 0 stopped as asked, 1 the provider failed for good or was given up, 2 wrong
/// use, 70 a bug, 71 the system refused something at the start.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub code: u8,
    /// One sentence, if there is something to say.
    pub message: String,
}

impl Effect {
    /// A frame to the relay.
    pub(super) fn frame(frame: &ClientFrame) -> Effect {
        Effect::Bus(BusCommand::Send(frame.to_text()))
    }

    /// Ends a request of the control port that had stayed.
    pub(super) fn close(peer: PeerId) -> Effect {
        Effect::Gate(GateCommand::PeerClose { peer, code: CLOSE_NORMAL, reason: String::new() })
    }
}

impl From<Commit<StoreOp>> for Effect {
    fn from(commit: Commit<StoreOp>) -> Effect {
        Effect::Store(StoreCommand::Commit(commit))
    }
}
