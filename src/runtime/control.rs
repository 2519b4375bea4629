//! Routes of a runner's control port. Only `/health` needs no token.

use serde_json::{Value, json};

use crate::core::agent::event::{ControlRequest, Event};
use crate::core::agent::tracker::Status;
use crate::core::http::Request;
use crate::core::ids::{MessageId, Ticket};
use crate::core::limits::{HOOK_MEMBERS_MAX, JSON_DEPTH_MAX};
use crate::edge::gate::{GateEvent, Handled};
use crate::provider::{reader, registry};
use crate::secret::Secret;
use crate::wire::api::error_body;
use crate::wire::control::{LogLevel, PERMISSION_REQUEST};

/// Paths with their methods; a part in braces is a number.
const PATHS: &[(&str, &[&str])] = &[
    ("/status", &["GET", "POST"]),
    ("/reply-obligations", &["GET"]),
    ("/terminal/attach-spec", &["GET"]),
    ("/messages", &["POST"]),
    ("/messages/{id}", &["GET"]),
    ("/messages/{id}/reactions", &["POST"]),
    ("/token", &["PUT"]),
    ("/stop", &["POST"]),
    ("/hook-fatal", &["POST"]),
    ("/log-level", &["GET", "POST"]),
    ("/monitor", &["GET"]),
    ("/user-prompt", &["POST"]),
    ("/session-turn", &["POST"]),
    ("/session-end", &["POST"]),
    ("/permission-request", &["POST"]),
];
/// A hook of the provider, with the JSON that it got; the name of the event follows in the path.
const HOOK: &str = "/hook/";
/// Longest relay token.
const TOKEN_BYTES_MAX: usize = 512;
/// Longest name of an event.
const EVENT_BYTES_MAX: usize = 40;

/// A hook that reports; one that asks for a permission stays until it is decided.
fn hook(ticket: Ticket, event: &str, body: Value) -> Handled<Event> {
    let known = event.len() <= EVENT_BYTES_MAX
        && !event.is_empty()
        && event.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    if !known {
        return answer(400, error_body("bad_request", "an event is lower-case letters and dashes"));
    }
    let event = event.to_string();
    if event == PERMISSION_REQUEST {
        return Handled::Forward(Event::Control(
            ticket,
            ControlRequest::Hook { event, body, waits: true },
        ));
    }
    let told = Event::Control(Ticket::NOBODY, ControlRequest::Hook { event, body, waits: false });
    Handled::AnswerAndForward(told, 200, json!({"ok": true}).into())
}

/// Whether the body of such a call holds the payload of a provider.
fn is_of_provider(path: &str) -> bool {
    const OLDER: [&str; 4] =
        ["/user-prompt", "/session-turn", "/session-end", "/permission-request"];
    path.starts_with(HOOK) || OLDER.contains(&path)
}

/// The body of a call; one that is no JSON counts as null. What a provider has written is read as
/// far as it can be, whatever shape it has; everybody else keeps the limits.
fn body_of(request: &Request) -> Result<Value, (&'static str, String)> {
    let refusal = request.cost.refusal();
    if !is_of_provider(&request.path) {
        return match refusal {
            Some(refusal) => Err(refusal),
            None => Ok(serde_json::from_slice(&request.body).unwrap_or(Value::Null)),
        };
    }
    if request.cost.members > HOOK_MEMBERS_MAX {
        let mut body = json!({"payload": {}});
        reader::Damage::Broken.mark(&mut body["payload"]);
        return Ok(body);
    }
    let whole = serde_json::from_slice(&request.body).ok();
    let in_order = whole.filter(|_| request.cost.depth <= JSON_DEPTH_MAX);
    Ok(in_order.unwrap_or_else(|| damaged_report(&request.body)))
}

