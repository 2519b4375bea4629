//! Events for whoever subscribed to them: numbered, sent, and remembered for who comes back.

use std::sync::Arc;

use serde_json::Value;

use super::super::Hub;
use super::super::agents::narrowed;
use super::super::event::{After, Effect};
use super::super::rights::allows;
use super::super::written::{WrittenMessage, event_frame, stream_event};
use super::Peer;
use crate::core::http::GateCommand;
use crate::core::ids::PeerId;
use crate::core::limits::*;

/// Receivers of one message that are remembered with its event.
pub(super) const SUBJECTS_KEPT_MAX: usize = 64;

/// What an event tells, as JSON.
#[derive(Debug, Clone)]
struct EventData {
    /// To whoever sees all of it.
    whole: Arc<str>,
    /// To others, where that is less: a card of a foreign agent is no more on the bus than it is
    /// over HTTP.
    narrow: Option<Arc<str>>,
}

impl EventData {
    fn new(event: &str, data: Value) -> EventData {
        let whole = data.to_string().into();
        let narrow = (event == "agent.status").then(|| narrowed(data, false).to_string().into());
        EventData { whole, narrow }
    }
}

/// An event that a subscriber may have missed.
#[derive(Debug, Clone)]
pub(in crate::core::hub) struct KeptEvent {
    seq: u64,
    event: &'static str,
    subjects: Vec<String>,
    data: EventData,
    at: i64,
}

/// An event on its way to its readers: each form of it is written once, whoever gets it.
struct Shared<'a> {
    seq: u64,
    event: &'static str,
    data: &'a EventData,
    at: i64,
    /// Frame and server-sent event, of the whole data and of the narrow.
    texts: [Option<Arc<str>>; 4],
}

impl<'a> Shared<'a> {
    fn new(seq: u64, event: &'static str, data: &'a EventData, at: i64) -> Shared<'a> {
        Shared { seq, event, data, at, texts: [None, None, None, None] }
    }

    fn text(&mut self, stream: bool, whole: bool) -> Arc<str> {
        let narrow = self.data.narrow.as_ref().filter(|_| !whole);
        let place = &mut self.texts[usize::from(stream) + 2 * usize::from(narrow.is_some())];
        if crate::planted::is("copy-per-reader") {
            *place = None;
        }
        let write = if stream { stream_event } else { event_frame };
        let data = narrow.unwrap_or(&self.data.whole);
        place.get_or_insert_with(|| write(self.seq, self.event, data, self.at).into()).clone()
    }
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
        let mut kept = EventData::new(event, data.clone());
        self.share(wanting, &subject, Shared::new(seq, event, &kept, at));
        if event == "agent.status" && !crate::planted::is("kept-meta") {
            // What an agent says of itself is as large as it likes, and a thousand events are kept.
            let mut card = data;
            card.as_object_mut().map(|card| card.remove("meta"));
            kept = EventData::new(event, card);
        }
        self.remember_event(KeptEvent { seq, event, subjects: vec![subject], data: kept, at });
    }

    /// An event to these readers, each in its form.
    fn share(&mut self, readers: Vec<PeerId>, subject: &str, mut shared: Shared<'_>) {
        for number in readers {
            let Some(peer) = self.peers.get(&number) else { continue };
            let whole = self.sees_whole(&peer.token, subject);
            let text = shared.text(peer.stream, whole);
            self.out.push(Effect::Gate(GateCommand::PeerSend { peer: number, text }));
        }
    }

    /// A new message for subscribers, once for each of them; receivers get it as their own
    /// delivery.
    pub(in crate::core::hub) fn publish_message(
        &mut self,
        recipients: &[String],
        message: &WrittenMessage,
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
            let whole = match recipients {
                [one] if one != crate::wire::api::USER => message.text_for(one),
                _ => message.text().to_string(),
            };
            let data = EventData { whole: whole.into(), narrow: None };
            self.share(wanting, "", Shared::new(seq, "message.new", &data, at));
        }
        // Bodies are not kept: a thousand of them would be half a gigabyte. Who comes back fetches
        // by id.
        let named = |name: &str| serde_json::to_string(name).expect("plain data");
        let (from, to) = (named(&message.from), named(&message.to));
        let whole = format!(r#"{{"id":{},"from":{from},"to":{to}}}"#, message.id).into();
        let subjects = recipients.iter().take(SUBJECTS_KEPT_MAX).cloned().collect();
        let data = EventData { whole, narrow: None };
        self.remember_event(KeptEvent { seq, event: "message.new", subjects, data, at });
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
        let token = peer.token.clone();
        let missed: Vec<KeptEvent> = self
            .events
            .iter()
            .filter(|kept| {
                kept.seq > since && kept.subjects.iter().any(|s| peer.wants(kept.event, s))
            })
            .cloned()
            .collect();
        // Whoever asks for all of it again and again pays for it like for requests.
        self.rates.charge(&token, (missed.len() / SHOWN_PER_REQUEST) as u64);
        for kept in missed {
            let subject = kept.subjects.first().map(String::as_str).unwrap_or_default();
            self.share(
                vec![number],
                subject,
                Shared::new(kept.seq, kept.event, &kept.data, kept.at),
            );
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
}
