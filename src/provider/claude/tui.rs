//! A session in a terminal: ours (tmux), or the one that a person sits at.
//!
//! Nothing tells all: hooks say when a turn begins and ends, but not after Escape; the program's registry file says busy or
//! idle, a little late; the transcript proves what reached the model, a tenth of a second later still; the screen shows
//! dialogs and the input box. Here they are fused. Rules: a hook or the registry begins a turn; a hook ends it at once, the
//! registry and the screen together after a second; only transcript, prompt hook or receipts prove a delivery.

mod control;
mod hooks;
mod send;
mod turns;
mod witness;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use self::send::{Item, Sending, Sent};
use self::witness::Registry;
use super::permission::Ask;
use super::screen::{Dialog, ScreenState};
use super::transcript::{Evidence, LINE_BYTES_MAX};
use super::{TESTED, too_old};
use crate::core::ids::{BatchNumber, Ticket, VerbNumber};
use crate::core::session::{Decision, Fate, How, Input, Opened, Output, Resume, Session, Signal, TurnEnd, Verb};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::lines::Lines;
use crate::provider::{SessionSettings, Start};

/// The session must be ready by then.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A dialog that stands in the way of the start is told after this.
const DIALOG_TIME: Duration = Duration::from_secs(4);
/// A turn must end this long after an interrupt.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A summary may take this long.
const BOUNDARY_TIMEOUT: Duration = Duration::from_secs(600);
/// A boundary command that begins nothing within that time was not taken.
const BOUNDARY_START: Duration = Duration::from_secs(10);
/// A boundary that left no trace this long after the session went idle has failed.
const BOUNDARY_SILENCE: Duration = Duration::from_secs(4);
/// Registry and screen must agree on idle that long before they end a turn that no hook ended.
const IDLE_TIME: Duration = Duration::from_secs(1);
/// A turn that only a hook has told of is believed that much longer.
const HOOK_LAG: Duration = Duration::from_secs(2);
/// Pauses between looks at a screen that keeps changing.
const LOOK_PAUSE: Duration = Duration::from_millis(400);
/// A prompt that was withdrawn stands in the box again within that time.
const GIVEN_BACK_TIME: Duration = Duration::from_secs(3);
/// A dialog that only a person can answer is waited for so long at the start.
const PERSON_TIME: Duration = Duration::from_secs(600);
/// Prompts whose turns have ended that are remembered, to know a late hook of theirs.
const PROMPTS_MAX: usize = 8;
/// Calls of tools that are remembered, to know whose result comes.
const TOOLS_MAX: usize = 64;
/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;

/// A turn that runs.
#[derive(Debug, Default)]
struct Turn {
    number: u64,
    batch: Option<BatchNumber>,
    /// Wall clock of its begin, ms.
    began: i64,
    /// Text of the last message, and of all, as far as the transcript has them.
    last: String,
    whole: String,
    /// The transcript has the last message of it.
    answered: bool,
    /// Somebody pressed Escape.
    interrupted: bool,
    /// A compaction or a fresh start.
    local: bool,
    /// What the provider state was told as.
    state: &'static str,
    /// First line of the text of ours that it took, squeezed.
    ours: String,
    /// The model has said or done something.
    spoke: bool,
    /// A prompt began it that is not ours.
    foreign: bool,
    /// Id of its prompt, as soon as a hook or the transcript has told it.
    prompt_id: String,
}

/// How the last turn ended; evidence for its texts may come after it.
#[derive(Debug)]
struct Ended {
    end: TurnEnd,
    text: String,
    /// Wall clock, ms.
    at: i64,
}

