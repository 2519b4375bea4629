//! Which messages go to the provider together.
//!
//! What a turn says at its end answers its batch, so a batch that is answered automatically holds
//! messages of one sender: nobody reads the words of another one in an answer of his. Next is
//! whoever waits longest; who had the last batch only if nobody else waits. Where the agent answers
//! by itself batches are mixed, in the order in which the messages came.

use serde_json::json;

use super::{Batch, Entry, Phase};
use crate::core::agent::Agent;
use crate::core::agent::config::ReplyMode;
use crate::core::agent::prompt_text;
use crate::core::agent::store::{Choice, StoreOp};
use crate::core::agent::timer::Timer;
use crate::core::ids::MessageRef;
use crate::core::limits::*;
use crate::core::time::Now;
use crate::wire::api::Message;

/// Name of the note that lists the senders of the last batch.
const LAST_NOTE: &str = "lastSenders";
/// Senders of the last batch that are still known after a restart.
const LAST_NOTED_MAX: usize = 64;

/// What can be in one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A task is alone in its batch.
    Task,
    /// Expects an answer: together with others of its sender.
    Question,
    /// Expects none: together with others of that kind, whoever sent them.
    Notice,
}

fn kind_of(message: &Message) -> Kind {
    match () {
        () if message.claimable && message.task_id().is_some() => Kind::Task,
        () if message.expects_reply() => Kind::Question,
        () => Kind::Notice,
    }
}

impl Agent {
    pub(in crate::core::agent) fn restore_last(&mut self, notes: &[(String, String)]) {
        let text = notes.iter().find(|(key, _)| key == LAST_NOTE).map(|(_, text)| text.as_str());
        self.turn.last = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    }

    /// Starts the next batch if there is something to deliver and somebody to take it.
    pub(in crate::core::agent) fn drain(&mut self, now: Now) {
        let known = self.inbox.knows_next();
        self.drain_urgent();
        let free = self.turn.batch.is_none()
            && self.supervisor.is_ready()
            && !self.turn.running
            && self.stop.is_none();
        if !free {
            return;
        }
        if self.begin_prompt() {
            self.turn.running = true;
            return;
        }
        let pauses = self.timers.at(Timer::DeliveryRetry).is_some_and(|at| at > now.tick);
        if !known {
            if self.inbox.is_partial() && !pauses {
                let last = self.turn.last.clone();
                self.fetch_inbox(if self.is_mixed() {
                    Choice::InOrder
                } else {
                    Choice::BySender { last }
                });
            }
            return;
        }
        let next = self.next_messages(pauses);
        if next.is_empty() {
            if self.inbox.is_partial() {
                // Nothing of what the store has told can go now, or it could not be read.
                self.timers.set_once(Timer::DeliveryRetry, now.tick + DELIVERY_RETRY);
            }
            return;
        }
        self.turn.number = self.turn.number.next();
        let entries: Vec<Entry> =
            next.into_iter().filter_map(|at| self.inbox.take(at)).map(Entry::new).collect();
        self.turn.batch =
            Some(Batch { number: self.turn.number, phase: Phase::Claiming, entries, end: None });
        self.claim_batch();
    }

    /// Whether a batch may hold messages of several senders.
    fn is_mixed(&self) -> bool {
        self.config.reply_mode == ReplyMode::Explicit || crate::planted::is("mixed-batch")
    }

    /// The waiting messages that make the next batch, in order. `pauses`: nothing can be claimed
    /// for the moment.
    fn next_messages(&self, pauses: bool) -> Vec<MessageRef> {
        // What was reported of a task must be known before it is claimed again: the claim would
        // answer for the new offer.
        let reports = self.outbox.reports_wait();
        let ready = |(_, message): &(MessageRef, &Message)| {
            let is_held = message.claimable && (pauses || (reports && message.task_id().is_some()));
            !is_held
        };
        let waiting = || self.inbox.waiting().filter(ready);
        let mixed = self.is_mixed();
        let of_another =
            waiting().find(|(_, message)| !mixed && !self.turn.last.contains(&message.from));
        let Some((at, first)) = of_another.or_else(|| waiting().next()) else { return Vec::new() };
        // Where the provider treats the words of people and of others differently, a batch has one
        // kind of them.
        let same_voice = |message: &Message| {
            !self.config.session.split_by_sender
                || prompt_text::is_of_person(message) == prompt_text::is_of_person(first)
        };
        if mixed {
            let batch =
                waiting().take(BATCH_MESSAGES_MAX).take_while(|(_, message)| same_voice(message));
            return batch.map(|(at, _)| at).collect();
        }
        let kind = kind_of(first);
        if kind == Kind::Task {
            return vec![at];
        }
        let (mut batch, mut chars) = (Vec::new(), 0);
        // The order of each sender holds: nothing goes past something else of the same one.
        let mut behind: Vec<&str> = Vec::new();
        for (at, message) in
            waiting().filter(|(_, message)| kind == Kind::Notice || message.from == first.from)
        {
            let belongs = kind_of(message) == kind && same_voice(message);
            let waits = behind.contains(&message.from.as_str());
            if !belongs || waits {
                behind.extend((!waits).then_some(message.from.as_str()));
                continue;
            }
            chars += prompt_text::size(message);
            if batch.len() >= BATCH_MESSAGES_MAX || (chars > BATCH_CHARS_MAX && !batch.is_empty()) {
                break;
            }
            batch.push(at);
        }
        batch
    }

    /// Urgent messages go into the turn that runs, if the session can do that; claimable ones wait
    /// for their claim.
    fn drain_urgent(&mut self) {
        let runs = self.turn.running
            && self.turn.tail.is_none()
            && self.supervisor.is_ready()
            && self.stop.is_none();
        let joins = self
            .turn
            .batch
            .as_ref()
            .is_none_or(|batch| matches!(batch.phase, Phase::Sent | Phase::Taken));
        if !runs || !joins || !self.config.session.takes_urgent {
            return;
        }
        let urgent = |(_, message): &(MessageRef, &Message)| !message.claimable;
        let Some((_, first)) = self.inbox.urgent().find(urgent) else { return };
        let person = prompt_text::is_of_person(first);
        let same = |one: &(MessageRef, &Message)| {
            urgent(one)
                && (!self.config.session.split_by_sender
                    || prompt_text::is_of_person(one.1) == person)
        };
        let joining: Vec<MessageRef> =
            self.inbox.urgent().filter(same).take(BATCH_MESSAGES_MAX).map(|(at, _)| at).collect();
        if self.turn.batch.is_none() {
            self.turn.number = self.turn.number.next();
            self.turn.batch = Some(Batch {
                number: self.turn.number,
                phase: Phase::Sent,
                entries: Vec::new(),
                end: None,
            });
        }
        let entries: Vec<Entry> =
            joining.into_iter().filter_map(|at| self.inbox.take(at)).map(Entry::new).collect();
        self.hand_over(entries, true);
    }

    /// The senders of the batch under way come last from now on, also after a restart.
    pub(super) fn note_last(&mut self) {
        let mut senders: Vec<String> = Vec::new();
        for entry in self.turn.batch.iter().flat_map(|batch| &batch.entries) {
            if !senders.contains(&entry.message.from) {
                senders.push(entry.message.from.clone());
            }
        }
        if self.is_mixed() || self.turn.last == senders {
            return;
        }
        let noted = json!(senders[..senders.len().min(LAST_NOTED_MAX)]);
        self.commits
            .write(StoreOp::PutMeta { key: LAST_NOTE.into(), value: Some(noted.to_string()) });
        self.turn.last = senders;
    }
}
