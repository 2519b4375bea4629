//! The end of a turn: who is answered, and what becomes of messages and tasks.

use std::collections::BTreeSet;

use serde_json::{Map, json};

use super::{Batch, Entry, Phase, SETTLE_WAIT};
use crate::core::agent::Agent;
use crate::core::agent::config::ReplyMode;
use crate::core::agent::effect::Effect;
use crate::core::agent::generations::old_answer;
use crate::core::agent::prompt_text::{cut, is_of_person};
use crate::core::agent::store::OutboxRow;
use crate::core::agent::store::RowKind;
use crate::core::agent::store::TaskEnd;
use crate::core::agent::timer::Timer;
use crate::core::agent::tracker::{ClaimKind, TURN};
use crate::core::ids::{BatchNumber, MessageId, MessageRef, TaskId};
use crate::core::limits::REPLY_BODY_BYTES_MAX;
use crate::core::session::TurnEnd;
use crate::core::time::Now;
use crate::wire::api::{ANSWERED, Message, MessageKind, NewMessage, TaskStatus};
use crate::wire::control::LogLevel;

impl Agent {
    pub(in crate::core::agent) fn on_turn_ended(
        &mut self,
        now: Now,
        number: Option<BatchNumber>,
        end: TurnEnd,
        text: String,
        said: Option<String>,
    ) {
        self.turn.running = false;
        self.turn.told = false;
        self.end_posted_status();
        self.note_turn_end(&end, said);
        self.tracker.finish_work(TURN, TURN);
        self.status.touch();
        self.on_prompt_turn(&end);
        if number.is_none() {
            self.turn.interrupt = None;
        }
        let mine = self.turn.batch.as_ref().is_some_and(|batch| Some(batch.number) == number);
        if let (true, Some(tail)) = (mine, self.turn.tail.as_mut()) {
            // The batch before it is being settled; then this one is.
            tail.end = Some((end, text));
            return;
        }
        if mine && end == TurnEnd::Cancelled && self.supervisor.is_ending() {
            // Cut off by a stop or restart of ours, not by anybody's wish: the next conversation
            // goes on with it.
            self.on_turn_lost();
        } else if mine {
            self.part_tail();
            self.confirm(None, "the provider ended the turn");
            self.end_batch(now, end, text);
        }
    }

    /// Urgent messages that the turn did not take any more are the provider's next turn.
    pub(super) fn part_tail(&mut self) {
        let Some(batch) = self.turn.batch.as_mut() else { return };
        // Only where nothing was confirmed does the end of the turn itself prove the first
        // delivery.
        let proven = batch.entries.iter().any(|entry| entry.confirmed);
        let main = batch.entries.first().filter(|_| !proven).map(|entry| entry.key.clone());
        let (stay, rest) = std::mem::take(&mut batch.entries)
            .into_iter()
            .partition(|entry| entry.confirmed || main.as_ref() == Some(&entry.key));
        batch.entries = stay;
        if !rest.is_empty() {
            self.turn.tail =
                Some(Batch { number: batch.number, phase: Phase::Sent, entries: rest, end: None });
            self.turn.running = true;
        }
    }

    /// The turn is over. Who still waits for an answer is asked first, so that nobody is answered
    /// twice.
    pub(super) fn end_batch(&mut self, now: Now, end: TurnEnd, text: String) {
        let reachable = self.tokens.is_decided();
        let Some(batch) = self.turn.batch.as_mut() else {
            return;
        };
        batch.end = Some((end, text));
        batch.phase = Phase::Settling;
        let may_be_answered = batch.entries.iter().any(|entry| entry.message.expects_reply());
        if may_be_answered && reachable && self.config.reply_mode == ReplyMode::Auto {
            self.timers.set(Timer::SettleBatch, now.tick + SETTLE_WAIT);
            self.ask_obligations();
        } else {
            self.settle_batch(now, false);
        }
    }

