//! The HTTP API (protocol section 3): one match from method and path to what is done.

use serde_json::{Value, json};

use super::Hub;
use super::Refusal;
use super::event::{After, Effect, HubOp, Query, ReadAnswer, ReadFor, Request};
use super::tokens::allows;
use crate::wire::api::{NewMessage, TokenRecord, USER, decode, error_body};
use crate::wire::bus::Registration;
use crate::wire::{BATCH_ROWS_MAX, PROTOCOL, VERSION};

/// What a route gives: an answer now, an answer behind the commit, or one that comes later by itself.
enum Answer {
    Now(u16, Value),
    Durable(u16, Value),
    Later,
}

type Routed = Result<Answer, Refusal>;

/// A value of the query.
fn query(request: &Request, name: &str) -> Option<String> {
    let pairs = request.query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).find(|value| !value.is_empty())
}

fn number(text: &str) -> Result<u64, Refusal> {
    text.parse().ok().filter(|id| *id > 0 && *id < (1 << 53)).ok_or((404, "not_found", format!("{text:?} is no id")))
}

fn not_found() -> Refusal {
    (404, "not_found", "there is nothing at this path".into())
}

impl Hub {
    pub(super) fn respond(&mut self, ticket: u64, status: u16, body: Value) {
        self.out.push(Effect::Respond { ticket, status, body });
    }

    pub(super) fn refuse(&mut self, ticket: u64, status: u16, code: &str, sentence: &str) {
        self.respond(ticket, status, error_body(code, sentence));
    }

    pub(super) fn on_request(&mut self, ticket: u64, request: Request) {
        if self.stopping {
            return self.refuse(ticket, 503, "stopping", "the hub is stopping");
        }
        if let Some(cause) = self.store_trouble.as_ref().filter(|_| request.method != "GET") {
            let text = format!("the hub cannot store anything for now ({cause}); nothing of this request was accepted");
            return self.refuse(ticket, 503, "store_unavailable", &text);
        }
        match self.route_request(ticket, &request) {
            Ok(Answer::Now(status, body)) => self.respond(ticket, status, body),
            Ok(Answer::Durable(status, body)) => {
                self.after.push(After::Effect(Effect::Respond { ticket, status, body }));
            }
            Ok(Answer::Later) => {}
            Err((status, code, sentence)) => self.refuse(ticket, status, code, &sentence),
        }
    }

