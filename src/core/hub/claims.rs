//! Claims with leases: the first claim wins, the same agent renews, a lapse offers the message
//! again.

use serde_json::{Value, json};

use super::Hub;
use super::Refusal;
use super::event::{After, HubOp, StoredClaim, StoredOffer};
use super::tasks::is_blocked;
use crate::core::ids::{MessageId, TaskId};
use crate::core::limits::*;
use crate::core::time::Tick;
use crate::wire::api::TaskStatus;
use crate::wire::control::LogLevel;

/// A claimable message that is not settled.
#[derive(Debug, Default, Clone)]
pub(super) struct Offer {
    pub task: Option<TaskId>,
    pub sender: String,
    pub recipients: Vec<String>,
    pub claim: Option<Claim>,
}

/// The holder of a claim, and its end on our own clock.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub agent: String,
    pub until: Tick,
    pub read: bool,
}

impl Hub {
    pub(super) fn restore_offer(&mut self, stored: StoredOffer) {
        let claim = stored.claim.map(|StoredClaim { agent, expires_at, is_read }| {
            // The lease lasts as promised, but at most a whole one from here: the wall clock may
            // have jumped.
            let left =
                std::time::Duration::from_millis((expires_at - self.now.wall.0).max(0) as u64)
                    .min(CLAIM_LEASE);
            Claim { agent, until: self.now.tick + left, read: is_read }
        });
        // Its sender is known again where it is a task.
        let sender = String::new();
        self.offers.insert(
            stored.message,
            Offer { task: stored.task, sender, recipients: stored.recipients, claim: None },
        );
        self.set_claim(stored.message, claim);
    }

    /// Sets or ends the claim of a message, together with its deadline.
    fn set_claim(&mut self, message: MessageId, claim: Option<Claim>) {
        let Some(offer) = self.offers.get_mut(&message) else {
            return;
        };
        let until = claim.as_ref().map(|claim| claim.until);
        if let Some(old) = std::mem::replace(&mut offer.claim, claim) {
            self.leases.remove(&(old.until, message));
        }
        self.leases.extend(until.map(|until| (until, message)));
    }

    pub(super) fn claim(&mut self, message: MessageId, agent: &str) -> Result<Value, Refusal> {
        let Some(offer) = self.offers.get(&message) else {
            return Err((
                409,
                "already_claimed",
                "the message is settled or cannot be claimed".into(),
            ));
        };
        if let Some(task) = offer.task.filter(|_| self.is_blocked_task(offer.task)) {
            return Err(is_blocked(task));
        }
        if let Some(claim) =
            offer.claim.as_ref().filter(|claim| claim.agent != agent && claim.until > self.now.tick)
        {
            return Err((409, "already_claimed", format!("{} holds this message", claim.agent)));
        }
        let renewed = offer.claim.as_ref().is_some_and(|claim| claim.agent == agent);
        let read = renewed && offer.claim.as_ref().is_some_and(|claim| claim.read);
        let task = offer.task;
        let expires_at = self.now.wall.0 + CLAIM_LEASE.as_millis() as i64;
        let until = self.now.tick + CLAIM_LEASE;
        self.set_claim(message, Some(Claim { agent: agent.to_string(), until, read }));
        self.commits.write(HubOp::ClaimPut { message, agent: agent.to_string(), expires_at });
        if !renewed {
            if let Some(task) = task.filter(|task| {
                self.tasks.get(task).is_some_and(|open| open.status == TaskStatus::Open)
            }) {
                self.mark_task(task, TaskStatus::Claimed, Some(agent.to_string()), Value::Null);
            }
            self.emit(
                "message.claimed",
                agent,
                json!({"messageId": message, "agentId": agent, "claimExpiresAt": expires_at}),
            );
        }
        Ok(json!({"ok": true, "claimExpiresAt": expires_at}))
    }

    /// A runtime token claims and works on what its agent was offered, and nothing else.
    pub(super) fn must_be_offered(&self, message: MessageId, agent: &str) -> Result<(), Refusal> {
        match self.offers.get(&message) {
            Some(offer) if !offer.recipients.iter().any(|recipient| recipient == agent) => {
                Err((403, "forbidden", format!("message {message} was not offered to {agent}")))
            }
            _ => Ok(()),
        }
    }

    /// Gives a claim back: the message is offered again at once.
    pub(super) fn release_claim(&mut self, message: MessageId, agent: &str) -> Result<(), Refusal> {
        let held = self
            .offers
            .get(&message)
            .and_then(|offer| offer.claim.as_ref())
            .is_some_and(|claim| claim.agent == agent);
        if held {
            self.reoffer(message);
            Ok(())
        } else {
            Err((409, "not_claimed", "this agent does not hold the message".into()))
        }
    }

