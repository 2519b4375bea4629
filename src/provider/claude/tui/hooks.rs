//! What the hooks tell.

use std::time::Duration;

use serde_json::Value;

use super::TuiSession;
use super::background::Kind;
use super::commands::ContextCommand;
use super::effects::Told;
use super::identity::Content;
use super::registry::Registry;
use super::sender::{HookProof, first_line};
use super::turn::{Activity, Event};
use crate::core::ids::Ticket;
use crate::core::session::{SessionEvent, TurnEnd};
use crate::core::time::{Now, Wall};
use crate::provider::claude::hook_events::HookName;
use crate::provider::claude::transcript::unwrapped;
use crate::provider::reader::{Damage, is_sound};
use crate::wire::control::PERMISSION_REQUEST;

/// Characters of an error that are told.
const ERROR_CHARS_MAX: usize = 2000;
/// Ids of fetched messages that are read.
const FETCHED_MAX: usize = 1000;
/// A session that has just said that it starts draws its screen.
const START_CAPTURE: Duration = Duration::from_millis(50);

/// Told when the session works and none of its hooks has ever reported.
const NO_HOOKS: &str = "its hooks are switched off, by its settings (disableAllHooks) or by a policy: what it asks is asked in its \
terminal only, answer there with `agent-relay attach`";

/// Whether its hooks report at all.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) enum Hooks {
    /// None has reported so far.
    #[default]
    Silent,
    /// The same, and people were told.
    Missing,
    Heard,
}

/// A hook's payload, with fields of a wrong type as empty ones.
#[derive(Clone, Copy)]
struct Payload<'a> {
    fields: &'a Value,
    /// When the hook ran, by the wall clock, ms.
    at: i64,
}

impl<'a> Payload<'a> {
    fn text(self, field: &str) -> &'a str {
        self.fields.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// A text that names something: none where it could not be read whole.
    fn identity(self, field: &str) -> &'a str {
        let text = self.text(field);
        if Damage::of(self.fields) != Damage::Broken && is_sound(text) { text } else { "" }
    }

    fn is_of_subagent(self) -> bool {
        !self.text("agent_id").is_empty()
    }
}

impl TuiSession {
    /// A hook with its payload; one with a ticket waits for an answer.
    pub(super) fn on_hook(
        &mut self,
        now: Now,
        ticket: Ticket,
        event: &str,
        payload: &Value,
        at: Wall,
    ) {
        let told = payload.get("hook_event_name").and_then(Value::as_str);
        let at = self.told_at(now, at.0);
        let (name, payload) = (told.unwrap_or(event), Payload { fields: payload, at });
        // Who waits for a permission is asked for, also where his payload does not say so.
        let asks = ticket != Ticket::NOBODY && event == PERMISSION_REQUEST && told.is_none();
        let hook = if asks { Some(HookName::PermissionRequest) } else { HookName::parse(name) };
        if self.is_foreign_hook(hook, payload) {
            return self.answer_hook(ticket);
        }
        // The program itself has spoken, whether or not the event is known here.
        let is_of_program = name != event;
        if is_of_program {
            self.sender.on_source();
            if std::mem::replace(&mut self.hooks, Hooks::Heard) == Hooks::Missing {
                self.out.fact("hooks", Value::Null);
            }
        }
        if is_of_program || hook == Some(HookName::StatusLine) {
            self.follow_hook(payload);
        }
        let Some(hook) = hook else { return self.answer_hook(ticket) };
        if matches!(hook, HookName::Stop | HookName::StopFailure) && self.is_late(payload) {
            return;
        }
        if hook == HookName::PermissionRequest {
            return self.on_permission(now, ticket, payload);
        }
        if payload.is_of_subagent() {
            self.on_any_hook(now, hook, payload);
        } else {
            self.on_own_hook(now, hook, payload);
        }
        self.answer_hook(ticket);
    }

    /// It works: its first hook ran when it started, so without any they are switched off.
    pub(super) fn miss_hooks(&mut self) {
        if self.hooks == Hooks::Silent && !crate::planted::is("unnoticed-silence") {
            self.hooks = Hooks::Missing;
            self.out.warn(NO_HOOKS);
            self.out.fact("hooks", Value::from(NO_HOOKS));
        }
    }

    fn answer_hook(&mut self, ticket: Ticket) {
        if ticket != Ticket::NOBODY {
            self.out.emit(SessionEvent::HookAnswer { ticket, answer: None });
        }
    }

