//! What the session asks somebody: permission hooks that wait for an answer, and how it is noticed
//! that somebody answered at the terminal instead.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value};

use super::out::Out;
use crate::core::ids::Ticket;
use crate::core::limits::APPROVALS_MAX;
use crate::core::session::{Decision, SessionEvent};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::claude::hook_events::HookName;
use crate::provider::claude::permission::{Ask, number};
use crate::provider::{SessionSettings, Start};

/// A session that waits for no key any more for so long has no question open.
const ANSWERED_TIME: Duration = Duration::from_secs(1);
/// Calls of tools that are remembered, to know whose result comes.
const CALLS_MAX: usize = 64;
const AT_THE_TERMINAL: &str = "it was answered at the terminal";

/// A question that waits for an answer.
#[derive(Debug)]
struct PendingApproval {
    ticket: Ticket,
    ask: Ask,
    /// Subagent that asks; empty: the session itself.
    agent: String,
    /// Wall clock, ms.
    asked_at: i64,
    deadline: Tick,
}

/// A question that was let in and is not told yet.
#[derive(Debug)]
pub(super) struct Request {
    ticket: Ticket,
    ask: Ask,
    agent: String,
}

impl Request {
    pub fn is_of_subagent(&self) -> bool {
        !self.agent.is_empty()
    }
}

/// The session waits for no key any more: what was asked until then is answered, unless another
/// question opens in a moment.
#[derive(Debug)]
struct AnsweredInTerminal {
    /// Wall clock, ms.
    asked_until: i64,
    at: Tick,
}

/// A person's or the runner's decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdict<'a> {
    pub decision: Decision,
    /// Words for the agent, with a refusal.
    pub reason: Option<&'a str>,
    /// Answers to a question, by question.
    pub answers: Option<&'a Value>,
}

#[derive(Debug)]
pub(super) struct Approvals {
    id_prefix: String,
    settings: SessionSettings,
    pending: BTreeMap<String, PendingApproval>,
    /// Questions that were told.
    count: u64,
    settling: Option<AnsweredInTerminal>,
    /// One was decided by us while the session waited: its end is no answer to another.
    decided_by_us: bool,
    /// Calls of tools, newest last: id, and name with input as a number.
    calls: VecDeque<(String, u64)>,
}

impl Approvals {
    pub fn new(settings: &SessionSettings, start: &Start) -> Approvals {
        Approvals {
            id_prefix: start.nonce.get(..8).unwrap_or("approval").to_string(),
            settings: settings.clone(),
            pending: BTreeMap::new(),
            count: 0,
            settling: None,
            decided_by_us: false,
            calls: VecDeque::new(),
        }
    }

    // ---- questions

    /// A permission hook that waits. `None`: it has its answer, or is left to the program.
    pub fn admit(&mut self, ticket: Ticket, payload: &Value, out: &mut Out) -> Option<Request> {
        if ticket == Ticket::NOBODY {
            return None;
        }
        let ask = Ask::read(payload, "tool_input");
        let agent = payload.get("agent_id").and_then(Value::as_str).unwrap_or_default().to_string();
        // One dialog at a time for each: a new one means that the one before was answered.
        self.withdraw_of(&agent, out);
        let at_once = if self.settings.rejects_all() && !ask.is_question() {
            let reason = "This agent is read-only: its runner allows no tool that asks.";
            Some(ask.answer(Decision::Deny, Some(reason), None))
        } else if ask.command().is_some_and(|command| self.settings.allows_unasked(command)) {
            Some(ask.answer(Decision::Approve, None, None))
        } else {
            None
        };
        if let Some(answer) = at_once {
            out.emit(SessionEvent::HookAnswer {
                ticket,
                answer: Some(answer.for_hook(HookName::PermissionRequest.as_str())),
            });
            return None;
        }
        if self.pending.len() >= APPROVALS_MAX {
            out.emit(SessionEvent::HookAnswer { ticket, answer: None });
            return None;
        }
        Some(Request { ticket, ask, agent })
    }

