//! Messages on their way to the provider. The store holds all of them; memory holds the next ones and the ids that
//! were settled lately (R-97a, R-109).

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::Agent;
use super::calls::Purpose;
use super::effect::Effect;
use super::store::StoreOp;
use crate::core::limits::*;
use crate::core::matching;
use crate::core::time::Now;
use crate::wire::api::{Message, path};
use crate::wire::bus::ClientFrame;

/// The part of the inbox that is in memory.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: BTreeMap<u64, Message>,
    waiting_bytes: usize,
    /// More received rows stand in the store than in `waiting`.
    more: bool,
    fetching: bool,
    stored_meanwhile: bool,
    settled: VecDeque<u64>,
    settled_ids: HashSet<u64>,
    /// Messages whose reading the relay does not know of yet.
    unread: BTreeSet<u64>,
}

impl Inbox {
    pub fn restore(&mut self, waiting: Vec<Message>, more: bool, settled: Vec<(u64, bool)>) {
        self.more = more;
        for message in waiting {
            self.cache(message);
        }
        for (id, read) in settled {
            self.settled.push_back(id);
            self.settled_ids.insert(id);
            if !read {
                self.unread.insert(id);
            }
        }
    }

    fn cache(&mut self, message: Message) {
        self.waiting_bytes += message.body.len();
        if let Some(old) = self.waiting.insert(message.id, message) {
            self.waiting_bytes -= old.body.len();
        }
    }

    /// Keeps a stored message for delivery, in memory if there is room.
    fn keep(&mut self, message: Message) {
        let full = self.waiting.len() >= INBOX_CACHED_MAX || self.waiting_bytes >= INBOX_CACHED_BYTES_MAX;
        // One below the cached ones (offered again) would be passed by when the next ones are fetched.
        let below = self.waiting.keys().next_back().is_some_and(|last| message.id < *last);
        if (self.more || full) && !below {
            self.more = true;
            self.stored_meanwhile = true;
        } else {
            self.cache(message);
        }
    }

    pub fn knows(&self, id: u64) -> bool {
        self.waiting.contains_key(&id) || self.settled_ids.contains(&id)
    }

    pub fn is_settled(&self, id: u64) -> bool {
        self.settled_ids.contains(&id)
    }

    pub fn waiting(&self) -> impl Iterator<Item = &Message> {
        self.waiting.values()
    }

    pub fn take(&mut self, id: u64) -> Option<Message> {
        let message = self.waiting.remove(&id)?;
        self.waiting_bytes -= message.body.len();
        Some(message)
    }

    pub fn put_back(&mut self, message: Message) {
        self.cache(message);
    }

    /// What to fetch next, if the memory has room again.
    pub fn wants_fetch(&mut self) -> Option<(u64, usize)> {
        if !self.more || self.fetching || self.waiting.len() > INBOX_CACHED_MAX / 2 {
            return None;
        }
        self.fetching = true;
        self.stored_meanwhile = false;
        let after = self.waiting.keys().next_back().copied().unwrap_or(0);
        Some((after, INBOX_CACHED_MAX))
    }

    pub fn counts(&self) -> (usize, bool, usize) {
        (self.waiting.len(), self.more, self.unread.len())
    }
}

impl Agent {
    /// A message of the bus or of the unread fetch. `frame` is acknowledged once the message is durable.
    pub(super) fn on_message(&mut self, message: Message, frame: Option<String>) {
        let ack = frame.map(|frame_id| Effect::Send(ClientFrame::Ack { frame_id }));
        if message.id == 0 || message.is_session_mirror() || !matching::matches(&self.config.identity, &message) {
            self.after.extend(ack);
            self.decline(message.id, "not for this agent");
            return;
        }
        // Known: in memory, in a batch, or settled. The acknowledgement still waits for the newest commit, since the
        // first copy may not be on disk yet.
        if self.inbox.knows(message.id) || self.turn.holds(message.id) {
            if self.inbox.is_settled(message.id) {
                self.inbox.unread.insert(message.id);
                self.ask_read(message.id, None);
            }
            self.after.extend(ack);
            return;
        }
        self.ops.push(StoreOp::InboxPut(message.clone()));
        self.inbox.keep(message);
        self.after.extend(ack);
        self.mark_obligations_dirty();
        self.status.touch();
    }

    fn decline(&mut self, id: u64, reason: &str) {
        if id != 0 {
            self.ask_read(id, Some(reason));
        }
    }

    pub(super) fn on_inbox_rows(&mut self, after: u64, rows: Vec<Message>, more: bool) {
        self.inbox.fetching = false;
        let newest = rows.last().map(|message| message.id).unwrap_or(after);
        for message in rows {
            if !self.inbox.knows(message.id) && !self.turn.holds(message.id) {
                self.inbox.cache(message);
            }
        }
        self.inbox.more = more || self.inbox.stored_meanwhile;
        debug_assert!(newest >= after);
    }

    pub(super) fn fetch_inbox(&mut self) {
        if let Some((after, limit)) = self.inbox.wants_fetch() {
            // Behind the commits that are under way, so that the rows of those are seen.
            self.out.push(Effect::FetchInbox { after, limit });
        }
    }

    /// The message is done: body gone, id kept until the window moves on and the relay knows that it is read.
    pub(super) fn settle_message(&mut self, id: u64, read: bool) {
        self.ops.push(StoreOp::InboxSettle { id, read });
        if self.inbox.settled_ids.insert(id) {
            self.inbox.settled.push_back(id);
        }
        if !read {
            self.inbox.unread.insert(id);
            self.ask_read(id, None);
        }
        while self.inbox.settled.len() > SETTLED_IDS_MAX {
            let oldest = *self.inbox.settled.front().expect("longer than the limit");
            if self.inbox.unread.contains(&oldest) {
                break;
            }
            self.inbox.settled.pop_front();
            self.inbox.settled_ids.remove(&oldest);
            self.ops.push(StoreOp::InboxForget { id: oldest });
        }
    }

    /// The ids of settled messages belong to another relay.
    pub(super) fn forget_settled(&mut self) {
        self.inbox.unread.clear();
        self.inbox.settled_ids.clear();
        for id in std::mem::take(&mut self.inbox.settled) {
            self.ops.push(StoreOp::InboxForget { id });
        }
    }

    /// The message leaves without a trace, so that the relay may offer it again.
    pub(super) fn forget_message(&mut self, id: u64) {
        self.inbox.unread.remove(&id);
        self.ops.push(StoreOp::InboxForget { id });
    }

    /// Tells the relay that the message was read.
    pub(super) fn ask_read(&mut self, id: u64, reason: Option<&str>) {
        let mut body = serde_json::json!({"agentId": self.config.agent_id});
        if let Some(reason) = reason {
            body["reason"] = serde_json::json!(reason);
        }
        self.ask(Purpose::Read(id), "POST", path::message_part(id, "read"), Some(body));
    }

    pub(super) fn on_read_told(&mut self, id: u64) {
        self.inbox.unread.remove(&id);
        if self.inbox.is_settled(id) {
            self.ops.push(StoreOp::InboxSettle { id, read: true });
        }
        self.turn.note_read(id);
    }

    /// The relay is back: everything that it does not know yet is told again.
    pub(super) fn tell_reads_again(&mut self, _now: Now) {
        let ids: Vec<u64> = self.inbox.unread.iter().copied().chain(self.turn.unread_ids()).take(CALLS_WAITING_MAX / 2).collect();
        for id in ids {
            self.ask_read(id, None);
        }
    }
}
