//! Its messaging socket.

use super::*;

impl Fake {
    pub fn mail(&mut self) {
        let Some((_, listener)) = &self.socket else { return };
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut text = String::new();
        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
        let _ = stream.read_to_string(&mut text);
        for line in text.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let content = line["message"]["content"].as_str().unwrap_or_default().to_string();
            let refuse = |status: &str, reason: &str| receipt(&line, status, reason);
            match env("FAKE_SOCKET").as_str() {
                "refuse" => refuse("expired", ""),
                // A person is asked, and says no.
                "deny" => {
                    refuse("held", "");
                    refuse("denied", "");
                }
                // … or yes.
                "hold" if !self.state.join("held").exists() => {
                    let _ = std::fs::write(self.state.join("held"), "");
                    refuse("held", "");
                    self.held =
                        Some((Instant::now() + Duration::from_millis(300), content, line.clone()));
                }
                "drop" if !self.state.join("dropped").exists() => {
                    let _ = std::fs::write(self.state.join("dropped"), "");
                    refuse("dropped", "rate-limited");
                }
                _ if self.turn.is_some() || self.dialog.is_some() => {
                    self.write(json!({"type": "queue-operation", "operation": "enqueue", "content": content}));
                    self.queue.push_back((content, Some(line.clone())));
                }
                _ => self.begin(content, Some(line.clone()), true),
            }
        }
    }
}

/// Tells the sender of a line what became of it.
pub fn receipt(line: &Value, status: &str, reason: &str) {
    let receipt = json!({"type": "control", "action": "peer_message_status", "status": status, "drop_reason": reason, "orig_msg_id": line["msg_id"]});
    let from = line["from"].as_str().unwrap_or_default().trim_start_matches("uds:").to_string();
    let _ = UnixStream::connect(from).and_then(|mut socket| writeln!(socket, "{receipt}"));
}
