//! Remote commands: durable before they are acknowledged, carried out once each.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::Agent;
use super::effect::Effect;
use super::http_calls::CallKind;
use super::stop::Why;
use super::store::StoreOp;
use crate::core::agent::tracker::{Claim, ClaimKind};
use crate::core::ids::VerbNumber;
use crate::core::limits::*;
use crate::core::session::{Decision, Verb};
use crate::core::time::{Now, Tick};
use crate::wire::api::{AgentCommand, Command, CommandStatus, path};
use crate::wire::bus::ClientFrame;
use crate::wire::control::LogLevel;

#[derive(Debug, Clone)]
struct Known {
    command: Command,
    /// The relay knows this status.
    reported: bool,
    /// Frame that carries the update.
    frame: Option<String>,
}

/// Command log in memory, and what waits for an answer of the session.
#[derive(Debug, Default)]
pub(super) struct Commands {
    known: BTreeMap<String, Known>,
    order: VecDeque<String>,
    /// Verb number → command and deadline.
    asked: BTreeMap<VerbNumber, (String, Tick)>,
    /// Commands that end with the next ready provider, with their deadline.
    restarting: Vec<(String, Tick)>,
    ending: Vec<String>,
    /// Commands that are told as running once the commit with this number is durable, where there
    /// is no bus.
    begun: VecDeque<(u64, String)>,
}

/// How long a session may take to answer a verb.
const VERB_TIMEOUT: Duration = Duration::from_secs(15);
/// The same where a running turn is waited for first, and a model writes a summary.
const BOUNDARY_TIMEOUT: Duration = Duration::from_secs(610);
/// How long a provider may take to come back after a restart.
const RESTART_TIMEOUT: Duration = Duration::from_secs(90);

impl Commands {
    pub fn knows(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    pub fn deadline(&self) -> Option<Tick> {
        let verbs = self.asked.values().map(|(_, until)| *until);
        verbs.chain(self.restarting.iter().map(|(_, until)| *until)).min()
    }

    /// A shutdown or kill came while the end was under way.
    pub fn has_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    /// The relay knows the end of everything.
    pub fn all_reported(&self) -> bool {
        self.known.values().all(|known| known.reported || !known.command.status.is_final())
    }
}

impl Agent {
    pub(super) fn restore_commands(&mut self, now: Now, commands: Vec<(Command, bool)>) {
        for (command, reported) in commands {
            let id = command.id.clone();
            let unfinished = !command.status.is_final();
            self.remember(Known { command, reported, frame: None });
            if unfinished {
                self.end_command(now, &id, Err("runner restarted".into()));
            }
        }
    }

    fn remember(&mut self, known: Known) {
        let id = known.command.id.clone();
        if self.commands.known.insert(id.clone(), known).is_none() {
            self.commands.order.push_back(id);
        }
        // Only what is over and told may be forgotten.
        let over = |known: &Known| known.reported && known.command.status.is_final();
        while self.commands.order.len() > COMMANDS_KEPT_MAX {
            let Some(at) = self
                .commands
                .order
                .iter()
                .position(|id| self.commands.known.get(id).is_none_or(over))
            else {
                break;
            };
            let oldest = self.commands.order.remove(at).expect("found above");
            self.commands.known.remove(&oldest);
            self.commits.write(StoreOp::CommandForget { id: oldest });
        }
    }