#[derive(Debug)]
struct Held {
    ticket: Ticket,
    ask: Ask,
    event: String,
    /// Subagent that asks; empty: the session itself.
    agent: String,
    /// Wall clock, ms.
    at: i64,
    deadline: Tick,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Boundary {
    Compact,
    Clear,
}

/// A compaction or a fresh start that was asked for.
#[derive(Debug)]
struct Crossing {
    verb: VerbNumber,
    kind: Boundary,
    deadline: Tick,
    /// The command was submitted.
    begun: bool,
    /// The session is idle since, and nothing proves it.
    silent: Option<Tick>,
}

/// The machine.
pub struct TuiSession {
    settings: SessionSettings,
    start: Start,
    out: Vec<Output>,
    pid: u32,
    /// Wall clock of the program's begin, ms.
    born_at: i64,
    // ---- start
    opening: Option<Tick>,
    evidence: Option<Evidence>,
    fates: Option<Vec<Fate>>,
    open: bool,
    over: bool,
    dialog_since: Option<(Dialog, Tick)>,
    dialog_told: bool,
    left: Option<String>,
    // ---- who it is
    session: String,
    /// The id before, which the registry may still name for a moment.
    left_session: String,
    left_until: Option<Tick>,
    /// A hook has told of another session, which the registry does not name yet; whether it was there before.
    announced: Option<(String, bool)>,
    transcript: Option<String>,
    version: String,
    model: Option<String>,
    /// Use of the context, by the transcript, since it was told last.
    tokens: u64,
    has_status_line: bool,
    // ---- witnesses
    lines: Lines,
    registry: Option<Registry>,
    look: Option<ScreenState>,
    last_text: String,
    /// Which attempt to reach the API the screen shows.
    attempt: String,
    look_due: Option<Tick>,
    looking: bool,
    looked_at: Option<Tick>,
    idle_since: Option<Tick>,
    /// The registry says busy, perhaps only late; then it is looked at again.
    doubt: Option<Tick>,
    hooked: bool,
    // ---- turn
    turn: Option<Turn>,
    turns: u64,
    ended: Option<Ended>,
    /// Ids of the prompts whose turns have ended, newest last.
    over_prompts: VecDeque<String>,
    interrupting: Option<(Vec<VerbNumber>, Tick)>,
    crossing: Option<Crossing>,
    background: BTreeMap<String, &'static str>,
    /// Calls of tools, newest last: id, and name with input as a number.
    tools: VecDeque<(String, u64)>,
    // ---- texts
    queue: VecDeque<Item>,
    sending: Option<Sending>,
    sent: Vec<Sent>,
    posts: u64,
    socket_off: Option<String>,
    socket_pause: Option<Tick>,
    /// What delivery waits for.
    delivery: Option<String>,
    /// A paste of ours was left in the box.
    left_ours: bool,
    /// A paste of ours was never seen in the box; it may still appear there.
    unseen_paste: bool,
    drawn_at: Option<Tick>,
    /// The next picture tells whether an Enter was lost.
    check_enter: bool,
    /// The last turn ended without an answer: until then the box may hold its prompt again.
    given_back: Option<Tick>,
    /// A hook or the transcript has told something: proofs can come.
    heard: bool,
    /// First lines of what we put in, so that it is not mirrored as a person's prompt.
    ours: VecDeque<String>,
    // ---- approvals
    held: BTreeMap<String, Held>,
    /// What was asked until that time (ms) is answered, unless another question opens by then.
    answered: Option<(i64, Tick)>,
    /// One was decided by us while the session waited: its end is no answer to another.
    decided: bool,
    approvals: u64,
}

impl TuiSession {
    /// A session that waits for [`Input::Born`] and [`Verb::Open`].
    pub fn new(settings: SessionSettings, start: Start) -> TuiSession {
        TuiSession {
            session: start.session.clone(),
            left_session: String::new(),
            left_until: None,
            announced: None,
            transcript: start.transcript.clone(),
            settings,
            start,
            out: Vec::new(),
            pid: 0,
            born_at: 0,
            opening: None,
            evidence: None,
            fates: None,
            open: false,
            over: false,
            dialog_since: None,
            dialog_told: false,
            left: None,
            version: String::new(),
            model: None,
            tokens: 0,
            has_status_line: false,
            lines: Lines::up_to(LINE_BYTES_MAX),
            registry: None,
            look: None,
            last_text: String::new(),
            attempt: String::new(),
            look_due: None,
            looking: false,
            looked_at: None,
            idle_since: None,
            doubt: None,
            hooked: false,
            turn: None,
            turns: 0,
            ended: None,
            over_prompts: VecDeque::new(),
            interrupting: None,
            crossing: None,
            background: BTreeMap::new(),
            tools: VecDeque::new(),
            queue: VecDeque::new(),
            sending: None,
            sent: Vec::new(),
            posts: 0,
            socket_off: None,
            socket_pause: None,
            delivery: None,
            left_ours: false,
            unseen_paste: false,
            drawn_at: None,
            check_enter: false,
            given_back: None,
            heard: false,
            ours: VecDeque::new(),
            held: BTreeMap::new(),
            answered: None,
            decided: false,
            approvals: 0,
        }
    }

