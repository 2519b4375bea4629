//! What the server tells by notifications: typed where it is used, ignored where it is not.
//!
//! Reading is lenient: a missing field is empty, a status may be a word or an object, and a name
//! may be written with dots instead of slashes.

use serde_json::Value;

use crate::core::session::TurnEnd;
use crate::provider::text::one_line;

/// Characters of an error's text that are kept.
const ERROR_CHARS_MAX: usize = 1000;

/// A text field, empty where it is missing or no text.
pub fn text<'a>(of: &'a Value, at: &str) -> &'a str {
    of.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

/// A piece of a turn: a message, a command and the like.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its id, which stays the same from its start to its end.
    pub id: String,
    /// Its type, in the server's spelling.
    pub kind: String,
    /// All that was told of it.
    pub record: Value,
}

impl Item {
    /// Reads an item; what has no type counts as one of an unknown type.
    pub fn read(record: &Value) -> Item {
        Item {
            id: text(record, "/id").into(),
            kind: text(record, "/type").into(),
            record: record.clone(),
        }
    }

    /// A text field of it.
    pub fn text(&self, at: &str) -> &str {
        text(&self.record, at)
    }

    /// What a user's message says, its texts one below the other.
    pub fn said(&self) -> String {
        let parts = self.record.get("content").and_then(Value::as_array);
        let texts = parts.into_iter().flatten().map(|part| text(part, "/text"));
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

/// How a turn stands.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnStatus {
    /// It runs.
    InProgress,
    /// It is over.
    Completed,
    /// Somebody ended it.
    Interrupted,
    /// It failed, with the reason.
    Failed(String),
}

impl TurnStatus {
    /// How a turn of this status has ended.
    pub fn end(&self) -> TurnEnd {
        match self {
            TurnStatus::Completed | TurnStatus::InProgress => TurnEnd::Completed,
            TurnStatus::Interrupted => TurnEnd::Cancelled,
            TurnStatus::Failed(error) => TurnEnd::Failed(error.clone()),
        }
    }
}

/// A turn, as its end or the history tells it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub struct TurnRecord {
    pub id: String,
    pub status: TurnStatus,
    pub items: Vec<Item>,
}

impl TurnRecord {
    /// Reads a turn. A status of an unknown name counts as one that is over.
    pub fn read(turn: &Value) -> TurnRecord {
        let status = match text(turn, "/status") {
            "inProgress" => TurnStatus::InProgress,
            "interrupted" => TurnStatus::Interrupted,
            "failed" => TurnStatus::Failed(error_text(turn.get("error").unwrap_or(&Value::Null))),
            _ => TurnStatus::Completed,
        };
        let items = turn.get("items").and_then(Value::as_array).into_iter().flatten();
        let items = items.map(Item::read).collect();
        TurnRecord { id: text(turn, "/id").into(), status, items }
    }

    /// The turns of a page of the history, the newest first.
    pub fn page(reply: &Value) -> Vec<TurnRecord> {
        let data = reply.get("data").and_then(Value::as_array).into_iter().flatten();
        data.map(TurnRecord::read).collect()
    }
}

/// What an error says, with what it may say besides.
pub fn error_text(error: &Value) -> String {
    let (message, more) = (text(error, "/message"), text(error, "/additionalDetails"));
    let message = if message.is_empty() { "the turn failed" } else { message };
    let whole = match more {
        "" => message.to_string(),
        more if message.contains(more) => message.to_string(),
        more => format!("{message}: {more}"),
    };
    one_line(&whole, ERROR_CHARS_MAX)
}

/// A notification that is used.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub enum Notice {
    TurnStarted {
        turn: String,
    },
    TurnCompleted(TurnRecord),
    ItemStarted {
        turn: String,
        item: Item,
    },
    ItemCompleted {
        turn: String,
        item: Item,
    },
    /// A further piece of a message of the agent.
    MessageDelta {
        turn: String,
        item: String,
        delta: String,
    },
    /// What a thread does: its state, and what it waits for.
    Status {
        state: String,
        flags: Vec<String>,
    },
    /// Tokens of the last request, and room for them.
    Usage {
        used: u64,
        window: u64,
    },
    Failure {
        error: String,
        will_retry: bool,
    },
    /// A request of the server has its answer.
    Resolved {
        request: Value,
    },
    /// The settings of the thread were changed.
    Model(String),
    /// The thread is not loaded any more.
    Closed,
    RateLimits(Value),
}

