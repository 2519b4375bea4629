//! Agents: registration, presence and queues.

use crate::core::http::GateCommand;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::event::{Effect, HubOp, StoredAgent};
use super::rights::{self, line_of};
use super::timer::Timer;
use super::{Hub, Refusal};
use crate::core::ids::{MessageId, PeerId};
use crate::core::limits::*;
use crate::core::time::Tick;
use crate::wire::api::AgentStatus;
use crate::wire::api::{AGENT_ID_RULE, TokenRecord, USER, is_agent_id};
use crate::wire::bus::{CLOSE_DELETED, CLOSE_SUPERSEDED, Registration, RelayFrame};
use crate::wire::control::LogLevel;

/// Unacknowledged messages of one recipient, ascending; after each registration they are delivered
/// again.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub ids: BTreeSet<MessageId>,
    /// When the queue of a deleted agent goes.
    pub until: Option<i64>,
}

/// Most bytes of an agent's meta.
const META_BYTES_MAX: usize = 512 << 10;

/// Adds to an agent's meta; where that would be too much, only the newest part is kept.
pub(super) fn merge_meta(
    known: &mut serde_json::Map<String, Value>,
    told: serde_json::Map<String, Value>,
) {
    let size = |map: &serde_json::Map<String, Value>| {
        serde_json::to_string(map).map_or(usize::MAX, |text| text.len())
    };
    let grows = told.keys().any(|name| !known.contains_key(name));
    known.extend(told.clone());
    if (grows || told.len() > 64) && size(known) > META_BYTES_MAX {
        *known = if size(&told) > META_BYTES_MAX { Default::default() } else { told };
    }
}

/// Most bytes of a component id.
const COMPONENT_BYTES_MAX: usize = 400;
/// Component ids of an agent that others may not take: its last ones.
const COMPONENTS_KEPT_MAX: usize = 16;
/// Senders without a registration that are remembered.
const SENDERS_KEPT_MAX: usize = AGENTS_MAX;

/// Bytes of a label, a tag or a capability.
const LABEL_BYTES_MAX: usize = 200;

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

