//! Recordings of real agents, replayed through the production session machine. What it signals
//! stands beside each recording as text; `UPDATE_FIXTURES=1` rewrites it, and a person reads the
//! difference.

#[path = "../common/damage.rs"]
mod damage;
mod damaged;
mod machine;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_relay::core::ids::{BatchNumber, VerbNumber};
use agent_relay::core::session::{
    Decision, Delivery, Input, MessageFingerprint, Output, Resume, Session, SessionEvent,
    StartFault, Verb,
};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::provider::acp::session::AcpSession;
use agent_relay::provider::{ApprovalMode, SessionSettings};
use agent_relay::wire::control::LogLevel;
use serde_json::{Value, json};

struct Replay {
    session: Option<AcpSession>,
    now: Now,
    /// Requests that the machine wrote and that no recorded request stands for yet: id and method.
    written: VecDeque<(u64, String)>,
    /// Recorded requests that the machine has not made yet.
    recorded: VecDeque<(u64, String)>,
    /// Recorded id → the machine's id.
    ids: BTreeMap<u64, u64>,
    held: Vec<(u64, Value)>,
    options: BTreeMap<u64, Vec<(String, String)>>,
    approvals: VecDeque<String>,
    session_id: String,
    ready: bool,
    batches: u64,
    bytewise: bool,
    /// Recorded ids of prompts.
    prompts: Vec<u64>,
    /// What happens to the ends of turns and to requests for permission.
    damage: Option<fn(&str) -> Vec<u8>>,
    out: Vec<String>,
}

impl Replay {
    fn new(bytewise: bool) -> Replay {
        Replay {
            session: None,
            now: Now::default(),
            written: VecDeque::new(),
            recorded: VecDeque::new(),
            ids: BTreeMap::new(),
            held: Vec::new(),
            options: BTreeMap::new(),
            approvals: VecDeque::new(),
            session_id: String::new(),
            ready: false,
            batches: 0,
            bytewise,
            prompts: Vec::new(),
            damage: None,
            out: Vec::new(),
        }
    }

    fn input(&mut self, input: Input) {
        let Some(session) = self.session.as_mut() else { return };
        let outputs = session.handle(self.now, input);
        for output in outputs {
            match output {
                Output::Write(bytes) => self.wrote(&bytes),
                Output::CloseInput => self.out.push("> input closed".into()),
                Output::Event(signal) => self.signalled(signal),
                other => panic!("an ACP session has no use for {other:?}"),
            }
        }
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let frame: Value = serde_json::from_slice(bytes).expect("the machine writes JSON lines");
        let method = frame["method"].as_str().unwrap_or_default().to_string();
        match (frame["id"].as_u64(), method.as_str()) {
            (Some(id), "session/set_mode" | "session/set_config_option") => {
                let mode = frame["params"].get("modeId").or(frame["params"].get("value")).cloned();
                self.out.push(format!("> {method} {}", mode.unwrap_or_default()));
                self.feed(&json!({"jsonrpc": "2.0", "id": id, "result": {}}).to_string());
            }
            (Some(id), "") => {
                let answer = frame
                    .pointer("/result/outcome/optionId")
                    .or(frame.pointer("/result/outcome/outcome"))
                    .or(frame.pointer("/error/code"));
                self.out.push(format!("> answer {id}: {}", answer.cloned().unwrap_or_default()));
            }
            (Some(id), _) => {
                self.out.push(format!("> {method}"));
                self.written.push_back((id, method));
                self.pair();
            }
            (None, _) => self.out.push(format!("> {method}")),
        }
    }

    /// The machine's requests and the recorded ones belong together in order, method by method.
    fn pair(&mut self) {
        while let Some((theirs, method)) = self.recorded.front().cloned() {
            let Some(at) = self.written.iter().position(|(_, written)| *written == method) else {
                return;
            };
            let (ours, _) = self.written.remove(at).expect("found");
            self.recorded.pop_front();
            self.ids.insert(theirs, ours);
            let (now, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.held).into_iter().partition(|(id, _)| *id == theirs);
            self.held = later;
            for (_, frame) in now {
                self.reply(theirs, frame);
            }
        }
    }

    fn reply(&mut self, theirs: u64, mut frame: Value) {
        match self.ids.remove(&theirs) {
            Some(ours) => {
                frame["id"] = json!(ours);
                if self.prompts.contains(&theirs) {
                    self.feed_damaged(&frame.to_string());
                } else {
                    self.feed(&frame.to_string());
                }
            }
            None if self.recorded.iter().any(|(id, _)| *id == theirs) => {
                self.held.push((theirs, frame))
            }
            None => {} // an answer to something that this machine never asks
        }
    }

    fn feed(&mut self, line: &str) {
        let bytes = format!("{line}\n").into_bytes();
        if self.bytewise {
            bytes.iter().for_each(|byte| self.input(Input::Bytes(vec![*byte])))
        } else {
            self.input(Input::Bytes(bytes))
        }
    }

