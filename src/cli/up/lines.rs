//! Lines of programs and people, whatever their encoding.

use std::io::BufRead;

/// The next line without its line break, with U+FFFD for what is not UTF-8: one such line must not
/// end the reading, since its writer would block or its words be lost. `None`: nothing more comes.
pub(super) fn next_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok().filter(|read| *read > 0)?;
    let text = String::from_utf8_lossy(&line);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Some(text.strip_suffix('\r').unwrap_or(text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_utf_8_is_not_the_last_one() {
        let mut reader: &[u8] = b"one\r\n\xe9t\xe9\n\nlast";
        let lines: Vec<String> = std::iter::from_fn(|| next_line(&mut reader)).collect();
        assert_eq!(lines, ["one", "\u{fffd}t\u{fffd}", "", "last"]);
    }
}
