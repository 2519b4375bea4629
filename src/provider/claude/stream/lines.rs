//! What the program says, line by line.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::StreamSession;
use super::input::SentLine;
use crate::core::limits::REPLY_BODY_BYTES_MAX;
use crate::core::session::{Mirror, Output, RESTART_MARK, SessionEvent};
use crate::core::time::Now;
use crate::provider::claude::activity;
use crate::provider::claude::transcript::{self, Block, Entry};
use crate::provider::claude::{TESTED, too_old};
use crate::provider::text::push_bounded;

impl StreamSession {
    pub(super) fn on_line(&mut self, now: Now, line: &[u8]) {
        let Ok(frame @ Value::Object(_)) = serde_json::from_slice::<Value>(line) else {
            return;
        };
        let text = |at: &str| frame.pointer(at).and_then(Value::as_str).unwrap_or_default();
        match text("/type") {
            "control_response" => self.on_response(&frame),
            "control_request" if text("/request/subtype") == "can_use_tool" => {
                self.on_ask(now, text("/request_id"), &frame["request"]);
            }
            "control_request" => {
                let response = json!({
                    "subtype": "error",
                    "request_id": text("/request_id"),
                    "error": "not supported by this client"
                });
                self.write(&json!({"type": "control_response", "response": response}));
            }
            "control_cancel_request" => self.on_withdrawn(text("/request_id")),
            "command_lifecycle" => self.on_lifecycle(text("/command_uuid"), text("/state")),
            "system" => self.on_system(text("/subtype"), &frame),
            "assistant" | "user" => self.on_conversation(&frame, line),
            "result" => self.on_result(&frame),
            _ => {}
        }
    }

    pub(super) fn on_response(&mut self, frame: &Value) {
        let Some(found) =
            frame.pointer("/response/response/claude_code_version").and_then(Value::as_str)
        else {
            return;
        };
        self.version = found.chars().take(40).collect();
        if let Some(reason) = too_old(found) {
            return self.fail_open(reason, true);
        }
        if self.version != TESTED {
            self.info(format!("Claude Code {found} runs; {TESTED} is the version that was tested"));
        }
        self.initialized = true;
        self.open_if_ready();
    }

    pub(super) fn on_lifecycle(&mut self, uuid: &str, state: &str) {
        let Some(sent) = self.sent.get_mut(uuid) else { return };
        match state {
            "started" => {
                sent.started = true;
                let told = sent.verb.take();
                let taken =
                    sent.delivery.as_ref().map(|delivery| (delivery.batch, delivery.key.clone()));
                if let Some(verb) = told {
                    self.answer(verb, Ok(Value::Null));
                }
                self.begin_turn("the session took a line");
                if let (Some(turn), Some((batch, key))) = (self.turn.as_mut(), taken) {
                    turn.batch = Some(batch);
                    self.emit(SessionEvent::Accepted {
                        batch,
                        key,
                        evidence: "the session says that it has begun with the line".into(),
                    });
                }
            }
            "completed" if !sent.started => self.on_suppressed(uuid),
            "completed" | "cancelled" => {
                self.sent.remove(uuid);
                self.go_on();
            }
            _ => {}
        }
    }

    /// The program knew the line from before and says nothing to it: it is told to go on.
    pub(super) fn on_suppressed(&mut self, uuid: &str) {
        let Some(SentLine { delivery: Some(delivery), .. }) = self.sent.remove(uuid) else {
            return;
        };
        self.warn(format!("the session knew a line of batch {} already", delivery.batch));
        let (batch, key) = (delivery.batch, delivery.key.clone());
        self.emit(SessionEvent::Accepted {
            batch,
            key,
            evidence: "the session knew the line already".into(),
        });
        let fresh = self.fresh_uuid();
        let text = format!(
            "{} while you worked on the messages above. Please go on and answer them.",
            RESTART_MARK
        );
        self.user_line(&fresh, &text);
        self.sent.insert(fresh, SentLine { delivery: Some(delivery), verb: None, started: false });
    }

