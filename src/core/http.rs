//! Requests and answers as values, so that routes are decisions and sockets are somebody else's.

use std::sync::Arc;

use serde_json::Value;

use super::cost::Cost;
use super::ids::{PeerId, Ticket};
use super::limits::{AGENT_LINE, CONTROL_LINE, LineLimits, PEOPLE_LINE, STRANGERS_LINE};
use super::mcp::Headers;
use super::turns::Row;

/// An HTTP request, or the head of a WebSocket upgrade.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// Upper case.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without `?`.
    pub query: String,
    /// Token of either header.
    pub token: String,
    /// `Last-Event-ID` of a reader of events that comes back.
    pub last_event_id: String,
    /// What the headers of a call of a tool say of its body.
    pub mcp: Headers,
    pub body: Vec<u8>,
    /// What the body costs as JSON.
    pub cost: Cost,
    /// How the gate was when the request came.
    pub gate: GateStats,
}

/// Whose a token line is: that decides its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineClass {
    /// Without a valid token.
    Stranger,
    /// An agent's.
    Agent,
    /// Of people, devices and orchestrators.
    People,
    /// A connection of a control port.
    Control,
}

impl LineClass {
    /// Its limits.
    pub fn limits(self) -> &'static LineLimits {
        match self {
            LineClass::Stranger => &STRANGERS_LINE,
            LineClass::Agent => &AGENT_LINE,
            LineClass::People => &PEOPLE_LINE,
            LineClass::Control => &CONTROL_LINE,
        }
    }
}

/// The line that has met limits most often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greedy {
    /// Id of its first token.
    pub line: Arc<str>,
    /// How often.
    pub met: u64,
    /// The limit that it met last.
    pub limit: &'static str,
}

/// Counts of a gate since its start, and what it holds now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GateStats {
    /// Open connections.
    pub open: u64,
    /// Connections without a complete head, idle ones included.
    pub headless: u64,
    /// Bytes of bodies and answers that are held.
    pub held_bytes: u64,
    /// Connections taken.
    pub accepted: u64,
    /// Connections closed to make room.
    pub evicted: u64,
    /// Connections refused because there was no room.
    pub refused: u64,
    /// Connections closed because they did not keep a time limit.
    pub timed_out: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// Times that a line met a limit: an answer 429, a close with 1008, or a pause.
    pub limited: u64,
    /// The line that has met most.
    pub greedy: Option<Greedy>,
    /// Most bytes that one line of an agent has held.
    pub line_held_max: u64,
    /// The most that was taken of one line in a row while others waited.
    pub row: Row,
}

/// Body of an answer.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Empty,
    Json(Value),
    /// Text of a media type.
    Text(&'static str, String),
}

/// A command to a gate: the hub's, or the control port of a runner.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub enum GateCommand {
    /// Answer a request.
    Respond { ticket: Ticket, status: u16, body: Body },
    /// Let a request stay: as a WebSocket if it asked for one, else as a stream of events. Its
    /// ticket is its number as a peer from now on.
    Accept { ticket: Ticket },
    /// Send a text frame, or text into a stream of events. All who get the same share it.
    PeerSend { peer: PeerId, text: Arc<str> },
    /// A token is valid: its hash, its line and whose that is.
    TokenKnown { hash: String, line: Arc<str>, class: LineClass },
    /// A token is not valid any more.
    TokenGone { hash: String },
    /// Close a peer, with the code of a WebSocket.
    PeerClose { peer: PeerId, code: u16, reason: String },
}

impl Body {
    /// What it says as JSON; null where that is nothing.
    pub fn to_json(&self) -> Value {
        match self {
            Body::Empty => Value::Null,
            Body::Json(value) => value.clone(),
            Body::Text(_, text) => serde_json::from_str(text).unwrap_or_default(),
        }
    }
}

impl From<Value> for Body {
    fn from(value: Value) -> Body {
        if value.is_null() { Body::Empty } else { Body::Json(value) }
    }
}
