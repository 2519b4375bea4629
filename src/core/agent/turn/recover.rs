//! What was under way when the provider ended: the provider's record decides, message by message.

use std::collections::BTreeMap;

use super::{Entry, Phase};
use crate::core::agent::Agent;
use crate::core::agent::prompt::PROMPT;
use crate::core::agent::prompt_text;
use crate::core::agent::store::{InboxState, StoreOp};
use crate::core::agent::timer::Timer;
use crate::core::ids::{BatchNumber, MessageRef};
use crate::core::session::{Delivery, DeliveryOutcome, OpenMode, RESTART_MARK, TurnEnd, Verb};
use crate::core::time::Now;

impl Agent {
    /// The provider ended while a batch was with it.
    pub(in crate::core::agent) fn on_turn_lost(&mut self) {
        self.turn.running = false;
        self.turn.interrupt = None;
        for batch in self.turn.batch.iter_mut().chain(&mut self.turn.tail) {
            // One whose turn has ended only waits to be settled.
            if matches!(batch.phase, Phase::Sent | Phase::Taken) && batch.end.is_none() {
                batch.phase = Phase::Unsettled;
            }
        }
    }

    /// A conversation is open: settles what was under way by what its record holds.
    pub(in crate::core::agent) fn on_conversation(&mut self, now: Now, how: OpenMode) {
        let outcomes = match &how {
            OpenMode::Loaded(outcomes) => Some(self.outcomes_by_message(outcomes)),
            _ => None,
        };
        self.judge_prompt(
            &how,
            outcomes.as_ref().and_then(|outcomes| outcomes.get(&PROMPT).cloned()),
        );
        if self.turn.batch.as_ref().is_none_or(|batch| batch.phase != Phase::Unsettled) {
            return self.judge_tail(outcomes);
        }
        let tail = self.turn.tail.take().map(|batch| batch.entries).unwrap_or_default();
        if let Some(batch) = self.turn.batch.as_mut() {
            batch.entries.extend(tail);
        }
        let Some(outcomes) = outcomes else {
            return self.on_unproven(now, &how);
        };
        let Some(mut batch) = self.turn.batch.take() else { return };
        let (outcome, stay, back) = part(std::mem::take(&mut batch.entries), &outcomes);
        batch.entries = stay;
        self.turn.batch = Some(batch);
        match outcome {
            // Nothing of it is there: all is sent again, as one.
            DeliveryOutcome::Unseen => {
                if let Some(batch) = self.turn.batch.as_mut() {
                    batch.entries = back;
                }
                self.send_again();
            }
            DeliveryOutcome::Unanswered => {
                back.into_iter().for_each(|entry| self.wait_again(entry));
                if crate::planted::is("evidence-ignored") {
                    self.send_again()
                } else {
                    self.nudge("the record of the conversation")
                }
            }
            DeliveryOutcome::Answered(text) => {
                back.into_iter().for_each(|entry| self.wait_again(entry));
                self.set_taken();
                self.confirm(None, "the record of the conversation");
                self.end_batch(now, TurnEnd::Completed, text);
            }
        }
    }

    /// Outcome by message; one that a session tells for all counts for all.
    pub(super) fn outcomes_by_message(
        &mut self,
        outcomes: &[DeliveryOutcome],
    ) -> BTreeMap<MessageRef, DeliveryOutcome> {
        let asked = std::mem::take(&mut self.turn.asked);
        let outcome_of = |number: usize| {
            outcomes
                .get(if crate::planted::is("one-fate-for-all") { 0 } else { number })
                .or(outcomes.last())
                .cloned()
                .unwrap_or(DeliveryOutcome::Unseen)
        };
        asked.into_iter().enumerate().map(|(number, at)| (at, outcome_of(number))).collect()
    }

