//! From waiting messages to a settled batch.
//!
//! One batch at a time: claim what is claimable, make `delivering` durable, hand over, hear the
//! evidence, and when the turn has ended write replies and "batch done" in one transaction.
//! Evidence is what the provider's own record shows. A batch whose provider died stays unsettled
//! until the next conversation says what its record holds.

mod claims;
mod held;
mod next;
mod recover;
mod settle;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Agent;
use super::http_calls::CallKind;
use super::prompt::PROMPT;
use super::prompt_text::{self, fingerprint};
use super::store::{InboxState, OutboxRow, StoreOp, Unsettled};
use crate::core::agent::store::RowKind;
use crate::core::agent::timer::Timer;
use crate::core::agent::tracker::{ClaimKind, TURN, Work};
use crate::core::ids::{BatchNumber, MessageRef, TaskId};
use crate::core::session::{Delivery, MessageFingerprint, TurnEnd, Verb};
use crate::core::time::Now;
use crate::wire::api::{DetailedStatus, Message, StatusSource, TaskStatus};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Claims are being made.
    Claiming,
    /// Written to the provider (or about to be, behind its commit).
    Sent,
    /// The provider has it.
    Taken,
    /// The turn has ended; the relay is asked which answers are still owed.
    Settling,
    /// The provider died; its record decides.
    Unsettled,
}

impl Phase {
    /// The word in `/status`.
    fn name(self) -> &'static str {
        match self {
            Phase::Claiming => "claiming",
            Phase::Sent => "sent",
            Phase::Taken => "taken",
            Phase::Settling => "settling",
            Phase::Unsettled => "unsettled",
        }
    }
}

#[derive(Debug)]
struct Entry {
    at: MessageRef,
    message: Message,
    claimed: bool,
    read: bool,
    /// The relay has said that it does not have this message any more.
    gone: bool,
    confirmed: bool,
    /// The relay says that the claim is not ours any more.
    lost: bool,
    /// Key of the delivery that it travels in.
    key: String,
}

impl Entry {
    fn new((at, message): (MessageRef, Message)) -> Entry {
        let claimed = !message.claimable;
        Entry {
            at,
            claimed,
            message,
            read: false,
            gone: false,
            confirmed: false,
            lost: false,
            key: String::new(),
        }
    }
}

#[derive(Debug)]
struct Batch {
    number: BatchNumber,
    phase: Phase,
    entries: Vec<Entry>,
    end: Option<(TurnEnd, String)>,
}

/// Batches: the one under way and what is needed for the next.
#[derive(Debug, Default)]
pub(super) struct Turns {
    batch: Option<Batch>,
    /// Urgent messages of the last batch that its turn did not take: the next turn does.
    tail: Option<Batch>,
    /// Messages that the record was asked for, in order.
    asked: Vec<MessageRef>,
    number: BatchNumber,
    /// Senders of the last batch: others come first.
    last: Vec<String>,
    /// A turn of the provider is running, whoever started it.
    running: bool,
    /// How it is known that a turn runs has been told.
    told: bool,
    /// Who wanted the running turn to end, and why.
    interrupt: Option<String>,
    /// Interrupted tasks whose claims are kept: message and task.
    held: BTreeMap<MessageRef, TaskId>,
    /// How often this agent was given the task of a message and it left without an end that the
    /// relay took.
    rounds: BTreeMap<MessageRef, u64>,
}

/// The relay may take this long to say which answers are owed; then all are sent.
const SETTLE_WAIT: Duration = Duration::from_secs(5);

impl Turns {
    pub fn holds(&self, at: MessageRef) -> bool {
        self.entries().any(|entry| entry.at == at)
    }

    fn entry(&mut self, at: MessageRef) -> Option<&mut Entry> {
        self.batch
            .iter_mut()
            .chain(&mut self.tail)
            .flat_map(|batch| batch.entries.iter_mut())
            .find(|entry| entry.at == at)
    }

    pub fn note_read(&mut self, at: MessageRef) {
        if let Some(entry) = self.entry(at) {
            entry.read = true;
        }
    }

    /// The relay offers a message that is under way, so it does not count it as read any more.
    /// True: the provider has it.
    pub fn note_offered_again(&mut self, at: MessageRef) -> bool {
        let entry = self.entry(at);
        entry.is_some_and(|entry| {
            entry.read = false;
            entry.confirmed
        })
    }

    /// Whether the relay knows what was read is not known any more.
    pub fn forget_reads(&mut self) {
        self.batch
            .iter_mut()
            .chain(&mut self.tail)
            .flat_map(|batch| batch.entries.iter_mut())
            .for_each(|entry| entry.read = false);
    }

