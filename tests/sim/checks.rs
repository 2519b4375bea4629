//! What must hold after every step, and at the end.

use std::collections::BTreeMap;

use agent_relay::core::hub::event::{Query, ReadAnswer};
use agent_relay::core::limits::COMMITS_IN_FLIGHT_MAX;
use agent_relay::wire::api::messages_of;
use serde_json::Value;

use crate::world::{World, agent_name};

impl World {
    /// Invariants that every step keeps.
    pub fn check_step(&mut self) -> Result<(), String> {
        self.notice_silence();
        for (at, runner) in self.runners.iter().enumerate() {
            let Some(agent) = &runner.agent else { continue };
            if agent.commits_in_flight() > COMMITS_IN_FLIGHT_MAX {
                return Err(format!("runner {at} has {} commits under way", agent.commits_in_flight()));
            }
        }
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
            let unread = messages_of(&self.query(Query::Unread { recipient: agent_name(at), since: 0, limit: 1000, mirror: true }));
            if !unread.is_empty() {
                open.push(format!("agent {at} has unread {:?}", unread.iter().map(|m| m.id).collect::<Vec<_>>()));
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

    /// Everything that was accepted was delivered once and answered once.
    pub fn check_end(&mut self) -> Result<(), String> {
        for (at, runner) in self.runners.iter().enumerate() {
            if runner.finished.is_some() {
                return Err(format!("runner {at} ended by itself"));
            }
            let mut seen: BTreeMap<String, u32> = BTreeMap::new();
            for line in runner.record.log.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("[relay message #")) {
                *seen.entry(line.to_string()).or_default() += 1;
            }
            if let Some((line, times)) = seen.iter().find(|(_, times)| **times > 1) {
                return Err(format!("runner {at} delivered {line} {times} times"));
            }
        }
        let replies = messages_of(&self.query(Query::Inbox { recipient: "user".into(), since: 0, limit: 100_000, mirror: false }));
        for sending in &self.sendings {
            let Some(id) = sending.id.filter(|id| *id < u64::MAX) else { continue };
            if sending.body.get("command").is_some() {
                continue;
            }
            let header = format!("[relay message #{id} from user]");
            let receivers: Vec<usize> = (0..self.runners.len())
                .filter(|at| self.runners[*at].record.log.iter().any(|text| text.lines().any(|line| line == header)))
                .collect();
            let to = sending.body["to"].as_str().unwrap_or_default();
            let want = match (sending.task, to) {
                (true, _) => 1,
                (false, "broadcast" | "tag:acp") => receivers.len().max(1),
                (false, _) => 1,
            };
            if receivers.len() != want {
                return Err(format!("#{id} to {to} was received by {receivers:?}, wanted {want}"));
            }
            let answered = |from: &str| {
                let answers = |m: &&agent_relay::wire::api::Message| {
                    let more = m.payload.get("answers").and_then(Value::as_array);
                    m.kind == "chat" && m.from == from && (m.reply_to == Some(id) || more.is_some_and(|ids| ids.contains(&id.into())))
                };
                replies.iter().filter(answers).count()
            };
            for receiver in receivers {
                let times = answered(&agent_name(receiver));
                if times != 1 {
                    return Err(format!("#{id} was answered {times} times by agent {receiver}"));
                }
            }
        }
        Ok(())
    }
}