    /// A line that must not be lost, whatever happens to it.
    fn feed_damaged(&mut self, line: &str) {
        match self.damage {
            Some(damage) => self.input(Input::Bytes([damage(line), b"\n".to_vec()].concat())),
            None => self.feed(line),
        }
    }

    fn signalled(&mut self, signal: SessionEvent) {
        let cut = |text: &str| text.chars().take(90).collect::<String>();
        let line = match signal {
            SessionEvent::Opened(opened) => {
                self.ready = true;
                self.session_id = opened.session.clone();
                format!(
                    "opened {} how={:?} model={:?} evidence={}",
                    opened.agent, opened.how, opened.model, opened.has_evidence
                )
            }
            SessionEvent::OpenFailed { reason, fault } => {
                let permanent = fault == StartFault::Person;
                format!("open failed permanent={permanent}: {}", cut(&reason))
            }
            SessionEvent::Accepted { batch, evidence, .. } => format!("taken {batch}: {evidence}"),
            SessionEvent::Refused { batch, why, .. } => format!("refused {batch} {why}"),
            SessionEvent::TurnStarted => "turn started".into(),
            SessionEvent::ProviderState(state) => format!("state {state}"),
            SessionEvent::TurnEnded { batch, end, text } => {
                format!("turn ended {batch:?} {end:?} text={:?}", cut(&text))
            }
            SessionEvent::Mirror(m) => {
                format!("mirror {} {:?} {:?} {:?}", m.kind, m.label, m.status, cut(&m.body))
            }
            SessionEvent::ApprovalOpened(approval) => {
                self.approvals.push_back(approval.id.clone());
                format!(
                    "approval {:?} kind={} options={:?}",
                    cut(&approval.title),
                    approval.kind,
                    approval.options
                )
            }
            SessionEvent::ApprovalClosed { id, reason } => {
                self.approvals.retain(|open| *open != id);
                format!("approval closed: {reason}")
            }
            SessionEvent::Context(context) => {
                format!("context {} of {}", context["usedTokens"], context["windowTokens"])
            }
            SessionEvent::Fact { name, value } => format!("fact {name} {value}"),
            SessionEvent::Answered { result, .. } => format!("answered {result:?}"),
            other @ (SessionEvent::Evidence(_)
            | SessionEvent::Work { .. }
            | SessionEvent::Timeline(_)
            | SessionEvent::ConversationChanged { .. }
            | SessionEvent::EndedByUser { .. }
            | SessionEvent::HookAnswer { .. }
            | SessionEvent::Announce { .. }) => format!("{other:?}"),
            SessionEvent::Log { level, text } => {
                format!("note warn={}: {}", level == LogLevel::Warn, cut(&text))
            }
        };
        self.out.push(line);
    }

    fn open(&mut self, resume: Option<Resume>) {
        self.input(Input::Closed);
        self.out.push("--- process".into());
        (self.ready, self.written, self.recorded) = (false, VecDeque::new(), VecDeque::new());
        self.ids.clear();
        self.held.clear();
        self.approvals.clear();
        let settings = SessionSettings {
            agent: "a".into(),
            cwd: "/workspace/demo".into(),
            approval_mode: ApprovalMode::Guarded,
            mode: None,
            approval_timeout: Duration::from_secs(600),
            capture_full: false,
        };
        self.session = Some(AcpSession::new(settings));
        self.input(Input::Verb(VerbNumber(0), Verb::Open { resume }));
    }

    /// One recorded line of the client: what a runner would have asked for.
    fn client(&mut self, frame: &Value, rest: &[Value]) {
        let id = frame["id"].as_u64();
        match (frame["method"].as_str(), id) {
            (Some("initialize"), Some(id)) if (self.session.is_none() || self.ready) => {
                self.open(resume_of(rest));
                self.recorded.push_back((id, "initialize".into()));
                self.pair();
            }
            (Some(method @ ("session/new" | "session/load" | "session/resume")), Some(id))
                if self.session.is_some() && !self.ready =>
            {
                self.recorded.push_back((id, method.into()));
                self.pair();
            }
            (Some("session/prompt"), Some(id))
                if self.ready && frame["params"]["sessionId"] == json!(self.session_id) =>
            {
                let Some(text) = frame.pointer("/params/prompt/0/text").and_then(Value::as_str)
                else {
                    return;
                };
                self.recorded.push_back((id, "session/prompt".into()));
                self.prompts.push(id);
                self.batches += 1;
                self.input(Input::Verb(
                    VerbNumber(self.batches),
                    Verb::Deliver(Delivery {
                        batch: BatchNumber(self.batches),
                        text: text.into(),
                        ..Default::default()
                    }),
                ));
            }
            (Some("session/cancel"), _) if self.ready => {
                self.input(Input::Verb(VerbNumber(1000), Verb::Interrupt))
            }
            (None, Some(id)) => self.decided(id, frame),
            _ => {}
        }
    }

