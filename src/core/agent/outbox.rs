//! What must reach the relay, in order: replies, task reports, mirror, insights.
//!
//! The store holds the rows; one exchange of up to 64 rows is under way at a time. Trouble of the
//! line or of the server (no answer, 5xx, 408, 429, 401, 403) never poisons a row: it waits. Only a
//! row that the relay can never take (other 4xx) is set aside, logged and counted.

use super::effect::{Effect, PumpCommand, StoreCommand};
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Agent;
use super::event::RowAnswer;
use super::store::{OutboxRow, QueuedRow, RowKind, StoreOp};
use crate::core::agent::timer::Timer;
use crate::core::limits::*;
use crate::core::session::Mirror;
use crate::core::time::{Now, Tick};
use crate::core::{Cause, backoff};
use crate::wire::api::MessageKind;
use crate::wire::api::{NewMessage, OTHER_GENERATION, USER};
use crate::wire::control::LogLevel;

#[derive(Debug, Default, PartialEq)]
enum Pump {
    #[default]
    Idle,
    /// Rows are being read.
    Fetching,
    /// Rows are on their way.
    Posting,
    /// After a failure.
    Waiting,
}

/// Counters and schedule of the outbox.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pump: Pump,
    pending: u64,
    poisoned: u64,
    dropped: u64,
    attempt: u32,
    /// The relay has answered since this runner started.
    heard: bool,
    /// Rows that are with the pump.
    flying: usize,
    /// Those of them that are pointless once the task or message that they are about is gone: task
    /// reports, reactions.
    reports: Vec<u64>,
    /// Answers to messages that the relay no longer has, as it said itself.
    unattached: BTreeSet<u64>,
    /// How a task ended may stand among the rows: no task is claimed until all have arrived.
    tasks_wait: bool,
    pub last_error: Option<(String, Tick)>,
}

/// Without the task or message that it is about the row says nothing.
fn is_about(row: &OutboxRow) -> bool {
    matches!(row.kind, RowKind::TaskUpdate | RowKind::Reaction)
}

impl Outbox {
    pub fn restore(&mut self, pending: u64, poisoned: u64) {
        self.pending = pending;
        self.poisoned = poisoned;
        self.tasks_wait = pending > 0;
    }

    pub fn is_empty(&self) -> bool {
        self.pending == 0
    }

    pub fn relay_is_back(&mut self) {
        self.heard = true;
        if self.pump == Pump::Waiting {
            self.pump = Pump::Idle;
        }
    }

    /// From here on no task is claimed until every row has arrived.
    pub fn hold_tasks(&mut self) {
        self.tasks_wait = true;
    }

    pub fn reports_wait(&self) -> bool {
        self.tasks_wait && self.pending > 0
    }

    pub fn summary(&self) -> Value {
        json!({"pending": self.pending, "poisoned": self.poisoned, "dropped": self.dropped, "inFlight": self.flying})
    }
}

/// What becomes of a row after the relay has answered it.
enum RowOutcome {
    /// The relay has it, or nobody waits for it: it is deleted.
    Arrived,
    /// It goes again later, and with it all that stand behind it.
    Waits,
    /// It stays in the store: to be sent again in another shape, or set aside.
    Kept,
}

impl Agent {
    /// Adds a row; it is sent once it is durable.
    pub(super) fn append(&mut self, row: OutboxRow) {
        self.outbox.pending += 1;
        self.commits.write(StoreOp::OutboxAppend(row));
    }

    pub(super) fn pump_outbox(&mut self) {
        self.outbox.tasks_wait &= self.outbox.pending > 0;
        let idle = self.outbox.pump == Pump::Idle && self.outbox.pending > 0;
        if idle && self.tokens.is_decided() && self.outbox.heard {
            self.outbox.pump = Pump::Fetching;
            // Behind the commit of this event, so that a row just appended is seen.
            self.commits.defer(Effect::Store(StoreCommand::FetchOutbox));
        }
    }

