//! Plans of a start.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::provider::launch::LaunchPlan;
use crate::provider::settings::{ProviderSettings, SessionSettings};

/// A disk with these files.
struct Files(&'static [&'static str]);

impl Disk for Files {
    fn read(&self, _: &str) -> Option<String> {
        None
    }

    fn exists(&self, path: &str) -> bool {
        self.0.contains(&path)
    }

    fn has_line(&self, _: &str, _: fn(&[u8]) -> bool) -> bool {
        false
    }

    fn list(&self, path: &str) -> Vec<String> {
        let below = self.0.iter().filter_map(|file| file.strip_prefix(path)?.strip_prefix('/'));
        let mut names: Vec<String> =
            below.map(|rest| rest.split('/').next().unwrap_or_default().to_string()).collect();
        names.dedup();
        names
    }
}

fn request() -> LaunchRequest {
    LaunchRequest {
        session: SessionSettings {
            agent: "web".into(),
            cwd: "/work \"x\"".into(),
            approval_mode: ApprovalMode::Guarded,
            mode: None,
            approval_timeout: Duration::from_secs(5),
            capture_full: false,
        },
        transport: Transport::Stream,
        command: None,
        settings: ProviderSettings::default(),
        default_args: Vec::new(),
        args: Vec::new(),
        explicit_replies: false,
        home: "/home/u/.agent-relay".into(),
        dir: "/home/u/.agent-relay/agents/web".into(),
        user_home: "/home/u".into(),
        runtime_dir: "/home/u/.agent-relay/agents/web/run".into(),
        at_port: false,
        bin: "/bin/agent-relay".into(),
        is_root: false,
        env: BTreeMap::new(),
    }
}

fn planned(request: &LaunchRequest) -> Result<LaunchPlan, String> {
    let conversation = Conversation { earlier: "", refused: None, fresh: "f" };
    let files = Files(&["/home/u/.codex/auth.json"]);
    plan(request, conversation, &files).map_err(|error| error.text)
}

#[test]
fn the_server_listens_where_only_its_user_gets_in() {
    let plan = planned(&request()).expect("a plan");
    let socket = "/home/u/.agent-relay/agents/web/run/codex.sock";
    assert_eq!(plan.argv[..4], ["codex", "app-server", "--listen", &format!("unix://{socket}")]);
    assert_eq!(plan.files, [SetupFile::Folder("/home/u/.agent-relay/agents/web/run".into())]);
    assert!(plan.is_server && plan.unset.contains(&"CODEX_THREAD_ID".to_string()));
    assert_eq!(plan.port, None);
}

/// What was asked for, whether the version has said that it has no unix sockets, and how long the
/// path of one is, decide where it is told to listen.
#[test]
fn a_server_without_unix_sockets_is_told_to_listen_at_a_port_behind_a_token() {
    let short = "/home/u/.agent-relay/agents/web/run".to_string();
    let long = format!("/{}", "x".repeat(95));
    for (asked, at_port, folder, want) in [
        (None, false, &short, Ok(false)),
        (None, true, &short, Ok(true)),
        (None, false, &long, Ok(true)),
        (Some("unix"), false, &short, Ok(false)),
        (Some("unix"), false, &long, Err("AGENT_RELAY_HOME")),
        (Some("ws"), false, &short, Ok(true)),
        (Some("ws"), true, &long, Ok(true)),
        (Some("tcp"), false, &short, Err("unix or ws")),
        (Some(""), false, &short, Err("unix or ws")),
    ] {
        let mut asking = LaunchRequest { runtime_dir: folder.clone(), at_port, ..request() };
        asking.settings.app_server = asked.map(String::from);
        let plan = match (planned(&asking), want) {
            (Ok(plan), Ok(want)) => {
                assert_eq!(plan.port.is_some(), want, "{asked:?} {at_port} {folder}");
                plan
            }
            (Err(why), Err(want)) => {
                assert!(why.contains(want), "{why}");
                continue;
            }
            (plan, _) => panic!("{asked:?} {at_port} {folder}: {:?}", plan.map(|plan| plan.argv)),
        };
        let tells_url = plan.env.iter().any(|(name, _)| name == "CODEX_APP_SERVER_URL");
        let forgets_url = plan.unset.contains(&"CODEX_APP_SERVER_URL".to_string());
        assert_eq!((tells_url, forgets_url), (plan.port.is_none(), plan.port.is_some()));
        if let Some(port) = plan.port {
            let file = format!("{folder}/codex.token");
            let words =
                ["ws://127.0.0.1:0", "--ws-auth", "capability-token", "--ws-token-file", &file];
            assert_eq!(plan.argv[3..8], words);
            assert_eq!(port, ServerPort { token_file: file, token_env: TOKEN_ENV });
            assert!(plan.files.contains(&SetupFile::Folder(folder.clone())), "closed to others");
        }
    }
}

