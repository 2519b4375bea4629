//! `hook`: one process for one event of a provider session. It reads the payload, posts, prints the
//! decision.
//!
//! It must never hold a session: everything together takes at most `LIMIT`, a missing runner is a
//! quiet 0, and trouble of its own is told to the runner, never to the provider. No file is read
//! and no thread is started.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};

use super::exit::{Failure, OK, Outcome};
use super::print;
use crate::config::env;
use crate::core::ids::MessageId;
use crate::os;
use crate::provider::hooks::{Hooks, read_payload, read_request};
use crate::provider::registry;
use crate::wire::control::{
    CUT, ENV_CONTROL_TOKEN, ENV_PORT, ENV_PROVIDER_SESSION, ENV_REPLY_MODE, PERMISSION_REQUEST,
    POSTED,
};

/// All that a hook may take.
const LIMIT: Duration = Duration::from_secs(2);
/// A look at what is owed may take this long of it (the runner answers from memory).
const OWED_LIMIT: Duration = Duration::from_millis(500);
/// Bytes of a payload; of what is longer the beginning is read.
const PAYLOAD_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a body that the control port takes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of one field of a payload.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// Bytes of an answer of the runner.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Words that every provider's hooks may say: they are the status itself.
pub(super) const STATUS_WORDS: [&str; 4] = ["busy", "idle", "error", "offline"];

/// All events.
pub fn events() -> Vec<&'static str> {
    registry::hooks().flat_map(|hooks| hooks.events).copied().chain(STATUS_WORDS).collect()
}

/// The runner that started this session.
struct Runner {
    address: SocketAddr,
    token: String,
    until: Instant,
}

impl Runner {
    fn from_env(until: Instant) -> Option<Runner> {
        let port: u16 = env(ENV_PORT)?.parse().ok()?;
        Some(Runner {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            token: env(ENV_CONTROL_TOKEN).unwrap_or_default(),
            until,
        })
    }

    /// The first event of the stream that a request becomes, however long it takes; `None` when it
    /// ends without one.
    fn wait_for(&self, path: &str, body: &str) -> Option<String> {
        let mut socket = TcpStream::connect_timeout(&self.address, LIMIT).ok()?;
        socket.write_all((self.head("POST", path, body.len()) + body).as_bytes()).ok()?;
        let (mut answer, mut piece) = (Vec::new(), [0u8; 4096]);
        loop {
            let size = socket.read(&mut piece).ok().filter(|size| *size > 0)?;
            answer.extend_from_slice(&piece[..size]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((event, _)) =
                text.split_once("\ndata: ").and_then(|(_, rest)| rest.split_once("\n\n"))
            {
                return Some(event.to_string());
            }
            if answer.len() > ANSWER_BYTES_MAX {
                return None;
            }
        }
    }

    fn head(&self, method: &str, path: &str, length: usize) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n",
            self.token
        )
    }

    /// One exchange; `None` when nobody answers in time.
    fn ask(&self, method: &str, path: &str, body: &str, limit: Duration) -> Option<(u16, Value)> {
        let left = || {
            self.until
                .saturating_duration_since(Instant::now())
                .min(limit)
                .max(Duration::from_millis(1))
        };
        let mut socket = TcpStream::connect_timeout(&self.address, left()).ok()?;
        socket.set_nodelay(true).ok()?;
        socket.set_write_timeout(Some(left())).ok()?;
        socket.write_all((self.head(method, path, body.len()) + body).as_bytes()).ok()?;
        // The limit counts for the whole answer, not for each piece of it.
        let (mut answer, mut piece, end) = (Vec::new(), [0u8; 4096], Instant::now() + left());
        loop {
            socket
                .set_read_timeout(Some(
                    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)),
                ))
                .ok()?;
            match socket.read(&mut piece).ok()? {
                0 => break,
                size => answer.extend_from_slice(&piece[..size]),
            }
            if answer.len() > ANSWER_BYTES_MAX || Instant::now() >= end {
                return None;
            }
        }
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
        let status = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
        Some((status, serde_json::from_slice(&answer[end + 4..]).unwrap_or(Value::Null)))
    }
}

