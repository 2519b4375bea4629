//! The proof that a text arrived, and what is done about one that did not.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Channel, ENTER_TIME, ENTERS_MAX, MARK_CHARS, MONITOR_TIME, PROOF_TIME, STEP_TIME, Sent, is_marked};
use crate::core::session::{Mirror, Output, Parcel, Signal, TurnEnd};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::claude::screen::{InputBox, ScreenState};
use crate::provider::claude::transcript::{Prompt, squeezed, unwrapped};
use crate::provider::claude::tui::witness::Registry;
use crate::provider::claude::tui::{Ended, GIVEN_BACK_TIME, TuiSession};

impl TuiSession {
    /// The prompt hook: proof, unless the text was pasted into a running turn, where it only waits.
    /// False: the prompt is not ours.
    pub(in crate::provider::claude::tui) fn on_prompt_hook(&mut self, now: Now, prompt: &str) -> bool {
        let text = squeezed(prompt);
        let Some(at) = self.sent.iter().position(|sent| text.contains(&sent.first)) else { return false };
        // A turn of somebody else began just before our Enter: then too.
        let foreign = self.turn.as_ref().is_some_and(|turn| turn.foreign);
        let only_waits = match crate::planted::is("queued-is-no-proof") {
            true => foreign && self.sent[at].by == Channel::Monitor,
            false => (self.sent[at].joined || foreign) && self.sent[at].by == Channel::Paste,
        };
        match only_waits {
            true => self.sent[at].queued = true,
            false => self.prove(now, at, "hook UserPromptSubmit", false),
        }
        true
    }

    /// The transcript has it: always proof. What is not ours is mirrored.
    pub(in crate::provider::claude::tui) fn on_prompt_entry(&mut self, now: Now, prompt: &Prompt) {
        let text = squeezed(unwrapped(&prompt.text));
        let is_it = |sent: &Sent| text.contains(&sent.first) || (!sent.key.is_empty() && sent.key == prompt.uuid);
        if let Some(at) = self.sent.iter().position(is_it) {
            // Its turn may be over already, unless it waited in the queue for a turn of its own.
            // A turn that runs by now may be another one, or only a belief.
            let runs = self.turn.is_some();
            let over = |ended: &Ended| match (prompt.queued, prompt.at) {
                (true, _) => false,
                (false, 0) => !runs,
                (false, at) => at <= ended.at,
            };
            let late = self.ended.as_ref().is_some_and(over);
            if late && !prompt.prompt_id.is_empty() {
                self.over_prompts.push_back(prompt.prompt_id.clone());
            }
            self.prove(now, at, "transcript", late);
            if let Some(turn) = self.turn.as_mut().filter(|turn| !late && turn.prompt_id.is_empty()) {
                turn.prompt_id = prompt.prompt_id.clone();
            }
            return;
        }
        // What has no mark of ours is ours only as a whole: a person may begin with the same words.
        let is_ours =
            |mark: &String| text == *mark || (text.starts_with(mark.as_str()) && (is_marked(mark) || mark.chars().count() >= MARK_CHARS));
        if prompt.human && !self.ours.iter().any(is_ours) && !text.is_empty() {
            let (body, turn) = (unwrapped(&prompt.text).to_string(), self.turn.as_ref().map_or(self.turns, |turn| turn.number));
            let key = (!prompt.uuid.is_empty()).then(|| prompt.uuid.clone());
            self.signal(Signal::Mirror(Mirror { kind: "prompt", body, label: None, status: None, turn, key }));
        }
    }

    /// The session has read them with its own tool.
    pub(in crate::provider::claude::tui) fn on_fetched(&mut self, now: Now, ids: &[u64]) {
        for sent in self.sent.iter_mut().filter(|sent| sent.by == Channel::Monitor) {
            sent.unfetched.retain(|id| !ids.contains(id));
        }
        if let Some(at) = self.sent.iter().position(|sent| sent.by == Channel::Monitor && sent.unfetched.is_empty()) {
            self.prove(now, at, "the session fetched it", false);
        }
    }

    /// What delivery waits for, for people; told when it changes.
    pub(in crate::provider::claude::tui) fn tell_delivery(&mut self, why: Option<&str>) {
        if self.delivery.as_deref() != why {
            self.delivery = why.map(str::to_string);
            self.signal(Signal::Fact { name: "delivery", value: json!(why) });
        }
    }

