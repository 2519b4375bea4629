//! Claude Code: a session in a terminal (`tui`) or over its standard streams (`stream`).
//!
#![doc = include_str!("FACTS.md")]

pub mod activity;
pub mod hook_events;
mod keys;
mod launch;
pub mod permission;
pub mod plugin;
pub mod refusal;
pub mod sanitize;
pub mod screen;
pub mod stream;
pub mod transcript;
pub mod tui;

use std::time::Duration;

use super::capabilities::{Login, Provider};
use super::launch::Transport;
use crate::core::session::SessionCapabilities;

/// Its row in the table.
pub const PROVIDER: Provider = Provider {
    name: "claude",
    about: "Claude Code, in a terminal of its own (tmux), over its standard streams, or in yours",
    examples: &["--headless --label web", "--transport stream"],
    settings: launch::SETTINGS,
    plan: launch::plan,
    transports: &[Transport::Tmux, Transport::Stream, Transport::Terminal],
    capabilities: SessionCapabilities {
        split_by_sender: true,
        takes_urgent: true,
        tracks_turns: true,
        changes_context: true,
        takes_guests: false,
    },
    check_args,
    approval_timeout: APPROVAL_TIMEOUT_MAX,
    approval_timeout_max: APPROVAL_TIMEOUT_MAX,
    program: Some(("claude", TESTED)),
    login: Some(LOGIN),
    needs_command: false,
    presets: Vec::new,
    hooks: Some(&hook_events::HOOKS),
    session_pid_env: Some("CLAUDE_PID"),
};

/// Oldest version that was tested; an older one is refused with a sentence.
pub const OLDEST: (u32, u32, u32) = (2, 1, 329);
/// Where its login is.
pub const LOGIN: Login = Login {
    folder_env: "CLAUDE_CONFIG_DIR",
    folder: ".claude",
    file: ".credentials.json",
    env: &[
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        "CLAUDE_CODE_USE_FOUNDRY",
    ],
    cure: "start `claude` once and log in, or set ANTHROPIC_API_KEY (for runners: in `env` of providers/claude.json)",
};
/// A question waits as long as its hook may (a day, in the plugin's `hooks.json`), less the time to
/// answer it.
pub const APPROVAL_TIMEOUT_MAX: Duration = Duration::from_secs(86_400 - 100);
/// The version that is tested; `tests/interop/install.sh` reads it here.
pub const TESTED: &str = "2.1.332";

/// Subcommands that are no session, and options that choose another conversation or none: the
/// runner chooses it.
const OTHER_PROGRAMS: [&str; 9] = [
    "mcp",
    "config",
    "update",
    "doctor",
    "install",
    "migrate-installer",
    "setup-token",
    "plugin",
    "agents",
];
const OTHER_WAYS: [&str; 12] = [
    "-p",
    "--print",
    "-v",
    "--version",
    "-h",
    "--help",
    "-c",
    "--continue",
    "-r",
    "--resume",
    "--session-id",
    "--fork-session",
];

/// Why these arguments cannot be passed on; one sentence that says what to do instead.
fn check_args(args: &[String]) -> Option<String> {
    let first = args.first().map(String::as_str).unwrap_or_default();
    if OTHER_PROGRAMS.contains(&first) {
        return Some(format!("`claude {first}` is not a session to supervise; run it by itself"));
    }
    if !first.is_empty() && !first.starts_with('-') {
        return Some("a first prompt among claude's own arguments would be said again at every restart: give it with --prompt".into());
    }
    let way =
        args.iter().find(|arg| OTHER_WAYS.contains(&arg.split('=').next().unwrap_or_default()))?;
    Some(match way.as_str() {
        "-p" | "--print" | "-v" | "--version" | "-h" | "--help" => {
            format!("`claude {way}` is not a session to supervise; run it by itself")
        }
        _ => format!(
            "leave {way} out: the runner chooses the conversation and continues it by itself; another --agent-id or --cwd begins a new one"
        ),
    })
}

/// Why this version cannot be supervised; `None`: it can, or nobody can say.
pub fn too_old(version: &str) -> Option<String> {
    let mut parts = version.trim().split(['.', '-', '+', ' ']).map(|part| part.parse::<u32>().ok());
    let found = (parts.next()??, parts.next()??, parts.next()??);
    let (major, minor, patch) = OLDEST;
    (found < OLDEST).then(|| {
        format!("Claude Code {version} is older than {major}.{minor}.{patch}, the oldest that can be supervised; update it with `claude update` or npm")
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_sessions_are_supervised() {
        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        for (text, refused) in [
            ("-p hi", true),
            ("mcp list", true),
            ("--resume=x", true),
            ("--model sonnet", false),
            ("--add-dir /x", false),
            ("hello", true),
        ] {
            assert_eq!(super::check_args(&words(text)).is_some(), refused, "{text}");
        }
    }

    #[test]
    fn old_versions_are_told() {
        for (version, old) in [
            ("2.1.329", false),
            ("2.1.328", true),
            ("2.2.0", false),
            ("1.9.999", true),
            ("3.0.0-beta", false),
            ("x", false),
            ("2.1", false),
        ] {
            assert_eq!(super::too_old(version).is_some(), old, "{version}");
        }
    }
}