#[test]
fn what_was_asked_for_is_said_as_settings() {
    let mut asked = LaunchRequest { bin: String::new(), ..request() };
    asked.settings.model = Some("gpt-5.5".into());
    asked.settings.effort = Some("high\" x".into());
    asked.default_args = vec!["--enable".into(), "a".into()];
    asked.args = vec!["-c".into(), "b=1".into()];
    let plan = planned(&asked).expect("a plan");
    let words = plan.argv[4..].join(" ");
    assert_eq!(
        words,
        "-c features.instant_interrupt=false -c tool_output_token_limit=12000 -c model=\"gpt-5.5\" \
         -c model_reasoning_effort=\"high\\\" x\" --enable a -c b=1"
    );
}

#[test]
fn tools_are_told_without_what_they_find_and_ask_nobody() {
    let mut asked = request();
    asked.env.insert("AGENT_RELAY_URL".into(), "http://secret@relay".into());
    let words = planned(&asked).expect("a plan").argv.join(" ");
    for part in [
        "-c mcp_servers.relay.command=\"/bin/agent-relay\" -c mcp_servers.relay.args=[\"mcp\"]",
        "-c mcp_servers.relay.default_tools_approval_mode=\"approve\"",
        "\"AGENT_RELAY_URL\"",
    ] {
        assert!(words.contains(part), "{part} in {words}");
    }
    assert!(!words.contains("secret"), "{words}");
    for explicit in [false, true] {
        asked.explicit_replies = explicit;
        let text = relay_text(&asked);
        assert!(text.contains("mcp__relay") && text.len() <= 1000, "{} {text}", text.len());
    }
    let profile = r#"{"relay": {"mcp": false, "context": false}}"#;
    asked.env.insert("AGENT_RELAY_AGENT_PROFILE_JSON".into(), profile.into());
    assert!(!planned(&asked).expect("a plan").argv.join(" ").contains("mcp_servers"));
    assert_eq!(thread(&asked).get("developerInstructions"), None);
}

#[test]
fn each_approval_mode_has_its_sandbox_and_is_told_what_works_in_it() {
    for (mode, policy, sandbox, told) in [
        (ApprovalMode::Open, "never", "danger-full-access", "agent-relay send"),
        (ApprovalMode::Guarded, "on-request", "workspace-write", "ask for escalation"),
        (ApprovalMode::ReadOnly, "never", "read-only", "does not work"),
    ] {
        let mut asked = LaunchRequest { bin: String::new(), ..request() };
        asked.session.approval_mode = mode;
        let thread = thread(&asked);
        assert_eq!(
            (&thread["approvalPolicy"], &thread["sandbox"]),
            (&json!(policy), &json!(sandbox))
        );
        assert!(thread["developerInstructions"].as_str().is_some_and(|text| text.contains(told)));
        asked.session.mode = Some("untrusted".into());
        assert_eq!(super::thread(&asked)["approvalPolicy"], "untrusted");
        asked.explicit_replies = true;
        assert_eq!(planned(&asked).is_err(), mode == ApprovalMode::ReadOnly, "{mode:?}");
        // A tool reaches the relay from every sandbox.
        asked.bin = request().bin;
        assert!(planned(&asked).is_ok() && relay_text(&asked).contains("mcp__relay"));
    }
}

#[test]
fn a_home_of_its_own_is_written_anew_with_the_login_linked() {
    let mut asked = request();
    asked.settings.isolated = true;
    let plan = planned(&asked).expect("a plan");
    let home = "/home/u/.agent-relay/agents/web/codex";
    assert!(plan.env.contains(&("CODEX_HOME".into(), home.into())));
    let text = "[projects.\"/work \\\"x\\\"\"]\ntrust_level = \"trusted\"\n".to_string();
    assert!(plan.files.contains(&SetupFile::File { path: format!("{home}/config.toml"), text }));
    let link = SetupFile::Link {
        path: format!("{home}/auth.json"),
        to: "/home/u/.codex/auth.json".into(),
    };
    assert!(plan.files.contains(&link));
    asked.dir = "/tmp/x/agents/web".into();
    assert!(planned(&asked).is_err_and(|why| why.contains("/tmp")));
}

#[test]
fn the_program_behind_the_script_of_npm_is_found() {
    let beside = Files(&["/n/@openai/codex-linux-x64/vendor/x86_64/bin/codex"]);
    let below =
        Files(&["/n/@openai/codex/node_modules/@openai/codex-linux-arm64/vendor/a/bin/codex"]);
    let inside = Files(&["/n/@openai/codex/vendor/x86_64/bin/codex"]);
    for files in [beside, below, inside] {
        assert_eq!(native("/n/@openai/codex/bin/codex.js", &files).as_deref(), Some(files.0[0]));
        assert_eq!(native("/usr/local/bin/codex", &files), None, "a script of somebody's own");
    }
    assert_eq!(native("/n/@openai/codex/bin/codex.js", &Files(&[])), None);
}
