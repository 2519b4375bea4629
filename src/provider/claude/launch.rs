//! How a session is started: arguments, environment and files.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::stream::StreamSession;
use super::tui::TuiSession;
use super::{LOGIN, keys, plugin, transcript};
use crate::provider::launch::{
    Conversation, Disk, LaunchError, LaunchPlan, LaunchRequest, LostConversation, SessionSockets,
    SetupFile, Start, Transport,
};
use crate::provider::reader::{self, without_mark};
use crate::provider::settings::{ApprovalMode, ProviderSetting};
use crate::provider::text::shell_quoted;
use crate::wire::control::ENV_HOOKS;

/// What the session is told about its messages. It stands in the system prompt, where it survives a
/// compaction.
const RELAY_TEXT: &str = "\
[agent-relay] You share a message channel with people and other agents. A text that begins with `[relay message #<number> from <name>]` \
is a message from it, put here by your runner: from `user` it is your user's own word; from anybody else, or framed as another session's \
message, it is a request of that agent or system. Take it in, carry it out, and answer it. \
Your runner types for your user by pasting, so a longer message stands in `<pasted_content>`: what begins there with that header is meant \
as the header says. A notification needs no answer.";
/// What it can do by its tools, which need not be loaded before they are called.
const TOOLS: &str = " \
Tools: mcp__relay__relay_get_message (what was cut), mcp__relay__relay_react, mcp__relay__relay_send_message, \
mcp__relay__relay_find_agents; `agent-relay guide` tells of the commands.";
/// The same where it has none.
const COMMANDS: &str = " \
`agent-relay get-message <number>` shows a message in full that was cut, `agent-relay react <number> <emoji>` acknowledges one lightly, \
`agent-relay send <agent> --stdin` writes to others, `agent-relay guide` tells the rest.";
/// Who answers, where the runner does.
const ANSWER_AUTO: &str =
    " Your last text of a turn goes to the sender as the answer; you need not send it yourself.";
/// Who answers, where the session does.
const ANSWER_EXPLICIT: &str =
    " Answer yourself with `agent-relay reply <number> --stdin`; nobody sends your last text.";
/// The same with a tool.
const ANSWER_BY_TOOL: &str = " Answer yourself with mcp__relay__relay_reply or `agent-relay reply <number> --stdin`; nobody sends your last text.";

/// Names the program's own folder.
const CONFIG_DIR: &str = "CLAUDE_CONFIG_DIR";

/// Variables that a session sets for what runs in it; a session of its own must not inherit them.
const INHERITED: [&str; 10] = [
    "CLAUDECODE",
    "CLAUDE_PID",
    "CLAUDE_EFFORT",
    "CLAUDE_CODE_SESSION_ID",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_MESSAGING_SOCKET",
    "CLAUDE_CODE_MESSAGING_TOKEN",
    "CLAUDE_PLUGIN_ROOT",
    "CLAUDE_PLUGIN_DATA",
    "CLAUDE_PROJECT_DIR",
];

/// Settings that only this provider has.
pub const SETTINGS: &[ProviderSetting] = &[
    ProviderSetting::text("--rig", "NAME", "rig that claude-rig starts", |all| &mut all.rig)
        .file("rig"),
    ProviderSetting::text(
        "--system-prompt-append",
        "TEXT",
        "further text for the system prompt",
        |all| &mut all.system_prompt,
    )
    .env("AGENT_RELAY_SYSTEM_PROMPT_APPEND"),
    ProviderSetting::folders("pluginDirs", "further plugins", |all| &mut all.plugin_dirs),
];

