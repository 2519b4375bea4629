//! Frames of the bus: envelope `{"type", "id"?, "payload"}`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::api::{Command, CommandStatus};

/// Close code: the relay stops.
pub const CLOSE_GOING: u16 = 1001;
/// Close code: an orderly end.
pub const CLOSE_NORMAL: u16 = 1000;
/// Close code: a limit was met, which the reason names.
pub const CLOSE_POLICY: u16 = 1008;
/// Close code: unauthorized.
pub const CLOSE_UNAUTHORIZED: u16 = 4001;
/// Close code: another instance took over.
pub const CLOSE_SUPERSEDED: u16 = 4002;
/// Close code: the agent was deleted.
pub const CLOSE_DELETED: u16 = 4003;
/// Close code: silent for too long, or a reader that does not keep up.
pub const CLOSE_SILENT: u16 = 4008;
/// Close code: frame too large.
pub const CLOSE_TOO_LARGE: u16 = 4009;

/// How a component describes itself when it registers; its token travels in the header.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Registration {
    /// `provider`, `channel`, `orchestrator` or `integration`.
    pub role: String,
    /// Runner id or another component's id.
    pub component_id: String,
    /// The agent that it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Fresh for every process.
    pub instance_id: String,
    /// Texts of one line, without duplicates; self-declared.
    pub capabilities: Vec<String>,
    /// Of the same form.
    pub tags: Vec<String>,
    /// Name of the host.
    pub machine: String,
    /// What people see of the agent; absent values are null.
    pub meta: Map<String, Value>,
    /// Protocol version of the sender.
    pub protocol: u32,
    /// Newest event seen. It only serves subscribed events: deliveries depend on acknowledgements
    /// alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// A frame from a client.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum ClientFrame {
    /// First frame of a connection.
    Register { id: String, registration: Registration },
    /// Sent every `heartbeatIntervalMs`.
    Heartbeat { status: String, meta: Option<Map<String, Value>> },
    /// Last value wins.
    Status { agent_status: String, ready: Option<bool>, meta: Option<Map<String, Value>> },
    /// Asks the relay to issue a command.
    Command { id: String, command_type: String, target: String, params: Map<String, Value> },
    /// Progress of a command.
    CommandUpdate {
        id: String,
        command_id: String,
        status: CommandStatus,
        result: Option<Value>,
        error: Option<String>,
    },
    /// Asks for events by name.
    Subscribe { id: String, events: Vec<String>, scopes: Vec<String> },
    /// The named frame is now the client's responsibility: it stands in its durable store.
    Ack { frame_id: String },
    /// Asks for subscribed events again.
    Resume { id: String, since: u64 },
}

/// A frame from the relay.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum RelayFrame {
    /// Answer to `register`.
    Registered { id: String, registered: Registered },
    /// An event; `message.new` among them.
    Event { seq: u64, event: String, data: Value, at: i64 },
    /// A command for this client.
    Command { id: String, command: Command },
    /// Answers `command`, `command.update`, `subscribe`, `resume`.
    Ack { frame_id: String },
    /// Something went wrong; the connection goes on unless it is closed.
    Error { id: Option<String>, code: String, message: String, retryable: bool },
}

/// Payload of `registered`.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Registered {
    /// The agent as the relay knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Counts the instances of this agent.
    pub epoch: u64,
    /// Number of the newest event.
    pub seq: u64,
    /// The relay wants a heartbeat this often, ms.
    pub heartbeat_interval_ms: u64,
    /// ms since 1970.
    pub server_time: i64,
    /// Name, version and protocol of the relay; id and generation of its data, highest message id.
    pub server: Map<String, Value>,
}

/// Why a frame could not be read; it never ends the connection by itself.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum FrameError {
    /// Not a JSON object, or it lacks what its type needs.
    Malformed { id: Option<String>, reason: String },
    /// A type that a newer peer may know: ignored.
    Unknown { kind: String },
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    id: Value,
    #[serde(default)]
    payload: Value,
}

fn envelope(text: &str) -> Result<(String, Option<String>, Value), FrameError> {
    let read: Envelope = serde_json::from_str(text).map_err(|error| FrameError::Malformed {
        id: None,
        reason: format!("the frame is not a JSON object with a type: {error}"),
    })?;
    let id = match read.id {
        Value::String(id) => Some(id),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    };
    Ok((read.kind, id, read.payload))
}

fn text_of(payload: &Value, field: &str, id: &Option<String>) -> Result<String, FrameError> {
    payload.get(field).and_then(Value::as_str).map(str::to_string).ok_or_else(|| {
        FrameError::Malformed {
            id: id.clone(),
            reason: format!("payload lacks the text field {field}"),
        }
    })
}