    /// `late`: the turn that ended last may have been its own.
    pub(super) fn prove(&mut self, now: Now, at: usize, evidence: &str, late: bool) {
        let sent = self.sent.remove(at);
        self.tell_delivery(None);
        let Some(Parcel { batch, key, .. }) = sent.item.parcel else {
            sent.item.verb.into_iter().for_each(|verb| self.answer(verb, Ok(Value::Null)));
            let over = late && self.ended.as_ref().is_some_and(|ended| ended.at >= sent.at);
            if !over {
                self.begin_turn(now, evidence);
            }
            self.settle_interrupt(now);
            return self.next_item(now);
        };
        self.signal(Signal::Taken { batch, key, evidence: evidence.into() });
        let late = self.ended.as_ref().filter(|ended| late && ended.at >= sent.at);
        match (&mut self.turn, late) {
            // Its turn was over before the proof was on disk.
            (_, Some(ended)) => {
                let (end, text) = (ended.end.clone(), ended.text.clone());
                self.signal(Signal::TurnEnded { batch: Some(batch), end, text });
                for verb in self.interrupting.take().map(|(verbs, _)| verbs).unwrap_or_default() {
                    self.answer(verb, Ok(json!({"wasRunning": true})));
                }
                if self.turn.is_some() {
                    self.signal(Signal::TurnStarted); // another one runs
                }
            }
            (Some(turn), None) => {
                turn.batch = Some(batch);
                turn.ours = sent.first;
                if !sent.joined {
                    turn.began = turn.began.min(sent.at);
                }
            }
            (None, None) => {
                self.begin_turn(now, evidence);
                if let Some(turn) = &mut self.turn {
                    (turn.batch, turn.began, turn.ours) = (Some(batch), sent.at, sent.first);
                }
            }
        }
        self.next_item(now);
    }

    pub(in crate::provider::claude::tui) fn on_enqueued(&mut self, text: &str) {
        let text = squeezed(unwrapped(text));
        for sent in self.sent.iter_mut().filter(|sent| text.contains(&sent.first)) {
            sent.queued = true;
        }
    }

    pub(in crate::provider::claude::tui) fn sending_deadline(&self) -> Option<Tick> {
        let checks = self.sent.iter().map(|sent| sent.enter_at.map_or(sent.check_at, |at| at.min(sent.check_at))).min();
        let pause = self.socket_pause.filter(|_| !self.queue.is_empty());
        sooner(checks, pause)
    }

    /// What is not proven in time is looked into: it waits, its Enter was lost, or it never arrived.
    pub(in crate::provider::claude::tui) fn wake_sending(&mut self, now: Now) {
        if self.socket_pause.is_some_and(|until| until <= now.tick) {
            self.socket_pause = None;
        }
        let Some(at) = self.sent.iter().position(|sent| sent.check_at <= now.tick || sent.enter_at.is_some_and(|at| at <= now.tick)) else {
            return;
        };
        let box_text = match self.look.as_ref().and_then(|look| look.input.clone()) {
            Some(InputBox::Text(text)) => Some(text),
            _ => None,
        };
        let same = self.sent[at].box_text.clone();
        let in_box = box_text.is_some() && (box_text == same || box_text.as_deref().is_some_and(|text| self.is_ours(text)));
        let idle = self.turn.is_none() && self.registry.as_ref().is_some_and(Registry::is_idle);
        let open = self.look.as_ref().is_some_and(ScreenState::is_open);
        let sent = &mut self.sent[at];
        if sent.enter_at.take_if(|at| *at <= now.tick).is_some() {
            // Decided with a fresh picture.
            self.check_enter = true;
            return self.look_now(now);
        }
        sent.check_at = now.tick + if sent.by == Channel::Monitor { MONITOR_TIME } else { PROOF_TIME };
        let (by, queued, tries, submitted) = (sent.by, sent.queued, sent.item.tries, sent.at);
        // An idle program has no queue: somebody took the text back, or it is proven by the next look.
        sent.queued &= !idle;
        self.look_soon(now, Duration::ZERO);
        if by == Channel::Paste && idle && open && in_box && !queued {
            return self.stuck_in_box(now, at);
        }
        if queued || !idle || by == Channel::Monitor || (by == Channel::Paste && (!open || in_box)) {
            let why = if queued { "it waits in the session's own queue" } else { "the session is not at its prompt" };
            self.tell_delivery(Some(&format!("not proven yet: {why}")));
            if by == Channel::Monitor {
                let batch = self.sent[at].item.parcel.as_ref().map(|parcel| parcel.batch).unwrap_or_default();
                self.signal(Signal::Announce { batch });
            }
            return;
        }
        if !self.heard {
            // Neither hook nor transcript ever told anything: sent again it would be said twice. A turn that ran is all
            // the proof there can be.
            if self.ended.as_ref().is_some_and(|ended| ended.at >= submitted) {
                self.prove(now, at, "a turn ran just after it; this session has neither hooks nor a transcript", true);
            }
            return;
        }
        if tries > 0 && self.ended.as_ref().is_some_and(|ended| ended.at >= submitted) {
            // It ran twice into a turn and was recognised neither time: once more would be too often.
            return self.prove(now, at, "a turn ran just after it, twice", true);
        }
        self.note(true, format!("a text did not arrive (try {}), it is sent again", tries + 1));
        self.send_again(now, at);
    }