    /// A command of the bus (with its frame) or of the liveness round.
    pub(super) fn on_command(&mut self, now: Now, command: Command, frame: Option<String>) {
        let ack = frame.map(|frame_id| Effect::frame(&ClientFrame::Ack { frame_id }));
        let target =
            if command.target.is_empty() { &self.config.agent_id } else { &command.target };
        let mine = *target == self.config.agent_id || *target == self.config.runner_id;
        let kind = AgentCommand::parse(&command.kind).filter(|_| mine && !command.id.is_empty());
        let Some(kind) = kind else {
            self.commits.defer_all(ack);
            return;
        };
        if self.commands.knows(&command.id) {
            self.commits.defer_all(ack);
            self.send_update(&command.id);
            return;
        }
        let id = command.id.clone();
        self.log(LogLevel::Info, "runner", format!("command {} id={id}", command.kind));
        let command = Command { status: CommandStatus::Accepted, ..command };
        self.commits.write(StoreOp::CommandPut(command.clone()));
        self.remember(Known { command: command.clone(), reported: false, frame: None });
        self.commits.defer_all(ack);
        self.tracker.start_claim(Claim { kind: ClaimKind::Command, id: id.clone(), expires: None });
        self.status.touch();
        for status in [CommandStatus::Accepted, CommandStatus::Running] {
            self.send_progress(&id, status);
        }
        if !self.relay_link.is_registered() {
            self.commands.begun.push_back((self.commits.newest() + 1, id.clone()));
        }
        self.execute(now, kind, &command);
    }

    fn execute(&mut self, now: Now, kind: AgentCommand, command: &Command) {
        let id = command.id.clone();
        let text =
            |field: &str| command.params.get(field).and_then(Value::as_str).map(str::to_string);
        match kind {
            AgentCommand::Shutdown | AgentCommand::Kill => {
                let hard = kind == AgentCommand::Kill;
                let wanted =
                    command.params.get("timeoutMs").and_then(Value::as_u64).filter(|ms| *ms > 0);
                let patience = wanted
                    .map(Duration::from_millis)
                    .unwrap_or(COMMAND_TIMEOUT)
                    .min(COMMAND_TIMEOUT_MAX);
                self.commands.ending.push(id);
                let word = if hard { "kill" } else { "shutdown" };
                let by = Some(&command.issued_by).filter(|by| !by.is_empty());
                let by = by.map(|by| format!(" of {by}")).unwrap_or_default();
                let reason = text("reason").filter(|reason| !reason.trim().is_empty());
                let reason = reason.map(|it| format!(" ({it})")).unwrap_or_default();
                let words = format!("the command {word}{by}{reason}");
                self.begin_stop(now, Why::Command { hard, patience, words });
            }
            AgentCommand::Restart => {
                self.commands.restarting.push((id, now.tick + RESTART_TIMEOUT));
                self.restart_provider();
            }
            AgentCommand::Reconnect => {
                self.status.send_again();
                self.end_command(now, &id, Ok(Value::Null));
            }
            AgentCommand::Interrupt => {
                self.note_interrupt("interrupted", &command.issued_by, text("reason"));
                self.ask_session(now, id, Verb::Interrupt);
            }
            AgentCommand::Compact => self.ask_session(
                now,
                id,
                Verb::Compact {
                    instructions: text("instructions").filter(|t| !t.trim().is_empty()),
                },
            ),
            AgentCommand::ClearContext => self.ask_session(now, id, Verb::Clear),
            AgentCommand::InjectContext => self.inject_context(now, id, text("content")),
            AgentCommand::PermissionDecision => self.decide_permission(now, command),
        }
    }

    fn inject_context(&mut self, now: Now, id: String, content: Option<String>) {
        let Some(content) = content.map(|t| t.trim().to_string()).filter(|t| !t.is_empty()) else {
            return self.end_command(now, &id, Err("content required".into()));
        };
        let content = super::prompt_text::unforged(&content);
        let text = format!(
            "[relay message #0 from system]\nSubject: Agent Relay memory context\n{content}"
        );
        self.ask_session(now, id, Verb::Inject { text, person: false });
    }

    fn decide_permission(&mut self, now: Now, command: &Command) {
        let text =
            |field: &str| command.params.get(field).and_then(Value::as_str).map(str::to_string);
        let Some(approval) = text("approvalId").filter(|t| !t.is_empty()) else {
            return self.end_command(now, &command.id, Err("approvalId required".into()));
        };
        let Some(decision) = text("decision").as_deref().and_then(Decision::parse) else {
            let text = "decision must be approve, approve-session, deny, or abort";
            return self.end_command(now, &command.id, Err(text.into()));
        };
        let reason = text("reason");
        if decision == Decision::Abort {
            self.note_interrupt("an approval was aborted", &command.issued_by, reason.clone());
        }
        let answers = command.params.get("answers").filter(|answers| answers.is_object()).cloned();
        let verb = Verb::Decide { approval, decision, reason, answers };
        self.ask_session(now, command.id.clone(), verb);
    }

