//! What a decision of one part means for the others, in the order in which it takes effect.

use std::time::Duration;

use serde_json::{Value, json};

use super::TuiSession;
use super::commands::ContextCommand;
use super::identity::{Content, TranscriptUse};
use super::observed::Observation;
use super::sender::{Due, Gate, Sender, SenderContext};
use super::startup::Opening;
use super::turn::{Activity, Event, Taken, Transition};
use crate::core::session::{Delivery, Mirror, SessionEvent, TurnEnd};
use crate::core::time::Now;

/// After the end of a turn the screen is looked at.
const END_CAPTURE: Duration = Duration::from_millis(60);

/// How something is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    /// When it was so, by the wall clock, ms.
    pub at: i64,
    /// By whom, for people.
    pub evidence: &'static str,
}

impl TuiSession {
    // ---- start

    pub(super) fn open_if_ready(&mut self, now: Now) {
        let (registry, screen) = (self.observed.registry(), self.observed.screen());
        let (session, model) = (self.identity.session(), self.usage.model());
        match self.startup.open_if_ready(registry, screen, session, model, &mut self.out) {
            Opening::NotYet => {}
            Opening::Failed => self.stop_if_over(),
            Opening::Done { works } => {
                if works {
                    let evidence = "the screen shows a running turn";
                    self.observe(now, Event::Works { at: now.wall.0, evidence });
                }
                self.send_next(now);
            }
        }
    }

    /// A time that a source tells; one that tells none tells of now.
    pub(super) fn told_at(&self, now: Now, at: i64) -> i64 {
        if at > 0 { at.min(now.wall.0) } else { now.wall.0 }
    }

    /// Nothing more is looked at after the end.
    pub(super) fn stop_if_over(&mut self) {
        if self.startup.is_over() {
            self.observed.stop_captures();
        }
    }

    // ---- turns

    /// A source speaks: what follows for the turn, and from that for all else.
    pub(super) fn observe(&mut self, now: Now, event: Event) {
        match self.turns.observe(now, &event) {
            Transition::Begin(at, evidence) => self.begin_turn(now, Told { at, evidence }),
            Transition::End(at, end, evidence) => {
                let said = match event {
                    Event::HookEnd { said, .. } => said,
                    _ => None,
                };
                self.end_turn(now, end, said.as_deref(), Told { at, evidence });
            }
            Transition::CaptureAgain(_) | Transition::LookAfter(_) => {
                self.observed.capture_soon(now, Duration::ZERO)
            }
            Transition::Stay
            | Transition::Quiet(_)
            | Transition::QuietScreen(_)
            | Transition::SeenBusy
            | Transition::StillThere(_)
            | Transition::WatchIdle(_)
            | Transition::RestartIdle(_)
            | Transition::ForgetIdle => {}
        }
    }

    fn begin_turn(&mut self, now: Now, told: Told) {
        if !self.startup.is_open() {
            return;
        }
        self.miss_hooks();
        self.commands.on_turn_begun();
        let local = self.commands.changes_context();
        self.turns.begin(now, told.at, local, self.registry_word());
        self.out.emit(SessionEvent::Evidence(told.evidence.into()));
        self.out.emit(SessionEvent::TurnStarted);
        // The picture that told of it has shown it at work.
        self.observe_screen(now);
        if self.commands.is_interrupting() && self.sender.has_submitted(now) {
            self.press_escape(now);
        }
    }

    /// The end of the turn; `text` is what the hook says was said last.
    fn end_turn(&mut self, now: Now, end: TurnEnd, text: Option<&str>, told: Told) {
        if !self.turns.is_running() {
            // It was over before anybody saw it begin: a proof of delivery may still come for it.
            if self.sender.has_unproven() {
                self.turns.finish_unseen(told.at, end, text);
            }
            return self.settle_interrupt(now);
        }
        self.approvals.on_turn_ended(&mut self.out);
        let Some(turn) = self.turns.finish(told.at, end, text) else { return };
        if turn.may_give_back {
            self.sender.on_given_back(now);
        }
        if !turn.text.trim().is_empty() {
            let body = turn.text.clone();
            self.mirror("response", body, turn.number, None);
        }
        self.out.emit(SessionEvent::Evidence(told.evidence.into()));
        let (batch, end, text) = (turn.batch, turn.end, turn.text);
        self.out.emit(SessionEvent::TurnEnded { batch, end, text });
        self.usage.tell_estimate(&mut self.out);
        self.commands.finish_interrupt(true, &mut self.out);
        self.commands.on_turn_ended(now);
        self.observed.capture_soon(now, END_CAPTURE);
        // The file may have told of the next turn before the hook of this one was heard.
        if let Some(Observation::Busy { since }) = self.observed.registry_observation() {
            self.on_registry_busy(now, since);
        }
        self.send_next(now);
    }

    /// An interrupt waited for a turn of ours that will not come any more.
    pub(super) fn settle_interrupt(&mut self, now: Now) {
        if !self.turns.is_running() && !self.sender.has_submitted(now) {
            self.commands.finish_interrupt(false, &mut self.out);
        }
    }

