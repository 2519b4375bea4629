//! How a session is started: arguments, environment and files.

use serde_json::{Map, Value, json};

use super::stream::StreamSession;
use super::tui::TuiSession;
use super::{LOGIN, plugin};
use crate::provider::{ApprovalMode, Disk, Laid, Layout, Start, Transport, Want};
use crate::wire::control::ENV_HOOKS;

/// What the session is told about its messages. It stands in the system prompt, where it survives a compaction.
const RELAY_TEXT: &str = "\
[agent-relay] You share a message channel with people and other agents. A text that begins with `[relay message #<number> from <name>]` \
is a message from that channel, put into this conversation by your runner: from `user` it is your user's own word; from anybody else, or \
framed as another session's message, it is a request of that agent or system. Take it in, carry it out, and answer it. \
Your runner types for your user by pasting, so a longer message stands in `<pasted_content>`: what begins there with that header is meant \
as the header says, from `user` your user's own instruction. \
`agent-relay get-message <number>` shows a message in full that was cut, `agent-relay react <number> <emoji>` acknowledges one lightly, \
`agent-relay send <agent> --stdin` writes to others, `agent-relay --help` tells the rest. A message marked as a notification needs no answer.";
/// Who answers, where the runner does.
const ANSWER_AUTO: &str = " Your last text of a turn goes to the sender as the answer; you need not send it yourself.";
/// Who answers, where the session does.
const ANSWER_EXPLICIT: &str = " Answer yourself with `agent-relay reply <number> --stdin`; nobody sends your last text.";

/// Variables that a session sets for what runs in it; another session must not inherit them.
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