    fn ask_session(&mut self, now: Now, command: String, verb: Verb) {
        if !self.supervisor.is_ready() {
            self.end_command(now, &command, Err("provider process is unavailable".into()));
            return;
        }
        let patience = match verb {
            // They wait for the end of the turn.
            Verb::Compact { .. } | Verb::Clear | Verb::Inject { .. } => BOUNDARY_TIMEOUT,
            Verb::Open { .. }
            | Verb::Deliver(_)
            | Verb::Interrupt
            | Verb::Decide { .. }
            | Verb::Hook { .. }
            | Verb::HookGone { .. }
            | Verb::Guest
            | Verb::Probe
            | Verb::Stop => VERB_TIMEOUT,
        };
        let (number, order) = self.supervisor.verb(verb);
        self.commands.asked.insert(number, (command, now.tick + patience));
        self.commits.defer(order);
    }

    pub(super) fn on_answered(
        &mut self,
        now: Now,
        verb: VerbNumber,
        result: Result<Value, String>,
    ) {
        self.on_prompt_answered(verb, &result);
        self.on_probe_answered(verb, &result);
        if let Some((command, _)) = self.commands.asked.remove(&verb) {
            self.end_command(now, &command, result);
        }
    }

    /// The session is gone: the commands that it had not answered fail.
    pub(super) fn fail_verbs(&mut self, now: Now, why: &str) {
        for (command, _) in std::mem::take(&mut self.commands.asked).into_values() {
            self.end_command(now, &command, Err(why.to_string()));
        }
    }

    pub(super) fn on_restart_done(&mut self, now: Now, result: Result<(), String>) {
        for (command, _) in std::mem::take(&mut self.commands.restarting) {
            self.end_command(now, &command, result.clone().map(|()| Value::Null));
        }
    }

    pub(super) fn on_command_late(&mut self, now: Now) {
        let late: Vec<VerbNumber> = self
            .commands
            .asked
            .iter()
            .filter(|(_, (_, until))| *until <= now.tick)
            .map(|(n, _)| *n)
            .collect();
        for verb in late {
            let (command, _) = self.commands.asked.remove(&verb).expect("listed above");
            self.end_command(now, &command, Err("the provider did not answer in time".into()));
        }
        let restarting = std::mem::take(&mut self.commands.restarting);
        for (command, until) in restarting {
            if until <= now.tick {
                self.end_command(
                    now,
                    &command,
                    Err("the provider did not come back in time".into()),
                );
            } else {
                self.commands.restarting.push((command, until));
            }
        }
    }

    /// The stop that a shutdown or kill asked for is complete.
    pub(super) fn end_stop_command(&mut self, now: Now) {
        for command in std::mem::take(&mut self.commands.ending) {
            self.end_command(now, &command, Ok(Value::Null));
        }
    }

