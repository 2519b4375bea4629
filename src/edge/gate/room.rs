//! Room for connections: who is accepted, what each holds, and who goes when there is too little
//! (part of the gate, not a thread).

use std::io;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::conn::{Conn, State};
use super::{Gate, GateEvent, Handled};
use crate::core::ids::PeerId;
use crate::edge::stream::Stream;

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
        self.unread.remove(&id);
        if matches!(conn.state, State::Peer(_) | State::Events(_)) {
            self.on_event(GateEvent::PeerClosed(PeerId(id)));
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
        if conn.interest != wanted {
            conn.interest = wanted;
            let _ = epoll::modify(&self.epoll, &conn.socket, epoll::EventData::new_u64(id), wanted);
        }
        let held = conn.holds();
        self.stats.held_bytes = self.stats.held_bytes + held as u64 - conn.held as u64;
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
        if self.stats.held_bytes > self.limits.held_bytes_max as u64 {
            self.make_room();
        }
    }

    /// Whoever holds most for longest goes; what the state thread works on already stays.
    pub(super) fn make_room(&mut self) {
        let may_go = |conn: &Conn| !matches!(conn.state, State::Waiting { .. });
        let all: Vec<u64> = self
            .holders
            .iter()
            .map(|(_, id)| *id)
            .filter(|id| self.conns.get(id).is_some_and(may_go))
            .collect();
        for id in all {
            if self.stats.held_bytes <= self.limits.held_bytes_max as u64 {
                return;
            }
            self.stats.evicted += 1;
            self.remove(id);
        }
    }
}
