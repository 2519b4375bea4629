//! What an agent tells during a turn: text, tools, plan, mode, use of the context.

use serde_json::{Value, json};

use super::AcpSession;
use super::opening::option_of;
use crate::core::limits::{MIRROR_BODY_BYTES_MAX, REPLY_BODY_BYTES_MAX};
use crate::core::session::SessionEvent;
use crate::provider::acp::replay::Speaker;
use crate::provider::text::{one_line, push_bounded};

/// Steps of a plan that are shown.
const PLAN_STEPS_MAX: usize = 64;
/// How one agent says a change of mode in its own voice.
const MODE_UPDATE: &str = "[MODE_UPDATE]";
/// Tool calls that are remembered in one turn.
const TOOLS_MAX: usize = 1024;

impl AcpSession {
    /// An update of the session. While a load is open it is history: evidence, never mirrored
    /// again.
    pub(super) fn on_update(&mut self, update: &Value) {
        let kind = update.get("sessionUpdate").and_then(Value::as_str).unwrap_or_default();
        let text = update.pointer("/content/text").and_then(Value::as_str).unwrap_or_default();
        if let Some(replay) = self.opening.replay.as_mut() {
            match kind {
                "user_message_chunk" => replay.push(Speaker::User, text),
                "agent_message_chunk" => replay.push(Speaker::Agent, text),
                "tool_call" | "tool_call_update" => replay.push(Speaker::Tool, ""),
                _ => {}
            }
            return;
        }
        match kind {
            // One agent tells a change of mode as a message; that is no part of an answer.
            "agent_message_chunk" if text.starts_with(MODE_UPDATE) => {
                self.on_mode(text.trim_start_matches(MODE_UPDATE).trim());
            }
            "agent_message_chunk" | "agent_thought_chunk" => {
                self.accepted(kind);
                let id = update.get("messageId").and_then(Value::as_str);
                if kind == "agent_message_chunk" {
                    self.on_message(text, id);
                } else {
                    self.on_thought(text, id);
                }
            }
            "tool_call" | "tool_call_update" => {
                self.accepted(kind);
                self.flush_text();
                self.tool(update);
            }
            "usage_update" => self.on_usage(update),
            "plan" => {
                self.accepted(kind);
                self.on_plan(update);
            }
            "current_mode_update" => {
                if let Some(mode) = update.get("currentModeId").and_then(Value::as_str) {
                    self.on_mode(mode);
                }
            }
            "config_option_update" => {
                let options = update.get("configOptions").and_then(Value::as_array);
                let mode = options
                    .and_then(|options| option_of(options, "mode")?.get("currentValue")?.as_str());
                if let Some(mode) = mode {
                    self.on_mode(mode);
                }
            }
            "session_info_update" => {
                self.on_engine_state(update.pointer("/_meta/codex").unwrap_or(&Value::Null))
            }
            // Unknown kinds and those that may come at any time say nothing about a turn.
            _ => {}
        }
    }

    fn on_mode(&mut self, mode: &str) {
        self.fact("mode", json!(one_line(mode, 100)));
    }

    /// Use of the context window, in tokens.
    fn on_usage(&mut self, update: &Value) {
        let number = |field: &str| update.get(field).and_then(Value::as_f64).filter(|n| *n >= 0.0);
        let (used, size) = (number("used"), number("size").filter(|size| *size > 0.0));
        if let (Some(used), Some(size)) = (used, size) {
            self.emit(SessionEvent::Context(json!({
                "utilization": used / size, "lifecycleState": "active", "source": "api",
                "confidence": "reported", "usedTokens": used as u64, "windowTokens": size as u64
            })));
        }
    }

    /// The agent's plan, step by step.
    fn on_plan(&mut self, update: &Value) {
        let entries = update.get("entries").and_then(Value::as_array).cloned().unwrap_or_default();
        let text = |entry: &Value, field: &str| {
            entry.get(field).and_then(Value::as_str).unwrap_or_default().to_string()
        };
        let done = entries.iter().filter(|entry| text(entry, "status") == "completed").count();
        let current = entries
            .iter()
            .find(|entry| text(entry, "status") == "in_progress")
            .map(|entry| one_line(&text(entry, "content"), 200));
        self.fact("plan", json!({"steps": entries.len(), "done": done, "current": current}));
        let lines = entries.iter().take(PLAN_STEPS_MAX).map(|entry| {
            let mark = match text(entry, "status").as_str() {
                "completed" => "x",
                "in_progress" => ">",
                _ => " ",
            };
            format!("[{mark}] {}", one_line(&text(entry, "content"), 300))
        });
        let body = lines.collect::<Vec<_>>().join("\n");
        let Some(turn) = self.turn.as_mut().filter(|turn| turn.plan != body && !body.is_empty())
        else {
            return;
        };
        turn.plan = body.clone();
        let turn = turn.number;
        self.flush_text();
        self.mirror(turn, "reasoning", Some("plan"), body);
    }

