//! Tasks: claimable messages with a status.

use serde_json::{Value, json};

use super::Hub;
use super::event::{AcceptedMessage, HubOp};
use super::generations::{Named, told_in};
use super::{Refusal, bounds};
use crate::core::cost::bytes_of;
use crate::core::ids::{MessageId, TaskId};
use crate::core::limits::*;
use crate::wire::api::{MessageKind, NewMessage, Task, TaskStatus, TokenRecord};

pub(super) fn is_blocked(id: TaskId) -> Refusal {
    (
        409,
        "blocked",
        format!("task {id} is blocked; `agent-relay tasks reopen {id}` offers it again"),
    )
}

/// A task that is not final.
#[derive(Debug, Clone)]
pub(super) struct OpenTask {
    pub message: MessageId,
    pub status: TaskStatus,
    pub sender: String,
    /// Bytes of the notes of its progress, since the hub was started.
    pub notes: usize,
    /// It is blocked since it stood in a copy of the data: who worked on it then may still tell how
    /// it ended.
    pub restored: bool,
}

impl Hub {
    /// Makes a task and its message together.
    pub(super) fn make_task(
        &mut self,
        actor: &TokenRecord,
        body: &Value,
    ) -> Result<(Task, AcceptedMessage), Refusal> {
        let text =
            |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default().to_string();
        let title = text("title");
        if title.trim().is_empty() {
            return Err((400, "no_title", "a task needs a \"title\"".into()));
        }
        bounds::text("title", &title, FIELD_BYTES_MAX)?;
        bounds::text("severity", &text("severity"), NAME_BYTES_MAX)?;
        let to = Some(text("to")).filter(|to| !to.is_empty()).unwrap_or_else(|| "broadcast".into());
        let id = self.last_task.next();
        let mut payload = serde_json::Map::new();
        payload.insert("taskId".into(), json!(id));
        let new = NewMessage {
            to,
            kind: MessageKind::Task,
            subject: Some(title.clone()),
            body: text("body"),
            payload,
            claimable: true,
            reply_expected: body.get("replyExpected").and_then(Value::as_bool),
            ..Default::default()
        };
        let sent = self.prepare(actor, new)?;
        self.take_task_id();
        let now = self.now.wall.0;
        let task = Task {
            id,
            title,
            body: text("body"),
            status: TaskStatus::Open,
            severity: Some(text("severity")).filter(|s| !s.is_empty()),
            message_id: sent.message.id,
            generation: sent.message.generation.clone(),
            agent_id: None,
            created_at: now,
            updated_at: now,
            history: vec![json!({"status": TaskStatus::Open, "at": now, "by": sent.message.from})],
        };
        let sender = sent.message.from.clone();
        self.tasks.insert(
            id,
            OpenTask {
                message: task.message_id,
                status: TaskStatus::Open,
                sender,
                notes: 0,
                restored: false,
            },
        );
        self.commits.write(HubOp::TaskPut(task.clone()));
        Ok((task, sent))
    }

