//! From waiting messages to a settled batch (sections 11 and 12 of the runner specification, D-10, D-11).
//!
//! One batch at a time: claim what is claimable, make `delivering` durable, hand over, hear the evidence, and when the
//! turn has ended write replies and "batch done" in one transaction. A batch whose provider died stays unsettled; the
//! next conversation is asked what its record says.

mod recover;
mod settle;

use std::time::Duration;

use serde_json::{Value, json};

use super::Agent;
use super::calls::Purpose;
use super::prompt::PROMPT_ID;
use super::store::{InboxState, OutboxRow, StoreOp, Unsettled};
use super::text::{self, trace};
use crate::core::Cause;
use crate::core::limits::*;
use crate::core::session::{Parcel, Trace, TurnEnd, Verb};
use crate::core::time::{Now, Tick, sooner};
use crate::core::tracker::{Claim, ClaimKind, TURN, Work};
use crate::wire::api::{Message, path};

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

#[derive(Debug)]
struct Entry {
    message: Message,
    claimed: bool,
    read: bool,
    confirmed: bool,
    /// Key of the parcel that it travels in.
    key: String,
}

impl Entry {
    fn new(message: Message) -> Entry {
        Entry { claimed: !message.claimable, message, read: false, confirmed: false, key: String::new() }
    }
}

#[derive(Debug)]
struct Batch {
    number: u64,
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
    asked: Vec<u64>,
    number: u64,
    retry_at: Option<Tick>,
    renew_at: Option<Tick>,
    settle_by: Option<Tick>,
    /// A turn of the provider is running, whoever started it.
    running: bool,
    /// How that is known has been told.
    told: bool,
}

/// The relay may take this long to say which answers are owed; then all are sent.
const SETTLE_WAIT: Duration = Duration::from_secs(5);

impl Turns {
    pub fn holds(&self, id: u64) -> bool {
        self.entries().any(|entry| entry.message.id == id)
    }

    pub fn note_read(&mut self, id: u64) {
        for entry in self.batch.iter_mut().chain(&mut self.tail).flat_map(|batch| batch.entries.iter_mut()) {
            entry.read |= entry.message.id == id;
        }
    }

    pub fn unread_ids(&self) -> impl Iterator<Item = u64> {
        self.entries().filter(|entry| entry.confirmed && !entry.read).map(|entry| entry.message.id)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.batch.iter().chain(&self.tail).flat_map(|batch| batch.entries.iter())
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        sooner(sooner(self.retry_at, self.renew_at), self.settle_by)
    }

    /// Claims that failed for want of a relay are tried again at once.
    pub fn relay_is_back(&mut self) {
        self.retry_at = None;
    }

