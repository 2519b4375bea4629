//! One connection of the gate: its socket, its state and its deadline (not a thread).

use std::time::Instant;

use rustix::event::epoll::EventFlags;
use tungstenite::protocol::WebSocketContext;

use super::body::BodyReader;
use crate::core::http::Request;
use crate::core::turns::LineId;
use crate::edge::stream::Stream;

pub(super) struct Conn {
    pub socket: Stream,
    pub state: State,
    /// Whose it is, once a head was complete.
    pub line: LineId,
    /// It counts among the connections of its line.
    pub is_counted: bool,
    /// It counts among those of its line that stay.
    pub is_peer: bool,
    pub deadline: Instant,
    /// What epoll watches it for.
    pub interest: EventFlags,
    /// It has sent more, or its end, while it waits for an answer.
    pub speaks: bool,
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
    /// Pieces of frames and bytes since `window`.
    pub frames: u32,
    pub bytes: usize,
    pub window: Instant,
    /// It sent too much: nothing is read until then.
    pub paused: Option<Instant>,
    /// Too much of its line waits: nothing is read until some of that was taken.
    pub stalled: bool,
    /// Frames that were not taken.
    pub refused: u32,
    /// Counts frames in what is read.
    pub pieces: Pieces,
    /// Bytes of a message that is not complete.
    pub partial: usize,
    /// Bytes that wait to be sent, at most.
    pub unsent: usize,
}

pub(super) struct Events {
    pub bytes: Vec<u8>,
    pub at: usize,
    pub closing: bool,
}

/// Counts the frames that begin in a stream of them: a message may come in pieces without end, and
/// each costs its reading.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    head: [u8; 14],
    have: usize,
    /// Bytes of the payload that are still to come.
    payload: u64,
}

impl Pieces {
    /// Frames whose heads end in these bytes.
    pub fn count(&mut self, mut bytes: &[u8]) -> u32 {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len() as u64);
                self.payload -= skipped;
                bytes = &bytes[skipped as usize..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            let (length, masked) = (self.head[1] & 0x7f, self.head[1] & 0x80 != 0);
            let extended = match length {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            if self.have < 2 || self.have < 2 + extended + 4 * usize::from(masked) {
                continue;
            }
            self.payload = match extended {
                0 => length.into(),
                _ => self.head[2..2 + extended]
                    .iter()
                    .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
            };
            self.have = 0;
            begun += 1;
        }
        begun
    }
}

/// A socket as its WebSocket sees it. Bounds what is read at a time: a message of endless empty
/// pieces must not occupy the loop. Counts what is read and written.
pub(super) struct Metered<'a> {
    pub socket: &'a mut Stream,
    pub pieces: &'a mut Pieces,
    pub left: usize,
    pub frames: u32,
    pub written: usize,
}

impl Metered<'_> {
    /// Nothing is read by it.
    pub fn writer<'a>(socket: &'a mut Stream, pieces: &'a mut Pieces) -> Metered<'a> {
        Metered { socket, pieces, left: 0, frames: 0, written: 0 }
    }
}

impl std::io::Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        let most = buffer.len().min(self.left);
        let size = self.socket.read(&mut buffer[..most])?;
        self.left -= size;
        self.frames += self.pieces.count(&buffer[..size]);
        Ok(size)
    }
}

impl std::io::Write for Metered<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let size = self.socket.write(bytes)?;
        self.written += size;
        Ok(size)
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
                    let rests = peer.paused.is_some() || peer.stalled;
                    let reads = if rests { EventFlags::empty() } else { EventFlags::IN };
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
            State::Peer(peer) => peer.partial + peer.unsent,
            State::Draining | State::Gone => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the stream is cut, each frame counts once.
    #[test]
    fn frames_are_counted_in_every_cut() {
        let mut stream = Vec::new();
        for (length, head) in [
            (0usize, vec![0x81u8, 0x80, 1, 2, 3, 4]),
            (5, vec![0x01, 0x85, 1, 2, 3, 4]),
            (0, vec![0x00, 0x80, 1, 2, 3, 4]),
            (300, vec![0x80, 0xfe, 1, 44, 1, 2, 3, 4]),
            (70_000, vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0x11, 0x70, 1, 2, 3, 4]),
            (2, vec![0x89, 2]),
        ] {
            stream.extend(head);
            stream.extend(vec![0xffu8; length]);
        }
        for cut in [1, 2, 3, 7, 1000, stream.len()] {
            let mut pieces = Pieces::default();
            let counted: u32 = stream.chunks(cut).map(|bytes| pieces.count(bytes)).sum();
            assert_eq!(counted, 6, "in pieces of {cut}");
        }
    }
}
