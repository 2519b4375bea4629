//! Calls about commands: issued, listed, shown and reported on over HTTP.

use serde_json::{Value, json};

use super::super::event::{CommandParties, Query};
use super::super::rights::{COMMAND_ISSUE, acts_as, allows, line_of, scope};
use super::super::{Hub, Refusal};
use super::{Answer, Asked, Routed, object, query, text};
use crate::wire::api::TokenRecord;

impl Hub {
    pub(super) fn issue_command_over_http(&mut self, asked: &Asked) -> Routed {
        let body = object(asked.request)?;
        let params = body.get("params").and_then(Value::as_object).cloned().unwrap_or_default();
        let (kind, target) = (text(&body, "type"), text(&body, "target"));
        let command = self.issue_command(asked.actor, kind, target, params)?;
        Ok(Answer::Durable(201, json!(command)))
    }

    pub(super) fn ask_commands(&mut self, asked: &Asked) -> Routed {
        let own = self.own_commands(asked.actor)?;
        let (target, status) = (query(asked.request, "target"), query(asked.request, "status"));
        self.ask(asked.ticket, Query::Commands { target, status, own })
    }

    pub(super) fn ask_command(&mut self, asked: &Asked) -> Routed {
        let own = self.own_commands(asked.actor)?;
        self.ask(asked.ticket, Query::Command { id: asked.first.to_string(), own })
    }

    pub(super) fn patch_command(&mut self, asked: &Asked) -> Routed {
        let body = object(asked.request)?;
        let error = body.get("error").and_then(Value::as_str).map(str::to_string);
        let result = body.get("result").filter(|r| !r.is_null()).cloned();
        let status = text(&body, "status").into();
        let command = self.update_command(asked.actor, None, asked.first, status, result, error)?;
        Ok(Answer::Durable(200, json!(command)))
    }

    /// An agent sees its own; and whoever asks must have to do with commands.
    fn own_commands(&self, actor: &TokenRecord) -> Result<Option<CommandParties>, Refusal> {
        if !allows(actor, COMMAND_ISSUE) {
            scope(actor, "command:update")?;
        }
        Ok(self.own_targets(actor))
    }

    /// What others than people may see of commands: those for their own agent and component, and
    /// those that they have issued.
    fn own_targets(&self, actor: &TokenRecord) -> Option<CommandParties> {
        let issuer = acts_as(actor)?.to_string();
        let registered = || {
            self.agents
                .iter()
                .find(|(_, agent)| agent.by == line_of(actor))
                .map(|(id, _)| id.clone())
        };
        let agent = actor.agent_id.clone().or_else(registered).unwrap_or_default();
        let component = self
            .agents
            .get(&agent)
            .map(|known| known.stored.registration.component_id.clone())
            .unwrap_or_default();
        Some(CommandParties { agent, component, issuer })
    }
}