/// Standard input to its end, in time, and why that is not all. A terminal is no payload.
fn payload(until: Instant) -> (Vec<u8>, Option<String>) {
    let mut bytes = Vec::new();
    let cut = read_input(until, &mut bytes).err();
    (bytes, cut)
}

fn read_input(until: Instant, bytes: &mut Vec<u8>) -> Result<(), String> {
    let stdin = std::io::stdin();
    if rustix::termios::isatty(&stdin) {
        return Ok(());
    }
    let mut piece = [0u8; 65536];
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let left = until.saturating_duration_since(Instant::now());
        os::wait(&mut fds, Some(if crate::planted::is("endless-hook") { left * 20 } else { left }));
        if !os::is_ready(&fds[0]) {
            return Err("the payload did not come in time".into());
        }
        match rustix::io::read(&stdin, &mut piece) {
            Ok(0) => return Ok(()),
            Ok(size) => bytes.extend_from_slice(&piece[..size]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(format!("the payload cannot be read: {error}")),
        }
        if bytes.len() as u64 > PAYLOAD_BYTES_MAX {
            return Err(format!("the payload is longer than {PAYLOAD_BYTES_MAX} bytes"));
        }
    }
}

/// An event that there is.
pub(super) fn must_be_known(event: &str) -> Result<(), Failure> {
    if events().contains(&event) {
        return Ok(());
    }
    Err(Failure::no(format!(
        "there is no hook event {event:?}; `agent-relay hook --help` lists them"
    )))
}

/// `hook`
pub fn hook(event: &str) -> Outcome {
    let until = Instant::now() + LIMIT;
    // A mistyped event must show where somebody looks, also without a runner; but not as exit code
    // 2, which would stop the session of some providers.
    must_be_known(event)?;
    let hooks = registry::hooks().find(|hooks| hooks.events.contains(&event));
    let Some(runner) = Runner::from_env(until) else {
        return Ok(OK);
    };
    // A bare word needs no payload, so a shell's standard input is left alone.
    let Some(hooks) = hooks else {
        // An end of all that was posted, and of the turn.
        let post = match event {
            "idle" => json!({"status": event, "clear": [POSTED]}),
            _ => json!({"status": event}),
        };
        return report(&runner, event, "/status", post, None);
    };
    if event == PERMISSION_REQUEST {
        return permission(&runner, hooks);
    }
    let (bytes, cut) = payload(until - LIMIT / 4);
    let (payload, trouble) = read_payload(&bytes, cut);
    let explicit = env(ENV_REPLY_MODE).as_deref() == Some("explicit");
    if explicit && trouble.is_none() && (hooks.may_be_held_back)(event, &payload) {
        // Only where the agent answers itself is it held back, once, for what it owes.
        let owed = runner
            .ask("GET", "/reply-obligations", "", OWED_LIMIT)
            .map(|(_, owed)| owed)
            .unwrap_or_default();
        if let Some(reason) = reason_to_go_on(&owed) {
            print::json(&(hooks.hold_back)(&reason));
            return Ok(OK);
        }
    }
    if (hooks.is_for_session)(event, &payload) {
        return report(
            &runner,
            event,
            &format!("/hook/{event}"),
            json!({"payload": trimmed(payload)}),
            trouble,
        );
    }
    report(&runner, event, "/status", (hooks.status_post)(event, &payload), trouble)
}

