//! Messages on their way to an agent's connection: which are next, and who has how many
//! unacknowledged.

use super::super::Hub;
use super::super::event::{AcceptedMessage, Effect, Query, ReadFor};
use super::super::written::{WrittenMessage, event_frame};
use crate::core::http::GateCommand;
use crate::core::ids::MessageId;
use crate::core::limits::*;
use crate::wire::api::Message;

impl Hub {
    /// Sends what is next to an agent: ascending, at most as much as the connection may hold
    /// unacknowledged. `fresh` is a message whose body is at hand.
    pub(in crate::core::hub) fn deliver(
        &mut self,
        agent_id: &str,
        fresh: Option<&AcceptedMessage>,
    ) {
        let Some(agent) = self.agents.get(agent_id).filter(|agent| !agent.loading) else {
            return;
        };
        let Some(peer) =
            agent.peer.and_then(|number| self.peers.get(&number)).filter(|peer| peer.takes_mail())
        else {
            return;
        };
        let Some(queue) = self.queues.get(agent_id) else {
            return;
        };
        if fresh.is_none() && self.reads_under_way() >= READS_IN_FLIGHT_MAX {
            // One event may concern everybody; whoever finds no room is served as reads come back.
            self.unserved.insert(agent_id.to_string());
            return;
        }
        let room = UNACKED_PER_PEER_MAX - peer.in_flight.len();
        let sent: Vec<MessageId> = peer.in_flight.values().map(|(id, _)| *id).collect();
        let is_next = |id: &&MessageId| !sent.contains(*id) && !self.loops.holds(**id, agent_id);
        let ids: Vec<MessageId> = queue.ids.iter().filter(is_next).take(room).copied().collect();
        match (ids.as_slice(), fresh) {
            ([], _) => {}
            ([id], Some(sent)) if sent.message.id == *id => {
                self.meter.send_to_frame.observe(self.now.tick - sent.at);
                self.send_message(agent_id, &sent.message);
            }
            _ => {
                let query = Query::Deliver { recipient: agent_id.to_string(), ids: ids.clone() };
                if let Some(agent) = self.agents.get_mut(agent_id) {
                    agent.loading = true;
                }
                self.read(query, ReadFor::Deliver(agent_id.to_string(), ids));
            }
        }
    }

    pub(in crate::core::hub) fn on_delivery_read(
        &mut self,
        agent_id: &str,
        ids: &[MessageId],
        messages: Vec<Message>,
    ) {
        let Some(agent) = self.agents.get_mut(agent_id) else {
            return;
        };
        if !std::mem::take(&mut agent.loading) {
            return; // the connection changed meanwhile; its registration starts over
        }
        // Of an answer that was cut short, the rest is asked for again; what the store does not
        // have, nobody can deliver.
        let last = messages.last().map_or(MessageId(u64::MAX), |message| message.id);
        let gone = ids
            .iter()
            .filter(|id| **id <= last && !messages.iter().any(|message| message.id == **id));
        if let Some(queue) = self.queues.get_mut(agent_id) {
            gone.for_each(|id| {
                queue.ids.remove(id);
            });
        }
        for message in messages {
            self.send_message(agent_id, &message.into());
        }
        self.deliver(agent_id, None);
    }

    fn send_message(&mut self, agent_id: &str, message: &WrittenMessage) {
        let Some(number) = self.agents.get(agent_id).and_then(|agent| agent.peer) else {
            return;
        };
        let still_wanted =
            self.queues.get(agent_id).is_some_and(|queue| queue.ids.contains(&message.id));
        let Some(peer) = self.peers.get_mut(&number).filter(|peer| still_wanted && peer.has_room())
        else {
            return;
        };
        if peer.in_flight.values().any(|(id, _)| *id == message.id) {
            return;
        }
        self.seq += 1;
        let data = message.text_for(agent_id);
        let text = event_frame(self.seq, "message.new", &data, self.now.wall.0);
        peer.in_flight.insert(self.seq, (message.id, text.len()));
        peer.in_flight_bytes += text.len();
        self.meter.delivered += 1;
        self.out.push(Effect::Gate(GateCommand::PeerSend { peer: number, text: text.into() }));
    }
}
