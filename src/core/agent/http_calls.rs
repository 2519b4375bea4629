//! HTTP calls to the relay: one under way, the others wait in order; at most one of each purpose.

use super::effect::{Effect, HeartbeatCommand};
use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::Agent;
use super::polling::Step;
use crate::core::Cause;
use crate::core::agent::timer::Timer;
use crate::core::ids::{CallNumber, MessageRef};
use crate::core::limits::*;
use crate::core::time::{Now, Tick};
use crate::wire::api::{OTHER_GENERATION, path};
use crate::wire::control::LogLevel;

/// Why a call is made; the answer is handled by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallKind {
    MakeToken,
    RenewToken,
    /// Asks whose the token is that the runner was started with.
    CheckToken,
    /// Asks whose the token is that was handed over at the control port.
    CheckOffered,
    Claim(MessageRef),
    RenewClaim(MessageRef),
    Read(MessageRef),
    Obligations,
    Unread,
    /// A step of a liveness round; the first failure ends the round.
    Liveness(Step),
    FetchCommand(String),
    PatchCommand(String),
    /// Reports that a command is under way, while there is no bus.
    CommandProgress(String),
    /// Asks for the status of an interrupted task, at a relay that would offer it again.
    HeldTask(MessageRef),
    /// Gives the claim of such a task back.
    ReleaseHeld(MessageRef),
}

#[derive(Debug)]
struct Waiting {
    kind: CallKind,
    method: &'static str,
    path: String,
    body: Option<Value>,
}

/// Calls that wait, and the one under way.
#[derive(Debug, Default)]
pub(super) struct HttpCalls {
    number: CallNumber,
    flying: Option<(CallNumber, CallKind)>,
    waiting: VecDeque<Waiting>,
    /// Unread messages have to be fetched again: the answer was lost, or there were more.
    unread_open: bool,
    pub last_error: Option<(String, Tick)>,
}

/// Most messages that one fetch of unread ones brings.
pub(super) const UNREAD_PAGE: usize = 100;
/// Pause before calls that failed are made again while the relay looks reachable.
const CALLS_RETRY: Duration = Duration::from_secs(5);

impl HttpCalls {
    pub fn is_quiet(&self) -> bool {
        self.flying.is_none() && self.waiting.is_empty()
    }

    pub fn has(&self, kind: &CallKind) -> bool {
        self.flying.as_ref().is_some_and(|(_, flying)| flying == kind)
            || self.waiting.iter().any(|w| w.kind == *kind)
    }

    /// Drops calls that are pointless while the relay cannot be reached.
    pub fn forget(&mut self, kind: &CallKind) {
        self.waiting.retain(|w| w.kind != *kind);
    }
}

impl Agent {
    pub(super) fn ask(
        &mut self,
        kind: CallKind,
        method: &'static str,
        path: String,
        body: Option<Value>,
    ) {
        // Reads and updates are many, and told again when the relay is back; the others are few and
        // each is waited for.
        let many = matches!(
            kind,
            CallKind::Read(_)
                | CallKind::FetchCommand(_)
                | CallKind::PatchCommand(_)
                | CallKind::CommandProgress(_)
        );
        if self.http_calls.has(&kind)
            || (many && self.http_calls.waiting.len() >= CALLS_WAITING_MAX)
        {
            return;
        }
        let waiting = Waiting { kind, method, path, body };
        // Nothing else can succeed before there is a token; a claim holds up a delivery.
        let goes_first = matches!(
            waiting.kind,
            CallKind::MakeToken
                | CallKind::RenewToken
                | CallKind::CheckToken
                | CallKind::CheckOffered
                | CallKind::Claim(_)
        );
        if goes_first {
            self.http_calls.waiting.push_front(waiting)
        } else {
            self.http_calls.waiting.push_back(waiting)
        }
    }

    pub(super) fn launch_call(&mut self) {
        if self.http_calls.flying.is_some() || self.http_calls.waiting.is_empty() {
            return;
        }
        let Some(token) = self.tokens.for_purpose(&self.http_calls.waiting[0].kind) else {
            return;
        };
        let Waiting { kind, method, path, body } =
            self.http_calls.waiting.pop_front().expect("not empty");
        self.http_calls.number = self.http_calls.number.next();
        self.http_calls.flying = Some((self.http_calls.number, kind));
        self.out.push(Effect::Heartbeat(HeartbeatCommand::Call {
            call: self.http_calls.number,
            relay: self.config.relay_url.clone(),
            method,
            path,
            body,
            token,
        }));
    }

