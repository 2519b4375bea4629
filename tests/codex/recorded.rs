//! A recorded server: what it said, in the order in which it said it, and what its record holds at
//! each moment. The session machine in front of it asks in its own words and order.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use agent_relay::core::ids::{BatchNumber, VerbNumber};
use agent_relay::core::session::{Decision, Delivery, Input, Output, Session, SessionEvent, Verb};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::provider::codex::session::{CodexSession, Listens, ServerStart};
use agent_relay::provider::{ApprovalMode, SessionSettings};
use serde_json::{Value, json};

use crate::shown;

/// A line of a recording.
pub struct Line {
    ours: bool,
    tick: Tick,
    client: String,
    frame: Value,
}

/// A machine in front of a recorded server.
pub struct Recorded {
    session: CodexSession,
    now: Now,
    lines: Rc<Vec<Line>>,
    /// The client whose part the machine plays.
    client: String,
    is_open: bool,
    is_up: bool,
    /// Requests of the machine that wait for a recorded reply: id and method.
    open: VecDeque<(u64, String)>,
    /// Recorded requests, by client and id: their methods.
    asked: BTreeMap<(String, u64), String>,
    /// Texts that the machine was given, with what it calls them.
    texts: Vec<(String, String)>,
    /// Requests of the server that people see: its id, our id.
    approvals: Vec<(Value, String)>,
    asking: Option<Value>,
    /// The turns of the record, the oldest first.
    turns: Vec<Value>,
    batches: u64,
    verbs: u64,
    /// Number of the line of the server after which the connection breaks.
    pub cut_after: Option<usize>,
    pub out: Vec<String>,
    pub events: Vec<SessionEvent>,
}

fn text<'a>(of: &'a Value, at: &str) -> &'a str {
    of.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

impl Recorded {
    pub fn open(path: &Path) -> Recorded {
        Recorded::of(&Recorded::lines(path))
    }

