//! A session over its standard streams, one JSON object a line (Claude FACTS section 14.3): `claude -p` stays until its
//! input is closed, tells which of our lines it has taken by their `uuid`, and asks for permissions by messages.
//!
//! A line that is told as taken may still be missing on disk when the program is killed; so after a restart the
//! transcript decides, and what stands there unanswered is never sent again but followed by a word to go on.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::mirror;
use super::permission::{Answer, Ask};
use super::transcript::{self, Block, Entry, Evidence, LINE_BYTES_MAX};
use super::words::{guarded, unmentioned};
use super::{TESTED, too_old};
use crate::core::limits::{APPROVALS_MAX, REPLY_BODY_BYTES_MAX};
use crate::core::session::{Decision, Fate, How, Input, Mirror, Opened, Output, Parcel, Resume, Session, Signal, TurnEnd, Verb};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::lines::Lines;
use crate::provider::text::push_bounded;
use crate::provider::{SessionSettings, Start};

/// `initialize` is answered 0.25 s after the launch; a busy machine may take longer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A turn must end this long after an interrupt.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A summary may take this long.
const BOUNDARY_TIMEOUT: Duration = Duration::from_secs(600);
/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;

/// Leads what others than the user say.
const OTHERS: &str = "[agent-relay] Not from your user: another agent or a system says this.";

/// A text that waits for its turn.
#[derive(Debug)]
struct Waiting {
    parcel: Option<Parcel>,
    /// Who is told that it arrived, where it is no parcel.
    verb: Option<u64>,
    text: String,
}

/// A line of ours that is not over yet.
#[derive(Debug)]
struct Sent {
    parcel: Option<Parcel>,
    verb: Option<u64>,
    /// The program has begun with it.
    started: bool,
}

#[derive(Debug, Default)]
struct Turn {
    number: u64,
    batch: Option<u64>,
    /// Text of the last message, and of all.
    last: String,
    whole: String,
    message: String,
    error: Option<String>,
    /// It is a command of ours, not a conversation.
    local: bool,
    /// The API is being asked again.
    retries: bool,
}

#[derive(Debug)]
struct Held {
    request: String,
    ask: Ask,
    deadline: Tick,
}

#[derive(Debug, PartialEq)]
enum Boundary {
    Compact { instructions: Option<String> },
    Clear,
}

/// The machine.
pub struct StreamSession {
    settings: SessionSettings,
    start: Start,
    lines: Lines,
    record: Lines,
    out: Vec<Output>,
    opening: Option<Tick>,
    initialized: bool,
    evidence: Option<Evidence>,
    fates: Option<Vec<Fate>>,
    open: bool,
    over: bool,
    session: String,
    version: String,
    model: Option<String>,
    window: u64,
    tokens: u64,
    sent: BTreeMap<String, Sent>,
    queue: VecDeque<Waiting>,
    turn: Option<Turn>,
    turns: u64,
    numbers: u64,
    held: BTreeMap<String, Held>,
    approvals: u64,
    interrupting: Option<(Vec<u64>, Tick)>,
    /// A compaction or a fresh start that waits or is under way.
    boundary: Option<(u64, Boundary, Tick, bool)>,
    outcome: Option<Result<(), String>>,
    background: BTreeMap<String, &'static str>,
}

impl StreamSession {
    /// A session that waits for [`Verb::Open`].
    pub fn new(settings: SessionSettings, start: Start) -> StreamSession {
        StreamSession {
            session: start.session.clone(),
            settings,
            start,
            lines: Lines::default(),
            record: Lines::up_to(LINE_BYTES_MAX),
            out: Vec::new(),
            opening: None,
            initialized: false,
            evidence: None,
            fates: None,
            open: false,
            over: false,
            version: String::new(),
            model: None,
            window: 0,
            tokens: 0,
            sent: BTreeMap::new(),
            queue: VecDeque::new(),
            turn: None,
            turns: 0,
            numbers: 0,
            held: BTreeMap::new(),
            approvals: 0,
            interrupting: None,
            boundary: None,
            outcome: None,
            background: BTreeMap::new(),
        }
    }

    fn signal(&mut self, signal: Signal) {
        self.out.push(Output::Signal(signal));
    }

