//! Commands: opaque to the hub, which routes them by target, stores and expires them.

use crate::core::cost::bytes_of_map;
use crate::core::http::GateCommand;
use serde_json::{Map, Value, json};

use super::Hub;
use super::event::{After, Effect, HubOp};
use super::rights::{ADMIN, COMMAND_ISSUE, ORCHESTRATOR, acts_as, allows, forbidden, line_of};
use super::{Refusal, bounds};
use crate::core::ids::PeerId;
use crate::core::limits::*;
use crate::wire::api::{Command, CommandStatus, TokenRecord, USER};
use crate::wire::bus::RelayFrame;

/// A status only grows. Whatever an older or newer hub has stored is not followed by anything.
fn rank(status: &CommandStatus) -> u8 {
    use CommandStatus::*;
    match status {
        Pending => 0,
        Accepted => 1,
        Running => 2,
        Succeeded | Failed | Cancelled | Expired | Other(_) => 3,
    }
}

impl Hub {
    /// The agent that a target names: itself, or the one whose runner has that id.
    fn agent_of_target(&self, target: &str) -> Option<String> {
        if self.agents.contains_key(target) {
            return Some(target.to_string());
        }
        let owner = self.components.get(target)?;
        self.agents
            .get(owner)
            .filter(|agent| agent.stored.registration.component_id == target)
            .map(|_| owner.clone())
    }

    pub(super) fn issue_command(
        &mut self,
        actor: &TokenRecord,
        kind: &str,
        target: &str,
        params: Map<String, Value>,
    ) -> Result<Command, Refusal> {
        if kind.is_empty() {
            return Err((400, "no_type", "a command needs a \"type\"".into()));
        }
        bounds::text("type", kind, NAME_BYTES_MAX)?;
        bounds::text("target", target, NAME_BYTES_MAX)?;
        bounds::record("params", &params, COMMAND_PART_BYTES_MAX)?;
        let Some(agent) = self.agent_of_target(target) else {
            return Err((422, "no_such_target", format!("there is no agent or runner {target:?}")));
        };
        if actor.profile_id == ORCHESTRATOR {
            self.may_act(actor, &agent)?;
        }
        if self.commands.len() >= COMMANDS_PENDING_MAX {
            return Err((
                503,
                "too_many_commands",
                format!("{COMMANDS_PENDING_MAX} commands wait already"),
            ));
        }
        self.charge_stored(actor, bytes_of_map(&params), 0)?;
        let now = self.now.wall.0;
        let command = Command {
            id: format!("cmd-{}", self.rng.uuid()),
            kind: kind.into(),
            target: target.into(),
            agent_id: Some(agent.clone()),
            params,
            status: CommandStatus::Pending,
            issued_by: acts_as(actor).unwrap_or(USER).into(),
            created_at: now,
            updated_at: now,
            expires_at: now + COMMAND_LIFE.as_millis() as i64,
            ..Default::default()
        };
        self.commands.insert(command.id.clone(), command.clone());
        self.commits.write(HubOp::CommandPut(command.clone()));
        if let Some(peer) =
            self.agents.get(&agent).and_then(|a| a.peer).filter(|peer| self.takes_commands(*peer))
        {
            let text =
                RelayFrame::Command { id: command.id.clone(), command: command.clone() }.to_text();
            self.commits.defer(After::Effect(Effect::Gate(GateCommand::PeerSend {
                peer,
                text: text.into(),
            })));
        }
        Ok(command)
    }

