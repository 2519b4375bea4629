//! The connection: attempts, the handshake, and what was missed while it was away.

use std::time::Duration;

use serde_json::{Value, json};

use super::opening::has_no_turn;
use super::{CodexSession, Listens, Request, Stage};
use crate::core::session::{Output, ServerAddress};
use crate::core::time::{Now, Tick};
use crate::provider::codex::frames::{TurnRecord, TurnStatus, text};
use crate::provider::jsonrpc::{self, RpcError};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(250);
/// Attempts to connect again; then the server is ended, since nobody can speak to it.
const ATTEMPTS_MAX: u32 = 40;
/// Turns of the record that are looked at for what was missed.
pub(super) const MISSED_TURNS: u64 = 20;
/// A turn that the server has named and that the record does not show is looked for so often.
const LOOKS_MAX: u32 = 40;
/// The same for a text of which nobody knows whether the server got it.
const LOOKS_UNNAMED: u32 = 8;

/// The connection to the server.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub is_up: bool,
    /// Failed attempts since it was up.
    attempts: u32,
    /// The next attempt.
    pub retry_at: Option<Tick>,
    /// Breaks while the record was asked for: its answer may be longer than a text may be.
    cuts: u32,
    /// Looks at the record since it is up.
    looks: u32,
    look_at: Option<Tick>,
}

impl CodexSession {
    /// One attempt, where it is known by now where the server listens.
    pub(super) fn connect(&mut self) {
        self.link.retry_at = None;
        let to = match &self.start.listens {
            Listens::Socket { path, .. } => Some(ServerAddress::Socket(path.clone())),
            Listens::Port { .. } => self.banner.port().map(ServerAddress::Port),
        };
        match to {
            Some(to) => self.out.push(Output::Connect { to }),
            None => self.opening.last_failure = "it does not say at which port it listens".into(),
        }
    }

    /// A server at a port says at which one.
    pub(super) fn on_errors(&mut self, bytes: &[u8]) {
        let at_port = matches!(self.start.listens, Listens::Port { .. });
        if at_port && self.banner.read(bytes) && self.stage == Stage::Opening {
            self.connect();
        }
    }

    pub(super) fn connect_if_due(&mut self, now: Now) {
        if self.link.look_at.is_some_and(|at| at <= now.tick) {
            self.link.look_at = None;
            self.link.retry_at = None;
            if self.link.is_up {
                return self.look_for_missed();
            }
        }
        if self.link.retry_at.is_some_and(|at| at <= now.tick) {
            self.connect();
        }
    }

    pub(super) fn on_connected(&mut self, _: Now) {
        if matches!(self.stage, Stage::Opening | Stage::Ready) {
            self.link = Link { is_up: true, cuts: self.link.cuts, ..Link::default() };
            let params = json!({
                "clientInfo": {
                    "name": "agent-relay-runner-codex", "title": "Agent Relay Codex Runner",
                    "version": crate::wire::VERSION
                },
                "capabilities": {"experimentalApi": true, "requestAttestation": false}
            });
            self.request(Request::Initialize, "initialize", params);
        }
    }

    pub(super) fn on_disconnected(&mut self, now: Now, reason: &str) {
        let was_up = std::mem::take(&mut self.link.is_up);
        self.link.look_at = None;
        self.forget_requests("the connection to the server broke");
        match self.stage {
            Stage::Fresh | Stage::Over => return,
            // The server is still starting; one that has told its port is there.
            Stage::Opening
                if self.banner.port().is_some() && self.link.attempts >= ATTEMPTS_MAX =>
            {
                return self.fail_open(format!("the server cannot be reached: {reason}"), false);
            }
            Stage::Opening => self.opening.last_failure = reason.to_string(),
            Stage::Ready if self.is_stopping => return,
            Stage::Ready => {
                if was_up {
                    self.warn(format!("the connection to the server broke: {reason}"));
                    self.approvals.doubt_all();
                }
                if self.link.attempts >= ATTEMPTS_MAX {
                    let reason = format!("the server cannot be reached any more: {reason}");
                    return self.out.push(Output::Kill { reason });
                }
            }
        }
        self.link.attempts += 1;
        self.link.retry_at = Some(now.tick + RETRY);
    }

    /// Nobody will answer what is open.
    pub(super) fn forget_requests(&mut self, why: &str) {
        for request in self.requests.take_all() {
            match request {
                Request::Probe(verb) => self.answer(verb, Ok(json!({"activity": "unknown"}))),
                Request::Clean(verb) => self.answer(verb, Err(why.into())),
                Request::Fresh => self.fail_context(why.into()),
                Request::Reconcile | Request::Lookup | Request::History => self.link.cuts += 1,
                _ => {}
            }
        }
    }

