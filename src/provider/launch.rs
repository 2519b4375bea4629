//! A start of a provider: what is asked for, and the plan that its provider makes of it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::settings::{ProviderSettings, SessionSettings};
use crate::core::session::{DeliveryOutcome, Mirror, OpenMode, Session, SessionEvent, StartFault};
use crate::wire::control::{ENV_PROVIDER_SESSION, LogLevel};

/// How a provider is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The provider's terminal program in a terminal server of ours.
    Tmux,
    /// The provider's standard streams.
    Stream,
    /// The provider's terminal program in the terminal that we were started in.
    Terminal,
}

impl Transport {
    /// Parses the value of flag, environment and file.
    pub fn parse(word: &str) -> Option<Transport> {
        Transport::ALL.into_iter().find(|transport| transport.as_str() == word)
    }

    /// All of them.
    pub const ALL: [Transport; 3] = [Transport::Tmux, Transport::Stream, Transport::Terminal];

    /// The value of flag, environment and file.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tmux => "tmux",
            Transport::Stream => "stream",
            Transport::Terminal => "terminal",
        }
    }
}

/// What is the same for every start of one agent. Paths are absolute.
#[derive(Debug, Clone)]
pub struct LaunchRequest {
    /// Settings of the session machine.
    pub session: SessionSettings,
    /// How it is talked to.
    pub transport: Transport,
    /// Program instead of the usual one.
    pub command: Option<String>,
    /// What else the provider is told.
    pub settings: ProviderSettings,
    /// Arguments of the configuration.
    pub default_args: Vec<String>,
    /// Arguments that were typed.
    pub args: Vec<String>,
    /// The agent answers its messages itself.
    pub explicit_replies: bool,
    /// `AGENT_RELAY_HOME`.
    pub home: String,
    /// Folder of this agent.
    pub dir: String,
    /// Home of the user.
    pub user_home: String,
    /// Folder for sockets, with a short path.
    pub runtime_dir: String,
    /// A server is told to listen at a port: it has said that it knows nothing better.
    pub at_port: bool,
    /// Path of this program.
    pub bin: String,
    /// The user is root.
    pub is_root: bool,
    /// Environment that the provider will see.
    pub env: BTreeMap<String, String>,
}

/// Variables that the relay's tools look at, besides those that every program has. None is a token.
pub const TOOL_VARIABLES: [&str; 15] = [
    "AGENT_RELAY_HOME",
    "AGENT_RELAY_ID",
    "AGENT_RELAY_URL",
    "AGENT_RELAY_TOKEN_FILE",
    "AGENT_RELAY_RUNNER_INFO_FILE",
    ENV_PROVIDER_SESSION,
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// The server of the relay's tools that a session is told to start, on standard streams: it finds
/// runner, relay and token anew at each call, where an address would end with its runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolServer {
    /// Path of the program; its only argument is `mcp`.
    pub program: String,
    /// Variables for a provider that does not hand on its own, as far as they are known.
    pub env: Vec<(String, String)>,
}

impl LaunchRequest {
    /// Whether the agent's profile leaves a feature of the relay out.
    pub fn leaves_out(&self, feature: &str) -> bool {
        let text = self.env.get("AGENT_RELAY_AGENT_PROFILE_JSON");
        let profile = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
        profile.and_then(|profile| Some(profile.get("relay")?.get(feature)? == false)) == Some(true)
    }

    /// The relay's tools; none where the profile leaves them out.
    pub fn tools(&self) -> Option<ToolServer> {
        if self.bin.is_empty() || self.leaves_out("mcp") {
            return None;
        }
        let known = |name: &&str| Some((name.to_string(), self.env.get(*name)?.clone()));
        Some(ToolServer {
            program: self.bin.clone(),
            env: TOOL_VARIABLES.iter().filter_map(known).collect(),
        })
    }
}

/// The conversation that one start is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversation<'a> {
    /// The one to go on with; empty: none.
    pub earlier: &'a str,
    /// Why that one cannot be gone on with, if the provider has said so.
    pub refused: Option<&'a str>,
    /// Id for a new one, where the provider lets us choose.
    pub fresh: &'a str,
}

/// What a plan may read of the disk.
pub trait Disk {
    /// Content of a file, if it can be read as text.
    fn read(&self, path: &str) -> Option<String>;
    /// Whether anything exists at this path.
    fn exists(&self, path: &str) -> bool;
    /// Names in a folder.
    fn list(&self, path: &str) -> Vec<String>;
    /// Whether a file has a line that is wanted, as far as it is looked at: a file that is too long
    /// for that is taken to have one.
    fn has_line(&self, path: &str, is_wanted: fn(&[u8]) -> bool) -> bool;
}

