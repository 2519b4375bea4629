//! A session over its standard streams, one JSON object a line: `claude -p` stays until its input
//! is closed, tells which of our lines it has taken by their `uuid`, and asks for permissions by
//! messages.
//!
//! A line that is told as taken may still be missing on disk when the program is killed; so after a
//! restart the transcript decides, and what stands there unanswered is never sent again but
//! followed by a word to go on.

mod lines;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::permission::{Answer, Ask};
use super::sanitize::{escape_mentions, escape_prefix};
use super::transcript::{self, Evidence, LINE_BYTES_MAX};
use crate::core::ids::{BatchNumber, Ticket, VerbNumber};
use crate::core::limits::APPROVALS_MAX;
use crate::core::session::{
    Decision, Delivery, DeliveryOutcome, Input, OpenMode, Opened, Output, Resume, Session,
    SessionEvent, Verb,
};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::lines::Lines;
use crate::provider::{SessionSettings, Start};

/// `initialize` is answered 0.25 s after the launch; a busy machine may take longer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A turn must end this long after an interrupt.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A summary may take this long.
const CONTEXT_COMMAND_TIMEOUT: Duration = Duration::from_secs(600);
/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;

/// Leads what others than the user say.
const OTHERS: &str = "[agent-relay] Not from your user: another agent or a system says this.";

/// A text that waits for its turn.
#[derive(Debug)]
struct Waiting {
    delivery: Option<Delivery>,
    /// Who is told that it arrived, where it is no parcel.
    verb: Option<VerbNumber>,
    text: String,
}

/// A line of ours that is not over yet.
#[derive(Debug)]
struct SentLine {
    delivery: Option<Delivery>,
    verb: Option<VerbNumber>,
    /// The program has begun with it.
    started: bool,
}

