//! What registry, transcript and screen tell.

use std::time::Duration;

use super::TuiSession;
use super::commands::ContextCommand;
use super::effects::Told;
use super::identity::Content;
use super::observed::{Observation, RegistryWord, retrying};
use super::sender::EntryProof;
use super::turn::{Activity, Event};
use crate::core::session::{Screen, SessionEvent};
use crate::core::time::Now;
use crate::provider::claude::activity::steps;
use crate::provider::claude::screen::InputBox;
use crate::provider::claude::transcript::{Answer, Block, Entry, Prompt, unwrapped};

/// A session that starts draws its screen when its registry changes.
const START_CAPTURE: Duration = Duration::from_millis(10);
/// The screen has to agree with a registry that says idle.
const IDLE_CAPTURE: Duration = Duration::from_millis(500);

/// What the program itself puts into the transcript as an answer.
const SYNTHETIC: &str = "<synthetic>";

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
                if since > self.turns.quiet_at() {
                    self.background.no_subagents(&mut self.out);
                }
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
            Observation::Busy { since } => self.on_registry_busy(now, since),
            Observation::Dialog { detail } => self.set_activity(Activity::Waiting, Some(&detail)),
            Observation::Waiting { since, detail } => {
                self.on_registry_busy(now, since);
                self.set_activity(Activity::Waiting, Some(&detail));
            }
            Observation::Retrying { attempt, detail } => {
                self.set_activity(Activity::Retrying(attempt), Some(&detail));
            }
        }
    }

    pub(super) fn on_registry_busy(&mut self, now: Now, since: i64) {
        let explained = self.background.has_subagents();
        self.observe(now, Event::RegistryBusy { since, explained });
    }

    fn on_registry_idle(&mut self, now: Now, since: i64) {
        self.observe(now, Event::RegistryIdle { since });
        if self.turns.is_running() {
            self.observed.capture_soon(now, IDLE_CAPTURE);
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
            Entry::Answer(answer) => self.on_answer(now, &answer),
            Entry::Interrupted { at } => {
                if self.turns.interrupted_at(at) {
                    match self.observed.registry_observation() {
                        Some(Observation::Idle { since }) => self.on_registry_idle(now, since),
                        _ => self.observe_screen(now),
                    }
                    self.observed.capture_soon(now, Duration::ZERO);
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
                let decides = self.screen_decides();
                let event = Event::TranscriptEnd { at, decides, registry_idle_since };
                self.observe(now, event);
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
                let told = Told { at: self.told_at(now, prompt.at), evidence: "transcript" };
                self.on_arrived(now, at, told, is_late);
                if !is_late {
                    self.turns.learn_prompt_id(&prompt.prompt_id);
                }
            }
        }
    }

    /// A piece of an answer.
    fn on_answer(&mut self, now: Now, answer: &Answer) {
        if answer.at > 0 && !answer.is_error && answer.model != SYNTHETIC {
            // Younger than the end of a turn, it is of another one: a hook of its own that makes it
            // go on, or one whose prompt no hook has told.
            let evidence = "the transcript shows that it works";
            self.observe(now, Event::Answers { at: answer.at, evidence });
        }
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
        self.observed.keep_screen(screen);
        if !self.startup.is_open() {
            return self.open_if_ready(now);
        }
        self.observe_screen(now);
        let (sender, mut around) = self.sender(now);
        if sender.on_screen(&mut around) {
            self.commands.context_submitted(now, &mut self.out);
        }
        self.send_next(now);
    }

    /// What the last picture says of the turn.
    pub(super) fn observe_screen(&mut self, now: Now) {
        let (at, decides) = (self.observed.screen_at(), self.screen_decides());
        let gave_back = self.gave_back();
        if self.observed.screen_is_busy() {
            self.observe(now, Event::ScreenBusy { at, decides });
        } else if self.observed.screen_is_quiet() || gave_back {
            self.observe(now, Event::ScreenIdle { at, decides, gave_back });
        }
    }

    /// The box holds the prompt of the running turn again.
    pub(super) fn gave_back(&self) -> bool {
        let prompt = self.turns.prompt();
        !prompt.is_empty()
            && self.observed.is_open()
            && self.sender.box_holds(prompt, &self.observed)
    }

    /// The registry says nothing about turns, or nothing that is as young as the running one.
    pub(super) fn screen_decides(&self) -> bool {
        match self.registry_word() {
            RegistryWord::Busy => false,
            RegistryWord::Nothing => true,
            RegistryWord::Idle { since } => self.turns.began().is_some_and(|began| since < began),
        }
    }

    pub(super) fn registry_word(&self) -> RegistryWord {
        self.observed.registry_word(self.turns.quiet_at(), self.background.has_subagents())
    }
}
