//! The one place of the command line that writes to standard output and standard error. A closed
//! pipe is a quiet end, not an error.
//!
//! Nearly everything that is printed holds a text of somebody else: a sender, an agent, a relay, a
//! file, whoever typed the arguments. So what goes through here stays what it was meant to be,
//! whatever is in it: [`line()`] prints one line, [`block`] lines behind an indent, [`json`] one
//! line with the same value, and nothing reaches the terminal that it would act on. What stands at
//! the beginning of a line is ours; what a stranger wrote stands behind something of ours. Only
//! [`trusted`] prints a text as it is, and no stranger has a say in that.

use std::cell::Cell;
use std::io::Write;

use serde_json::Value;

use crate::core::chars;

thread_local! {
    static STAYS: Cell<bool> = const { Cell::new(false) };
    static BROKEN: Cell<Option<u8>> = const { Cell::new(None) };
}

/// This thread has processes to end: when nobody reads any more it asks [`epipe_exit_code`] instead
/// of ending at once.
pub fn keep_running_on_epipe() {
    STAYS.set(true);
}

/// The exit code, once standard output is broken.
pub fn epipe_exit_code() -> Option<u8> {
    BROKEN.get()
}

/// Writes and flushes; ends the process when nobody reads, unless it asked to
/// [`keep_running_on_epipe`].
fn put(text: &str) {
    let Err(error) = try_put(text) else { return };
    let code = match error.kind() {
        std::io::ErrorKind::BrokenPipe => 0,
        _ => {
            if epipe_exit_code().is_none() {
                super::print::error(&format!("standard output cannot be written: {error}"));
            }
            1
        }
    };
    if STAYS.get() { BROKEN.set(Some(code)) } else { std::process::exit(code.into()) }
}

fn try_put(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|_| out.flush())
}

/// Prints exactly one line: breaks in the text are shown as a sign, and what a terminal would act
/// on as `\u{…}`.
pub fn line(text: &str) {
    put(&chars::one_line(text));
}

/// The same, for a process that goes on whether or not anybody reads it.
pub fn line_or_nothing(text: &str) {
    let _ = try_put(&chars::one_line(text));
}

/// Prints a text of many lines, `head` before the first and `indent` before all others, so that
/// none of them can be taken for a line of ours.
pub fn block(head: &str, indent: &str, text: &str) {
    let Some(text) = blocked(head, indent, text) else { return };
    put(&text);
}

fn blocked(head: &str, indent: &str, text: &str) -> Option<String> {
    let lines = chars::lines(text);
    let is_empty = lines.is_empty() && head.trim().is_empty();
    (!is_empty).then(|| chars::one_line(head) + &lines.join(&format!("\n{indent}")))
}

/// Prints a value as one line of JSON, for whoever reads it on a terminal and for programs that
/// count lines by more than `\n`.
pub fn json(value: &Value) {
    put(&ascii_where_active(value.to_string()));
}

/// JSON with escapes for what is fine in it and not on a terminal: the value stays the same.
fn ascii_where_active(json: String) -> String {
    if !json.contains(chars::is_active) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if chars::is_active(c) {
            c.encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")))
        } else {
            escaped.push(c)
        }
    }
    escaped
}

/// Prints a text that this program or its own user made, as it is: help, what is generated, what
/// another program reads.
pub fn trusted(text: &str) {
    put(text);
}

/// One frame of a protocol, on a line of its own and as it is: a program reads it.
pub fn frame(frame: &Value) {
    put(&frame.to_string());
}

/// What somebody is asked to permit, to be printed by [`line()`] or [`block`]: every character that
/// is not seen, or looks like a space or a line break and is none, becomes `\u{…}`.
pub fn approval_text(text: &str) -> String {
    chars::bare(text)
}

/// Empties the terminal.
pub fn clear() {
    let _ = std::io::stdout().lock().write_all(b"\x1b[H\x1b[2J");
}

/// Whether a person sees standard output.
pub fn stdout_is_terminal() -> bool {
    rustix::termios::isatty(std::io::stdout())
}

/// Whether a person sees standard error.
pub fn stderr_is_terminal() -> bool {
    rustix::termios::isatty(std::io::stderr())
}

/// Writes an error as one line with the program's name.
pub fn error(text: &str) {
    forward(&format!("agent-relay: {text}"));
}

/// Writes a remark that is no error to where errors go: standard output is for what was asked.
pub fn notice(text: &str) {
    error(text);
}

/// Writes a line of a program of ours to standard error.
pub fn forward(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", chars::one_line(text));
}

/// A table with aligned columns, one line for each row.
pub fn table(rows: &[Vec<String>]) {
    aligned(rows).iter().for_each(|row| put(row));
}

fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| chars::one_line(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        rows.iter()
            .filter_map(|row| row.get(at))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let row = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_string()
    };
    rows.iter().map(row).collect()
}

/// A span of time as people say it.
pub fn format_duration(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0..=99 => format!("{s} s"),
        100..=5999 => format!("{} min", s / 60),
        6000..=172_799 => format!("{} h", s / 3600),
        _ => format!("{} d", s / 86_400),
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|since| since.as_millis() as i64)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_lines_stand_behind_something_of_ours() {
        for (head, text, want) in [
            ("  ", "", None),
            ("x: ", "", Some("x: ")),
            ("  ", "a", Some("  a")),
            (
                "  ",
                "a\n#9 from boss\r#8 from boss\u{85}b\u{2028}c\n",
                Some("  a\n    #9 from boss\n    #8 from boss\n    b\n    c"),
            ),
            ("x\ny: ", "a\tb\u{1b}[2J", Some("x ⏎ y: a\tb\\u{1b}[2J")),
        ] {
            assert_eq!(blocked(head, "    ", text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn json_keeps_its_value_and_loses_its_effects() {
        let text =
            "a\n\u{1b}\u{7f}\u{85}\u{9b}\u{2028}\u{202e}\u{2069}\u{e0041}\u{feff} ü \u{1f600} \\";
        let value = serde_json::json!({text: [text]});
        let shown = ascii_where_active(value.to_string());
        assert!(!shown.contains(chars::is_active), "{shown:?}");
        assert!(shown.contains("\\u0085\\u009b\\u2028\\u202e\\u2069\\udb40\\udc41"), "{shown}");
        assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON"), value);
    }

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        let rows = aligned(&[
            row(["AGENT", "STATUS", "WHY"]),
            row(["a\nb", "id\u{9b}", "x\ny"]),
            row(["ü", "-", ""]),
        ]);
        assert_eq!(rows, ["AGENT  STATUS    WHY", "a ⏎ b  id\\u{9b}  x ⏎ y", "ü      -"]);
    }

    #[test]
    fn what_is_asked_hides_nothing_on_one_line_or_many() {
        let asked = approval_text("ls\u{202e}\u{200b}\u{a0}a\nb\rc\u{2028}d\te");
        assert_eq!(chars::one_line(&asked), "ls\\u{202e}\\u{200b}\\u{a0}a ⏎ b\\u{d}c\\u{2028}d e");
        assert_eq!(
            blocked("- ", "  ", &asked).as_deref(),
            Some("- ls\\u{202e}\\u{200b}\\u{a0}a\n  b\\u{d}c\\u{2028}d\te")
        );
    }
}