    /// The relay does not have this message any more: its answer cannot hang on it.
    pub fn note_gone(&mut self, at: MessageRef) {
        if let Some(entry) = self.entry(at) {
            entry.gone = true;
        }
    }

    pub fn unread_places(&self) -> impl Iterator<Item = MessageRef> {
        self.entries().filter(|entry| entry.confirmed && !entry.read).map(|entry| entry.at)
    }

    /// Messages that are with the provider, with their places.
    pub fn places(&self) -> impl Iterator<Item = (MessageRef, &Message)> {
        self.entries().map(|entry| (entry.at, &entry.message))
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.batch.iter().chain(&self.tail).flat_map(|batch| batch.entries.iter())
    }

    pub fn summary(&self) -> Value {
        match &self.batch {
            None => Value::Null,
            Some(batch) => json!({
                "batch": batch.number.0,
                "phase": batch.phase.name(),
                "messages": batch.entries.iter().map(|entry| entry.message.id).collect::<Vec<_>>(),
            }),
        }
    }

    pub fn is_quiet(&self) -> bool {
        !self.batch.as_ref().is_some_and(|batch| batch.phase == Phase::Settling)
    }
}

impl Agent {
    pub(super) fn restore_turn(&mut self, unsettled: Vec<Unsettled>) {
        let Some(number) = unsettled.iter().map(|row| row.batch).max() else {
            return;
        };
        self.turn.number = number;
        let entries = unsettled
            .into_iter()
            .map(|row| Entry {
                confirmed: row.state == InboxState::Confirmed,
                // A claim may have lapsed meanwhile: it is made again before the message is.
                ..Entry::new((row.at, row.message))
            })
            .collect();
        self.turn.batch = Some(Batch { number, phase: Phase::Unsettled, entries, end: None });
    }

    /// How the unsettled messages can be recognised in the provider's record.
    pub(super) fn fingerprints(&mut self) -> Vec<MessageFingerprint> {
        // What is asked for may be settled, or followed by others, when the answer comes.
        let prompt = self.prompt_fingerprint();
        self.turn.asked = prompt
            .iter()
            .map(|_| PROMPT)
            .chain(self.turn.entries().map(|entry| entry.at))
            .collect();
        prompt
            .into_iter()
            .chain(self.turn.entries().map(|entry| fingerprint(&entry.message)))
            .collect()
    }

    /// `delivering` is made durable, then the provider gets the text; the entries join the batch.
    fn hand_over(&mut self, mut entries: Vec<Entry>, urgent: bool) {
        let Some(batch) = self.turn.batch.as_mut() else { return };
        let messages: Vec<&Message> = entries.iter().map(|entry| &entry.message).collect();
        let delivery = Delivery {
            batch: batch.number,
            key: prompt_text::key(&self.config.agent_id, &messages),
            text: prompt_text::of_batch(&messages),
            person: messages.iter().all(|message| prompt_text::is_of_person(message)),
            urgent,
        };
        for entry in &mut entries {
            entry.key = delivery.key.clone();
            let (at, state, batch) = (entry.at, InboxState::Delivering, batch.number);
            self.commits.write(StoreOp::InboxMark { at, state, batch, evidence: String::new() });
        }
        batch.entries.append(&mut entries);
        self.note_last();
        let (_, order) = self.supervisor.verb(Verb::Deliver(delivery));
        self.commits.defer(order);
    }

    pub(super) fn report_task(
        &mut self,
        now: Now,
        task: TaskId,
        at: MessageRef,
        status: TaskStatus,
        body: Option<String>,
    ) {
        let mut payload = json!({
            "taskId": task, "status": status, "agentId": self.config.agent_id,
            "metadata": {"messageId": at.id, "completedBy": "runner"}
        });
        if let Some(body) = body {
            payload["body"] = json!(body);
        }
        if let Some(Some(told)) = self.generations.on_wire(at.generation) {
            payload["generation"] = json!(told);
        }
        if status != TaskStatus::InProgress {
            self.outbox.hold_tasks();
        }
        let key = format!("task:{}:{task}:{}:{status}", self.config.agent_id, at.id);
        let generation = at.generation;
        self.append(OutboxRow {
            kind: RowKind::TaskUpdate,
            key,
            occurred_at: now.wall.0,
            payload,
            generation,
        });
    }

    /// `delivering` is made durable, then the provider gets the text.
    fn send_batch(&mut self) {
        let provider_ready = self.supervisor.is_ready();
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        if !provider_ready {
            // Nothing was written; the next conversation is asked and says so.
            batch.phase = Phase::Unsettled;
            return;
        }
        batch.phase = Phase::Sent;
        let entries = std::mem::take(&mut batch.entries);
        self.turn.running = true;
        self.hand_over(entries, false);
        self.start_turn_work();
    }

