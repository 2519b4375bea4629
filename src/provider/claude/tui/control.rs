//! Orders to the session: interrupt, compact, clear, and decisions about what it asks. Each succeeds when its effect is seen.

use std::time::Duration;

use serde_json::{Value, json};

use super::send::Item;
use super::{BOUNDARY_START, BOUNDARY_TIMEOUT, Boundary, Crossing, INTERRUPT_TIMEOUT, TuiSession};
use crate::core::ids::VerbNumber;
use crate::core::session::{Decision, Output, Signal};
use crate::core::time::Now;

impl TuiSession {
    // ---- interrupt, compact, clear

    pub(super) fn interrupt(&mut self, now: Now, number: VerbNumber) {
        let dropped: Vec<VerbNumber> = self.queue.iter().filter_map(|item| item.verb).collect();
        self.queue.retain(|item| item.verb.is_none());
        if !dropped.is_empty() {
            dropped.into_iter().for_each(|verb| self.answer(verb, Err("an interrupt came before it".into())));
            self.give_up_injected();
        }
        if self.turn.is_none() && !self.has_submitted(now) {
            return self.answer(number, Ok(json!({"wasRunning": false})));
        }
        if !self.start.terminal {
            return self.answer(number, Err("this session runs in a terminal of its own: interrupt it there".into()));
        }
        self.escape();
        let (verbs, _) = self.interrupting.get_or_insert((Vec::new(), now.tick + INTERRUPT_TIMEOUT));
        verbs.push(number);
        self.look_soon(now, Duration::from_millis(100));
    }

    /// Once and only while a turn runs: a second Escape would open a menu that takes all keys. One that was submitted and is
    /// not seen yet is ended when it is.
    pub(super) fn escape(&mut self) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| !turn.interrupted) {
            turn.interrupted = true;
            self.out.push(Output::Press("Escape"));
        }
    }

    pub(super) fn cross(&mut self, now: Now, verb: VerbNumber, kind: Boundary, text: String) {
        if !self.start.terminal {
            let name = if kind == Boundary::Compact { "compact" } else { "clearContext" };
            return self.answer(verb, Err(format!("provider does not support {name} in a terminal that is not the runner's")));
        }
        if self.crossing.is_some() {
            return self.answer(verb, Err("a compaction or a fresh start is under way already".into()));
        }
        self.crossing = Some(Crossing { verb, kind, deadline: now.tick + BOUNDARY_TIMEOUT, begun: false, silent: None });
        self.queue.push_front(Item::of_command(text));
        self.next_item(now);
    }

    /// The command was submitted.
    pub(super) fn crossing_begins(&mut self, now: Now) {
        if let Some(crossing) = &mut self.crossing {
            crossing.begun = true;
            crossing.silent = Some(now.tick + BOUNDARY_START);
            let moment = if crossing.kind == Boundary::Compact { "compacting" } else { "clearing-context" };
            self.signal(Signal::Timeline(moment));
        }
    }

    /// Its effect was seen, or not.
    pub(super) fn crossed(&mut self, kind: Boundary, result: Result<(), String>) {
        let Some(crossing) = self.crossing.take_if(|crossing| crossing.kind == kind && (crossing.begun || result.is_err())) else {
            return;
        };
        let (moment, word) = if kind == Boundary::Compact { ("compacted", "/compact") } else { ("context-cleared", "/clear") };
        if result.is_ok() {
            self.signal(Signal::Timeline(moment));
        }
        let session = self.session.clone();
        self.answer(crossing.verb, result.map(|()| json!({"method": word, "session": session})));
    }

    // ---- approvals

    pub(super) fn decide(&mut self, now: Now, id: &str, decision: Decision, reason: Option<&str>, answers: Option<&Value>, why: &str) {
        let Some(held) = self.held.remove(id) else { return };
        self.decided = true;
        let answer = held.ask.answer(decision, reason, answers).for_hook(&held.event);
        self.signal(Signal::HookAnswer { ticket: held.ticket, answer: Some(answer) });
        self.signal(Signal::ApprovalClosed { id: id.into(), reason: why.into() });
        if decision == Decision::Abort
            && let Some(turn) = self.turn.as_mut()
        {
            // As after Escape, no hook follows.
            turn.interrupted = true;
            self.look_soon(now, Duration::from_millis(100));
        }
    }

    /// The question is gone, whoever answered it.
    pub(super) fn withdraw(&mut self, id: &str, why: &str) {
        let Some(held) = self.held.remove(id) else { return };
        self.signal(Signal::HookAnswer { ticket: held.ticket, answer: None });
        self.signal(Signal::ApprovalClosed { id: id.into(), reason: why.into() });
    }
}
