//! HTTP paths and JSON bodies of the relay (protocol sections 3 to 6).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::wire::ids::{MessageId, TaskId};

/// Header that carries the relay token on every request and on the WebSocket upgrade (protocol section 1).
pub const TOKEN_HEADER: &str = "X-Agent-Relay-Token";
/// Whether a text can be an agent's id: it stands in paths, targets and command lines, so it holds nothing that those
/// would take for something else.
pub fn is_agent_id(id: &str) -> bool {
    // Letters that nobody sees would let a name look like another one.
    let unseen = |c: char| matches!(c, '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}');
    let fine = |c: char| (c.is_alphanumeric() && !unseen(c)) || matches!(c, '-' | '_' | '.' | '@' | '+' | '/' | '~' | '=' | ',' | '%');
    !id.is_empty() && id.len() <= 200 && id.chars().all(fine) && ![USER, "operator", "system", "broadcast"].contains(&id)
}

/// What an agent's id may be, for error texts.
pub const AGENT_ID_RULE: &str = "1 to 200 letters, digits or any of -_.@+/~=,% and none of user, operator, system and broadcast";

/// The reserved recipient for people (D-5).
pub const USER: &str = "user";

/// Code of a 409: the message or task with this id is of another generation than the call says; nothing was changed.
pub const OTHER_GENERATION: &str = "other_generation";

/// Longest name of a generation, bytes.
pub const GENERATION_BYTES_MAX: usize = 200;

/// The field of a message's payload that lets it join a running turn.
pub const URGENT: &str = "urgent";

/// The field of a reply's payload that says `false` where the reply is no answer: its turn was answered to another sender.
pub const ANSWERED: &str = "answered";

/// Paths, one function or constant per call, so that a relay with other paths costs one file.
pub mod path {
    use crate::wire::ids::{MessageId, TaskId};

    /// Health, open to everybody.
    pub const HEALTH: &str = "/api/health";
    /// Agents: list and register.
    pub const AGENTS: &str = "/api/agents";
    /// Messages: send and poll.
    pub const MESSAGES: &str = "/api/messages";
    /// Many messages at once (D-32).
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
    /// Insight observations (D-18).
    pub const INSIGHTS: &str = "/api/insights/observations";

    /// One agent.
    pub fn agent(id: &str) -> String {
        format!("{AGENTS}/{}", super::encode(id))
    }
    /// One part of an agent: `status`, `ready`, `heartbeat`, `label`, `reply-obligations`.
    pub fn agent_part(id: &str, part: &str) -> String {
        format!("{AGENTS}/{}/{part}", super::encode(id))
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
        format!("{COMMANDS}/{}", super::encode(id))
    }
    /// One task.
    pub fn task(id: TaskId) -> String {
        format!("{TASKS}/{id}")
    }
}

/// Percent-encodes what may not stand in a path segment or a query value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
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

/// A message as it travels (protocol section 4).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Message {
    /// Positive, at most 2^53-1; 0 only for context that a runner makes up itself.
    pub id: MessageId,
    /// Sender.
    pub from: String,
    /// Target: an agent id, `user`, `broadcast`, `label:`, `tag:`, `cap:` or `policy:`.
    pub to: String,
    /// `chat`, `task`, `system` or `session`; anything else counts as `chat`.
    pub kind: String,
    /// Optional channel name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Optional subject line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Text, at most 512 KiB.
    pub body: String,
    /// Free record.
    #[serde(deserialize_with = "record_or_empty")]
    pub payload: Map<String, Value>,
    /// The message that this one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
    /// `false` marks a notification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_expected: Option<bool>,
    /// The first claim wins it.
    #[serde(skip_serializing_if = "is_false")]
    pub claimable: bool,
    /// Who holds the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
    /// End of the claim, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_expires_at: Option<i64>,
    /// The receiver of this very copy (D-14).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_to_agent: Option<String>,
    /// Who has read it.
    pub read_by: Vec<String>,
    /// Light acknowledgements.
    pub reactions: Vec<Value>,
    /// When the relay took it, ms.
    pub created_at: i64,
    /// When it happened at the sender, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<i64>,
    /// Generation of the relay's data in which its id was given; it never changes. Absent where a relay has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
}

impl Message {
    /// The task that a message carries: `payload.taskId`, a safe integer other than 0.
    pub fn task_id(&self) -> Option<TaskId> {
        self.payload.get("taskId").and_then(Value::as_u64).filter(|id| *id > 0 && *id < (1 << 53)).map(TaskId)
    }

    /// Whether the sender waits for an answer: `chat` or `task` and not marked otherwise (P-11a).
    pub fn expects_reply(&self) -> bool {
        self.kind != "system" && self.kind != "session" && self.reply_expected != Some(false)
    }

    /// Whether it need not wait for the end of a turn.
    pub fn is_urgent(&self) -> bool {
        self.payload.get(URGENT) == Some(&Value::Bool(true))
    }

    /// Whether it only shows a provider session and is never delivered into one.
    pub fn is_session_mirror(&self) -> bool {
        self.kind == "session"
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn record_or_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Map<String, Value>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Object(map) => map,
        _ => Map::new(),
    })
}