    pub(in crate::core::agent) fn on_obligations_known(&mut self, now: Now, fresh: bool) {
        if self.turn.batch.as_ref().is_some_and(|batch| batch.phase == Phase::Settling) {
            self.settle_batch(now, fresh);
        }
    }

    /// A planted defect: the batch is settled in a commit of its own, before its reply.
    fn settle_early(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.settle_message(entry.at, &entry.message.from, entry.read, None);
        }
        let early = self.commits.commit(self.now.tick);
        self.out.extend(early.map(Effect::from));
    }

    /// Replies and "batch done" in one transaction. `fresh`: the relay has just said which answers
    /// are owed.
    pub(super) fn settle_batch(&mut self, now: Now, fresh: bool) {
        let Some(batch) = self.turn.batch.take() else {
            return;
        };
        self.timers.clear(Timer::SettleBatch);
        self.turn.batch = self.turn.tail.take();
        let (end, text) = batch.end.unwrap_or((TurnEnd::Completed, String::new()));
        if crate::planted::is("reply-without-transaction") {
            self.settle_early(&batch.entries);
        }
        let owed: BTreeSet<MessageId> =
            self.obligations.iter().map(|owed| owed.message_id).collect();
        // A message that the relay does not count as read yet cannot stand among the obligations.
        // A task that was interrupted is not over: whoever goes on with it answers.
        let is_over =
            |entry: &Entry| end != TurnEnd::Cancelled || task_of(&entry.message).is_none();
        // Of what the relay does not have any more, or holds back since its data were put back, it
        // cannot say whether it is owed.
        let tells = |entry: &Entry| {
            fresh && entry.read && !entry.gone && self.generations.is_current(entry.at.generation)
        };
        // What the agent has said itself counts at once, also where it is still on its way to the
        // relay.
        let is_open = |entry: &Entry| {
            !self.has_answered(entry.at) && !(tells(entry) && !owed.contains(&entry.message.id))
        };
        let is_owed =
            |entry: &Entry| is_over(entry) && entry.message.expects_reply() && is_open(entry);
        if self.config.reply_mode == ReplyMode::Auto {
            let waiting: Vec<&Entry> =
                batch.entries.iter().filter(|entry| is_owed(entry)).collect();
            self.answer(now, waiting, &end, &text);
        }
        self.settle_entries(now, &batch.entries, &end);
        self.turn.interrupt = None;
        match self.turn.batch.as_mut().map(|batch| (batch.end.take(), batch.phase)) {
            Some((Some((end, text)), _)) => {
                self.confirm(None, "the provider ended the turn");
                self.end_batch(now, end, text);
            }
            // The record holds it and no answer to it.
            Some((None, Phase::Unsettled)) if self.supervisor.is_ready() => {
                self.nudge("the record of the conversation")
            }
            _ => {}
        }
    }

    fn settle_entries(&mut self, now: Now, entries: &[Entry], end: &TurnEnd) {
        for entry in entries {
            match self.settle_task(now, entry, end) {
                Ok(ended) => self.settle_message(entry.at, &entry.message.from, entry.read, ended),
                Err(NotSettled) => {
                    self.forget_message(entry.at);
                    self.note_round(entry.at);
                }
            }
            self.tracker.finish_claim(ClaimKind::Message, &entry.message.id.to_string());
        }
        self.status.touch();
    }

    /// A part of a batch will never reach the provider: its senders are told, whoever answers
    /// otherwise, and nobody is told that it was read.
    pub(in crate::core::agent) fn on_refused(
        &mut self,
        now: Now,
        number: BatchNumber,
        key: &str,
        why: &str,
    ) {
        let mut refused = Vec::new();
        for batch in self
            .turn
            .batch
            .iter_mut()
            .chain(&mut self.turn.tail)
            .filter(|batch| batch.number == number)
        {
            let (gone, stay) = std::mem::take(&mut batch.entries)
                .into_iter()
                .partition(|entry| entry.key == key && !entry.confirmed);
            refused.extend::<Vec<Entry>>(gone);
            batch.entries = stay;
        }
        self.turn.tail.take_if(|tail| tail.entries.is_empty());
        if self.turn.batch.as_ref().is_some_and(|batch| batch.entries.is_empty()) {
            self.turn.batch = self.turn.tail.take();
        }
        let end = TurnEnd::Failed(format!("the message did not reach the agent: {why}"));
        self.reply_to_all(now, &refused.iter().collect::<Vec<_>>(), &Answer::Turn(&end, ""));
        self.settle_entries(now, &refused, &end);
    }

    /// What a turn said is for one sender. Where several wait (one of them was urgent, or an older
    /// version made the batch) a person gets it, else whoever waited longest, and the others are
    /// told to ask again, without a word of it.
    fn answer(&mut self, now: Now, waiting: Vec<&Entry>, end: &TurnEnd, text: &str) {
        let first = waiting.iter().min_by_key(|entry| (!is_of_person(&entry.message), entry.at));
        let Some(one) = first.map(|entry| entry.message.from.as_str()) else { return };
        // That it said nothing may be told to all; why it failed is in the provider's words.
        let is_silent = text.trim().is_empty() && !matches!(end, TurnEnd::Failed(_));
        let (his, of_others): (Vec<_>, Vec<_>) =
            waiting.iter().partition(|entry| is_silent || entry.message.from == one);
        self.reply_to_all(now, &his, &Answer::Turn(end, text));
        self.reply_to_all(now, &of_others, &Answer::WentToAnother);
    }

    /// One answer for each sender, and for each generation that the ids of its messages belong to.
    fn reply_to_all(&mut self, now: Now, entries: &[&Entry], answer: &Answer<'_>) {
        let mut groups: Vec<(&str, u32, bool)> = Vec::new();
        let group_of = |entry: &&Entry| -> (String, u32, bool) {
            (entry.message.from.clone(), entry.at.generation, entry.gone)
        };
        for entry in entries {
            let group = (entry.message.from.as_str(), entry.at.generation, entry.gone);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        for (sender, generation, gone) in groups {
            let same = |entry: &&&Entry| group_of(entry) == (sender.to_string(), generation, gone);
            let answered: Vec<MessageRef> =
                entries.iter().filter(same).map(|entry| entry.at).collect();
            self.reply(now, sender, &answered, gone, answer);
        }
    }

    /// One chat message, answering the newest of a sender's messages; its key
    /// (`reply:<agent>:<message>`) makes it exactly one. `gone`: the relay does not have them any
    /// more.
    fn reply(
        &mut self,
        now: Now,
        to: &str,
        answered: &[MessageRef],
        gone: bool,
        answer: &Answer<'_>,
    ) {
        let Some(newest) = answered.last() else { return };
        let told = self.generations.on_wire(newest.generation).filter(|_| !gone);
        let mut payload = Map::new();
        let mut body = cut(&answer.body(), REPLY_BODY_BYTES_MAX);
        if matches!(answer, Answer::WentToAnother) {
            payload.insert(ANSWERED.into(), json!(false));
        }
        match told {
            Some(_) if answered.len() > 1 => {
                payload.insert(
                    "answers".into(),
                    json!(answered.iter().map(|at| at.id).collect::<Vec<_>>()),
                );
            }
            Some(_) => {}
            None => body = old_answer(&answered.iter().map(|at| at.id).collect::<Vec<_>>(), &body),
        }
        let generation = told.flatten().map(str::to_string);
        // Ids of one relay never repeat, those of two do.
        let key = match (&generation, told) {
            (_, None) => format!(
                "reply:{}:{}:{}",
                self.config.agent_id,
                self.generations.name(newest.generation),
                newest.id
            ),
            (Some(generation), _) => {
                format!("reply:{}:{generation}:{}", self.config.agent_id, newest.id)
            }
            (None, _) => format!("reply:{}:{}", self.config.agent_id, newest.id),
        };
        // The answer to a task that was opened again is another one than that to its first run.
        let key = match self.turn.rounds.get(newest) {
            Some(rounds) => format!("{key}:round-{rounds}"),
            None => key,
        };
        let message = NewMessage {
            from: Some(self.config.agent_id.clone()),
            to: to.to_string(),
            kind: MessageKind::Chat,
            body,
            payload,
            reply_to: told.map(|_| newest.id),
            generation,
            reply_expected: Some(false),
            idempotency_key: Some(key.clone()),
            occurred_at: Some(now.wall.0),
            ..Default::default()
        };
        let payload = serde_json::to_value(message).expect("plain data");
        let generation = told.map_or(0, |_| newest.generation);
        self.append(OutboxRow {
            kind: RowKind::Message,
            key,
            occurred_at: now.wall.0,
            payload,
            generation,
        });
    }

    /// The task of a message at the end of its turn: how it ended, if there is one.
    fn settle_task(
        &mut self,
        now: Now,
        entry: &Entry,
        end: &TurnEnd,
    ) -> Result<Option<TaskEnd>, NotSettled> {
        let message = &entry.message;
        let Some(task) = task_of(message) else {
            return Ok(None);
        };
        self.tracker.finish_claim(ClaimKind::Task, &task.to_string());
        if entry.lost {
            self.log(
                LogLevel::Info,
                "task",
                format!("task {task} is not this agent's any more; its end is not reported"),
            );
            return Err(NotSettled);
        }
        let (status, body) = match end {
            TurnEnd::Completed => (
                TaskStatus::Done,
                format!("Runner observed provider completion for message #{}", message.id),
            ),
            TurnEnd::Failed(error) => (TaskStatus::Failed, error.clone()),
            TurnEnd::Cancelled => {
                self.block_task(now, task, entry.at);
                return Err(NotSettled);
            }
        };
        debug_assert!(status.is_final());
        self.report_task(now, task, entry.at, status.clone(), Some(body));
        Ok(Some(TaskEnd { task, status }))
    }
}

