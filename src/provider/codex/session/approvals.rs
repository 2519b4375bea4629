//! What the server asks, and who has answered.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::CodexSession;
use crate::core::limits::APPROVALS_MAX;
use crate::core::session::{Decision, Output, SessionEvent};
use crate::core::time::{Now, Tick};
use crate::provider::codex::asks::Ask;
use crate::provider::codex::frames::{Item, text};
use crate::provider::jsonrpc;
use crate::provider::reader::Damage;
use crate::provider::settings::ApprovalMode;
use crate::provider::text::one_line;

/// After the thread is heard again, its open questions are asked again in that time.
const ASKED_AGAIN_WITHIN: Duration = Duration::from_secs(2);
/// Changes of files that are remembered until somebody is asked about them.
const CHANGES_MAX: usize = 64;

#[derive(Debug)]
struct Pending {
    /// The server's id of its request; its numbers are its own.
    request: Value,
    ask: Ask,
    /// `None`: it waits as long as it takes.
    deadline: Option<Tick>,
    /// The connection broke since it was asked: it counts only if it is asked again.
    is_doubted: bool,
}

/// The questions that wait for a decision, by our id.
#[derive(Debug, Default)]
pub(super) struct Approvals {
    pending: BTreeMap<String, Pending>,
    /// Questions that were asked so far.
    asked: u64,
    /// Changes that began, by item: a question about them does not tell them.
    changes: BTreeMap<String, Item>,
    /// When what was not asked again since the connection broke counts as answered elsewhere.
    doubted_until: Option<Tick>,
}

impl Approvals {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The server is gone: nobody waits for answers any more.
    pub(super) fn forget(&mut self) {
        self.pending.clear();
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        let deadlines = self.pending.values().filter_map(|pending| pending.deadline);
        deadlines.chain(self.doubted_until).min()
    }

    pub(super) fn note_change(&mut self, item: &Item) {
        let has_room = self.changes.len() < CHANGES_MAX || self.changes.contains_key(&item.id);
        if item.kind == "fileChange" && has_room {
            self.changes.insert(item.id.clone(), item.clone());
        }
    }

    pub(super) fn forget_change(&mut self, item: &str) {
        self.changes.remove(item);
    }

    /// The connection broke: what is still open will be asked again.
    pub(super) fn doubt_all(&mut self) {
        self.pending.values_mut().for_each(|pending| pending.is_doubted = true);
    }

    /// The thread is heard again: the server asks again within milliseconds.
    pub(super) fn expect_again(&mut self, now: Now) {
        if self.pending.values().any(|pending| pending.is_doubted) {
            self.doubted_until = Some(now.tick + ASKED_AGAIN_WITHIN);
        }
    }

    /// What was not asked again has been answered meanwhile.
    fn withdraw_doubted(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.doubted_until.take_if(|until| *until <= now.tick).is_some() {
            self.withdraw(|pending| pending.is_doubted, "answered elsewhere or withdrawn", out);
        }
    }

    /// A turn is over, and with it what it asked.
    pub(super) fn withdraw_turn(&mut self, turn: &str, out: &mut Vec<Output>) {
        self.withdraw(|pending| pending.ask.turn() == turn, "the turn is over", out);
    }

    /// A thread is left.
    pub(super) fn withdraw_thread(&mut self, thread: &str, out: &mut Vec<Output>) {
        let why = "the conversation was left";
        self.withdraw(|pending| pending.ask.thread() == thread, why, out);
    }

    fn withdraw(&mut self, is_it: impl Fn(&Pending) -> bool, why: &str, out: &mut Vec<Output>) {
        let gone: Vec<String> = self
            .pending
            .iter()
            .filter(|(_, pending)| is_it(pending))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.pending.remove(&id);
            let reason = why.to_string();
            out.push(Output::Event(SessionEvent::ApprovalClosed { id, reason }));
        }
    }
}

/// What was decided, with the answers to a question.
#[derive(Clone, Copy)]
pub(super) struct Verdict<'a> {
    pub decision: Decision,
    pub answers: Option<&'a Value>,
}

