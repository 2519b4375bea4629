//! Damages to a line of JSON, as real programs do them: each is laid over recordings, and what must
//! never be lost is asked for again.

use serde_json::{Map, Value};

/// Stands in a text where the damage goes.
const MARK: &str = "@@here@@";
/// Fields whose text people read: a program cuts these.
const SPOKEN: [&str; 9] = [
    "title",
    "text",
    "command",
    "content",
    "message",
    "description",
    "last_assistant_message",
    "question",
    "result",
];

/// What of a line is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// All of it: whoever reads it needs not be told.
    All,
    /// All but single characters or numbers.
    Most,
    /// Its beginning.
    Half,
}

pub struct Damage {
    pub name: &'static str,
    pub left: Left,
    /// Gives the damaged line; it may hold line breaks.
    pub of: fn(&str) -> Vec<u8>,
}

const fn damage(name: &'static str, left: Left, of: fn(&str) -> Vec<u8>) -> Damage {
    Damage { name, left, of }
}

pub const DAMAGES: [Damage; 16] = [
    damage("lone surrogate", Left::Most, |line| spoken(line, b"\\ud83d")),
    damage("lone low surrogate", Left::Most, |line| spoken(line, b"\\ude00 \\ud83d\\u2026")),
    damage("latin-1", Left::Most, |line| spoken(line, b"caf\xe9")),
    damage("line separator", Left::All, |line| spoken(line, "\u{2028}".as_bytes())),
    damage("raw control", Left::Most, |line| spoken(line, b"a\0b")),
    damage("mark in front", Left::All, |line| [b"\xef\xbb\xbf", line.as_bytes()].concat()),
    damage("nul in front", Left::All, |line| [b"\0\0", line.as_bytes()].concat()),
    damage("carriage return", Left::All, |line| [line.as_bytes(), b"\r"].concat()),
    damage("doubled", Left::All, |line| format!("{line}\n{line}").into_bytes()),
    damage("doubled in one line", Left::All, |line| format!("{line}{line}").into_bytes()),
    damage("numbers with a point", Left::All, |line| written(line, &Style::Pointed)),
    damage("number too large", Left::Most, |line| added(line, "1e999")),
    damage("nested deeply", Left::Most, |line| {
        added(line, &format!("{}{}", "[".repeat(200), "]".repeat(200)))
    }),
    damage("names twice", Left::Most, |line| written(line, &Style::Twice)),
    damage("cut at its last byte", Left::Half, |line| line.as_bytes()[..line.len() - 1].to_vec()),
    damage("behind half of itself", Left::Half, |line| {
        [&line.as_bytes()[..line.len() / 2], line.as_bytes()].concat()
    }),
];

/// Cut in the middle: what it was may not be known any more.
pub const CUT: Damage =
    damage("cut in half", Left::Half, |line| line.as_bytes()[..line.len() / 2].to_vec());

/// Something in every text that people read; without one, in a field of its own.
fn spoken(line: &str, what: &[u8]) -> Vec<u8> {
    let mut value: Value = serde_json::from_str(line).expect("a recorded line");
    mark(&mut value);
    let mut text = value.to_string();
    if !text.contains(MARK) {
        value["note"] = MARK.into();
        text = value.to_string();
    }
    let pieces: Vec<&[u8]> = text.split(MARK).map(str::as_bytes).collect();
    pieces.join(what)
}

fn mark(value: &mut Value) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(name, value)| match value {
            Value::String(text) if SPOKEN.contains(&name.as_str()) => text.push_str(MARK),
            value => mark(value),
        }),
        Value::Array(items) => items.iter_mut().for_each(mark),
        _ => {}
    }
}

/// A further member, in front of the others and within the inputs of tools.
fn added(line: &str, what: &str) -> Vec<u8> {
    let mut value: Value = serde_json::from_str(line).expect("a recorded line");
    for at in ["/params/toolCall/rawInput", "/request/input", "/tool_input"] {
        if let Some(input) = value.pointer_mut(at).and_then(Value::as_object_mut) {
            input.insert("0".into(), MARK.into());
        }
    }
    value["0"] = MARK.into();
    value.to_string().replace(&format!("\"{MARK}\""), what).into_bytes()
}

enum Style {
    /// 3 as 3.0.
    Pointed,
    /// Each member stands twice; the second one counts.
    Twice,
}

fn written(line: &str, style: &Style) -> Vec<u8> {
    let value: Value = serde_json::from_str(line).expect("a recorded line");
    write(&value, style).into_bytes()
}

fn write(value: &Value, style: &Style) -> String {
    match (value, style) {
        (Value::Object(map), _) => write_object(map, style),
        (Value::Array(items), _) => {
            let items: Vec<String> = items.iter().map(|item| write(item, style)).collect();
            format!("[{}]", items.join(","))
        }
        (Value::Number(number), Style::Pointed) if !number.is_f64() => format!("{number}.0"),
        (other, _) => other.to_string(),
    }
}

fn write_object(map: &Map<String, Value>, style: &Style) -> String {
    let member = |(name, value): (&String, &Value)| {
        let (name, value) = (Value::from(name.as_str()), write(value, style));
        match style {
            Style::Pointed => format!("{name}:{value}"),
            Style::Twice => format!("{name}:null,{name}:{value}"),
        }
    };
    let members: Vec<String> = map.iter().map(member).collect();
    format!("{{{}}}", members.join(","))
}
