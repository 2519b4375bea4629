//! Generations of the hub's data, and which ids belong to which.
//!
//! A backup that is put back, a copied file, an emptied folder: whatever is not the data that ran
//! here last gets a new generation and goes on above all ids that were ever given here, so that no
//! id means two things. What was given before keeps its own. That it is another is known by a mark,
//! a small file beside the hub's folder: ids are reserved in blocks, and a block's end stands in
//! the store first, then in the mark, before an id of the block is visible. So the mark is never
//! ahead of the store that belongs to it, whatever is killed at any moment, and no message needs a
//! second write.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::{HubOp, HubSnapshot};
use super::rights::line_of;
use super::{Hub, Refusal};
use crate::core::ids::{MessageId, TaskId};
use crate::wire::api::{OTHER_GENERATION, TaskStatus};
use crate::wire::control::LogLevel;

/// Message ids that are reserved at once; after an unclean end the rest of a block stays unused.
pub const MESSAGE_BLOCK: u64 = 1024;
/// The same for tasks.
pub const TASK_BLOCK: u64 = 64;
/// Revoked tokens that a mark remembers, the newest ones; each only until it would have ended.
pub const REVOKED_MAX: usize = 10_000;
/// What a task of a copy says.
pub const RESTORED: &str = "restored; `agent-relay tasks reopen ID|--all` offers it again";

/// A generation with the first ids of it. Its ids end where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredGeneration {
    /// Random text; of a store that is older than generations the id of its hub.
    pub name: String,
    /// First message id.
    pub first_message: MessageId,
    /// First task id.
    pub first_task: TaskId,
    /// Newest message that stood in the data when it began: ids between this and its first one were
    /// given and are not there.
    pub follows_message: MessageId,
    /// The same for tasks.
    pub follows_task: TaskId,
}

/// What the store knows of its own past.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataState {
    /// Oldest first.
    pub generations: Vec<StoredGeneration>,
    /// End of the block of message ids that is reserved.
    pub messages_end: MessageId,
    /// End of the block of task ids that is reserved.
    pub tasks_end: TaskId,
    /// How often a hub has started with it.
    pub starts: u64,
    /// It is a backup in which no hub has run yet.
    pub copied: bool,
}

/// A token that was revoked: it must not come back with a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Its id.
    pub jti: String,
    /// When it would have ended, seconds; absent = never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
}

/// The newest ids at an orderly end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderlyEnd {
    /// Newest message.
    pub last_message_id: MessageId,
    /// Newest task.
    pub last_task_id: TaskId,
}

/// What stands beside the hub's folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mark {
    /// The newest generation.
    pub generation: String,
    /// End of the reserved block of message ids.
    pub message_block_end: MessageId,
    /// End of the reserved block of task ids.
    pub task_block_end: TaskId,
    /// How often a hub has started here.
    pub starts: u64,
    /// Absent while a hub runs, and after an unclean end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orderly_end: Option<OrderlyEnd>,
    /// Tokens that were revoked.
    pub revoked: Vec<Revoked>,
}

impl Mark {
    /// Takes over what was made durable in the store. True: the mark has to be written.
    pub fn note(&mut self, op: &HubOp) -> bool {
        match op {
            HubOp::Adopt { generation, messages_end, tasks_end, starts, .. } => {
                if let Some(generation) = generation {
                    self.generation = generation.name.clone();
                }
                (self.message_block_end, self.task_block_end, self.starts) =
                    (*messages_end, *tasks_end, *starts);
                self.orderly_end = None;
                true
            }
            HubOp::Reserve { messages_end, tasks_end } => {
                (self.message_block_end, self.task_block_end) = (*messages_end, *tasks_end);
                true
            }
            HubOp::TokenRevoke { jti, expires_at, at, .. } => {
                self.revoked.retain(|revoked| revoked.expires_at.is_none_or(|end| end > *at));
                self.revoked.retain(|revoked| revoked.jti != *jti);
                self.revoked.push(Revoked { jti: jti.clone(), expires_at: *expires_at });
                let surplus = self.revoked.len().saturating_sub(REVOKED_MAX);
                self.revoked.drain(..surplus);
                true
            }
            _ => false,
        }
    }
}