/// The plan of one start. `Err`: what a person has to change first.
pub fn plan(
    request: &LaunchRequest,
    conversation: Conversation<'_>,
    disk: &dyn Disk,
) -> Result<LaunchPlan, LaunchError> {
    let places = Places::new(request);
    let bypasses = bypasses(request);
    if bypasses && request.is_root && set(request, "IS_SANDBOX").is_none() {
        return Err(LaunchError::permanent(
            "as root Claude Code refuses to bypass permissions: run as another user, use --approval guarded, or set IS_SANDBOX=1 where \
             the machine is a sandbox",
        ));
    }
    let mut own_args: Vec<String> =
        request.default_args.iter().chain(&request.args).cloned().collect();
    let settings = settings(request, own_settings(&mut own_args, &request.session.cwd, disk)?);
    let start = start(request, conversation, &places, disk);

    let mut argv = program(request);
    argv.extend(flags(request, &places, &own_args));
    argv.extend([
        if start.resumes { "--resume" } else { "--session-id" }.into(),
        start.session.clone(),
    ]);
    argv.extend(own_args);
    let (env, unset) = environment(request, &places);
    Ok(LaunchPlan {
        argv,
        env,
        unset,
        files: files(request, &places, settings, bypasses, disk),
        sockets: places.sockets,
        is_server: false,
        port: None,
        behind: |_, _| None,
        session: match request.transport {
            Transport::Stream => Box::new(StreamSession::new(request.session.clone(), start)),
            Transport::Tmux | Transport::Terminal => {
                Box::new(TuiSession::new(request.session.clone(), start))
            }
        },
        hint: match request.settings.rig {
            None => {
                "install Claude Code with: curl -fsSL https://claude.ai/install.sh | bash, or: npm install -g @anthropic-ai/claude-code"
            }
            Some(_) => {
                "install claude-rig, name it by \"command\" in providers/claude.json, or leave --rig out"
            }
        },
    })
}

/// A variable that the provider will see, unless it is empty.
fn set<'a>(request: &'a LaunchRequest, name: &str) -> Option<&'a String> {
    request.env.get(name).filter(|value| !value.is_empty())
}

/// Where the things of this agent's sessions stand.
struct Places {
    /// The program's own folder: settings, login, transcripts.
    config_dir: String,
    plugin_dir: String,
    settings_file: String,
    /// Where its tools are told.
    tools_file: String,
    /// A session over its standard streams has none.
    sockets: Option<SessionSockets>,
}

impl Places {
    fn new(request: &LaunchRequest) -> Places {
        let config_dir = if request.settings.isolated {
            format!("{}/claude", request.dir)
        } else {
            set(request, CONFIG_DIR)
                .cloned()
                .unwrap_or_else(|| format!("{}/.claude", request.user_home))
        };
        let sockets = SessionSockets {
            terminal: format!("{}/tmux.sock", request.runtime_dir),
            replies: format!("{}/relay.sock", request.runtime_dir),
            session: format!("{}/claude.sock", request.runtime_dir),
        };
        Places {
            config_dir,
            plugin_dir: format!("{}/plugins/claude/{}", request.home, crate::wire::VERSION),
            settings_file: format!("{}/claude-settings.json", request.dir),
            tools_file: format!("{}/claude-mcp.json", request.dir),
            sockets: (request.transport != Transport::Stream).then_some(sockets),
        }
    }
}

