//! Events for whoever subscribed to them: numbered, sent, and remembered for who comes back.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::super::Hub;
use super::super::agents::narrowed;
use super::super::event::{After, Effect};
use super::super::rights::allows;
use super::Peer;
use crate::core::http::GateCommand;
use crate::core::ids::PeerId;
use crate::core::limits::*;
use crate::wire::api::Message;
use crate::wire::bus::RelayFrame;

/// Receivers of one message that are remembered with its event.
pub(super) const SUBJECTS_KEPT_MAX: usize = 64;

/// An event that a subscriber may have missed.
#[derive(Debug, Clone)]
pub(in crate::core::hub) struct KeptEvent {
    seq: u64,
    event: &'static str,
    subjects: Vec<String>,
    data: Value,
    at: i64,
}

impl Hub {
    /// An event for whoever subscribed to it, behind the commit of what it tells; `subject` is what
    /// scopes name.
    pub(in crate::core::hub) fn emit(&mut self, event: &'static str, subject: &str, data: Value) {
        self.commits.defer(After::Event { event, subject: subject.to_string(), data });
    }

    /// Numbers, sends and remembers an event whose content is durable.
    pub(in crate::core::hub) fn publish(
        &mut self,
        event: &'static str,
        subject: String,
        data: Value,
    ) {
        self.seq += 1;
        let (seq, at) = (self.seq, self.now.wall.0);
        let wants = |peer: &Peer| peer.registered && peer.wants(event, &subject);
        let wanting: Vec<PeerId> = self
            .subscribers
            .iter()
            .filter(|n| self.peers.get(n).is_some_and(wants))
            .copied()
            .collect();
        for peer in wanting {
            let text =
                self.event_text(peer, seq, event, &self.data_for(peer, event, &subject, &data), at);
            self.out.push(Effect::Gate(GateCommand::PeerSend { peer, text }));
        }
        self.remember_event(KeptEvent { seq, event, subjects: vec![subject], data, at });
    }

    /// A new message for subscribers, once for each of them; receivers get it as their own
    /// delivery.
    pub(in crate::core::hub) fn publish_message(
        &mut self,
        recipients: &[String],
        message: &Message,
    ) {
        self.seq += 1;
        let (seq, at) = (self.seq, self.now.wall.0);
        let concerns = |peer: &Peer, recipient: &String| {
            peer.wants("message.new", recipient) && peer.agent.as_deref() != Some(recipient)
        };
        let wants = |peer: &Peer| {
            peer.registered && recipients.iter().any(|recipient| concerns(peer, recipient))
        };
        let wanting: Vec<PeerId> = self
            .subscribers
            .iter()
            .filter(|n| self.peers.get(n).is_some_and(wants))
            .copied()
            .collect();
        if !wanting.is_empty() {
            let mut data = serde_json::to_value(message).expect("plain data");
            if let [one] = recipients
                && one != crate::wire::api::USER
            {
                data["resolvedToAgent"] = json!(one);
            }
            for peer in wanting {
                let text = self.event_text(peer, seq, "message.new", &data, at);
                self.out.push(Effect::Gate(GateCommand::PeerSend { peer, text }));
            }
        }
        // Bodies are not kept: a thousand of them would be half a gigabyte. Who comes back fetches
        // by id.
        let kept = json!({"id": message.id, "from": message.from, "to": message.to});
        let subjects = recipients.iter().take(SUBJECTS_KEPT_MAX).cloned().collect();
        self.remember_event(KeptEvent { seq, event: "message.new", subjects, data: kept, at });
    }

    fn remember_event(&mut self, event: KeptEvent) {
        self.events.push_back(event);
        if self.events.len() > EVENTS_KEPT_MAX {
            self.events.pop_front();
        }
    }

    /// What a subscriber missed, as far as it is remembered.
    pub(super) fn send_missed(&mut self, number: PeerId, since: u64) {
        let Some(peer) = self.peers.get(&number) else { return };
        let missed: Vec<KeptEvent> = self
            .events
            .iter()
            .filter(|kept| {
                kept.seq > since && kept.subjects.iter().any(|s| peer.wants(kept.event, s))
            })
            .cloned()
            .collect();
        for kept in missed {
            let subject = kept.subjects.first().map(String::as_str).unwrap_or_default();
            let text = self.event_text(
                number,
                kept.seq,
                kept.event,
                &self.data_for(number, kept.event, subject, &kept.data),
                kept.at,
            );
            self.out.push(Effect::Gate(GateCommand::PeerSend { peer: number, text }));
        }
    }

    pub(super) fn on_subscribe(
        &mut self,
        number: PeerId,
        id: String,
        events: Vec<String>,
        scopes: Vec<String>,
    ) {
        let Some(peer) = self.peers.get_mut(&number) else {
            return;
        };
        let mail = events.iter().any(|event| event == "*" || event.starts_with("message."));
        if mail && !allows(&peer.token, "message:read") {
            return self.send_error(
                number,
                Some(id),
                "forbidden",
                "the token may not read messages",
            );
        }
        // A runtime token sees its own agent only.
        let scopes = match &peer.token.agent_id {
            Some(own) => vec![own.clone()],
            None => scopes,
        };
        peer.events = events.into_iter().take(64).collect();
        if peer.events.is_empty() {
            self.subscribers.remove(&number)
        } else {
            self.subscribers.insert(number)
        };
        peer.scopes = scopes.into_iter().take(64).collect();
        self.acknowledge(number, id);
    }

    /// What this reader may see of an event: a card of a foreign agent is no more on the bus than
    /// it is over HTTP.
    fn data_for<'a>(
        &self,
        peer: PeerId,
        event: &str,
        subject: &str,
        data: &'a Value,
    ) -> Cow<'a, Value> {
        let whole = |peer: &Peer| self.sees_whole(&peer.token, subject);
        if event == "agent.status" && !self.peers.get(&peer).is_some_and(whole) {
            Cow::Owned(narrowed(data.clone(), false))
        } else {
            Cow::Borrowed(data)
        }
    }

    /// An event as its reader wants it: a frame, or a server-sent event.
    fn event_text(&self, peer: PeerId, seq: u64, event: &str, data: &Value, at: i64) -> String {
        if self.peers.get(&peer).is_some_and(|peer| peer.stream) {
            format!(
                "id: {seq}\nevent: {event}\ndata: {}\n\n",
                json!({"seq": seq, "event": event, "data": data, "at": at})
            )
        } else {
            RelayFrame::Event { seq, event: event.into(), data: data.clone(), at }.to_text()
        }
    }
}