    /// Of a session that was left, or one that a tool has started in this environment. Permissions
    /// are asked for all of them, and the begin of a session is judged by itself.
    fn is_foreign_hook(&self, hook: Option<HookName>, payload: Payload<'_>) -> bool {
        let session = payload.text("session_id");
        let registry = self.observed.registry();
        let is_named = registry.is_none_or(|registry| registry.session() == session);
        self.startup.is_open()
            && self.identity.is_foreign(session, is_named)
            && !matches!(hook, Some(HookName::PermissionRequest | HookName::SessionStart))
    }

    /// A hook of the session itself names its transcript.
    fn follow_hook(&mut self, payload: Payload<'_>) {
        let session = payload.identity("session_id");
        if !payload.is_of_subagent() && session == self.identity.session() {
            let (path, reading) = (payload.identity("transcript_path"), self.reading());
            self.identity.follow_named(session, path, Content::New, reading, &mut self.out);
        }
    }

    /// A Stop that comes late or twice, for a turn that is over, or while the turn itself still
    /// waits for an answer.
    fn is_late(&self, payload: Payload<'_>) -> bool {
        let Some(began) = self.turns.began().filter(|_| !payload.is_of_subagent()) else {
            return false;
        };
        let waits = || self.observed.registry().is_some_and(|registry| registry.waits_since(began));
        self.turns.is_over(payload.text("prompt_id")) || (self.approvals.session_asks() && waits())
    }

    /// Hooks that tell of the turn of the session itself.
    fn on_own_hook(&mut self, now: Now, hook: HookName, payload: Payload<'_>) {
        match hook {
            HookName::UserPromptSubmit => self.on_prompt_hook(now, payload),
            HookName::Stop => {
                self.on_background(payload, None);
                let text = payload.text("last_assistant_message");
                self.on_hook_end(now, payload, TurnEnd::Completed, Some(text), "hook Stop");
            }
            HookName::StopFailure => {
                let said = payload.text("last_assistant_message");
                let error = if said.is_empty() { payload.text("error") } else { said };
                let end = TurnEnd::Failed(error.chars().take(ERROR_CHARS_MAX).collect());
                self.on_hook_end(now, payload, end, None, "hook StopFailure");
            }
            HookName::PreCompact => {
                let evidence = "hook PreCompact";
                self.observe(now, Event::Works { at: payload.at, evidence });
                self.set_activity(Activity::Compacting, None);
                self.tell_own_compaction("compacting");
            }
            HookName::PostCompact => {
                self.tell_own_compaction("compacted");
                self.context_done(ContextCommand::Compact);
                self.set_activity(Activity::Running, None);
                // An automatic one stands inside a turn that goes on.
                if payload.text("trigger") != "auto" {
                    let evidence = "hook PostCompact";
                    self.on_hook_end(now, payload, TurnEnd::Completed, None, evidence);
                }
            }
            _ => self.on_any_hook(now, hook, payload),
        }
    }

    /// Hooks that mean the same whoever has them, a subagent or the session itself.
    fn on_any_hook(&mut self, now: Now, hook: HookName, payload: Payload<'_>) {
        match hook {
            HookName::SessionStart => self.on_session_start(now, payload),
            HookName::SessionEnd if payload.text("reason") == "prompt_input_exit" => {
                self.startup.on_left()
            }
            HookName::SubagentStart => {
                let (id, label) = (payload.text("agent_id"), payload.text("agent_type"));
                self.background.started(id, Kind::Subagent, label, &mut self.out);
            }
            // A compaction fires one too, without a type and without a start.
            HookName::SubagentStop if !payload.text("agent_type").is_empty() => {
                let id = payload.text("agent_id");
                self.approvals.withdraw_of(id, &mut self.out);
                self.background.ended(id, Kind::Subagent, &mut self.out);
                self.on_background(payload, Some(id));
            }
            // It comes seconds after the dialog: perhaps somebody has answered by then.
            HookName::Notification if payload.text("notification_type") == "permission_prompt" => {
                if self.observed.registry().is_none_or(Registry::is_waiting) {
                    self.set_activity(Activity::Waiting, None);
                }
            }
            HookName::Fetched => self.on_fetched(now, payload),
            HookName::StatusLine => self.usage.on_status_line(payload.fields, &mut self.out),
            // A bare word, of a hook whose program could not be run: the registry and the screen
            // are asked.
            HookName::Busy => {
                let evidence = "bare status post of a hook";
                self.observe(now, Event::Works { at: payload.at, evidence });
            }
            HookName::Idle => self.observed.capture_soon(now, Duration::ZERO),
            // Other reasons, kinds and types than those above.
            HookName::SessionEnd | HookName::SubagentStop | HookName::Notification => {}
            // Of a subagent: they say nothing of the session's own turn.
            HookName::UserPromptSubmit
            | HookName::Stop
            | HookName::StopFailure
            | HookName::PreCompact
            | HookName::PostCompact => {}
            // A shell line in the text of a skill, which runs before the model reads the skill: the
            // prompt's own hook begins the turn, and what needs permission asks for it.
            HookName::PreSkillShellCommand => {}
            // It was dealt with before, since it waits for its answer.
            HookName::PermissionRequest => {}
        }
    }