    /// One adapter ends a turn with `end_turn` after its engine failed; the engine's own state
    /// tells the failure.
    fn on_engine_state(&mut self, engine: &Value) {
        let error = engine.get("error").filter(|error| error.is_object());
        if let Some(error) = error {
            let text = |field: &str| error.get(field).and_then(Value::as_str).unwrap_or_default();
            let said = [text("message"), text("additionalDetails")]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(": ");
            match error.get("willRetry").and_then(Value::as_bool) {
                Some(true) => self.emit(SessionEvent::ProviderState(
                    json!({"state": "retrying", "detail": one_line(&said, 300)}),
                )),
                _ => {
                    if let Some(turn) = self.turn.as_mut() {
                        turn.engine_error = one_line(&said, 1000);
                    }
                }
            }
        }
        match engine.pointer("/threadStatus/type").and_then(Value::as_str) {
            Some("systemError") => {
                if let Some(turn) = self.turn.as_mut() {
                    turn.engine_failed = true;
                }
            }
            Some("active") => {
                if let Some(turn) = self.turn.as_mut() {
                    turn.engine_failed = false;
                }
            }
            _ => {}
        }
    }

    /// Output of the turn: the agent has the prompt.
    fn accepted(&mut self, kind: &str) {
        let Some(turn) = self.turn.as_mut().filter(|turn| !turn.taken) else {
            return;
        };
        turn.taken = true;
        if let Some((batch, key)) = turn.batch.clone() {
            let evidence = format!("the agent sent {kind}");
            self.emit(SessionEvent::Accepted { batch, key, evidence });
        }
    }

    /// A piece of a message. A new message begins with another id, or after a thought.
    fn on_message(&mut self, text: &str, id: Option<&str>) {
        let Some(turn) = self.turn.as_mut().filter(|_| !text.is_empty()) else {
            return; // some agents end a turn with an empty one
        };
        if id.is_none() && turn.identified {
            // In the voice of the agent, but not its answer: adapters say so what their engine
            // complains of.
            push_bounded(&mut turn.notice, text, MIRROR_BODY_BYTES_MAX);
            return;
        }
        turn.identified |= id.is_some();
        let is_other = turn.has_text() && turn.message_id.as_deref() != id;
        if is_other || !turn.thought.is_empty() {
            self.flush_text();
        }
        let Some(turn) = self.turn.as_mut() else {
            return;
        };
        turn.message_id = id.map(str::to_string);
        push_bounded(&mut turn.message, text, REPLY_BODY_BYTES_MAX);
        push_bounded(&mut turn.whole, text, REPLY_BODY_BYTES_MAX);
    }

    /// A piece of a thought. A new one begins with another id, or after a message.
    fn on_thought(&mut self, text: &str, id: Option<&str>) {
        let Some(turn) = self.turn.as_mut().filter(|_| !text.is_empty()) else {
            return;
        };
        let is_other = turn.has_text() && turn.message_id.as_deref() != id;
        if is_other || !turn.message.is_empty() {
            self.flush_text();
        }
        let Some(turn) = self.turn.as_mut() else {
            return;
        };
        turn.message_id = id.map(str::to_string);
        push_bounded(&mut turn.thought, text, MIRROR_BODY_BYTES_MAX);
    }

    /// Ends the current message: thoughts are mirrored; a message that is not the last one too.
    pub(super) fn flush_text(&mut self) {
        let Some(turn) = self.turn.as_mut() else {
            return;
        };
        let number = turn.number;
        let thought = std::mem::take(&mut turn.thought);
        let message = std::mem::take(&mut turn.message);
        if !turn.whole.is_empty() && !message.is_empty() {
            push_bounded(&mut turn.whole, "\n", REPLY_BODY_BYTES_MAX);
        }
        for body in [thought, message] {
            if !body.trim().is_empty() {
                self.mirror(number, "reasoning", None, body);
            }
        }
    }

    /// Tool calls are kept by id; the first title is often a placeholder, so they are shown when
    /// they are over or asked.
    pub(super) fn tool(&mut self, update: &Value) {
        let Some(turn) = self.turn.as_mut() else {
            return;
        };
        let text =
            |field: &str| update.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let Some(id) = text("toolCallId") else { return };
        if turn.tools.len() >= TOOLS_MAX && !turn.tools.contains_key(id) {
            return;
        }
        let number = turn.number;
        let tool = turn.tools.entry(id.to_string()).or_default();
        if let Some(title) = text("title") {
            tool.title = one_line(title, 300);
        }
        if let Some(kind) = text("kind") {
            tool.kind = one_line(kind, 40);
        }
        let Some(status @ ("completed" | "failed")) = text("status") else {
            return;
        };
        if !tool.shown {
            tool.shown = true;
            let mirror = tool.mirror(number, status);
            self.emit(mirror);
        }
    }
}
