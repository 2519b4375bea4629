//! Turns: their begin, what is said in them, and their end.

use std::time::Duration;

use serde_json::{Value, json};

use super::witness::{LAG, Registry};
use super::{BOUNDARY_SILENCE, Ended, GIVEN_BACK_TIME, HOOK_LAG, PROMPTS_MAX, TOOLS_MAX, TuiSession, Turn};
use crate::core::limits::REPLY_BODY_BYTES_MAX;
use crate::core::session::{Mirror, Signal, TurnEnd};
use crate::core::time::Now;
use crate::provider::claude::activity::steps;
use crate::provider::claude::permission;
use crate::provider::claude::transcript::{Answer, Block, SYNTHETIC};
use crate::provider::text::push_bounded;

impl TuiSession {
    pub(super) fn begin_turn(&mut self, now: Now, evidence: &str) {
        if self.turn.is_some() || !self.open {
            return;
        }
        // A hook may be late or doubled: a registry that stays idle ends what never ran.
        let idle = self.registry.as_ref().is_some_and(Registry::is_idle);
        self.idle_since = idle.then_some(now.tick + HOOK_LAG);
        self.doubt = None;
        if let Some(crossing) = &mut self.crossing {
            crossing.silent = None;
        }
        self.turns += 1;
        let local = self.crossing.as_ref().is_some_and(|crossing| crossing.begun);
        self.turn = Some(Turn { number: self.turns, began: now.wall.0, local, ..Default::default() });
        self.signal(Signal::Evidence(evidence.into()));
        self.signal(Signal::TurnStarted);
        if self.interrupting.is_some() && self.has_submitted(now) {
            self.escape();
        }
    }

    /// The end of the turn; `text` is what the hook says was said last.
    pub(super) fn end_turn(&mut self, now: Now, end: TurnEnd, text: Option<&str>, evidence: &str) {
        self.idle_since = None;
        let Some(turn) = self.turn.take() else {
            // It was over before anybody saw it begin: a proof of delivery may still come for it.
            if !self.sent.is_empty() {
                self.ended = Some(Ended { end, text: text.unwrap_or_default().to_string(), at: now.wall.0 });
            }
            self.settle_interrupt(now);
            return;
        };
        for id in self.held.keys().cloned().collect::<Vec<_>>() {
            if self.held.get(&id).is_some_and(|held| held.agent.is_empty()) {
                self.withdraw(&id, "the turn is over");
            }
        }
        if !turn.prompt_id.is_empty() {
            self.over_prompts.push_back(turn.prompt_id.clone());
            if self.over_prompts.len() > PROMPTS_MAX {
                self.over_prompts.pop_front();
            }
        }
        let last = text.filter(|text| !text.trim().is_empty()).unwrap_or(&turn.last).to_string();
        let mut whole = turn.whole;
        if !last.trim().is_empty() && !whole.trim_end().ends_with(last.trim()) {
            let between = if whole.is_empty() { "" } else { "\n" };
            push_bounded(&mut whole, between, REPLY_BODY_BYTES_MAX);
            push_bounded(&mut whole, &last, REPLY_BODY_BYTES_MAX);
        }
        let said = if self.settings.capture_full { whole } else { last };
        let failed = matches!(end, TurnEnd::Failed(_));
        if end != TurnEnd::Completed && !turn.ours.is_empty() && !turn.spoke {
            (self.given_back, self.left_ours) = (Some(now.tick + GIVEN_BACK_TIME), true);
        }
        if !turn.local && !failed && !said.trim().is_empty() {
            let body = said.clone();
            self.signal(Signal::Mirror(Mirror { kind: "response", body, label: None, status: None, turn: turn.number, key: None }));
        }
        let text = if failed || turn.local { String::new() } else { said };
        self.signal(Signal::Evidence(evidence.into()));
        self.ended = Some(Ended { end: end.clone(), text: text.clone(), at: now.wall.0 });
        self.signal(Signal::TurnEnded { batch: turn.batch, end, text });
        self.estimate_context();
        for verb in self.interrupting.take().map(|(verbs, _)| verbs).unwrap_or_default() {
            self.answer(verb, Ok(json!({"wasRunning": true})));
        }
        if let Some(crossing) = self.crossing.as_mut().filter(|crossing| crossing.begun) {
            crossing.silent.get_or_insert(now.tick + BOUNDARY_SILENCE);
        }
        if self.registry.as_ref().is_some_and(|registry| !registry.is_idle()) {
            // It may go on at once with what was queued; then the file says nothing new.
            self.doubt = Some(now.tick + LAG);
        }
        self.look_soon(now, Duration::from_millis(60));
        self.next_item(now);
    }

    /// A piece of an answer, from the transcript.
    pub(super) fn on_answer(&mut self, answer: &Answer) {
        if answer.model != SYNTHETIC && self.model.as_deref() != Some(&answer.model) && !answer.model.is_empty() {
            self.model = Some(answer.model.clone());
            self.signal(Signal::Fact { name: "model", value: json!(answer.model) });
        }
        // What was said before the turn began is the end of the one before it, written late.
        let early = self.turn.as_ref().is_some_and(|turn| answer.at != 0 && answer.at < turn.began);
        let number = self.turn.as_ref().filter(|_| !early).map_or(self.turns.saturating_sub(u64::from(early)), |turn| turn.number);
        if let Some(turn) = self.turn.as_mut().filter(|_| !early) {
            let text = answer.text();
            if !text.is_empty() && !answer.is_error {
                turn.last = text.clone();
                let between = if turn.whole.is_empty() { "" } else { "\n" };
                push_bounded(&mut turn.whole, between, REPLY_BODY_BYTES_MAX);
                push_bounded(&mut turn.whole, &text, REPLY_BODY_BYTES_MAX);
            }
            self.tokens = if answer.is_error { self.tokens } else { answer.tokens };
            turn.spoke = true;
            turn.answered = answer.ends_turn() && !answer.is_error;
        }
        for block in &answer.blocks {
            if let Block::Tool { id, name, input } = block {
                self.tools.push_back((id.clone(), permission::number(name, input)));
                if self.tools.len() > TOOLS_MAX {
                    self.tools.pop_front();
                }
            }
        }
        if !answer.is_error {
            for step in steps(answer, number) {
                self.signal(Signal::Mirror(step));
            }
        }
    }

    pub(super) fn provider_state(&mut self, state: &'static str, value: Value) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| turn.state != state) {
            turn.state = state;
            self.signal(Signal::ProviderState(value));
        }
    }
}
