//! Sending: who may say what as whom, who gets it, and when the sender is told.

use serde::Serialize;
use serde_json::{Value, json};

use super::event::{AcceptedMessage, After, HubOp};
use super::generations::Named;
use super::rights::{ADMIN, acts_as, allows};
use super::written::{WrittenMessage, with_members};
use super::{Hub, Refusal, bounds};
use crate::core::cost::bytes_of_map;
use crate::core::http::Body;
use crate::core::ids::{MessageId, Ticket};
use crate::core::limits::QUEUED_FOR;
use crate::wire::api::{Message, MessageKind, NewMessage, OTHER_GENERATION, TokenRecord, USER};
use crate::wire::{FRAME_BYTES_MAX, MESSAGE_BODY_BYTES_MAX};

/// A message that matches nobody yet.
#[derive(Debug, Clone)]
pub(super) struct Unresolved {
    pub id: MessageId,
    pub target: String,
    pub claimable: bool,
    pub sender: String,
    pub until: i64,
    /// Agents that have got it already.
    pub matched: Vec<String>,
}

/// What a commit tells besides being durable: messages that were there before under their key,
/// those that were stored without what they answer, and reactions to what their sender cannot see.
#[derive(Clone, Copy, Default)]
pub(super) struct CommitReport<'a> {
    pub existing: &'a [(MessageId, Message)],
    pub unattached: &'a [Message],
    pub unseen: &'a [(MessageId, String)],
}

impl CommitReport<'_> {
    /// The message that was there before under the key of this one.
    fn first(&self, sent: &AcceptedMessage) -> Option<&Message> {
        self.existing.iter().find(|(id, _)| *id == sent.message.id).map(|(_, first)| first)
    }

    /// Takes over what was stored where that is without what it answers. True: it is.
    fn detach(&self, sent: &mut AcceptedMessage) -> bool {
        let stored = self.unattached.iter().find(|stored| stored.id == sent.message.id);
        if let Some(stored) = stored {
            sent.message = stored.clone().into();
        }
        stored.is_some()
    }
}

impl Hub {
    /// Checks a message and gives it an id; the caller commits it.
    pub(super) fn prepare(
        &mut self,
        actor: &TokenRecord,
        new: NewMessage,
    ) -> Result<AcceptedMessage, Refusal> {
        let from = self.sender(actor, new.from.as_deref())?;
        check_target_and_body(&new)?;
        self.check_answered(&new)?;
        let kind = match new.kind {
            MessageKind::Other(_) => MessageKind::Chat,
            known => known,
        };
        let recipients = self.resolve(&new.to, &from)?;
        self.check_waiting(actor, &from, new.claimable, recipients.is_empty())?;
        let bytes = new.body.len() + bytes_of_map(&new.payload);
        self.charge_stored(actor, bytes, recipients.len())?;
        let id = self.next_message_id();
        let resolved = match recipients.as_slice() {
            [one] if new.to.starts_with("policy:") => Some(one.clone()),
            _ => None,
        };
        let message = Message {
            id,
            from: from.clone(),
            to: new.to.clone(),
            kind,
            channel: new.channel,
            subject: new.subject,
            body: new.body,
            payload: new.payload,
            reply_to: new.reply_to,
            reply_expected: new.reply_expected,
            claimable: new.claimable,
            resolved_to_agent: resolved,
            created_at: self.now.wall.0,
            occurred_at: new.occurred_at,
            generation: Some(self.generations.newest().to_string()),
            ..Default::default()
        };
        let message = WrittenMessage::from(message);
        if let Err(refusal) = check_size(&message) {
            self.last_message = self.last_message.previous(); // nobody has seen it
            return Err(refusal);
        }
        let key =
            new.idempotency_key.filter(|key| key.is_empty() == crate::planted::is("forgotten-key"));
        // A person sees everything; all others, and whoever may not read, answer only what was sent
        // to them.
        let sees_all = acts_as(actor).is_none() && allows(actor, "message:read");
        self.note_sender(&from);
        self.commits.write(HubOp::MessagePut {
            message: message.clone(),
            recipients: recipients.clone(),
            key,
            sees_all,
        });
        if message.claimable {
            self.accounts.offers.add(&from);
        }
        if recipients.is_empty() {
            self.accounts.unresolved.add(&from);
            // In the same commit: a message that waits for a match must not be forgotten by a
            // crash.
            self.commits
                .write(HubOp::Unresolved { message: id, until: Some(self.unresolved_until()) });
        }
        self.meter.count_message(&message.kind);
        Ok(AcceptedMessage { message, recipients, at: self.now.tick })
    }

