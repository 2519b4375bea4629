//! Interrupted tasks. The task becomes `blocked` and waits for a person or for who sent it. A relay that knows this rule
//! ends the claim and offers the task to nobody; at any other the claim is kept, since its end would start the task again.

use serde_json::{Value, json};

use crate::core::Cause;
use crate::core::agent::Agent;
use crate::core::agent::calls::Purpose;
use crate::core::agent::store::StoreOp;
use crate::core::ids::MessageRef;
use crate::core::limits::{CLAIM_RENEWAL_INTERVAL, HELD_TASKS_MAX};
use crate::core::time::Now;
use crate::wire::api::{path, task_is_final};

/// Name of the note that lists the claims that are kept: family, id and generation of the message, and its task.
const HELD_NOTE: &str = "heldTasks";

impl Agent {
    pub(in crate::core::agent) fn restore_held(&mut self, now: Now, notes: &[(String, String)]) {
        let noted = notes
            .iter()
            .find(|(key, _)| key == HELD_NOTE)
            .and_then(|(_, text)| serde_json::from_str::<Vec<(u32, u64, u32, u64)>>(text).ok());
        let place = |(family, id, generation, task)| (MessageRef { family, id, generation }, task);
        self.turn.held = noted.unwrap_or_default().into_iter().map(place).collect();
        if !self.turn.held.is_empty() {
            self.turn.renew_at = Some(now.tick);
        }
    }

    /// Somebody ends the turn: who and why, for the task that may be in it.
    pub(in crate::core::agent) fn note_interrupt(&mut self, what: &str, who: &str, reason: Option<String>) {
        if self.turn.running {
            let who = if who.is_empty() { String::new() } else { format!(" by {who}") };
            let why = reason.filter(|reason| !reason.trim().is_empty()).map(|reason| format!(": {}", reason.trim()));
            self.turn.interrupt = Some(format!("{what}{who}{}", why.unwrap_or_default()));
        }
    }

    /// The turn of a task was interrupted: nobody starts it again but who asks for that.
    pub(super) fn block_task(&mut self, now: Now, task: u64, at: MessageRef) {
        let unsaid = match self.life.terminal.is_some() || self.config.personal {
            true => "interrupted at the agent's terminal",
            false => "the agent ended its turn as cancelled",
        };
        let why = self.turn.interrupt.clone().unwrap_or_else(|| unsaid.to_string());
        self.log("info", "task", format!("task {task} is blocked: {why}"));
        self.report_task(now, task, at, "blocked", Some(why));
        // The rule came together with generations.
        if !self.generations.relay_has_them() {
            while self.turn.held.len() >= HELD_TASKS_MAX {
                self.turn.held.pop_first();
            }
            self.turn.held.insert(at, task);
            self.turn.renew_at.get_or_insert(now.tick + CLAIM_RENEWAL_INTERVAL);
            self.note_held();
        }
    }

    fn note_held(&mut self) {
        let held: Vec<(u32, u64, u32, u64)> = self.turn.held.iter().map(|(at, task)| (at.family, at.id, at.generation, *task)).collect();
        let value = (!held.is_empty()).then(|| json!(held).to_string());
        self.ops.push(StoreOp::Note { key: HELD_NOTE.into(), value });
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
            self.ask(Purpose::HeldTask(at), "GET", path::task(task), None);
        }
        self.turn.held.keys().copied().collect()
    }

    pub(in crate::core::agent) fn on_held_task(&mut self, at: MessageRef, result: Result<(u16, Value), Cause>) {
        let Ok((status, body)) = result else { return };
        let word = body.get("status").and_then(Value::as_str).unwrap_or_default();
        if status == 404 || task_is_final(word) {
            self.let_go(at);
        } else if status < 300 && word == "open" && self.let_go(at) {
            let body = json!({"agentId": self.config.agent_id, "reason": "opened again"});
            self.ask(Purpose::ReleaseHeld(at), "DELETE", path::message_part(at.id, "claim"), Some(body));
        }
    }
}
