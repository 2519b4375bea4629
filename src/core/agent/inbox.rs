//! Messages on their way to the provider. The store holds all of them; memory holds the next ones
//! and the places of those that were settled lately. A message is acknowledged only once it is in
//! the store, and known ones are dropped by id.

use super::effect::{Effect, StoreCommand};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::Agent;
use super::http_calls::CallKind;
use super::store::{Choice, InboxMessage, OutboxRow, Settled, StoreOp, TaskEnd};
use crate::core::ids::{MessageId, MessageRef};
use crate::core::limits::*;
use crate::core::matching;
use crate::wire::api::{Message, path};
use crate::wire::bus::ClientFrame;
use crate::wire::control::LogLevel;

/// Urgent messages that are kept in memory while it is full of others.
const URGENT_KEPT_MAX: usize = 32;

/// How much of what waits is in memory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum View {
    /// All of it.
    #[default]
    Whole,
    /// A part, and perhaps not that which is next: the store is asked before the next batch.
    Partial,
    /// The store is being asked. `stale`: something has come or gone back since.
    Asked { stale: bool },
    /// The store has just told what is next.
    Fresh,
}

/// The part of the inbox that is in memory.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    view: View,
    waiting: BTreeMap<MessageRef, Message>,
    waiting_bytes: usize,
    /// Of what came while memory was full: messages that need not wait for their turn.
    urgent: BTreeMap<MessageRef, Message>,
    /// In the order in which they were settled.
    settled: VecDeque<Done>,
    settled_places: HashSet<MessageRef>,
    /// Messages whose reading the relay does not know of yet.
    unread: BTreeSet<MessageRef>,
}

/// A message that is done.
#[derive(Debug)]
struct Done {
    at: MessageRef,
    /// How its task ended.
    ended: Option<TaskEnd>,
    from: String,
}

impl Inbox {
    pub fn restore(&mut self, waiting: Vec<InboxMessage>, more: bool, settled: Vec<Settled>) {
        self.view = if more { View::Partial } else { View::Whole };
        for InboxMessage { at, message } in waiting {
            self.cache(at, message);
        }
        for Settled { at, read, ended, from } in settled {
            self.settled_places.insert(at);
            self.settled.push_back(Done { at, ended, from });
            if !read {
                self.unread.insert(at);
            }
        }
    }

    fn cache(&mut self, at: MessageRef, message: Message) {
        self.waiting_bytes += message.body.len();
        if let Some(old) = self.waiting.insert(at, message) {
            self.waiting_bytes -= old.body.len();
        }
    }

    /// Keeps a stored message for delivery, in memory if there is room.
    fn keep(&mut self, at: MessageRef, message: Message) {
        let full =
            self.waiting.len() >= INBOX_CACHED_MAX || self.waiting_bytes >= INBOX_CACHED_BYTES_MAX;
        match self.view {
            View::Whole if !full => return self.cache(at, message),
            View::Asked { .. } => self.view = View::Asked { stale: true },
            View::Whole | View::Fresh | View::Partial => self.view = View::Partial,
        }
        if message.is_urgent() && self.urgent.len() < URGENT_KEPT_MAX {
            self.urgent.insert(at, message);
        }
    }

    pub fn knows(&self, at: MessageRef) -> bool {
        self.waiting.contains_key(&at) || self.is_settled(at)
    }

    pub fn is_settled(&self, at: MessageRef) -> bool {
        self.settled_places.contains(&at)
    }

    /// Messages of that number that are done, with their senders.
    pub fn done(&self, id: MessageId) -> impl Iterator<Item = (MessageRef, &str)> {
        self.settled
            .iter()
            .filter(move |done| done.at.id == id)
            .map(|done| (done.at, done.from.as_str()))
    }

    pub fn waiting(&self) -> impl Iterator<Item = (MessageRef, &Message)> {
        self.waiting.iter().map(|(at, message)| (*at, message))
    }

    /// Urgent messages, which may join a running turn.
    pub fn urgent(&self) -> impl Iterator<Item = (MessageRef, &Message)> {
        self.waiting()
            .chain(self.urgent.iter().map(|(at, message)| (*at, message)))
            .filter(|(_, message)| message.is_urgent())
    }

    pub fn take(&mut self, at: MessageRef) -> Option<(MessageRef, Message)> {
        let urgent = self.urgent.remove(&at);
        let message = self.waiting.remove(&at);
        self.waiting_bytes -= message.as_ref().map_or(0, |message| message.body.len());
        Some((at, message.or(urgent)?))
    }

