//! What must hold after every step, and at the end.

use std::collections::{BTreeMap, BTreeSet};

use agent_relay::core::agent::store::{InboxMessage, StoreOp};
use agent_relay::core::hub::event::{Query, ReadAnswer};
use agent_relay::core::ids::MessageId;
use agent_relay::core::limits::COMMITS_IN_FLIGHT_MAX;
use agent_relay::wire::api::{Message, MessageKind, messages_of};
use serde_json::Value;

use crate::restores::{attached_to, named_in};
use crate::world::{Runner, World, agent_name};

impl World {
    /// Invariants that every step keeps.
    pub fn check_step(&mut self) -> Result<(), String> {
        self.notice_silence();
        for (at, runner) in self.runners.iter().enumerate() {
            let Some(agent) = &runner.agent else { continue };
            if agent.commits_in_flight() > COMMITS_IN_FLIGHT_MAX {
                return Err(format!(
                    "runner {at} has {} commits under way",
                    agent.commits_in_flight()
                ));
            }
        }
        self.gate.check()?;
        if self.hub.as_ref().is_some_and(|hub| hub.commits_in_flight() > COMMITS_IN_FLIGHT_MAX) {
            return Err("the hub has too many commits under way".into());
        }
        Ok(())
    }

    fn query(&self, query: Query) -> Value {
        match self.hub_store.answer(&query) {
            ReadAnswer::Json(value) => value,
            other => panic!("{other:?}"),
        }
    }

    /// What is still to be done, as text; empty when all is quiet.
    pub fn unrest(&mut self) -> String {
        let mut open = Vec::new();
        if self.sendings.iter().any(|s| s.id.is_none()) {
            open.push("messages are still being sent".to_string());
        }
        for (at, runner) in self.runners.iter().enumerate() {
            if runner.finished.is_some() {
                continue;
            }
            let Some(agent) = &runner.agent else {
                open.push(format!("runner {at} is down"));
                continue;
            };
            let snapshot = runner.store.snapshot().expect("memory");
            if agent.commits_in_flight() > 0
                || snapshot.outbox_pending > 0
                || !snapshot.waiting.is_empty()
                || !snapshot.unsettled.is_empty()
            {
                open.push(format!(
                    "runner {at}: commits {}, outbox {}, waiting {}, unsettled {:?}",
                    agent.commits_in_flight(),
                    snapshot.outbox_pending,
                    snapshot.waiting.len(),
                    snapshot.unsettled.iter().map(|u| u.message.id).collect::<Vec<_>>()
                ));
            }
            let unread = messages_of(&self.query(Query::Unread {
                recipient: agent_name(at),
                since: MessageId(0),
                limit: 1000,
                mirror: true,
            }));
            if !unread.is_empty() {
                open.push(format!(
                    "agent {at} has unread {:?}",
                    unread.iter().map(|m| m.id).collect::<Vec<_>>()
                ));
            }
        }
        let tasks = self.query(Query::Tasks { status: None, viewer: None });
        for task in tasks["tasks"].as_array().into_iter().flatten() {
            if !matches!(task["status"].as_str(), Some("done" | "failed")) {
                open.push(format!("task {} is {}", task["id"], task["status"]));
            }
        }
        let commands = self.query(Query::Commands { target: None, status: None, own: None });
        for command in commands["commands"].as_array().into_iter().flatten() {
            if matches!(command["status"].as_str(), Some("pending" | "accepted" | "running")) {
                open.push(format!("command {} is {}", command["type"], command["status"]));
            }
        }
        open.join("; ")
    }