/// Something that must be on disk before the start.
#[derive(Debug, Clone, PartialEq)]
pub enum SetupFile {
    /// A folder, closed to others.
    Folder(String),
    /// A file, closed to others.
    #[allow(missing_docs)] // the names say it
    File { path: String, text: String },
    /// A link that stands at `path`.
    #[allow(missing_docs)] // the names say it
    Link { path: String, to: String },
    /// A folder whose files never change once they are there: it appears whole or not at all.
    #[allow(missing_docs)] // the names say it
    Tree { path: String, files: &'static [TreeFile] },
}

/// A file of a [`SetupFile::Tree`].
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TreeFile {
    /// Relative to the folder.
    pub path: &'static str,
    pub text: &'static str,
    /// It can be executed.
    pub is_program: bool,
}

/// The sockets of a session that can be written to while it runs, all in one folder of ours. None
/// outlives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSockets {
    /// The one of the terminal's server, where a terminal of ours hosts it.
    pub terminal: String,
    /// Ours, for its answers.
    pub replies: String,
    /// The one that it listens at.
    pub session: String,
}

/// A server listens at a port of its own choice, and lets in who has the token of this start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPort {
    /// Where it reads the token: written anew at each start, closed to others.
    pub token_file: String,
    /// Variable that a program beside the session finds the token in.
    pub token_env: &'static str,
}

/// The plan of one start.
pub struct LaunchPlan {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Variables that it must not inherit.
    pub unset: Vec<String>,
    /// What must be on disk before.
    pub files: Vec<SetupFile>,
    /// Its sockets, if it has some.
    pub sockets: Option<SessionSockets>,
    /// The program is a server that its session connects to: it has no terminal, whoever hosts it,
    /// and its end is asked for by a signal.
    pub is_server: bool,
    /// It listens at a port; `None`: at a unix socket.
    pub port: Option<ServerPort>,
    /// The program itself, where the command that was found (its path, without links) only starts
    /// it: what is started must be what is watched and ended.
    pub behind: fn(found: &str, disk: &dyn Disk) -> Option<String>,
    /// The session machine.
    pub session: Box<dyn Session>,
    /// A sentence that helps when the program is missing.
    pub hint: &'static str,
}

/// Why there is no plan, or no start by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchError {
    /// One sentence with the cure.
    pub text: String,
    /// What kind of cause it is.
    pub fault: StartFault,
}

impl LaunchError {
    /// What a person has to change first.
    pub fn permanent(text: impl Into<String>) -> LaunchError {
        LaunchError { text: text.into(), fault: StartFault::Person }
    }

    /// What may pass by itself.
    pub fn passing(text: impl Into<String>) -> LaunchError {
        LaunchError { text: text.into(), fault: StartFault::Passing }
    }
}

/// Makes the plan of one start.
pub type PlanFn =
    fn(&LaunchRequest, Conversation<'_>, &dyn Disk) -> Result<LaunchPlan, LaunchError>;

/// Keys that a provider is typed at with in its terminal, as the terminal server is told to press
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalKeys {
    /// Submits what stands in the input box.
    pub submit: &'static str,
    /// Ends the running turn.
    pub cancel: &'static str,
    /// Puts what stands in the input box aside.
    pub stash: &'static str,
}

impl Default for TerminalKeys {
    fn default() -> TerminalKeys {
        TerminalKeys { submit: "Enter", cancel: "Escape", stash: "C-s" }
    }
}

/// A conversation that was to be gone on with, and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostConversation {
    /// Why, in words for people.
    pub why: String,
    /// Its record shows that nothing was said in it.
    pub is_empty: bool,
}

impl LostConversation {
    /// What people are told of it: in the log, in the status, and where they read along.
    pub fn events(&self) -> [SessionEvent; 3] {
        let told = format!("the earlier conversation is lost, a new one was begun: {}", self.why);
        let body = format!(
            "[agent-relay] The earlier conversation could not be restored ({}); \
             a new one starts here.",
            self.why
        );
        [
            SessionEvent::Fact { name: "conversation", value: Value::from(told.as_str()) },
            SessionEvent::Log { level: LogLevel::Warn, text: told },
            SessionEvent::Mirror(Mirror {
                kind: "response",
                body,
                label: None,
                status: None,
                turn: 0,
                key: None,
            }),
        ]
    }
}

/// What a session machine knows of its own start.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Id of the conversation.
    pub session: String,
    /// The conversation exists and has a record.
    pub resumes: bool,
    /// Path of that record.
    pub transcript: Option<String>,
    /// This one is new, in the place of an earlier one.
    pub lost: Option<LostConversation>,
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
    /// The provider runs in a terminal of ours.
    pub terminal: bool,
    /// With what it is typed at there.
    pub keys: TerminalKeys,
}

impl Start {
    /// Nothing of what an earlier life has delivered was ever written down.
    pub fn has_no_record(&self) -> bool {
        self.transcript.is_none() && self.lost.as_ref().is_none_or(|lost| lost.is_empty)
    }

    /// How the conversation is opened, with what a record says if it was asked.
    pub fn how(&self, outcomes: Option<Vec<DeliveryOutcome>>) -> OpenMode {
        match (outcomes, &self.lost) {
            (Some(outcomes), _) => OpenMode::Loaded(outcomes),
            (None, Some(lost)) => OpenMode::Lost(lost.why.clone()),
            (None, None) if self.resumes => OpenMode::Resumed,
            (None, None) => OpenMode::New,
        }
    }
}
