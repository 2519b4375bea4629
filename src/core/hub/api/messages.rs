//! Calls about messages: sending, fetching, claiming, reading and reacting.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::event::{After, HubOp, Query};
use super::super::generations::{Named, told_in};
use super::super::rights::{ADMIN, acts_as, allows, forbidden, scope};
use super::super::{Hub, Refusal, bounds};
use super::{Answer, Asked, Routed, number, object, query, text};
use crate::core::http::Request;
use crate::core::ids::{MessageId, Ticket};
use crate::core::limits::FIELD_BYTES_MAX;
use crate::wire::BATCH_ROWS_MAX;
use crate::wire::api::{NewMessage, TokenRecord, USER, error_body};

/// What a call does to one message, and in whose name.
struct MessageCall {
    id: MessageId,
    reader: String,
    body: Value,
}

impl Hub {
    pub(super) fn send_one(
        &mut self,
        ticket: Ticket,
        actor: &TokenRecord,
        request: &Request,
    ) -> Routed {
        let new: NewMessage = match read_at_once(&request.body) {
            Some(new) => new,
            None => serde_json::from_value(object(request)?)
                .map_err(|error| (400, "bad_message", error.to_string()))?,
        };
        let sent = self.prepare(actor, plain(new))?;
        self.commits.defer(After::AcceptedMessage { ticket, sent });
        Ok(Answer::Later)
    }

    pub(super) fn send_batch(
        &mut self,
        ticket: Ticket,
        actor: &TokenRecord,
        request: &Request,
    ) -> Routed {
        let list = batch(request)?;
        if list.len() > BATCH_ROWS_MAX {
            return Err((
                413,
                "batch_too_large",
                format!("a batch may hold {BATCH_ROWS_MAX} messages"),
            ));
        }
        let mut rows = Vec::with_capacity(list.len());
        for new in list {
            let sent = new.and_then(|new| self.prepare(actor, plain(new)));
            rows.push(
                sent.map_err(|(status, code, sentence)| (status, error_body(code, &sentence))),
            );
        }
        self.commits.defer(After::Batch { ticket, rows });
        Ok(Answer::Later)
    }

    pub(super) fn poll(
        &mut self,
        ticket: Ticket,
        actor: &TokenRecord,
        request: &Request,
    ) -> Routed {
        let own = acts_as(actor);
        let recipient = query(request, "for").unwrap_or_else(|| own.unwrap_or(USER).to_string());
        if own.is_some_and(|own| own != recipient) {
            return Err(forbidden("an agent's token reads its own messages only"));
        }
        let limit = query(request, "limit")
            .and_then(|text| text.parse().ok())
            .unwrap_or(100)
            .clamp(1, 1000);
        let since = query(request, "since")
            .and_then(|text| text.parse().ok())
            .map_or(MessageId(0), MessageId);
        // A reader of mail can leave out the mirror of conversations.
        let mirror = query(request, "mirror").as_deref() != Some("false");
        if matches!(query(request, "unread").as_deref(), Some("true" | "1")) {
            self.ask(ticket, Query::Unread { recipient, since, limit, mirror })
        } else {
            self.ask(ticket, Query::Inbox { recipient, since, limit, mirror })
        }
    }

    /// Which message a call is about and as whom it acts on it. People act as themselves, and with
    /// `for_others` as an agent; an agent only as itself.
    fn message_call(&self, asked: &Asked, for_others: &str) -> Result<MessageCall, Refusal> {
        let actor = asked.actor;
        let (id, body) = (MessageId(number(asked.first)?), object(asked.request)?);
        let told = body.get("agentId").and_then(Value::as_str).map(str::to_string);
        let own = acts_as(actor);
        if let (Some(own), Some(told)) = (own, &told)
            && own != told
        {
            return Err(forbidden(format!("this token acts as {own}, not as {told}")));
        }
        let reader = own.map(str::to_string).or(told).unwrap_or_else(|| USER.into());
        let in_own_name = own.is_some() || reader == USER;
        if !in_own_name {
            scope(actor, for_others)?;
            if !self.agents.contains_key(&reader) && !allows(actor, ADMIN) {
                return Err((404, "unknown_agent", format!("there is no agent {reader}")));
            }
        }
        self.check_generation(told_in(&body), Named::Message(id))?;
        if id > self.last_message {
            return Err((404, "not_found", format!("there is no message {id}")));
        }
        Ok(MessageCall { id, reader, body })
    }