/// Whether a registration comes from a process that started before that of another one, on the same
/// boot of the same machine: registrations of two connections may overtake each other.
fn is_older(new: &Registration, known: &Registration) -> bool {
    let start = |registration: &Registration| {
        let start = registration.meta.get("processStart")?;
        Some((start.get("boot")?.as_str()?.to_string(), start.get("ticks")?.as_u64()?))
    };
    match (start(new), start(known)) {
        (Some((boot, ticks)), Some((known_boot, known_ticks))) => {
            boot == known_boot && ticks < known_ticks
        }
        _ => false,
    }
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
        self.agents.get(id).is_some_and(its)
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

    /// An orchestrator takes no name that somebody has: an agent's, a token's, a sender's, another
    /// orchestrator's, or one that mail waits for.
    pub(super) fn must_be_new(&self, actor: &TokenRecord, id: &str) -> Result<(), Refusal> {
        let own = Some(rights::name_of(actor));
        let its = |record: &TokenRecord| record.spawned_by.as_deref() == own;
        let others = |record: &TokenRecord| record.agent_id.as_deref() == Some(id) && !its(record);
        let waited_for = self.queues.get(id).is_some_and(|queue| !queue.ids.is_empty());
        let made = self
            .tokens
            .values()
            .any(|record| record.agent_id.as_deref() == Some(id) && its(record));
        let taken = self.senders.contains_key(id)
            || waited_for
            || self.tokens.values().any(|record| others(record));
        if taken && !made || self.is_orchestrators_name(id) {
            Err(rights::forbidden(format!("{id} was not made by this orchestrator")))
        } else {
            Ok(())
        }
    }

    /// A name under which an orchestrator speaks.
    pub(super) fn is_orchestrators_name(&self, name: &str) -> bool {
        self.tokens.values().any(|record| {
            record.profile_id == rights::ORCHESTRATOR && rights::name_of(record) == name
        })
    }

    /// What a registration may not say: another agent's names, or a role that its token does not
    /// have.
    fn check_registration(
        &self,
        actor: &TokenRecord,
        id: &str,
        registration: &Registration,
    ) -> Result<(), Refusal> {
        if self.agents.contains_key(id) {
            self.may_act(actor, id)?
        } else {
            rights::own(actor, id)?
        }
        if actor.profile_id == rights::ORCHESTRATOR && !self.agents.contains_key(id) {
            self.must_be_new(actor, id)?;
        }
        rights::role(actor, &registration.role)?;
        if !is_agent_id(id) {
            return Err((
                422,
                "bad_agent_id",
                format!("{id:?} cannot be an agent id: {AGENT_ID_RULE}"),
            ));
        }
        // Commands are routed by component id too: nobody takes one that another agent has or had,
        // nor an agent's id.
        let component = registration.component_id.as_str();
        let taken = |name: &str| self.components.get(name).is_some_and(|owner| owner != id);
        // One that is its own already needs no look at all the others, as when everybody comes back
        // at once.
        let is_its = component.is_empty()
            || component == id
            || self.components.get(component).is_some_and(|owner| owner == id);
        if taken(component) || (!is_its && (component == USER || self.has_mailbox(component))) {
            return Err((
                422,
                "component_taken",
                format!("the componentId {component:?} belongs to another agent"),
            ));
        }
        // Whose token says so is that agent, whatever others call their components.
        if taken(id) && actor.agent_id.as_deref() != Some(id) {
            return Err((
                422,
                "component_taken",
                format!("{id:?} is the componentId of another agent"),
            ));
        }
        if component.len() > COMPONENT_BYTES_MAX {
            return Err((
                422,
                "bad_component",
                format!("a componentId may have {COMPONENT_BYTES_MAX} bytes"),
            ));
        }
        if !self.agents.contains_key(id) && self.agents.len() >= AGENTS_MAX {
            return Err((
                503,
                "too_many_agents",
                format!("this hub knows {AGENTS_MAX} agents already"),
            ));
        }
        Ok(())
    }

    /// Gives the component id to this agent; of its earlier ones the last few stay its own.
    fn keep_component(&mut self, id: &str, component: &str) {
        let Some(agent) = self.agents.get_mut(id).filter(|_| !component.is_empty()) else { return };
        let own = &mut agent.stored.components;
        own.retain(|known| known != component);
        own.push(component.to_string());
        self.components.insert(component.to_string(), id.to_string());
        if own.len() > COMPONENTS_KEPT_MAX {
            self.components.remove(&own.remove(0));
        }
    }

    /// Registers an agent over bus (with a peer) or HTTP. The newer registration wins.
    pub(super) fn register(
        &mut self,
        actor: &TokenRecord,
        id: &str,
        registration: Registration,
        peer: Option<PeerId>,
    ) -> Result<u64, Refusal> {
        self.check_registration(actor, id, &registration)?;
        let mut registration = registration;
        registration.tags.retain(|tag| is_label(tag));
        registration.capabilities.retain(|capability| is_label(capability));
        if self.components.get(id).is_some_and(|owner| owner != id) {
            self.components.remove(id);
        }
        if !self.agents.contains_key(id) {
            self.restore_agent(StoredAgent { id: id.into(), ..Default::default() });
        }
        let agent = self.agents.get_mut(id).expect("inserted above");
        // A late registration of a dead process must not drive out its successor.
        let is_here = agent.peer.is_some() || agent.status != AgentStatus::Offline;
        if is_here && is_older(&registration, &agent.stored.registration) {
            return Err((
                409,
                "superseded",
                "a younger process of this machine registered this agent".into(),
            ));
        }
        let component = registration.component_id.clone();
        let same = agent.stored.registration.instance_id == registration.instance_id;
        if !same || agent.stored.epoch == 0 {
            agent.stored.epoch += 1;
        }
        let old_peer = if peer.is_some() || !same { agent.peer.take() } else { None };
        agent.meta = registration.meta.clone();
        agent.stored.registration = registration;
        agent.stored.last_seen = self.now.wall.0;
        agent.stored.policy = actor.policy_name.clone();
        agent.stored.spawned_by = actor.spawned_by.clone();
        agent.by = line_of(actor).to_string();
        agent.loading = false;
        agent.peer = peer.or(agent.peer);
        let offline_at = agent.peer.is_none().then(|| self.now.tick + OFFLINE_AFTER_SILENCE);
        agent.ready = true;
        if agent.status == AgentStatus::Offline {
            agent.status = AgentStatus::Idle;
        }
        let epoch = agent.stored.epoch;
        self.keep_component(id, &component);
        let stored = self.agents[id].stored.clone();
        self.commits.write(HubOp::AgentPut(stored));
        self.senders.remove(id);
        self.set_offline_at(id, offline_at);
        if let Some(old) = old_peer.filter(|old| Some(*old) != peer) {
            let why =
                if same { "connected anew" } else { "another instance registered this agent" };
            if !same {
                let error = RelayFrame::Error {
                    id: None,
                    code: "superseded".into(),
                    message: why.into(),
                    retryable: false,
                };
                self.out
                    .push(Effect::Gate(GateCommand::PeerSend { peer: old, text: error.to_text() }));
            }
            self.drop_peer(old);
            self.out.push(Effect::Gate(GateCommand::PeerClose {
                peer: old,
                code: CLOSE_SUPERSEDED,
                reason: why.into(),
            }));
        }
        self.queues.entry(id.to_string()).or_default().until = None;
        self.resolve_for(id);
        self.emit("agent.registered", id, json!({"agentId": id, "epoch": epoch}));
        Ok(epoch)
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
        if let Some(meta) = meta {
            // These fields are sent only in some states: without them they are removed.
            for name in
                ["terminalStatus", "context"].into_iter().filter(|name| !meta.contains_key(*name))
            {
                agent.meta.remove(name);
            }
            merge_meta(&mut agent.meta, meta);
        }
        // A polling agent repeats its status: only a change is an event.
        let changed = before != (agent.status, agent.ready, agent.meta.clone());
        self.seen(id);
        if changed {
            let card = self.card(id);
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
            Some(part) if ready.is_none() && !part.contains_key("status") => {
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
            self.out.push(Effect::Gate(GateCommand::PeerSend { peer, text: error.to_text() }));
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
        narrowed(self.card(id), self.sees_whole(actor, id))
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
                self.log(LogLevel::Info, format!("agent offline id={id}"));
                let card = self.card(&id);
                self.emit("agent.status", &id, card);
            }
        }
    }

    /// Periodic work: forgets agents, queues and unresolved messages, expires commands and tokens.
    pub(super) fn sweep_rest(&mut self) {
        let soonest = self.peers.values().filter_map(|peer| peer.token.expires_at).min();
        self.timers.set(Timer::Sweep, self.now.tick + PING_INTERVAL);
        self.sweep_at_end_of(soonest);
        let wall = self.now.wall.0;
        let forgotten: Vec<String> = self
            .agents
            .iter()
            .filter(|(_, a)| {
                a.peer.is_none() && a.stored.last_seen + (FORGOTTEN_AFTER.as_millis() as i64) < wall
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in forgotten {
            self.delete_agent(&id);
        }
        let old: Vec<String> = self
            .queues
            .iter()
            .filter(|(_, q)| q.until.is_some_and(|until| until < wall))
            .map(|(id, _)| id.clone())
            .collect();
        for recipient in old {
            self.queues.remove(&recipient);
            self.commits.write(HubOp::QueueDrop { recipient });
        }
        let (gone, kept) =
            std::mem::take(&mut self.unresolved).into_iter().partition(|u| u.until < wall);
        self.unresolved = kept;
        let gone: Vec<super::messages::Unresolved> = gone;
        for message in gone {
            self.commits.write(HubOp::Unresolved { message: message.id, until: None });
        }
        self.senders.retain(|_, until| *until > wall);
        self.expire_commands();
        self.expire_tokens();
        self.rates.forget_full(self.now.tick);
        self.look_at_store();
    }

    /// Sweeps when this token ends: connections end with their token, not some time later.
    pub(super) fn sweep_at_end_of(&mut self, expires_at: Option<i64>) {
        let Some(end) = expires_at else { return };
        let left =
            (end * 1000 - self.now.wall.0).clamp(50, PING_INTERVAL.as_millis() as i64) as u64;
        let at = self.now.tick + std::time::Duration::from_millis(left);
        self.timers.set_by(Timer::Sweep, at);
    }

    /// Removes messages whose time of retention is over, a few at a time.
    pub(super) fn start_retention(&mut self) {
        self.timers.set(Timer::Retention, self.now.tick + RETENTION_INTERVAL);
        let before = |kept: std::time::Duration| self.now.wall.0 - kept.as_millis() as i64;
        let (session_before, before) = (before(SESSION_KEPT), before(MESSAGES_KEPT));
        self.commits.write(HubOp::Retain { session_before, before, limit: RETENTION_BATCH });
    }

    pub(super) fn on_retired(&mut self, retired: super::event::Retired) {
        self.meter.retired += retired.count;
        for message in retired.offers {
            self.forget_offer(message);
        }
        for (recipient, message) in retired.unacknowledged {
            if let Some(queue) = self.queues.get_mut(&recipient) {
                queue.ids.remove(&message);
            }
        }
        if retired.more {
            self.timers.set(Timer::Retention, self.now.tick + RETENTION_AGAIN);
        }
    }
}
