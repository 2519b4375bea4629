//! Claims: made before a batch is sent, renewed while its task is worked on, lost or given up.

use std::time::Duration;

use serde_json::{Value, json};

use super::Phase;
use crate::core::Cause;
use crate::core::agent::Agent;
use crate::core::agent::http_calls::CallKind;
use crate::core::agent::store::{InboxState, StoreOp};
use crate::core::agent::timer::Timer;
use crate::core::agent::tracker::{Claim, ClaimKind};
use crate::core::ids::{BatchNumber, MessageRef};
use crate::core::limits::*;
use crate::core::time::Now;
use crate::wire::api::{Message, OTHER_GENERATION, TaskStatus, path};

impl Agent {
    /// Makes the claims that the batch lacks, then sends it.
    pub(super) fn claim_batch(&mut self) {
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        batch.phase = Phase::Claiming;
        let wanted: Vec<MessageRef> =
            batch.entries.iter().filter(|entry| !entry.claimed).map(|entry| entry.at).collect();
        for at in wanted {
            let Some(mut body) = self.body_about(at) else {
                self.drop_claimable(at, true);
                continue;
            };
            body["instanceId"] = json!(self.config.instance_id);
            self.ask(CallKind::Claim(at), "POST", path::message_part(at.id, "claim"), Some(body));
        }
        self.deliver_if_claimed();
    }

    /// The body of a call about a message; `None`: this relay would take its id for another one.
    fn body_about(&self, at: MessageRef) -> Option<Value> {
        let told = self.generations.on_wire(at.generation)?;
        let mut body = json!({"agentId": self.config.agent_id});
        if let Some(told) = told {
            body["generation"] = json!(told);
        }
        Some(body)
    }

    /// A message that cannot be claimed leaves its batch and is forgotten: the relay offers it
    /// again if need be. `lost`: the relay does not have it any more, and nobody else will ever
    /// offer it.
    fn drop_claimable(&mut self, at: MessageRef, lost: bool) {
        let Some(batch) = self.turn.batch.as_mut() else { return };
        let Some(place) = batch.entries.iter().position(|entry| entry.at == at) else { return };
        let entry = batch.entries.remove(place);
        if lost {
            self.tell_not_started(at, &entry.message);
        }
        self.forget_message(at);
    }

    /// The answer to a claim: ours, somebody else's, or unknown for now.
    pub(in crate::core::agent) fn on_claim_answer(
        &mut self,
        now: Now,
        at: MessageRef,
        result: Result<(u16, Value), Cause>,
    ) {
        let Some(batch) = self.turn.batch.as_mut().filter(|batch| batch.phase == Phase::Claiming)
        else {
            return;
        };
        let Some(place) = batch.entries.iter().position(|entry| entry.at == at) else {
            return;
        };
        match result {
            Ok((status, body)) if status < 300 => {
                batch.entries[place].claimed = true;
                let message = batch.entries[place].message.clone();
                self.start_claims(
                    now,
                    &message,
                    body.get("claimExpiresAt").and_then(Value::as_i64),
                );
                if let Some(task) = message.task_id() {
                    self.report_task(now, task, at, TaskStatus::InProgress, None);
                }
            }
            Ok((404, _)) => self.drop_claimable(at, true),
            Ok((409, body)) => self.drop_claimable(
                at,
                body.get("code").and_then(Value::as_str) == Some(OTHER_GENERATION),
            ),
            // Somebody else has it, or it cannot be claimed.
            Ok((410 | 422, _)) => self.drop_claimable(at, false),
            _ => {
                let entry = batch.entries.remove(place);
                let state = InboxState::Received;
                self.commits.write(StoreOp::InboxMark {
                    at,
                    state,
                    batch: BatchNumber::default(),
                    evidence: String::new(),
                });
                self.inbox.put_back(at, entry.message);
                self.timers.set(Timer::DeliveryRetry, now.tick + DELIVERY_RETRY);
            }
        }
        self.deliver_if_claimed();
    }

    fn start_claims(&mut self, now: Now, message: &Message, expires_at: Option<i64>) {
        // By the relay's clock: ours may differ, and a jump of it does not move the deadline.
        let clock = self.relay_link.clock(now);
        let left = expires_at
            .map(|end| Duration::from_millis(end.saturating_sub(clock).clamp(0, 3_600_000) as u64))
            .unwrap_or(CLAIM_LEASE);
        let expires = Some(now.tick + left);
        self.tracker.start_claim(Claim {
            kind: ClaimKind::Message,
            id: message.id.to_string(),
            expires,
        });
        if let Some(task) = message.task_id() {
            self.tracker.start_claim(Claim {
                kind: ClaimKind::Task,
                id: task.to_string(),
                expires,
            });
            self.timers.set_once(Timer::ClaimRenewal, now.tick + CLAIM_RENEWAL_INTERVAL);
        }
        self.status.touch();
    }

    fn deliver_if_claimed(&mut self) {
        let Some(batch) = self.turn.batch.as_mut().filter(|batch| batch.phase == Phase::Claiming)
        else {
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

    pub(in crate::core::agent) fn on_claim_renewal_due(&mut self, now: Now) {
        self.timers.clear(Timer::ClaimRenewal);
        let mut claimed = self.renew_held();
        claimed.extend(
            self.turn
                .entries()
                .filter(|e| e.message.claimable && e.message.task_id().is_some())
                .map(|e| e.at),
        );
        for at in claimed {
            let Some(body) = self.body_about(at) else { continue };
            self.ask(
                CallKind::RenewClaim(at),
                "POST",
                path::message_part(at.id, "claim/renew"),
                Some(body),
            );
            self.timers.set(Timer::ClaimRenewal, now.tick + CLAIM_RENEWAL_INTERVAL);
        }
    }

    pub(in crate::core::agent) fn on_claim_renewed(
        &mut self,
        now: Now,
        at: MessageRef,
        result: Result<(u16, Value), Cause>,
    ) {
        let Ok((status, body)) = result else { return };
        if matches!(status, 404 | 409 | 410) {
            self.let_go(at);
            // The end of a task of an older generation is reported all the same: the relay whose
            // data were put back keeps it blocked until then.
            let lost = self.generations.is_current(at.generation);
            if let Some(entry) = self.turn.entry(at) {
                entry.lost = lost;
            }
        }
        let message = self.turn.entries().find(|e| e.at == at).map(|e| e.message.clone());
        if let (true, Some(message)) = (status < 300, message) {
            self.start_claims(now, &message, body.get("claimExpiresAt").and_then(Value::as_i64));
        }
    }
}