/// A report that is not in order: what of it can be read, which says so of itself.
fn damaged_report(bytes: &[u8]) -> Value {
    let found = reader::read(bytes);
    let damage = found.as_ref().map_or(reader::Damage::Broken, |found| found.damage);
    let mut body = found.map_or_else(|| json!({}), |found| found.value);
    match body.get_mut("payload") {
        Some(payload) => damage.mark(payload),
        None => damage.mark(&mut body),
    }
    body
}

/// What an older endpoint is called for, in the words of today's hooks: event and body.
fn from_older_endpoint(path: &str, body: &Value) -> Option<(&'static str, Value)> {
    if path.strip_prefix('/') == Some(PERMISSION_REQUEST) {
        return Some((PERMISSION_REQUEST, json!({"payload": body})));
    }
    let call = registry::hooks().find_map(|hooks| (hooks.from_older_endpoint)(path, body))?;
    Some((
        call.event,
        json!({"providerSessionId": body.get("providerSessionId"), "payload": call.payload}),
    ))
}

/// Whether a path is one of the table.
fn is_at(known: &str, path: &str) -> bool {
    let fits = |(known, part): (&str, &str)| {
        known == part || (known == "{id}" && part.parse::<MessageId>().is_ok())
    };
    known.split('/').count() == path.split('/').count()
        && known.split('/').zip(path.split('/')).all(fits)
}

/// The message that a call is about; true: it is a reaction to it.
fn message_of(method: &str, path: &str) -> Option<(MessageId, bool)> {
    let rest = path.strip_prefix("/messages/")?;
    match (method, rest.strip_suffix("/reactions")) {
        ("POST", Some(id)) => Some((id.parse().ok()?, true)),
        ("GET", None) => Some((rest.parse().ok()?, false)),
        _ => None,
    }
}

fn answer(status: u16, body: Value) -> Handled<Event> {
    Handled::Answer(status, body.into())
}

/// What a person asks, and what a provider reports: it does not wait behind any crowd, and keeps
/// its order.
pub fn is_urgent(event: &GateEvent) -> bool {
    match event {
        GateEvent::Request(_, request) => {
            matches!(request.path.as_str(), "/status" | "/stop") || is_of_provider(&request.path)
        }
        GateEvent::PeerClosed(_) => true,
        GateEvent::PeerText(..) | GateEvent::Upgrade(..) => false,
    }
}

/// What the gate of a control port asks for each thing that happens there.
pub fn handler(token: Secret) -> impl FnMut(GateEvent) -> Handled<Event> + Send + 'static {
    move |event| {
        let (ticket, request, upgrade) = match event {
            GateEvent::Request(ticket, request) => (ticket, request, false),
            GateEvent::Upgrade(ticket, request) => (ticket, request, true),
            GateEvent::PeerText(_, text, cost) => {
                if let Some((code, why)) = cost.refusal() {
                    return Handled::Reply(error_body(code, &why).to_string());
                }
                return Handled::Forward(Event::Control(
                    Ticket::NOBODY,
                    ControlRequest::MonitorSaid(text),
                ));
            }
            GateEvent::PeerClosed(peer) => {
                return Handled::Forward(Event::Control(peer.ticket(), ControlRequest::Gone));
            }
        };
        if request.path == "/health" {
            return answer(200, json!({"ok": true}));
        }
        if !same(request.token.as_bytes(), token.expose().as_bytes()) {
            let text = "the control port needs its token: Authorization: Bearer <controlToken of the runner info file>";
            return answer(401, error_body("unauthorized", text));
        }
        match body_of(&request) {
            Ok(body) => route(ticket, &request, body, upgrade),
            Err((code, text)) => answer(422, error_body(code, &text)),
        }
    }
}

