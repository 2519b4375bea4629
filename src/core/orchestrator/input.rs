//! What a person types into a session's terminal from elsewhere: keys and literal texts, as words
//! for tmux; and the sizes that a terminal may be given.

use serde_json::Value;

use crate::core::limits::{
    SEND_KEYS_BYTES_MAX, SEND_KEYS_MAX, TERMINAL_COLUMNS, TERMINAL_INPUT_MAX, TERMINAL_ROWS,
};

/// A piece of input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// To be typed as it is.
    Literal(String),
    /// To be pressed, by its name in tmux. The names stand in this file: tmux types a name that it
    /// does not know as text.
    Key(&'static str),
}

/// Sequences that a terminal sends for keys.
const SEQUENCES: [(&str, &str); 7] = [
    ("\u{1b}[A", "Up"),
    ("\u{1b}[B", "Down"),
    ("\u{1b}[C", "Right"),
    ("\u{1b}[D", "Left"),
    ("\u{1b}[H", "Home"),
    ("\u{1b}[F", "End"),
    ("\u{1b}[3~", "Delete"),
];

/// The key that a single character stands for.
fn key(c: char) -> Option<&'static str> {
    Some(match c {
        '\r' | '\n' => "Enter",
        '\t' => "Tab",
        '\u{3}' => "C-c",
        '\u{7f}' | '\u{8}' => "BSpace",
        '\u{1b}' => "Escape",
        _ => return None,
    })
}

/// Input as keys and texts, from left to right. Of a sequence that is not known the Escape is
/// pressed and the rest is typed; other control characters are dropped.
pub fn tokens(data: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut literal = String::new();
    let mut rest = data;
    while let Some(c) = rest.chars().next() {
        let sequence = SEQUENCES.iter().find(|(sequence, _)| rest.starts_with(sequence));
        let (size, pressed) = match sequence {
            Some((sequence, name)) => (sequence.len(), Some(*name)),
            None => (c.len_utf8(), key(c)),
        };
        rest = &rest[size..];
        if let Some(name) = pressed {
            flush(&mut literal, &mut tokens);
            tokens.push(Token::Key(name));
        } else if !is_control(c) {
            literal.push(c);
        }
    }
    flush(&mut literal, &mut tokens);
    tokens
}

fn flush(literal: &mut String, tokens: &mut Vec<Token>) {
    if !literal.is_empty() {
        tokens.push(Token::Literal(std::mem::take(literal)));
    }
}

/// The one-byte forms of control sequences among them: a program may act on them like on Escape.
fn is_control(c: char) -> bool {
    c.is_control()
}

/// The input in the body of a request. The error says what is wrong with it.
pub fn checked_input(body: &Value) -> Result<&str, String> {
    let fields = body.as_object().ok_or("terminal input body must be an object")?;
    let data = fields.get("data").and_then(Value::as_str);
    let data = data.ok_or("terminal input data must be a string")?;
    if data.encode_utf16().count() > TERMINAL_INPUT_MAX {
        return Err(format!("terminal input exceeds {TERMINAL_INPUT_MAX} characters"));
    }
    Ok(data)
}

/// The size in the body of a request, as columns and rows. The error says what is wrong with it.
pub fn checked_size(body: &Value) -> Result<(u16, u16), String> {
    let fields = body.as_object().ok_or("resize body must be an object")?;
    let number = |name: &str| fields.get(name).and_then(Value::as_f64).filter(|n| n.is_finite());
    let (columns, rows) =
        number("cols").zip(number("rows")).ok_or("cols and rows must be numbers")?;
    let is_within = |n: f64, (least, most): (u16, u16)| n >= least.into() && n <= most.into();
    if !is_within(columns, TERMINAL_COLUMNS) || !is_within(rows, TERMINAL_ROWS) {
        let ((a, b), (c, d)) = (TERMINAL_COLUMNS, TERMINAL_ROWS);
        return Err(format!("cols must be {a}-{b}, rows must be {c}-{d}"));
    }
    Ok((columns.round() as u16, rows.round() as u16))
}

/// One call of tmux: how many tokens it sends, and its words behind those that name the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Tokens that have arrived when the call succeeds.
    pub tokens: usize,
    /// Commands, divided by `;`.
    pub words: Vec<String>,
}

/// The calls that send tokens to a pane, in their order. A call holds several tokens, up to limits:
/// a process for each key would take a second for a line of arrows.
pub fn calls(target: &str, tokens: &[Token]) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut bytes = 0;
    for token in tokens {
        let words = send_keys(target, token);
        let size: usize = words.iter().map(|word| word.len() + 1).sum();
        let last = calls.last_mut();
        match last
            .filter(|call| call.tokens < SEND_KEYS_MAX && bytes + size + 2 <= SEND_KEYS_BYTES_MAX)
        {
            Some(call) => {
                call.tokens += 1;
                call.words.push(";".into());
                call.words.extend(words);
                bytes += size + 2;
            }
            None => {
                calls.push(Call { tokens: 1, words });
                bytes = size;
            }
        }
    }
    calls
}

fn send_keys(target: &str, token: &Token) -> Vec<String> {
    let mut words: Vec<String> = ["send-keys", "-t", target].map(String::from).into();
    match token {
        Token::Key(name) => words.push((*name).into()),
        // Behind `--` nothing is an option any more.
        Token::Literal(text) => {
            words.extend(["-l", "--"].map(String::from));
            words.push(argument(text));
        }
    }
    words
}