    /// Everything that was accepted was delivered once and answered once. Of what was lost with the
    /// hub's data, what a runner had acknowledged was delivered all the same.
    pub fn check_end(&mut self) -> Result<(), String> {
        for (at, runner) in self.runners.iter().enumerate() {
            if runner.finished.is_some() {
                return Err(format!("runner {at} ended by itself"));
            }
            let mut seen: BTreeMap<Delivered, u32> = BTreeMap::new();
            for one in delivered(runner) {
                *seen.entry(one).or_default() += 1;
            }
            // A task that was opened again may come to the same agent once more, and so may what
            // was lost with the hub's data before its sender heard of it: it is sent again, and may
            // get the same id in another generation.
            let most = |one: &Delivered| self.given(one.0) as u32 + self.reopened(one.0);
            if let Some((one, times)) = seen.iter().find(|(one, times)| **times > most(one)) {
                return Err(format!("runner {at} delivered {one:?} {times} times"));
            }
            self.check_acknowledged(at)?;
            self.check_order(at)?;
        }
        let inbox = |recipient: String| {
            messages_of(&self.query(Query::Inbox {
                recipient,
                since: MessageId(0),
                limit: 100_000,
                mirror: false,
            }))
        };
        let agents = (0..self.runners.len()).map(agent_name);
        let replies: Vec<Message> = agents.chain(["user".to_string()]).flat_map(inbox).collect();
        for index in 0..self.sendings.len() {
            self.check_sending(index, &replies)?;
        }
        for reply in replies.iter().filter(|reply| reply.kind == MessageKind::Chat) {
            self.check_words(reply)?;
            let had = |id: u64| {
                self.runners.iter().enumerate().any(|(at, runner)| {
                    agent_name(at) == reply.from && delivered(runner).any(|d| d.0 == id)
                })
            };
            if let Some(id) = attached_to(reply).into_iter().find(|id| !had(*id)) {
                return Err(format!(
                    "an answer of {} hangs on #{id}, which it never got",
                    reply.from
                ));
            }
        }
        Ok(())
    }

    /// The simulated provider says at the end of a turn which messages it had. None of it reaches
    /// anybody who did not write them.
    fn check_words(&self, reply: &Message) -> Result<(), String> {
        for (index, sending) in self.sendings.iter().enumerate() {
            let words: Vec<&str> = reply.body.split_whitespace().collect();
            let is_of_it = words.contains(&format!("n{index}").as_str());
            let is_it = sending.body["body"] == reply.body;
            if is_of_it && !is_it && reply.to != sending.from() {
                return Err(format!(
                    "#{} of {} tells {} what {} wrote: {:?}",
                    reply.id,
                    reply.from,
                    reply.to,
                    sending.from(),
                    reply.body
                ));
            }
        }
        Ok(())
    }

    /// The order of each sender holds. Whatever is claimed first (a task) may come later.
    fn check_order(&self, at: usize) -> Result<(), String> {
        if self.restores.happened {
            return Ok(()); // ids begin anew
        }
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        let lines: Vec<&str> =
            self.runners[at].record.log.iter().flat_map(|text| text.lines()).collect();
        for pair in lines.windows(2).filter(|pair| {
            !pair[1].starts_with("Subject: ") && !pair[1].starts_with("[agent-relay] You were")
        }) {
            let header = pair[0]
                .strip_prefix("[relay message #")
                .and_then(|rest| rest.trim_end_matches(']').split_once(" from "));
            let Some((id, sender)) = header else { continue };
            let id: u64 = id.parse().expect("a number");
            if newest.insert(sender, id).is_some_and(|before| before > id) {
                return Err(format!("runner {at} delivered #{id} of {sender} late"));
            }
        }
        Ok(())
    }

    /// What stood in a runner's store once was delivered, whatever became of the hub.
    fn check_acknowledged(&self, at: usize) -> Result<(), String> {
        let runner = &self.runners[at];
        let got: BTreeSet<u64> = delivered(runner).map(|one| one.0).collect();
        for op in runner.trace.iter().flatten() {
            if let StoreOp::InboxPut(InboxMessage { message, .. }) = op
                && !message.claimable
                && !got.contains(&message.id.0)
            {
                return Err(format!(
                    "runner {at} acknowledged #{} and never delivered it",
                    message.id
                ));
            }
        }
        Ok(())
    }

    /// How often an agent answered that message: now, and in data that were lost.
    fn answers_of(
        &self,
        index: usize,
        receiver: usize,
        id: u64,
        replies: &[Message],
    ) -> (usize, usize) {
        let sending = &self.sendings[index];
        let is_lost = self.restores.lost.contains(&(sending.generation.clone(), id));
        let name = agent_name(receiver);
        let answers = |reply: &&Message| {
            let attached = attached_to(reply).contains(&id) && !is_lost;
            let is_for_sender =
                reply.kind == MessageKind::Chat && reply.from == name && reply.to == sending.from();
            is_for_sender && (attached || named_in(reply).contains(&id))
        };
        let lost = self.restores.lost_answers.iter();
        let before = lost.filter(|(from, to)| *from == name && *to == id).count();
        (replies.iter().filter(answers).count(), before)
    }

