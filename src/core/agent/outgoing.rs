//! What the agent's own tools say through their runner: the relay is away, or has not given the
//! agent a token yet. It goes into the outbox with a key, and a reply counts at once as this
//! agent's answer.

use crate::core::http::GateCommand;
use serde_json::{Value, json};

use super::Agent;
use super::effect::Effect;
use super::store::OutboxRow;
use crate::core::cost::depth_of;
use crate::core::ids::{MessageId, MessageRef, Ticket};
use crate::core::limits::{FIELD_BYTES_MAX, SENT_DEPTH_MAX};
use crate::core::time::Now;
use crate::wire::api::{NewMessage, error_body};
use crate::wire::control::LogLevel;
use crate::wire::{FRAME_BYTES_MAX, MESSAGE_BODY_BYTES_MAX};

/// Status and body of a refusal.
type Refusal = (u16, Value);

/// How the keys of a runner's own messages begin.
const OWN_KEYS: [&str; 3] = ["reply:", "task:", "not-started:"];
/// Characters of a reaction, as a hub keeps them.
const EMOJI_CHARS_MAX: usize = 16;

/// Not with the provider yet.
const WAITING: &str = "waiting";
/// With the provider.
const DELIVERED: &str = "delivered";
/// Its turn is over.
pub(super) const DONE: &str = "done";

/// A message that this agent was given.
pub(super) struct ReceivedMessage<'a> {
    pub at: MessageRef,
    from: &'a str,
    subject: Option<&'a str>,
    pub state: &'static str,
}

fn refuse(status: u16, code: &str, sentence: impl AsRef<str>) -> Refusal {
    (status, error_body(code, sentence.as_ref()))
}