    fn signal(&mut self, signal: Signal) {
        self.out.push(Output::Signal(signal));
    }

    fn note(&mut self, warn: bool, text: impl Into<String>) {
        self.signal(Signal::Note { warn, text: text.into() });
    }

    fn answer(&mut self, verb: VerbNumber, result: Result<Value, String>) {
        self.signal(Signal::Answered { verb, result });
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: VerbNumber, verb: Verb) {
        match verb {
            Verb::Open { resume } => self.on_open(now, resume),
            Verb::Deliver(parcel) => {
                self.queue.push_back(Item::of_parcel(parcel));
                self.next_item(now);
            }
            Verb::Inject { text, person } => {
                let refusal = if !self.has_way_in() {
                    Some("this session can be told nothing: it has no terminal of ours and no socket")
                } else if self.queue.iter().filter(|item| item.verb.is_some()).count() >= INJECTED_MAX {
                    Some("too many texts wait for the end of the turn")
                } else {
                    None
                };
                match refusal {
                    Some(refusal) => {
                        self.answer(number, Err(refusal.into()));
                        self.give_up_injected();
                    }
                    None => {
                        if crate::planted::is("blind-injection") {
                            self.answer(number, Ok(Value::Null));
                        }
                        self.queue.push_back(Item::of_text(number, &text, person));
                        self.next_item(now);
                    }
                }
            }
            Verb::Interrupt => self.interrupt(now, number),
            Verb::Compact { instructions } => {
                let words = instructions.map(|words| words.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default();
                self.cross(now, number, Boundary::Compact, format!("/compact {words}").trim_end().to_string());
            }
            Verb::Clear => self.cross(now, number, Boundary::Clear, "/clear".into()),
            Verb::Decide { approval, decision, reason, answers } => {
                let result = match self.held.get(&approval).map(|held| held.ask.objection(decision, answers.as_ref())) {
                    None => Err(format!("no approval {approval} is open; it may have been answered or withdrawn")),
                    Some(Some(objection)) => Err(objection),
                    Some(None) => {
                        self.decide(now, &approval, decision, reason.as_deref(), answers.as_ref(), "decided");
                        Ok(json!({"approvalId": approval}))
                    }
                };
                self.answer(number, result);
            }
            Verb::Probe => {
                let state = if self.turn.is_some() { "busy" } else { "idle" };
                self.answer(number, Ok(json!({"activity": state})));
            }
            Verb::Hook { ticket, event, payload } => self.on_hook(now, ticket, &event, &payload),
            Verb::HookGone { ticket } => self.on_hook_gone(ticket),
            Verb::Stop => {
                self.queue.clear();
                self.sending = None;
                for id in self.held.keys().cloned().collect::<Vec<_>>() {
                    self.withdraw(&id, "the runner stops");
                }
                // Its own way to end: SIGTERM, in any state and without a key.
                self.out.push(Output::CloseInput);
            }
        }
    }

    fn on_born(&mut self, now: Now, pid: u32) {
        (self.pid, self.born_at) = (pid, now.wall.0);
        let path = format!("{}/sessions/{pid}.json", self.start.config_dir);
        self.out.push(Output::Watch { path });
    }

    fn on_open(&mut self, now: Now, resume: Option<Resume>) {
        let traces = resume.map(|resume| resume.evidence_for).unwrap_or_default();
        if !traces.is_empty() {
            match &self.start.transcript {
                Some(_) => self.evidence = Some(Evidence::new(&traces)),
                // There is no record: nothing of it was ever written down.
                None => self.fates = Some(vec![Fate::Unseen; traces.len()]),
            }
        }
        // Without hooks nobody names the transcript of a new session: it is looked for where it usually lies.
        let path = self.start.transcript.clone().unwrap_or_else(|| self.start.usual_transcript.clone());
        self.out.push(Output::Follow { path: path.clone(), whole: self.evidence.is_some() || self.start.transcript.is_none() });
        self.transcript = Some(path);
        self.opening = self.start.terminal.then_some(now.tick + OPEN_TIMEOUT);
        self.look_soon(now, Duration::from_millis(200));
    }

    /// A text of the runner's own goes nowhere: whoever waits for its turn need not.
    fn give_up_injected(&mut self) {
        if self.turn.is_none() && self.sent.is_empty() {
            self.signal(Signal::TurnEnded { batch: None, end: TurnEnd::Cancelled, text: String::new() });
        }
    }

    /// Ready to be typed into: the registry says idle and the input box is on the screen. What is
    /// pasted before that loses its Enter (seen).
    fn open_if_ready(&mut self, now: Now) {
        if self.open || self.over || self.opening.is_none() && self.start.terminal || self.evidence.is_some() {
            return;
        }
        let idle = self.registry.as_ref().is_some_and(Registry::is_idle);
        // A prompt among its arguments, or something that it goes on with: it works already.
        let works = self.registry.is_some() && self.look.as_ref().is_some_and(|look| look.busy);
        let shown = self.look.as_ref().is_some_and(ScreenState::is_open) || !self.start.terminal;
        if !(idle || works) || !shown {
            return;
        }
        if let Some(reason) = too_old(&self.version) {
            return self.fail_open(reason, true);
        }
        if !self.version.is_empty() && self.version != TESTED {
            self.note(false, format!("Claude Code {} runs; {TESTED} is the version that was tested", self.version));
        }
        self.open = true;
        self.opening = None;
        self.signal(Signal::Fact { name: "start", value: Value::Null });
        let how = match self.fates.take() {
            Some(fates) => How::Loaded(fates),
            None if self.start.resumes => How::Resumed,
            None => How::New,
        };
        let agent = format!("Claude Code {}", self.version).trim().to_string();
        let (session, model) = (self.session.clone(), self.model.clone());
        self.signal(Signal::Evidence("the session registry says idle and the input box is shown".into()));
        self.signal(Signal::Opened(Opened { session, how, agent, model, has_evidence: true }));
        let transport =
            if self.start.terminal { "terminal: attach to it with `agent-relay attach`" } else { "the terminal that it was started in" };
        self.signal(Signal::Fact { name: "transport", value: json!(transport) });
        if !idle {
            self.begin_turn(now, "the screen shows a running turn");
        }
        self.next_item(now);
    }

    fn fail_open(&mut self, reason: String, permanent: bool) {
        if !self.open && !self.over {
            self.over = true;
            self.opening = None;
            self.signal(Signal::OpenFailed { reason, permanent });
        }
    }

    // ---- end and time

    fn on_closed(&mut self) {
        if let Some((reason, permanent)) = witness::refusal(&self.last_text) {
            self.fail_open(reason, permanent);
        }
        self.over = true;
        let verbs = self.interrupting.take().map(|(verbs, _)| verbs).unwrap_or_default();
        let crossing = self.crossing.take().map(|crossing| crossing.verb);
        for verb in verbs.into_iter().chain(crossing) {
            self.answer(verb, Err("the provider ended".into()));
        }
        if let Some(reason) = self.left.take().filter(|_| self.open) {
            self.signal(Signal::Left { reason });
        }
    }

    fn on_wake(&mut self, now: Now) {
        let due = |at: Option<Tick>| at.is_some_and(|at| at <= now.tick);
        if due(self.look_due) {
            self.look_due = None;
            self.look_now(now);
        }
        if let Some((dialog, since)) = self.dialog_since
            && now.tick - since >= DIALOG_TIME
            && !self.dialog_told
        {
            self.dialog_since = None;
            if matches!(dialog, Dialog::Other | Dialog::Held | Dialog::Permission) {
                // Nobody can say what it asks: a person is waited for.
                self.dialog_told = true;
                self.opening = Some(now.tick + PERSON_TIME);
                self.note(true, format!("Claude Code does not get ready: {}", dialog.cure()));
                self.signal(Signal::Fact { name: "start", value: json!(dialog.cure()) });
            } else {
                self.fail_open(format!("Claude Code does not get ready: {}", dialog.cure()), dialog != Dialog::NoNetwork);
            }
        }
        if due(self.opening) {
            self.opening = None;
            let seen = if self.registry.is_some() {
                "its session is registered, but no input box is shown"
            } else {
                "it has not registered a session"
            };
            self.fail_open(format!("Claude Code did not get ready in time: {seen}"), false);
        }
        let late: Vec<String> = self.held.iter().filter(|(_, held)| held.deadline <= now.tick).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.note(true, format!("approval {id} was not answered in time and is denied"));
            self.decide(now, &id, Decision::Deny, Some("Nobody answered in time."), None, "nobody answered in time");
        }
        if let Some((verbs, _)) = self.interrupting.take_if(|(_, at)| *at <= now.tick) {
            for verb in verbs {
                self.answer(verb, Err(format!("the session did not end its turn within {} s", INTERRUPT_TIMEOUT.as_secs())));
            }
            // Escape was eaten by something: the next wish presses it again.
            self.turn.iter_mut().for_each(|turn| turn.interrupted = false);
        }
        if let Some(crossing) = &self.crossing {
            let (kind, silent) = (crossing.kind, due(crossing.silent));
            if silent || crossing.deadline <= now.tick {
                let why = if silent {
                    "the session did not do it; the screen may say why (agent-relay attach)"
                } else {
                    "the session did not come to it in time"
                };
                self.drop_command();
                self.crossed(kind, Err(why.into()));
            }
        }
        if self.idle_since.is_some_and(|since| now.tick - since >= IDLE_TIME) {
            self.end_by_witness(now);
        }
        self.settle_doubt(now);
        self.settle_answered(now);
        self.wake_sending(now);
        self.next_item(now);
    }
}

impl Session for TuiSession {
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Verb(number, verb) => self.on_verb(now, number, verb),
            Input::Born { pid } => self.on_born(now, pid),
            Input::Grown(bytes) => self.on_grown(now, &bytes),
            Input::Caught => {
                if let Some(evidence) = self.evidence.take() {
                    self.fates = Some(evidence.fates());
                }
                self.open_if_ready(now);
            }
            Input::Rewound => self.lines = Lines::up_to(LINE_BYTES_MAX),
            Input::File { text, .. } => self.on_registry(now, text.as_deref()),
            Input::Drawn => {
                self.drawn_at = Some(now.tick);
                let pause = self.looked_at.map_or(Duration::ZERO, |at| LOOK_PAUSE.saturating_sub(now.tick - at));
                let pause = if self.sending.is_some() || !self.open { Duration::from_millis(20) } else { pause };
                self.look_soon(now, pause);
            }
            Input::Screen(screen) => self.on_screen(now, &screen),
            Input::TermFailed(text) => self.on_term_failed(now, &text),
            Input::Posted { number, result } => self.on_posted(now, number, result),
            Input::Mail(line) => self.on_mail(now, &line),
            Input::Closed => self.on_closed(),
            Input::Wake => self.on_wake(now),
            Input::Bytes(_) => {}
        }
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Tick> {
        let all = [
            self.look_due,
            self.opening,
            self.dialog_since.filter(|_| !self.dialog_told).map(|(_, since)| since + DIALOG_TIME),
            self.held.values().map(|held| held.deadline).min(),
            self.interrupting.as_ref().map(|(_, at)| *at),
            self.crossing.as_ref().map(|crossing| crossing.deadline),
            self.crossing.as_ref().and_then(|crossing| crossing.silent),
            self.idle_since.map(|since| since + IDLE_TIME),
            self.doubt,
            self.answered.map(|(_, until)| until),
            self.sending_deadline(),
        ];
        all.into_iter().fold(None, sooner)
    }
}