    fn note(&mut self, warn: bool, text: impl Into<String>) {
        self.signal(Signal::Note { warn, text: text.into() });
    }

    fn write(&mut self, value: &Value) {
        self.out.push(Output::Write(format!("{value}\n").into_bytes()));
    }

    fn control(&mut self, request: Value) {
        self.numbers += 1;
        let line = json!({"type": "control_request", "request_id": format!("relay-{}", self.numbers), "request": request});
        self.write(&line);
    }

    fn answer(&mut self, verb: u64, result: Result<Value, String>) {
        self.signal(Signal::Answered { verb, result });
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: u64, verb: Verb) {
        match verb {
            Verb::Open { resume } => self.on_open(now, resume),
            Verb::Deliver(parcel) => {
                // There is one way in, and it is the user's: what others say is marked as theirs.
                let text = match parcel.person {
                    true => unmentioned(&parcel.text),
                    false => format!("{OTHERS}\n\n{}", unmentioned(&parcel.text)),
                };
                let urgent = parcel.urgent;
                self.queue.push_back(Waiting { parcel: Some(parcel), verb: None, text });
                self.next_line(urgent);
            }
            Verb::Inject { text, person } => {
                if self.queue.iter().filter(|waiting| waiting.verb.is_some()).count() >= INJECTED_MAX {
                    return self.answer(number, Err("too many texts wait for the end of the turn".into()));
                }
                let text = if person { guarded(&text) } else { format!("{OTHERS}\n\n{}", unmentioned(&text)) };
                self.queue.push_back(Waiting { parcel: None, verb: Some(number), text });
                self.next_line(false);
            }
            Verb::Interrupt => match self.turn.is_some() {
                true => self.interrupt(now, Some(number)),
                // Sent while idle it would end what works in the background.
                false => self.answer(number, Ok(json!({"wasRunning": false}))),
            },
            Verb::Compact { instructions } => self.begin_boundary(now, number, Boundary::Compact { instructions }),
            Verb::Clear => self.begin_boundary(now, number, Boundary::Clear),
            Verb::Decide { approval, decision, reason, answers } => {
                let result = match self.held.get(&approval).map(|held| held.ask.objection(decision, answers.as_ref())) {
                    None => Err(format!("no approval {approval} is open; it may have been answered or withdrawn")),
                    Some(Some(objection)) => Err(objection),
                    Some(None) => {
                        self.decide(&approval, decision, reason.as_deref(), answers.as_ref(), "decided");
                        Ok(json!({"approvalId": approval}))
                    }
                };
                self.answer(number, result);
            }
            Verb::Probe => {
                let state = if self.turn.is_some() { "busy" } else { "idle" };
                self.answer(number, Ok(json!({"activity": state})));
            }
            // Permissions come as messages here; a hook that asks too has no answer from us.
            Verb::Hook { ticket, .. } if ticket != 0 => self.signal(Signal::HookAnswer { ticket, answer: None }),
            Verb::Hook { .. } | Verb::HookGone { .. } => {}
            Verb::Stop => {
                self.queue.clear();
                self.out.push(Output::CloseInput);
            }
        }
    }

    fn on_open(&mut self, now: Now, resume: Option<Resume>) {
        self.opening = Some(now.tick + OPEN_TIMEOUT);
        self.control(json!({"subtype": "initialize", "hooks": null}));
        let traces = resume.map(|resume| resume.evidence_for).unwrap_or_default();
        match &self.start.transcript {
            Some(path) if !traces.is_empty() => {
                self.out.push(Output::Follow { path: path.clone(), whole: true });
                self.evidence = Some(Evidence::new(&traces));
            }
            // There is no record: nothing of it was ever written down.
            None if !traces.is_empty() => self.fates = Some(vec![Fate::Unseen; traces.len()]),
            _ => {}
        }
    }

