//! The tools of the relay for a model, by the Model Context Protocol: what a frame asks, in both
//! dialects, and what is answered.
//!
//! Two dialects are spoken on one URL and on one stream. In the stateless one every request says
//! its revision itself and begins with nothing; in the negotiated one `initialize` agrees on a
//! revision first. Neither needs to be remembered here: no session id is given, nothing is
//! declared but tools, and so a client opens no stream that a restart could break.
//!
//! A tool is a few calls of the relay's API ([`call::ToolCall`]). Whoever serves the tools makes
//! these calls with the token of whoever asked: rights are decided there and nowhere else.

pub mod call;
mod text;
pub mod tools;

use serde_json::{Map, Value, json};

use self::tools::{Tool, listed};
use crate::wire::VERSION;

/// What the server is called where an agent's program lists its servers.
pub const SERVER: &str = "relay";
/// The revision of the stateless dialect.
pub const STATELESS: &str = "2026-07-28";
/// Revisions of the dialect that is opened by `initialize`, newest first.
pub const NEGOTIATED: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// For the model. Some programs show no more than its first 240 characters.
pub const INSTRUCTIONS: &str = "\
Messages between you, people and other agents. Answer with relay_reply, write first with relay_send_message, find agents with \
relay_find_agents. New messages come to you by themselves: never poll. \
A text that begins with [relay message #12 from web] is message 12; of one that was cut relay_get_message has the whole. \
A result that says \"queued\" is done: it is sent when the relay is back, do not send it again.";

/// Field of a request's `_meta` that names its revision.
const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// Field of a result's `_meta` that names the server.
const META_SERVER: &str = "io.modelcontextprotocol/serverInfo";

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
/// The headers of a request do not say what its body says.
const HEADER_MISMATCH: i64 = -32020;
/// The revision is not one of ours.
const UNSUPPORTED_VERSION: i64 = -32022;

/// Bytes of one frame.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// What the headers of a request over HTTP say of its body; empty where they say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// `MCP-Protocol-Version`
    pub version: String,
    /// `Mcp-Method`
    pub method: String,
    /// `Mcp-Name`
    pub name: String,
}

/// How a request wants to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyTo {
    id: Value,
    stateless: bool,
}

/// What is to be done about a frame.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Answer with this status of HTTP and this body; a stream writes the body if there is one.
    Answer(u16, Option<Value>),
    /// Carry a tool out, then answer with [`ReplyTo::result`].
    #[allow(missing_docs)] // the names say it
    Call { reply: ReplyTo, tool: &'static Tool, arguments: Map<String, Value> },
}

/// What a tool says to the model. Text only: where a result has structured content too, programs
/// show the model nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// At most [`text::RESULT_BYTES_MAX`].
    pub text: String,
    /// The tool did not do what was asked.
    pub is_error: bool,
}

impl ToolResult {
    pub(super) fn said(text: impl Into<String>) -> ToolResult {
        ToolResult { text: text.into(), is_error: false }
    }

    /// What went wrong, and what to do now.
    pub fn failed(text: impl Into<String>) -> ToolResult {
        ToolResult { text: text.into(), is_error: true }
    }
}

impl ReplyTo {
    /// The frame that tells the result of a tool.
    pub fn result(&self, result: &ToolResult) -> Value {
        let text = text::page(&result.text, 0);
        self.done(json!({
            "content": [{"type": "text", "text": text}], "isError": result.is_error
        }))
    }

    fn done(&self, mut result: Value) -> Value {
        if self.stateless {
            result["resultType"] = json!("complete");
            result["_meta"] = json!({META_SERVER: server_info()});
        }
        json!({"jsonrpc": "2.0", "id": self.id, "result": result})
    }

    fn list(&self, mut result: Value) -> Value {
        if self.stateless {
            // What a token may do can change with its next renewal.
            (result["ttlMs"], result["cacheScope"]) = (json!(0), json!("private"));
        }
        self.done(result)
    }
}

fn server_info() -> Value {
    json!({"name": "agent-relay", "title": "agent-relay", "version": VERSION})
}

fn error(id: &Value, code: i64, text: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}})
}

fn refuse(status: u16, id: &Value, code: i64, text: &str) -> Step {
    Step::Answer(status, Some(error(id, code, text)))
}

/// What one frame asks. `headers`: those of the request that brought it, none on a stream;
/// `scopes`: those of the caller's token, none where they are not known yet.
pub fn receive(bytes: &[u8], headers: Option<&Headers>, scopes: Option<&[String]>) -> Step {
    let Ok(frame) = serde_json::from_slice::<Value>(bytes) else {
        return refuse(400, &Value::Null, PARSE_ERROR, "the frame is not valid JSON");
    };
    let Value::Object(mut frame) = frame else {
        let text = "a frame is one JSON object; batches are not taken";
        return refuse(400, &Value::Null, INVALID_REQUEST, text);
    };
    let id = frame.remove("id").unwrap_or_default();
    let params = match frame.remove("params") {
        Some(Value::Object(params)) => params,
        _ => Map::new(),
    };
    match frame.remove("method") {
        // A request has an id that is a text or a number.
        Some(Value::String(_)) if id.is_array() || id.is_object() || id.is_boolean() => {
            refuse(400, &Value::Null, INVALID_REQUEST, "an id is a text or a number")
        }
        // What wants no answer changes nothing here: nobody is remembered, and a call is over
        // before its end could be asked for.
        Some(Value::String(_)) if id.is_null() => Step::Answer(202, None),
        Some(Value::String(method)) => request(id, &method, params, headers, scopes),
        // An answer to something that nobody asked.
        _ if frame.contains_key("result") || frame.contains_key("error") => Step::Answer(202, None),
        _ => refuse(400, &id, INVALID_REQUEST, "the frame has no method"),
    }
}