    pub(super) fn on_called(
        &mut self,
        now: Now,
        call: CallNumber,
        result: Result<(u16, Value), Cause>,
    ) {
        let Some((_, kind)) = self.http_calls.flying.take_if(|(number, _)| *number == call) else {
            return;
        };
        self.note_call_trouble(now, &kind, &result);
        let ok = matches!(&result, Ok((status, _)) if *status < 300);
        let gone = matches!(&result, Ok((404, _)));
        match kind {
            CallKind::MakeToken => self.on_token_made(now, result),
            CallKind::RenewToken => self.on_token_renewed(now, result),
            CallKind::CheckToken => self.on_token_checked(now, result),
            CallKind::CheckOffered => self.on_offer_checked(now, result),
            CallKind::Claim(at) => self.on_claim_answer(now, at, result),
            CallKind::RenewClaim(at) => self.on_claim_renewed(now, at, result),
            CallKind::Read(at) => self.on_read_answer(now, at, &result),
            CallKind::Obligations => self.on_obligations(now, result),
            CallKind::Unread => self.on_unread(now, result),
            CallKind::Liveness(step) => self.on_liveness_step(now, step, result),
            CallKind::FetchCommand(_) => {
                if let Ok((200, body)) = result
                    && let Ok(command) = serde_json::from_value(body)
                {
                    self.on_command(now, command, None);
                }
            }
            CallKind::PatchCommand(id) => {
                if ok || gone {
                    self.on_update_known(&id);
                }
            }
            CallKind::CommandProgress(_) | CallKind::ReleaseHeld(_) => {}
            CallKind::HeldTask(at) => self.on_held_task(at, result),
        }
    }

    /// What a failed call says of the token and of the relay; what an answer means for a token is
    /// decided where that is looked at.
    fn note_call_trouble(
        &mut self,
        now: Now,
        kind: &CallKind,
        result: &Result<(u16, Value), Cause>,
    ) {
        match result {
            Ok((401 | 403, _))
                if matches!(
                    kind,
                    CallKind::MakeToken
                        | CallKind::RenewToken
                        | CallKind::CheckToken
                        | CallKind::CheckOffered
                ) => {}
            Ok((403, _))
                if *kind == CallKind::Liveness(Step::Register)
                    && !self.relay_link.known_instance => {}
            Ok((401 | 403, _)) => self.on_auth_trouble(now, "call"),
            Ok((status, body)) if *status >= 400 && *status != 404 && *status != 409 => {
                self.http_calls.last_error = Some((text_of(*status, body), now.tick));
            }
            Err(cause) => self.http_calls.last_error = Some((cause.to_string(), now.tick)),
            Ok(_) => {}
        }
    }

    /// The relay knows by now that a message was read, or will never know.
    fn on_read_answer(&mut self, now: Now, at: MessageRef, result: &Result<(u16, Value), Cause>) {
        match result {
            Ok((status, body))
                if *status < 300
                    || (*status >= 400
                        && *status < 500
                        && ![401, 403, 408, 429].contains(status)) =>
            {
                let other = *status == 409
                    && body.get("code").and_then(Value::as_str) == Some(OTHER_GENERATION);
                if *status == 404 || other {
                    self.turn.note_gone(at);
                }
                self.on_read_told(at);
            }
            _ => self.retry_calls(now),
        }
    }

    fn on_unread(&mut self, now: Now, result: Result<(u16, Value), Cause>) {
        match result {
            Ok((status, body)) if status < 300 => {
                let unread = crate::wire::api::messages_of(&body);
                let (page_is_full, told_before) =
                    (unread.len() >= UNREAD_PAGE, self.inbox.counts().2);
                for message in unread {
                    self.on_message(message, None);
                }
                // Those that are done here are told as read now; others may stand behind them.
                if page_is_full && self.inbox.counts().2 > told_before {
                    self.ask_unread_again(now);
                }
            }
            other => {
                self.log_trouble(now, "unread fetch", &other);
                self.ask_unread_again(now);
            }
        }
    }

    fn log_trouble(&mut self, now: Now, what: &str, result: &Result<(u16, Value), Cause>) {
        let text = match result {
            Ok((status, body)) => text_of(*status, body),
            Err(cause) => cause.to_string(),
        };
        let line = format!("{what}: {text}");
        if self.status.may_log(now, &line) {
            self.log(LogLevel::Warn, "runner", line);
        }
    }

    fn ask_unread_again(&mut self, now: Now) {
        self.http_calls.unread_open = true;
        self.retry_calls(now);
    }

    pub(super) fn retry_calls(&mut self, now: Now) {
        self.timers.set_once(Timer::CallsRetry, now.tick + CALLS_RETRY);
    }

    pub(super) fn on_calls_due(&mut self) {
        self.timers.clear(Timer::CallsRetry);
        self.tell_reads_again();
        // Without the bus each liveness round asks anyway.
        if std::mem::take(&mut self.http_calls.unread_open) && self.relay_link.is_registered() {
            self.ask_unread();
        }
    }

    pub(super) fn mark_obligations_dirty(&mut self) {
        if self.relay_link.is_registered() {
            self.timers.set_once(Timer::Obligations, self.now.tick + OBLIGATIONS_DEBOUNCE);
        }
    }

    pub(super) fn ask_obligations(&mut self) {
        self.ask(
            CallKind::Obligations,
            "GET",
            path::agent_part(&self.config.agent_id, "reply-obligations"),
            None,
        );
    }

    pub(super) fn on_obligations(&mut self, now: Now, result: Result<(u16, Value), Cause>) {
        let fresh = match result {
            Ok((status, body)) if status < 300 => {
                self.note_server_in(&body);
                self.obligations = crate::wire::api::obligations_of(&body);
                self.note_owed();
                true
            }
            _ => false,
        };
        self.on_obligations_known(now, fresh);
    }
}

/// The sentence of an error answer, for logs.
pub(super) fn text_of(status: u16, body: &Value) -> String {
    match body.get("error").and_then(Value::as_str) {
        Some(text) => format!("{text} (HTTP {status})"),
        None => format!("HTTP {status}"),
    }
}
