//! What people see of a tool's input: bounded, and with secrets covered.
//!
//! Covering is a courtesy, not a wall: whoever may approve may also read the session. So it errs on
//! the side of showing what could do harm: a word with a shell's own signs in it is never covered.

use serde_json::{Value, json};

use crate::core::limits::{APPROVAL_PART_BYTES_MAX, FIELD_CHARS_MAX};

/// Stands where a secret was.
const COVER: &str = "********";
/// Words that mark a name whose value nobody may see, without signs between their letters.
const SECRET: [&str; 10] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "authorization",
    "cookie",
    "credential",
    "privatekey",
];
/// Beginnings of well-known keys.
const KEYS: [&str; 9] =
    ["sk-", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "AKIA"];
/// Signs that a shell acts on.
const SHELL: [char; 11] = ['$', '`', '(', ')', ';', '|', '&', '<', '>', '{', '}'];
/// A word is a secret only from this length on.
const SECRET_CHARS_MIN: usize = 6;
/// A word behind a colon, which may be prose, only from this length on.
const PROSE_CHARS_MIN: usize = 8;
/// Entries of a list or an object that are shown.
const ENTRIES_MAX: usize = 64;
/// Levels of nesting that are shown: whoever hands it on puts more around it.
const NESTING_MAX: usize = 32;
/// Stands for what lies deeper.
const DEEPER: &str = "…";
/// Characters of a name that are shown.
const NAME_CHARS_MAX: usize = 200;

/// Cuts a text after so many characters, and says so.
pub fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

/// A value for people: each text is cut, the whole takes at most [`APPROVAL_PART_BYTES_MAX`] as
/// JSON.
pub fn shown(value: &Value) -> Value {
    let mut room = APPROVAL_PART_BYTES_MAX;
    of_value(value, false, NESTING_MAX, &mut room)
}

fn of_value(value: &Value, secret: bool, levels: usize, room: &mut usize) -> Value {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => of_text(DEEPER, room),
        Value::String(_) if secret => of_text(COVER, room),
        Value::String(text) => of_text(&cut(&covered(text), FIELD_CHARS_MAX), room),
        Value::Array(items) => {
            let mut all = Vec::new();
            for item in items.iter().take(ENTRIES_MAX) {
                if !take(room, 2) {
                    break;
                }
                all.push(of_value(item, secret, levels - 1, room));
            }
            Value::Array(all)
        }
        Value::Object(map) => {
            let mut all = serde_json::Map::new();
            for (name, value) in map.iter().take(ENTRIES_MAX) {
                let shown = cut(name, NAME_CHARS_MAX);
                if !take(room, size(&shown) + 4) {
                    break;
                }
                let secret = secret || is_secret(name);
                all.insert(shown, of_value(value, secret, levels - 1, room));
            }
            Value::Object(all)
        }
        other => {
            take(room, 24);
            other.clone()
        }
    }
}

fn of_text(text: &str, room: &mut usize) -> Value {
    let mut end = 0;
    for (at, c) in text.char_indices() {
        if !take(room, size(&text[at..at + c.len_utf8()])) {
            return json!(format!("{}…", &text[..end]));
        }
        end = at + c.len_utf8();
    }
    json!(text)
}

fn take(room: &mut usize, bytes: usize) -> bool {
    let there = *room >= bytes;
    *room = room.saturating_sub(bytes);
    there
}

/// Bytes as JSON.
fn size(text: &str) -> usize {
    text.chars()
        .map(
            |c| {
                if c.is_control() { 6 } else { c.len_utf8() + usize::from(matches!(c, '"' | '\\')) }
            },
        )
        .sum()
}

fn is_secret(name: &str) -> bool {
    let name: String =
        name.chars().filter(|c| c.is_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect();
    SECRET.iter().any(|word| name.contains(word))
}

/// What the word before says about the next one.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Plain,
    /// A flag or a scheme: the next word is the secret.
    Secret,
    /// A header's name: the next word is the secret, or the scheme before it.
    Header,
}

/// A text, for example a shell command, without the secrets in it.
pub fn covered(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut next = Next::Plain;
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end_matches(char::is_whitespace);
        if word.is_empty() {
            out.push_str(piece);
            continue;
        }
        let bare = word.trim_matches(['"', '\'', ',']);
        let scheme = ["bearer", "basic"].contains(&bare.to_ascii_lowercase().as_str());
        let least = if next == Next::Header { PROSE_CHARS_MIN } else { SECRET_CHARS_MIN };
        match next {
            Next::Secret | Next::Header if !scheme && is_value(bare, least) => {
                out.push_str(&covering(word, 0, bare))
            }
            _ => out.push_str(&of_word(word)),
        }
        let gap = &piece[word.len()..];
        out.push_str(gap);
        next = match bare {
            // Behind a sign of the shell, and on the next line, another command begins.
            _ if word.contains(SHELL) || gap.contains(['\n', '\r']) => Next::Plain,
            _ if scheme => Next::Secret,
            _ if bare.starts_with('-') && !bare.contains('=') && names_secret(bare) => Next::Secret,
            _ if bare.ends_with(':') && names_secret(bare) => Next::Header,
            _ => Next::Plain,
        };
    }
    out
}

/// It can be a secret: long enough, no count, and without signs that a shell would act on.
fn is_value(word: &str, least: usize) -> bool {
    word.chars().count() >= least
        && !word.chars().all(|c| c.is_ascii_digit())
        && !word.contains(SHELL)
        // It could be a program.
        && !word.contains('/')
        && !word.starts_with('!')
}

