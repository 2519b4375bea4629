//! What can happen to an agent.

use serde_json::Value;

use super::prompt_text::cut;
use super::store::{InboxMessage, QueuedRow, Snapshot};
use crate::core::Cause;
use crate::core::ids::{CallNumber, MessageId, ProcessRef, Ticket};
use crate::core::session::{SessionEvent, Signs, StartFault};
use crate::core::store::StoreError;
use crate::secret::Secret;
use crate::wire::bus::RelayFrame;

/// Lanes of the state thread, one for each edge.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Store,
    Control,
    Bus,
    Heartbeat,
    Pump,
    Provider,
    /// Signals and the end of threads.
    Main,
}

impl crate::core::Lane for Lane {
    const ALL: &'static [Lane] = &[
        Lane::Store,
        Lane::Control,
        Lane::Bus,
        Lane::Heartbeat,
        Lane::Pump,
        Lane::Provider,
        Lane::Main,
    ];
}

/// One event of the agent.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Store(StoreEvent),
    /// From the control port; the ticket is answered by an effect.
    Control(Ticket, ControlRequest),
    Bus(BusEvent),
    /// An HTTP call came back.
    Called {
        call: CallNumber,
        /// Status and body, or why there is none.
        result: Result<(u16, Value), Cause>,
    },
    /// The pump came back: one answer per row, in order, or why the whole exchange failed.
    Pumped(Result<Vec<RowAnswer>, Cause>),
    Provider(ProviderEvent),
    /// The token in the configuration file, looked up after ours expired.
    ConfigToken {
        /// The relay that it names, if it can be used.
        url: Option<String>,
        token: Option<Secret>,
    },
    /// The token stands where the tools inside the session look for it, or why not.
    TokenWritten(Result<(), String>),
    /// Somebody wants the runner to end.
    StopRequested(StopReason),
    /// A thread ended although nobody told it to.
    ThreadEnded {
        name: String,
        /// What it said when it panicked.
        panic: Option<String>,
    },
}

impl From<BusEvent> for Event {
    fn from(event: BusEvent) -> Event {
        Event::Bus(event)
    }
}

impl Event {
    /// One short line for the ring of recent events; bodies stay out of it.
    pub fn summary(&self) -> String {
        match self {
            Event::Store(StoreEvent::Restored(_)) => "store restored".into(),
            Event::Store(StoreEvent::Committed { upto, .. }) => {
                format!("store committed upto={upto}")
            }
            Event::Store(StoreEvent::Stalled(cause)) => format!("store stalled: {cause}"),
            Event::Store(StoreEvent::Broken(error)) => format!("store broken: {error}"),
            Event::Store(StoreEvent::InboxRows { rows, .. }) => {
                format!("store inbox rows={}", rows.len())
            }
            Event::Store(StoreEvent::OutboxRows { rows }) => {
                format!("store outbox rows={}", rows.as_ref().map_or(0, Vec::len))
            }
            Event::Control(ticket, request) => {
                format!("control {} ticket={ticket}", request.name())
            }
            Event::Bus(BusEvent::Framed(frame)) => match frame {
                RelayFrame::Event { seq, event, .. } => format!("bus event {event} seq={seq}"),
                RelayFrame::Command { id, .. } => format!("bus command id={id}"),
                RelayFrame::Error { code, .. } => format!("bus error {code}"),
                RelayFrame::Registered { .. } => "bus registered".into(),
                RelayFrame::Ack { .. } => "bus ack".into(),
            },
            Event::Bus(BusEvent::FramedInPart(..)) => "bus frame read in part".into(),
            Event::Bus(BusEvent::Connected) => "bus connected".into(),
            Event::Bus(BusEvent::Lost(cause)) => format!("bus lost: {cause}"),
            Event::Called { call, result } => match result {
                Ok((status, _)) => format!("call {call} answered {status}"),
                Err(cause) => format!("call {call} failed: {cause}"),
            },
            Event::Pumped(Ok(rows)) => format!("pumped rows={}", rows.len()),
            Event::Pumped(Err(cause)) => format!("pump failed: {cause}"),
            Event::Provider(ProviderEvent::Session(signal)) => {
                format!("provider {}", signal.name())
            }
            Event::Provider(ProviderEvent::Probed(_)) => "provider Probed".into(),
            Event::Provider(ProviderEvent::Spawned { process, .. }) => {
                format!("provider Spawned pid={}", process.pid)
            }
            Event::Provider(ProviderEvent::SpawnFailed { reason, fault }) => {
                format!("provider SpawnFailed {fault:?}: {}", cut(reason, 120))
            }
            Event::Provider(ProviderEvent::Exited { code, .. }) => {
                format!("provider Exited code={code}")
            }
            Event::ConfigToken { url, token } => {
                format!("config read relay={} token={}", url.is_some(), token.is_some())
            }
            Event::TokenWritten(result) => format!("token file written ok={}", result.is_ok()),
            Event::StopRequested(reason) => format!("stop requested: {}", reason.name()),
            Event::ThreadEnded { name, .. } => format!("thread ended: {name}"),
        }
    }
}

