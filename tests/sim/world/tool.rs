//! Tools inside a session that answer by themselves, through their runner.

use agent_relay::core::agent::event::{ControlRequest, Event, Lane};
use agent_relay::core::ids::Ticket;
use agent_relay::core::rng::Rng;
use agent_relay::core::session::Delivery;
use serde_json::json;

use super::{Action, World};

/// How often a tool answers a message before its turn ends, in percent, in this seed.
pub struct Tool {
    rng: Rng,
    percent: u64,
}

impl Tool {
    pub fn new(mut rng: Rng) -> Tool {
        let percent = if rng.percent(30) { 1 + rng.below(50) } else { 0 };
        Tool { rng, percent }
    }
}

impl World {
    /// A parcel reaches a provider: perhaps its tool says at once what there is to say. The same
    /// words under the same key, should it come once more.
    pub(super) fn use_tool(&mut self, runner: usize, delivery: &Delivery) {
        let header = |line: &str| -> Option<(u64, String)> {
            let (id, from) =
                line.strip_prefix("[relay message #")?.strip_suffix(']')?.split_once(" from ")?;
            Some((id.parse().ok()?, from.to_string()))
        };
        for (id, sender) in delivery.text.lines().filter_map(header) {
            // The end of a task is an answer of its own kind.
            let task = self.sendings.iter().any(|sending| sending.task && sending.id == Some(id));
            let unknown = !self.sendings.iter().any(|sending| sending.id == Some(id));
            if task || unknown || !self.tool.rng.percent(self.tool.percent) {
                continue;
            }
            self.say(format!("a tool of runner {runner} answers #{id}"));
            let life = self.runners[runner].life;
            let key = format!("tool:{runner}:{id}");
            let body = json!({"to": sender, "body": "by the tool", "replyTo": id, "replyExpected": false, "idempotencyKey": key});
            let event = Event::Control(Ticket(1), ControlRequest::Message(body));
            self.after_ms(0, Action::Agent { runner, life, lane: Lane::Control, event });
        }
    }
}
