//! A person who interrupts turns, and who opens the tasks again that were interrupted.

use std::collections::BTreeMap;

use agent_relay::core::http::Request;
use agent_relay::core::hub::event::{Query, ReadAnswer};
use agent_relay::core::ids::TaskId;
use agent_relay::core::rng::Rng;
use agent_relay::wire::api::path;
use serde_json::{Value, json};

use super::{Action, From, OPERATOR, World, agent_name};

/// His habits, and what he did.
pub struct Person {
    rng: Rng,
    /// Chance in percent, each time, that he interrupts somebody; 0: this seed has no interrupts.
    interrupts: u64,
    /// How often he opened the task of a message again, at most.
    pub reopened: BTreeMap<u64, u32>,
}

impl Person {
    pub fn new(mut rng: Rng) -> Person {
        let interrupts = if rng.percent(60) { 5 + rng.below(40) } else { 0 };
        Person { rng, interrupts, reopened: BTreeMap::new() }
    }
}

impl World {
    pub(super) fn person_acts(&mut self) {
        let again = 500 + self.person.rng.below(4000);
        self.after_ms(again, Action::Person);
        if self.hub.is_none() {
            return;
        }
        if !self.healed && self.person.rng.percent(self.person.interrupts) {
            let target = agent_name(self.person.rng.below(self.runners.len() as u64) as usize);
            self.say(format!("the person interrupts {target}"));
            self.ask_as_person(
                "POST",
                path::COMMANDS.into(),
                json!({"type": "agent.interrupt", "target": target}),
            );
        }
        for (task, message) in self.blocked_tasks() {
            if self.healed || self.person.rng.percent(50) {
                self.say(format!("the person opens task {task} again"));
                *self.person.reopened.entry(message).or_default() += 1;
                self.ask_as_person(
                    "PATCH",
                    path::task(TaskId(task)),
                    json!({"status": "open", "agentId": "user"}),
                );
            }
        }
    }

    /// What is durably blocked: task and message.
    fn blocked_tasks(&self) -> Vec<(u64, u64)> {
        let query = Query::Tasks { status: Some("blocked".into()), viewer: None };
        let ReadAnswer::Json(answer) = self.hub_store.answer(&query) else {
            panic!("tasks are JSON")
        };
        let pair = |task: &Value| Some((task["id"].as_u64()?, task["messageId"].as_u64()?));
        answer["tasks"].as_array().into_iter().flatten().filter_map(pair).collect()
    }

    fn ask_as_person(&mut self, method: &str, path: String, body: Value) {
        let body = body.to_string().into_bytes();
        let request = Request {
            method: method.into(),
            path,
            token: OPERATOR.into(),
            body,
            ..Default::default()
        };
        self.request_arrives(From::Sender { index: 0 }, request, false);
    }
}
