//! An agent whose token is in greedy hands, in every tenth seed: hundreds of requests at once,
//! again and again while there is trouble. What others ask waits for a turn of it at most.

use std::time::Duration;

use agent_relay::core::cost::{Cost, outer_member};
use agent_relay::core::http::Request;
use agent_relay::core::hub::event::Event as HubEvent;
use agent_relay::core::ids::Ticket;
use agent_relay::core::limits::{TURN_EVENTS_MAX, URGENT_BYTES_MAX};
use agent_relay::core::rng::Rng;
use agent_relay::core::time::Tick;
use agent_relay::core::turns::{LineId, Turns};
use agent_relay::wire::api::path;
use serde_json::json;

use super::World;
use super::schedule::Action;

pub(super) const GREEDY: &str = "greedy-token";
const LINE: LineId = LineId(1);
/// Requests of one burst.
const BURST: u64 = 150;
/// The time between two bursts, ms.
const PAUSE_MS: u64 = 6000;

/// The hub's queue of its gate, and what the greedy agent does to it.
pub struct Gate {
    turns: Turns<HubEvent>,
    rng: Rng,
    pub is_greedy: bool,
    /// Handling takes time where there is a crowd, so that others come while it waits.
    busy_until: Tick,
    /// Events of others that wait.
    others: usize,
    /// Events of the greedy agent that were taken in a row while others waited.
    row: usize,
    /// The longest such row.
    pub longest: usize,
}

/// Whose an event is, as the gate would know it.
fn line_of(event: &HubEvent) -> (LineId, u64) {
    match event {
        HubEvent::Request { ticket, request } if request.token == GREEDY => (LINE, ticket.0),
        HubEvent::Request { ticket, .. } | HubEvent::Upgrade { ticket, .. } => {
            (LineId(2), ticket.0)
        }
        HubEvent::PeerText { peer, .. } | HubEvent::PeerClosed { peer } => {
            (LineId(3 + peer.0), peer.0)
        }
        _ => (LineId(2), 0),
    }
}

impl Gate {
    pub fn new(rng: Rng, is_greedy: bool) -> Gate {
        let (turns, busy_until) = (Turns::default(), Tick::default());
        Gate { turns, rng, is_greedy, busy_until, others: 0, row: 0, longest: 0 }
    }

    /// The hub is gone, and what waited with it.
    pub fn clear(&mut self) {
        self.turns = Turns::default();
        (self.others, self.row) = (0, 0);
    }

    pub fn push(&mut self, event: HubEvent) {
        let (line, source) = line_of(&event);
        let bytes = match &event {
            HubEvent::Request { request, .. } => request.body.len(),
            HubEvent::PeerText { text, .. } => text.len(),
            _ => 0,
        };
        self.others += usize::from(line != LINE);
        let cost = Cost { bytes, members: bytes / 20, depth: 2 };
        let is_urgent = match &event {
            HubEvent::PeerText { text, .. } => {
                text.len() <= URGENT_BYTES_MAX
                    && matches!(outer_member(text, "type"), Some("heartbeat" | "ack"))
            }
            HubEvent::PeerClosed { .. } => true,
            _ => false,
        };
        self.turns.push(line, source, is_urgent, cost, event);
    }

    pub fn pop(&mut self, now: Tick) -> Option<HubEvent> {
        if self.busy_until > now {
            return None;
        }
        let event = self.turns.pop()?;
        if self.is_greedy {
            self.busy_until = now + Duration::from_micros(300);
        }
        let is_greedy = line_of(&event).0 == LINE;
        self.others -= usize::from(!is_greedy);
        self.row = if is_greedy && self.others > 0 { self.row + 1 } else { 0 };
        self.longest = self.longest.max(self.row);
        Some(event)
    }

    /// When the next event may be taken, if one waits.
    pub fn free_at(&self) -> Option<Tick> {
        (!self.turns.is_empty()).then_some(self.busy_until)
    }

    /// Others wait for a turn at most.
    pub fn check(&self) -> Result<(), String> {
        if self.longest > TURN_EVENTS_MAX {
            return Err(format!(
                "{} events of one line in a row while others waited",
                self.longest
            ));
        }
        Ok(())
    }
}

impl World {
    /// A burst of the greedy agent; the next one follows while there is trouble.
    pub(super) fn greedy_burst(&mut self) {
        if self.healed || !self.gate.is_greedy {
            return;
        }
        for _ in 0..self.gate.rng.below(BURST) {
            let number = self.gate.rng.below(1000);
            let (path, body) = match self.gate.rng.below(4) {
                0 => (path::MESSAGES, json!({"to": format!("label:none{number}"), "body": "x"})),
                1 => (path::MESSAGES, json!({"to": "greedy", "body": "x".repeat(20_000)})),
                2 => ("/api/agents/greedy/heartbeat", json!({"meta": {"m": "x".repeat(5000)}})),
                _ => (path::AGENTS, json!({})),
            };
            let request = Request {
                method: if path == path::AGENTS { "GET" } else { "POST" }.into(),
                path: path.into(),
                token: GREEDY.into(),
                body: body.to_string().into_bytes(),
                ..Default::default()
            };
            self.next_ticket += 1;
            let ticket = Ticket(self.next_ticket);
            let (life, lane) = (self.hub_life, agent_relay::core::hub::event::Lane::Gate);
            self.act(Action::Hub { life, lane, event: HubEvent::Request { ticket, request } });
        }
        let pause = PAUSE_MS / 2 + self.gate.rng.below(PAUSE_MS);
        self.at(self.now.tick + Duration::from_millis(pause), Action::Greedy);
    }
}