/// Answers of the store.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum StoreEvent {
    /// Always the first event: the agent starts from what was durable.
    Restored(Box<Snapshot>),
    /// All commits up to this number are durable.
    Committed {
        upto: u64,
        /// What the bound of the outbox made the store drop: class and rows.
        dropped: Vec<(String, u64)>,
    },
    /// The commit does not succeed for now; the store tries again when told to.
    Stalled(Cause),
    /// The store is damaged or gone: nothing more is durable.
    Broken(StoreError),
    /// Waiting messages, as they were asked for.
    InboxRows {
        /// As many as memory takes; those of one sender are the oldest, in order.
        rows: Vec<InboxMessage>,
        more: bool,
    },
    /// The head of the outbox.
    OutboxRows {
        /// In order of sequence, or why they cannot be read.
        rows: Result<Vec<QueuedRow>, Cause>,
    },
}

/// What the bus did.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum BusEvent {
    /// The socket is up and upgraded; nothing is registered yet.
    Connected,
    Framed(RelayFrame),
    /// A frame of which only a part can be read, and why.
    FramedInPart(RelayFrame, String),
    /// The connection is gone or never came to be.
    Lost(Cause),
}

/// What the relay answered to one outbox row; code and text are empty without an error.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct RowAnswer {
    pub seq: u64,
    pub status: u16,
    pub code: String,
    pub error: String,
}

/// What the provider's process did.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderEvent {
    /// The process runs.
    Spawned {
        /// The process, whose pid is also that of its group.
        process: ProcessRef,
        /// Socket of its terminal, if it has one.
        terminal: Option<String>,
    },
    /// The process cannot be started.
    SpawnFailed {
        /// One sentence for people, which names the cure.
        reason: String,
        /// What kind of cause it is.
        fault: StartFault,
    },
    /// An event of the session machine.
    Session(SessionEvent),
    /// What is seen of the process from outside, as [`Verb::Probe`](crate::core::session::Verb)
    /// asked.
    Probed(Signs),
    /// The process ended, and with it everything it had started.
    Exited {
        /// Exit code; 128 + signal if it was killed.
        code: i32,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
}

/// What is asked at the control port.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum ControlRequest {
    /// `GET /status`: all that the runner knows of itself.
    Status,
    /// `POST /status`: a hook says what the provider does.
    StatusPosted(Value),
    /// `POST /hook-fatal`: a hook broke.
    HookFatal {
        hook: String,
        error: String,
    },
    /// `GET /reply-obligations`: answered at once, from memory.
    Obligations,
    /// `GET /terminal/attach-spec`: how a person attaches to the terminal.
    AttachSpec,
    /// `POST /messages`: the agent says something through its runner.
    Message(Value),
    /// `POST /messages/{id}/reactions`: the same for a reaction.
    Reaction {
        message: MessageId,
        /// Body of the relay's call.
        body: Value,
    },
    /// `GET /messages/{id}`: which message of that number this agent was given.
    Given(MessageId),
    /// `PUT /token`: another relay token.
    TokenOffered(Secret),
    /// `POST /stop`: what `--replace` asks for.
    Stop,
    /// `POST /hook/<event>`: a hook of the provider with all that it was told.
    Hook {
        event: String,
        /// `{providerSessionId?, payload}`.
        body: Value,
        /// The provider waits for a decision.
        waits: bool,
    },
    /// `/monitor`: a monitor of the provider connects.
    Monitor {
        /// Provider process that it belongs to, if it says so.
        session: Option<String>,
    },
    MonitorSaid(String),
    /// A hook that waited or a monitor has gone.
    Gone,
}

impl ControlRequest {
    /// The word for it in the ring of recent events.
    pub fn name(&self) -> &'static str {
        match self {
            ControlRequest::Status => "status",
            ControlRequest::StatusPosted(_) => "status-posted",
            ControlRequest::HookFatal { .. } => "hook-fatal",
            ControlRequest::Obligations => "reply-obligations",
            ControlRequest::AttachSpec => "attach-spec",
            ControlRequest::Message(_) => "message",
            ControlRequest::Reaction { .. } => "reaction",
            ControlRequest::Given(_) => "given",
            ControlRequest::TokenOffered(_) => "token-offered",
            ControlRequest::Stop => "stop",
            ControlRequest::Hook { .. } => "hook",
            ControlRequest::Monitor { .. } => "monitor",
            ControlRequest::MonitorSaid(_) => "monitor-said",
            ControlRequest::Gone => "gone",
        }
    }
}

/// Why the runner is to end.
#[derive(Debug, Clone, PartialEq)]
pub enum StopReason {
    /// SIGTERM, as services get it.
    Terminated,
    /// SIGINT, as Ctrl-C sends it.
    Interrupted,
    /// SIGHUP: the terminal went away.
    HungUp,
    /// Somebody ended the provider at its own terminal.
    Left,
    /// `--replace` of another runner.
    Replaced,
}

impl StopReason {
    /// Word for the log and the ring of events.
    pub fn name(&self) -> &'static str {
        match self {
            StopReason::Terminated => "Terminated",
            StopReason::Interrupted => "Interrupted",
            StopReason::HungUp => "HungUp",
            StopReason::Left => "Left",
            StopReason::Replaced => "Replaced",
        }
    }
}
