//! The transcript of a session, line by line: what was said, by whom, and what it proves.

mod evidence;
#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

pub use self::evidence::Evidence;
use crate::core::chars::is_invisible;
use crate::provider::reader::{self, Damage, Document, whole};

/// Longest line that is read; what is longer is skipped, so that memory stays bounded.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// What one line of a transcript says. Moments are wall clock, ms; 0: the line does not say.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub enum Entry {
    /// Text that opens or joins a turn.
    Prompt(Prompt),
    /// One content block or more of an answer.
    Answer(Answer),
    /// Results of tools.
    Results {
        /// Id of each call, and whether it failed, in order.
        calls: Vec<(String, bool)>,
        at: i64,
    },
    /// Somebody interrupted the turn.
    Interrupted { at: i64 },
    /// The context was shortened; the turn may go on if that was automatic.
    Compacted {
        /// `manual` or `auto`.
        trigger: String,
    },
    /// A text waits in the program's own queue.
    Enqueued(String),
    /// Bookkeeping after the end of a turn.
    TurnOver { at: i64 },
}

/// Text for the model.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)] // the names say it
pub struct Prompt {
    /// Id of the entry; ours where the channel keeps it.
    pub uuid: String,
    pub text: String,
    /// A person said it at the terminal (or we did, by a paste).
    pub human: bool,
    /// It joined a turn that was running.
    pub joined: bool,
    /// It waited in the program's queue for a turn of its own.
    pub queued: bool,
    /// Wall clock, ms; 0: it does not say.
    pub at: i64,
    /// Hooks name it by the same id.
    pub prompt_id: String,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)] // the names say it
pub struct Answer {
    /// Id of the entry.
    pub uuid: String,
    /// Id of the message: one message is several entries.
    pub message: String,
    pub model: String,
    pub blocks: Vec<Block>,
    /// `end_turn` and the like; the final one on every entry.
    pub stop_reason: String,
    /// Tokens in the context: input, cached and new ones, and the answer.
    pub tokens: u64,
    /// The text is an error of the API.
    pub is_error: bool,
    /// Wall clock, ms; 0: it does not say.
    pub at: i64,
}

/// One block of an answer.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub enum Block {
    Text(String),
    Thinking(String),
    /// A call of a tool.
    Tool {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
}

impl Answer {
    /// Whether the turn is over with this message: its `stop_reason` is there and names neither a
    /// tool nor a pause.
    pub fn ends_turn(&self) -> bool {
        !matches!(self.stop_reason.as_str(), "" | "tool_use" | "pause_turn")
    }

