//! Codex: a session is a thread of an app server that runs as our child and is spoken to over a
//! WebSocket on a unix socket, or at a port behind a token. Beside it, a person may have the
//! server's own window.
//!
#![doc = include_str!("FACTS.md")]

pub mod asks;
pub mod banner;
pub mod frames;
pub mod history;
pub mod launch;
pub mod session;
pub mod steps;

use std::time::Duration;

use super::capabilities::Provider;
use super::launch::Transport;
use crate::core::session::SessionCapabilities;

/// Its row in the table.
pub const PROVIDER: Provider = Provider {
    name: "codex",
    about: "OpenAI Codex: its app server, without a terminal or with its window in yours",
    examples: &["--headless --label web", "--approval guarded --model gpt-5.5"],
    settings: launch::SETTINGS,
    plan: launch::plan,
    transports: &[Transport::Stream, Transport::Terminal],
    capabilities: SessionCapabilities {
        split_by_sender: false,
        takes_urgent: true,
        tracks_turns: true,
        changes_context: true,
        takes_guests: true,
    },
    check_args,
    approval_timeout: APPROVAL_TIMEOUT,
    approval_timeout_max: Duration::MAX,
    program: Some(("codex", TESTED)),
    login: None,
    needs_command: false,
    presets: Vec::new,
    hooks: None,
    session_pid_env: None,
};

/// A question that nobody answers in a day is denied; the server itself waits for ever.
const APPROVAL_TIMEOUT: Duration = Duration::from_secs(86_400);
/// The version that is tested; `tests/interop/install.sh` reads it here.
pub const TESTED: &str = "0.171.0";
/// Oldest version that was tested; an older one is refused with a sentence.
const OLDEST: (u32, u32) = (0, 169);
/// What helps without a login.
pub const LOGIN_CURE: &str = "run `codex login` once, or name a provider of your own in its config.toml (for an isolated agent: the one of its home)";

/// Options of the app server that can be passed on, and whether a value follows.
const OWN_OPTIONS: [(&str, bool); 5] = [
    ("-c", true),
    ("--config", true),
    ("--enable", true),
    ("--disable", true),
    ("--strict-config", false),
];

/// Why these arguments cannot be passed on; one sentence that says what to do instead.
fn check_args(args: &[String]) -> Option<String> {
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, _)) if name.starts_with("--") => (name, true),
            _ => (word.as_str(), false),
        };
        match OWN_OPTIONS.iter().find(|(option, _)| *option == name) {
            Some((_, true)) if !value => {
                if words.next().is_none() {
                    return Some(format!("{name} needs a value"));
                }
            }
            Some(_) => {}
            None => {
                return Some(format!(
                    "{word:?} cannot be passed on to the app server of codex: it takes -c KEY=VALUE, --enable, --disable and \
                     --strict-config; model, effort and approvals are said by options of this command"
                ));
            }
        }
    }
    None
}

/// Why this version cannot be supervised; `None`: it can, or nobody can say.
pub fn older_than_oldest(version: &str) -> Option<String> {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let found = (parts.next()??, parts.next()??);
    let (major, minor) = OLDEST;
    (found < OLDEST).then(|| {
        format!("Codex {version} is older than {major}.{minor}.0, the oldest that can be supervised; update it with: npm install -g @openai/codex")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_of_the_server_are_passed_on() {
        let words = |text: &str| {
            text.split(' ').filter(|w| !w.is_empty()).map(str::to_string).collect::<Vec<_>>()
        };
        for (text, refused) in [
            ("", false),
            ("-c a=b --enable x --strict-config --config=a=b", false),
            ("-c", true),
            ("exec hi", true),
            ("-m gpt-5.5", true),
            ("-c a=b hello", true),
        ] {
            assert_eq!(check_args(&words(text)).is_some(), refused, "{text}");
        }
    }

    #[test]
    fn old_versions_are_told() {
        for (version, old) in [
            ("0.169.0", false),
            ("0.168.9", true),
            ("0.171.0-alpha.1", false),
            ("1.0.0", false),
            ("x", false),
            ("", false),
        ] {
            assert_eq!(older_than_oldest(version).is_some(), old, "{version}");
        }
    }
}
