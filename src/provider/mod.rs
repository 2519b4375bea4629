//! What each vendor writes and expects. Pure: no I/O in this room.
//!
//! One table supplies names, presets and program names to the rest of the program; nobody else knows a vendor's name.

pub mod acp;
pub mod claude;
pub mod jsonrpc;
pub mod lines;
pub mod shown;
pub mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::session::Session;

/// Makes the plan of a start; `Err`: a sentence with the cure, and whether trying again is pointless.
pub type LayoutFn = fn(&Want, &dyn Disk) -> Result<Layout, (String, bool)>;

/// A provider that this program can supervise.
pub struct Provider {
    /// Word on the command line, in ids, tags and file names.
    pub name: &'static str,
    /// What it is, for help texts.
    pub about: &'static str,
    /// Makes the plan of a start from what is wanted and what is on disk.
    pub layout: LayoutFn,
    /// How it can be talked to, the usual way first.
    pub transports: &'static [Transport],
    /// The words of people and of others reach it differently: a batch holds only one kind.
    pub apart: bool,
    /// Urgent messages can join a running turn.
    pub takes_urgent: bool,
    /// Its session judges whether a turn runs.
    pub judges: bool,
    /// Why these arguments cannot be passed on to it.
    pub objection: fn(&[String]) -> Option<String>,
    /// A question waits this long for an answer unless configured; then it is denied, before the provider gives it up.
    pub approval_timeout: Duration,
    /// Longest wait that can be configured.
    pub approval_timeout_max: Duration,
    /// Its own program and the version that was tested, where it has one.
    pub program: Option<(&'static str, &'static str)>,
    /// How it is logged in, where a start without it looks ready.
    pub login: Option<Login>,
    /// Whether the command must be given, after `--` or by a preset.
    pub needs_command: bool,
    /// Agents that are known by name.
    pub presets: fn() -> Vec<&'static Preset>,
}

/// Where a login would be found.
pub struct Login {
    /// Variable that names the provider's own folder.
    pub folder_env: &'static str,
    /// That folder below the home, where the variable is not set.
    pub folder: &'static str,
    /// The file in it.
    pub file: &'static str,
    /// Variables that do instead.
    pub env: &'static [&'static str],
    /// What helps.
    pub cure: &'static str,
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

/// Where installers put programs of a user; looked at after PATH, since services and cron have a short one. `~/` is the home.
pub const USUAL_PLACES: [&str; 7] =
    ["~/.local/bin", "~/bin", "/usr/local/bin", "~/.claude/local", "~/.bun/bin", "~/.npm-global/bin", "~/.cargo/bin"];

/// All providers.
pub const PROVIDERS: &[Provider] = &[
    Provider {
        name: "claude",
        about: "Claude Code, in a terminal of its own (tmux), over its standard streams, or in yours",
        layout: claude::launch::layout,
        transports: &[Transport::Tmux, Transport::Stream, Transport::Terminal],
        apart: true,
        takes_urgent: true,
        judges: true,
        objection: claude::objection,
        approval_timeout: claude::APPROVAL_TIMEOUT_MAX,
        approval_timeout_max: claude::APPROVAL_TIMEOUT_MAX,
        login: Some(claude::LOGIN),
        program: Some(("claude", claude::TESTED)),
        needs_command: false,
        presets: Vec::new,
    },
    Provider {
        name: "acp",
        about: "any agent that speaks the Agent Client Protocol on its standard input and output",
        layout: |want, _| {
            let session = Box::new(acp::session::AcpSession::new(want.session.clone()));
            Ok(Layout {
                command: want.args.clone(),
                env: Vec::new(),
                unset: Vec::new(),
                files: Vec::new(),
                mailbox: None,
                session,
                hint: "check the name and PATH",
            })
        },
        transports: &[Transport::Stream],
        apart: false,
        takes_urgent: false,
        judges: false,
        objection: |_| None,
        approval_timeout: Duration::from_secs(600),
        approval_timeout_max: Duration::MAX,
        login: None,
        program: None,
        needs_command: true,
        presets: || acp::presets::all().collect(),
    },
];

/// Environment of what a session starts: the session's own process.
pub const SESSION_PID_ENV: &str = "CLAUDE_PID";

/// How a provider is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Its terminal program in a terminal server of ours.
    Tmux,
    /// Its standard streams.
    Stream,
    /// Its terminal program in the terminal that we were started in.
    Terminal,
}

