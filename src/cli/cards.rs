//! Cards of agents, as the relay tells them.

use serde_json::Value;

/// A field as text; `-` where it is null or not there.
pub(super) fn text(value: &Value, at: &str) -> String {
    match value.pointer(at) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".into(),
        Some(other) => other.to_string(),
    }
}

/// The status that people see: the runner's finer word, while the relay agrees that it is there.
pub(super) fn status_word(card: &Value) -> String {
    let status = text(card, "/status");
    let finer = text(card, "/meta/status");
    // What a runner said before it went away says nothing about now, unless it said that it failed
    // for good.
    let failed = card.pointer("/meta/terminalStatus").is_some_and(|word| word == "error");
    let stale = card["connected"] == false && status == "offline" && !failed;
    if finer == "-" || stale { status } else { finer }
}

/// Whether it is connected, or heard of lately: without a bus a runner polls, and the relay counts
/// it as offline after a minute of silence.
pub(super) fn is_there(card: &Value) -> bool {
    card["connected"] == true || card["status"].as_str().is_some_and(|status| status != "offline")
}
