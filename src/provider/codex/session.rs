//! A thread of an app server as a pure machine: texts of a WebSocket in, texts out, session events
//! for the agent.
//!
//! # Contract of [`CodexSession`]
//!
//! One input in, its outputs out, in the order in which they take effect. Nothing that comes in is
//! trusted: what is no JSON object, of an unknown type or about a foreign thread is ignored.
//!
//! **In.** [`Verb::Open`] first; then verbs, [`Input::Connected`] or [`Input::Disconnected`] as the
//! answer to each `Connect`, texts of the connection, and [`Input::Disconnected`] once when it is
//! lost. [`Input::Errors`] tells the port of a server that chooses one, and [`Input::LastWords`]
//! why it does not listen. [`Input::Closed`] is the last one. Bytes, files, screens and other
//! sockets are ignored.
//!
//! **Out.** To the agent: `Opened` or `OpenFailed` once; after `Opened`, `TurnStarted` and
//! `TurnEnded` in turns, whoever began them; for each [`Verb::Deliver`] one `Accepted` with a
//! `TurnEnded`, or one `Refused`, unless the server ends before; for each other verb that wants an
//! answer one `Answered`. To the server: `SendText` with one whole frame while connected, and
//! [`Output::CloseInput`] (for a server: the signal to end) at [`Verb::Stop`], once no turn runs.
//!
//! **The caller** gives every input with a clock that never goes back, calls with [`Input::Wake`]
//! at [`Session::next_deadline`], and carries out the outputs in order.
//!
//! # Parts
//!
//! | part | decides |
//! | --- | --- |
//! | `link` | connecting, and what was missed while the connection was away |
//! | `opening` | which thread goes on, and what its record says of deliveries |
//! | `input` | which text goes in when, as a turn of its own or into the running one |
//! | `turn` | what begins and ends a turn, and what its answer is |
//! | `notices` | what each notification means |
//! | `approvals` | what the server asks, and who has answered |
//! | `context` | compactions and fresh threads |
//! | `beside` | what works beside the turn: other threads, commands, the window of a person |

mod approvals;
mod beside;
mod context;
mod input;
mod link;
mod notices;
mod opening;
mod turn;

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

use self::approvals::{Approvals, Verdict};
use self::beside::{Beside, Window};
use self::context::{ContextCommand, PendingContext};
use self::input::{Sent, Waiting};
use self::link::Link;
use self::opening::Opening;
use self::turn::{PendingInterrupt, Turn};
use crate::core::ids::{Ticket, VerbNumber};
use crate::core::session::{Input, Output, Session, SessionEvent, Verb};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::codex::banner::Banner;
use crate::provider::jsonrpc::OpenRequests;
use crate::provider::settings::SessionSettings;
use crate::wire::control::LogLevel;

/// Where a server was told to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listens {
    /// At a unix socket, in a folder that is closed to others.
    Socket {
        /// Of the socket.
        path: String,
        /// A person wants it so: there is no other way.
        is_chosen: bool,
    },
    /// At a port of its own choice, which its banner tells.
    Port {
        /// Where the token stands that it wants.
        token_file: String,
    },
}

/// What the machine knows of its own start.
#[derive(Debug, Clone)]
pub struct ServerStart {
    /// Where the server listens.
    pub listens: Listens,
    /// Settings of the thread, as they are said when it is begun or loaded.
    pub thread: Map<String, Value>,
    /// What the thread is called, for people.
    pub name: String,
    /// Fresh UUID of this start.
    pub nonce: String,
    /// The server's program, and what it needs besides, for whoever opens a window.
    pub program: String,
    /// Its own variables.
    pub env: BTreeMap<String, String>,
    /// A person wants the server's own window in the terminal that we were started in.
    pub has_window: bool,
}

