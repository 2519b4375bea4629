//! The table of routes: what the hub serves is dispatched by it, and `/api/spec` is made from it.

use serde_json::{Map, Value, json};

use crate::wire::VERSION;

/// One thing that can be asked.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    Health,
    Spec,
    Metrics,
    HubInfo,
    HubVacuum,
    Register,
    ListAgents,
    ForgetAgents,
    GetAgent,
    DeleteAgent,
    PutStatus,
    PutReady,
    Heartbeat,
    PutLabel,
    Obligations,
    Send,
    SendBatch,
    Poll,
    Queued,
    GetMessage,
    Thread,
    Claim,
    RenewClaim,
    ReleaseClaim,
    MarkRead,
    React,
    MakeTask,
    ListTasks,
    GetTask,
    PatchTask,
    IssueCommand,
    ListCommands,
    GetCommand,
    PatchCommand,
    MakeToken,
    ListTokens,
    OwnToken,
    RenewToken,
    DeleteToken,
    Observe,
    Events,
    Mcp,
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Whoever has a token; the call itself looks closer.
    Token,
    /// Tokens with this scope.
    Scope(&'static str),
}

/// One row of the table.
#[derive(Debug)]
pub struct Route {
    /// What is asked.
    pub call: Call,
    /// Its name in the description, which programs that are made from it use.
    pub operation: &'static str,
    /// Method.
    pub method: &'static str,
    /// Path; parts in braces are parameters.
    pub path: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Who may ask.
    pub access: Access,
    /// Query parameters.
    pub query: &'static [&'static str],
    /// Schema of the request's body, if it has one.
    pub takes: &'static str,
    /// Status and schema of the answer; an empty schema is no body.
    pub gives: (u16, &'static str),
    /// Further statuses that mean something here.
    pub refuses: &'static [u16],
}

use Access::{Open, Scope, Token};

#[rustfmt::skip]
macro_rules! route {
    ($operation:literal $call:ident, $method:literal $path:literal, $access:expr, [$($query:literal),*], $takes:literal => $status:literal $gives:literal, [$($refuses:literal),*], $about:literal) => {
        Route { call: Call::$call, operation: $operation, method: $method, path: $path, about: $about, access: $access, query: &[$($query),*], takes: $takes,
            gives: ($status, $gives), refuses: &[$($refuses),*] }
    };
}