    /// Opened once the program answers and the record is read.
    fn open_if_ready(&mut self) {
        if self.open || self.over || !self.initialized || self.evidence.is_some() {
            return;
        }
        let how = match self.fates.take() {
            Some(fates) => How::Loaded(fates),
            None if self.start.resumes => How::Resumed,
            None => How::New,
        };
        self.open = true;
        self.opening = None;
        self.out.push(Output::Unfollow);
        let agent = format!("Claude Code {}", self.version).trim().to_string();
        let (session, model) = (self.session.clone(), self.model.clone());
        self.signal(Signal::Opened(Opened { session, how, agent, model, has_evidence: true }));
        self.signal(Signal::Fact { name: "transport", value: json!("stream: no terminal to attach to") });
        self.next_line(false);
    }

    /// The next text goes in: a new turn when none runs, or at once where it is urgent.
    fn next_line(&mut self, urgent: bool) {
        let free = self.turn.is_none() && self.sent.is_empty() && self.boundary.as_ref().is_none_or(|(.., begun)| !begun);
        if !self.open || self.over || !(free || urgent) {
            return;
        }
        let at = if urgent {
            self.queue.iter().position(|waiting| waiting.parcel.as_ref().is_some_and(|parcel| parcel.urgent))
        } else {
            Some(0)
        };
        let Some(Waiting { parcel, verb, text }) = at.and_then(|at| self.queue.remove(at)) else {
            return;
        };
        let uuid = match &parcel {
            Some(parcel) => parcel.key.clone(),
            None => self.fresh_uuid(),
        };
        self.user_line(&uuid, &text);
        self.sent.insert(uuid, Sent { parcel, verb, started: false });
        // Whose turn it is shows when the line is begun: the session may have begun one by itself just now.
        self.begin_turn("line written to the session");
    }

    fn user_line(&mut self, uuid: &str, text: &str) {
        let line = json!({"type": "user", "message": {"role": "user", "content": text}, "parent_tool_use_id": null, "uuid": uuid});
        self.write(&line);
    }

    /// For texts of our own, which nobody asks for again: unique within the session.
    fn fresh_uuid(&mut self) -> String {
        self.numbers += 1;
        let base = self.start.nonce.get(..24).unwrap_or("00000000-0000-4000-8000-");
        format!("{base}{:012x}", self.numbers)
    }

    fn begin_turn(&mut self, evidence: &str) {
        if self.turn.is_some() {
            return;
        }
        self.turns += 1;
        self.turn = Some(Turn { number: self.turns, ..Default::default() });
        self.signal(Signal::Evidence(evidence.into()));
        self.signal(Signal::TurnStarted);
    }

    fn interrupt(&mut self, now: Now, verb: Option<u64>) {
        let dropped: Vec<u64> = self.queue.iter().filter_map(|waiting| waiting.verb).collect();
        self.queue.retain(|waiting| waiting.verb.is_none());
        dropped.into_iter().for_each(|verb| self.answer(verb, Err("an interrupt came before it".into())));
        self.control(json!({"subtype": "interrupt"}));
        let (verbs, _) = self.interrupting.get_or_insert((Vec::new(), now.tick + INTERRUPT_TIMEOUT));
        verbs.extend(verb);
    }

    // ---- compact and clear

    fn begin_boundary(&mut self, now: Now, number: u64, boundary: Boundary) {
        if self.boundary.is_some() {
            return self.answer(number, Err("a compaction or a fresh start is under way already".into()));
        }
        self.boundary = Some((number, boundary, now.tick + BOUNDARY_TIMEOUT, false));
        self.next_boundary();
    }

    /// Begins when no turn runs.
    fn next_boundary(&mut self) {
        let free = self.open && self.turn.is_none() && self.sent.is_empty();
        let Some((_, boundary, _, begun)) = self.boundary.as_mut().filter(|(.., begun)| free && !begun) else {
            return;
        };
        *begun = true;
        let (text, moment) = match boundary {
            Boundary::Compact { instructions: Some(words) } => {
                (format!("/compact {}", words.split_whitespace().collect::<Vec<_>>().join(" ")), "compacting")
            }
            Boundary::Compact { instructions: None } => ("/compact".to_string(), "compacting"),
            Boundary::Clear => ("/clear".to_string(), "clearing-context"),
        };
        self.outcome = None;
        let uuid = self.fresh_uuid();
        self.user_line(&uuid, &text);
        self.sent.insert(uuid, Sent { parcel: None, verb: None, started: false });
        self.begin_turn(moment);
        if let Some(turn) = &mut self.turn {
            turn.local = true;
        }
        self.signal(Signal::Timeline(moment));
    }

