//! Which shell commands a session may run unasked although it is guarded: those of ours that read
//! what is the agent's own anyway, and those that answer what it was asked.
//!
//! One simple command of plain words is recognised and nothing else. Whatever a shell could expand,
//! redirect, combine or read from a file is left to a person: an answer must not carry a file out,
//! and what stands behind a separator is another command.

use crate::core::chars::is_invisible;

/// The program, by the name that the session finds it under.
const PROGRAM: &str = "agent-relay";
/// Characters of a command that is looked at.
const COMMAND_CHARS_MAX: usize = 200_000;

/// What may follow a verb.
struct Verb {
    name: &'static str,
    /// It has the number of a message.
    takes_number: bool,
    /// It has one word more.
    takes_word: bool,
    /// Options without a value.
    switches: &'static [&'static str],
    /// Options with a number.
    numbers: &'static [&'static str],
    /// It reads standard input, which is given in the command itself.
    takes_input: bool,
}

const fn reading(name: &'static str, switches: &'static [&'static str]) -> Verb {
    Verb {
        name,
        takes_number: false,
        takes_word: false,
        switches,
        numbers: &[],
        takes_input: false,
    }
}

const VERBS: &[Verb] = &[
    Verb { takes_number: true, ..reading("get-message", &["--json"]) },
    Verb { takes_number: true, ..reading("message", &["--json"]) },
    Verb { takes_number: true, ..reading("thread", &["--json"]) },
    Verb { numbers: &["--limit"], ..reading("inbox", &["--all", "--json"]) },
    reading("whoami", &["--json"]),
    reading("guide", &[]),
    Verb { takes_word: true, ..reading("status", &["--json", "--why"]) },
    Verb { takes_number: true, takes_word: true, ..reading("react", &[]) },
    Verb { takes_number: true, takes_input: true, ..reading("reply", &["--json", "--stdin"]) },
];

/// Whether the agent of that id may run this command unasked.
pub fn may_run_unasked(command: &str, agent: &str) -> bool {
    if command.chars().nth(COMMAND_CHARS_MAX).is_some() {
        return false;
    }
    let command = command.trim();
    let (line, rest) = command.split_once('\n').unwrap_or((command, ""));
    let (line, input) = match line.split_once("<<") {
        Some((line, mark)) => match is_literal_input(mark, rest) {
            true => (line, true),
            false => return false,
        },
        None if rest.is_empty() => (line, false),
        None => return false,
    };
    let Some(words) = words(line) else { return false };
    let mut words = words.into_iter();
    let known = words.next().is_some_and(|program| program == PROGRAM);
    let Some(name) = words.next().filter(|_| known) else { return false };
    let verb = VERBS.iter().find(|verb| verb.name == name);
    verb.is_some_and(|verb| fits(verb, &words.collect::<Vec<_>>(), input, agent))
}

/// Whether these are words that this verb may have.
fn fits(verb: &Verb, words: &[&str], input: bool, agent: &str) -> bool {
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let (mut number, mut word, mut reads) = (None, None, false);
    let mut left = words.iter().copied();
    while let Some(next) = left.next() {
        if next.starts_with('-') {
            if verb.numbers.contains(&next) {
                if !left.next().is_some_and(is_number) {
                    return false;
                }
            } else if !verb.switches.contains(&next) {
                return false;
            }
            reads |= next == "--stdin";
        } else if verb.takes_number && number.is_none() {
            number = Some(next);
        } else if verb.takes_word && word.is_none() {
            word = Some(next);
        } else {
            return false;
        }
    }
    // Of itself: without a name it is about all agents of the machine.
    let is_own = verb.name != "status" || word == Some(agent);
    number.is_some() == verb.takes_number
        && number.is_none_or(is_number)
        && word.is_some() == verb.takes_word
        && (reads, input) == (verb.takes_input, verb.takes_input)
        && is_own
}

/// Words of a line that holds nothing which a shell acts on; `None`: it holds something else.
fn words(line: &str) -> Option<Vec<&str>> {
    let is_plain = |c: char| match c {
        ' ' | '-' | '_' | '.' | ',' | ':' | '+' | '@' => true,
        _ if c.is_ascii() => c.is_ascii_alphanumeric(),
        // Emoji. White space and what nobody sees may part words, or hide them.
        _ => !c.is_whitespace() && !c.is_control() && !is_invisible(c),
    };
    let plain = line.chars().all(is_plain) || crate::planted::is("careless-command");
    plain.then(|| line.split(' ').filter(|word| !word.is_empty()).collect())
}

/// Input that stands in the command itself: behind a quoted mark, so that nothing in it is
/// expanded, up to the line that is the mark, and nothing behind that.
fn is_literal_input(mark: &str, rest: &str) -> bool {
    let mark = mark.trim_matches(' ');
    let quoted = ['\'', '"']
        .iter()
        .find_map(|quote| mark.strip_prefix(*quote).and_then(|mark| mark.strip_suffix(*quote)));
    let Some(mark) = quoted.filter(|mark| {
        !mark.is_empty() && mark.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    }) else {
        return false;
    };
    let mut lines = rest.split('\n').skip_while(|line| *line != mark);
    lines.next().is_some() && lines.all(|line| line.trim_matches(' ').is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_answering_run_unasked() {
        for command in [
            "agent-relay get-message 12",
            "  agent-relay   get-message 12 --json ",
            "agent-relay message 1",
            "agent-relay thread 7 --json",
            "agent-relay inbox",
            "agent-relay inbox --all --limit 5 --json",
            "agent-relay whoami --json",
            "agent-relay guide",
            "agent-relay status a.b-1 --why",
            "agent-relay react 12 \u{1F44D}",
            "agent-relay react 12 ok",
            "agent-relay reply 12 --stdin <<'END'\nall $(is) `said` here; rm x\n> < | &\nEND",
            "agent-relay reply --stdin 12 << \"E_1\"\n\nE_1\n",
            "agent-relay reply 12 --stdin --json <<'END'\nEND \nEND",
        ] {
            assert!(may_run_unasked(command, "a.b-1"), "{command:?}");
        }
    }

    const ASKED: &[&str] = &[
        // Other commands, before, behind and inside.
        "agent-relay get-message 1; rm x",
        "agent-relay get-message 1 && rm x",
        "agent-relay get-message 1 | sh",
        "agent-relay get-message 1 & rm x",
        "agent-relay get-message 1\nrm x",
        "agent-relay get-message 1\r\nrm x",
        "agent-relay get-message $(rm x)",
        "agent-relay get-message `rm x`",
        "agent-relay get-message \\\n1",
        "(agent-relay get-message 1)",
        "rm x; agent-relay get-message 1",
        "X=1 agent-relay get-message 1",
        "sudo agent-relay get-message 1",
        "/tmp/agent-relay get-message 1",
        "./agent-relay get-message 1",
        "agent-relay.sh get-message 1",
        // Files and variables.
        "agent-relay reply 12 --file /etc/passwd",
        "agent-relay reply 12 --stdin < /etc/passwd",
        "agent-relay reply 12 --stdin <<<$SECRET",
        "agent-relay reply 12 --stdin <<END\n$(cat /etc/passwd)\nEND",
        "agent-relay reply 12 --stdin <<'END' </etc/passwd\nx\nEND",
        "agent-relay reply 12 --stdin <<'END' | sh\nx\nEND",
        "agent-relay reply 12 --stdin <<'END'\nx\nEND\nrm x",
        "agent-relay reply 12 --stdin <<'END'\nx",
        "agent-relay reply 12 --stdin <<'E' 'F'\nx\nE\n",
        "agent-relay reply 12 --stdin <<-'END'\nx\n\tEND\nrm x",
        "agent-relay reply 12 --stdin 3<<'END'\nx\nEND",
        "cat <<'END' | agent-relay reply 12 --stdin\nx\nEND",
        "agent-relay get-message 1 > /etc/x",
        "agent-relay inbox --limit $HOME",
        "agent-relay react 12 ~",
        "agent-relay react 12 *",
        "agent-relay react 12 {a,b}",
        "agent-relay react 12 =sh",
        "agent-relay react 12 \u{200b}x",
        "agent-relay get-message\u{a0}1",
        // Verbs and options that do more.
        "agent-relay reply 12 my words",
        "agent-relay reply 12 --stdin",
        "agent-relay reply 12 <<'END'\nx\nEND",
        "agent-relay reply --stdin <<'END'\nx\nEND",
        "agent-relay get-message 1 <<'END'\nx\nEND",
        "agent-relay get-message",
        "agent-relay get-message 1 2",
        "agent-relay get-message x",
        "agent-relay inbox --for user",
        "agent-relay inbox --read",
        "agent-relay inbox --follow",
        "agent-relay inbox --limit",
        "agent-relay --as-operator inbox",
        "agent-relay inbox --as-operator",
        "agent-relay status",
        "agent-relay status b",
        "agent-relay send user x",
        "agent-relay send user --stdin <<'END'\nx\nEND",
        "agent-relay command b shutdown",
        "agent-relay run claude",
        "agent-relay token create",
        "agent-relay",
        "",
    ];

    #[test]
    fn whatever_else_a_command_could_do_is_asked() {
        for command in ASKED {
            assert!(!may_run_unasked(command, "a"), "{command:?}");
        }
        let long =
            format!("agent-relay reply 12 --stdin <<'END'\n{}\nEND", "x".repeat(COMMAND_CHARS_MAX));
        assert!(!may_run_unasked(&long, "a"));
    }
}
