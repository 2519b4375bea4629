//! Codex sessions: the built binary in front of an app server that behaves like the real one
//! (`tests/agents/codex`) and misbehaves on demand. What reached its model is the judge.

mod chaos;
mod lives;
mod port;
mod second;
mod starts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent_relay::os;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Machine, Running, pause, wait_for};

struct Codex {
    machine: Machine,
    _hub: Running,
    runner: Option<Running>,
}

fn program() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let folder = own.parent().and_then(|deps| deps.parent()).expect("a folder");
    let path = folder.join("examples/codex");
    assert!(path.exists(), "cargo build --examples makes {}", path.display());
    path
}

impl Codex {
    /// Hub and settings; nothing runs yet. Faults of the program stand in its environment.
    fn prepared(name: &str, faults: &[(&str, &str)]) -> Codex {
        let machine = Machine::new(name);
        let mut env = json!({"FAKE_STATE": machine.home.join("fake").to_string_lossy()});
        faults.iter().for_each(|(name, value)| env[name] = json!(value));
        let restart = json!({"firstMs": 50, "mostMs": 200, "exitsMax": 1000});
        let command = program().to_string_lossy().into_owned();
        let config = json!({"command": command, "env": env, "restart": restart});
        std::fs::create_dir_all(machine.home.join("providers")).expect("a folder");
        std::fs::write(machine.home.join("providers/codex.json"), config.to_string())
            .expect("a file");
        let hub = machine.hub();
        Codex { machine, _hub: hub, runner: None }
    }

    fn start(name: &str) -> Codex {
        Codex::started(name, &[])
    }

    fn started(name: &str, faults: &[(&str, &str)]) -> Codex {
        let mut codex = Codex::prepared(name, faults);
        codex.run();
        codex.machine.wait_status("a", "idle");
        codex
    }