    /// An answer that names its generation must be to a message of that one.
    fn check_answered(&self, new: &NewMessage) -> Result<(), Refusal> {
        if let (Some(id), Some(told)) = (new.reply_to, new.generation.as_deref()) {
            // Its sender knows the number that it answers and can say it in words, which is more
            // than an answer to nothing.
            let lost = |(status, code, text): Refusal| {
                if status == 404 { (409, OTHER_GENERATION, text) } else { (status, code, text) }
            };
            self.check_generation(Some(told), Named::Message(id)).map_err(lost)?;
        }
        Ok(())
    }

    fn unresolved_until(&self) -> i64 {
        self.now.wall.0 + QUEUED_FOR.as_millis() as i64
    }

    /// The sender of a message: people speak as `user`, an agent only as itself, anything else
    /// needs `admin`.
    fn sender(&self, actor: &TokenRecord, wanted: Option<&str>) -> Result<String, Refusal> {
        let own = acts_as(actor).unwrap_or(USER);
        match wanted.filter(|from| !from.is_empty()) {
            None => Ok(own.to_string()),
            Some(from) if from == own || allows(actor, ADMIN) => Ok(from.to_string()),
            Some(from) => {
                Err((403, "forbidden", format!("this token sends as {own}, not as {from}")))
            }
        }
    }

    /// Whom a target means now; empty: nobody yet.
    fn resolve(&self, to: &str, from: &str) -> Result<Vec<String>, Refusal> {
        if to == USER {
            return Ok(vec![USER.into()]);
        }
        let group = to == "broadcast"
            || ["label:", "tag:", "cap:", "policy:"].iter().any(|prefix| to.starts_with(prefix));
        if !group && self.has_mailbox(to) {
            return Ok(vec![to.to_string()]);
        }
        if to.split_once(':').is_some_and(|(_, name)| name.trim().is_empty()) {
            return Err((422, "no_such_target", format!("the target {to:?} names nobody")));
        }
        if !group {
            let text =
                format!("there is no agent {to}; `agent-relay agents` lists those that are known");
            return Err((422, "no_such_target", text));
        }
        let mut found: Vec<String> =
            self.agents.keys().filter(|id| *id != from && self.is_meant(id, to)).cloned().collect();
        if to.starts_with("policy:") {
            // One agent; a connected one first.
            found.sort_by_key(|id| self.agents.get(id).is_none_or(|agent| agent.peer.is_none()));
            found.truncate(1);
        }
        Ok(found)
    }

    fn is_meant(&self, id: &str, to: &str) -> bool {
        let Some(agent) = self.agents.get(id) else {
            return false;
        };
        let registration = &agent.stored.registration;
        let broad = to == "broadcast" || to.starts_with("tag:") || to.starts_with("cap:");
        if broad && agent.is_narrow() {
            return false;
        }
        match to.split_once(':') {
            None => to == "broadcast" && registration.role == "provider",
            Some(("label", label)) => agent.label() == Some(label),
            Some(("tag", tag)) => registration.tags.iter().any(|t| t == tag),
            Some(("cap", cap)) => registration.capabilities.iter().any(|c| c == cap),
            Some(("policy", policy)) => agent.stored.policy.as_deref() == Some(policy),
            Some(_) => false,
        }
    }