    fn end_boundary(&mut self, said: &str) {
        let Some((number, boundary, ..)) = self.boundary.take_if(|(.., begun)| *begun) else {
            return;
        };
        let (moment, what) = match boundary {
            Boundary::Compact { .. } => ("compacted", "compact"),
            Boundary::Clear => ("context-cleared", "clear"),
        };
        let result =
            self.outcome.take().unwrap_or_else(|| Err(if said.is_empty() { format!("the session did not {what}") } else { said.into() }));
        if result.is_ok() {
            self.signal(Signal::Timeline(moment));
        }
        self.answer(number, result.map(|()| json!({"method": format!("/{what}"), "session": self.session})));
    }

    // ---- approvals

    fn decide(&mut self, id: &str, decision: Decision, reason: Option<&str>, answers: Option<&Value>, why: &str) {
        let Some(held) = self.held.remove(id) else { return };
        let answer = held.ask.answer(decision, reason, answers);
        self.respond(&held.request, &answer);
        self.signal(Signal::ApprovalClosed { id: id.to_string(), reason: why.to_string() });
    }

    fn respond(&mut self, request: &str, answer: &Answer) {
        let response = json!({"subtype": "success", "request_id": request, "response": answer.decision()});
        self.write(&json!({"type": "control_response", "response": response}));
    }

    fn on_ask(&mut self, now: Now, request: &str, record: &Value) {
        let ask = Ask::read(record, "input");
        if self.settings.rejects_all() && !ask.is_question() {
            let message = "This agent is read-only: its runner allows no tool that asks.".to_string();
            return self.respond(request, &Answer::Deny { message, interrupt: false });
        }
        if self.held.len() >= APPROVALS_MAX {
            let message = "Too many questions wait for an answer.".to_string();
            return self.respond(request, &Answer::Deny { message, interrupt: false });
        }
        self.approvals += 1;
        let id = format!("{}-{}", self.start.nonce.get(..8).unwrap_or("approval"), self.approvals);
        self.signal(Signal::ApprovalOpened(ask.view(&id)));
        let deadline = now.tick + self.settings.approval_timeout;
        self.held.insert(id, Held { request: request.into(), ask, deadline });
    }

    // ---- lines of the program

    fn on_line(&mut self, now: Now, line: &[u8]) {
        let Ok(frame @ Value::Object(_)) = serde_json::from_slice::<Value>(line) else {
            return;
        };
        let text = |at: &str| frame.pointer(at).and_then(Value::as_str).unwrap_or_default();
        match text("/type") {
            "control_response" => self.on_response(&frame),
            "control_request" if text("/request/subtype") == "can_use_tool" => {
                self.on_ask(now, text("/request_id"), &frame["request"]);
            }
            "control_request" => {
                let response = json!({"subtype": "error", "request_id": text("/request_id"), "error": "not supported by this client"});
                self.write(&json!({"type": "control_response", "response": response}));
            }
            "control_cancel_request" => {
                let gone = self.held.iter().find(|(_, held)| held.request == text("/request_id")).map(|(id, _)| id.clone());
                if let Some(id) = gone {
                    self.held.remove(&id);
                    self.signal(Signal::ApprovalClosed { id, reason: "answered elsewhere or withdrawn".into() });
                }
            }
            "command_lifecycle" => self.on_lifecycle(text("/command_uuid"), text("/state")),
            "system" => self.on_system(text("/subtype"), &frame),
            "assistant" | "user" => self.on_conversation(&frame, line),
            "result" => self.on_result(&frame),
            _ => {}
        }
    }

    fn on_response(&mut self, frame: &Value) {
        let Some(found) = frame.pointer("/response/response/claude_code_version").and_then(Value::as_str) else {
            return;
        };
        self.version = found.chars().take(40).collect();
        if let Some(reason) = too_old(found) {
            return self.fail_open(reason, true);
        }
        if self.version != TESTED {
            self.note(false, format!("Claude Code {found} runs; {TESTED} is the version that was tested"));
        }
        self.initialized = true;
        self.open_if_ready();
    }

