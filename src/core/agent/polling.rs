//! Without the bus: rounds of liveness over HTTP, and a change of status soon after it happened.
//! Whatever the bus would tell, these calls tell.

use serde_json::{Map, Value, json};

use super::Agent;
use super::http_calls::{CallKind, text_of};
use super::stop::Why;
use crate::core::Cause;
use crate::core::agent::timer::Timer;
use crate::core::limits::*;
use crate::core::time::{Now, Tick};
use crate::wire::PROTOCOL;
use crate::wire::api::AgentStatus;
use crate::wire::api::path;
use crate::wire::control::LogLevel;

/// How the relay is reached while there is no bus.
#[derive(Debug, Default)]
pub(super) struct Polling {
    /// The relay has answered a round since the bus was lost.
    pub works: bool,
    /// When a status was last told.
    told_at: Option<Tick>,
    /// The round under way brings everything; else it only tells the status.
    whole: bool,
    /// Another round was wanted while one was under way.
    again: bool,
    /// The status that the round under way tells: the word of the wire, and the record beside it.
    telling: Option<(AgentStatus, Map<String, Value>)>,
}

/// A step of a round, in their order; at a relay that does not know this instance yet the
/// registration comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Register,
    PutStatus,
    PutReady,
    Heartbeat,
}

const STEPS: [Step; 4] = [Step::Register, Step::PutStatus, Step::PutReady, Step::Heartbeat];

impl Agent {
    /// A whole round, or one that only tells the status; while one is under way the next waits for
    /// its end.
    pub(super) fn begin_round(&mut self, whole: bool) {
        self.relay_link.polling.whole |= whole;
        self.timers.clear(Timer::TellStatus);
        if STEPS.iter().any(|step| self.http_calls.has(&CallKind::Liveness(*step))) {
            self.relay_link.polling.again = true;
            return;
        }
        // The relay may still know an older instance of this agent: before it knows this one, its
        // refusal would mean nothing.
        self.liveness_step(if self.relay_link.known_instance {
            Step::PutStatus
        } else {
            Step::Register
        });
    }

    /// The bus is registered: what is under way over HTTP is not gone on with, and the bus tells
    /// the newest status.
    pub(super) fn stop_polling(&mut self) {
        self.relay_link.polling = Polling::default();
        self.timers.clear(Timer::TellStatus);
        STEPS.iter().for_each(|step| self.http_calls.forget(&CallKind::Liveness(*step)));
    }

    /// The status has changed and there is no bus: it is told soon, together with what else changes
    /// in a moment; the last one before the end at once.
    pub(super) fn plan_telling(&mut self, now: Now) {
        if !self.relay_link.polling.works
            || (self.timers.is_set(Timer::TellStatus) && self.stop.is_none())
        {
            return; // the next round tells
        }
        if !self.status.is_news(&self.status_told()) {
            self.status.is_told();
        } else if self.stop.is_some() {
            self.status.fall_silent();
            self.begin_round(false);
        } else {
            let soon = now.tick + STATUS_SETTLES;
            let at =
                self.relay_link.polling.told_at.map_or(soon, |told| soon.max(told + STATUS_PAUSE));
            self.timers.set_once(Timer::TellStatus, at);
        }
    }

