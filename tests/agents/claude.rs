//! A program that behaves in its terminal as Claude Code does, as far as a runner can tell: input
//! box, registry file, hooks, transcript that is written a tenth of a second late, messaging
//! socket, dialogs. Its transcript is what its "model" saw.
//!
//! Words in a prompt: `SLOW` (0.6 s), `HANG` (until Escape or the end, once), `PERM` (asks for a
//! permission), else at once. FAKE_SOCKET: `refuse`, `hold`, `deny`, `drop`, `missing`. FAKE_SEED:
//! the same luck again, for each start another. FAKE_HOOKS: `lossy` (a seeded share of the hooks is
//! lost, late or doubled). FAKE_DIALOG: `trust` (a dialog at the start). FAKE_STATE: folder for
//! what it remembers and logs.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_relay::core::rng::Rng;
use agent_relay::os;
use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};

const RULE: usize = 120;
/// What is written comes to the disk so much later.
const FLUSH: Duration = Duration::from_millis(100);

struct Turn {
    until: Option<Instant>,
    prompt: String,
    hook: Option<Child>,
}

struct Fake {
    config: PathBuf,
    state: PathBuf,
    session: String,
    plugins: Vec<PathBuf>,
    socket: Option<(PathBuf, UnixListener)>,
    draft: String,
    stash: Option<String>,
    dialog: Option<&'static str>,
    turn: Option<Turn>,
    queue: VecDeque<(String, Option<Value>)>,
    /// A text from the socket that a person will allow then.
    held: Option<(Instant, String, Value)>,
    /// Lines on their way to the disk.
    unwritten: Vec<String>,
    flush_at: Option<Instant>,
    seen: Vec<String>,
    rng: Rng,
    numbers: u64,
    prompt_id: String,
}

fn ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as i64).unwrap_or(0)
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

impl Fake {
    fn transcript(&self) -> PathBuf {
        self.config.join("projects/-fake").join(format!("{}.jsonl", self.session))
    }

    fn log(&self, line: &str) {
        let file =
            std::fs::File::options().append(true).create(true).open(self.state.join("seen.log"));
        let _ = file.and_then(|mut file| writeln!(file, "{}", line.replace('\n', "\\n")));
    }

    fn write(&mut self, mut line: Value) {
        line["sessionId"] = json!(self.session);
        self.unwritten.push(line.to_string());
        self.flush_at.get_or_insert(Instant::now() + FLUSH);
    }

    fn flush(&mut self) {
        self.flush_at = None;
        let path = self.transcript();
        let _ = std::fs::create_dir_all(path.parent().expect("has one"));
        let file = std::fs::File::options().append(true).create(true).open(path);
        let text: String = self.unwritten.drain(..).map(|line| line + "\n").collect();
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }

    fn uuid(&mut self) -> String {
        self.numbers += 1;
        format!("fafafafa-0000-4000-8000-{:012x}", self.numbers + self.rng.below(1 << 40))
    }

    fn registry(&self, status: &str) {
        let path = self.config.join("sessions").join(format!("{}.json", std::process::id()));
        let _ = std::fs::create_dir_all(path.parent().expect("has one"));
        let socket = self.socket.as_ref().map(|(path, _)| path.to_string_lossy().into_owned());
        let record = json!({"pid": std::process::id(), "sessionId": self.session, "version": "2.1.329", "kind": "interactive",
            "messagingSocketPath": socket, "status": status, "updatedAt": ms(), "statusUpdatedAt": ms()});
        let _ = std::fs::write(path, record.to_string());
    }