fn route(ticket: Ticket, request: &Request, body: Value, upgrade: bool) -> Handled<Event> {
    let ask = |request| Handled::Forward(Event::Control(ticket, request));
    match message_of(&request.method, &request.path) {
        Some((message, true)) => return ask(ControlRequest::Reaction { message, body }),
        Some((message, false)) => return ask(ControlRequest::Given(message)),
        None => {}
    }
    if request.method == "POST"
        && let Some((event, body)) = from_older_endpoint(&request.path, &body)
    {
        return hook(ticket, event, body);
    }
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/status") => ask(ControlRequest::Status),
        ("POST", "/status") => post_status(body),
        ("GET", "/terminal/attach-spec") => ask(ControlRequest::AttachSpec),
        ("GET", "/reply-obligations") => ask(ControlRequest::Obligations),
        ("POST", "/stop") => ask(ControlRequest::Stop),
        ("POST", "/messages") => ask(ControlRequest::Message(body)),
        ("PUT", "/token") => match offered_token(&body) {
            Some(token) => ask(ControlRequest::TokenOffered(token)),
            None => {
                answer(400, error_body("bad_token", "the body must hold \"token\", a relay token"))
            }
        },
        ("POST", "/hook-fatal") => {
            let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_string);
            let error = text("error").unwrap_or_else(|| "(no detail)".into());
            ask(ControlRequest::HookFatal { hook: text("hook").unwrap_or_default(), error })
        }
        ("POST", path) if path.starts_with(HOOK) => hook(ticket, &path[HOOK.len()..], body),
        ("GET", "/monitor") if upgrade => {
            let mut fields = request.query.split('&');
            let session = fields.find_map(|pair| pair.strip_prefix("session="));
            let session = session.filter(|session| !session.is_empty()).map(str::to_string);
            ask(ControlRequest::Monitor { session })
        }
        ("GET", "/monitor") => answer(400, json!({"error": "WebSocket upgrade failed"})),
        ("GET", "/log-level") => {
            let level = crate::log::current_level().as_str();
            answer(200, json!({"level": level, "levels": level_names()}))
        }
        ("POST", "/log-level") => set_log_level(&body),
        (method, path) => no_route(method, path),
    }
}

/// The answer depends on the word alone: a hook need not wait for the state thread.
fn post_status(body: Value) -> Handled<Event> {
    let known = body.get("status").and_then(Value::as_str).and_then(Status::parse);
    let Some(status) = known else {
        return answer(400, json!({"error": "status must be idle, busy, offline, or error"}));
    };
    let posted = Event::Control(Ticket::NOBODY, ControlRequest::StatusPosted(body));
    let body = json!({"ok": true, "status": status.as_str()});
    Handled::AnswerAndForward(posted, 200, body.into())
}

/// None where the body holds nothing that can be a relay token.
fn offered_token(body: &Value) -> Option<Secret> {
    let token = body.get("token").and_then(Value::as_str).unwrap_or_default();
    let is_token = !token.is_empty()
        && token.len() <= TOKEN_BYTES_MAX
        && token.bytes().all(|b| b.is_ascii_graphic());
    is_token.then(|| Secret::new(token))
}

fn set_log_level(body: &Value) -> Handled<Event> {
    let word = body.get("level").and_then(Value::as_str).unwrap_or_default();
    let Some(level) = crate::log::level_of(word) else {
        let text = format!("level must be one of: {}", level_names().join(", "));
        return answer(400, json!({"error": text}));
    };
    let previous = crate::log::current_level();
    crate::log::set_level(level);
    log::info!(target: "logger", "level {previous} -> {level}");
    answer(200, json!({"ok": true, "level": level.as_str(), "previous": previous.as_str()}))
}

fn no_route(method: &str, path: &str) -> Handled<Event> {
    let Some((_, methods)) = PATHS.iter().find(|(known, _)| is_at(known, path)) else {
        return answer(404, error_body("not_found", &format!("there is nothing at {path}")));
    };
    let text = format!("{method} is not possible at {path}; use {}", methods.join(" or "));
    answer(405, error_body("method_not_allowed", &text))
}

/// Levels of the log, lowest first.
fn level_names() -> Vec<&'static str> {
    LogLevel::ALL.iter().map(|level| level.as_str()).collect()
}

