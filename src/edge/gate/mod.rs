//! Thread `gate`: everything that listens. One epoll loop accepts, reads heads and bodies with
//! limits and deadlines, hands requests to a handler, writes answers, and serves WebSocket peers
//! and readers of events, all without blocking.
//!
//! A stalled or hostile connection costs its buffer and nothing else: there are no workers that it
//! could hold. Requests wait in the table of connections until the state thread answers them.
//! Connections, bytes and time are bounded; where room is needed, the oldest connection without a
//! complete head goes first, then whoever holds much for long.

mod body;
mod conn;
mod head;
mod lines;
mod peer;
mod request;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use rustix::event::epoll;
use rustls::ServerConfig;

use self::conn::{AfterResponse, Conn, State};
pub use self::lines::Identify;
use self::lines::Lines;
use super::turns::TurnsIn;
use crate::core::cost::Cost;
use crate::core::http::{Body, GateCommand, GateStats, LineClass, Request};
use crate::core::ids::{PeerId, Ticket};
use crate::core::limits::CONNECTIONS_MAX;
use crate::core::turns::LineId;
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
    /// Connections in all; also bounded by the descriptors that the system gives, less
    /// [`DESCRIPTORS_RESERVED`].
    pub connections_max: usize,
    /// Bytes of all bodies, answers and unsent events together.
    pub held_bytes_max: usize,
    /// Unsent bytes of one who stays; beyond it the connection is closed.
    pub peer_bytes_max: usize,
    /// Frames of one peer in a second; beyond it the gate stops reading from it until the second is
    /// over.
    pub peer_frames_per_second_max: u32,
    /// Bytes of one peer in a second; the same.
    pub peer_bytes_per_second_max: usize,
    /// Bytes of a body of somebody without a valid token.
    pub stranger_body_bytes_max: usize,
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
            connections_max: CONNECTIONS_MAX,
            held_bytes_max: 64 << 20,
            peer_bytes_max: 4 << 20,
            peer_frames_per_second_max: 5000,
            peer_bytes_per_second_max: 32 << 20,
            stranger_body_bytes_max: 64 << 10,
        }
    }
}

/// Descriptors that connections never take: files, stores, logs and children need some too.
pub const DESCRIPTORS_RESERVED: u64 = 64;

/// What the handler makes of a [`GateEvent`].
pub enum Handled<E> {
    /// Answered here and now.
    Answer(u16, Body),
    /// A frame is answered by this one here and now.
    Reply(String),
    /// An event for the state thread, which answers by its ticket.
    Forward(E),
    /// An event for the state thread, and an answer that does not depend on it.
    AnswerAndForward(E, u16, Body),
}

/// What happens at the gate.
#[derive(Debug)]
pub enum GateEvent {
    /// A request.
    Request(Ticket, Request),
    /// Somebody wants the bus; ticket and number of the peer are the same.
    Upgrade(Ticket, Request),
    /// A text frame, and what it costs as JSON.
    PeerText(PeerId, String, Cost),
    /// A peer or a reader of events is gone.
    PeerClosed(PeerId),
}

/// What one event of the state thread orders, in order.
pub type Orders = Vec<GateCommand>;

const LISTENER: u64 = 0;
const WAKER: u64 = 1;
const FIRST: u64 = 2;

/// The server of the hub and of a runner's control port, as one loop in one thread.
///
/// **In.** Sockets of strangers, and [`GateCommand`]s of the state thread. Commands of one list are
/// carried out in order, and lists in the order in which they were sent; the waker tells that there
/// are some.
///
/// **Out.** The handler hears each [`GateEvent`] in this thread and says what becomes of it
/// ([`Handled`]): it answers from what it knows, or forwards an event to the state thread. A
/// request is told once, complete, with a body of at most [`Limits::body_bytes_max`]; its ticket is
/// new. A text of a peer is told only between its acceptance and [`GateEvent::PeerClosed`], which
/// comes once for each peer that was accepted, also for one that had left before.
///
/// **The caller** answers each ticket that was forwarded, by a response or by acceptance; without
/// one within [`Limits::answer_time`] the gate says 504. Commands for a ticket or peer that is gone
/// do nothing. When nobody can give commands any more the loop ends and closes its sockets.
///
/// **Limits.** Nobody waits for anybody: a connection that stalls costs its buffer. Where room is
/// needed the oldest connection without a complete head goes first, then whoever holds much for
/// long, of the token line that holds most. What a line may have and send is counted by line, and
/// its events take turns with those of others in the queue to the state thread. Putting in never
/// waits, so gate and state thread cannot wait for each other: while too much of a line waits,
/// nothing more is read from its peers.
pub struct Gate<E, H> {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    handler: H,
    orders: Receiver<Orders>,
    waker: Waker,
    lane: TurnsIn<E>,
    lines: Lines,
    urgent: fn(&GateEvent) -> bool,
    epoll: OwnedFd,
    conns: HashMap<u64, Conn>,
    deadlines: BTreeSet<(Instant, u64)>,
    headless: BTreeSet<u64>,
    /// Those who hold more than [`HELD_SMALL`] for a body, an answer or events.
    holders: BTreeSet<(Instant, u64)>,
    /// Connections whose body is not complete, longest first.
    bodies: BTreeSet<(Instant, u64)>,
    /// Peers that are not read while too much of their line waits.
    stalled: BTreeSet<u64>,
    stats: GateStats,
    next: u64,
    /// Connections with more to read than one turn allows, or than epoll can see.
    unread: BTreeSet<u64>,
    /// The listener rests until then: no descriptors are left.
    accept_paused_until: Option<Instant>,
    alive: bool,
}