    fn start_turn_work(&mut self) {
        if !self.turn.told {
            self.turn.told = true;
            let text = "the runner handed messages over".into();
            self.note_evidence(DetailedStatus::Busy, StatusSource::Runner, text);
        }
        let label = self.turn.batch.as_ref().map(|batch| match batch.entries.len() {
            1 => format!("message #{}", batch.entries[0].message.id),
            n => format!(
                "{n} messages from #{}",
                batch.entries.first().map(|e| e.message.id).unwrap_or_default()
            ),
        });
        self.tracker.start_work(Work {
            kind: TURN.into(),
            id: TURN.into(),
            label,
            metadata: json!({}),
            ..Default::default()
        });
        self.status.touch();
    }

    pub(super) fn on_turn_started(&mut self, said: Option<String>) {
        self.turn.running = true;
        self.turn.told = true;
        let text = said.unwrap_or_else(|| "the session began a turn".into());
        self.note_evidence(DetailedStatus::Busy, StatusSource::Session, text);
        self.end_posted_status();
        self.start_turn_work();
    }

    /// A turn of the provider is under way, or is about to be.
    pub(super) fn is_turn_running(&self) -> bool {
        self.turn.running
    }

    pub(super) fn on_provider_state(&mut self, state: Value) {
        if self.tracker.count(TURN) > 0 {
            self.tracker.start_work(Work {
                kind: TURN.into(),
                id: TURN.into(),
                label: None,
                metadata: json!({"providerState": state}),
                ..Default::default()
            });
            self.status.touch();
        }
    }

    /// The provider has the batch: durable as `confirmed`, then told to the relay as read.
    pub(super) fn on_taken(&mut self, number: BatchNumber, key: &str, evidence: &str) {
        let mut batches = self.turn.batch.iter_mut().chain(&mut self.turn.tail);
        let Some(batch) = batches.find(|batch| {
            batch.number == number && matches!(batch.phase, Phase::Sent | Phase::Taken)
        }) else {
            return;
        };
        batch.phase = Phase::Taken;
        self.end_posted_status();
        self.confirm(Some(key), evidence);
    }

    /// Notes that the provider has the entries of that delivery, or all of the batch.
    fn confirm(&mut self, key: Option<&str>, evidence: &str) {
        let wanted = |entry: &Entry| key.is_none_or(|key| key == entry.key);
        let mut batches = self.turn.batch.iter_mut().chain(&mut self.turn.tail);
        let Some(batch) = batches.find(|batch| batch.entries.iter().any(wanted)) else {
            return;
        };
        let number = batch.number;
        let mut unread = Vec::new();
        for entry in batch.entries.iter_mut().filter(|entry| !entry.confirmed && wanted(entry)) {
            entry.confirmed = true;
            let (at, state, batch) = (entry.at, InboxState::Confirmed, number);
            self.commits.write(StoreOp::InboxMark { at, state, batch, evidence: evidence.into() });
        }
        for entry in batch.entries.iter().filter(|entry| wanted(entry)) {
            if !entry.read {
                unread.push(entry.at);
            }
            if entry.message.task_id().is_none() {
                self.tracker.finish_claim(ClaimKind::Message, &entry.message.id.to_string());
            }
        }
        for at in unread {
            self.ask_read(at, None);
        }
    }

    /// The batch that the provider has not confirmed yet, as monitors are told of it.
    pub(super) fn unconfirmed(&self) -> Option<(BatchNumber, Vec<Value>)> {
        let batch = self
            .turn
            .batch
            .as_ref()
            .filter(|batch| matches!(batch.phase, Phase::Sent | Phase::Taken))?;
        let show = |entry: &Entry| {
            let message = &entry.message;
            json!({"id": message.id, "from": message.from, "subject": message.subject, "bytes": message.body.len(),
                   "replyExpected": message.expects_reply()})
        };
        let waiting: Vec<Value> =
            batch.entries.iter().filter(|entry| !entry.confirmed).map(show).collect();
        // A word to go on has no message of its own: it names those that it is about.
        let waiting =
            if waiting.is_empty() { batch.entries.iter().map(show).collect() } else { waiting };
        (!waiting.is_empty()).then_some((batch.number, waiting))
    }

    /// Messages that are with the provider.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Message> {
        self.turn.entries().map(|entry| &entry.message)
    }

    /// The relay did not say in time what is owed.
    pub(super) fn on_settle_due(&mut self, now: Now) {
        self.timers.clear(Timer::SettleBatch);
        self.http_calls.forget(&CallKind::Obligations);
        self.settle_batch(now, false);
    }
}