/// What a client sends to make a message: the message without what the relay decides.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NewMessage {
    /// Sender; the relay fills it in and checks it against the token (D-5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Target.
    pub to: String,
    /// Kind, `chat` if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Text.
    pub body: String,
    /// Free record.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "record_or_empty")]
    pub payload: Map<String, Value>,
    /// Answered message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
    /// Generation that the id in `reply_to` belongs to; absent = whatever has that id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// `false` for a notification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_expected: Option<bool>,
    /// First claim wins.
    #[serde(skip_serializing_if = "is_false")]
    pub claimable: bool,
    /// Sending twice under one key makes one message (per sender, D-17).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// When it happened at the sender, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<i64>,
}

/// A task (protocol section 4).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    /// Positive integer.
    pub id: TaskId,
    /// One line.
    pub title: String,
    /// What to do.
    pub body: String,
    /// `open`, `claimed`, `in_progress`, `blocked`, `done`, `failed`, `cancelled`.
    pub status: String,
    /// Free word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// The claimable message that carries it.
    pub message_id: MessageId,
    /// Generation of the relay's data in which its id was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// Who works on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// ms.
    pub created_at: i64,
    /// ms.
    pub updated_at: i64,
    /// Every change, oldest first.
    pub history: Vec<Value>,
}

/// Whether a task status is final: settled, never offered again.
pub fn task_is_final(status: &str) -> bool {
    matches!(status, "done" | "failed" | "cancelled")
}

/// A command (protocol section 5).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Command {
    /// Opaque.
    pub id: String,
    /// For example `agent.interrupt`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Agent id, runner id or orchestrator id.
    pub target: String,
    /// Parameters.
    #[serde(deserialize_with = "record_or_empty")]
    pub params: Map<String, Value>,
    /// `pending`, `accepted`, `running`, `succeeded`, `failed`, `cancelled`, `expired`.
    pub status: String,
    /// What it brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The agent that it is for: of those that have the target's name one after the other, the one that had it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Who asked.
    pub issued_by: String,
    /// ms.
    pub created_at: i64,
    /// ms.
    pub updated_at: i64,
    /// ms (not seconds, unlike a token's).
    pub expires_at: i64,
}

/// Whether a command status never changes again.
pub fn command_is_final(status: &str) -> bool {
    matches!(status, "succeeded" | "failed" | "cancelled" | "expired")
}

/// The record of a token; the token itself is never part of it. Times are in **seconds**.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenRecord {
    /// Id of the token.
    pub jti: String,
    /// `provider-agent`, `provider-interactive`, `orchestrator`, `operator` or `root`.
    pub profile_id: String,
    /// The agent that it acts as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Id of the token that the first renewal came from; all of that line are revoked together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewed_from: Option<String>,
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The policy that its agent serves: only a token says so, since an agent could claim any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_name: Option<String>,
    /// Whose wish its agent was made for: another agent or an orchestrator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spawned_by: Option<String>,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Seconds.
    pub issued_at: i64,
    /// Seconds; absent = never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
}

impl TokenRecord {
    /// What a relay tells of the token that asks: `{"record": {…}}` or the bare record; one without a profile where it tells nothing.
    pub fn told(body: &Value) -> TokenRecord {
        TokenRecord::deserialize(body.get("record").unwrap_or(body)).unwrap_or_default()
    }
}

/// One entry of an agent's reply obligations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Obligation {
    /// The message that waits for an answer.
    pub message_id: MessageId,
    /// Its sender.
    pub from: String,
    /// Its subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// ms.
    pub created_at: i64,
}

/// Reads `{"obligations": [..]}` or the bare list; anything else is empty.
pub fn obligations_of(value: &Value) -> Vec<Obligation> {
    list_of(value, "obligations")
}

/// Reads `{"messages": [..]}` or the bare list.
pub fn messages_of(value: &Value) -> Vec<Message> {
    list_of(value, "messages")
}

fn list_of<T: serde::de::DeserializeOwned>(value: &Value, field: &str) -> Vec<T> {
    let list = value.get(field).unwrap_or(value).as_array();
    list.map(|items| items.iter().filter_map(|item| T::deserialize(item).ok()).collect()).unwrap_or_default()
}

/// The error body of every call.
pub fn error_body(code: &str, sentence: &str) -> Value {
    serde_json::json!({"error": sentence, "code": code})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_survives_the_round_trip() {
        for text in ["a-b", "label:x y", "ü/%", "a+b&c=d"] {
            assert_eq!(decode(&encode(text)), text);
        }
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    #[test]
    fn a_message_is_read_leniently() {
        let read: Message = serde_json::from_value(serde_json::json!({
            "id": 7, "from": "a", "to": "b", "payload": null, "newer": {"x": 1}, "replyExpected": false
        }))
        .expect("lenient");
        assert_eq!((read.id, read.expects_reply(), read.payload.len()), (MessageId(7), false, 0));
        assert_eq!(messages_of(&serde_json::json!([{"id": 1}, 5, {"id": 2}])).len(), 2);
    }
}
