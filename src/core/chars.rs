//! What a character does to a text that people or models read: ends its line, acts on a terminal,
//! turns the direction of what follows, or is not seen at all. Whoever prints, logs or quotes a
//! stranger's text asks here.

/// Ends a line for some reader.
pub fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\u{b}' | '\u{c}' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// A text with it does not look like what it says: it acts on the terminal, ends the line, turns
/// the direction of other characters, or is a tag, which carries whole words that nobody sees.
pub fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{e0000}'..='\u{e007f}')
}

/// Nothing is to be seen of it, or it belongs to the signs that only say how others are to be shown
/// (category Cf).
pub fn is_invisible(c: char) -> bool {
    let near = || {
        matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{600}'
                ..='\u{605}'
                    | '\u{61c}'
                    | '\u{6dd}'
                    | '\u{70f}'
                    | '\u{890}'
                    | '\u{891}'
                    | '\u{8e2}'
        ) || matches!(c, '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}')
            || matches!(c, '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}')
    };
    let far = || {
        matches!(c, '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{16fe4}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}')
            || matches!(c, '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
    };
    c.is_control() || (c > '\u{7f}' && (near() || far()))
}

/// The ASCII character that a full-width or a mathematical one stands for.
pub fn plain(c: char) -> char {
    let ascii = match u32::from(c) {
        code @ 0xff01..=0xff5e => code - 0xff01 + 0x21,
        // Thirteen alphabets of capital and small letters.
        code @ 0x1d400..=0x1d6a3 => match (code - 0x1d400) % 52 {
            at @ 0..26 => at + u32::from('A'),
            at => at - 26 + u32::from('a'),
        },
        _ => return c,
    };
    char::from_u32(ascii).unwrap_or(c)
}

/// Appends a character; one that does not look like what it is as `\u{…}`.
fn push(to: &mut String, c: char, is_shown: bool) {
    if is_shown { to.push(c) } else { to.extend(c.escape_unicode()) }
}

/// A text as one line that shows all that is in it: breaks as a sign, tabs as spaces, active
/// characters as `\u{…}`. Breaks at its end are left out.
pub fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut before = ' ';
    for c in text.trim_end_matches(is_break).chars() {
        match c {
            '\n' if before == '\r' => {}
            '\t' => shown.push(' '),
            c if is_break(c) => shown.push_str(" ⏎ "),
            c => push(&mut shown, c, !is_active(c)),
        }
        before = c;
    }
    shown
}

/// The lines of a text as all readers see them, with its tabs, and active characters as `\u{…}`.
pub fn lines(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut line = String::new();
    let mut before = ' ';
    for c in text.chars() {
        match c {
            '\n' if before == '\r' => {}
            c if is_break(c) => all.push(std::mem::take(&mut line)),
            c => push(&mut line, c, c == '\t' || !is_active(c)),
        }
        before = c;
    }
    if !line.is_empty() {
        all.push(line);
    }
    all
}

/// A text that somebody decides about: whatever is not seen, or looks like a space or a line break
/// and is none to the program that will act on it, as `\u{…}`.
pub fn bare(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let is_plain = matches!(c, ' ' | '\t' | '\n');
        push(&mut shown, c, is_plain || !(c.is_whitespace() || is_active(c) || is_invisible(c)));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stays_one_line() {
        for (text, want) in [
            ("plain ü 漢字 \u{1f468}\u{200d}\u{1f469} [x]", None),
            ("a\nb\r\nc\rd", Some("a ⏎ b ⏎ c ⏎ d")),
            ("a\u{b}b\u{c}c\u{85}d\u{2028}e\u{2029}f", Some("a ⏎ b ⏎ c ⏎ d ⏎ e ⏎ f")),
            ("\na\n\n", Some(" ⏎ a")),
            ("a\tb", Some("a b")),
            (
                "\u{1b}[2Ja\u{0}\u{7f}\u{9b}31m\u{8}",
                Some("\\u{1b}[2Ja\\u{0}\\u{7f}\\u{9b}31m\\u{8}"),
            ),
            (
                "a\u{202e}b\u{202c}\u{2066}\u{2069}\u{200e}\u{200f}\u{61c}",
                Some("a\\u{202e}b\\u{202c}\\u{2066}\\u{2069}\\u{200e}\\u{200f}\\u{61c}"),
            ),
            ("a\u{e0001}\u{e0041}\u{e007f}", Some("a\\u{e0001}\\u{e0041}\\u{e007f}")),
        ] {
            assert_eq!(one_line(text), want.unwrap_or(text), "{text:?}");
        }
    }

    #[test]
    fn lines_are_those_that_any_reader_sees() {
        for (text, want) in [
            ("", &[] as &[&str]),
            ("a", &["a"]),
            ("a\n", &["a"]),
            ("\na\n\nb", &["", "a", "", "b"]),
            (
                "a\r\nb\rc\u{85}d\u{2028}e\u{b}f\u{c}g\n\r\n",
                &["a", "b", "c", "d", "e", "f", "g", ""],
            ),
            ("a\tb\u{1b}[A\u{202e}", &["a\tb\\u{1b}[A\\u{202e}"]),
        ] {
            assert_eq!(lines(text), want, "{text:?}");
        }
    }

    /// Every sign of the category Cf, as Unicode lists them, and what else shows nothing.
    #[test]
    fn what_is_decided_about_hides_nothing() {
        let format = [
            0xad..=0xad,
            0x600..=0x605,
            0x61c..=0x61c,
            0x6dd..=0x6dd,
            0x70f..=0x70f,
            0x890..=0x891,
            0x8e2..=0x8e2,
            0x180e..=0x180e,
            0x200b..=0x200f,
            0x202a..=0x202e,
            0x2060..=0x2064,
            0x2066..=0x206f,
            0xfeff..=0xfeff,
            0xfff9..=0xfffb,
            0x110bd..=0x110bd,
            0x110cd..=0x110cd,
            0x13430..=0x1343f,
            0x1bca0..=0x1bca3,
            0x1d173..=0x1d17a,
            0xe0001..=0xe0001,
            0xe0020..=0xe007f,
        ];
        let others = [
            0x0..=0x8,
            0xb..=0x1f,
            0x7f..=0xa0,
            0x34f..=0x34f,
            0x115f..=0x1160,
            0x2000..=0x200a,
            0x2028..=0x2029,
            0x3000..=0x3000,
        ];
        let blank =
            [0x2800..=0x2800, 0x3164..=0x3164, 0xfe00..=0xfe0f, 0xffa0..=0xffa0, 0xe0100..=0xe01ef];
        for code in format.into_iter().chain(others).chain(blank).flatten() {
            let c = char::from_u32(code).expect("a character");
            assert_eq!(bare(&format!("a{c}b")), format!("a\\u{{{code:x}}}b"));
        }
        let plain = "rm -rf 'x'\n\techo ü 漢字 \u{1f600}";
        assert_eq!(bare(plain), plain);
    }

    #[test]
    fn letters_are_known_in_other_dress() {
        let text: String = "［Ｒｅｌａｙ\u{1d5ab}\u{1d41a}\u{1d6a3}é".chars().map(plain).collect();
        assert_eq!(text, "[RelayLazé");
    }
}