    /// Whether a peer gets commands: its token must be allowed to report on them.
    fn takes_commands(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| allows(&peer.token, "command:update"))
    }

    /// Cancels the pending commands of a deleted agent: the next agent of that name must not get
    /// them.
    pub(super) fn cancel_commands_of(&mut self, agent: &str) {
        let waiting = |command: &&Command| {
            command.status == CommandStatus::Pending && command.agent_id.as_deref() == Some(agent)
        };
        let waiting: Vec<Command> = self.commands.values().filter(waiting).cloned().collect();
        for command in waiting {
            let error = Some(format!("{agent} was deleted"));
            self.store_command(Command {
                status: CommandStatus::Cancelled,
                error,
                updated_at: self.now.wall.0,
                ..command
            });
        }
    }

    fn is_for(&self, command: &Command, agent: &str) -> bool {
        if let Some(owner) = &command.agent_id {
            return owner == agent;
        }
        // Stored by an older hub, without an agent.
        let runner = self.agents.get(agent).map(|a| a.stored.registration.component_id.as_str());
        command.target == agent || runner == Some(command.target.as_str())
    }

    /// Pending ids for the liveness round.
    pub(super) fn pending_for(&self, agent: &str) -> Vec<String> {
        self.commands
            .values()
            .filter(|c| c.status == CommandStatus::Pending && self.is_for(c, agent))
            .map(|c| c.id.clone())
            .collect()
    }

    /// After a registration all pending commands are sent again.
    pub(super) fn send_commands_again(&mut self, agent: &str, peer: PeerId) {
        if !self.takes_commands(peer) {
            return;
        }
        let pending: Vec<Command> = self
            .commands
            .values()
            .filter(|c| c.status == CommandStatus::Pending && self.is_for(c, agent))
            .cloned()
            .collect();
        for command in pending {
            let text = RelayFrame::Command { id: command.id.clone(), command }.to_text();
            self.out.push(Effect::Gate(GateCommand::PeerSend { peer, text: text.into() }));
        }
    }

    /// The runner has it in its log: it counts as accepted and is not sent again.
    pub(super) fn command_acknowledged(&mut self, agent: &str, id: &str) {
        let Some(command) =
            self.commands.get(id).filter(|c| c.status == CommandStatus::Pending).cloned()
        else {
            return;
        };
        if self.is_for(&command, agent) {
            self.store_command(Command {
                status: CommandStatus::Accepted,
                updated_at: self.now.wall.0,
                ..command
            });
        }
    }

    fn store_command(&mut self, command: Command) {
        self.commits.write(HubOp::CommandPut(command.clone()));
        self.emit(
            "command.updated",
            &command.target,
            json!({"commandId": command.id, "status": command.status}),
        );
        if command.status.is_final() {
            self.commands.remove(&command.id);
        } else {
            self.commands.insert(command.id.clone(), command);
        }
    }

    /// A final status never changes; going back is ignored; repeating is harmless.
    pub(super) fn update_command(
        &mut self,
        actor: &TokenRecord,
        agent: Option<&str>,
        id: &str,
        status: CommandStatus,
        result: Option<Value>,
        error: Option<String>,
    ) -> Result<Option<Command>, Refusal> {
        use CommandStatus::*;
        // Only the relay makes a command wait or expire.
        if matches!(status, Pending | Expired | Other(_)) {
            return Err((
                400,
                "bad_status",
                "\"status\" must be accepted, running, succeeded, failed or cancelled".into(),
            ));
        }
        bounds::json("result", result.as_ref(), COMMAND_RESULT_BYTES_MAX)?;
        bounds::text("error", error.as_deref().unwrap_or_default(), COMMAND_PART_BYTES_MAX)?;
        let Some(command) = self.commands.get(id).cloned() else {
            return Err((404, "not_found", "there is no such open command".into()));
        };
        let own = actor.agent_id.as_deref().or(agent);
        let mine = match own {
            Some(own) => self.is_for(&command, own),
            // A token without an agent speaks for the agent that it has registered.
            None => self
                .agent_of_target(&command.target)
                .is_some_and(|id| self.agents[&id].by == line_of(actor)),
        };
        let its_own = acts_as(actor).is_none_or(|own| own == command.issued_by);
        let may_cancel = status == Cancelled && allows(actor, COMMAND_ISSUE) && its_own;
        if !(mine && allows(actor, "command:update")) && !may_cancel && !allows(actor, ADMIN) {
            return Err(forbidden("the token may not update this command"));
        }
        if rank(&status) <= rank(&command.status) {
            return Ok(Some(command));
        }
        let updated = Command { status, result, error, updated_at: self.now.wall.0, ..command };
        self.store_command(updated.clone());
        Ok(Some(updated))
    }

    pub(super) fn expire_commands(&mut self) {
        let now = self.now.wall.0;
        let late: Vec<Command> = self
            .commands
            .values()
            .filter(|c| c.status == CommandStatus::Pending && c.expires_at <= now)
            .cloned()
            .collect();
        // Accepted and never reported on: its runner is gone for good.
        let forgotten: Vec<Command> = self
            .commands
            .values()
            .filter(|c| {
                c.status != CommandStatus::Pending
                    && c.created_at + QUEUED_FOR.as_millis() as i64 <= now
            })
            .cloned()
            .collect();
        for command in forgotten {
            let error = Some("its runner never reported an end".to_string());
            self.store_command(Command {
                status: CommandStatus::Failed,
                error,
                updated_at: now,
                ..command
            });
        }
        for command in late {
            self.store_command(Command {
                status: CommandStatus::Expired,
                updated_at: now,
                ..command
            });
        }
    }
}
