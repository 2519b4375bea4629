//! Real agents from their packages, through hub and runner, against a model server of our own on
//! loopback. What counts is what the model saw. `make interop` installs them, sets INTEROP_DIR and
//! runs these tests; all others ignore them.

#[path = "../it/support.rs"]
#[allow(dead_code)]
mod support;

mod claude;
mod codex;
mod long;
mod loops;
mod model;
mod tools;
mod versions;

use std::path::PathBuf;

use agent_relay::os;
use model::Model;
use serde_json::{Value, json};
use support::{Machine, Running, http, ran, wait_for};

/// Patience for programs that need seconds to start on a busy machine.
const LONG: u64 = 60;

struct Agent {
    preset: String,
    machine: Machine,
    model: Model,
    hub: Option<Running>,
    _runner: Running,
}

/// The folder that `make interop` has installed into.
fn installed() -> PathBuf {
    let dir =
        std::env::var_os("INTEROP_DIR").map(PathBuf::from).expect("make interop sets INTEROP_DIR");
    assert!(dir.join("bin").is_dir(), "make interop installs into {}", dir.display());
    dir.canonicalize().expect("a folder")
}

impl Agent {
    /// A cleared environment, a temporary home, loopback endpoints only.
    fn start(preset: &str) -> Agent {
        let dir = installed();
        ran("acp");
        let model = Model::start();
        let mut machine = Machine::new(preset);
        let port = model.port;
        let temporary = machine.home.with_file_name("tmp");
        std::fs::create_dir_all(&temporary).expect("temp dir");
        machine.set("PATH", &format!("{}:/usr/bin:/bin", dir.join("bin").display()));
        machine.set("TMPDIR", &temporary.to_string_lossy());
        let config = machine.home.join(".config/opencode");
        std::fs::create_dir_all(&config).expect("config");
        let provider = json!({"model": "fake/m", "enabled_providers": ["fake"], "agent": {"title": {"disable": true}},
            "provider": {"fake": {"npm": "@ai-sdk/openai-compatible", "models": {"m": {}},
                "options": {"baseURL": format!("http://127.0.0.1:{port}/v1"), "apiKey": "x"}}}});
        std::fs::write(config.join("opencode.json"), provider.to_string()).expect("config");
        let hub = machine.hub();
        let env = match preset {
            // A closed port as proxy: whatever would leave the machine fails at once.
            "opencode" => {
                json!({"OPENCODE_DISABLE_MODELS_FETCH": "1", "HTTPS_PROXY": "http://127.0.0.1:9",
                "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1,localhost"})
            }
            _ => {
                json!({"ANTHROPIC_BASE_URL": format!("http://127.0.0.1:{port}"), "ANTHROPIC_API_KEY": "x",
                "CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION": "false", "CLAUDE_CODE_MAX_RETRIES": "0"})
            }
        };
        let providers = machine.home.join("providers");
        std::fs::create_dir_all(&providers).expect("folder");
        let restart = json!({"firstMs": 100, "mostMs": 500, "exitsMax": 50});
        std::fs::write(
            providers.join("acp.json"),
            json!({"env": env, "restart": restart}).to_string(),
        )
        .expect("config");
        let runner = machine.start(&["run", "acp", "--preset", preset, "--agent-id", "a"]);
        let agent =
            Agent { preset: preset.into(), machine, model, hub: Some(hub), _runner: runner };
        agent.wait("idle");
        agent
    }

    #[track_caller]
    fn wait(&self, word: &str) {
        wait_for(word, LONG, || (self.machine.status("a")["status"] == word).then_some(()));
    }

    /// Waits; on failure tells what the model saw and what was logged.
    #[track_caller]
    fn waits<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let found =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(what, LONG, look)));
        found.unwrap_or_else(|_| {
            for asked in self.model.asked() {
                let last = asked.body["messages"]
                    .as_array()
                    .and_then(|messages| messages.last())
                    .cloned()
                    .unwrap_or_default();
                println!(
                    "asked {:?}: {}",
                    asked.newest,
                    last.to_string().chars().take(400).collect::<String>()
                );
            }
            panic!("{what} does not come: {}\n{}", self.machine.status("a"), self.machine.logs())
        })
    }

    /// Sends, waits for the answer.
    #[track_caller]
    fn asks(&self, text: &str) -> String {
        let answer = self.machine.ok(&["send", "a", "--wait", "120", "--json", text]);
        let last = answer.lines().last().unwrap_or_default().to_string();
        serde_json::from_str::<Value>(&last).unwrap_or_default()["body"]
            .as_str()
            .unwrap_or_default()
            .to_string()
    }

    #[track_caller]
    fn answer_of(&self, id: u64) -> String {
        self.waits("the answer", || {
            let inbox = self.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
            let messages =
                inbox.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            messages
                .into_iter()
                .find(|message| message["replyTo"] == id)
                .and_then(|m| m["body"].as_str().map(str::to_string))
        })
    }

    #[track_caller]
    fn approval(&self) -> String {
        wait_for("a question", LONG, || {
            let open = self.machine.ok(&["approvals", "--json"]);
            let first = serde_json::from_str::<Value>(open.lines().next()?).ok()?;
            first["approvalId"].as_str().map(str::to_string)
        })
    }

    /// The model has got this message.
    #[track_caller]
    fn wait_asked(&self, text: &str) {
        wait_for("the model to be asked", LONG, || self.model.has_heard(text).then_some(()));
    }

    /// The agent has written the message down. One of them does that before it asks the model, the
    /// other some time after.
    #[track_caller]
    fn wait_written(&self, mark: &str) {
        if self.preset != "claude-agent" {
            return;
        }
        let written = |file: std::fs::DirEntry| {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            text.lines().any(|line| {
                line.contains("\"type\":\"user\"") && line.contains(mark) && line.ends_with('}')
            })
        };
        let projects = self.machine.home.join(".claude/projects");
        self.waits("the message in the transcript", || {
            let folders = std::fs::read_dir(&projects).into_iter().flatten().flatten();
            let mut files = folders.flat_map(|folder| {
                std::fs::read_dir(folder.path()).into_iter().flatten().flatten()
            });
            files.any(written).then_some(())
        });
    }

    fn provider_pid(&self) -> u32 {
        self.machine
            .status("a")
            .pointer("/providerProcess/pid")
            .and_then(Value::as_u64)
            .expect("a process") as u32
    }

    fn kill_provider(&self) {
        os::kill_group(self.provider_pid(), rustix::process::Signal::KILL);
    }
}