    /// An agent registered: what waited for a match may be meant for it.
    pub(super) fn resolve_for(&mut self, id: &str) {
        let waiting = std::mem::take(&mut self.unresolved);
        for mut message in waiting {
            if message.claimable && !self.offers.contains_key(&message.id) {
                // Settled by somebody who matched earlier.
                self.accounts.unresolved.remove(&message.sender);
                self.commits.write(HubOp::Unresolved { message: message.id, until: None });
                continue;
            }
            let known = message.matched.iter().any(|matched| matched == id);
            let meant = !known && message.sender != id && self.is_meant(id, &message.target);
            if meant {
                message.matched.push(id.to_string());
                self.commits
                    .write(HubOp::RecipientAdd { message: message.id, recipient: id.to_string() });
                self.queues.entry(id.to_string()).or_default().ids.insert(message.id);
                if message.claimable
                    && let Some(offer) = self.offers.get_mut(&message.id)
                {
                    offer.recipients.push(id.to_string());
                    let task = offer.task;
                    if self.is_blocked_task(task) {
                        // It is offered when somebody opens it again.
                        self.hold_offer(message.id);
                    }
                }
            }
            // One agent is enough for a policy; others go on waiting for further matches.
            let settled = meant && message.target.starts_with("policy:");
            if settled {
                self.accounts.unresolved.remove(&message.sender);
                self.commits.write(HubOp::Unresolved { message: message.id, until: None })
            } else {
                self.unresolved.push(message)
            }
        }
        self.commits.defer(After::Offer { recipients: vec![id.to_string()] });
    }

    /// Puts a durable message into the queues of its recipients and onto the bus.
    pub(super) fn route(&mut self, sent: &AcceptedMessage) {
        self.look_for_loop(sent);
        let message = &sent.message;
        if message.claimable {
            let task = message.task_id();
            let offer = self.offers.entry(message.id).or_default();
            offer.task = task;
            offer.sender = message.from.clone();
            offer.recipients = sent.recipients.clone();
        }
        if sent.recipients.is_empty() {
            let until = self.unresolved_until();
            let waiting = Unresolved {
                id: message.id,
                target: message.to.clone(),
                claimable: message.claimable,
                sender: message.from.clone(),
                until,
                matched: Vec::new(),
            };
            self.unresolved.push(waiting);
        }
        for recipient in &sent.recipients {
            // A session message only shows something: agents never get it, and nobody has to
            // acknowledge it.
            let on_bus = recipient != USER && !message.is_session_mirror();
            if on_bus {
                self.queues.entry(recipient.clone()).or_default().ids.insert(message.id);
                self.deliver(recipient, Some(sent));
            }
        }
        self.publish_message(&sent.recipients, message);
    }