    pub(super) fn claim_over_http(&mut self, asked: &Asked) -> Routed {
        let MessageCall { id, reader, .. } = self.message_call(asked, LOOK_AFTER)?;
        if reader != USER {
            self.must_be_offered(id, &reader)?;
        }
        let answer = self.claim(id, &reader)?;
        Ok(Answer::Durable(200, answer))
    }

    pub(super) fn release_claim_over_http(&mut self, asked: &Asked) -> Routed {
        let MessageCall { id, reader, .. } = self.message_call(asked, LOOK_AFTER)?;
        self.release_claim(id, &reader)?;
        Ok(Answer::Durable(204, Value::Null))
    }

    pub(super) fn mark_read(&mut self, asked: &Asked) -> Routed {
        let MessageCall { id, reader, body } = self.message_call(asked, LOOK_AFTER)?;
        let reason = body.get("reason").and_then(Value::as_str).map(str::to_string);
        bounds::text("reason", reason.as_deref().unwrap_or_default(), FIELD_BYTES_MAX)?;
        if reason.is_none() && self.is_task_of_others(id, &reader) {
            return Ok(Answer::Durable(204, Value::Null));
        }
        self.note_claim_read(id, &reader);
        if let Some(queue) = self.queues.get_mut(&reader) {
            // A message that was read is not delivered any more.
            queue.ids.remove(&id);
        }
        let (recipient, at) = (reader.clone(), self.now.wall.0);
        self.commits.write(HubOp::Read { message: id, recipient, at, reason });
        self.emit("message.read", &reader, json!({"messageId": id, "agentId": reader}));
        Ok(Answer::Durable(204, Value::Null))
    }

    pub(super) fn react(&mut self, asked: &Asked) -> Routed {
        // What an agent says is said as oneself, unless one may speak for everybody.
        let MessageCall { id, reader, body } = self.message_call(asked, ADMIN)?;
        let emoji = text(&body, "emoji").chars().take(16).collect::<String>();
        if emoji.is_empty() {
            return Err((400, "no_emoji", "a reaction needs an \"emoji\"".into()));
        }
        let sees_all = acts_as(asked.actor).is_none() && allows(asked.actor, "message:read");
        self.commits.write(HubOp::Reacted {
            message: id,
            agent: reader.clone(),
            emoji,
            at: self.now.wall.0,
            sees_all,
        });
        self.commits.defer(After::Reacted { ticket: asked.ticket, message: id, agent: reader });
        Ok(Answer::Later)
    }
}

/// What a body says, read in one go; `None`: it is not quite that, and why is said by whoever reads
/// it piece by piece.
fn read_at_once<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    // A list would be read as the fields in their order.
    let is_object = body.trim_ascii_start().first() == Some(&b'{');
    is_object.then(|| serde_json::from_slice(body).ok()).flatten()
}

/// The messages of a batch, each with why it is none.
fn batch(request: &Request) -> Result<Vec<Result<NewMessage, Refusal>>, Refusal> {
    #[derive(Deserialize)]
    struct Batch {
        messages: Vec<NewMessage>,
    }
    if let Some(Batch { messages }) = read_at_once(&request.body) {
        return Ok(messages.into_iter().map(Ok).collect());
    }
    let body = object(request)?;
    let Some(list) = body.get("messages").and_then(Value::as_array) else {
        return Err((400, "no_messages", "the body must hold \"messages\", a list".into()));
    };
    let read = |item: &Value| {
        serde_json::from_value::<NewMessage>(item.clone())
            .map_err(|error| (400, "bad_message", error.to_string()))
    };
    Ok(list.iter().map(read).collect())
}

/// The scope with which a person looks after an agent's mail.
const LOOK_AFTER: &str = "agent:self";

/// Only `POST /api/tasks` binds a claimable message to a task.
fn plain(mut new: NewMessage) -> NewMessage {
    if new.claimable {
        new.payload.remove("taskId");
    }
    new
}
