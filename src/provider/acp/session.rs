//! One ACP session as a pure machine: lines of JSON-RPC in, lines out, session events for the
//! agent.
//!
//! # Contract of [`AcpSession`]
//!
//! One input in, its outputs out, in the order in which they take effect. No line of the provider
//! is an error of ours: of a damaged one counts what can be read, what is no JSON object is
//! skipped, unknown notifications and kinds of update are ignored, unknown requests are answered
//! with -32601. A damaged reply may end what waits for it; what a damaged question asks is allowed
//! this once at most, by a person or by the mode.
//!
//! **In.** [`Verb::Open`] first; then verbs, and what the provider writes as [`Input::Bytes`], cut
//! anywhere. [`Input::Closed`] is the last one. Inputs about files, screens and sockets are
//! ignored: nothing of that is asked for.
//!
//! **Out.** To the agent: `Opened` or `OpenFailed` once; after `Opened`, `TurnStarted` and
//! `TurnEnded` in turns, one prompt at a time; for each [`Verb::Deliver`] one `Accepted` with a
//! `TurnEnded`, except where the turn ends without any output, or the provider first; for each
//! other verb that wants an answer one `Answered`. To the provider: [`Output::Write`] with one
//! whole line, and [`Output::CloseInput`] at [`Verb::Stop`].
//!
//! **The caller** gives every input with a clock that never goes back, calls with [`Input::Wake`]
//! at [`Session::next_deadline`], and carries out the outputs in order.
//!
//! # Parts
//!
//! | part | decides |
//! | --- | --- |
//! | `opening` | how the conversation is opened, in which mode, and why it cannot be |
//! | `turn` | which text is the next prompt, what ends its turn, what an interrupt does |
//! | `approvals` | what the agent asks, and the answer in its own options |
//! | `updates` | what is shown of a turn while it runs |

mod approvals;
mod opening;
mod turn;
mod updates;

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use self::approvals::Approvals;
use self::opening::{OPEN_TIMEOUT, Opening};
use self::turn::{CANCEL_TIMEOUT, QueuedPrompt, Turn};
use crate::core::ids::{Ticket, VerbNumber};
use crate::core::session::{Decision, Input, Mirror, Output, Session, SessionEvent, Verb};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::jsonrpc::{Frame, OpenRequests, RpcError};
use crate::provider::launch::ToolServer;
use crate::provider::lines::Lines;
use crate::provider::reader::{self, Damage, Document};
use crate::provider::settings::SessionSettings;
use crate::wire::control::LogLevel;

/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;
/// The only request of an agent that is known here.
const ASK: &str = "session/request_permission";

/// A request of ours that waits for its reply.
#[derive(Debug, Clone, PartialEq)]
enum Request {
    Initialize,
    New,
    Load,
    Resume,
    SetMode(String),
    Prompt,
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