    /// Tells people of a question.
    pub fn open(&mut self, now: Now, request: Request, out: &mut Out) {
        self.count += 1;
        let id = format!("{}-{}", self.id_prefix, self.count);
        out.emit(SessionEvent::ApprovalOpened(request.ask.view(&id)));
        let Request { ticket, ask, agent } = request;
        let deadline = now.tick + self.settings.approval_timeout;
        let pending = PendingApproval { ticket, ask, agent, asked_at: now.wall.0, deadline };
        self.pending.insert(id, pending);
    }

    /// The session itself asks something; a subagent in the background holds up nobody else.
    pub fn session_asks(&self) -> bool {
        self.pending.values().any(|pending| pending.agent.is_empty())
    }

    // ---- answers of ours

    /// Why that answer does not fit; else what follows for the turn: true, the decision ends it.
    pub fn decide(
        &mut self,
        id: &str,
        verdict: Verdict<'_>,
        out: &mut Out,
    ) -> Result<bool, String> {
        let Some(pending) = self.pending.get(id) else {
            return Err(format!(
                "no approval {id} is open; it may have been answered or withdrawn"
            ));
        };
        match pending.ask.objection(verdict.decision, verdict.answers) {
            Some(objection) => Err(objection),
            None => {
                self.close_decided(id, verdict, "decided", out);
                Ok(verdict.decision == Decision::Abort)
            }
        }
    }

    fn close_decided(&mut self, id: &str, verdict: Verdict<'_>, why: &str, out: &mut Out) {
        let Some(pending) = self.pending.remove(id) else { return };
        self.decided_by_us = true;
        let answer = pending.ask.answer(verdict.decision, verdict.reason, verdict.answers);
        let answer = Some(answer.for_hook(HookName::PermissionRequest.as_str()));
        out.emit(SessionEvent::HookAnswer { ticket: pending.ticket, answer });
        out.emit(SessionEvent::ApprovalClosed { id: id.into(), reason: why.into() });
    }

    // ---- answers of others

    /// The question is gone, whoever answered it.
    fn withdraw(&mut self, id: &str, why: &str, out: &mut Out) {
        let Some(pending) = self.pending.remove(id) else { return };
        out.emit(SessionEvent::HookAnswer { ticket: pending.ticket, answer: None });
        out.emit(SessionEvent::ApprovalClosed { id: id.into(), reason: why.into() });
    }

    fn ids(&self, of: impl Fn(&PendingApproval) -> bool) -> Vec<String> {
        let found = self.pending.iter().filter(|(_, pending)| of(pending));
        found.map(|(id, _)| id.clone()).collect()
    }

    /// The hook that waited has gone.
    pub fn on_hook_gone(&mut self, ticket: Ticket, out: &mut Out) {
        for id in self.ids(|pending| pending.ticket == ticket).into_iter().take(1) {
            self.pending.remove(&id);
            let reason = "the session withdrew the question".into();
            out.emit(SessionEvent::ApprovalClosed { id, reason });
        }
    }

    /// The question of the session itself (no name) or of one subagent is over.
    pub fn withdraw_of(&mut self, agent: &str, out: &mut Out) {
        for id in self.ids(|pending| pending.agent == agent).into_iter().take(1) {
            self.withdraw(&id, AT_THE_TERMINAL, out);
        }
    }

    /// The turn is over, and with it what the session itself asked.
    pub fn on_turn_ended(&mut self, out: &mut Out) {
        for id in self.ids(|pending| pending.agent.is_empty()) {
            self.withdraw(&id, "the turn is over", out);
        }
    }

    pub fn stop(&mut self, out: &mut Out) {
        for id in self.ids(|_| true) {
            self.withdraw(&id, "the runner stops", out);
        }
    }

    /// The program waits for a key: a question is open.
    pub fn on_waiting(&mut self) {
        self.settling = None;
    }

