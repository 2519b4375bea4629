//! One ACP session as a pure machine: lines of JSON-RPC in, lines out, neutral signals for the
//! agent.
//!
//! Types are our own and lenient: every line is read as a JSON value first, unknown notifications
//! and update kinds are ignored, unknown requests are answered with -32601.

mod updates;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::presets::{mode_for, older_than_tested};
use super::replay::Replay;
use crate::core::ids::{BatchNumber, Ticket, VerbNumber};
use crate::core::session::{
    Approval, Decision, DeliveryOutcome, Input, Mirror, OpenMode, Opened, Output, Resume, Session,
    SessionEvent, TurnEnd, Verb,
};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::jsonrpc::{self, Frame, OpenRequests, RpcError};
use crate::provider::lines::Lines;
use crate::provider::redact::{covered, shown};
use crate::provider::settings::{ApprovalMode, SessionSettings};
use crate::provider::text::one_line;

/// `initialize` may take this long: a first start in a fresh home took up to 14 s.
const INITIALIZE_TIMEOUT: Duration = Duration::from_secs(60);
/// `session/new`, `load` and `resume` may take this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A turn must end this long after `session/cancel`, else the interrupt counts as failed.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;
/// Steps of a plan that are shown.
const PLAN_STEPS_MAX: usize = 64;
/// How one agent says a change of mode in its own voice.
const MODE_UPDATE: &str = "[MODE_UPDATE]";
/// Tool calls that are remembered in one turn.
const TOOLS_MAX: usize = 1024;

/// The error of an agent that wants a login first.
const AUTH_REQUIRED: i64 = -32000;

#[derive(Debug, Clone, PartialEq)]
enum Request {
    Initialize,
    New,
    Load,
    Resume,
    SetMode(String),
    Prompt,
}

/// A text that waits until no turn runs.
#[derive(Debug)]
struct QueuedPrompt {
    /// Batch and key of a delivery; none: a text of the runner.
    batch: Option<(BatchNumber, String)>,
    text: String,
}