/// Why the data are not those that ran here last; `None`: they are.
pub fn foreign(
    data: &DataState,
    last_message: MessageId,
    last_task: TaskId,
    mark: Option<&Mark>,
) -> Option<&'static str> {
    if data.copied {
        return Some("a backup was put in its place");
    }
    let mark = mark.filter(|mark| !mark.generation.is_empty())?;
    if data.generations.is_empty() && last_message.is_none() && last_task.is_none() {
        return Some("the store is empty, although a hub has run here before");
    }
    if !data.generations.iter().any(|generation| generation.name == mark.generation) {
        return Some("the store is not the one that ran here before");
    }
    let older = data.starts < mark.starts
        || data.messages_end < mark.message_block_end
        || data.tasks_end < mark.task_block_end;
    let shorter = mark.orderly_end.is_some_and(|end| {
        data.starts == mark.starts
            && (last_message < end.last_message_id || last_task < end.last_task_id)
    });
    (older || shorter).then_some("the store is an older copy of the one that ran here before")
}

/// Generations in the machine, and the ids that are reserved.
#[derive(Debug, Default)]
pub(super) struct Generations {
    all: Vec<StoredGeneration>,
    messages_end: MessageId,
    tasks_end: TaskId,
}

impl Generations {
    /// The newest one.
    pub fn newest(&self) -> &str {
        self.all.last().map(|generation| generation.name.as_str()).unwrap_or_default()
    }

    /// The generation that an id was given in; `None`: it was given here once and is not in the
    /// data, or never was.
    fn of(&self, named: Named) -> Option<&str> {
        let begins = |generation: &StoredGeneration| match named {
            Named::Message(id) => generation.first_message <= id,
            Named::Task(id) => generation.first_task <= id,
        };
        let at = self.all.iter().rposition(begins)?;
        let is_missing = self.all.get(at + 1).is_some_and(|next| match named {
            Named::Message(id) => id > next.follows_message,
            Named::Task(id) => id > next.follows_task,
        });
        (!is_missing).then_some(self.all[at].name.as_str())
    }
}

/// Which kind of id a call names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Message(MessageId),
    Task(TaskId),
}

impl Hub {
    /// Decides at the start whether these are the data that ran here last, and reserves the first
    /// ids.
    pub(super) fn adopt(&mut self, snapshot: &HubSnapshot) {
        let (data, mark) = (&snapshot.data, snapshot.mark.as_ref());
        let why = foreign(data, snapshot.last_message, snapshot.last_task, mark);
        let of_mark =
            mark.map(|mark| (mark.message_block_end, mark.task_block_end)).unwrap_or_default();
        let top_message = snapshot.last_message.max(data.messages_end).max(of_mark.0);
        let top_task = snapshot.last_task.max(data.tasks_end).max(of_mark.1);
        let in_order = why.is_none()
            && mark.is_some_and(|mark| mark.orderly_end.is_some() && mark.starts == data.starts);
        if !in_order && !data.generations.is_empty() || why.is_some() {
            // The rest of the blocks is left alone: ids of it may have been seen.
            (self.last_message, self.last_task) = (top_message, top_task);
        }
        if let Some(newest) = data.generations.last() {
            // It may have no message or task yet; an id below its first one would be of an older
            // generation.
            self.last_message = self.last_message.max(newest.first_message.previous());
            self.last_task = self.last_task.max(newest.first_task.previous());
        }
        self.generations.all = data.generations.clone();
        let name = match (why, data.generations.is_empty()) {
            (None, false) => None,
            // A store from before generations goes on under the name by which its relay was known.
            (None, true) if !snapshot.last_message.is_none() => Some(self.config.id.clone()),
            (Some(_), _) | (None, true) => {
                Some(format!("g{}", &self.rng.uuid().replace('-', "")[..15]))
            }
        };
        let generation = name.map(|name| {
            let is_first = data.generations.is_empty() && why.is_none();
            let (message, task) =
                if is_first { Default::default() } else { (self.last_message, self.last_task) };
            let (follows_message, follows_task) = (snapshot.last_message, snapshot.last_task);
            StoredGeneration {
                name,
                first_message: message.next(),
                first_task: task.next(),
                follows_message,
                follows_task,
            }
        });
        self.generations.all.extend(generation.clone());
        (self.generations.messages_end, self.generations.tasks_end) =
            (self.last_message.plus(MESSAGE_BLOCK), self.last_task.plus(TASK_BLOCK));
        let starts = data.starts.max(mark.map_or(0, |mark| mark.starts)) + 1;
        let (messages_end, tasks_end) = (self.generations.messages_end, self.generations.tasks_end);
        self.commits.write(HubOp::Adopt {
            generation,
            messages_end,
            tasks_end,
            starts,
            copy: why.is_some(),
            at: self.now.wall.0,
        });
        if let Some(why) = why {
            self.on_copy(why, snapshot);
        }
    }