    /// Another setting of the provider in the place of the usual one.
    fn configure(&self, name: &str, value: Value) {
        let file = self.machine.home.join("providers/codex.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("reads")).expect("JSON");
        config[name] = value;
        std::fs::write(&file, config.to_string()).expect("writes");
    }

    fn run(&mut self) {
        let words = ["run", "codex", "--headless", "--approval", "guarded", "--agent-id", "a"];
        self.runner = Some(self.machine.start(&words));
    }

    fn pid(&self) -> u32 {
        let status = self.machine.status("a");
        status.pointer("/providerProcess/pid").and_then(Value::as_u64).unwrap_or(0) as u32
    }

    fn kill_server(&self) {
        let pid = self.pid();
        if pid > 1 {
            os::kill(os::process(pid), Signal::KILL);
        }
    }

    /// What reached the model, text by text.
    fn said(&self) -> Vec<Value> {
        let folder = self.machine.home.join("fake");
        let text = std::fs::read_to_string(folder.join("said.jsonl")).unwrap_or_default();
        let mut said: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        // A kill may have come between its record and its log.
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let records = files.filter(|file| file.path().extension().is_some_and(|e| e == "thread"));
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        for record in records.map(|file| read(file.path())) {
            let turns: Vec<Value> = serde_json::from_str(&record).unwrap_or_default();
            let items = turns.iter().flat_map(|turn| turn["items"].as_array()).flatten();
            for item in items.filter(|item| item["type"] == "userMessage") {
                if said.iter().all(|known| known["clientId"] != item["clientId"]) {
                    said.push(item.clone());
                }
            }
        }
        said
    }

    /// How often each message reached it.
    fn delivered(&self) -> BTreeMap<u64, u32> {
        let mut times = BTreeMap::new();
        for said in self.said() {
            let text = said.pointer("/content/0/text").and_then(Value::as_str).unwrap_or_default();
            for header in text.lines().filter_map(|line| line.strip_prefix("[relay message #")) {
                let id = header.split(' ').next().and_then(|id| id.parse().ok()).unwrap_or(0);
                *times.entry(id).or_default() += 1;
            }
        }
        times
    }

    fn answer(&self, id: u64) -> Option<Value> {
        let inbox = self.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        let messages = inbox.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_it = |message: &Value| {
            let ids = message["payload"]["answers"].as_array();
            message["kind"] == "chat"
                && (message["replyTo"] == id || ids.is_some_and(|ids| ids.contains(&json!(id))))
        };
        messages.into_iter().find(is_it)
    }

    #[track_caller]
    fn answered(&self, id: u64) -> String {
        let answer = wait_for(&format!("an answer to #{id}"), 60, || self.answer(id));
        answer["body"].as_str().unwrap_or_default().to_string()
    }

    fn approvals(&self) -> Vec<Value> {
        let open = self.machine.ok(&["approvals", "--json"]);
        open.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn approval(&self) -> String {
        let open = wait_for("an approval", 60, || self.approvals().first().cloned());
        open["approvalId"].as_str().unwrap_or_default().to_string()
    }
}

#[test]
fn a_message_is_answered_and_the_stop_leaves_nothing() {
    let mut codex = Codex::start("codex-simple");
    let first = codex.machine.send("a", "one");
    assert_eq!(codex.answered(first), "done one");
    let status = codex.machine.status("a");
    assert_eq!(status["providerProcess"]["delivery"], "exactly once");
    // Whoever wants to look at it opens the server's own window.
    let spec: Value =
        serde_json::from_str(&codex.machine.ok(&["attach", "a", "--json"])).expect("JSON");
    let thread = status["providerProcess"]["session"].as_str().expect("a thread");
    let words: Vec<&str> =
        spec["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(words[1..3], ["resume", "--remote"]);
    assert!(words[3].starts_with("unix://") && words[4] == thread, "{words:?}");
    let late = codex.machine.send("a", "sleep:60000 two");
    codex.machine.wait_status("a", "busy");
    wait_for("the message to arrive", 30, || codex.delivered().contains_key(&late).then_some(()));
    codex.machine.ok(&["command", "a", "shutdown"]);
    codex.runner.take().expect("it runs").wait(30);
    // The hub alone.
    wait_for("nothing to be left", 10, || (codex.machine.left_over().len() == 1).then_some(()));
}

#[test]
fn a_question_is_decided_by_a_person() {
    let codex = Codex::start("codex-ask");
    for (decision, status) in [("approve", "completed"), ("deny", "declined")] {
        let id = codex.machine.send("a", &format!("ask:touch {decision}"));
        let approval = codex.approval();
        codex.machine.ok(&["approvals", decision, &approval]);
        assert_eq!(codex.answered(id), format!("done {decision}"));
        assert!(codex.approvals().is_empty());
        let mirror = codex.machine.ok(&["inbox", "--all", "--mirror", "--json"]);
        assert!(mirror.contains(status), "{mirror}");
    }
}

#[test]
fn what_waits_during_a_compaction_comes_after_it() {
    let codex = Codex::start("codex-compact");
    let first = codex.machine.send("a", "one");
    codex.answered(first);
    let compact = codex.machine.start(&["command", "a", "compact"]);
    let second = codex.machine.send("a", "two");
    assert_eq!(codex.answered(second), "done two");
    assert_eq!({ compact }.wait(30).0, 0);
    assert_eq!(codex.delivered(), [(first, 1), (second, 1)].into());
    codex.machine.ok(&["command", "a", "clearContext"]);
    let third = codex.machine.send("a", "three");
    assert_eq!(codex.answered(third), "done three");
}

#[test]
fn an_urgent_message_joins_the_turn_and_an_interrupt_ends_it() {
    let codex = Codex::start("codex-urgent");
    let first = codex.machine.send("a", "sleep:1500 one");
    wait_for("the message to arrive", 30, || codex.delivered().contains_key(&first).then_some(()));
    let sent = codex.machine.ok(&["send", "a", "--json", "--urgent", "two"]);
    let sent: Value = serde_json::from_str(&sent).expect("JSON");
    let second = sent["id"].as_u64().expect("an id");
    assert_eq!(codex.answered(first), codex.answered(second), "one turn answers both");
    let third = codex.machine.send("a", "sleep:60000 three");
    wait_for("the message to arrive", 30, || codex.delivered().contains_key(&third).then_some(()));
    codex.machine.ok(&["command", "a", "interrupt"]);
    codex.machine.wait_status("a", "idle");
    assert_eq!(codex.delivered(), [(first, 1), (second, 1), (third, 1)].into());
}

#[test]
fn a_connection_that_breaks_loses_and_doubles_nothing() {
    let codex = Codex::start("codex-drop");
    let before = codex.pid();
    for n in 0..3 {
        let id = codex.machine.send("a", &format!("sleep:100 drop sleep:{} n{n}", n * 400));
        assert_eq!(codex.answered(id), format!("done n{n}"));
        assert_eq!(codex.delivered()[&id], 1);
    }
    assert_eq!(codex.pid(), before, "the server lives on");
}

/// Bytes that a process has used at most.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

#[test]
fn a_flood_of_words_stays_out_of_memory() {
    let codex = Codex::start("codex-flood");
    let id = codex.machine.send("a", "flood:100 end");
    assert_eq!(codex.answered(id), "done end");
    let runner = codex.runner.as_ref().expect("it runs").child.id();
    let most = peak(runner);
    assert!(most > 0 && most < 96 << 20, "{} MiB", most >> 20);
}
