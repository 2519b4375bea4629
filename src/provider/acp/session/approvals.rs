//! What the agent asks for, and the answers in its own options.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ASK, AcpSession};
use crate::core::mcp::{SERVER, tools};
use crate::core::session::{Approval, Decision, SessionEvent};
use crate::core::time::{Now, Tick};
use crate::provider::jsonrpc;
use crate::provider::reader::{Damage, is_sound};
use crate::provider::redact::{covered, shown};
use crate::provider::settings::ApprovalMode;
use crate::provider::text::one_line;

/// Options of a question that people are shown.
const OPTIONS_SHOWN_MAX: usize = 16;

/// An answer that the agent offers.
#[derive(Debug)]
struct OfferedOption {
    id: String,
    /// `allow_once` and the like.
    kind: String,
}

#[derive(Debug)]
struct PendingApproval {
    /// Id of the agent's request; its id space is its own.
    request: Value,
    options: Vec<OfferedOption>,
    deadline: Tick,
    /// What of the question could not be read.
    damage: Damage,
}

impl PendingApproval {
    /// The answer of the agent's own that a decision is. What was not read whole is allowed this
    /// once at most.
    fn option(&self, decision: Decision) -> Option<&OfferedOption> {
        let kinds: &[&str] = match decision {
            Decision::Approve | Decision::ApproveSession
                if self.damage != Damage::None && !crate::planted::is("widened-by-damage") =>
            {
                &["allow_once"]
            }
            Decision::Approve => &["allow_once", "allow_always"],
            Decision::ApproveSession => &["allow_always", "allow_once"],
            Decision::Deny => &["reject_once", "reject_always"],
            Decision::Abort => &[],
        };
        kinds.iter().find_map(|kind| self.options.iter().find(|offered| offered.kind == *kind))
    }
}

/// The questions that wait for a decision, by our id.
#[derive(Debug, Default)]
pub(super) struct Approvals {
    pending: BTreeMap<String, PendingApproval>,
    /// Questions that were asked so far.
    asked: u64,
}

impl Approvals {
    /// Why a decision cannot be carried out.
    pub(super) fn objection(&self, id: &str, decision: Decision) -> Option<String> {
        let Some(pending) = self.pending.get(id) else {
            return Some(format!(
                "no approval {id} is open; it may have been answered or withdrawn"
            ));
        };
        let allows = matches!(decision, Decision::Approve | Decision::ApproveSession);
        let is_lost =
            allows && pending.damage != Damage::None && pending.option(decision).is_none();
        is_lost.then(|| {
            "how to allow this once is unreadable in what the agent asked: deny it, and let the \
             agent ask again"
                .into()
        })
    }

    /// The agent is gone: nobody waits for answers any more.
    pub(super) fn forget(&mut self) {
        self.pending.clear();
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.pending.values().map(|pending| pending.deadline).min()
    }

    /// Our id of the next question. Counters begin anew with every process and sessions are
    /// resumed: the time keeps an old decision from fitting a new question.
    fn next_id(&mut self, now: Now) -> String {
        self.asked += 1;
        format!("{}-{:06x}", self.asked, (now.tick.0 ^ now.wall.0 as u64) & 0xff_ffff)
    }

    fn ids(&self) -> Vec<String> {
        self.pending.keys().cloned().collect()
    }
}

/// Whether a question is about one of the relay's tools, as an adapter says that knows whose tools
/// are whose. A title says nothing: a command can be called anything.
fn is_relay_tool(call: &Value) -> bool {
    let says = |at: &str| call.pointer(at).and_then(Value::as_str);
    let tool =
        says("/_meta/claudeCode/toolName").and_then(|name| name.strip_prefix("mcp__relay__"));
    says("/_meta/claudeCode/mcpServer/name") == Some(SERVER)
        && tool.is_some_and(|name| tools::find(name).is_some())
}

impl AcpSession {
    /// A request of the agent that nobody here knows, or whose method is unreadable.
    pub(super) fn on_other_request(&mut self, id: &Value, method: &str) {
        let error = match method {
            "" => jsonrpc::error(id, jsonrpc::PARSE_ERROR, "the request could not be read"),
            _ => jsonrpc::method_not_found(id, method),
        };
        self.write(&error);
    }

    /// A question whose id is lost can be answered by nobody: its turn ends as failed.
    pub(super) fn on_unanswerable(&mut self, now: Now) {
        self.warn(format!("the id of a {ASK} is unreadable: the turn is ended"));
        if let Some(turn) = self.turn.as_mut() {
            turn.unanswerable = true;
            self.cancel_turn(now);
        }
    }