    /// All its text.
    pub fn text(&self) -> String {
        let texts = self.blocks.iter().filter_map(|block| match block {
            Block::Text(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }
}

/// A field of another type than ours, or `null`, is an empty one; the line still counts.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_default())
}

/// A count, however its writer writes whole numbers.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = whole(&Value::deserialize(deserializer)?);
    Ok(number.and_then(|number| u64::try_from(number).ok()).unwrap_or_default())
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Line {
    #[serde(deserialize_with = "lenient")]
    r#type: String,
    #[serde(deserialize_with = "lenient")]
    subtype: Option<String>,
    #[serde(deserialize_with = "lenient")]
    timestamp: Option<String>,
    #[serde(deserialize_with = "lenient")]
    uuid: Option<String>,
    #[serde(deserialize_with = "lenient")]
    is_sidechain: bool,
    #[serde(deserialize_with = "lenient")]
    is_meta: bool,
    #[serde(deserialize_with = "lenient")]
    is_compact_summary: bool,
    #[serde(deserialize_with = "lenient")]
    is_api_error_message: bool,
    #[serde(deserialize_with = "lenient")]
    prompt_source: Option<String>,
    #[serde(deserialize_with = "lenient")]
    prompt_id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    origin: Option<Origin>,
    #[serde(deserialize_with = "lenient")]
    message: Option<Message>,
    #[serde(deserialize_with = "lenient")]
    attachment: Option<Attachment>,
    #[serde(deserialize_with = "lenient")]
    operation: Option<String>,
    content: Option<Value>,
    #[serde(deserialize_with = "lenient")]
    compact_metadata: Option<Compaction>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Origin {
    #[serde(deserialize_with = "lenient")]
    kind: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Compaction {
    #[serde(deserialize_with = "lenient")]
    trigger: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message {
    #[serde(deserialize_with = "lenient")]
    id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    model: Option<String>,
    content: Value,
    #[serde(deserialize_with = "lenient")]
    stop_reason: Option<String>,
    #[serde(deserialize_with = "lenient")]
    usage: Option<Usage>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Usage {
    #[serde(deserialize_with = "count")]
    input_tokens: u64,
    #[serde(deserialize_with = "count")]
    cache_creation_input_tokens: u64,
    #[serde(deserialize_with = "count")]
    cache_read_input_tokens: u64,
    #[serde(deserialize_with = "count")]
    output_tokens: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Attachment {
    #[serde(deserialize_with = "lenient")]
    r#type: String,
    prompt: Option<Value>,
    #[serde(deserialize_with = "lenient")]
    source_uuid: Option<String>,
    #[serde(deserialize_with = "lenient")]
    origin: Option<Origin>,
}

/// Lines that begin like this are long and not needed.
const SKIPPED: [&str; 6] = [
    "{\"type\":\"api-request",
    "{\"type\":\"file-history",
    "{\"type\":\"cost-state",
    "{\"type\":\"tools-used",
    "{\"type\":\"mode\"",
    "{\"type\":\"last-prompt",
];
/// A kind of attachment that holds the whole system prompt (63 kB).
const SNAPSHOT: &str = "\"attachment\":{\"type\":\"prompt_snapshot\"";
/// Where that kind is looked for.
const HEAD_BYTES: usize = 400;

/// What one line says; nothing: nothing that matters here, or it is not a line of a transcript. A
/// program that dies within a line leaves its half, and what is written next stands behind it.
pub fn read(line: &[u8]) -> Vec<Entry> {
    if SKIPPED.iter().any(|start| line.starts_with(start.as_bytes())) {
        return Vec::new();
    }
    let head = &line[..line.len().min(HEAD_BYTES)];
    if head.windows(SNAPSHOT.len()).any(|window| window == SNAPSHOT.as_bytes()) {
        return Vec::new();
    }
    match serde_json::from_slice::<Line>(line) {
        Ok(line) => entry(line).into_iter().collect(),
        Err(_) => reader::read_line(line).into_iter().filter_map(read_document).collect(),
    }
}

/// A line that was read already.
pub fn read_value(value: Value) -> Option<Entry> {
    entry(serde_json::from_value(value).ok()?)
}

/// A line that is damaged. Half of one proves no message and answers none.
fn read_document(document: Document) -> Option<Entry> {
    match read_value(document.value)? {
        Entry::Prompt(_) | Entry::Enqueued(_) if document.damage == Damage::Broken => None,
        Entry::Answer(answer) if document.damage == Damage::Broken => {
            Some(Entry::Answer(Answer { stop_reason: String::new(), ..answer }))
        }
        entry => Some(entry),
    }
}

fn entry(line: Line) -> Option<Entry> {
    if line.is_sidechain {
        return None;
    }
    let at = line.timestamp.as_deref().and_then(millis).unwrap_or(0);
    match line.r#type.as_str() {
        "user" => read_user(line, at),
        "assistant" => read_assistant(line, at),
        "attachment" => read_attachment(line, at),
        "system" => match line.subtype.as_deref()? {
            "turn_duration" | "stop_hook_summary" => Some(Entry::TurnOver { at }),
            "compact_boundary" => Some(Entry::Compacted {
                trigger: line.compact_metadata.unwrap_or_default().trigger,
            }),
            _ => None,
        },
        "queue-operation" if line.operation.as_deref() == Some("enqueue") => {
            Some(Entry::Enqueued(line.content?.as_str()?.to_string()))
        }
        _ => None,
    }
}

/// Whether a line of a transcript belongs to a conversation that can be gone on with: bookkeeping
/// does not, nor what a subagent said, nor half a line.
pub fn is_conversation(line: &[u8]) -> bool {
    reader::read_line(line).iter().any(|document| {
        let kind = document.value.get("type").and_then(Value::as_str);
        let is_sidechain = document.value.get("isSidechain") == Some(&Value::Bool(true));
        document.damage != Damage::Broken
            && !is_sidechain
            && matches!(kind, Some("user" | "assistant"))
    })
}

/// A moment in the program's spelling (`2026-11-21T07:42:18.733Z`) as ms since 1970.
fn millis(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second, milli) =
        (number(11, 13)?, number(14, 16)?, number(17, 19)?, number(20, 23).unwrap_or(0));
    if !(1..=12).contains(&month) || !text.ends_with('Z') {
        return None;
    }
    // Days since 1970 of a date of the Gregorian calendar: years begin in March, so a leap day is
    // the last of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + milli)
}

/// Text of a content field: a string, or its text blocks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks
            .iter()
            .filter_map(|block| block.get("text")?.as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

fn read_user(line: Line, at: i64) -> Option<Entry> {
    let content = line.message?.content;
    let results: Vec<(String, bool)> = content
        .as_array()
        .into_iter()
        .flatten()
        .filter(|block| block.get("type").and_then(Value::as_str) == Some("tool_result"))
        .filter_map(|block| {
            Some((
                block.get("tool_use_id")?.as_str()?.to_string(),
                block.get("is_error").and_then(Value::as_bool).unwrap_or(false),
            ))
        })
        .collect();
    if !results.is_empty() {
        return Some(Entry::Results { calls: results, at });
    }
    let text = text_of(&content);
    let begins = |words: &[&str]| words.iter().any(|word| text.trim_start().starts_with(word));
    if begins(&["[Request interrupted"]) {
        return Some(Entry::Interrupted { at });
    }
    let origin = line.origin.unwrap_or_default().kind;
    // Another session's words and notices of the program are meta, and yet open a turn.
    let told = matches!(origin.as_str(), "peer" | "task-notification");
    if line.is_compact_summary
        || (line.is_meta && !told)
        || begins(&["<command-name>", "<command-message>", "<local-command-"])
    {
        return None;
    }
    let human = !told && line.prompt_source.as_deref() != Some("system");
    let queued = line.prompt_source.as_deref() == Some("queued");
    Some(Entry::Prompt(Prompt {
        uuid: line.uuid.unwrap_or_default(),
        text,
        human,
        joined: false,
        queued,
        at,
        prompt_id: line.prompt_id.unwrap_or_default(),
    }))
}

fn read_assistant(line: Line, at: i64) -> Option<Entry> {
    let message = line.message?;
    let blocks = message.content.as_array().into_iter().flatten().filter_map(|block| {
        let text =
            |field: &str| block.get(field).and_then(Value::as_str).unwrap_or_default().to_string();
        match block.get("type")?.as_str()? {
            "text" => Some(Block::Text(text("text"))),
            "thinking" => Some(Block::Thinking(text("thinking"))),
            "tool_use" => {
                let input =
                    block.get("input").and_then(Value::as_object).cloned().unwrap_or_default();
                Some(Block::Tool { id: text("id"), name: text("name"), input })
            }
            _ => None,
        }
    });
    let usage = message.usage.unwrap_or_default();
    Some(Entry::Answer(Answer {
        uuid: line.uuid.unwrap_or_default(),
        message: message.id.unwrap_or_default(),
        model: message.model.unwrap_or_default(),
        blocks: blocks.collect(),
        stop_reason: message.stop_reason.unwrap_or_default(),
        tokens: [
            usage.input_tokens,
            usage.cache_creation_input_tokens,
            usage.cache_read_input_tokens,
            usage.output_tokens,
        ]
        .into_iter()
        .fold(0, u64::saturating_add),
        is_error: line.is_api_error_message,
        at,
    }))
}

/// A text that was taken into a running turn.
fn read_attachment(line: Line, at: i64) -> Option<Entry> {
    let attachment = line.attachment?;
    if attachment.r#type != "queued_command" {
        return None;
    }
    let origin = attachment.origin.unwrap_or_default().kind;
    let uuid = attachment.source_uuid.or(line.uuid).unwrap_or_default();
    let human = !matches!(origin.as_str(), "peer" | "task-notification");
    Some(Entry::Prompt(Prompt {
        uuid,
        text: text_of(&attachment.prompt?),
        human,
        joined: true,
        at,
        ..Default::default()
    }))
}

/// What was sent as a paste, without the wrapper that the program puts around several lines.
pub fn unwrapped(text: &str) -> &str {
    let trimmed = text.trim();
    let Some(rest) = trimmed.strip_prefix("<pasted_content id=") else { return trimmed };
    let (Some(start), Some(end)) = (rest.find('>'), rest.rfind("</pasted_content")) else {
        return trimmed;
    };
    rest.get(start + 1..end).unwrap_or(trimmed).trim()
}

/// Text without what changes on its way through a terminal: white space, control characters (never
/// typed), and invisible ones (the program removes them).
pub fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && !is_invisible(*c)).collect()
}

/// Model of what the program says itself in the model's place.
pub const SYNTHETIC: &str = "<synthetic>";
