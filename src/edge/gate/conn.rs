//! One connection of the gate: its socket, its state and its deadline (not a thread).

use std::time::Instant;

use rustix::event::epoll::EventFlags;
use tungstenite::protocol::WebSocketContext;

use super::body::BodyReader;
use crate::core::http::Request;
use crate::edge::stream::Stream;

pub(super) struct Conn {
    pub socket: Stream,
    pub state: State,
    pub deadline: Instant,
    /// What epoll watches it for.
    pub interest: EventFlags,
    /// Bytes of bodies and answers that count for it.
    pub held: usize,
    /// Since when it holds more than a little.
    pub holds_since: Option<Instant>,
    /// Since when a body is being read.
    pub body_since: Option<Instant>,
}

pub(super) enum State {
    /// Bytes of a head so far.
    Head(Vec<u8>),
    /// A head and its body so far.
    Body { request: Request, upgrade: Option<Vec<u8>>, then: AfterResponse, body: BodyReader },
    /// With the state thread; `upgrade` is the answer that makes it a WebSocket.
    Waiting {
        then: AfterResponse,
        head_only: bool,
        rest: Vec<u8>,
        upgrade: Option<Vec<u8>>,
        body_bytes: usize,
    },
    /// An answer on its way out.
    Writing { bytes: Vec<u8>, at: usize, then: AfterResponse, rest: Vec<u8> },
    /// Answered. What it still sends is read and dropped for a moment, else the answer would be
    /// lost in a reset.
    Draining,
    /// A WebSocket peer.
    Peer(Box<Peer>),
    /// A reader of server-sent events.
    Events(Events),
    /// To be removed.
    Gone,
}

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterResponse {
    /// The next request is read.
    KeepAlive,
    /// The connection is closed.
    Close,
    /// It is closed, though the peer may still be sending.
    Drain,
}

pub(super) struct Peer {
    pub socket: WebSocketContext,
    pub heard: Instant,
    pub unflushed: bool,
    pub closing: bool,
    /// Frames and bytes since `window`.
    pub frames: u32,
    pub bytes: usize,
    pub window: Instant,
    /// It sent too much: nothing is read until then.
    pub paused: Option<Instant>,
}

pub(super) struct Events {
    pub bytes: Vec<u8>,
    pub at: usize,
    pub closing: bool,
}

/// Bounds what is read at a time: a message of endless empty pieces must not occupy the loop.
pub(super) struct BoundedReader<'a> {
    pub socket: &'a mut Stream,
    pub left: usize,
}

impl std::io::Read for BoundedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        let most = buffer.len().min(self.left);
        let size = self.socket.read(&mut buffer[..most])?;
        self.left -= size;
        Ok(size)
    }
}

impl std::io::Write for BoundedReader<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

impl Conn {
    /// What epoll has to watch it for now.
    pub fn wanted(&self) -> EventFlags {
        let unsent = if self.socket.has_unsent() { EventFlags::OUT } else { EventFlags::empty() };
        unsent
            | match &self.state {
                State::Head(_) | State::Body { .. } | State::Draining => EventFlags::IN,
                State::Waiting { .. } | State::Gone => EventFlags::empty(),
                State::Writing { .. } => EventFlags::OUT,
                State::Peer(peer) => {
                    let reads =
                        if peer.paused.is_none() { EventFlags::IN } else { EventFlags::empty() };
                    reads | if peer.unflushed { EventFlags::OUT } else { EventFlags::empty() }
                }
                State::Events(events) if events.at < events.bytes.len() => {
                    EventFlags::IN | EventFlags::OUT
                }
                State::Events(_) => EventFlags::IN,
            }
    }

    /// Bytes that it holds now.
    pub fn holds(&self) -> usize {
        match &self.state {
            State::Head(bytes) => bytes.capacity(),
            State::Body { body, .. } => body.held(),
            State::Waiting { rest, body_bytes, .. } => rest.capacity() + body_bytes,
            State::Writing { bytes, rest, .. } => bytes.capacity() + rest.capacity(),
            State::Events(events) => events.bytes.capacity(),
            State::Peer(_) | State::Draining | State::Gone => 0,
        }
    }
}