#[derive(Debug, Default)]
struct Turn {
    number: u64,
    batch: Option<BatchNumber>,
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
struct PendingApproval {
    request: String,
    ask: Ask,
    deadline: Tick,
}

#[derive(Debug, PartialEq)]
enum ContextCommand {
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
    fates: Option<Vec<DeliveryOutcome>>,
    open: bool,
    over: bool,
    session: String,
    version: String,
    model: Option<String>,
    window: u64,
    tokens: u64,
    sent: BTreeMap<String, SentLine>,
    queue: VecDeque<Waiting>,
    turn: Option<Turn>,
    turns: u64,
    numbers: u64,
    held: BTreeMap<String, PendingApproval>,
    approvals: u64,
    interrupting: Option<(Vec<VerbNumber>, Tick)>,
    /// A compaction or a fresh start that waits or is under way.
    context_command: Option<(VerbNumber, ContextCommand, Tick, bool)>,
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
            context_command: None,
            outcome: None,
            background: BTreeMap::new(),
        }
    }

    fn signal(&mut self, signal: SessionEvent) {
        self.out.push(Output::Event(signal));
    }

    fn note(&mut self, warn: bool, text: impl Into<String>) {
        self.signal(SessionEvent::Log { warn, text: text.into() });
    }

    fn write(&mut self, value: &Value) {
        self.out.push(Output::Write(format!("{value}\n").into_bytes()));
    }

    fn control(&mut self, request: Value) {
        self.numbers += 1;
        let line = json!({"type": "control_request", "request_id": format!("relay-{}", self.numbers), "request": request});
        self.write(&line);
    }

    fn answer(&mut self, verb: VerbNumber, result: Result<Value, String>) {
        self.signal(SessionEvent::Answered { verb, result });
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: VerbNumber, verb: Verb) {
        match verb {
            Verb::Open { resume } => self.on_open(now, resume),
            Verb::Deliver(delivery) => {
                // There is one way in, and it is the user's: what others say is marked as theirs.
                let text = if delivery.person {
                    escape_mentions(&delivery.text)
                } else {
                    format!("{OTHERS}\n\n{}", escape_mentions(&delivery.text))
                };
                let urgent = delivery.urgent;
                self.queue.push_back(Waiting { delivery: Some(delivery), verb: None, text });
                self.next_line(urgent);
            }
            Verb::Inject { text, person } => {
                if self.queue.iter().filter(|waiting| waiting.verb.is_some()).count()
                    >= INJECTED_MAX
                {
                    return self
                        .answer(number, Err("too many texts wait for the end of the turn".into()));
                }
                let text = if person {
                    escape_prefix(&text)
                } else {
                    format!("{OTHERS}\n\n{}", escape_mentions(&text))
                };
                self.queue.push_back(Waiting { delivery: None, verb: Some(number), text });
                self.next_line(false);
            }
            Verb::Interrupt => {
                if self.turn.is_some() {
                    self.interrupt(now, Some(number))
                } else {
                    // SentLine while idle it would end what works in the background.
                    self.answer(number, Ok(json!({"wasRunning": false})))
                }
            }
            Verb::Compact { instructions } => {
                self.queue_context_command(now, number, ContextCommand::Compact { instructions })
            }
            Verb::Clear => self.queue_context_command(now, number, ContextCommand::Clear),
            Verb::Decide { approval, decision, reason, answers } => {
                let result = match self
                    .held
                    .get(&approval)
                    .map(|held| held.ask.objection(decision, answers.as_ref()))
                {
                    None => Err(format!(
                        "no approval {approval} is open; it may have been answered or withdrawn"
                    )),
                    Some(Some(objection)) => Err(objection),
                    Some(None) => {
                        self.decide(
                            &approval,
                            decision,
                            reason.as_deref(),
                            answers.as_ref(),
                            "decided",
                        );
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
            Verb::Hook { ticket, .. } if ticket != Ticket::NOBODY => {
                self.signal(SessionEvent::HookAnswer { ticket, answer: None })
            }
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
            None if !traces.is_empty() => {
                self.fates = Some(vec![DeliveryOutcome::Unseen; traces.len()])
            }
            _ => {}
        }
    }

    /// Opened once the program answers and the record is read.
    fn open_if_ready(&mut self) {
        if self.open || self.over || !self.initialized || self.evidence.is_some() {
            return;
        }
        let how = match self.fates.take() {
            Some(fates) => OpenMode::Loaded(fates),
            None if self.start.resumes => OpenMode::Resumed,
            None => OpenMode::New,
        };
        self.open = true;
        self.opening = None;
        self.out.push(Output::Unfollow);
        let agent = format!("Claude Code {}", self.version).trim().to_string();
        let (session, model) = (self.session.clone(), self.model.clone());
        self.signal(SessionEvent::Opened(Opened {
            session,
            how,
            agent,
            model,
            has_evidence: true,
        }));
        self.signal(SessionEvent::Fact {
            name: "transport",
            value: json!("stream: no terminal to attach to"),
        });
        self.next_line(false);
    }

    /// The next text goes in: a new turn when none runs, or at once where it is urgent.
    fn next_line(&mut self, urgent: bool) {
        let free = self.turn.is_none()
            && self.sent.is_empty()
            && self.context_command.as_ref().is_none_or(|(.., begun)| !begun);
        if !self.open || self.over || !(free || urgent) {
            return;
        }
        let at = if urgent {
            self.queue.iter().position(|waiting| {
                waiting.delivery.as_ref().is_some_and(|delivery| delivery.urgent)
            })
        } else {
            Some(0)
        };
        let Some(Waiting { delivery, verb, text }) = at.and_then(|at| self.queue.remove(at)) else {
            return;
        };
        let uuid = match &delivery {
            Some(delivery) => delivery.key.clone(),
            None => self.fresh_uuid(),
        };
        self.user_line(&uuid, &text);
        self.sent.insert(uuid, SentLine { delivery, verb, started: false });
        // Whose turn it is shows when the line is begun: the session may have begun one by itself
        // just now.
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
        self.signal(SessionEvent::Evidence(evidence.into()));
        self.signal(SessionEvent::TurnStarted);
    }

    fn interrupt(&mut self, now: Now, verb: Option<VerbNumber>) {
        let dropped: Vec<VerbNumber> =
            self.queue.iter().filter_map(|waiting| waiting.verb).collect();
        self.queue.retain(|waiting| waiting.verb.is_none());
        dropped
            .into_iter()
            .for_each(|verb| self.answer(verb, Err("an interrupt came before it".into())));
        self.control(json!({"subtype": "interrupt"}));
        let (verbs, _) =
            self.interrupting.get_or_insert((Vec::new(), now.tick + INTERRUPT_TIMEOUT));
        verbs.extend(verb);
    }

    // ---- compact and clear

    fn queue_context_command(&mut self, now: Now, number: VerbNumber, boundary: ContextCommand) {
        if self.context_command.is_some() {
            return self
                .answer(number, Err("a compaction or a fresh start is under way already".into()));
        }
        self.context_command = Some((number, boundary, now.tick + CONTEXT_COMMAND_TIMEOUT, false));
        self.start_context_command();
    }

    /// Begins when no turn runs.
    fn start_context_command(&mut self) {
        let free = self.open && self.turn.is_none() && self.sent.is_empty();
        let Some((_, boundary, _, begun)) =
            self.context_command.as_mut().filter(|(.., begun)| free && !begun)
        else {
            return;
        };
        *begun = true;
        let (text, moment) = match boundary {
            ContextCommand::Compact { instructions: Some(words) } => (
                format!("/compact {}", words.split_whitespace().collect::<Vec<_>>().join(" ")),
                "compacting",
            ),
            ContextCommand::Compact { instructions: None } => {
                ("/compact".to_string(), "compacting")
            }
            ContextCommand::Clear => ("/clear".to_string(), "clearing-context"),
        };
        self.outcome = None;
        let uuid = self.fresh_uuid();
        self.user_line(&uuid, &text);
        self.sent.insert(uuid, SentLine { delivery: None, verb: None, started: false });
        self.begin_turn(moment);
        if let Some(turn) = &mut self.turn {
            turn.local = true;
        }
        self.signal(SessionEvent::Timeline(moment));
    }

    fn finish_context_command(&mut self, said: &str) {
        let Some((number, boundary, ..)) = self.context_command.take_if(|(.., begun)| *begun)
        else {
            return;
        };
        let (moment, what) = match boundary {
            ContextCommand::Compact { .. } => ("compacted", "compact"),
            ContextCommand::Clear => ("context-cleared", "clear"),
        };
        let result = self.outcome.take().unwrap_or_else(|| {
            Err(if said.is_empty() { format!("the session did not {what}") } else { said.into() })
        });
        if result.is_ok() {
            self.signal(SessionEvent::Timeline(moment));
        }
        self.answer(
            number,
            result.map(|()| json!({"method": format!("/{what}"), "session": self.session})),
        );
    }

    // ---- approvals

    fn decide(
        &mut self,
        id: &str,
        decision: Decision,
        reason: Option<&str>,
        answers: Option<&Value>,
        why: &str,
    ) {
        let Some(held) = self.held.remove(id) else { return };
        let answer = held.ask.answer(decision, reason, answers);
        self.respond(&held.request, &answer);
        self.signal(SessionEvent::ApprovalClosed { id: id.to_string(), reason: why.to_string() });
    }

    fn respond(&mut self, request: &str, answer: &Answer) {
        let response =
            json!({"subtype": "success", "request_id": request, "response": answer.decision()});
        self.write(&json!({"type": "control_response", "response": response}));
    }

    fn on_ask(&mut self, now: Now, request: &str, record: &Value) {
        let ask = Ask::read(record, "input");
        if self.settings.rejects_all() && !ask.is_question() {
            let message =
                "This agent is read-only: its runner allows no tool that asks.".to_string();
            return self.respond(request, &Answer::Deny { message, interrupt: false });
        }
        if self.held.len() >= APPROVALS_MAX {
            let message = "Too many questions wait for an answer.".to_string();
            return self.respond(request, &Answer::Deny { message, interrupt: false });
        }
        self.approvals += 1;
        let id = format!("{}-{}", self.start.nonce.get(..8).unwrap_or("approval"), self.approvals);
        self.signal(SessionEvent::ApprovalOpened(ask.view(&id)));
        let deadline = now.tick + self.settings.approval_timeout;
        self.held.insert(id, PendingApproval { request: request.into(), ask, deadline });
    }

    fn fail_open(&mut self, reason: String, permanent: bool) {
        if !self.open && !self.over {
            self.over = true;
            self.opening = None;
            self.signal(SessionEvent::OpenFailed { reason, permanent });
        }
    }

    fn go_on(&mut self) {
        self.start_context_command();
        self.next_line(false);
    }

    fn on_closed(&mut self) {
        self.fail_open("the session ended before it was ready".into(), false);
        self.over = true;
        let verbs = self.interrupting.take().map(|(verbs, _)| verbs).unwrap_or_default();
        let boundary = self.context_command.take().map(|(verb, ..)| verb);
        for verb in verbs.into_iter().chain(boundary) {
            self.answer(verb, Err("the provider ended".into()));
        }
    }

    fn on_wake(&mut self, now: Now) {
        if self.opening.is_some_and(|at| at <= now.tick) {
            self.fail_open(
                format!("the session did not answer within {} s", OPEN_TIMEOUT.as_secs()),
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
            self.decide(
                &id,
                Decision::Deny,
                Some("Nobody answered in time."),
                None,
                "nobody answered in time",
            );
        }
        if let Some((verbs, _)) = self.interrupting.take_if(|(_, at)| *at <= now.tick) {
            for verb in verbs {
                self.answer(
                    verb,
                    Err(format!(
                        "the session did not end its turn within {} s",
                        INTERRUPT_TIMEOUT.as_secs()
                    )),
                );
            }
        }
        if let Some((verb, ..)) = self.context_command.take_if(|(_, _, at, _)| *at <= now.tick) {
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
            Input::FileAppended(bytes) => self.on_record(&bytes),
            Input::CaughtUp => {
                if let (false, Some(evidence)) = (self.open, self.evidence.take()) {
                    // The program may not have answered yet: the fate waits for it.
                    self.fates = Some(evidence.fates());
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
        }
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Tick> {
        let held = self.held.values().map(|held| held.deadline).min();
        let asked = sooner(
            self.interrupting.as_ref().map(|(_, at)| *at),
            self.context_command.as_ref().map(|(_, _, at, _)| *at),
        );
        sooner(sooner(self.opening, held), asked)
    }
}
