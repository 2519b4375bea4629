//! What a session has written, as lines for people: without what a terminal acts on, and bounded.
//! Only the end of a log is ever looked at; how much of it is said in [`crate::core::limits`].

use serde_json::Value;

use crate::core::limits::{
    LOG_ANSWER_BYTES_MAX, LOG_GAP_SPACES_MAX, LOG_HELD_BYTES_MAX, LOG_LINE_CHARS_MAX,
    LOG_LINES_DEFAULT, LOG_LINES_MAX,
};

const ESC: char = '\u{1b}';
const BEL: char = '\u{7}';
/// The one byte that begins a control sequence like `ESC [`, as a character.
const CSI: char = '\u{9b}';
/// Spaces that take the place of one cursor movement.
const FORWARD_SPACES_MAX: usize = 120;

/// What is asked of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// Lines from its end.
    pub lines: usize,
    /// As written, but for the line ends.
    pub raw: bool,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { lines: LOG_LINES_DEFAULT, raw: false }
    }
}

impl LogOptions {
    /// From the parameters of a command: `lines` is held between 1 and [`LOG_LINES_MAX`]. The error
    /// says what is wrong with them.
    pub fn parse(params: &Value) -> Result<LogOptions, String> {
        let lines = match &params["lines"] {
            Value::Null => LOG_LINES_DEFAULT,
            Value::Number(n) => n
                .as_f64()
                .filter(|n| n.is_finite())
                .map(|n| n.clamp(1.0, LOG_LINES_MAX as f64) as usize)
                .ok_or("lines must be a number")?,
            _ => return Err("lines must be a number".into()),
        };
        let raw = match &params["raw"] {
            Value::Null => false,
            Value::Bool(raw) => *raw,
            _ => return Err("raw must be true or false".into()),
        };
        Ok(LogOptions { lines, raw })
    }
}

/// A text without anything that a terminal acts on but tabs and line feeds. The order of the steps
/// decides what sequences leave behind that stand within each other.
pub fn sanitised(text: &str) -> String {
    let text = rewrite(text.into(), ESC, |after| Some((system_command(after)?, 0)));
    let text = without_strings(text);
    let text = with_gaps(text);
    let text = rewrite(text, ESC, |after| Some((1 + control(after.strip_prefix('[')?)?, 0)));
    let text = rewrite(text, ESC, |after| Some((charset(after)?, 0)));
    let text = rewrite(text, ESC, |after| Some((plain_escape(after)?, 0)));
    let text = rewrite(text, CSI, |after| Some((control(after)?, 0)));
    let text = rewrite(text, ESC, |after| {
        let next = after.chars().next()?;
        let is_end = matches!(next, '\n' | '\r' | '\u{2028}' | '\u{2029}');
        (!is_end).then_some((next.len_utf8(), 0))
    });
    let mut text = with_line_feeds(&text);
    text.retain(|c| !is_dropped(c));
    text
}

/// A text whose lines all end with a line feed.
fn with_line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn is_dropped(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}')
}

/// Rewrites the sequences that begin with `introducer`: `take` is given what stands behind it and
/// tells how many bytes of that belong to the sequence, and how many spaces take its place. What
/// is no sequence stays.
fn rewrite(
    text: String,
    introducer: char,
    mut take: impl FnMut(&str) -> Option<(usize, usize)>,
) -> String {
    if !text.contains(introducer) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(introducer) {
        out.push_str(&rest[..at]);
        let after = &rest[at + introducer.len_utf8()..];
        let (bytes, spaces) = take(after).unwrap_or_else(|| {
            out.push(introducer);
            (0, 0)
        });
        out.extend(std::iter::repeat_n(' ', spaces));
        rest = &after[bytes..];
    }
    out.push_str(rest);
    out
}

/// `]`, anything, and its end: titles, links, the clipboard.
fn system_command(after: &str) -> Option<usize> {
    let body = after.strip_prefix(']')?;
    let end = body.find([BEL, ESC])?;
    match &body[end..] {
        rest if rest.starts_with(BEL) => Some(1 + end + 1),
        rest if rest.starts_with("\u{1b}\\") => Some(1 + end + 2),
        _ => None,
    }
}

