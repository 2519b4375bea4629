//! HTTP paths and JSON bodies of the relay.

pub mod path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::path::{decode, encode};
use crate::wire::ids::{MessageId, TaskId};
use crate::wire::words::{open_words, words};

/// Header that carries the relay token on every request and on the WebSocket upgrade.
pub const TOKEN_HEADER: &str = "X-Agent-Relay-Token";

/// Whether a text can be an agent's id. Ids stand in paths, targets and command lines, so an id
/// holds nothing that has a meaning there.
pub fn is_agent_id(id: &str) -> bool {
    // Invisible letters would make one name look like another.
    let unseen = |c: char| {
        matches!(c, '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}')
    };
    let fine = |c: char| {
        (c.is_alphanumeric() && !unseen(c))
            || matches!(c, '-' | '_' | '.' | '@' | '+' | '/' | '~' | '=' | ',' | '%')
    };
    // In any case: a reader would take one for the other.
    let is_reserved = || {
        [USER, "operator", "system", "broadcast"].iter().any(|name| id.eq_ignore_ascii_case(name))
    };
    !id.is_empty()
        && id.len() <= 200
        && !id.starts_with('-')
        && id.chars().all(fine)
        && !is_reserved()
}

/// What an agent's id may be, for error texts.
pub const AGENT_ID_RULE: &str = "1 to 200 letters, digits or any of -_.@+/~=,%, not beginning with -, and none of user, operator, system and broadcast in any case";

/// The reserved recipient for people, with an inbox and read marks of its own.
pub const USER: &str = "user";

/// Code of a 409: the message or task with this id is of another generation than the call says;
/// nothing was changed.
pub const OTHER_GENERATION: &str = "other_generation";

/// Longest name of a generation, bytes.
pub const GENERATION_BYTES_MAX: usize = 200;

/// The field of a message's payload that lets it join a running turn.
pub const URGENT: &str = "urgent";

/// The field of a reply's payload that is `false` where the reply answers nobody: its turn was
/// answered to another sender.
pub const ANSWERED: &str = "answered";

open_words! {
    /// What a message is.
    MessageKind {
        Chat = "chat",
        Task = "task",
        /// A notice of the relay, which nobody answers.
        System = "system",
        /// A piece of a conversation for people to see, never delivered to an agent.
        Session = "session",
    }

    /// How a task stands.
    TaskStatus {
        Open = "open",
        Claimed = "claimed",
        InProgress = "in_progress",
        /// It waits for a person, or for who sent it.
        Blocked = "blocked",
        Done = "done",
        Failed = "failed",
        Cancelled = "cancelled",
    }

    /// How a command stands.
    CommandStatus {
        Pending = "pending",
        Accepted = "accepted",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
        Expired = "expired",
    }
}

words! {
    /// The commands that a runner carries out; the relay passes on any.
    AgentCommand {
        Shutdown = "agent.shutdown",
        Kill = "agent.kill",
        Restart = "agent.restart",
        Reconnect = "agent.reconnect",
        Compact = "agent.compact",
        ClearContext = "agent.clearContext",
        InjectContext = "agent.injectContext",
        PermissionDecision = "agent.permissionDecision",
        Interrupt = "agent.interrupt",
    }

    /// How an agent stands, as the relay tells it: who is not ready is offline.
    AgentStatus {
        Idle = "idle",
        Busy = "busy",
        Offline = "offline",
    }

    /// The state of an agent, as its runner shows it to people.
    DetailedStatus {
        Idle = "idle",
        Busy = "busy",
        Offline = "offline",
        Starting = "starting",
        Restarting = "restarting",
        /// It waits for an approval.
        Blocked = "blocked",
        /// Its turn has shown no sign of life for long.
        Stuck = "stuck",
        Error = "error",
        /// Its provider has failed too often and is not started again.
        Parked = "parked",
    }
}

words! {
    /// Who says what the status is.
    StatusSource {
        /// The runner, which sees the process and hands messages over.
        Runner = "runner",
        /// The provider's session.
        Session = "session",
        /// Somebody has posted it at the runner's control port.
        Posted = "posted",
    }
}

impl DetailedStatus {
    /// As the relay knows it: of the three states that decide about deliveries.
    pub fn coarse(self) -> AgentStatus {
        use DetailedStatus::*;
        match self {
            Idle => AgentStatus::Idle,
            Busy | Blocked | Stuck => AgentStatus::Busy,
            Offline | Starting | Restarting | Error | Parked => AgentStatus::Offline,
        }
    }
}

/// A message as it travels.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Message {
    /// Positive, at most 2^53-1; 0 only for context that a runner makes up itself.
    pub id: MessageId,
    pub from: String,
    /// Target: an agent id, `user`, `broadcast`, `label:`, `tag:`, `cap:` or `policy:`.
    pub to: String,
    /// What is not known counts as `chat`.
    pub kind: MessageKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Text, at most 512 KiB.
    pub body: String,
    /// A free record; anything else is read as an empty one.
    #[serde(deserialize_with = "record_or_empty")]
    pub payload: Map<String, Value>,
    /// The message that this one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
    /// `false` marks a notification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_expected: Option<bool>,
    /// Offered to every match; the first claim wins.
    #[serde(skip_serializing_if = "is_false")]
    pub claimable: bool,
    /// The agent that holds the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
    /// End of the claim, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_expires_at: Option<i64>,
    /// The receiver of this copy: every recipient has a row of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_to_agent: Option<String>,
    pub read_by: Vec<String>,
    /// Emoji by which recipients acknowledge without an answer.
    pub reactions: Vec<Value>,
    /// When the relay took it, ms.
    pub created_at: i64,
    /// When it happened at the sender, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<i64>,
    /// Generation of the relay's data in which its id was given; it never changes. Absent where a
    /// relay has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
}

