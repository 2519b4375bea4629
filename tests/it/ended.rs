//! Agents that are stopped: the same for every way, and what people can do about those that will
//! not come back.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Machine, Running, wait_for};

fn cards(machine: &Machine) -> Vec<Value> {
    let told = machine.ok(&["agents", "--json"]);
    told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Status and reason of an agent that is not there.
fn end_of(machine: &Machine, agent: &str) -> (String, String) {
    let ended = wait_for("its end", 60, || {
        let card = cards(machine).into_iter().find(|card| card["id"] == agent)?;
        card["ended"]["why"].is_string().then(|| card["ended"].clone())
    });
    assert!(ended["since"].as_i64().is_some_and(|at| at > 0), "{ended}");
    let text = |name: &str| ended[name].as_str().expect("text").to_string();
    (text("status"), text("why"))
}

fn signal(runner: &mut Running, signal: Signal) {
    let pid = Pid::from_raw(runner.child.id() as i32).expect("a pid");
    kill_process(pid, signal).expect("ours");
    runner.wait(60);
}

#[test]
fn every_way_of_stopping_leaves_an_agent_with_its_reason_and_messages_wait() {
    let machine = Machine::new("ended");
    let mut hub = machine.hub();
    type Way = fn(&Machine, &str, &mut Running);
    let ways: [(&str, Way, &str); 4] = [
        (
            "command",
            |machine, agent, runner| {
                machine.ok(&["command", agent, "shutdown", "--reason", "for the night"]);
                runner.wait(60);
            },
            "stopped by the command shutdown of user (for the night)",
        ),
        ("service", |_, _, runner| signal(runner, Signal::TERM), "stopped by a signal (SIGTERM)"),
        ("person", |_, _, runner| signal(runner, Signal::INT), "stopped by Ctrl-C"),
        ("killed", |_, _, runner| signal(runner, Signal::KILL), "without a goodbye"),
    ];
    for (agent, stop, why) in ways {
        let mut runner = machine.runner(agent);
        machine.wait_status(agent, "idle");
        stop(&machine, agent, &mut runner);
        let (status, said) = end_of(&machine, agent);
        assert!(status == "offline" && said.contains(why), "{agent}: {status}, {said}");
    }
    // A try that never worked says why, and a hub that starts again still knows all of it.
    let mut failed =
        machine.start(&["run", "acp", "--agent-id", "failed", "--", "sh", "-c", "exit 3"]);
    assert_eq!(failed.wait(60).0, 1);
    let before: Vec<(String, String)> =
        ["command", "service", "person", "killed", "failed"].map(|a| end_of(&machine, a)).into();
    assert_eq!(before[4].0, "error", "{before:?}");
    hub.terminate();
    hub.wait(60);
    let _hub = machine.hub();
    let after: Vec<(String, String)> =
        ["command", "service", "person", "killed", "failed"].map(|a| end_of(&machine, a)).into();
    assert_eq!(before, after);
    let shown = machine.ok(&["agents"]);
    assert!(shown.contains("for the night") && shown.contains("SIGTERM"), "{shown}");
    assert!(machine.ok(&["status", "command", "--why"]).contains("for the night"));
    // What is sent meanwhile waits.
    let id = machine.send("command", "good morning");
    let _runner = machine.runner("command");
    machine.wait_status("command", "idle");
    machine.settle(&[id], 60);
    // Those that will not come back are forgotten, one by name and the others together.
    assert!(machine.fails(1, &["agents", "forget", "command"]).contains("shutdown` stops it"));
    assert!(machine.fails(2, &["agents", "forget"]).contains("--offline"));
    assert!(machine.ok(&["agents", "forget", "service"]).contains("service is forgotten"));
    let all = machine.ok(&["agents", "forget", "--offline", "--json"]);
    let all: Value = serde_json::from_str(&all).expect("JSON");
    assert_eq!(all["forgotten"].as_array().map(Vec::len), Some(3), "{all}");
    let left: Vec<Value> = cards(&machine).iter().map(|card| card["id"].clone()).collect();
    assert_eq!(left, ["command"]);
    assert_eq!(machine.ok(&["agents", "forget", "--offline"]), "no agent is offline");
}
