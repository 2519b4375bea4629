//! Plans of starts: arguments, environment, files.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::provider::settings::{ProviderSettings, SessionSettings};

struct Files(BTreeMap<String, String>);

impl Disk for Files {
    fn read(&self, path: &str) -> Option<String> {
        self.0.get(path).cloned()
    }
    fn exists(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
    fn list(&self, path: &str) -> Vec<String> {
        let below = |name: &String| {
            name.strip_prefix(path)?.strip_prefix('/')?.split('/').next().map(str::to_string)
        };
        self.0.keys().filter_map(below).collect()
    }
    fn has_line(&self, path: &str, is_wanted: fn(&[u8]) -> bool) -> bool {
        self.0.get(path).is_some_and(|text| text.lines().any(|line| is_wanted(line.as_bytes())))
    }
}

fn request(transport: Transport, approval_mode: ApprovalMode) -> LaunchRequest {
    LaunchRequest {
        session: SessionSettings {
            agent: "a".into(),
            cwd: "/w".into(),
            approval_mode,
            mode: None,
            approval_timeout: Duration::from_secs(1),
            capture_full: false,
        },
        transport,
        command: None,
        settings: ProviderSettings {
            model: Some("sonnet".into()),
            system_prompt: Some("Be brief.".into()),
            isolated: true,
            ..Default::default()
        },
        default_args: Vec::new(),
        args: Vec::new(),
        explicit_replies: false,
        home: "/h".into(),
        dir: "/h/agents/a".into(),
        user_home: "/u".into(),
        runtime_dir: "/r".into(),
        at_port: false,
        bin: "/b/agent-relay".into(),
        is_root: true,
        env: [("ANTHROPIC_API_KEY".to_string(), "sk-0123456789-0123456789".to_string())]
            .into_iter()
            .collect(),
    }
}

const FRESH: Conversation<'_> = Conversation { earlier: "", refused: None, fresh: "f" };

fn planned(request: &LaunchRequest, disk: &Files) -> LaunchPlan {
    plan(request, FRESH, disk).unwrap_or_else(|error| panic!("{}", error.text))
}

fn command_for(request: &LaunchRequest, earlier: &str, files: &[(&str, &str)]) -> String {
    let disk =
        Files(files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect());
    let plan = plan(request, Conversation { earlier, ..FRESH }, &disk);
    plan.map(|plan| plan.argv.join(" ")).unwrap_or_else(|error| error.text)
}

fn command(request: &LaunchRequest, files: &[(&str, &str)]) -> String {
    command_for(request, "", files)
}

#[test]
fn the_permission_mode_is_always_said() {
    use ApprovalMode::{Guarded, Open, ReadOnly};
    assert!(command(&request(Transport::Tmux, Guarded), &[]).contains("--permission-mode manual"));
    assert!(command(&request(Transport::Tmux, ReadOnly), &[]).contains("--permission-mode plan"));
    assert!(
        command(&request(Transport::Tmux, Open), &[]).contains("IS_SANDBOX=1"),
        "refused as root"
    );
    assert!(
        command(&LaunchRequest { is_root: false, ..request(Transport::Tmux, Open) }, &[])
            .contains("--dangerously-skip-permissions")
    );
    let own = LaunchRequest {
        args: vec!["--permission-mode".into(), "dontAsk".into()],
        ..request(Transport::Tmux, Guarded)
    };
    assert_eq!(command(&own, &[]).matches("--permission-mode").count(), 1);
}

#[test]
fn tools_are_told_and_ask_nobody_unless_the_profile_leaves_them_out() {
    let mut asked = request(Transport::Tmux, ApprovalMode::Guarded);
    let file = |plan: &LaunchPlan| {
        plan.files.iter().find_map(|file| match file {
            SetupFile::File { path, text } if path.ends_with("claude-mcp.json") => {
                serde_json::from_str::<Value>(text).ok()
            }
            _ => None,
        })
    };
    let told = |plan: &LaunchPlan| {
        let at = plan.argv.iter().position(|word| word == "--append-system-prompt");
        at.map(|at| plan.argv[at + 1].clone()).unwrap_or_default()
    };
    let none = Files([].into());
    for explicit in [false, true] {
        asked.explicit_replies = explicit;
        let plan = planned(&asked, &none);
        let words = plan.argv.join(" ");
        assert!(words.contains("claude-mcp.json --allowedTools mcp__relay --settings"), "{words}");
        let server = json!({"command": asked.bin, "args": ["mcp"]});
        assert_eq!(file(&plan), Some(json!({"mcpServers": {"relay": server}})));
        let text = told(&plan);
        assert!(text.contains("mcp__relay__relay_send_message") && text.len() <= 1000, "{text}");
        assert_eq!(text.contains("mcp__relay__relay_reply"), explicit, "{text}");
    }
    asked.explicit_replies = false;
    for (profile, tools, context) in [
        (r#"{"relay": {"mcp": false}}"#, false, true),
        (r#"{"relay": {"context": false}}"#, true, false),
        (r#"{"relay": {"mcp": true, "context": "no"}}"#, true, true),
        ("half a profile {", true, true),
    ] {
        asked.env.insert("AGENT_RELAY_AGENT_PROFILE_JSON".into(), profile.into());
        let plan = planned(&asked, &none);
        assert_eq!(plan.argv.iter().any(|word| word == "--mcp-config"), tools, "{profile}");
        assert_eq!(file(&plan).is_some(), tools, "{profile}");
        let text = told(&plan);
        assert_eq!(text.contains("[agent-relay]"), context, "{profile}: {text}");
        assert!(text.len() <= 1000 && text.contains("agent-relay send") == !tools, "{text}");
    }
}

/// The program takes the last of several `--settings`, so there is one, and it holds both.
#[test]
fn own_settings_are_joined_with_ours() {
    let mine = r#"{"model": "x", "statusLine": 1}"#;
    let disk = Files(
        [
            ("/w/mine.json".to_string(), mine.to_string()),
            // Some editors put a mark in front.
            ("/w/marked.json".to_string(), format!("\u{feff}{mine}")),
        ]
        .into(),
    );
    for words in [
        vec!["--settings", "mine.json", "--debug"],
        vec!["--settings", "marked.json", "--debug"],
        vec![r#"--settings={"model": "x", "statusLine": 1}"#, "--debug"],
    ] {
        let request = LaunchRequest {
            args: words.iter().map(|word| word.to_string()).collect(),
            ..request(Transport::Tmux, ApprovalMode::Guarded)
        };
        let plan = planned(&request, &disk);
        assert_eq!(plan.argv.iter().filter(|word| word.starts_with("--settings")).count(), 1);
        assert_eq!(plan.argv.last().map(String::as_str), Some("--debug"));
        let written = plan.files.iter().find_map(|file| match file {
            SetupFile::File { path, text } if path.ends_with("claude-settings.json") => {
                serde_json::from_str::<Value>(text).ok()
            }
            _ => None,
        });
        assert_eq!(
            written,
            Some(
                json!({"crossSessionInbound": "accept", "useAutoModeDuringPlan": false, "model": "x", "statusLine": 1})
            )
        );
    }
    for words in [vec!["--settings", "missing.json"], vec!["--settings"], vec!["--settings", "[]"]]
    {
        let request = LaunchRequest {
            args: words.iter().map(|word| word.to_string()).collect(),
            ..request(Transport::Stream, ApprovalMode::Guarded)
        };
        assert!(command(&request, &[]).contains("--settings"), "a sentence, not a start");
        assert!(plan(&request, FRESH, &disk).is_err());
    }
}

/// A file is not a conversation: the program neither resumes one in which nothing was said, nor
/// begins it again under its id.
#[test]
fn a_record_is_resumed_only_if_something_was_said_in_it() {
    const USER: &str = r#"{"parentUuid":null,"isSidechain":false,"type":"user","message":{"role":"user","content":"\ud83d"}}"#;
    const BOOKKEEPING: &str = concat!(
        r#"{"type":"queue-operation","operation":"enqueue","content":"x"}"#,
        "\n",
        r#"{"type":"mode","mode":"default"}"#,
        "\n"
    );
    let lines = |lines: &[&str]| lines.join("\n");
    let cut = &USER[..USER.len() - 20];
    let subagent = USER.replace("\"isSidechain\":false", "\"isSidechain\":true");
    let answer = USER.replace("\"type\":\"user\"", "\"type\":\"assistant\"");
    let refused = Some("it said no");
    for (record, refused, flag, lost, is_empty) in [
        // Never prompted: the same id again.
        (None, None, "--session-id c-1", false, true),
        (Some(String::new()), None, "--session-id f", true, true),
        (Some(BOOKKEEPING.into()), None, "--session-id f", true, true),
        (Some(lines(&[BOOKKEEPING, cut])), None, "--session-id f", true, true),
        (Some(subagent), None, "--session-id f", true, true),
        (Some(lines(&[BOOKKEEPING, USER])), None, "--resume c-1", false, false),
        (Some(lines(&[USER, cut])), None, "--resume c-1", false, false),
        (Some(answer), None, "--resume c-1", false, false),
        // What the program says counts more.
        (Some(USER.into()), refused, "--session-id f", true, false),
        (None, refused, "--session-id f", true, true),
    ] {
        for transport in [Transport::Stream, Transport::Tmux] {
            let request = request(transport, ApprovalMode::Guarded);
            let path = "/h/agents/a/claude/projects/-w/c-1.jsonl".to_string();
            let disk = Files(record.iter().map(|text| (path.clone(), text.clone())).collect());
            let conversation = Conversation { earlier: "c-1", refused, fresh: "f" };
            let words = plan(&request, conversation, &disk).map(|plan| plan.argv.join(" "));
            assert!(words.is_ok_and(|words| words.contains(flag)), "{record:?} {refused:?}");
            let start = start(&request, conversation, &Places::new(&request), &disk);
            let told = start.lost.as_ref().map(|told| told.is_empty);
            assert_eq!(told, lost.then_some(is_empty), "{record:?} {refused:?}");
            assert_eq!(start.resumes, flag.starts_with("--resume"));
            assert_eq!(start.has_no_record(), !start.resumes && is_empty);
        }
    }
    let request = request(Transport::Stream, ApprovalMode::Guarded);
    let there = [("/h/agents/a/claude/projects/-w/c-1.jsonl", USER)];
    assert!(command(&request, &there).contains("--session-id f"));
    let outside = [("/h/agents/a/claude/projects/-w/../x.jsonl", USER)];
    assert!(command_for(&request, "../x", &outside).contains("--session-id f"));
}

#[test]
fn the_profile_is_whole_and_keeps_what_was_there() {
    let state = r#"{"numStartups": 3, "projects": {"/other": {"hasTrustDialogAccepted": true}}}"#;
    let disk = Files(
        [("/h/agents/a/claude/.claude.json", state), ("/u/.claude/.credentials.json", "{}")]
            .map(|(a, b)| (a.to_string(), b.to_string()))
            .into(),
    );
    let files = planned(&request(Transport::Tmux, ApprovalMode::Guarded), &disk).files;
    let text = files.iter().find_map(|file| match file {
        SetupFile::File { path, text } if path.ends_with(".claude.json") => {
            serde_json::from_str::<Value>(text).ok()
        }
        _ => None,
    });
    let text = text.expect("written");
    assert_eq!(text["customApiKeyResponses"]["approved"], json!(["123456789-0123456789"]));
    assert_eq!(
        (text["numStartups"].clone(), text["projects"]["/w"]["hasTrustDialogAccepted"].clone()),
        (json!(3), json!(true))
    );
    assert!(text["projects"]["/other"].is_object());
    let link = |to: &str| SetupFile::Link {
        path: "/h/agents/a/claude/.credentials.json".into(),
        to: to.into(),
    };
    assert!(files.contains(&link("/u/.claude/.credentials.json")));
    let mut elsewhere = request(Transport::Tmux, ApprovalMode::Guarded);
    elsewhere.env.insert("CLAUDE_CONFIG_DIR".into(), "/data/claude".into());
    let disk = Files(
        [("/data/claude/.credentials.json", ""), ("/u/.claude/.credentials.json", "")]
            .map(|(a, b)| (a.into(), b.into()))
            .into(),
    );
    assert!(planned(&elsewhere, &disk).files.contains(&link("/data/claude/.credentials.json")));
}

#[test]
fn hooks_of_an_outer_session_silence_nobody() {
    let disk = Files(BTreeMap::new());
    let plan = |transport: Transport| planned(&request(transport, ApprovalMode::Guarded), &disk);
    for transport in [Transport::Tmux, Transport::Terminal] {
        let plan = plan(transport);
        assert!(
            plan.unset.iter().any(|name| name == ENV_HOOKS)
                && !plan.env.iter().any(|(name, _)| name == ENV_HOOKS)
        );
    }
    let plan = plan(Transport::Stream);
    assert!(
        !plan.unset.iter().any(|name| name == ENV_HOOKS)
            && plan.env.contains(&(ENV_HOOKS.into(), "stop".into()))
    );
    let mut own = request(Transport::Tmux, ApprovalMode::Guarded);
    own.env.insert(ENV_HOOKS.into(), "stop".into());
    let plan = planned(&own, &disk);
    assert!(!plan.unset.iter().any(|name| name == ENV_HOOKS));
}
