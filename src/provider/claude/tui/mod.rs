//! A session in a terminal: ours (tmux), or the one that a person sits at.
//!
//! # Contract of [`TuiSession`]
//!
//! A pure machine: one input in, its outputs out, in the order in which they take effect. Nothing
//! that comes in is trusted; hostile bytes are an ordinary branch.
//!
//! **In.** [`Input::ProcessStarted`] first, then [`Verb::Open`]. What the program tells comes as
//! hooks ([`Verb::Hook`]), as its registry file ([`Input::FileChanged`]), as its transcript
//! ([`Input::FileAppended`], [`Input::CaughtUp`], [`Input::FileReset`]), as pictures of its screen
//! ([`Input::ScreenChanged`], [`Input::ScreenCaptured`]) and as receipts ([`Input::SocketLine`]).
//! Each may be missing, late or doubled. [`Input::Closed`] is the last one.
//!
//! **Out.** To the agent: `Opened` or `OpenFailed` once; after `Opened`, `TurnStarted` and
//! `TurnEnded` in turns; for each [`Verb::Deliver`] one `Accepted` with a later `TurnEnded`, or one
//! `Refused`; for each other verb one `Answered`. To the terminal: `CaptureScreen`, `Paste`,
//! `Press`. To files and sockets: `Watch`, `Follow`, `WriteSocket`.
//!
//! **The caller** gives every input with a clock that never goes back, calls with [`Input::Wake`]
//! at [`Session::next_deadline`], carries out the outputs in order, and answers each
//! `CaptureScreen` with a `ScreenCaptured` or a `TerminalFailed`, each `WriteSocket` with a
//! `SocketWritten`.
//!
//! # Parts
//!
//! `TuiSession` only dispatches; each part decides alone and has its own deadline.
//!
//! | part | decides |
//! | --- | --- |
//! | `startup` | whether the conversation is open, and why it does not open |
//! | `identity` | which conversation it is, and which transcript is its own |
//! | `observed` | what registry and screen say, and when a picture is taken |
//! | `turn` | whether a turn runs: the one table that fuses all sources |
//! | `sender` | which text goes when, by which channel, and what proves it |
//! | `approvals` | what is asked, and who has answered |
//! | `commands` | interrupts and context commands that are under way |
//! | `background`, `usage` | what works beside the turn; model and tokens |
//!
//! What follows from a decision in other parts stands in `effects`, what hooks say in `hooks`, what
//! registry, transcript and screen say in `observations`.

mod approvals;
mod background;
mod commands;
mod effects;
mod hooks;
mod identity;
mod observations;
mod observed;
mod out;
mod registry;
mod sender;
mod startup;
mod turn;
mod usage;

use std::time::Duration;

use serde_json::{Value, json};

use self::approvals::{Approvals, Verdict};
use self::background::Background;
use self::commands::{Commands, ContextCommand};
use self::hooks::Hooks;
use self::identity::Identity;
use self::observed::{Hurry, Observed, RegistryWord};
use self::out::Out;
use self::sender::Sender;
use self::startup::Startup;
use self::turn::{Event, Seen, Turns};
use self::usage::Usage;
use crate::core::ids::VerbNumber;
use crate::core::session::{Input, Output, Resume, Session, Verb};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::{SessionSettings, Start};

/// After the start the program draws its first screen.
const FIRST_CAPTURE: Duration = Duration::from_millis(200);
/// After an interrupt the screen is looked at.
const INTERRUPT_CAPTURE: Duration = Duration::from_millis(100);
/// After the terminal could not do what was asked.
const FAILURE_CAPTURE: Duration = Duration::from_millis(500);

/// The session as a machine: see the module.
pub struct TuiSession {
    start: Start,
    startup: Startup,
    identity: Identity,
    observed: Observed,
    turns: Turns,
    sender: Sender,
    approvals: Approvals,
    commands: Commands,
    background: Background,
    usage: Usage,
    hooks: Hooks,
    out: Out,
}

impl TuiSession {
    /// A session that waits for [`Input::ProcessStarted`] and [`Verb::Open`].
    pub fn new(settings: SessionSettings, start: Start) -> TuiSession {
        TuiSession {
            startup: Startup::new(&start),
            identity: Identity::new(&start),
            observed: Observed::new(start.terminal),
            turns: Turns::new(settings.capture_full),
            sender: Sender::new(&start),
            approvals: Approvals::new(&settings, &start),
            commands: Commands::default(),
            background: Background::default(),
            usage: Usage::new(),
            hooks: Hooks::default(),
            out: Out::default(),
            start,
        }
    }