    /// The batch itself is being settled; what was to follow it is judged by the record, or starts
    /// anew.
    pub(super) fn judge_tail(&mut self, outcomes: Option<BTreeMap<MessageRef, DeliveryOutcome>>) {
        let Some(mut tail) = self.turn.tail.take_if(|tail| tail.phase == Phase::Unsettled) else {
            return;
        };
        let (outcome, stay, back) =
            part(std::mem::take(&mut tail.entries), &outcomes.unwrap_or_default());
        back.into_iter().for_each(|entry| self.wait_again(entry));
        if let DeliveryOutcome::Answered(text) = outcome {
            tail.end = Some((TurnEnd::Completed, text));
        }
        if !stay.is_empty() {
            // It becomes the batch when the one before it is settled.
            tail.entries = stay;
            self.turn.tail = Some(tail);
        }
    }

    pub(super) fn wait_again(&mut self, entry: Entry) {
        self.commits.write(StoreOp::InboxMark {
            at: entry.at,
            state: InboxState::Received,
            batch: BatchNumber::default(),
            evidence: String::new(),
        });
        self.inbox.put_back(entry.at, entry.message);
    }

    /// No record tells what became of the batch.
    pub(super) fn on_unproven(&mut self, now: Now, how: &OpenMode) {
        let confirmed =
            self.turn.batch.iter().flat_map(|batch| &batch.entries).all(|entry| entry.confirmed);
        match how {
            OpenMode::Resumed if confirmed => self.nudge("seen before the restart"),
            // Nobody can say: sent again, so that it arrives at least once.
            OpenMode::Resumed => self.send_again(),
            OpenMode::New | OpenMode::Loaded(_) | OpenMode::Lost(_) if !confirmed => {
                self.send_again()
            }
            OpenMode::New | OpenMode::Loaded(_) | OpenMode::Lost(_) => {
                self.set_taken();
                let reason = "the conversation was lost in a restart; the message was seen but not answered, send it again if it still matters";
                self.end_batch(now, TurnEnd::Failed(reason.into()), String::new());
            }
        }
    }

    pub(super) fn set_taken(&mut self) {
        if let Some(batch) = self.turn.batch.as_mut() {
            batch.phase = Phase::Taken;
        }
    }

    pub(super) fn send_again(&mut self) {
        if let Some(batch) = self.turn.batch.as_mut() {
            for entry in batch.entries.iter_mut() {
                entry.confirmed = false;
            }
        }
        self.claim_batch();
    }

    /// The messages stand in the record, their answer does not: never sent twice, but the agent is
    /// told to go on.
    pub(super) fn nudge(&mut self, evidence: &str) {
        self.confirm(None, evidence);
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        batch.phase = Phase::Taken;
        if batch.entries.iter().any(|entry| entry.message.claimable) {
            self.timers.set(Timer::ClaimRenewal, self.now.tick);
        }
        let ids = batch
            .entries
            .iter()
            .map(|entry| format!("#{}", entry.message.id))
            .collect::<Vec<_>>()
            .join(", ");
        let text = format!(
            "{RESTART_MARK} while you worked on relay message {ids}. It stands in the conversation above; \
             please go on and answer it."
        );
        let key = self.rng.uuid();
        let person = batch.entries.iter().all(|entry| prompt_text::is_of_person(&entry.message));
        let delivery =
            Delivery { batch: batch.number, key: key.clone(), text, person, urgent: false };
        batch.entries.iter_mut().for_each(|entry| entry.key = key.clone());
        self.turn.running = true;
        let (_, order) = self.supervisor.verb(Verb::Deliver(delivery));
        self.commits.defer(order);
        self.start_turn_work();
    }
}

/// Divides entries by their outcome: the outcome of the newest one that the record holds, those
/// that it holds, and the others.
fn part(
    entries: Vec<Entry>,
    outcomes: &BTreeMap<MessageRef, DeliveryOutcome>,
) -> (DeliveryOutcome, Vec<Entry>, Vec<Entry>) {
    let outcome_of =
        |entry: &Entry| outcomes.get(&entry.at).cloned().unwrap_or(DeliveryOutcome::Unseen);
    let outcome = entries
        .iter()
        .rev()
        .map(outcome_of)
        .find(|outcome| *outcome != DeliveryOutcome::Unseen)
        .unwrap_or(DeliveryOutcome::Unseen);
    let (stay, back) =
        entries.into_iter().partition(|entry| outcome_of(entry) != DeliveryOutcome::Unseen);
    (outcome, stay, back)
}