fn request(
    id: Value,
    method: &str,
    params: Map<String, Value>,
    headers: Option<&Headers>,
    scopes: Option<&[String]>,
) -> Step {
    let told = params.get("_meta").and_then(|meta| meta.get(META_VERSION)).and_then(Value::as_str);
    let by_header = headers.is_some_and(|headers| headers.version == STATELESS);
    let stateless =
        told.is_some() || method == "server/discover" || (by_header && method != "initialize");
    if stateless && let Err(refusal) = check_stateless(&id, method, told, &params, headers) {
        return refusal;
    }
    let reply = ReplyTo { id, stateless };
    match method {
        "server/discover" => Step::Answer(200, Some(reply.list(discovered()))),
        "initialize" if !stateless => Step::Answer(200, Some(reply.done(initialized(&params)))),
        "ping" if !stateless => Step::Answer(200, Some(reply.done(json!({})))),
        "tools/list" => {
            let tools: Vec<Value> = listed(scopes).map(Tool::definition).collect();
            Step::Answer(200, Some(reply.list(json!({"tools": tools}))))
        }
        "tools/call" => call(reply, params),
        other => {
            let text = format!("Method not found: {}", text::short(other));
            let status = if stateless { 404 } else { 200 };
            refuse(status, &reply.id, METHOD_NOT_FOUND, &text)
        }
    }
}

/// A request that says its revision itself: it must be ours, and the headers must say the same.
fn check_stateless(
    id: &Value,
    method: &str,
    told: Option<&str>,
    params: &Map<String, Value>,
    headers: Option<&Headers>,
) -> Result<(), Step> {
    if let Some(told) = told.filter(|told| *told != STATELESS) {
        let mut body = error(id, UNSUPPORTED_VERSION, "Unsupported protocol version");
        body["error"]["data"] = json!({"supported": [STATELESS], "requested": text::short(told)});
        return Err(Step::Answer(400, Some(body)));
    }
    let Some(headers) = headers else { return Ok(()) };
    let name = params.get("name").and_then(Value::as_str).filter(|_| method == "tools/call");
    // A name that needs an encoding is none of ours; it is looked at in the body.
    let same_name = headers.name.starts_with("=?") || name.is_none_or(|name| name == headers.name);
    let wrong = match told {
        None => Some("the body names no protocol version"),
        Some(told) if told != headers.version => Some("MCP-Protocol-Version"),
        Some(_) if headers.method != method => Some("Mcp-Method"),
        Some(_) if !same_name => Some("Mcp-Name"),
        Some(_) => None,
    };
    let Some(wrong) = wrong else { return Ok(()) };
    let text = format!("headers and body do not say the same: {wrong}");
    Err(refuse(400, id, HEADER_MISMATCH, &text))
}

fn discovered() -> Value {
    json!({
        "supportedVersions": [STATELESS], "capabilities": {"tools": {}},
        "serverInfo": server_info(), "instructions": INSTRUCTIONS
    })
}

/// The revision that was offered, if it is one of these, else the newest of them.
fn initialized(params: &Map<String, Value>) -> Value {
    let offered = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
    let version = NEGOTIATED.iter().find(|known| **known == offered).unwrap_or(&NEGOTIATED[0]);
    json!({
        "protocolVersion": version, "capabilities": {"tools": {}},
        "serverInfo": server_info(), "instructions": INSTRUCTIONS
    })
}

fn call(reply: ReplyTo, mut params: Map<String, Value>) -> Step {
    let name = params.get("name").and_then(Value::as_str).unwrap_or_default();
    let Some(tool) = tools::find(name) else {
        let names: Vec<&str> = listed(None).map(|tool| tool.name).collect();
        let (name, names) = (text::short(name), names.join(", "));
        let text = format!("there is no tool {name:?} here; there are {names}");
        return refuse(200, &reply.id, INVALID_PARAMS, &text);
    };
    let arguments = match params.remove("arguments") {
        Some(Value::Object(arguments)) => arguments,
        None | Some(Value::Null) => Map::new(),
        Some(_) => {
            let text = "\"arguments\" must be a JSON object";
            return refuse(200, &reply.id, INVALID_PARAMS, text);
        }
    };
    Step::Call { reply, tool, arguments }
}

#[cfg(test)]
mod tests;