    // ---- verbs

    fn on_verb(&mut self, now: Now, number: VerbNumber, verb: Verb) {
        match verb {
            Verb::Open { resume } => self.on_open(now, resume),
            Verb::Deliver(delivery) => {
                self.sender.deliver(delivery);
                self.send_next(now);
            }
            Verb::Inject { text, person } => self.inject(now, number, &text, person),
            Verb::Interrupt => self.interrupt(now, number),
            Verb::Compact { instructions } => {
                let words = instructions.unwrap_or_default();
                let words: Vec<&str> = words.split_whitespace().collect();
                let text = format!("/compact {}", words.join(" "));
                self.change_context(now, number, ContextCommand::Compact, text.trim_end());
            }
            Verb::Clear => self.change_context(now, number, ContextCommand::Clear, "/clear"),
            Verb::Decide { approval, decision, reason, answers } => {
                let (reason, answers) = (reason.as_deref(), answers.as_ref());
                self.decide(now, number, &approval, Verdict { decision, reason, answers });
            }
            Verb::Probe => {
                let state = if self.turns.is_running() { "busy" } else { "idle" };
                self.out.answer(number, Ok(json!({"activity": state})));
            }
            Verb::Hook { ticket, event, payload, at } => {
                self.on_hook(now, ticket, &event, &payload, at);
            }
            Verb::HookGone { ticket } => self.approvals.on_hook_gone(ticket, &mut self.out),
            Verb::Guest => {} // whoever is at the terminal sees what we see
            Verb::Stop => {
                self.sender.stop();
                self.approvals.stop(&mut self.out);
                // Its own way to end: SIGTERM, in any state and without a key.
                self.out.push(Output::CloseInput);
            }
        }
    }

    fn on_started(&mut self, now: Now) {
        self.observed.on_started(now);
        let folder = format!("{}/sessions", self.start.config_dir);
        self.out.push(Output::WatchProcess { folder, suffix: ".json" });
    }

    fn on_open(&mut self, now: Now, resume: Option<Resume>) {
        let unsettled = resume.map(|resume| resume.evidence_for).unwrap_or_default();
        let record = self.start.transcript.clone();
        self.startup.on_open(now, &unsettled, &self.start);
        // Without hooks nobody names the transcript of a new session: it is looked for where it
        // usually lies.
        let whole = self.startup.is_searching() || record.is_none();
        let path = record.unwrap_or_else(|| self.start.usual_transcript.clone());
        self.identity.follow_first(path, whole, &mut self.out);
        self.observed.capture_soon(now, FIRST_CAPTURE);
    }

    fn inject(&mut self, now: Now, number: VerbNumber, text: &str, person: bool) {
        if let Some(refusal) = self.sender.refusal(&self.observed) {
            self.out.answer(number, Err(refusal.into()));
            return self.sender.give_up_injected(&self.turns, &mut self.out);
        }
        if crate::planted::is("blind-injection") {
            self.out.answer(number, Ok(Value::Null));
        }
        self.sender.inject(number, text, person);
        self.send_next(now);
    }

    fn interrupt(&mut self, now: Now, number: VerbNumber) {
        let dropped = self.sender.drop_injected();
        if !dropped.is_empty() {
            for verb in dropped {
                self.out.answer(verb, Err("an interrupt came before it".into()));
            }
            self.sender.give_up_injected(&self.turns, &mut self.out);
        }
        if !self.turns.is_running() && !self.sender.has_submitted(now) {
            return self.out.answer(number, Ok(json!({"wasRunning": false})));
        }
        if !self.start.terminal {
            let why = "this session runs in a terminal of its own: interrupt it there";
            return self.out.answer(number, Err(why.into()));
        }
        self.press_escape(now);
        self.commands.start_interrupt(now, number);
        self.observed.capture_soon(now, INTERRUPT_CAPTURE);
    }

    /// Once and only while a turn runs: a second Escape would open a menu that takes all keys. One
    /// that was submitted and is not seen yet is ended when it is.
    fn press_escape(&mut self, now: Now) {
        if self.turns.interrupt(now) {
            self.out.push(Output::Press(self.start.keys.cancel));
        }
    }