    /// What was under way in a copy has gone on since: tasks wait for a person, claims end,
    /// commands expire, revoked tokens stay so.
    fn on_copy(&mut self, why: &str, snapshot: &HubSnapshot) {
        let first = self.last_message.next();
        self.log(
            LogLevel::Warn,
            format!(
                "{why}; new ids begin at #{first}, and what was accepted after the copy was made is not in it. Unfinished tasks are blocked: \
                 `agent-relay tasks` shows them. If this was not meant, stop the hub and put the right data back with `agent-relay hub restore FILE`"
            ),
        );
        self.notice = Some(why.to_string());
        for open in self.tasks.values_mut().filter(|open| !open.status.is_final()) {
            open.status = TaskStatus::Blocked;
            open.restored = true;
        }
        let held: Vec<MessageId> = self.offers.keys().copied().collect();
        for message in held {
            self.end_claim_silently(message);
        }
        self.commands.clear();
        // The instances of then are not those of now: what a living one says must not be taken for
        // that of a dead one.
        for agent in self.agents.values_mut() {
            agent.stored.registration.instance_id.clear();
            self.commits.write(HubOp::AgentPut(agent.stored.clone()));
        }
        let revoked: Vec<&str> = snapshot
            .mark
            .iter()
            .flat_map(|mark| &mark.revoked)
            .map(|revoked| revoked.jti.as_str())
            .collect();
        let unknown_past = snapshot.mark.is_none();
        let gone: Vec<String> = self
            .tokens
            .iter()
            .filter(|(_, record)| {
                revoked.contains(&record.jti.as_str())
                    || revoked.contains(&line_of(record))
                    || (unknown_past && !matches!(record.profile_id.as_str(), "root" | "operator"))
            })
            .map(|(hash, _)| hash.clone())
            .collect();
        for hash in gone {
            self.forget_token(&hash);
            self.commits.write(HubOp::TokenDelete { hash });
        }
    }

    /// The next message id; the next block is reserved in time.
    pub(super) fn next_message_id(&mut self) -> MessageId {
        self.last_message = self.last_message.next();
        self.reserve();
        self.last_message
    }

    /// The next task id is used.
    pub(super) fn take_task_id(&mut self) {
        self.last_task = self.last_task.next();
        self.reserve();
    }

    fn reserve(&mut self) {
        let generations = &mut self.generations;
        let (messages, tasks) = (generations.messages_end, generations.tasks_end);
        if self.last_message.plus(MESSAGE_BLOCK / 2) > generations.messages_end {
            generations.messages_end = generations.messages_end.plus(MESSAGE_BLOCK);
        }
        if self.last_task.plus(TASK_BLOCK / 2) > generations.tasks_end {
            generations.tasks_end = generations.tasks_end.plus(TASK_BLOCK);
        }
        if (messages, tasks) != (generations.messages_end, generations.tasks_end) {
            self.commits.write(HubOp::Reserve {
                messages_end: generations.messages_end,
                tasks_end: generations.tasks_end,
            });
        }
    }

    /// A call that says which generation it means is refused where the id belongs to another one:
    /// nothing is changed.
    pub(super) fn check_generation(&self, told: Option<&str>, named: Named) -> Result<(), Refusal> {
        let (what, id) = match named {
            Named::Message(id) => ("message", id.0),
            Named::Task(id) => ("task", id.0),
        };
        match (self.generations.of(named), told) {
            (None, _) => Err((404, "not_found", format!("there is no {what} {id}"))),
            (Some(own), Some(told)) if own != told => {
                let text = format!(
                    "{what} {id} is not of the generation {told}: the hub's data were put back or replaced since"
                );
                Err((409, OTHER_GENERATION, text))
            }
            (Some(_), _) => Ok(()),
        }
    }
}

/// The generation that a body names.
pub(super) fn told_in(body: &Value) -> Option<&str> {
    body.get("generation").and_then(Value::as_str).filter(|told| !told.is_empty())
}