    /// It stands in the box of an idle session, long after its Enter: something ate that, or gives the text back.
    pub(super) fn stuck_in_box(&mut self, now: Now, at: usize) {
        if self.sent[at].enters < ENTERS_MAX {
            self.check_enter = true;
            return self.look_now(now);
        }
        (self.given_back, self.left_ours) = (Some(now.tick + GIVEN_BACK_TIME), true);
        self.refuse(now, at, "the session does not take the text: it stays in its input box (a hook of its own may block it)");
    }

    /// It will not arrive, and whoever sent it is told so.
    pub(super) fn refuse(&mut self, now: Now, at: usize, why: &str) {
        let sent = self.sent.remove(at);
        self.note(true, why);
        self.tell_delivery(None);
        match sent.item.parcel {
            Some(Parcel { batch, key, .. }) => {
                self.signal(Signal::Refused { batch, key, why: why.into() });
                if self.turn.is_none() {
                    self.signal(Signal::TurnEnded { batch: None, end: TurnEnd::Cancelled, text: String::new() });
                }
            }
            None => {
                sent.item.verb.into_iter().for_each(|verb| self.answer(verb, Err(why.into())));
                self.give_up_injected();
            }
        }
        self.settle_interrupt(now);
        self.next_item(now);
    }

    /// An interrupt waited for a turn of ours that will not come any more.
    pub(in crate::provider::claude::tui) fn settle_interrupt(&mut self, now: Now) {
        if self.turn.is_none() && !self.has_submitted(now) {
            for verb in self.interrupting.take().map(|(verbs, _)| verbs).unwrap_or_default() {
                self.answer(verb, Ok(json!({"wasRunning": false})));
            }
        }
    }

    /// A fresh picture: if our text still stands in the box of an idle session, its Enter was lost. A dialog or a turn in
    /// between only delays the answer.
    pub(in crate::provider::claude::tui) fn enter_again(&mut self, now: Now) {
        if !self.check_enter || self.sending.is_some() {
            return;
        }
        let idle = self.turn.is_none() && self.registry.as_ref().is_some_and(Registry::is_idle);
        let Some(look) = self.look.as_ref().filter(|look| idle && look.is_open() && !look.busy) else { return };
        self.check_enter = false;
        let Some(InputBox::Text(text)) = look.input.clone() else { return };
        let ours = self.is_ours(&text);
        let waits = |sent: &&mut Sent| {
            sent.by == Channel::Paste && sent.enter_at.is_none() && (ours || sent.box_text.as_deref() == Some(text.as_str()))
        };
        if let Some(sent) = self.sent.iter_mut().find(waits).filter(|sent| sent.enters < ENTERS_MAX) {
            sent.enter_at = Some(now.tick + ENTER_TIME);
            sent.enters += 1;
            self.out.push(Output::Press("Enter"));
        }
    }

    /// A prompt of ours that was given back is taken out of the box, so that nobody sends it by mistake.
    pub(in crate::provider::claude::tui) fn tidy_box(&mut self, now: Now) {
        let Some(InputBox::Text(text)) = self.look.as_ref().filter(|look| look.is_open()).and_then(|look| look.input.clone()) else {
            return;
        };
        let idle = self.turn.is_none() && self.sending.is_none() && self.registry.as_ref().is_some_and(Registry::is_idle);
        let ours = self.is_ours(&text) || text.trim_start().starts_with("[Pasted text");
        if idle && ours && self.given_back.take_if(|until| *until > now.tick).is_some() {
            for key in ["C-e", "C-u", "C-u", "C-u", "C-u", "C-u", "C-k"] {
                self.out.push(Output::Press(key));
            }
            self.look_soon(now, STEP_TIME * 2);
        }
    }
}
