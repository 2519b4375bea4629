//! What real agents do, through hub and runner: the demo agent's quirks, and recordings played by
//! an agent process.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Machine, wait_for};

/// The agent that plays recordings; cargo builds it beside the tests.
fn replay() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    let path =
        own.parent().and_then(|deps| deps.parent()).expect("a folder").join("examples/replay");
    assert!(path.exists(), "cargo builds {} with the tests", path.display());
    path
}

fn recording(name: &str) -> String {
    format!("{}/tests/fixtures/acp/{name}.jsonl", env!("CARGO_MANIFEST_DIR"))
}

/// Sends the first prompt of a recording; the answer, and the runner's status then.
fn plays(name: &str) -> (String, Value) {
    let machine = Machine::new(name);
    let _hub = machine.hub();
    let (agent, file) = (replay().to_string_lossy().into_owned(), recording(name));
    let _runner = machine.start(&[
        "run",
        "acp",
        "--agent-id",
        "a",
        "--approval",
        "open",
        "--",
        &agent,
        &file,
    ]);
    machine.wait_status("a", "idle");
    let answer = machine.ok(&["send", "a", "--wait", "30", "play"]);
    machine.wait_status("a", "idle");
    (answer, machine.status("a"))
}

#[test]
fn a_turn_that_ends_well_after_its_engine_failed_is_a_failure() {
    let (answer, _) = plays("codex-acp-2.6.0.error-model-500");
    assert!(answer.contains("high demand"), "the error is told: {answer}");
    // As a task it must not count as done.
    let machine = Machine::new("engine-task");
    let _hub = machine.hub();
    let (agent, file) =
        (replay().to_string_lossy().into_owned(), recording("codex-acp-2.6.0.error-model-500"));
    let _runner = machine.start(&[
        "run",
        "acp",
        "--agent-id",
        "a",
        "--approval",
        "open",
        "--",
        &agent,
        &file,
    ]);
    machine.wait_status("a", "idle");
    machine.ok(&["send", "a", "--task", "play"]);
    wait_for("the task to be settled", 60, || {
        machine.ok(&["tasks", "--json"]).contains("\"status\":\"failed\"").then_some(())
    });
}

#[test]
fn every_agent_is_understood_from_its_recording() {
    for (name, says) in [
        ("opencode-1.18.33.simple", "Hello from the fake model."),
        ("claude-agent-acp-0.100.0.simple", "Hello from the fake model."),
        ("codex-acp-2.6.0.simple", "Hello from the fake model."),
        ("gemini-cli-0.61.0.simple", "Hello from the fake model."),
        ("qwen-code-0.24.4.simple", "Hello from the fake model."),
    ] {
        let (answer, status) = plays(name);
        assert_eq!(answer, says, "{name}");
        assert!(
            status.pointer("/session/mode").is_some() || name.starts_with("opencode"),
            "{name}: {status}"
        );
    }
}

#[test]
fn quirks_of_agents_are_ordinary() {
    let machine = Machine::new("quirks");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    // Ended by itself as cancelled: the sender is told, nothing is sent twice.
    let uninvited = machine.send("a", "uninvited");
    let long = machine.send("a", "longline");
    let garbage = machine.send("a", "garbage");
    machine.settle(&[uninvited, long, garbage], 60);
    let inbox = machine.ok(&["inbox", "--all", "--json"]);
    assert!(inbox.contains("was interrupted before it answered"), "{inbox}");
    machine.wait_status("a", "idle");
}

#[test]
fn an_agent_that_is_deaf_to_everything_is_ended_all_the_same() {
    let machine = Machine::new("deaf");
    let hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let ids = [machine.send("a", "deaf"), machine.send("a", "child")];
    machine.settle(&ids, 60);
    machine.ok(&["command", "a", "shutdown", "--timeout-ms", "3000"]);
    assert_eq!(runner.wait(60).0, 0);
    let left: Vec<u32> = machine.left_over().into_iter().map(|process| process.pid).collect();
    assert_eq!(left, [hub.child.id()], "only the hub is left");
}