fn talks(agent: &Agent) {
    let heard = agent.asks("MARK-ONE hello");
    assert!(heard.contains("Heard:") && heard.contains("MARK-ONE"), "{heard}");
    assert_eq!(agent.model.count("MARK-ONE"), 1);
    assert_eq!(
        agent.machine.status("a").pointer("/session/mode").map(Value::is_string),
        Some(true),
        "its mode is known"
    );
}

fn asks_before_it_acts(agent: &Agent) {
    let made = agent.machine.work.join("made.txt");
    let id = agent.machine.send("a", "MARK-DENY TOOL");
    let approval = agent.approval();
    let status = agent.machine.status("a");
    assert_eq!(status["status"], "blocked", "{status}");
    agent.machine.ok(&["approvals", "deny", &approval]);
    agent.answer_of(id);
    assert!(!made.exists(), "what was denied was not done");
    let id = agent.machine.send("a", "MARK-ALLOW TOOL");
    let approval = agent.approval();
    assert!(!made.exists(), "nothing is done before the answer");
    agent.machine.ok(&["approvals", "approve", &approval]);
    let heard = agent.answer_of(id);
    assert!(heard.contains("MARK-ALLOW"), "{heard}");
    assert_eq!(std::fs::read_to_string(made).expect("the command ran"), "hi\n");
    agent.wait("idle");
}

fn is_interrupted(agent: &Agent) {
    let id = agent.machine.send("a", "MARK-STOP HANG");
    agent.wait_asked("MARK-STOP");
    agent.wait("busy");
    agent.machine.ok(&["command", "a", "interrupt"]);
    agent.wait("idle");
    agent.answer_of(id);
    let heard = agent.asks("MARK-NEXT after the interrupt");
    assert!(heard.contains("MARK-NEXT"), "{heard}");
    assert_eq!((agent.model.count("MARK-NEXT"), agent.model.count("MARK-STOP")), (1, 1));
}

/// Killed in the middle of a turn: the conversation is loaded, and the message is in it exactly
/// once, whether the agent had written it down by then or not.
fn survives_kills(agent: &Agent) {
    for mark in ["MARK-KILLA", "MARK-KILLB"] {
        let id = agent.machine.send("a", &format!("{mark} HANG"));
        agent.wait_asked(mark);
        if mark == "MARK-KILLB" {
            agent.wait_written(mark);
        }
        agent.kill_provider();
        let heard = agent.answer_of(id);
        assert!(heard.contains("Heard:"), "{mark}: {heard}\n{}", agent.machine.logs());
        agent.wait("idle");
        assert_eq!(agent.model.count(mark), 1, "{mark}\n{}", agent.machine.logs());
    }
    let heard = agent.asks("MARK-LAST");
    assert!(heard.contains("MARK-LAST"), "{heard}");
    for mark in ["MARK-ONE", "MARK-KILLA", "MARK-KILLB", "MARK-LAST"] {
        assert_eq!(agent.model.count(mark), 1, "{mark} is in the conversation once");
    }
}

fn tells_errors(agent: &Agent) {
    let heard = agent.asks("MARK-ERR ERR400");
    assert!(heard.contains("the model says no"), "{heard}");
    agent.wait("idle");
    let heard = agent.asks("MARK-WELL");
    assert!(heard.contains("MARK-WELL"), "{heard}");
}

/// The whole story of one agent; at the end nothing is left.
fn story(preset: &str) {
    let agent = Agent::start(preset);
    talks(&agent);
    asks_before_it_acts(&agent);
    is_interrupted(&agent);
    survives_kills(&agent);
    tells_errors(&agent);
    // All that it started carries this variable, wherever it has gone.
    let environment =
        std::fs::read(format!("/proc/{}/environ", agent.provider_pid())).expect("lives");
    let name = "AGENT_RELAY_PROVIDER_SESSION_ID";
    let session = String::from_utf8_lossy(&environment)
        .split('\0')
        .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('=').map(str::to_string))
        .expect("a session");
    assert!(!os::processes_with_env(name, &session).is_empty());
    agent.machine.ok(&["command", "a", "shutdown"]);
    wait_for("the end of all its processes", 30, || {
        os::processes_with_env(name, &session).is_empty().then_some(())
    });
}

#[test]
#[ignore = "make interop runs it"]
fn opencode() {
    story("opencode");
}

#[test]
#[ignore = "make interop runs it"]
fn claude_agent() {
    story("claude-agent");
}