impl CodexSession {
    /// The server asks. While a person sits at its own window, nothing is answered unasked: the
    /// first answer decides, for everybody.
    pub(super) fn on_ask(
        &mut self,
        now: Now,
        id: Value,
        method: &str,
        params: &Value,
        damage: Damage,
    ) {
        let item = self.approvals.changes.get(text(params, "/itemId")).cloned();
        let is_attended = self.window.is_open();
        let Some(ask) = Ask::read(method, params, item.as_ref()) else {
            let name = one_line(method, 100);
            // An answer decides for everybody, an error too.
            if is_attended || self.window.has_guests {
                return self.warn(format!("left to the window: a request {name:?} of the server"));
            }
            self.warn(format!("refused a request {name:?} of the server, which is not known here"));
            return self.send(&jsonrpc::method_not_found(&id, method));
        };
        let mut known = self.approvals.pending.values_mut();
        if let Some(pending) = known.find(|pending| pending.request == id) {
            pending.is_doubted = false;
            return;
        }
        let is_full = self.approvals.pending.len() >= APPROVALS_MAX;
        let mode = self.settings.approval_mode;
        // One of ours that reads what is the agent's own, or answers.
        let is_own = || {
            let line = ask.plain_command().filter(|_| damage == Damage::None);
            line.is_some_and(|line| self.settings.allows_unasked(&line))
        };
        let decision = match mode {
            _ if is_attended && !crate::planted::is("unasked-answer") => None,
            _ if is_full => Some(Decision::Deny),
            _ if ask.is_question() => None,
            // Nobody knows what would be allowed.
            ApprovalMode::Open if damage != Damage::None => Some(Decision::Deny),
            ApprovalMode::Open => Some(Decision::Approve),
            ApprovalMode::ReadOnly => Some(Decision::Deny),
            ApprovalMode::Guarded => is_own().then_some(Decision::Approve),
        };
        if let Some(decision) = decision {
            return self.respond(&id, &ask, Verdict { decision, answers: None });
        }
        if is_full {
            return self.warn("too many questions are open; one is left to the window");
        }
        self.approvals.asked += 1;
        let prefix = self.start.nonce.get(..8).unwrap_or("approval");
        let approval = format!("{prefix}-{}", self.approvals.asked);
        let mut view = ask.view(&approval);
        view.title = damage.title(&view.title);
        self.emit(SessionEvent::ApprovalOpened(view));
        let deadline = (!is_attended).then(|| now.tick + self.settings.approval_timeout);
        let pending = Pending { request: id, ask, deadline, is_doubted: false };
        self.approvals.pending.insert(approval, pending);
    }

    /// A person's decision. `Err`: why it does not count.
    pub(super) fn try_decide(&mut self, id: &str, verdict: Verdict<'_>) -> Result<Value, String> {
        let pending = self.approvals.pending.get(id).ok_or_else(|| {
            format!("no approval {id} is open; it may have been answered or withdrawn")
        })?;
        if let Some(objection) = pending.ask.objection(verdict.decision, verdict.answers) {
            return Err(objection);
        }
        if !self.link.is_up || pending.is_doubted {
            return Err("the session is being connected again; decide in a moment".into());
        }
        self.decide(id, verdict, "decided");
        Ok(json!({"approvalId": id}))
    }

    fn decide(&mut self, id: &str, verdict: Verdict<'_>, why: &str) {
        let Some(pending) = self.approvals.pending.remove(id) else { return };
        self.respond(&pending.request, &pending.ask, verdict);
        let (id, reason) = (id.to_string(), why.to_string());
        self.emit(SessionEvent::ApprovalClosed { id, reason });
    }

    fn respond(&mut self, request: &Value, ask: &Ask, verdict: Verdict<'_>) {
        let answer = ask.answer(verdict.decision, verdict.answers);
        if let (Some((item, line)), Some(turn)) =
            (ask.command_allowed(verdict.decision), &mut self.turn)
            && turn.id == ask.turn()
        {
            turn.note_command(&item, &line);
        }
        self.send(&jsonrpc::result(request, answer.result));
        if answer.interrupts {
            let params = json!({"threadId": ask.thread(), "turnId": ask.turn()});
            self.request(super::Request::Interrupt, "turn/interrupt", params);
        }
    }

    /// Somebody has answered: we, another client, or nobody any more.
    pub(super) fn on_resolved(&mut self, request: &Value) {
        let why = "answered elsewhere or withdrawn";
        self.approvals.withdraw(|pending| pending.request == *request, why, &mut self.out);
    }

    /// Denies what nobody has answered in time.
    pub(super) fn deny_late(&mut self, now: Now) {
        self.approvals.withdraw_doubted(now, &mut self.out);
        let is_late =
            |pending: &Pending| pending.deadline.is_some_and(|deadline| deadline <= now.tick);
        let pending = self.approvals.pending.iter();
        let late: Vec<String> =
            pending.filter(|(_, pending)| is_late(pending)).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.warn(format!("approval {id} was not answered in time and is denied"));
            let verdict = Verdict { decision: Decision::Deny, answers: None };
            self.decide(&id, verdict, "nobody answered in time");
        }
    }
}
