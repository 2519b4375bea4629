//! What an agent wants done, as orders to the edges.

use serde_json::Value;

use super::store::{Batch, Choice, ProviderRecord, StoreOp};
use crate::core::commit::Commit;
use crate::core::ids::{CallNumber, PeerId, ProcessNumber, Ticket, VerbNumber};
use crate::core::session::Verb;
use crate::secret::Secret;
use crate::wire::bus::ClientFrame;
use crate::wire::control::LogLevel;

/// One order of the agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make these durable together; answered by `Committed` with at least this number.
    Commit {
        /// Ascending.
        number: u64,
        /// One transaction.
        ops: Vec<StoreOp>,
    },
    /// Try the stalled commit again.
    RetryStore,
    /// Read waiting messages, as many as memory takes.
    FetchInbox(Choice),
    /// Read the head of the outbox, as many rows as one exchange takes.
    FetchOutbox,
    /// Open the bus.
    Connect {
        /// Token for the upgrade.
        token: Secret,
    },
    /// Send a frame; dropped if the connection is gone.
    Send(ClientFrame),
    /// Close the bus with a normal close frame.
    Disconnect {
        /// For the log and the peer.
        reason: String,
    },
    /// Make one HTTP call; one attempt.
    Call {
        /// Number for the answer.
        call: CallNumber,
        /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
        method: &'static str,
        /// With the query.
        path: String,
        /// JSON body.
        body: Option<Value>,
        /// Token to use.
        token: Secret,
    },
    /// Send these rows, in order; one attempt.
    Pump {
        /// The rows.
        rows: Vec<Batch>,
        /// Token to use.
        token: Secret,
    },
    /// End what an earlier life left, then start the provider.
    Spawn {
        /// Number of the process in this runner's life.
        process: ProcessNumber,
        /// Fresh random id of this provider process; it stands in the environment of everything that the provider starts.
        provider_session: String,
        /// Conversation to go on with; empty: none.
        conversation: String,
        /// Id for a new conversation, where the provider lets us choose.
        fresh: String,
        /// Token for its environment.
        token: Option<Secret>,
        /// Whether it is certain which relay that is; else its tools look into the configuration file, as the runner does.
        relay_is_known: bool,
        /// What the store says of the last provider.
        leftover: Option<ProviderRecord>,
    },
    /// A verb for the session of one process: a verb that waited for the disk while its process died must not reach the
    /// next one.
    Verb {
        /// Number of the process.
        process: ProcessNumber,
        /// Number for the answer.
        number: VerbNumber,
        /// The verb.
        verb: Verb,
    },
    /// Stop the provider: politely for that long, then by force (ms); 0 = by force at once.
    StopProvider {
        /// Patience.
        grace_ms: u64,
    },
    /// Look for a token in the configuration file, after ours expired.
    ReadConfigToken,
    /// Put this token where the tools inside the session look for it; answered by `TokenWritten`.
    WriteToken {
        /// The agent's own relay token.
        token: Secret,
    },
    /// From now on connections and calls go to another relay.
    Relay {
        /// Its URL; it was checked.
        url: String,
    },
    /// Something that whoever started the runner has to know: a line on standard error.
    Tell {
        /// One sentence.
        text: String,
    },
    /// Answer a request of the control port.
    Reply {
        /// Which one.
        ticket: Ticket,
        /// HTTP status.
        status: u16,
        /// JSON body.
        body: Value,
    },
    /// Keep a request of the control port open, as a stream or a WebSocket.
    Stay {
        /// Which one; from now on the number of the peer.
        ticket: Ticket,
    },
    /// Send a text to a peer of the control port.
    Say {
        /// Whom.
        peer: PeerId,
        /// The text.
        text: String,
    },
    /// Close a peer of the control port.
    Part {
        /// Whom.
        peer: PeerId,
    },
    /// A line for the log.
    Log {
        /// Which lines of the log it stands among.
        level: LogLevel,
        /// Component of the log line, for example `bus`.
        component: String,
        /// Text.
        text: String,
    },
    /// Always last.
    Finish(Outcome),
}

/// How a runner ended: 0 stopped as asked, 1 the provider failed for good or was given up, 2 wrong use, 70 a bug, 71 the
/// system refused something at the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Exit code.
    pub code: u8,
    /// One sentence, if there is something to say.
    pub message: String,
}

impl From<Commit<StoreOp>> for Effect {
    fn from(Commit { number, ops }: Commit<StoreOp>) -> Effect {
        Effect::Commit { number, ops }
    }
}
