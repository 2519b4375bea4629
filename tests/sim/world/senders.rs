//! People and agents that send messages and tasks, again and again until the hub has them.

use agent_relay::core::Cause;
use agent_relay::core::http::Request;
use agent_relay::core::rng::Rng;
use agent_relay::wire::api::path;
use serde_json::{Value, json};

use super::schedule::{Action, From};
use super::{OPERATOR, ROOT, World, agent_name};

/// A message or task that a person sends, again and again until the hub has it.
#[derive(Debug, Clone)]
pub struct Sending {
    pub body: Value,
    pub task: bool,
    /// Id once accepted.
    pub id: Option<u64>,
    /// Generation in which it was given.
    pub generation: String,
}

impl Sending {
    /// Who sends it.
    pub fn from(&self) -> &str {
        self.body["from"].as_str().unwrap_or("user")
    }
}

impl World {
    pub(super) fn plan_sendings(&mut self, draw: &mut Rng, senders: &mut Rng) {
        let words = [
            "hello",
            "work 1",
            "slow 1",
            "garbage",
            "how are you",
            "work 2",
            "crash",
            "error",
            "x",
        ];
        for index in 0..8 + draw.below(25) {
            let word = words[draw.below(words.len() as u64) as usize];
            let body = format!("{word} n{index}");
            let to = match draw.below(10) {
                0 => "broadcast".to_string(),
                1 => "tag:acp".to_string(),
                _ => agent_name(draw.below(self.runners.len() as u64) as usize),
            };
            let task = draw.percent(25);
            let mut body = if task {
                json!({"to": to, "title": format!("t{index}"), "body": body})
            } else {
                json!({"to": to, "body": body, "idempotencyKey": format!("k{index}")})
            };
            // Agents write to each other too; what they get as answers expects none.
            let from = agent_name(senders.below(self.runners.len() as u64) as usize);
            if !task && from != to && senders.percent(50) && self.runners.len() > 1 {
                body["from"] = json!(from);
            }
            self.sendings.push(Sending { body, task, id: None, generation: String::new() });
        }
    }

    pub(super) fn send_next(&mut self) {
        let pause = 20 + self.rng.below(if self.healed { 200 } else { 4000 });
        if let Some(index) = self.sendings.iter().position(|s| s.id.is_none())
            && index >= self.next_sending
        {
            self.next_sending = index;
            self.submit(index);
            return;
        }
        self.after_ms(pause, Action::SendNext);
    }

    pub(super) fn submit(&mut self, index: usize) {
        let sending = &self.sendings[index];
        let agent = sending.body["from"].as_str().map(str::to_string);
        let knows = |from: &String| {
            self.runners
                .iter()
                .enumerate()
                .any(|(at, runner)| runner.known && agent_name(at) == *from)
        };
        if agent.as_ref().is_some_and(|from| !knows(from)) {
            // Nobody could answer it yet.
            return self.after_ms(1000, Action::SendNext);
        }
        let (path, body) = match (sending.body.get("command"), sending.task) {
            (Some(command), _) => (path::COMMANDS, command.clone()),
            (None, true) => (path::TASKS, sending.body.clone()),
            (None, false) => (path::MESSAGES, sending.body.clone()),
        };
        let request = Request {
            method: "POST".into(),
            path: path.into(),
            token: if agent.is_some() { ROOT } else { OPERATOR }.into(),
            body: body.to_string().into_bytes(),
            ..Default::default()
        };
        // Tasks and commands carry no key: a person does not send them again when in doubt.
        let careful = sending.task || sending.body.get("command").is_some();
        let from = From::Sender { index };
        if careful { self.request_arrives_surely(from, request) } else { self.http(from, request) }
    }

    pub(super) fn request_arrives_surely(&mut self, from: From, request: Request) {
        if self.hub.is_some() {
            self.request_arrives(from, request, true)
        } else {
            self.after_ms(1000, Action::SendNext)
        }
    }

    pub(super) fn sender_answer(&mut self, index: usize, result: Result<(u16, Value), Cause>) {
        let careful =
            self.sendings[index].task || self.sendings[index].body.get("command").is_some();
        match result {
            Ok((200 | 201, body)) => {
                let id =
                    body["messageId"].as_u64().or_else(|| body["id"].as_u64()).unwrap_or(u64::MAX);
                self.say(format!("accepted #{id}: {}", self.sendings[index].body));
                self.sendings[index].id = Some(id);
                self.sendings[index].generation =
                    body["generation"].as_str().unwrap_or_default().to_string();
            }
            // Not known whether it arrived: forget it, nobody may rely on it.
            Err(_) if careful => self.sendings[index].id = Some(u64::MAX),
            // The agent is not known yet.
            Ok((422, _)) if !self.healed => {}
            Ok((422, _)) if self.sendings[index].body.get("command").is_some() => {
                self.sendings[index].id = Some(u64::MAX)
            }
            _ => {}
        }
        self.after_ms(100, Action::SendNext);
    }
}
