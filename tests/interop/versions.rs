//! Hub, runner and tools of this version and of an older one, in every pair, with messages in
//! flight; and the way from the older to this one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use super::installed;
use super::support::{BIN, Machine, Running, ignored, wait_for};

/// The older version: `OLD_BIN`, or what `tests/interop/old.sh` has built. `make test` alone does
/// not build it; `make interop` does, and fails where it cannot, except in a clone without history.
fn old() -> Option<PathBuf> {
    let built = || Some(installed().join("old/agent-relay-08d390c")).filter(|path| path.is_file());
    let found = std::env::var_os("OLD_BIN").map(PathBuf::from).or_else(built);
    if found.is_none() {
        ignored("no older version is built (make interop does, except in a clone without history)");
    }
    found
}

/// One home whose parts may be of different versions.
struct Mixed {
    machine: Machine,
    hub: PathBuf,
    runner: PathBuf,
    tools: PathBuf,
}

impl Mixed {
    fn start(&self, program: &Path, arguments: &[&str]) -> Running {
        let mut command = self.machine.command(&program.to_string_lossy());
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        Running { child: child.expect("starts") }
    }

    fn start_hub(&self) -> Running {
        let port = self.machine.config()["relayUrl"]
            .as_str()
            .and_then(|url| url.rsplit(':').next())
            .unwrap_or("0")
            .to_string();
        let hub = self.start(&self.hub, &["hub", "--port", &port]);
        wait_for("the hub to listen", 30, || {
            let info: Value = serde_json::from_str(
                &std::fs::read_to_string(self.machine.home.join("hub/hub.json")).ok()?,
            )
            .ok()?;
            (info["pid"] == hub.child.id()).then_some(())
        });
        hub
    }

    fn start_runner(&self) -> Running {
        let state = self.machine.home.join("demo").to_string_lossy().into_owned();
        let demo = self.runner.to_string_lossy().into_owned();
        let runner = self.start(
            &self.runner,
            &[
                "run",
                "acp",
                "--agent-id",
                "a",
                "--approval",
                "open",
                "--",
                &demo,
                "demo-agent",
                "--state",
                &state,
            ],
        );
        wait_for("the agent at the hub", 60, || (self.card()["connected"] == true).then_some(()));
        runner
    }

    /// What a tool says; it must succeed.
    #[track_caller]
    fn say(&self, arguments: &[&str]) -> String {
        let output = self
            .machine
            .command(&self.tools.to_string_lossy())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}{}", self.machine.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        self.say(arguments).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn card(&self) -> Value {
        self.lines(&["agents", "--json"])
            .into_iter()
            .find(|card| card["id"] == "a")
            .unwrap_or_default()
    }

    fn send(&self, text: &str) -> u64 {
        self.lines(&["send", "a", "--json", text])[0]["id"].as_u64().expect("id")
    }

    fn answered(&self) -> BTreeMap<u64, u32> {
        let mut times = BTreeMap::new();
        for line in self
            .lines(&["inbox", "--all", "--json", "--limit", "1000"])
            .into_iter()
            .filter(|line| line["kind"] == "chat")
        {
            let more = line["payload"]["answers"].as_array().cloned().unwrap_or_default();
            let ids: std::collections::BTreeSet<u64> =
                more.iter().filter_map(Value::as_u64).chain(line["replyTo"].as_u64()).collect();
            ids.into_iter().for_each(|id| *times.entry(id).or_default() += 1);
        }
        times
    }

    #[track_caller]
    fn settle(&self, ids: &[u64]) {
        wait_for("everything to be delivered and answered", 90, || {
            let (delivered, answered) = (self.machine.delivered(), self.answered());
            ids.iter()
                .all(|id| delivered.contains_key(id) && answered.contains_key(id))
                .then_some(())
        });
        let (delivered, answered) = (self.machine.delivered(), self.answered());
        for id in ids {
            assert_eq!(
                (delivered[id], answered[id]),
                (1, 1),
                "#{id} delivered and answered\n{}",
                self.machine.logs()
            );
        }
    }

    /// The operator's token of the older store may do all that there is to do now, so runners of
    /// either version make theirs with it and register; and an older tool with an agent's token
    /// shows the others' cards.
    fn takes_runners_of_both_versions(&self, old: &Path) {
        let own = &self.lines(&["whoami", "--json"])[0]["token"];
        let scopes = own["scopes"].as_array().expect("scopes");
        assert!(
            own["profileId"] == "operator" && scopes.iter().any(|scope| scope == "token:issue"),
            "{own}"
        );
        for (name, program) in [("older", old), ("newer", Path::new(BIN))] {
            let demo = program.to_string_lossy().into_owned();
            let mut runner = self.start(
                program,
                &["run", "acp", "--quiet", "--agent-id", name, "--", &demo, "demo-agent"],
            );
            let card = || {
                self.lines(&["agents", "--json"])
                    .into_iter()
                    .find(|card| card["id"] == name && card["connected"] == true)
            };
            wait_for("the agent at the hub", 60, card);
            runner.terminate();
            runner.wait(30);
        }
        let token = self.say(&["token", "create", "--agent", "older"]);
        let mut command = self.machine.command(&old.to_string_lossy());
        let output = command
            .args(["agents"])
            .env("AGENT_RELAY_TOKEN", token.trim())
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && said.lines().any(|line| line.starts_with("a ")),
            "{said}"
        );
    }

    /// Messages, a task, a command, and a hub that dies while messages are in flight.
    fn works(&self) {
        let mut hub = self.start_hub();
        let _runner = self.start_runner();
        let mut ids: Vec<u64> = (0..3).map(|n| self.send(&format!("hello {n}"))).collect();
        self.settle(&ids);
        self.say(&["send", "a", "--task", "a task"]);
        wait_for("the end of the task", 60, || {
            self.lines(&["tasks", "--json"])
                .iter()
                .all(|task| task["status"] == "done")
                .then_some(())
        });
        ids.push(self.send("work 3"));
        wait_for("the turn", 30, || (self.card()["status"] == "busy").then_some(()));
        ids.extend((0..5).map(|n| self.send(&format!("in flight {n}"))));
        hub.kill();
        let _hub = self.start_hub();
        self.settle(&ids);
        assert!(self.say(&["command", "a", "interrupt"]).contains("succeeded"));
    }
}

