//! The HTTP API: the table of routes says what is asked, one match says what is done.

use crate::core::http::GateCommand;
use crate::core::hub::event::StoreCommand;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Hub;
use super::Refusal;
use super::agents::is_label;
use super::event::{After, CommandParties, Effect, HubOp, Query, ReadAnswer, ReadFor};
use super::generations::{Named, told_in};
use super::rights::{ADMIN, COMMAND_ISSUE, acts_as, allows, everything, forbidden, line_of, scope};
use super::routes::{Access, Call, Found, Route, find, spec};
use crate::core::http::{Body, Request};
use crate::core::ids::{MessageId, ReadNumber, TaskId, Ticket};
use crate::core::limits::READS_IN_FLIGHT_MAX;
use crate::wire::api::{NewMessage, TokenRecord, USER, decode, error_body};
use crate::wire::bus::Registration;
use crate::wire::control::LogLevel;
use crate::wire::{BATCH_ROWS_MAX, PROTOCOL, VERSION};

/// What a route gives: an answer now, an answer behind the commit, or one that comes later by
/// itself.
enum Answer {
    Now(u16, Value),
    Durable(u16, Value),
    Later,
}

type Routed = Result<Answer, Refusal>;

/// A value of the query.
fn query(request: &Request, name: &str) -> Option<String> {
    let pairs = request.query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| decode(value))
        .find(|value| !value.is_empty())
}

fn number(text: &str) -> Result<u64, Refusal> {
    text.parse().ok().filter(|id| *id > 0 && *id < (1 << 53)).ok_or((
        404,
        "not_found",
        format!("{text:?} is not an id"),
    ))
}

/// The body of a request, an object.
fn object(request: &Request) -> Result<Value, Refusal> {
    if request.body.is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_slice::<Value>(&request.body) {
        Ok(body @ Value::Object(_)) => Ok(body),
        Ok(_) => Err((400, "not_an_object", "the body must be a JSON object".into())),
        Err(error) => Err((400, "bad_json", format!("the body is not valid JSON: {error}"))),
    }
}

fn text<'a>(body: &'a Value, field: &str) -> &'a str {
    body.get(field).and_then(Value::as_str).unwrap_or_default()
}

impl Hub {
    pub(super) fn respond(&mut self, ticket: Ticket, status: u16, body: impl Into<Body>) {
        self.after_answer(ticket, status);
        self.out.push(Effect::Gate(GateCommand::Respond { ticket, status, body: body.into() }));
    }

    fn after_answer(&mut self, ticket: Ticket, status: u16) {
        if let Some(since) = self.tickets.remove(&ticket) {
            self.meter.request_time.observe(self.now.tick - since);
        }
        self.meter.answers[usize::from(status / 100).min(5)] += 1;
    }

    pub(super) fn refuse(&mut self, ticket: Ticket, status: u16, code: &str, sentence: &str) {
        self.respond(ticket, status, error_body(code, sentence));
    }

    pub(super) fn on_request(&mut self, ticket: Ticket, request: Request) {
        self.tickets.insert(ticket, self.now.tick);
        if self.stopping {
            return self.refuse(ticket, 503, "stopping", "the hub is stopping");
        }
        if let Some(trouble) = self.commits.trouble().filter(|_| request.method != "GET") {
            let cause = &trouble.cause;
            let text = format!(
                "the hub cannot store anything for now ({cause}); nothing of this request was accepted"
            );
            return self.refuse(ticket, 503, "store_unavailable", &text);
        }
        match self.route_request(ticket, &request) {
            Ok(Answer::Now(status, body)) => self.respond(ticket, status, body),
            Ok(Answer::Durable(status, body)) => {
                self.commits.defer(After::Answer { ticket, status, body })
            }
            Ok(Answer::Later) => {}
            Err((status, code, sentence)) => self.refuse(ticket, status, code, &sentence),
        }
    }

