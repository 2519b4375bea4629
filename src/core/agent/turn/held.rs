//! Interrupted tasks. The task becomes `blocked` and waits for a person or for who sent it. A relay
//! that knows this rule ends the claim and offers the task to nobody; at any other the claim is
//! kept, since its end would start the task again.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::core::Cause;
use crate::core::agent::Agent;
use crate::core::agent::http_calls::CallKind;
use crate::core::agent::prompt_text::ROUNDS;
use crate::core::agent::store::StoreOp;
use crate::core::agent::timer::Timer;
use crate::core::ids::{MessageId, MessageRef, TaskId};
use crate::core::limits::{CLAIM_RENEWAL_INTERVAL, HELD_TASKS_MAX, TASK_ROUNDS_MAX};
use crate::core::time::Now;
use crate::wire::api::{Message, TaskStatus, path};
use crate::wire::control::LogLevel;

/// Name of the note that lists the claims that are kept: messages and their tasks.
const HELD_NOTE: &str = "heldTasks";
/// Name of the note that tells how often this agent had a task before: messages and times.
const ROUNDS_NOTE: &str = "taskRounds";

impl Agent {
    pub(in crate::core::agent) fn restore_held(&mut self, now: Now, notes: &[(String, String)]) {
        self.turn.rounds = noted(notes, ROUNDS_NOTE);
        self.turn.held = noted(notes, HELD_NOTE);
        if !self.turn.held.is_empty() {
            self.timers.set(Timer::ClaimRenewal, now.tick);
        }
    }

    /// Notes who ends the turn and why, for the task that may be in it.
    pub(in crate::core::agent) fn note_interrupt(
        &mut self,
        what: &str,
        who: &str,
        reason: Option<String>,
    ) {
        if self.turn.running {
            let who = if who.is_empty() { String::new() } else { format!(" by {who}") };
            let why = reason
                .filter(|reason| !reason.trim().is_empty())
                .map(|reason| format!(": {}", reason.trim()));
            self.turn.interrupt = Some(format!("{what}{who}{}", why.unwrap_or_default()));
        }
    }

    /// The turn of a task was interrupted: nobody starts it again but who asks for that.
    pub(super) fn block_task(&mut self, now: Now, task: TaskId, at: MessageRef) {
        let unsaid = if self.supervisor.terminal.is_some() || self.config.in_user_terminal {
            "interrupted at the agent's terminal"
        } else {
            "the agent ended its turn as cancelled"
        };
        let why = self.turn.interrupt.clone().unwrap_or_else(|| unsaid.to_string());
        self.log(LogLevel::Info, "task", format!("task {task} is blocked: {why}"));
        self.report_task(now, task, at, TaskStatus::Blocked, Some(why));
        // The rule came together with generations.
        if !self.generations.relay_has_them() {
            while self.turn.held.len() >= HELD_TASKS_MAX {
                self.turn.held.pop_first();
            }
            self.turn.held.insert(at, task);
            self.timers.set_once(Timer::ClaimRenewal, now.tick + CLAIM_RENEWAL_INTERVAL);
            self.note_held();
        }
    }

    /// The provider had the task and may be given it again: its record holds the time before.
    pub(in crate::core::agent) fn note_round(&mut self, at: MessageRef) {
        self.forget_answered(at);
        *self.turn.rounds.entry(at).or_default() += 1;
        while self.turn.rounds.len() > TASK_ROUNDS_MAX {
            self.turn.rounds.pop_first();
        }
        self.commits
            .write(StoreOp::PutMeta { key: ROUNDS_NOTE.into(), value: note(&self.turn.rounds) });
    }

    /// Marks a task that this agent had before; only this runner knows that.
    pub(in crate::core::agent) fn mark_round(&self, at: MessageRef, message: &mut Message) {
        message.payload.remove(ROUNDS);
        if let Some(rounds) = self.turn.rounds.get(&at).filter(|_| message.claimable) {
            message.payload.insert(ROUNDS.into(), json!(rounds));
        }
    }

    fn note_held(&mut self) {
        self.commits
            .write(StoreOp::PutMeta { key: HELD_NOTE.into(), value: note(&self.turn.held) });
    }

    /// The claim is not ours to keep any more. False: it was not.
    pub(in crate::core::agent) fn let_go(&mut self, at: MessageRef) -> bool {
        let was = self.turn.held.remove(&at).is_some();
        if was {
            self.note_held();
        }
        was
    }

    /// Keeps the claims, and looks whether somebody has opened a task again or ended it.
    pub(super) fn renew_held(&mut self) -> Vec<MessageRef> {
        for (at, task) in self.turn.held.clone() {
            self.ask(CallKind::HeldTask(at), "GET", path::task(task), None);
        }
        self.turn.held.keys().copied().collect()
    }

    pub(in crate::core::agent) fn on_held_task(
        &mut self,
        at: MessageRef,
        result: Result<(u16, Value), Cause>,
    ) {
        let Ok((status, body)) = result else { return };
        if self.outbox.reports_wait() {
            return; // the relay may not know yet that it is blocked
        }
        let task: TaskStatus =
            body.get("status").and_then(Value::as_str).unwrap_or_default().into();
        if status == 404 || task.is_final() {
            self.let_go(at);
        } else if status < 300 && task == TaskStatus::Open && self.let_go(at) {
            let body = json!({"agentId": self.config.agent_id, "reason": "opened again"});
            self.ask(
                CallKind::ReleaseHeld(at),
                "DELETE",
                path::message_part(at.id, "claim"),
                Some(body),
            );
        }
    }
}

/// Numbers by message, as a note holds them: family, id, generation, number.
fn note<N: Copy + Serialize>(numbers: &BTreeMap<MessageRef, N>) -> Option<String> {
    let all: Vec<(u32, MessageId, u32, N)> =
        numbers.iter().map(|(at, number)| (at.family, at.id, at.generation, *number)).collect();
    (!all.is_empty()).then(|| json!(all).to_string())
}

fn noted<N: DeserializeOwned>(notes: &[(String, String)], name: &str) -> BTreeMap<MessageRef, N> {
    let text = notes.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str());
    let all: Vec<(u32, MessageId, u32, N)> =
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    all.into_iter()
        .map(|(family, id, generation, number)| (MessageRef { family, id, generation }, number))
        .collect()
}