    fn route_request(&mut self, ticket: u64, request: &Request) -> Routed {
        let parts: Vec<String> = request.path.trim_matches('/').split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        if parts == ["api", "health"] {
            let uptime = self.started.map(|start| (self.now.tick - start).as_millis() as u64);
            return Ok(Answer::Now(200, json!({"ok": true, "version": VERSION, "protocol": PROTOCOL, "uptimeMs": uptime})));
        }
        let Some(actor) = self.token_of(&request.token) else {
            let text = match request.token.is_empty() {
                true => "this call needs a token: header X-Agent-Relay-Token, or \"token\" in config.json",
                false => "the token is unknown or has expired",
            };
            return Err((401, "unauthorized", text.into()));
        };
        let body = || -> Result<Value, Refusal> {
            if request.body.is_empty() {
                return Ok(json!({}));
            }
            match serde_json::from_slice::<Value>(&request.body) {
                Ok(body @ Value::Object(_)) => Ok(body),
                Ok(_) => Err((400, "not_an_object", "the body must be a JSON object".into())),
                Err(error) => Err((400, "bad_json", format!("the body is no JSON: {error}"))),
            }
        };
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["api", "agents"]) => Ok(Answer::Now(200, self.list_agents(request))),
            ("POST", ["api", "agents"]) => self.register_over_http(&actor, &body()?),
            (method, ["api", "agents", id]) => self.on_agent(&actor, method, id),
            (method, ["api", "agents", id, part]) => self.on_agent_part(ticket, &actor, method, id, part, body),
            ("POST", ["api", "messages"]) => self.send_one(ticket, &actor, body()?),
            ("POST", ["api", "messages", "batch"]) => self.send_batch(ticket, &actor, &body()?),
            ("GET", ["api", "messages"]) => self.poll(ticket, &actor, request),
            ("GET", ["api", "messages", "queued"]) => {
                scope(&actor, "command:issue")?;
                self.ask(ticket, Query::Queued { limit: 1000 })
            }
            ("GET", ["api", "messages", id]) => {
                scope(&actor, "message:read")?;
                self.ask(ticket, Query::Message { id: number(id)?, viewer: actor.agent_id })
            }
            ("GET", ["api", "messages", id, "thread"]) => {
                scope(&actor, "message:read")?;
                self.ask(ticket, Query::Thread { id: number(id)?, viewer: actor.agent_id })
            }
            (method, ["api", "messages", id, rest @ ..]) => self.on_message_part(&actor, method, number(id)?, rest, &body()?),
            ("POST", ["api", "tasks"]) => {
                let (task, sent) = self.make_task(&actor, &body()?)?;
                self.after.push(After::Route { sent });
                Ok(Answer::Durable(201, json!(task)))
            }
            ("GET", ["api", "tasks"]) => self.ask(ticket, Query::Tasks { status: query(request, "status"), viewer: actor.agent_id }),
            ("GET", ["api", "tasks", id]) => self.ask(ticket, Query::Task { id: number(id)?, viewer: actor.agent_id }),
            ("PATCH", ["api", "tasks", id]) => {
                scope(&actor, "task:update")?;
                self.patch_task(&actor, number(id)?, &body()?)?;
                Ok(Answer::Durable(200, json!({"ok": true, "id": number(id)?})))
            }
            ("POST", ["api", "commands"]) => {
                scope(&actor, "command:issue")?;
                let body = body()?;
                let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
                let params = body.get("params").and_then(Value::as_object).cloned().unwrap_or_default();
                let issuer = actor.agent_id.clone().unwrap_or_else(|| USER.into());
                let command = self.issue_command(text("type"), text("target"), params, &issuer)?;
                Ok(Answer::Durable(201, json!(command)))
            }
            ("GET", ["api", "commands"]) => self.ask(
                ticket,
                Query::Commands { target: query(request, "target"), status: query(request, "status"), own: self.own_targets(&actor) },
            ),
            ("GET", ["api", "commands", id]) => self.ask(ticket, Query::Command { id: id.to_string(), own: self.own_targets(&actor) }),
            ("PATCH", ["api", "commands", id]) => {
                let body = body()?;
                let status = body.get("status").and_then(Value::as_str).unwrap_or_default().to_string();
                let error = body.get("error").and_then(Value::as_str).map(str::to_string);
                let result = body.get("result").filter(|r| !r.is_null()).cloned();
                let command = self.update_command(&actor, None, id, &status, result, error)?;
                Ok(Answer::Durable(200, json!(command)))
            }
            ("POST", ["api", "tokens"]) => Ok(Answer::Durable(201, self.make_token(&actor, &body()?)?)),
            ("POST", ["api", "tokens", "renew"]) => Ok(Answer::Durable(200, self.renew_token(&request.token)?)),
            ("DELETE", ["api", "tokens", jti]) => {
                self.delete_token(&actor, jti)?;
                Ok(Answer::Durable(204, Value::Null))
            }
            ("POST", ["api", "insights", "observations"]) => Err((409, "insights_off", "this hub keeps no insights".into())),
            (_, ["api", "health" | "agents" | "messages" | "tasks" | "commands" | "tokens", ..]) => {
                Err((405, "method_not_allowed", format!("{} is not possible at {}", request.method, request.path)))
            }
            _ => Err(not_found()),
        }
    }

    /// What a runtime token may see of commands: those for its own agent and runner.
    fn own_targets(&self, actor: &TokenRecord) -> Option<(String, String)> {
        let agent = actor.agent_id.clone()?;
        let runner = self.agents.get(&agent).map(|known| known.stored.registration.component_id.clone());
        Some((agent, runner.unwrap_or_default()))
    }

    fn ask(&mut self, ticket: u64, query: Query) -> Routed {
        self.read(query, ReadFor::Ticket(ticket));
        Ok(Answer::Later)
    }

    pub(super) fn read(&mut self, query: Query, why: ReadFor) {
        self.read_number += 1;
        self.reads.insert(self.read_number, why);
        self.out.push(Effect::Read { number: self.read_number, query });
    }

    pub(super) fn on_read(&mut self, number: u64, answer: ReadAnswer) {
        match (self.reads.remove(&number), answer) {
            (Some(ReadFor::Ticket(ticket)), ReadAnswer::Json(Value::Null)) => {
                self.refuse(ticket, 404, "not_found", "there is no such thing, or it is not yours to see");
            }
            (Some(ReadFor::Ticket(ticket)), ReadAnswer::Json(body)) => self.respond(ticket, 200, body),
            (Some(ReadFor::Ticket(ticket)), ReadAnswer::Messages(messages)) => self.respond(ticket, 200, json!({"messages": messages})),
            (Some(ReadFor::Ticket(ticket)), ReadAnswer::Failed(text)) => self.refuse(ticket, 500, "internal", &text),
            (Some(ReadFor::Deliver(agent)), ReadAnswer::Messages(messages)) => self.on_delivery_read(&agent, messages),
            (Some(ReadFor::Deliver(agent)), other) => {
                self.log("error", format!("cannot read messages for {agent}: {other:?}"));
                if let Some(agent) = self.agents.get_mut(&agent) {
                    agent.loading = false;
                }
            }
            (None, _) => {}
        }
    }

    fn list_agents(&self, request: &Request) -> Value {
        let wanted: Vec<(&str, String)> =
            ["tag", "cap", "label", "status"].into_iter().filter_map(|name| query(request, name).map(|value| (name, value))).collect();
        let fits = |card: &Value| {
            wanted.iter().all(|(name, value)| match *name {
                "tag" => card["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == value)),
                "cap" => card["capabilities"].as_array().is_some_and(|caps| caps.iter().any(|c| c == value)),
                other => card[other] == json!(value),
            })
        };
        let cards: Vec<Value> = self.agents.keys().map(|id| self.card(id)).filter(fits).collect();
        json!({"agents": cards})
    }

    fn register_over_http(&mut self, actor: &TokenRecord, body: &Value) -> Routed {
        let registration: Registration =
            serde_json::from_value(body.clone()).map_err(|error| (400, "bad_registration", error.to_string()))?;
        let id = body.get("id").and_then(Value::as_str).map(str::to_string).or_else(|| registration.agent_id.clone());
        let Some(id) = id else {
            return Err((400, "no_id", "a registration needs an \"id\"".into()));
        };
        own(actor, &id)?;
        self.register(&id, registration, None)?;
        Ok(Answer::Durable(200, self.card(&id)))
    }

    fn on_agent(&mut self, actor: &TokenRecord, method: &str, id: &str) -> Routed {
        match method {
            "GET" if self.agents.contains_key(id) => Ok(Answer::Now(200, self.card(id))),
            "GET" => Err((404, "unknown_agent", format!("there is no agent {id}"))),
            "DELETE" => {
                own(actor, id)?;
                match self.delete_agent(id) {
                    true => Ok(Answer::Durable(204, Value::Null)),
                    false => Err((404, "unknown_agent", format!("there is no agent {id}"))),
                }
            }
            _ => Err((405, "method_not_allowed", "an agent knows GET and DELETE".into())),
        }
    }

    fn on_agent_part(
        &mut self,
        ticket: u64,
        actor: &TokenRecord,
        method: &str,
        id: &str,
        part: &str,
        body: impl Fn() -> Result<Value, Refusal>,
    ) -> Routed {
        own(actor, id)?;
        if (method, part) == ("GET", "reply-obligations") {
            return self.ask(ticket, Query::Obligations { agent: id.to_string() });
        }
        let Some(agent) = self.agents.get(id) else {
            return Err((404, "unknown_agent", format!("there is no agent {id}")));
        };
        let instance = agent.stored.registration.instance_id.clone();
        let body = body()?;
        let text = |field: &str| body.get(field).and_then(Value::as_str);
        if part != "label" && text("instanceId").is_some_and(|told| told != instance) {
            return Err((409, "superseded", "another instance registered this agent".into()));
        }
        match (method, part) {
            ("PUT", "status") => {
                let status = text("status").unwrap_or("idle").to_string();
                self.set_status(id, &status, None, None);
            }
            ("PUT", "ready") => {
                let ready = body.get("ready").and_then(Value::as_bool).unwrap_or(true);
                if let Some(agent) = self.agents.get_mut(id) {
                    agent.ready = ready;
                }
                self.seen(id);
            }
            ("POST", "heartbeat") => {
                self.seen(id);
                if let (Some(agent), Some(meta)) = (self.agents.get_mut(id), body.get("meta").and_then(Value::as_object)) {
                    agent.meta.extend(meta.clone());
                }
                return Ok(Answer::Now(200, json!({"ok": true, "commands": self.pending_for(id)})));
            }
            ("PUT", "label") => {
                let label = text("label").map(str::to_string);
                if let Some(agent) = self.agents.get_mut(id) {
                    agent.stored.label = label;
                    let stored = agent.stored.clone();
                    self.ops.push(HubOp::AgentPut(stored));
                }
                self.resolve_for(id);
                return Ok(Answer::Durable(200, self.card(id)));
            }
            _ => return Err(not_found()),
        }
        Ok(Answer::Now(200, self.card(id)))
    }

    fn send_one(&mut self, ticket: u64, actor: &TokenRecord, body: Value) -> Routed {
        let new: NewMessage = serde_json::from_value(body).map_err(|error| (400, "bad_message", error.to_string()))?;
        let sent = self.prepare(actor, plain(new))?;
        self.after.push(After::Sent { ticket, sent });
        Ok(Answer::Later)
    }

    fn send_batch(&mut self, ticket: u64, actor: &TokenRecord, body: &Value) -> Routed {
        let Some(list) = body.get("messages").and_then(Value::as_array) else {
            return Err((400, "no_messages", "the body must hold \"messages\", a list".into()));
        };
        if list.len() > BATCH_ROWS_MAX {
            return Err((413, "batch_too_large", format!("a batch may hold {BATCH_ROWS_MAX} messages")));
        }
        let mut rows = Vec::new();
        for item in list {
            let new = serde_json::from_value::<NewMessage>(item.clone()).map_err(|error| (400, "bad_message", error.to_string()));
            let sent = new.and_then(|new| self.prepare(actor, plain(new)));
            rows.push(sent.map_err(|(status, code, sentence)| (status, error_body(code, &sentence))));
        }
        self.after.push(After::Batch { ticket, rows });
        Ok(Answer::Later)
    }

    fn poll(&mut self, ticket: u64, actor: &TokenRecord, request: &Request) -> Routed {
        scope(actor, "message:read")?;
        let own_name = actor.agent_id.clone().unwrap_or_else(|| USER.into());
        let recipient = query(request, "for").unwrap_or_else(|| own_name.clone());
        if actor.agent_id.is_some() && recipient != own_name {
            return Err((403, "forbidden", "an agent's token reads its own messages only".into()));
        }
        let limit = query(request, "limit").and_then(|text| text.parse().ok()).unwrap_or(100).clamp(1, 1000);
        let since = query(request, "since").and_then(|text| text.parse().ok()).unwrap_or(0);
        // Ours: a reader of mail need not wade through the mirror of sessions.
        let mirror = query(request, "mirror").as_deref() != Some("false");
        match query(request, "unread").as_deref() {
            Some("true" | "1") => self.ask(ticket, Query::Unread { recipient, since, limit, mirror }),
            _ => self.ask(ticket, Query::Inbox { recipient, since, limit, mirror }),
        }
    }

    fn on_message_part(&mut self, actor: &TokenRecord, method: &str, id: u64, rest: &[&str], body: &Value) -> Routed {
        let told = body.get("agentId").and_then(Value::as_str).map(str::to_string);
        let reader = actor.agent_id.clone().or(told.clone()).unwrap_or_else(|| USER.into());
        if let (Some(own), Some(told)) = (&actor.agent_id, &told)
            && own != told
        {
            return Err((403, "forbidden", format!("this token acts as {own}, not as {told}")));
        }
        if id > self.last_message {
            return Err((404, "not_found", format!("there is no message {id}")));
        }
        match (method, rest) {
            ("POST", ["claim"] | ["claim", "renew"]) => {
                scope(actor, "message:claim")?;
                if let Some(own) = &actor.agent_id {
                    self.must_be_offered(id, own)?;
                }
                let answer = self.claim(id, &reader)?;
                Ok(Answer::Durable(200, answer))
            }
            ("DELETE", ["claim"]) => {
                scope(actor, "message:claim")?;
                self.release_claim(id, &reader)?;
                Ok(Answer::Durable(204, Value::Null))
            }
            ("POST", ["read"]) => {
                scope(actor, "message:read")?;
                let reason = body.get("reason").and_then(Value::as_str).map(str::to_string);
                self.note_claim_read(id, &reader);
                if let Some(queue) = self.queues.get_mut(&reader) {
                    // What is read need not be delivered any more.
                    queue.ids.remove(&id);
                }
                self.ops.push(HubOp::Read { message: id, recipient: reader.clone(), at: self.now.wall.0, reason });
                self.emit("message.read", &reader, json!({"messageId": id, "agentId": reader}));
                Ok(Answer::Durable(204, Value::Null))
            }
            ("POST", ["reactions"]) => {
                scope(actor, "message:send")?;
                let emoji = body.get("emoji").and_then(Value::as_str).unwrap_or_default().chars().take(16).collect::<String>();
                if emoji.is_empty() {
                    return Err((400, "no_emoji", "a reaction needs an \"emoji\"".into()));
                }
                self.ops.push(HubOp::Reacted { message: id, agent: reader, emoji, at: self.now.wall.0 });
                Ok(Answer::Durable(204, Value::Null))
            }
            _ => Err(not_found()),
        }
    }
}

/// Only `POST /api/tasks` binds a claimable message to a task.
fn plain(mut new: NewMessage) -> NewMessage {
    if new.claimable {
        new.payload.remove("taskId");
    }
    new
}

fn scope(actor: &TokenRecord, scope: &str) -> Result<(), Refusal> {
    match allows(actor, scope) {
        true => Ok(()),
        false => Err((403, "forbidden", format!("the token lacks the scope {scope}"))),
    }
}

/// A runtime token acts only as its own agent.
fn own(actor: &TokenRecord, id: &str) -> Result<(), Refusal> {
    match &actor.agent_id {
        Some(own) if own != id => Err((403, "forbidden", format!("this token acts as {own}, not as {id}"))),
        _ => scope(actor, "agent:self"),
    }
}