fn record_of(payload: &Value, field: &str) -> Option<Map<String, Value>> {
    payload.get(field).and_then(Value::as_object).cloned()
}

fn texts_of(payload: &Value, field: &str) -> Vec<String> {
    let list = payload.get(field).and_then(Value::as_array);
    list.map(|items| items.iter().filter_map(Value::as_str).map(str::to_string).collect())
        .unwrap_or_default()
}

impl ClientFrame {
    /// Reads one text frame of a client.
    pub fn parse(text: &str) -> Result<ClientFrame, FrameError> {
        let (kind, id, payload) = envelope(text)?;
        let need = |id: &Option<String>| {
            id.clone().ok_or_else(|| FrameError::Malformed {
                id: None,
                reason: format!("{kind} needs an id"),
            })
        };
        Ok(match kind.as_str() {
            "register" => {
                let registration = Registration::deserialize(&payload).map_err(|error| {
                    FrameError::Malformed { id: id.clone(), reason: error.to_string() }
                })?;
                ClientFrame::Register { id: need(&id)?, registration }
            }
            "heartbeat" => ClientFrame::Heartbeat {
                status: text_of(&payload, "status", &id).unwrap_or_default(),
                meta: record_of(&payload, "meta"),
            },
            "status" => ClientFrame::Status {
                agent_status: text_of(&payload, "agentStatus", &id)?,
                ready: payload.get("ready").and_then(Value::as_bool),
                meta: record_of(&payload, "meta"),
            },
            "command" => ClientFrame::Command {
                id: need(&id)?,
                command_type: text_of(&payload, "commandType", &id)?,
                target: text_of(&payload, "target", &id)?,
                params: record_of(&payload, "params").unwrap_or_default(),
            },
            "command.update" => ClientFrame::CommandUpdate {
                id: need(&id)?,
                command_id: text_of(&payload, "commandId", &id)?,
                status: text_of(&payload, "status", &id)?.into(),
                result: payload.get("result").filter(|v| !v.is_null()).cloned(),
                error: payload.get("error").and_then(Value::as_str).map(str::to_string),
            },
            "subscribe" => ClientFrame::Subscribe {
                id: need(&id)?,
                events: texts_of(&payload, "events"),
                scopes: texts_of(&payload, "scopes"),
            },
            "ack" => ClientFrame::Ack { frame_id: text_of(&payload, "frameId", &id)? },
            "resume" => ClientFrame::Resume {
                id: need(&id)?,
                since: payload.get("since").and_then(Value::as_u64).unwrap_or_default(),
            },
            _ => return Err(FrameError::Unknown { kind }),
        })
    }

    /// Its id, where it has one of its own.
    pub fn id(&self) -> Option<&str> {
        match self {
            ClientFrame::Register { id, .. }
            | ClientFrame::Command { id, .. }
            | ClientFrame::CommandUpdate { id, .. }
            | ClientFrame::Subscribe { id, .. }
            | ClientFrame::Resume { id, .. } => Some(id),
            ClientFrame::Heartbeat { .. }
            | ClientFrame::Status { .. }
            | ClientFrame::Ack { .. } => None,
        }
    }

    /// Writes the frame.
    pub fn to_text(&self) -> String {
        match self {
            ClientFrame::Register { id, registration } => json!({"type": "register", "id": id, "payload": registration}),
            ClientFrame::Heartbeat { status, meta } => {
                json!({"type": "heartbeat", "payload": {"status": status, "meta": meta}})
            }
            ClientFrame::Status { agent_status, ready, meta } => {
                json!({"type": "status", "payload": {"agentStatus": agent_status, "ready": ready, "meta": meta}})
            }
            ClientFrame::Command { id, command_type, target, params } => json!({
                "type": "command", "id": id,
                "payload": {"commandType": command_type, "target": target, "params": params}
            }),
            ClientFrame::CommandUpdate { id, command_id, status, result, error } => {
                let mut payload = json!({"commandId": command_id, "status": status});
                if let Some(result) = result {
                    payload["result"] = result.clone();
                }
                if let Some(error) = error {
                    payload["error"] = json!(error);
                }
                json!({"type": "command.update", "id": id, "payload": payload})
            }
            ClientFrame::Subscribe { id, events, scopes } => {
                json!({"type": "subscribe", "id": id, "payload": {"events": events, "scopes": scopes}})
            }
            ClientFrame::Ack { frame_id } => json!({"type": "ack", "payload": {"frameId": frame_id}}),
            ClientFrame::Resume { id, since } => json!({"type": "resume", "id": id, "payload": {"since": since}}),
        }
        .to_string()
    }
}