    fn end_command(&mut self, now: Now, id: &str, result: Result<Value, String>) {
        let Some(known) = self.commands.known.get_mut(id) else {
            return;
        };
        let command = &mut known.command;
        match result {
            Ok(mut provider_result) => {
                if AgentCommand::parse(&command.kind) == Some(AgentCommand::InjectContext) {
                    let all = command
                        .params
                        .get("memoryIds")
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten();
                    let ids: Vec<&str> = all.filter_map(Value::as_str).collect();
                    provider_result = json!({"memoryIds": ids, "injectedMemoryCount": ids.len()});
                }
                let decides =
                    AgentCommand::parse(&command.kind) == Some(AgentCommand::PermissionDecision);
                if let Some(told) = provider_result.as_object_mut().filter(|_| decides) {
                    let decision = command.params.get("decision").cloned();
                    told.insert("decision".into(), decision.unwrap_or_default());
                    told.insert("provider".into(), json!(self.config.provider));
                }
                let meta = &self.config.registration.meta;
                let mut record = json!({
                    "action": command.kind, "agentId": self.config.agent_id, "runnerId": self.config.runner_id,
                    "policyName": meta.get("policyName"), "spawnRequestId": meta.get("spawnRequestId"),
                });
                if let Some(reason) =
                    command.params.get("reason").filter(|reason| reason.is_string())
                {
                    record["reason"] = reason.clone();
                }
                if !provider_result.is_null() {
                    record["providerResult"] = provider_result;
                }
                command.status = CommandStatus::Succeeded;
                command.result = Some(record);
            }
            Err(error) => {
                command.status = CommandStatus::Failed;
                command.error = Some(error);
            }
        }
        command.updated_at = now.wall.0;
        known.reported = false;
        let mark = StoreOp::CommandMark {
            id: id.to_string(),
            status: command.status.clone(),
            result: command.result.clone(),
            error: command.error.clone(),
            reported: false,
        };
        self.commits.write(mark);
        self.tracker.finish_claim(ClaimKind::Command, id);
        self.status.touch();
        self.send_update(id);
    }

    /// Durable now: where the bus did not tell the relay that they run, a call does.
    pub(super) fn tell_begun(&mut self, upto: u64) {
        while self.commands.begun.front().is_some_and(|(number, _)| *number <= upto) {
            let (_, id) = self.commands.begun.pop_front().expect("looked at above");
            let runs =
                self.commands.known.get(&id).is_some_and(|known| !known.command.status.is_final());
            if runs && !self.relay_link.is_registered() {
                let body = serde_json::json!({"status": CommandStatus::Running});
                self.ask(
                    CallKind::CommandProgress(id.clone()),
                    "PATCH",
                    path::command(&id),
                    Some(body),
                );
            }
        }
    }

    fn send_progress(&mut self, id: &str, status: CommandStatus) {
        if self.relay_link.is_registered() {
            let frame = self.relay_link.frame_id();
            self.commits.defer(Effect::frame(&ClientFrame::CommandUpdate {
                id: frame,
                command_id: id.to_string(),
                status,
                result: None,
                error: None,
            }));
        }
    }

    /// Tells the relay how a command stands: over the bus, else over HTTP.
    fn send_update(&mut self, id: &str) {
        let Some(known) = self.commands.known.get_mut(id) else {
            return;
        };
        let Command { status, result, error, .. } = known.command.clone();
        if self.relay_link.is_registered() {
            let frame = self.relay_link.frame_id();
            known.frame = Some(frame.clone());
            let update = ClientFrame::CommandUpdate {
                id: frame,
                command_id: id.to_string(),
                status,
                result,
                error,
            };
            self.commits.defer(Effect::frame(&update));
        } else if status.is_final() {
            let body = json!({"status": status, "result": result, "error": error});
            self.ask(
                CallKind::PatchCommand(id.to_string()),
                "PATCH",
                path::command(id),
                Some(body),
            );
        }
    }

    /// The relay is back: every end that it may not know is told again.
    pub(super) fn tell_updates_again(&mut self) {
        let open: Vec<String> = self
            .commands
            .known
            .iter()
            .filter(|(_, known)| !known.reported && known.command.status.is_final())
            .map(|(id, _)| id.clone())
            .collect();
        for id in open {
            self.send_update(&id);
        }
    }

    pub(super) fn on_frame_acknowledged(&mut self, frame: &str) {
        let told = self
            .commands
            .known
            .iter()
            .find(|(_, known)| known.frame.as_deref() == Some(frame))
            .map(|(id, _)| id.clone());
        if let Some(id) = told {
            self.on_update_known(&id);
        }
    }

    pub(super) fn on_update_known(&mut self, id: &str) {
        let Some(known) = self.commands.known.get_mut(id) else {
            return;
        };
        if known.reported || !known.command.status.is_final() {
            return;
        }
        known.reported = true;
        let Command { status, result, error, .. } = known.command.clone();
        self.commits.write(StoreOp::CommandMark {
            id: id.to_string(),
            status,
            result,
            error,
            reported: true,
        });
    }
}
