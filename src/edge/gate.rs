//! Thread `gate`: everything that listens. One epoll loop accepts, reads heads and bodies with limits and deadlines,
//! hands requests to a handler, writes answers, and carries WebSocket peers, all without blocking.
//!
//! A stalled or hostile connection costs its buffer and nothing else: there are no workers that it could hold. Requests
//! wait in the table of tickets until the state thread answers them.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::epoll;
use serde_json::Value;
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Error as WsError, Message, WebSocket};

use super::bus::ws_config;
use super::head::{Head, parse_head, response, upgrade_request};
use crate::core::hub::event::Request;
use crate::core::limits::{PING_INTERVAL, SILENCE_MAX};
use crate::os::Waker;
use crate::wire::api::error_body;
use crate::wire::bus::{CLOSE_SILENT, CLOSE_TOO_LARGE};

/// Limits of a gate.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request head.
    pub head_bytes_max: usize,
    /// A head must be complete in that time.
    pub head_time: Duration,
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// A body must be complete in that time.
    pub body_time: Duration,
    /// An idle kept connection is closed after this.
    pub idle_time: Duration,
    /// The peer must take an answer in that time.
    pub write_time: Duration,
    /// The state thread must answer in that time, else 504.
    pub answer_time: Duration,
    /// Connections without a complete head; the oldest goes beyond it.
    pub headless_max: usize,
    /// Connections in all.
    pub connections_max: usize,
    /// Unsent bytes of one bus peer; beyond it the peer is closed.
    pub peer_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes_max: 16 << 10,
            head_time: Duration::from_secs(5),
            body_bytes_max: (1 << 20) + 4096,
            body_time: Duration::from_secs(15),
            idle_time: Duration::from_secs(60),
            write_time: Duration::from_secs(15),
            answer_time: Duration::from_secs(30),
            headless_max: 512,
            connections_max: 8192,
            peer_bytes_max: 8 << 20,
        }
    }
}

/// What the handler says to a request.
pub enum Verdict<E> {
    /// Answered here and now.
    Answer(u16, Value),
    /// An event for the state thread, which answers by its ticket.
    Event(E),
    /// An event for the state thread, and an answer that does not depend on it.
    Tell(E, u16, Value),
}

/// What happens at the gate.
#[derive(Debug)]
pub enum Happening {
    /// A request.
    Request(u64, Request),
    /// Somebody wants the bus: ticket and the number that the peer will have.
    Upgrade(u64, u64, Request),
    /// A text frame.
    PeerText(u64, String),
    /// A peer is gone.
    PeerClosed(u64),
}

/// One order.
#[derive(Debug)]
pub enum Order {
    /// Answer a request.
    Respond {
        /// Which one.
        ticket: u64,
        /// HTTP status.
        status: u16,
        /// JSON body; null = none.
        body: Value,
    },
    /// Let a peer onto the bus.
    Accept {
        /// Its request.
        ticket: u64,
        /// Its number.
        peer: u64,
    },
    /// Send a text frame.
    PeerSend {
        /// To whom.
        peer: u64,
        /// The text.
        text: String,
    },
    /// Close a peer.
    PeerClose {
        /// Whom.
        peer: u64,
        /// WebSocket close code.
        code: u16,
        /// Reason.
        reason: String,
    },
}

/// Orders of one turn.
pub type Orders = Vec<Order>;

enum State {
    /// Bytes of a head so far.
    Head(Vec<u8>),
    /// A head and its body so far.
    Body { request: Request, upgrade: bool, wanted: usize, keep: bool, bytes: Vec<u8> },
    /// With the state thread.
    Waiting { keep: bool, rest: Vec<u8>, upgrade: Option<Box<tungstenite::handshake::server::Request>> },
    /// An answer on its way out.
    Writing { bytes: Vec<u8>, at: usize, keep: bool, rest: Vec<u8> },
    /// On the bus.
    Peer(Box<Peer>),
    /// To be removed.
    Gone,
}

struct Peer {
    socket: WebSocket<TcpStream>,
    heard: Instant,
    pinged: Instant,
    unflushed: bool,
    closing: bool,
}