    fn route_request(&mut self, ticket: Ticket, request: &Request) -> Routed {
        let parts: Vec<String> = request.path.trim_matches('/').split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let found = find(&request.method, &parts);
        if let Found::Route(Route { call: Call::Health, .. }, _) = &found {
            return Ok(Answer::Now(200, self.health()));
        }
        if let Found::Route(Route { access: Access::Open, .. }, _) = &found {
            self.limit(None)?;
            return Ok(self.describe(ticket));
        }
        let mut actor = self.token_of(&request.token);
        if crate::planted::is("unchecked-rights")
            && let Found::Route(route, _) = &found
            && crate::planted::is_unchecked(&format!("{} {}", route.method, route.path))
        {
            actor = Some(everything());
        }
        self.limit(actor.as_deref())?;
        let Some(actor) = actor else {
            let text = if request.token.is_empty() {
                "this call needs a token: header X-Agent-Relay-Token, or \"token\" in config.json"
            } else {
                "the token is unknown or has expired"
            };
            return Err((401, "unauthorized", text.into()));
        };
        match found {
            Found::Route(route, parameters) => {
                if let Access::Scope(wanted) = route.access {
                    scope(&actor, wanted)?;
                }
                self.carry_out(ticket, route.call, &actor, request, &parameters)
            }
            Found::Methods(methods) => {
                let text = format!(
                    "{} is not possible at {}; use {}",
                    request.method,
                    request.path,
                    methods.join(" or ")
                );
                Err((405, "method_not_allowed", text))
            }
            Found::Nothing => Err((
                404,
                "not_found",
                "there is nothing at this path; /api/spec lists what there is".into(),
            )),
        }
    }

    fn limit(&mut self, token: Option<&TokenRecord>) -> Result<(), Refusal> {
        if self.rates.take(self.now.tick, token) {
            return Ok(());
        }
        self.meter.limited += 1;
        Err((429, "rate_limited", "too many requests; try again in a second".into()))
    }

    /// The description, made once and told as text.
    fn describe(&mut self, ticket: Ticket) -> Answer {
        let text = self.spec.get_or_insert_with(|| spec().to_string()).clone();
        self.respond(ticket, 200, Body::Text("application/json", text));
        Answer::Later
    }

    /// What the relay tells of itself at a registration.
    pub(super) fn server(&self) -> Value {
        json!({
            "name": "agent-relay hub", "id": self.config.id, "version": VERSION, "protocol": PROTOCOL,
            "generation": self.generations.newest(), "lastMessageId": self.last_message,
        })
    }

    fn health(&self) -> Value {
        let uptime = self.started.map(|start| (self.now.tick - start).as_millis() as u64);
        json!({"ok": true, "version": VERSION, "protocol": PROTOCOL, "uptimeMs": uptime, "serverTime": self.now.wall.0})
    }

