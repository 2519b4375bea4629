//! The session's own socket: it frames what agents and systems say. Of receipts it writes, only
//! refusals matter; what arrives is proven by the transcript.

use std::time::Duration;

use serde_json::{Value, json};

use super::item::Item;
use super::{Channel, Sender, SenderContext};
use crate::core::session::Output;
use crate::core::time::{Now, Tick};
use crate::provider::Start;
use crate::provider::claude::tui::observed::Observed;
use crate::provider::claude::tui::out::Out;
use crate::provider::reader::{self, Damage};

/// Wait after the socket said that it was too much.
const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// A line that was written.
#[derive(Debug)]
pub(super) struct SocketProof {
    /// Number of the order to write it.
    number: u64,
    /// UUID of the text.
    key: String,
}

impl SocketProof {
    /// An entry of the transcript with that id is this text.
    pub fn is(&self, uuid: &str) -> bool {
        !self.key.is_empty() && self.key == uuid
    }
}

/// What the session says of texts that came by its socket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum Receipt {
    /// A person at its terminal said no.
    Denied,
    /// It could not take them: they are sent again.
    SendAgain,
}

#[derive(Debug)]
pub(super) struct Socket {
    /// Ours, for receipts.
    mailbox: Option<String>,
    /// Where the session was told to listen.
    path: Option<String>,
    /// Start of the keys of texts that have none.
    key_prefix: String,
    posts: u64,
    /// It cannot be used any more.
    is_off: bool,
    paused_until: Option<Tick>,
}

impl Socket {
    pub fn new(start: &Start) -> Socket {
        Socket {
            mailbox: start.mailbox.clone(),
            path: start.socket.clone(),
            key_prefix: start.nonce.get(..24).unwrap_or("00000000-0000-4000-8000-").to_string(),
            posts: 0,
            is_off: false,
            paused_until: None,
        }
    }

    /// The registry knows best where the session listens.
    fn path(&self, observed: &Observed) -> Option<String> {
        let told = observed.registry().and_then(|registry| registry.socket());
        told.map(str::to_string).or_else(|| self.path.clone())
    }

    pub fn is_usable(&self, observed: &Observed) -> bool {
        self.mailbox.is_some() && !self.is_off && self.path(observed).is_some()
    }

    pub fn pauses(&self, now: Now) -> bool {
        self.paused_until.is_some_and(|until| until > now.tick)
    }

    pub fn paused_until(&self) -> Option<Tick> {
        self.paused_until
    }

    pub fn wake(&mut self, now: Now) {
        self.paused_until.take_if(|until| *until <= now.tick);
    }

    /// Orders a text to be written.
    pub fn post(&mut self, item: &Item, around: &mut SenderContext<'_>) -> Option<SocketProof> {
        let (path, mailbox) = (self.path(around.observed)?, self.mailbox.as_ref()?);
        self.posts += 1;
        let number = self.posts;
        let own = format!("{}{number:012x}", self.key_prefix);
        let key = item.delivery.as_ref().map_or(own, |delivery| delivery.key.clone());
        let line = json!({
            "type": "user", "message": {"role": "user", "content": item.text},
            "uuid": key, "msg_id": key, "from": format!("uds:{mailbox}")
        });
        around.out.push(Output::WriteSocket { number, path, line: format!("{line}\n") });
        Some(SocketProof { number, key })
    }
}

impl Sender {
    /// How the order of that number went. True: its text is sent again, another way.
    pub fn on_posted(&mut self, number: u64, result: Result<(), String>, out: &mut Out) -> bool {
        let is_it =
            |channel: &Channel| matches!(channel, Channel::Socket(of) if of.number == number);
        let at = self.unproven.iter().position(|sent| is_it(&sent.channel));
        let (Err(error), Some(at)) = (result, at) else { return false };
        out.warn(format!("the session's socket cannot be written to: {error}"));
        self.socket.is_off = true;
        self.send_again(at);
        true
    }

    /// A receipt: only refusals have one. The keys of texts that are to be settled, each by
    /// [`Sender::settle_receipt`].
    pub fn on_receipt(
        &mut self,
        now: Now,
        line: &str,
        out: &mut Out,
    ) -> Option<(Receipt, Vec<String>)> {
        let receipt = reader::read(line.as_bytes())?;
        // Half a word would be another one; what has arrived shows in the transcript.
        let frame = Some(receipt.value).filter(|_| receipt.damage != Damage::Broken)?;
        let text = |field: &str| frame.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("action") != "peer_message_status" {
            return None;
        }
        let more = frame.get("dropped_msg_ids").and_then(Value::as_array).into_iter().flatten();
        let all = std::iter::once(text("orig_msg_id")).chain(more.filter_map(Value::as_str));
        let keys: Vec<String> = all.filter(|key| !key.is_empty()).map(str::to_string).collect();
        let status = text("status");
        match status {
            "delivered" => return None,
            "held" => {
                self.on_held(&keys, out);
                return None;
            }
            "denied" => return Some((Receipt::Denied, keys)),
            "dropped" => self.socket.paused_until = Some(now.tick + BUSY_PAUSE),
            _ => self.socket.is_off = true,
        }
        let reason = text("drop_reason");
        out.warn(format!("the session refused a message by its socket: {status} {reason}"));
        Some((Receipt::SendAgain, keys))
    }

    /// A person is asked at the terminal; the text waits there.
    fn on_held(&mut self, keys: &[String], out: &mut Out) {
        for sent in &mut self.unproven {
            if matches!(&sent.channel, Channel::Socket(proof) if keys.contains(&proof.key)) {
                sent.queued = true;
            }
        }
        self.notice.tell(Some("held by the session: allow it with `agent-relay attach`"), out);
    }

    /// True: a text with that key was on its way, and is so no more.
    pub fn settle_receipt(
        &mut self,
        key: &str,
        receipt: Receipt,
        around: &mut SenderContext<'_>,
    ) -> bool {
        let is_it = |channel: &Channel| matches!(channel, Channel::Socket(of) if of.key == key);
        let Some(at) = self.unproven.iter().position(|sent| is_it(&sent.channel)) else {
            return false;
        };
        match receipt {
            Receipt::SendAgain => self.send_again(at),
            Receipt::Denied => {
                self.refuse(at, "a person at the session's terminal refused the message", around);
            }
        }
        true
    }
}
