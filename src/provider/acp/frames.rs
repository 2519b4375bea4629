//! Small pieces of JSON-RPC that the session machine reads.

use serde_json::Value;

/// An error reply; its text stands in one of several places (section 7).
#[derive(Debug, Clone)]
pub(super) struct RpcError {
    pub code: i64,
    pub text: String,
}

impl RpcError {
    pub fn read(error: &Value) -> RpcError {
        let text = |at: &str| error.pointer(at).and_then(Value::as_str).map(str::to_string);
        let detail = text("/data/details").or_else(|| text("/data/message"));
        let message = text("/message").unwrap_or_else(|| "error without a text".into());
        let text = match detail {
            Some(detail) if detail != message => format!("{message}: {detail}"),
            _ => message,
        };
        RpcError { code: error.get("code").and_then(Value::as_i64).unwrap_or_default(), text: short(&text, 1000) }
    }

    pub fn needs_login(&self) -> bool {
        self.code == -32000
    }
}

pub(super) fn short(text: &str, chars_max: usize) -> String {
    let flat: String = text.chars().take(chars_max).collect();
    flat.replace(['\n', '\r'], " ")
}