    fn decided(&mut self, id: u64, frame: &Value) {
        let Some(approval) = self.approvals.front().cloned() else { return };
        let option = frame.pointer("/result/outcome/optionId").and_then(Value::as_str);
        let kinds = self.options.get(&id).cloned().unwrap_or_default();
        let kind = option
            .and_then(|option| kinds.into_iter().find(|(offered, _)| offered == option))
            .map(|(_, kind)| kind);
        let decision = match kind.as_deref() {
            Some("allow_once") => Decision::Approve,
            Some("allow_always") => Decision::ApproveSession,
            _ => Decision::Deny,
        };
        self.input(Input::Verb(
            VerbNumber(2000),
            Verb::Decide { approval, decision, reason: None, answers: None },
        ));
    }

    /// One recorded line of the agent.
    fn agent(&mut self, frame: &Value) {
        if frame["method"] == json!("session/request_permission") {
            let options = frame
                .pointer("/params/options")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let text = |option: &Value, field: &str| {
                option[field].as_str().unwrap_or_default().to_string()
            };
            let options = options
                .iter()
                .map(|option| (text(option, "optionId"), text(option, "kind")))
                .collect();
            self.options.insert(frame["id"].as_u64().unwrap_or_default(), options);
        }
        match frame.get("method").is_none().then(|| frame["id"].as_u64()).flatten() {
            Some(id) => self.reply(id, frame.clone()),
            None if frame["method"] == json!("session/request_permission") => {
                self.feed_damaged(&frame.to_string());
            }
            None => self.feed(&frame.to_string()),
        }
    }
}

/// What the next open request of this process resumes.
fn resume_of(rest: &[Value]) -> Option<Resume> {
    let opens = rest.iter().filter(|line| line["dir"] == "out").find_map(|line| {
        let method = line.pointer("/frame/method")?.as_str()?;
        ["session/new", "session/load", "session/resume"]
            .contains(&method)
            .then(|| line["frame"].clone())
    })?;
    let session = opens.pointer("/params/sessionId")?.as_str()?.to_string();
    let wants_evidence = opens["method"] == json!("session/load");
    let trace =
        MessageFingerprint { header: "Hello there".into(), start: String::new(), is_whole: false };
    Some(Resume { session, evidence_for: if wants_evidence { vec![trace] } else { Vec::new() } })
}

fn replay(path: &Path, bytewise: bool) -> String {
    replay_with(path, Replay::new(bytewise))
}

fn replay_with(path: &Path, mut replay: Replay) -> String {
    let text = std::fs::read_to_string(path).expect("a recording");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a recorded line")).collect();
    for (at, line) in lines.iter().enumerate() {
        let tick = Tick(line["t_ms"].as_u64().unwrap_or(0) * 1000);
        if replay.session.as_ref().and_then(|s| s.next_deadline()).is_some_and(|due| due <= tick) {
            replay.input(Input::Wake);
        }
        replay.now = Now { tick, wall: Wall(0) };
        match (line["dir"].as_str(), line.get("frame"), line["text"].as_str()) {
            (Some("out"), Some(frame), _) => replay.client(frame, &lines[at + 1..]),
            (Some("in"), Some(frame), _) => replay.agent(frame),
            (Some("in"), None, Some(text)) => replay.feed(text),
            _ => {}
        }
    }
    replay.input(Input::Closed);
    replay.out.join("\n") + "\n"
}

fn recordings() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/acp");
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("fixtures")
        .map(|entry| entry.expect("entry").path())
        .collect();
    all.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    all.sort();
    all
}

#[test]
fn recordings_give_their_signals() {
    let all = recordings();
    assert_eq!(all.len(), 84, "recordings");
    let update = std::env::var("UPDATE_FIXTURES").is_ok_and(|value| value == "1");
    for path in all {
        let expected = path.with_extension("signals");
        let got = replay(&path, false);
        if update {
            std::fs::write(&expected, &got).expect("write");
        }
        let want = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(got, want, "{}", path.display());
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    for path in recordings() {
        assert_eq!(replay(&path, true), replay(&path, false), "{}", path.display());
    }
}

/// Every turn that began has an end, and nothing stays open.
#[test]
fn no_turn_is_left_open() {
    for path in recordings() {
        let text = replay(&path, false);
        let started = text.lines().filter(|line| *line == "turn started").count();
        let ended = text.lines().filter(|line| line.starts_with("turn ended")).count();
        // A recording that ends or kills its agent in the middle of a turn has no end of it.
        let cut_off = text.matches("--- process").count();
        assert!(started - ended <= cut_off, "{}: {started} turns, {ended} ends", path.display());
    }
}
