//! What a model reads: results in pages, and errors that say what to do now.

use serde_json::Value;

use crate::core::agent::prompt_text;
use crate::core::chars;
use crate::wire::api::Message;

/// Bytes of one result. Programs cut or put aside what is longer.
pub const RESULT_BYTES_MAX: usize = 18_000;
/// Characters of a body in a list of messages.
const PREVIEW_CHARS: usize = 1500;
/// Characters of a foreign word in a sentence of ours.
const WORD_CHARS: usize = 100;

/// A foreign word in a sentence of ours.
pub(super) fn short(word: &str) -> String {
    chars::one_line(&word.chars().take(WORD_CHARS).collect::<String>())
}

/// The nearest place at or before `at` where a character begins.
fn boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The part of a text that begins at a byte, with a line that says where the next one begins.
pub(super) fn page(text: &str, offset: usize) -> String {
    let from = boundary(text, offset);
    let rest = &text[from..];
    if from == 0 && rest.len() <= RESULT_BYTES_MAX {
        return text.to_string();
    }
    // Room for the line of ours.
    let end = boundary(rest, RESULT_BYTES_MAX - 200);
    let (to, all) = (from + end, text.len());
    let more = if to < all {
        format!("call again with offset {to} for the rest")
    } else {
        "this is the end".into()
    };
    format!("[agent-relay: bytes {from} to {to} of {all}; {more}]\n{}", &rest[..end])
}

/// A message as it stands in a prompt: no body can look like a line of ours.
pub(super) fn message(value: &Value) -> Option<String> {
    shown(value, usize::MAX)
}

fn shown(value: &Value, chars_max: usize) -> Option<String> {
    let message = serde_json::from_value::<Message>(value.clone()).ok()?;
    let to = short(&message.to);
    let mut text = format!("To {to}");
    if let Some(answered) = message.reply_to {
        text.push_str(&format!(", answers #{answered}"));
    }
    for reaction in &message.reactions {
        let field = |name: &str| short(reaction[name].as_str().unwrap_or("?"));
        text.push_str(&format!(", {} by {}", field("emoji"), field("agentId")));
    }
    Some(format!("{text}\n{}", prompt_text::of_message(&message, chars_max)))
}

/// Messages of a thread, oldest first.
pub(super) fn thread(answer: &Value) -> String {
    let messages = answer["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = messages.iter().filter_map(|message| shown(message, PREVIEW_CHARS));
    texts.collect::<Vec<_>>().join("\n\n")
}

/// One line for an agent.
pub(super) fn agent(card: &Value) -> String {
    let word = |name: &str| card[name].as_str().map(short).filter(|word| !word.is_empty());
    let words = |name: &str| {
        let list = card[name].as_array().into_iter().flatten().filter_map(Value::as_str);
        list.map(short).collect::<Vec<_>>().join(", ")
    };
    let status = card.pointer("/meta/detailedStatus").and_then(Value::as_str).map(short);
    let status = status.or_else(|| word("status")).unwrap_or_else(|| "unknown".into());
    let mut line = format!("{}: {status}", word("id").unwrap_or_else(|| "?".into()));
    for (what, told) in [
        ("label", word("label").unwrap_or_default()),
        ("tags", words("tags")),
        ("can", words("capabilities")),
        ("spawned by", word("spawnedBy").unwrap_or_default()),
    ] {
        if !told.is_empty() {
            line.push_str(&format!("; {what} {told}"));
        }
    }
    line
}

/// What a refusal of the relay means for the model, and what to do now.
pub(super) fn refused(status: u16, answer: &Value, what: &str) -> String {
    let said = answer["error"].as_str().map(short).unwrap_or_else(|| format!("HTTP {status}"));
    let now = match (status, answer["code"].as_str().unwrap_or_default()) {
        (401, _) => {
            "The relay does not take your token now; your runner is getting another one. Wait a minute, then call once more."
        }
        (403, _) => "You may not do this: do not try again, and tell whoever asked for it.",
        (404, "unknown_agent") => "relay_find_agents lists who is there.",
        (404, _) => "Use a number that stands in a message which you were given.",
        (409, "other_generation") => {
            "That number meant another message before the relay's data were restored: write with relay_send_message and say what you answer."
        }
        (409, _) => "It is not wanted: do not try again.",
        (413, _) => "Shorten it, or send it in parts.",
        (422, "no_such_target") => "relay_find_agents lists who is there.",
        (400 | 422, _) => "Change the arguments, then call again.",
        (429, _) => "Wait a few seconds, then call again.",
        _ => "Nothing is known to be done. Wait a minute, then call once more.",
    };
    format!("{what} failed: {}. {now}", said.trim_end_matches('.'))
}
