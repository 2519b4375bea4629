//! Long-lived connections: WebSocket peers of the bus and readers of server-sent events (part of
//! the gate, not a thread).

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::{CloseFrame, Role, WebSocketContext};
use tungstenite::{Error as WsError, Message};

use super::conn::{Conn, Events, Metered, Peer, Pieces, State};
use super::head::STREAM_HEAD;
use super::{Gate, GateEvent, Handled};
use crate::core::cost::Cost;
use crate::core::ids::PeerId;
use crate::core::limits::{FRAMES_REFUSED_MAX, PING_INTERVAL, SILENCE_MAX};
use crate::core::turns::LineId;
use crate::edge::bus::ws_config;
use crate::wire::api::error_body;
use crate::wire::bus::{CLOSE_POLICY, CLOSE_SILENT, CLOSE_TOO_LARGE};

/// Bytes that are read from one peer in one turn of the loop.
const READ_BYTES_PER_TURN: usize = 64 << 10;
/// Bytes of the head of a frame, at most.
const FRAME_HEAD_BYTES: usize = 10;
/// A closing peer has this long to answer the close frame.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// A comment that keeps a stream of events alive through proxies, and shows whether anybody is
/// there.
const STREAM_PING: &str = ": ping\n\n";

impl<E, H: FnMut(GateEvent) -> Handled<E>> Gate<E, H> {
    /// Lets a waiting request stay: a WebSocket if it asked for one, else a stream of events.
    pub(super) fn accept_peer(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            if crate::planted::is("vanished-peer") {
                return;
            }
            // It is gone already, and the state thread knows a peer by its number: it must hear of
            // the end.
            return self.on_event(LineId::STRANGERS, GateEvent::PeerClosed(PeerId(id)));
        };
        let (now, line) = (Instant::now(), conn.line);
        if matches!(conn.state, State::Waiting { .. }) {
            if let Err(text) = self.lines.add_peer(line) {
                self.respond(id, 429, &error_body("too_many_peers", &text).into());
                return self.on_event(line, GateEvent::PeerClosed(PeerId(id)));
            }
            conn.is_peer = true;
        }
        match std::mem::replace(&mut conn.state, State::Gone) {
            State::Waiting { rest, upgrade: Some(answer), .. } => {
                let config = ws_config(self.limits.peer_bytes_max);
                let socket =
                    WebSocketContext::from_partially_read(rest, Role::Server, Some(config));
                let peer = Peer {
                    socket,
                    heard: now,
                    unflushed: false,
                    closing: false,
                    frames: 0,
                    bytes: 0,
                    window: now,
                    paused: None,
                    stalled: false,
                    refused: 0,
                    pieces: Pieces::default(),
                    partial: 0,
                    unsent: 0,
                };
                conn.state = State::Peer(Box::new(peer));
                // A fresh connection takes these few bytes at once.
                if !conn.socket.write(&answer).is_ok_and(|size| size == answer.len()) {
                    return self.remove(id);
                }
                self.unread.insert(id);
            }
            State::Waiting { upgrade: None, head_only: true, .. } => {
                let _ = conn.socket.write(STREAM_HEAD.as_bytes());
                self.remove(id);
                return self.on_event(line, GateEvent::PeerClosed(PeerId(id)));
            }
            State::Waiting { upgrade: None, .. } => {
                conn.state =
                    State::Events(Events { bytes: STREAM_HEAD.into(), at: 0, closing: false });
                self.write_events(id);
            }
            _ => {
                self.remove(id);
                return self.on_event(line, GateEvent::PeerClosed(PeerId(id)));
            }
        }
        self.set_deadline(id, now + PING_INTERVAL);
        self.update_interest(id);
    }

    pub(super) fn read_peer(&mut self, id: u64) {
        let mut left = READ_BYTES_PER_TURN;
        for _ in 0..64 {
            if !self.may_read_peer(id) {
                return self.update_interest(id);
            }
            let Some(Conn { state: State::Peer(peer), socket, line, .. }) = self.conns.get_mut(&id)
            else {
                return;
            };
            let line = *line;
            let mut metered =
                Metered { left, frames: 0, ..Metered::writer(socket, &mut peer.pieces) };
            let read = peer.socket.read(&mut metered);
            let (used, frames) = (left - metered.left, metered.frames);
            left = metered.left;
            let now = Instant::now();
            if now - peer.window >= Duration::from_secs(1) {
                (peer.window, peer.frames, peer.bytes) = (now, 0, 0);
            }
            peer.bytes += used;
            let whole = u32::from(read.is_ok());
            peer.frames += if crate::planted::is("uncounted-pieces") { whole } else { frames };
            peer.partial = if read.is_ok() { 0 } else { peer.partial + used };
            self.lines.charge(line, used, 0);
            match read {
                Ok(message) => {
                    peer.heard = now;
                    match message {
                        Message::Text(text) => {
                            let cost = Cost::of(text.as_bytes());
                            self.lines.charge(line, 0, cost.members);
                            let event = GateEvent::PeerText(PeerId(id), text.to_string(), cost);
                            self.on_event(line, event)
                        }
                        // A pong or a close answer may wait.
                        _ => self.flush_peer(id),
                    }
                }
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if left == 0 {
                        self.unread.insert(id); // there may be more, in the next turn
                    }
                    return self.update_interest(id);
                }
                Err(WsError::Capacity(_)) => {
                    self.close_peer(id, CLOSE_TOO_LARGE, "frame too large");
                    return self.remove(id);
                }
                Err(_) => return self.remove(id),
            }
        }
        self.unread.insert(id);
        self.update_interest(id);
    }

    /// Whether a peer may be read now. One that sends too much rests until its second is over, or
    /// its line has paid; nothing that it sent is lost, and nobody else is slowed down. While too
    /// much of its line waits for the state thread it rests until some of that was taken.
    fn may_read_peer(&mut self, id: u64) -> bool {
        let Some(Conn { state: State::Peer(peer), line, .. }) = self.conns.get_mut(&id) else {
            return false;
        };
        if peer.paused.is_some() {
            return false;
        }
        let (now, line) = (Instant::now(), *line);
        let floods = peer.frames > self.limits.peer_frames_per_second_max
            || peer.bytes > self.limits.peer_bytes_per_second_max;
        let until = if floods {
            self.lines.note_met(line, "frames");
            Some((peer.window + Duration::from_secs(1)).max(now))
        } else {
            let wait = self.lines.wait(line, now);
            wait.map(|(wait, limit)| {
                self.lines.note_met(line, limit);
                now + wait
            })
        };
        if until.is_some() {
            peer.paused = until;
            self.set_deadline(id, until.unwrap_or(now));
            return false;
        }
        let limits = self.lines.class(line).limits();
        let has_room =
            self.lane.has_room(line, limits.waiting_events_max, limits.waiting_bytes_max);
        peer.stalled = !has_room;
        if peer.stalled {
            self.stalled.insert(id);
        }
        !peer.stalled
    }

    /// A text for one who stays: a frame, or events as they are.
    pub(super) fn send_peer(&mut self, id: u64, text: Arc<str>) {
        if let Some(Conn { state: State::Events(events), .. }) = self.conns.get_mut(&id) {
            events.bytes.drain(..std::mem::take(&mut events.at));
            if events.bytes.len() + text.len() > self.limits.peer_bytes_max {
                log::warn!(target: "gate", "reader {id} of events does not read; closed");
                return self.remove(id);
            }
            events.bytes.extend_from_slice(text.as_bytes());
            return self.write_events(id);
        }
        self.send_frame(id, Message::text(&*text));
    }

    /// Answers a frame that is not taken; whoever goes on with such frames is closed.
    pub(super) fn refuse_frame(&mut self, id: u64, answer: String) {
        let Some(Conn { state: State::Peer(peer), .. }) = self.conns.get_mut(&id) else { return };
        peer.refused += 1;
        if peer.refused <= FRAMES_REFUSED_MAX {
            return self.send_frame(id, Message::text(answer));
        }
        self.close_peer(id, CLOSE_POLICY, "too many frames that are too deep or too large");
    }

    fn send_frame(&mut self, id: u64, message: Message) {
        let Some(Conn { state: State::Peer(peer), socket, .. }) = self.conns.get_mut(&id) else {
            return;
        };
        peer.unsent += message.len() + FRAME_HEAD_BYTES;
        let mut metered = Metered::writer(socket, &mut peer.pieces);
        let written = peer.socket.write(&mut metered, message);
        peer.unsent = peer.unsent.saturating_sub(metered.written);
        match written {
            Ok(()) => self.flush_peer(id),
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.flush_peer(id)
            }
            // It does not read: its messages stay unacknowledged and come again.
            Err(_) => {
                log::warn!(target: "gate", "peer {id} does not read; closed");
                self.remove(id);
            }
        }
    }

    pub(super) fn flush_peer(&mut self, id: u64) {
        let Some(Conn { state: State::Peer(peer), socket, .. }) = self.conns.get_mut(&id) else {
            return;
        };
        let mut metered = Metered::writer(socket, &mut peer.pieces);
        let flushed = peer.socket.flush(&mut metered);
        peer.unsent = peer.unsent.saturating_sub(metered.written);
        match flushed {
            Ok(()) => (peer.unflushed, peer.unsent) = (false, 0),
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                peer.unflushed = true
            }
            Err(_) => return self.remove(id),
        }
        self.update_interest(id);
    }

    pub(super) fn close_peer(&mut self, id: u64, code: u16, reason: &str) {
        match self.conns.get_mut(&id) {
            Some(Conn { state: State::Peer(peer), socket, .. }) => {
                let frame = CloseFrame {
                    code: code.into(),
                    reason: reason.chars().take(100).collect::<String>().into(),
                };
                let _ = peer.socket.close(socket, Some(frame));
                peer.closing = true;
                self.set_deadline(id, Instant::now() + CLOSE_LIMIT);
                self.flush_peer(id);
            }
            Some(Conn { state: State::Events(events), .. }) => {
                events.closing = true;
                self.set_deadline(id, Instant::now() + CLOSE_LIMIT);
                self.write_events(id);
            }
            _ => {}
        }
    }

    pub(super) fn write_events(&mut self, id: u64) {
        while let Some(Conn { state: State::Events(events), socket, .. }) = self.conns.get_mut(&id)
        {
            if events.at == events.bytes.len() {
                let closing = events.closing;
                (events.bytes, events.at) = (Vec::new(), 0);
                match socket.flush() {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                        return self.remove(id);
                    }
                    _ if closing => return self.remove(id),
                    _ => break,
                }
            }
            match socket.write(&events.bytes[events.at..]) {
                Ok(size) => events.at += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.remove(id),
            }
        }
        self.update_interest(id);
    }

    /// Drops what a reader of events, or a client that has its answer, still sends; notices its
    /// end.
    pub(super) fn discard_input(&mut self, id: u64) {
        let mut buffer = [0u8; 16 << 10];
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match conn.socket.read(&mut buffer) {
            Ok(0) => self.remove(id),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.remove(id),
        }
    }

    /// The deadline of a long-lived connection: reading goes on after a pause, it is pinged, or it
    /// is given up.
    pub(super) fn on_peer_deadline(&mut self, id: u64, now: Instant) {
        match self.conns.get_mut(&id).map(|conn| &mut conn.state) {
            Some(State::Peer(peer)) if !peer.closing => {
                if peer.paused.take().is_some() {
                    (peer.window, peer.frames, peer.bytes) = (now, 0, 0);
                    self.set_deadline(id, now + PING_INTERVAL);
                    self.unread.insert(id);
                    return self.update_interest(id);
                }
                if peer.stalled {
                    // It is we who do not listen.
                    peer.heard = now;
                }
                let silent_at = peer.heard + SILENCE_MAX;
                if silent_at <= now {
                    self.close_peer(id, CLOSE_SILENT, "silent for too long");
                    return self.remove(id);
                }
                self.set_deadline(id, (now + PING_INTERVAL).min(silent_at));
                self.send_frame(id, Message::Ping(Vec::new().into()));
            }
            Some(State::Events(events)) if !events.closing => {
                self.set_deadline(id, now + PING_INTERVAL);
                self.send_peer(id, STREAM_PING.into());
            }
            _ => self.remove(id),
        }
    }
}