/// Compares in a time that does not depend on where the texts differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |sum, (x, y)| sum | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, path: &str, token: &str, body: &str) -> Handled<Event> {
        let request = Request {
            method: method.into(),
            path: path.into(),
            token: token.into(),
            body: body.as_bytes().to_vec(),
            ..Default::default()
        };
        handler(Secret::new("right"))(GateEvent::Request(Ticket(1), request))
    }

    fn status(handled: &Handled<Event>) -> u16 {
        match handled {
            Handled::Answer(status, _) | Handled::AnswerAndForward(_, status, _) => *status,
            Handled::Forward(_) | Handled::Reply(_) => 0,
        }
    }

    #[test]
    fn every_path_needs_the_token_and_knows_its_methods() {
        for (path, methods) in PATHS {
            let path = path.replace("{id}", "12");
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                assert_eq!(status(&asked(method, &path, "wrong", "{}")), 401, "{method} {path}");
                let got = status(&asked(method, &path, "right", "{}"));
                assert_eq!(got == 405, !methods.contains(&method), "{method} {path}: {got}");
                assert_ne!(got, 404, "{method} {path}");
            }
        }
        for path in ["/messages/x", "/messages/12/read", "/messages/12/reactions/1", "/", "/tokens"]
        {
            assert_eq!(status(&asked("GET", path, "right", "")), 404, "{path}");
        }
    }

    #[test]
    fn damaged_reports_of_a_provider_are_heard_and_say_so() {
        for (path, body, want) in [
            (
                "/hook/permission-request",
                r#"{"providerSessionId":"p","payload":{"tool_name":"x\ud83d"}}"#,
                json!({"providerSessionId": "p", "payload": {
                    "tool_name": "x\u{fffd}", "agentRelayDamage": "patched"
                }}),
            ),
            (
                "/permission-request",
                r#"{"tool_name":"Ba"#,
                json!({"payload": {"tool_name": "Ba", "agentRelayDamage": "broken"}}),
            ),
            ("/permission-request", "half", json!({"payload": {"agentRelayDamage": "broken"}})),
        ] {
            match asked("POST", path, "right", body) {
                Handled::Forward(Event::Control(_, ControlRequest::Hook { body, waits, .. })) => {
                    assert!(waits && body == want, "{path}: {body}");
                }
                _ => panic!("{path} is not heard"),
            }
        }
        // What is none of a provider's is read as strictly as ever.
        assert_eq!(status(&asked("PUT", "/token", "right", r#"{"token":"t","#)), 400);
    }

    #[test]
    fn what_tools_say_becomes_an_event() {
        let is = |handled: Handled<Event>, want: ControlRequest| matches!(handled, Handled::Forward(Event::Control(Ticket(1), got)) if got == want);
        let body = json!({"to": "b", "body": "x"});
        assert!(is(
            asked("POST", "/messages", "right", &body.to_string()),
            ControlRequest::Message(body)
        ));
        let emoji = json!({"emoji": "x"});
        let reaction = ControlRequest::Reaction { message: MessageId(12), body: emoji.clone() };
        assert!(is(asked("POST", "/messages/12/reactions", "right", &emoji.to_string()), reaction));
        assert!(is(
            asked("GET", "/messages/12", "right", ""),
            ControlRequest::Given(MessageId(12))
        ));
        assert!(is(
            asked("PUT", "/token", "right", "{\"token\": \"t\"}"),
            ControlRequest::TokenOffered(Secret::new("t"))
        ));
        for body in [
            "",
            "{}",
            "{\"token\": \"\"}",
            "{\"token\": 5}",
            "{\"token\": \"a b\"}",
            &format!("{{\"token\": \"{}\"}}", "x".repeat(600)),
        ] {
            assert_eq!(status(&asked("PUT", "/token", "right", body)), 400, "{body}");
        }
    }
}
