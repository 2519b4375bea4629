//! A session over its standard streams, one JSON object a line: `claude -p` stays until its input
//! is closed, tells which of our lines it has taken by their `uuid`, and asks for permissions by
//! messages.
//!
//! A line that is told as taken may still be missing on disk when the program is killed; so after a
//! restart the transcript decides, and what stands there unanswered is never sent again but
//! followed by a word to go on.
//!
//! # Contract of [`StreamSession`]
//!
//! A pure machine: one input in, its outputs out, in the order in which they take effect. Nothing
//! that comes in is trusted; lines that are no JSON object or of an unknown type are ignored. Of a
//! damaged line counts what can be read: it may end a turn, and asks for no more than this once.
//!
//! **In.** [`Verb::Open`] first; then verbs, and what the program writes as [`Input::Bytes`], cut
//! anywhere. The transcript comes as [`Input::FileAppended`], [`Input::FileReset`] and
//! [`Input::CaughtUp`] after a `Follow`. [`Input::Closed`] is the last one. Screens, sockets and
//! other files are ignored: nothing of that is asked for.
//!
//! **Out.** To the agent: `Opened` or `OpenFailed` once; after `Opened`, `TurnStarted` and
//! `TurnEnded` in turns; for each [`Verb::Deliver`] one `Accepted` with a later `TurnEnded`, unless
//! the program ends before; for each other verb that wants an answer one `Answered`, after an
//! injected text only when the program has begun with it. To the program: [`Output::Write`] with
//! one whole line, and [`Output::CloseInput`] at [`Verb::Stop`]. To files: `Follow` while the
//! record has to be searched, then `Unfollow`.
//!
//! **The caller** gives every input with a clock that never goes back, calls with [`Input::Wake`]
//! at [`Session::next_deadline`], carries out the outputs in order, and gives `CaughtUp` once the
//! followed file was read to its end.
//!
//! # Parts
//!
//! | part | decides |
//! | --- | --- |
//! | `input` | which text goes in when, as a line under which id; interrupts |
//! | `lines` | what each line of the program means |
//! | `turn_end` | how a turn has ended, and what its answer is |
//! | `approvals` | what is asked, and who has answered |
//! | `context` | compactions and fresh starts that wait or are under way |

mod approvals;
mod context;
mod input;
mod lines;
mod turn_end;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use self::approvals::{Approvals, Verdict};
use self::context::{ContextCommand, PendingContext};
use self::input::{PendingInterrupt, SentLine, Waiting};
use super::refusal::refusal;
use super::transcript::{self, Evidence, LINE_BYTES_MAX};
use crate::core::ids::{BatchNumber, Ticket, VerbNumber};
use crate::core::limits::REPLY_BODY_BYTES_MAX;
use crate::core::session::{
    DeliveryOutcome, Input, Opened, Output, Resume, Session, SessionEvent, StartFault, Verb,
};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::lines::Lines;
use crate::provider::text::push_bounded;
use crate::provider::{SessionSettings, Start};
use crate::wire::control::LogLevel;

/// `initialize` is answered 0.25 s after the launch; a busy machine may take longer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// A turn that runs.
#[derive(Debug, Default)]
struct Turn {
    number: u64,
    batch: Option<BatchNumber>,
    /// Text of the last message, and of all.
    last: String,
    whole: String,
    /// Bytes of the last message that were shown as narration.
    told: usize,
    /// Id of the last message.
    message: String,
    error: Option<String>,
    /// It is a context command of ours, not a conversation.
    is_command: bool,
    /// The API is being asked again.
    retries: bool,
    /// `uuid` of the line that it began with.
    opener: Option<String>,
    /// A line of it could not be read: it may have been its end.
    has_lost_line: bool,
    /// Nobody can answer what it asks.
    unanswerable: bool,
}

impl Turn {
    fn begin_message(&mut self) {
        self.last.clear();
        self.told = 0;
    }

    fn say(&mut self, text: &str) {
        for place in [&mut self.last, &mut self.whole] {
            let between = if place.is_empty() { "" } else { "\n" };
            push_bounded(place, between, REPLY_BODY_BYTES_MAX);
            push_bounded(place, text, REPLY_BODY_BYTES_MAX);
        }
    }
}

