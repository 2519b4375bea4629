//! Requests and their answers: from the first byte of a head to the last byte of a response (part
//! of the gate, not a thread).

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::body::{BodyReader, Framing, Progress};
use super::conn::{AfterResponse, State};
use super::head::{Head, parse_head, response, upgrade_answer};
use super::{Gate, GateEvent, Handled};
use crate::core::cost::Cost;
use crate::core::http::{Body, GateStats, LineClass, Request};
use crate::core::ids::Ticket;
use crate::wire::api::{error_body, path};

/// After an answer that came early, the peer may go on sending that long.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Code and sentence of a refusal, and the seconds until more may be asked; 0: never.
type Refusal = (&'static str, String, u64);

impl<E, H: FnMut(GateEvent) -> Handled<E>> Gate<E, H> {
    pub(super) fn read_request(&mut self, id: u64) {
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
                    self.update_interest(id);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.update_interest(id);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.remove(id),
            }
        }
        self.unread.insert(id);
    }

    /// Looks whether a head or a body is complete.
    pub(super) fn advance(&mut self, id: u64) {
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
                let then = if keep { AfterResponse::KeepAlive } else { AfterResponse::Close };
                let admitted = self.admit(id, &request, framing);
                let Some(conn) = self.conns.get_mut(&id) else { return };
                conn.state = State::Body { request, upgrade: answer.clone(), then, body };
                let since = Instant::now();
                conn.body_since = Some(since);
                self.bodies.insert((since, id));
                self.headless.remove(&id);
                if let Err((code, text, seconds)) = admitted {
                    return self.fail_for_now(id, code, &text, seconds);
                }
                if upgrade && answer.is_none() {
                    return self.fail(
                        id,
                        400,
                        "bad_upgrade",
                        "this is not a WebSocket handshake (RFC 6455)",
                    );
                }
                if expects && let Some(conn) = self.conns.get_mut(&id) {
                    let _ = conn.socket.write(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                self.set_deadline(id, Instant::now() + self.limits.body_time);
                self.advance_body(id);
            }
        }
    }

    pub(super) fn advance_body(&mut self, id: u64) {
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
        let State::Body { mut request, upgrade, then, body } =
            std::mem::replace(&mut conn.state, State::Gone)
        else {
            return;
        };
        if let Some(since) = conn.body_since.take() {
            self.bodies.remove(&(since, id));
        }
        let (bytes, rest) = body.finish();
        let body_bytes = bytes.len();
        let line = conn.line;
        request.cost = Cost::of(&bytes);
        self.lines.charge(line, body_bytes, request.cost.members);
        request.body = bytes;
        request.gate = self.stats();
        let is_upgrade = upgrade.is_some();
        let head_only = request.method == "HEAD";
        if head_only {
            request.method = "GET".into();
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Waiting { then, head_only, rest, upgrade, body_bytes };
        }
        self.set_deadline(id, Instant::now() + self.limits.answer_time);
        if is_upgrade {
            self.on_event(line, GateEvent::Upgrade(Ticket(id), request));
        } else {
            self.on_event(line, GateEvent::Request(Ticket(id), request));
        }
    }

    /// Counts, and what is held now.
    fn stats(&self) -> GateStats {
        GateStats {
            open: self.conns.len() as u64,
            headless: self.headless.len() as u64,
            limited: self.lines.limited,
            greedy: self.lines.greedy.clone(),
            line_held_max: self.lines.held_max as u64,
            row: self.lane.most(),
            ..self.stats.clone()
        }
    }

    /// Whose this connection is from now on, and whether that line may ask for more. The refusal
    /// names the limit.
    fn admit(&mut self, id: u64, request: &Request, framing: Framing) -> Result<(), Refusal> {
        let line = self.lines.line_of(&request.token, id);
        let class = self.lines.class(line);
        // Of a fleet that is started at once, everybody asks for a token with the same one.
        let is_free = class == LineClass::People && request.path == path::TOKENS;
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        if conn.line != line || conn.is_counted == is_free {
            let (former, was_counted) = (conn.line, std::mem::take(&mut conn.is_counted));
            self.lines.note_held(former, conn.held, 0);
            conn.line = line;
            self.lines.note_held(line, 0, conn.held);
            if was_counted {
                self.lines.disconnect(former);
            }
            if !is_free {
                self.lines.connect(line).map_err(|text| ("too_many_connections", text, 1))?;
                conn.is_counted = true;
            }
        }
        let is_long = match framing {
            Framing::Length(size) => size > self.limits.stranger_body_bytes_max,
            Framing::Chunked => false,
        };
        if class == LineClass::Stranger && is_long {
            let text = "without a valid token a body may not be so long".to_string();
            return Err(("unauthorized", text, 0));
        }
        if let Some((wait, limit)) = self.lines.wait(line, Instant::now()) {
            self.lines.note_met(line, limit);
            let seconds = wait.as_secs() + 1;
            let text = format!(
                "one token and its renewals may send so many {limit} a second; try again in {seconds} s"
            );
            return Err(("rate_limited", text, seconds));
        }
        Ok(())
    }

    /// Refuses what is too much for now, or what a stranger has no business with.
    fn fail_for_now(&mut self, id: u64, code: &str, text: &str, seconds: u64) {
        let status = if seconds == 0 { 401 } else { 429 };
        let mut body = error_body(code, text);
        if seconds > 1 {
            body["retryAfter"] = seconds.into();
        }
        self.fail_with(id, status, body);
    }

    /// Answers and closes: what follows on this connection cannot be parsed any more.
    pub(super) fn fail(&mut self, id: u64, status: u16, code: &str, text: &str) {
        self.fail_with(id, status, error_body(code, text));
    }

    fn fail_with(&mut self, id: u64, status: u16, body: Value) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Waiting {
                then: AfterResponse::Drain,
                head_only: false,
                rest: Vec::new(),
                upgrade: None,
                body_bytes: 0,
            };
            if let Some(since) = conn.body_since.take() {
                self.bodies.remove(&(since, id));
            }
            self.headless.remove(&id);
            self.respond(id, status, &body.into());
        }
    }

    pub(super) fn respond(&mut self, id: u64, status: u16, body: &Body) {
        // Answered or gone: nothing to do.
        let Some(conn) =
            self.conns.get_mut(&id).filter(|conn| matches!(conn.state, State::Waiting { .. }))
        else {
            return;
        };
        let State::Waiting { then, head_only, rest, .. } =
            std::mem::replace(&mut conn.state, State::Gone)
        else {
            return;
        };
        conn.speaks = false;
        let bytes = response(status, body, then == AfterResponse::KeepAlive, head_only);
        let line = conn.line;
        self.lines.charge(line, bytes.len(), 0);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.state = State::Writing { bytes, at: 0, then, rest };
        self.set_deadline(id, Instant::now() + self.limits.write_time);
        self.write_response(id);
    }

    pub(super) fn write_response(&mut self, id: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let State::Writing { bytes, at, then, rest } = &mut conn.state else {
                return;
            };
            let written = if *at < bytes.len() {
                conn.socket.write(&bytes[*at..])
            } else {
                conn.socket.flush().map(|()| 0)
            };
            match written {
                Ok(0) if *at == bytes.len() => {}
                Ok(size) => {
                    *at += size;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.update_interest(id);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.remove(id),
            }
            match *then {
                AfterResponse::KeepAlive => {}
                AfterResponse::Close => {
                    conn.socket.shut_write();
                    return self.remove(id);
                }
                AfterResponse::Drain => {
                    conn.socket.shut_write();
                    conn.state = State::Draining;
                    self.headless.insert(id);
                    self.set_deadline(id, Instant::now() + DRAIN_LIMIT);
                    return self.update_interest(id);
                }
            }
            let rest = std::mem::take(rest);
            if !rest.is_empty() || conn.socket.has_decrypted() {
                // Left to the loop: a thousand requests in one packet must not become a thousand
                // nested calls.
                self.unread.insert(id);
            }
            // Between requests it may idle; a head that has begun must come.
            let time = if rest.is_empty() { self.limits.idle_time } else { self.limits.head_time };
            conn.state = State::Head(rest);
            self.headless.insert(id);
            self.set_deadline(id, Instant::now() + time);
            return self.update_interest(id);
        }
    }
}