/// A request of ours that waits for its reply.
#[derive(Debug, Clone, PartialEq)]
enum Request {
    Initialize,
    Account,
    /// Begin a thread at the start.
    Begin,
    /// Load the thread at the start.
    Load,
    /// Its record, page by page.
    History,
    /// Take up the thread again, after the connection or the thread was away.
    Rejoin,
    /// The same for the thread of a subagent.
    Child(String),
    /// Which commands run.
    Terminals,
    /// What became of the turn meanwhile.
    Reconcile,
    /// What became of texts that a turn did not take.
    Lookup,
    /// A text as a turn of its own, or into the running turn; by its id.
    Turn(String),
    Steer(String),
    Interrupt,
    Compact,
    /// Begin a thread instead of this one.
    Fresh,
    /// Whether the turn runs.
    Probe(VerbNumber),
    /// End the commands that a turn left behind.
    Clean(VerbNumber),
    /// Its reply says nothing.
    Told,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Before `Open`.
    Fresh,
    Opening,
    Ready,
    /// It cannot be opened, or the server is gone.
    Over,
}

/// The session as a machine: see the module.
pub struct CodexSession {
    settings: SessionSettings,
    start: ServerStart,
    stage: Stage,
    out: Vec<Output>,
    link: Link,
    banner: Banner,
    requests: OpenRequests<Request>,
    opening: Opening,
    /// Id of the thread.
    thread: String,
    /// The server has it in memory, and we hear of it.
    is_loaded: bool,
    turn: Option<Turn>,
    /// Turns that ended lately, with their numbers: some of their items come later.
    ended: VecDeque<(String, u64)>,
    /// Turns that have begun.
    turns: u64,
    queue: VecDeque<Waiting>,
    /// Texts that were sent and whose arrival is not known yet, by their ids.
    sent: BTreeMap<String, Sent>,
    /// Ids of our own that were given out.
    numbers: u64,
    /// When texts that could not be sent are tried again.
    retry_at: Option<Tick>,
    approvals: Approvals,
    interrupt: Option<PendingInterrupt>,
    context: Option<PendingContext>,
    beside: Beside,
    window: Window,
    /// A stop was asked for: the server is told by then at the latest.
    stop_at: Option<Tick>,
    is_stopping: bool,
    /// What was told of the session, so that only changes are told.
    facts: BTreeMap<&'static str, Value>,
}

