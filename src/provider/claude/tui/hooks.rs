//! What the hooks tell.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Boundary, Held, TuiSession};
use crate::core::ids::Ticket;
use crate::core::limits::APPROVALS_MAX;
use crate::core::session::{Output, Signal, TurnEnd};
use crate::core::time::Now;
use crate::provider::claude::permission::{Ask, number};
use crate::provider::claude::transcript::{LINE_BYTES_MAX, unwrapped};
use crate::provider::lines::Lines;

/// Things that work beside the turn.
const BACKGROUND_MAX: usize = 256;
/// Tokens of a usual context window, and of a large one.
const WINDOW: u64 = 200_000;
const LARGE_WINDOW: u64 = 1_000_000;
/// So long after a session was left, its registry file may still name it.
const LEFT_TIME: Duration = Duration::from_secs(2);
/// A session that waits for no key any more for so long has no question open.
const ANSWERED_TIME: Duration = Duration::from_secs(1);

/// A session's id, as it may stand in a command line and a file name.
pub(super) fn is_id(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !text.starts_with('-')
}

impl TuiSession {
    /// A hook with its payload; one with a ticket waits for an answer.
    pub(super) fn on_hook(&mut self, now: Now, ticket: Ticket, event: &str, payload: &Value) {
        let text = |field: &str| payload.get(field).and_then(Value::as_str).unwrap_or_default();
        let name = payload.get("hook_event_name").and_then(Value::as_str).unwrap_or(event);
        let of_subagent = !text("agent_id").is_empty();
        // Of another session: one that was left, or one that a tool has started in this environment.
        let of = text("session_id");
        let moved = self.registry.as_ref().is_none_or(|registry| registry.session == of);
        let foreign = !of.is_empty() && of != self.session && self.open && !(moved && of != self.left_session);
        if foreign && !matches!(name, "PermissionRequest" | "SessionStart") {
            if ticket != Ticket::NOBODY {
                self.signal(Signal::HookAnswer { ticket, answer: None });
            }
            return;
        }
        let trigger = text("trigger");
        self.heard |= name != event;
        if !of_subagent && (name != event || event == "status-line") && text("session_id") == self.session {
            self.follow_hooked(text("session_id"), text("transcript_path"), false);
        }
        if matches!(name, "Stop" | "StopFailure") && !of_subagent && self.is_late(text("prompt_id")) {
            return;
        }
        match name {
            "PermissionRequest" => return self.on_permission(now, ticket, payload),
            "SessionStart" => self.on_session_start(now, payload),
            "SessionEnd" if text("reason") == "prompt_input_exit" => self.left = Some("it was ended at its terminal".into()),
            "UserPromptSubmit" if !of_subagent => {
                self.hooked = true;
                let ran = self.turn.is_some();
                self.begin_turn(now, "hook UserPromptSubmit");
                let ours = self.on_prompt_hook(now, unwrapped(text("prompt")));
                if let Some(turn) = self.turn.as_mut().filter(|_| !ran) {
                    turn.foreign = !ours;
                    turn.prompt_id = text("prompt_id").to_string();
                }
            }
            "Stop" if !of_subagent => {
                self.on_background(payload);
                self.end_turn(now, TurnEnd::Completed, Some(text("last_assistant_message")), "hook Stop");
            }
            "StopFailure" if !of_subagent => {
                let said = text("last_assistant_message");
                let error = if said.is_empty() { text("error") } else { said };
                self.end_turn(now, TurnEnd::Failed(error.chars().take(2000).collect()), None, "hook StopFailure");
            }
            "SubagentStart" => self.on_work(text("agent_id"), "subagent", text("agent_type"), true),
            // A compaction fires one too, without a type and without a start.
            "SubagentStop" if !text("agent_type").is_empty() => {
                self.withdraw_of(text("agent_id"));
                self.on_work(text("agent_id"), "subagent", "", false);
                self.on_background(payload);
            }
            "PreCompact" if !of_subagent => {
                self.begin_turn(now, "hook PreCompact");
                self.provider_state("compacting", json!({"state": "compacting"}));
                if self.crossing.is_none() {
                    self.signal(Signal::Timeline("compacting"));
                }
            }
            "PostCompact" if !of_subagent => {
                if self.crossing.is_none() {
                    self.signal(Signal::Timeline("compacted"));
                }
                self.crossed(Boundary::Compact, Ok(()));
                self.provider_state("", json!({"state": "running"}));
                // An automatic one stands inside a turn that goes on.
                if trigger != "auto" {
                    self.end_turn(now, TurnEnd::Completed, None, "hook PostCompact");
                }
            }
            // It comes seconds after the dialog: perhaps somebody has answered by then.
            "Notification"
                if text("notification_type") == "permission_prompt"
                    && self.registry.as_ref().is_none_or(|registry| registry.waits_since(i64::MIN)) =>
            {
                self.provider_state("waiting", json!({"state": "blocked", "reason": "waitingOnApproval"}));
            }
            "fetched" => {
                let ids = payload.get("ids").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64);
                self.on_fetched(now, &ids.take(1000).collect::<Vec<u64>>());
            }
            "status-line" => self.on_status_line(payload),
            // A bare word, of a hook whose program could not be run: the registry and the screen are asked.
            "busy" => self.begin_turn(now, "bare status post of a hook"),
            "idle" => self.look_soon(now, Duration::ZERO),
            _ => {}
        }
        if ticket != Ticket::NOBODY {
            self.signal(Signal::HookAnswer { ticket, answer: None });
        }
    }

    /// A Stop that comes late or twice, for a turn that is over, or while the turn itself still waits for an answer.
    fn is_late(&self, prompt_id: &str) -> bool {
        let Some(turn) = &self.turn else { return false };
        let over = turn.prompt_id != prompt_id && self.over_prompts.iter().any(|over| over == prompt_id);
        // A question of a subagent in the background holds up nobody else.
        let asks = self.held.values().any(|held| held.agent.is_empty());
        over || (asks && self.registry.as_ref().is_some_and(|registry| registry.waits_since(turn.began)))
    }

    fn on_session_start(&mut self, now: Now, payload: &Value) {
        let text = |field: &str| payload.get(field).and_then(Value::as_str).unwrap_or_default();
        let (of, source) = (text("session_id"), text("source"));
        if source == "resume" && of == self.left_session {
            self.left_session.clear(); // a person has gone back to it
        }
        // One that a tool has started can say so too, but is never cleared: of ours, the registry file says it as well.
        let ours = of == self.session || source == "clear" || self.registry.as_ref().is_none_or(|registry| registry.names(of));
        if !ours && !(crate::planted::is("foreign-session") && !of.is_empty()) {
            self.announced = Some((of.to_string(), source == "resume"));
            return;
        }
        let model = text("model");
        if !model.is_empty() {
            self.model = Some(model.to_string());
            self.signal(Signal::Fact { name: "model", value: json!(model) });
        }
        self.on_session_id(now, of, source == "resume");
        self.follow_hooked(of, text("transcript_path"), source == "resume");
        if !self.open {
            self.look_soon(now, Duration::from_millis(50));
        }
    }

    /// `/clear` gives the session a new id in the same process, `/resume` that of an earlier one.
    pub(super) fn on_session_id(&mut self, now: Now, session: &str, old: bool) {
        let left = session == self.left_session && self.left_until.is_some_and(|until| now.tick < until);
        if session == self.session || left || !is_id(session) {
            return;
        }
        let before = std::mem::replace(&mut self.session, session.to_string());
        if self.open {
            (self.left_session, self.left_until) = (before, Some(now.tick + LEFT_TIME));
        }
        let resumed = self.announced.take().is_some_and(|(of, resumed)| resumed && of == session);
        if self.open {
            self.signal(Signal::Moved { session: session.to_string() });
            self.crossed(Boundary::Clear, Ok(()));
            self.end_turn(now, TurnEnd::Completed, None, "the session was cleared");
        }
        // The hook names the transcript; without it the file lies beside the old one.
        let beside =
            self.transcript.as_deref().and_then(|path| path.rsplit_once('/')).map(|(folder, _)| format!("{folder}/{session}.jsonl"));
        if let Some(path) = beside {
            self.follow(&path, old || resumed);
        }
    }

    /// The transcript that a hook names, if that can be the one of the session.
    fn follow_hooked(&mut self, session: &str, path: &str, old: bool) {
        let fits = path.strip_suffix(".jsonl").and_then(|path| path.strip_suffix(session)).is_some_and(|folder| folder.ends_with('/'));
        if fits && path.starts_with('/') && !path.contains("/../") {
            self.follow(path, old);
        }
    }

    /// `old`: what the file holds already was said by others, or before. A file that is still to come is read from its
    /// beginning in any case.
    fn follow(&mut self, path: &str, old: bool) {
        if path.is_empty() || self.transcript.as_deref() == Some(path) {
            return;
        }
        // The same file in another spelling, while its evidence is being read.
        let name = |path: &str| path.rsplit('/').next().map(str::to_string);
        if self.evidence.is_some() && self.transcript.as_deref().and_then(name) == name(path) {
            return;
        }
        let whole = !old && (!self.start.resumes || self.open);
        self.transcript = Some(path.to_string());
        self.lines = Lines::up_to(LINE_BYTES_MAX);
        self.out.push(Output::Follow { path: path.to_string(), whole });
    }

    fn on_work(&mut self, id: &str, kind: &'static str, label: &str, runs: bool) {
        if id.is_empty() || (runs && self.background.len() >= BACKGROUND_MAX) {
            return;
        }
        let known = match runs {
            true => self.background.insert(id.to_string(), kind).is_some(),
            false => self.background.remove(id).is_none(),
        };
        if !known {
            self.signal(Signal::Work { kind, id: id.into(), label: label.chars().take(200).collect(), runs });
        }
    }

    /// The whole list of what works beside the turn, as Stop tells it.
    fn on_background(&mut self, payload: &Value) {
        let Some(tasks) = payload.get("background_tasks").and_then(Value::as_array) else { return };
        let stopped = payload.get("hook_event_name").and_then(Value::as_str) == Some("SubagentStop");
        let own = payload.get("agent_id").and_then(Value::as_str).unwrap_or_default();
        let mut now: BTreeMap<&str, (&'static str, &str)> = BTreeMap::new();
        for task in tasks.iter().take(BACKGROUND_MAX) {
            let text = |field: &str| task.get(field).and_then(Value::as_str).unwrap_or_default();
            let kind = match text("type") {
                "subagent" => "subagent",
                "shell" => "shell",
                _ => continue,
            };
            // The list that comes with its end still holds the one that ended.
            if text("status") == "running" && !(stopped && text("id") == own) {
                now.insert(text("id"), (kind, text("description")));
            }
        }
        for id in self.background.keys().cloned().collect::<Vec<_>>() {
            if !now.contains_key(id.as_str()) {
                let kind = self.background[&id];
                self.on_work(&id, kind, "", false);
            }
        }
        for (id, (kind, label)) in now {
            self.on_work(id, kind, label, true);
        }
    }

    /// The registry says that no shell works any more.
    pub(super) fn no_shells(&mut self) {
        for id in self.background.iter().filter(|(_, kind)| **kind == "shell").map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.on_work(&id, "shell", "", false);
        }
    }

    // ---- permissions

    fn on_permission(&mut self, now: Now, ticket: Ticket, payload: &Value) {
        if ticket == Ticket::NOBODY {
            return;
        }
        let ask = Ask::read(payload, "tool_input");
        let agent = payload.get("agent_id").and_then(Value::as_str).unwrap_or_default().to_string();
        // One dialog at a time for each: a new one means that the one before was answered.
        self.withdraw_of(&agent);
        if self.settings.rejects_all() && !ask.is_question() {
            let answer = ask.answer(
                crate::core::session::Decision::Deny,
                Some("This agent is read-only: its runner allows no tool that asks."),
                None,
            );
            self.signal(Signal::HookAnswer { ticket, answer: Some(answer.for_hook("PermissionRequest")) });
            return;
        }
        if self.held.len() >= APPROVALS_MAX {
            self.signal(Signal::HookAnswer { ticket, answer: None });
            return;
        }
        if agent.is_empty() {
            self.begin_turn(now, "hook PermissionRequest");
        }
        self.approvals += 1;
        let id = format!("{}-{}", self.start.nonce.get(..8).unwrap_or("approval"), self.approvals);
        self.signal(Signal::ApprovalOpened(ask.view(&id)));
        let deadline = now.tick + self.settings.approval_timeout;
        self.held.insert(id, Held { ticket, ask, event: "PermissionRequest".into(), agent, at: now.wall.0, deadline });
    }

    pub(super) fn on_hook_gone(&mut self, ticket: Ticket) {
        let gone = self.held.iter().find(|(_, held)| held.ticket == ticket).map(|(id, _)| id.clone());
        if let Some(id) = gone {
            self.held.remove(&id);
            self.signal(Signal::ApprovalClosed { id, reason: "the session withdrew the question".into() });
        }
    }

    /// The question of the session itself (no name) or of one subagent is over.
    fn withdraw_of(&mut self, agent: &str) {
        let open = self.held.iter().find(|(_, held)| held.agent == agent).map(|(id, _)| id.clone());
        if let Some(id) = open {
            self.withdraw(&id, "it was answered at the terminal");
        }
    }

    /// The program no longer waits for a key, since `at` (ms): somebody answered at the terminal. What was asked later is
    /// another question; of several, the next one may open in a moment.
    pub(super) fn answered_at_terminal(&mut self, now: Now, at: i64) {
        let asked: Vec<String> = self.held.iter().filter(|(_, held)| held.at <= at).map(|(id, _)| id.clone()).collect();
        match (asked.as_slice(), self.held.len()) {
            ([id], 1) if !self.decided => self.withdraw(id, "it was answered at the terminal"),
            ([], _) => {}
            _ => self.answered = Some((at, now.tick + ANSWERED_TIME)),
        }
        self.decided = false;
    }

    /// It has waited for no key for long enough: of all that was asked before, nothing is open.
    pub(super) fn settle_answered(&mut self, now: Now) {
        let Some((at, _)) = self.answered.take_if(|(_, until)| *until <= now.tick) else { return };
        for id in self.held.iter().filter(|(_, held)| held.at <= at).map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.withdraw(&id, "it was answered at the terminal");
        }
    }

    /// Tools of the session itself have their results: what was asked for one of them is answered.
    pub(super) fn on_results(&mut self, calls: &[(String, bool)], at: i64) {
        if let Some(turn) = self.turn.as_mut() {
            turn.spoke = true;
        }
        let done: Vec<u64> = self.tools.iter().filter(|(id, _)| calls.iter().any(|(call, _)| call == id)).map(|(_, call)| *call).collect();
        let same = |held: &Held| done.contains(&number(&held.ask.tool, &held.ask.input));
        let mine = self.held.iter().find(|(_, held)| held.agent.is_empty() && at > held.at && same(held)).map(|(id, _)| id.clone());
        if let Some(id) = mine {
            self.withdraw(&id, "it was answered at the terminal");
        }
    }

    /// Use of the context by what the transcript says, where no status line of ours tells more: the window is a guess.
    pub(super) fn estimate_context(&mut self) {
        if self.has_status_line || self.tokens == 0 {
            return;
        }
        let large = self.tokens > WINDOW || self.model.as_deref().is_some_and(|model| model.contains("[1m]"));
        let window = if large { LARGE_WINDOW } else { WINDOW };
        let (used, model) = (std::mem::take(&mut self.tokens), self.model.clone());
        self.signal(Signal::Context(json!({
            "utilization": (used as f64 / window as f64).min(1.0), "lifecycleState": "active", "source": "estimate", "confidence": "estimated",
            "usedTokens": used, "windowTokens": window, "model": model
        })));
    }

    /// Use of the context, as the status line is told it.
    fn on_status_line(&mut self, payload: &Value) {
        let number = |at: &str| payload.pointer(at).and_then(Value::as_f64);
        let window = number("/context_window/context_window_size").filter(|size| *size > 0.0);
        let usage = |field: &str| number(&format!("/context_window/current_usage/{field}")).unwrap_or(0.0);
        let used =
            ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"].map(usage).iter().sum::<f64>();
        let model = payload.pointer("/model/id").and_then(Value::as_str).unwrap_or_default();
        if let (Some(window), true) = (window, used > 0.0) {
            self.has_status_line = true;
            self.signal(Signal::Context(json!({
                "utilization": used / window, "lifecycleState": "active", "source": "statusline", "confidence": "reported",
                "usedTokens": used, "windowTokens": window, "model": model
            })));
        }
    }
}
