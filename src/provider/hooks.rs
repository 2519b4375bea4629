//! Hooks of a provider's program: what of their spelling its callers must know.
//!
//! Names of events are the words behind `agent-relay hook`, which the provider's plugin calls.

use serde_json::Value;

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
