//! What the program says, line by line.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::input::SentLine;
use super::{StreamSession, Turn};
use crate::core::session::{Mirror, Output, RESTART_MARK, SessionEvent, StartFault};
use crate::core::time::Now;
use crate::provider::claude::activity;
use crate::provider::claude::transcript::{self, Block, Entry};
use crate::provider::claude::{TESTED, too_old};
use crate::provider::reader::{self, Damage, Document};

impl StreamSession {
    pub(super) fn on_line(&mut self, now: Now, line: &[u8]) {
        let documents = reader::read_line(line);
        if documents.is_empty() && !line.iter().all(u8::is_ascii_whitespace) {
            self.on_damage(Damage::Broken);
        }
        for document in documents {
            self.on_damage(document.damage);
            self.on_frame(now, document, line);
        }
    }

    /// A line is damaged: it may have been the end of the turn.
    fn on_damage(&mut self, damage: Damage) {
        if damage != Damage::None && !std::mem::replace(&mut self.told_of_damage, true) {
            self.warn("the session wrote a damaged line; of such lines counts what is readable");
        }
        if damage == Damage::Broken {
            self.turn.iter_mut().for_each(|turn| turn.has_lost_line = true);
        }
    }

    fn on_frame(&mut self, now: Now, document: Document, line: &[u8]) {
        let (mut frame, damage) = (document.value, document.damage);
        let text = |at: &str| frame.pointer(at).and_then(Value::as_str).unwrap_or_default();
        match text("/type") {
            "control_response" => self.on_response(&frame, damage),
            "control_request" if text("/request_id").is_empty() => self.on_unanswerable(),
            "control_request" if text("/request/subtype") == "can_use_tool" => {
                let request = text("/request_id").to_string();
                damage.max(reader::damage_of(line)).mark(&mut frame["request"]);
                self.on_ask(now, &request, &frame["request"]);
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
            "assistant" | "user" => self.on_conversation(frame),
            "result" => self.on_result(&frame, damage),
            // Its type stands near its end; this field stands in no other line.
            "" if frame.get("duration_api_ms").is_some() => self.on_result(&frame, damage),
            _ => {}
        }
    }

    pub(super) fn on_response(&mut self, frame: &Value, damage: Damage) {
        let Some(found) =
            frame.pointer("/response/response/claude_code_version").and_then(Value::as_str)
        else {
            if damage == Damage::Broken && !self.initialized {
                self.fail_open(
                    "the first answer of the session is unreadable".into(),
                    StartFault::Passing,
                );
            }
            return;
        };
        self.version = found.chars().take(40).collect();
        if let Some(reason) = too_old(found) {
            return self.fail_open(reason, StartFault::Person);
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
                if let Some(turn) = self.turn.as_mut() {
                    turn.opener.get_or_insert_with(|| uuid.to_string());
                }
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
                self.end_unreadable_turn(uuid);
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

    pub(super) fn on_conversation(&mut self, frame: Value) {
        if frame.get("parent_tool_use_id").is_some_and(|id| !id.is_null()) {
            return; // of a subagent
        }
        if frame.get("isReplay").and_then(Value::as_bool) == Some(true) {
            return;
        }
        let is_error = frame.get("is_api_error_message").and_then(Value::as_bool) == Some(true)
            || frame.get("error").is_some_and(Value::is_string);
        let Some(Entry::Answer(mut answer)) = transcript::read_value(frame) else { return };
        let Some(turn) = self.turn.as_mut().filter(|turn| !turn.is_command) else { return };
        if std::mem::take(&mut turn.retries) {
            self.out.push(Output::Event(SessionEvent::ProviderState(json!({"state": "running"}))));
        }
        let number = turn.number;
        if is_error {
            turn.error = Some(answer.text());
            return;
        }
        self.tokens = answer.tokens.max(self.tokens);
        // Whether a message was the last one shows with the next: what was said before is
        // narration.
        if turn.message != answer.message {
            turn.message = answer.message.clone();
            self.tell_narration();
            self.turn.iter_mut().for_each(Turn::begin_message);
        }
        answer.stop_reason = "end_turn".into();
        for (at, block) in answer.blocks.iter().enumerate() {
            match block {
                Block::Text(text) => self.turn.iter_mut().for_each(|turn| turn.say(text)),
                // What introduces a tool stands before it.
                Block::Tool { .. } => self.tell_narration(),
                Block::Thinking(_) => {}
            }
            if let Some(step) = activity::step(&answer, at, number) {
                self.emit(SessionEvent::Mirror(step));
            }
        }
    }

    /// Shows what the message has said and is not shown yet.
    fn tell_narration(&mut self) {
        let Some(turn) = self.turn.as_mut() else { return };
        let from = std::mem::replace(&mut turn.told, turn.last.len());
        let (body, turn) = (turn.last.get(from..).unwrap_or_default(), turn.number);
        if !body.trim().is_empty() {
            let (body, label) = (body.trim_start_matches('\n').into(), Some("narration".into()));
            let kind = "reasoning";
            let mirror = Mirror { kind, body, label, status: None, turn, key: None };
            self.emit(SessionEvent::Mirror(mirror));
        }
    }
}