    fn fail_open(&mut self, reason: String, permanent: bool) {
        if !self.open && !self.over {
            self.over = true;
            self.opening = None;
            self.signal(Signal::OpenFailed { reason, permanent });
        }
    }

    fn on_lifecycle(&mut self, uuid: &str, state: &str) {
        let Some(sent) = self.sent.get_mut(uuid) else { return };
        match state {
            "started" => {
                sent.started = true;
                let told = sent.verb.take();
                let taken = sent.parcel.as_ref().map(|parcel| (parcel.batch, parcel.key.clone()));
                told.into_iter().for_each(|verb| self.answer(verb, Ok(Value::Null)));
                self.begin_turn("the session took a line");
                if let (Some(turn), Some((batch, key))) = (self.turn.as_mut(), taken) {
                    turn.batch = Some(batch);
                    self.signal(Signal::Taken { batch, key, evidence: "the session says that it has begun with the line".into() });
                }
            }
            "completed" | "cancelled" if !sent.started && state == "completed" => self.on_suppressed(uuid),
            "completed" | "cancelled" => {
                self.sent.remove(uuid);
                self.go_on();
            }
            _ => {}
        }
    }

    /// The program knew the line from before and says nothing to it: it is told to go on.
    fn on_suppressed(&mut self, uuid: &str) {
        let Some(Sent { parcel: Some(parcel), .. }) = self.sent.remove(uuid) else {
            return;
        };
        self.note(true, format!("the session knew a line of batch {} already", parcel.batch));
        let (batch, key) = (parcel.batch, parcel.key.clone());
        self.signal(Signal::Taken { batch, key, evidence: "the session knew the line already".into() });
        let fresh = self.fresh_uuid();
        let text = format!("{} while you worked on the messages above. Please go on and answer them.", crate::core::session::RESTART_MARK);
        self.user_line(&fresh, &text);
        self.sent.insert(fresh, Sent { parcel: Some(parcel), verb: None, started: false });
    }

    fn on_system(&mut self, kind: &str, frame: &Value) {
        let text = |at: &str| frame.pointer(at).and_then(Value::as_str).unwrap_or_default();
        match kind {
            "init" => {
                self.begin_turn("the session began a turn by itself");
                let model = text("/model");
                if !model.is_empty() && self.model.as_deref() != Some(model) {
                    self.model = Some(model.to_string());
                    self.signal(Signal::Fact { name: "model", value: json!(model) });
                }
                self.signal(Signal::Fact { name: "mode", value: json!(text("/permissionMode")) });
                let session = text("/session_id").to_string();
                if !session.is_empty() && session != self.session {
                    self.session = session.clone();
                    self.signal(Signal::Moved { session });
                    if matches!(self.boundary, Some((_, Boundary::Clear, ..))) {
                        self.outcome = Some(Ok(()));
                    }
                }
            }
            "api_retry" => {
                let detail = format!("{} attempt {} of {}", text("/error"), frame["attempt"], frame["max_retries"]);
                self.turn.iter_mut().for_each(|turn| turn.retries = true);
                self.signal(Signal::ProviderState(json!({"state": "retrying", "detail": detail})));
            }
            "status" => match text("/compact_result") {
                "success" => self.outcome = Some(Ok(())),
                "failed" => self.outcome = Some(Err(text("/compact_error").to_string())),
                _ if text("/status") == "compacting" && self.boundary.is_none() => self.signal(Signal::Timeline("compacting")),
                _ => {}
            },
            "compact_boundary" if self.boundary.is_none() => self.signal(Signal::Timeline("compacted")),
            "background_tasks_changed" => self.on_background(frame),
            _ => {}
        }
    }