    fn carry_out(
        &mut self,
        ticket: Ticket,
        call: Call,
        actor: &Arc<TokenRecord>,
        request: &Request,
        parameters: &[&str],
    ) -> Routed {
        let first = parameters.first().copied().unwrap_or_default();
        let viewer = acts_as(actor).map(str::to_string);
        match call {
            Call::Health => Ok(Answer::Now(200, self.health())),
            Call::Spec => Ok(self.describe(ticket)),
            Call::Metrics | Call::HubInfo if actor.agent_id.is_some() => {
                Err(forbidden("agents may not see the state of the hub; use an operator's token"))
            }
            Call::Metrics | Call::HubInfo => {
                self.read(
                    Query::StoreStats,
                    ReadFor::StoreStats {
                        ticket,
                        gate: request.gate,
                        prometheus: call == Call::Metrics,
                    },
                );
                Ok(Answer::Later)
            }
            Call::HubVacuum => {
                // Whoever asks while one is under way waits for that one.
                if self.vacuums.is_empty() {
                    self.out.push(Effect::Store(StoreCommand::Vacuum));
                }
                self.vacuums.push(ticket);
                Ok(Answer::Later)
            }
            Call::Register => self.register_over_http(actor, &object(request)?),
            Call::ListAgents => Ok(Answer::Now(200, self.list_agents(actor, request))),
            Call::GetAgent | Call::DeleteAgent => self.on_agent(actor, call, first),
            Call::Obligations => {
                self.may_act(actor, first)?;
                self.read(
                    Query::Obligations { agent: first.to_string() },
                    ReadFor::Obligations(ticket),
                );
                Ok(Answer::Later)
            }
            Call::PutStatus | Call::PutReady | Call::Heartbeat | Call::PutLabel => {
                self.on_agent_part(actor, call, first, &object(request)?)
            }
            Call::Send => self.send_one(ticket, actor, object(request)?),
            Call::SendBatch => self.send_batch(ticket, actor, &object(request)?),
            Call::Poll => self.poll(ticket, actor, request),
            Call::Queued if viewer.is_some() => {
                Err(forbidden("what waits for others is for people to see"))
            }
            Call::Queued => self.ask(ticket, Query::Queued { limit: 1000 }),
            Call::GetMessage => {
                self.ask(ticket, Query::Message { id: MessageId(number(first)?), viewer })
            }
            Call::Thread => {
                self.ask(ticket, Query::Thread { id: MessageId(number(first)?), viewer })
            }
            Call::Claim | Call::RenewClaim | Call::ReleaseClaim | Call::MarkRead | Call::React => {
                self.on_message_part(
                    ticket,
                    actor,
                    call,
                    MessageId(number(first)?),
                    &object(request)?,
                )
            }
            Call::MakeTask => {
                let (task, sent) = self.make_task(actor, &object(request)?)?;
                self.commits.defer(After::Route { sent });
                Ok(Answer::Durable(201, json!(task)))
            }
            Call::ListTasks => {
                self.ask(ticket, Query::Tasks { status: query(request, "status"), viewer })
            }
            Call::GetTask => self.ask(ticket, Query::Task { id: TaskId(number(first)?), viewer }),
            Call::PatchTask => {
                self.patch_task(actor, TaskId(number(first)?), &object(request)?)?;
                Ok(Answer::Durable(200, json!({"ok": true, "id": number(first)?})))
            }
            Call::IssueCommand => {
                let body = object(request)?;
                let params =
                    body.get("params").and_then(Value::as_object).cloned().unwrap_or_default();
                let command =
                    self.issue_command(actor, text(&body, "type"), text(&body, "target"), params)?;
                Ok(Answer::Durable(201, json!(command)))
            }
            Call::ListCommands => {
                let own = self.own_commands(actor)?;
                let (target, status) = (query(request, "target"), query(request, "status"));
                self.ask(ticket, Query::Commands { target, status, own })
            }
            Call::GetCommand => {
                let own = self.own_commands(actor)?;
                self.ask(ticket, Query::Command { id: first.to_string(), own })
            }
            Call::PatchCommand => {
                let body = object(request)?;
                let error = body.get("error").and_then(Value::as_str).map(str::to_string);
                let result = body.get("result").filter(|r| !r.is_null()).cloned();
                let command = self.update_command(
                    actor,
                    None,
                    first,
                    text(&body, "status").into(),
                    result,
                    error,
                )?;
                Ok(Answer::Durable(200, json!(command)))
            }
            Call::MakeToken => Ok(Answer::Durable(201, self.make_token(actor, &object(request)?)?)),
            Call::ListTokens => Ok(Answer::Now(200, self.list_tokens(actor)?)),
            Call::OwnToken => {
                let mut answer = json!(**actor);
                // Under `record` as the protocol says, and bare for older tools.
                answer["record"] = answer.clone();
                Ok(Answer::Now(200, answer))
            }
            Call::RenewToken => Ok(Answer::Durable(200, self.renew_token(&request.token)?)),
            Call::DeleteToken => {
                self.delete_token(actor, first)?;
                Ok(Answer::Durable(204, Value::Null))
            }
            Call::Observe => Err((409, "insights_off", "this hub keeps no insights".into())),
            Call::Events => {
                // A browser's reader names the last event that it has seen.
                let since = Some(&request.last_event_id)
                    .filter(|id| !id.is_empty())
                    .cloned()
                    .or_else(|| query(request, "since"));
                let since = since.and_then(|text| text.trim_start_matches('e').parse().ok());
                self.tickets.remove(&ticket);
                self.open_stream(ticket.peer(), actor.clone(), since);
                Ok(Answer::Later)
            }
        }
    }

    /// An agent sees its own; and whoever asks must have to do with commands.
    fn own_commands(&self, actor: &TokenRecord) -> Result<Option<CommandParties>, Refusal> {
        if !allows(actor, COMMAND_ISSUE) {
            scope(actor, "command:update")?;
        }
        Ok(self.own_targets(actor))
    }