    fn change_context(
        &mut self,
        now: Now,
        number: VerbNumber,
        command: ContextCommand,
        text: &str,
    ) {
        let has_terminal = self.start.terminal;
        match self.commands.start_context(now, number, command, has_terminal) {
            Err(why) => self.out.answer(number, Err(why)),
            Ok(()) => {
                self.sender.command(text);
                self.send_next(now);
            }
        }
    }

    fn decide(&mut self, now: Now, number: VerbNumber, id: &str, verdict: Verdict<'_>) {
        let decided = self.approvals.decide(id, verdict, &mut self.out);
        if decided == Ok(true) && self.turns.is_running() {
            // Like Escape: no hook follows.
            self.turns.interrupt(now);
            self.observed.capture_soon(now, INTERRUPT_CAPTURE);
        }
        self.out.answer(number, decided.map(|_| json!({"approvalId": id})));
    }

    // ---- end and time

    fn on_closed(&mut self) {
        self.startup.on_closed(self.observed.screen_text(), &mut self.out);
        self.observed.stop_captures();
        self.commands.on_closed(&mut self.out);
        self.startup.tell_left(&mut self.out);
    }

    fn on_wake(&mut self, now: Now) {
        self.observed.wake(now, &mut self.out);
        let has_registry = self.observed.registry().is_some();
        self.startup.wake(now, has_registry, &mut self.out);
        self.stop_if_over();
        self.approvals.wake(now, &mut self.out);
        if self.commands.interrupt_timed_out(now, &mut self.out) {
            // Escape was eaten by something: the next wish presses it again.
            self.turns.forget_interrupt();
        }
        if self.commands.context_timed_out(now, &mut self.out) {
            self.sender.drop_command();
        }
        let gave_back = self.gave_back();
        let has_screen = self.observed.screen().is_some();
        let seen = Seen {
            registry_is_busy: self.registry_word() == RegistryWord::Busy,
            screen_is_busy: self.observed.screen_is_busy(),
            screen_is_quiet: !has_screen || gave_back || self.observed.screen_is_quiet(),
            gave_back,
        };
        self.observe(now, Event::Wake(seen));
        self.approvals.settle(now, &mut self.out);
        self.wake_sender(now);
        self.send_next(now);
    }
}

impl Session for TuiSession {
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Verb(number, verb) => self.on_verb(now, number, verb),
            Input::ProcessStarted { .. } => self.on_started(now),
            Input::FileAppended(bytes) => self.on_transcript(now, &bytes),
            Input::CaughtUp => {
                self.startup.on_caught_up();
                self.open_if_ready(now);
            }
            Input::FileReset => self.identity.rewind(),
            Input::FileChanged { text, .. } => self.on_registry(now, text.as_deref()),
            Input::ScreenChanged => {
                self.sender.on_drawn(now);
                // A turn that only pictures tell of is seen before it is over.
                let unseen = self.turns.is_unseen() && self.screen_decides();
                let hurry = if self.sender.is_typing() {
                    Hurry::Typing
                } else if !self.startup.is_open() || unseen {
                    Hurry::Watching
                } else {
                    Hurry::None
                };
                self.observed.on_drawn(now, hurry);
            }
            Input::ScreenCaptured(screen) => self.on_screen(now, &screen),
            Input::TerminalFailed(text) => {
                self.observed.on_capture_settled();
                self.out.warn(format!("the terminal: {text}"));
                self.sender.on_terminal_failed(&text, &mut self.out);
                self.observed.capture_soon(now, FAILURE_CAPTURE);
            }
            Input::SocketWritten { number, result } => self.on_posted(now, number, result),
            Input::SocketLine(line) => self.on_receipt(now, &line),
            Input::Closed => self.on_closed(),
            Input::Wake => self.on_wake(now),
            Input::Bytes(_)
            | Input::LastWords(_)
            | Input::Errors(_)
            | Input::Connected
            | Input::Disconnected(_)
            | Input::Text(_)
            | Input::ForegroundEnded(_) => {}
        }
        self.out.take()
    }

    fn next_deadline(&self) -> Option<Tick> {
        let all = [
            self.observed.next_deadline(),
            self.startup.next_deadline(),
            self.approvals.next_deadline(),
            self.commands.next_deadline(),
            self.turns.next_deadline(),
            self.sender.next_deadline(),
        ];
        all.into_iter().fold(None, sooner)
    }
}