    fn on_hook_end(
        &mut self,
        now: Now,
        payload: Payload<'_>,
        end: TurnEnd,
        said: Option<&str>,
        evidence: &'static str,
    ) {
        self.turns.remember_over(payload.text("prompt_id"));
        let said = said.map(str::to_string);
        self.observe(now, Event::HookEnd { at: payload.at, end, said, evidence });
    }

    fn on_prompt_hook(&mut self, now: Now, payload: Payload<'_>) {
        let (at, evidence) = (payload.at, "hook UserPromptSubmit");
        let was_running = self.turns.is_running();
        let proof = self.sender.on_prompt_hook(unwrapped(payload.text("prompt")), &self.turns);
        match proof {
            HookProof::Arrived(place) => {
                self.on_arrived(now, place, Told { at, evidence }, false);
            }
            // Late or doubled.
            _ if self.turns.was_over(payload.text("prompt_id")) => return,
            HookProof::NotOurs | HookProof::Waits => {
                self.observe(now, Event::Works { at, evidence })
            }
        }
        if !was_running {
            let first = first_line(unwrapped(payload.text("prompt")));
            let is_ours = proof != HookProof::NotOurs;
            self.turns.set_prompt(payload.text("prompt_id"), first, is_ours);
        }
    }

    /// A compaction that nobody has ordered is shown, too.
    fn tell_own_compaction(&mut self, moment: &'static str) {
        if !self.commands.has_context() {
            self.out.emit(SessionEvent::Timeline(moment));
        }
    }

    fn on_background(&mut self, payload: Payload<'_>, just_ended: Option<&str>) {
        if let Some(tasks) = payload.fields.get("background_tasks").and_then(Value::as_array) {
            self.background.replace(tasks, just_ended, &mut self.out);
        }
    }

    fn on_fetched(&mut self, now: Now, payload: Payload<'_>) {
        let ids = payload.fields.get("ids").and_then(Value::as_array).into_iter().flatten();
        let ids: Vec<u64> = ids.filter_map(Value::as_u64).take(FETCHED_MAX).collect();
        if let Some(at) = self.sender.on_fetched(&ids) {
            let told = Told { at: payload.at, evidence: "the session fetched it" };
            self.on_arrived(now, at, told, false);
        }
    }

    fn on_session_start(&mut self, now: Now, payload: Payload<'_>) {
        let (session, source) = (payload.identity("session_id"), payload.text("source"));
        let registry = self.observed.registry();
        let is_named = registry.is_none_or(|registry| registry.may_be(session));
        if !self.identity.is_ours(session, source, is_named) {
            return;
        }
        self.usage.on_session_model(payload.text("model"), &mut self.out);
        let content = if source == "resume" { Content::Old } else { Content::New };
        self.on_session_id(now, session, content);
        let (path, reading) = (payload.identity("transcript_path"), self.reading());
        self.identity.follow_named(session, path, content, reading, &mut self.out);
        if !self.startup.is_open() {
            self.observed.capture_soon(now, START_CAPTURE);
        }
    }

    fn on_permission(&mut self, now: Now, ticket: Ticket, payload: Payload<'_>) {
        let admitted = self.approvals.admit(ticket, payload.fields, &mut self.out);
        let Some(request) = admitted else { return };
        if !request.is_of_subagent() {
            let evidence = "hook PermissionRequest";
            self.observe(now, Event::Works { at: payload.at, evidence });
        }
        self.approvals.open(now, request, &mut self.out);
    }
}
