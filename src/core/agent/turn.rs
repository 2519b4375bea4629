//! From waiting messages to a settled batch (sections 11 and 12 of the runner specification, D-10, D-11).
//!
//! One batch at a time: claim what is claimable, make `delivering` durable, hand over, hear the evidence, and when the
//! turn has ended write replies and "batch done" in one transaction. A batch whose provider died stays unsettled; the
//! next conversation is asked what its record says.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Agent;
use super::calls::Purpose;
use super::config::ReplyMode;
use super::store::{InboxState, OutboxRow, StoreOp, Unsettled};
use crate::core::Cause;
use crate::core::limits::*;
use crate::core::session::{Fate, How, RESTART_MARK, Trace, TurnEnd, Verb};
use crate::core::time::{Now, Tick, sooner};
use crate::core::tracker::{Claim, ClaimKind, TURN, Work};
use crate::wire::api::{Message, NewMessage, path, task_is_final};

/// Name of the note that says that the first prompt was handed over.
pub(super) const PROMPT_NOTE: &str = "prompt";

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
    number: u64,
    retry_at: Option<Tick>,
    renew_at: Option<Tick>,
    settle_by: Option<Tick>,
    pub prompt_done: bool,
    /// A turn of the provider is running, whoever started it.
    running: bool,
}

/// The relay may take this long to say which answers are owed; then all are sent.
const SETTLE_WAIT: Duration = Duration::from_secs(5);