    pub fn put_back(&mut self, at: MessageRef, message: Message) {
        if let View::Asked { stale } = &mut self.view {
            *stale = true;
        }
        self.cache(at, message);
    }

    /// Whether what is next is in memory; what the store has told counts once.
    pub fn knows_next(&mut self) -> bool {
        let known = matches!(self.view, View::Whole | View::Fresh);
        if self.view == View::Fresh {
            self.view = View::Partial;
        }
        known
    }

    /// Whether the store is to be asked what is next.
    pub fn is_partial(&self) -> bool {
        self.view == View::Partial
    }

    /// Takes the store's answer.
    fn refill(&mut self, rows: Vec<InboxMessage>, more: bool) {
        let stale = self.view == View::Asked { stale: true };
        self.view = if more || stale { View::Fresh } else { View::Whole };
        self.waiting.clear();
        self.waiting_bytes = 0;
        rows.into_iter().for_each(|row| self.cache(row.at, row.message));
        if self.view == View::Whole {
            self.urgent.clear();
        }
    }

    pub fn counts(&self) -> (usize, bool, usize) {
        (self.waiting.len(), self.view != View::Whole, self.unread.len())
    }
}

impl Agent {
    /// A message of the bus or of the unread fetch. `frame` is acknowledged once the message is
    /// durable.
    pub(super) fn on_message(&mut self, mut message: Message, frame: Option<String>) {
        let ack = frame.map(|frame_id| Effect::frame(&ClientFrame::Ack { frame_id }));
        if message.id.is_none() {
            self.commits.defer_all(ack);
            return;
        }
        let at = self.place_of(&message);
        let verdict = if message.is_session_mirror() {
            Err("not for this agent")
        } else {
            matching::judge(&self.config.identity, &message)
        };
        if let Err(reason) = verdict {
            self.commits.defer_all(ack);
            self.ask_read(at, Some(reason));
            return;
        }
        self.let_go(at);
        if message.claimable && message.task_id().is_some() && self.inbox.is_settled(at) {
            // Opened again, or what we reported of it is not known yet: the claim will tell, once
            // that has arrived.
            self.unsettle_message(at);
            self.note_round(at);
            self.outbox.hold_tasks();
        }
        self.mark_round(at, &mut message);
        // Known: in memory, in a batch, or settled. The acknowledgement still waits for the newest
        // commit, since the first copy may not be on disk yet.
        let known = if crate::planted::is("skipped-dedup") {
            self.inbox.is_settled(at)
        } else {
            self.inbox.knows(at) || self.turn.holds(at)
        };
        if known {
            if self.inbox.is_settled(at) {
                self.inbox.unread.insert(at);
                // A relay whose data were put back does not know the answer any more, and is not to
                // ask for another.
                let again = (!self.generations.is_current(at.generation))
                    .then_some("handled before the relay's data were put back");
                self.ask_read(at, again);
            } else if self.turn.note_offered_again(at) {
                self.ask_read(at, None);
            }
            self.commits.defer_all(ack);
            return;
        }
        self.note_place(at);
        self.commits.write(StoreOp::InboxPut(InboxMessage { at, message: message.clone() }));
        self.inbox.keep(at, message);
        if crate::planted::is("acknowledge-before-commit") {
            self.out.extend(ack)
        } else {
            self.commits.defer_all(ack)
        }
        self.mark_obligations_dirty();
        self.status.touch();
    }

    /// Says of a message that this agent does not take it, and why.
    pub(super) fn decline_message(&mut self, message: &Message, frame_id: String, why: &str) {
        self.commits.defer(Effect::frame(&ClientFrame::Ack { frame_id }));
        if !message.id.is_none() {
            let at = self.place_of(message);
            self.log(LogLevel::Warn, "inbox", format!("message #{} declined: {why}", message.id));
            self.ask_read(at, Some(why));
        }
    }

    pub(super) fn on_inbox_rows(&mut self, mut rows: Vec<InboxMessage>, more: bool) {
        rows.retain(|row| !self.inbox.is_settled(row.at) && !self.turn.holds(row.at));
        self.inbox.refill(rows, more);
    }

    /// Asks the store what is next, behind all that is not durable yet: the answer knows of it.
    pub(super) fn fetch_inbox(&mut self, choice: Choice) {
        self.inbox.view = View::Asked { stale: false };
        self.commits.defer(Effect::Store(StoreCommand::FetchInbox(choice)));
    }

