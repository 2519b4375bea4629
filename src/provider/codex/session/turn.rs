//! Turns: what begins and ends one, its answer, and interrupts.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::beside::COMMANDS_MAX;
use super::{CodexSession, Request};
use crate::core::ids::{BatchNumber, VerbNumber};
use crate::core::limits::REPLY_BODY_BYTES_MAX;
use crate::core::session::{Mirror, SessionEvent, TurnEnd};
use crate::core::time::{Now, Tick};
use crate::provider::codex::frames::{Item, TurnRecord, TurnStatus};
use crate::provider::codex::{history, steps};
use crate::provider::jsonrpc::RpcError;
use crate::provider::text::push_bounded;

/// A turn must end this long after an interrupt; it takes 50 ms.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same before a stop, which must not wait long.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages of one turn that are remembered, and their bytes.
const MESSAGES_MAX: usize = 256;
const MESSAGES_BYTES_MAX: usize = 4 << 20;
/// Turns that ended lately and may still be told of.
const ENDED_MAX: usize = 16;

/// A message of the agent.
#[derive(Debug, Default)]
struct Said {
    id: String,
    text: String,
    phase: String,
    is_done: bool,
    /// It was shown as something said on the way.
    is_shown: bool,
    /// Messages that were done when it began.
    began_after: u64,
}

/// A turn that runs, whoever began it.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub number: u64,
    /// Empty until the server names it.
    pub id: String,
    /// The server has told that it began: only then can it be steered or interrupted.
    pub is_told: bool,
    /// Our text that it began with.
    pub starter: Option<String>,
    pub batch: Option<BatchNumber>,
    /// It is a compaction that was asked for here.
    pub is_command: bool,
    /// A text was not allowed to join it.
    pub takes_nothing: bool,
    /// The model is being asked again.
    pub retries: bool,
    /// It was told that the server waits for somebody.
    pub waits: bool,
    messages: Vec<Said>,
    done: u64,
    /// Commands that run, by item, with their lines.
    pub commands: BTreeMap<String, String>,
}

impl Turn {
    /// It has an id.
    pub fn is_known(&self) -> bool {
        !self.id.is_empty()
    }

    /// A command runs in it.
    pub fn note_command(&mut self, item: &str, line: &str) {
        if self.commands.len() < COMMANDS_MAX {
            self.commands.insert(item.into(), line.into());
        }
    }

    /// Neither the server nor its record has told of it yet.
    fn is_awaited(&self, newest: Option<&TurnRecord>) -> bool {
        !self.is_told && newest.is_none_or(|newest| newest.id != self.id)
    }

    pub fn can_be_steered(&self) -> bool {
        self.is_told && self.is_known() && !self.is_command && !self.takes_nothing
    }

    fn message(&mut self, id: &str) -> Option<&mut Said> {
        if let Some(at) = self.messages.iter().position(|said| said.id == id) {
            return self.messages.get_mut(at);
        }
        let kept = |all: &[Said]| all.iter().map(|said| said.text.len()).sum::<usize>();
        while self.messages.len() >= MESSAGES_MAX || kept(&self.messages) > MESSAGES_BYTES_MAX {
            self.messages.remove(0);
        }
        let said = Said { id: id.into(), began_after: self.done, ..Said::default() };
        self.messages.push(said);
        self.messages.last_mut()
    }

    /// The messages that count, as positions: those that are done, and one that never was if none
    /// was done after it began. A retried stream leaves others behind.
    fn counting(&self) -> Vec<usize> {
        let counts = |said: &Said| {
            !said.text.trim().is_empty() && (said.is_done || said.began_after == self.done)
        };
        let all = self.messages.iter().enumerate().filter(|(_, said)| counts(said));
        all.map(|(at, _)| at).collect()
    }

    /// The message that is the answer: the last final one, else the last that is no comment.
    fn last(&self) -> Option<usize> {
        let counting = self.counting();
        let found = |is_it: fn(&Said) -> bool| {
            counting.iter().rev().copied().find(|at| is_it(&self.messages[*at]))
        };
        found(|said| said.phase == "final_answer")
            .or_else(|| found(|said| said.phase != "commentary"))
            .or_else(|| found(|_| true))
    }

    fn whole(&self) -> String {
        let mut whole = String::new();
        for at in self.counting() {
            let between = if whole.is_empty() { "" } else { "\n\n" };
            push_bounded(&mut whole, between, REPLY_BODY_BYTES_MAX);
            push_bounded(&mut whole, self.messages[at].text.trim(), REPLY_BODY_BYTES_MAX);
        }
        whole
    }
}

/// An interrupt that waits for the end of its turn.
#[derive(Debug)]
pub(super) struct PendingInterrupt {
    pub verbs: Vec<VerbNumber>,
    pub deadline: Tick,
}

