//! Claude sessions in real tmux, with a program that behaves like the real one at its terminal
//! (`tests/agents/claude`) and misbehaves on demand. What its transcript holds is the judge.

mod chaos;
mod delivery;
mod lives;
mod looked;
mod persons;
mod stand_in;
mod starts;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;

use agent_relay::core::rng::Rng;
use agent_relay::os;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{BIN, Machine, Running, pause, ran, skip, variable, wait_for};

struct Claude {
    machine: Machine,
    hub: Option<Running>,
    runner: Option<Running>,
}

pub fn program() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let path =
        own.parent().and_then(|deps| deps.parent()).expect("a folder").join("examples/claude");
    assert!(path.exists(), "cargo build --examples makes {}", path.display());
    path
}

/// Scenarios need tmux; where it is missing they are skipped.
pub fn has_tmux() -> bool {
    let found = std::process::Command::new("tmux")
        .arg("-V")
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skip("tmux is missing; install it with: sudo apt-get install tmux");
    }
    found
}

impl Claude {
    fn prepared(name: &str, faults: &[(&str, &str)]) -> Claude {
        let mut machine = Machine::new(name);
        let tmux = machine.home.with_file_name("t");
        std::fs::create_dir_all(&tmux).expect("folder");
        machine.set("TMUX_TMPDIR", &tmux.to_string_lossy());
        machine.set("LANG", "C.UTF-8");
        let mut env: BTreeMap<&str, String> =
            faults.iter().map(|(name, value)| (*name, value.to_string())).collect();
        env.insert("FAKE_STATE", machine.home.join("fake").to_string_lossy().into_owned());
        let restart = json!({"firstMs": 50, "mostMs": 200, "exitsMax": 1000});
        let config = json!({"command": program().to_string_lossy(), "isolated": true, "env": env, "restart": restart});
        std::fs::create_dir_all(machine.home.join("providers")).expect("folder");
        std::fs::write(machine.home.join("providers/claude.json"), config.to_string())
            .expect("config");
        let hub = machine.hub();
        Claude { machine, hub: Some(hub), runner: None }
    }

    fn start(name: &str, faults: &[(&str, &str)]) -> Claude {
        let mut claude = Claude::prepared(name, faults);
        claude.run();
        claude.machine.wait_status("a", "idle");
        claude
    }

    fn run(&mut self) {
        ran("tmux");
        self.runner = Some(self.machine.start(&["run", "claude", "--headless", "--agent-id", "a"]));
    }

    fn pid(&self) -> u32 {
        self.machine
            .status("a")
            .pointer("/providerProcess/pid")
            .and_then(Value::as_u64)
            .unwrap_or(0) as u32
    }

    fn tmux(&self, words: &[&str]) -> String {
        let status = self.machine.status("a");
        let socket = status
            .pointer("/terminal/tmuxSocket")
            .and_then(Value::as_str)
            .unwrap_or("none")
            .to_string();
        let output = self
            .machine
            .command("tmux")
            .args(["-S", &socket])
            .args(words)
            .output()
            .expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "agent"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "agent"])
    }

    /// Prompts of the conversations, as the transcripts hold them.
    fn prompts(&self) -> Vec<String> {
        let folder = self.machine.home.join("agents/a/claude/projects/-fake");
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let texts: Vec<String> =
            files.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default()).collect();
        let lines = texts
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["type"] == "user")
            .filter_map(|line| line["message"]["content"].as_str().map(str::to_string))
            .collect()
    }

    fn count(&self, mark: &str) -> usize {
        self.prompts().iter().map(|prompt| prompt.matches(mark).count()).sum()
    }

    #[track_caller]
    fn once(&self, mark: &str) {
        wait_for(mark, 60, || (self.count(mark) > 0).then_some(()));
        assert_eq!(self.count(mark), 1, "{mark}: {:?}\n{}", self.prompts(), self.machine.logs());
    }

    fn seen(&self) -> String {
        std::fs::read_to_string(self.machine.home.join("fake/seen.log")).unwrap_or_default()
    }

    #[track_caller]
    fn answered(&self, id: u64) -> String {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the answer", 60, || {
                let inbox = self.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
                let messages: Vec<Value> =
                    inbox.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
                let mine = |message: &&Value| {
                    message["replyTo"] == id
                        || message["payload"]["answers"]
                            .as_array()
                            .is_some_and(|ids| ids.contains(&json!(id)))
                };
                messages
                    .iter()
                    .find(mine)
                    .and_then(|message| message["body"].as_str().map(str::to_string))
            })
        }));
        found.unwrap_or_else(|_| {
            panic!(
                "no answer to {id}: {}\n{}\n{}",
                self.screen(),
                self.machine.status("a"),
                self.machine.logs()
            )
        })
    }

    #[track_caller]
    fn asks(&self, text: &str) -> String {
        let id = self.machine.send("a", text);
        self.answered(id)
    }

    fn send_as(&self, agent: &str, text: &str) {
        let made = self.machine.ok(&["token", "create", "--agent", agent, "--json"]);
        let token = serde_json::from_str::<Value>(&made).expect("JSON")["token"]
            .as_str()
            .expect("a token")
            .to_string();
        let sent = self
            .machine
            .command(BIN)
            .args(["send", "a", text])
            .env("AGENT_RELAY_TOKEN", token)
            .output()
            .expect("runs");
        assert!(sent.status.success(), "{sent:?}");
    }

    #[track_caller]
    fn approval(&self) -> String {
        wait_for("an approval", 60, || {
            let open = self.machine.ok(&["approvals", "--json"]);
            serde_json::from_str::<Value>(open.lines().next()?).ok()?["approvalId"]
                .as_str()
                .map(str::to_string)
        })
    }
}
