//! JSON-RPC 2.0: what a frame is, in both directions, whatever carries it (lines of a stream, texts
//! of a WebSocket).
//!
//! Reading is lenient, since programs are: a frame needs no `"jsonrpc"` member, `id: null` counts
//! as no id, and missing `params` or `result` are null.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::text::one_line;

/// The frame is no JSON object.
pub const PARSE_ERROR: i64 = -32700;
/// Nobody here knows that method.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// The call failed for a reason of the callee's.
pub const INTERNAL_ERROR: i64 = -32603;
/// Characters of an error's text that are kept.
const ERROR_CHARS_MAX: usize = 1000;

/// One frame that came in.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub enum Frame {
    /// A call that waits for a reply with the same id; its id may be a number or a text.
    Request { id: Value, method: String, params: Value },
    /// A call that wants no reply.
    Notification { method: String, params: Value },
    /// The reply to a request of ours. Without an id it belongs to none.
    Reply { id: Option<Value>, result: Result<Value, RpcError> },
}

impl Frame {
    /// Reads one frame; `None`: it is no JSON object.
    pub fn parse(text: &str) -> Option<Frame> {
        let mut members: Map<String, Value> = serde_json::from_str(text).ok()?;
        let id = members.remove("id").filter(|id| !id.is_null());
        let params = members.remove("params").unwrap_or_default();
        Some(match (members.remove("method"), id) {
            (Some(Value::String(method)), Some(id)) => Frame::Request { id, method, params },
            (Some(Value::String(method)), None) => Frame::Notification { method, params },
            (_, id) => {
                let result = match members.get("error").filter(|error| error.is_object()) {
                    Some(error) => Err(RpcError::read(error)),
                    None => Ok(members.remove("result").unwrap_or_default()),
                };
                Frame::Reply { id, result }
            }
        })
    }
}

/// An error reply.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub struct RpcError {
    pub code: i64,
    pub text: String,
}

impl RpcError {
    /// Programs put the sentence that helps into `message`, `data.details` or `data.message`.
    fn read(error: &Value) -> RpcError {
        let text = |at: &str| error.pointer(at).and_then(Value::as_str).map(str::to_string);
        let detail = text("/data/details").or_else(|| text("/data/message"));
        let message = text("/message").unwrap_or_else(|| "error without a text".into());
        let text = match detail {
            Some(detail) if detail != message => format!("{message}: {detail}"),
            _ => message,
        };
        let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
        RpcError { code, text: one_line(&text, ERROR_CHARS_MAX) }
    }
}

/// A call that wants a reply.
pub fn request(id: u64, method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// A call that wants none.
pub fn notification(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "method": method, "params": params})
}

/// The reply to a request that succeeded.
pub fn result(id: &Value, result: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

/// The reply to a request that failed; a null id where the request could not be read.
pub fn error(id: &Value, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

/// The reply to a request that nobody here knows.
pub fn method_not_found(id: &Value, method: &str) -> Value {
    error(id, METHOD_NOT_FOUND, &format!("Method not found: {method}"))
}

/// Requests of ours that wait for their replies, each with what it was for. Ids count from zero.
#[derive(Debug)]
pub struct OpenRequests<T> {
    next_id: u64,
    open: BTreeMap<u64, T>,
}

impl<T> Default for OpenRequests<T> {
    fn default() -> Self {
        OpenRequests { next_id: 0, open: BTreeMap::new() }
    }
}

impl<T> OpenRequests<T> {
    /// The frame of a new request.
    pub fn open(&mut self, purpose: T, method: &str, params: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        self.open.insert(id, purpose);
        request(id, method, params)
    }

    /// What the request was for that a reply belongs to; each is answered once.
    pub fn close(&mut self, id: Option<&Value>) -> Option<T> {
        self.open.remove(&id?.as_u64()?)
    }

    /// The oldest one.
    pub fn first(&self) -> Option<&T> {
        self.open.values().next()
    }

    /// Nobody waits for their replies any more.
    pub fn forget(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart() {
        let request = |id: Value, params: Value| Frame::Request { id, method: "m".into(), params };
        let failed = |id: Option<Value>, code: i64, text: &str| Frame::Reply {
            id,
            result: Err(RpcError { code, text: text.into() }),
        };
        for (text, want) in [
            (r#"{"id": 1, "method": "m", "params": [2]}"#, Some(request(json!(1), json!([2])))),
            (
                r#"{"jsonrpc": "1.0", "id": "a", "method": "m"}"#,
                Some(request(json!("a"), Value::Null)),
            ),
            (
                r#"{"id": null, "method": "m", "params": {}}"#,
                Some(Frame::Notification { method: "m".into(), params: json!({}) }),
            ),
            (
                r#"{"id": 1, "result": 5}"#,
                Some(Frame::Reply { id: Some(json!(1)), result: Ok(json!(5)) }),
            ),
            (r#"{"id": null, "result": 5}"#, Some(Frame::Reply { id: None, result: Ok(json!(5)) })),
            (
                r#"{"id": 1, "method": 7}"#,
                Some(Frame::Reply { id: Some(json!(1)), result: Ok(Value::Null) }),
            ),
            (
                r#"{"id": 1, "error": null}"#,
                Some(Frame::Reply { id: Some(json!(1)), result: Ok(Value::Null) }),
            ),
            (
                r#"{"id": 1, "error": {}, "result": 5}"#,
                Some(failed(Some(json!(1)), 0, "error without a text")),
            ),
            (
                r#"{"error": {"code": -32000, "message": "no\nlogin", "data": {"details": "log in"}}}"#,
                Some(failed(None, -32000, "no login: log in")),
            ),
            (
                r#"{"error": {"code": 1, "message": "same", "data": {"message": "same"}}}"#,
                Some(failed(None, 1, "same")),
            ),
            ("[]", None),
            ("5", None),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(Frame::parse(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let id = json!("x");
        for (frame, want) in [
            (
                request(3, "m", json!({"a": 1})),
                Frame::Request { id: json!(3), method: "m".into(), params: json!({"a": 1}) },
            ),
            (
                notification("m", json!([])),
                Frame::Notification { method: "m".into(), params: json!([]) },
            ),
            (result(&id, json!({})), Frame::Reply { id: Some(id.clone()), result: Ok(json!({})) }),
            (
                method_not_found(&id, "m"),
                Frame::Reply {
                    id: Some(id.clone()),
                    result: Err(RpcError {
                        code: METHOD_NOT_FOUND,
                        text: "Method not found: m".into(),
                    }),
                },
            ),
        ] {
            assert_eq!(frame["jsonrpc"], "2.0");
            assert_eq!(Frame::parse(&frame.to_string()), Some(want), "{frame}");
        }
    }

    #[test]
    fn a_reply_is_taken_once_and_only_for_its_request() {
        let mut requests = OpenRequests::default();
        assert_eq!(requests.open("a", "m", Value::Null)["id"], 0);
        assert_eq!(requests.open("b", "m", Value::Null)["id"], 1);
        assert_eq!(requests.first(), Some(&"a"));
        for id in [None, Some(json!(7)), Some(json!("0")), Some(json!(-1))] {
            assert_eq!(requests.close(id.as_ref()), None, "{id:?}");
        }
        assert_eq!(requests.close(Some(&json!(1))), Some("b"));
        assert_eq!(requests.close(Some(&json!(1))), None);
        requests.forget();
        assert_eq!(requests.close(Some(&json!(0))), None);
        assert_eq!(requests.open("c", "m", Value::Null)["id"], 2, "an id is used once");
    }
}
