//! Calls that the store answers: what is asked, and what becomes of the answer.

use serde_json::{Value, json};

use super::super::Hub;
use super::super::event::{Effect, Query, ReadAnswer, ReadFor, StatsFormat, StoreCommand};
use super::super::rights::{acts_as, forbidden};
use super::{Answer, Asked, Routed, number};
use crate::core::cost::Cost;
use crate::core::http::{Body, GateStats};
use crate::core::ids::{MessageId, ReadNumber, Ticket};
use crate::core::limits::{READS_AT_ONCE_MAX, READS_IN_FLIGHT_MAX, TURN_BYTES_MAX};
use crate::core::turns::LineId;
use crate::wire::control::LogLevel;

/// Most messages that are shown of those that wait for anybody.
const QUEUED_SHOWN_MAX: u64 = 1000;

/// Bytes that an answer counts for in the turns of the reader: a list is a turn of its own.
fn bytes_read_for(query: &Query) -> usize {
    match query {
        Query::Unread { .. }
        | Query::Inbox { .. }
        | Query::Queued { .. }
        | Query::Thread { .. }
        | Query::Tasks { .. }
        | Query::Commands { .. } => TURN_BYTES_MAX,
        Query::Deliver { .. } => TURN_BYTES_MAX / 8,
        _ => 1024,
    }
}

impl Hub {
    pub(super) fn ask(&mut self, ticket: Ticket, query: Query) -> Routed {
        self.read(query, ReadFor::Ticket(ticket));
        Ok(Answer::Later)
    }

    /// Asks the reader, which answers one question after the other. Whoever asks much waits behind
    /// itself here too: only a few questions are with the reader at once, and lines take turns.
    pub(in crate::core::hub) fn read(&mut self, query: Query, why: ReadFor) {
        let (line, is_urgent) = match &why {
            ReadFor::Deliver(agent, _) => (LineId::named(agent), true),
            ReadFor::Ticket(_) | ReadFor::Obligations(_) | ReadFor::StoreStats { .. } => self.asker,
        };
        let cost = Cost { bytes: bytes_read_for(&query), members: 1, depth: 1 };
        self.waiting_reads.push(line, line.0, is_urgent, cost, (query, why));
        self.dispatch_reads();
    }

    fn dispatch_reads(&mut self) {
        while self.reads.len() < READS_AT_ONCE_MAX
            && let Some((query, why)) = self.waiting_reads.pop()
        {
            self.read_number = self.read_number.next();
            self.reads.insert(self.read_number, why);
            self.out.push(Effect::Read { number: self.read_number, query });
        }
    }

    /// Reads that were asked for and are not answered.
    pub(in crate::core::hub) fn reads_under_way(&self) -> usize {
        self.reads.len() + self.waiting_reads.len()
    }

    pub(super) fn ask_store_stats(&mut self, asked: &Asked, format: StatsFormat) -> Routed {
        if asked.actor.agent_id.is_some() {
            return Err(forbidden(
                "agents may not see the state of the hub; use an operator's token",
            ));
        }
        let (ticket, gate) = (asked.ticket, asked.request.gate.clone());
        self.read(Query::StoreStats, ReadFor::StoreStats { ticket, gate, format });
        Ok(Answer::Later)
    }

    pub(super) fn vacuum(&mut self, ticket: Ticket) -> Routed {
        // Whoever asks while one is under way waits for that one.
        if self.vacuums.is_empty() {
            self.out.push(Effect::Store(StoreCommand::Vacuum));
        }
        self.vacuums.push(ticket);
        Ok(Answer::Later)
    }

    pub(super) fn ask_obligations(&mut self, asked: &Asked) -> Routed {
        self.may_act(asked.actor, asked.first)?;
        let agent = asked.first.to_string();
        self.read(Query::Obligations { agent }, ReadFor::Obligations(asked.ticket));
        Ok(Answer::Later)
    }

    pub(super) fn ask_queued(&mut self, asked: &Asked) -> Routed {
        if acts_as(asked.actor).is_some() {
            return Err(forbidden("what waits for others is for people to see"));
        }
        self.ask(asked.ticket, Query::Queued { limit: QUEUED_SHOWN_MAX })
    }

    pub(super) fn ask_message(&mut self, asked: &Asked) -> Routed {
        let (id, viewer) = (MessageId(number(asked.first)?), asked.viewer());
        self.ask(asked.ticket, Query::Message { id, viewer })
    }