/// Strings for a device: `P`, `X`, `^` or `_`, up to the nearest `ESC \`, also over lines.
fn without_strings(text: String) -> String {
    // Where one has no end, no later one has: a text of beginnings alone is not searched each time.
    let mut has_end = true;
    rewrite(text, ESC, |after| {
        let body = after.strip_prefix(['P', 'X', '^', '_']).filter(|_| has_end)?;
        let end = body.find("\u{1b}\\");
        has_end = end.is_some();
        Some((1 + end? + 2, 0))
    })
}

/// The cursor forward: spaces in its place keep words apart that were only positioned.
fn with_gaps(text: String) -> String {
    let mut left = LOG_GAP_SPACES_MAX;
    rewrite(text, ESC, |after| {
        let body = after.strip_prefix('[')?;
        let digits = body.bytes().take_while(u8::is_ascii_digit).count();
        body[digits..].strip_prefix('C')?;
        let wanted = match &body[..digits] {
            "" => 1,
            number => number.parse().unwrap_or(FORWARD_SPACES_MAX),
        };
        // A text of nothing else may not become many times as large.
        let spaces = wanted.min(FORWARD_SPACES_MAX).min(left.max(1));
        left = left.saturating_sub(spaces);
        Some((1 + digits + 1, spaces))
    })
}

/// Parameters, intermediates and the final character of a control sequence.
fn control(body: &str) -> Option<usize> {
    let bytes = body.as_bytes();
    let parameters = bytes.iter().take_while(|byte| (b'0'..=b'?').contains(byte)).count();
    finished(bytes, parameters)
}

fn plain_escape(after: &str) -> Option<usize> {
    finished(after.as_bytes(), 0)
}

/// Intermediates from there on, and a final character behind them.
fn finished(bytes: &[u8], from: usize) -> Option<usize> {
    let between = bytes[from..].iter().take_while(|byte| (b' '..=b'/').contains(byte)).count();
    let end = from + between;
    bytes.get(end).filter(|byte| (b'@'..=b'~').contains(byte)).map(|_| end + 1)
}

/// The choice of a character set and its like: two characters.
fn charset(after: &str) -> Option<usize> {
    let bytes = after.as_bytes();
    let chooses = b"()#%*+-./ ".contains(bytes.first()?);
    (chooses && (b' '..=b'~').contains(bytes.get(1)?)).then_some(2)
}

/// The last lines of a log, oldest first. `window` is its end; `whole`: it is all of it. Blank
/// lines do not count. Of a window that begins within a line that line is left out, unless there
/// is no other.
pub fn last_lines(window: &[u8], whole: bool, options: LogOptions) -> Vec<String> {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let begun = if whole { None } else { window.iter().position(is_end) };
    let window = begun.map_or(window, |end| &window[end + 1..]);
    let mut lines = lines_of(&String::from_utf8_lossy(window), options.raw);
    let surplus = lines.len().saturating_sub(options.lines);
    lines.drain(..surplus);
    let mut room = LOG_ANSWER_BYTES_MAX;
    let fits = lines.iter().rev().take_while(|line| {
        let cost = json_bytes(line);
        let fits = cost <= room;
        room = room.saturating_sub(cost);
        fits
    });
    let fitting = fits.count();
    lines.drain(..lines.len() - fitting);
    lines
}

/// The lines of a text that are not blank, each bounded.
fn lines_of(text: &str, raw: bool) -> Vec<String> {
    let clean = if raw { with_line_feeds(text) } else { sanitised(text) };
    clean.split('\n').map(str::trim_end).filter(|line| !line.is_empty()).map(cut).collect()
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(LOG_LINE_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.into(),
    }
}

/// Bytes of a line within an answer.
fn json_bytes(line: &str) -> usize {
    let cost = |c: char| match c {
        '"' | '\\' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    };
    line.chars().map(cost).sum::<usize>() + 3
}

/// Makes lines of a log that is followed: bytes come in any pieces.
#[derive(Debug, Default)]
pub struct Following {
    raw: bool,
    /// The beginning of a line whose end has not come.
    held: Vec<u8>,
}

impl Following {
    /// Nothing has come yet.
    pub fn new(raw: bool) -> Following {
        Following { raw, held: Vec::new() }
    }