    /// `PATCH`: a final status never changes; repeating it is harmless. What is blocked only a
    /// person or its sender moves.
    pub(super) fn patch_task(
        &mut self,
        actor: &TokenRecord,
        id: TaskId,
        body: &Value,
    ) -> Result<(), Refusal> {
        let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_string);
        let Some(status) = text("status").and_then(|word| TaskStatus::parse(&word)) else {
            let known: Vec<&str> = TaskStatus::KNOWN.iter().map(TaskStatus::as_str).collect();
            return Err((
                400,
                "bad_status",
                format!("\"status\" must be one of {}", known.join(", ")),
            ));
        };
        let agent = actor.agent_id.clone().or_else(|| text("agentId"));
        self.check_generation(told_in(body), Named::Task(id))?;
        let Some(open) = self.tasks.get(&id).cloned() else {
            let code = if !id.is_none() && id <= self.last_task {
                (409, "task_is_final", "the task is settled")
            } else {
                (404, "not_found", "there is no such task")
            };
            return Err((code.0, code.1, code.2.to_string()));
        };
        let message = open.message;
        let entry = json!({"body": body.get("body"), "metadata": body.get("metadata")});
        self.check_note(actor, id, open.notes, &status, &entry)?;
        // What a runner observes decides nothing, also where its agent sent the task to itself.
        let by_runner = body.pointer("/metadata/completedBy").is_some_and(|who| who == "runner");
        let decides = !by_runner && actor.agent_id.as_ref().is_none_or(|own| *own == open.sender);
        if open.status == TaskStatus::Blocked && decides {
            return self.move_blocked(id, message, status, agent, entry);
        }
        if let Some(own) = &actor.agent_id {
            self.must_be_offered(message, own)?;
        }
        // Blocked only because the data were put back: whoever had ended it by then says so again.
        let ended_before = open.restored && by_runner && status.is_final();
        if open.status == TaskStatus::Blocked && !ended_before {
            return if status == TaskStatus::Blocked { Ok(()) } else { Err(is_blocked(id)) };
        }
        let holder = self
            .offers
            .get(&message)
            .and_then(|offer| offer.claim.as_ref())
            .map(|claim| claim.agent.clone());
        if let (Some(own), Some(holder)) = (&actor.agent_id, &holder)
            && own != holder
        {
            return Err((409, "already_claimed", format!("{holder} works on this task")));
        }
        if status == TaskStatus::Blocked
            && holder.is_none()
            && (actor.agent_id.is_some() || by_runner)
        {
            // Late, or repeated after somebody has opened it again: it is not this agent's to
            // withhold.
            return Err((409, "not_claimed", "this agent does not hold the task".into()));
        }
        self.mark_task(id, status.clone(), agent, entry);
        if status == TaskStatus::Blocked {
            self.hold_offer(message);
        } else if status.is_final() {
            self.settle_offer(message);
        }
        Ok(())
    }

    /// A note is short, and all notes of one task together are bounded. Its end is always told.
    fn check_note(
        &mut self,
        actor: &TokenRecord,
        id: TaskId,
        notes: usize,
        status: &TaskStatus,
        entry: &Value,
    ) -> Result<(), Refusal> {
        bounds::json("body", entry.get("body"), TASK_NOTE_BYTES_MAX)?;
        bounds::json("metadata", entry.get("metadata"), TASK_NOTE_BYTES_MAX)?;
        if notes > TASK_NOTES_BYTES_MAX && !status.is_final() {
            let text =
                format!("the notes of task {id} may have {TASK_NOTES_BYTES_MAX} bytes together");
            return Err((422, "too_many_notes", text));
        }
        if status.is_final() { Ok(()) } else { self.charge_stored(actor, bytes_of(entry), 0) }
    }

    /// A person, or who sent it, moves a task that was blocked.
    fn move_blocked(
        &mut self,
        id: TaskId,
        message: MessageId,
        status: TaskStatus,
        agent: Option<String>,
        entry: Value,
    ) -> Result<(), Refusal> {
        use TaskStatus::*;
        match status {
            Blocked => {}
            Open => {
                self.mark_task(id, status, agent, entry);
                self.offer_again(message);
            }
            Done | Failed | Cancelled => {
                self.mark_task(id, status, agent, entry);
                self.settle_offer(message);
            }
            Claimed | InProgress | Other(_) => return Err(is_blocked(id)),
        }
        Ok(())
    }

    /// What an older hub left claimed or offered although it was blocked.
    pub(super) fn hold_blocked(&mut self) {
        let blocked = self
            .tasks
            .values()
            .filter(|open| open.status == TaskStatus::Blocked)
            .map(|open| open.message);
        let loose = |message: &MessageId| {
            let Some(offer) = self.offers.get(message) else { return false };
            let waits = |recipient: &String| {
                self.queues.get(recipient).is_some_and(|queue| queue.ids.contains(message))
            };
            offer.claim.is_some() || offer.recipients.iter().any(waits)
        };
        for message in blocked.filter(loose).collect::<Vec<_>>() {
            self.hold_offer(message);
        }
    }

    pub(super) fn is_blocked_task(&self, task: Option<TaskId>) -> bool {
        task.and_then(|task| self.tasks.get(&task))
            .is_some_and(|open| open.status == TaskStatus::Blocked)
    }

    pub(super) fn mark_task(
        &mut self,
        id: TaskId,
        status: TaskStatus,
        agent: Option<String>,
        mut entry: Value,
    ) {
        let at = self.now.wall.0;
        if !entry.is_object() {
            entry = json!({});
        }
        entry["status"] = json!(status);
        entry["at"] = json!(at);
        entry["by"] = json!(agent);
        let noted = bytes_of(&entry);
        self.commits.write(HubOp::TaskMark {
            id,
            status: status.clone(),
            agent: agent.clone(),
            entry,
            at,
        });
        if status.is_final() {
            self.tasks.remove(&id);
        } else if let Some(open) = self.tasks.get_mut(&id) {
            open.status = status.clone();
            open.notes += noted;
            open.restored = false;
        }
        self.emit(
            "task.updated",
            agent.as_deref().unwrap_or_default(),
            json!({"taskId": id, "status": status}),
        );
    }
}