/// What a sender is told at the end of the turn that had the message.
enum Answer<'a> {
    /// How it ended, and what it said.
    Turn(&'a TurnEnd, &'a str),
    /// It had messages of several senders, and somebody else gets what it said.
    WentToAnother,
}

impl Answer<'_> {
    fn body(&self) -> String {
        let (end, text) = match *self {
            Answer::Turn(end, text) => (end, text),
            Answer::WentToAnother => {
                return "[agent-relay] Your message was read in a turn whose answer went to another sender; please ask again.".into();
            }
        };
        let said = text.trim_end();
        match end {
            TurnEnd::Completed if said.is_empty() => {
                "[agent-relay] The agent ended its turn without a text.".to_string()
            }
            TurnEnd::Completed => text.to_string(),
            TurnEnd::Cancelled if said.is_empty() => {
                "[agent-relay] The turn was interrupted before it answered this message."
                    .to_string()
            }
            // What it had said by then is no answer, and is not to be taken for one.
            TurnEnd::Cancelled => {
                format!(
                    "{}\n\n[agent-relay] The turn was interrupted here.",
                    cut(said, REPLY_BODY_BYTES_MAX - 100)
                )
            }
            TurnEnd::Failed(error) if said.is_empty() => {
                format!("[agent-relay] The turn failed: {error}")
            }
            TurnEnd::Failed(error) => {
                let said = cut(said, REPLY_BODY_BYTES_MAX / 2);
                format!("{said}\n\n[agent-relay] The turn failed here: {error}")
            }
        }
    }
}

/// The message is not done; if the relay offers it again, it is new.
struct NotSettled;

fn task_of(message: &Message) -> Option<TaskId> {
    message.task_id().filter(|_| message.claimable)
}