    /// The lines that are complete with these bytes. What is too long to be held is a line without
    /// its end.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.held.extend_from_slice(bytes);
        let end = self.held.iter().rposition(|byte| matches!(byte, b'\n' | b'\r'));
        let ready = match end {
            Some(end) => end + 1,
            None if self.held.len() > LOG_HELD_BYTES_MAX => self.held.len(),
            None => return Vec::new(),
        };
        let rest = self.held.split_off(ready);
        let complete = std::mem::replace(&mut self.held, rest);
        lines_of(&String::from_utf8_lossy(&complete), self.raw)
    }

    /// What is left when nothing more comes, or when another file takes the place of this one.
    pub fn finish(&mut self) -> Vec<String> {
        lines_of(&String::from_utf8_lossy(&std::mem::take(&mut self.held)), self.raw)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_terminal_acts_on_goes_in_this_order() {
        for (text, want) in [
            ("plain ü 漢字\tx\n", "plain ü 漢字\tx\n"),
            // A title, ended either way; one without an end loses its beginning only.
            ("a\u{1b}]0;title\u{7}b\u{1b}]8;;http://x\u{1b}\\c", "abc"),
            ("a\u{1b}]0;title\u{1b}[1mb", "a0;titleb"),
            ("a\u{1b}]two\nlines\u{7}b", "ab"),
            // Strings for a device, over lines and up to the nearest end.
            ("a\u{1b}Pq#0\n#1\u{1b}\\b\u{1b}\\c", "abc"),
            ("\u{1b}Xx\u{1b}\\\u{1b}^y\u{1b}\\\u{1b}_z\u{1b}\\.", "."),
            ("\u{1b}Pnever ended\u{1b}Xnor this", "never endednor this"),
            // The end of a title within a string does not end the string.
            ("\u{1b}Pa\u{1b}]b\u{7}c\u{1b}\\d", "d"),
            // Words that the cursor keeps apart.
            ("a\u{1b}[Cb\u{1b}[3Cc\u{1b}[0Cd", "a b   cd"),
            ("a\u{1b}[1;2Cb", "ab"),
            // Colours, modes, private sequences, intermediates.
            ("\u{1b}[1;38;5;246mred\u{1b}[0m\u{1b}[?2004h\u{1b}[2 q.", "red."),
            ("\u{1b}[<0;1;2M\u{1b}[>c\u{1b}[6n!", "!"),
            // Sets of characters, and other short ones.
            ("\u{1b}(B\u{1b})0\u{1b}#8\u{1b}%G\u{1b} Fx", "x"),
            ("\u{1b}(\u{1b}[mx", ""),
            ("\u{1b}7\u{1b}8\u{1b}=\u{1b}>\u{1b}M\u{1b}cx", "x"),
            // One byte for two.
            ("\u{9b}31mred\u{9b}0m \u{9b}", "red \u{9b}"),
            // An introducer without its end: its first two characters are another sequence.
            ("a\u{1b}[12", "a12"),
            ("a\u{1b}[12é", "a12é"),
            ("a\u{1b}éb\u{1b}", "ab"),
            ("a\u{1b}\nb\u{1b}\u{2028}c", "a\nb\u{2028}c"),
            ("a\r\nb\rc\r\r\nd", "a\nb\nc\n\nd"),
            ("\0\u{1}\u{8}\u{b}\u{c}\u{e}\u{1f}\u{7f}\u{7}\u{85}", "\u{85}"),
            // What a removed sequence leaves behind becomes none.
            ("\u{1b}\u{1b}[m[31mx", "31mx"),
            ("\u{1b}\u{1b}]0;t\u{7}[31mx", "x"),
        ] {
            assert_eq!(sanitised(text), want, "{text:?}");
        }
        for (number, spaces) in [("119", 119), ("120", 120), ("121", 120), ("99999999999999", 120)]
        {
            assert_eq!(sanitised(&format!("\u{1b}[{number}C")).len(), spaces, "{number}");
        }
    }

    /// Any piece of any sequence: nothing is left that a terminal acts on, and what is clean stays.
    #[test]
    fn no_text_keeps_a_control_character() {
        let parts = [
            "\u{1b}", "[", "]", "P", "\\", "\u{7}", "31", "m", "C", "\u{9b}", "(", "\r", "\n", "é",
        ];
        let is_fine = |c: char| c == '\t' || c == '\n' || !c.is_ascii_control();
        let mut rng = crate::core::rng::Rng::new(7);
        for _ in 0..20_000 {
            let size = rng.below(9) as usize + 1;
            let pick = |rng: &mut crate::core::rng::Rng| parts[rng.below(14) as usize];
            let text: String = (0..size).map(|_| pick(&mut rng)).collect();
            let clean = sanitised(&text);
            assert!(clean.chars().all(is_fine), "{text:?} became {clean:?}");
        }
    }

    /// Beginnings without ends, and gaps alone: the work and the result stay in proportion.
    #[test]
    fn hostile_texts_cost_no_more_than_others() {
        for part in ["\u{1b}P", "\u{1b}]", "\u{1b}[", "\u{1b}[1;", "\u{1b}(", "\u{9b}1"] {
            let text = part.repeat(100_000);
            assert!(sanitised(&text).len() <= text.len(), "{part:?}");
        }
        let gaps = sanitised(&"\u{1b}[99C".repeat(50_000));
        assert!(gaps.len() <= LOG_GAP_SPACES_MAX + 50_000, "{}", gaps.len());
    }

    #[test]
    fn the_last_lines_are_those_with_something_in_them() {
        let lines = |window: &str, whole, lines, raw| {
            last_lines(window.as_bytes(), whole, LogOptions { lines, raw })
        };
        for (window, whole, count, raw, want) in [
            ("", true, 5, false, &[] as &[&str]),
            ("a\nb\nc\n", true, 2, false, &["b", "c"]),
            ("a\n\n  \nb", true, 2, false, &["a", "b"]),
            ("a  \t\n\u{1b}[m\nb", true, 5, false, &["a", "b"]),
            ("rest of a\nb\n", false, 5, false, &["b"]),
            ("rest of a\rb\r\n", false, 5, false, &["b"]),
            ("rest of an endless line", false, 5, false, &["rest of an endless line"]),
            ("a\u{1b}[1mb\r\n\rc", true, 5, true, &["a\u{1b}[1mb", "c"]),
        ] {
            assert_eq!(lines(window, whole, count, raw), want, "{window:?}");
        }
        // Bytes that are no text.
        assert_eq!(
            last_lines(b"a\xff\x9b31mb\n", true, LogOptions::default()),
            ["a\u{fffd}\u{fffd}31mb"]
        );
    }

    #[test]
    fn answers_are_bounded_and_the_newest_lines_stay() {
        let long = "é".repeat(LOG_LINE_CHARS_MAX + 5);
        let options = LogOptions { lines: LOG_LINES_MAX, raw: true };
        let kept = last_lines(long.as_bytes(), true, options);
        assert_eq!(kept[0].chars().count(), LOG_LINE_CHARS_MAX + 1);
        let many: String =
            (0..LOG_LINES_MAX).map(|n| format!("{n} {}\n", "\u{1}".repeat(2000))).collect();
        let kept = last_lines(many.as_bytes(), true, options);
        let size = serde_json::to_string(&kept).expect("texts").len();
        assert!(kept.len() < LOG_LINES_MAX && size <= LOG_ANSWER_BYTES_MAX + 2, "{size}");
        assert!(kept.last().is_some_and(|line| line.starts_with("999 ")));
    }

    #[test]
    fn any_pieces_give_the_same_lines() {
        let text = "one\r\n\u{1b}[1mtwo\u{1b}[0m é\n\nthree\rfour".as_bytes();
        for size in 1..text.len() {
            let mut following = Following::new(false);
            let mut seen: Vec<String> =
                text.chunks(size).flat_map(|piece| following.push(piece)).collect();
            seen.extend(following.finish());
            assert_eq!(seen, ["one", "two é", "three", "four"], "pieces of {size}");
            assert_eq!(following.finish(), [""; 0]);
        }
        let mut following = Following::new(true);
        let endless = vec![b'x'; LOG_HELD_BYTES_MAX];
        assert_eq!(following.push(&endless), [""; 0]);
        assert_eq!(following.push(b"x").len(), 1, "it is not held for ever");
        assert!(following.held.is_empty());
    }

    #[test]
    fn what_is_asked_is_checked() {
        for (params, want) in [
            (json!({}), Ok((LOG_LINES_DEFAULT, false))),
            (json!({"lines": 5, "raw": true}), Ok((5, true))),
            (json!({"lines": 0}), Ok((1, false))),
            (json!({"lines": -7.5}), Ok((1, false))),
            (json!({"lines": 1e300}), Ok((LOG_LINES_MAX, false))),
            (json!({"lines": 2.9}), Ok((2, false))),
            (json!({"lines": "5"}), Err("lines must be a number")),
            (json!({"raw": 1}), Err("raw must be true or false")),
        ] {
            let got = LogOptions::parse(&params).map(|options| (options.lines, options.raw));
            assert_eq!(got, want.map_err(String::from), "{params}");
        }
    }
}
