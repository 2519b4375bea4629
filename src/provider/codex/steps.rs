//! What an item shows in the session mirror.

use serde_json::Value;

use super::frames::{Item, text};
use crate::core::session::Mirror;
use crate::provider::redact::{covered, cut};

/// Characters of a tool's summary.
const SUMMARY_CHARS_MAX: usize = 300;
/// Changed files that are named.
const FILES_SHOWN_MAX: usize = 20;

/// A shell command as a person would type it.
pub fn command(line: &str) -> String {
    let inner = ["/bin/bash -lc ", "bash -lc ", "/bin/sh -c ", "/bin/zsh -lc "]
        .iter()
        .find_map(|shell| line.strip_prefix(shell));
    match inner {
        Some(quoted) if quoted.len() >= 2 && quoted.starts_with('\'') && quoted.ends_with('\'') => {
            // A quote that is none of its own ends the word: then there is more than one.
            let parts: Vec<&str> = quoted[1..quoted.len() - 1].split("'\\''").collect();
            let is_one = parts.iter().all(|part| !part.contains('\''));
            if is_one { parts.join("'") } else { line.to_string() }
        }
        _ => line.to_string(),
    }
}

/// One line, without secrets, cut.
pub fn summary(text: &str) -> String {
    let head: String = text.chars().take(SUMMARY_CHARS_MAX * 4).collect();
    let line: Vec<&str> = head.split_whitespace().collect();
    cut(&covered(&line.join(" ")), SUMMARY_CHARS_MAX)
}

/// The files that a change is about, with what happens to each.
pub fn files(item: &Item) -> String {
    let changes = item.record.get("changes").and_then(Value::as_array).cloned().unwrap_or_default();
    let shown = changes
        .iter()
        .take(FILES_SHOWN_MAX)
        .map(|change| format!("{} {}", text(change, "/kind/type"), text(change, "/path")));
    let more = changes.len().saturating_sub(FILES_SHOWN_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// What a tool did, in one line with its name; `None`: the item is no tool.
fn tool(item: &Item) -> Option<(String, String)> {
    let line = |parts: &[&str]| {
        let parts = parts.iter().filter(|part| !part.is_empty()).copied();
        summary(&parts.collect::<Vec<_>>().join(" "))
    };
    let json = |field: &str| item.record.get(field).map(Value::to_string).unwrap_or_default();
    let (label, body) = match item.kind.as_str() {
        "commandExecution" => ("shell".to_string(), line(&[&command(item.text("/command"))])),
        "fileChange" => ("edit".into(), line(&[&files(item)])),
        "mcpToolCall" => (
            format!("{}.{}", item.text("/server"), item.text("/tool")),
            line(&[&json("arguments"), item.text("/error/message")]),
        ),
        "dynamicToolCall" => (item.text("/tool").into(), line(&[&json("arguments")])),
        "collabAgentToolCall" => (item.text("/tool").into(), line(&[item.text("/prompt")])),
        "subAgentActivity" => {
            ("subagent".into(), line(&[item.text("/kind"), item.text("/agentPath")]))
        }
        "webSearch" => ("search".into(), line(&[item.text("/query")])),
        "imageView" | "imageGeneration" => (item.kind.clone(), line(&[item.text("/path")])),
        _ => return None,
    };
    let body = if body.is_empty() { label.clone() } else { body };
    Some((label, body))
}

/// Whether the item is a tool, which ends what was said before it.
pub fn is_tool(item: &Item) -> bool {
    tool(item).is_some()
}

/// What a finished item shows; messages are no matter of this table.
pub fn step(item: &Item, turn: u64) -> Option<Mirror> {
    let key = (!item.id.is_empty()).then(|| item.id.clone());
    if let Some((label, body)) = tool(item) {
        let status = match item.text("/status") {
            "" => "completed",
            word => word,
        };
        let (label, status) = (Some(label), Some(status.to_string()));
        return Some(Mirror { kind: "tool", body, label, status, turn, key });
    }
    let lines = |field: &str| {
        let parts = item.record.get(field).and_then(Value::as_array).into_iter().flatten();
        parts.filter_map(Value::as_str).collect::<Vec<_>>().join("\n\n")
    };
    let body = match item.kind.as_str() {
        "reasoning" => Some(lines("summary")).filter(|text| !text.trim().is_empty()),
        "plan" => Some(item.text("/text").to_string()),
        _ => return None,
    };
    let body = body.unwrap_or_else(|| lines("content")).trim().to_string();
    let label = (item.kind == "plan").then(|| "plan".to_string());
    (!body.is_empty()).then_some(Mirror { kind: "reasoning", body, label, status: None, turn, key })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_is_shown_as_it_is_typed() {
        for (line, want) in [
            ("/bin/bash -lc 'echo one; ls'", "echo one; ls"),
            ("/bin/bash -lc 'echo '\\''x'\\'''", "echo 'x'"),
            ("/bin/bash -lc ls", "/bin/bash -lc ls"),
            ("/bin/bash -lc 'echo' 'x'", "/bin/bash -lc 'echo' 'x'"),
            ("ls", "ls"),
            ("/bin/bash -lc '", "/bin/bash -lc '"),
        ] {
            assert_eq!(command(line), want);
        }
    }

    #[test]
    fn items_of_each_kind_are_shown_or_not() {
        let shown = |record: Value| {
            let step = step(&Item::read(&record), 3);
            step.map(|step| {
                format!("{} {:?} {:?} {}", step.kind, step.label, step.status, step.body)
            })
        };
        for (record, want) in [
            (
                json!({"type": "commandExecution", "id": "c", "command": "/bin/bash -lc 'curl -H \"Authorization: Bearer abcdefgh12345678\" x'", "status": "failed"}),
                Some("tool Some(\"shell\") Some(\"failed\")"),
            ),
            (
                json!({"type": "fileChange", "changes": [{"path": "/a", "kind": {"type": "add"}}], "status": "declined"}),
                Some("tool Some(\"edit\") Some(\"declined\") add /a"),
            ),
            (
                json!({"type": "reasoning", "summary": [], "content": ["raw"]}),
                Some("reasoning None None raw"),
            ),
            (json!({"type": "reasoning", "summary": [], "content": []}), None),
            (json!({"type": "agentMessage", "text": "hi"}), None),
            (json!({"type": "userMessage"}), None),
            (json!({"type": "something new"}), None),
        ] {
            let shown = shown(record.clone());
            match want {
                None => assert_eq!(shown, None, "{record}"),
                Some(want) => {
                    let shown = shown.expect("it is shown");
                    assert!(shown.starts_with(want), "{shown}");
                    assert!(!shown.contains("abcdefgh12345678"), "a secret is covered");
                }
            }
        }
    }
}
