//! What registry, transcript and screen tell.

use std::time::Duration;

use super::TuiSession;
use super::commands::ContextCommand;
use super::identity::Content;
use super::observed::{Observation, retrying};
use super::sender::EntryProof;
use super::turn::{Activity, Event};
use crate::core::session::{Screen, SessionEvent};
use crate::core::time::Now;
use crate::provider::claude::activity::steps;
use crate::provider::claude::screen::{InputBox, ScreenState};
use crate::provider::claude::transcript::{Answer, Block, Entry, Prompt, unwrapped};

/// A session that starts draws its screen when its registry changes.
const START_CAPTURE: Duration = Duration::from_millis(10);
/// The screen has to agree with a registry that says idle.
const IDLE_CAPTURE: Duration = Duration::from_millis(500);

impl TuiSession {
    // ---- registry

    pub(super) fn on_registry(&mut self, now: Now, text: Option<&str>) {
        let Some(change) = self.observed.on_registry(text) else { return };
        let Some(registry) = self.observed.registry() else { return };
        let (session, since) = (registry.session().to_string(), registry.status_since());
        if registry.is_waiting() {
            self.approvals.on_waiting();
        } else if change.was_answered {
            self.approvals.on_waiting_ended(now, since, &mut self.out);
            if !self.sender.has_unproven() {
                self.sender.tell_delivery(None, &mut self.out);
            }
            self.set_activity(Activity::Running, None);
        }
        if self.startup.is_open() || self.observed.is_registry_current() {
            self.on_session_id(now, &session, Content::New);
        }
        if !self.startup.is_open() {
            self.observed.capture_soon(now, START_CAPTURE);
            return self.open_if_ready(now);
        }
        if let Some(seen) = self.observed.registry_observation() {
            self.on_observation(now, seen);
        }
    }

    /// What the registry says of the turn.
    fn on_observation(&mut self, now: Now, seen: Observation) {
        match seen {
            Observation::Idle { since } => {
                if self.observed.has_no_shells() {
                    self.background.no_shells(&mut self.out);
                }
                self.on_registry_idle(now, since);
                self.send_next(now);
            }
            Observation::Dialog { .. } if !self.turns.is_running() => {
                let why = "a dialog is open in the terminal: `agent-relay attach` shows it";
                self.sender.tell_delivery(Some(why), &mut self.out);
            }
            Observation::Busy => self.on_registry_busy(now),
            Observation::Dialog { detail } | Observation::Waiting { detail } => {
                self.on_registry_busy(now);
                self.set_activity(Activity::Waiting, Some(&detail));
            }
            Observation::Retrying { attempt, detail } => {
                self.set_activity(Activity::Retrying(attempt), Some(&detail));
            }
        }
    }

    fn on_registry_busy(&mut self, now: Now) {
        let expected = self.sender.has_unproven();
        self.observe(now, Event::RegistryBusy { expected });
    }

    fn on_registry_idle(&mut self, now: Now, since: i64) {
        if self.turns.is_running() {
            self.observe(now, Event::RegistryIdle { since });
            if self.turns.is_running() {
                self.observed.capture_soon(now, IDLE_CAPTURE);
            }
        }
    }

    // ---- transcript

    pub(super) fn on_transcript(&mut self, now: Now, bytes: &[u8]) {
        self.sender.on_source();
        for entry in self.identity.entries(bytes) {
            if !self.startup.search(&entry) {
                self.on_entry(now, entry);
            }
        }
    }

    fn on_entry(&mut self, now: Now, entry: Entry) {
        match entry {
            Entry::Prompt(prompt) => self.on_prompt_entry(now, &prompt),
            Entry::Answer(answer) => self.on_answer(&answer),
            Entry::Interrupted { at } => {
                if self.turns.interrupted_at(at)
                    && let Some(Observation::Idle { since }) = self.observed.registry_observation()
                {
                    self.on_registry_idle(now, since);
                }
            }
            Entry::Compacted { trigger } => {
                if trigger == "manual" {
                    self.context_done(ContextCommand::Compact);
                }
            }
            Entry::Enqueued(text) => self.sender.on_enqueued(&text),
            Entry::TurnOver { at } => {
                let registry_idle_since = match self.observed.registry_observation() {
                    Some(Observation::Idle { since }) => Some(since),
                    _ => None,
                };
                self.observe(now, Event::TranscriptEnd { at, registry_idle_since });
            }
            Entry::Results { calls, at } => {
                self.turns.spoke();
                self.approvals.on_results(&calls, at, &mut self.out);
            }
        }
    }

    /// What is not ours is mirrored.
    fn on_prompt_entry(&mut self, now: Now, prompt: &Prompt) {
        match self.sender.on_prompt_entry(prompt, &self.turns) {
            EntryProof::Known => {}
            EntryProof::Person => {
                let key = (!prompt.uuid.is_empty()).then(|| prompt.uuid.clone());
                let body = unwrapped(&prompt.text).to_string();
                self.mirror("prompt", body, self.turns.number(), key);
            }
            EntryProof::Arrived { at, is_late } => {
                if is_late {
                    self.turns.remember_over(&prompt.prompt_id);
                }
                self.on_arrived(now, at, "transcript", is_late);
                if !is_late {
                    self.turns.learn_prompt_id(&prompt.prompt_id);
                }
            }
        }
    }

    /// A piece of an answer.
    fn on_answer(&mut self, answer: &Answer) {
        self.usage.on_answer_model(&answer.model, &mut self.out);
        let place = self.turns.on_answer(answer);
        if place.is_current && !answer.is_error {
            self.usage.on_answer_tokens(answer.tokens);
        }
        for block in &answer.blocks {
            if let Block::Tool { id, name, input } = block {
                self.approvals.remember_call(id, name, input);
            }
        }
        if !answer.is_error {
            for step in steps(answer, place.turn) {
                self.out.emit(SessionEvent::Mirror(step));
            }
        }
    }

    // ---- screen

    pub(super) fn on_screen(&mut self, now: Now, screen: &Screen) {
        let Some(screen) = self.observed.on_screen(screen) else { return };
        if !self.startup.is_open() {
            let has_registry = self.observed.registry().is_some();
            let text = self.observed.screen_text();
            let failed = self.startup.on_screen(now, &screen, text, has_registry, &mut self.out);
            if failed {
                return self.stop_if_over();
            }
        }
        match retrying(&screen) {
            Some(seen) => self.on_observation(now, seen),
            None if self.turns.is_retrying() => self.set_activity(Activity::Running, None),
            None => {}
        }
        if screen.input == Some(InputBox::Empty) {
            self.sender.on_box_empty();
        }
        let event = self.screen_event(&screen);
        self.observed.keep_screen(screen);
        if !self.startup.is_open() {
            return self.open_if_ready(now);
        }
        if let Some(event) = event {
            self.observe(now, event);
        }
        let (sender, mut around) = self.sender(now);
        if sender.on_screen(&mut around) {
            self.commands.context_submitted(now, &mut self.out);
        }
        self.send_next(now);
    }

    /// What a picture says of the turn.
    fn screen_event(&self, screen: &ScreenState) -> Option<Event> {
        let has_registry = self.observed.registry().is_some();
        if screen.busy {
            return Some(Event::ScreenBusy { has_registry });
        }
        (!has_registry && screen.is_open()).then_some(Event::ScreenIdle)
    }
}
