//! The keys that the program is typed at with, where its user has bound others.

use serde_json::{Map, Value};

use crate::provider::launch::TerminalKeys;

/// File of the bindings, in the program's own folder.
pub const FILE: &str = "keybindings.json";
/// Where the bindings of the input box stand.
const CONTEXT: &str = "Chat";

/// Escape [ 1 0 6 ; 5 u.
const CTRL_J: &str = "-H 1b 5b 31 30 36 3b 35 75";

/// The keys of the input box as that file binds them; what it does not touch stays as usual.
pub fn keys(text: Option<&str>) -> TerminalKeys {
    let usual = TerminalKeys::default();
    let bound = text.map(bindings).unwrap_or_default();
    TerminalKeys {
        submit: key(&bound, "chat:submit", "enter", usual.submit),
        cancel: key(&bound, "chat:cancel", "escape", usual.cancel),
        stash: key(&bound, "chat:stash", "ctrl+s", usual.stash),
    }
}

/// Bindings of the input box by key; later ones count more.
fn bindings(text: &str) -> Map<String, Value> {
    let file: Value = serde_json::from_str(text).unwrap_or_default();
    let blocks = file.get("bindings").and_then(Value::as_array).cloned().unwrap_or_default();
    let of_box = blocks.into_iter().filter(|block| block["context"] == CONTEXT);
    let all = of_box.filter_map(|block| block["bindings"].as_object().cloned());
    all.flatten().map(|(key, action)| (key.to_ascii_lowercase(), action)).collect()
}

/// The key for an action: the usual one unless it does something else now. Where none can be
/// pressed the usual one is tried: who sends is told when nothing comes of it.
fn key(
    bound: &Map<String, Value>,
    action: &str,
    binding: &str,
    usual: &'static str,
) -> &'static str {
    if bound.get(binding).is_none_or(|does| does == action) {
        return usual;
    }
    let others = bound.iter().filter(|(_, does)| *does == action);
    others.filter_map(|(binding, _)| pressed(binding)).next().unwrap_or(usual)
}

/// A binding as the terminal server presses it. What its usual bytes cannot tell apart (Ctrl-J is a
/// line feed, which is Enter) goes as the sequence that names key and modifiers, which the program
/// reads whatever the terminal.
fn pressed(binding: &str) -> Option<&'static str> {
    const CTRL: [&str; 26] = [
        "C-a", "C-b", "C-c", "C-d", "C-e", "C-f", "C-g", "C-h", "", CTRL_J, "C-k", "C-l", "",
        "C-n", "C-o", "C-p", "C-q", "C-r", "C-s", "C-t", "C-u", "C-v", "C-w", "C-x", "C-y", "C-z",
    ];
    match binding {
        "enter" => Some("Enter"),
        "escape" => Some("Escape"),
        "shift+enter" => Some("-H 1b 5b 31 33 3b 32 75"),
        "alt+enter" | "meta+enter" | "opt+enter" | "option+enter" => {
            Some("-H 1b 5b 31 33 3b 33 75")
        }
        "ctrl+enter" => Some("-H 1b 5b 31 33 3b 35 75"),
        _ => {
            let letter = binding.strip_prefix("ctrl+")?.as_bytes();
            let [letter @ b'a'..=b'z'] = letter else { return None };
            CTRL.get(usize::from(letter - b'a')).copied().filter(|key| !key.is_empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_that_the_user_has_bound() {
        let of = |context: &str, bindings: &str| {
            let block = format!("{{\"context\":\"{context}\",\"bindings\":{bindings}}}");
            keys(Some(&format!("{{\"bindings\":[{block}]}}")))
        };
        let usual = TerminalKeys::default();
        let submit = |submit| TerminalKeys { submit, ..usual };
        for (context, bindings, want) in [
            ("Chat", "{}", usual),
            ("Chat", r#"{"enter":"chat:newline","ctrl+j":"chat:submit"}"#, submit(CTRL_J)),
            ("Chat", r#"{"Enter":"chat:newline","ctrl+g":"chat:submit"}"#, submit("C-g")),
            ("Global", r#"{"enter":"chat:newline","ctrl+j":"chat:submit"}"#, usual),
            // Both submit: the usual one does.
            ("Chat", r#"{"ctrl+j":"chat:submit"}"#, usual),
            (
                "Chat",
                r#"{"escape":null,"ctrl+g":"chat:cancel"}"#,
                TerminalKeys { cancel: "C-g", ..usual },
            ),
            (
                "Chat",
                r#"{"ctrl+s":"chat:submit","ctrl+t":"chat:stash"}"#,
                TerminalKeys { stash: "C-t", ..usual },
            ),
            // Nothing that could be pressed.
            ("Chat", r#"{"enter":"chat:newline","cmd+enter":"chat:submit"}"#, usual),
            ("Chat", "5", usual),
        ] {
            assert_eq!(of(context, bindings), want, "{bindings}");
        }
        assert_eq!((keys(None), keys(Some("half"))), (usual, usual));
    }
}