    /// The program no longer waits for a key, since `at` (ms): somebody answered at the terminal.
    /// What was asked later is another question; of several, the next one may open in a moment.
    pub fn on_waiting_ended(&mut self, now: Now, at: i64, out: &mut Out) {
        let asked = self.ids(|pending| pending.asked_at <= at);
        match (asked.as_slice(), self.pending.len()) {
            ([id], 1) if !self.decided_by_us => self.withdraw(id, AT_THE_TERMINAL, out),
            ([], _) => {}
            _ => {
                let settling = AnsweredInTerminal { asked_until: at, at: now.tick + ANSWERED_TIME };
                self.settling = Some(settling);
            }
        }
        self.decided_by_us = false;
    }

    pub fn remember_call(&mut self, id: &str, tool: &str, input: &Map<String, Value>) {
        self.calls.push_back((id.to_string(), number(tool, input)));
        if self.calls.len() > CALLS_MAX {
            self.calls.pop_front();
        }
    }

    /// Tools of the session itself have their results since `at` (ms): what was asked for one of
    /// them is answered.
    pub fn on_results(&mut self, results: &[(String, bool)], at: i64, out: &mut Out) {
        let is_done = |id: &String| results.iter().any(|(call, _)| call == id);
        let done: Vec<u64> =
            self.calls.iter().filter(|(id, _)| is_done(id)).map(|(_, call)| *call).collect();
        let of = |pending: &PendingApproval| {
            let call = || number(&pending.ask.tool, &pending.ask.input);
            pending.agent.is_empty() && at > pending.asked_at && done.contains(&call())
        };
        for id in self.ids(of).into_iter().take(1) {
            self.withdraw(&id, AT_THE_TERMINAL, out);
        }
    }

    // ---- time

    /// Nobody answered in time.
    pub fn wake(&mut self, now: Now, out: &mut Out) {
        for id in self.ids(|pending| pending.deadline <= now.tick) {
            out.warn(format!("approval {id} was not answered in time and is denied"));
            let reason = Some("Nobody answered in time.");
            let verdict = Verdict { decision: Decision::Deny, reason, answers: None };
            self.close_decided(&id, verdict, "nobody answered in time", out);
        }
    }

