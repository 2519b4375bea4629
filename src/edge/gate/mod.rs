//! Thread `gate`: everything that listens. One epoll loop accepts, reads heads and bodies with limits and deadlines,
//! hands requests to a handler, writes answers, and carries those who stay, all without blocking.
//!
//! A stalled or hostile connection costs its buffer and nothing else: there are no workers that it could hold. Requests
//! wait in the table of connections until the state thread answers them. Connections, bytes and time are bounded; where
//! room is needed, the oldest connection without a complete head goes first, then whoever holds much for long.

mod body;
mod conn;
mod head;
mod peer;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::epoll;
use rustls::ServerConfig;

use self::body::{BodyReader, Progress};
use self::conn::{Conn, State, Then};
use self::head::{Head, parse_head, response, upgrade_answer};
use super::stream::Stream;
use crate::core::http::{Body, Figures, Request};
use crate::core::ids::{PeerId, Ticket};
use crate::os::Waker;
use crate::wire::api::error_body;

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
    /// Connections in all; also bounded by the descriptors that the system gives, less [`DESCRIPTORS_RESERVED`].
    pub connections_max: usize,
    /// Bytes of all bodies, answers and unsent events together.
    pub held_bytes_max: usize,
    /// Unsent bytes of one who stays; beyond it the connection is closed.
    pub peer_bytes_max: usize,
    /// Frames of one peer in a second; beyond it the gate stops reading from it until the second is over.
    pub peer_frames_per_second_max: u32,
    /// Bytes of one peer in a second; the same.
    pub peer_bytes_per_second_max: usize,
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
            held_bytes_max: 64 << 20,
            peer_bytes_max: 4 << 20,
            peer_frames_per_second_max: 5000,
            peer_bytes_per_second_max: 32 << 20,
        }
    }
}

/// Descriptors that connections never take: files, stores, logs and children need some too.
pub const DESCRIPTORS_RESERVED: u64 = 64;
/// Who holds less than this is not worth evicting.
const HELD_SMALL: usize = 16 << 10;
/// After an answer that came early, the peer may go on sending that long.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// Without descriptors the listener rests that long.
const REST: Duration = Duration::from_millis(100);

/// What the handler says to a request.
pub enum Verdict<E> {
    /// Answered here and now.
    Answer(u16, Body),
    /// An event for the state thread, which answers by its ticket.
    Event(E),
    /// An event for the state thread, and an answer that does not depend on it.
    Tell(E, u16, Body),
}

/// What happens at the gate.
#[derive(Debug)]
pub enum Happening {
    /// A request.
    Request(Ticket, Request),
    /// Somebody wants the bus; ticket and number of the peer are the same.
    Upgrade(Ticket, Request),
    /// A text frame.
    PeerText(PeerId, String),
    /// One who stayed is gone.
    PeerClosed(PeerId),
}

/// One order.
#[derive(Debug)]
pub enum Order {
    /// Answer a request.
    Respond {
        /// Which one.
        ticket: Ticket,
        /// HTTP status.
        status: u16,
        /// Body.
        body: Body,
    },
    /// Let a request stay: as a WebSocket if it asked for one, else as a stream of events.
    Accept {
        /// Its ticket, and from now on its number as a peer.
        ticket: Ticket,
    },
    /// Send a text frame, or text into a stream of events.
    PeerSend {
        /// To whom.
        peer: PeerId,
        /// The text.
        text: String,
    },
    /// Close a peer.
    PeerClose {
        /// Whom.
        peer: PeerId,
        /// WebSocket close code.
        code: u16,
        /// Reason.
        reason: String,
    },
}

/// Orders of one turn.
pub type Orders = Vec<Order>;

const LISTENER: u64 = 0;
const WAKER: u64 = 1;
const FIRST: u64 = 2;