    pub(super) fn on_initialized(&mut self, now: Now, result: Result<Value, RpcError>) {
        match result {
            Ok(reply) => {
                self.send(&jsonrpc::notification("initialized", Value::Null));
                if self.stage == Stage::Opening {
                    self.on_greeted(text(&reply, "/userAgent"));
                } else {
                    self.rejoin();
                }
            }
            Err(error) if self.stage == Stage::Opening => self.fail_open(error.text, false),
            Err(error) => self.on_disconnected(now, &error.text),
        }
    }

    /// Hears of the thread again.
    pub(super) fn rejoin(&mut self) {
        let mut params = self.start.thread.clone();
        params.insert("threadId".into(), json!(self.thread));
        params.insert("excludeTurns".into(), json!(true));
        self.request(Request::Rejoin, "thread/resume", Value::Object(params));
    }

    pub(super) fn on_rejoined(&mut self, now: Now, result: Result<Value, RpcError>) {
        match result {
            Ok(_) => {
                self.is_loaded = true;
                self.approvals.expect_again(now);
                self.rejoin_children();
                self.ask_terminals();
                self.look_for_missed();
            }
            Err(error) => {
                let reason = format!("the server has lost the thread: {}", error.text);
                self.out.push(Output::Kill { reason });
            }
        }
    }

    fn look_for_missed(&mut self) {
        self.look(Request::Reconcile, MISSED_TURNS, "full");
    }

    /// How many turns of the record are asked for, of so many.
    pub(super) fn page(&self, turns: u64) -> u64 {
        (turns >> self.link.cuts.min(8)).max(1)
    }

    /// The newest turns of the record.
    pub(super) fn look(&mut self, request: Request, turns: u64, view: &str) {
        let turns = self.page(turns);
        let params = json!({"threadId": self.thread, "limit": turns, "itemsView": view});
        self.request(request, "thread/turns/list", params);
    }

    /// The record of what happened while nobody listened.
    pub(super) fn on_missed(&mut self, now: Now, result: Result<Value, RpcError>) {
        let turns = match result {
            Ok(reply) => TurnRecord::page(&reply),
            Err(error) if has_no_turn(&error) => Vec::new(),
            Err(_) => return self.look_again(now),
        };
        let runs = turns.first().filter(|turn| turn.status == TurnStatus::InProgress).cloned();
        if self.may_still_show(&turns) {
            self.link.looks += 1;
            return self.look_again(now);
        }
        self.settle_sent(&turns);
        match runs {
            Some(turn) => self.take_up_turn(&turn.id, "the server's record shows a running turn"),
            None => self.end_by_record(&turns),
        }
        self.next_text();
    }

    /// The server may have a text of ours that its record does not show yet: what goes in again too
    /// soon is there twice.
    fn may_still_show(&self, turns: &[TurnRecord]) -> bool {
        let shows = |id: &String| {
            turns.iter().flat_map(|turn| &turn.items).any(|item| item.text("/clientId") == id)
        };
        if self.sent.keys().all(shows) || crate::planted::is("hasty-resend") {
            return false;
        }
        let named = self.turn.as_ref().filter(|turn| turn.is_known());
        let is_missing = named.is_some_and(|named| turns.iter().all(|turn| turn.id != named.id));
        let is_bare = turns.first().is_some_and(|turn| turn.items.is_empty());
        let looks = if is_missing || is_bare { LOOKS_MAX } else { LOOKS_UNNAMED };
        self.link.looks < looks
    }

    /// The record says nothing yet.
    pub(super) fn look_again(&mut self, now: Now) {
        self.link.look_at = Some(now.tick + RETRY);
        self.link.retry_at = self.link.look_at;
    }

    /// No turn runs any more: the one that we know of has ended.
    pub(super) fn end_by_record(&mut self, turns: &[TurnRecord]) {
        let Some(turn) = &self.turn else { return };
        let known = turns.iter().find(|record| record.id == turn.id);
        // Begun, but its id was never told: it is the newest, or it never was.
        let record = known.or(turns.first().filter(|_| turn.id.is_empty())).cloned();
        let record = record.unwrap_or(TurnRecord {
            id: String::new(),
            status: TurnStatus::Interrupted,
            items: Vec::new(),
        });
        self.finish_turn(record, "the server's record shows the end of the turn");
    }
}