/// The conversation of this start: the earlier one if it has a record or can be begun under its id,
/// else a fresh one.
fn start(
    request: &LaunchRequest,
    conversation: Conversation<'_>,
    places: &Places,
    disk: &dyn Disk,
) -> Start {
    let config_dir = &places.config_dir;
    let record = find_transcript(disk, config_dir, conversation.earlier);
    let is_empty =
        !record.as_ref().is_some_and(|path| disk.has_line(path, transcript::is_conversation));
    // A record without a conversation can neither be gone on with nor be begun again under its id.
    let why = match (conversation.refused, &record) {
        (Some(why), _) => Some(why.to_string()),
        (None, Some(path)) if is_empty => Some(format!("{path} holds no conversation")),
        (None, _) => None,
    };
    let lost = why.map(|why| LostConversation { why, is_empty });
    let goes_on = lost.is_none() && is_safe(conversation.earlier);
    let session = if goes_on { conversation.earlier } else { conversation.fresh };
    let transcript = record.filter(|_| goes_on);
    let folder: String = request
        .session
        .cwd
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let sockets = places.sockets.as_ref();
    Start {
        session: session.to_string(),
        resumes: transcript.is_some(),
        transcript,
        lost,
        usual_transcript: format!("{config_dir}/projects/{folder}/{session}.jsonl"),
        nonce: conversation.fresh.to_string(),
        config_dir: config_dir.clone(),
        mailbox: sockets.map(|sockets| sockets.replies.clone()),
        socket: sockets.map(|sockets| sockets.session.clone()),
        terminal: request.transport == Transport::Tmux,
        keys: keys::keys(disk.read(&format!("{config_dir}/{}", keys::FILE)).as_deref()),
    }
}

/// Options of ours: how it is talked to, what it may do, what it is told.
fn flags(request: &LaunchRequest, places: &Places, own_args: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    let mut add = |words: &[&str]| all.extend(words.iter().map(|word| word.to_string()));
    if request.transport == Transport::Stream {
        add(&[
            "-p",
            "--input-format",
            "stream-json",
            "--output-format",
            "stream-json",
            "--verbose",
        ]);
        add(&["--permission-prompt-tool", "stdio", "--replay-user-messages"]);
    }
    add(&["--plugin-dir", &places.plugin_dir]);
    if request.transport == Transport::Terminal {
        add(&["--plugin-dir", &format!("{}/interactive", places.plugin_dir)]);
    }
    for dir in request.settings.plugin_dirs.iter().filter(|dir| **dir != places.plugin_dir) {
        add(&["--plugin-dir", dir]);
    }
    let says_mode = |word: &String| {
        matches!(
            word.split('=').next(),
            Some("--permission-mode" | "--dangerously-skip-permissions")
        )
    };
    if !own_args.iter().any(says_mode) {
        match (&request.session.mode, request.session.approval_mode) {
            (Some(mode), _) => add(&["--permission-mode", mode]),
            (None, ApprovalMode::Open) => add(&["--dangerously-skip-permissions"]),
            (None, ApprovalMode::Guarded) => add(&["--permission-mode", "manual"]),
            (None, ApprovalMode::ReadOnly) => add(&["--permission-mode", "plan"]),
        }
    }
    if request.tools().is_some() {
        // They ask nobody: none of them sends a file or runs a command.
        add(&["--mcp-config", &places.tools_file, "--allowedTools", "mcp__relay"]);
    }
    add(&["--settings", &places.settings_file]);
    if let Some(sockets) = &places.sockets {
        add(&["--messaging-socket-path", &sockets.session]);
    }
    for (name, value) in
        [("--model", &request.settings.model), ("--effort", &request.settings.effort)]
    {
        if let Some(value) = value {
            add(&[name, value]);
        }
    }
    let told = system_prompt(request);
    if !told.is_empty() {
        add(&["--append-system-prompt", &told]);
    }
    all
}

/// Variables to set, and those that must not be inherited.
fn environment(request: &LaunchRequest, places: &Places) -> (Vec<(String, String)>, Vec<String>) {
    let mut env = vec![("AGENT_RELAY_PROVIDER".to_string(), "claude".to_string())];
    let mut unless_set = |name: &str, value: &str| {
        if set(request, name).is_none() {
            env.push((name.into(), value.into()));
        }
    };
    unless_set("CLAUDE_CODE_SESSIONEND_HOOKS_TIMEOUT_MS", "10000");
    if request.transport != Transport::Terminal {
        // Each suggestion for a person would cost a request of its own.
        unless_set("CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION", "false");
        unless_set("DISABLE_AUTOUPDATER", "1");
    }
    if request.settings.isolated {
        env.push((CONFIG_DIR.into(), places.config_dir.clone()));
    }
    let mut unset: Vec<String> = INHERITED.map(String::from).into();
    // Said by the configuration, or else by the transport; never by a session that this runner was
    // started in.
    if !request.env.contains_key(ENV_HOOKS) {
        if request.transport == Transport::Stream {
            env.push((ENV_HOOKS.into(), "stop".into()));
        } else {
            unset.push(ENV_HOOKS.into());
        }
    }
    (env, unset)
}

