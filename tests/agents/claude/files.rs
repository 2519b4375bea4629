//! What it writes and runs: transcript, registry file, log and hooks.

use super::*;

impl Fake {
    pub fn transcript(&self) -> PathBuf {
        self.config.join("projects/-fake").join(format!("{}.jsonl", self.session))
    }

    pub fn log(&self, line: &str) {
        let file =
            std::fs::File::options().append(true).create(true).open(self.state.join("seen.log"));
        let _ = file.and_then(|mut file| writeln!(file, "{}", line.replace('\n', "\\n")));
    }

    pub fn write(&mut self, mut line: Value) {
        line["sessionId"] = json!(self.session);
        self.unwritten.push(line.to_string());
        self.flush_at.get_or_insert(Instant::now() + FLUSH);
    }

    pub fn flush(&mut self) {
        self.flush_at = None;
        let path = self.transcript();
        let _ = std::fs::create_dir_all(path.parent().expect("has one"));
        let file = std::fs::File::options().append(true).create(true).open(path);
        let text: String = self.unwritten.drain(..).map(|line| line + "\n").collect();
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }

    /// The first lines of a new transcript come at once, and long before the prompt.
    pub fn keep_books(&self) {
        let path = self.transcript();
        if !path.exists() {
            let _ = std::fs::create_dir_all(path.parent().expect("has one"));
            let line = json!({"type": "mode", "mode": "default", "sessionId": self.session});
            let _ = std::fs::write(path, format!("{line}\n"));
        }
    }

    /// Why it does not start: nothing was said in the conversation that it is to go on with, or the
    /// one that it is to begin has a file.
    pub fn refusal(&self, resumes: bool) -> Option<String> {
        let text = std::fs::read_to_string(self.transcript()).ok();
        let said = |line: &str| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|line| line["type"] == "user" || line["type"] == "assistant")
        };
        let holds = text.as_deref().is_some_and(|text| text.lines().any(said));
        let refused = self.state.join("refused");
        let once = env("FAKE_REFUSES") == "once" && resumes && !refused.exists();
        if once {
            let _ = std::fs::write(refused, "");
        }
        match resumes {
            true if once || !holds => {
                Some(format!("No conversation found with session ID: {}", self.session))
            }
            false if text.is_some() => {
                Some(format!("Error: Session ID {} is already in use.", self.session))
            }
            _ => None,
        }
    }

    pub fn uuid(&mut self) -> String {
        self.numbers += 1;
        format!("fafafafa-0000-4000-8000-{:012x}", self.numbers + self.rng.below(1 << 40))
    }

    pub fn registry(&self, status: &str) {
        let path = self.config.join("sessions").join(format!("{}.json", std::process::id()));
        let _ = std::fs::create_dir_all(path.parent().expect("has one"));
        let socket = self.socket.as_ref().map(|(path, _)| path.to_string_lossy().into_owned());
        let record = json!({"pid": std::process::id(), "sessionId": self.session, "version": "2.1.329", "kind": "interactive",
            "messagingSocketPath": socket, "status": status, "updatedAt": ms(), "statusUpdatedAt": ms()});
        let _ = std::fs::write(path, record.to_string());
    }

    /// Runs the hooks of an event; one that is waited for comes back as a child.
    pub fn hook(&mut self, event: &str, more: Value, wait: bool) -> Option<Child> {
        let mut payload = json!({"session_id": self.session, "transcript_path": self.transcript().to_string_lossy(), "cwd": ".",
            "hook_event_name": event});
        if !self.prompt_id.is_empty() {
            payload["prompt_id"] = json!(self.prompt_id);
        }
        payload
            .as_object_mut()
            .expect("object")
            .extend(more.as_object().cloned().unwrap_or_default());
        let log =
            std::fs::File::options().append(true).create(true).open(self.state.join("hooks.log"));
        let _ = log.and_then(|mut file| writeln!(file, "{payload}"));
        let lossy = env("FAKE_HOOKS") == "lossy" && event != "PermissionRequest";
        let luck = if lossy { self.rng.below(10) } else { 9 };
        let (copies, delay) = match luck {
            0 | 1 => (0, ""),
            2 => (2, ""),
            3 => (1, "sleep 0.2; "),
            _ => (1, ""),
        };
        let mut last = None;
        for _ in 0..copies {
            for plugin in self.plugins.clone() {
                let hooks =
                    std::fs::read_to_string(plugin.join("hooks/hooks.json")).unwrap_or_default();
                let hooks: Value = serde_json::from_str(&hooks).unwrap_or_default();
                let Some(command) = hooks["hooks"][event][0]["hooks"][0]["command"].as_str() else {
                    continue;
                };
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(format!("{delay}{command}")).env("CLAUDE_PLUGIN_ROOT", &plugin);
                shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
                let Ok(mut child) = shell.spawn() else { continue };
                if let Some(mut stdin) = child.stdin.take() {
                    let _ = stdin.write_all(payload.to_string().as_bytes());
                }
                if wait {
                    last = Some(child);
                } else if delay.is_empty() {
                    let _ = child.wait();
                }
            }
        }
        last
    }
}