    /// Whether half of its reply says enough: how a turn has ended, but not which conversation was
    /// opened.
    fn is_legible(&self, reply: &Value) -> bool {
        let reason = reply.get("stopReason").and_then(Value::as_str).unwrap_or_default();
        *self == Request::Prompt && turn::STOP_REASONS.contains(&reason)
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

/// An interrupt that waits for the end of its turn.
#[derive(Debug)]
struct PendingCancel {
    verbs: Vec<VerbNumber>,
    deadline: Tick,
}

/// The session as a machine: see the module.
pub struct AcpSession {
    settings: SessionSettings,
    /// Servers of tools, as the agent is told of them.
    servers: Value,
    lines: Lines,
    stage: Stage,
    out: Vec<Output>,
    requests: OpenRequests<Request>,
    /// Of the request of the start that is open.
    deadline: Option<Tick>,
    opening: Opening,
    /// Session id of the provider.
    session: String,
    turn: Option<Turn>,
    /// Turns that have begun.
    turns: u64,
    queue: VecDeque<QueuedPrompt>,
    approvals: Approvals,
    cancel: Option<PendingCancel>,
    /// That the agent writes other things than JSON objects was told.
    told_of_other_lines: bool,
    /// That it writes damaged ones was told.
    told_of_damage: bool,
    /// What was told of the session, so that only changes are told.
    facts: BTreeMap<&'static str, Value>,
}

impl AcpSession {
    /// The agent is told to start the relay's tools.
    pub fn with_tools(mut self, tools: Option<ToolServer>) -> AcpSession {
        if let Some(ToolServer { program, env }) = tools {
            let pair = |(name, value): &(String, String)| json!({"name": name, "value": value});
            let env: Vec<Value> = env.iter().map(pair).collect();
            self.servers =
                json!([{"name": "relay", "command": program, "args": ["mcp"], "env": env}]);
        }
        self
    }

    /// Whether it has been told of them.
    fn has_tools(&self) -> bool {
        self.servers.as_array().is_some_and(|all| !all.is_empty())
    }

    /// A session that waits for [`Verb::Open`].
    pub fn new(settings: SessionSettings) -> AcpSession {
        AcpSession {
            settings,
            servers: json!([]),
            lines: Lines::default(),
            stage: Stage::Fresh,
            out: Vec::new(),
            requests: OpenRequests::default(),
            deadline: None,
            opening: Opening::default(),
            session: String::new(),
            turn: None,
            turns: 0,
            queue: VecDeque::new(),
            approvals: Approvals::default(),
            cancel: None,
            told_of_other_lines: false,
            told_of_damage: false,
            facts: BTreeMap::new(),
        }
    }

    // ---- outputs

    fn emit(&mut self, event: SessionEvent) {
        self.out.push(Output::Event(event));
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.emit(SessionEvent::Log { level: LogLevel::Warn, text: text.into() });
    }

    fn answer(&mut self, verb: VerbNumber, result: Result<Value, String>) {
        self.emit(SessionEvent::Answered { verb, result });
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
            self.emit(SessionEvent::Fact { name, value });
        }
    }

    /// A text of the conversation for people to see.
    fn mirror(&mut self, turn: u64, kind: &'static str, label: Option<&str>, body: String) {
        let label = label.map(str::to_string);
        self.emit(SessionEvent::Mirror(Mirror {
            kind,
            body,
            label,
            status: None,
            turn,
            key: None,
        }));
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: VerbNumber, verb: Verb) {
        match verb {
            Verb::Open { resume } => self.on_open(now, resume),
            Verb::Deliver(delivery) => {
                self.queue.push_back(QueuedPrompt {
                    batch: Some((delivery.batch, delivery.key)),
                    text: delivery.text,
                });
                self.next_turn();
            }
            Verb::Inject { text, .. } => self.inject(number, text),
            Verb::Interrupt => self.interrupt(now, number),
            Verb::Compact { .. } => {
                self.answer(number, Err("provider does not support compact".into()))
            }
            Verb::Clear => {
                self.answer(number, Err("provider does not support clearContext".into()))
            }
            Verb::Decide { approval, decision, .. } => {
                let result = match self.approvals.objection(&approval, decision) {
                    Some(objection) => Err(objection),
                    None => {
                        self.decide(&approval, decision, "decided");
                        Ok(json!({"approvalId": approval}))
                    }
                };
                self.answer(number, result);
                if decision == Decision::Abort {
                    self.cancel_turn(now);
                }
            }
            Verb::Probe => {
                let state = if self.turn.is_some() { "busy" } else { "idle" };
                self.answer(number, Ok(json!({"activity": state})));
            }
            // These agents have no hooks of ours.
            Verb::Hook { ticket, .. } if ticket != Ticket::NOBODY => {
                self.emit(SessionEvent::HookAnswer { ticket, answer: None })
            }
            Verb::Hook { .. } | Verb::HookGone { .. } | Verb::Guest => {}
            Verb::Stop => {
                self.queue.clear();
                self.abort_approvals("the runner stops");
                self.cancel_turn(now);
                self.out.push(Output::CloseInput);
            }
        }
    }

    fn inject(&mut self, number: VerbNumber, text: String) {
        let result = if self.queue.len() < INJECTED_MAX {
            let is_queued = self.turn.is_some();
            self.queue.push_back(QueuedPrompt { batch: None, text });
            Ok(json!({"queued": is_queued}))
        } else {
            Err("too many texts wait for the end of the turn".to_string())
        };
        self.answer(number, result);
        self.next_turn();
    }

    // ---- lines

    fn on_bytes(&mut self, now: Now, bytes: &[u8]) {
        let mut whole = Vec::new();
        let before = self.lines.oversized;
        self.lines.push(bytes, |line| whole.push(line.to_vec()));
        if self.lines.oversized > before {
            self.warn("the agent wrote a line of more than 16 MiB; only its head is read");
        }
        for line in whole {
            self.on_line(now, &line);
        }
    }

    fn on_line(&mut self, now: Now, line: &[u8]) {
        let documents = reader::read_line(line);
        if documents.is_empty()
            && !line.iter().all(u8::is_ascii_whitespace)
            && !std::mem::replace(&mut self.told_of_other_lines, true)
        {
            self.warn("the agent wrote a line that is not a JSON object; such lines are skipped");
        }
        for document in documents {
            if document.damage != Damage::None && !std::mem::replace(&mut self.told_of_damage, true)
            {
                self.warn("the agent wrote a damaged line; of such lines counts what is readable");
            }
            self.on_document(now, document, line);
        }
    }

    fn on_document(&mut self, now: Now, document: Document, line: &[u8]) {
        let damage = document.damage;
        match Frame::read(document) {
            Some(Frame::Request { id, method, params }) if method == ASK => {
                let damage = damage.max(reader::damage_of(line));
                self.on_ask(now, id, &params, damage);
            }
            Some(Frame::Request { id, method, .. }) => self.on_other_request(&id, &method),
            Some(Frame::Notification { method, params }) if method == "session/update" => {
                // An agent may tell of other sessions of its own, for example of subagents.
                let is_other = params
                    .get("sessionId")
                    .and_then(Value::as_str)
                    .is_some_and(|id| id != self.session);
                if !is_other || self.session.is_empty() {
                    self.on_update(params.get("update").unwrap_or(&Value::Null));
                }
            }
            Some(Frame::Notification { method, .. }) if method == ASK => {
                self.on_unanswerable(now);
            }
            Some(Frame::Notification { .. }) | None => {}
            Some(Frame::Reply { id, result }) => self.on_any_reply(now, id, result, damage),
        }
    }

    /// A reply, whole or not. One that does not say whose it is ends the only request that waits,
    /// as failed: nobody else can have it, and it would wait for ever.
    fn on_any_reply(
        &mut self,
        now: Now,
        id: Option<Value>,
        result: Result<Value, RpcError>,
        damage: Damage,
    ) {
        let is_nobodys = id.is_none() && (result.is_err() || damage != Damage::None);
        let request = match self.requests.close(id.as_ref()) {
            None if is_nobodys => self.requests.close_only(),
            found => found,
        };
        let Some(request) = request else { return };
        let result = result.and_then(|reply| match damage {
            _ if is_nobodys => Err(RpcError::unreadable()),
            Damage::Broken if !request.is_legible(&reply) => Err(RpcError::unreadable()),
            _ => Ok(reply),
        });
        self.on_reply(now, request, result);
    }

    fn on_reply(&mut self, now: Now, request: Request, result: Result<Value, RpcError>) {
        match request {
            Request::Initialize => self.on_initialized(now, result),
            Request::New | Request::Load | Request::Resume => {
                self.on_opened(now, request, result);
            }
            Request::SetMode(mode) => self.on_mode_set(&mode, result),
            Request::Prompt => self.on_turn_over(result),
        }
    }

    // ---- end and time

    fn on_closed(&mut self) {
        self.stage = Stage::Over;
        self.deadline = None;
        self.requests.forget();
        self.approvals.forget();
        self.turn = None;
        self.queue.clear();
        for verb in self.cancel.take().into_iter().flat_map(|cancel| cancel.verbs) {
            self.answer(verb, Err("the provider ended".into()));
        }
    }

    fn on_wake(&mut self, now: Now) {
        if self.deadline.is_some_and(|at| at <= now.tick) && self.stage == Stage::Starting {
            let open = self.requests.first().map(Request::name).unwrap_or_default();
            self.fail_open(
                format!("the agent did not answer ({open}) within {} s", OPEN_TIMEOUT.as_secs()),
                false,
            );
        }
        self.deny_late(now);
        let late = self.cancel.take_if(|cancel| cancel.deadline <= now.tick);
        for verb in late.into_iter().flat_map(|cancel| cancel.verbs) {
            let seconds = CANCEL_TIMEOUT.as_secs();
            self.answer(verb, Err(format!("the agent did not end its turn within {seconds} s")));
        }
    }
}

impl Session for AcpSession {
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Bytes(bytes) => self.on_bytes(now, &bytes),
            Input::Closed => self.on_closed(),
            // Nothing of this is asked for.
            Input::LastWords(_)
            | Input::Errors(_)
            | Input::ProcessStarted { .. }
            | Input::FileAppended(_)
            | Input::CaughtUp
            | Input::FileReset
            | Input::FileChanged { .. }
            | Input::ScreenChanged
            | Input::ScreenCaptured(_)
            | Input::TerminalFailed(_)
            | Input::SocketWritten { .. }
            | Input::SocketLine(_)
            | Input::Connected
            | Input::Disconnected(_)
            | Input::Text(_)
            | Input::ForegroundEnded(_) => {}
            Input::Verb(number, verb) => self.on_verb(now, number, verb),
            Input::Wake => self.on_wake(now),
        }
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Tick> {
        let cancel = self.cancel.as_ref().map(|cancel| cancel.deadline);
        sooner(sooner(self.deadline, self.approvals.next_deadline()), cancel)
    }
}
