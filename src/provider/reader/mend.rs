//! Mends JSON: one pass over a text, with the open containers on a stack of its own, whose output
//! is JSON again.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Damage, Document};

/// Levels of nesting that are kept; what lies deeper is replaced by a word.
const NESTING_MAX: usize = 64;
/// Objects of one line that are read.
const DOCUMENTS_MAX: usize = 16;
/// A byte order mark.
pub(super) const MARK: char = '\u{feff}';
/// Stands where something lay too deep.
const TOO_DEEP: &str = "\"unreadable: nested too deeply\"";
/// Stands for half a character.
const REPLACED: &str = "\\ufffd";

/// The objects of a line, one after the other.
pub(super) fn documents(line: &[u8]) -> Vec<Document> {
    let text = String::from_utf8_lossy(line);
    let foreign = matches!(text, std::borrow::Cow::Owned(_));
    let mut rest = text.as_ref();
    let mut all = Vec::new();
    while all.len() < DOCUMENTS_MAX {
        // Anything else in front is a text, not a line of objects.
        rest = rest.trim_start_matches(|c: char| c == MARK || c.is_whitespace() || c.is_control());
        if !rest.starts_with('{') {
            break;
        }
        let mut mender = Mender::new(rest);
        let next = mender.run();
        let damage = if foreign { mender.damage.max(Damage::Patched) } else { mender.damage };
        if let Ok(value @ Value::Object(_)) = serde_json::from_str(&mender.out) {
            all.push(Document { value, damage });
        }
        rest = &rest[next..];
    }
    all
}

/// What may come next.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    /// A name, or the end of the object.
    Name,
    Colon,
    /// A value, or the end of the list.
    Value,
    /// A comma, or the end of the container.
    Comma,
}

/// An object or a list that is open.
struct Container {
    is_object: bool,
    is_empty: bool,
    /// Names of an object.
    names: BTreeSet<String>,
}

struct Mender<'a> {
    text: &'a str,
    at: usize,
    out: String,
    open: Vec<Container>,
    next: Next,
    damage: Damage,
    /// Where the last text ended, if nothing came since.
    text_end: Option<usize>,
}

