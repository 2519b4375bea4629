//! The network: connections of the bus and HTTP exchanges, with everything that a network does to
//! them.

use std::time::Duration;

use agent_relay::core::Cause;
use agent_relay::core::agent::event::{BusEvent, Event, Lane};
use agent_relay::core::http::Request;
use agent_relay::core::hub::event::{Event as HubEvent, Lane as HubLane};
use agent_relay::core::ids::{PeerId, Ticket};
use agent_relay::core::time::Tick;
use agent_relay::secret::Secret;
use agent_relay::wire::bus::RelayFrame;
use serde_json::Value;

use super::World;
use super::schedule::{Action, From};

/// A bus connection as the network sees it.
pub(super) struct Conn {
    pub(super) runner: usize,
    pub(super) life: u64,
    pub(super) accepted: bool,
    /// Nothing goes through, and neither side has noticed.
    pub(super) dead: bool,
    pub(super) silent_since: Option<Tick>,
}

impl World {
    pub(super) fn connect(&mut self, runner: usize, token: Secret) {
        let life = self.runners[runner].life;
        if self.hub.is_none() || self.partition.contains(&runner) {
            let event = Event::Bus(BusEvent::Lost(Cause::Offline("nobody listens".into())));
            let delay = 1 + self.rng.below(20);
            return self.after_ms(delay, Action::Agent { runner, life, lane: Lane::Bus, event });
        }
        if let Some(old) = self.runners[runner].conn.take() {
            self.cut(old, false, true);
        }
        self.next_ticket += 1;
        let peer = self.next_ticket;
        self.conns
            .insert(peer, Conn { runner, life, accepted: false, dead: false, silent_since: None });
        self.runners[runner].conn = Some(peer);
        let request = Request {
            method: "GET".into(),
            path: "/bus".into(),
            token: token.expose().into(),
            ..Default::default()
        };
        let (hub_life, lane) = (self.hub_life, HubLane::Gate);
        let event = HubEvent::Upgrade { ticket: Ticket(peer), request };
        self.send(
            format!("up{peer}"),
            self.faults.delay_ms_max,
            Action::Hub { life: hub_life, lane, event },
        );
    }

    pub(super) fn frame_up(&mut self, runner: usize, text: String) {
        use agent_relay::wire::bus::ClientFrame;
        let frame = ClientFrame::parse(&text).expect("runners write frames");
        match &frame {
            ClientFrame::Status { agent_status, .. } => {
                assert!(
                    !self.runners[runner].silent,
                    "a status after the last offline: runner {runner}"
                );
                let stopping = text.contains("shutting-down") || text.contains("killing");
                self.runners[runner].silent = agent_status == "offline" && stopping;
            }
            ClientFrame::Heartbeat { .. } => {
                assert!(!self.runners[runner].silent, "a heartbeat after the last offline")
            }
            _ => {}
        }
        let Some(peer) = self.runners[runner].conn else { return };
        if self.conns.get(&peer).is_none_or(|conn| conn.dead) {
            return;
        }
        let life = self.hub_life;
        let repeat = self.rng.percent(self.faults.repeat_frame)
            && matches!(frame, ClientFrame::Ack { .. } | ClientFrame::CommandUpdate { .. });
        for _ in 0..1 + usize::from(repeat) {
            let event = HubEvent::PeerText { peer: PeerId(peer), text: text.clone() };
            self.send(
                format!("up{peer}"),
                self.faults.delay_ms_max,
                Action::Hub { life, lane: HubLane::Gate, event },
            );
        }
    }

    pub(super) fn frame_down(&mut self, peer: PeerId, text: &str) {
        let Some(conn) = self.conns.get(&peer.0).filter(|conn| !conn.dead) else { return };
        let (runner, life) = (conn.runner, conn.life);
        let frame = RelayFrame::parse(text).expect("our own frame");
        self.runners[runner].known |= matches!(frame, RelayFrame::Registered { .. });
        let repeat = self.rng.percent(self.faults.repeat_frame)
            && matches!(frame, RelayFrame::Event { .. } | RelayFrame::Command { .. });
        for _ in 0..1 + usize::from(repeat) {
            let event = Event::Bus(BusEvent::Framed(frame.clone()));
            self.send(
                format!("down{peer}"),
                self.faults.delay_ms_max,
                Action::Agent { runner, life, lane: Lane::Bus, event },
            );
        }
    }