struct Conn {
    /// The socket; the WebSocket of a peer holds its own handle of it.
    socket: TcpStream,
    state: State,
    deadline: Instant,
    wants_out: bool,
}

const LISTENER: u64 = 0;
const WAKER: u64 = 1;
const FIRST: u64 = 2;

/// The loop.
pub struct Gate<E, H> {
    listener: TcpListener,
    limits: Limits,
    handler: H,
    orders: Receiver<Orders>,
    waker: Waker,
    lane: Sender<E>,
    epoll: OwnedFd,
    conns: HashMap<u64, Conn>,
    deadlines: BTreeSet<(Instant, u64)>,
    headless: BTreeSet<u64>,
    next: u64,
    /// Peers with frames that are read from the socket but not handed on yet.
    more: BTreeSet<u64>,
    /// The listener rests until a connection goes: no descriptors are left.
    resting: Option<Instant>,
    alive: bool,
}

/// Binds a listener for a gate.
pub fn listen(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl<E, H: FnMut(Happening) -> Verdict<E>> Gate<E, H> {
    /// A gate that waits for [`Gate::run`].
    pub fn new(
        listener: TcpListener,
        limits: Limits,
        handler: H,
        orders: Receiver<Orders>,
        waker: Waker,
        lane: Sender<E>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN)?;
        Ok(Gate {
            listener,
            limits,
            handler,
            orders,
            waker,
            lane,
            epoll,
            conns: HashMap::new(),
            deadlines: BTreeSet::new(),
            headless: BTreeSet::new(),
            next: FIRST,
            more: BTreeSet::new(),
            resting: None,
            alive: true,
        })
    }

    /// Body of the thread; ends when nobody gives orders any more.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        while self.alive {
            events.clear();
            let limit = self.timeout();
            let limit = limit.map(|left| rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), limit.as_ref());
            for event in events.iter().map(|e: &epoll::Event| (e.data.u64(), e.flags)) {
                match event {
                    (LISTENER, _) => self.accept(),
                    (WAKER, _) => {
                        self.waker.clear();
                        self.take_orders();
                    }
                    (id, flags) => {
                        if flags.intersects(epoll::EventFlags::OUT) {
                            self.on_writable(id);
                        }
                        let broken = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                        let deaf = matches!(self.conns.get(&id).map(|c| &c.state), Some(State::Waiting { .. } | State::Writing { .. }));
                        if broken && deaf {
                            self.remove(id); // nobody is there to hear the answer
                        } else if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                            self.on_readable(id);
                        }
                    }
                }
            }
            for id in std::mem::take(&mut self.more) {
                if matches!(self.conns.get(&id).map(|c| &c.state), Some(State::Head(bytes)) if !bytes.is_empty()) {
                    self.advance(id);
                }
                self.on_readable(id);
            }
            self.expire();
        }
        // Peers see the close frame if their socket takes it at once.
        for (_, conn) in self.conns.iter_mut() {
            if let State::Peer(peer) = &mut conn.state {
                let _ = peer.socket.flush();
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.more.is_empty() {
            return Some(Duration::ZERO);
        }
        let first = self.deadlines.first().map(|(at, _)| *at).into_iter().chain(self.resting).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn take_orders(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(orders) => self.carry_out(orders),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.alive = false;
                    return;
                }
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..64 {
            match self.listener.accept() {
                Ok((socket, _)) => self.welcome(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.raw_os_error(), Some(23 | 24)) => {
                    // Out of descriptors: rest for a moment instead of spinning, and make room.
                    if let Some(oldest) = self.headless.first().copied() {
                        self.remove(oldest);
                    }
                    let _ = epoll::delete(&self.epoll, &self.listener);
                    self.resting = Some(Instant::now() + Duration::from_millis(100));
                    return;
                }
                Err(_) => {}
            }
        }
    }

    fn welcome(&mut self, socket: TcpStream) {
        let usable = socket.set_nonblocking(true).is_ok() && socket.set_nodelay(true).is_ok();
        if !usable || self.conns.len() >= self.limits.connections_max {
            return;
        }
        while self.headless.len() >= self.limits.headless_max {
            let Some(oldest) = self.headless.first().copied() else {
                break;
            };
            self.remove(oldest);
        }
        let id = self.next;
        self.next += 1;
        if epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN).is_err() {
            return;
        }
        let deadline = Instant::now() + self.limits.head_time;
        self.conns.insert(id, Conn { socket, state: State::Head(Vec::new()), deadline, wants_out: false });
        self.deadlines.insert((deadline, id));
        self.headless.insert(id);
        self.on_readable(id);
    }

    fn remove(&mut self, id: u64) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        let _ = epoll::delete(&self.epoll, &conn.socket);
        self.deadlines.remove(&(conn.deadline, id));
        self.headless.remove(&id);
        self.more.remove(&id);
        if matches!(conn.state, State::Peer(_)) {
            self.tell(Happening::PeerClosed(id));
        }
    }

    fn set_deadline(&mut self, id: u64, deadline: Instant) {
        if let Some(conn) = self.conns.get_mut(&id) {
            self.deadlines.remove(&(conn.deadline, id));
            conn.deadline = deadline;
            self.deadlines.insert((deadline, id));
        }
    }

    fn want_out(&mut self, id: u64, wants: bool) {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.wants_out != wants) else {
            return;
        };
        conn.wants_out = wants;
        let flags = if wants { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        let _ = epoll::modify(&self.epoll, &conn.socket, epoll::EventData::new_u64(id), flags);
    }

    /// Hands something to the state thread, or answers it at once.
    fn tell(&mut self, happening: Happening) {
        let ticket = match &happening {
            Happening::Request(ticket, _) | Happening::Upgrade(ticket, ..) => Some(*ticket),
            Happening::PeerText(..) | Happening::PeerClosed(_) => None,
        };
        match ((self.handler)(happening), ticket) {
            (Verdict::Answer(status, body), Some(ticket)) => self.respond(ticket, status, &body),
            (Verdict::Answer(..), None) => {}
            (Verdict::Event(event), _) => self.report(event),
            (Verdict::Tell(event, status, body), ticket) => {
                self.report(event);
                if let Some(ticket) = ticket {
                    self.respond(ticket, status, &body);
                }
            }
        }
    }

    fn report(&mut self, event: E) {
        let mut late = Vec::new();
        self.alive &= super::report(&self.lane, &self.orders, event, |orders| late.push(orders));
        for orders in late {
            self.carry_out(orders);
        }
    }

    // ---- requests

    fn on_readable(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        match &mut conn.state {
            State::Peer(_) => self.read_peer(id),
            State::Head(_) | State::Body { .. } => self.read_request(id),
            State::Waiting { .. } | State::Writing { .. } => {
                // Nothing is expected now: either more requests in advance, or the end.
                let mut probe = [0u8; 1];
                match conn.socket.peek(&mut probe) {
                    Ok(0) => self.remove(id),
                    Ok(_) => {
                        let _ = epoll::modify(&self.epoll, &conn.socket, epoll::EventData::new_u64(id), epoll::EventFlags::empty());
                        conn.wants_out = true; // so that the next state sets its own interest
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => self.remove(id),
                }
            }
            State::Gone => {}
        }
    }

    fn read_request(&mut self, id: u64) {
        let mut buffer = [0u8; 16 << 10];
        for _ in 0..64 {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let bytes = match &mut conn.state {
                State::Head(bytes) | State::Body { bytes, .. } => bytes,
                _ => return,
            };
            match conn.socket.read(&mut buffer) {
                Ok(0) => return self.remove(id),
                Ok(size) => {
                    bytes.extend_from_slice(&buffer[..size]);
                    self.advance(id);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.remove(id),
            }
        }
        self.more.insert(id);
    }

    /// Looks whether a head or a body is complete.
    fn advance(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        match std::mem::replace(&mut conn.state, State::Gone) {
            State::Head(bytes) => match parse_head(&bytes, self.limits.head_bytes_max, self.limits.body_bytes_max) {
                Head::Partial => {
                    let too_large = bytes.len() > self.limits.head_bytes_max;
                    conn.state = State::Head(bytes);
                    if too_large {
                        self.fail(id, 431, "head_too_large", "the request head is too large");
                    }
                }
                Head::Bad(status, code, text) => self.fail(id, status, code, text),
                Head::Complete { size, request, upgrade, wanted, keep, expects } => {
                    if expects {
                        let _ = conn.socket.write(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    conn.state = State::Body { request, upgrade, wanted, keep, bytes: bytes[size..].to_vec() };
                    self.headless.remove(&id);
                    self.set_deadline(id, Instant::now() + self.limits.body_time);
                    self.advance_body(id, &bytes[..size]);
                }
            },
            other => {
                conn.state = other;
                self.advance_body(id, &[]);
            }
        }
    }

    fn advance_body(&mut self, id: u64, head: &[u8]) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let State::Body { wanted, bytes, .. } = &conn.state else {
            return;
        };
        if bytes.len() < *wanted {
            return;
        }
        let State::Body { mut request, upgrade, wanted, keep, mut bytes } = std::mem::replace(&mut conn.state, State::Gone) else {
            return;
        };
        let rest = bytes.split_off(wanted);
        request.body = bytes;
        let handshake = if upgrade { upgrade_request(head) } else { None };
        let is_upgrade = handshake.is_some();
        conn.state = State::Waiting { keep, rest, upgrade: handshake.map(Box::new) };
        self.set_deadline(id, Instant::now() + self.limits.answer_time);
        match is_upgrade {
            true => self.tell(Happening::Upgrade(id, id, request)),
            false => self.tell(Happening::Request(id, request)),
        }
    }

    /// Answers and closes: what comes behind cannot be understood any more.
    fn fail(&mut self, id: u64, status: u16, code: &str, text: &str) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Waiting { keep: false, rest: Vec::new(), upgrade: None };
            self.headless.remove(&id);
            self.respond(id, status, &error_body(code, text));
        }
    }

    fn respond(&mut self, id: u64, status: u16, body: &Value) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let State::Waiting { keep, rest, .. } = std::mem::replace(&mut conn.state, State::Gone) else {
            return; // answered or gone
        };
        let bytes = response(status, body, keep);
        conn.state = State::Writing { bytes, at: 0, keep, rest };
        self.set_deadline(id, Instant::now() + self.limits.write_time);
        self.write_response(id);
    }

    fn write_response(&mut self, id: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let State::Writing { bytes, at, keep, rest } = &mut conn.state else {
                return;
            };
            if *at == bytes.len() {
                if !*keep {
                    // The client reads the answer before it sees the end; unread input would turn that into a reset.
                    let _ = conn.socket.shutdown(std::net::Shutdown::Write);
                    return self.remove(id);
                }
                let rest = std::mem::take(rest);
                let more = !rest.is_empty();
                conn.state = State::Head(rest);
                conn.wants_out = true;
                self.want_out(id, false);
                self.headless.insert(id);
                self.set_deadline(id, Instant::now() + self.limits.idle_time);
                if more {
                    // By the loop, never from here: a thousand requests in one packet must not become a thousand calls deep.
                    self.more.insert(id);
                }
                return;
            }
            match conn.socket.write(&bytes[*at..]) {
                Ok(size) => *at += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.want_out(id, true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.remove(id),
            }
        }
    }

    // ---- peers

    fn accept_peer(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let State::Waiting { rest, upgrade: Some(request), .. } = std::mem::replace(&mut conn.state, State::Gone) else {
            self.remove(id);
            return self.tell(Happening::PeerClosed(id));
        };
        let answer = tungstenite::handshake::server::create_response(&request);
        let mut bytes = Vec::new();
        let written = answer.is_ok_and(|answer| tungstenite::handshake::server::write_response(&mut bytes, &answer).is_ok());
        let sent = written && conn.socket.write(&bytes).is_ok_and(|size| size == bytes.len());
        match (sent, conn.socket.try_clone()) {
            (true, Ok(socket)) => {
                let config = ws_config(self.limits.peer_bytes_max);
                let socket = WebSocket::from_partially_read(socket, rest, Role::Server, Some(config));
                let now = Instant::now();
                conn.state = State::Peer(Box::new(Peer { socket, heard: now, pinged: now, unflushed: false, closing: false }));
                conn.wants_out = true;
                self.want_out(id, false);
                self.set_deadline(id, now + PING_INTERVAL);
                self.more.insert(id);
            }
            _ => {
                self.remove(id);
                self.tell(Happening::PeerClosed(id));
            }
        }
    }

    fn read_peer(&mut self, id: u64) {
        for _ in 0..64 {
            let Some(Conn { state: State::Peer(peer), .. }) = self.conns.get_mut(&id) else {
                return;
            };
            match peer.socket.read() {
                Ok(message) => {
                    peer.heard = Instant::now();
                    match message {
                        Message::Text(text) => self.tell(Happening::PeerText(id, text.to_string())),
                        // A pong or a close answer may wait.
                        _ => self.flush_peer(id),
                    }
                }
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(WsError::Capacity(_)) => {
                    self.close_peer(id, CLOSE_TOO_LARGE, "frame too large");
                    return self.remove(id);
                }
                Err(_) => return self.remove(id),
            }
        }
        self.more.insert(id);
    }

    fn send_peer(&mut self, id: u64, message: Message) {
        let Some(Conn { state: State::Peer(peer), .. }) = self.conns.get_mut(&id) else {
            return;
        };
        match peer.socket.write(message) {
            Ok(()) => self.flush_peer(id),
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => self.flush_peer(id),
            // It does not read: its messages stay unacknowledged and come again.
            Err(_) => {
                log::warn!(target: "gate", "peer {id} does not read; closed");
                self.remove(id);
            }
        }
    }

    fn flush_peer(&mut self, id: u64) {
        let Some(Conn { state: State::Peer(peer), .. }) = self.conns.get_mut(&id) else {
            return;
        };
        match peer.socket.flush() {
            Ok(()) => {
                peer.unflushed = false;
                self.want_out(id, false);
            }
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                peer.unflushed = true;
                self.want_out(id, true);
            }
            Err(_) => self.remove(id),
        }
    }

    fn close_peer(&mut self, id: u64, code: u16, reason: &str) {
        let Some(Conn { state: State::Peer(peer), .. }) = self.conns.get_mut(&id) else {
            return;
        };
        let frame = CloseFrame { code: code.into(), reason: reason.chars().take(100).collect::<String>().into() };
        let _ = peer.socket.close(Some(frame));
        peer.closing = true;
        self.set_deadline(id, Instant::now() + Duration::from_secs(2));
        self.flush_peer(id);
    }

    fn on_writable(&mut self, id: u64) {
        match self.conns.get(&id).map(|conn| &conn.state) {
            Some(State::Writing { .. }) => self.write_response(id),
            Some(State::Peer(_)) => self.flush_peer(id),
            _ => self.want_out(id, false),
        }
    }

    fn carry_out(&mut self, orders: Orders) {
        for order in orders {
            match order {
                Order::Respond { ticket, status, body } => self.respond(ticket, status, &body),
                Order::Accept { ticket, .. } => self.accept_peer(ticket),
                Order::PeerSend { peer, text } => self.send_peer(peer, Message::text(text)),
                Order::PeerClose { peer, code, reason } => self.close_peer(peer, code, &reason),
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            let _ = epoll::add(&self.epoll, &self.listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN);
        }
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            let Some(conn) = self.conns.get_mut(&id) else {
                self.deadlines.remove(&(at, id));
                continue;
            };
            match &mut conn.state {
                State::Peer(peer) if !peer.closing => {
                    if now - peer.heard >= SILENCE_MAX {
                        self.close_peer(id, CLOSE_SILENT, "silent for too long");
                        self.remove(id);
                        continue;
                    }
                    peer.pinged = now;
                    self.set_deadline(id, now + PING_INTERVAL);
                    self.send_peer(id, Message::Ping(Vec::new().into()));
                }
                State::Head(bytes) if !bytes.is_empty() => self.fail(id, 408, "head_timeout", "the request head did not come in time"),
                State::Body { .. } => self.fail(id, 408, "body_timeout", "the request body did not come in time"),
                State::Waiting { .. } => {
                    if let State::Waiting { keep, .. } = &mut conn.state {
                        *keep = false;
                    }
                    self.respond(id, 504, &error_body("timeout", "no answer in time"));
                }
                _ => self.remove(id),
            }
        }
    }
}
