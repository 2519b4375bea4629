//! A terminal session with its witnesses in hand.

use std::time::Duration;

use agent_relay::core::ids::{BatchNumber, Ticket, VerbNumber};
use agent_relay::core::session::{
    Delivery, Input, MessageFingerprint, Output, Resume, Screen, Session, SessionEvent, Verb,
};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::provider::claude::tui::TuiSession;
use agent_relay::provider::{ApprovalMode, SessionSettings, Start};
use serde_json::{Value, json};

pub const EMPTY: &str = "────────────\n\u{276f}\u{a0}\n────────────\n  ⏸ manual mode on\n";

pub struct Terminal {
    pub session: TuiSession,
    pub now: Now,
    pub signals: Vec<SessionEvent>,
    /// What is done to the terminal and the sockets.
    pub acts: Vec<String>,
    verbs: VerbNumber,
    /// What the screen shows when it is looked at.
    pub shown: String,
    /// It takes what is typed and shows nothing of it yet.
    pub frozen: bool,
}

pub fn settings() -> SessionSettings {
    SessionSettings {
        agent: "a".into(),
        cwd: "/workspace/demo".into(),
        approval_mode: ApprovalMode::Guarded,
        mode: None,
        approval_timeout: Duration::from_secs(600),
        capture_full: false,
    }
}

pub fn start(terminal: bool) -> Start {
    Start {
        session: "00000000-0000-4000-8000-000000000000".into(),
        nonce: "11111111-0000-4000-8000-000000000000".into(),
        config_dir: "/home/user/.claude".into(),
        mailbox: Some("/run/relay.sock".into()),
        socket: Some("/run/claude.sock".into()),
        terminal,
        ..Default::default()
    }
}

impl Terminal {
    pub fn new(start: Start, resume: Option<Resume>) -> Terminal {
        let now = Now { tick: Tick(1_000_000_000), wall: Wall(1_795_000_000_000) };
        let session = TuiSession::new(settings(), start);
        let mut terminal = Terminal {
            session,
            now,
            signals: Vec::new(),
            acts: Vec::new(),
            verbs: VerbNumber::default(),
            shown: EMPTY.into(),
            frozen: false,
        };
        terminal.input(Input::ProcessStarted { pid: 7 });
        terminal.verb(Verb::Open { resume });
        terminal
    }

    /// At its prompt.
    pub fn ready() -> Terminal {
        Terminal::ready_with(start(true), None)
    }

    pub fn ready_with(start: Start, resume: Option<Resume>) -> Terminal {
        let mut terminal = Terminal::new(start, resume);
        terminal.status("idle");
        terminal.input(Input::CaughtUp);
        terminal.pass(300);
        assert!(
            terminal.signals.iter().any(|signal| matches!(signal, SessionEvent::Opened(_))),
            "{:?}",
            terminal.signals
        );
        terminal.signals.clear();
        terminal.acts.clear();
        terminal
    }

    pub fn input(&mut self, input: Input) {
        let outputs = self.session.handle(self.now, input);
        for output in outputs {
            match output {
                Output::Event(signal) => self.signals.push(signal),
                Output::CaptureScreen => {
                    let screen = Screen { text: self.shown.clone(), ..Default::default() };
                    self.input(Input::ScreenCaptured(screen));
                }
                Output::Paste(text) => {
                    self.acts.push(format!("paste {}", text.lines().next().unwrap_or_default()));
                    if self.frozen {
                        continue;
                    }
                    self.shown = EMPTY.replace(
                        "\u{276f}\u{a0}",
                        &format!("\u{276f}\u{a0}{}", text.lines().next().unwrap_or_default()),
                    );
                }
                Output::Press(key) => {
                    self.acts.push(format!("press {key}"));
                    match key {
                        "C-s" => self.shown = format!("  · draft stashed\n{EMPTY}"),
                        "Enter" | "C-u" => self.shown = EMPTY.into(),
                        _ => {}
                    }
                }
                Output::WriteSocket { number, line, .. } => {
                    let line: Value = serde_json::from_str(&line).expect("JSON");
                    let text = line["message"]["content"]
                        .as_str()
                        .unwrap_or_default()
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .to_string();
                    self.acts.push(format!("post {text}"));
                    self.input(Input::SocketWritten { number, result: Ok(()) });
                }
                Output::Follow { path, whole } => self.acts.push(format!(
                    "follow {} whole={whole}",
                    path.rsplit('/').next().unwrap_or_default()
                )),
                Output::WatchProcess { .. } | Output::Unfollow | Output::Write(_) => {}
                Output::CloseInput => self.acts.push("close".into()),
                other @ (Output::Connect { .. }
                | Output::SendText(_)
                | Output::StartForeground { .. }
                | Output::Kill { .. }) => {
                    panic!("a session in a terminal has no use for {other:?}")
                }
            }
        }
    }

