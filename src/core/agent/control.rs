//! Requests at the control port: each is answered at once, or by what handles it.

use serde_json::{Map, Value, json};

use super::Agent;
use super::config::ReplyMode;
use super::effect::Effect;
use super::event::{ControlRequest, StopReason};
use super::stop::Why;
use super::tracker::{Status, TURN, Work};
use crate::core::http::GateCommand;
use crate::core::ids::Ticket;
use crate::core::session::TERMINAL_SESSION;
use crate::core::time::Now;

impl Agent {
    pub(super) fn on_control(&mut self, now: Now, ticket: Ticket, request: ControlRequest) {
        let (status, body) = match request {
            ControlRequest::Status => (200, self.truth(now)),
            ControlRequest::StatusPosted(body) => self.on_status_posted(now, &body),
            ControlRequest::HookFatal { hook, error } => {
                self.on_hook_fatal(now, &hook, &error);
                (200, json!({"ok": true}))
            }
            ControlRequest::Obligations => {
                let (mode, owed) = match self.config.reply_mode {
                    ReplyMode::Explicit => ("explicit", self.owed()),
                    ReplyMode::Auto => ("auto", self.obligations.clone()),
                };
                (200, json!({"obligations": owed, "replyMode": mode}))
            }
            ControlRequest::AttachSpec => self.attach_spec(),
            ControlRequest::Given(id) => self.given_json(id),
            ControlRequest::Message(body) => match self.on_tool_message(now, ticket, body) {
                Ok(()) => return,
                Err(refusal) => refusal,
            },
            ControlRequest::Reaction { message, body } => {
                match self.on_tool_reaction(now, ticket, message, &body) {
                    Ok(()) => return,
                    Err(refusal) => refusal,
                }
            }
            ControlRequest::TokenOffered(token) => match self.on_token_offered(ticket, token) {
                None => return,
                Some(refusal) => refusal,
            },
            ControlRequest::Stop => {
                self.begin_stop(now, Why::Asked(StopReason::Replaced));
                (202, json!({"ok": true}))
            }
            ControlRequest::Hook { event, body, waits } => {
                return self.on_hook(ticket, event, body, waits);
            }
            ControlRequest::Monitor { session } => return self.on_monitor(ticket, session),
            ControlRequest::MonitorSaid(text) => return self.on_monitor_said(&text),
            ControlRequest::Gone => return self.on_gone(ticket),
        };
        if ticket != Ticket::NOBODY {
            self.out.push(Effect::Gate(GateCommand::Respond { ticket, status, body: body.into() }));
        }
    }

    /// How a person attaches to the provider's terminal.
    fn attach_spec(&self) -> (u16, Value) {
        match &self.supervisor.terminal {
            _ if !self.supervisor.is_alive() => {
                (409, json!({"error": "provider process is unavailable"}))
            }
            None => (409, json!({"error": "provider does not support terminal attach"})),
            Some(socket) => {
                let command =
                    ["tmux", "-u", "-L", socket, "attach-session", "-t", TERMINAL_SESSION];
                let cwd = self.config.registration.meta.get("cwd");
                let mut env = Map::new();
                if let Some(dir) = &self.config.terminal_dir {
                    env.insert("TMUX_TMPDIR".into(), json!(dir));
                }
                (
                    200,
                    json!({"mode": "guest", "provider": self.config.provider, "cwd": cwd, "command": command, "env": env, "title": self.config.agent_id}),
                )
            }
        }
    }

    /// A hook says what the provider does.
    fn on_status_posted(&mut self, now: Now, body: &Value) -> (u16, Value) {
        let text =
            |field: &str| body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let Some(status) = text("status").and_then(Status::parse) else {
            return (400, json!({"error": "status must be idle, busy, offline, or error"}));
        };
        let accepted = (200, json!({"ok": true, "status": status.as_str()}));
        if text("providerSessionId").is_some_and(|id| id != self.supervisor.record.provider_session)
        {
            return accepted; // of an earlier process: dropped whole
        }
        let reason = text("reason").unwrap_or(TURN).to_string();
        let id = text("id").unwrap_or(&reason).to_string();
        if let Some(timeline) = body.get("timeline").filter(|t| t.is_object()) {
            let mut timeline = timeline.clone();
            if timeline.get("timestamp").is_none_or(|t| !t.is_number()) {
                timeline["timestamp"] = json!(now.wall.0);
            }
            self.status.set_timeline(timeline);
        }
        if self.config.session.tracks_turns && reason == TURN {
            // The bare word of a hook whose program could not be run: one more hint for the
            // session.
            self.tell_hook(Ticket::NOBODY, status.as_str().to_string(), Value::Null);
            self.status.touch();
            return accepted;
        }
        match status {
            Status::Busy => {
                self.tracker.set_terminal(None);
                let mut metadata = body
                    .get("metadata")
                    .filter(|m| m.is_object())
                    .cloned()
                    .unwrap_or_else(|| json!({}));
                if let Some(state) = body.get("providerState").filter(|s| s.is_object()) {
                    metadata["providerState"] = state.clone();
                }
                self.tracker.start_work(Work {
                    kind: reason,
                    id,
                    label: text("label").map(str::to_string),
                    metadata,
                });
            }
            Status::Idle => {
                self.tracker.set_terminal(None);
                self.tracker.finish_work(&reason, &id);
            }
            Status::Offline | Status::Error => {
                self.tracker.set_terminal(Some(status));
            }
        }
        for kind in body
            .get("clear")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            self.tracker.clear_work(kind);
        }
        self.status.touch();
        accepted
    }
}