impl Turns {
    pub fn holds(&self, id: u64) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.entries.iter().any(|entry| entry.message.id == id))
    }

    pub fn note_read(&mut self, id: u64) {
        for entry in self.batch.iter_mut().flat_map(|batch| batch.entries.iter_mut()) {
            entry.read |= entry.message.id == id;
        }
    }

    pub fn unread_ids(&self) -> impl Iterator<Item = u64> {
        let entries = self.batch.iter().flat_map(|batch| batch.entries.iter());
        entries.filter(|entry| entry.confirmed && !entry.read).map(|entry| entry.message.id)
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
                claimed: !row.message.claimable,
                message: row.message,
                read: false,
            })
            .collect();
        self.turn.batch = Some(Batch { number, phase: Phase::Unsettled, entries, end: None });
    }

    /// How the unsettled messages can be recognised in the provider's record.
    pub(super) fn traces(&self) -> Vec<Trace> {
        let entries = self.turn.batch.iter().flat_map(|batch| batch.entries.iter());
        entries.map(|entry| trace(&entry.message)).collect()
    }

    /// Starts the next batch if there is something to deliver and somebody to take it.
    pub(super) fn drain(&mut self, now: Now) {
        self.fetch_inbox();
        let free = self.turn.batch.is_none() && self.life.is_ready() && !self.turn.running && self.stop.is_none();
        if !free || self.turn.retry_at.is_some_and(|at| at > now.tick) {
            return;
        }
        if !self.turn.prompt_done {
            self.turn.prompt_done = true;
            if let Some(text) = self.config.prompt.clone().filter(|text| !text.trim().is_empty()) {
                self.ops.push(StoreOp::Note { key: PROMPT_NOTE.into(), value: Some("delivered".into()) });
                let (_, order) = self.life.verb(Verb::Inject { text });
                self.after.push(order);
                self.turn.running = true;
                return;
            }
        }
        let mut bytes = 0;
        let ids: Vec<u64> = self
            .inbox
            .waiting()
            .take(BATCH_MESSAGES_MAX)
            .take_while(|message| {
                bytes += message.body.len().min(PREVIEW_CHARS_MAX * 4) + 256;
                bytes <= crate::wire::FRAME_BYTES_MAX
            })
            .map(|message| message.id)
            .collect();
        if ids.is_empty() {
            return;
        }
        self.turn.number += 1;
        let entries: Vec<Entry> = ids
            .into_iter()
            .filter_map(|id| self.inbox.take(id))
            .map(|message| Entry { claimed: !message.claimable, message, read: false, confirmed: false })
            .collect();
        self.turn.batch = Some(Batch { number: self.turn.number, phase: Phase::Claiming, entries, end: None });
        self.claim_batch();
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
        let left = expires_at.map(|end| Duration::from_millis((end - now.wall.0).clamp(0, 3_600_000) as u64)).unwrap_or(CLAIM_LEASE);
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
        let number = batch.number;
        for entry in &batch.entries {
            self.ops.push(StoreOp::InboxMark {
                id: entry.message.id,
                state: InboxState::Delivering,
                batch: number,
                evidence: String::new(),
            });
        }
        let text = batch.entries.iter().map(|entry| text_for_provider(&entry.message)).collect::<Vec<_>>().join("\n\n");
        self.turn.running = true;
        let (_, order) = self.life.verb(Verb::Deliver { batch: number, text });
        self.after.push(order);
        self.start_turn_work();
    }

    fn start_turn_work(&mut self) {
        let label = self.turn.batch.as_ref().map(|batch| match batch.entries.len() {
            1 => format!("message #{}", batch.entries[0].message.id),
            n => format!("{n} messages from #{}", batch.entries.first().map(|e| e.message.id).unwrap_or_default()),
        });
        self.tracker.start_work(Work { kind: TURN.into(), id: TURN.into(), label, metadata: json!({}) });
        self.status.touch();
    }

    pub(super) fn on_turn_started(&mut self) {
        self.turn.running = true;
        self.start_turn_work();
    }

    pub(super) fn on_provider_state(&mut self, state: Value) {
        if self.tracker.count(TURN) > 0 {
            self.tracker.start_work(Work { kind: TURN.into(), id: TURN.into(), label: None, metadata: json!({"providerState": state}) });
            self.status.touch();
        }
    }

    /// The provider has the batch: durable as `confirmed`, then told to the relay as read.
    pub(super) fn on_taken(&mut self, number: u64, evidence: &str) {
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        if batch.number != number || !matches!(batch.phase, Phase::Sent | Phase::Taken) {
            return;
        }
        batch.phase = Phase::Taken;
        self.confirm(evidence);
    }

    fn confirm(&mut self, evidence: &str) {
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        let number = batch.number;
        let mut ids = Vec::new();
        for entry in batch.entries.iter_mut().filter(|entry| !entry.confirmed) {
            entry.confirmed = true;
            let mark = StoreOp::InboxMark { id: entry.message.id, state: InboxState::Confirmed, batch: number, evidence: evidence.into() };
            self.ops.push(mark);
        }
        for entry in &batch.entries {
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

    pub(super) fn on_turn_ended(&mut self, now: Now, number: Option<u64>, end: TurnEnd, text: String) {
        self.turn.running = false;
        self.tracker.finish_work(TURN, TURN);
        self.status.touch();
        let mine = self.turn.batch.as_ref().is_some_and(|batch| Some(batch.number) == number);
        if mine && end == TurnEnd::Cancelled && self.life.is_ending() {
            // Cut off by a stop or restart of ours, not by anybody's wish: the next conversation goes on with it.
            self.on_turn_lost(now);
        } else if mine {
            self.confirm("the provider ended the turn");
            self.end_batch(now, end, text);
        }
    }

    /// The turn is over. Who still waits for an answer is asked first, so that nobody is answered twice (D-10).
    fn end_batch(&mut self, now: Now, end: TurnEnd, text: String) {
        let reachable = self.tokens.is_decided();
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        batch.end = Some((end, text));
        batch.phase = Phase::Settling;
        let may_be_answered = batch.entries.iter().any(|entry| entry.message.expects_reply());
        if may_be_answered && reachable && self.config.reply_mode == ReplyMode::Auto {
            self.turn.settle_by = Some(now.tick + SETTLE_WAIT);
            self.ask_obligations();
        } else {
            self.settle_batch(now, false);
        }
    }

    pub(super) fn on_obligations_known(&mut self, now: Now, fresh: bool) {
        if self.turn.batch.as_ref().is_some_and(|batch| batch.phase == Phase::Settling) {
            self.settle_batch(now, fresh);
        }
    }

    /// Replies and "batch done" in one transaction (D-10). `fresh`: the relay has just said which answers are owed.
    fn settle_batch(&mut self, now: Now, fresh: bool) {
        let Some(batch) = self.turn.batch.take() else {
            return;
        };
        self.turn.settle_by = None;
        let (end, text) = batch.end.unwrap_or((TurnEnd::Completed, String::new()));
        let owed: BTreeSet<u64> = self.obligations.iter().map(|owed| owed.message_id).collect();
        // A message that the relay does not count as read yet cannot stand among the obligations.
        let is_owed = |entry: &Entry| entry.message.expects_reply() && !(fresh && entry.read && !owed.contains(&entry.message.id));
        if self.config.reply_mode == ReplyMode::Auto {
            let mut senders: Vec<&str> = Vec::new();
            let waiting: Vec<&Entry> = batch.entries.iter().filter(|entry| is_owed(entry)).collect();
            for entry in &waiting {
                if !senders.contains(&entry.message.from.as_str()) {
                    senders.push(&entry.message.from);
                }
            }
            for sender in senders {
                let ids: Vec<u64> = waiting.iter().filter(|e| e.message.from == sender).map(|e| e.message.id).collect();
                self.reply(now, sender, &ids, &end, &text);
            }
        }
        for entry in &batch.entries {
            let settled = self.settle_task(now, &entry.message, &end, &text);
            if settled {
                self.settle_message(entry.message.id, entry.read);
            } else {
                self.forget_message(entry.message.id);
            }
            self.tracker.finish_claim(ClaimKind::Message, &entry.message.id.to_string());
        }
        self.status.touch();
    }

    /// One chat message per sender, answering the newest of its messages; its key makes it exactly one (D-10).
    fn reply(&mut self, now: Now, to: &str, ids: &[u64], end: &TurnEnd, text: &str) {
        let Some(newest) = ids.last() else { return };
        let body = match end {
            _ if !text.trim().is_empty() => text.to_string(),
            TurnEnd::Completed => "[agent-relay] The agent ended its turn without a text.".to_string(),
            TurnEnd::Cancelled => "[agent-relay] The turn was interrupted before it answered this message.".to_string(),
            TurnEnd::Failed(error) => format!("[agent-relay] The turn failed: {error}"),
        };
        let mut payload = Map::new();
        if ids.len() > 1 {
            payload.insert("answers".into(), json!(ids));
        }
        let key = format!("reply:{}:{newest}", self.config.agent_id);
        let message = NewMessage {
            from: Some(self.config.agent_id.clone()),
            to: to.to_string(),
            kind: "chat".into(),
            body: cut(&body, REPLY_BODY_BYTES_MAX),
            payload,
            reply_to: Some(*newest),
            reply_expected: Some(false),
            idempotency_key: Some(key.clone()),
            occurred_at: Some(now.wall.0),
            ..Default::default()
        };
        let payload = serde_json::to_value(message).expect("plain data");
        self.append(OutboxRow { kind: "message".into(), key, occurred_at: now.wall.0, payload });
    }

    /// The task of a message at the end of its turn (R-111 with its hazards closed). False: it is not settled, and the
    /// relay will offer it again.
    fn settle_task(&mut self, now: Now, message: &Message, end: &TurnEnd, text: &str) -> bool {
        let Some(task) = message.task_id().filter(|_| message.claimable) else {
            return true;
        };
        self.tracker.finish_claim(ClaimKind::Task, &task.to_string());
        let (status, body) = match end {
            TurnEnd::Completed => ("done", format!("Runner observed provider completion for message #{}", message.id)),
            TurnEnd::Failed(error) => ("failed", error.clone()),
            TurnEnd::Cancelled => return false,
        };
        debug_assert!(task_is_final(status) && text.len() < usize::MAX);
        self.report_task(now, task, message.id, status, Some(body));
        true
    }

    /// The provider ended while a batch was with it.
    pub(super) fn on_turn_lost(&mut self, _now: Now) {
        self.turn.running = false;
        if let Some(batch) = self.turn.batch.as_mut().filter(|batch| matches!(batch.phase, Phase::Sent | Phase::Taken)) {
            batch.phase = Phase::Unsettled;
        }
    }

    /// A conversation is open: what became of the batch that was under way (D-11)?
    pub(super) fn on_conversation(&mut self, now: Now, how: How) {
        let Some(batch) = self.turn.batch.as_mut().filter(|batch| batch.phase == Phase::Unsettled) else {
            return;
        };
        let confirmed = batch.entries.iter().all(|entry| entry.confirmed);
        match how {
            How::Loaded(Fate::Unseen) => self.send_again(),
            How::Loaded(Fate::Unanswered) => self.nudge("replay of the conversation"),
            How::Loaded(Fate::Answered(text)) => {
                batch.phase = Phase::Taken;
                self.confirm("replay of the conversation");
                self.end_batch(now, TurnEnd::Completed, text);
            }
            How::Resumed if confirmed => self.nudge("seen before the restart"),
            // Nobody can say: at least once (D-11).
            How::Resumed => self.send_again(),
            How::New | How::Lost(_) if !confirmed => self.send_again(),
            How::New | How::Lost(_) => {
                batch.phase = Phase::Taken;
                let reason =
                    "the conversation was lost in a restart; the message was seen but not answered, send it again if it still matters";
                self.end_batch(now, TurnEnd::Failed(reason.into()), String::new());
            }
        }
    }

    fn send_again(&mut self) {
        if let Some(batch) = self.turn.batch.as_mut() {
            for entry in batch.entries.iter_mut() {
                entry.confirmed = false;
            }
        }
        self.claim_batch();
    }

    /// The messages stand in the record, their answer does not: never sent twice, but the agent is told to go on.
    fn nudge(&mut self, evidence: &str) {
        self.confirm(evidence);
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        batch.phase = Phase::Taken;
        if batch.entries.iter().any(|entry| entry.message.claimable) {
            self.turn.renew_at = Some(self.now.tick);
        }
        let ids = batch.entries.iter().map(|entry| format!("#{}", entry.message.id)).collect::<Vec<_>>().join(", ");
        let text = format!(
            "{RESTART_MARK} while you worked on relay message {ids}. It stands in the conversation above; \
             please go on and answer it."
        );
        let number = batch.number;
        self.turn.running = true;
        let (_, order) = self.life.verb(Verb::Deliver { batch: number, text });
        self.after.push(order);
        self.start_turn_work();
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
            let tasks = self.turn.batch.iter().flat_map(|batch| batch.entries.iter());
            let ids: Vec<u64> = tasks.filter(|e| e.message.claimable && e.message.task_id().is_some()).map(|e| e.message.id).collect();
            for id in ids {
                let body = json!({"agentId": self.config.agent_id});
                self.ask(Purpose::RenewClaim(id), "POST", path::message_part(id, "claim/renew"), Some(body));
                self.turn.renew_at = Some(now.tick + CLAIM_RENEWAL_INTERVAL);
            }
        }
    }

    pub(super) fn on_claim_renewed(&mut self, now: Now, id: u64, result: Result<(u16, Value), Cause>) {
        let Ok((status, body)) = result else { return };
        let message = self.turn.batch.iter().flat_map(|b| b.entries.iter()).find(|e| e.message.id == id).map(|e| e.message.clone());
        if let (true, Some(message)) = (status < 300, message) {
            self.start_claims(now, &message, body.get("claimExpiresAt").and_then(Value::as_i64));
        }
    }
}

