//! JSON-RPC 2.0: what a frame is, in both directions, whatever carries it (lines of a stream, texts
//! of a WebSocket).
//!
//! Reading is lenient, since programs are: a frame needs no `"jsonrpc"` member, `id: null` counts
//! as no id, missing `params` or `result` are null, and of a frame whose end is lost counts what is
//! there.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reader::{Damage, Document, whole};
use super::text::one_line;

/// The frame is no JSON object.
pub const PARSE_ERROR: i64 = -32700;
/// Nobody here knows that method.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// The call failed for a reason of the callee's.
pub const INTERNAL_ERROR: i64 = -32603;
/// No code of the wire: a reply came, and what it says could not be read.
pub const UNREADABLE: i64 = i64::MIN;
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
        Frame::read(Document { value: serde_json::from_str(text).ok()?, damage: Damage::None })
    }

    /// The frame that a document is; `None`: it is no object.
    pub fn read(document: Document) -> Option<Frame> {
        let Value::Object(mut members) = document.value else { return None };
        let id = members.remove("id").filter(|id| !id.is_null());
        if document.damage == Damage::Broken && !members.get("method").is_some_and(Value::is_string)
        {
            return Frame::of_part(id, members);
        }
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

    /// What a frame was that ends before its method, its result or its error could be read. Without
    /// an id it may be anything, unless the beginning of a name tells more.
    fn of_part(id: Option<Value>, members: Map<String, Value>) -> Option<Frame> {
        let begins = |word: &str| {
            let mut names = members.keys().filter(|name| !name.is_empty());
            names.any(|name| word.starts_with(name.as_str()))
        };
        let result = match (members.get("error"), members.get("result")) {
            (Some(error), _) if error.is_object() => Err(RpcError::read(error)),
            (_, Some(result)) if !result.is_null() => Ok(result.clone()),
            _ => Err(RpcError::unreadable()),
        };
        match id {
            Some(id) if begins("method") => {
                Some(Frame::Request { id, method: String::new(), params: Value::Null })
            }
            None if !begins("result") && !begins("error") => None,
            id => Some(Frame::Reply { id, result }),
        }
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
        let code = error.get("code").and_then(whole).unwrap_or_default();
        RpcError { code, text: one_line(&text, ERROR_CHARS_MAX) }
    }

    /// For a reply that came and could not be read.
    pub fn unreadable() -> RpcError {
        RpcError { code: UNREADABLE, text: "what the agent answered is unreadable".into() }
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
        self.open.remove(&u64::try_from(whole(id?)?).ok()?)
    }

    /// What the only request that is open was for: a reply that does not say whose it is belongs
    /// to that one.
    pub fn close_only(&mut self) -> Option<T> {
        let (id, purpose) = self.open.pop_first()?;
        if self.open.is_empty() {
            return Some(purpose);
        }
        self.open.insert(id, purpose);
        None
    }

    /// The oldest one.
    pub fn first(&self) -> Option<&T> {
        self.open.values().next()
    }

    /// All of them, the oldest first: nobody will reply any more.
    pub fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.open).into_values().collect()
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
    fn of_a_frame_without_its_end_counts_what_is_there() {
        let unreadable =
            |id: Option<Value>| Frame::Reply { id, result: Err(RpcError::unreadable()) };
        let told = RpcError { code: 0, text: "error without a text".into() };
        let unreadable_error = Frame::Reply { id: None, result: Err(told) };
        for (line, want) in [
            (
                r#"{"id":1,"result":{"stopRea"#,
                Some(Frame::Reply { id: Some(json!(1)), result: Ok(json!({"stopRea": null})) }),
            ),
            (r#"{"jsonrpc":"2.0","id":1,"res"#, Some(unreadable(Some(json!(1))))),
            (r#"{"id":1,"#, Some(unreadable(Some(json!(1))))),
            (r#"{"error":{"co"#, Some(unreadable_error)),
            (r#"{"res"#, Some(unreadable(None))),
            (r#"{"jsonrpc":"2.0","meth"#, None),
            (r#"{"jsonrpc":"2.0"#, None),
            (
                r#"{"id":1,"result":{"a":5},"#,
                Some(Frame::Reply { id: Some(json!(1)), result: Ok(json!({"a": 5})) }),
            ),
            (
                r#"{"id":1,"error":{"code":3.0,"message":"no lo"#,
                Some(Frame::Reply {
                    id: Some(json!(1)),
                    result: Err(RpcError { code: 3, text: "no lo".into() }),
                }),
            ),
            (
                r#"{"id":1,"met"#,
                Some(Frame::Request { id: json!(1), method: String::new(), params: Value::Null }),
            ),
            (
                r#"{"id":1,"method":"m","par"#,
                Some(Frame::Request { id: json!(1), method: "m".into(), params: Value::Null }),
            ),
        ] {
            let document = crate::provider::reader::read(line.as_bytes()).expect("an object");
            assert_eq!(Frame::read(document), want, "{line}");
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
        for id in [None, Some(json!(7)), Some(json!("0")), Some(json!(-1)), Some(json!(0.5))] {
            assert_eq!(requests.close(id.as_ref()), None, "{id:?}");
        }
        assert_eq!(requests.close_only(), None, "there are two");
        assert_eq!(requests.close(Some(&json!(1.0))), Some("b"), "some write 1 so");
        assert_eq!(requests.close_only(), Some("a"));
        assert_eq!(requests.open("a", "m", Value::Null)["id"], 2);
        assert_eq!(requests.close(Some(&json!(1))), None);
        requests.forget();
        assert_eq!(requests.close(Some(&json!(2))), None);
        assert_eq!(requests.open("c", "m", Value::Null)["id"], 3, "an id is used once");
        assert_eq!(requests.take_all(), ["c"]);
        assert_eq!(requests.first(), None);
    }
}