impl<'a> Mender<'a> {
    fn new(text: &'a str) -> Mender<'a> {
        Mender {
            text,
            at: 0,
            out: String::with_capacity(text.len()),
            open: Vec::new(),
            next: Next::Value,
            damage: Damage::None,
            text_end: None,
        }
    }

    fn patched(&mut self) {
        self.damage = self.damage.max(Damage::Patched);
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Reads one object. Where the next one may begin.
    fn run(&mut self) -> usize {
        loop {
            self.skip_space();
            let Some(byte) = self.peek() else { return self.close_all(self.text.len()) };
            if !self.step(byte) {
                return self.close_all(self.glued(byte).unwrap_or(self.text.len()));
            }
            if self.open.is_empty() {
                return self.at;
            }
        }
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        let skipped = |c: char| c == MARK || c.is_whitespace() || c.is_control();
        let left = rest.trim_start_matches(skipped);
        self.at = self.text.len() - left.len();
    }

    /// One token. False: none that may stand here.
    fn step(&mut self, byte: u8) -> bool {
        let text_end = self.text_end.take();
        let is_object = self.open.last().is_some_and(|container| container.is_object);
        match (self.next, byte) {
            (Next::Name, b'"') => self.name(),
            (Next::Colon, b':') => {
                self.at += 1;
                self.out.push(':');
                self.next = Next::Value;
            }
            (Next::Comma, b',') => {
                self.at += 1;
                self.next = if is_object { Next::Name } else { Next::Value };
            }
            (Next::Name | Next::Comma, b'}') if is_object => self.close(),
            (Next::Value | Next::Comma, b']') if !is_object && !self.open.is_empty() => {
                self.close();
            }
            (Next::Value, b'"') => {
                self.begin_value();
                self.string();
                self.next = Next::Comma;
            }
            (Next::Value, b'{' | b'[') => self.open(byte),
            (Next::Value, _) => return self.word(),
            _ => {
                self.text_end = text_end;
                return false;
            }
        }
        true
    }

    /// A comma before all but the first. It is written late: one at the end is left out.
    fn separate(&mut self) {
        if let Some(container) = self.open.last_mut()
            && !std::mem::replace(&mut container.is_empty, false)
        {
            self.out.push(',');
        }
    }

    fn begin_value(&mut self) {
        if self.open.last().is_some_and(|container| !container.is_object) {
            self.separate();
        }
    }

    fn name(&mut self) {
        self.separate();
        let from = self.out.len();
        self.string();
        let name = serde_json::from_str::<String>(&self.out[from..]).unwrap_or_default();
        let is_new = self.open.last_mut().is_none_or(|container| container.names.insert(name));
        if !is_new {
            self.patched();
        }
        self.next = Next::Colon;
    }

    fn open(&mut self, byte: u8) {
        self.begin_value();
        if self.open.len() >= NESTING_MAX {
            self.out.push_str(TOO_DEEP);
            self.patched();
            self.skip_container();
            self.next = Next::Comma;
            return;
        }
        let is_object = byte == b'{';
        self.at += 1;
        self.out.push(byte as char);
        self.open.push(Container { is_object, is_empty: true, names: BTreeSet::new() });
        self.next = if is_object { Next::Name } else { Next::Value };
    }

    fn close(&mut self) {
        self.at += 1;
        if let Some(container) = self.open.pop() {
            self.out.push(if container.is_object { '}' } else { ']' });
        }
        self.next = Next::Comma;
    }

    /// Steps over a container with all that is in it.
    fn skip_container(&mut self) {
        let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// A number or a word; one that is none becomes null.
    fn word(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_');
        let word = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        if word.is_empty() {
            return false;
        }
        self.begin_value();
        self.at += word.len();
        self.skip_space();
        // Where no value can end, this one may have gone on.
        let is_whole = matches!(self.peek(), Some(b',' | b'}' | b']'));
        let is_json = is_whole && serde_json::from_str::<Value>(word).is_ok();
        let number = word.parse::<f64>().ok().filter(|number| is_whole && number.is_finite());
        match number {
            _ if is_json => self.out.push_str(word),
            Some(number) => self.out.push_str(&Value::from(number).to_string()),
            None => {
                self.patched();
                self.out.push_str("null");
            }
        }
        self.next = Next::Comma;
        true
    }

    /// A text from its quotation mark on, to the next one.
    fn string(&mut self) {
        self.at += 1;
        self.out.push('"');
        loop {
            let rest = &self.text[self.at..];
            let Some(end) = rest.find(|c: char| c == '"' || c == '\\' || c < ' ') else {
                self.out.push_str(rest);
                self.at = self.text.len();
                self.damage = Damage::Broken;
                break;
            };
            self.out.push_str(&rest[..end]);
            self.at += end;
            match rest.as_bytes()[end] {
                b'"' => {
                    self.text_end = Some(self.at);
                    self.at += 1;
                    break;
                }
                b'\\' => self.escape(),
                byte => {
                    self.at += 1;
                    self.out.push_str(if byte == b'\t' { "\\t" } else { REPLACED });
                    self.patched();
                }
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self) {
        let rest = &self.text[self.at..];
        let kept = match rest.as_bytes().get(1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => match unit(rest) {
                Some(0xd800..=0xdbff) => {
                    let low = rest.get(6..).and_then(unit);
                    if low.is_some_and(|low| (0xdc00..=0xdfff).contains(&low)) { 12 } else { 0 }
                }
                Some(0xdc00..=0xdfff) | None => 0,
                Some(_) => 6,
            },
            _ => 0,
        };
        self.out.push_str(&rest[..kept]);
        self.at += kept;
        if kept == 0 {
            self.out.push_str(REPLACED);
            self.patched();
            // Half a character is gone with all its digits; of another escape only its sign.
            self.at += if unit(rest).is_some() { 6 } else { 1 };
        }
    }

    /// Where another object begins that was written before this one was complete.
    fn glued(&self, byte: u8) -> Option<usize> {
        if byte == b'{' {
            return Some(self.at);
        }
        // Its first quotation mark has closed a text of this one.
        let end = self.text_end?;
        let start = end.checked_sub(1)?;
        (self.text.as_bytes()[start] == b'{').then_some(start)
    }

    /// Completes what is not complete.
    fn close_all(&mut self, next: usize) -> usize {
        self.damage = Damage::Broken;
        match self.next {
            Next::Colon => self.out.push_str(":null"),
            Next::Value if self.out.ends_with(':') => self.out.push_str("null"),
            _ => {}
        }
        while let Some(container) = self.open.pop() {
            self.out.push(if container.is_object { '}' } else { ']' });
        }
        next
    }
}

/// The UTF-16 unit of an escape.
fn unit(escape: &str) -> Option<u32> {
    let digits = escape.strip_prefix("\\u")?.get(..4)?;
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(digits, 16).ok())?
}