    pub fn summary(&self) -> Value {
        match &self.batch {
            None => Value::Null,
            Some(batch) => json!({
                "batch": batch.number,
                "phase": format!("{:?}", batch.phase).to_lowercase(),
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
                ..Entry::new(row.message)
            })
            .collect();
        self.turn.batch = Some(Batch { number, phase: Phase::Unsettled, entries, end: None });
    }

    /// How the unsettled messages can be recognised in the provider's record.
    pub(super) fn traces(&mut self) -> Vec<Trace> {
        // What is asked for may be settled, or followed by others, when the answer comes.
        let prompt = self.prompt_trace();
        self.turn.asked = prompt.iter().map(|_| PROMPT_ID).chain(self.turn.entries().map(|entry| entry.message.id)).collect();
        prompt.into_iter().chain(self.turn.entries().map(|entry| trace(&entry.message))).collect()
    }

    /// Starts the next batch if there is something to deliver and somebody to take it.
    pub(super) fn drain(&mut self, now: Now) {
        self.fetch_inbox();
        self.drain_urgent();
        let free = self.turn.batch.is_none() && self.life.is_ready() && !self.turn.running && self.stop.is_none();
        if !free || self.turn.retry_at.is_some_and(|at| at > now.tick) {
            return;
        }
        if self.begin_prompt() {
            self.turn.running = true;
            return;
        }
        let ids = self.next_ids();
        if ids.is_empty() {
            return;
        }
        self.turn.number += 1;
        let entries: Vec<Entry> = ids.into_iter().filter_map(|id| self.inbox.take(id)).map(Entry::new).collect();
        self.turn.batch = Some(Batch { number: self.turn.number, phase: Phase::Claiming, entries, end: None });
        self.claim_batch();
    }

    /// The waiting messages that make the next batch: lowest ids first, and where the provider treats the words of people
    /// and of others differently, only as far as one kind goes.
    fn next_ids(&self) -> Vec<u64> {
        let mut kind = None;
        let one_kind = |message: &&Message| {
            !self.config.apart || *kind.get_or_insert_with(|| text::is_of_person(message)) == text::is_of_person(message)
        };
        self.inbox.waiting().take(BATCH_MESSAGES_MAX).take_while(one_kind).map(|message| message.id).collect()
    }

    /// Urgent messages go into the turn that runs, if the session can do that; claimable ones wait for their claim.
    fn drain_urgent(&mut self) {
        let runs = self.turn.running && self.turn.tail.is_none() && self.life.is_ready() && self.stop.is_none();
        let joins = self.turn.batch.as_ref().is_none_or(|batch| matches!(batch.phase, Phase::Sent | Phase::Taken));
        if !runs || !joins || !self.config.takes_urgent {
            return;
        }
        let urgent = |message: &&Message| message.is_urgent() && !message.claimable;
        let Some(first) = self.inbox.waiting().find(urgent) else { return };
        let person = text::is_of_person(first);
        let same = |message: &&Message| urgent(message) && (!self.config.apart || text::is_of_person(message) == person);
        let ids: Vec<u64> = self.inbox.waiting().filter(same).take(BATCH_MESSAGES_MAX).map(|message| message.id).collect();
        if self.turn.batch.is_none() {
            self.turn.number += 1;
            self.turn.batch = Some(Batch { number: self.turn.number, phase: Phase::Sent, entries: Vec::new(), end: None });
        }
        let entries: Vec<Entry> = ids.into_iter().filter_map(|id| self.inbox.take(id)).map(Entry::new).collect();
        self.hand_over(entries, true);
    }

    /// `delivering` is made durable, then the provider gets the text; the entries join the batch.
    fn hand_over(&mut self, mut entries: Vec<Entry>, urgent: bool) {
        let Some(batch) = self.turn.batch.as_mut() else { return };
        let messages: Vec<&Message> = entries.iter().map(|entry| &entry.message).collect();
        let parcel = Parcel {
            batch: batch.number,
            key: text::key(&self.config.agent_id, &messages),
            text: text::of_batch(&messages),
            person: messages.iter().all(|message| text::is_of_person(message)),
            urgent,
        };
        for entry in &mut entries {
            entry.key = parcel.key.clone();
            let (id, state, batch) = (entry.message.id, InboxState::Delivering, batch.number);
            self.ops.push(StoreOp::InboxMark { id, state, batch, evidence: String::new() });
        }
        batch.entries.append(&mut entries);
        let (_, order) = self.life.verb(Verb::Deliver(parcel));
        self.after.push(order);
    }

    /// Makes the claims that the batch lacks, then sends it.
    fn claim_batch(&mut self) {
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        batch.phase = Phase::Claiming;
        let ids: Vec<u64> = batch.entries.iter().filter(|entry| !entry.claimed).map(|entry| entry.message.id).collect();
        for id in ids {
            let body = json!({"agentId": self.config.agent_id, "instanceId": self.config.instance_id});
            self.ask(Purpose::Claim(id), "POST", path::message_part(id, "claim"), Some(body));
        }
        self.deliver_if_claimed();
    }

    /// One claim answered: ours, somebody else's, or unknown for now.
    pub(super) fn on_claim_answer(&mut self, now: Now, id: u64, result: Result<(u16, Value), Cause>) {
        let Some(batch) = self.turn.batch.as_mut().filter(|batch| batch.phase == Phase::Claiming) else {
            return;
        };
        let Some(at) = batch.entries.iter().position(|entry| entry.message.id == id) else {
            return;
        };
        match result {
            Ok((status, body)) if status < 300 => {
                batch.entries[at].claimed = true;
                let message = batch.entries[at].message.clone();
                self.start_claims(now, &message, body.get("claimExpiresAt").and_then(Value::as_i64));
                if let Some(task) = message.task_id() {
                    self.report_task(now, task, message.id, "in_progress", None);
                }
            }
            // Somebody else has it, or it is gone: leave without a trace, the relay offers it again if need be.
            Ok((404 | 409 | 410 | 422, _)) => {
                batch.entries.remove(at);
                self.forget_message(id);
            }
            _ => {
                let entry = batch.entries.remove(at);
                let state = InboxState::Received;
                self.ops.push(StoreOp::InboxMark { id, state, batch: 0, evidence: String::new() });
                self.inbox.put_back(entry.message);
                self.turn.retry_at = Some(now.tick + DELIVERY_RETRY);
            }
        }
        self.deliver_if_claimed();
    }

    fn start_claims(&mut self, now: Now, message: &Message, expires_at: Option<i64>) {
        // By the server's time at receipt: a wall clock jump later does not move the deadline (D-15).
        let left =
            expires_at.map(|end| Duration::from_millis(end.saturating_sub(now.wall.0).clamp(0, 3_600_000) as u64)).unwrap_or(CLAIM_LEASE);
        let expires = Some(now.tick + left);
        self.tracker.start_claim(Claim { kind: ClaimKind::Message, id: message.id.to_string(), expires });
        if let Some(task) = message.task_id() {
            self.tracker.start_claim(Claim { kind: ClaimKind::Task, id: task.to_string(), expires });
            self.turn.renew_at.get_or_insert(now.tick + CLAIM_RENEWAL_INTERVAL);
        }
        self.status.touch();
    }

    fn report_task(&mut self, now: Now, task: u64, message: u64, status: &str, body: Option<String>) {
        let mut payload = json!({
            "taskId": task, "status": status, "agentId": self.config.agent_id,
            "metadata": {"messageId": message, "completedBy": "runner"}
        });
        if let Some(body) = body {
            payload["body"] = json!(body);
        }
        let key = format!("task:{}:{task}:{message}:{status}", self.config.agent_id);
        self.append(OutboxRow { kind: "task-update".into(), key, occurred_at: now.wall.0, payload });
    }

    fn deliver_if_claimed(&mut self) {
        let Some(batch) = self.turn.batch.as_mut().filter(|batch| batch.phase == Phase::Claiming) else {
            return;
        };
        if batch.entries.is_empty() {
            self.turn.batch = None;
            return;
        }
        if batch.entries.iter().all(|entry| entry.claimed) {
            self.send_batch();
        }
    }

    /// `delivering` is made durable, then the provider gets the text.
    fn send_batch(&mut self) {
        let provider_ready = self.life.is_ready();
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        if !provider_ready {
            batch.phase = Phase::Unsettled; // nothing was written; the next conversation is asked and says so
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
            self.status.set_evidence(self.now, "the runner handed messages over".into());
        }
        let label = self.turn.batch.as_ref().map(|batch| match batch.entries.len() {
            1 => format!("message #{}", batch.entries[0].message.id),
            n => format!("{n} messages from #{}", batch.entries.first().map(|e| e.message.id).unwrap_or_default()),
        });
        self.tracker.start_work(Work { kind: TURN.into(), id: TURN.into(), label, metadata: json!({}) });
        self.status.touch();
    }

    pub(super) fn on_turn_started(&mut self) {
        self.turn.running = true;
        self.turn.told = true;
        self.start_turn_work();
    }

    pub(super) fn on_provider_state(&mut self, state: Value) {
        if self.tracker.count(TURN) > 0 {
            self.tracker.start_work(Work { kind: TURN.into(), id: TURN.into(), label: None, metadata: json!({"providerState": state}) });
            self.status.touch();
        }
    }

    /// The provider has the batch: durable as `confirmed`, then told to the relay as read.
    pub(super) fn on_taken(&mut self, number: u64, key: &str, evidence: &str) {
        let mut batches = self.turn.batch.iter_mut().chain(&mut self.turn.tail);
        let Some(batch) = batches.find(|batch| batch.number == number && matches!(batch.phase, Phase::Sent | Phase::Taken)) else {
            return;
        };
        batch.phase = Phase::Taken;
        self.confirm(Some(key), evidence);
    }

    /// Entries of that parcel, or all of the batch.
    fn confirm(&mut self, key: Option<&str>, evidence: &str) {
        let wanted = |entry: &Entry| key.is_none_or(|key| key == entry.key);
        let mut batches = self.turn.batch.iter_mut().chain(&mut self.turn.tail);
        let Some(batch) = batches.find(|batch| batch.entries.iter().any(wanted)) else {
            return;
        };
        let number = batch.number;
        let mut ids = Vec::new();
        for entry in batch.entries.iter_mut().filter(|entry| !entry.confirmed && wanted(entry)) {
            entry.confirmed = true;
            let mark = StoreOp::InboxMark { id: entry.message.id, state: InboxState::Confirmed, batch: number, evidence: evidence.into() };
            self.ops.push(mark);
        }
        for entry in batch.entries.iter().filter(|entry| wanted(entry)) {
            if !entry.read {
                ids.push(entry.message.id);
            }
            if entry.message.task_id().is_none() {
                self.tracker.finish_claim(ClaimKind::Message, &entry.message.id.to_string());
            }
        }
        for id in ids {
            self.ask_read(id, None);
        }
    }

    /// The batch that the provider has not confirmed yet, as monitors are told of it.
    pub(super) fn unconfirmed(&self) -> Option<(u64, Vec<Value>)> {
        let batch = self.turn.batch.as_ref().filter(|batch| matches!(batch.phase, Phase::Sent | Phase::Taken))?;
        let show = |entry: &Entry| {
            let message = &entry.message;
            json!({"id": message.id, "from": message.from, "subject": message.subject, "bytes": message.body.len(),
                   "replyExpected": message.expects_reply()})
        };
        let waiting: Vec<Value> = batch.entries.iter().filter(|entry| !entry.confirmed).map(show).collect();
        // A word to go on has no message of its own: it names those that it is about.
        let waiting = if waiting.is_empty() { batch.entries.iter().map(show).collect() } else { waiting };
        (!waiting.is_empty()).then_some((batch.number, waiting))
    }

    /// Messages that are with the provider.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Message> {
        self.turn.entries().map(|entry| &entry.message)
    }

