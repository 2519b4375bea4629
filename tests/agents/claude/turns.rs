//! Its turns.

use super::*;

impl Fake {
    pub fn begin(&mut self, text: String, from: Option<Value>, hook: bool) {
        self.registry("busy");
        self.keep_books();
        self.prompt_id = self.uuid();
        let content = match &from {
            Some(_) => format!(
                "Another Claude session sent a message:\n{text}\n\nThis came from another Claude session"
            ),
            None => text.clone(),
        };
        if hook {
            self.hook("UserPromptSubmit", json!({"prompt": text}), false);
        }
        self.log(&text);
        self.seen.push(text.clone());
        let uuid = from.as_ref().and_then(|line| line["uuid"].as_str().map(str::to_string));
        let uuid = match uuid {
            Some(uuid) => uuid,
            None => self.uuid(),
        };
        let origin = if from.is_some() { "peer" } else { "human" };
        self.write(json!({"type": "user", "uuid": uuid, "timestamp": stamp(), "isMeta": from.is_some(), "promptId": self.prompt_id, "origin": {"kind": origin},
            "message": {"role": "user", "content": content}}));
        let key = agent_relay::os::sha256_hex(&text);
        let hung = self.state.join(format!("hung-{}", &key[..16]));
        let hangs = text.contains("HANG") && !hung.exists();
        if hangs {
            let _ = std::fs::write(hung, "");
        }
        let mut turn = Turn { until: None, prompt: text.clone(), hook: None };
        if text.contains("PERM") {
            self.registry("waiting");
            self.dialog = Some("permission");
            turn.hook = self.hook(
                "PermissionRequest",
                json!({"tool_name": "Bash", "tool_input": {"command": "x"}, "permission_suggestions": []}),
                true,
            );
        } else if !hangs {
            turn.until = Some(
                Instant::now()
                    + Duration::from_millis(if text.contains("SLOW") { 600 } else { 40 }),
            );
        }
        self.turn = Some(turn);
    }

    pub fn end_permission(&mut self) {
        self.dialog = None;
        self.registry("busy");
        if let Some(turn) = &mut self.turn {
            turn.hook = None;
            turn.until = Some(Instant::now() + Duration::from_millis(40));
        }
    }

    pub fn end(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        let last = turn
            .prompt
            .lines()
            .rfind(|line| !line.trim().is_empty() && !line.starts_with("</pasted"))
            .unwrap_or_default()
            .to_string();
        let said = format!("Heard: {last}");
        let uuid = self.uuid();
        self.write(
            json!({"type": "assistant", "uuid": uuid, "timestamp": stamp(), "message": {"id": uuid, "model": "fake", "role": "assistant",
            "stop_reason": "end_turn", "content": [{"type": "text", "text": said}], "usage": {"input_tokens": 10, "output_tokens": 5}}}),
        );
        self.hook(
            "Stop",
            json!({"stop_hook_active": false, "last_assistant_message": said, "background_tasks": [], "session_crons": []}),
            false,
        );
        self.write(json!({"type": "system", "subtype": "turn_duration", "timestamp": stamp()}));
        match self.queue.pop_front() {
            Some((text, from)) => {
                self.write(json!({"type": "queue-operation", "operation": "dequeue"}));
                let by_socket = from.is_some();
                self.begin(text, from, by_socket);
            }
            None => self.registry("idle"),
        }
    }

    pub fn compact(&mut self) {
        self.registry("busy");
        self.hook("PreCompact", json!({"trigger": "manual", "custom_instructions": null}), false);
        self.write(json!({"type": "system", "subtype": "compact_boundary", "compactMetadata": {"trigger": "manual"}}));
        self.hook("PostCompact", json!({"trigger": "manual", "compact_summary": "x"}), false);
        self.registry("idle");
    }

    pub fn clear(&mut self) {
        self.hook("SessionEnd", json!({"reason": "clear"}), false);
        self.flush();
        self.session = self.uuid();
        self.registry("idle");
        self.hook("SessionStart", json!({"source": "clear"}), false);
    }

    pub fn turn_step(&mut self) {
        let due =
            self.turn.as_ref().and_then(|turn| turn.until).is_some_and(|at| at <= Instant::now());
        let answered = self
            .turn
            .as_mut()
            .and_then(|turn| turn.hook.as_mut())
            .is_some_and(|hook| hook.try_wait().is_ok_and(|status| status.is_some()));
        if answered {
            let hook = self.turn.as_mut().and_then(|turn| turn.hook.take());
            let mut said = String::new();
            if let Some(mut stdout) = hook.and_then(|mut hook| hook.stdout.take()) {
                let _ = stdout.read_to_string(&mut said);
            }
            if said.contains("\"behavior\"") {
                self.log(&format!("DECIDED {}", said.trim()));
                self.end_permission();
            }
        } else if due {
            self.end();
        }
    }
}
