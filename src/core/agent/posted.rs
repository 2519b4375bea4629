//! Status that somebody posts at the control port: a hook of the provider, or whoever else works
//! for this agent. It is shown as posted, with its words, and ends with a turn that the session
//! proves.

use serde_json::{Value, json};

use super::Agent;
use super::tracker::{Status, TURN, Work};
use crate::core::chars;
use crate::core::cost::Room;
use crate::core::ids::Ticket;
use crate::core::time::Now;
use crate::wire::api::{DetailedStatus, StatusSource};
use crate::wire::control::OUTSIDE;

/// Characters of a posted text that are shown.
const TEXT_MAX: usize = 300;
/// Bytes of further details of posted work; more is left out.
const METADATA_BYTES_MAX: usize = 8 << 10;

/// A text of the body that is not empty.
fn text<'a>(body: &'a Value, field: &str) -> Option<&'a str> {
    body.get(field).and_then(Value::as_str).filter(|text| !text.trim().is_empty())
}

/// How a posted status is known, with the words that came with it.
fn in_words(body: &Value) -> String {
    let names = ["why", "detail", "text", "message", "error"];
    let metadata = body.get("metadata").unwrap_or(&Value::Null);
    let said = [body, metadata]
        .into_iter()
        .find_map(|record| names.iter().find_map(|name| text(record, name)))
        .or(text(body, "label"));
    let from = if text(body, "source") == Some(OUTSIDE) { "posted from outside" } else { "posted" };
    match said {
        Some(said) => {
            let said: String = chars::one_line(said).chars().take(TEXT_MAX).collect();
            format!("{from}: {said}")
        }
        None => format!("{from} at the control port"),
    }
}

/// What a `busy` is about.
fn work_of(body: &Value, kind: String, id: String, posted: (String, i64)) -> Work {
    let record = |field: &str| body.get(field).filter(|it| it.is_object()).cloned();
    let mut metadata = record("metadata").unwrap_or_else(|| json!({}));
    if let Some(state) = record("providerState") {
        metadata["providerState"] = state;
    }
    if !(Room { bytes: METADATA_BYTES_MAX, members: 100 }).take(&metadata) {
        metadata = json!({});
    }
    let told =
        |field: &str| text(body, field).map(|text| text.chars().take(TEXT_MAX).collect::<String>());
    Work {
        kind,
        id,
        label: told("label"),
        metadata,
        role: told("role"),
        parent_id: told("parentId"),
        posted: Some(posted),
    }
}

impl Agent {
    pub(super) fn on_status_posted(&mut self, now: Now, body: &Value) -> (u16, Value) {
        let Some(status) = text(body, "status").and_then(Status::parse) else {
            return (400, json!({"error": "status must be idle, busy, offline, or error"}));
        };
        let accepted = (200, json!({"ok": true, "status": status.as_str()}));
        if text(body, "providerSessionId")
            .is_some_and(|id| id != self.supervisor.record.provider_session)
        {
            return accepted; // of an earlier process: dropped whole
        }
        let reason = text(body, "reason").unwrap_or(TURN).to_string();
        let id = text(body, "id").unwrap_or(&reason).to_string();
        if let Some(timeline) = body.get("timeline").filter(|t| t.is_object()) {
            let mut timeline = timeline.clone();
            if timeline.get("timestamp").is_none_or(|t| !t.is_number()) {
                timeline["timestamp"] = json!(now.wall.0);
            }
            self.status.set_timeline(timeline);
        }
        let cleared = body.get("clear").and_then(Value::as_array).into_iter().flatten();
        for kind in cleared.filter_map(Value::as_str) {
            self.tracker.clear_work(kind);
        }
        if self.config.session.tracks_turns && reason == TURN && status != Status::Error {
            // The bare word of a hook whose program could not be run: one more hint for the
            // session.
            self.tell_hook(Ticket::NOBODY, status.as_str().to_string(), Value::Null, self.now.wall);
            self.status.touch();
            return accepted;
        }
        self.take_posted(now, status, body, (reason, id));
        self.status.touch();
        accepted
    }

    fn take_posted(&mut self, now: Now, status: Status, body: &Value, work: (String, String)) {
        let words = in_words(body);
        match status {
            Status::Busy => {
                self.end_posted_status();
                let work = work_of(body, work.0, work.1, (words, now.wall.0));
                self.tracker.start_work(work);
            }
            Status::Idle => {
                self.end_posted_status();
                self.tracker.finish_work(&work.0, &work.1);
                self.note_evidence(DetailedStatus::Idle, StatusSource::Posted, words);
            }
            // Only of a session that runs: the runner itself knows how one is that does not.
            Status::Offline | Status::Error if self.supervisor.is_ready() => {
                self.tracker.set_terminal(Some(status));
                let word = match status {
                    Status::Error => DetailedStatus::Error,
                    _ => DetailedStatus::Offline,
                };
                self.note_evidence(word, StatusSource::Posted, words);
            }
            Status::Offline | Status::Error => {}
        }
    }
}