impl Request {
    /// For error texts.
    fn name(&self) -> String {
        match self {
            Request::Initialize => "Initialize".into(),
            Request::New => "New".into(),
            Request::Load => "Load".into(),
            Request::Resume => "Resume".into(),
            Request::SetMode(mode) => format!("SetMode({mode:?})"),
            Request::Prompt => "Prompt".into(),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    /// Before `Open`.
    Fresh,
    /// A request of the start is open.
    Starting,
    Ready,
    /// It cannot be opened, or the agent is gone.
    Over,
}

/// A turn: one open `session/prompt`. Nothing else tells reliably that an agent is busy.
#[derive(Debug, Default)]
struct Turn {
    number: u64,
    /// Batch and key of the parcel.
    batch: Option<(BatchNumber, String)>,
    taken: bool,
    /// Text of the current message, and of all messages.
    message: String,
    whole: String,
    thought: String,
    message_id: Option<String>,
    cancelled: bool,
    tools: BTreeMap<String, Tool>,
    /// Whether its messages have ids, and what was said without one since.
    identified: bool,
    notice: String,
    /// The plan that was shown last.
    plan: String,
    /// The agent's engine failed, and what it said.
    engine_failed: bool,
    engine_error: String,
}

#[derive(Debug, Default, Clone)]
struct Tool {
    title: String,
    kind: String,
    shown: bool,
}

#[derive(Debug)]
struct PendingApproval {
    /// Id of the agent's request; its id space is its own.
    request: Value,
    options: Vec<(String, String)>,
    deadline: Tick,
}

/// One ACP session.
pub struct AcpSession {
    settings: SessionSettings,
    lines: Lines,
    stage: Stage,
    out: Vec<Output>,
    requests: OpenRequests<Request>,
    deadline: Option<Tick>,
    resume: Option<Resume>,
    lost: Option<String>,
    agent: String,
    agent_name: String,
    can_load: bool,
    can_resume: bool,
    session: String,
    model: Option<String>,
    how: OpenMode,
    replay: Option<Replay>,
    turn: Option<Turn>,
    turns: u64,
    queue: VecDeque<QueuedPrompt>,
    held: BTreeMap<String, PendingApproval>,
    approvals: u64,
    cancel: Option<(Vec<VerbNumber>, Tick)>,
    strange: u64,
    facts: BTreeMap<&'static str, Value>,
}

impl AcpSession {
    /// A session that waits for [`Verb::Open`].
    pub fn new(settings: SessionSettings) -> AcpSession {
        AcpSession {
            settings,
            lines: Lines::default(),
            stage: Stage::Fresh,
            out: Vec::new(),
            requests: OpenRequests::default(),
            deadline: None,
            resume: None,
            lost: None,
            agent: String::new(),
            agent_name: String::new(),
            can_load: false,
            can_resume: false,
            session: String::new(),
            model: None,
            how: OpenMode::New,
            replay: None,
            turn: None,
            turns: 0,
            queue: VecDeque::new(),
            held: BTreeMap::new(),
            approvals: 0,
            cancel: None,
            strange: 0,
            facts: BTreeMap::new(),
        }
    }

    fn signal(&mut self, signal: SessionEvent) {
        self.out.push(Output::Event(signal));
    }

    fn note(&mut self, warn: bool, text: impl Into<String>) {
        self.signal(SessionEvent::Log { warn, text: text.into() });
    }

    fn write(&mut self, value: &Value) {
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        self.out.push(Output::Write(line));
    }

    fn request(&mut self, kind: Request, method: &str, params: Value) {
        let frame = self.requests.open(kind, method, params);
        self.write(&frame);
    }

    /// Something about the session that people want to see, told when it changes.
    fn fact(&mut self, name: &'static str, value: Value) {
        if self.facts.get(name) != Some(&value) {
            self.facts.insert(name, value.clone());
            self.signal(SessionEvent::Fact { name, value });
        }
    }

    fn fail_open(&mut self, reason: String, permanent: bool) {
        self.stage = Stage::Over;
        self.deadline = None;
        self.signal(SessionEvent::OpenFailed { reason, permanent });
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: VerbNumber, verb: Verb) {
        match verb {
            Verb::Open { resume } => {
                self.resume = resume;
                self.stage = Stage::Starting;
                self.deadline = Some(now.tick + INITIALIZE_TIMEOUT);
                // Version 1 and no more: a higher number gets a draft in which a prompt returns at
                // once.
                let params = json!({
                    "protocolVersion": 1,
                    "clientCapabilities": {"fs": {"readTextFile": false, "writeTextFile": false}, "terminal": false},
                    "clientInfo": {"name": "agent-relay", "title": "agent-relay", "version": crate::wire::VERSION}
                });
                self.request(Request::Initialize, "initialize", params);
            }
            Verb::Deliver(delivery) => {
                self.queue.push_back(QueuedPrompt {
                    batch: Some((delivery.batch, delivery.key)),
                    text: delivery.text,
                });
                self.next_turn();
            }
            Verb::Inject { text, .. } => {
                let result = if self.queue.len() < INJECTED_MAX {
                    Ok(json!({"queued": self.turn.is_some()}))
                } else {
                    Err("too many texts wait for the end of the turn".to_string())
                };
                if result.is_ok() {
                    self.queue.push_back(QueuedPrompt { batch: None, text });
                }
                self.signal(SessionEvent::Answered { verb: number, result });
                self.next_turn();
            }
            Verb::Interrupt => self.interrupt(now, number),
            Verb::Compact { .. } => self.signal(SessionEvent::Answered {
                verb: number,
                result: Err("provider does not support compact".into()),
            }),
            Verb::Clear => self.signal(SessionEvent::Answered {
                verb: number,
                result: Err("provider does not support clearContext".into()),
            }),
            Verb::Decide { approval, decision, .. } => {
                let result = if self.held.contains_key(&approval) {
                    Ok(json!({"approvalId": approval}))
                } else {
                    Err(format!(
                        "no approval {approval} is open; it may have been answered or withdrawn"
                    ))
                };
                self.decide(&approval, decision, "decided");
                self.signal(SessionEvent::Answered { verb: number, result });
                if decision == Decision::Abort {
                    self.cancel_turn(now);
                }
            }
            Verb::Probe => {
                let state = if self.turn.is_some() { "busy" } else { "idle" };
                self.signal(SessionEvent::Answered {
                    verb: number,
                    result: Ok(json!({"activity": state})),
                });
            }
            // These agents have no hooks of ours.
            Verb::Hook { ticket, .. } if ticket != Ticket::NOBODY => {
                self.signal(SessionEvent::HookAnswer { ticket, answer: None })
            }
            Verb::Hook { .. } | Verb::HookGone { .. } => {}
            Verb::Stop => {
                self.queue.clear();
                let held: Vec<String> = self.held.keys().cloned().collect();
                for id in held {
                    self.decide(&id, Decision::Abort, "the runner stops");
                }
                self.cancel_turn(now);
                self.out.push(Output::CloseInput);
            }
        }
    }

    fn interrupt(&mut self, now: Now, number: VerbNumber) {
        self.queue.retain(|prompt| prompt.batch.is_some());
        if self.turn.is_none() {
            self.signal(SessionEvent::Answered {
                verb: number,
                result: Ok(json!({"wasRunning": false})),
            });
            return;
        }
        self.cancel_turn(now);
        if let Some((verbs, _)) = &mut self.cancel {
            verbs.push(number);
        }
    }

    /// Asks the agent to end the turn; open questions are answered first, as some agents wait for
    /// them.
    fn cancel_turn(&mut self, now: Now) {
        let Some(turn) = self.turn.as_mut() else {
            return;
        };
        turn.cancelled = true;
        let held: Vec<String> = self.held.keys().cloned().collect();
        for id in held {
            self.decide(&id, Decision::Abort, "the turn was interrupted");
        }
        let params = json!({"sessionId": self.session});
        self.write(&jsonrpc::notification("session/cancel", params));
        self.cancel.get_or_insert((Vec::new(), now.tick + CANCEL_TIMEOUT));
    }

    /// Sends the next prompt if none is open: two at once behave differently in every agent.
    fn next_turn(&mut self) {
        if self.stage != Stage::Ready || self.turn.is_some() {
            return;
        }
        let Some(QueuedPrompt { batch, text }) = self.queue.pop_front() else {
            return;
        };
        self.turns += 1;
        self.turn = Some(Turn { number: self.turns, batch, ..Default::default() });
        let prompt = json!([{"type": "text", "text": text}]);
        self.request(
            Request::Prompt,
            "session/prompt",
            json!({"sessionId": self.session, "prompt": prompt}),
        );
        self.signal(SessionEvent::TurnStarted);
    }

    // ---- lines

    fn on_line(&mut self, now: Now, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        let Some(frame) = Frame::parse(text) else {
            self.strange += 1;
            if self.strange == 1 {
                self.note(
                    true,
                    "the agent wrote a line that is not a JSON object; such lines are skipped",
                );
            }
            return;
        };
        match frame {
            Frame::Request { id, method, params } => self.on_request(now, &method, id, &params),
            Frame::Notification { method, params } if method == "session/update" => {
                // An agent may tell of other sessions of its own, for example of subagents.
                let other = params
                    .get("sessionId")
                    .and_then(Value::as_str)
                    .is_some_and(|id| id != self.session);
                if !other || self.session.is_empty() {
                    self.on_update(params.get("update").unwrap_or(&Value::Null));
                }
            }
            Frame::Notification { .. } => {}
            Frame::Reply { id, result } => {
                if let Some(request) = self.requests.close(id.as_ref()) {
                    self.on_reply(now, request, result);
                }
            }
        }
    }

    fn on_reply(&mut self, now: Now, request: Request, result: Result<Value, RpcError>) {
        match request {
            Request::Initialize => self.on_initialized(now, result),
            Request::New => match result {
                Ok(reply) => self.on_session(now, reply),
                Err(error) => self.on_open_error(error),
            },
            Request::Load => match result {
                Ok(reply) => {
                    let fate = self.fate();
                    self.how = OpenMode::Loaded(fate);
                    self.on_session(now, reply);
                }
                Err(error) => self.on_lost(now, error),
            },
            Request::Resume => match result {
                Ok(reply) => {
                    self.how = OpenMode::Resumed;
                    self.on_session(now, reply);
                }
                Err(error) => self.on_lost(now, error),
            },
            Request::SetMode(mode) => {
                match result {
                    Ok(_) => self.fact("mode", json!(mode)),
                    Err(error) => self.note(
                        true,
                        format!("the agent refuses the permission mode {mode}: {}", error.text),
                    ),
                }
                self.on_ready();
            }
            Request::Prompt => self.on_turn_over(result),
        }
    }

    fn on_initialized(&mut self, now: Now, result: Result<Value, RpcError>) {
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => return self.on_open_error(error),
        };
        let version = reply.get("protocolVersion").and_then(Value::as_u64).unwrap_or(1);
        if version != 1 {
            return self.fail_open(
                format!(
                    "the agent speaks ACP protocol version {version}, this runner speaks version 1"
                ),
                true,
            );
        }
        let text =
            |at: &str| reply.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string();
        self.agent_name = text("/agentInfo/name");
        self.agent =
            format!("{} {}", self.agent_name, text("/agentInfo/version")).trim().to_string();
        if self.agent.is_empty() {
            self.agent = "the agent".into();
        }
        if let Some(tested) = older_than_tested(&self.agent_name, &text("/agentInfo/version")) {
            self.note(
                true,
                format!("{} is older than the tested version {tested}; its behaviour may differ, better update it", self.agent),
            );
        }
        self.can_load = reply
            .pointer("/agentCapabilities/loadSession")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        self.can_resume = reply
            .pointer("/agentCapabilities/sessionCapabilities/resume")
            .is_some_and(Value::is_object);
        self.deadline = Some(now.tick + OPEN_TIMEOUT);
        self.open_session();
    }

    /// `session/load` when a batch is unsettled (its replay is the evidence), else `session/resume`
    /// where offered.
    fn open_session(&mut self) {
        let wants_evidence =
            self.resume.as_ref().is_some_and(|resume| !resume.evidence_for.is_empty());
        let params = |session: &str| json!({"sessionId": session, "cwd": self.settings.cwd, "mcpServers": []});
        match self.resume.as_ref().map(|resume| resume.session.clone()) {
            Some(session) if self.can_load && (wants_evidence || !self.can_resume) => {
                self.session = session.clone();
                self.replay = Some(Replay::default());
                let params = params(&session);
                self.request(Request::Load, "session/load", params);
            }
            Some(session) if self.can_resume => {
                self.session = session.clone();
                let params = params(&session);
                self.request(Request::Resume, "session/resume", params);
            }
            resumable => {
                if resumable.is_some() && self.lost.is_none() {
                    self.lost = Some("the agent can neither load nor resume a session".into());
                }
                if let Some(reason) = &self.lost {
                    self.how = OpenMode::Lost(reason.clone());
                }
                let params = json!({"cwd": self.settings.cwd, "mcpServers": []});
                self.request(Request::New, "session/new", params);
            }
        }
    }

    /// Loading may fail although it was advertised: then a new session is started, and people are
    /// told.
    fn on_lost(&mut self, now: Now, error: RpcError) {
        if error.code == AUTH_REQUIRED {
            return self.on_open_error(error);
        }
        self.replay = None;
        self.resume = None;
        self.note(true, format!("the earlier conversation is lost: {}", error.text));
        let body = format!(
            "[agent-relay] The earlier conversation could not be restored ({}); a new one starts here.",
            error.text
        );
        self.signal(SessionEvent::Mirror(Mirror {
            kind: "response",
            body,
            label: None,
            status: None,
            key: None,
            turn: 0,
        }));
        self.lost = Some(error.text);
        self.deadline = Some(now.tick + OPEN_TIMEOUT);
        self.open_session();
    }

    fn on_open_error(&mut self, error: RpcError) {
        let login = error.code == AUTH_REQUIRED;
        let cure = if login {
            "; log in with the agent's own command first, then start again"
        } else {
            ""
        };
        self.fail_open(format!("{}{cure}", error.text), login);
    }

    fn on_session(&mut self, now: Now, reply: Value) {
        self.replay = None;
        if let Some(session) = reply.get("sessionId").and_then(Value::as_str) {
            self.session = session.to_string();
        }
        let options =
            reply.get("configOptions").and_then(Value::as_array).cloned().unwrap_or_default();
        let of_category = |category: &str| {
            options
                .iter()
                .find(|option| option.get("category").and_then(Value::as_str) == Some(category))
        };
        self.model = of_category("model")
            .and_then(|option| option.get("currentValue"))
            .or_else(|| reply.pointer("/models/currentModelId"))
            .and_then(Value::as_str)
            .map(str::to_string);
        let mode = of_category("mode")
            .and_then(|option| option.get("currentValue"))
            .or_else(|| reply.pointer("/modes/currentModeId"));
        if let Some(mode) = mode.and_then(Value::as_str) {
            self.fact("mode", json!(one_line(mode, 100)));
        }
        let wanted = self.settings.mode.clone().or_else(|| {
            mode_for(&self.agent_name, self.settings.approval_mode).map(str::to_string)
        });
        let Some(mode) = wanted else {
            if self.settings.approval_mode != ApprovalMode::Open {
                let text = "no permission mode is known for this agent; what it asks is answered, what it does not ask is its own configuration's";
                self.note(true, text);
            }
            return self.on_ready();
        };
        self.deadline = Some(now.tick + OPEN_TIMEOUT);
        let offers = |list: Option<&Value>, field: &str| {
            list.and_then(Value::as_array).is_some_and(|items| {
                items.iter().any(|item| item.get(field).and_then(Value::as_str) == Some(&mode))
            })
        };
        // Config options are preferred where both exist: the older call is not in the current
        // protocol.
        let option = of_category("mode").filter(|option| offers(option.get("options"), "value"));
        if let Some(id) = option.and_then(|option| option.get("id")).and_then(Value::as_str) {
            let params = json!({"sessionId": self.session, "configId": id, "value": mode});
            self.request(Request::SetMode(mode), "session/set_config_option", params);
        } else if offers(reply.pointer("/modes/availableModes"), "id") {
            let params = json!({"sessionId": self.session, "modeId": mode});
            self.request(Request::SetMode(mode), "session/set_mode", params);
        } else {
            self.note(true, format!("the agent does not offer the permission mode {mode}"));
            self.on_ready();
        }
    }

    fn on_ready(&mut self) {
        self.stage = Stage::Ready;
        self.deadline = None;
        let opened = Opened {
            session: self.session.clone(),
            how: std::mem::replace(&mut self.how, OpenMode::New),
            agent: self.agent.clone(),
            model: self.model.clone(),
            has_evidence: self.can_load,
        };
        self.signal(SessionEvent::Opened(opened));
        self.next_turn();
    }

    /// What the replay says about the messages that were asked for.
    fn fate(&self) -> Vec<DeliveryOutcome> {
        let (Some(replay), Some(resume)) = (&self.replay, &self.resume) else {
            return vec![DeliveryOutcome::Unseen];
        };
        vec![replay.fate(&resume.evidence_for)]
    }

    // ---- requests of the agent

    fn on_request(&mut self, now: Now, method: &str, id: Value, params: &Value) {
        if method != "session/request_permission" {
            return self.write(&jsonrpc::method_not_found(&id, method));
        }
        if self.turn.as_ref().is_none_or(|turn| turn.cancelled) {
            // It crossed our cancel: some agents end their turn only after this answer, and none
            // may act on a yes.
            return self.write(&jsonrpc::result(&id, json!({"outcome": {"outcome": "cancelled"}})));
        }
        let list = params.get("options").and_then(Value::as_array).cloned().unwrap_or_default();
        let options: Vec<(String, String)> = list
            .iter()
            .filter_map(|option| {
                let text =
                    |field: &str| option.get(field).and_then(Value::as_str).map(str::to_string);
                Some((text("optionId")?, text("kind").unwrap_or_default()))
            })
            .collect();
        self.approvals += 1;
        // Counters begin anew with every process and sessions are resumed: the time keeps an old
        // decision from fitting a new question.
        let approval =
            format!("{}-{:06x}", self.approvals, (now.tick.0 ^ now.wall.0 as u64) & 0xff_ffff);
        let call = params.get("toolCall").unwrap_or(&Value::Null);
        let text = |field: &str| call.get(field).and_then(Value::as_str).unwrap_or_default();
        self.tool(call);
        let title = self
            .turn
            .as_ref()
            .and_then(|turn| turn.tools.get(text("toolCallId")))
            .map(|tool| tool.title.clone())
            .unwrap_or_else(|| text("title").to_string());
        let deadline = now.tick + self.settings.approval_timeout;
        self.held.insert(approval.clone(), PendingApproval { request: id, options, deadline });
        match self.settings.approval_mode {
            ApprovalMode::Open => self.decide(&approval, Decision::Approve, "open"),
            ApprovalMode::ReadOnly => self.decide(&approval, Decision::Deny, "read-only"),
            ApprovalMode::Guarded => {
                let names =
                    list.iter().filter_map(|option| option.get("name").and_then(Value::as_str));
                let input = call.get("rawInput").cloned().unwrap_or(Value::Null);
                let approval = Approval {
                    id: approval,
                    title: one_line(&covered(&title), 300),
                    kind: one_line(text("kind"), 40),
                    input: shown(&input),
                    options: names.take(16).map(|name| one_line(name, 100)).collect(),
                    detail: serde_json::Map::new(),
                };
                self.signal(SessionEvent::ApprovalOpened(approval));
            }
        }
    }

    /// Answers by `kind`, never by position or id, which differ per agent. Always with an offered
    /// id, or `cancelled`.
    fn decide(&mut self, approval: &str, decision: Decision, reason: &str) {
        let Some(held) = self.held.remove(approval) else {
            return;
        };
        let kinds: &[&str] = match decision {
            Decision::Approve => &["allow_once", "allow_always"],
            Decision::ApproveSession => &["allow_always", "allow_once"],
            Decision::Deny => &["reject_once", "reject_always"],
            Decision::Abort => &[],
        };
        let option =
            kinds.iter().find_map(|kind| held.options.iter().find(|(_, offered)| offered == kind));
        let outcome = match option {
            Some((id, _)) => json!({"outcome": "selected", "optionId": id}),
            None => json!({"outcome": "cancelled"}),
        };
        self.write(&jsonrpc::result(&held.request, json!({"outcome": outcome})));
        if self.settings.approval_mode == ApprovalMode::Guarded {
            self.signal(SessionEvent::ApprovalClosed {
                id: approval.to_string(),
                reason: reason.to_string(),
            });
        }
    }

    fn on_turn_over(&mut self, result: Result<Value, RpcError>) {
        // Thoughts and earlier messages go to the mirror, the last message is the final text.
        let last =
            self.turn.as_mut().map(|turn| std::mem::take(&mut turn.message)).unwrap_or_default();
        self.flush_text();
        let Some(turn) = self.turn.take() else { return };
        if !turn.notice.trim().is_empty() {
            let body = turn.notice.clone();
            self.signal(SessionEvent::Mirror(Mirror {
                kind: "reasoning",
                body,
                label: Some("notice".into()),
                status: None,
                key: None,
                turn: turn.number,
            }));
        }
        for (_, tool) in turn.tools.iter().filter(|(_, tool)| !tool.shown) {
            let mirror = Mirror {
                kind: "tool",
                body: tool.title.clone(),
                label: Some(tool.kind.clone()),
                status: Some("ended".into()),
                turn: turn.number,
                key: None,
            };
            self.signal(SessionEvent::Mirror(mirror));
        }
        let held: Vec<String> = self.held.keys().cloned().collect();
        for id in held {
            self.decide(&id, Decision::Abort, "the turn is over");
        }
        let text = if self.settings.capture_full { turn.whole } else { last };
        let text = text.trim().to_string();
        let end = match result {
            // Any reply after our cancel is a cancel: not every agent says so.
            _ if turn.cancelled => TurnEnd::Cancelled,
            Ok(_)
                if turn.engine_failed
                    && (turn.number == 0 || !crate::planted::is("hidden-engine-error")) =>
            {
                // Without a record of its own the error is the last thing that was said, behind
                // warnings.
                let spoken = if turn.notice.trim().is_empty() { &text } else { &turn.notice };
                let last = spoken
                    .rsplit("\n\n")
                    .find(|part| !part.trim().is_empty())
                    .unwrap_or("the agent's engine failed");
                let said = if turn.engine_error.is_empty() { last } else { &turn.engine_error };
                TurnEnd::Failed(one_line(said, 1000))
            }
            Ok(reply) => match reply.get("stopReason").and_then(Value::as_str) {
                Some("cancelled") => TurnEnd::Cancelled,
                Some("refusal") if text.is_empty() => {
                    TurnEnd::Failed("the model refused to answer".into())
                }
                _ => TurnEnd::Completed,
            },
            Err(error) => TurnEnd::Failed(error.text),
        };
        if !text.is_empty() {
            let body = text.clone();
            self.signal(SessionEvent::Mirror(Mirror {
                kind: "response",
                body,
                label: None,
                status: None,
                key: None,
                turn: turn.number,
            }));
        }
        self.signal(SessionEvent::TurnEnded {
            batch: turn.batch.map(|(batch, _)| batch),
            end,
            text,
        });
        if let Some((verbs, _)) = self.cancel.take() {
            for verb in verbs {
                self.signal(SessionEvent::Answered {
                    verb,
                    result: Ok(json!({"wasRunning": true})),
                });
            }
        }
        self.next_turn();
    }

    fn on_closed(&mut self) {
        self.stage = Stage::Over;
        self.deadline = None;
        self.requests.forget();
        self.held.clear();
        self.turn = None;
        self.queue.clear();
        if let Some((verbs, _)) = self.cancel.take() {
            for verb in verbs {
                self.signal(SessionEvent::Answered {
                    verb,
                    result: Err("the provider ended".into()),
                });
            }
        }
    }

    fn on_wake(&mut self, now: Now) {
        let due = |at: Option<Tick>| at.is_some_and(|at| at <= now.tick);
        if due(self.deadline) && self.stage == Stage::Starting {
            let open = self.requests.first().map(Request::name).unwrap_or_default();
            self.fail_open(
                format!("the agent did not answer ({open}) within {} s", OPEN_TIMEOUT.as_secs()),
                false,
            );
        }
        let late: Vec<String> = self
            .held
            .iter()
            .filter(|(_, held)| held.deadline <= now.tick)
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            self.note(true, format!("approval {id} was not answered in time and is denied"));
            self.decide(&id, Decision::Deny, "nobody answered in time");
        }
        if due(self.cancel.as_ref().map(|(_, until)| *until)) {
            let verbs = self.cancel.take().map(|(verbs, _)| verbs).unwrap_or_default();
            for verb in verbs {
                let error =
                    format!("the agent did not end its turn within {} s", CANCEL_TIMEOUT.as_secs());
                self.signal(SessionEvent::Answered { verb, result: Err(error) });
            }
        }
    }
}

impl Session for AcpSession {
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Bytes(bytes) => {
                let mut whole = Vec::new();
                let mut lines = std::mem::take(&mut self.lines);
                let before = lines.oversized;
                lines.push(&bytes, |line| whole.push(line.to_vec()));
                if lines.oversized > before {
                    self.note(true, "the agent wrote a line of more than 16 MiB; it is skipped");
                }
                self.lines = lines;
                for line in whole {
                    self.on_line(now, &line);
                }
            }
            Input::Closed => self.on_closed(),
            // Nothing of this is asked for.
            Input::ProcessStarted { .. }
            | Input::FileAppended(_)
            | Input::CaughtUp
            | Input::FileReset
            | Input::FileChanged { .. }
            | Input::ScreenChanged => {}
            Input::ScreenCaptured(_)
            | Input::TerminalFailed(_)
            | Input::SocketWritten { .. }
            | Input::SocketLine(_) => {}
            Input::Verb(number, verb) => self.on_verb(now, number, verb),
            Input::Wake => self.on_wake(now),
        }
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Tick> {
        let held = self.held.values().map(|held| held.deadline).min();
        sooner(sooner(self.deadline, held), self.cancel.as_ref().map(|(_, until)| *until))
    }
}
