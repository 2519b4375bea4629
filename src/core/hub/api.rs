//! The HTTP API: the table of routes says what is asked, one match says what is done.

mod agents;
mod commands;
mod messages;
mod reads;
mod tasks;

use std::sync::Arc;

use serde_json::{Value, json};

use super::Hub;
use super::Refusal;
use super::event::{After, Effect, Query, StatsFormat};
use super::mcp;
use super::rights::{acts_as, everything, is_runtime, line_of, scope};
use super::routes::{Access, Call, Found, Route, find, spec};
use crate::core::http::{Body, GateCommand, Request};
use crate::core::ids::{TaskId, Ticket};
use crate::core::limits::{RENEWAL_REQUESTS, SHOWN_PER_REQUEST};
use crate::core::turns::LineId;
use crate::wire::api::{TokenRecord, decode, error_body};
use crate::wire::{PROTOCOL, VERSION};

/// What a route gives: an answer now, an answer behind the commit, or one that comes later by
/// itself.
pub(super) enum Answer {
    Now(u16, Value),
    Durable(u16, Value),
    Later,
}

type Routed = Result<Answer, Refusal>;

/// A request whose token may make its call.
pub(super) struct Asked<'a> {
    pub ticket: Ticket,
    pub actor: &'a Arc<TokenRecord>,
    pub request: &'a Request,
    /// The first parameter of the path: an agent, a message, a task, a command or a token.
    pub first: &'a str,
}