/// Reads a notification: the thread that it is about (empty: none), and what it says. `None`: it is
/// of no use.
pub fn read(method: &str, params: &Value) -> Option<(String, Notice)> {
    let method = method.replace('.', "/");
    let turn = || text(params, "/turnId").to_string();
    let item = || Item::read(params.get("item").unwrap_or(&Value::Null));
    let notice = match method.as_str() {
        "turn/started" => Notice::TurnStarted { turn: text(params, "/turn/id").into() },
        "turn/completed" | "turn/failed" | "turn/interrupted" => {
            let mut record = TurnRecord::read(params.get("turn").unwrap_or(&Value::Null));
            if record.status == TurnStatus::InProgress {
                record.status = TurnStatus::Completed; // it is over, whatever stands there
            }
            Notice::TurnCompleted(record)
        }
        "item/started" => Notice::ItemStarted { turn: turn(), item: item() },
        "item/completed" => Notice::ItemCompleted { turn: turn(), item: item() },
        "item/agentMessage/delta" => Notice::MessageDelta {
            turn: turn(),
            item: text(params, "/itemId").into(),
            delta: text(params, "/delta").into(),
        },
        "thread/status/changed" => status(params),
        "thread/tokenUsage/updated" => {
            let number = |at: &str| params.pointer(at).and_then(Value::as_u64).unwrap_or_default();
            Notice::Usage {
                used: number("/tokenUsage/last/totalTokens"),
                window: number("/tokenUsage/modelContextWindow"),
            }
        }
        "error" => Notice::Failure {
            error: error_text(params.get("error").unwrap_or(&Value::Null)),
            will_retry: params.get("willRetry") == Some(&Value::Bool(true)),
        },
        "serverRequest/resolved" => {
            Notice::Resolved { request: params.get("requestId").cloned().unwrap_or_default() }
        }
        "thread/settings/updated" => Notice::Model(text(params, "/threadSettings/model").into()),
        "thread/closed" => Notice::Closed,
        "account/rateLimits/updated" => {
            Notice::RateLimits(params.get("rateLimits").cloned().unwrap_or_default())
        }
        _ => return None,
    };
    Some((text(params, "/threadId").to_string(), notice))
}

fn status(params: &Value) -> Notice {
    let status = params.get("status").unwrap_or(&Value::Null);
    let state = status.as_str().unwrap_or_else(|| text(status, "/type")).to_string();
    let flags = status.get("activeFlags").and_then(Value::as_array).into_iter().flatten();
    let flags = flags.filter_map(Value::as_str).map(String::from).collect();
    Notice::Status { state, flags }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_of_a_status_are_read() {
        let status = |status: Value| {
            read("thread/status/changed", &json!({"threadId": "t", "status": status}))
        };
        let want = |state: &str, flags: &[&str]| {
            let flags = flags.iter().map(|flag| flag.to_string()).collect();
            Some(("t".to_string(), Notice::Status { state: state.into(), flags }))
        };
        assert_eq!(status(json!("idle")), want("idle", &[]));
        assert_eq!(status(json!({"type": "idle"})), want("idle", &[]));
        assert_eq!(
            status(json!({"type": "active", "activeFlags": ["waitingOnApproval", 5]})),
            want("active", &["waitingOnApproval"])
        );
        assert_eq!(status(json!(null)), want("", &[]));
    }

    #[test]
    fn the_end_of_a_turn_is_its_status() {
        for (turn, want) in [
            (json!({"id": "u", "status": "completed", "error": null}), TurnStatus::Completed),
            (json!({"id": "u", "status": "interrupted"}), TurnStatus::Interrupted),
            (json!({"id": "u", "status": "inProgress"}), TurnStatus::Completed),
            (json!({"id": "u", "status": "later word"}), TurnStatus::Completed),
            (
                json!({"id": "u", "status": "failed", "error": {"message": "no", "additionalDetails": "quota"}}),
                TurnStatus::Failed("no: quota".into()),
            ),
            (json!({"id": "u", "status": "failed"}), TurnStatus::Failed("the turn failed".into())),
        ] {
            let read = read("turn.completed", &json!({"threadId": "t", "turn": turn}));
            let record = TurnRecord { id: "u".into(), status: want, items: Vec::new() };
            assert_eq!(read, Some(("t".into(), Notice::TurnCompleted(record))), "{turn}");
        }
    }

    #[test]
    fn what_is_not_used_is_ignored() {
        for method in ["thread/started", "configWarning", "thread/readState/changed", ""] {
            assert_eq!(read(method, &json!({"threadId": "t"})), None, "{method}");
        }
        assert_eq!(
            read("turn/started", &Value::Null),
            Some((String::new(), Notice::TurnStarted { turn: String::new() }))
        );
    }
}