    /// The message is done: body gone, place kept until the window moves on and the relay knows
    /// that it is read.
    pub(super) fn settle_message(
        &mut self,
        at: MessageRef,
        from: &str,
        read: bool,
        ended: Option<TaskEnd>,
    ) {
        self.commits.write(StoreOp::InboxSettle { at, read, ended: ended.clone() });
        if self.inbox.settled_places.insert(at) {
            self.inbox.settled.push_back(Done { at, ended, from: from.to_string() });
        }
        if !read {
            self.inbox.unread.insert(at);
            self.ask_read(at, None);
        }
        while self.inbox.settled.len() > SETTLED_IDS_MAX {
            let oldest = self.inbox.settled.front().expect("longer than the limit").at;
            if self.inbox.unread.contains(&oldest) {
                break;
            }
            self.inbox.settled.pop_front();
            self.inbox.settled_places.remove(&oldest);
            self.commits.write(StoreOp::InboxForget { at: oldest });
        }
    }

    /// Makes a settled message new again.
    fn unsettle_message(&mut self, at: MessageRef) {
        self.inbox.settled.retain(|done| done.at != at);
        self.inbox.settled_places.remove(&at);
        self.forget_message(at);
    }

    /// Forgets the message, so that the relay may offer it again.
    pub(super) fn forget_message(&mut self, at: MessageRef) {
        self.inbox.unread.remove(&at);
        self.http_calls.forget(&CallKind::Read(at));
        self.commits.write(StoreOp::InboxForget { at });
    }

    /// Tells the relay that the message was read.
    pub(super) fn ask_read(&mut self, at: MessageRef, reason: Option<&str>) {
        let Some(told) = self.generations.on_wire(at.generation) else {
            // That relay is gone; this one would take the id for another message.
            return self.on_read_told(at);
        };
        let mut body = serde_json::json!({"agentId": self.config.agent_id});
        if let Some(told) = told {
            body["generation"] = serde_json::json!(told);
        }
        if let Some(reason) = reason {
            body["reason"] = serde_json::json!(reason);
        }
        self.ask(CallKind::Read(at), "POST", path::message_part(at.id, "read"), Some(body));
    }

    pub(super) fn on_read_told(&mut self, at: MessageRef) {
        self.inbox.unread.remove(&at);
        if self.inbox.is_settled(at) {
            self.commits.write(StoreOp::InboxSettle { at, read: true, ended: None });
        }
        self.turn.note_read(at);
    }

    /// The relay is back: everything that it does not know yet is told again.
    pub(super) fn tell_reads_again(&mut self) {
        let all: Vec<MessageRef> = self
            .inbox
            .unread
            .iter()
            .copied()
            .chain(self.turn.unread_places())
            .take(CALLS_WAITING_MAX / 2)
            .collect();
        for at in all {
            self.ask_read(at, None);
        }
    }

    /// A relay whose data were put back does not know how tasks ended since the copy was made. The
    /// records here do.
    pub(super) fn report_ended_tasks_again(&mut self, newest: u32) {
        let old = self.inbox.settled.iter().filter(|done| done.at.generation != newest);
        let ended: Vec<(MessageRef, TaskEnd)> =
            old.filter_map(|done| Some((done.at, done.ended.clone()?))).collect();
        for (at, TaskEnd { task, status }) in ended {
            if self.generations.on_wire(at.generation).is_some() {
                self.report_task(
                    self.now,
                    task,
                    at,
                    status,
                    Some("reported again: the relay's data were put back".into()),
                );
            }
        }
    }

    /// A task that waited here and that its relay no longer has is not started; whoever sent it is
    /// told.
    pub(super) fn tell_not_started(&mut self, at: MessageRef, message: &Message) {
        let title = message.subject.as_deref().unwrap_or_default();
        let body = format!(
            "[agent-relay] The task of your message {at} ({title:?}) was not started: the relay's data were put back and it no longer has it. Send it \
             again if it still matters."
        );
        let key = format!(
            "not-started:{}:{}:{}",
            self.config.agent_id,
            self.generations.name(at.generation),
            at.id
        );
        let note = crate::wire::api::NewMessage {
            from: Some(self.config.agent_id.clone()),
            to: message.from.clone(),
            kind: "system".into(),
            body: super::prompt_text::cut(&body, REPLY_BODY_BYTES_MAX),
            reply_expected: Some(false),
            idempotency_key: Some(key.clone()),
            occurred_at: Some(self.now.wall.0),
            ..Default::default()
        };
        let payload = serde_json::to_value(note).expect("plain data");
        self.log(
            LogLevel::Warn,
            "task",
            format!(
                "not started, the relay no longer has it: message {at} of {}",
                self.generations.name(at.generation)
            ),
        );
        self.append(OutboxRow {
            kind: "message".into(),
            key,
            occurred_at: self.now.wall.0,
            payload,
            generation: 0,
        });
    }
}
