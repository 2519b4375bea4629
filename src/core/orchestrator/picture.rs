//! What a terminal shows, as an answer: its content with colours, its size and its cursor. Only so
//! much of it is told as an answer may hold, the newest lines first.

use serde_json::{Map, Value, json};

use crate::core::limits::{TERMINAL_ANSWER_BYTES_MAX, TERMINAL_STYLES_MAX};

/// What tmux is asked about a pane, in the order of [`Picture::read`].
pub const FORMAT: &str = "#{pane_width} #{pane_height} #{cursor_x} #{cursor_y}";

/// Bytes for the style in front of a content, as JSON, where an escape takes six.
const STYLE_ROOM: usize = TERMINAL_STYLES_MAX * 3;

/// What a terminal shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Picture {
    /// Lines with the sequences that colour them, history included.
    pub content: String,
    /// Columns and rows.
    pub size: Option<(u32, u32)>,
    /// Column and row of the cursor, from 0.
    pub cursor: Option<(u32, u32)>,
}

impl Picture {
    /// From what tmux says: a line for [`FORMAT`], and behind it what the pane holds.
    pub fn read(told: &[u8]) -> Picture {
        let text = String::from_utf8_lossy(told);
        let (head, content) = text.split_once('\n').unwrap_or((&text, ""));
        let numbers: Vec<Option<u32>> = head.split(' ').map(|word| word.parse().ok()).collect();
        let at = |place: usize| numbers.get(place).copied().flatten();
        let size = at(0).zip(at(1)).filter(|(columns, rows)| *columns > 0 && *rows > 0);
        let cursor = at(2).zip(at(3));
        let content = fitted(content, TERMINAL_ANSWER_BYTES_MAX);
        Picture { content, size, cursor }
    }
}

/// The answer about a terminal. `picture`: none if there is no terminal of that name.
pub fn snapshot(session: &str, picture: Option<Picture>, alive: bool, now_ms: i64) -> Value {
    let running = picture.is_some();
    let Picture { content, size, cursor } = picture.unwrap_or_default();
    let mut told = Map::new();
    told.insert("session".into(), json!(session));
    told.insert("content".into(), json!(content));
    told.insert("running".into(), json!(running));
    told.insert("agentAlive".into(), json!(alive));
    let pairs = [("cols", "rows", size), ("cursorX", "cursorY", cursor)];
    for (first, second, pair) in pairs {
        if let Some((a, b)) = pair {
            told.insert(first.into(), json!(a));
            told.insert(second.into(), json!(b));
        }
    }
    told.insert("capturedAt".into(), json!(now_ms));
    Value::Object(told)
}

/// The last lines of a content that take so many bytes as JSON. A style runs on over the ends of
/// lines: the one that holds where the rest begins stands in front of it.
fn fitted(content: &str, bytes_max: usize) -> String {
    let mut room = bytes_max.saturating_sub(STYLE_ROOM);
    let mut from = content.len();
    for line in content.split_inclusive('\n').rev() {
        let cost: usize = line.chars().map(json_bytes).sum();
        if cost > room {
            break;
        }
        room -= cost;
        from -= line.len();
    }
    if from == 0 { content.into() } else { style_at(&content[..from]) + &content[from..] }
}

fn json_bytes(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' => 2,
        c if c < ' ' || c == '\u{7f}' => 6,
        c => c.len_utf8(),
    }
}

/// The sequences that make the style at the end of a text.
fn style_at(text: &str) -> String {
    let mut style = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        let body = &rest[at + 2..];
        let end = body.bytes().take_while(|byte| !(b'@'..=b'~').contains(byte)).count();
        let codes = &body[..end];
        if body[end..].starts_with('m') {
            let resets = codes.is_empty() || codes == "0" || codes.starts_with("0;");
            if resets || style.len() + codes.len() + 3 > TERMINAL_STYLES_MAX {
                style.clear();
            }
            if codes.len() + 3 <= TERMINAL_STYLES_MAX {
                style.push_str(&format!("\u{1b}[{codes}m"));
            }
        }
        rest = body.get(end..).unwrap_or_default();
    }
    style
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tmux_says_is_read_and_told() {
        for (told, content, size, cursor) in [
            (
                "200 50 3 0\n\u{1b}[1mhi\u{1b}[0m\n\n",
                "\u{1b}[1mhi\u{1b}[0m\n\n",
                Some((200, 50)),
                Some((3, 0)),
            ),
            ("0 0 0 0\nx", "x", None, Some((0, 0))),
            ("80 24 -1 x\nx", "x", Some((80, 24)), None),
            ("80 24", "", Some((80, 24)), None),
            ("", "", None, None),
            ("99999999999 1 1 1\n", "", None, Some((1, 1))),
        ] {
            let picture = Picture::read(told.as_bytes());
            assert_eq!(picture, Picture { content: content.into(), size, cursor }, "{told:?}");
        }
        let picture = Picture::read(b"200 50 3 0\nx\xff\n");
        let told = snapshot("ar-p-web", Some(picture), true, 5);
        assert_eq!(
            told,
            json!({"session": "ar-p-web", "content": "x\u{fffd}\n", "running": true, "agentAlive": true,
                "cols": 200, "rows": 50, "cursorX": 3, "cursorY": 0, "capturedAt": 5})
        );
        assert_eq!(
            snapshot("ar-p-web", None, false, 5),
            json!({"session": "ar-p-web", "content": "", "running": false, "agentAlive": false, "capturedAt": 5})
        );
    }

    #[test]
    fn of_too_much_the_newest_lines_stay_in_their_style() {
        let room = STYLE_ROOM;
        for (content, max, want) in [
            ("a\nb\nc\n", room + 100, "a\nb\nc\n"),
            ("a\nb\nc\n", room + 6, "b\nc\n"),
            ("\u{1b}[31;1ma\nb\u{1b}[4m\nc\n", room + 3, "\u{1b}[31;1m\u{1b}[4mc\n"),
            ("\u{1b}[31ma\u{1b}[0m\nc\n", room + 3, "\u{1b}[0mc\n"),
            ("\u{1b}[31ma\u{1b}[m\u{1b}[2Kb\nc\n", room + 3, "\u{1b}[mc\n"),
            ("much too long", room + 3, ""),
        ] {
            assert_eq!(fitted(content, max), want, "{content:?}");
        }
        let hostile =
            format!("\u{1b}[{}m\n", "1;".repeat(500_000)) + &"\u{1b}[1m\n".repeat(200_000);
        let told = Picture::read(format!("200 50 0 0\n{hostile}").as_bytes()).content;
        let size = serde_json::to_string(&told).expect("a text").len();
        assert!(size <= TERMINAL_ANSWER_BYTES_MAX + 2, "{size}");
    }
}
