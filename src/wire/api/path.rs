//! Paths, one function or constant per call, so that a relay with other paths costs one file.

use crate::wire::ids::{MessageId, TaskId};

/// Health, open to everybody.
pub const HEALTH: &str = "/api/health";
/// Agents: list and register.
pub const AGENTS: &str = "/api/agents";
/// Messages: send and poll.
pub const MESSAGES: &str = "/api/messages";
/// Send many messages at once.
pub const BATCH: &str = "/api/messages/batch";
/// Messages that wait for an agent.
pub const QUEUED: &str = "/api/messages/queued";
/// Commands: issue and list.
pub const COMMANDS: &str = "/api/commands";
/// Tasks: make and list.
pub const TASKS: &str = "/api/tasks";
/// Tokens: make.
pub const TOKENS: &str = "/api/tokens";
/// The record of the token that is used for the call.
pub const TOKEN_SELF: &str = "/api/tokens/self";
/// Renewal of the token that is used for the call.
pub const TOKEN_RENEW: &str = "/api/tokens/renew";
/// Insight observations; this hub keeps none and answers 409.
pub const INSIGHTS: &str = "/api/insights/observations";

/// One agent.
pub fn agent(id: &str) -> String {
    format!("{AGENTS}/{}", encode(id))
}

/// One part of an agent: `status`, `ready`, `heartbeat`, `label`, `reply-obligations`.
pub fn agent_part(id: &str, part: &str) -> String {
    format!("{AGENTS}/{}/{part}", encode(id))
}

/// One message.
pub fn message(id: MessageId) -> String {
    format!("{MESSAGES}/{id}")
}

/// One part of a message: `thread`, `claim`, `claim/renew`, `read`, `reactions`.
pub fn message_part(id: MessageId, part: &str) -> String {
    format!("{MESSAGES}/{id}/{part}")
}

/// One command.
pub fn command(id: &str) -> String {
    format!("{COMMANDS}/{}", encode(id))
}

/// One task.
pub fn task(id: TaskId) -> String {
    format!("{TASKS}/{id}")
}

/// Percent-encodes what may not stand in a path segment or a query value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char)
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Undoes [`encode`]; a broken escape stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
