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
    match card.pointer("/ended/status").and_then(Value::as_str) {
        Some(ended) => ended.to_string(),
        None if finer == "-" || stale => status,
        None => finer,
    }
}

/// Why it is so, and since when (ms), as its runner said last, or as the relay knows of its end.
pub(super) fn reason(card: &Value) -> (String, Option<i64>) {
    let part = |at: &str| card.pointer(at).filter(|it| !it.is_null());
    match card.get("ended").filter(|ended| ended.is_object()) {
        Some(_) => (text(card, "/ended/why"), part("/ended/since").and_then(Value::as_i64)),
        // A relay that tells of no ends: what was said before it went says nothing about now.
        None if status_word(card) == "offline" => ("-".into(), None),
        None => (text(card, "/meta/statusWhy"), part("/meta/statusSince").and_then(Value::as_i64)),
    }
}

/// What keeps its questions from people at the relay, with the way to answer; nothing where all is
/// well.
pub(super) fn unasked(card: &Value) -> Option<String> {
    let said = card.pointer("/meta/providerFacts/hooks").and_then(Value::as_str)?;
    Some(format!("{}: {said}", text(card, "/id")))
}

/// Whether it is connected, or heard of lately: without a bus a runner polls, and the relay counts
/// it as offline after a minute of silence.
pub(super) fn is_there(card: &Value) -> bool {
    card["connected"] == true || card["status"].as_str().is_some_and(|status| status != "offline")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whose_questions_cannot_be_listed_is_told() {
        let card = |hooks: Value| json!({"id": "a", "meta": {"providerFacts": {"hooks": hooks}}});
        assert_eq!(unasked(&card(json!("are off"))).as_deref(), Some("a: are off"));
        assert_eq!(unasked(&card(Value::Null)), None);
        assert_eq!(unasked(&json!({"id": "a"})), None);
    }
}