    pub fn verb(&mut self, verb: Verb) -> VerbNumber {
        self.verbs = self.verbs.next();
        self.input(Input::Verb(self.verbs, verb));
        self.verbs
    }

    /// Time passes; deadlines are kept.
    pub fn pass(&mut self, ms: u64) {
        let until = self.now.tick + Duration::from_millis(ms);
        for _ in 0..10_000 {
            let next = self.session.next_deadline().filter(|at| *at <= until);
            let Some(at) = next else { break };
            let at = at.max(self.now.tick);
            self.now.wall.0 += (at - self.now.tick).as_millis() as i64;
            self.now.tick = at;
            self.input(Input::Wake);
        }
        self.now.wall.0 += (until - self.now.tick).as_millis() as i64;
        self.now.tick = until;
    }

    pub fn registry(&mut self, text: &str) {
        self.input(Input::FileChanged {
            path: "/home/user/.claude/sessions/7.json".into(),
            text: Some(text.into()),
        });
    }

    pub fn status(&mut self, status: &str) {
        let session = "00000000-0000-4000-8000-000000000000";
        self.registry(
            &json!({"status": status, "sessionId": session, "version": "2.1.329", "statusUpdatedAt": self.now.wall.0}).to_string(),
        );
    }

    pub fn hook(&mut self, ticket: Ticket, event: &str, payload: Value) {
        let at = self.now.wall;
        self.verb(Verb::Hook { ticket, event: event.into(), payload, at });
    }

    /// A hook that ran at that time.
    pub fn hook_at(&mut self, at: Wall, payload: Value) {
        self.verb(Verb::Hook { ticket: Ticket(0), event: "event".into(), payload, at });
    }

    /// Now, as the transcript spells it.
    pub fn stamp(&self) -> String {
        let (secs, ms) = (self.now.wall.0 / 1000, self.now.wall.0 % 1000);
        // The clock of these tests begins on that day.
        let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
        format!("2026-11-18T{h:02}:{m:02}:{s:02}.{ms:03}Z")
    }

    pub fn event(&mut self, name: &str, more: Value) {
        let mut payload = more;
        payload["hook_event_name"] = json!(name);
        self.hook(Ticket(0), "event", payload);
    }

    pub fn grown(&mut self, text: &str) {
        self.input(Input::FileAppended(text.as_bytes().to_vec()));
    }

    pub fn mail(&mut self, line: &str) {
        self.input(Input::SocketLine(line.into()));
    }

    pub fn screen(&mut self, text: &str) {
        self.shown = text.into();
        self.input(Input::ScreenChanged);
        self.pass(500);
    }

    pub fn deliver(&mut self, id: u64, person: bool, urgent: bool) -> Delivery {
        let from = if person { "user" } else { "web" };
        let delivery = Delivery {
            batch: BatchNumber(id),
            key: format!("00000000-0000-8000-8000-{id:012}"),
            text: format!("[relay message #{id} from {from}]\ndo {id}"),
            person,
            urgent,
        };
        self.verb(Verb::Deliver(delivery.clone()));
        delivery
    }

    /// A prompt in the transcript.
    pub fn prompt_entry(&mut self, text: &str, origin: &str) {
        let line = json!({"type": "user", "uuid": "u", "isMeta": origin != "human", "origin": {"kind": origin}, "message": {"content": text}});
        self.grown(&format!("{line}\n"));
    }

    pub fn has(&self, wanted: impl Fn(&SessionEvent) -> bool) -> bool {
        self.signals.iter().any(wanted)
    }

    pub fn taken(&self, batch: u64) -> bool {
        self.has(|signal| matches!(signal, SessionEvent::Accepted { batch: found, .. } if found.0 == batch))
    }

    pub fn ended(&self, batch: Option<u64>) -> Option<String> {
        self.signals.iter().find_map(|signal| match signal {
            SessionEvent::TurnEnded { batch: found, end, text }
                if found.map(|number| number.0) == batch =>
            {
                Some(format!("{end:?} {text}"))
            }
            _ => None,
        })
    }
}

pub fn trace(id: u64) -> MessageFingerprint {
    MessageFingerprint {
        header: format!("[relay message #{id} from user]"),
        start: format!("do {id}"),
        is_whole: false,
    }
}
