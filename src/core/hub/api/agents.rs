//! Calls about agents: registration, cards, and the signs of life of those without a bus.

use serde_json::{Value, json};

use super::super::agents::is_label;
use super::super::event::HubOp;
use super::super::{Hub, Refusal, bounds};
use super::{Answer, Routed, query};
use crate::core::http::Request;
use crate::core::limits::NAME_BYTES_MAX;
use crate::wire::api::TokenRecord;
use crate::wire::bus::Registration;

fn unknown_agent(id: &str) -> Refusal {
    (404, "unknown_agent", format!("there is no agent {id}"))
}

impl Hub {
    pub(super) fn list_agents(&self, actor: &TokenRecord, request: &Request) -> Value {
        let wanted: Vec<(&str, String)> = ["tag", "cap", "label", "status"]
            .into_iter()
            .filter_map(|name| query(request, name).map(|value| (name, value)))
            .collect();
        let fits = |card: &Value| {
            wanted.iter().all(|(name, value)| match *name {
                "tag" => {
                    card["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == value))
                }
                "cap" => card["capabilities"]
                    .as_array()
                    .is_some_and(|caps| caps.iter().any(|c| c == value)),
                other => card[other] == json!(value),
            })
        };
        let cards: Vec<Value> =
            self.agents.keys().map(|id| self.card_for(actor, id)).filter(fits).collect();
        json!({"agents": cards})
    }

    pub(super) fn register_over_http(&mut self, actor: &TokenRecord, body: &Value) -> Routed {
        let registration: Registration = serde_json::from_value(body.clone())
            .map_err(|error| (400, "bad_registration", error.to_string()))?;
        let id = body
            .get("id")
            .and_then(Value::as_str)
            .map(str::to_string)
            .or_else(|| registration.agent_id.clone());
        let Some(id) = id else {
            return Err((400, "no_id", "a registration needs an \"id\"".into()));
        };
        self.register(actor, &id, registration, None)?;
        let mut card = self.card_for(actor, &id);
        card["server"] = self.server();
        Ok(Answer::Durable(200, card))
    }

    pub(super) fn show_agent(&self, actor: &TokenRecord, id: &str) -> Routed {
        if self.agents.contains_key(id) {
            Ok(Answer::Now(200, self.card_for(actor, id)))
        } else {
            Err(unknown_agent(id))
        }
    }

    pub(super) fn delete_agent_over_http(&mut self, actor: &TokenRecord, id: &str) -> Routed {
        self.may_act(actor, id).map_err(|refusal| {
            if self.agents.contains_key(id) { refusal } else { unknown_agent(id) }
        })?;
        if self.delete_agent(id) {
            Ok(Answer::Durable(204, Value::Null))
        } else {
            Err(unknown_agent(id))
        }
    }

    /// Whether a sign of life is one of the instance that is registered; a body that names no
    /// instance speaks for whichever that is.
    fn check_instance(&self, actor: &TokenRecord, id: &str, body: &Value) -> Result<(), Refusal> {
        self.may_act(actor, id)?;
        let agent = self.agents.get(id).ok_or_else(|| unknown_agent(id))?;
        if let Some(meta) = body.get("meta").and_then(Value::as_object) {
            bounds::meta(meta)?;
        }
        let Some(told) = body.get("instanceId").and_then(Value::as_str) else {
            return Ok(());
        };
        bounds::text("instanceId", told, NAME_BYTES_MAX)?;
        let known = agent.stored.registration.instance_id.as_str();
        if known.is_empty() && agent.stored.epoch > 0 {
            let text = format!("no instance of {id} is registered; register it");
            return Err((404, "unknown_agent", text));
        }
        if told != known {
            return Err((409, "superseded", "another instance registered this agent".into()));
        }
        Ok(())
    }

    pub(super) fn put_status(&mut self, actor: &TokenRecord, id: &str, body: &Value) -> Routed {
        self.check_instance(actor, id, body)?;
        let Some(status) = body.get("status").and_then(Value::as_str) else {
            return Err((400, "no_status", "\"status\" must be idle, busy or offline".into()));
        };
        self.set_status(id, status, None, None);
        Ok(Answer::Now(200, self.card_for(actor, id)))
    }

    pub(super) fn put_ready(&mut self, actor: &TokenRecord, id: &str, body: &Value) -> Routed {
        self.check_instance(actor, id, body)?;
        let Some(ready) = body.get("ready").and_then(Value::as_bool) else {
            return Err((400, "no_ready", "\"ready\" must be true or false".into()));
        };
        self.on_liveness_told(id, Some(ready), body.get("meta"));
        Ok(Answer::Now(200, self.card_for(actor, id)))
    }

    pub(super) fn heartbeat(&mut self, actor: &TokenRecord, id: &str, body: &Value) -> Routed {
        self.check_instance(actor, id, body)?;
        self.on_liveness_told(id, None, body.get("meta"));
        let answer = json!({"ok": true, "commands": self.pending_for(id), "server": self.server()});
        Ok(Answer::Now(200, answer))
    }

    pub(super) fn put_label(&mut self, actor: &TokenRecord, id: &str, body: &Value) -> Routed {
        self.may_act(actor, id)?;
        let agent = self.agents.get_mut(id).ok_or_else(|| unknown_agent(id))?;
        let label = match body.get("label") {
            Some(Value::Null) => None,
            Some(Value::String(label)) if is_label(label) => {
                Some(label.trim().to_string()).filter(|label| !label.is_empty())
            }
            _ => {
                let text = "\"label\" must be a text of one line, at most 200 bytes, or null";
                return Err((400, "bad_label", text.into()));
            }
        };
        agent.stored.label = label;
        let stored = agent.stored.clone();
        self.commits.write(HubOp::AgentPut(stored));
        self.resolve_for(id);
        Ok(Answer::Durable(200, self.card_for(actor, id)))
    }
}
