//! Who may register as what, and what a registration changes.

use serde_json::json;

use super::super::event::{Effect, HubOp, StoredAgent};
use super::super::rights::{self, line_of};
use super::super::{Hub, Refusal, bounds};
use super::{COMPONENTS_KEPT_MAX, is_label};
use crate::core::http::GateCommand;
use crate::core::ids::PeerId;
use crate::core::limits::*;
use crate::wire::api::{AGENT_ID_RULE, AgentStatus, TokenRecord, USER, is_agent_id};
use crate::wire::bus::{CLOSE_SUPERSEDED, Registration, RelayFrame};

impl Hub {
    /// An orchestrator takes no name that somebody has: an agent's, a token's, a sender's, another
    /// orchestrator's, or one that mail waits for. Its own is nobody else's.
    pub(in crate::core::hub) fn must_be_new(
        &self,
        actor: &TokenRecord,
        id: &str,
    ) -> Result<(), Refusal> {
        let own = Some(rights::name_of(actor));
        if own == Some(id) {
            return Ok(());
        }
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
    pub(in crate::core::hub) fn is_orchestrators_name(&self, name: &str) -> bool {
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
        bounds::registration(registration)?;
        if !is_agent_id(id) {
            return Err((
                422,
                "bad_agent_id",
                format!("{id:?} cannot be an agent id: {AGENT_ID_RULE}"),
            ));
        }
        self.check_component(actor, id, &registration.component_id)?;
        if !self.agents.contains_key(id) && self.agents.len() >= AGENTS_MAX {
            return Err((
                503,
                "too_many_agents",
                format!("this hub knows {AGENTS_MAX} agents already"),
            ));
        }
        Ok(())
    }

    /// Commands are routed by component id too: nobody takes one that another agent has or had, nor
    /// an agent's id.
    fn check_component(
        &self,
        actor: &TokenRecord,
        id: &str,
        component: &str,
    ) -> Result<(), Refusal> {
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
    pub(in crate::core::hub) fn register(
        &mut self,
        actor: &TokenRecord,
        id: &str,
        mut registration: Registration,
        peer: Option<PeerId>,
    ) -> Result<u64, Refusal> {
        self.check_registration(actor, id, &registration)?;
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
        agent.stored.ended = None;
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
            self.close_superseded(old, same);
        }
        self.queues.entry(id.to_string()).or_default().until = None;
        self.resolve_for(id);
        self.emit("agent.registered", id, json!({"agentId": id, "epoch": epoch}));
        Ok(epoch)
    }

    /// Ends the connection that a newer registration replaces; another instance is told so first.
    fn close_superseded(&mut self, peer: PeerId, by_same_instance: bool) {
        let why = if by_same_instance {
            "connected anew"
        } else {
            "another instance registered this agent"
        };
        if !by_same_instance {
            let error = RelayFrame::Error {
                id: None,
                code: "superseded".into(),
                message: why.into(),
                retryable: false,
            };
            self.out
                .push(Effect::Gate(GateCommand::PeerSend { peer, text: error.to_text().into() }));
        }
        self.drop_peer(peer);
        self.out.push(Effect::Gate(GateCommand::PeerClose {
            peer,
            code: CLOSE_SUPERSEDED,
            reason: why.into(),
        }));
    }
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