impl Transport {
    /// Reads the word of flag, environment and file.
    pub fn parse(word: &str) -> Option<Transport> {
        [Transport::Tmux, Transport::Stream, Transport::Terminal].into_iter().find(|transport| transport.word() == word)
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Transport::Tmux => "tmux",
            Transport::Stream => "stream",
            Transport::Terminal => "terminal",
        }
    }
}

/// What a start is made from.
#[derive(Debug, Clone)]
pub struct Want {
    /// Settings of the session machine.
    pub session: SessionSettings,
    /// How it is talked to.
    pub transport: Transport,
    /// Program instead of the usual one.
    pub command: Option<String>,
    /// Rig for the launcher, where the provider has one.
    pub rig: Option<String>,
    /// Arguments of the configuration.
    pub default_args: Vec<String>,
    /// Arguments that were typed.
    pub args: Vec<String>,
    /// Model, if one is wanted.
    pub model: Option<String>,
    /// Effort, if one is wanted.
    pub effort: Option<String>,
    /// Further text for the system prompt.
    pub system_prompt: Option<String>,
    /// Further plugins.
    pub plugin_dirs: Vec<String>,
    /// The agent answers its messages by itself; the runner sends no final texts.
    pub explicit_replies: bool,
    /// `AGENT_RELAY_HOME`.
    pub home: String,
    /// Folder of this agent.
    pub dir: String,
    /// Home of the user.
    pub user_home: String,
    /// Folder for sockets, with a short path.
    pub runtime_dir: String,
    /// Path of this program.
    pub bin: String,
    /// The provider gets a home of its own, apart from the user's.
    pub isolated: bool,
    /// The user is root.
    pub is_root: bool,
    /// Environment that the provider will see.
    pub env: BTreeMap<String, String>,
    /// Conversation to go on with; empty: none.
    pub conversation: String,
    /// Id for a new one.
    pub fresh: String,
}

/// What a layout may look at.
pub trait Disk {
    /// Text of a file.
    fn read(&self, path: &str) -> Option<String>;
    /// Whether something is there.
    fn exists(&self, path: &str) -> bool;
    /// Names in a folder.
    fn list(&self, path: &str) -> Vec<String>;
}

/// Something that must be on disk before the start.
#[derive(Debug, Clone, PartialEq)]
pub enum Laid {
    /// A folder, closed to others.
    Folder(String),
    /// A file, closed to others.
    File {
        /// Where.
        path: String,
        /// What.
        text: String,
    },
    /// A link.
    Link {
        /// Where.
        path: String,
        /// To what.
        to: String,
    },
    /// A folder whose files never change once they are there: it appears whole or not at all.
    Tree {
        /// Where.
        path: String,
        /// Relative path, text, and whether it is a program.
        files: Vec<(String, String, bool)>,
    },
}

/// The plan of one start.
pub struct Layout {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Variables that it must not inherit.
    pub unset: Vec<String>,
    /// What must be on disk before.
    pub files: Vec<Laid>,
    /// Socket of ours for its answers, and the one that it listens at: neither outlives it.
    pub mailbox: Option<(String, String)>,
    /// Its machine.
    pub session: Box<dyn Session>,
    /// What helps when the program is missing.
    pub hint: &'static str,
}

/// What a session machine knows of its own start.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Id of the conversation.
    pub session: String,
    /// It goes on with one that has a record.
    pub resumes: bool,
    /// Path of that record.
    pub transcript: Option<String>,
    /// Fresh UUID of this start.
    pub nonce: String,
    /// Where the record of a new conversation usually lies.
    pub usual_transcript: String,
    /// Folder where the provider keeps its own files.
    pub config_dir: String,
    /// Socket of ours for the provider's answers.
    pub mailbox: Option<String>,
    /// Socket that the provider was told to listen at.
    pub socket: Option<String>,
    /// It runs in a terminal of ours.
    pub terminal: bool,
}

/// What a session machine must know.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Absolute working directory.
    pub cwd: String,
    /// `open`, `guarded` or `read-only`.
    pub approval_mode: ApprovalMode,
    /// Permission mode to set, instead of the one from the table of the provider.
    pub mode: Option<String>,
    /// An approval that nobody answers in this time is denied.
    pub approval_timeout: Duration,
    /// All text of a turn is its final text, not only its last message.
    pub capture_full: bool,
}

impl SessionSettings {
    /// Nothing that asks is allowed.
    pub fn rejects_all(&self) -> bool {
        self.approval_mode == ApprovalMode::ReadOnly
    }
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