impl Agent {
    /// All messages of that number that are in the records here. More than one: relays, or states
    /// of a relay's data, that gave the same number.
    pub(super) fn given(&self, id: MessageId) -> Vec<ReceivedMessage<'_>> {
        let done = self.inbox.done(id).map(|(at, from)| ReceivedMessage {
            at,
            from,
            subject: None,
            state: DONE,
        });
        let delivered = self
            .turn
            .places()
            .filter(|(at, _)| at.id == id)
            .map(|(at, message)| (at, message, DELIVERED));
        let waiting = self
            .inbox
            .waiting()
            .chain(self.inbox.urgent())
            .filter(|(at, _)| at.id == id)
            .map(|(at, message)| (at, message, WAITING));
        let mut all: Vec<ReceivedMessage<'_>> = done.collect();
        for (at, message, state) in delivered.chain(waiting) {
            // One that was opened again is under way once more.
            all.retain(|given| given.at != at);
            all.push(ReceivedMessage {
                at,
                from: &message.from,
                subject: message.subject.as_deref(),
                state,
            });
        }
        all.sort_by_key(|given| given.at);
        all
    }

    /// Which message of that number is meant: of the generation that is named, else the newest.
    pub(super) fn meant(&self, id: MessageId, told: Option<&str>) -> Option<MessageRef> {
        let named = |given: &ReceivedMessage<'_>| {
            told.is_none_or(|told| self.generations.is_called(given.at.generation, told))
        };
        self.given(id).iter().rev().find(|given| named(given)).map(|given| given.at)
    }

    pub(super) fn given_json(&self, id: MessageId) -> (u16, Value) {
        let show = |given: &ReceivedMessage<'_>| {
            let generation = self.generations.told_name(given.at.generation);
            json!({"id": id, "generation": generation, "from": given.from, "subject": given.subject, "state": given.state,
                   "current": self.generations.is_current(given.at.generation)})
        };
        let all: Vec<Value> = self.given(id).iter().map(show).collect();
        if all.is_empty() {
            refuse(404, "not_found", format!("this agent was given no message {id}, or long ago"))
        } else {
            (200, json!({"messages": all}))
        }
    }

    /// A runner's tool says nothing in another's name.
    fn must_be_own(&self, told: Option<&str>) -> Result<(), Refusal> {
        match told.filter(|told| !told.is_empty() && *told != self.config.agent_id) {
            None => Ok(()),
            Some(told) => Err(refuse(
                403,
                "forbidden",
                format!("this runner sends as {}, not as {told}", self.config.agent_id),
            )),
        }
    }

    /// The key of what is said: that of the body, else a fresh one.
    fn key_of(&mut self, told: Option<String>, what: &str) -> String {
        told.filter(|key| !key.is_empty())
            .unwrap_or_else(|| format!("{what}:{}:{}", self.config.agent_id, self.rng.uuid()))
    }

    /// The same checks as a hub's: what is taken here will be taken there.
    fn check_tool_message(&self, message: &NewMessage) -> Result<(), Refusal> {
        self.must_be_own(message.from.as_deref())?;
        // The keys of what the runner itself says would make its words look as if they had been
        // said.
        if message
            .idempotency_key
            .as_ref()
            .is_some_and(|key| OWN_KEYS.iter().any(|own| key.starts_with(own)))
        {
            return Err(refuse(
                422,
                "bad_key",
                "keys that begin like the runner's own are its own",
            ));
        }
        if message.to.trim().is_empty() {
            return Err(refuse(400, "no_target", "the message has no \"to\""));
        }
        if message.to.split_once(':').is_some_and(|(_, name)| name.trim().is_empty()) {
            return Err(refuse(
                422,
                "no_such_target",
                format!("the target {:?} names nobody", message.to),
            ));
        }
        if message.claimable {
            return Err(refuse(
                422,
                "not_here",
                "what is to be claimed has to be sent to the relay itself",
            ));
        }
        let texts = [
            Some(&message.to),
            message.subject.as_ref(),
            message.channel.as_ref(),
            message.idempotency_key.as_ref(),
        ];
        if texts
            .into_iter()
            .flatten()
            .chain(&message.generation)
            .any(|text| text.len() > FIELD_BYTES_MAX)
        {
            return Err(refuse(
                413,
                "field_too_large",
                format!("target, subject, channel and key may have {FIELD_BYTES_MAX} bytes each"),
            ));
        }
        let levels = message.payload.values().map(depth_of).max().unwrap_or(0);
        if levels > SENT_DEPTH_MAX {
            let text = format!("a payload may have {SENT_DEPTH_MAX} levels, this one has {levels}");
            return Err(refuse(422, "too_deep", text));
        }
        let size = message.body.len();
        if size > MESSAGE_BODY_BYTES_MAX {
            return Err(refuse(
                413,
                "body_too_large",
                format!(
                    "a message body may have {MESSAGE_BODY_BYTES_MAX} bytes, this one has {size}"
                ),
            ));
        }
        Ok(())
    }

    /// `POST /messages`
    pub(super) fn on_tool_message(
        &mut self,
        now: Now,
        ticket: Ticket,
        body: Value,
    ) -> Result<(), Refusal> {
        let mut message: NewMessage = serde_json::from_value(body)
            .map_err(|error| refuse(400, "bad_message", error.to_string()))?;
        self.check_tool_message(&message)?;
        let key = self.key_of(message.idempotency_key.take(), "tool");
        let answered = message.reply_to.filter(|id| !id.is_none());
        let at = answered.and_then(|id| self.meant(id, message.generation.as_deref()));
        if let Some(at) = at {
            message.generation = self.generations.told_name(at.generation).map(str::to_string);
        }
        message.from = Some(self.config.agent_id.clone());
        message.idempotency_key = Some(key.clone());
        message.occurred_at.get_or_insert(now.wall.0);
        let payload = serde_json::to_value(message).expect("plain data");
        let size = payload.to_string().len();
        if size > FRAME_BYTES_MAX - 16_384 {
            let most = FRAME_BYTES_MAX - 16_384;
            return Err(refuse(
                413,
                "message_too_large",
                format!("a message may have {most} bytes with its payload, this one has {size}"),
            ));
        }
        let generation = at.map_or(0, |at| at.generation);
        // What goes to somebody else leaves the one who asked without an answer.
        let told = payload["to"].as_str().unwrap_or_default().to_string();
        let asker = answered.and_then(|id| {
            self.given(id)
                .iter()
                .find(|given| Some(given.at) == at)
                .map(|given| given.from.to_string())
        });
        let answered =
            answered.filter(|_| asker.is_none_or(|asker| asker.is_empty() || asker == told));
        self.append(OutboxRow {
            kind: "message".into(),
            key: key.clone(),
            occurred_at: now.wall.0,
            payload,
            generation,
        });
        self.queued(ticket, key, answered.map(|id| (id, generation)));
        Ok(())
    }

    /// `POST /messages/{id}/reactions`
    pub(super) fn on_tool_reaction(
        &mut self,
        now: Now,
        ticket: Ticket,
        message: MessageId,
        body: &Value,
    ) -> Result<(), Refusal> {
        let text = |field: &str| body.get(field).and_then(Value::as_str);
        self.must_be_own(text("agentId"))?;
        let emoji: String =
            text("emoji").unwrap_or_default().chars().take(EMOJI_CHARS_MAX).collect();
        if emoji.is_empty() {
            return Err(refuse(400, "no_emoji", "a reaction needs an \"emoji\""));
        }
        let key =
            text("idempotencyKey").filter(|key| key.len() <= FIELD_BYTES_MAX).map(str::to_string);
        let key = self.key_of(key, "reaction");
        let told = text("generation").filter(|told| told.len() <= FIELD_BYTES_MAX);
        let at = self.meant(message, told);
        let generation = at.map_or(0, |at| at.generation);
        let mut payload =
            json!({"messageId": message, "agentId": self.config.agent_id, "emoji": emoji});
        let named = at.map_or(told, |at| self.generations.told_name(at.generation));
        if let Some(named) = named {
            payload["generation"] = json!(named);
        }
        self.append(OutboxRow {
            kind: "reaction".into(),
            key: key.clone(),
            occurred_at: now.wall.0,
            payload,
            generation,
        });
        self.queued(ticket, key, Some((message, generation)));
        Ok(())
    }

    /// Answered once it is durable.
    fn queued(&mut self, ticket: Ticket, key: String, answered: Option<(MessageId, u32)>) {
        self.log(
            LogLevel::Info,
            "runner",
            format!("taken from a tool of the session for the relay: {key}"),
        );
        if let Some(answered) = answered {
            self.note_answered(vec![answered]);
        }
        self.commits.defer(Effect::Gate(GateCommand::Respond {
            ticket,
            status: 202,
            body: json!({"queued": true, "key": key}).into(),
        }));
    }
}