/// Every route.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    route!("Health" Health, "GET" "/api/health", Open, [], "" => 200 "Health", [], "Whether the hub answers"),
    route!("Spec" Spec, "GET" "/api/spec", Open, [], "" => 200 "Any", [], "This description"),
    route!("Metrics" Metrics, "GET" "/metrics", Token, [], "" => 200 "Text", [], "Counts and times for Prometheus"),
    route!("HubInfo" HubInfo, "GET" "/api/hub", Token, [], "" => 200 "Any", [403], "How the hub is (not for agents' tokens)"),
    route!("HubVacuum" HubVacuum, "POST" "/api/hub/vacuum", Scope("admin"), [], "" => 200 "Any", [], "Give free pages of the store back to the disk"),
    route!("Register" Register, "POST" "/api/agents", Scope("agent:self"), [], "Registration" => 200 "Agent", [422], "Register an agent"),
    route!("ListAgents" ListAgents, "GET" "/api/agents", Token, ["tag", "cap", "label", "status"], "" => 200 "Agents", [], "List agents"),
    route!("ForgetAgents" ForgetAgents, "DELETE" "/api/agents", Scope("command:issue"), [], "ForgetAgents" => 200 "Forgotten", [], "Forget agents that are gone: those that are named, or all that are offline"),
    route!("GetAgent" GetAgent, "GET" "/api/agents/{id}", Token, [], "" => 200 "Agent", [404], "One agent"),
    route!("DeleteAgent" DeleteAgent, "DELETE" "/api/agents/{id}", Scope("agent:self"), [], "" => 204 "", [404], "Forget an agent"),
    route!("PutStatus" PutStatus, "PUT" "/api/agents/{id}/status", Scope("agent:self"), [], "StatusChange" => 200 "Agent", [404, 409], "Tell an agent's status"),
    route!("PutReady" PutReady, "PUT" "/api/agents/{id}/ready", Scope("agent:self"), [], "ReadyChange" => 200 "Agent", [404, 409], "Tell whether an agent is ready"),
    route!("Heartbeat" Heartbeat, "POST" "/api/agents/{id}/heartbeat", Scope("agent:self"), [], "Heartbeat" => 200 "HeartbeatAnswer", [404, 409], "Show that an agent lives; gives the ids of its pending commands"),
    route!("PutLabel" PutLabel, "PUT" "/api/agents/{id}/label", Scope("agent:self"), [], "LabelChange" => 200 "Agent", [404], "Set or clear an agent's label"),
    route!("Obligations" Obligations, "GET" "/api/agents/{id}/reply-obligations", Scope("agent:self"), [], "" => 200 "Obligations", [], "Which answers an agent owes"),
    route!("Send" Send, "POST" "/api/messages", Scope("message:send"), [], "NewMessage" => 201 "Message", [200, 409, 413, 422], "Send a message; 200 with the first one when the idempotency key was seen before"),
    route!("SendBatch" SendBatch, "POST" "/api/messages/batch", Scope("message:send"), [], "NewMessages" => 200 "BatchResults", [413], "Send up to 64 messages in order"),
    route!("Poll" Poll, "GET" "/api/messages", Scope("message:read"), ["for", "unread", "limit", "since", "mirror"], "" => 200 "Messages", [], "Messages of a recipient, ascending by id"),
    route!("Queued" Queued, "GET" "/api/messages/queued", Scope("message:read"), [], "" => 200 "Messages", [], "Messages that wait for an agent (for people)"),
    route!("GetMessage" GetMessage, "GET" "/api/messages/{id}", Scope("message:read"), [], "" => 200 "Message", [404], "One message"),
    route!("Thread" Thread, "GET" "/api/messages/{id}/thread", Scope("message:read"), [], "" => 200 "Messages", [404], "The thread of a message, oldest first"),
    route!("Claim" Claim, "POST" "/api/messages/{id}/claim", Scope("message:claim"), [], "Actor" => 200 "ClaimAnswer", [404, 409], "Claim a message for ten minutes; again by the same agent: renew"),
    route!("RenewClaim" RenewClaim, "POST" "/api/messages/{id}/claim/renew", Scope("message:claim"), [], "Actor" => 200 "ClaimAnswer", [404, 409], "Renew a claim"),
    route!("ReleaseClaim" ReleaseClaim, "DELETE" "/api/messages/{id}/claim", Scope("message:claim"), [], "Actor" => 204 "", [404, 409], "Give a claim back"),
    route!("MarkRead" MarkRead, "POST" "/api/messages/{id}/read", Scope("message:read"), [], "ReadMark" => 204 "", [404], "Mark a message as read"),
    route!("React" React, "POST" "/api/messages/{id}/reactions", Scope("message:send"), [], "Reaction" => 204 "", [404], "React to a message"),
    route!("MakeTask" MakeTask, "POST" "/api/tasks", Scope("message:send"), [], "NewTask" => 201 "Task", [422], "Make a task and its claimable message"),
    route!("ListTasks" ListTasks, "GET" "/api/tasks", Scope("message:read"), ["status"], "" => 200 "Tasks", [], "List tasks, newest first"),
    route!("GetTask" GetTask, "GET" "/api/tasks/{id}", Scope("message:read"), [], "" => 200 "Task", [404], "One task"),
    route!("PatchTask" PatchTask, "PATCH" "/api/tasks/{id}", Scope("task:update"), [], "TaskChange" => 200 "Any", [404, 409], "Move a task on; what is blocked is offered to nobody until a person or its sender opens it"),
    route!("IssueCommand" IssueCommand, "POST" "/api/commands", Scope("command:issue"), [], "NewCommand" => 201 "Command", [422], "Issue a command"),
    route!("ListCommands" ListCommands, "GET" "/api/commands", Token, ["target", "status"], "" => 200 "Commands", [], "List commands, newest first"),
    route!("GetCommand" GetCommand, "GET" "/api/commands/{id}", Token, [], "" => 200 "Command", [404], "One command"),
    route!("PatchCommand" PatchCommand, "PATCH" "/api/commands/{id}", Token, [], "CommandChange" => 200 "Command", [404], "Report how a command goes"),
    route!("MakeToken" MakeToken, "POST" "/api/tokens", Token, [], "NewToken" => 201 "TokenAnswer", [422], "Make a token (token:issue: for agents; admin: any)"),
    route!("ListTokens" ListTokens, "GET" "/api/tokens", Token, [], "" => 200 "Tokens", [403], "List tokens without their secrets (token:issue: those of agents; admin: all)"),
    route!("OwnToken" OwnToken, "GET" "/api/tokens/self", Token, [], "" => 200 "TokenRecord", [], "The record of the token that asks"),
    route!("RenewToken" RenewToken, "POST" "/api/tokens/renew", Token, [], "" => 200 "TokenAnswer", [], "Renew the token that asks (agents only)"),
    route!("DeleteToken" DeleteToken, "DELETE" "/api/tokens/{jti}", Token, [], "" => 204 "", [404], "Revoke a token"),
    route!("Observe" Observe, "POST" "/api/insights/observations", Scope("insight:write"), [], "Any" => 202 "", [409], "An observation; 409 while the hub keeps none"),
    route!("Events" Events, "GET" "/api/events", Scope("message:read"), ["since"], "" => 200 "EventStream", [], "Server-sent events, one for each bus event"),
    route!("Mcp" Mcp, "POST" "/api/mcp", Token, [], "McpFrame" => 200 "Any", [202, 404], "The tools of the relay for a model: one JSON-RPC frame of the Model Context Protocol (2024-11-05 to 2026-07-28)"),
];