/// The session as a machine: see the module.
pub struct StreamSession {
    settings: SessionSettings,
    start: Start,
    lines: Lines,
    record: Lines,
    out: Vec<Output>,
    /// When the start has failed, while it is under way.
    opening: Option<Tick>,
    initialized: bool,
    /// What the record says so far, while it is read.
    evidence: Option<Evidence>,
    /// What it has said.
    outcomes: Option<Vec<DeliveryOutcome>>,
    open: bool,
    over: bool,
    session: String,
    version: String,
    /// What it has written to its standard error.
    last_words: String,
    model: Option<String>,
    /// Size of the context window, in tokens; 0: not known yet.
    window: u64,
    /// Tokens in the context after the last answer; 0: that was told.
    tokens: u64,
    /// Lines of ours that are not over, by `uuid`.
    sent: BTreeMap<String, SentLine>,
    queue: VecDeque<Waiting>,
    turn: Option<Turn>,
    /// Turns that have begun.
    turns: u64,
    /// Ids of our own that were given out.
    numbers: u64,
    approvals: Approvals,
    interrupt: Option<PendingInterrupt>,
    /// A compaction or a fresh start that waits or is under way.
    context: Option<PendingContext>,
    /// What the program has told of its effect.
    context_result: Option<Result<(), String>>,
    /// What works beside the turn: its kind by its id.
    background: BTreeMap<String, &'static str>,
    /// That the program writes damaged lines was told.
    told_of_damage: bool,
    /// Id of the last word on the end of a turn.
    last_result: String,
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
            outcomes: None,
            open: false,
            over: false,
            version: String::new(),
            last_words: String::new(),
            model: None,
            window: 0,
            tokens: 0,
            sent: BTreeMap::new(),
            queue: VecDeque::new(),
            turn: None,
            turns: 0,
            numbers: 0,
            approvals: Approvals::default(),
            interrupt: None,
            context: None,
            context_result: None,
            background: BTreeMap::new(),
            told_of_damage: false,
            last_result: String::new(),
        }
    }

    // ---- outputs

    fn emit(&mut self, event: SessionEvent) {
        self.out.push(Output::Event(event));
    }

    fn info(&mut self, text: impl Into<String>) {
        self.emit(SessionEvent::Log { level: LogLevel::Info, text: text.into() });
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.emit(SessionEvent::Log { level: LogLevel::Warn, text: text.into() });
    }

    fn write(&mut self, value: &Value) {
        self.out.push(Output::Write(format!("{value}\n").into_bytes()));
    }

    fn control(&mut self, request: Value) {
        self.numbers += 1;
        let id = format!("relay-{}", self.numbers);
        self.write(&json!({"type": "control_request", "request_id": id, "request": request}));
    }

    fn answer(&mut self, verb: VerbNumber, result: Result<Value, String>) {
        self.emit(SessionEvent::Answered { verb, result });
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: VerbNumber, verb: Verb) {
        match verb {
            Verb::Open { resume } => self.on_open(now, resume),
            Verb::Deliver(delivery) => self.deliver(delivery),
            Verb::Inject { text, person } => self.inject(number, &text, person),
            Verb::Interrupt if self.turn.is_some() => self.interrupt(now, number),
            // Sent while idle it would end what works in the background.
            Verb::Interrupt => self.answer(number, Ok(json!({"wasRunning": false}))),
            Verb::Compact { instructions } => {
                self.queue_context_command(now, number, ContextCommand::Compact { instructions })
            }
            Verb::Clear => self.queue_context_command(now, number, ContextCommand::Clear),
            Verb::Decide { approval, decision, reason, answers } => {
                let verdict =
                    Verdict { decision, reason: reason.as_deref(), answers: answers.as_ref() };
                let result = self.try_decide(&approval, verdict);
                self.answer(number, result);
            }
            Verb::Probe => {
                let state = if self.turn.is_some() { "busy" } else { "idle" };
                self.answer(number, Ok(json!({"activity": state})));
            }
            // Permissions come as messages here; a hook that asks too has no answer from us.
            Verb::Hook { ticket, .. } if ticket != Ticket::NOBODY => {
                self.emit(SessionEvent::HookAnswer { ticket, answer: None })
            }
            Verb::Hook { .. } | Verb::HookGone { .. } | Verb::Guest => {}
            Verb::Stop => {
                self.queue.clear();
                self.out.push(Output::CloseInput);
            }
        }
    }

    fn on_open(&mut self, now: Now, resume: Option<Resume>) {
        self.opening = Some(now.tick + OPEN_TIMEOUT);
        self.control(json!({"subtype": "initialize", "hooks": null}));
        let unsettled = resume.map(|resume| resume.evidence_for).unwrap_or_default();
        match &self.start.transcript {
            Some(path) if !unsettled.is_empty() => {
                self.out.push(Output::Follow { path: path.clone(), whole: true });
                self.evidence = Some(Evidence::new(&unsettled));
            }
            // There is no record: nothing of it was ever written down.
            None if !unsettled.is_empty() && self.start.has_no_record() => {
                self.outcomes = Some(vec![DeliveryOutcome::Unseen; unsettled.len()])
            }
            _ => {}
        }
    }

    /// Opened once the program answers and the record is read.
    fn open_if_ready(&mut self) {
        if self.open || self.over || !self.initialized || self.evidence.is_some() {
            return;
        }
        let how = self.start.how(self.outcomes.take());
        self.open = true;
        self.opening = None;
        self.out.push(Output::Unfollow);
        let agent = format!("Claude Code {}", self.version).trim().to_string();
        let (session, model) = (self.session.clone(), self.model.clone());
        self.emit(SessionEvent::Opened(Opened { session, how, agent, model, has_evidence: true }));
        self.emit(SessionEvent::Fact {
            name: "transport",
            value: json!("stream: no terminal to attach to"),
        });
        self.out.extend(self.start.lost.iter().flat_map(|lost| lost.events()).map(Output::Event));
        self.next_line();
    }

    fn begin_turn(&mut self, evidence: &str) {
        if self.turn.is_some() {
            return;
        }
        self.turns += 1;
        self.turn = Some(Turn { number: self.turns, ..Default::default() });
        self.emit(SessionEvent::Evidence(evidence.into()));
        self.emit(SessionEvent::TurnStarted);
    }

    fn fail_open(&mut self, reason: String, fault: StartFault) {
        if !self.open && !self.over {
            self.over = true;
            self.opening = None;
            self.emit(SessionEvent::OpenFailed { reason, fault });
        }
    }

    fn go_on(&mut self) {
        self.start_context_command();
        self.next_line();
    }

    // ---- end and time

    fn on_closed(&mut self) {
        let (reason, fault) = refusal(&self.last_words).unwrap_or_else(|| {
            ("the session ended before it was ready".into(), StartFault::Passing)
        });
        self.fail_open(reason, fault);
        self.over = true;
        let interrupts = self.interrupt.take().into_iter().flat_map(|pending| pending.verbs);
        let context = self.context.take().map(|pending| pending.verb);
        for verb in interrupts.chain(context) {
            self.answer(verb, Err("the provider ended".into()));
        }
    }

    fn on_wake(&mut self, now: Now) {
        if self.opening.is_some_and(|at| at <= now.tick) {
            self.fail_open(
                format!("the session did not answer within {} s", OPEN_TIMEOUT.as_secs()),
                StartFault::Passing,
            );
        }
        self.deny_late(now);
        self.give_up_interrupt(now);
        self.give_up_context_command(now);
    }

    /// The record, read from its beginning.
    fn on_record(&mut self, bytes: &[u8]) {
        let Some(evidence) = &mut self.evidence else { return };
        self.record.push(bytes, |line| {
            transcript::read(line).iter().for_each(|entry| evidence.take(entry));
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
            Input::LastWords(words) => self.last_words = words,
            Input::Closed => self.on_closed(),
            Input::Verb(number, verb) => self.on_verb(now, number, verb),
            Input::Wake => self.on_wake(now),
            Input::FileAppended(bytes) => self.on_record(&bytes),
            Input::CaughtUp => {
                if let (false, Some(evidence)) = (self.open, self.evidence.take()) {
                    // The program may not have answered yet: what was found waits for it.
                    self.outcomes = Some(evidence.outcomes());
                    self.open_if_ready();
                }
            }
            Input::FileReset => self.record = Lines::up_to(LINE_BYTES_MAX),
            Input::ProcessStarted { .. }
            | Input::FileChanged { .. }
            | Input::ScreenChanged
            | Input::ScreenCaptured(_)
            | Input::TerminalFailed(_) => {}
            Input::SocketWritten { .. } | Input::SocketLine(_) => {}
            Input::Connected | Input::Disconnected(_) | Input::Text(_) => {}
            Input::ForegroundEnded(_) | Input::Errors(_) => {}
        }
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Tick> {
        let interrupt = self.interrupt.as_ref().map(|pending| pending.deadline);
        let context = self.context.as_ref().map(|pending| pending.deadline);
        let approvals = self.approvals.next_deadline();
        [self.opening, approvals, interrupt, context].into_iter().fold(None, sooner)
    }
}
