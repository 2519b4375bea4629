//! Both ways to the relay, bus and polling: the same scenarios, one body each, judged by what the
//! agent itself received and by what an operator sees.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use serde_json::Value;

use crate::support::{Machine, Running, pause, wait_for};

/// How runners reach the relay.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Bus,
    /// Something between them and the relay lets no WebSocket through.
    Polling,
}

/// Whatever the bus tells, polling tells within one interval of 20 s; the rest is for a slow
/// machine.
const SECONDS: u64 = 60;
/// A change of status is told within seconds by either way.
const SOON: u64 = 12;

type Scenario = (&'static str, fn(Way));

/// Every scenario with its name.
const SCENARIOS: &[Scenario] = &[
    ("a message and its answer", message_and_answer),
    ("a task is claimed and done", task),
    ("an approval is shown and decided", approval),
    ("an interrupt", interrupt),
    ("an interrupted task waits and is opened again", interrupted_task),
    ("an aborted approval blocks its task", aborted_approval),
    ("what the agent says of its task stays", said_by_the_agent),
    ("a restart goes on with the turn", restart),
    ("a shutdown", shutdown),
    ("a signal ends the runner", signal),
    ("a runner is killed in a turn", killed_runner),
    ("the hub starts anew", hub_restart),
    ("the status and since when", status),
    ("send --wait", send_and_wait),
];

/// Runs every scenario, some at once: most of their time is waiting.
fn run_all(way: Way, at_once: usize) {
    let queue = Mutex::new(SCENARIOS.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("nobody panics with it").next();
                    let Some((name, body)) = next else { return };
                    if catch_unwind(AssertUnwindSafe(|| body(way))).is_err() {
                        failed.lock().expect("nobody panics with it").push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nobody panics with it");
    assert!(failed.is_empty(), "by {way:?} these fail: {failed:?}");
}

#[test]
fn the_bus_brings_everything() {
    run_all(Way::Bus, 2);
}

#[test]
fn polling_brings_everything() {
    run_all(Way::Polling, SCENARIOS.len());
}

struct Scene {
    machine: Machine,
    hub: Running,
    runner: Running,
}

impl Scene {
    fn new(name: &str, way: Way, options: &[&str]) -> Scene {
        let mut machine = Machine::new(&format!("{name}-{way:?}"));
        let hub = machine.hub();
        if way == Way::Polling {
            machine.shut_the_bus();
        }
        let runner = machine.runner_with("a", options, &[]);
        let scene = Scene { machine, hub, runner };
        scene.seen_as("idle", SOON);
        scene
    }

    /// What an operator sees of the agent.
    fn card(&self) -> Option<Value> {
        let output = self.machine.run(&["agents", "--json"]);
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .find_map(|line| serde_json::from_str(line).ok())
    }

    /// Waits until the operator sees this word; the card.
    fn seen_as(&self, word: &str, seconds: u64) -> Value {
        wait_for(&format!("{word} at the relay"), seconds, || {
            pause(60);
            let card = self.card()?;
            let coarse = if word == "blocked" { "busy" } else { word };
            (card["meta"]["status"] == word && card["status"] == coarse).then_some(card)
        })
    }

    fn deliveries(&self, id: u64) -> u32 {
        self.machine.delivered().get(&id).copied().unwrap_or(0)
    }

    fn received(&self, id: u64) {
        wait_for("the agent to receive it", SECONDS, || {
            pause(60);
            (self.deliveries(id) > 0).then_some(())
        });
    }

    fn task(&self, body: &str) -> (String, u64) {
        let task: Value =
            serde_json::from_str(&self.machine.ok(&["send", "a", "--task", "--json", body]))
                .expect("JSON");
        (task["id"].to_string(), task["messageId"].as_u64().expect("an id"))
    }

    fn task_is(&self, id: &str, status: &str) -> Value {
        wait_for(&format!("task {id} to be {status}"), SECONDS, || {
            pause(60);
            let task: Value =
                serde_json::from_str(&self.machine.ok(&["tasks", "show", id, "--json"]))
                    .expect("JSON");
            (task["status"] == status).then_some(task)
        })
    }

    fn command(&self, words: &[&str]) {
        let words: Vec<&str> = ["command", "a"].iter().chain(words).copied().collect();
        let said = self.machine.ok(&words);
        assert!(said.contains("succeeded"), "{words:?}: {said}{}", self.machine.logs());
    }
}

fn message_and_answer(way: Way) {
    let scene = Scene::new("message", way, &["--label", "quiet"]);
    let ids = [scene.machine.send("a", "hello"), scene.machine.send("label:quiet", "and again")];
    scene.machine.settle(&ids, SECONDS);
}

fn task(way: Way) {
    let scene = Scene::new("task", way, &[]);
    let (task, message) = scene.task("hello");
    let done = scene.task_is(&task, "done");
    let words: Vec<&str> = done["history"]
        .as_array()
        .expect("a history")
        .iter()
        .filter_map(|entry| entry["status"].as_str())
        .collect();
    assert_eq!(words, ["open", "claimed", "in_progress", "done"], "{done}");
    scene.machine.settle(&[message], SECONDS);
}

fn approval(way: Way) {
    let scene = Scene::new("approval", way, &["--approval", "guarded"]);
    let id = scene.machine.send("a", "ask");
    scene.received(id);
    let card = scene.seen_as("blocked", SOON);
    assert_eq!(card["meta"]["pendingApprovals"][0]["title"], "rm -rf demo-scratch", "{card}");
    let open: Value =
        serde_json::from_str(&scene.machine.ok(&["approvals", "--json"])).expect("one is open");
    let late = scene.machine.fails(1, &["send", "a", "--wait", "1", "and you?"]);
    assert!(late.contains("a waits for an approval"), "{late}");
    scene.machine.ok(&["approvals", "approve", open["approvalId"].as_str().expect("an id")]);
    scene.machine.settle(&[id], SECONDS);
    assert!(scene.machine.ok(&["inbox"]).contains("You allowed it."));
    wait_for("no open approval", SOON, || {
        (scene.machine.ok(&["approvals"]) == "no open approvals").then_some(())
    });
}

fn interrupt(way: Way) {
    let scene = Scene::new("interrupt", way, &[]);
    let id = scene.machine.send("a", "hang");
    scene.received(id);
    scene.seen_as("busy", SOON);
    scene.command(&["interrupt", "--reason", "enough"]);
    scene.machine.settle(&[id], SECONDS);
    assert!(scene.machine.ok(&["inbox"]).contains("interrupted"));
    scene.seen_as("idle", SOON);
}

fn interrupted_task(way: Way) {
    let scene = Scene::new("interrupted-task", way, &[]);
    let (task, message) = scene.task("slow 600");
    scene.received(message);
    scene.seen_as("busy", SOON);
    scene.command(&["interrupt", "--reason", "not now"]);
    let blocked = scene.task_is(&task, "blocked");
    let why = blocked["history"]
        .as_array()
        .and_then(|entries| entries.last())
        .map(|entry| entry["body"].clone())
        .unwrap_or_default();
    assert_eq!(why, "interrupted by user: not now", "{blocked}");
    let shown = scene.machine.ok(&["tasks"]);
    assert!(
        shown.contains("not now") && shown.contains(&format!("agent-relay tasks reopen {task}")),
        "{shown}"
    );
    scene.seen_as("idle", SOON);
    // Whatever is polled or said meanwhile: it is not started again by itself.
    let other = scene.machine.send("a", "hello");
    scene.machine.settle(&[other], SECONDS);
    assert_eq!(scene.deliveries(message), 1);
    assert!(!scene.machine.answered().contains_key(&message), "whoever goes on with it answers");
    scene.machine.ok(&["tasks", "reopen", &task]);
    wait_for("the agent to receive it again", SECONDS, || {
        pause(60);
        (scene.deliveries(message) == 2).then_some(())
    });
    // It runs for ten minutes: whoever sent it may end it instead.
    scene.machine.ok(&["tasks", "cancel", &task]);
    assert_eq!(scene.task_is(&task, "cancelled")["status"], "cancelled");
}

fn aborted_approval(way: Way) {
    let scene = Scene::new("aborted", way, &["--approval", "guarded"]);
    let (task, message) = scene.task("ask");
    scene.received(message);
    scene.seen_as("blocked", SOON);
    let open: Value =
        serde_json::from_str(&scene.machine.ok(&["approvals", "--json"])).expect("one is open");
    scene.machine.ok(&[
        "approvals",
        "abort",
        open["approvalId"].as_str().expect("an id"),
        "--reason",
        "too dangerous",
    ]);
    let blocked = scene.task_is(&task, "blocked");
    let why = blocked["history"]
        .as_array()
        .and_then(|entries| entries.last())
        .map(|entry| entry["body"].clone())
        .unwrap_or_default();
    assert_eq!(why, "an approval was aborted by user: too dangerous", "{blocked}");
}

fn said_by_the_agent(way: Way) {
    let scene = Scene::new("said", way, &[]);
    let made = scene.machine.ok(&["token", "create", "--agent", "a", "--json"]);
    let token = serde_json::from_str::<Value>(&made).expect("JSON")["token"]
        .as_str()
        .expect("a token")
        .to_string();
    let (task, message) = scene.task("slow 4");
    scene.received(message);
    scene.task_is(&task, "in_progress");
    let mut tool = scene.machine.command(crate::support::BIN);
    let said = tool
        .env("AGENT_RELAY_TOKEN", token)
        .args(["tasks", "block", &task, "needs a key"])
        .output()
        .expect("runs");
    assert!(said.status.success(), "{said:?}");
    scene.seen_as("idle", SECONDS);
    // The runner's own report has come and gone by the time that a later message is answered.
    let other = scene.machine.send("a", "hello");
    scene.machine.settle(&[other], SECONDS);
    let shown = scene.task_is(&task, "blocked");
    let words: Vec<&str> = shown["history"]
        .as_array()
        .expect("a history")
        .iter()
        .filter_map(|entry| entry["status"].as_str())
        .collect();
    assert_eq!(words, ["open", "claimed", "in_progress", "blocked"], "{shown}");
    assert!(scene.machine.ok(&["tasks"]).contains("needs a key"));
    scene.machine.ok(&["tasks", "reopen", "--all"]);
    scene.task_is(&task, "done");
    assert_eq!(scene.deliveries(message), 2);
}

fn restart(way: Way) {
    let scene = Scene::new("restart", way, &[]);
    let id = scene.machine.send("a", "hang");
    scene.received(id);
    scene.command(&["restart"]);
    scene.machine.settle(&[id], SECONDS);
    assert!(scene.machine.ok(&["inbox"]).contains("restarted and went on"));
}

fn shutdown(way: Way) {
    let mut scene = Scene::new("shutdown", way, &[]);
    scene.command(&["shutdown"]);
    assert_eq!(scene.runner.wait(60).0, 0);
    let card =
        wait_for("the end", SOON, || scene.card().filter(|card| card["ended"]["why"].is_string()));
    assert_eq!(card["ended"]["why"], "stopped by the command shutdown of user", "{card}");
}

fn signal(way: Way) {
    let mut scene = Scene::new("signal", way, &[]);
    scene.runner.terminate();
    assert_eq!(scene.runner.wait(60).0, 0);
    // Its last word, not the relay's guess after a minute of silence.
    let card = wait_for("the last status", SOON, || {
        scene.card().filter(|card| card["status"] == "offline")
    });
    assert_eq!(
        (card["meta"]["status"].as_str(), card["ready"].as_bool()),
        (Some("offline"), Some(false)),
        "{card}"
    );
}

fn killed_runner(way: Way) {
    let mut scene = Scene::new("killed", way, &[]);
    let id = scene.machine.send("a", "hang");
    scene.received(id);
    scene.runner.kill();
    scene.runner = scene.machine.runner("a");
    scene.machine.settle(&[id], SECONDS);
}

fn hub_restart(way: Way) {
    let mut scene = Scene::new("hub", way, &[]);
    let first = scene.machine.send("a", "slow 3");
    scene.received(first);
    scene.hub.kill();
    scene.hub = scene.machine.hub();
    let second = scene.machine.send("a", "hello");
    scene.machine.settle(&[first, second], SECONDS + 20);
}

fn status(way: Way) {
    let scene = Scene::new("status", way, &[]);
    let id = scene.machine.send("a", "hang");
    scene.received(id);
    let card = scene.seen_as("busy", SOON);
    let truth = scene.machine.status("a");
    assert_eq!(card["meta"]["statusSince"], truth["since"], "{card}");
    assert!(
        card["meta"]["statusWhy"].as_str().is_some_and(|why| why.contains("provider-turn")),
        "{card}"
    );
    assert_eq!(
        truth["connection"]["state"],
        if way == Way::Bus { "registered" } else { "polling" }
    );
    assert!(scene.machine.ok(&["agents"]).contains("busy"));
}

fn send_and_wait(way: Way) {
    let scene = Scene::new("wait", way, &[]);
    let answer = scene.machine.ok(&["send", "a", "--wait", &SECONDS.to_string(), "hello"]);
    assert!(answer.contains("hello"), "{answer}");
}