    /// The whole list of what works beside the turn.
    fn on_background(&mut self, frame: &Value) {
        let mut now: BTreeMap<String, (&'static str, String)> = BTreeMap::new();
        for task in frame.get("tasks").and_then(Value::as_array).into_iter().flatten().take(256) {
            let text = |fields: [&str; 2]| {
                fields.iter().find_map(|field| task.get(*field).and_then(Value::as_str)).unwrap_or_default().to_string()
            };
            let kind = if text(["task_type", "type"]).contains("agent") { "subagent" } else { "shell" };
            now.insert(text(["task_id", "id"]), (kind, text(["description", "summary"])));
        }
        for (id, kind) in std::mem::take(&mut self.background) {
            if !now.contains_key(&id) {
                self.signal(Signal::Work { kind, id, label: String::new(), runs: false });
            }
        }
        for (id, (kind, label)) in now {
            self.background.insert(id.clone(), kind);
            self.signal(Signal::Work { kind, id, label, runs: true });
        }
    }

    fn on_conversation(&mut self, frame: &Value, line: &[u8]) {
        if frame.get("parent_tool_use_id").is_some_and(|id| !id.is_null()) {
            return; // of a subagent
        }
        if frame.get("isReplay").and_then(Value::as_bool) == Some(true) {
            return;
        }
        let Some(Entry::Answer(mut answer)) = transcript::read(line) else { return };
        let Some(turn) = self.turn.as_mut().filter(|turn| !turn.local) else { return };
        if std::mem::take(&mut turn.retries) {
            self.out.push(Output::Signal(Signal::ProviderState(json!({"state": "running"}))));
        }
        let number = turn.number;
        if frame.get("is_api_error_message").and_then(Value::as_bool) == Some(true) || frame.get("error").is_some_and(Value::is_string) {
            turn.error = Some(answer.text());
            return;
        }
        self.tokens = answer.tokens.max(self.tokens);
        // Whether a message was the last one shows with the next: what was said before is narration.
        let begins = turn.message != answer.message;
        let before = if begins { std::mem::take(&mut turn.last) } else { String::new() };
        turn.message = answer.message.clone();
        for block in &answer.blocks {
            if let Block::Text(text) = block {
                for place in [&mut turn.last, &mut turn.whole] {
                    let between = if place.is_empty() { "" } else { "\n" };
                    push_bounded(place, between, REPLY_BODY_BYTES_MAX);
                    push_bounded(place, text, REPLY_BODY_BYTES_MAX);
                }
            }
        }
        if !before.trim().is_empty() {
            let label = Some("narration".into());
            self.signal(Signal::Mirror(Mirror { kind: "reasoning", body: before, label, status: None, turn: number, key: None }));
        }
        answer.stop_reason = "end_turn".into();
        for step in mirror::steps(&answer, number) {
            self.signal(Signal::Mirror(step));
        }
    }

    fn on_result(&mut self, frame: &Value) {
        let text = |at: &str| frame.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let Some(turn) = self.turn.take() else {
            if !self.open {
                let said = frame.pointer("/errors/0").and_then(Value::as_str).unwrap_or("the session ended before it began");
                self.fail_open(said.to_string(), false);
            }
            return;
        };
        let usage = frame.get("modelUsage").and_then(Value::as_object);
        let window = usage.into_iter().flatten().filter_map(|(_, usage)| usage.get("contextWindow")?.as_u64()).max();
        self.window = window.unwrap_or(self.window);
        let aborted = text("/terminal_reason").starts_with("aborted");
        let end = match frame.get("is_error").and_then(Value::as_bool) {
            _ if aborted => TurnEnd::Cancelled,
            Some(true) => {
                TurnEnd::Failed(turn.error.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| text("/result").to_string()))
            }
            _ => TurnEnd::Completed,
        };
        // What still asks is a subagent in the background; the session itself takes back its own questions.
        let said = text("/result").to_string();
        let spoken = if self.settings.capture_full { turn.whole.clone() } else { turn.last.clone() };
        let spoken = if spoken.trim().is_empty() && end == TurnEnd::Completed && !turn.local { said.clone() } else { spoken };
        if !turn.local && !spoken.trim().is_empty() {
            let body = spoken.clone();
            self.signal(Signal::Mirror(Mirror { kind: "response", body, label: None, status: None, turn: turn.number, key: None }));
        }
        self.tell_context();
        self.signal(Signal::Evidence("the session told the end of the turn".into()));
        let spoken = if matches!(end, TurnEnd::Failed(_)) { String::new() } else { spoken };
        self.signal(Signal::TurnEnded { batch: turn.batch, end, text: spoken });
        // A command's own end says so; another turn may have ended just before it.
        if turn.local && (frame.get("local_command").is_some() || self.outcome.is_some()) {
            self.end_boundary(&said);
        } else if turn.local {
            self.begin_turn("the command waits");
            self.turn.iter_mut().for_each(|turn| turn.local = true);
            return;
        }
        for verb in self.interrupting.take().map(|(verbs, _)| verbs).unwrap_or_default() {
            self.answer(verb, Ok(json!({"wasRunning": true})));
        }
        self.go_on();
    }

