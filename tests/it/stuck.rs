//! A turn that hangs is shown as stuck, with what was looked at, until it shows a sign of life.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Machine, wait_for};

/// A process that computes and counts as one of the agent's session, as a child does that has left
/// its parents.
fn compute(machine: &Machine) -> std::process::Child {
    let info = machine.status("a");
    let pid = info["providerProcess"]["pid"].as_u64().expect("a process");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("is ours");
    let name = "AGENT_RELAY_PROVIDER_SESSION_ID=";
    let mark = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| std::str::from_utf8(variable).ok()?.strip_prefix(name))
        .expect("is marked")
        .to_string();
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]).env("AGENT_RELAY_PROVIDER_SESSION_ID", mark);
    command.stdin(Stdio::null()).spawn().expect("starts")
}

#[test]
fn a_hung_turn_is_stuck_until_it_shows_a_sign_of_life() {
    let machine = Machine::new("stuck");
    let _hub = machine.hub();
    std::fs::create_dir_all(machine.home.join("providers")).expect("folder");
    std::fs::write(machine.home.join("providers/acp.json"), "{\"stuckAfterMs\": 1500}")
        .expect("config");
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    machine.send("a", "hang");
    machine.wait_status("a", "stuck");
    // The relay counts it as busy, and people see more.
    let card = wait_for("the relay to be told", 60, || {
        let told = machine.ok(&["agents", "--json", "--status", "stuck"]);
        serde_json::from_str::<Value>(&told).ok()
    });
    assert_eq!((&card["id"], &card["status"]), (&"a".into(), &"busy".into()), "{card}");
    assert_eq!(card["meta"]["statusSource"], "runner");
    let evidence = card["meta"]["statusEvidence"]["text"].as_str().expect("text");
    assert!(evidence.contains("no output") && evidence.contains("agent-relay"), "{evidence}");
    let why = machine.ok(&["status", "a", "--why"]);
    assert!(why.contains("no sign of life") && why.contains("known by"), "{why}");
    // A child that computes is one, and its end is the end of that.
    let mut child = compute(&machine);
    machine.wait_status("a", "busy");
    child.kill().expect("ours");
    child.wait().expect("ends");
    machine.wait_status("a", "stuck");
    machine.ok(&["command", "a", "interrupt"]);
    machine.wait_status("a", "idle");
}