    /// It has waited for no key for long enough: of all that was asked before, nothing is open.
    pub fn settle(&mut self, now: Now, out: &mut Out) {
        let due = self.settling.take_if(|settling| settling.at <= now.tick);
        let Some(AnsweredInTerminal { asked_until, .. }) = due else { return };
        for id in self.ids(|pending| pending.asked_at <= asked_until) {
            self.withdraw(&id, AT_THE_TERMINAL, out);
        }
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        let answers = self.pending.values().map(|pending| pending.deadline).min();
        sooner(answers, self.settling.as_ref().map(|settling| settling.at))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::session::Output;
    use crate::core::time::Wall;
    use crate::provider::ApprovalMode;

    fn at(seconds: u64) -> Now {
        Now { tick: Tick(seconds * 1_000_000), wall: Wall(seconds as i64 * 1000) }
    }

    fn approvals(approval_mode: ApprovalMode) -> Approvals {
        let settings = SessionSettings {
            agent: "a".into(),
            cwd: "/w".into(),
            approval_mode,
            mode: None,
            approval_timeout: Duration::from_secs(600),
            capture_full: false,
        };
        Approvals::new(&settings, &Start { nonce: "12345678-x".into(), ..Start::default() })
    }

    fn ask(approvals: &mut Approvals, now: Now, ticket: u64, agent: &str, out: &mut Out) {
        let payload = json!({
            "tool_name": "Bash", "tool_input": {"command": format!("do {ticket}")}, "agent_id": agent
        });
        if let Some(request) = approvals.admit(Ticket(ticket), &payload, out) {
            approvals.open(now, request, out);
        }
    }

    /// Which approvals were closed, and why.
    fn closed(out: &mut Out) -> Vec<String> {
        let reason = |output| match output {
            Output::Event(SessionEvent::ApprovalClosed { id, reason }) => {
                Some(format!("{id}: {reason}"))
            }
            _ => None,
        };
        out.take().into_iter().filter_map(reason).collect()
    }

    #[test]
    fn what_ends_a_question() {
        type End = fn(&mut Approvals, &mut Out);
        let at_terminal = "it was answered at the terminal";
        let of_session = |why: &str| vec![format!("12345678-1: {why}")];
        let of_subagent = |why: &str| vec![format!("12345678-2: {why}")];
        let ends: [(End, Vec<String>); 7] = [
            (|a, out| a.on_turn_ended(out), of_session("the turn is over")),
            (|a, out| a.withdraw_of("sub", out), of_subagent(at_terminal)),
            (
                |a, out| a.on_hook_gone(Ticket(8), out),
                of_subagent("the session withdrew the question"),
            ),
            (|a, out| ask(a, at(2), 9, "", out), of_session(at_terminal)),
            // Only one of two can have been answered; which one is not known.
            (|a, out| a.on_waiting_ended(at(3), 3000, out), vec![]),
            (|a, out| a.wake(at(600), out), vec![]),
            (
                |a, out| a.wake(at(601), out),
                [of_session("nobody answered in time"), of_subagent("nobody answered in time")]
                    .concat(),
            ),
        ];
        for (number, (end, want)) in ends.into_iter().enumerate() {
            let (mut approvals, mut out) = (approvals(ApprovalMode::Guarded), Out::default());
            ask(&mut approvals, at(1), 7, "", &mut out);
            ask(&mut approvals, at(1), 8, "sub", &mut out);
            out.take();
            end(&mut approvals, &mut out);
            assert_eq!(closed(&mut out), want, "row {number}");
        }
    }

    #[test]
    fn a_session_that_waits_no_more_has_nothing_open_after_a_moment() {
        let (mut approvals, mut out) = (approvals(ApprovalMode::Guarded), Out::default());
        ask(&mut approvals, at(1), 7, "", &mut out);
        ask(&mut approvals, at(1), 8, "sub", &mut out);
        approvals.on_waiting_ended(at(3), 3000, &mut out);
        assert_eq!(approvals.next_deadline(), Some(at(4).tick));
        approvals.on_waiting();
        approvals.settle(at(4), &mut out);
        assert_eq!(closed(&mut out).len(), 0, "it waits again");
        approvals.on_waiting_ended(at(5), 5000, &mut out);
        approvals.settle(at(6), &mut out);
        assert_eq!(closed(&mut out).len(), 2);
        assert_eq!(approvals.next_deadline(), None);
    }

    #[test]
    fn a_decision_of_ours_answers_no_other_question() {
        let (mut approvals, mut out) = (approvals(ApprovalMode::Guarded), Out::default());
        ask(&mut approvals, at(1), 7, "", &mut out);
        ask(&mut approvals, at(1), 8, "sub", &mut out);
        let verdict = |decision| Verdict { decision, reason: None, answers: None };
        let abort = approvals.decide("12345678-1", verdict(Decision::Abort), &mut out);
        assert_eq!(abort, Ok(true));
        assert!(approvals.decide("12345678-1", verdict(Decision::Deny), &mut out).is_err());
        approvals.on_waiting_ended(at(3), 3000, &mut out);
        assert_eq!(closed(&mut out), ["12345678-1: decided"]);
    }

    #[test]
    fn a_read_only_session_is_asked_nothing_and_a_flood_is_bounded() {
        let (mut read_only, mut out) = (approvals(ApprovalMode::ReadOnly), Out::default());
        ask(&mut read_only, at(1), 7, "", &mut out);
        assert!(!read_only.session_asks());
        assert!(matches!(
            out.take()[..],
            [Output::Event(SessionEvent::HookAnswer { answer: Some(_), .. })]
        ));
        let mut guarded = approvals(ApprovalMode::Guarded);
        for number in 0..APPROVALS_MAX as u64 + 1 {
            ask(&mut guarded, at(1), number + 1, &format!("agent {number}"), &mut out);
        }
        assert_eq!(guarded.pending.len(), APPROVALS_MAX);
        assert!(matches!(
            out.take().last(),
            Some(Output::Event(SessionEvent::HookAnswer { answer: None, .. }))
        ));
    }
}