/// The loop.
pub struct Gate<E, H> {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    handler: H,
    orders: Receiver<Orders>,
    waker: Waker,
    lane: Sender<E>,
    epoll: OwnedFd,
    conns: HashMap<u64, Conn>,
    deadlines: BTreeSet<(Instant, u64)>,
    headless: BTreeSet<u64>,
    /// Those who hold more than [`HELD_SMALL`] for a body, an answer or events.
    holders: BTreeSet<(Instant, u64)>,
    /// Connections whose body is not complete, longest first.
    bodies: BTreeSet<(Instant, u64)>,
    /// Orders that came while something was handed over; carried out before newer ones.
    late: VecDeque<Orders>,
    figures: Figures,
    next: u64,
    /// Connections with more to read than one turn allows, or than epoll can see.
    more: BTreeSet<u64>,
    /// The listener rests until then: no descriptors are left.
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
    /// A gate that waits for [`Gate::run`]; with `tls` it speaks nothing else.
    pub fn new(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        mut limits: Limits,
        handler: H,
        orders: Receiver<Orders>,
        waker: Waker,
        lane: Sender<E>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN)?;
        let descriptors = crate::os::raise_descriptors().saturating_sub(DESCRIPTORS_RESERVED).max(16);
        limits.connections_max = limits.connections_max.min(descriptors as usize);
        Ok(Gate {
            listener,
            tls,
            limits,
            handler,
            orders,
            waker,
            lane,
            epoll,
            conns: HashMap::new(),
            deadlines: BTreeSet::new(),
            headless: BTreeSet::new(),
            holders: BTreeSet::new(),
            bodies: BTreeSet::new(),
            late: VecDeque::new(),
            figures: Figures::default(),
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
                    (id, flags) => self.on_ready(id, flags),
                }
            }
            for id in std::mem::take(&mut self.more) {
                if matches!(self.conns.get(&id).map(|c| &c.state), Some(State::Head(bytes)) if !bytes.is_empty()) {
                    self.advance(id);
                }
                self.on_readable(id);
            }
            self.expire();
            if !self.late.is_empty() {
                self.take_orders();
            }
        }
        // Peers see the close frame if their socket takes it at once.
        for conn in self.conns.values_mut() {
            if let State::Peer(peer) = &mut conn.state {
                let _ = peer.socket.flush(&mut conn.socket);
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
            if let Some(orders) = self.late.pop_front() {
                self.carry_out(orders);
                continue;
            }
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

    fn carry_out(&mut self, orders: Orders) {
        for order in orders {
            match order {
                Order::Respond { ticket, status, body } => self.respond(ticket.0, status, &body),
                Order::Accept { ticket } => self.accept_peer(ticket.0),
                Order::PeerSend { peer, text } => self.send_peer(peer.0, text),
                Order::PeerClose { peer, code, reason } => self.close_peer(peer.0, code, &reason),
            }
        }
    }

    // ---- room

    fn accept(&mut self) {
        for _ in 0..64 {
            match self.listener.accept() {
                Ok((socket, _)) => self.welcome(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.raw_os_error(), Some(23 | 24)) => {
                    // Out of descriptors: rest for a moment instead of spinning, and make room.
                    self.evict_headless();
                    let _ = epoll::delete(&self.epoll, &self.listener);
                    self.resting = Some(Instant::now() + REST);
                    return;
                }
                Err(_) => {}
            }
        }
    }

    fn welcome(&mut self, socket: std::net::TcpStream) {
        self.figures.accepted += 1;
        while self.headless.len() >= self.limits.headless_max || self.conns.len() >= self.limits.connections_max {
            if !self.evict_headless() && !self.evict_body() {
                self.figures.refused += 1;
                return;
            }
        }
        let usable = socket.set_nonblocking(true).is_ok() && socket.set_nodelay(true).is_ok();
        let socket = match &self.tls {
            None => Some(Stream::Plain(socket)),
            Some(config) => Stream::serve(socket, config.clone()).ok(),
        };
        let Some(socket) = socket.filter(|_| usable) else { return };
        let id = self.next;
        self.next += 1;
        if epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN).is_err() {
            return;
        }
        let deadline = Instant::now() + self.limits.head_time;
        let conn = Conn {
            socket,
            state: State::Head(Vec::new()),
            deadline,
            interest: epoll::EventFlags::IN,
            held: 0,
            holds_since: None,
            body_since: None,
        };
        self.conns.insert(id, conn);
        self.deadlines.insert((deadline, id));
        self.headless.insert(id);
        self.on_readable(id);
    }

    /// Closes the oldest connection without a complete head; false: there is none.
    fn evict_headless(&mut self) -> bool {
        let Some(oldest) = self.headless.first().copied() else {
            return false;
        };
        self.figures.evicted += 1;
        self.remove(oldest);
        true
    }

    /// Closes the connection whose body takes longest; false: there is none.
    fn evict_body(&mut self) -> bool {
        let Some((_, longest)) = self.bodies.first().copied() else {
            return false;
        };
        self.figures.evicted += 1;
        self.remove(longest);
        true
    }

    fn remove(&mut self, id: u64) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        let _ = epoll::delete(&self.epoll, &conn.socket);
        self.deadlines.remove(&(conn.deadline, id));
        self.headless.remove(&id);
        if let Some(since) = conn.holds_since {
            self.holders.remove(&(since, id));
        }
        if let Some(since) = conn.body_since {
            self.bodies.remove(&(since, id));
        }
        self.figures.held_bytes -= conn.held as u64;
        self.more.remove(&id);
        if matches!(conn.state, State::Peer(_) | State::Events(_)) {
            self.tell(Happening::PeerClosed(PeerId(id)));
        }
    }

    fn set_deadline(&mut self, id: u64, deadline: Instant) {
        if let Some(conn) = self.conns.get_mut(&id) {
            self.deadlines.remove(&(conn.deadline, id));
            conn.deadline = deadline;
            self.deadlines.insert((deadline, id));
        }
    }

    /// Brings what epoll watches and what is held up to date.
    fn refresh(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let wanted = conn.wanted();
        if conn.interest != wanted {
            conn.interest = wanted;
            let _ = epoll::modify(&self.epoll, &conn.socket, epoll::EventData::new_u64(id), wanted);
        }
        let held = conn.holds();
        self.figures.held_bytes = self.figures.held_bytes + held as u64 - conn.held as u64;
        conn.held = held;
        match (held > HELD_SMALL, conn.holds_since) {
            (true, None) => {
                let since = Instant::now();
                conn.holds_since = Some(since);
                self.holders.insert((since, id));
            }
            (false, Some(since)) => {
                conn.holds_since = None;
                self.holders.remove(&(since, id));
            }
            _ => {}
        }
        if self.figures.held_bytes > self.limits.held_bytes_max as u64 {
            self.make_room();
        }
    }

    /// Whoever holds most for longest goes; what the state thread works on already stays.
    fn make_room(&mut self) {
        let may_go = |conn: &Conn| !matches!(conn.state, State::Waiting { .. });
        let all: Vec<u64> = self.holders.iter().map(|(_, id)| *id).filter(|id| self.conns.get(id).is_some_and(may_go)).collect();
        for id in all {
            if self.figures.held_bytes <= self.limits.held_bytes_max as u64 {
                return;
            }
            self.figures.evicted += 1;
            self.remove(id);
        }
    }

    // ---- requests

    /// Hands something to the state thread, or answers it at once.
    fn tell(&mut self, happening: Happening) {
        let ticket = match &happening {
            Happening::Request(ticket, _) | Happening::Upgrade(ticket, ..) => Some(ticket.0),
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
        // Not carried out from here: they would overtake the rest of the orders that led here.
        let late = &mut self.late;
        self.alive &= super::report(&self.lane, &self.orders, event, |orders| late.push_back(orders));
    }

    fn on_ready(&mut self, id: u64, flags: epoll::EventFlags) {
        let broken = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if flags.intersects(epoll::EventFlags::OUT) {
            self.on_writable(id);
        }
        match self.conns.get(&id).map(|conn| &conn.state) {
            // Nobody is there to hear the answer.
            Some(State::Waiting { .. } | State::Writing { .. }) if broken => self.remove(id),
            // Nothing is read from it now, so its end would be told again and again.
            Some(State::Peer(peer)) if broken && peer.paused.is_some() => self.remove(id),
            Some(_) if broken || flags.intersects(epoll::EventFlags::IN) => self.on_readable(id),
            _ => {}
        }
    }

    fn on_readable(&mut self, id: u64) {
        match self.conns.get(&id).map(|conn| &conn.state) {
            Some(State::Peer(_)) => self.read_peer(id),
            Some(State::Events(_) | State::Draining) => self.read_away(id),
            Some(State::Head(_) | State::Body { .. }) => self.read_request(id),
            // Requests in advance wait in the socket.
            _ => {}
        }
    }

    fn on_writable(&mut self, id: u64) {
        match self.conns.get_mut(&id) {
            Some(Conn { state: State::Writing { .. }, .. }) => self.write_response(id),
            Some(Conn { state: State::Peer(_), .. }) => self.flush_peer(id),
            Some(Conn { state: State::Events(_), .. }) => self.write_events(id),
            Some(conn) => {
                let _ = conn.socket.flush();
                self.refresh(id);
            }
            None => {}
        }
    }

    fn read_request(&mut self, id: u64) {
        let mut buffer = [0u8; 16 << 10];
        for _ in 0..64 {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let (bytes, in_head) = match &mut conn.state {
                State::Head(bytes) => (bytes, true),
                State::Body { body, .. } => (body.input(), false),
                _ => return,
            };
            match conn.socket.read(&mut buffer) {
                Ok(0) => return self.remove(id),
                Ok(size) => {
                    let begins = in_head && bytes.is_empty();
                    bytes.extend_from_slice(&buffer[..size]);
                    if begins {
                        // A kept connection may idle for long, but a head that has begun must come.
                        let deadline = (Instant::now() + self.limits.head_time).min(conn.deadline);
                        self.set_deadline(id, deadline);
                    }
                    self.advance(id);
                    self.refresh(id);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.refresh(id),
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
        let State::Head(bytes) = &mut conn.state else {
            return self.advance_body(id);
        };
        match parse_head(bytes, self.limits.head_bytes_max, self.limits.body_bytes_max) {
            Head::Partial => {
                if bytes.len() > self.limits.head_bytes_max {
                    self.fail(id, 431, "head_too_large", "the request head is too large");
                }
            }
            Head::Bad(status, code, text) => self.fail(id, status, code, text),
            Head::Complete { size, request, upgrade, framing, keep, expects } => {
                let answer = if upgrade { upgrade_answer(&bytes[..size]) } else { None };
                let body = BodyReader::new(framing, self.limits.body_bytes_max, &bytes[size..]);
                let then = if keep { Then::Keep } else { Then::Close };
                conn.state = State::Body { request, upgrade: answer.clone(), then, body };
                let since = Instant::now();
                conn.body_since = Some(since);
                self.bodies.insert((since, id));
                self.headless.remove(&id);
                if upgrade && answer.is_none() {
                    return self.fail(id, 400, "bad_upgrade", "this is no proper WebSocket handshake (RFC 6455)");
                }
                if expects && let Some(conn) = self.conns.get_mut(&id) {
                    let _ = conn.socket.write(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                self.set_deadline(id, Instant::now() + self.limits.body_time);
                self.advance_body(id);
            }
        }
    }

    fn advance_body(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let State::Body { body, .. } = &mut conn.state else {
            return;
        };
        match body.advance() {
            Progress::More => return,
            Progress::Bad(status, code, text) => return self.fail(id, status, code, text),
            Progress::Complete => {}
        }
        let State::Body { mut request, upgrade, then, body } = std::mem::replace(&mut conn.state, State::Gone) else {
            return;
        };
        if let Some(since) = conn.body_since.take() {
            self.bodies.remove(&(since, id));
        }
        let (bytes, rest) = body.finish();
        let body_bytes = bytes.len();
        request.body = bytes;
        request.gate = Figures { open: self.conns.len() as u64, headless: self.headless.len() as u64, ..self.figures };
        let is_upgrade = upgrade.is_some();
        let head_only = request.method == "HEAD";
        if head_only {
            request.method = "GET".into();
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Waiting { then, head_only, rest, upgrade, body_bytes };
        }
        self.set_deadline(id, Instant::now() + self.limits.answer_time);
        match is_upgrade {
            true => self.tell(Happening::Upgrade(Ticket(id), request)),
            false => self.tell(Happening::Request(Ticket(id), request)),
        }
    }

    /// Answers and closes: what comes behind cannot be understood any more.
    fn fail(&mut self, id: u64, status: u16, code: &str, text: &str) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Waiting { then: Then::Drain, head_only: false, rest: Vec::new(), upgrade: None, body_bytes: 0 };
            if let Some(since) = conn.body_since.take() {
                self.bodies.remove(&(since, id));
            }
            self.headless.remove(&id);
            self.respond(id, status, &error_body(code, text).into());
        }
    }

    fn respond(&mut self, id: u64, status: u16, body: &Body) {
        // Answered or gone: nothing to do.
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| matches!(conn.state, State::Waiting { .. })) else {
            return;
        };
        let State::Waiting { then, head_only, rest, .. } = std::mem::replace(&mut conn.state, State::Gone) else {
            return;
        };
        let bytes = response(status, body, then == Then::Keep, head_only);
        conn.state = State::Writing { bytes, at: 0, then, rest };
        self.set_deadline(id, Instant::now() + self.limits.write_time);
        self.write_response(id);
    }

    fn write_response(&mut self, id: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let State::Writing { bytes, at, then, rest } = &mut conn.state else {
                return;
            };
            let written = match *at < bytes.len() {
                true => conn.socket.write(&bytes[*at..]),
                false => conn.socket.flush().map(|()| 0),
            };
            match written {
                Ok(0) if *at == bytes.len() => {}
                Ok(size) => {
                    *at += size;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.refresh(id),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.remove(id),
            }
            match *then {
                Then::Keep => {}
                Then::Close => {
                    conn.socket.shut_write();
                    return self.remove(id);
                }
                Then::Drain => {
                    conn.socket.shut_write();
                    conn.state = State::Draining;
                    self.headless.insert(id);
                    self.set_deadline(id, Instant::now() + DRAIN_TIME);
                    return self.refresh(id);
                }
            }
            let rest = std::mem::take(rest);
            if !rest.is_empty() || conn.socket.has_decrypted() {
                // By the loop, never from here: a thousand requests in one packet must not become a thousand calls deep.
                self.more.insert(id);
            }
            // Between requests it may idle; a head that has begun must come.
            let time = if rest.is_empty() { self.limits.idle_time } else { self.limits.head_time };
            conn.state = State::Head(rest);
            self.headless.insert(id);
            self.set_deadline(id, Instant::now() + time);
            return self.refresh(id);
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
                State::Peer(_) | State::Events(_) => self.on_stay_over(id, now),
                State::Head(bytes) if !bytes.is_empty() => {
                    self.figures.timed_out += 1;
                    self.fail(id, 408, "head_timeout", "the request head did not come in time");
                }
                State::Body { .. } => {
                    self.figures.timed_out += 1;
                    self.fail(id, 408, "body_timeout", "the request body did not come in time");
                }
                State::Waiting { then, .. } => {
                    *then = Then::Close;
                    self.respond(id, 504, &error_body("timeout", "no answer in time; what was asked may still happen").into());
                }
                State::Draining => self.remove(id),
                _ => {
                    self.figures.timed_out += 1;
                    self.remove(id);
                }
            }
        }
    }
}