    fn liveness_step(&mut self, step: Step) {
        let id = &self.config.agent_id;
        let instance = &self.config.instance_id;
        let (method, path, body) = match step {
            Step::PutStatus => {
                let told = self.status_told();
                self.status.is_told();
                let body = json!({"status": told.0.as_str(), "instanceId": instance});
                let path = path::agent_part(id, "status");
                self.relay_link.polling.telling = Some(told);
                ("PUT", path, body)
            }
            Step::PutReady => {
                let (status, mut meta) =
                    self.relay_link.polling.telling.clone().unwrap_or_else(|| self.status_told());
                meta.extend(
                    self.status.take_timeline().map(|event| ("timelineEvent".to_string(), event)),
                );
                let body = json!({"ready": status != AgentStatus::Offline, "instanceId": instance, "meta": meta});
                ("PUT", path::agent_part(id, "ready"), body)
            }
            Step::Heartbeat => (
                "POST",
                path::agent_part(id, "heartbeat"),
                json!({"instanceId": instance, "meta": self.heartbeat_meta()}),
            ),
            Step::Register => {
                let mut registration = self.config.registration.clone();
                registration.protocol = PROTOCOL;
                registration.meta = self.registration_meta();
                let mut body = serde_json::to_value(registration).expect("plain data");
                body["id"] = json!(id);
                ("POST", path::AGENTS.to_string(), body)
            }
        };
        self.ask(CallKind::Liveness(step), method, path, Some(body));
    }

    /// One answer of a liveness round; the first failure ends the round.
    pub(super) fn on_liveness_step(
        &mut self,
        now: Now,
        step: Step,
        result: Result<(u16, Value), Cause>,
    ) {
        match result {
            // The bus is back: whatever this step told may be older than what the bus told, so that
            // tells it once more.
            Ok((status, _)) if status < 300 && self.relay_link.is_registered() => {
                self.status.send_again()
            }
            Ok((status, body)) if status < 300 => self.on_step_done(now, step, &body),
            Ok((404, _)) if step != Step::Register => self.liveness_step(Step::Register),
            Ok((403, body)) if step == Step::Register => {
                let text = text_of(403, &body);
                self.on_registration_refused(now, &text);
                self.on_round_failed(now, text);
            }
            Ok((404 | 405, _)) if self.relay_link.bus_refused.is_some() => {
                let text = self.relay_link.bus_refused.take().unwrap_or_default();
                self.on_registration_refused(now, &text);
            }
            Ok((409, _)) if self.stop.is_none() => {
                self.begin_stop(now, Why::Displaced("another runner registered this agent".into()));
            }
            Ok((status, body)) => self.on_round_failed(now, text_of(status, &body)),
            Err(cause) => self.on_round_failed(now, cause.to_string()),
        }
    }

    fn on_step_done(&mut self, now: Now, step: Step, body: &Value) {
        match step {
            Step::PutStatus => self.liveness_step(Step::PutReady),
            Step::PutReady => {
                self.relay_link.polling.works = true;
                self.relay_link.polling.told_at = Some(now.tick);
                if let Some(told) = self.relay_link.polling.telling.take() {
                    self.status.note_told(told);
                }
                if self.relay_link.polling.whole {
                    self.liveness_step(Step::Heartbeat)
                } else {
                    self.end_round()
                }
            }
            Step::Heartbeat => {
                self.note_server_in(body);
                let pending =
                    body.get("commands").and_then(Value::as_array).cloned().unwrap_or_default();
                for id in pending.iter().filter_map(Value::as_str) {
                    if !self.commands.knows(id) {
                        self.ask(CallKind::FetchCommand(id.into()), "GET", path::command(id), None);
                    }
                }
                self.on_relay_back();
                self.ask_unread();
                self.relay_link.polling.whole = false;
                self.end_round();
            }
            Step::Register => {
                self.note_server_in(body);
                self.relay_link.known_instance = true;
                self.relay_link.bus_refused = None;
                self.liveness_step(Step::PutStatus);
            }
        }
    }

    fn end_round(&mut self) {
        if std::mem::take(&mut self.relay_link.polling.again) {
            self.begin_round(false);
        }
    }

    fn on_round_failed(&mut self, now: Now, text: String) {
        // The next whole round tries again, and tells the status of then.
        self.relay_link.polling = Polling::default();
        self.timers.clear(Timer::TellStatus);
        self.status.send_again();
        let line = format!("liveness: {text}");
        if self.status.may_log(now, &line) {
            self.log(LogLevel::Warn, "runner", line);
        }
    }
}