    /// A recording, read once for many machines.
    pub fn lines(path: &Path) -> Rc<Vec<Line>> {
        let read = std::fs::read_to_string(path).expect("a recording");
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("a recorded line");
            Line {
                ours: line["dir"] == "out",
                tick: Tick(line["t_ms"].as_u64().unwrap_or(0) * 1000 + 1_000_000),
                client: text(&line, "/client").to_string(),
                frame: line["frame"].clone(),
            }
        };
        Rc::new(read.lines().map(line).collect())
    }

    /// A machine in front of it.
    pub fn of(lines: &Rc<Vec<Line>>) -> Recorded {
        let settings = SessionSettings {
            agent: "demo".into(),
            cwd: "/workspace/demo".into(),
            approval_mode: ApprovalMode::Guarded,
            mode: None,
            approval_timeout: Duration::from_secs(600),
            capture_full: false,
        };
        let thread = json!({
            "cwd": "/workspace/demo", "approvalPolicy": "on-request", "sandbox": "workspace-write"
        });
        let start = ServerStart {
            listens: Listens::Socket { path: "/run/codex.sock".into(), is_chosen: false },
            thread: thread.as_object().cloned().unwrap_or_default(),
            name: "demo".into(),
            nonce: "01234567-89ab-4cde-8f01-23456789abcd".into(),
            program: "codex".into(),
            env: Default::default(),
            has_window: false,
        };
        Recorded {
            session: CodexSession::new(settings, start),
            now: Now { tick: Tick(1_000_000), wall: Wall(0) },
            client: lines[0].client.clone(),
            lines: lines.clone(),
            is_open: false,
            is_up: false,
            open: VecDeque::new(),
            asked: BTreeMap::new(),
            texts: Vec::new(),
            approvals: Vec::new(),
            asking: None,
            turns: Vec::new(),
            batches: 0,
            verbs: 0,
            cut_after: None,
            out: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Lines that the server said to this client.
    pub fn frames(&self) -> usize {
        self.lines.iter().filter(|line| !line.ours).count()
    }

    /// Plays the whole recording.
    pub fn play(&mut self) {
        let lines = self.lines.clone();
        let mut heard = 0;
        for (at, line) in lines.iter().enumerate() {
            self.now.tick = self.now.tick.max(line.tick);
            self.wake();
            if line.ours {
                self.on_client(line, &lines[at + 1..]);
                continue;
            }
            if line.client == self.client {
                self.on_server(&line.client, line.frame.clone());
            }
            heard += 1;
            if self.cut_after == Some(heard) {
                self.reconnect();
            }
        }
        self.input(Input::Closed);
    }

    fn wake(&mut self) {
        for _ in 0..100 {
            if self.session.next_deadline().is_none_or(|due| due > self.now.tick) {
                return;
            }
            self.input(Input::Wake);
        }
        panic!("the machine wants to be woken for ever");
    }

    fn verb(&mut self, verb: Verb) {
        self.verbs += 1;
        self.input(Input::Verb(VerbNumber(self.verbs), verb));
    }

    fn input(&mut self, input: Input) {
        for output in self.session.handle(self.now, input) {
            match output {
                Output::Event(event) => self.on_event(event),
                Output::SendText(text) => self.on_sent(&text),
                Output::Connect { .. } => {
                    self.is_up = true;
                    self.out.push("> connect".into());
                    self.input(Input::Connected);
                }
                Output::CloseInput => self.out.push("> close".into()),
                Output::Kill { reason } => self.out.push(format!("> kill: {reason}")),
                other => panic!("the session has no use for {other:?}"),
            }
        }
    }

    fn on_event(&mut self, event: SessionEvent) {
        if let SessionEvent::ApprovalOpened(approval) = &event {
            let request = self.asking.clone().unwrap_or_default();
            self.approvals.push((request, approval.id.clone()));
        }
        self.out.push(shown::event(&event));
        self.events.push(event);
    }

    /// A frame of the machine. What no recording answers is answered here.
    fn on_sent(&mut self, frame: &str) {
        let frame: Value = serde_json::from_str(frame).expect("the machine writes JSON");
        let method = text(&frame, "/method").to_string();
        let Some(id) = frame["id"].as_u64() else {
            return self.out.push(format!("> {method}"));
        };
        if method.is_empty() {
            return self.out.push(format!("> answer {id} {}", frame["result"]));
        }
        let said = text(&frame, "/params/input/0/text");
        self.out.push(format!("> {method} {said}").trim_end().to_string());
        let answer = match method.as_str() {
            "account/read" => Some(json!({"account": null, "requiresOpenaiAuth": false})),
            "thread/name/set" | "thread/unsubscribe" | "thread/backgroundTerminals/clean" => {
                Some(json!({}))
            }
            "thread/backgroundTerminals/list" => Some(json!({"data": null})),
            "thread/turns/list" => {
                let turns: Vec<Value> = self.turns.iter().rev().cloned().collect();
                Some(json!({"data": turns, "nextCursor": null}))
            }
            _ => None,
        };
        match answer {
            Some(result) => self.feed(&json!({"id": id, "result": result})),
            None => self.open.push_back((id, method)),
        }
    }

    fn feed(&mut self, frame: &Value) {
        self.input(Input::Text(frame.to_string()));
    }

    /// The connection breaks, and is there again when the machine tries.
    fn reconnect(&mut self) {
        if !self.is_up {
            return;
        }
        self.is_up = false;
        self.open.clear();
        self.out.push("--- the connection breaks".into());
        self.input(Input::Disconnected("cut".into()));
        self.now.tick = self.now.tick + Duration::from_millis(250);
        self.wake();
        // A server answers these whenever they come.
        for _ in 0..10 {
            let Some((id, method)) = self.open.pop_front() else { return };
            let result = match method.as_str() {
                "initialize" => json!({"userAgent": "agent-runner/0.169.0 (x)"}),
                "thread/resume" => json!({"thread": {"id": self.thread()}, "model": "gpt-5.5"}),
                _ => {
                    self.open.push_back((id, method));
                    return;
                }
            };
            self.feed(&json!({"id": id, "result": result}));
        }
    }

    fn thread(&self) -> String {
        let opened = self.events.iter().rev().find_map(|event| match event {
            SessionEvent::Opened(opened) => Some(opened.session.clone()),
            SessionEvent::ConversationChanged { session } => Some(session.clone()),
            _ => None,
        });
        opened.unwrap_or_default()
    }

    // ---- the recorded client

    /// What the recorded client asked for is asked of the machine.
    fn on_client(&mut self, line: &Line, rest: &[Line]) {
        let frame = &line.frame;
        let method = text(frame, "/method").to_string();
        let id = frame["id"].as_u64();
        if let Some(id) = id.filter(|_| !method.is_empty()) {
            self.asked.insert((line.client.clone(), id), method.clone());
        }
        if method == "initialize" && line.client != self.client && self.plays(line) {
            self.client = line.client.clone();
            return self.reconnect();
        }
        if line.client != self.client {
            return;
        }
        let reply = |other: &&Line| {
            !other.ours
                && other.client == line.client
                && other.frame["id"].as_u64() == id
                && other.frame.get("method").is_none()
        };
        let failed = rest.iter().find(reply).is_some_and(|reply| reply.frame["error"].is_object());
        match method.as_str() {
            "initialize" => {
                self.is_open = true;
                self.verb(Verb::Open { resume: None });
            }
            "turn/start" | "turn/steer" if !failed => self.deliver(&method, frame),
            "turn/interrupt" if !failed => self.verb(Verb::Interrupt),
            "thread/compact/start" => self.verb(Verb::Compact { instructions: None }),
            "" => self.decide(frame),
            _ => {}
        }
    }

    /// Later clients of this recording are the same one, come back.
    fn plays(&self, line: &Line) -> bool {
        ["second", "third"].contains(&line.client.as_str())
    }

    fn deliver(&mut self, method: &str, frame: &Value) {
        let said = text(frame, "/params/input/0/text").to_string();
        let key = format!("k{}", self.texts.len() + 1);
        self.texts.push((said.clone(), format!("relay-{key}")));
        let runs = self.turns.last().is_some_and(|turn| turn["status"] == "inProgress");
        let urgent = method == "turn/steer" || runs;
        // What joins a turn is of its batch.
        self.batches += u64::from(!urgent);
        let batch = BatchNumber(self.batches);
        self.verb(Verb::Deliver(Delivery { batch, key, text: said, person: true, urgent }));
    }

    fn decide(&mut self, frame: &Value) {
        let request = &frame["id"];
        let at = self.approvals.iter().rposition(|(asked, _)| asked == request);
        let Some(approval) = at.map(|at| self.approvals[at].1.clone()) else { return };
        let result = &frame["result"];
        let (mut decision, mut answers) = (Decision::Deny, None);
        match text(result, "/decision") {
            "acceptForSession" => decision = Decision::ApproveSession,
            "accept" => decision = Decision::Approve,
            "cancel" => decision = Decision::Abort,
            _ if result["decision"].is_object() => decision = Decision::Approve,
            _ => {}
        }
        if result["permissions"].as_object().is_some_and(|granted| !granted.is_empty()) {
            let session = text(result, "/scope") == "session";
            decision = if session { Decision::ApproveSession } else { Decision::Approve };
        }
        if let Some(given) = result["answers"].as_object().filter(|given| !given.is_empty()) {
            decision = Decision::Approve;
            let first =
                |(id, answer): (&String, &Value)| (id.clone(), answer["answers"][0].clone());
            answers = Some(Value::Object(given.iter().map(first).collect()));
        }
        match text(result, "/action") {
            "accept" => (decision, answers) = (Decision::Approve, Some(result["content"].clone())),
            "cancel" => decision = Decision::Abort,
            _ => {}
        }
        self.verb(Verb::Decide { approval, decision, reason: None, answers });
    }

    // ---- the recorded server

    fn on_server(&mut self, client: &str, mut frame: Value) {
        self.note(&mut frame);
        let method = text(&frame, "/method");
        if !method.is_empty() {
            if frame.get("id").is_some() {
                self.asking = Some(frame["id"].clone());
            }
            return self.feed(&frame);
        }
        let id = frame["id"].as_u64().unwrap_or_default();
        let Some(asked) = self.asked.get(&(client.to_string(), id)).cloned() else { return };
        let is_text = |method: &str| method == "turn/start" || method == "turn/steer";
        let same = |method: &str| method == asked || (is_text(method) && is_text(&asked));
        let Some(at) = self.open.iter().position(|(_, method)| same(method)) else { return };
        let (ours, _) = self.open.remove(at).expect("it was found");
        frame["id"] = json!(ours);
        self.feed(&frame);
    }

    /// What the record holds after this frame; a message of the machine's gets its own id.
    fn note(&mut self, frame: &mut Value) {
        if let Some(turns) = frame.pointer("/result/thread/turns").and_then(Value::as_array) {
            if !turns.is_empty() {
                self.turns = turns.clone();
            }
            for turn in &mut self.turns {
                let items = turn["items"].as_array_mut();
                items.into_iter().flatten().for_each(|item| claim(&self.texts, item));
            }
        }
        if let Some(item) = frame.pointer_mut("/params/item") {
            claim(&self.texts, item);
        }
        let (method, turn) = (text(frame, "/method").to_string(), &frame["params"]["turn"]);
        let id = match method.as_str() {
            "turn/started" | "turn/completed" => text(turn, "/id"),
            "item/completed" => text(frame, "/params/turnId"),
            _ => return,
        };
        let is_ours = text(frame, "/params/threadId") == self.thread();
        let at = self.turns.iter().position(|turn| turn["id"] == *id);
        match (method.as_str(), at) {
            ("turn/started", None) if is_ours => self.turns.push(turn.clone()),
            ("turn/completed", Some(at)) => {
                self.turns[at]["status"] = turn["status"].clone();
                self.turns[at]["error"] = turn["error"].clone();
            }
            ("item/completed", Some(at)) => {
                let item = frame["params"]["item"].clone();
                if let Some(items) = self.turns[at]["items"].as_array_mut() {
                    items.push(item);
                }
            }
            _ => {}
        }
    }
}

/// The recorded client gave its messages other ids, or none.
fn claim(texts: &[(String, String)], item: &mut Value) {
    let said = text(item, "/content/0/text").to_string();
    let ours = texts.iter().rev().find(|(text, _)| *text == said);
    if let (Some((_, id)), "userMessage") = (ours, text(item, "/type")) {
        item["clientId"] = json!(id);
    }
}
