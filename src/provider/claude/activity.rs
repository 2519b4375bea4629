//! Activity within a turn as the session mirror shows it: what was thought, said on the way, and
//! done.

use serde_json::{Map, Value};

use super::transcript::{Answer, Block};
use crate::core::session::Mirror;
use crate::provider::redact::{covered, cut};

/// Characters of a tool's summary.
const SUMMARY_CHARS_MAX: usize = 300;

/// The input of a tool that says most about it, in this order.
const TELLING: [&str; 12] = [
    "command",
    "file_path",
    "path",
    "pattern",
    "url",
    "query",
    "prompt",
    "description",
    "skill",
    "to",
    "name",
    "subject",
];

/// One line about a call of a tool; only string inputs are used, and secrets are covered.
pub fn summary(name: &str, input: &Map<String, Value>) -> String {
    let told = TELLING.iter().find_map(|field| {
        input.get(*field).and_then(Value::as_str).filter(|text| !text.trim().is_empty())
    });
    let told = told.or_else(|| input.values().find_map(Value::as_str)).unwrap_or_default();
    // What is covered lies within a line; no more is looked at than can be shown.
    let head: String = told.chars().take(SUMMARY_CHARS_MAX * 4).collect();
    let line: Vec<&str> = head.split_whitespace().collect();
    let line = cut(&covered(&line.join(" ")), SUMMARY_CHARS_MAX);
    if line.is_empty() { name.to_string() } else { format!("{name}: {line}") }
}

/// Mirror events of a piece of an answer. The last text of a turn is not among them: it is the
/// response.
pub fn steps(answer: &Answer, turn: u64) -> Vec<Mirror> {
    (0..answer.blocks.len()).filter_map(|at| step(answer, at, turn)).collect()
}

/// The same of one block of it.
pub fn step(answer: &Answer, at: usize, turn: u64) -> Option<Mirror> {
    let key = (!answer.uuid.is_empty()).then(|| format!("{}:{at}", answer.uuid));
    let (kind, body, label) = match answer.blocks.get(at)? {
        Block::Thinking(text) => ("reasoning", text.clone(), None),
        Block::Text(text) if !answer.ends_turn() => {
            ("reasoning", text.clone(), Some("narration".to_string()))
        }
        Block::Text(_) => return None,
        Block::Tool { name, input, .. } => ("tool", summary(name, input), Some(name.clone())),
    };
    (!body.trim().is_empty()).then_some(Mirror { kind, body, label, status: None, turn, key })
}