    /// What others than people may see of commands: those for their own agent and component, and
    /// those that they have issued.
    fn own_targets(&self, actor: &TokenRecord) -> Option<CommandParties> {
        let issuer = acts_as(actor)?.to_string();
        let registered = || {
            self.agents
                .iter()
                .find(|(_, agent)| agent.by == line_of(actor))
                .map(|(id, _)| id.clone())
        };
        let agent = actor.agent_id.clone().or_else(registered).unwrap_or_default();
        let component = self
            .agents
            .get(&agent)
            .map(|known| known.stored.registration.component_id.clone())
            .unwrap_or_default();
        Some(CommandParties { agent, component, issuer })
    }

    fn ask(&mut self, ticket: Ticket, query: Query) -> Routed {
        self.read(query, ReadFor::Ticket(ticket));
        Ok(Answer::Later)
    }

    pub(super) fn read(&mut self, query: Query, why: ReadFor) {
        self.read_number = self.read_number.next();
        self.reads.insert(self.read_number, why);
        self.out.push(Effect::Read { number: self.read_number, query });
    }

    pub(super) fn on_read(&mut self, number: ReadNumber, answer: ReadAnswer) {
        match (self.reads.remove(&number), answer) {
            (Some(ReadFor::Ticket(ticket)), ReadAnswer::Json(Value::Null)) => {
                self.refuse(
                    ticket,
                    404,
                    "not_found",
                    "there is no such thing, or it is not yours to see",
                );
            }
            (Some(ReadFor::Ticket(ticket)), ReadAnswer::Json(body)) => {
                self.respond(ticket, 200, body)
            }
            (Some(ReadFor::Obligations(ticket)), ReadAnswer::Json(mut body)) => {
                body["server"] = self.server();
                self.respond(ticket, 200, body);
            }
            (Some(ReadFor::Ticket(ticket)), ReadAnswer::Messages(messages)) => {
                self.respond(ticket, 200, json!({"messages": messages}))
            }
            (Some(ReadFor::StoreStats { ticket, gate, prometheus }), ReadAnswer::Json(store)) => {
                if prometheus {
                    let text = self.metrics_text(gate, &store);
                    self.respond(
                        ticket,
                        200,
                        Body::Text("text/plain; version=0.0.4; charset=utf-8", text),
                    );
                } else {
                    let info = self.info(gate, &store);
                    self.respond(ticket, 200, info);
                }
            }
            (
                Some(
                    ReadFor::Ticket(ticket)
                    | ReadFor::Obligations(ticket)
                    | ReadFor::StoreStats { ticket, .. },
                ),
                ReadAnswer::Failed(error),
            ) => {
                self.on_read_failed(Some(ticket), error);
            }
            (Some(ReadFor::Deliver(agent, ids)), ReadAnswer::Messages(messages)) => {
                self.on_delivery_read(&agent, &ids, messages)
            }
            (Some(ReadFor::Deliver(agent, _)), other) => {
                let why = match &other {
                    ReadAnswer::Failed(error) => error.text.as_str(),
                    ReadAnswer::Json(_) | ReadAnswer::Messages(_) => {
                        "the store gave something else"
                    }
                };
                self.log(LogLevel::Error, format!("cannot read messages for {agent}: {why}"));
                if let Some(agent) = self.agents.get_mut(&agent) {
                    agent.loading = false;
                }
                if let ReadAnswer::Failed(error) = other {
                    self.on_read_failed(None, error);
                }
            }
            (
                Some(ReadFor::StoreStats { ticket, .. } | ReadFor::Obligations(ticket)),
                ReadAnswer::Messages(_),
            ) => self.refuse(ticket, 500, "internal", "the store gave an unexpected answer"),
            (None, _) => {}
        }
        while self.reads.len() < READS_IN_FLIGHT_MAX / 2
            && let Some(agent) = self.unserved.pop_first()
        {
            self.deliver(&agent, None);
        }
    }

    pub(super) fn on_vacuumed(&mut self, outcome: Result<(u64, u64), String>) {
        for ticket in std::mem::take(&mut self.vacuums) {
            match &outcome {
                Ok((before, after)) => {
                    self.respond(ticket, 200, json!({"bytesBefore": before, "bytesAfter": after}))
                }
                Err(text) => self.refuse(ticket, 503, "store_unavailable", text),
            }
        }
    }

