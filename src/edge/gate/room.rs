//! Room for connections: who is accepted, what each holds, and who goes when there is too little
//! (part of the gate, not a thread).

use std::io;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::conn::{Conn, State};
use super::{Gate, GateEvent, Handled};
use crate::core::ids::PeerId;
use crate::core::turns::LineId;
use crate::edge::stream::Stream;
use crate::wire::bus::CLOSE_POLICY;

/// Who holds less than this is not worth evicting.
const HELD_SMALL: usize = 16 << 10;
/// Without descriptors nothing is accepted for that long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl<E, H: FnMut(GateEvent) -> Handled<E>> Gate<E, H> {
    pub(super) fn accept(&mut self) {
        for _ in 0..64 {
            match self.listener.accept() {
                Ok((socket, _)) => self.accept_conn(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.raw_os_error(), Some(23 | 24)) => {
                    // Out of descriptors: rest for a moment instead of spinning, and make room.
                    self.evict_headless();
                    let _ = epoll::delete(&self.epoll, &self.listener);
                    self.accept_paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
                Err(_) => {}
            }
        }
    }

    pub(super) fn accept_conn(&mut self, socket: std::net::TcpStream) {
        self.stats.accepted += 1;
        while self.headless.len() >= self.limits.headless_max
            || self.conns.len() >= self.limits.connections_max
        {
            if !self.evict_headless() && !self.evict_body() {
                self.stats.refused += 1;
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
        if epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN)
            .is_err()
        {
            return;
        }
        let deadline = Instant::now() + self.limits.head_time;
        let conn = Conn {
            socket,
            line: LineId::STRANGERS,
            is_counted: false,
            is_peer: false,
            state: State::Head(Vec::new()),
            deadline,
            interest: epoll::EventFlags::IN,
            speaks: false,
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
    pub(super) fn evict_headless(&mut self) -> bool {
        let Some(oldest) = self.headless.first().copied() else {
            return false;
        };
        self.stats.evicted += 1;
        self.remove(oldest);
        true
    }

    /// Closes the connection whose body has been incomplete longest; false: there is none.
    pub(super) fn evict_body(&mut self) -> bool {
        let Some((_, longest)) = self.bodies.first().copied() else {
            return false;
        };
        self.stats.evicted += 1;
        self.remove(longest);
        true
    }

    pub(super) fn remove(&mut self, id: u64) {
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
        self.stats.held_bytes -= conn.held as u64;
        self.lines.note_held(conn.line, conn.held, 0);
        self.unread.remove(&id);
        self.stalled.remove(&id);
        if conn.is_peer {
            self.lines.remove_peer(conn.line);
        }
        if matches!(conn.state, State::Peer(_) | State::Events(_)) {
            self.on_event(conn.line, GateEvent::PeerClosed(PeerId(id)));
        }
        if conn.is_counted {
            self.lines.disconnect(conn.line);
        }
    }

    pub(super) fn set_deadline(&mut self, id: u64, deadline: Instant) {
        if let Some(conn) = self.conns.get_mut(&id) {
            self.deadlines.remove(&(conn.deadline, id));
            conn.deadline = deadline;
            self.deadlines.insert((deadline, id));
        }
    }

    /// Brings what epoll watches and what is held up to date.
    pub(super) fn update_interest(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let wanted = conn.wanted();
        // Most are answered before they say anything more: whoever waits is watched less only when
        // it does.
        let may_stay = matches!(conn.state, State::Waiting { .. }) && !conn.speaks;
        if conn.interest != wanted && !(may_stay && conn.interest == epoll::EventFlags::IN) {
            conn.interest = wanted;
            let _ = epoll::modify(&self.epoll, &conn.socket, epoll::EventData::new_u64(id), wanted);
        }
        let held = conn.holds();
        self.stats.held_bytes = self.stats.held_bytes + held as u64 - conn.held as u64;
        let line = conn.line;
        let is_greedy = self.lines.note_held(line, conn.held, held);
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
        if is_greedy {
            self.lines.note_met(line, "held bytes");
            self.give_way(line);
        }
        if self.stats.held_bytes > self.limits.held_bytes_max as u64
            && let Some(line) = self.lines.greediest()
        {
            self.give_way(line);
        }
    }

    /// Of a line that holds too much, the connection that holds most goes, and hears why. What the
    /// state thread works on already stays, and so does whoever holds little: signs of life and
    /// acknowledgements.
    fn give_way(&mut self, line: LineId) {
        let may_go =
            |conn: &Conn| conn.line == line && !matches!(conn.state, State::Waiting { .. });
        let held = |id: u64| self.conns.get(&id).filter(|conn| may_go(conn)).map(|conn| conn.held);
        let holders = self.holders.iter().filter_map(|(_, id)| Some((held(*id)?, *id)));
        let Some((_, id)) = holders.max() else { return };
        self.stats.evicted += 1;
        let most = self.lines.class(line).limits().held_bytes_max;
        let why = format!("one token and its renewals may hold {most} bytes at the relay");
        match self.conns.get(&id).map(|conn| &conn.state) {
            Some(State::Peer(peer)) if !peer.closing => {
                log::warn!(target: "gate", "peer {id} closed: {why}");
                // Freed by the end of the connection; the close frame need not arrive.
                self.close_peer(id, CLOSE_POLICY, &why);
                self.remove(id);
            }
            Some(State::Body { .. }) => self.fail(id, 429, "too_much_held", &why),
            _ => self.remove(id),
        }
    }
}