#[test]
#[ignore = "make interop runs it"]
fn every_pair_of_versions_works() {
    let Some(old) = old() else { return };
    let new = PathBuf::from(BIN);
    let pairs: Vec<[&PathBuf; 3]> = (1..8u32)
        .map(|bits| [0, 1, 2].map(|at| if bits >> at & 1 == 1 { &old } else { &new }))
        .collect();
    std::thread::scope(|scope| {
        let tests: Vec<_> = pairs
            .into_iter()
            .map(|[hub, runner, tools]| {
                let word = |program: &PathBuf| if *program == old { "old" } else { "new" };
                let name =
                    format!("hub {}, runner {}, tools {}", word(hub), word(runner), word(tools));
                let mixed = Mixed {
                    machine: Machine::new("versions"),
                    hub: hub.clone(),
                    runner: runner.clone(),
                    tools: tools.clone(),
                };
                (name, scope.spawn(move || mixed.works()))
            })
            .collect();
        for (name, test) in tests {
            test.join().unwrap_or_else(|_| panic!("does not work: {name}"));
            println!("interop: {name}: works");
        }
    });
}

/// An update in the middle of traffic, both parts killed; afterwards the older version leaves the
/// newer stores as they are.
#[test]
#[ignore = "make interop runs it"]
fn an_update_in_the_middle_of_traffic_loses_nothing_and_cannot_be_taken_back_by_mistake() {
    let Some(old) = old() else { return };
    let mut mixed = Mixed {
        machine: Machine::new("update"),
        hub: old.clone(),
        runner: old.clone(),
        tools: BIN.into(),
    };
    let mut hub = mixed.start_hub();
    let mut runner = mixed.start_runner();
    let mut ids = vec![mixed.send("hello")];
    mixed.settle(&ids);
    ids.push(mixed.send("work 30"));
    wait_for("the turn", 30, || (mixed.card()["status"] == "busy").then_some(()));
    ids.extend((0..5).map(|n| mixed.send(&format!("in flight {n}"))));
    runner.kill();
    hub.kill();
    (mixed.hub, mixed.runner) = (BIN.into(), BIN.into());
    let mut hub = mixed.start_hub();
    let mut runner = mixed.start_runner();
    ids.push(mixed.send("after the update"));
    mixed.settle(&ids);
    mixed.takes_runners_of_both_versions(&old);
    for running in [&mut runner, &mut hub] {
        running.terminate();
        running.wait(30);
    }
    let stores =
        ["hub/hub.sqlite", "agents/a/store.sqlite"].map(|name| mixed.machine.home.join(name));
    let before = stores.clone().map(|path| std::fs::read(path).expect("reads"));
    let demo = old.to_string_lossy().into_owned();
    for arguments in [
        vec!["hub", "--port", "0"],
        vec!["run", "acp", "--quiet", "--agent-id", "a", "--", &demo, "demo-agent"],
    ] {
        let (code, text) = mixed.start(&old, &arguments).wait(30);
        assert!(code == 2 && text.contains("newer"), "{arguments:?}: {code} {text}");
    }
    let after = stores.map(|path| std::fs::read(path).expect("reads"));
    assert!(before == after, "the older version has changed a newer store");
}