impl Message {
    /// The task that a message carries: `payload.taskId`, a positive integer below 2^53.
    pub fn task_id(&self) -> Option<TaskId> {
        self.payload
            .get("taskId")
            .and_then(Value::as_u64)
            .filter(|id| *id > 0 && *id < (1 << 53))
            .map(TaskId)
    }

    /// Whether the sender waits for an answer: it is `chat` or `task` and not marked as a
    /// notification.
    pub fn expects_reply(&self) -> bool {
        let only_informs = matches!(self.kind, MessageKind::System | MessageKind::Session);
        !only_informs && self.reply_expected != Some(false)
    }

    /// Whether it may join a running turn.
    pub fn is_urgent(&self) -> bool {
        self.payload.get(URGENT) == Some(&Value::Bool(true))
    }

    /// Whether it mirrors a conversation: shown to people, never delivered to an agent.
    pub fn is_session_mirror(&self) -> bool {
        self.kind == MessageKind::Session
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn record_or_empty<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Map<String, Value>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Object(map) => map,
        _ => Map::new(),
    })
}

/// What a client sends to make a message: the message without what the relay decides.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NewMessage {
    /// The relay fills it in and checks it against the token: people send as `user`, an agent only
    /// as itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    pub to: String,
    /// `chat` if empty.
    #[serde(skip_serializing_if = "MessageKind::is_empty")]
    pub kind: MessageKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    pub body: String,
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "record_or_empty")]
    pub payload: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
    /// Generation that the id in `reply_to` belongs to; absent = whatever has that id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// `false` marks a notification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_expected: Option<bool>,
    #[serde(skip_serializing_if = "is_false")]
    pub claimable: bool,
    /// Sending twice under one key makes one message. Keys are per sender and kept as long as their
    /// message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// When it happened at the sender, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<i64>,
}

/// A task: work that one agent claims, and its status.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    pub id: TaskId,
    pub title: String,
    pub body: String,
    pub status: TaskStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// The claimable message that carries it.
    pub message_id: MessageId,
    /// Generation of the relay's data in which its id was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// The agent that works on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// ms since 1970.
    pub created_at: i64,
    /// ms since 1970.
    pub updated_at: i64,
    /// Every change, oldest first.
    pub history: Vec<Value>,
}

impl TaskStatus {
    /// Whether the task is settled and never offered again.
    pub fn is_final(&self) -> bool {
        matches!(self, TaskStatus::Done | TaskStatus::Failed | TaskStatus::Cancelled)
    }
}

/// A command for an agent. The hub routes, stores and expires it without looking into it.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Command {
    pub id: String,
    /// For example `agent.interrupt`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Agent id, runner id or orchestrator id.
    pub target: String,
    #[serde(deserialize_with = "record_or_empty")]
    pub params: Map<String, Value>,
    pub status: CommandStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The agent that had the target's name when the command was issued. A later holder of the name
    /// does not get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    pub issued_by: String,
    /// ms since 1970.
    pub created_at: i64,
    /// ms since 1970.
    pub updated_at: i64,
    /// ms since 1970, not seconds as in a token's record.
    pub expires_at: i64,
}

impl CommandStatus {
    /// Whether it never changes again.
    pub fn is_final(&self) -> bool {
        use CommandStatus::*;
        matches!(self, Succeeded | Failed | Cancelled | Expired)
    }
}

/// The record of a token; the token itself is never part of it. Times are in **seconds**.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenRecord {
    /// Id of the token, not the token.
    pub jti: String,
    /// `provider-agent`, `provider-interactive`, `orchestrator`, `operator` or `root`.
    pub profile_id: String,
    /// The agent that it acts as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Id of the token that the first renewal came from; all of that line are revoked together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewed_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The policy that its agent serves: only a token says so, since an agent could claim any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_name: Option<String>,
    /// The agent or orchestrator that asked for its agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spawned_by: Option<String>,
    pub scopes: Vec<String>,
    /// Seconds since 1970.
    pub issued_at: i64,
    /// Seconds since 1970; absent: it never ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
}

impl TokenRecord {
    /// Reads the answer of a relay about the token that asks: `{"record": {…}}` or the bare record.
    /// Without either the record has no profile.
    pub fn of_answer(body: &Value) -> TokenRecord {
        TokenRecord::deserialize(body.get("record").unwrap_or(body)).unwrap_or_default()
    }
}

/// One entry of an agent's reply obligations.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Obligation {
    /// The message that waits for an answer.
    pub message_id: MessageId,
    /// Sender of that message.
    pub from: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// ms since 1970.
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
    list.map(|items| items.iter().filter_map(|item| T::deserialize(item).ok()).collect())
        .unwrap_or_default()
}

/// The error body of every call: a code for programs, a sentence for people.
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
    fn ids_of_agents_are_told_from_options_and_from_reserved_names() {
        for (id, want) in [
            ("a", true),
            ("web-1/x@host", true),
            ("users", true),
            ("", false),
            ("-x", false),
            ("--help", false),
            ("a b", false),
            ("user", false),
            ("User", false),
            ("BROADCAST", false),
            ("System", false),
            ("oPerator", false),
        ] {
            assert_eq!(is_agent_id(id), want, "{id:?}");
        }
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
