//! Takes their special meaning from signs in a text: the program would act on them before the model
//! reads them.

/// A text of the runner, which has no header before it: these signs have a meaning of their own at
/// the beginning.
pub fn escape_prefix(text: &str) -> String {
    let text = escape_mentions(text);
    if text.trim_start().starts_with(['/', '!', '@', '#']) {
        format!("[prompt] {text}")
    } else {
        text
    }
}

/// A text that names files outside of the project with an at-sign would have the program read them,
/// unasked, before the model sees it. A space behind the sign makes it a text again; names without
/// a path (`@Override`, `@scope/name`) stay.
pub fn escape_mentions(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut before = None;
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        let (head, after) = (&rest[..at], &rest[at + 1..]);
        before = head.chars().next_back().or(before);
        out.push_str(head);
        out.push('@');
        let starts = before.is_none_or(|c| !c.is_alphanumeric());
        let word = after
            .split(char::is_whitespace)
            .next()
            .unwrap_or_default()
            .trim_start_matches(['"', '\'', '(', '<', '[']);
        if starts
            && (word.starts_with(['/', '~', '\\']) || word.contains("..") || word.contains("://"))
        {
            out.push(' ');
        }
        (before, rest) = (Some('@'), after);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::escape_mentions;

    #[test]
    fn only_paths_out_of_the_project_are_parted() {
        for (text, want) in [
            ("@/etc/hostname see", "@ /etc/hostname see"),
            ("see @~/x and @../y, @a/../../z", "see @ ~/x and @ ../y, @ a/../../z"),
            ("see @\"/etc/a b\"", "see @ \"/etc/a b\""),
            (
                "@Override\n@app.route('/x')\n@scope/name a@b.de x@/y",
                "@Override\n@app.route('/x')\n@scope/name a@b.de x@/y",
            ),
            ("@server:file://x", "@ server:file://x"),
            ("@", "@"),
            ("\u{e4}@/x \n(@/x", "\u{e4}@/x \n(@ /x"),
        ] {
            assert_eq!(escape_mentions(text), want, "{text}");
        }
    }
}