/// Tells the runner, and what went wrong on the way: the status is posted whatever failed.
fn report(
    runner: &Runner,
    event: &str,
    path: &str,
    mut post: Value,
    trouble: Option<String>,
) -> Outcome {
    if post.is_null() {
        return Ok(OK);
    }
    if let Some(session) = env(ENV_PROVIDER_SESSION) {
        post["providerSessionId"] = json!(session);
    }
    post["at"] = json!(print::now_ms());
    // Whatever failed before: the status is posted.
    let told = runner.ask("POST", path, &post.to_string(), LIMIT);
    if let (Some(trouble), Some(_)) = (trouble, told) {
        runner.ask(
            "POST",
            "/hook-fatal",
            &json!({"hook": event, "error": trouble}).to_string(),
            LIMIT,
        );
    }
    Ok(OK)
}

/// A payload that the control port takes: long texts are cut.
fn trimmed(mut payload: Value) -> Value {
    for value in payload.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        match value {
            Value::String(text) if text.len() > TEXT_BYTES_MAX => {
                let end =
                    (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                text.truncate(end);
            }
            Value::Object(_) | Value::Array(_) if value.to_string().len() > TEXT_BYTES_MAX => {
                *value = Value::Null
            }
            _ => {}
        }
    }
    payload
}

/// A payload whose tool input is too long to be shown: its texts are cut, and it says so.
fn cut_input(mut payload: Value, field: &str) -> Value {
    payload[CUT] = json!(true);
    if let Some(input) = payload.get_mut(field).map(Value::take) {
        payload[field] = trimmed(input);
    }
    trimmed(payload)
}

/// A permission is asked for: the connection stays open until it is decided, and what comes is
/// printed. Whatever fails, nothing is printed: then the provider asks at its own terminal.
fn permission(runner: &Runner, hooks: &Hooks) -> Outcome {
    let (bytes, cut) = payload(Instant::now() + LIMIT);
    let mut payload = read_request(&bytes, cut);
    if payload.to_string().len() > BODY_BYTES_MAX {
        payload = cut_input(payload, hooks.input_field);
    }
    let mut body = json!({"payload": payload, "at": print::now_ms()});
    if let Some(session) = env(ENV_PROVIDER_SESSION) {
        body["providerSessionId"] = json!(session);
    }
    if let Some(answer) = runner.wait_for(&format!("/hook/{PERMISSION_REQUEST}"), &body.to_string())
    {
        print::trusted(&answer);
    }
    Ok(OK)
}

/// The session has done this (`fetched`, `replied`) to messages with its own tool: told to its
/// runner, if there is one.
pub(super) fn done_by_session(what: &str, ids: &[MessageId]) {
    let Some(runner) = Runner::from_env(Instant::now() + OWED_LIMIT) else { return };
    let body = json!({"payload": {"ids": ids}, "providerSessionId": env(ENV_PROVIDER_SESSION)});
    runner.ask("POST", &format!("/hook/{what}"), &body.to_string(), OWED_LIMIT);
}

/// Why the provider is to go on: it owes answers and is to give them itself.
fn reason_to_go_on(owed: &Value) -> Option<String> {
    let list = owed.get("obligations")?.as_array()?;
    if owed.get("replyMode").and_then(Value::as_str) != Some("explicit") || list.is_empty() {
        return None;
    }
    let names: Vec<String> = list
        .iter()
        .take(20)
        .map(|item| format!("#{} from {}", item["messageId"], item["from"].as_str().unwrap_or("?")))
        .collect();
    Some(format!(
        "You owe an answer to relay message {}. Answer each with `agent-relay reply <id> --stdin` (or react with `agent-relay react <id> <emoji>`), then stop.",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agent_that_answers_itself_is_held_back() {
        let owed = |mode: &str, ids: &[MessageId]| {
            let list: Vec<Value> =
                ids.iter().map(|id| json!({"messageId": id, "from": "user"})).collect();
            json!({"obligations": list, "replyMode": mode})
        };
        assert!(
            reason_to_go_on(&owed("explicit", &[MessageId(12)]))
                .is_some_and(|reason| reason.contains("#12"))
        );
        for owed in [owed("auto", &[MessageId(12)]), owed("explicit", &[]), json!({}), Value::Null]
        {
            assert_eq!(reason_to_go_on(&owed), None, "{owed}");
        }
    }
}