/// The plan of one start; `Err`: a sentence with the cure, and whether trying again is pointless.
pub fn layout(want: &Want, disk: &dyn Disk) -> Result<Layout, (String, bool)> {
    let get = |name: &str| want.env.get(name).cloned().filter(|value| !value.is_empty());
    let own_dir = format!("{}/claude", want.dir);
    let config_dir = match want.isolated {
        true => own_dir.clone(),
        false => get("CLAUDE_CONFIG_DIR").unwrap_or_else(|| format!("{}/.claude", want.user_home)),
    };
    let bypasses = bypasses(want);
    if bypasses && want.is_root && get("IS_SANDBOX").is_none() {
        let text = "as root Claude Code refuses to bypass permissions: run as another user, use --approval guarded, or set IS_SANDBOX=1 where \
                    the machine is a sandbox";
        return Err((text.into(), true));
    }
    let transcript = find_transcript(disk, &config_dir, &want.conversation);
    let resumes = transcript.is_some();
    let session = if is_safe(&want.conversation) { want.conversation.clone() } else { want.fresh.clone() };
    let terminal = want.transport == Transport::Tmux;
    let socket = (want.transport != Transport::Stream).then(|| format!("{}/claude.sock", want.runtime_dir));
    let mailbox = socket.is_some().then(|| format!("{}/relay.sock", want.runtime_dir));

    let plugin_dir = format!("{}/plugins/claude/{}", want.home, crate::wire::VERSION);
    let settings_file = format!("{}/claude-settings.json", want.dir);
    let mut files: Vec<Laid> = vec![Laid::Tree {
        path: plugin_dir.clone(),
        files: plugin::FILES.iter().map(|(path, text, program)| (path.to_string(), text.to_string(), *program)).collect(),
    }];
    let mut words: Vec<String> = want.default_args.iter().chain(&want.args).cloned().collect();
    let settings = settings(want, own_settings(&mut words, &want.session.cwd, disk)?);
    files.push(Laid::File { path: settings_file.clone(), text: Value::Object(settings).to_string() + "\n" });
    if socket.is_some() {
        files.push(Laid::Folder(want.runtime_dir.clone()));
    }
    if want.isolated {
        files.extend(profile(want, disk, &config_dir, get("ANTHROPIC_API_KEY").as_deref(), bypasses));
    }

    let mut command = program(want);
    let mut add = |words: &[&str]| command.extend(words.iter().map(|word| word.to_string()));
    if want.transport == Transport::Stream {
        add(&["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]);
        add(&["--permission-prompt-tool", "stdio", "--replay-user-messages"]);
    }
    add(&["--plugin-dir", &plugin_dir]);
    if want.transport == Transport::Terminal {
        add(&["--plugin-dir", &format!("{plugin_dir}/interactive")]);
    }
    for dir in want.plugin_dirs.iter().filter(|dir| **dir != plugin_dir) {
        add(&["--plugin-dir", dir]);
    }
    let said = |names: &[&str]| words.iter().any(|word| names.iter().any(|name| word.split('=').next() == Some(*name)));
    if !said(&["--permission-mode", "--dangerously-skip-permissions"]) {
        match (&want.session.mode, want.session.approval_mode) {
            (Some(mode), _) => add(&["--permission-mode", mode]),
            (None, ApprovalMode::Open) => add(&["--dangerously-skip-permissions"]),
            (None, ApprovalMode::Guarded) => add(&["--permission-mode", "manual"]),
            (None, ApprovalMode::ReadOnly) => add(&["--permission-mode", "plan"]),
        }
    }
    add(&["--settings", &settings_file]);
    if let Some(socket) = &socket {
        add(&["--messaging-socket-path", socket]);
    }
    for (name, value) in [("--model", &want.model), ("--effort", &want.effort)] {
        if let Some(value) = value {
            add(&[name, value]);
        }
    }
    add(&["--append-system-prompt", &system_prompt(want)]);
    add(&[if resumes { "--resume" } else { "--session-id" }, &session]);
    command.extend(words);

    let mut env = vec![("AGENT_RELAY_PROVIDER".to_string(), "claude".to_string())];
    let mut unless_set = |name: &str, value: &str| {
        if get(name).is_none() {
            env.push((name.into(), value.into()));
        }
    };
    unless_set("CLAUDE_CODE_SESSIONEND_HOOKS_TIMEOUT_MS", "10000");
    if want.transport != Transport::Terminal {
        // Each suggestion for a person would cost a request of its own.
        unless_set("CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION", "false");
        unless_set("DISABLE_AUTOUPDATER", "1");
    }
    if want.isolated {
        env.push(("CLAUDE_CONFIG_DIR".into(), config_dir.clone()));
    }
    let mut unset: Vec<String> = INHERITED.map(String::from).into();
    // Said by the configuration, or else by the transport; never by a session that this runner was started in.
    match (want.env.contains_key(ENV_HOOKS), want.transport) {
        (true, _) => {}
        (false, Transport::Stream) => env.push((ENV_HOOKS.into(), "stop".into())),
        (false, _) => unset.push(ENV_HOOKS.into()),
    }
    let folder: String = want.session.cwd.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let usual_transcript = format!("{config_dir}/projects/{folder}/{session}.jsonl");
    let start = Start {
        session,
        resumes,
        transcript,
        usual_transcript,
        nonce: want.fresh.clone(),
        config_dir,
        mailbox: mailbox.clone(),
        socket: socket.clone(),
        terminal,
    };
    let session: Box<dyn crate::core::session::Session> = match want.transport {
        Transport::Stream => Box::new(StreamSession::new(want.session.clone(), start)),
        _ => Box::new(TuiSession::new(want.session.clone(), start)),
    };
    let hint = match want.rig {
        None => "install Claude Code with: curl -fsSL https://claude.ai/install.sh | bash, or: npm install -g @anthropic-ai/claude-code",
        Some(_) => "install claude-rig, name it by \"command\" in providers/claude.json, or leave --rig out",
    };
    Ok(Layout { command, env, unset, files, mailbox: mailbox.zip(socket), session, hint })
}

fn bypasses(want: &Want) -> bool {
    let said =
        |word: &str| want.args.iter().chain(&want.default_args).any(|arg| arg == word || arg == &format!("--permission-mode={word}"));
    let mode = want.session.mode.as_deref();
    said("--dangerously-skip-permissions")
        || said("bypassPermissions")
        || mode == Some("bypassPermissions")
        || (mode.is_none() && want.session.approval_mode == ApprovalMode::Open)
}

fn program(want: &Want) -> Vec<String> {
    match (&want.rig, &want.command) {
        (Some(rig), command) => vec![command.clone().unwrap_or_else(|| "claude-rig".into()), rig.clone()],
        (None, Some(command)) => vec![command.clone()],
        (None, None) => vec!["claude".into()],
    }
}

fn system_prompt(want: &Want) -> String {
    let mut text = RELAY_TEXT.to_string();
    text.push_str(if want.explicit_replies { ANSWER_EXPLICIT } else { ANSWER_AUTO });
    if let Some(more) = want.system_prompt.as_deref().filter(|more| !more.trim().is_empty()) {
        text.push_str("\n\n");
        text.push_str(more);
    }
    text
}

/// Settings of this start only. Messages by the socket are taken in, also in bypass mode; the status
/// line tells the use of the context, where nobody would miss his own. What the user's own `--settings` say counts more.
fn settings(want: &Want, own: Map<String, Value>) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("crossSessionInbound".into(), json!("accept"));
    // Else plan mode has a classifier ask, in a dialog of its own that no hook is told of (seen behind a gateway).
    all.insert("useAutoModeDuringPlan".into(), json!(false));
    if want.transport == Transport::Tmux {
        let quoted = format!("'{}'", want.bin.replace('\'', "'\\''"));
        all.insert("statusLine".into(), json!({"type": "command", "command": format!("{quoted} hook status-line")}));
    }
    all.extend(own);
    all
}

/// Takes `--settings` (a file, or JSON itself) out of the arguments: the program knows one such option.
fn own_settings(words: &mut Vec<String>, cwd: &str, disk: &dyn Disk) -> Result<Map<String, Value>, (String, bool)> {
    let mut own = Map::new();
    while let Some(at) = words.iter().position(|word| word == "--settings" || word.starts_with("--settings=")) {
        let word = words.remove(at);
        let value = match word.split_once('=') {
            Some((_, value)) => value.to_string(),
            None if at < words.len() => words.remove(at),
            None => return Err(("--settings needs a file or JSON".into(), true)),
        };
        let text = match value.trim_start().starts_with('{') {
            true => Some(value.clone()),
            false => disk.read(&std::path::Path::new(cwd).join(&value).to_string_lossy()),
        };
        let record = text.and_then(|text| serde_json::from_str::<Map<String, Value>>(&text).ok());
        own = record.ok_or_else(|| ("the --settings given to claude are no JSON object and no file that holds one".to_string(), true))?;
    }
    Ok(own)
}

/// An id that may stand in a file name and a command line.
fn is_safe(conversation: &str) -> bool {
    !conversation.is_empty() && !conversation.starts_with('-') && conversation.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// The transcript of a conversation, in whatever project folder it lies.
fn find_transcript(disk: &dyn Disk, config_dir: &str, conversation: &str) -> Option<String> {
    let folders = is_safe(conversation).then(|| disk.list(&format!("{config_dir}/projects")))?;
    let path = |folder: &String| format!("{config_dir}/projects/{folder}/{conversation}.jsonl");
    folders.iter().map(path).find(|path| disk.exists(path))
}

/// A home of its own for the session: every key without which a start hangs in a dialog. What the
/// program has written there since is kept; login is linked, never copied.
fn profile(want: &Want, disk: &dyn Disk, dir: &str, api_key: Option<&str>, bypasses: bool) -> Vec<Laid> {
    let record = |path: &str| -> Map<String, Value> {
        disk.read(path)
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            .and_then(|value| value.as_object().cloned())
            .unwrap_or_default()
    };
    let (state_path, settings_path) = (format!("{dir}/.claude.json"), format!("{dir}/settings.json"));
    let mut state = record(&state_path);
    state.insert("hasCompletedOnboarding".into(), json!(true));
    if let Some(key) = api_key {
        let tail: String = key.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
        state.insert("customApiKeyResponses".into(), json!({"approved": [tail], "rejected": []}));
    }
    let projects = state.entry("projects").or_insert_with(|| json!({}));
    if !projects.is_object() {
        *projects = json!({});
    }
    if !projects[&want.session.cwd].is_object() {
        projects[&want.session.cwd] = json!({});
    }
    projects[&want.session.cwd]["hasTrustDialogAccepted"] = json!(true);
    let mut settings = record(&settings_path);
    if bypasses {
        settings.insert("skipDangerousModePermissionPrompt".into(), json!(true));
    }
    let text = |record: Map<String, Value>| format!("{:#}\n", Value::Object(record));
    let mut laid = vec![
        Laid::Folder(dir.to_string()),
        Laid::File { path: state_path, text: text(state) },
        Laid::File { path: settings_path, text: text(settings) },
    ];
    let folders = [want.env.get("CLAUDE_CONFIG_DIR").cloned(), Some(format!("{}/.claude", want.user_home))];
    let logins = folders.into_iter().flatten().filter(|folder| !folder.is_empty() && folder != dir);
    let login = logins.map(|folder| format!("{folder}/{}", LOGIN.file)).find(|login| disk.exists(login));
    laid.extend(login.map(|to| Laid::Link { path: format!("{dir}/{}", LOGIN.file), to }));
    laid
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::provider::SessionSettings;

    struct Files(BTreeMap<String, String>);

    impl Disk for Files {
        fn read(&self, path: &str) -> Option<String> {
            self.0.get(path).cloned()
        }
        fn exists(&self, path: &str) -> bool {
            self.0.contains_key(path)
        }
        fn list(&self, path: &str) -> Vec<String> {
            let below = |name: &String| name.strip_prefix(path)?.strip_prefix('/')?.split('/').next().map(str::to_string);
            self.0.keys().filter_map(below).collect()
        }
    }

    fn want(transport: Transport, approval_mode: ApprovalMode) -> Want {
        Want {
            session: SessionSettings {
                cwd: "/w".into(),
                approval_mode,
                mode: None,
                approval_timeout: Duration::from_secs(1),
                capture_full: false,
            },
            transport,
            command: None,
            rig: None,
            default_args: Vec::new(),
            args: Vec::new(),
            model: Some("sonnet".into()),
            effort: None,
            system_prompt: Some("Be brief.".into()),
            plugin_dirs: Vec::new(),
            explicit_replies: false,
            home: "/h".into(),
            dir: "/h/agents/a".into(),
            user_home: "/u".into(),
            runtime_dir: "/r".into(),
            bin: "/b/agent-relay".into(),
            isolated: true,
            is_root: true,
            env: [("ANTHROPIC_API_KEY".to_string(), "sk-0123456789-0123456789".to_string())].into_iter().collect(),
            conversation: String::new(),
            fresh: "f".into(),
        }
    }

    fn command(want: &Want, files: &[(&str, &str)]) -> String {
        let disk = Files(files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect());
        layout(want, &disk).map(|layout| layout.command.join(" ")).unwrap_or_else(|(reason, _)| reason)
    }

    #[test]
    fn the_permission_mode_is_always_said() {
        use ApprovalMode::{Guarded, Open, ReadOnly};
        assert!(command(&want(Transport::Tmux, Guarded), &[]).contains("--permission-mode manual"));
        assert!(command(&want(Transport::Tmux, ReadOnly), &[]).contains("--permission-mode plan"));
        assert!(command(&want(Transport::Tmux, Open), &[]).contains("IS_SANDBOX=1"), "refused as root");
        assert!(command(&Want { is_root: false, ..want(Transport::Tmux, Open) }, &[]).contains("--dangerously-skip-permissions"));
        let own = Want { args: vec!["--permission-mode".into(), "dontAsk".into()], ..want(Transport::Tmux, Guarded) };
        assert_eq!(command(&own, &[]).matches("--permission-mode").count(), 1);
    }

    /// The program takes the last of several `--settings`, so there is one, and it holds both.
    #[test]
    fn own_settings_are_joined_with_ours() {
        let disk = Files([("/w/mine.json".to_string(), r#"{"model": "x", "statusLine": 1}"#.to_string())].into());
        for words in [vec!["--settings", "mine.json", "--debug"], vec![r#"--settings={"model": "x", "statusLine": 1}"#, "--debug"]] {
            let want = Want { args: words.iter().map(|word| word.to_string()).collect(), ..want(Transport::Tmux, ApprovalMode::Guarded) };
            let plan = layout(&want, &disk).unwrap_or_else(|(reason, _)| panic!("{reason}"));
            assert_eq!(plan.command.iter().filter(|word| word.starts_with("--settings")).count(), 1);
            assert_eq!(plan.command.last().map(String::as_str), Some("--debug"));
            let written = plan.files.iter().find_map(|file| match file {
                Laid::File { path, text } if path.ends_with("claude-settings.json") => serde_json::from_str::<Value>(text).ok(),
                _ => None,
            });
            assert_eq!(
                written,
                Some(json!({"crossSessionInbound": "accept", "useAutoModeDuringPlan": false, "model": "x", "statusLine": 1}))
            );
        }
        for words in [vec!["--settings", "missing.json"], vec!["--settings"], vec!["--settings", "[]"]] {
            let want = Want { args: words.iter().map(|word| word.to_string()).collect(), ..want(Transport::Stream, ApprovalMode::Guarded) };
            assert!(command(&want, &[]).contains("--settings"), "a sentence, not a start");
            assert!(layout(&want, &disk).is_err());
        }
    }

    #[test]
    fn what_has_a_transcript_is_resumed() {
        let old = Want { conversation: "c-1".into(), ..want(Transport::Stream, ApprovalMode::Guarded) };
        assert!(command(&old, &[]).contains("--session-id c-1"), "never prompted: the same id again");
        let there = [("/h/agents/a/claude/projects/-w/c-1.jsonl", "")];
        assert!(command(&old, &there).contains("--resume c-1"));
        assert!(command(&want(Transport::Tmux, ApprovalMode::Guarded), &there).contains("--session-id f"));
        let evil = Want { conversation: "../x".into(), ..want(Transport::Stream, ApprovalMode::Guarded) };
        assert!(command(&evil, &[("/h/agents/a/claude/projects/-w/../x.jsonl", "")]).contains("--session-id f"));
    }

    #[test]
    fn the_profile_is_whole_and_keeps_what_was_there() {
        let state = r#"{"numStartups": 3, "projects": {"/other": {"hasTrustDialogAccepted": true}}}"#;
        let disk = Files(
            [("/h/agents/a/claude/.claude.json", state), ("/u/.claude/.credentials.json", "{}")]
                .map(|(a, b)| (a.to_string(), b.to_string()))
                .into(),
        );
        let laid = layout(&want(Transport::Tmux, ApprovalMode::Guarded), &disk).map_err(|(reason, _)| reason).expect("a layout").files;
        let text = laid.iter().find_map(|laid| match laid {
            Laid::File { path, text } if path.ends_with(".claude.json") => serde_json::from_str::<Value>(text).ok(),
            _ => None,
        });
        let text = text.expect("written");
        assert_eq!(text["customApiKeyResponses"]["approved"], json!(["123456789-0123456789"]));
        assert_eq!((text["numStartups"].clone(), text["projects"]["/w"]["hasTrustDialogAccepted"].clone()), (json!(3), json!(true)));
        assert!(text["projects"]["/other"].is_object());
        let link = |to: &str| Laid::Link { path: "/h/agents/a/claude/.credentials.json".into(), to: to.into() };
        assert!(laid.contains(&link("/u/.claude/.credentials.json")));
        let mut elsewhere = want(Transport::Tmux, ApprovalMode::Guarded);
        elsewhere.env.insert("CLAUDE_CONFIG_DIR".into(), "/data/claude".into());
        let disk =
            Files([("/data/claude/.credentials.json", ""), ("/u/.claude/.credentials.json", "")].map(|(a, b)| (a.into(), b.into())).into());
        assert!(
            layout(&elsewhere, &disk)
                .map_err(|(reason, _)| reason)
                .expect("a layout")
                .files
                .contains(&link("/data/claude/.credentials.json"))
        );
    }

    #[test]
    fn hooks_of_an_outer_session_silence_nobody() {
        let plan = |transport: Transport| {
            layout(&want(transport, ApprovalMode::Guarded), &Files(BTreeMap::new())).map_err(|(reason, _)| reason).expect("a layout")
        };
        for transport in [Transport::Tmux, Transport::Terminal] {
            let plan = plan(transport);
            assert!(plan.unset.iter().any(|name| name == ENV_HOOKS) && !plan.env.iter().any(|(name, _)| name == ENV_HOOKS));
        }
        let plan = plan(Transport::Stream);
        assert!(!plan.unset.iter().any(|name| name == ENV_HOOKS) && plan.env.contains(&(ENV_HOOKS.into(), "stop".into())));
        let mut own = want(Transport::Tmux, ApprovalMode::Guarded);
        own.env.insert(ENV_HOOKS.into(), "stop".into());
        let plan = layout(&own, &Files(BTreeMap::new())).map_err(|(reason, _)| reason).expect("a layout");
        assert!(!plan.unset.iter().any(|name| name == ENV_HOOKS));
    }
}
