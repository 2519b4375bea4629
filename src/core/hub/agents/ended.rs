//! Agents that are not there: why and since when, one rule for every way of stopping. It is
//! durable, so a hub that starts again still knows it. People forget those that will not come back.

use serde_json::{Map, Value, json};

use super::super::event::{Ended, HubOp};
use super::super::{Hub, Refusal};
use super::Agent;
use crate::core::chars;
use crate::wire::api::{AgentStatus, DetailedStatus, TokenRecord};

/// Characters of a reason that are kept.
const WHY_MAX: usize = 500;
/// Agents that one call forgets.
const FORGOTTEN_MAX: usize = 500;
/// An agent went without a word.
const LOST: &str = "the connection was lost without a goodbye: its runner was killed, or its machine or the network is down";

/// What an agent has told of its own end; `None`: it has told of none.
fn told_end(meta: &Map<String, Value>, now: i64) -> Option<Ended> {
    let text = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or_default();
    let failed = text("terminalStatus") == "error";
    let leaves = matches!(text("lifecycleAction"), "shutting-down" | "killing");
    let status = match DetailedStatus::parse(text("status")) {
        Some(word @ (DetailedStatus::Error | DetailedStatus::Parked)) if failed => word,
        _ => DetailedStatus::Offline,
    };
    (failed || leaves).then(|| Ended {
        status: status.as_str().into(),
        why: chars::one_line(text("statusWhy")).chars().take(WHY_MAX).collect(),
        since: meta.get("statusSince").and_then(Value::as_i64).unwrap_or(now),
    })
}

impl Agent {
    /// It went, perhaps without a word.
    fn end(&self, now: i64) -> Ended {
        let why = LOST.into();
        told_end(&self.meta, now).unwrap_or(Ended { status: "offline".into(), why, since: now })
    }

    /// It may be forgotten: nobody is connected for it, and it counts as gone.
    fn is_gone(&self) -> bool {
        self.peer.is_none() && self.status == AgentStatus::Offline
    }
}

impl Hub {
    /// It is gone: how, is durable from here on. Told again, nothing is written.
    pub(in crate::core::hub) fn note_end(&mut self, id: &str) {
        let now = self.now.wall.0;
        let Some(agent) = self.agents.get_mut(id).filter(|agent| agent.is_gone()) else { return };
        let known = agent.stored.ended.as_ref();
        let ended = agent.end(now);
        let is_same = known.is_some_and(|it| it.why == ended.why && it.status == ended.status);
        if !is_same {
            agent.stored.ended = Some(ended);
            let stored = agent.stored.clone();
            self.commits.write(HubOp::AgentPut(stored));
        }
    }

    /// It is heard of again.
    pub(in crate::core::hub) fn note_back(&mut self, id: &str) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        if agent.stored.ended.take().is_some() {
            let stored = agent.stored.clone();
            self.commits.write(HubOp::AgentPut(stored));
        }
    }

    /// What a card tells of an end: only while it is one.
    pub(super) fn end_json(&self, agent: &Agent) -> Value {
        if !agent.is_gone() {
            return Value::Null;
        }
        match &agent.stored.ended {
            Some(ended) => json!(ended),
            // It was there when the hub ended.
            None => json!({
                "status": "offline", "why": "it has not come back since the hub was started",
                "since": self.started_at,
            }),
        }
    }

    /// Forgets agents that are gone: those that are named, or all. Whoever is connected is stopped
    /// first, by a command.
    pub(in crate::core::hub) fn forget_agents(
        &mut self,
        actor: &TokenRecord,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let named = body.get("ids").and_then(Value::as_array);
        let mut wanted: Vec<String> =
            named.into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect();
        if body.get("offline") == Some(&Value::Bool(true)) {
            let gone = self.agents.iter().filter(|(id, agent)| {
                agent.is_gone() && self.may_act(actor, id).is_ok() && !wanted.contains(id)
            });
            let gone: Vec<String> = gone.map(|(id, _)| id.clone()).collect();
            wanted.extend(gone);
        } else if wanted.is_empty() {
            return Err((400, "no_ids", "say \"ids\", or \"offline\": true".into()));
        }
        let more = wanted.len() > FORGOTTEN_MAX;
        wanted.truncate(FORGOTTEN_MAX);
        let (mut forgotten, mut kept) = (Vec::new(), Vec::new());
        for id in wanted {
            match self.forget_agent(actor, &id) {
                Ok(()) => forgotten.push(id),
                Err(why) => kept.push(json!({"id": id, "why": why})),
            }
        }
        Ok(json!({"forgotten": forgotten, "kept": kept, "more": more}))
    }

    fn forget_agent(&mut self, actor: &TokenRecord, id: &str) -> Result<(), String> {
        let agent = self.agents.get(id).ok_or("there is no such agent")?;
        let gone = agent.is_gone() || crate::planted::is("forgotten-alive");
        let connected = agent.peer.is_some();
        self.may_act(actor, id).map_err(|(_, _, text)| text)?;
        if !gone {
            return Err(if connected {
                format!("it is connected; `agent-relay command {id} shutdown` stops it")
            } else {
                "it was heard of less than a minute ago; try again when it is offline".into()
            });
        }
        self.delete_agent(id);
        Ok(())
    }
}