/// What a method and a path mean.
pub enum Found<'a> {
    /// This route, with its parameters in order.
    Route(&'static Route, Vec<&'a str>),
    /// The path is known, but only with these methods.
    Methods(Vec<&'static str>),
    /// Nothing.
    Nothing,
}

/// Looks a request up.
pub fn find<'a>(method: &str, parts: &[&'a str]) -> Found<'a> {
    let mut methods = Vec::new();
    for route in ROUTES {
        let mut parameters = Vec::new();
        let names = route.path.trim_start_matches('/').split('/');
        let fits = names.clone().count() == parts.len()
            && names.zip(parts).all(|(name, part)| {
                if name.starts_with('{') {
                    parameters.push(*part);
                }
                name.starts_with('{') || name == *part
            });
        // A fixed name comes before a parameter: `/api/messages/queued` is no id.
        let shadowed = fits
            && !parameters.is_empty()
            && ROUTES.iter().any(|other| other.path.trim_start_matches('/') == parts.join("/"));
        if fits && !shadowed {
            if route.method == method {
                return Found::Route(route, parameters);
            }
            methods.push(route.method);
        }
    }
    if methods.is_empty() { Found::Nothing } else { Found::Methods(methods) }
}

/// The description: OpenAPI 3.1.
pub fn spec() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let operation = operation(route);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation;
    }
    let schemas: Value =
        serde_json::from_str(include_str!("schemas.json")).expect("checked by a test");
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "agent-relay hub", "version": VERSION, "license": {"name": "AGPL-3.0-or-later", "identifier": "AGPL-3.0-or-later"},
            "description": "HTTP API of the relay. The bus (WebSocket) is at /bus with the same token."
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "relayToken": {"type": "apiKey", "in": "header", "name": crate::wire::api::TOKEN_HEADER},
                "bearer": {"type": "http", "scheme": "bearer"}
            }
        }
    })
}

