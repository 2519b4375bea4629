//! One place that writes to standard output. A closed pipe is a quiet end, not an error.

use std::cell::Cell;
use std::io::Write;

thread_local! {
    static STAYS: Cell<bool> = const { Cell::new(false) };
    static BROKEN: Cell<Option<u8>> = const { Cell::new(None) };
}

/// This thread has processes to end: when nobody reads any more it asks [`broken`] instead of ending at once.
pub fn stay() {
    STAYS.set(true);
}

/// The exit code, once standard output is broken.
pub fn broken() -> Option<u8> {
    BROKEN.get()
}

/// Writes a line.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|_| out.flush());
    let Err(error) = written else { return };
    let code = match error.kind() {
        std::io::ErrorKind::BrokenPipe => 0,
        _ => {
            if broken().is_none() {
                complain(&format!("standard output cannot be written: {error}"));
            }
            1
        }
    };
    match STAYS.get() {
        true => BROKEN.set(Some(code)),
        false => std::process::exit(code.into()),
    }
}

/// Writes an error line with the program's name.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "agent-relay: {text}");
}

/// Text of a stranger on a terminal: no control characters but line breaks and tabs.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// A table with aligned columns.
pub fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(at, cell)| {
                let pad = if at + 1 == row.len() { 0 } else { widths[at] - cell.chars().count() };
                format!("{}{}", harmless(cell).replace('\n', " "), " ".repeat(pad))
            })
            .collect();
        line(cells.join("  ").trim_end());
    }
}

/// A span of time as people say it.
pub fn span(ms: i64) -> String {
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
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|since| since.as_millis() as i64).unwrap_or(0)
}
