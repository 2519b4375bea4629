//! Agents: what is known of each, whether it is there, and what others see of it.

mod ended;
mod registration;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::event::{Effect, HubOp, StoredAgent};
use super::rights::{self, line_of};
use super::{Hub, Refusal};
use crate::core::cost::{bytes_of, bytes_of_map};
use crate::core::http::GateCommand;
use crate::core::ids::{MessageId, PeerId};
use crate::core::limits::*;
use crate::core::time::Tick;
use crate::wire::api::{AgentStatus, TokenRecord, USER};
use crate::wire::bus::{CLOSE_DELETED, RelayFrame};
use crate::wire::control::LogLevel;

/// Unacknowledged messages of one recipient, ascending; after each registration they are delivered
/// again.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub ids: BTreeSet<MessageId>,
    /// When the queue of a deleted agent goes.
    pub until: Option<i64>,
}

/// Adds to an agent's meta; where that would be too much, only the newest part is kept. What is
/// told is short enough by itself.
pub(super) fn merge_meta(
    known: &mut serde_json::Map<String, Value>,
    told: serde_json::Map<String, Value>,
) {
    let stays = |name: &String| !told.contains_key(name);
    let kept: usize = known
        .iter()
        .filter(|(name, _)| stays(name))
        .map(|(name, value)| name.len() + 4 + bytes_of(value))
        .sum();
    if kept + bytes_of_map(&told) > META_BYTES_MAX {
        known.clear();
    }
    known.extend(told);
}

/// The field of a status that tells an event of the agent's timeline.
const TIMELINE: &str = "timelineEvent";

/// Component ids of an agent that others may not take: its last ones.
const COMPONENTS_KEPT_MAX: usize = 16;
/// Senders without a registration that are remembered.
const SENDERS_KEPT_MAX: usize = AGENTS_MAX;

/// A label, a tag or a capability: one line, not too long.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && !text.chars().any(char::is_control)
}

/// What others see of a card.
const OPEN_FIELDS: [&str; 7] =
    ["id", "label", "tags", "capabilities", "status", "connected", "spawnedBy"];

/// A card as it is shown to whoever sees the whole of it, or to others.
pub(super) fn narrowed(mut card: Value, whole: bool) -> Value {
    if let Some(fields) = card.as_object_mut().filter(|_| !whole) {
        fields.retain(|name, _| OPEN_FIELDS.contains(&name.as_str()));
    }
    card
}

/// A known agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub stored: StoredAgent,
    pub peer: Option<PeerId>,
    pub status: AgentStatus,
    pub ready: bool,
    pub meta: serde_json::Map<String, Value>,
    /// When it counts as offline unless it is heard of again.
    pub offline_at: Option<Tick>,
    /// A read for its bus connection is under way.
    pub loading: bool,
    /// Line of the token that registered it last.
    pub by: String,
}

impl Agent {
    pub fn label(&self) -> Option<&str> {
        let told = self.stored.registration.meta.get("label").and_then(Value::as_str);
        self.stored.label.as_deref().or(told).filter(|label| is_label(label))
    }

    /// Its profile may want only what is addressed to itself: direct messages, its label, its
    /// policy.
    pub fn is_narrow(&self) -> bool {
        self.stored.registration.meta.get("broadTargets") == Some(&Value::Bool(false))
    }
}

/// Names that have sent something without being registered, with the time until which answers find
/// them, ms.
pub(super) type Senders = BTreeMap<String, i64>;

impl Hub {
    pub(super) fn restore_agent(&mut self, mut stored: StoredAgent) {
        // What is stored is its last registration; it may have been here until a moment ago.
        let soon = self.now.wall.0 - FORGOTTEN_AFTER.as_millis() as i64 * 6 / 7;
        stored.last_seen = stored.last_seen.max(soon);
        let id = stored.id.clone();
        if stored.components.is_empty() {
            stored.components.extend(
                Some(stored.registration.component_id.clone())
                    .filter(|component| !component.is_empty()),
            );
        }
        self.components
            .extend(stored.components.iter().map(|component| (component.clone(), id.clone())));
        let agent = Agent {
            stored,
            peer: None,
            status: AgentStatus::Offline,
            ready: false,
            meta: Default::default(),
            offline_at: None,
            loading: false,
            by: String::new(),
        };
        self.agents.insert(id, agent);
    }