    pub(super) fn on_outbox_rows(&mut self, now: Now, rows: Result<Vec<QueuedRow>, Cause>) {
        if self.outbox.pump != Pump::Fetching {
            return;
        }
        let rows = match rows {
            Ok(rows) => rows,
            Err(cause) => {
                self.outbox.last_error = Some((cause.to_string(), now.tick));
                if let Cause::Store(error) = cause
                    && error.kind.retry().is_none()
                {
                    return self.on_store_broken(now, error);
                }
                return self.wait_outbox(now);
            }
        };
        let rows = self.for_this_relay(rows);
        match (rows.is_empty(), self.tokens.for_call()) {
            (false, Some(token)) => {
                self.outbox.pump = Pump::Posting;
                self.outbox.flying = rows.len();
                self.outbox.reports = rows
                    .iter()
                    .filter(|queued| is_about(&queued.row))
                    .map(|queued| queued.seq)
                    .collect();
                self.out.push(Effect::Pump(PumpCommand {
                    relay: self.config.relay_url.clone(),
                    rows,
                    token,
                }));
            }
            (false, None) => self.wait_outbox(now),
            (true, _) => {
                // Nothing there although the count says so: the bound dropped it.
                self.outbox.pump = Pump::Idle;
                self.outbox.pending = 0;
            }
        }
    }

    /// Rows about earlier generations: an answer tells in words what it answers, since the relay
    /// may no longer have that; a report about a task of a relay without generations has nobody to
    /// reach.
    fn for_this_relay(&mut self, rows: Vec<QueuedRow>) -> Vec<QueuedRow> {
        let mut wanted = Vec::with_capacity(rows.len());
        for mut queued in rows {
            let QueuedRow { seq, row } = &mut queued;
            let told = self.generations.on_wire(row.generation).is_some();
            if row.generation != 0 && is_about(row) && !told {
                let name = self.generations.name(row.generation);
                let text =
                    format!("row {seq} is dropped: what it is about is of another relay ({name})");
                self.log(LogLevel::Warn, "outbox", text);
                self.outbox.pending = self.outbox.pending.saturating_sub(1);
                self.commits.write(StoreOp::OutboxDelete(vec![*seq]));
                continue;
            }
            let unattached = self.outbox.unattached.contains(seq);
            if row.generation != 0
                && row.kind == RowKind::Message
                && (unattached || !self.generations.is_current(row.generation))
            {
                let attached = std::mem::take(&mut row.payload);
                row.payload = self.without_reply_to(&attached, row.generation);
                if told && !unattached {
                    // It may have it: the reference goes along, and the key stays.
                    for field in ["replyTo", "generation", "idempotencyKey", "payload"] {
                        row.payload[field] = attached.get(field).cloned().unwrap_or(Value::Null);
                    }
                }
            }
            wanted.push(queued);
        }
        wanted
    }

    fn wait_outbox(&mut self, now: Now) {
        self.outbox.pump = Pump::Waiting;
        self.outbox.attempt = self.outbox.attempt.saturating_add(1);
        self.timers.set(
            Timer::OutboxRetry,
            now.tick + backoff::outbox(self.outbox.attempt, &mut self.rng),
        );
    }

    /// The exchange is over. Order holds: after the first row that has to wait, the ones behind it
    /// wait too.
    pub(super) fn on_pumped(&mut self, now: Now, result: Result<Vec<RowAnswer>, Cause>) {
        self.outbox.flying = 0;
        self.outbox.pump = Pump::Idle;
        let answers = match result {
            Ok(answers) => answers,
            Err(cause) => {
                self.outbox.last_error = Some((cause.to_string(), now.tick));
                if let Cause::Refused(401 | 403, _) = cause {
                    self.on_auth_trouble(now, "outbox");
                }
                self.log(LogLevel::Debug, "outbox", format!("exchange failed: {cause}"));
                self.wait_outbox(now);
                return;
            }
        };
        let mut arrived = Vec::new();
        let mut waits = false;
        for answer in answers {
            let seq = answer.seq;
            match self.judge_row(now, answer) {
                RowOutcome::Arrived => arrived.push(seq),
                RowOutcome::Kept => {}
                RowOutcome::Waits => {
                    waits = true;
                    break;
                }
            }
        }
        if !arrived.is_empty() {
            self.outbox.pending = self.outbox.pending.saturating_sub(arrived.len() as u64);
            self.commits.write(StoreOp::OutboxDelete(arrived));
            self.outbox.attempt = 0;
        }
        if waits {
            self.wait_outbox(now);
        }
    }