/// A word with a cover over what stands in it behind `from`.
fn covering(word: &str, from: usize, secret: &str) -> String {
    match word[from..].find(secret).map(|at| from + at) {
        Some(at) => format!("{}{COVER}{}", &word[..at], &word[at + secret.len()..]),
        None => word.to_string(),
    }
}

/// The name of a secret in a text; a name of a program or a file for one is shown with what it
/// names.
fn names_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    is_secret(name)
        && !["helper", "command", "file", "path", "dir", "program"]
            .iter()
            .any(|word| lower.contains(word))
}

/// A word that says itself that it holds a secret: a setting, an address with a password, a
/// well-known key.
fn of_word(word: &str) -> String {
    if let Some((name, value)) = word.split_once(['=', ':']) {
        let bare = value.trim_matches(['"', '\'', ',']);
        if names_secret(name) && is_value(bare, SECRET_CHARS_MIN) {
            return covering(word, name.len() + 1, bare);
        }
    }
    if let Some((head, rest)) = word.split_once("://")
        && let Some((user, host)) = rest.split_once('@')
        && let Some((user, password)) = user.split_once(':')
        && !password.is_empty()
        && is_value(password, 1)
    {
        return format!("{head}://{user}:{COVER}@{host}");
    }
    let start = KEYS.iter().filter_map(|key| word.find(key)).min();
    match start.map(|at| word.split_at(at)) {
        Some((head, key)) if !head.ends_with(|c: char| c.is_alphanumeric()) => {
            let end = key
                .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_'))
                .unwrap_or(key.len());
            if end >= 16 { format!("{head}{COVER}{}", &key[end..]) } else { word.to_string() }
        }
        _ => word.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_commands_are_covered() {
        for (text, want) in [
            (
                "curl -H \"Authorization: Bearer abc123def\" https://x",
                "curl -H \"Authorization: Bearer ********\" https://x",
            ),
            ("curl -H 'x-api-key: abcdefgh1'  url", "curl -H 'x-api-key: ********'  url"),
            ("mysql --password hunter22 -u me", "mysql --password ******** -u me"),
            ("export API_KEY=abcdef1 B=2\nnext", "export API_KEY=******** B=2\nnext"),
            ("git clone https://me:pw@host/x", "git clone https://me:********@host/x"),
            (concat!("echo s", "k-0123456789abcdefghij > f"), "echo ******** > f"),
            // What a shell acts on is shown.
            ("echo --password $(rm -rf ~)", "echo --password $(rm -rf ~)"),
            ("TOKEN=$(cat x) run", "TOKEN=$(cat x) run"),
            ("true --token; /tmp/evil.sh", "true --token; /tmp/evil.sh"),
            ("true --token; evilprogram", "true --token; evilprogram"),
            ("x --password\nevilprogram", "x --password\nevilprogram"),
            ("echo basic\r\nevilprogram", "echo basic\r\nevilprogram"),
            (
                "git -c credential.helper=evilprogram push",
                "git -c credential.helper=evilprogram push",
            ),
            ("restic --password-command=evilprogram b", "restic --password-command=evilprogram b"),
            ("x --password-command evilprogram", "x --password-command evilprogram"),
            ("run --token /tmp/evil", "run --token /tmp/evil"),
            ("PASSWORD=PASSWORD x", "PASSWORD=******** x"),
            // Neither names nor counts are secrets.
            (
                "cat token.txt; run --max-tokens 500000 https://tokens.example/x",
                "cat token.txt; run --max-tokens 500000 https://tokens.example/x",
            ),
            ("Which token: JWT or opaque?", "Which token: JWT or opaque?"),
            ("task-sk-1 and ask-me-anything-about-it", "task-sk-1 and ask-me-anything-about-it"),
        ] {
            assert_eq!(covered(text), want);
        }
    }

    #[test]
    fn what_is_nested_deeply_is_cut() {
        let nested = |levels: usize| (0..levels).fold(json!(5), |inner, _| json!([inner]));
        for (levels, want) in [(NESTING_MAX, "5"), (NESTING_MAX + 1, "\"…\""), (120, "\"…\"")] {
            let text = shown(&nested(levels)).to_string();
            assert_eq!(text.matches('[').count(), NESTING_MAX, "{levels}");
            assert!(text.contains(want), "{levels}: {text}");
        }
    }

    #[test]
    fn values_are_covered_by_their_names_and_bounded_together() {
        let value = json!({"apiKey": "abc", "X-Api-Key": "abc", "auth": {"passwd": "p", "user": "me"}, "cookies": [{"v": "x"}],
            "max_tokens": 5, "command": "ls"});
        assert_eq!(
            shown(&value),
            json!({"apiKey": COVER, "X-Api-Key": COVER, "auth": {"passwd": COVER, "user": "me"}, "cookies": [{"v": COVER}],
                "max_tokens": 5, "command": "ls"})
        );
        let list: Vec<String> = (0..500).map(|_| "\u{1}\"é".repeat(3000)).collect();
        for huge in [
            json!(list),
            json!({"a": list, "b": {"c": list}}),
            json!(vec![vec![vec![1u8; 64]; 64]; 64]),
        ] {
            let size = shown(&huge).to_string().len();
            assert!(size <= APPROVAL_PART_BYTES_MAX + 1024, "{size}");
        }
    }
}