/// A word that tmux takes as it is: a semicolon at its end would end the command, and one behind a
/// backslash is that semicolon.
pub fn argument(text: &str) -> String {
    match text.strip_suffix(';') {
        Some(head) if !crate::planted::is("open-semicolon") => format!("{head}\\;"),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(data: &str) -> Vec<String> {
        let show = |token| match token {
            Token::Literal(text) => format!("'{text}'"),
            Token::Key(name) => name.into(),
        };
        tokens(data).into_iter().map(show).collect()
    }

    #[test]
    fn input_is_keys_and_texts() {
        for (data, want) in [
            ("", &[] as &[&str]),
            ("hello é 漢", &["'hello é 漢'"]),
            ("ls\r", &["'ls'", "Enter"]),
            ("a\r\nb", &["'a'", "Enter", "Enter", "'b'"]),
            ("\u{1b}[A\u{1b}[B\u{1b}[C\u{1b}[D", &["Up", "Down", "Right", "Left"]),
            ("\u{1b}[H\u{1b}[F\u{1b}[3~", &["Home", "End", "Delete"]),
            ("\t\u{3}\u{7f}\u{8}\u{1b}", &["Tab", "C-c", "BSpace", "BSpace", "Escape"]),
            // Not known: Escape, and the rest is typed.
            ("\u{1b}[5~x", &["Escape", "'[5~x'"]),
            ("\u{1b}[", &["Escape", "'['"]),
            ("\u{1b}\u{1b}[A", &["Escape", "Up"]),
            ("\u{1b}OA", &["Escape", "'OA'"]),
            // Dropped without parting the text around it.
            ("a\u{1}\0\u{1f}\u{9b}\u{85}b", &["'ab'"]),
            ("Enter", &["'Enter'"]),
        ] {
            assert_eq!(shown(data), want, "{data:?}");
        }
    }

    #[test]
    fn bodies_are_checked_in_their_order() {
        let units = |count: usize| json!({"data": "x".repeat(count)});
        let wide = json!({"data": "\u{1f600}".repeat(2049)});
        for (body, want) in [
            (json!("x"), Err("terminal input body must be an object")),
            (json!({}), Err("terminal input data must be a string")),
            (json!({"data": 5}), Err("terminal input data must be a string")),
            (units(4096), Ok(4096)),
            (units(4097), Err("terminal input exceeds 4096 characters")),
            (wide, Err("terminal input exceeds 4096 characters")),
        ] {
            let got = checked_input(&body).map(str::len);
            assert_eq!(got, want.map_err(String::from));
        }
        let bounds = "cols must be 10-500, rows must be 5-200";
        for (body, want) in [
            (json!([80, 24]), Err("resize body must be an object")),
            (json!({"cols": 80}), Err("cols and rows must be numbers")),
            (json!({"cols": "80", "rows": 24}), Err("cols and rows must be numbers")),
            (json!({"cols": null, "rows": 24}), Err("cols and rows must be numbers")),
            (json!({"cols": 9.9, "rows": 24}), Err(bounds)),
            (json!({"cols": 501, "rows": 24}), Err(bounds)),
            (json!({"cols": 1e308, "rows": 24}), Err(bounds)),
            (json!({"cols": 80, "rows": 4}), Err(bounds)),
            (json!({"cols": 80, "rows": -24}), Err(bounds)),
            (json!({"cols": 80, "rows": 200.2}), Err(bounds)),
            (json!({"cols": 10, "rows": 5}), Ok((10, 5))),
            (json!({"cols": 500, "rows": 200}), Ok((500, 200))),
            (json!({"cols": 80.4, "rows": 23.5}), Ok((80, 24))),
        ] {
            assert_eq!(checked_size(&body), want.map_err(String::from), "{body}");
        }
    }

    #[test]
    fn words_for_tmux_are_taken_as_they_are() {
        let words = |data: &str| calls("=agent:", &tokens(data))[0].words[3..].join(" ");
        for (data, want) in [
            ("-R", "-l -- -R"),
            ("a;", "-l -- a\\;"),
            (";", "-l -- \\;"),
            ("a\\;", "-l -- a\\\\;"),
            ("a; b", "-l -- a; b"),
            ("\r", "Enter"),
        ] {
            assert_eq!(words(data), want, "{data:?}");
        }
    }

    #[test]
    fn calls_hold_what_one_message_to_tmux_can() {
        let data = "é".repeat(40) + &"x\r".repeat(2000);
        let tokens = tokens(&data);
        let calls = calls("=agent:", &tokens);
        assert_eq!(calls.iter().map(|call| call.tokens).sum::<usize>(), tokens.len());
        assert!(calls.len() >= tokens.len() / SEND_KEYS_MAX);
        for call in &calls {
            let bytes: usize = call.words.iter().map(|word| word.len() + 1).sum();
            assert!(call.tokens <= SEND_KEYS_MAX && bytes <= SEND_KEYS_BYTES_MAX, "{bytes}");
        }
        // The longest text that is taken is one token of one call.
        let longest = super::tokens(&"漢".repeat(TERMINAL_INPUT_MAX));
        assert_eq!(super::calls("=agent:", &longest).len(), 1);
    }
}