    /// Whether an orchestrator has made this agent, or is it.
    fn is_of_orchestrator(&self, actor: &TokenRecord, id: &str) -> bool {
        let its = |agent: &Agent| {
            agent.by == line_of(actor)
                || agent.stored.spawned_by.as_deref() == Some(rights::name_of(actor))
        };
        // Its name is its own, also with another token.
        self.agents.get(id).is_some_and(|agent| id == rights::name_of(actor) || its(agent))
    }

    /// Whether a token may act as, or upon, an agent: an agent's as itself, an orchestrator's upon
    /// what it has made, people's upon all.
    pub(super) fn may_act(&self, actor: &TokenRecord, id: &str) -> Result<(), Refusal> {
        rights::own(actor, id)?;
        if actor.profile_id == rights::ORCHESTRATOR && !self.is_of_orchestrator(actor, id) {
            Err(rights::forbidden(format!("{id} was not made by this orchestrator")))
        } else {
            Ok(())
        }
    }

    /// Status of the bus or of the liveness round.
    pub(super) fn set_status(
        &mut self,
        id: &str,
        status: &str,
        ready: Option<bool>,
        meta: Option<serde_json::Map<String, Value>>,
    ) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let before = (agent.status, agent.ready, agent.meta.clone());
        agent.status = AgentStatus::parse(status).unwrap_or(AgentStatus::Idle);
        agent.ready = ready.unwrap_or(agent.ready);
        // An event of the timeline is told once, and is no part of the status.
        let mut timeline = None;
        if let Some(mut meta) = meta {
            timeline = meta.remove(TIMELINE);
            // These fields are sent only in some states: without them they are removed.
            for name in
                ["terminalStatus", "context"].into_iter().filter(|name| !meta.contains_key(*name))
            {
                agent.meta.remove(name);
            }
            merge_meta(&mut agent.meta, meta);
        }
        let is_offline = agent.status == AgentStatus::Offline;
        // A polling agent repeats its status: only a change is an event.
        let changed = before != (agent.status, agent.ready, agent.meta.clone());
        self.seen(id);
        if is_offline {
            self.note_end(id);
        } else {
            self.note_back(id);
        }
        if changed || timeline.is_some() {
            let mut card = self.card(id);
            if let Some(event) = timeline {
                card["meta"][TIMELINE] = event;
            }
            self.emit("agent.status", id, card);
        }
    }

    /// Meta that came with a call: a whole status record acts as on the bus, a part of it is merged
    /// into what is known.
    pub(super) fn on_liveness_told(&mut self, id: &str, ready: Option<bool>, meta: Option<&Value>) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        match meta.and_then(Value::as_object).cloned() {
            Some(mut part) if ready.is_none() && !part.contains_key("status") => {
                part.remove(TIMELINE);
                merge_meta(&mut agent.meta, part)
            }
            meta => {
                let status = agent.status.as_str();
                self.set_status(id, status, ready, meta);
            }
        }
        self.seen(id);
    }

    pub(super) fn seen(&mut self, id: &str) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        agent.stored.last_seen = self.now.wall.0;
        if agent.peer.is_none() && agent.status != AgentStatus::Offline {
            let at = self.now.tick + OFFLINE_AFTER_SILENCE;
            self.set_offline_at(id, Some(at));
        }
    }

    /// When an agent counts as offline unless something is heard.
    pub(super) fn set_offline_at(&mut self, id: &str, at: Option<Tick>) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut agent.offline_at, at) {
            self.presence.remove(&(old, id.to_string()));
        }
        self.presence.extend(at.map(|at| (at, id.to_string())));
    }

    pub(super) fn delete_agent(&mut self, id: &str) -> bool {
        self.set_offline_at(id, None);
        let Some(agent) = self.agents.remove(id) else {
            return false;
        };
        agent.stored.components.iter().for_each(|component| {
            self.components.remove(component);
        });
        self.commits.write(HubOp::AgentDelete { id: id.to_string() });
        if let Some(queue) = self.queues.get_mut(id) {
            queue.until = Some(self.now.wall.0 + QUEUED_FOR.as_millis() as i64);
        }
        self.release_claims_of(id);
        self.cancel_commands_of(id);
        if let Some(peer) = agent.peer {
            let error = RelayFrame::Error {
                id: None,
                code: "agent_deleted".into(),
                message: format!("the agent {id} was deleted"),
                retryable: false,
            };
            self.out
                .push(Effect::Gate(GateCommand::PeerSend { peer, text: error.to_text().into() }));
            self.drop_peer(peer);
            self.out.push(Effect::Gate(GateCommand::PeerClose {
                peer,
                code: CLOSE_DELETED,
                reason: "agent deleted".into(),
            }));
        }
        self.emit("agent.removed", id, json!({"agentId": id}));
        true
    }

    /// An answer finds a sender that is not registered, as long as what it answers is kept.
    pub(super) fn note_sender(&mut self, name: &str) {
        let known = name == USER || self.agents.contains_key(name);
        if !known && (self.senders.contains_key(name) || self.senders.len() < SENDERS_KEPT_MAX) {
            self.senders
                .insert(name.to_string(), self.now.wall.0 + MESSAGES_KEPT.as_millis() as i64);
        }
    }

    /// Whether a message to this name can be fetched by somebody: an agent, who may register as it,
    /// or who has sent something.
    pub(super) fn has_mailbox(&self, name: &str) -> bool {
        let lives =
            |record: &TokenRecord| record.expires_at.is_none_or(|end| end * 1000 > self.now.wall.0);
        self.agents.contains_key(name)
            || self.senders.contains_key(name)
            || self
                .tokens
                .values()
                .any(|record| record.agent_id.as_deref() == Some(name) && lives(record))
    }

    /// What the API shows of an agent to this token. Others than people and the agent itself see no
    /// more than they need to write to it: what it waits for, where it works and what it runs is
    /// not theirs.
    pub(super) fn card_for(&self, actor: &TokenRecord, id: &str) -> Value {
        if self.sees_whole(actor, id) { self.card(id) } else { self.narrow_card(id) }
    }

    /// The same as [`narrowed`] makes of a whole card, without making that first: a list is made of
    /// very many.
    fn narrow_card(&self, id: &str) -> Value {
        let Some(agent) = self.agents.get(id) else {
            return Value::Null;
        };
        let registration = &agent.stored.registration;
        json!({
            "id": id, "label": agent.label(), "tags": registration.tags,
            "capabilities": registration.capabilities, "status": agent.status.as_str(),
            "connected": agent.peer.is_some(), "spawnedBy": agent.stored.spawned_by,
        })
    }

    pub(super) fn sees_whole(&self, actor: &TokenRecord, id: &str) -> bool {
        let maker = self.agents.get(id).and_then(|agent| agent.stored.spawned_by.as_deref());
        rights::sees_whole(actor, id, maker)
            || (actor.profile_id == rights::ORCHESTRATOR && self.is_of_orchestrator(actor, id))
    }

    /// All that is known of an agent.
    pub(super) fn card(&self, id: &str) -> Value {
        let Some(agent) = self.agents.get(id) else {
            return Value::Null;
        };
        let registration = &agent.stored.registration;
        json!({
            "id": id, "name": registration.meta.get("name").cloned().unwrap_or_else(|| json!(id)),
            "status": agent.status.as_str(), "ready": agent.ready, "label": agent.label(),
            "connected": agent.peer.is_some(), "tags": registration.tags, "capabilities": registration.capabilities,
            "machine": registration.machine, "role": registration.role, "runnerId": registration.component_id,
            "instanceId": registration.instance_id, "epoch": agent.stored.epoch, "lastSeenAt": agent.stored.last_seen,
            "policyName": agent.stored.policy, "spawnedBy": agent.stored.spawned_by,
            "ended": self.end_json(agent),
            "queued": self.queues.get(id).map(|queue| queue.ids.len()).unwrap_or(0), "meta": agent.meta,
        })
    }

    pub(super) fn next_presence(&self) -> Option<Tick> {
        self.presence.first().map(|(at, _)| *at)
    }

    pub(super) fn sweep_presence(&mut self) {
        while let Some((_, id)) =
            self.presence.first().filter(|(at, _)| *at <= self.now.tick).cloned()
        {
            self.set_offline_at(&id, None);
            let Some(agent) = self.agents.get_mut(&id) else { continue };
            agent.ready = false;
            if agent.status != AgentStatus::Offline {
                agent.status = AgentStatus::Offline;
                self.note_end(&id);
                self.log(LogLevel::Info, format!("agent offline id={id}"));
                let card = self.card(&id);
                self.emit("agent.status", &id, card);
            }
        }
    }
}