impl CodexSession {
    /// A session that waits for [`Verb::Open`].
    pub fn new(settings: SessionSettings, start: ServerStart) -> CodexSession {
        CodexSession {
            settings,
            start,
            stage: Stage::Fresh,
            out: Vec::new(),
            link: Link::default(),
            banner: Banner::default(),
            requests: OpenRequests::default(),
            opening: Opening::default(),
            thread: String::new(),
            is_loaded: false,
            turn: None,
            ended: VecDeque::new(),
            turns: 0,
            queue: VecDeque::new(),
            sent: BTreeMap::new(),
            numbers: 0,
            retry_at: None,
            approvals: Approvals::default(),
            interrupt: None,
            context: None,
            beside: Beside::default(),
            window: Window::default(),
            stop_at: None,
            is_stopping: false,
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

    /// A frame for the server; while there is no connection nobody would get it.
    fn send(&mut self, frame: &Value) {
        if self.link.is_up {
            self.out.push(Output::SendText(frame.to_string()));
        }
    }

    fn request(&mut self, request: Request, method: &str, params: Value) {
        let frame = self.requests.open(request, method, params);
        self.send(&frame);
    }

    /// Something about the session that people want to see, told when it changes.
    fn fact(&mut self, name: &'static str, value: Value) {
        if self.facts.get(name) != Some(&value) {
            self.facts.insert(name, value.clone());
            self.emit(SessionEvent::Fact { name, value });
        }
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: VerbNumber, verb: Verb) {
        match verb {
            Verb::Open { resume } => self.on_open(now, resume),
            Verb::Deliver(delivery) => self.deliver(delivery),
            Verb::Inject { text, .. } => self.inject(number, text),
            Verb::Interrupt => self.on_interrupt(now, number),
            Verb::Compact { .. } => self.on_context(now, number, ContextCommand::Compact),
            Verb::Clear => self.on_context(now, number, ContextCommand::Clear),
            Verb::Decide { approval, decision, answers, .. } => {
                let result =
                    self.try_decide(&approval, Verdict { decision, answers: answers.as_ref() });
                self.answer(number, result);
            }
            Verb::Probe => self.probe(number),
            // It has no hooks of ours.
            Verb::Hook { ticket, .. } if ticket != Ticket::NOBODY => {
                self.emit(SessionEvent::HookAnswer { ticket, answer: None })
            }
            Verb::Hook { .. } | Verb::HookGone { .. } => {}
            Verb::Guest => self.window.has_guests = true,
            Verb::Stop => self.on_stop(now),
        }
    }

    // ---- end and time

    fn on_closed(&mut self) {
        self.fail_at_end();
        self.stage = Stage::Over;
        self.link = Link::default();
        self.retry_at = None;
        self.stop_at = None;
        self.approvals.forget();
        self.forget_requests("the provider ended");
        let context = self.context.take().map(|pending| pending.verb);
        let interrupts = self.interrupt.take().into_iter().flat_map(|pending| pending.verbs);
        for verb in interrupts.chain(context) {
            self.answer(verb, Err("the provider ended".into()));
        }
    }

    fn on_wake(&mut self, now: Now) {
        self.connect_if_due(now);
        self.give_up_opening(now);
        self.deny_late(now);
        self.give_up_interrupt(now);
        self.give_up_context(now);
        if self.stop_at.is_some_and(|at| at <= now.tick) {
            self.close();
        }
        if self.retry_at.is_some_and(|at| at <= now.tick) {
            self.retry_at = None;
            self.next_text();
        }
    }

    /// No new turns; the running one is ended first, since the server would wait for its end.
    fn on_stop(&mut self, now: Now) {
        self.is_stopping = true;
        self.queue.clear();
        let runs = self.turn.as_ref().is_some_and(|turn| turn.is_known()) && self.link.is_up;
        if !runs {
            return self.close();
        }
        self.stop_at = Some(now.tick + turn::STOP_TIMEOUT);
        self.send_interrupt();
    }

    fn close(&mut self) {
        self.stop_at = None;
        self.out.push(Output::CloseInput);
    }
}

impl Session for CodexSession {
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Connected => self.on_connected(now),
            Input::Disconnected(reason) => self.on_disconnected(now, &reason),
            Input::Text(text) => self.on_text(now, &text),
            Input::Errors(bytes) => self.on_errors(&bytes),
            Input::LastWords(words) => self.opening.last_words = words,
            Input::ForegroundEnded(code) => self.on_window_closed(now, code),
            Input::Closed => self.on_closed(),
            Input::Verb(number, verb) => self.on_verb(now, number, verb),
            Input::Wake => self.on_wake(now),
            // Nothing of this is asked for.
            Input::Bytes(_)
            | Input::ProcessStarted { .. }
            | Input::FileAppended(_)
            | Input::CaughtUp
            | Input::FileReset
            | Input::FileChanged { .. }
            | Input::ScreenChanged
            | Input::ScreenCaptured(_)
            | Input::TerminalFailed(_)
            | Input::SocketWritten { .. }
            | Input::SocketLine(_) => {}
        }
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Tick> {
        let interrupt = self.interrupt.as_ref().map(|pending| pending.deadline);
        let context = self.context.as_ref().map(|pending| pending.deadline);
        let approvals = self.approvals.next_deadline();
        [
            self.link.retry_at,
            self.opening.deadline,
            self.retry_at,
            self.stop_at,
            approvals,
            interrupt,
            context,
        ]
        .into_iter()
        .fold(None, sooner)
    }
}

/// A text of the user, as the server wants it.
fn user_text(text: &str) -> Value {
    json!([{"type": "text", "text": text, "text_elements": []}])
}
