//! Requests at the control port: each is answered at once, or by what handles it.

use serde_json::{Value, json};

use super::Agent;
use super::config::ReplyMode;
use super::effect::Effect;
use super::event::{ControlRequest, StopReason};
use super::stop::Why;
use crate::core::http::GateCommand;
use crate::core::ids::Ticket;
use crate::core::session::{GUEST_WINDOW, TERMINAL_SESSION, Verb};
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

    /// How a person attaches to the provider's terminal, or opens a window on its session.
    fn attach_spec(&mut self) -> (u16, Value) {
        if !self.supervisor.is_alive() {
            return (409, json!({"error": "provider process is unavailable"}));
        }
        let terminal = self.supervisor.terminal.as_ref().map(|socket| {
            let command = ["tmux", "-u", "-S", socket, "attach-session", "-t", TERMINAL_SESSION];
            json!({"command": command, "env": {}})
        });
        let Some(how) = terminal.or_else(|| self.status.fact(GUEST_WINDOW).cloned()) else {
            return (409, json!({"error": "provider does not support terminal attach"}));
        };
        let (_, order) = self.supervisor.verb(Verb::Guest);
        self.commits.defer(order);
        let cwd = self.config.registration.meta.get("cwd");
        let mut spec = json!({
            "mode": "guest", "provider": self.config.provider, "cwd": cwd,
            "command": how["command"], "env": how["env"], "title": self.config.agent_id
        });
        if let Some(files) = how.get("envFiles") {
            spec["envFiles"] = files.clone();
        }
        (200, spec)
    }
}