    fn tell_context(&mut self) {
        if self.window > 0 && self.tokens > 0 {
            let utilization = self.tokens as f64 / self.window as f64;
            let context = json!({"utilization": utilization, "lifecycleState": "active", "source": "api", "confidence": "reported",
                "usedTokens": self.tokens, "windowTokens": self.window, "model": self.model});
            self.tokens = 0;
            self.signal(Signal::Context(context));
        }
    }

    fn go_on(&mut self) {
        self.next_boundary();
        self.next_line(false);
    }

    fn on_closed(&mut self) {
        self.fail_open("the session ended before it was ready".into(), false);
        self.over = true;
        let verbs = self.interrupting.take().map(|(verbs, _)| verbs).unwrap_or_default();
        let boundary = self.boundary.take().map(|(verb, ..)| verb);
        for verb in verbs.into_iter().chain(boundary) {
            self.answer(verb, Err("the provider ended".into()));
        }
    }

    fn on_wake(&mut self, now: Now) {
        if self.opening.is_some_and(|at| at <= now.tick) {
            self.fail_open(format!("the session did not answer within {} s", OPEN_TIMEOUT.as_secs()), false);
        }
        let late: Vec<String> = self.held.iter().filter(|(_, held)| held.deadline <= now.tick).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.note(true, format!("approval {id} was not answered in time and is denied"));
            self.decide(&id, Decision::Deny, Some("Nobody answered in time."), None, "nobody answered in time");
        }
        if let Some((verbs, _)) = self.interrupting.take_if(|(_, at)| *at <= now.tick) {
            for verb in verbs {
                self.answer(verb, Err(format!("the session did not end its turn within {} s", INTERRUPT_TIMEOUT.as_secs())));
            }
        }
        if let Some((verb, ..)) = self.boundary.take_if(|(_, _, at, _)| *at <= now.tick) {
            self.answer(verb, Err("the session did not come to it in time".into()));
        }
    }

    /// The record, read from its beginning.
    fn on_record(&mut self, bytes: &[u8]) {
        let Some(evidence) = &mut self.evidence else { return };
        self.record.push(bytes, |line| {
            if let Some(entry) = transcript::read(line) {
                evidence.take(&entry);
            }
        });
    }
}

impl Session for StreamSession {
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Bytes(bytes) => {
                let mut whole = Vec::new();
                self.lines.push(&bytes, |line| whole.push(line.to_vec()));
                for line in whole {
                    self.on_line(now, &line);
                }
            }
            Input::Closed => self.on_closed(),
            Input::Verb(number, verb) => self.on_verb(now, number, verb),
            Input::Wake => self.on_wake(now),
            Input::Grown(bytes) => self.on_record(&bytes),
            Input::Caught => {
                if let (false, Some(evidence)) = (self.open, self.evidence.take()) {
                    // The program may not have answered yet: the fate waits for it.
                    self.fates = Some(evidence.fates());
                    self.open_if_ready();
                }
            }
            Input::Rewound => self.record = Lines::up_to(LINE_BYTES_MAX),
            Input::Born { .. } | Input::File { .. } | Input::Drawn | Input::Screen(_) | Input::TermFailed(_) => {}
            Input::Posted { .. } | Input::Mail(_) => {}
        }
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Tick> {
        let held = self.held.values().map(|held| held.deadline).min();
        let asked = sooner(self.interrupting.as_ref().map(|(_, at)| *at), self.boundary.as_ref().map(|(_, _, at, _)| *at));
        sooner(sooner(self.opening, held), asked)
    }
}