    pub(super) fn refuse_upgrade(&mut self, peer: PeerId, status: u16, body: Value) {
        if let Some(conn) = self.conns.remove(&peer.0) {
            let text = body["error"].as_str().unwrap_or_default().to_string();
            let event = Event::Bus(BusEvent::Lost(Cause::Refused(status, text)));
            self.after_ms(
                1,
                Action::Agent { runner: conn.runner, life: conn.life, lane: Lane::Bus, event },
            );
        }
    }

    /// Ends a connection; each side hears of it or not.
    pub(super) fn cut(&mut self, number: u64, tell_client: bool, tell_hub: bool) {
        let Some(conn) = self.conns.remove(&number) else { return };
        let runner = conn.runner;
        if self.runners[runner].conn == Some(number) {
            self.runners[runner].conn = None;
        }
        if tell_client {
            let event = Event::Bus(BusEvent::Lost(Cause::Offline("cut".into())));
            self.send(
                format!("down{number}"),
                self.faults.delay_ms_max,
                Action::Agent { runner, life: conn.life, lane: Lane::Bus, event },
            );
        }
        if tell_hub {
            let life = self.hub_life;
            let event = HubEvent::PeerClosed { peer: PeerId(number) };
            self.send(
                format!("up{number}"),
                self.faults.delay_ms_max,
                Action::Hub { life, lane: HubLane::Gate, event },
            );
        }
    }

    /// Half-open connections are noticed after 45 s of silence by both sides, as the real edges do.
    pub fn notice_silence(&mut self) {
        let now = self.now.tick;
        let late: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| {
                c.silent_since.is_some_and(|since| now - since > Duration::from_secs(45))
            })
            .map(|(n, _)| *n)
            .collect();
        for conn in late {
            self.cut(conn, true, true);
        }
    }

    pub(super) fn http(&mut self, from: From, request: Request) {
        let runner = match &from {
            From::Call { runner, .. } | From::Pump { runner, .. } => Some(*runner),
            From::Sender { .. } => None,
        };
        let cut_off = runner.is_some_and(|runner| self.partition.contains(&runner));
        if cut_off || self.rng.percent(self.faults.lose_request) {
            let wait = if cut_off && self.rng.percent(50) { 5 } else { 10_000 };
            return self.after_ms(
                wait,
                Action::Answer { from, result: Err(Cause::TimedOut("lost".into())) },
            );
        }
        let delay = self.rng.below(self.faults.delay_ms_max + 1);
        if self.rng.percent(self.faults.repeat_request) {
            let again = delay + self.rng.below(300);
            self.after_ms(
                again,
                Action::Request { from: from.clone(), request: request.clone(), answer: false },
            );
        }
        self.after_ms(delay, Action::Request { from, request, answer: true });
    }

    pub(super) fn request_arrives(&mut self, from: From, request: Request, answer: bool) {
        if self.hub.is_none() {
            if answer {
                self.send_answer(from, Err(Cause::Offline("nobody listens".into())));
            }
            return;
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.tickets.insert(ticket, (from, answer));
        let life = self.hub_life;
        self.act(Action::Hub {
            life,
            lane: HubLane::Gate,
            event: HubEvent::Request { ticket: Ticket(ticket), request },
        });
    }

    pub(super) fn send_answer(&mut self, from: From, result: Result<(u16, Value), Cause>) {
        let lost = self.rng.percent(self.faults.lose_answer);
        let (delay, result) = if lost {
            (10_000, Err(Cause::TimedOut("answer lost".into())))
        } else {
            (self.rng.below(self.faults.delay_ms_max + 1), result)
        };
        self.after_ms(delay, Action::Answer { from, result });
    }

    pub(super) fn answer_arrives(&mut self, from: From, result: Result<(u16, Value), Cause>) {
        match from {
            From::Call { runner, life, call } => {
                let event = Event::Called { call, result };
                self.act(Action::Agent { runner, life, lane: Lane::Heartbeat, event });
            }
            From::Pump { runner, life, rows, single } => {
                if self.runners[runner].life == life {
                    self.pump_answer(runner, rows, single, result);
                }
            }
            From::Sender { index } => self.sender_answer(index, result),
        }
    }
}
