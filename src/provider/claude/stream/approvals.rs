//! Permissions and questions, which come as requests of the program.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::StreamSession;
use crate::core::limits::APPROVALS_MAX;
use crate::core::session::{Decision, SessionEvent};
use crate::core::time::{Now, Tick};
use crate::provider::claude::permission::{Answer, Ask};

#[derive(Debug)]
struct PendingApproval {
    /// The program's id of its request.
    request: String,
    ask: Ask,
    deadline: Tick,
}

/// The questions that wait for a decision, by our id.
#[derive(Debug, Default)]
pub(super) struct Approvals {
    pending: BTreeMap<String, PendingApproval>,
    /// Questions that were asked so far.
    asked: u64,
}

impl Approvals {
    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.pending.values().map(|pending| pending.deadline).min()
    }
}

/// What was decided, with words for the agent and the answers to a question.
#[derive(Clone, Copy)]
pub(super) struct Verdict<'a> {
    pub decision: Decision,
    pub reason: Option<&'a str>,
    pub answers: Option<&'a Value>,
}

impl StreamSession {
    /// The program asks: answered at once where nobody is to be asked, else shown to people.
    pub(super) fn on_ask(&mut self, now: Now, request: &str, record: &Value) {
        if self.approvals.pending.values().any(|pending| pending.request == request) {
            return; // the same line twice
        }
        let ask = Ask::read(record, "input");
        if self.settings.rejects_all() && !ask.is_question() {
            return self
                .refuse(request, "This agent is read-only: its runner allows no tool that asks.");
        }
        if ask.command().is_some_and(|command| self.settings.allows_unasked(command)) {
            return self.respond(request, &ask.answer(Decision::Approve, None, None));
        }
        if self.approvals.pending.len() >= APPROVALS_MAX {
            return self.refuse(request, "Too many questions wait for an answer.");
        }
        self.approvals.asked += 1;
        let prefix = self.start.nonce.get(..8).unwrap_or("approval");
        let id = format!("{prefix}-{}", self.approvals.asked);
        self.emit(SessionEvent::ApprovalOpened(ask.view(&id)));
        let deadline = now.tick + self.settings.approval_timeout;
        let pending = PendingApproval { request: request.into(), ask, deadline };
        self.approvals.pending.insert(id, pending);
    }

    /// A request whose id is lost can be answered by nobody: its turn ends as failed.
    pub(super) fn on_unanswerable(&mut self) {
        self.warn("the id of a request of the session is unreadable: the turn is ended");
        if let Some(turn) = &mut self.turn {
            turn.unanswerable = true;
            self.control(json!({"subtype": "interrupt"}));
        }
    }

    /// A person's decision. `Err`: why it does not count.
    pub(super) fn try_decide(&mut self, id: &str, verdict: Verdict<'_>) -> Result<Value, String> {
        let pending = self.approvals.pending.get(id).ok_or_else(|| {
            format!("no approval {id} is open; it may have been answered or withdrawn")
        })?;
        match pending.ask.objection(verdict.decision, verdict.answers) {
            Some(objection) => Err(objection),
            None => {
                self.decide(id, verdict, "decided");
                Ok(json!({"approvalId": id}))
            }
        }
    }

    fn decide(&mut self, id: &str, verdict: Verdict<'_>, why: &str) {
        let Some(pending) = self.approvals.pending.remove(id) else { return };
        let answer = pending.ask.answer(verdict.decision, verdict.reason, verdict.answers);
        self.respond(&pending.request, &answer);
        self.close_approval(id, why);
    }

    fn close_approval(&mut self, id: &str, why: &str) {
        self.emit(SessionEvent::ApprovalClosed { id: id.to_string(), reason: why.to_string() });
    }

    fn refuse(&mut self, request: &str, message: &str) {
        self.respond(request, &Answer::Deny { message: message.into(), interrupt: false });
    }

    fn respond(&mut self, request: &str, answer: &Answer) {
        let response =
            json!({"subtype": "success", "request_id": request, "response": answer.decision()});
        self.write(&json!({"type": "control_response", "response": response}));
    }

    /// The program takes a request back.
    pub(super) fn on_withdrawn(&mut self, request: &str) {
        let is_it = |pending: &PendingApproval| pending.request == request;
        let mut pending = self.approvals.pending.iter();
        let found = pending.find(|(_, pending)| is_it(pending)).map(|(id, _)| id.clone());
        if let Some(id) = found {
            self.approvals.pending.remove(&id);
            self.close_approval(&id, "answered elsewhere or withdrawn");
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
            let reason = Some("Nobody answered in time.");
            let verdict = Verdict { decision: Decision::Deny, reason, answers: None };
            self.decide(&id, verdict, "nobody answered in time");
        }
    }
}
