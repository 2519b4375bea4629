//! Hooks of a provider's program: what of their spelling its callers must know.
//!
//! Names of events are the words behind `agent-relay hook`, which the provider's plugin calls.

use serde_json::Value;

use super::reader::{self, Damage};

/// The hooks of one provider.
pub struct Hooks {
    /// Names of its events.
    pub events: &'static [&'static str],
    /// What an event means for the status, as the body of a status post: where no session machine
    /// hears the hook itself. Null: nothing.
    pub status_post: fn(event: &str, payload: &Value) -> Value,
    /// The session machine understands this payload: it goes there as it is.
    pub is_for_session: fn(event: &str, payload: &Value) -> bool,
    /// The session wants to end its turn and was not held back already.
    pub may_be_held_back: fn(event: &str, payload: &Value) -> bool,
    /// What a hook prints so that the session goes on, with the reason that the model reads.
    pub hold_back: fn(reason: &str) -> Value,
    /// Field of a payload with the input of a tool, whose texts may be long.
    pub input_field: &'static str,
    /// The event that an older endpoint of the control port stands for, with its payload.
    pub from_older_endpoint: fn(path: &str, body: &Value) -> Option<HookCall>,
}

/// One call of a hook.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub struct HookCall {
    pub event: &'static str,
    pub payload: Value,
}

/// What a hook got on its standard input, and what was wrong with it. `cut`: why that is not all.
/// Nothing at all is null; a damaged payload says so of itself.
pub fn read_payload(bytes: &[u8], cut: Option<String>) -> (Value, Option<String>) {
    if cut.is_none() && bytes.iter().all(u8::is_ascii_whitespace) {
        return (Value::Null, None);
    }
    let Some(document) = reader::read(bytes) else {
        return (Value::Null, cut.or(Some("the payload is not valid JSON".into())));
    };
    let damage = if cut.is_some() { Damage::Broken } else { document.damage };
    let lost = || "the payload is not valid JSON: its end is lost".to_string();
    let mut payload = document.value;
    damage.mark(&mut payload);
    (payload, cut.or((damage == Damage::Broken).then(lost)))
}

/// The payload of a request for permission: one by which somebody judges. What is unreadable is
/// asked all the same, and says so.
pub fn read_request(bytes: &[u8], cut: Option<String>) -> Value {
    let (mut payload, trouble) = read_payload(bytes, cut);
    let damage = if trouble.is_some() { Damage::Broken } else { reader::damage_of(bytes) };
    damage.mark(&mut payload);
    payload
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_payload_is_read_as_far_as_it_goes() {
        let cut = || Some("it came too late".to_string());
        let marked = |mut value: Value, damage: Damage| {
            damage.mark(&mut value);
            value
        };
        for (text, cut, want, trouble) in [
            ("", None, Value::Null, None),
            ("{\"a\":1}", None, json!({"a": 1}), None),
            (r#"{"a":"\ud83d"}"#, None, marked(json!({"a": "\u{fffd}"}), Damage::Patched), None),
            (
                "{\"a\":1,",
                None,
                marked(json!({"a": 1}), Damage::Broken),
                Some("the payload is not valid JSON: its end is lost"),
            ),
            ("{\"a\":1,", cut(), marked(json!({"a": 1}), Damage::Broken), Some("it came too late")),
            ("nothing", None, Value::Null, Some("the payload is not valid JSON")),
            ("", cut(), Value::Null, Some("it came too late")),
        ] {
            let got = read_payload(text.as_bytes(), cut);
            assert_eq!(got, (want, trouble.map(str::to_string)), "{text}");
        }
    }

    #[test]
    fn a_request_that_is_unreadable_is_still_one() {
        for (text, want) in [
            ("{\"tool_name\":\"Bash\"}", Damage::None),
            ("{\"a\":1,\"a\":2}", Damage::Patched),
            ("{\"tool_name\":\"Ba", Damage::Broken),
            ("half", Damage::Broken),
            ("", Damage::Broken),
        ] {
            assert_eq!(Damage::of(&read_request(text.as_bytes(), None)), want, "{text}");
        }
    }
}