    fn list_agents(&self, actor: &TokenRecord, request: &Request) -> Value {
        let wanted: Vec<(&str, String)> = ["tag", "cap", "label", "status"]
            .into_iter()
            .filter_map(|name| query(request, name).map(|value| (name, value)))
            .collect();
        let fits = |card: &Value| {
            wanted.iter().all(|(name, value)| match *name {
                "tag" => {
                    card["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == value))
                }
                "cap" => card["capabilities"]
                    .as_array()
                    .is_some_and(|caps| caps.iter().any(|c| c == value)),
                other => card[other] == json!(value),
            })
        };
        let cards: Vec<Value> =
            self.agents.keys().map(|id| self.card_for(actor, id)).filter(fits).collect();
        json!({"agents": cards})
    }

    fn register_over_http(&mut self, actor: &TokenRecord, body: &Value) -> Routed {
        let registration: Registration = serde_json::from_value(body.clone())
            .map_err(|error| (400, "bad_registration", error.to_string()))?;
        let id = body
            .get("id")
            .and_then(Value::as_str)
            .map(str::to_string)
            .or_else(|| registration.agent_id.clone());
        let Some(id) = id else {
            return Err((400, "no_id", "a registration needs an \"id\"".into()));
        };
        self.register(actor, &id, registration, None)?;
        let mut card = self.card_for(actor, &id);
        card["server"] = self.server();
        Ok(Answer::Durable(200, card))
    }

    fn on_agent(&mut self, actor: &TokenRecord, call: Call, id: &str) -> Routed {
        let unknown = || (404, "unknown_agent", format!("there is no agent {id}"));
        if call == Call::GetAgent {
            return if self.agents.contains_key(id) {
                Ok(Answer::Now(200, self.card_for(actor, id)))
            } else {
                Err(unknown())
            };
        }
        self.may_act(actor, id)
            .map_err(|refusal| if self.agents.contains_key(id) { refusal } else { unknown() })?;
        if self.delete_agent(id) { Ok(Answer::Durable(204, Value::Null)) } else { Err(unknown()) }
    }

    fn on_agent_part(&mut self, actor: &TokenRecord, call: Call, id: &str, body: &Value) -> Routed {
        self.may_act(actor, id)?;
        let Some(agent) = self.agents.get_mut(id) else {
            return Err((404, "unknown_agent", format!("there is no agent {id}")));
        };
        let told = body.get("instanceId").and_then(Value::as_str);
        let known = agent.stored.registration.instance_id.as_str();
        if call != Call::PutLabel && told.is_some() && known.is_empty() && agent.stored.epoch > 0 {
            return Err((
                404,
                "unknown_agent",
                format!("no instance of {id} is registered; register it"),
            ));
        }
        if call != Call::PutLabel && told.is_some_and(|told| told != known) {
            return Err((409, "superseded", "another instance registered this agent".into()));
        }
        match call {
            Call::PutStatus => {
                let Some(status) = body.get("status").and_then(Value::as_str) else {
                    return Err((
                        400,
                        "no_status",
                        "\"status\" must be idle, busy or offline".into(),
                    ));
                };
                self.set_status(id, status, None, None);
            }
            Call::PutReady => {
                let Some(ready) = body.get("ready").and_then(Value::as_bool) else {
                    return Err((400, "no_ready", "\"ready\" must be true or false".into()));
                };
                self.on_liveness_told(id, Some(ready), body.get("meta"));
            }
            Call::Heartbeat => {
                self.on_liveness_told(id, None, body.get("meta"));
                return Ok(Answer::Now(
                    200,
                    json!({"ok": true, "commands": self.pending_for(id), "server": self.server()}),
                ));
            }
            _ => {
                let label = match body.get("label") {
                    Some(Value::Null) => None,
                    Some(Value::String(label)) if is_label(label) => {
                        Some(label.trim().to_string()).filter(|label| !label.is_empty())
                    }
                    _ => {
                        return Err((
                            400,
                            "bad_label",
                            "\"label\" must be a text of one line, at most 200 bytes, or null"
                                .into(),
                        ));
                    }
                };
                agent.stored.label = label;
                let stored = agent.stored.clone();
                self.commits.write(HubOp::AgentPut(stored));
                self.resolve_for(id);
                return Ok(Answer::Durable(200, self.card_for(actor, id)));
            }
        }
        Ok(Answer::Now(200, self.card_for(actor, id)))
    }

    fn send_one(&mut self, ticket: Ticket, actor: &TokenRecord, body: Value) -> Routed {
        let new: NewMessage = serde_json::from_value(body)
            .map_err(|error| (400, "bad_message", error.to_string()))?;
        let sent = self.prepare(actor, plain(new))?;
        self.commits.defer(After::AcceptedMessage { ticket, sent });
        Ok(Answer::Later)
    }

    fn send_batch(&mut self, ticket: Ticket, actor: &TokenRecord, body: &Value) -> Routed {
        let Some(list) = body.get("messages").and_then(Value::as_array) else {
            return Err((400, "no_messages", "the body must hold \"messages\", a list".into()));
        };
        if list.len() > BATCH_ROWS_MAX {
            return Err((
                413,
                "batch_too_large",
                format!("a batch may hold {BATCH_ROWS_MAX} messages"),
            ));
        }
        let mut rows = Vec::new();
        for item in list {
            let new = serde_json::from_value::<NewMessage>(item.clone())
                .map_err(|error| (400, "bad_message", error.to_string()));
            let sent = new.and_then(|new| self.prepare(actor, plain(new)));
            rows.push(
                sent.map_err(|(status, code, sentence)| (status, error_body(code, &sentence))),
            );
        }
        self.commits.defer(After::Batch { ticket, rows });
        Ok(Answer::Later)
    }

    fn poll(&mut self, ticket: Ticket, actor: &TokenRecord, request: &Request) -> Routed {
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
        match query(request, "unread").as_deref() {
            Some("true" | "1") => {
                self.ask(ticket, Query::Unread { recipient, since, limit, mirror })
            }
            _ => self.ask(ticket, Query::Inbox { recipient, since, limit, mirror }),
        }
    }

    fn on_message_part(
        &mut self,
        ticket: Ticket,
        actor: &TokenRecord,
        call: Call,
        id: MessageId,
        body: &Value,
    ) -> Routed {
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
            // A person looks after an agent's mail; what it says is said as oneself, unless one may
            // speak for everybody.
            scope(actor, if call == Call::React { ADMIN } else { "agent:self" })?;
            if !self.agents.contains_key(&reader) && !allows(actor, ADMIN) {
                return Err((404, "unknown_agent", format!("there is no agent {reader}")));
            }
        }
        self.check_generation(told_in(body), Named::Message(id))?;
        if id > self.last_message {
            return Err((404, "not_found", format!("there is no message {id}")));
        }
        match call {
            Call::Claim | Call::RenewClaim => {
                if reader != USER {
                    self.must_be_offered(id, &reader)?;
                }
                let answer = self.claim(id, &reader)?;
                Ok(Answer::Durable(200, answer))
            }
            Call::ReleaseClaim => {
                self.release_claim(id, &reader)?;
                Ok(Answer::Durable(204, Value::Null))
            }
            Call::MarkRead => {
                let reason = body.get("reason").and_then(Value::as_str).map(str::to_string);
                if reason.is_none() && self.is_task_of_others(id, &reader) {
                    return Ok(Answer::Durable(204, Value::Null));
                }
                self.note_claim_read(id, &reader);
                if let Some(queue) = self.queues.get_mut(&reader) {
                    // A message that was read is not delivered any more.
                    queue.ids.remove(&id);
                }
                self.commits.write(HubOp::Read {
                    message: id,
                    recipient: reader.clone(),
                    at: self.now.wall.0,
                    reason,
                });
                self.emit("message.read", &reader, json!({"messageId": id, "agentId": reader}));
                Ok(Answer::Durable(204, Value::Null))
            }
            _ => {
                let emoji = text(body, "emoji").chars().take(16).collect::<String>();
                if emoji.is_empty() {
                    return Err((400, "no_emoji", "a reaction needs an \"emoji\"".into()));
                }
                let sees_all = own.is_none() && allows(actor, "message:read");
                self.commits.write(HubOp::Reacted {
                    message: id,
                    agent: reader.clone(),
                    emoji,
                    at: self.now.wall.0,
                    sees_all,
                });
                self.commits.defer(After::Reacted { ticket, message: id, agent: reader });
                Ok(Answer::Later)
            }
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