    fn check_sending(&self, index: usize, replies: &[Message]) -> Result<(), String> {
        let sending = &self.sendings[index];
        let Some(id) = sending.id.filter(|id| *id < u64::MAX) else { return Ok(()) };
        if sending.body.get("command").is_some() {
            return Ok(());
        }
        let text = if sending.task {
            format!("Subject: {}", sending.body["title"].as_str().unwrap_or_default())
        } else {
            sending.body["body"].as_str().unwrap_or_default().to_string()
        };
        let one: Delivered = (id, text);
        let receivers: Vec<usize> = (0..self.runners.len())
            .filter(|at| delivered(&self.runners[*at]).any(|d| d == one))
            .collect();
        let to = sending.body["to"].as_str().unwrap_or_default();
        let is_lost = self.restores.lost.contains(&(sending.generation.clone(), id));
        let reopened = self.reopened(id) as usize;
        let least = match (sending.task, to) {
            (false, "broadcast" | "tag:acp") => receivers.len().max(1),
            _ => 1,
        };
        // What nobody had is what is missing after a restore; a task whose end was reported again
        // need not run.
        let may_be_missing = is_lost || (sending.task && self.restores.happened);
        if receivers.len() > least + reopened || (receivers.len() < least && !may_be_missing) {
            return Err(format!("#{id} to {to} was received by {receivers:?}, wanted {least}"));
        }
        // Ids may be given again in another generation: then an answer may name either.
        let twins = self.given(id);
        let (mut all, mut lost) = (0, 0);
        for receiver in &receivers {
            let (times, before) = self.answers_of(index, *receiver, id, replies);
            // Of a task that was interrupted and then lost nobody says anything more, and of an
            // agent that was lost with the hub's data the hub knows nothing until it registers
            // anew: nobody can answer it then.
            let silent =
                (sending.task && is_lost) || (self.restores.happened && sending.from() != "user");
            if reopened == 0 && (times > twins || (times == 0 && before == 0 && !silent)) {
                self.tell_replies(replies);
                return Err(format!(
                    "#{id} (lost: {is_lost}) was answered {times} times by agent {receiver}"
                ));
            }
            (all, lost) = (all + times, lost + before);
        }
        // Whoever ends it answers; those who were interrupted do not.
        let wanted = if self.restores.happened { 0..=twins + reopened } else { 1..=1 };
        if reopened > 0
            && !receivers.is_empty()
            && (!wanted.contains(&all) || (all + lost == 0 && !is_lost))
        {
            self.tell_replies(replies);
            return Err(format!(
                "#{id}, opened again {reopened} times, was answered {all} times by {receivers:?}"
            ));
        }
        Ok(())
    }

    /// How often a person has opened its task again.
    fn reopened(&self, id: u64) -> u32 {
        self.person.reopened.get(&id).copied().unwrap_or(0)
    }

    /// In how many generations a message got this id, those included that were lost before their
    /// senders heard of it.
    fn given(&self, id: u64) -> usize {
        let known = self
            .sendings
            .iter()
            .filter(|sending| sending.id == Some(id))
            .map(|sending| sending.generation.as_str());
        let lost = self
            .restores
            .lost
            .iter()
            .filter(|(_, lost)| *lost == id)
            .map(|(generation, _)| generation.as_str());
        known.chain(lost).collect::<BTreeSet<&str>>().len().max(1)
    }

    fn tell_replies(&self, replies: &[Message]) {
        if self.tells() {
            replies.iter().for_each(|reply| {
                println!(
                    "reply: {} {:?} {:?}",
                    reply.from,
                    reply.reply_to,
                    reply.body.lines().next()
                )
            });
        }
    }
}

/// A message in the receiver's own record: its number, and the line below its header, which no two
/// messages share.
type Delivered = (u64, String);

fn delivered(runner: &Runner) -> impl Iterator<Item = Delivered> {
    let read = |text: &String| -> Vec<Delivered> {
        let lines: Vec<&str> = text.lines().collect();
        let pairs = lines.windows(2);
        let number =
            |line: &str| line.strip_prefix("[relay message #")?.split(' ').next()?.parse().ok();
        pairs.filter_map(|pair| Some((number(pair[0])?, pair[1].to_string()))).collect()
    };
    runner.record.log.iter().flat_map(read)
}