    /// Answers and routes what a commit made durable.
    pub(super) fn release(&mut self, after: Vec<After>, report: CommitReport<'_>) {
        for item in after {
            match item {
                After::Effect(effect) => self.out.push(effect),
                After::Event { event, subject, data } => self.publish(event, subject, data),
                After::Answer { ticket, status, body } => self.respond(ticket, status, body),
                After::AcceptedMessage { ticket, sent } => {
                    self.release_message(ticket, sent, report)
                }
                After::Batch { ticket, rows } => {
                    let results: Vec<String> =
                        rows.into_iter().map(|row| self.release_row(row, report)).collect();
                    let text = format!(r#"{{"results":[{}]}}"#, results.join(","));
                    self.respond(ticket, 200, Body::Text("application/json", text));
                }
                After::Route { mut sent } => {
                    if report.first(&sent).is_none() {
                        report.detach(&mut sent);
                        self.route(&sent);
                    }
                }
                After::Reacted { ticket, message, agent } => {
                    self.release_reaction(ticket, message, agent, report)
                }
                After::Registered { peer, agent, text } => {
                    self.on_registration_durable(peer, agent, text)
                }
                After::Offer { recipients } => {
                    for recipient in recipients {
                        self.deliver(&recipient, None);
                    }
                }
            }
        }
        // Routing may have made changes of its own, for example a message that waits for a match.
        if let Some(commit) = self.commits.commit(self.now.tick) {
            self.out.push(commit.into());
            return;
        }
        // What routing tells is durable already.
        let after = self.commits.take_after();
        if !after.is_empty() {
            self.release(after, CommitReport::default());
        }
    }

    /// Answers the sender of one message, and routes it unless it was there before.
    fn release_message(
        &mut self,
        ticket: Ticket,
        mut sent: AcceptedMessage,
        report: CommitReport<'_>,
    ) {
        if let Some(message) = report.first(&sent) {
            return self.respond(ticket, 200, json!(message));
        }
        let alone = report.detach(&mut sent);
        let mut more = Vec::new();
        if sent.message.to.contains(':') || sent.message.to == "broadcast" {
            // Labels and tags are what agents say of themselves: a sender sees how many took his
            // words.
            more.push(("recipients", json!(sent.recipients.len())));
        }
        if alone {
            more.push(("replyToUnknown", json!(true)));
        }
        let answer = with_members(sent.message.text(), &more);
        self.respond(ticket, 201, Body::Text("application/json", answer));
        self.route(&sent);
    }

    /// What one row of a batch is answered, after it was routed.
    fn release_row(
        &mut self,
        row: Result<AcceptedMessage, (u16, Value)>,
        report: CommitReport<'_>,
    ) -> String {
        let mut sent = match row {
            Ok(sent) => sent,
            Err((status, error)) => {
                let row = json!({"status": status, "error": error["error"], "code": error["code"]});
                return row.to_string();
            }
        };
        if let Some(message) = report.first(&sent) {
            return brief(200, message, false);
        }
        let alone = report.detach(&mut sent);
        self.route(&sent);
        brief(201, &sent.message, alone)
    }

    fn release_reaction(
        &mut self,
        ticket: Ticket,
        message: MessageId,
        agent: String,
        report: CommitReport<'_>,
    ) {
        if report.unseen.iter().any(|(id, who)| *id == message && *who == agent) {
            let text = "there is no such message, or it is not yours to see";
            self.refuse(ticket, 404, "not_found", text)
        } else {
            self.respond(ticket, 204, Value::Null);
            let data = json!({"messageId": message, "agentId": agent});
            self.publish("message.updated", agent, data);
        }
    }
}

/// A row of a batch's answer: the message without its body, which its sender has just sent.
fn brief(status: u16, message: &Message, alone: bool) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Brief<'a> {
        id: MessageId,
        from: &'a str,
        to: &'a str,
        kind: &'a MessageKind,
        created_at: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        reply_to_unknown: Option<bool>,
    }
    let Message { id, from, to, kind, created_at, .. } = message;
    let (id, created_at, reply_to_unknown) = (*id, *created_at, alone.then_some(true));
    let brief = Brief { id, from, to, kind, created_at, reply_to_unknown };
    let text = serde_json::to_string(&brief).expect("plain data");
    format!(r#"{{"status":{status},"message":{text}}}"#)
}

fn check_target_and_body(new: &NewMessage) -> Result<(), Refusal> {
    if new.to.trim().is_empty() {
        return Err((400, "no_target", "the message has no \"to\"".into()));
    }
    bounds::message(new)?;
    let bytes = new.body.len();
    if bytes > MESSAGE_BODY_BYTES_MAX {
        let text =
            format!("a message body may have {MESSAGE_BODY_BYTES_MAX} bytes, this one has {bytes}");
        return Err((413, "body_too_large", text));
    }
    Ok(())
}

/// A message has to fit into one frame with what surrounds it.
fn check_size(message: &WrittenMessage) -> Result<(), Refusal> {
    let most = FRAME_BYTES_MAX - 8192;
    let size = message.text().len();
    if size > most {
        let text = format!("a message may have {most} bytes with its payload, this one has {size}");
        return Err((413, "message_too_large", text));
    }
    Ok(())
}