/// Connections that the kernel holds until they are accepted; it takes no more than it is set to.
const BACKLOG: i32 = 4096;

/// What a gate is made of.
pub struct Parts<E, H> {
    /// Where it listens.
    pub listener: TcpListener,
    /// With it the gate speaks nothing else.
    pub tls: Option<Arc<ServerConfig>>,
    /// Limits of each connection and of all together.
    pub limits: Limits,
    /// Hears each event.
    pub handler: H,
    /// Commands of the state thread.
    pub orders: Receiver<Orders>,
    /// Tells that there are some, or that there is room in the queue.
    pub waker: Waker,
    /// The queue to the state thread.
    pub lane: TurnsIn<E>,
    /// Whose a connection is.
    pub identify: Identify,
    /// What goes into the reserve, whoever sends it.
    pub urgent: fn(&GateEvent) -> bool,
}

/// Binds a listener for a gate.
pub fn listen(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The library asks for 128; when a whole fleet comes back at once, whoever finds no place waits
    // a second before the kernel asks again.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl<E, H: FnMut(GateEvent) -> Handled<E>> Gate<E, H> {
    /// A gate that waits for [`Gate::run`].
    pub fn new(parts: Parts<E, H>) -> io::Result<Self> {
        let Parts { listener, tls, mut limits, handler, orders, waker, lane, identify, urgent } =
            parts;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN)?;
        let descriptors =
            crate::os::raise_descriptors().saturating_sub(DESCRIPTORS_RESERVED).max(16);
        limits.connections_max = limits.connections_max.min(descriptors as usize);
        Ok(Gate {
            listener,
            tls,
            limits,
            handler,
            orders,
            waker,
            lane,
            lines: Lines::new(identify),
            urgent,
            epoll,
            conns: HashMap::new(),
            deadlines: BTreeSet::new(),
            headless: BTreeSet::new(),
            holders: BTreeSet::new(),
            bodies: BTreeSet::new(),
            stalled: BTreeSet::new(),
            stats: GateStats::default(),
            next: FIRST,
            unread: BTreeSet::new(),
            accept_paused_until: None,
            alive: true,
        })
    }

    /// Body of the thread; ends when nobody gives orders any more.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        while self.alive {
            events.clear();
            let limit = self.timeout();
            let limit = limit.map(|left| rustix::event::Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            });
            let _ = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                limit.as_ref(),
            );
            for event in events.iter().map(|e: &epoll::Event| (e.data.u64(), e.flags)) {
                match event {
                    (LISTENER, _) => self.accept(),
                    (WAKER, _) => {
                        self.waker.clear();
                        self.take_orders();
                        // There may be room again; who finds none is woken again.
                        self.unread.append(&mut self.stalled);
                    }
                    (id, flags) => self.on_ready(id, flags),
                }
            }
            for id in std::mem::take(&mut self.unread) {
                if matches!(self.conns.get(&id).map(|c| &c.state), Some(State::Head(bytes)) if !bytes.is_empty())
                {
                    self.advance(id);
                    // While it waits for its answer, what else it has sent must not wake the loop.
                    if !crate::planted::is("watched-while-waiting") {
                        self.update_interest(id);
                    }
                }
                self.on_readable(id);
            }
            self.stats.turns += 1;
            self.expire();
        }
        // Peers see the close frame if their socket takes it at once.
        for conn in self.conns.values_mut() {
            if let State::Peer(peer) = &mut conn.state {
                let _ = peer.socket.flush(&mut conn.socket);
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.unread.is_empty() {
            return Some(Duration::ZERO);
        }
        let first = self
            .deadlines
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(self.accept_paused_until)
            .min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn take_orders(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(orders) => {
                    self.lane.note_order_taken();
                    self.carry_out(orders)
                }
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
                GateCommand::Respond { ticket, status, body } => {
                    self.respond(ticket.0, status, &body)
                }
                GateCommand::Accept { ticket } => self.accept_peer(ticket.0),
                GateCommand::PeerSend { peer, text } => self.send_peer(peer.0, text),
                GateCommand::TokenKnown { hash, line, class } => {
                    self.lines.token_known(hash, line, class)
                }
                GateCommand::TokenGone { hash } => self.lines.token_gone(&hash),
                GateCommand::PeerClose { peer, code, reason } => {
                    self.close_peer(peer.0, code, &reason)
                }
            }
        }
    }

    /// Hands something of a line to the state thread, or answers it at once.
    fn on_event(&mut self, line: LineId, event: GateEvent) {
        let (id, is_peer, cost) = match &event {
            GateEvent::Request(ticket, request) | GateEvent::Upgrade(ticket, request) => {
                (ticket.0, false, request.cost)
            }
            GateEvent::PeerText(peer, _, cost) => (peer.0, true, *cost),
            GateEvent::PeerClosed(peer) => (peer.0, true, Cost::default()),
        };
        let class = self.lines.class(line);
        let is_urgent = class == LineClass::People || (self.urgent)(&event);
        // What a provider reports is answered before it is handled, and its reports come on
        // connections of their own: they keep their order.
        let in_order = is_urgent && class == LineClass::Control;
        let line = if in_order { LineId::STRANGERS } else { line };
        let mut put = |event| self.alive &= self.lane.put(line, id, is_urgent, cost, event);
        match (self.handler)(event) {
            Handled::Forward(event) => put(event),
            Handled::Answer(status, body) if !is_peer => self.respond(id, status, &body),
            Handled::Reply(text) if is_peer => self.refuse_frame(id, text),
            Handled::Answer(..) | Handled::Reply(_) => {}
            Handled::AnswerAndForward(event, status, body) => {
                put(event);
                if !is_peer {
                    self.respond(id, status, &body);
                }
            }
        }
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
            Some(State::Waiting { .. }) => self.set_speaks(id),
            Some(_) if broken || flags.intersects(epoll::EventFlags::IN) => self.on_readable(id),
            _ => {}
        }
    }

    /// Requests in advance, and the end of what a client sends, stay in the socket until its
    /// request is answered; they would be told again and again.
    fn set_speaks(&mut self, id: u64) {
        let watched = crate::planted::is("watched-while-waiting");
        if let Some(conn) = self.conns.get_mut(&id).filter(|_| !watched) {
            conn.speaks = true;
            self.update_interest(id);
        }
    }

    fn on_readable(&mut self, id: u64) {
        match self.conns.get(&id).map(|conn| &conn.state) {
            Some(State::Peer(_)) => self.read_peer(id),
            Some(State::Events(_) | State::Draining) => self.discard_input(id),
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
                self.update_interest(id);
            }
            None => {}
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        if self.accept_paused_until.is_some_and(|until| until <= now) {
            self.accept_paused_until = None;
            let _ = epoll::add(
                &self.epoll,
                &self.listener,
                epoll::EventData::new_u64(LISTENER),
                epoll::EventFlags::IN,
            );
        }
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            let Some(conn) = self.conns.get_mut(&id) else {
                self.deadlines.remove(&(at, id));
                continue;
            };
            match &mut conn.state {
                State::Peer(_) | State::Events(_) => self.on_peer_deadline(id, now),
                State::Head(bytes) if !bytes.is_empty() => {
                    self.stats.timed_out += 1;
                    self.fail(id, 408, "head_timeout", "the request head did not come in time");
                }
                State::Body { .. } => {
                    self.stats.timed_out += 1;
                    self.fail(id, 408, "body_timeout", "the request body did not come in time");
                }
                State::Waiting { then, .. } => {
                    *then = AfterResponse::Close;
                    self.respond(
                        id,
                        504,
                        &error_body(
                            "timeout",
                            "no answer in time; what was asked may still happen",
                        )
                        .into(),
                    );
                }
                State::Draining => self.remove(id),
                _ => {
                    self.stats.timed_out += 1;
                    self.remove(id);
                }
            }
        }
    }
}
