//! Names of sessions, agents and units. A session's name is also that of its log, its record and
//! the key of everything that is asked about it.

/// Most characters of a unit's name, without `.service`.
const UNIT_CHARS_MAX: usize = 180;
/// Characters of a unique id that stand at the end of a session's name.
const UNIQUE_CHARS: usize = 8;
/// What stands before a session's name in that of its unit.
const UNIT_PREFIX: &str = "agent-relay-managed-";

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Each run of characters outside of `A-Za-z0-9._-` as one hyphen.
fn hyphened(text: &str) -> String {
    let mut name = String::new();
    let mut replaced = false;
    for c in text.chars() {
        if is_plain(c) {
            name.push(c);
        } else if !replaced {
            name.push('-');
        }
        replaced = !is_plain(c);
    }
    name
}

/// A part of a name: plain characters in lower case.
pub fn clean(text: &str) -> String {
    hyphened(text).to_lowercase()
}

/// A session's name as that of a file or unit, `empty` if nothing is left of it.
pub fn safe(name: &str, empty: &str) -> String {
    match hyphened(name).trim_matches('-') {
        "" => empty.into(),
        plain => plain.into(),
    }
}

/// The id of an agent that was given none; `random`: eight hex digits.
pub fn agent_id(hostname: &str, provider: &str, label: &str, random: &str) -> String {
    format!("{}-{provider}-{}-{random}", clean(hostname), clean(label))
}

/// The name of a session. `unique`: what tells it apart from others of that label.
pub fn session(prefix: &str, provider: &str, label: &str, unique: &str) -> String {
    let mut name = format!("{prefix}-{provider}-{}", clean(label));
    let unique = clean(unique);
    let at = unique.chars().count().saturating_sub(UNIQUE_CHARS);
    let end: String = unique.chars().skip(at).collect();
    if !end.is_empty() {
        name.push('-');
        name.push_str(&end);
    }
    name
}

/// The unit of a session, without `.service`.
pub fn unit(session: &str) -> String {
    let name = format!("{UNIT_PREFIX}{}", safe(session, "agent"));
    name.chars().take(UNIT_CHARS_MAX).collect()
}

/// Whether a name can be that of a session of this orchestrator. One that could lead to another
/// folder never is.
pub fn is_managed(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-') && rest.len() > 1)
        && !name.contains(['/', '\\'])
        && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_names_are_cleaned() {
        for (text, cleaned, plain) in [
            ("Web  Server", "web-server", "Web-Server"),
            ("a.b_c-d", "a.b_c-d", "a.b_c-d"),
            ("--x--", "--x--", "x"),
            ("\u{fc}ber/../x", "-ber-..-x", "ber-..-x"),
            ("///", "-", "none"),
            ("", "", "none"),
        ] {
            assert_eq!((clean(text).as_str(), safe(text, "none").as_str()), (cleaned, plain));
        }
    }

    #[test]
    fn sessions_are_named_after_what_they_run() {
        for (label, unique, want) in [
            ("Web", "spawn-0123456789abcdef", "ar-p-web-89abcdef"),
            ("Web", "abc", "ar-p-web-abc"),
            ("Web", "", "ar-p-web"),
            ("a b", "X Y", "ar-p-a-b-x-y"),
        ] {
            assert_eq!(session("ar", "p", label, unique), want);
        }
        assert_eq!(agent_id("My Host", "p", "Web 1", "0a1b2c3d"), "my-host-p-web-1-0a1b2c3d");
        assert_eq!(unit("ar-p-web"), "agent-relay-managed-ar-p-web");
        assert_eq!(unit(&"x".repeat(300)).len(), 180);
        assert_eq!(unit("//"), "agent-relay-managed-agent");
    }

    #[test]
    fn only_own_names_are_answered() {
        for (name, want) in [
            ("ar-p-web", true),
            ("ar-", false),
            ("ar", false),
            ("arx-p", false),
            ("other-p", false),
            ("ar-../../etc/passwd", false),
            ("ar-a\nb", false),
            ("", false),
        ] {
            assert_eq!(is_managed("ar", name), want, "{name:?}");
        }
    }
}