impl CodexSession {
    pub(super) fn begin_turn(&mut self, evidence: &str) {
        if self.turn.is_some() {
            return;
        }
        self.turns += 1;
        self.turn = Some(Turn { number: self.turns, ..Turn::default() });
        self.emit(SessionEvent::Evidence(evidence.into()));
        self.emit(SessionEvent::TurnStarted);
    }

    /// The server names the running turn.
    pub(super) fn name_turn(&mut self, id: &str) {
        if let Some(turn) = &mut self.turn {
            turn.id = id.to_string();
        }
    }

    /// The server says that a turn has begun: ours, or another client's.
    pub(super) fn on_turn_started(&mut self, id: &str) {
        if self.ended.iter().any(|(ended, _)| ended == id) {
            return;
        }
        let other = |turn: &super::Turn| turn.is_known() && turn.id != id;
        if self.turn.as_ref().is_some_and(other) {
            // Two never run at once: the end of the one before was missed.
            let record = TurnRecord {
                id: String::new(),
                status: TurnStatus::Interrupted,
                items: Vec::new(),
            };
            self.finish_turn(record, "the server began another turn");
        }
        self.take_up_turn(id, "the server began a turn");
        self.next_text();
    }

    /// The server is known to run this turn: it can be steered and interrupted.
    pub(super) fn take_up_turn(&mut self, id: &str, evidence: &str) {
        self.begin_turn(evidence);
        self.name_turn(id);
        if let Some(turn) = &mut self.turn {
            turn.is_told = true;
        }
        if self.interrupt.is_some() {
            self.send_interrupt();
        }
    }

    pub(super) fn on_turn_completed(&mut self, record: TurnRecord) {
        // One that is not ours to end was told of before, or is another client's from before.
        if self.turn.as_ref().is_some_and(|turn| turn.is_known() && turn.id == record.id) {
            self.finish_turn(record, "the server told the end of the turn");
            self.next_text();
        }
    }

    /// The turn is over. What it began with counts as taken; what was to join it and never showed
    /// is looked for.
    pub(super) fn finish_turn(&mut self, record: TurnRecord, evidence: &str) {
        let Some(mut turn) = self.turn.take() else { return };
        if turn.is_known() {
            self.ended.push_back((turn.id.clone(), turn.number));
            self.ended.drain(..self.ended.len().saturating_sub(ENDED_MAX));
        }
        let starter = turn.starter.take().and_then(|id| self.sent.remove(&id));
        if let Some(sent) = starter {
            let batch = sent.text.delivery.as_ref().map(|delivery| delivery.batch);
            turn.batch = turn.batch.or(batch);
            if let Some(verb) = sent.text.verb {
                self.answer(verb, Ok(Value::Null));
            }
        }
        self.leave_commands(std::mem::take(&mut turn.commands));
        let text = self.show_answer(&mut turn, &record);
        if record.items.iter().any(|item| item.kind == "contextCompaction") && turn.is_command {
            self.on_compacted();
        }
        let end = record.status.end();
        let text = if matches!(end, TurnEnd::Failed(_)) { String::new() } else { text };
        self.approvals.withdraw_turn(&turn.id, &mut self.out);
        self.emit(SessionEvent::Evidence(evidence.into()));
        let command_end = end.clone();
        self.emit(SessionEvent::TurnEnded { batch: turn.batch, end, text });
        if turn.is_command {
            self.finish_compaction(&command_end);
        }
        self.finish_interrupt(&turn.id);
        if self.is_stopping && self.stop_at.is_some() {
            return self.close();
        }
        if self.sent.values().any(|sent| sent.is_steer) && !crate::planted::is("lost-steer") {
            self.look_for_sent();
        }
    }

    /// Shows what was said on the way and the answer, which is returned.
    fn show_answer(&mut self, turn: &mut Turn, record: &TurnRecord) -> String {
        let last = turn.last();
        let chosen = last.map(|at| turn.messages[at].text.trim().to_string());
        let text = match (chosen, self.settings.capture_full) {
            (Some(_), true) => turn.whole(),
            (Some(text), false) => text,
            // Nothing was heard of it, for example while the connection was away.
            (None, _) => history::answer(record),
        };
        if let Some(at) = last {
            turn.messages[at].is_shown = true;
        }
        self.show_messages(turn);
        if !text.is_empty() {
            let (kind, body) = ("response", text.clone());
            let key = last.map(|at| turn.messages[at].id.clone());
            let turn = turn.number;
            self.emit(SessionEvent::Mirror(Mirror {
                kind,
                body,
                label: None,
                status: None,
                turn,
                key,
            }));
        }
        text
    }

    /// Shows the messages that were said on the way.
    fn show_messages(&mut self, turn: &mut Turn) {
        for said in turn.messages.iter_mut().filter(|said| said.is_done && !said.is_shown) {
            said.is_shown = true;
            if said.text.trim().is_empty() {
                continue;
            }
            self.emit(SessionEvent::Mirror(Mirror {
                kind: "reasoning",
                body: said.text.clone(),
                label: Some("narration".into()),
                status: None,
                turn: turn.number,
                key: Some(said.id.clone()),
            }));
        }
    }

