//! The hub: its starts, its crashes, and what its machine orders.

use std::collections::VecDeque;

use agent_relay::core::Cause;
use agent_relay::core::agent::event::{BusEvent, Event, Lane};
use agent_relay::core::http::GateCommand;
use agent_relay::core::hub::event::{
    Effect as HubEffect, Event as HubEvent, Lane as HubLane, StoreCommand as HubStoreCommand,
    StoreEvent as HubStoreEvent,
};
use agent_relay::core::hub::{Hub, HubConfig};

use super::schedule::{Action, From};
use super::{World, hash};

impl World {
    pub(super) fn start_hub(&mut self) {
        if self.hub.is_some() {
            return;
        }
        self.hub_life += 1;
        let life = self.hub_life;
        self.say(format!("hub starts, life {life}"));
        let mut number = life * 1_000_000;
        let secret = move || {
            number += 1;
            format!("secret-{number}")
        };
        self.hub = Some(Hub::new(
            HubConfig { id: "hub".into(), hash, secret: Box::new(secret) },
            self.rng.bits(),
        ));
        let mut snapshot = self.hub_store.snapshot().expect("memory");
        snapshot.mark = self.restores.mark.clone();
        let event = HubEvent::Store(HubStoreEvent::Restored(Box::new(snapshot)));
        self.send(format!("hub{life}"), 5, Action::Hub { life, lane: HubLane::Store, event });
    }

    pub fn crash_hub(&mut self) {
        if self.hub.take().is_none() {
            return;
        }
        self.say("hub crashes".into());
        self.hub_lanes.iter_mut().for_each(VecDeque::clear);
        self.gate.clear();
        // What was being written may or may not have reached the disk: a prefix did.
        let reached = self.rng.below(self.hub_pending.len() as u64 + 1) as usize;
        let done: Vec<_> = self.hub_pending.drain(..).take(reached).collect();
        let stalled = self.hub_stalled;
        for commit in done.into_iter().filter(|_| !stalled) {
            // The mark may have been written by then or not.
            let marked = self.rng.percent(50);
            self.hub_persist(&[commit], marked);
        }
        self.hub_stall_told = false;
        let waiting: Vec<From> = self.tickets.drain().map(|(_, (from, _))| from).collect();
        for from in waiting {
            self.send_answer(from, Err(Cause::Offline("the hub is gone".into())));
        }
        let conns: Vec<u64> = self.conns.keys().copied().collect();
        for conn in conns {
            self.cut(conn, true, false);
        }
        let later = 100 + self.rng.below(5000);
        self.after_ms(later, Action::StartHub);
        self.note_stopped_copy();
    }

    pub(super) fn hub_effects(&mut self, effects: Vec<HubEffect>) {
        let life = self.hub_life;
        for effect in effects {
            match effect {
                HubEffect::Store(HubStoreCommand::Commit(commit)) => {
                    self.hub_pending.push_back(commit);
                    if !self.hub_stall_told {
                        self.send(format!("hubdisk{life}"), 3, Action::HubCommit { life });
                    }
                }
                HubEffect::Store(HubStoreCommand::Retry) => {
                    self.send(format!("hubdisk{life}"), 3, Action::HubCommit { life })
                }
                HubEffect::Read { number, query } => {
                    let answer = self.hub_store.answer(&query);
                    self.send(
                        format!("hubread{life}"),
                        3,
                        Action::HubRead { life, number, answer },
                    );
                }
                HubEffect::Store(HubStoreCommand::Vacuum | HubStoreCommand::Look)
                | HubEffect::Gate(GateCommand::TokenKnown { .. } | GateCommand::TokenGone { .. }) =>
                    {}
                HubEffect::Store(HubStoreCommand::Read { .. }) => {
                    unreachable!("reads are ordered from the reader")
                }
                HubEffect::Gate(GateCommand::Respond { ticket, status, body }) => {
                    let body = body.to_json();
                    match self.tickets.remove(&ticket.0) {
                        Some((from, true)) => self.send_answer(from, Ok((status, body))),
                        Some((_, false)) => {}
                        // Of the greedy agent, which waits for no answer.
                        None if !self.conns.contains_key(&ticket.0) => {}
                        None => self.refuse_upgrade(ticket.peer(), status, body),
                    }
                }
                HubEffect::Gate(GateCommand::Accept { ticket: peer }) => {
                    let told = self.conns.get_mut(&peer.0).map(|conn| {
                        conn.accepted = true;
                        (conn.runner, conn.life)
                    });
                    if let Some((runner, life)) = told {
                        let event = Event::Bus(BusEvent::Connected);
                        self.send(
                            format!("down{peer}"),
                            self.faults.delay_ms_max,
                            Action::Agent { runner, life, lane: Lane::Bus, event },
                        );
                    }
                }
                HubEffect::Gate(GateCommand::PeerSend { peer, text }) => {
                    self.frame_down(peer, &text)
                }
                HubEffect::Gate(GateCommand::PeerClose { peer, .. }) => {
                    self.cut(peer.0, true, false)
                }
                HubEffect::Log { text, .. } => {
                    if self.tell {
                        println!("{:>12} hub: {text}", self.now.tick.0);
                    }
                }
                HubEffect::Failed(text) => panic!("hub failed: {text}"),
                HubEffect::Broken(error) => panic!("hub's store broke: {error}"),
                HubEffect::Finish => self.hub = None,
            }
        }
    }
}