    pub(super) fn ask_thread(&mut self, asked: &Asked) -> Routed {
        let (id, viewer) = (MessageId(number(asked.first)?), asked.viewer());
        self.ask(asked.ticket, Query::Thread { id, viewer })
    }

    /// The store has answered; agents that found no room for a read are served meanwhile.
    pub(in crate::core::hub) fn on_read(&mut self, number: ReadNumber, answer: ReadAnswer) {
        match self.reads.remove(&number) {
            Some(ReadFor::Ticket(ticket)) => self.answer_read(ticket, answer),
            Some(ReadFor::Obligations(ticket)) => self.answer_obligations(ticket, answer),
            Some(ReadFor::StoreStats { ticket, gate, format }) => {
                self.answer_store_stats(ticket, gate, format, answer)
            }
            Some(ReadFor::Deliver(agent, ids)) => self.on_delivery_answer(&agent, &ids, answer),
            None => {}
        }
        self.dispatch_reads();
        while self.reads_under_way() < READS_IN_FLIGHT_MAX / 2
            && let Some(agent) = self.unserved.pop_first()
        {
            self.deliver(&agent, None);
        }
    }

    fn answer_read(&mut self, ticket: Ticket, answer: ReadAnswer) {
        match answer {
            ReadAnswer::Json(Value::Null) => {
                let text = "there is no such thing, or it is not yours to see";
                self.refuse(ticket, 404, "not_found", text);
            }
            ReadAnswer::Json(body) => self.respond(ticket, 200, body),
            ReadAnswer::Messages(messages) => {
                self.respond(ticket, 200, json!({"messages": messages}))
            }
            ReadAnswer::Failed(error) => self.on_read_failed(Some(ticket), error),
        }
    }

    fn answer_obligations(&mut self, ticket: Ticket, answer: ReadAnswer) {
        match answer {
            ReadAnswer::Json(mut body) => {
                body["server"] = self.server();
                self.respond(ticket, 200, body);
            }
            ReadAnswer::Messages(_) => self.refuse_unexpected(ticket),
            ReadAnswer::Failed(error) => self.on_read_failed(Some(ticket), error),
        }
    }

    fn answer_store_stats(
        &mut self,
        ticket: Ticket,
        gate: GateStats,
        format: StatsFormat,
        answer: ReadAnswer,
    ) {
        match answer {
            ReadAnswer::Json(store) if format == StatsFormat::Prometheus => {
                let text = self.metrics_text(&gate, &store);
                let body = Body::Text("text/plain; version=0.0.4; charset=utf-8", text);
                self.respond(ticket, 200, body);
            }
            ReadAnswer::Json(store) => {
                let info = self.info(&gate, &store);
                self.respond(ticket, 200, info);
            }
            ReadAnswer::Messages(_) => self.refuse_unexpected(ticket),
            ReadAnswer::Failed(error) => self.on_read_failed(Some(ticket), error),
        }
    }

    fn refuse_unexpected(&mut self, ticket: Ticket) {
        self.refuse(ticket, 500, "internal", "the store gave an unexpected answer");
    }

    /// Messages for an agent's connection, or why they could not be read.
    fn on_delivery_answer(&mut self, agent: &str, ids: &[MessageId], answer: ReadAnswer) {
        match answer {
            ReadAnswer::Messages(messages) => self.on_delivery_read(agent, ids, messages),
            ReadAnswer::Json(_) => self.on_delivery_unread(agent, "the store gave something else"),
            ReadAnswer::Failed(error) => {
                self.on_delivery_unread(agent, &error.text);
                self.on_read_failed(None, error);
            }
        }
    }

    fn on_delivery_unread(&mut self, agent: &str, why: &str) {
        self.log(LogLevel::Error, format!("cannot read messages for {agent}: {why}"));
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.loading = false;
        }
    }

    pub(in crate::core::hub) fn on_vacuumed(&mut self, outcome: Result<(u64, u64), String>) {
        for ticket in std::mem::take(&mut self.vacuums) {
            match &outcome {
                Ok((before, after)) => {
                    self.respond(ticket, 200, json!({"bytesBefore": before, "bytesAfter": after}))
                }
                Err(text) => self.refuse(ticket, 503, "store_unavailable", text),
            }
        }
    }
}
