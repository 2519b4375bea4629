//! The bus, seen from the relay: registrations, acknowledgements, deliveries, subscriptions.

mod deliveries;
mod events;

pub(super) use events::KeptEvent;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::event::{After, Effect, HubOp};
use super::rights::{self, allows};
use super::timer::Timer;
use super::{Hub, Refusal, bounds};
use crate::core::http::{GateCommand, Request};
use crate::core::ids::{MessageId, PeerId, Ticket};
use crate::core::limits::*;
use crate::wire::api::{AgentStatus, TokenRecord};
use crate::wire::bus::{
    CLOSE_SUPERSEDED, ClientFrame, FrameError, Registered, Registration, RelayFrame,
};
use crate::wire::control::LogLevel;

/// A connection.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub token: Arc<TokenRecord>,
    /// A reader of server-sent events instead of a WebSocket.
    pub stream: bool,
    pub agent: Option<String>,
    registered: bool,
    /// Unacknowledged frames: event number → message id and bytes.
    in_flight: BTreeMap<u64, (MessageId, usize)>,
    in_flight_bytes: usize,
    events: Vec<String>,
    scopes: Vec<String>,
}

impl Peer {
    /// Whether it may read messages and has room for unacknowledged ones.
    fn takes_mail(&self) -> bool {
        self.registered && self.has_room() && allows(&self.token, "message:read")
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < UNACKED_PER_PEER_MAX && self.in_flight_bytes < UNACKED_BYTES_MAX
    }

    fn wants(&self, event: &str, subject: &str) -> bool {
        let named = self.events.iter().any(|wanted| wanted == event || wanted == "*");
        let mail_of = rights::acts_as(&self.token).filter(|_| event.starts_with("message."));
        named
            && mail_of.is_none_or(|own| own == subject)
            && (self.scopes.is_empty() || self.scopes.iter().any(|scope| scope == subject))
    }
}

impl Hub {
    pub(super) fn on_upgrade(&mut self, ticket: Ticket, request: &Request) {
        if self.stopping {
            return self.refuse(ticket, 503, "stopping", "the hub is stopping");
        }
        let mut token = self.token_of(&request.token);
        if crate::planted::is("unchecked-rights") && crate::planted::is_unchecked("bus") {
            token = Some(rights::everything());
        }
        let Some(token) = token else {
            return self.refuse(ticket, 401, "unauthorized", "the token is unknown or has expired");
        };
        self.sweep_at_end_of(token.expires_at);
        self.peers.insert(ticket.peer(), Peer { token, ..Default::default() });
        self.out.push(Effect::Gate(GateCommand::Accept { ticket }));
    }

    /// A reader of server-sent events: everything that happens, for an agent's token what concerns
    /// that agent.
    pub(super) fn open_stream(
        &mut self,
        number: PeerId,
        token: Arc<TokenRecord>,
        since: Option<u64>,
    ) {
        self.sweep_at_end_of(token.expires_at);
        let scopes = token.agent_id.iter().cloned().collect();
        let peer = Peer {
            token,
            stream: true,
            registered: true,
            events: vec!["*".into()],
            scopes,
            ..Default::default()
        };
        self.peers.insert(number, peer);
        self.subscribers.insert(number);
        self.out.push(Effect::Gate(GateCommand::Accept { ticket: number.ticket() }));
        if let Some(since) = since {
            self.send_missed(number, since);
        }
    }

    pub(super) fn on_peer_closed(&mut self, peer: PeerId) {
        let Some(id) = self.drop_peer(peer).and_then(|gone| gone.agent) else {
            return;
        };
        self.leave(&id, peer);
    }

    /// Takes an agent off this connection.
    fn leave(&mut self, id: &str, peer: PeerId) {
        let Some(agent) = self.agents.get_mut(id).filter(|agent| agent.peer == Some(peer)) else {
            return;
        };
        agent.peer = None;
        agent.loading = false;
        // Without goodbye it may be back in a moment.
        let offline_at =
            (agent.status != AgentStatus::Offline).then(|| self.now.tick + OFFLINE_AFTER_LOSS);
        self.set_offline_at(id, offline_at);
        self.note_end(id);
    }

    /// Forgets a connection.
    pub(super) fn drop_peer(&mut self, peer: PeerId) -> Option<Peer> {
        self.subscribers.remove(&peer);
        self.peers.remove(&peer)
    }