/// Header line of a message for the provider (P-8).
fn header(message: &Message) -> String {
    format!("[relay message #{} from {}]", message.id, message.from)
}

/// A body whose lines cannot be taken for the header of another message.
fn unforged(body: &str) -> std::borrow::Cow<'_, str> {
    const HEADER: &str = "[relay message #";
    if !body.contains(HEADER) {
        return body.into();
    }
    let quote = |line: &str| if line.trim_start().starts_with(HEADER) { format!("> {line}") } else { line.to_string() };
    body.split('\n').map(quote).collect::<Vec<_>>().join("\n").into()
}

fn trace(message: &Message) -> Trace {
    Trace { header: header(message), start: unforged(&message.body).chars().take(200).collect() }
}

/// What the provider reads of one message (P-8, P-9, P-11).
fn text_for_provider(message: &Message) -> String {
    let mut text = header(message);
    if let Some(subject) = message.subject.as_deref().filter(|subject| !subject.trim().is_empty()) {
        let line: Vec<&str> = subject.split_whitespace().collect();
        text.push_str(&format!("\nSubject: {}", line.join(" ")));
    }
    text.push('\n');
    let body = unforged(&message.body);
    if body.chars().count() > PREVIEW_CHARS_MAX {
        text.extend(body.chars().take(PREVIEW_CHARS_MAX));
        text.push_str(&format!(
            "\n[cut after {PREVIEW_CHARS_MAX} characters; read the whole message with: agent-relay get-message {}]",
            message.id
        ));
    } else {
        text.push_str(&body);
    }
    if !message.expects_reply() {
        text.push_str("\n[notification: no reply needed]");
    }
    text
}

/// Cuts a text at a character border.
pub(super) fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_string();
    }
    const NOTICE: &str = "\n[cut]";
    let mut end = bytes_max - NOTICE.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{NOTICE}", &text[..end])
}
