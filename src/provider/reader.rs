//! Reads the JSON that providers write, as far as it can be read: lines, hooks, transcripts, files.
//!
//! Programs cut a text in the middle of a character, write numbers that no type holds, die within a
//! line or write two at once. A document that is in order costs one strict pass; only one that is
//! not is mended and read again. What was mended says so: it may end a wait, but it never approves,
//! answers or identifies.

mod mend;
#[cfg(test)]
mod tests;

use serde_json::Value;

/// Field of a payload that is set where the payload was damaged; its value is how, by
/// [`Damage::as_str`].
pub const DAMAGE: &str = "agentRelayDamage";
/// What leads the title of a damaged request for permission.
pub const UNREADABLE: &str = "unreadable";

/// What was wrong with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Damage {
    /// Nothing: it says what its writer meant.
    #[default]
    None,
    /// Characters, numbers or what was nested too deeply were replaced, or a name stands twice in
    /// it. All else is as it was written.
    Patched,
    /// Its end is lost: what stands in it may be half of what was meant.
    Broken,
}

impl Damage {
    /// The word for it in a payload; `None` has none.
    pub fn as_str(self) -> &'static str {
        match self {
            Damage::None => "",
            Damage::Patched => "patched",
            Damage::Broken => "broken",
        }
    }

    /// What a payload says of itself.
    pub fn of(payload: &Value) -> Damage {
        match payload.get(DAMAGE).and_then(Value::as_str) {
            None => Damage::None,
            Some("patched") => Damage::Patched,
            Some(_) => Damage::Broken,
        }
    }

    /// A payload that says so of itself; what is no object becomes one.
    pub fn mark(self, payload: &mut Value) {
        if self == Damage::None {
            return;
        }
        if !payload.is_object() {
            *payload = Value::Object(Default::default());
        }
        payload[DAMAGE] = Value::from(self.as_str());
    }

    /// The title of a request for permission, which says when not all of it could be read. The word
    /// stands in front: a title may be cut at its end.
    pub fn title(self, title: &str) -> String {
        match (self, title.trim()) {
            (Damage::None, _) => title.to_string(),
            (_, "") => format!("{UNREADABLE}: a request for permission"),
            (_, title) => format!("{UNREADABLE} in part: {title}"),
        }
    }
}

/// One JSON object, and what was wrong with it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub struct Document {
    pub value: Value,
    pub damage: Damage,
}

impl Document {
    /// The text of a field that identifies something: none where it was damaged.
    pub fn identity(&self, field: &str) -> Option<&str> {
        let text = self.value.get(field)?.as_str()?;
        (self.damage != Damage::Broken && is_sound(text)).then_some(text)
    }
}

/// No character of it was replaced.
pub fn is_sound(text: &str) -> bool {
    !text.contains(char::REPLACEMENT_CHARACTER)
}

/// The objects of a line, in order; none: it is no line of objects.
pub fn read_line(line: &[u8]) -> Vec<Document> {
    match serde_json::from_slice::<Value>(line) {
        Ok(value @ Value::Object(_)) => vec![Document { value, damage: Damage::None }],
        Ok(_) => Vec::new(),
        Err(_) if crate::planted::is("strict-reader") => Vec::new(),
        Err(_) => mend::documents(line),
    }
}

/// The one object of a file or payload; `None`: it holds none.
pub fn read(bytes: &[u8]) -> Option<Document> {
    read_line(bytes).into_iter().next()
}

/// The worst damage of a line, names that stand twice in one object included. A strict pass does
/// not see those; it costs a second one, for requests where somebody judges by what he sees.
pub fn damage_of(line: &[u8]) -> Damage {
    let all = mend::documents(line);
    all.iter().map(|document| document.damage).max().unwrap_or(Damage::Broken)
}

/// A whole number, also where its writer has only one kind of numbers and writes 3 as 3.0.
pub fn whole(value: &Value) -> Option<i64> {
    /// Up to here such a number is exact.
    const EXACT: f64 = (1u64 << 53) as f64;
    let number = || value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= EXACT);
    value.as_i64().or_else(|| number().map(|n| n as i64))
}

/// A text that people have edited, without the mark that some editors put in front.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix(mend::MARK).unwrap_or(text)
}