    pub(super) fn release_claims_of(&mut self, agent: &str) {
        let held: Vec<MessageId> = self
            .offers
            .iter()
            .filter(|(_, offer)| offer.claim.as_ref().is_some_and(|claim| claim.agent == agent))
            .map(|(id, _)| *id)
            .collect();
        for message in held {
            self.end_claim(message);
        }
    }

    /// Whether the message carries a task that this agent does not hold: a late read mark must not
    /// hide the new offer.
    pub(super) fn is_task_of_others(&self, message: MessageId, agent: &str) -> bool {
        let holds = |offer: &Offer| offer.claim.as_ref().is_some_and(|claim| claim.agent == agent);
        self.offers.get(&message).is_some_and(|offer| offer.task.is_some() && !holds(offer))
    }

    /// The claimer has read it: a message without a task is settled by that when the claim ends.
    pub(super) fn note_claim_read(&mut self, message: MessageId, agent: &str) {
        if let Some(claim) = self.offers.get_mut(&message).and_then(|offer| offer.claim.as_mut())
            && claim.agent == agent
        {
            claim.read = true;
        }
    }

    /// A final task status, or the end of a claim that was read, settles the message for everybody.
    pub(super) fn settle_offer(&mut self, message: MessageId) {
        self.set_claim(message, None);
        let Some(offer) = self.offers.remove(&message) else { return };
        self.accounts.offers.remove(&offer.sender);
        for recipient in &offer.recipients {
            if let Some(queue) = self.queues.get_mut(recipient) {
                queue.ids.remove(&message);
            }
        }
        self.commits.write(HubOp::ClaimEnd { message, reoffer: false, at: self.now.wall.0 });
    }

    /// The retention removed the message: nobody claimed it in all that time.
    pub(super) fn forget_offer(&mut self, message: MessageId) {
        self.set_claim(message, None);
        let Some(offer) = self.offers.remove(&message) else { return };
        self.accounts.offers.remove(&offer.sender);
        if let Some(task) = offer.task {
            self.tasks.remove(&task);
        }
    }

    /// Ends the claim without a new offer.
    pub(super) fn end_claim_silently(&mut self, message: MessageId) {
        self.set_claim(message, None);
    }

    fn end_claim(&mut self, message: MessageId) {
        let Some(offer) = self.offers.get(&message) else {
            return;
        };
        let settled = offer.task.is_none() && offer.claim.as_ref().is_some_and(|claim| claim.read);
        if settled {
            self.settle_offer(message);
        } else {
            self.reoffer(message);
        }
    }

    /// Ends the claim; nobody is offered the message until somebody opens its task again.
    pub(super) fn hold_offer(&mut self, message: MessageId) {
        self.set_claim(message, None);
        let Some(offer) = self.offers.get(&message) else { return };
        for recipient in &offer.recipients {
            if let Some(queue) = self.queues.get_mut(recipient) {
                queue.ids.remove(&message);
            }
        }
        self.commits.write(HubOp::OfferHeld { message, at: self.now.wall.0 });
    }

    /// Offers the message again: unread and unacknowledged for everybody, the last holder included.
    pub(super) fn offer_again(&mut self, message: MessageId) {
        self.set_claim(message, None);
        let Some(offer) = self.offers.get(&message) else { return };
        let recipients = offer.recipients.clone();
        self.commits.write(HubOp::ClaimEnd { message, reoffer: true, at: self.now.wall.0 });
        for recipient in &recipients {
            self.queues.entry(recipient.clone()).or_default().ids.insert(message);
        }
        self.commits.defer(After::Offer { recipients });
    }

    fn reoffer(&mut self, message: MessageId) {
        let Some(offer) = self.offers.get(&message) else {
            return;
        };
        let holder = offer.claim.as_ref().map(|claim| claim.agent.clone()).unwrap_or_default();
        let task = offer.task;
        self.offer_again(message);
        if let Some(task) =
            task.filter(|task| self.tasks.get(task).is_some_and(|open| !open.status.is_final()))
        {
            self.mark_task(task, TaskStatus::Open, None, json!({"reason": "the claim ended"}));
        }
        self.log(
            LogLevel::Info,
            format!("claim ended message={message} agent={holder}; offered again"),
        );
        self.emit(
            "message.claim_released",
            &holder,
            json!({"messageId": message, "agentId": holder}),
        );
    }

    pub(super) fn next_claim_end(&self) -> Option<Tick> {
        self.leases.first().map(|(until, _)| *until)
    }

    pub(super) fn sweep_claims(&mut self) {
        while let Some((_, message)) =
            self.leases.first().filter(|(until, _)| *until <= self.now.tick).copied()
        {
            self.end_claim(message);
        }
    }
}