impl RelayFrame {
    /// Reads one text frame of the relay.
    pub fn parse(text: &str) -> Result<RelayFrame, FrameError> {
        let (kind, id, payload) = envelope(text)?;
        Ok(match kind.as_str() {
            "registered" => RelayFrame::Registered {
                id: id.unwrap_or_default(),
                registered: Registered::deserialize(&payload).map_err(|error| {
                    FrameError::Malformed { id: None, reason: error.to_string() }
                })?,
            },
            "event" => RelayFrame::Event {
                seq: payload.get("seq").and_then(Value::as_u64).unwrap_or_default(),
                event: text_of(&payload, "event", &id)?,
                at: payload.get("at").and_then(Value::as_i64).unwrap_or_default(),
                data: payload.get("data").cloned().unwrap_or(Value::Null),
            },
            "command" => RelayFrame::Command {
                command: command_of(&payload, &id)?,
                id: id.unwrap_or_default(),
            },
            "ack" => RelayFrame::Ack { frame_id: text_of(&payload, "frameId", &id)? },
            "error" => RelayFrame::Error {
                code: text_of(&payload, "code", &id).unwrap_or_else(|_| "unknown".into()),
                message: text_of(&payload, "message", &id).unwrap_or_default(),
                retryable: payload.get("retryable").and_then(Value::as_bool).unwrap_or(true),
                id,
            },
            _ => return Err(FrameError::Unknown { kind }),
        })
    }

    /// Writes the frame.
    pub fn to_text(&self) -> String {
        match self {
            RelayFrame::Registered { id, registered } => json!({"type": "registered", "id": id, "payload": registered}),
            RelayFrame::Event { seq, event, data, at } => json!({
                "type": "event", "id": format!("e{seq}"), "payload": {"seq": seq, "event": event, "data": data, "at": at}
            }),
            RelayFrame::Command { id, command } => json!({
                "type": "command", "id": id,
                "payload": {"commandType": command.kind, "target": command.target, "params": command.params, "command": command}
            }),
            RelayFrame::Ack { frame_id } => json!({"type": "ack", "payload": {"frameId": frame_id}}),
            RelayFrame::Error { id, code, message, retryable } => json!({
                "type": "error", "id": id, "payload": {"code": code, "message": message, "retryable": retryable}
            }),
        }
        .to_string()
    }
}

/// The command of a frame: the whole object where there is one; the frame's own fields fill what it
/// lacks.
fn command_of(payload: &Value, id: &Option<String>) -> Result<Command, FrameError> {
    let mut command =
        payload.get("command").and_then(|c| Command::deserialize(c).ok()).unwrap_or_default();
    let text =
        |field: &str| payload.get(field).and_then(Value::as_str).unwrap_or_default().to_string();
    if command.id.is_empty() {
        command.id = id.clone().unwrap_or_default();
    }
    if command.kind.is_empty() {
        command.kind = text("commandType");
    }
    if command.target.is_empty() {
        command.target = text("target");
    }
    if command.params.is_empty() {
        command.params = record_of(payload, "params").unwrap_or_default();
    }
    if command.id.is_empty() || command.kind.is_empty() {
        Err(FrameError::Malformed { id: id.clone(), reason: "command without id or type".into() })
    } else {
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_round_trip() {
        let frames = [
            ClientFrame::Register {
                id: "r1".into(),
                registration: Registration { role: "provider".into(), ..Default::default() },
            },
            ClientFrame::Ack { frame_id: "e7".into() },
            ClientFrame::Status { agent_status: "busy".into(), ready: Some(true), meta: None },
            ClientFrame::Resume { id: "x".into(), since: 4 },
        ];
        for frame in frames {
            assert_eq!(ClientFrame::parse(&frame.to_text()), Ok(frame));
        }
        let error = RelayFrame::Error {
            id: None,
            code: "internal".into(),
            message: "m".into(),
            retryable: true,
        };
        assert_eq!(RelayFrame::parse(&error.to_text()), Ok(error));
    }

    #[test]
    fn strange_frames_are_told_apart() {
        assert!(matches!(ClientFrame::parse("[]"), Err(FrameError::Malformed { .. })));
        assert!(matches!(
            ClientFrame::parse("{\"type\":\"dance\"}"),
            Err(FrameError::Unknown { .. })
        ));
        assert!(matches!(
            ClientFrame::parse("{\"type\":\"ack\",\"payload\":{}}"),
            Err(FrameError::Malformed { .. })
        ));
        assert!(matches!(
            ClientFrame::parse("{\"type\":\"register\",\"payload\":{}}"),
            Err(FrameError::Malformed { .. })
        ));
    }
}