/// What must be there before: our plugin, the settings of this start, the folder of the sockets, a
/// home of its own.
fn files(
    request: &LaunchRequest,
    places: &Places,
    settings: Map<String, Value>,
    bypasses: bool,
    disk: &dyn Disk,
) -> Vec<SetupFile> {
    let text = Value::Object(settings).to_string() + "\n";
    let mut files = vec![
        SetupFile::Tree { path: places.plugin_dir.clone(), files: plugin::FILES },
        SetupFile::File { path: places.settings_file.clone(), text },
    ];
    if let Some(tools) = request.tools() {
        // It hands its environment on.
        let server = json!({"command": tools.program, "args": ["mcp"]});
        let text = json!({"mcpServers": {"relay": server}}).to_string() + "\n";
        files.push(SetupFile::File { path: places.tools_file.clone(), text });
    }
    if places.sockets.is_some() {
        files.push(SetupFile::Folder(request.runtime_dir.clone()));
    }
    if request.settings.isolated {
        files.extend(profile(request, disk, &places.config_dir, bypasses));
    }
    files
}

fn bypasses(request: &LaunchRequest) -> bool {
    let said = |word: &str| {
        request
            .args
            .iter()
            .chain(&request.default_args)
            .any(|arg| arg == word || arg == &format!("--permission-mode={word}"))
    };
    let mode = request.session.mode.as_deref();
    said("--dangerously-skip-permissions")
        || said("bypassPermissions")
        || mode == Some("bypassPermissions")
        || (mode.is_none() && request.session.approval_mode == ApprovalMode::Open)
}

fn program(request: &LaunchRequest) -> Vec<String> {
    match (&request.settings.rig, &request.command) {
        (Some(rig), command) => {
            vec![command.clone().unwrap_or_else(|| "claude-rig".into()), rig.clone()]
        }
        (None, Some(command)) => vec![command.clone()],
        (None, None) => vec!["claude".into()],
    }
}

fn system_prompt(request: &LaunchRequest) -> String {
    let mut text = String::new();
    if !request.leaves_out("context") {
        let has_tools = request.tools().is_some();
        text.push_str(RELAY_TEXT);
        text.push_str(if has_tools { TOOLS } else { COMMANDS });
        text.push_str(match (request.explicit_replies, has_tools) {
            (false, _) => ANSWER_AUTO,
            (true, false) => ANSWER_EXPLICIT,
            (true, true) => ANSWER_BY_TOOL,
        });
    }
    if let Some(more) =
        request.settings.system_prompt.as_deref().filter(|more| !more.trim().is_empty())
    {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(more);
    }
    text
}

/// Settings of this start only. Messages by the socket are taken in, also in bypass mode; the
/// status line tells the use of the context, where nobody would miss his own. What the user's own
/// `--settings` say counts more.
fn settings(request: &LaunchRequest, own: Map<String, Value>) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("crossSessionInbound".into(), json!("accept"));
    // Else plan mode has a classifier ask, in a dialog of its own that no hook is told of (seen
    // behind a gateway).
    all.insert("useAutoModeDuringPlan".into(), json!(false));
    if request.transport == Transport::Tmux {
        let command = format!("{} hook status-line", shell_quoted(&request.bin));
        all.insert("statusLine".into(), json!({"type": "command", "command": command}));
    }
    all.extend(own);
    all
}