    /// The turn does something else from now on.
    pub(super) fn set_activity(&mut self, activity: Activity, detail: Option<&str>) {
        let value = match &activity {
            Activity::Running => json!({"state": "running"}),
            Activity::Compacting => json!({"state": "compacting"}),
            Activity::Retrying(_) => json!({"state": "retrying", "detail": detail}),
            Activity::Waiting => match detail {
                Some(detail) => {
                    json!({"state": "blocked", "reason": "waitingOnApproval", "detail": detail})
                }
                None => json!({"state": "blocked", "reason": "waitingOnApproval"}),
            },
        };
        if self.turns.set_activity(activity) {
            self.out.emit(SessionEvent::ProviderState(value));
        }
    }

    pub(super) fn mirror(
        &mut self,
        kind: &'static str,
        body: String,
        turn: u64,
        key: Option<String>,
    ) {
        self.out.emit(SessionEvent::Mirror(Mirror {
            kind,
            body,
            label: None,
            status: None,
            turn,
            key,
        }));
    }

    // ---- identity

    pub(super) fn reading(&self) -> TranscriptUse {
        TranscriptUse { is_open: self.startup.is_open(), searches: self.startup.is_searching() }
    }

    /// The registry or a hook names a session: perhaps another one than before.
    pub(super) fn on_session_id(&mut self, now: Now, session: &str, content: Content) {
        let is_open = self.startup.is_open();
        let Some(adopted) = self.identity.adopt(now, session, is_open) else { return };
        if is_open {
            self.out.emit(SessionEvent::ConversationChanged { session: session.to_string() });
            self.context_done(ContextCommand::Clear);
            self.observe(now, Event::SessionMoved { at: now.wall.0 });
        }
        let content = if adopted.was_announced_as_resumed { Content::Old } else { content };
        // The hook names the transcript; without it the file lies beside the old one.
        self.identity.follow_beside(content, self.reading(), &mut self.out);
    }

    /// The effect of a context command was seen.
    pub(super) fn context_done(&mut self, command: ContextCommand) {
        self.commands.context_done(command, self.identity.session(), &mut self.out);
    }

    // ---- texts

    /// The sender, and what it sees of the rest.
    pub(super) fn sender(&mut self, now: Now) -> (&mut Sender, SenderContext<'_>) {
        let registry = self.registry_word();
        let keys = self.start.keys;
        let TuiSession { sender, observed, turns, out, .. } = self;
        (sender, SenderContext { now, keys, registry, observed, turns, out })
    }

    pub(super) fn send_next(&mut self, now: Now) {
        let ready = self.startup.is_open() && !self.startup.is_over();
        let open = ready && !self.commands.changes_context();
        let (sender, mut around) = self.sender(now);
        sender.next(if open { Gate::Open } else { Gate::Closed }, &mut around);
    }

    /// A text was given up or goes another way: what waited for it goes on.
    fn after_settled(&mut self, now: Now) {
        self.settle_interrupt(now);
        self.send_next(now);
    }

    pub(super) fn on_posted(&mut self, now: Now, number: u64, result: Result<(), String>) {
        if self.sender.on_posted(number, result, &mut self.out) {
            self.after_settled(now);
        }
    }

    pub(super) fn on_receipt(&mut self, now: Now, line: &str) {
        let Some((receipt, keys)) = self.sender.on_receipt(now, line, &mut self.out) else {
            return;
        };
        for key in keys {
            let (sender, mut around) = self.sender(now);
            if sender.settle_receipt(&key, receipt, &mut around) {
                self.after_settled(now);
            }
        }
    }

    pub(super) fn wake_sender(&mut self, now: Now) {
        let (sender, mut around) = self.sender(now);
        match sender.wake(&mut around) {
            Due::Nothing => {}
            Due::Arrived(at, evidence) => {
                self.on_arrived(now, at, Told { at: now.wall.0, evidence }, true);
            }
            Due::Settled => self.after_settled(now),
        }
    }

    /// The text at that place of the sender arrived. `is_late`: the turn that ended last may have
    /// been its own.
    pub(super) fn on_arrived(&mut self, now: Now, place: usize, told: Told, is_late: bool) {
        let Told { at, evidence } = told;
        let text = self.sender.accept(place, &mut self.out);
        let was_over = is_late && self.turns.ended_since(text.at);
        let Some(Delivery { batch, key, .. }) = text.delivery else {
            if let Some(verb) = text.verb {
                self.out.answer(verb, Ok(Value::Null));
            }
            if !was_over {
                self.observe(now, Event::Took { at, evidence });
            }
            return self.after_settled(now);
        };
        self.out.emit(SessionEvent::Accepted { batch, key, evidence: evidence.into() });
        match self.turns.last_end().filter(|_| was_over) {
            // Its turn was over before the proof was on disk.
            Some(last) => {
                let (end, text) = (last.end.clone(), last.text.clone());
                self.out.emit(SessionEvent::TurnEnded { batch: Some(batch), end, text });
                self.commands.finish_interrupt(true, &mut self.out);
                if self.turns.is_running() {
                    self.out.emit(SessionEvent::TurnStarted); // another one runs
                }
            }
            None => {
                let was_running = self.turns.is_running();
                self.observe(now, Event::Took { at, evidence });
                if !was_running && self.commands.is_interrupting() {
                    self.press_escape(now);
                }
                let (first, at, joined) = (text.first, text.at, text.joined);
                self.turns.take_text(Taken { batch, first, at, joined });
            }
        }
        self.send_next(now);
    }
}