    /// The agent asks for a permission.
    pub(super) fn on_ask(&mut self, now: Now, id: Value, params: &Value, damage: Damage) {
        if self.approvals.pending.values().any(|pending| pending.request == id) {
            return; // the same line twice
        }
        if self.turn.as_ref().is_none_or(|turn| turn.cancelled) {
            // It crossed our cancel: some agents end their turn only after this answer, and none
            // may act on a yes.
            return self.write(&jsonrpc::result(&id, json!({"outcome": {"outcome": "cancelled"}})));
        }
        let offered = params.get("options").and_then(Value::as_array).cloned().unwrap_or_default();
        let options = offered
            .iter()
            .filter_map(|option| {
                let text =
                    |field: &str| option.get(field).and_then(Value::as_str).map(str::to_string);
                Some(OfferedOption {
                    id: text("optionId").filter(|id| damage == Damage::None || is_sound(id))?,
                    kind: text("kind").unwrap_or_default(),
                })
            })
            .collect();
        let approval = self.approvals.next_id(now);
        let call = params.get("toolCall").unwrap_or(&Value::Null);
        self.tool(call);
        let deadline = now.tick + self.settings.approval_timeout;
        let pending = PendingApproval { request: id, options, deadline, damage };
        self.approvals.pending.insert(approval.clone(), pending);
        if damage == Damage::None && self.has_tools() && is_relay_tool(call) {
            // None of them sends a file or runs a command.
            self.settle_ask(&approval, Decision::Approve);
            return;
        }
        match self.settings.approval_mode {
            // The mode allows whatever is asked, but not whatever was not asked.
            ApprovalMode::Open if damage == Damage::Broken => {
                self.warn("half of a question is unreadable: it is denied");
                self.decide(&approval, Decision::Deny, "unreadable");
            }
            ApprovalMode::Open => self.decide(&approval, Decision::Approve, "open"),
            ApprovalMode::ReadOnly => self.decide(&approval, Decision::Deny, "read-only"),
            ApprovalMode::Guarded => {
                let mut view = self.view(approval, call, &offered);
                view.title = damage.title(&view.title);
                self.emit(SessionEvent::ApprovalOpened(view));
            }
        }
    }

    /// What people see of a question.
    fn view(&self, id: String, call: &Value, offered: &[Value]) -> Approval {
        let text = |field: &str| call.get(field).and_then(Value::as_str).unwrap_or_default();
        let known = self.turn.as_ref().and_then(|turn| turn.tools.get(text("toolCallId")));
        let title = known.map_or(text("title"), |tool| &tool.title);
        let names = offered.iter().filter_map(|option| option.get("name").and_then(Value::as_str));
        let input = call.get("rawInput").cloned().unwrap_or(Value::Null);
        Approval {
            id,
            title: one_line(&covered(title), 300),
            kind: one_line(text("kind"), 40),
            input: shown(&input),
            options: names.take(OPTIONS_SHOWN_MAX).map(|name| one_line(name, 100)).collect(),
            detail: serde_json::Map::new(),
        }
    }

    /// Answers by `kind`, never by position or id, which differ per agent. Always with an offered
    /// id, or `cancelled`.
    pub(super) fn decide(&mut self, approval: &str, decision: Decision, reason: &str) {
        if self.settle_ask(approval, decision)
            && self.settings.approval_mode == ApprovalMode::Guarded
        {
            self.emit(SessionEvent::ApprovalClosed {
                id: approval.to_string(),
                reason: reason.to_string(),
            });
        }
    }

    /// The same unseen by people; false: nobody waits for it.
    fn settle_ask(&mut self, approval: &str, decision: Decision) -> bool {
        let Some(pending) = self.approvals.pending.remove(approval) else { return false };
        let outcome = match pending.option(decision) {
            Some(option) => json!({"outcome": "selected", "optionId": option.id}),
            None => json!({"outcome": "cancelled"}),
        };
        self.write(&jsonrpc::result(&pending.request, json!({"outcome": outcome})));
        true
    }

    /// Takes back every question.
    pub(super) fn abort_approvals(&mut self, reason: &str) {
        for id in self.approvals.ids() {
            self.decide(&id, Decision::Abort, reason);
        }
    }

    /// Denies what nobody has answered in time.
    pub(super) fn deny_late(&mut self, now: Now) {
        let is_late = |pending: &PendingApproval| pending.deadline <= now.tick;
        let pending = self.approvals.pending.iter();
        let late: Vec<String> =
            pending.filter(|(_, pending)| is_late(pending)).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.warn(format!("approval {id} was not answered in time and is denied"));
            self.decide(&id, Decision::Deny, "nobody answered in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tools_that_an_adapter_calls_ours_ask_nobody() {
        let call = |tool: &str, server: &str| {
            let meta =
                json!({"toolName": tool, "mcpServer": {"name": server, "source": "dynamic"}});
            json!({"title": tool, "_meta": {"claudeCode": meta}})
        };
        for (call, ours) in [
            (call("mcp__relay__relay_reply", "relay"), true),
            (call("mcp__relay__relay_reply", "other"), false),
            (call("mcp__relay__delete_all", "relay"), false),
            (call("mcp__relayx__relay_reply", "relay"), false),
            (call("relay_reply", "relay"), false),
            (json!({"title": "mcp__relay__relay_reply"}), false),
            (
                json!({"title": "x", "_meta": {"claudeCode": {"toolName": "mcp__relay__relay_reply"}}}),
                false,
            ),
            (Value::Null, false),
        ] {
            assert_eq!(is_relay_tool(&call), ours, "{call}");
        }
    }
}