    /// Runs the hooks of an event; one that is waited for comes back as a child.
    fn hook(&mut self, event: &str, more: Value, wait: bool) -> Option<Child> {
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

    fn draw(&self) {
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

    // ---- keys

    fn keys(&mut self, bytes: &[u8]) {
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

    fn enter(&mut self) {
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

    fn escape(&mut self) {
        self.dialog = None;
        if self.turn.take().is_some() {
            self.write(json!({"type": "user", "uuid": "i", "timestamp": stamp(), "message": {"role": "user", "content": [{"type": "text", "text": "[Request interrupted by user]"}]}}));
            self.registry("idle");
        }
    }

    // ---- turns

    fn begin(&mut self, text: String, from: Option<Value>, hook: bool) {
        self.registry("busy");
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

    fn end_permission(&mut self) {
        self.dialog = None;
        self.registry("busy");
        if let Some(turn) = &mut self.turn {
            turn.hook = None;
            turn.until = Some(Instant::now() + Duration::from_millis(40));
        }
    }

    fn end(&mut self) {
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

    fn compact(&mut self) {
        self.registry("busy");
        self.hook("PreCompact", json!({"trigger": "manual", "custom_instructions": null}), false);
        self.write(json!({"type": "system", "subtype": "compact_boundary", "compactMetadata": {"trigger": "manual"}}));
        self.hook("PostCompact", json!({"trigger": "manual", "compact_summary": "x"}), false);
        self.registry("idle");
    }

    fn clear(&mut self) {
        self.hook("SessionEnd", json!({"reason": "clear"}), false);
        self.flush();
        self.session = self.uuid();
        self.registry("idle");
        self.hook("SessionStart", json!({"source": "clear"}), false);
    }

    // ---- socket

    fn mail(&mut self) {
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

    fn turn_step(&mut self) {
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

    fn deadline(&self) -> Option<Duration> {
        let turn = self.turn.as_ref();
        let hook = turn
            .filter(|turn| turn.hook.is_some())
            .map(|_| Instant::now() + Duration::from_millis(20));
        let next = [
            self.held.as_ref().map(|(at, ..)| *at),
            self.flush_at,
            turn.and_then(|turn| turn.until),
            hook,
        ]
        .into_iter()
        .flatten()
        .min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

/// Tells the sender of a line what became of it.
fn receipt(line: &Value, status: &str, reason: &str) {
    let receipt = json!({"type": "control", "action": "peer_message_status", "status": status, "drop_reason": reason, "orig_msg_id": line["msg_id"]});
    let from = line["from"].as_str().unwrap_or_default().trim_start_matches("uds:").to_string();
    let _ = UnixStream::connect(from).and_then(|mut socket| writeln!(socket, "{receipt}"));
}

/// Now, in the program's spelling.
fn stamp() -> String {
    let output =
        Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output().expect("date");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let values = |name: &str| {
        words
            .iter()
            .zip(words.iter().skip(1))
            .filter(|(word, _)| *word == name)
            .map(|(_, value)| value.clone())
            .collect::<Vec<_>>()
    };
    let value = |name: &str| values(name).pop();
    let config = PathBuf::from(env("CLAUDE_CONFIG_DIR"));
    let state = PathBuf::from(env("FAKE_STATE"));
    std::fs::create_dir_all(&state).expect("state");
    let session = value("--resume").or_else(|| value("--session-id")).expect("a session");
    let missing = env("FAKE_SOCKET") == "missing";
    let socket =
        value("--messaging-socket-path").filter(|_| !missing).map(PathBuf::from).and_then(|path| {
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).ok()?;
            listener.set_nonblocking(true).ok()?;
            Some((path, listener))
        });
    let stdin = std::io::stdin();
    if let Ok(mut terminal) = tcgetattr(&stdin) {
        terminal.make_raw();
        let _ = tcsetattr(&stdin, OptionalActions::Now, &terminal);
    }
    let starts = std::fs::read_to_string(state.join("starts"))
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        + 1;
    let _ = std::fs::write(state.join("starts"), starts.to_string());
    let seed = match env("FAKE_SEED").parse::<u64>() {
        Ok(seed) => seed.wrapping_mul(1000).wrapping_add(starts),
        Err(_) => u64::from_le_bytes(os::random_bytes::<8>()),
    };
    let mut fake = Fake {
        config,
        state,
        session,
        plugins: values("--plugin-dir").into_iter().map(PathBuf::from).collect(),
        socket,
        draft: String::new(),
        stash: None,
        dialog: (env("FAKE_DIALOG") == "trust").then_some("trust"),
        turn: None,
        queue: VecDeque::new(),
        unwritten: Vec::new(),
        flush_at: None,
        held: None,
        seen: Vec::new(),
        rng: Rng::new(seed),
        numbers: 0,
        prompt_id: String::new(),
    };
    print!("\u{1b}[?1049h\u{1b}[?2004h");
    if fake.dialog.is_none() {
        let source = if value("--resume").is_some() { "resume" } else { "startup" };
        fake.hook("SessionStart", json!({"source": source}), false);
        fake.registry("idle");
    }
    fake.draw();
    loop {
        let wait = fake.deadline();
        let (typed, mailed) = {
            let mut fds = vec![PollFd::new(&stdin, PollFlags::IN)];
            fds.extend(
                fake.socket.as_ref().map(|(_, listener)| PollFd::new(listener, PollFlags::IN)),
            );
            os::wait(&mut fds, wait);
            (os::is_ready(&fds[0]), fds.get(1).is_some_and(os::is_ready))
        };
        if typed {
            let mut bytes = Vec::new();
            let mut piece = [0u8; 65536];
            // A paste comes in pieces; its end mark tells.
            loop {
                match rustix::io::read(&stdin, &mut piece) {
                    Ok(0) | Err(_) => return,
                    Ok(size) => bytes.extend_from_slice(&piece[..size]),
                }
                let open = bytes.windows(6).filter(|six| six == b"\x1b[200~").count();
                if open == bytes.windows(6).filter(|six| six == b"\x1b[201~").count() {
                    break;
                }
            }
            fake.keys(&bytes);
        }
        if mailed {
            fake.mail();
        }
        fake.turn_step();
        if let Some((_, text, line)) = fake.held.take_if(|(at, ..)| *at <= Instant::now()) {
            receipt(&line, "delivered", "");
            fake.begin(text, Some(line), true);
        }
        if fake.flush_at.is_some_and(|at| at <= Instant::now()) {
            fake.flush();
        }
        fake.draw();
    }
}
