//! What it draws, and the keys that it takes.

use super::*;

impl Fake {
    pub fn draw(&self) {
        let rule = "─".repeat(RULE);
        let mut text = String::from("\u{1b}[2J\u{1b}[H");
        for line in self.seen.iter().rev().take(10).rev() {
            text.push_str(&format!(
                "❯ {}\r\n",
                line.lines().next().unwrap_or_default().chars().take(100).collect::<String>()
            ));
        }
        if let Some(dialog) = self.dialog {
            let words = match dialog {
                "trust" => {
                    " Quick safety check\r\n ❯ No, exit\r\n   Yes, I trust this folder\r\n Enter to confirm · Esc to cancel"
                }
                _ => {
                    " Bash command\r\n Do you want to proceed?\r\n ❯ 1. Yes\r\n   4. No\r\n Esc to cancel · Tab to amend"
                }
            };
            text.push_str(&format!("{rule}\r\n{words}\r\n"));
        } else {
            if self.turn.is_some() {
                text.push_str("· Thinking… (1s · ↓ 3 tokens)\r\n");
            }
            if self.stash.is_some() {
                text.push_str("   · draft stashed\r\n");
            }
            let lines: Vec<&str> = self.draft.lines().collect();
            let shown = if lines.len() > 3 || self.draft.len() > 800 {
                "[Pasted text #1 +9 lines]".to_string()
            } else {
                lines.join("\r\n  ")
            };
            let busy = if self.turn.is_some() && self.draft.is_empty() {
                " · esc to interrupt"
            } else {
                ""
            };
            text.push_str(&format!(
                "{rule}\r\n❯\u{a0}{shown}\r\n{rule}\r\n  ⏸ manual mode on{busy}\r\n"
            ));
        }
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }

    pub fn keys(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix(b"\x1b[200~") {
                let end =
                    after.windows(6).position(|six| six == b"\x1b[201~").unwrap_or(after.len());
                let text = String::from_utf8_lossy(&after[..end])
                    .replace('\r', "\n")
                    .replace('\t', "    ");
                if self.dialog.is_none() {
                    self.draft.push_str(&text);
                }
                rest = after.get(end + 6..).unwrap_or_default();
                continue;
            }
            let text = std::str::from_utf8(rest).unwrap_or("?");
            let key = text.chars().next().unwrap_or('?');
            match key {
                '\r' => self.enter(),
                '\u{1b}' => self.escape(),
                '\u{15}' => self.draft.clear(),
                '\u{13}' if self.draft.is_empty() => {
                    self.draft = self.stash.take().unwrap_or_default()
                }
                '\u{13}' => self.stash = Some(std::mem::take(&mut self.draft)),
                key if !key.is_control() && self.dialog.is_none() => self.draft.push(key),
                _ => {}
            }
            rest = rest.get(key.len_utf8().max(1)..).unwrap_or_default();
        }
    }

    pub fn enter(&mut self) {
        if let Some(dialog) = self.dialog.take() {
            // The worst that can happen: a text was taken for an answer.
            self.log(&format!("ANSWERED-DIALOG {dialog}"));
            if dialog == "trust" {
                std::process::exit(1);
            }
            return self.end_permission();
        }
        let text = std::mem::take(&mut self.draft);
        if text.trim().is_empty() {
            return;
        }
        self.draft = self.stash.take().unwrap_or_default();
        let wrapped = if text.contains('\n') {
            format!("\n\n<pasted_content id=\"f1\">\n{text}\n</pasted_content id=\"f1\">\n")
        } else {
            text.clone()
        };
        match text.split(' ').next().unwrap_or_default() {
            "/compact" => self.compact(),
            "/clear" => self.clear(),
            word if word.starts_with(['/', '!', '@']) => self.log(&format!("COMMAND {word}")),
            _ if self.turn.is_some() => {
                self.hook("UserPromptSubmit", json!({"prompt": wrapped}), false);
                self.write(
                    json!({"type": "queue-operation", "operation": "enqueue", "content": wrapped}),
                );
                self.queue.push_back((wrapped, None));
            }
            _ => self.begin(wrapped, None, true),
        }
    }

    pub fn escape(&mut self) {
        self.dialog = None;
        if self.turn.take().is_some() {
            self.write(json!({"type": "user", "uuid": "i", "timestamp": stamp(), "message": {"role": "user", "content": [{"type": "text", "text": "[Request interrupted by user]"}]}}));
            self.registry("idle");
        }
    }
}
