//! What a JSON text costs whoever parses it, found in one pass over its bytes and before anything
//! is built of it.

use serde_json::Value;

use super::limits::{JSON_DEPTH_MAX, JSON_MEMBERS_MAX};

/// What parsing a text would cost. Of a text that is no JSON it says nothing, and that text costs
/// no more than to be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Its length.
    pub bytes: usize,
    /// Values in it, containers included.
    pub members: usize,
    /// Levels of nesting.
    pub depth: usize,
}

/// Stands where something lay too deep.
const TOO_DEEP: &str = "not shown: nested too deeply";

impl Cost {
    /// Looks at a text.
    pub fn of(text: &[u8]) -> Cost {
        let (mut members, mut depth, mut deepest) = (1usize, 0usize, 0usize);
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            at += 1;
            match byte {
                b'"' => at = end_of_text(text, at),
                b',' => members += 1,
                b'{' | b'[' => {
                    (members, depth) = (members + 1, depth + 1);
                    deepest = deepest.max(depth);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        Cost { bytes: text.len(), members: members * usize::from(at > 0), depth: deepest }
    }

    /// Why a text of this cost is refused: code and sentence, which names the limit.
    pub fn refusal(&self) -> Option<(&'static str, String)> {
        if crate::planted::is("unscanned") {
            return None;
        }
        let Cost { members, depth, .. } = self;
        if *depth > JSON_DEPTH_MAX {
            let text =
                format!("JSON may have {JSON_DEPTH_MAX} levels of nesting, this has {depth}");
            return Some(("too_deep", text));
        }
        let text =
            format!("one body or frame may have {JSON_MEMBERS_MAX} values, this has {members}");
        (*members > JSON_MEMBERS_MAX).then_some(("too_many_members", text))
    }
}

/// Behind the closing quote of a text that begins here.
fn end_of_text(text: &[u8], mut at: usize) -> usize {
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// The value of a member of the outermost object, if it is a text without escapes or a number:
/// what a frame is and what it is called, also where the whole of it cannot be read.
pub fn outer_member<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0usize);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let end = end_of_text(bytes, at);
                let key = text.get(at..end.saturating_sub(1));
                at = end;
                let value = text.get(at..).map(str::trim_start)?;
                if depth == 1
                    && key == Some(name)
                    && let Some(value) = value.strip_prefix(':')
                {
                    return plain_value(value.trim_start());
                }
            }
            _ => {}
        }
    }
    None
}

fn plain_value(text: &str) -> Option<&str> {
    let value = match text.strip_prefix('"') {
        Some(rest) => rest.split_once('"')?.0,
        None => text.split([',', '}', ' ', '\n', '\r', '\t']).next()?,
    };
    let is_plain = !value.is_empty() && !value.contains(['\\', '{', '[']);
    is_plain.then_some(value)
}

/// Cuts what lies deeper than so many levels; a sentence stands in its place.
pub fn cut_depth(value: &mut Value, levels: usize) {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => *value = TOO_DEEP.into(),
        Value::Array(items) => items.iter_mut().for_each(|item| cut_depth(item, levels - 1)),
        Value::Object(map) => map.values_mut().for_each(|item| cut_depth(item, levels - 1)),
        _ => {}
    }
}

/// Levels of nesting of a value.
pub fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}

/// Values in a value, itself included.
pub fn members_of(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(members_of).sum::<usize>(),
        Value::Object(map) => map.values().map(members_of).sum::<usize>(),
        _ => 0,
    }
}

/// Room for values that are put side by side.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Bytes as JSON.
    pub bytes: usize,
    /// Values.
    pub members: usize,
}

impl Room {
    /// Takes room for a value; false: there is not enough, and nothing is taken.
    pub fn take(&mut self, value: &Value) -> bool {
        let (bytes, members) = (bytes_of(value), members_of(value));
        let fits = bytes <= self.bytes && members <= self.members;
        if fits {
            (self.bytes, self.members) = (self.bytes - bytes, self.members - members);
        }
        fits
    }
}

/// Bytes of a value as JSON, without writing it: quotes and separators count, escapes do not.
pub fn bytes_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| bytes_of(item) + 1).sum::<usize>(),
        Value::Object(map) => bytes_of_map(map),
    }
}

/// The same of an object.
pub fn bytes_of_map(map: &serde_json::Map<String, Value>) -> usize {
    2 + map.iter().map(|(name, value)| name.len() + 4 + bytes_of(value)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_is_measured_without_being_read() {
        for (text, members, depth) in [
            ("", 0, 0),
            ("5", 1, 0),
            ("[]", 2, 1),
            ("[1,2,3]", 4, 1),
            (r#"{"a":{"b":[]}}"#, 4, 3),
            (r#"{"a":"[[[,,,{{{\"[["}"#, 2, 1),
            (r#"{"a":"unfinished [[["#, 2, 1),
            ("]]]]", 1, 0),
        ] {
            let cost = Cost::of(text.as_bytes());
            assert_eq!((cost.members, cost.depth), (members, depth), "{text}");
        }
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(Cost::of(deep(JSON_DEPTH_MAX).as_bytes()).refusal(), None);
        let refused = |text: &str| Cost::of(text.as_bytes()).refusal().map(|(code, _)| code);
        assert_eq!(refused(&deep(JSON_DEPTH_MAX + 1)), Some("too_deep"));
        let wide = format!("[{}1]", "1,".repeat(JSON_MEMBERS_MAX));
        assert_eq!(refused(&wide), Some("too_many_members"));
    }

    #[test]
    fn a_frame_that_cannot_be_read_still_has_its_name() {
        let deep = "[".repeat(500);
        for (text, want) in [
            (format!(r#"{{"payload":{{"id":"x","a":{deep}}},"id":"e7"}}"#), None),
            (format!(r#"{{"id" : "e7","payload":{deep}"#), Some("e7")),
            (r#"{"payload":{"id":"x"},"id":12}"#.into(), Some("12")),
            (r#"{"a":"id","id":"y"}"#.into(), Some("y")),
            (r#"{"a":"\"id\":\"z\"","id":"y"}"#.into(), Some("y")),
            (r#"{"id":{"a":1}}"#.into(), None),
            (r#"{"id":"a\u0041"}"#.into(), None),
            ("[\"id\"]".into(), None),
            ("{\"id".into(), None),
        ] {
            let want: Option<&str> = want;
            assert_eq!(outer_member(&text, "id"), want, "{text:.80}");
        }
    }

    #[test]
    fn what_lies_too_deep_is_cut_and_the_rest_is_shown() {
        let mut value = json!({"a": [[1, {"b": 2}]], "c": 3});
        assert_eq!(depth_of(&value), 4);
        cut_depth(&mut value, 3);
        assert_eq!(value, json!({"a": [[1, TOO_DEEP]], "c": 3}));
        let text = json!({"a": "bc", "d": [true, 1.5]});
        let (told, real) = (bytes_of(&text), text.to_string().len());
        assert!(told.abs_diff(real) < 16, "{told} {real}");
    }
}
