//! Routes of a runner's control port (runner specification section 8). Only `/health` is open (D-42).

use serde_json::{Value, json};

use crate::core::agent::event::{ControlRequest, Event};
use crate::core::http::Request;
use crate::core::tracker::Status;
use crate::edge::gate::{Happening, Verdict};
use crate::secret::Secret;
use crate::wire::api::error_body;
use crate::wire::control::LOG_LEVELS;

/// A request that is answered already.
pub const NO_TICKET: u64 = 0;

/// Paths with their methods.
const PATHS: &[(&str, &[&str])] = &[
    ("/status", &["GET", "POST"]),
    ("/reply-obligations", &["GET"]),
    ("/stop", &["POST"]),
    ("/hook-fatal", &["POST"]),
    ("/log-level", &["GET", "POST"]),
];

fn answer(status: u16, body: Value) -> Verdict<Event> {
    Verdict::Answer(status, body.into())
}

/// What the gate of a control port asks for each thing that happens there.
pub fn handler(token: Secret) -> impl FnMut(Happening) -> Verdict<Event> + Send + 'static {
    move |happening| {
        let (ticket, request) = match happening {
            Happening::Request(ticket, request) => (ticket, request),
            Happening::Upgrade(..) | Happening::PeerText(..) | Happening::PeerClosed(_) => {
                return answer(404, error_body("not_found", "the control port has no WebSocket"));
            }
        };
        if request.path == "/health" {
            return answer(200, json!({"ok": true}));
        }
        if !same(request.token.as_bytes(), token.expose().as_bytes()) {
            let text = "the control port needs its token: Authorization: Bearer <controlToken of the runner info file>";
            return answer(401, error_body("unauthorized", text));
        }
        // what is no JSON counts as null.
        let body = serde_json::from_slice::<Value>(&request.body).unwrap_or(Value::Null);
        route(ticket, &request, body)
    }
}

fn route(ticket: u64, request: &Request, body: Value) -> Verdict<Event> {
    let ask = |request| Verdict::Event(Event::Control(ticket, request));
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/status") => ask(ControlRequest::Status),
        ("POST", "/status") => {
            // The answer depends on the word alone: a hook need not wait for the state thread.
            let known = body.get("status").and_then(Value::as_str).and_then(Status::parse);
            match known {
                Some(status) => {
                    let answer = json!({"ok": true, "status": status.word()});
                    Verdict::Tell(Event::Control(NO_TICKET, ControlRequest::StatusPosted(body)), 200, answer.into())
                }
                None => answer(400, json!({"error": "status must be idle, busy, offline, or error"})),
            }
        }
        ("GET", "/reply-obligations") => ask(ControlRequest::Obligations),
        ("POST", "/stop") => ask(ControlRequest::Stop),
        ("POST", "/hook-fatal") => {
            let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_string);
            let error = text("error").unwrap_or_else(|| "(no detail)".into());
            ask(ControlRequest::HookFatal { hook: text("hook").unwrap_or_default(), error })
        }
        ("GET", "/log-level") => answer(200, json!({"level": crate::log::current_level(), "levels": LOG_LEVELS})),
        ("POST", "/log-level") => {
            let word = body.get("level").and_then(Value::as_str).unwrap_or_default().trim().to_ascii_lowercase();
            let Some(level) = crate::log::level_of(&word) else {
                return answer(400, json!({"error": format!("level must be one of: {}", LOG_LEVELS.join(", "))}));
            };
            let previous = crate::log::current_level();
            log::set_max_level(level);
            log::info!(target: "logger", "level {previous} -> {word}");
            answer(200, json!({"ok": true, "level": word, "previous": previous}))
        }
        (method, path) => match PATHS.iter().find(|(known, _)| *known == path) {
            Some((_, methods)) => {
                answer(405, error_body("method_not_allowed", &format!("{method} is not possible at {path}; use {}", methods.join(" or "))))
            }
            None => answer(404, error_body("not_found", &format!("there is nothing at {path}"))),
        },
    }
}

/// Compares in a time that does not depend on where the texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |sum, (x, y)| sum | (x ^ y)) == 0
}