fn operation(route: &Route) -> Value {
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let content = |name: &str| match name {
        "Text" => json!({"text/plain": {"schema": {"type": "string"}}}),
        "EventStream" => json!({"text/event-stream": {"schema": {"type": "string"}}}),
        name => json!({"application/json": {"schema": reference(name)}}),
    };
    let parameter = |name: &str, place: &str| {
        let kind = if matches!(name, "limit" | "since")
            || name == "id" && (route.path.contains("/messages/") || route.path.contains("/tasks/"))
        {
            "integer"
        } else {
            "string"
        };
        json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind}})
    };
    let in_path =
        route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<Value> = in_path
        .map(|name| parameter(name, "path"))
        .chain(route.query.iter().map(|name| parameter(name, "query")))
        .collect();
    let mut responses = Map::new();
    let (status, gives) = route.gives;
    let mut success = json!({"description": "done"});
    if !gives.is_empty() {
        success["content"] = content(gives);
    }
    responses.insert(status.to_string(), success);
    let standard: &[u16] =
        if route.access == Open { &[429, 503] } else { &[401, 403, 429, 503, 504] };
    let with_body: &[u16] = if route.takes.is_empty() { &[] } else { &[400, 413] };
    for status in route.refuses.iter().chain(standard).chain(with_body) {
        let body = if *status < 300 { content(gives) } else { content("Error") };
        let about = match *status {
            200..300 => "seen before",
            504 => {
                "no answer in time: it may still happen, so repeat it only with an idempotency key"
            }
            _ => "refused",
        };
        responses
            .entry(status.to_string())
            .or_insert_with(|| json!({"description": about, "content": body}));
    }
    let mut operation =
        json!({"operationId": route.operation, "summary": route.about, "responses": responses});
    if !parameters.is_empty() {
        operation["parameters"] = json!(parameters);
    }
    if !route.takes.is_empty() {
        operation["requestBody"] = json!({"content": content(route.takes)});
    }
    if let Scope(scope) = route.access {
        operation["description"] = json!(format!("Needs the scope {scope}."));
    }
    if route.access != Open {
        operation["security"] = json!([{"relayToken": []}, {"bearer": []}]);
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::MessageId;
    use crate::wire::api::{Command, Message, NewMessage, Task, TokenRecord};

    #[test]
    fn fixed_names_come_before_parameters() {
        let call = |method, path: &str| {
            let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
            match find(method, &parts) {
                Found::Route(route, parameters) => {
                    format!("{} {}", route.operation, parameters.join(","))
                }
                Found::Methods(methods) => methods.join(","),
                Found::Nothing => "nothing".into(),
            }
        };
        for (method, path, want) in [
            ("GET", "/api/messages/queued", "Queued "),
            ("POST", "/api/messages/batch", "SendBatch "),
            ("GET", "/api/messages/batch", "POST"),
            ("POST", "/api/tokens/renew", "RenewToken "),
            ("DELETE", "/api/tokens/abc", "DeleteToken abc"),
            ("GET", "/api/messages/7/thread", "Thread 7"),
            ("PUT", "/api/messages/7", "GET"),
            ("PATCH", "/api/agents/a", "GET,DELETE"),
            ("GET", "/api", "nothing"),
            ("GET", "/api/messages/1/claim/renew/x", "nothing"),
        ] {
            assert_eq!(call(method, path), want, "{method} {path}");
        }
    }

    /// Every name of a full record stands in its schema, and every schema that a route names
    /// exists.
    /// One of each record, with all that it may hold.
    fn full_samples() -> [(&'static str, Value); 5] {
        let some = || Some("x".to_string());
        [
            (
                "Message",
                json!(Message {
                    channel: some(),
                    subject: some(),
                    reply_to: Some(MessageId(1)),
                    reply_expected: Some(true),
                    claimable: true,
                    claimed_by: some(),
                    claim_expires_at: Some(1),
                    resolved_to_agent: some(),
                    occurred_at: Some(1),
                    ..Default::default()
                }),
            ),
            (
                "NewMessage",
                json!(NewMessage {
                    from: some(),
                    kind: "chat".into(),
                    channel: some(),
                    subject: some(),
                    payload: serde_json::Map::from_iter([("a".to_string(), json!(1))]),
                    reply_to: Some(MessageId(1)),
                    reply_expected: Some(true),
                    claimable: true,
                    idempotency_key: some(),
                    occurred_at: Some(1),
                    ..Default::default()
                }),
            ),
            ("Task", json!(Task { severity: some(), agent_id: some(), ..Default::default() })),
            (
                "Command",
                json!(Command {
                    result: Some(json!({})),
                    error: some(),
                    agent_id: some(),
                    ..Default::default()
                }),
            ),
            (
                "TokenRecord",
                json!(TokenRecord {
                    agent_id: some(),
                    renewed_from: some(),
                    name: some(),
                    policy_name: some(),
                    spawned_by: some(),
                    expires_at: Some(1),
                    ..Default::default()
                }),
            ),
        ]
    }

    #[test]
    fn schemas_name_what_is_really_sent() {
        let spec = spec();
        let schemas =
            spec.pointer("/components/schemas").and_then(Value::as_object).expect("schemas");
        for route in ROUTES {
            for name in [route.takes, route.gives.1]
                .into_iter()
                .filter(|name| !matches!(*name, "" | "Text" | "EventStream"))
            {
                assert!(schemas.contains_key(name), "{name} of {} {}", route.method, route.path);
            }
        }
        let record = |value: Value| value.as_object().cloned().expect("a record");
        let text = spec.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name: String = reference.chars().take_while(|c| c.is_alphanumeric()).collect();
            assert!(schemas.contains_key(&name), "{name}");
        }
        for (name, sample) in full_samples() {
            let told: Vec<String> = record(sample).keys().cloned().collect();
            let known: Vec<String> =
                record(schemas[name]["properties"].clone()).keys().cloned().collect();
            assert_eq!(told, known, "{name}");
        }
    }
}