    /// A further message or a tool begins: what was said before was said on the way.
    pub(super) fn on_step(&mut self, item: &Item) {
        if item.kind != "agentMessage" && !steps::is_tool(item) {
            return;
        }
        if let Some(mut turn) = self.turn.take() {
            self.show_messages(&mut turn);
            if item.kind == "agentMessage" {
                turn.message(&item.id);
            }
            self.turn = Some(turn);
        }
    }

    pub(super) fn on_delta(&mut self, item: &str, delta: &str) {
        let said = self.turn.as_mut().and_then(|turn| turn.message(item));
        if let Some(said) = said.filter(|said| !said.is_done) {
            push_bounded(&mut said.text, delta, REPLY_BODY_BYTES_MAX);
        }
    }

    pub(super) fn on_said(&mut self, item: &Item) {
        let Some(turn) = self.turn.as_mut() else { return };
        let Some(said) = turn.message(&item.id) else { return };
        let text = item.text("/text");
        if !text.is_empty() {
            said.text.clear();
            push_bounded(&mut said.text, text, REPLY_BODY_BYTES_MAX);
        }
        said.phase = item.text("/phase").to_string();
        if !std::mem::replace(&mut said.is_done, true) {
            turn.done += 1;
        }
    }

    /// Number of a turn for the mirror; of one that ended too.
    pub(super) fn number_of(&self, turn: &str) -> u64 {
        let ended = self.ended.iter().rev().find(|(id, _)| id == turn);
        ended.map_or(self.turns, |(_, number)| *number)
    }

    // ---- interrupts

    /// Ends the running turn. Without one, the commands that earlier turns left behind are ended.
    pub(super) fn on_interrupt(&mut self, now: Now, verb: VerbNumber) {
        let dropped: Vec<VerbNumber> =
            self.queue.iter().filter_map(|waiting| waiting.verb).collect();
        self.queue.retain(|waiting| waiting.verb.is_none());
        for dropped in dropped {
            self.answer(dropped, Err("an interrupt came before it".into()));
        }
        if self.turn.is_none() {
            return self.clean(verb);
        }
        let deadline = now.tick + INTERRUPT_TIMEOUT;
        let new = || PendingInterrupt { verbs: Vec::new(), deadline };
        self.interrupt.get_or_insert_with(new).verbs.push(verb);
        self.send_interrupt();
    }

    /// Asks the server to end the turn; before it has told the beginning it would refuse.
    pub(super) fn send_interrupt(&mut self) {
        let turn = self.turn.as_ref().filter(|turn| turn.is_told && turn.is_known());
        if let Some(turn) = turn {
            let params = json!({"threadId": self.thread, "turnId": turn.id});
            self.request(Request::Interrupt, "turn/interrupt", params);
        }
    }

    /// A refusal means that the turn is over or about to begin: both are told.
    pub(super) fn on_interrupt_reply(&mut self, result: Result<Value, RpcError>) {
        if let Err(error) = result {
            self.emit(SessionEvent::Evidence(format!("interrupt: {}", error.text)));
        }
    }

    fn finish_interrupt(&mut self, turn: &str) {
        for verb in self.interrupt.take().into_iter().flat_map(|pending| pending.verbs) {
            let done = json!({"method": "turn-interrupt", "turnId": turn, "wasRunning": true});
            self.answer(verb, Ok(done));
        }
    }

    pub(super) fn give_up_interrupt(&mut self, now: Now) {
        let late = self.interrupt.take_if(|pending| pending.deadline <= now.tick);
        for verb in late.into_iter().flat_map(|pending| pending.verbs) {
            let seconds = INTERRUPT_TIMEOUT.as_secs();
            self.answer(verb, Err(format!("the server did not end its turn within {seconds} s")));
        }
    }

    // ---- probe

    /// Whether a turn runs, by the record.
    pub(super) fn probe(&mut self, verb: VerbNumber) {
        if self.turn.is_none() {
            return self.answer(verb, Ok(json!({"activity": "idle"})));
        }
        if !self.link.is_up {
            return self.answer(verb, Ok(json!({"activity": "unknown"})));
        }
        self.look(Request::Probe(verb), 1, "summary");
    }

    pub(super) fn on_probed(&mut self, verb: VerbNumber, result: Result<Value, RpcError>) {
        let activity = match result.map(|reply| TurnRecord::page(&reply)) {
            Err(_) => "unknown",
            Ok(turns) => match turns.first() {
                _ if self.turn.is_none() => "idle",
                Some(newest) if newest.status == TurnStatus::InProgress => "busy",
                // Its beginning is still on its way.
                newest if self.turn.as_ref().is_some_and(|turn| turn.is_awaited(newest)) => "busy",
                _ => {
                    self.end_by_record(&turns);
                    self.next_text();
                    "idle"
                }
            },
        };
        self.answer(verb, Ok(json!({"activity": activity})));
    }
}