    pub(super) fn on_system(&mut self, kind: &str, frame: &Value) {
        let text = |at: &str| frame.pointer(at).and_then(Value::as_str).unwrap_or_default();
        match kind {
            "init" => {
                self.begin_turn("the session began a turn by itself");
                let model = text("/model");
                if !model.is_empty() && self.model.as_deref() != Some(model) {
                    self.model = Some(model.to_string());
                    self.emit(SessionEvent::Fact { name: "model", value: json!(model) });
                }
                self.emit(SessionEvent::Fact {
                    name: "mode",
                    value: json!(text("/permissionMode")),
                });
                let session = text("/session_id").to_string();
                if !session.is_empty() && session != self.session {
                    self.session = session.clone();
                    self.emit(SessionEvent::ConversationChanged { session });
                    if self.is_clearing() {
                        self.context_result = Some(Ok(()));
                    }
                }
            }
            "api_retry" => {
                let detail = format!(
                    "{} attempt {} of {}",
                    text("/error"),
                    frame["attempt"],
                    frame["max_retries"]
                );
                self.turn.iter_mut().for_each(|turn| turn.retries = true);
                self.emit(SessionEvent::ProviderState(
                    json!({"state": "retrying", "detail": detail}),
                ));
            }
            "status" => match text("/compact_result") {
                "success" => self.context_result = Some(Ok(())),
                "failed" => self.context_result = Some(Err(text("/compact_error").to_string())),
                _ if text("/status") == "compacting" && self.context.is_none() => {
                    self.emit(SessionEvent::Timeline("compacting"))
                }
                _ => {}
            },
            "compact_boundary" if self.context.is_none() => {
                self.emit(SessionEvent::Timeline("compacted"))
            }
            "background_tasks_changed" => self.on_background(frame),
            _ => {}
        }
    }

    /// The whole list of what works beside the turn.
    pub(super) fn on_background(&mut self, frame: &Value) {
        let mut now: BTreeMap<String, (&'static str, String)> = BTreeMap::new();
        for task in frame.get("tasks").and_then(Value::as_array).into_iter().flatten().take(256) {
            let text = |fields: [&str; 2]| {
                fields
                    .iter()
                    .find_map(|field| task.get(*field).and_then(Value::as_str))
                    .unwrap_or_default()
                    .to_string()
            };
            let kind =
                if text(["task_type", "type"]).contains("agent") { "subagent" } else { "shell" };
            now.insert(text(["task_id", "id"]), (kind, text(["description", "summary"])));
        }
        for (id, kind) in std::mem::take(&mut self.background) {
            if !now.contains_key(&id) {
                self.emit(SessionEvent::Work { kind, id, label: String::new(), runs: false });
            }
        }
        for (id, (kind, label)) in now {
            self.background.insert(id.clone(), kind);
            self.emit(SessionEvent::Work { kind, id, label, runs: true });
        }
    }

    pub(super) fn on_conversation(&mut self, frame: &Value, line: &[u8]) {
        if frame.get("parent_tool_use_id").is_some_and(|id| !id.is_null()) {
            return; // of a subagent
        }
        if frame.get("isReplay").and_then(Value::as_bool) == Some(true) {
            return;
        }
        let Some(Entry::Answer(mut answer)) = transcript::read(line) else { return };
        let Some(turn) = self.turn.as_mut().filter(|turn| !turn.is_command) else { return };
        if std::mem::take(&mut turn.retries) {
            self.out.push(Output::Event(SessionEvent::ProviderState(json!({"state": "running"}))));
        }
        let number = turn.number;
        if frame.get("is_api_error_message").and_then(Value::as_bool) == Some(true)
            || frame.get("error").is_some_and(Value::is_string)
        {
            turn.error = Some(answer.text());
            return;
        }
        self.tokens = answer.tokens.max(self.tokens);
        // Whether a message was the last one shows with the next: what was said before is
        // narration.
        let begins = turn.message != answer.message;
        let before = if begins { std::mem::take(&mut turn.last) } else { String::new() };
        turn.message = answer.message.clone();
        for block in &answer.blocks {
            if let Block::Text(text) = block {
                for place in [&mut turn.last, &mut turn.whole] {
                    let between = if place.is_empty() { "" } else { "\n" };
                    push_bounded(place, between, REPLY_BODY_BYTES_MAX);
                    push_bounded(place, text, REPLY_BODY_BYTES_MAX);
                }
            }
        }
        if !before.trim().is_empty() {
            let label = Some("narration".into());
            self.emit(SessionEvent::Mirror(Mirror {
                kind: "reasoning",
                body: before,
                label,
                status: None,
                turn: number,
                key: None,
            }));
        }
        answer.stop_reason = "end_turn".into();
        for step in activity::steps(&answer, number) {
            self.emit(SessionEvent::Mirror(step));
        }
    }
}
