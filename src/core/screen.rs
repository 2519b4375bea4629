//! Text of a terminal: without its colours, and which parts of a line are dimmed.

/// The text without escape sequences.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    pieces(text, |_, piece| plain.push_str(piece));
    plain
}

/// Only what is drawn in full strength: no dimmed, grey or placeholder text.
pub fn bright(text: &str) -> String {
    let mut bright = String::with_capacity(text.len());
    pieces(text, |style, piece| {
        if !style.dim && !style.inverse {
            bright.push_str(piece);
        }
    });
    bright
}

/// How a piece is drawn, as far as anybody asks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Style {
    /// Half strength.
    pub dim: bool,
    /// Drawn as a cursor.
    pub inverse: bool,
}

/// Hands over the pieces between escape sequences with their style.
pub fn pieces(text: &str, mut each: impl FnMut(Style, &str)) {
    let mut style = Style::default();
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        if at > 0 {
            each(style, &rest[..at]);
        }
        let after = &rest[at + 1..];
        let Some(body) = after.strip_prefix('[') else {
            // Other sequences: their introducer and one character, which is all that captures hold.
            rest = after.get(after.chars().next().map_or(0, char::len_utf8)..).unwrap_or_default();
            continue;
        };
        let end = body.find(|c: char| ('@'..='~').contains(&c)).unwrap_or(body.len());
        if body[end..].starts_with('m') {
            restyle(&mut style, &body[..end]);
        }
        rest = body.get(end + 1..).unwrap_or_default();
    }
    if !rest.is_empty() {
        each(style, rest);
    }
}

fn restyle(style: &mut Style, codes: &str) {
    let mut codes = codes.split([';', ':']).map(|code| code.parse::<u32>().unwrap_or(0));
    while let Some(code) = codes.next() {
        match code {
            0 => *style = Style::default(),
            2 => style.dim = true,
            7 => style.inverse = true,
            22 => style.dim = false,
            27 => style.inverse = false,
            // Colours carry arguments of their own.
            38 | 48 | 58 => {
                let arguments = if codes.next() == Some(5) { 1 } else { 3 };
                codes.by_ref().take(arguments).for_each(drop);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_dimmed_text_is_known() {
        let text = "\u{1b}[38;5;246m❯ \u{1b}[39m\u{1b}[2mTry \"x\"\u{1b}[0m\u{1b}[7m \u{1b}[27mdraft\u{1b}[1;2mno\u{1b}[22myes\u{1b}[38;2;2;7;2mred";
        assert_eq!(plain(text), "❯ Try \"x\" draftnoyesred");
        assert_eq!(bright(text), "❯ draftyesred");
    }
}