    /// What the relay's answer means for a row.
    fn judge_row(&mut self, now: Now, answer: RowAnswer) -> RowOutcome {
        let RowAnswer { seq, status, code, error } = answer;
        match status {
            // Only an answer names a message; a report about a task that is not there any more has
            // nobody to reach.
            409 if code == OTHER_GENERATION && self.outbox.unattached.insert(seq) => {
                let text =
                    format!("row {seq} goes again without the message that it answers: {error}");
                self.log(LogLevel::Warn, "outbox", text);
                RowOutcome::Kept
            }
            // What it is about is not there any more: nobody waits for it.
            404 if self.outbox.reports.contains(&seq) => {
                let text =
                    format!("row {seq} ends here, what it is about is not there any more: {error}");
                self.log(LogLevel::Warn, "outbox", text);
                RowOutcome::Arrived
            }
            200..=299 | 409 => {
                self.outbox.unattached.remove(&seq);
                RowOutcome::Arrived
            }
            408 | 425 | 429 | 500.. | 401 | 403 => {
                self.outbox.last_error =
                    Some((format!("row {seq}: {error} (HTTP {status})"), now.tick));
                if matches!(status, 401 | 403) {
                    self.on_auth_trouble(now, "outbox");
                }
                RowOutcome::Waits
            }
            _ => {
                self.log(
                    LogLevel::Fatal,
                    "outbox",
                    format!("row {seq} can never be sent, set aside: {error} (HTTP {status})"),
                );
                self.outbox.poisoned += 1;
                self.outbox.pending = self.outbox.pending.saturating_sub(1);
                let reason = format!("{error} (HTTP {status})");
                self.commits.write(StoreOp::OutboxPoison { seq, reason });
                RowOutcome::Kept
            }
        }
    }

    pub(super) fn on_outbox_dropped(&mut self, dropped: Vec<(String, u64)>) {
        for (kind, rows) in dropped {
            self.outbox.dropped += rows;
            // `pending` stays: rows that are with the pump would be taken off twice. An empty fetch
            // puts it right.
            self.log(
                LogLevel::Warn,
                "outbox",
                format!("bound reached, dropped rows={rows} kind={kind}"),
            );
        }
    }

    /// The pause after a failed exchange is over.
    pub(super) fn on_outbox_due(&mut self) {
        self.timers.clear(Timer::OutboxRetry);
        self.outbox.pump = Pump::Idle;
    }

    /// A piece of the conversation, for people to see.
    pub(super) fn on_mirror(&mut self, now: Now, mirror: Mirror) {
        let session = json!({
            "provider": self.config.provider, "type": mirror.kind, "origin": "provider",
            "turnId": mirror.turn.to_string(), "label": mirror.label, "status": mirror.status,
        });
        let mut payload = serde_json::Map::new();
        payload.insert("session".into(), session);
        self.mirrored += 1;
        let key = match &mirror.key {
            Some(key) => format!("{}:session:{key}", self.config.agent_id),
            None => format!(
                "{}:session:{}:{}",
                self.config.agent_id, self.config.instance_id, self.mirrored
            ),
        };
        let message = NewMessage {
            from: Some(self.config.agent_id.clone()),
            to: USER.into(),
            kind: MessageKind::Session,
            body: super::prompt_text::cut(&mirror.body, MIRROR_BODY_BYTES_MAX),
            payload,
            reply_expected: Some(false),
            idempotency_key: Some(key.clone()),
            occurred_at: Some(now.wall.0),
            ..Default::default()
        };
        let payload = serde_json::to_value(message).expect("plain data");
        self.append(OutboxRow {
            kind: RowKind::SessionMessage,
            key,
            occurred_at: now.wall.0,
            payload,
            generation: 0,
        });
    }

    /// A hook broke: reported once the relay can be reached.
    pub(super) fn on_hook_fatal(&mut self, now: Now, hook: &str, error: &str) {
        let hook = hook.trim();
        let hook = if hook.is_empty() { "unknown" } else { hook };
        self.log(LogLevel::Fatal, &format!("hook:{hook}"), error.to_string());
        let payload = json!({
            "sessionId": self.supervisor.record.provider_session, "project": self.config.registration.meta.get("cwd"),
            "agentId": self.config.agent_id, "signal": "hook_fatal",
            "value": {"hook": hook, "error": super::prompt_text::cut(error, 4096)}, "source": "server", "occurredAt": now.wall.0,
        });
        self.mirrored += 1;
        let key = format!(
            "{}:insight:{}:{}",
            self.config.agent_id, self.config.instance_id, self.mirrored
        );
        self.append(OutboxRow {
            kind: RowKind::Insight,
            key,
            occurred_at: now.wall.0,
            payload,
            generation: 0,
        });
    }
}