    pub(super) fn wake_turn(&mut self, now: Now) {
        if self.turn.retry_at.is_some_and(|at| at <= now.tick) {
            self.turn.retry_at = None;
        }
        if self.turn.settle_by.is_some_and(|at| at <= now.tick) {
            self.calls.forget(&Purpose::Obligations);
            self.settle_batch(now, false);
        }
        if self.turn.renew_at.is_some_and(|at| at <= now.tick) {
            self.turn.renew_at = None;
            let ids: Vec<u64> =
                self.turn.entries().filter(|e| e.message.claimable && e.message.task_id().is_some()).map(|e| e.message.id).collect();
            for id in ids {
                let body = json!({"agentId": self.config.agent_id});
                self.ask(Purpose::RenewClaim(id), "POST", path::message_part(id, "claim/renew"), Some(body));
                self.turn.renew_at = Some(now.tick + CLAIM_RENEWAL_INTERVAL);
            }
        }
    }

    pub(super) fn on_claim_renewed(&mut self, now: Now, id: u64, result: Result<(u16, Value), Cause>) {
        let Ok((status, body)) = result else { return };
        let message = self.turn.entries().find(|e| e.message.id == id).map(|e| e.message.clone());
        if let (true, Some(message)) = (status < 300, message) {
            self.start_claims(now, &message, body.get("claimExpiresAt").and_then(Value::as_i64));
        }
    }
}