impl Asked<'_> {
    /// The agent on whose behalf it is asked; `None`: a person, who sees everything.
    fn viewer(&self) -> Option<String> {
        acts_as(self.actor).map(str::to_string)
    }
}

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
        let Some((status, body)) = self.for_tool(ticket, status, body.into()) else { return };
        self.after_answer(ticket, status);
        self.out.push(Effect::Gate(GateCommand::Respond { ticket, status, body }));
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
        self.accounts.retry_after = None;
        if self.stopping {
            return self.refuse(ticket, 503, "stopping", "the hub is stopping");
        }
        self.dispatch(ticket, &request);
    }

    /// Carries one call out; that of a tool consists of several.
    pub(super) fn dispatch(&mut self, ticket: Ticket, request: &Request) {
        let changes = request.method != "GET" && request.path != mcp::PATH;
        if let Some(trouble) = self.commits.trouble().filter(|_| changes) {
            let cause = &trouble.cause;
            let text = format!(
                "the hub cannot store anything for now ({cause}); nothing of this request was accepted"
            );
            return self.refuse(ticket, 503, "store_unavailable", &text);
        }
        match self.route_request(ticket, request) {
            Ok(Answer::Now(status, body)) => self.respond(ticket, status, body),
            Ok(Answer::Durable(status, body)) => {
                self.commits.defer(After::Answer { ticket, status, body })
            }
            Ok(Answer::Later) => {}
            Err((429, code, sentence)) => {
                let mut body = error_body(code, &sentence);
                if let Some(seconds) = self.accounts.retry_after.take() {
                    body["retryAfter"] = json!(seconds);
                }
                self.respond(ticket, 429, body);
            }
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
        if mcp::is_of_login(&parts) {
            self.limit(None)?;
            return Err((404, "not_found", "tokens are given by the hub, not by a login".into()));
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
        let is_person = !is_runtime(&actor.profile_id);
        self.asker = (LineId::named(line_of(&actor)), is_person);
        match found {
            Found::Route(route, parameters) => {
                if let Access::Scope(wanted) = route.access {
                    scope(&actor, wanted)?;
                }
                let first = parameters.first().copied().unwrap_or_default();
                self.carry_out(route.call, &Asked { ticket, actor: &actor, request, first })
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
        if let Some(token) = token {
            self.note_limit_met(token, "requests");
        }
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
            "generation": self.generations.newest(), "lastMessageId": self.last_message, "time": self.now.wall.0,
        })
    }

    fn health(&self) -> Value {
        let uptime = self.started.map(|start| (self.now.tick - start).as_millis() as u64);
        json!({"ok": true, "version": VERSION, "protocol": PROTOCOL, "uptimeMs": uptime, "serverTime": self.now.wall.0})
    }

    /// What a call does; each arm names it.
    fn carry_out(&mut self, call: Call, asked: &Asked) -> Routed {
        let &Asked { ticket, actor, request, first } = asked;
        match call {
            Call::Health => Ok(Answer::Now(200, self.health())),
            Call::Spec => Ok(self.describe(ticket)),
            Call::Metrics => self.ask_store_stats(asked, StatsFormat::Prometheus),
            Call::HubInfo => self.ask_store_stats(asked, StatsFormat::Json),
            Call::HubVacuum => self.vacuum(ticket),
            Call::Events => self.stream_events(asked),
            Call::Register => self.register_over_http(actor, &object(request)?),
            Call::ListAgents => {
                self.rates.charge(actor, (self.agents.len() / SHOWN_PER_REQUEST) as u64);
                Ok(Answer::Now(200, self.list_agents(actor, request)))
            }
            Call::ForgetAgents => {
                Ok(Answer::Durable(200, self.forget_agents(actor, &object(request)?)?))
            }
            Call::GetAgent => self.show_agent(actor, first),
            Call::DeleteAgent => self.delete_agent_over_http(actor, first),
            Call::Obligations => self.ask_obligations(asked),
            Call::PutStatus => self.put_status(actor, first, &object(request)?),
            Call::PutReady => self.put_ready(actor, first, &object(request)?),
            Call::Heartbeat => self.heartbeat(actor, first, &object(request)?),
            Call::PutLabel => self.put_label(actor, first, &object(request)?),
            Call::Send => self.send_one(ticket, actor, request),
            Call::SendBatch => self.send_batch(ticket, actor, request),
            Call::Poll => self.poll(ticket, actor, request),
            Call::Queued => self.ask_queued(asked),
            Call::GetMessage => self.ask_message(asked),
            Call::Thread => self.ask_thread(asked),
            Call::Claim | Call::RenewClaim => self.claim_over_http(asked),
            Call::ReleaseClaim => self.release_claim_over_http(asked),
            Call::MarkRead => self.mark_read(asked),
            Call::React => self.react(asked),
            Call::MakeTask => self.make_task_over_http(asked),
            Call::ListTasks => {
                let (status, viewer) = (query(request, "status"), asked.viewer());
                self.ask(ticket, Query::Tasks { status, viewer })
            }
            Call::GetTask => {
                let (id, viewer) = (TaskId(number(first)?), asked.viewer());
                self.ask(ticket, Query::Task { id, viewer })
            }
            Call::PatchTask => self.patch_task_over_http(asked),
            Call::IssueCommand => self.issue_command_over_http(asked),
            Call::ListCommands => self.ask_commands(asked),
            Call::GetCommand => self.ask_command(asked),
            Call::PatchCommand => self.patch_command(asked),
            Call::MakeToken => Ok(Answer::Durable(201, self.make_token(actor, &object(request)?)?)),
            Call::ListTokens => Ok(Answer::Now(200, self.list_tokens(actor)?)),
            Call::OwnToken => {
                let mut answer = json!(**actor);
                answer["record"] = answer.clone();
                Ok(Answer::Now(200, answer))
            }
            Call::RenewToken => {
                self.rates.charge(actor, RENEWAL_REQUESTS);
                Ok(Answer::Durable(200, self.renew_token(&request.token)?))
            }
            Call::DeleteToken => {
                self.delete_token(actor, first)?;
                Ok(Answer::Durable(204, Value::Null))
            }
            Call::Mcp => Ok(self.on_mcp(asked)),
            Call::Observe => Err((409, "insights_off", "this hub keeps no insights".into())),
        }
    }

    fn stream_events(&mut self, asked: &Asked) -> Routed {
        let &Asked { ticket, actor, request, .. } = asked;
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