    pub(super) fn on_peer_text(&mut self, peer: PeerId, text: &str) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        if crate::planted::is("unchecked-rights")
            && crate::planted::is_unchecked("frame")
            && let Some(peer) = self.peers.get_mut(&peer)
        {
            peer.token = rights::everything();
        }
        match ClientFrame::parse(text) {
            Ok(frame) if frame.id().is_some_and(|id| id.len() > NAME_BYTES_MAX) => {
                let text = format!("the id of a frame may have {NAME_BYTES_MAX} bytes");
                self.send_error(peer, None, "field_too_long", &text)
            }
            Ok(frame) => self.on_frame(peer, frame),
            Err(FrameError::Malformed { id, reason }) => {
                self.send_error(peer, id, "invalid_frame", &reason)
            }
            Err(FrameError::Unknown { kind }) => {
                self.log(LogLevel::Debug, format!("ignored a frame of unknown type {kind:?}"))
            }
        }
    }

    fn send(&mut self, peer: PeerId, frame: &RelayFrame) {
        // A reader of events knows no frames.
        if let (true, RelayFrame::Error { code, message, .. }) =
            (self.peers.get(&peer).is_some_and(|peer| peer.stream), frame)
        {
            let text =
                format!("event: error\ndata: {}\n\n", json!({"code": code, "message": message}));
            return self.out.push(Effect::Gate(GateCommand::PeerSend { peer, text: text.into() }));
        }
        self.out.push(Effect::Gate(GateCommand::PeerSend { peer, text: frame.to_text().into() }));
    }

    pub(super) fn send_error(
        &mut self,
        peer: PeerId,
        id: Option<String>,
        code: &str,
        message: &str,
    ) {
        let retryable = code != "superseded" && code != "agent_deleted";
        self.send(
            peer,
            &RelayFrame::Error { id, code: code.into(), message: message.into(), retryable },
        );
    }

    fn on_frame(&mut self, number: PeerId, frame: ClientFrame) {
        let (agent, registered) =
            self.peers.get(&number).map(|p| (p.agent.clone(), p.registered)).unwrap_or_default();
        match frame {
            ClientFrame::Register { id, registration } => {
                self.on_register(number, id, registration)
            }
            _ if !registered => {
                self.send_error(number, None, "invalid_frame", "the first frame must be register")
            }
            ClientFrame::Heartbeat { status, meta } => {
                if let (Some(agent), true) = (agent, self.takes_meta(number, meta.as_ref())) {
                    self.on_heartbeat(&agent, &status, meta);
                }
            }
            ClientFrame::Status { agent_status, ready, meta } => {
                if let (Some(agent), true) = (agent, self.takes_meta(number, meta.as_ref())) {
                    self.set_status(&agent, &agent_status, ready, meta);
                }
            }
            ClientFrame::Command { id, command_type, target, params } => {
                let actor = self.peers.get(&number).map(|p| p.token.clone()).unwrap_or_default();
                let may = rights::scope(&actor, rights::COMMAND_ISSUE);
                match may.and_then(|()| self.issue_command(&actor, &command_type, &target, params))
                {
                    Ok(_) => self.acknowledge(number, id),
                    Err((_, code, text)) => self.send_error(number, Some(id), code, &text),
                }
            }
            ClientFrame::CommandUpdate { id, command_id, status, result, error } => {
                // A command that is not known any more is done with: repeating the update would not
                // help.
                let actor = self.peers.get(&number).map(|p| p.token.clone()).unwrap_or_default();
                match self.update_command(
                    &actor,
                    agent.as_deref(),
                    &command_id,
                    status,
                    result,
                    error,
                ) {
                    Ok(_) | Err((404, ..)) => self.acknowledge(number, id),
                    Err((_, code, text)) => self.send_error(number, Some(id), code, &text),
                }
            }
            ClientFrame::Subscribe { id, events, scopes }
                if events.iter().chain(&scopes).any(|name| name.len() > NAME_BYTES_MAX) =>
            {
                let text = format!("names in a subscription may have {NAME_BYTES_MAX} bytes each");
                self.send_error(number, Some(id), "field_too_long", &text)
            }
            ClientFrame::Subscribe { id, events, scopes } => {
                self.on_subscribe(number, id, events, scopes)
            }
            ClientFrame::Ack { frame_id } => self.on_ack(number, &frame_id),
            ClientFrame::Resume { id, .. } if !self.may_resume(number) => {
                let text = "too many requests; try again in a second";
                self.send_error(number, Some(id), "rate_limited", text)
            }
            ClientFrame::Resume { id, since } => {
                self.send_missed(number, since);
                self.acknowledge(number, id);
            }
        }
    }

    /// Whether this connection may ask for missed events once more: that costs what a request does.
    fn may_resume(&mut self, number: PeerId) -> bool {
        let Some(token) = self.peers.get(&number).map(|peer| peer.token.clone()) else {
            return false;
        };
        let may = self.rates.take(self.now.tick, Some(&token));
        if !may {
            self.note_limit_met(&token, "requests");
        }
        may
    }

    /// Whether a record is short enough; its sender is told where it is not.
    fn takes_meta(&mut self, number: PeerId, meta: Option<&Map<String, Value>>) -> bool {
        match meta.map_or(Ok(()), bounds::meta) {
            Ok(()) => true,
            Err((_, code, text)) => {
                self.send_error(number, None, code, &text);
                false
            }
        }
    }

    /// Acknowledges a frame once its effect is durable: the sender may forget it then.
    fn acknowledge(&mut self, peer: PeerId, frame_id: String) {
        let text = RelayFrame::Ack { frame_id }.to_text();
        self.commits
            .defer(After::Effect(Effect::Gate(GateCommand::PeerSend { peer, text: text.into() })));
    }

    fn on_heartbeat(&mut self, agent: &str, status: &str, meta: Option<Map<String, Value>>) {
        self.seen(agent);
        if let Some(known) = self.agents.get_mut(agent) {
            super::agents::merge_meta(&mut known.meta, meta.unwrap_or_default());
            // The semantic word never brings an offline agent back: only a status does.
            if let Some(status @ (AgentStatus::Idle | AgentStatus::Busy)) =
                AgentStatus::parse(status)
                && known.status != AgentStatus::Offline
            {
                known.status = status;
            }
        }
    }

    fn on_register(&mut self, number: PeerId, id: String, registration: Registration) {
        let Some((token, former)) =
            self.peers.get(&number).map(|peer| (peer.token.clone(), peer.agent.clone()))
        else {
            return;
        };
        let wanted = registration.agent_id.clone();
        let is_agent = matches!(registration.role.as_str(), "provider" | "orchestrator");
        if let Err((_, code, text)) = may_register(&token, &registration, former.as_deref()) {
            return self.send_error(number, Some(id), code, &text);
        }
        let mut epoch = 1;
        if let (Some(agent), true) = (&wanted, is_agent) {
            match self.register(&token, agent, registration, Some(number)) {
                Ok(told) => epoch = told,
                Err((_, code, text)) => {
                    self.send_error(number, Some(id), code, &text);
                    if code == "superseded" {
                        self.drop_peer(number);
                        self.out.push(Effect::Gate(GateCommand::PeerClose {
                            peer: number,
                            code: CLOSE_SUPERSEDED,
                            reason: text,
                        }));
                    }
                    return;
                }
            }
        }
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.agent = wanted.clone().filter(|_| is_agent);
            peer.in_flight.clear();
            peer.in_flight_bytes = 0;
        }
        let server = self.server();
        let registered = Registered {
            agent_id: wanted.clone(),
            epoch,
            seq: self.seq,
            heartbeat_interval_ms: HEARTBEAT_INTERVAL.as_millis() as u64,
            server_time: self.now.wall.0,
            server: server.as_object().cloned().unwrap_or_default(),
        };
        // Behind the commit: a registration that a crash forgets would make the older instance look
        // like the newer one.
        let text = RelayFrame::Registered { id, registered }.to_text();
        let agent = wanted.filter(|_| is_agent);
        if crate::planted::is("registered-before-commit") {
            self.on_registration_durable(number, agent, text)
        } else {
            self.commits.defer(After::Registered { peer: number, agent, text })
        }
    }

    /// The registration is durable: the peer is told, and gets what waits for it.
    pub(super) fn on_registration_durable(
        &mut self,
        number: PeerId,
        agent: Option<String>,
        text: String,
    ) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        peer.registered = true;
        self.out.push(Effect::Gate(GateCommand::PeerSend { peer: number, text: text.into() }));
        if let Some(agent) =
            agent.filter(|id| self.agents.get(id).is_some_and(|agent| agent.peer == Some(number)))
        {
            self.log(LogLevel::Info, format!("agent registered id={agent}"));
            self.send_commands_again(&agent, number);
            self.deliver(&agent, None);
        }
    }

    /// No answer tells that an acknowledgement is durable: it costs no commit where others come.
    fn write_ack(&mut self, op: HubOp) {
        self.commits.write_late(op);
        if self.stopping || self.commits.late() >= LATE_ACKS_MAX {
            self.commits.hurry();
        } else {
            self.timers.set_once(Timer::LateAcks, self.now.tick + LATE_ACKS_TIME);
        }
    }

    fn on_ack(&mut self, number: PeerId, frame_id: &str) {
        let Some(peer) = self.peers.get_mut(&number) else {
            return;
        };
        let Some(agent) = peer.agent.clone() else {
            return;
        };
        let seq = frame_id.strip_prefix('e').and_then(|text| text.parse::<u64>().ok());
        if let Some((message, bytes)) = seq.and_then(|seq| peer.in_flight.remove(&seq)) {
            peer.in_flight_bytes -= bytes;
            if let Some(queue) = self.queues.get_mut(&agent) {
                queue.ids.remove(&message);
            }
            self.meter.acknowledged += 1;
            self.write_ack(HubOp::Acked { message, recipient: agent.clone() });
            self.deliver(&agent, None);
        } else {
            self.command_acknowledged(&agent, frame_id);
        }
    }
}

/// As what and as whom a connection may register. One connection is one agent; who only listens
/// needs no agent at all.
fn may_register(
    token: &TokenRecord,
    registration: &Registration,
    former: Option<&str>,
) -> Result<(), Refusal> {
    rights::role(token, &registration.role)?;
    let wanted = registration.agent_id.as_deref();
    match wanted {
        Some(wanted) => rights::own(token, wanted)?,
        None if registration.role == "channel" => {}
        None => rights::scope(token, "agent:self")?,
    }
    match former {
        Some(former) if wanted != Some(former) || registration.role == "channel" => {
            Err(rights::forbidden(format!(
                "this connection is {former}; open another one for anything else"
            )))
        }
        _ => Ok(()),
    }
}