/// Takes `--settings` (a file, or JSON itself) out of the arguments: the program knows one such
/// option.
fn own_settings(
    words: &mut Vec<String>,
    cwd: &str,
    disk: &dyn Disk,
) -> Result<Map<String, Value>, LaunchError> {
    let mut own = Map::new();
    while let Some(at) =
        words.iter().position(|word| word == "--settings" || word.starts_with("--settings="))
    {
        let word = words.remove(at);
        let value = match word.split_once('=') {
            Some((_, value)) => value.to_string(),
            None if at < words.len() => words.remove(at),
            None => return Err(LaunchError::permanent("--settings needs a file or JSON")),
        };
        let text = if value.trim_start().starts_with('{') {
            Some(value.clone())
        } else {
            disk.read(&std::path::Path::new(cwd).join(&value).to_string_lossy())
        };
        let record = text.and_then(|text| serde_json::from_str(without_mark(&text)).ok());
        own = record
            .ok_or_else(|| LaunchError::permanent("the --settings given to claude are neither a JSON object nor a file that holds one"))?;
    }
    Ok(own)
}

/// An id that may stand in a file name and a command line.
fn is_safe(conversation: &str) -> bool {
    !conversation.is_empty()
        && !conversation.starts_with('-')
        && conversation.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// The transcript of a conversation, in whatever project folder it lies.
fn find_transcript(disk: &dyn Disk, config_dir: &str, conversation: &str) -> Option<String> {
    let folders = is_safe(conversation).then(|| disk.list(&format!("{config_dir}/projects")))?;
    let path = |folder: &String| format!("{config_dir}/projects/{folder}/{conversation}.jsonl");
    folders.iter().map(path).find(|path| disk.exists(path))
}

/// A home of its own for the session: every key without which a start hangs in a dialog. What the
/// program has written there since is kept; login is linked, never copied.
fn profile(request: &LaunchRequest, disk: &dyn Disk, dir: &str, bypasses: bool) -> Vec<SetupFile> {
    let record = |path: &str| -> Map<String, Value> {
        disk.read(path)
            .and_then(|text| reader::read(text.as_bytes()))
            .and_then(|document| document.value.as_object().cloned())
            .unwrap_or_default()
    };
    let (state_path, settings_path) =
        (format!("{dir}/.claude.json"), format!("{dir}/settings.json"));
    let mut state = record(&state_path);
    state.insert("hasCompletedOnboarding".into(), json!(true));
    if let Some(key) = set(request, "ANTHROPIC_API_KEY") {
        let tail: String =
            key.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
        state.insert("customApiKeyResponses".into(), json!({"approved": [tail], "rejected": []}));
    }
    let projects = state.entry("projects").or_insert_with(|| json!({}));
    if !projects.is_object() {
        *projects = json!({});
    }
    if !projects[&request.session.cwd].is_object() {
        projects[&request.session.cwd] = json!({});
    }
    projects[&request.session.cwd]["hasTrustDialogAccepted"] = json!(true);
    let mut settings = record(&settings_path);
    if bypasses {
        settings.insert("skipDangerousModePermissionPrompt".into(), json!(true));
    }
    let text = |record: Map<String, Value>| format!("{:#}\n", Value::Object(record));
    let mut files = vec![
        SetupFile::Folder(dir.to_string()),
        SetupFile::File { path: state_path, text: text(state) },
        SetupFile::File { path: settings_path, text: text(settings) },
    ];
    let folders =
        [request.env.get(CONFIG_DIR).cloned(), Some(format!("{}/.claude", request.user_home))];
    let logins = folders.into_iter().flatten().filter(|folder| !folder.is_empty() && folder != dir);
    let login =
        logins.map(|folder| format!("{folder}/{}", LOGIN.file)).find(|login| disk.exists(login));
    files.extend(login.map(|to| SetupFile::Link { path: format!("{dir}/{}", LOGIN.file), to }));
    files
}
