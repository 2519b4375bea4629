//! What each vendor writes and expects. Pure: no I/O in this room.
//!
//! One table supplies names, presets and argv[0] words to the rest of the program; nobody else knows a vendor's name.

pub mod acp;
pub mod lines;

use std::time::Duration;

use crate::core::session::Session;

/// A provider that this program can supervise.
pub struct Provider {
    /// Word on the command line, in ids, tags and file names.
    pub name: &'static str,
    /// What it is, for help texts.
    pub about: &'static str,
    /// Builds the session machine.
    pub session: fn(SessionSettings) -> Box<dyn Session>,
    /// Whether the command must be given, after `--` or by a preset.
    pub needs_command: bool,
    /// Agents that are known by name.
    pub presets: fn() -> Vec<&'static Preset>,
}

/// A known agent: how it is started.
#[derive(Debug)]
pub struct Preset {
    /// Word for `--preset`.
    pub name: &'static str,
    /// Program and arguments.
    pub command: &'static [&'static str],
    /// Version that was tested; empty: none.
    pub version: &'static str,
    /// What it is and what it needs.
    pub about: &'static str,
    /// Environment unless it is set already.
    pub env: &'static [(&'static str, &'static str)],
    /// The same, when the relay is asked.
    pub guarded_env: &'static [(&'static str, &'static str)],
    /// The same, when everything is rejected.
    pub read_only_env: &'static [(&'static str, &'static str)],
}

impl Preset {
    /// Environment for an approval mode.
    pub fn env_for(&self, approval: ApprovalMode) -> impl Iterator<Item = (&'static str, &'static str)> {
        let more = match approval {
            ApprovalMode::Open => &[],
            ApprovalMode::Guarded => self.guarded_env,
            ApprovalMode::ReadOnly => self.read_only_env,
        };
        self.env.iter().chain(more).copied()
    }
}

/// All providers.
pub const PROVIDERS: &[Provider] = &[Provider {
    name: "acp",
    about: "any agent that speaks the Agent Client Protocol on its standard input and output",
    session: |settings| Box::new(acp::session::AcpSession::new(settings)),
    needs_command: true,
    presets: || acp::presets::all().collect(),
}];

/// What a session machine must know.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Absolute working directory.
    pub cwd: String,
    /// `open`, `guarded` or `read-only`.
    pub approval_mode: ApprovalMode,
    /// Permission mode to set, instead of the one from the table of the provider.
    pub mode: Option<String>,
    /// An approval that nobody answers in that time is denied (D-20).
    pub approval_timeout: Duration,
    /// `full`: all text of a turn is its final text; else only the last message.
    pub capture_full: bool,
}

/// Who decides about permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovalMode {
    /// Everything is allowed.
    Open,
    /// The relay is asked.
    Guarded,
    /// Everything is rejected.
    ReadOnly,
}

impl ApprovalMode {
    /// Reads the word of flag, environment and file.
    pub fn parse(word: &str) -> Option<ApprovalMode> {
        Some(match word {
            "open" => ApprovalMode::Open,
            "guarded" => ApprovalMode::Guarded,
            "read-only" => ApprovalMode::ReadOnly,
            _ => return None,
        })
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            ApprovalMode::Open => "open",
            ApprovalMode::Guarded => "guarded",
            ApprovalMode::ReadOnly => "read-only",
        }
    }
}

/// The provider of that name.
pub fn by_name(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.name == name)
}

/// Names for error texts.
pub fn names() -> String {
    PROVIDERS.iter().map(|provider| provider.name).collect::<Vec<_>>().join(", ")
}

/// The provider that the program's own name asks for: `claude-relay` and `codex-relay`.
pub fn by_program(name: &str) -> Option<&'static str> {
    let word = name.rsplit('/').next().unwrap_or_default();
    match word {
        _ if word.contains("claude") => Some("claude"),
        _ if word.contains("codex") => Some("codex"),
        _ => None,
    }
}
